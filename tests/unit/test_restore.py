"""The restore job on an engine and stores in memory, with real helper processes: all of it, or nothing and why."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar import sets
from sidecar.archive.unpack import GO, STAGING
from sidecar.engine.deadman import DeadMan
from sidecar.engine.journal import Journal
from sidecar.engine.recovery import recover
from sidecar.errors import (
    ArchiveDamaged,
    EngineDenied,
    EngineUnreachable,
    HelperEnded,
    Interrupted,
    NoRoom,
    NotFound,
    RestoreFailed,
    RestoreRefused,
    SetInvalid,
    SidecarError,
    StoreUnreachable,
    WrongUsage,
)
from sidecar.events import Progress
from sidecar.jobs.catalogue import list_sets, read_document
from sidecar.jobs.restore import (
    OWED,
    RestoreTools,
    Wish,
    owed_volumes,
    plan_restore,
    preview,
    restore,
    settle_owed,
    write_tar,
)
from sidecar.model import ContainerState
from sidecar.report import Outcome, RestoreReport, RunReport
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Store, Stored
from tests.contract.fake_engine import FakeHelper
from tests.unit.shop import Shop

MEBIBYTES = 20  # of `db`, so that it takes several blocks


class Loss(Shop):
    """The shop of the backup's tests with one good set of `db` and `files`, and then other data in both."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.engine.directory = directory / "volumes"
        (self.data("db") / "large").write_bytes(random.Random(1).randbytes(MEBIBYTES << 20))
        (self.data("files") / "link").symlink_to("one/file")
        report = self.run()
        assert report.outcome is Outcome.GOOD, report.reasons
        assert report.set is not None
        self.set = report.set
        self.wanted = {name: self.found(name) for name in ("db", "files")}
        self.ruin()
        self.ruined = {name: self.found(name) for name in ("db", "files")}
        self.engine.calls.clear()
        self.events.clear()

    def ruin(self) -> None:
        for name in ("db", "files"):
            shutil.rmtree(self.data(name) / "one")
            (self.data(name) / "ruined").write_bytes(b"by someone")

    def found(self, volume: str) -> dict[str, tuple[int, bytes]]:
        root = self.data(volume)
        return {
            str(p.relative_to(root)): (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"")
            for p in sorted(root.rglob("*"))
        }

    def now(self) -> dict[str, dict[str, tuple[int, bytes]]]:
        return {name: self.found(name) for name in ("db", "files")}

    @property
    def journal(self) -> Journal:
        return Journal(self.directory / "state" / "journal.json")

    def tools(self) -> RestoreTools:
        return RestoreTools(
            engine=self.engine,
            stores=self.stores,
            journal=self.journal,
            own=lambda: self.engine.container("backup"),
            protected=lambda containers: {c.id: "it carries us" for c in containers if self.engine.carries_us(c)},
            dead_man=lambda run, emit: DeadMan(
                self.engine, self.engine.container("backup"), run=run, lease=30.0, state="/state", emit=emit
            ),
            safety=self.safety,
            threads=2,
            emit=self.emit,
            now=self.tick,
        )

    def safety(self, volumes: tuple[str, ...], tags: Mapping[str, str]) -> RunReport:
        self.second += 1
        return self.run(*volumes, tags=tags)

    def restore(
        self,
        *named: str,
        set_name: str = "latest",
        follow: Callable[[Progress], None] | None = None,
        safety: bool = False,
        **wish: Any,
    ) -> RestoreReport:
        wished = Wish(set_name, named, safety=safety, **wish)
        return restore(wished, self.tools(), follow or self.progress.append, self.cancelled)

    def refused(self, kind: type[SidecarError], *named: str, match: str = "", **options: Any) -> SidecarError:
        """The error of a restore that must change nothing, start and stop nobody, and leave nothing behind."""
        with pytest.raises(kind) as caught:
            self.restore(*named, **options)
        assert match in caught.value.message, caught.value.message
        assert self.now() == self.ruined
        assert self.engine.names("stop") == []
        assert self.engine.state("db") is ContainerState.RUNNING
        self.assert_nothing_is_left()
        return caught.value

    def assert_nothing_is_left(self) -> None:
        assert self.journal.read() is None
        assert not any((self.data(name) / STAGING).exists() for name in ("db", "files") if self.data(name).exists())
        assert [c.name for c in self.engine.containers() if c.role == "helper"] == []


@pytest.fixture
def loss(tmp_path: Path) -> Loss:
    return Loss(tmp_path)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers of a busy machine may take their time to say farewell."""
    monkeypatch.setattr("sidecar.jobs.delivery.FAREWELL", 60.0)


# --- restored --------------------------------------------------------------------------------------------------------


def test_all_volumes_of_the_newest_set_become_what_they_were(loss: Loss) -> None:
    report = loss.restore()
    assert report.outcome is Outcome.GOOD, report.reasons
    assert loss.now() == loss.wanted
    assert report.set == loss.set
    assert {v.volume: (v.outcome, v.store, v.created) for v in report.volumes} == {
        "db": (Outcome.GOOD, "memory", False),
        "files": (Outcome.GOOD, "memory", False),
    }
    loss.assert_nothing_is_left()
    assert [name for name, _ in loss.events if name.startswith("restore")] == ["restore_started", "restore_finished"]


def test_the_volume_named_alone_is_restored_and_only_its_users_are_stopped(loss: Loss) -> None:
    report = loss.restore("files", set_name=loss.set)
    assert report.outcome is Outcome.GOOD
    assert loss.now() == {"db": loss.ruined["db"], "files": loss.wanted["files"]}
    assert report.containers == ("files",)
    assert loss.engine.names("stop") == ["files"]
    assert loss.engine.names("start") == ["files"]


def test_containers_run_while_it_is_fetched_and_are_stopped_only_when_all_of_it_is_there(loss: Loss) -> None:
    seen: list[tuple[str, ContainerState]] = []
    loss.restore(follow=lambda progress: seen.append((progress.phase, loss.engine.state("db"))))
    during = {state for phase, state in seen if phase == "restoring"}
    assert during == {ContainerState.RUNNING}
    assert {state for phase, state in seen if phase == "exchanging"} == {ContainerState.EXITED}
    assert loss.engine.state("db") is ContainerState.RUNNING


def test_who_only_reads_a_volume_is_stopped_too_and_who_was_stopped_stays_so(loss: Loss) -> None:
    loss.engine.run("reader", volumes={"files": "/r"}, read_only=True)
    loss.engine.create("never-started", volumes={"files": "/r"})
    report = loss.restore("files")
    assert sorted(report.containers) == ["files", "reader"]
    assert loss.engine.state("reader") is ContainerState.RUNNING
    assert loss.engine.state("never-started") is ContainerState.CREATED


def test_clients_stop_before_servers_and_start_after_them(loss: Loss) -> None:
    label = "com.docker.compose.depends_on"
    project = {"com.docker.compose.project": "shop", "com.docker.compose.service": "db"}
    loss.engine.run("server", labels=project, volumes={"db": "/d"})
    loss.engine.run(
        "a-client", labels={**project, "com.docker.compose.service": "web", label: "db:x:false"}, volumes={"db": "/d"}
    )
    loss.restore("db")
    assert loss.engine.names("stop").index("a-client") < loss.engine.names("stop").index("server")
    assert loss.engine.names("start").index("a-client") > loss.engine.names("start").index("server")


def test_a_volume_that_is_gone_is_made_with_its_labels(loss: Loss) -> None:
    for name in ("db", "files"):
        loss.engine.remove(name)
    assert loss.engine.remove_volume("files")
    report = loss.restore("files")
    assert report.outcome is Outcome.GOOD
    assert [v.created for v in report.volumes] == [True]
    assert loss.found("files") == loss.wanted["files"]
    (made,) = [volume for volume in loss.engine.volumes() if volume.name == "files"]
    assert made.project == "shop"


def test_a_store_whose_copy_is_damaged_is_passed_over_for_one_that_has_it_whole(loss: Loss) -> None:
    whole = loss.stores["memory"]
    damaged = MemoryStore()
    for stored in whole.list():
        damaged.put(stored.key, read_document(whole, stored.key))
    flip(damaged, f"{loss.set}/db.tar.gz", -1000)
    loss.stores = {"damaged": damaged, "memory": whole}
    report = loss.restore()
    assert report.outcome is Outcome.GOOD
    assert loss.now() == loss.wanted
    assert {v.volume: v.store for v in report.volumes} == {"db": "memory", "files": "damaged"}
    assert [fields["store"] for name, fields in loss.events if name == "store_failed"] == ["damaged"]


def test_what_an_earlier_restore_left_is_cleared_away_first(loss: Loss) -> None:
    (loss.data("db") / STAGING / "new").mkdir(parents=True)
    (loss.data("db") / STAGING / "new" / "half").write_bytes(b"x")
    assert loss.restore().outcome is Outcome.GOOD
    assert loss.now() == loss.wanted
    loss.assert_nothing_is_left()


# --- refused, and nothing is changed ---------------------------------------------------------------------------------


def flip(store: Store, key: str, position: int) -> None:
    data = bytearray(read_document(store, key))
    data[position] ^= 1
    store.put(key, bytes(data))


def test_an_unknown_set_or_volume_is_named_with_the_nearest(loss: Loss) -> None:
    error = loss.refused(NotFound, set_name=loss.set[:-1] + "9", match="there is no set")
    assert loss.set in error.hint
    error = loss.refused(NotFound, "fies", match="has no volume 'fies'")
    assert "files" in error.hint


@pytest.mark.parametrize("position", [20, 5_000_000, -20])
def test_one_flipped_bit_of_an_archive_changes_nothing(loss: Loss, position: int) -> None:
    flip(loss.stores["memory"], f"{loss.set}/db.tar.gz", position)
    error = loss.refused(ArchiveDamaged, match="SHA-256")
    assert f"{loss.set}/db.tar.gz" in error.message
    assert error.message.endswith("no volume was changed")


def test_an_index_that_is_another_than_the_manifest_vouches_for_changes_nothing(loss: Loss) -> None:
    flip(loss.stores["memory"], f"{loss.set}/files.index.jsonl.gz", 30)
    loss.refused(ArchiveDamaged, match="files.index.jsonl.gz is not what was written")


@pytest.mark.parametrize("change", ["cut", "grown", "gone"])
def test_an_archive_of_another_length_changes_nothing(loss: Loss, change: str) -> None:
    store, key = loss.stores["memory"], f"{loss.set}/files.tar.gz"
    data = read_document(store, key)
    if change == "gone":
        store.delete([key])
    else:
        store.put(key, data[:-1] if change == "cut" else data + b"x")
    loss.refused(SidecarError, match="files.tar.gz")


def test_a_damaged_manifest_is_said(loss: Loss) -> None:
    loss.stores["memory"].put(f"{loss.set}/manifest.json", b"{")
    loss.refused(SetInvalid, match="manifest.json is damaged")


def test_a_damaged_manifest_hides_no_other_set_and_is_said(loss: Loss) -> None:
    loss.second += 5
    newer = loss.run().set
    store = loss.stores["memory"]
    store.put(f"{newer}/manifest.json", b"{")
    listed = list_sets(loss.stores)
    assert [each["set"] for each in listed["sets"]] == [loss.set]
    assert [f"{newer}/manifest.json is damaged" in warning for warning in listed["warnings"]] == [True]
    assert loss.restore().set == loss.set
    with pytest.raises(SetInvalid):
        loss.restore(set_name=newer or "")


def test_a_disk_that_is_too_small_is_found_before_anything_is_fetched(loss: Loss) -> None:
    original = loss.engine.help_with

    def with_a_small_disk(like: Any, volume: str, *, command: list[str], target: str) -> Any:
        larger = [f"--files={1 << 50}" if part.startswith("--files") and volume == "db" else part for part in command]
        return original(like, volume, command=larger, target=target)

    loss.engine.help_with = with_a_small_disk  # type: ignore[method-assign]
    error = loss.refused(NoRoom, match="are needed")
    assert error.volume == "db"
    assert not [progress for progress in loss.progress if progress.phase == "restoring"]


@pytest.mark.parametrize("why", ["itself", "swarm", "paused", "carries"])
def test_who_must_not_be_stopped_is_found_before_anything_is_fetched(loss: Loss, why: str) -> None:
    labels = {"com.docker.swarm.task.id": "x"} if why == "swarm" else {}
    loss.engine.run("fragile", volumes={"db": "/d"}, auto_remove=why == "itself", labels=labels)
    if why == "paused":
        loss.engine.pause("fragile")
    if why == "carries":
        loss.engine.carry("fragile")
    error = loss.refused(RestoreRefused, match="fragile")
    assert error.hint
    assert not [progress for progress in loss.progress if progress.phase == "restoring"]


class Special:
    """The volume `files` is lost, and had a driver with options, of which the set tells."""

    def __init__(self, loss: Loss, driver: str = "local", **options: str) -> None:
        self.loss = loss
        store, key = loss.stores["memory"], sets.manifest_key(loss.set)
        manifest = sets.Manifest.from_json(read_document(store, key), where=key)
        volumes = tuple(
            replace(v, driver=driver, options=sets.without_secrets(options), labels={"kept": "yes"})
            for v in manifest.volumes
        )
        store.put(key, replace(manifest, volumes=volumes).to_json())
        loss.engine.remove("files")
        assert loss.engine.remove_volume("files")

    def made(self) -> tuple[str, dict[str, str], dict[str, str]] | None:
        found = [each for each in self.loss.engine.volumes() if each.name == "files"]
        return (found[0].driver, dict(found[0].options), dict(found[0].labels)) if found else None


def test_the_stream_takes_the_short_way_where_the_volumes_can_be_seen(
    loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.jobs.passage.VOLUMES_TARGET", str(loss.engine.directory))
    carried: list[bytes] = []
    send = FakeHelper.send
    monkeypatch.setattr(FakeHelper, "send", lambda self, data: (carried.append(bytes(data)), send(self, data))[1])
    assert loss.restore().outcome is Outcome.GOOD
    assert loss.now() == loss.wanted
    assert set(carried) == {GO}
    loss.assert_nothing_is_left()


def test_a_volume_of_a_driver_is_not_made_by_guess(loss: Loss) -> None:
    """Its options may lead to what another host uses: a plain volume, which is said before anything is done."""
    special = Special(loss, type="nfs", device=":/export")
    plan, _ = plan_restore(Wish("latest", ("files",)), loss.tools())
    (warning,) = plan.warnings
    assert "volume files was made with driver local and options device=:/export, type=nfs" in warning
    assert "here it becomes a plain local volume (--with-driver: as it was)" in warning
    assert loss.restore("files").outcome is Outcome.GOOD
    assert special.made() == ("local", {}, {"kept": "yes"})
    assert loss.found("files") == loss.wanted["files"]


def test_a_volume_is_made_with_its_driver_and_options_where_that_is_wanted(loss: Loss) -> None:
    special = Special(loss, "rclone", remote="a:b")
    plan, _ = plan_restore(Wish("latest", ("files",), drivers=True), loss.tools())
    assert plan.warnings == ()
    assert loss.restore("files", drivers=True).outcome is Outcome.GOOD
    assert special.made() == ("rclone", {"remote": "a:b"}, {"kept": "yes"})
    assert loss.found("files") == loss.wanted["files"]


def test_a_volume_whose_options_held_a_password_cannot_be_made_with_them(loss: Loss) -> None:
    special = Special(loss, type="cifs", o="username=me,password=secret")
    with pytest.raises(RestoreRefused, match="what looks like a password is never recorded") as refused:
        loss.restore("files", drivers=True)
    assert "leave out --with-driver" in refused.value.hint
    assert special.made() is None
    assert loss.restore("files").outcome is Outcome.GOOD
    assert special.made() == ("local", {}, {"kept": "yes"})


def test_as_a_new_volume_it_is_always_a_plain_one(loss: Loss) -> None:
    Special(loss, type="nfs")
    plan, _ = plan_restore(Wish("latest", ("files",), into="then", drivers=True), loss.tools())
    assert (plan.volumes[0].driver, plan.volumes[0].options, plan.warnings) == ("local", {}, ())


def test_a_volume_that_was_just_made_and_leads_to_data_is_left_alone(loss: Loss) -> None:
    Special(loss, type="nfs")
    theirs = loss.engine.data("files") / "theirs"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"of somebody")
    with pytest.raises(RestoreFailed, match="holds 'theirs' and 0 more already, of which there is no backup"):
        loss.restore("files", drivers=True)


def test_an_engine_that_lets_no_container_start_is_said(loss: Loss) -> None:
    loss.engine.refusing.append(EngineDenied("POST /containers/create is not permitted", hint="let it pass"))
    loss.refused(EngineDenied, match="not permitted; no volume was changed")


def test_told_to_stop_while_it_fetches_it_changes_nothing(loss: Loss) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "restoring" and progress.volume == "files":
            loss.cancelled.set()

    loss.refused(Interrupted, follow=follow, match="no volume was changed")


def test_told_to_stop_while_it_exchanges_it_goes_through(loss: Loss) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "exchanging":
            loss.cancelled.set()

    assert loss.restore(follow=follow).outcome is Outcome.GOOD
    assert loss.now() == loss.wanted


def test_someone_who_comes_to_use_the_volume_meanwhile_ends_it_before_anything_is_changed(loss: Loss) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "stopping":
            loss.engine.run("newcomer", volumes={"db": "/d"})

    with pytest.raises(SidecarError, match="newcomer was started meanwhile"):
        loss.restore(follow=follow)
    assert loss.now() == loss.ruined
    assert loss.engine.state("db") is ContainerState.RUNNING
    loss.assert_nothing_is_left()


def test_a_second_container_stands_by_for_whom_a_restore_stops_and_only_then(loss: Loss) -> None:
    loss.engine.launched.clear()
    loss.restore("db", into="db_then")
    assert loss.engine.launched == []
    loss.restore("db")
    assert [command[0] for command in loss.engine.launched] == ["deadman"]


def test_a_monitor_that_has_all_of_the_host_is_no_newcomer_to_a_volume_that_is_made(loss: Loss) -> None:
    loss.engine.run("monitor", binds={"/": "/host"}, read_only=True)
    report = loss.restore("db", into="db_then")
    assert report.outcome is Outcome.GOOD, report.reasons
    assert loss.found("db_then") == loss.wanted["db"]
    assert loss.engine.state("monitor") is ContainerState.RUNNING


def test_someone_who_takes_a_volume_that_is_made_before_it_is_restored_ends_it(
    loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.jobs.delivery.FAREWELL", 0.2)  # how long its removal is tried

    def follow(progress: Progress) -> None:
        if progress.phase == "restoring":
            loss.engine.run("newcomer", volumes={"db_then": "/d"})

    with pytest.raises(SidecarError, match="newcomer was started meanwhile"):
        loss.restore("db", into="db_then", follow=follow)


def test_a_container_that_cannot_be_stopped_leaves_all_running_and_unchanged(loss: Loss) -> None:
    loss.engine.fail("stop", "files", EngineDenied("POST stop is not permitted"))
    with pytest.raises(EngineDenied, match="stop is not permitted"):
        loss.restore()
    assert loss.now() == loss.ruined
    assert {loss.engine.state(name) for name in ("db", "files")} == {ContainerState.RUNNING}
    assert loss.engine.unfired == []
    loss.assert_nothing_is_left()


def test_a_volume_that_was_made_for_a_restore_that_fails_is_removed_again(loss: Loss) -> None:
    loss.engine.remove("files")
    assert loss.engine.remove_volume("files")
    flip(loss.stores["memory"], f"{loss.set}/files.tar.gz", 20)
    with pytest.raises(ArchiveDamaged):
        loss.restore("files")
    assert "files" not in [volume.name for volume in loss.engine.volumes()]


def test_a_store_that_goes_away_in_the_middle_changes_nothing(loss: Loss) -> None:
    class Leaving(MemoryStore):
        reads = 0

        def open(self, key: str, **options: Any) -> Any:
            if key.endswith("db.tar.gz"):
                self.reads += 1
                if self.reads == 3:
                    raise StoreUnreachable("it went away", store=self.name)
            return super().open(key, **options)

    leaving = Leaving()
    for stored in loss.stores["memory"].list():
        leaving.put(stored.key, read_document(loss.stores["memory"], stored.key))
    loss.stores = {"memory": leaving}
    loss.refused(StoreUnreachable, match="it went away")
    assert leaving.reads >= 3


# --- killed ----------------------------------------------------------------------------------------------------------


def test_a_helper_that_is_killed_while_it_unpacks_leaves_the_volume_as_it_was_and_the_command_restores(
    loss: Loss,
) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "restoring" and progress.volume == "db" and progress.done_bytes < 10 << 20:
            loss.engine.helping[-1].process.send_signal(signal.SIGKILL)

    with pytest.raises(HelperEnded) as caught:
        loss.restore(follow=follow)
    assert caught.value.message.endswith("no volume was changed")
    assert loss.engine.helping[0].process.returncode == -signal.SIGKILL
    assert loss.now() == loss.ruined
    assert loss.engine.names("stop") == []
    loss.assert_nothing_is_left()
    assert loss.restore().outcome is Outcome.GOOD
    assert loss.now() == loss.wanted
    loss.assert_nothing_is_left()


def test_a_helper_that_is_killed_when_it_is_told_to_exchange_is_followed_by_one_that_does(loss: Loss) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "exchanging" and progress.volume == "db":
            loss.engine.helping[0].process.kill()
            loss.engine.helping[0].process.wait()

    report = loss.restore(follow=follow)
    assert report.outcome is Outcome.GOOD, report.reasons
    assert loss.now() == loss.wanted
    assert loss.engine.state("db") is ContainerState.RUNNING
    loss.assert_nothing_is_left()


def test_nobody_is_started_on_a_volume_of_which_nobody_says_whether_it_is_whole(
    loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.jobs.restore._ASKING", 0.0)

    def follow(progress: Progress) -> None:
        if progress.phase == "exchanging" and progress.volume == "db":
            loss.engine.helping[0].process.kill()
            loss.engine.helping[0].process.wait()
            loss.engine.refusing += [EngineUnreachable("the engine is away")] * 2

    report = loss.restore("db", follow=follow)

    assert report.outcome is Outcome.FAILED
    assert {reason.code for reason in report.reasons} == {"restore_failed", "thaw_failed"}
    assert loss.engine.state("db") is ContainerState.EXITED
    assert owed_volumes(loss.journal) == ("db",)
    # What the daemon does next, until it succeeds.
    own = loss.engine.container("backup")
    settle_owed(loss.engine, own, loss.journal, loss.emit)
    assert recover(loss.journal, loss.engine, loss.emit) == ("db",)
    assert loss.engine.state("db") is ContainerState.RUNNING
    assert loss.found("db") == loss.wanted["db"]
    loss.assert_nothing_is_left()


class Dead(MemoryStore):
    """A store that nothing comes back from."""

    def list(self, prefix: str = "") -> Iterator[Stored]:
        raise StoreUnreachable("no route", store=self.name)


class Killed(BaseException):
    """Nothing of the sidecar runs any more."""


def test_killed_with_all_its_helpers_between_two_exchanges_none_of_the_volumes_is_left_behind(
    loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut: nobody cleans up, nobody goes on. What was decided for all of them is finished for all of them."""
    on_disk: list[bytes] = []

    def follow(progress: Progress) -> None:
        if (progress.phase, progress.volume) == ("exchanging", "files") and not on_disk:
            on_disk.append(loss.journal.path.read_bytes())
            for helper in loss.engine.helping:
                helper.process.kill()
                helper.process.wait()
            loss.engine.refusing += [EngineUnreachable("nobody is there any more")] * 9
            raise Killed

    with monkeypatch.context() as dead:
        dead.setattr(loss.engine, "start", lambda name: True)
        dead.setattr("sidecar.engine.freeze.PATIENCE", 0.0)
        dead.setattr("sidecar.jobs.restore._ASKING", 0.0)
        with suppress(Killed, SidecarError):
            loss.restore(follow=follow)
    loss.engine.refusing.clear()
    loss.journal.path.write_bytes(on_disk[0])
    assert loss.found("db") == loss.wanted["db"]
    assert (loss.data("files") / "ruined").exists()

    settle_owed(loss.engine, loss.engine.container("backup"), loss.journal, loss.emit)
    recover(loss.journal, loss.engine, loss.emit)

    assert loss.now() == loss.wanted
    assert {loss.engine.state(name) for name in ("db", "files")} == {ContainerState.RUNNING}
    loss.assert_nothing_is_left()


@pytest.mark.parametrize("moment", ["restoring", "stopping", "exchanging db", "exchanging files"])
def test_killed_at_any_moment_the_next_start_leaves_each_volume_whole_and_all_running(
    loss: Loss, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a line of the sidecar's own runs any more; its helpers find their input closed, and end by themselves."""
    at_death: dict[str, bytes] = {}
    journal = loss.directory / "state" / "journal.json"

    def follow(progress: Progress) -> None:
        if moment in (progress.phase, f"{progress.phase} {progress.volume}") and not at_death:
            at_death["journal"] = journal.read_bytes()
            raise Killed

    with monkeypatch.context() as dead:
        dead.setattr(loss.engine, "start", lambda name: True)  # the dead start nobody, and say nothing to anybody
        dead.setattr("sidecar.jobs.delivery.Delivery._dismiss", lambda self, helper, volume: helper.end())
        dead.setattr("sidecar.jobs.restore._Restore._settle_debt", lambda self: None)
        dead.setattr("sidecar.engine.freeze.PATIENCE", 0.0)
        with suppress(Killed, SidecarError):
            loss.restore(follow=follow)
    assert at_death
    journal.write_bytes(at_death["journal"])  # as the disk had it

    own = loss.engine.container("backup")
    settle_owed(loss.engine, own, loss.journal, loss.emit)
    recover(loss.journal, loss.engine, loss.emit)

    # All of one instant: once it was decided, none is left behind; and what is said of it is so.
    assert loss.now() in (loss.wanted, loss.ruined)
    (said,) = [fields for fields in loss.of("recovered") if "untouched" in fields]
    assert sorted(said["volumes"]) == (["db", "files"] if loss.now() == loss.wanted else [])
    assert sorted(said["untouched"]) == ([] if loss.now() == loss.wanted else ["db", "files"])
    for name in ("db", "files"):
        assert loss.engine.state(name) is ContainerState.RUNNING
    loss.assert_nothing_is_left()
    assert loss.restore().outcome is Outcome.GOOD
    assert loss.now() == loss.wanted


def test_a_journal_names_the_volumes_before_the_first_helper_is_started(loss: Loss) -> None:
    seen: list[tuple[str, ...]] = []
    original = loss.engine.help_with

    def watching(*arguments: Any, **options: Any) -> Any:
        seen.append(owed_volumes(loss.journal))
        return original(*arguments, **options)

    loss.engine.help_with = watching  # type: ignore[method-assign]
    loss.restore()
    assert seen == [("db", "files")] * 2


def test_a_journal_that_names_a_volume_that_is_gone_owes_nothing(loss: Loss) -> None:
    loss.journal.owe(OWED, {"set": loss.set, "volumes": ["was-removed"]})
    settle_owed(loss.engine, loss.engine.container("backup"), loss.journal, loss.emit)
    assert loss.journal.read() is None
    assert "was-removed" not in [volume.name for volume in loss.engine.volumes()]


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_would_be_done_and_does_nothing(loss: Loss) -> None:
    plan, _ = plan_restore(Wish(), loss.tools())
    document = plan.as_json()
    assert document["set"] == loss.set
    assert document["containers"] == ["db", "files"]
    assert [(each["volume"], each["exists"]) for each in document["volumes"]] == [("db", True), ("files", True)]
    assert loss.now() == loss.ruined
    assert loss.engine.helping == []
    assert loss.events == []


def test_the_plan_of_a_path_tells_of_what_matches_and_of_nothing_else(loss: Loss) -> None:
    (listed,) = list_sets(loss.stores)["sets"]
    (of_all,) = preview(Wish(named=("db",)), loss.tools())["volumes"]
    (of_path,) = preview(Wish(named=("db",), pattern="one/*"), loss.tools())["volumes"]
    assert {key: of_all[key] for key in listed["volumes"]["db"]} == listed["volumes"]["db"]
    report = loss.restore("db", pattern="one/*")
    assert [(v.files, v.bytes_written) for v in report.volumes] == [(of_path["files"], of_path["raw_bytes"])]
    assert of_path["raw_bytes"] < of_all["raw_bytes"]
    assert 0 < of_path["archive_bytes"] < of_all["archive_bytes"]


def test_the_plan_of_a_path_that_matches_nothing_is_the_error_of_the_restore(loss: Loss) -> None:
    wish = Wish(named=("files",), pattern="on/file")
    with pytest.raises(NotFound, match="nothing in volume files matches 'on/file'"):
        preview(wish, loss.tools())
    with pytest.raises(NotFound, match="nothing in volume files matches 'on/file'"):
        preview(replace(wish, into="files-then"), loss.tools())


def test_the_plan_of_a_path_is_made_from_the_copy_whose_index_is_whole(loss: Loss) -> None:
    damaged = MemoryStore()
    for stored in loss.stores["memory"].list():
        damaged.put(stored.key, read_document(loss.stores["memory"], stored.key))
    flip(damaged, f"{loss.set}/files.index.jsonl.gz", 20)
    loss.stores = {"damaged": damaged, **loss.stores}
    (volume,) = preview(Wish(named=("files",), pattern="one/file"), loss.tools())["volumes"]
    assert volume["files"] == 2


# --- other forms -----------------------------------------------------------------------------------------------------


def test_what_is_replaced_is_backed_up_first_and_comes_back_from_that(loss: Loss) -> None:
    report = loss.restore(safety=True)
    assert loss.now() == loss.wanted
    assert report.safety is not None
    assert report.safety != loss.set
    # Undone; and a set of that kind is never taken for the latest.
    undone = loss.restore(set_name=report.safety)
    assert undone.outcome is Outcome.GOOD
    assert loss.now() == loss.ruined
    assert loss.restore().set == loss.set


def test_without_a_set_of_what_is_there_nothing_is_replaced(loss: Loss) -> None:
    loss.engine.fail("pause", "db", EngineDenied("POST pause is not permitted"), times=99)
    error = loss.refused(RestoreRefused, safety=True, match="could not be backed up first: POST pause is not permitted")
    assert "--no-safety" in error.hint
    assert loss.restore().outcome is Outcome.GOOD


def test_nothing_is_backed_up_first_where_nothing_is_replaced(loss: Loss) -> None:
    assert loss.restore("db", into="db-then", safety=True).safety is None


def test_as_a_new_volume_it_touches_nothing_else_and_nobody_is_stopped(loss: Loss) -> None:
    report = loss.restore("files", into="files-then")
    assert report.outcome is Outcome.GOOD
    assert [(v.volume, v.into, v.created) for v in report.volumes] == [("files", "files-then", True)]
    assert loss.found("files-then") == loss.wanted["files"]
    assert loss.now() == loss.ruined
    assert loss.engine.names("stop") == []
    (made,) = [volume for volume in loss.engine.volumes() if volume.name == "files-then"]
    assert dict(made.labels) == {"backup.restored-from": f"{loss.set}/files"}
    loss.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("named", "into", "match", "code"),
    [
        (("db", "files"), "new", "2 volumes cannot be restored as the one volume new", "usage"),
        (("db",), "files", "volume files exists already", "restore_refused"),
        (("db",), "../x", "is no name for a volume", "usage"),
    ],
)
def test_what_cannot_be_a_new_volume_is_refused(
    loss: Loss, named: tuple[str, ...], into: str, match: str, code: str
) -> None:
    assert loss.refused(SidecarError, *named, into=into, match=match).code == code


def test_a_path_alone_is_put_in_place_and_all_else_stays(loss: Loss) -> None:
    report = loss.restore("files", pattern="one/file")
    assert report.outcome is Outcome.GOOD
    assert loss.found("files") == {
        **loss.ruined["files"],
        "one": loss.wanted["files"]["one"],
        "one/file": loss.wanted["files"]["one/file"],
        "link": loss.wanted["files"]["link"],  # which had led nowhere
    }
    assert [v.files for v in report.volumes] == [2]
    loss.assert_nothing_is_left()


def test_a_path_that_matches_nothing_and_a_path_in_many_volumes_are_refused(loss: Loss) -> None:
    error = loss.refused(NotFound, "files", pattern="on/file", match="nothing in volume files matches 'on/file'")
    assert "list SET VOLUME GLOB" in error.hint
    loss.refused(WrongUsage, pattern="one/file", match="a path is in one volume, and 2 were chosen")


def test_the_newest_set_that_has_the_volume_is_the_latest(loss: Loss) -> None:
    loss.second += 5
    assert loss.run("db").outcome is Outcome.GOOD
    assert loss.restore("files").set == loss.set
    assert loss.restore("db").set != loss.set


def test_the_latest_set_of_all_volumes_is_not_one_that_was_asked_for_by_name(loss: Loss) -> None:
    loss.second += 5
    assert loss.run("db").outcome is Outcome.GOOD
    report = loss.restore()
    assert report.set == loss.set
    assert {v.volume for v in report.volumes} == {"db", "files"}


def test_the_latest_set_is_doubted_while_a_store_does_not_answer_that_may_have_a_newer_one(loss: Loss) -> None:
    loss.stores = {**loss.stores, "s3": Dead(name="s3")}
    doubts: list[str] = []
    for plan in (plan_restore(Wish(), loss.tools())[0], plan_restore(Wish("latest", ("db",)), loss.tools())[0]):
        assert plan.manifest.set == loss.set
        assert "store s3 did not answer, and may have a newer set: no route" in plan.warnings
        assert any("s3 did not answer" in warning for warning in plan.as_json()["warnings"])
    write_tar(Wish(named=("db",)), loss.stores, lambda _: None, doubts.append, threads=2)
    assert doubts == ["store s3 did not answer, and may have a newer set: no route"]
    assert loss.restore("db").outcome is Outcome.GOOD
    (started,) = loss.of("restore_started")
    assert doubts[0] in started["warnings"]
    assert not plan_restore(Wish(loss.set), loss.tools())[0].warnings


def test_a_path_that_matches_nothing_costs_no_backup_of_what_is_there(loss: Loss) -> None:
    loss.refused(NotFound, "files", pattern="nothing", safety=True, match="matches 'nothing'")
    assert len(list_sets(loss.stores)["sets"]) == 1
    assert loss.restore("files", pattern="/one/file").outcome is Outcome.GOOD  # as in the container, from its root


def test_a_volume_as_plain_tar_is_what_gnu_tar_unpacks(loss: Loss, tmp_path: Path) -> None:
    for pattern, wanted in ((None, loss.wanted["files"]), ("link", {"link": loss.wanted["files"]["link"]})):
        stream = tmp_path / "stream.tar"
        with stream.open("wb") as file:
            write_tar(Wish(named=("files",), pattern=pattern), loss.stores, file.write, pytest.fail, threads=2)
        there = tmp_path / f"unpacked-{pattern}"
        there.mkdir()
        done = subprocess.run(["tar", "-xpf", stream], cwd=there, check=True, capture_output=True)
        assert done.stderr == b""
        assert {p.name for p in there.rglob("*")} == {Path(name).name for name in wanted}
    assert loss.now() == loss.ruined


def test_a_damaged_archive_ends_a_tar_stream_with_an_error(loss: Loss) -> None:
    flip(loss.stores["memory"], f"{loss.set}/db.tar.gz", -1000)
    with pytest.raises(ArchiveDamaged):
        write_tar(Wish(named=("db",)), loss.stores, lambda _: None, pytest.fail, threads=2)
