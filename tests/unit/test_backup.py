"""The backup job on an engine and stores in memory: what is committed, what is not, and what the report says."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli.words import Words
from sidecar.errors import EngineDenied, EngineSilent, NotFound, StoreDenied, StoreUnreachable
from sidecar.events import Progress
from sidecar.jobs.catalogue import list_files, list_sets
from sidecar.model import ContainerState
from sidecar.plan import Selection
from sidecar.report import Outcome
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Store
from tests.unit.shop import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_a_run_archives_every_volume_of_the_group_and_ends_good(shop: Shop) -> None:
    report = shop.run()
    assert report.outcome is Outcome.GOOD, report.reasons
    assert report.set == "backup-20260102_030400"
    assert shop.archive(report, "db") == {"./one/file": b"db" * 1000}
    assert shop.archive(report, "files") == {"./one/file": b"files" * 1000}
    assert [group.group for group in report.groups] == ["shop"]
    assert report.off_host
    assert shop.frozen() == []


def test_a_volume_with_half_a_restore_in_it_fails_by_name_and_the_others_are_archived(shop: Shop) -> None:
    (shop.data("db") / ".volume-backup-restore").mkdir()
    report = shop.run()
    assert report.outcome is Outcome.PARTIAL
    assert [(each.code, each.volume) for each in report.reasons] == [("volume_unavailable", "db")]
    assert "restore latest db" in report.reasons[0].hint
    assert shop.archive(report, "files") == {"./one/file": b"files" * 1000}


def test_the_manifest_is_written_after_everything_it_names(shop: Shop) -> None:
    order: list[str] = []

    class Watching(MemoryStore):
        def put(self, key: str, data: bytes, **options: Any) -> Any:
            order.append(key)
            return super().put(key, data, **options)

        def begin(self, key: str, **options: Any) -> Any:
            order.append(key)
            return super().begin(key, **options)

    shop.stores = {"memory": Watching()}
    report = shop.run()
    assert order[-1] == f"{report.set}/manifest.json"
    manifest = json.loads(_read(shop.stores["memory"], order[-1]))
    for volume in manifest["volumes"]:
        for key in ("archive", "index"):
            data = _read(shop.stores["memory"], volume[key]["key"])
            assert len(data) == volume[key]["size"]
            assert order.index(volume[key]["key"]) < len(order) - 1


def _read(store: Store, key: str) -> bytes:
    with store.open(key) as source:
        return source.read()


def test_nothing_is_sent_to_a_store_while_a_container_is_frozen(shop: Shop) -> None:
    engine = shop.engine
    frozen_at_calls: list[list[str]] = []

    class Watching(MemoryStore):
        def put(self, key: str, data: bytes, **options: Any) -> Any:
            frozen_at_calls.append([c.name for c in engine.containers() if c.state is ContainerState.PAUSED])
            return super().put(key, data, **options)

        def begin(self, key: str, **options: Any) -> Any:
            frozen_at_calls.append([c.name for c in engine.containers() if c.state is ContainerState.PAUSED])
            return super().begin(key, **options)

        def head(self, key: str) -> Any:
            frozen_at_calls.append([c.name for c in engine.containers() if c.state is ContainerState.PAUSED])
            return super().head(key)

    shop.stores = {"memory": Watching()}
    shop.run()
    assert len(frozen_at_calls) > 5
    assert all(frozen == [] for frozen in frozen_at_calls)


def test_all_dependents_are_frozen_while_files_are_read(shop: Shop) -> None:
    seen: list[list[str]] = []

    def follow(progress: Progress) -> None:
        if progress.phase == "comparing":
            seen.append(sorted(shop.frozen()))

    shop.run(follow=follow)
    assert seen
    assert all(frozen == ["db", "files"] for frozen in seen)


def test_files_are_copied_before_anything_is_frozen(shop: Shop) -> None:
    seen: list[tuple[str, list[str]]] = []

    def follow(progress: Progress) -> None:
        if progress.phase == "copying":
            seen.append((str(progress.volume), shop.frozen()))

    assert shop.run(follow=follow).outcome is Outcome.GOOD
    assert seen == [("db", []), ("files", [])]


@pytest.mark.parametrize(("times", "outcome"), [(1, Outcome.GOOD), (2, Outcome.FAILED)])
def test_an_engine_that_hangs_over_a_frozen_container_costs_a_second_attempt_and_no_third(
    shop: Shop, times: int, outcome: Outcome
) -> None:
    """As it does when a health check begins in the moment of the freeze."""
    for _ in range(times):
        silent = EngineSilent("the Docker Engine did not answer in time")
        shop.engine.meanwhile("pause", "db", lambda error=silent: shop.engine.fail("container", "db", error))  # type: ignore[misc]
    report = shop.run()
    assert report.outcome is outcome, report.reasons
    assert shop.frozen() == []
    assert len(shop.of("group_frozen")) == 2
    assert len(shop.of("group_begun_anew")) == 1
    thawed = shop.of("group_thawed")
    assert len(thawed) == 2
    assert report.paused_ms == pytest.approx(sum(each["paused_ms"] for each in thawed), abs=0.2)
    if outcome is Outcome.GOOD:
        assert shop.archive(report, "db") == {"./one/file": b"db" * 1000}


def test_what_changes_after_it_was_copied_is_archived_as_it_was_when_frozen(shop: Shop) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "freezing":
            (shop.data("db") / "one" / "file").write_bytes(b"later")
            (shop.data("db") / "two").write_bytes(b"new")
            (shop.data("files") / "one" / "file").unlink()

    report = shop.run(follow=follow)
    assert report.outcome is Outcome.GOOD, report.reasons
    assert shop.archive(report, "db") == {"./one/file": b"later", "./two": b"new"}
    assert shop.archive(report, "files") == {}


def test_a_spool_that_fills_up_while_files_are_copied_freezes_nobody(shop: Shop) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "copying" and progress.volume == "db":
            (shop.data("files") / "large").write_bytes(bytes(20_000))

    shop.spool_most = 10_000
    report = shop.run(follow=follow)
    assert [reason.code for reason in report.reasons] == ["spool_full"]
    assert shop.engine.names("pause") == []


def test_a_spool_that_fills_up_says_what_all_of_the_volume_needs(shop: Shop) -> None:
    for number in range(30):
        (shop.data("db") / f"file-{number:02}").write_bytes(bytes(1000))
    shop.spool_most = 10_000
    (reason,) = shop.run().reasons
    hot = 30 * 1000 + 2 * 1000
    assert f"the spool needs {hot + hot // 8:,} bytes and may hold 10,000" in reason.message


@pytest.mark.parametrize(("seconds", "total"), [(0.0, 2 * 1000), (3600.0, 0)], ids=["long", "short"])
def test_a_live_pass_that_takes_long_learns_how_much_there_is(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, seconds: float, total: int
) -> None:
    monkeypatch.setattr("sidecar.jobs.volume._LONG", seconds)
    shop.run()
    steps = [each for each in shop.progress if (each.phase, each.volume) == ("copying", "db")]
    assert steps
    assert {step.total_bytes for step in steps} == {total}


def test_a_run_told_to_stop_while_it_copies_freezes_nobody_and_copies_no_further(shop: Shop) -> None:
    for number in range(1000):
        (shop.data("db") / f"file-{number:04}").write_bytes(bytes(1000))
    steps: list[str] = []

    def follow(progress: Progress) -> None:
        steps.append(progress.phase)
        if progress.phase == "copying":
            shop.cancelled.set()

    report = shop.run(follow=follow)
    assert report.outcome is Outcome.INTERRUPTED
    assert report.paused_ms == 0
    assert shop.engine.names("pause") == []
    assert shop.objects() == ["owner.json"]
    assert steps.count("copying") == 1


def test_a_volume_that_goes_away_while_others_are_copied_fails_alone_and_once(shop: Shop) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "copying" and progress.volume == "db":
            shop.data("files").rename(shop.directory / "gone")

    report = shop.run(follow=follow)
    assert [(v.volume, v.outcome) for v in report.volumes] == [("files", Outcome.FAILED), ("db", Outcome.GOOD)]
    assert [reason.volume for reason in report.reasons] == ["files"]
    assert shop.archive(report, "db") == {"./one/file": b"db" * 1000}


def test_rounds_go_on_until_little_is_left_to_copy(shop: Shop) -> None:
    rounds: list[int] = []

    def follow(progress: Progress) -> None:
        if progress.phase == "copying" and progress.volume == "files" and progress.done_bytes == 5000:
            rounds.append(progress.done_bytes)

    (shop.data("db") / "large").write_bytes(bytes(9_000_000))
    assert shop.run(follow=follow).outcome is Outcome.GOOD
    assert len(rounds) == 2


def test_a_container_restarted_in_the_freeze_leaves_the_group_uncommitted(shop: Shop) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "comparing" and progress.volume == "files":
            shop.engine.restart("db")

    report = shop.run(follow=follow)
    assert report.outcome is Outcome.FAILED
    assert report.set is None
    assert [reason.code for reason in report.reasons] == ["freeze_broken"]
    assert "db" in report.reasons[0].message
    assert shop.objects() == ["owner.json"]
    assert shop.frozen() == []


def test_a_new_writer_in_the_freeze_leaves_the_group_uncommitted(shop: Shop) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "comparing" and progress.volume == "files":
            shop.engine.run("intruder", volumes={"db": "/x"})

    report = shop.run(follow=follow)
    assert report.outcome is Outcome.FAILED
    assert "intruder" in report.reasons[0].message


def test_a_dead_man_stands_by_before_anything_is_frozen_and_is_gone_after_the_run(shop: Shop) -> None:
    seen: list[list[str]] = []
    shop.run(follow=lambda progress: seen.append([c.role for c in shop.engine.containers()]))
    assert "deadman" in seen[-1]
    for thread in threading.enumerate():
        if thread.name == "dead-man":
            thread.join()
    assert [c.role for c in shop.engine.containers() if c.role] == ["sidecar"]
    calls = shop.engine.calls
    assert calls.index(("output", "deadman-0")) < next(n for n, call in enumerate(calls) if call[0] == "pause")
    assert shop.engine.launched[0][0] == "deadman"


def test_an_engine_that_lets_no_container_start_is_said_and_the_run_goes_on(shop: Shop) -> None:
    shop.engine.fail("launch", "backup", EngineDenied("POST /containers/create is not permitted", hint="permit it"))
    report = shop.run()
    assert report.outcome is Outcome.GOOD
    assert [fields["error"] for fields in shop.of("deadman_missing")] == ["POST /containers/create is not permitted"]
    assert report.warnings == ("POST /containers/create is not permitted; permit it",)
    assert shop.engine.unfired == []


def test_who_may_freeze_and_not_thaw_freezes_nobody(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(identifier: str) -> bool:
        raise EngineDenied(f"POST /containers/{identifier}/unpause is not permitted")

    monkeypatch.setattr(shop.engine, "unpause", refused)
    report = shop.run()
    assert (report.outcome, [reason.code for reason in report.reasons]) == (Outcome.FAILED, ["engine_denied"])
    assert not [call for call in shop.engine.calls if call[0] == "pause"]


def test_a_group_that_fails_leaves_the_others_in_the_set(shop: Shop) -> None:
    shop.engine.add_volume("other")
    shop.engine.run("lonely", volumes={"other": "/data"})
    shop.data("other").mkdir(parents=True)
    shop.engine.fail("pause", "db", EngineDenied("db cannot be frozen"))
    report = shop.run()
    assert report.outcome is Outcome.PARTIAL
    assert {v.volume: v.outcome for v in report.volumes} == {
        "db": Outcome.FAILED,
        "files": Outcome.FAILED,
        "other": Outcome.GOOD,
    }
    manifest = json.loads(_read(shop.stores["memory"], f"{report.set}/manifest.json"))
    assert [v["volume"] for v in manifest["volumes"]] == ["other"]
    assert manifest["outcome"] == "partial"
    assert {(m["volume"], m["why"]) for m in manifest["missing"]} == {
        (n, "db cannot be frozen") for n in ("db", "files")
    }
    (listed,) = list_sets(shop.stores)["sets"]
    assert set(listed["missing"]) == {"db", "files"}
    recover = _read(shop.stores["memory"], f"{report.set}/RECOVER.txt").decode()
    assert "NOT in this set: db: 'db cannot be frozen'" in recover


def test_what_decided_is_the_first_reason(shop: Shop) -> None:
    shop.engine.run("web", binds={"/srv/www": "/www"})
    shop.engine.fail("pause", "db", EngineDenied("db cannot be frozen"))
    report = shop.run()
    assert [reason.code for reason in report.reasons] == ["engine_denied", "unprotected_mount"]
    assert shop.of("run_failed")[0]["error"] == "db cannot be frozen"


def test_a_spool_too_small_is_found_before_anything_is_frozen(shop: Shop) -> None:
    shop.spool_most = 1000
    report = shop.run()
    assert report.outcome is Outcome.FAILED
    assert report.reasons[0].code == "spool_full"
    assert shop.engine.names("pause") == []


def test_a_group_that_has_no_room_in_the_spool_is_named_and_groups_that_fail_alike_are_named_together(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("wiki", "blog"):
        shop.engine.add_volume(name)
        shop.data(name).mkdir(parents=True)
        (shop.data(name) / "file").write_bytes(bytes(9000))
    shop.spool_most = 1000
    Words(terminal=False).report(shop.run().as_json())
    told = [line.strip(" -") for line in capsys.readouterr().out.splitlines() if "the spool needs" in line]
    assert sorted(line.partition(" needs")[0] for line in told) == [
        "group shop: the spool",
        "groups blog, wiki: the spool",
    ]


def test_a_run_told_to_stop_while_it_reads_thaws_and_stores_nothing(shop: Shop) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "comparing":
            shop.cancelled.set()

    report = shop.run(follow=follow)
    assert report.outcome is Outcome.INTERRUPTED
    assert [(group.group, group.outcome) for group in report.groups] == [("shop", Outcome.INTERRUPTED)]
    assert report.paused_ms > 0
    assert shop.frozen() == []
    assert shop.objects() == ["owner.json"]
    assert list(shop.stores["memory"].pending()) == []


def test_a_run_told_to_stop_while_it_uploads_leaves_no_object_and_no_upload(shop: Shop) -> None:
    def follow(progress: Progress) -> None:
        if progress.phase == "packing" and progress.volume == "files":
            shop.cancelled.set()

    report = shop.run(follow=follow)
    assert report.outcome is Outcome.INTERRUPTED
    assert shop.objects() == ["owner.json"]
    assert list(shop.stores["memory"].pending()) == []


class Broken(MemoryStore):
    """A store that refuses to begin uploads."""

    def begin(self, key: str, **options: Any) -> Any:
        raise StoreDenied(f"writing {key} was denied", hint="grant s3:PutObject", store=self.name)


def test_a_store_that_fails_leaves_the_set_to_the_others(shop: Shop) -> None:
    shop.stores = {"broken": Broken(name="broken", off_host=True), "memory": MemoryStore()}
    report = shop.run()
    assert report.outcome is Outcome.PARTIAL
    assert report.stores["memory"].outcome is Outcome.GOOD
    assert report.stores["broken"].outcome is Outcome.FAILED
    assert report.stores["broken"].hint == "grant s3:PutObject"
    assert not report.off_host
    assert shop.objects("broken") == ["owner.json"]
    assert f"{report.set}/manifest.json" in shop.objects()
    assert len(shop.of("store_failed")) == 1
    assert {name: store.pending for name, store in report.stores.items()} == {"broken": True, "memory": False}


def test_what_a_store_missed_is_pending_only_where_a_store_of_this_host_has_it(shop: Shop) -> None:
    shop.stores = {"broken": Broken(name="broken"), "memory": MemoryStore(off_host=True)}
    assert not shop.run().stores["broken"].pending
    shop.stores = {"broken": Broken(name="broken", off_host=True)}
    assert not shop.run().stores["broken"].pending


def test_when_every_store_fails_nobody_is_frozen_for_nothing_again_and_the_run_fails(shop: Shop) -> None:
    class Dead(MemoryStore):
        def put(self, key: str, data: bytes, **options: Any) -> Any:
            raise StoreUnreachable("nobody answers", hint="is the network up?", store=self.name)

    shop.stores = {"dead": Dead(name="dead")}
    report = shop.run()
    assert report.outcome is Outcome.FAILED
    assert report.set is None
    assert [reason.code for reason in report.reasons] == ["store_failed"]
    assert shop.engine.names("pause") == []


def test_a_prefix_of_another_engine_is_refused_with_a_hint(shop: Shop) -> None:
    shop.stores["memory"].put("owner.json", b'{"format":1,"engine":"OTHER","host":"elsewhere"}')
    report = shop.run()
    assert report.outcome is Outcome.FAILED
    assert "elsewhere" in report.reasons[0].message
    assert "BACKUP_HOST" in report.reasons[0].hint
    assert shop.objects() == ["owner.json"]


def test_a_set_name_that_is_taken_is_never_written_again(shop: Shop) -> None:
    first = shop.run()
    before = {key: _read(shop.stores["memory"], key) for key in shop.objects()}
    second = shop.run()  # in the same second, by a clock that stands still
    assert second.set != first.set
    assert {key: _read(shop.stores["memory"], key) for key in before} == before


def test_without_a_bucket_every_run_says_that_nothing_is_off_this_host(shop: Shop) -> None:
    shop.local_by_default = True
    for _ in range(2):
        report = shop.run()
        assert report.outcome is Outcome.PARTIAL
        assert [reason.code for reason in report.reasons] == ["not_off_host"]
    assert len(shop.of("not_off_host")) == 2


def test_a_volume_that_cannot_be_read_fails_alone_and_by_name(shop: Shop) -> None:
    shop.data("files").rename(shop.directory / "gone")
    report = shop.run()
    assert report.outcome is Outcome.PARTIAL
    assert [(v.volume, v.outcome) for v in report.volumes] == [("files", Outcome.FAILED), ("db", Outcome.GOOD)]
    assert report.reasons[0].volume == "files"
    assert shop.archive(report, "db") == {"./one/file": b"db" * 1000}


def test_nobody_is_frozen_for_volumes_that_cannot_be_read(shop: Shop) -> None:
    for volume in ("db", "files"):
        shop.data(volume).rename(shop.directory / f"gone-{volume}")
    report = shop.run()
    assert report.outcome is Outcome.FAILED
    assert [reason.volume for reason in report.reasons] == ["db", "files"]
    assert shop.engine.names("pause") == []


def test_a_run_told_to_stop_once_its_manifest_is_written_is_good(shop: Shop) -> None:
    cancelled = shop.cancelled

    class Late(MemoryStore):
        def put(self, key: str, data: bytes, **options: Any) -> Any:
            if key.endswith("manifest.json"):
                cancelled.set()
            return super().put(key, data, **options)

    shop.stores = {"memory": Late(off_host=True)}
    report = shop.run()
    assert report.outcome is Outcome.GOOD
    assert f"{report.set}/manifest.json" in shop.objects()


def test_an_unprotected_mount_has_a_reason_and_an_event(shop: Shop) -> None:
    shop.engine.run("web", binds={"/srv/www": "/www"})
    report = shop.run()
    assert report.outcome is Outcome.PARTIAL
    assert [(u.container, u.mount) for u in report.unprotected] == [("web", "/www")]
    assert len(shop.of("unprotected_mount")) == 1
    accepted = shop.run(selection=Selection(exclude=("/srv/*",)))
    assert accepted.outcome is Outcome.GOOD


def test_an_unknown_volume_is_not_found_and_touches_nothing(shop: Shop) -> None:
    with pytest.raises(NotFound, match="dbb"):
        shop.run("dbb")
    assert shop.engine.names("pause") == []
    assert shop.objects() == []


def test_a_named_volume_alone_is_backed_up(shop: Shop) -> None:
    report = shop.run("db")
    assert [v.volume for v in report.volumes] == ["db"]
    assert shop.engine.names("pause") == ["db"]


def test_a_container_that_was_paused_before_stays_paused(shop: Shop) -> None:
    shop.engine.pause("files")
    report = shop.run()
    assert report.outcome is Outcome.GOOD, report.reasons
    assert shop.frozen() == ["files"]


def test_nothing_to_back_up_is_said(shop: Shop) -> None:
    report = shop.run(selection=Selection(exclude=("*",)))
    assert report.outcome is Outcome.PARTIAL
    assert [reason.code for reason in report.reasons] == ["no_volumes"]
    assert report.set is None


def test_the_spool_is_empty_after_a_run(shop: Shop) -> None:
    shop.run()
    assert list((shop.directory / "state" / "spool").iterdir()) == []
    assert not (shop.directory / "state" / "journal.json").exists()


def test_the_report_is_what_json_promises(shop: Shop) -> None:
    report = shop.run().as_json()
    assert set(report) >= {
        "run", "set", "outcome", "started", "duration_ms", "paused_ms", "off_host", "reasons", "unprotected", "stores",
        "groups", "volumes", "warnings",
    }  # fmt: skip
    assert json.loads(json.dumps(report))["started"] == "2026-01-02T03:04:00Z"
    assert {key for volume in report["volumes"] for key in volume} == {
        "volume", "outcome", "files", "bytes_read", "archive_bytes", "bytes_uploaded", "bytes_reused", "changed_files",
        "error", "hint", "group",
    }  # fmt: skip


def test_a_set_is_listed_with_its_volumes_and_files(shop: Shop) -> None:
    report = shop.run()
    (listed,) = list_sets(shop.stores)["sets"]
    assert (listed["set"], listed["stores"], listed["tags"]) == (report.set, ["memory"], {"why": "test"})
    assert set(listed["volumes"]) == {"db", "files"}
    files = list_files(shop.stores, "latest", "db", "one/*")["files"]
    assert [(file["path"], file["size"]) for file in files] == [("one/file", 2000)]
    with pytest.raises(NotFound, match="dx") as caught:
        list_files(shop.stores, str(report.set), "dx", None)
    assert "db" in caught.value.hint


def test_a_half_written_set_is_not_listed(shop: Shop) -> None:
    report = shop.run()
    shop.stores["memory"].delete([f"{report.set}/manifest.json"])
    assert list_sets(shop.stores)["sets"] == []


def test_a_large_archive_is_sent_in_parts_and_is_whole(shop: Shop) -> None:
    content = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(1_000_000))  # 32 MB, incompressible
    (shop.data("db") / "large").write_bytes(content)
    report = shop.run()
    assert report.outcome is Outcome.GOOD, report.reasons
    assert shop.archive(report, "db")["./large"] == content


def test_a_container_that_is_to_run_on_is_not_frozen_and_the_report_says_so(shop: Shop) -> None:
    shop.add("loose", "db", quiesce="none")
    report = shop.run()
    assert [(group.containers, group.unfrozen) for group in report.groups] == [(("db", "files", "loose"), ("loose",))]
    assert shop.engine.names("pause") == ["db", "files"]


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_what_a_pre_hook_writes_into_the_volume_is_in_the_archive_and_the_post_hook_may_remove_it(shop: Shop) -> None:
    dump = shop.data("db") / "dump"
    shop.add("dumper", "db", pre=f"echo all tables > {dump}", post=f"rm {dump}")
    report = shop.run()
    assert report.outcome is Outcome.GOOD, report.reasons
    assert shop.archive(report, "db") == {"./one/file": b"db" * 1000, "./dump": b"all tables\n"}
    assert not dump.exists()
    (pre, post) = shop.of("hook_finished")
    assert (pre["run"], pre["set"], pre["group"], pre["hook"]) == (report.run, report.set, "shop", "pre")
    assert post["hook"] == "post"
    assert "hooks" in [progress.phase for progress in shop.progress]


def test_post_hooks_run_before_anything_is_packed_or_sent(shop: Shop) -> None:
    shop.add("dumper", "db", post=f"touch {shop.directory}/post")
    seen: list[bool] = []

    def follow(progress: Progress) -> None:
        if progress.phase == "packing":
            seen.append((shop.directory / "post").exists())

    shop.run(follow=follow)
    assert seen
    assert all(seen)


def test_what_a_pre_hook_writes_needs_room_in_the_spool_which_is_found_before_anything_is_frozen(shop: Shop) -> None:
    shop.spool_most = 100_000
    shop.add("dumper", "db", pre=f"head -c 200000 /dev/zero | tr '\\0' x > {shop.data('db')}/dump", post="true")
    report = shop.run()
    assert [reason.code for reason in report.reasons] == ["spool_full"]
    assert shop.engine.names("pause") == []
    assert [fields["hook"] for fields in shop.of("hook_finished")] == ["pre", "post"]


def test_a_pre_hook_that_fails_fails_its_group_by_name_and_leaves_the_others_in_the_set(shop: Shop) -> None:
    shop.add("dumper", "db", pre="echo disk full; exit 2")
    shop.engine.add_volume("other")
    shop.data("other").mkdir(parents=True)
    report = shop.run()
    assert report.outcome is Outcome.PARTIAL
    assert {group.group: group.outcome for group in report.groups} == {"shop": Outcome.FAILED, "other": Outcome.GOOD}
    assert [(r.code, r.message) for r in report.reasons] == [
        ("hook_failed", "the pre hook of dumper ended with exit code 2: disk full"),
    ]
    assert shop.engine.names("pause") == []


@pytest.mark.parametrize(
    "labels", [{"pre": "exit 2", "on_hook_failure": "continue"}, {"post": "exit 2"}], ids=["pre, may fail", "post"]
)
def test_a_hook_whose_failure_does_not_end_the_run_makes_it_partial(shop: Shop, labels: dict[str, str]) -> None:
    shop.add("dumper", "db", **labels)
    report = shop.run()
    assert report.outcome is Outcome.PARTIAL
    assert [reason.code for reason in report.reasons] == ["hook_failed"]
    assert [(group.group, group.outcome) for group in report.groups] == [("shop", Outcome.PARTIAL)]
    assert {volume.volume for volume in report.volumes if volume.outcome is Outcome.GOOD} == {"db", "files"}
    manifest = json.loads(_read(shop.stores["memory"], f"{report.set}/manifest.json"))
    assert manifest["outcome"] == "partial"
    assert shop.frozen() == []


def test_a_freeze_that_fails_is_the_first_reason_and_a_post_hook_that_fails_too_the_second(shop: Shop) -> None:
    shop.add("dumper", "db", post="exit 2")
    shop.engine.fail("pause", "db", EngineDenied("db cannot be frozen"))
    report = shop.run()
    assert [reason.code for reason in report.reasons] == ["engine_denied", "hook_failed"]
    assert shop.engine.unfired == []


def test_a_run_told_to_stop_while_it_reads_runs_the_post_hooks(shop: Shop) -> None:
    shop.add("dumper", "db", post=f"touch {shop.directory}/post")

    def follow(progress: Progress) -> None:
        if progress.phase == "comparing":
            shop.cancelled.set()

    report = shop.run(follow=follow)
    assert report.outcome is Outcome.INTERRUPTED
    assert (shop.directory / "post").exists()
    assert not (shop.directory / "state" / "journal.json").exists()


def test_nobody_runs_hooks_for_volumes_that_cannot_be_read(shop: Shop) -> None:
    shop.add("dumper", "db", pre="true")
    for volume in ("db", "files"):
        shop.data(volume).rename(shop.directory / f"gone-{volume}")
    shop.run()
    assert shop.engine.executed == []


def test_a_dead_man_stands_by_before_the_first_hook_runs(shop: Shop) -> None:
    shop.add("dumper", "db", pre="true")
    shop.run()
    calls = shop.engine.calls
    assert calls.index(("output", "deadman-0")) < calls.index(("execute", "dumper"))
