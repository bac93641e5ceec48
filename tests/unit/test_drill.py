"""The drill job on an engine and stores in memory, with real helper processes: green, red or unproven; nothing left."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar import sets
from sidecar.engine.port import Condition
from sidecar.errors import (
    ContainerGone,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    Interrupted,
    NoRoom,
    NotFound,
    SidecarError,
    StoreUnreachable,
)
from sidecar.events import Progress
from sidecar.jobs.catalogue import list_sets, read_document
from sidecar.jobs.drill import DrillTools, clear, drill
from sidecar.jobs.ownership import Claimant
from sidecar.model import Container, ContainerState
from sidecar.report import DrillReport, Outcome
from sidecar.stores.memory import MemoryStore
from tests.unit.shop import PROJECT, Shop
from tests.unit.test_restore import flip

STATE = "backup-state"
HEALTHY = Condition(running=True, health="healthy")


class Theatre(Shop):
    """The shop of the backup's tests with one good set; `db` has a health check, and `files` a command in its label.

    A copy of `db` becomes healthy when it finds what a database needs in its volume.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.engine.directory = directory / "volumes"
        self.engine.remove("db")
        self.engine.remove("files")
        self.proof = "true"
        self.engine.run("db", labels=PROJECT, volumes={"db": "/data"}, healthcheck=["ready"])
        self.engine.run("files", labels=PROJECT | {"backup.drill": "true"}, volumes={"files": "/data"})
        (self.data("db") / "large").write_bytes(random.Random(1).randbytes(9 << 20))
        (self.data("db") / "pg_control").write_bytes(b"control")
        self.engine.becomes["db"] = self.database
        self.seen: list[Container] = []
        self.patience = 0.5
        self.set = self.backed_up()
        self.before = self.everything()
        self.events.clear()

    def database(self, copy: Container) -> Condition:
        self.seen.append(copy)
        (volume,) = [mount.volume for mount in copy.mounts if mount.target == "/data"]
        if not (self.data(volume) / "pg_control").exists():
            return Condition(running=False, code=2)
        return HEALTHY

    def backed_up(self) -> str:
        report = self.run()
        self.second += 1
        assert report.set is not None, report.reasons
        return report.set

    def everything(self) -> Any:
        """What a drill must not touch."""
        data = {p: p.read_bytes() for name in ("db", "files") for p in self.data(name).rglob("*") if p.is_file()}
        return self.engine.containers(), self.engine.volumes(), data

    def tools(self) -> DrillTools:
        return DrillTools(
            engine=self.engine,
            stores=self.stores,
            own=lambda: self.engine.container("backup"),
            claimant=Claimant(self.engine.identity().id, "shop-host", STATE, lambda _: None),
            threads=2,
            patience=self.patience,
            memory=1 << 30,
            emit=self.emit,
            now=self.tick,
        )

    def drill(
        self, *named: str, set_name: str = "latest", follow: Callable[[Progress], None] | None = None
    ) -> DrillReport:
        try:
            return drill(set_name, named, self.tools(), follow or self.progress.append, self.cancelled)
        finally:
            self.assert_nothing_is_left()

    def assert_nothing_is_left(self) -> None:
        assert self.everything() == self.before

    def becomes_known(self) -> None:
        """What is there now is what must be there afterwards."""
        self.before = self.everything()

    def marks(self, store: str = "memory") -> sets.Marks:
        return sets.Marks.from_json(read_document(self.stores[store], sets.marks_key(self.set)), where="marks")

    def listed(self) -> Any:
        (each,) = [each for each in list_sets(self.stores)["sets"] if each["set"] == self.set]
        return each["drilled"]

    def second_store(self) -> MemoryStore:
        other = MemoryStore()
        for stored in self.stores["memory"].list():
            other.put(stored.key, read_document(self.stores["memory"], stored.key))
        self.stores = {"other": other, "memory": self.stores["memory"]}
        return other


@pytest.fixture
def theatre(tmp_path: Path) -> Theatre:
    return Theatre(tmp_path)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.jobs.drill._LOOK_EVERY", 0.01)
    monkeypatch.setattr("sidecar.jobs.delivery.FAREWELL", 60.0)


def why(report: DrillReport) -> str:
    return "; ".join(reason.message for reason in report.reasons)


# --- green -----------------------------------------------------------------------------------------------------------


def test_a_set_on_which_its_services_come_up_is_proven_and_that_is_noted(theatre: Theatre) -> None:
    report = theatre.drill()
    assert report.outcome is Outcome.GOOD, report.reasons
    assert {each.volume: (each.outcome, each.store) for each in report.volumes} == {
        "db": (Outcome.GOOD, "memory"),
        "files": (Outcome.GOOD, "memory"),
    }
    assert {each.container: each.proof for each in report.services} == {"db": "health check", "files": "command"}
    assert theatre.listed() == {
        "time": "2026-01-02T03:04:01Z",
        "outcome": "good",
        "why": "",
        "stores": ["memory"],
        "volumes": {"db": "good", "files": "good"},
    }
    assert [fields["outcome"] for name, fields in theatre.events if name == "drill_finished"] == ["good"]
    assert {progress.phase for progress in theatre.progress} >= {"planning", "restoring", "starting"}
    assert "db" in {progress.volume for progress in theatre.progress if progress.phase == "restoring"}


def test_a_copy_finds_what_the_set_has_in_a_volume_of_its_own(theatre: Theatre) -> None:
    wanted = (theatre.data("db") / "large").read_bytes()
    found = []
    database = theatre.database

    def look(copy: Container) -> Condition:
        found.append((theatre.data(copy.mounts[0].volume) / "large").read_bytes())
        return database(copy)

    theatre.engine.becomes["db"] = look
    (theatre.data("db") / "large").write_bytes(b"changed since")
    theatre.becomes_known()
    assert theatre.drill("db").outcome is Outcome.GOOD
    assert found[0] == wanted
    (copy,) = {copy.id: copy for copy in theatre.seen}.values()
    assert (copy.role, copy.labels["backup.drill-of"], copy.network) == ("drill", STATE, "none")
    assert copy.mounts[0].volume.startswith("backup-drill-")


def test_a_service_may_take_its_time_and_its_health_check_may_say_no_at_first(theatre: Theatre) -> None:
    looks = iter([Condition(True, health="starting"), Condition(True, health="unhealthy", said="not yet")])
    theatre.engine.becomes["db"] = lambda _: next(looks, HEALTHY)
    assert theatre.drill("db").outcome is Outcome.GOOD


def test_a_command_is_asked_until_it_succeeds(theatre: Theatre, tmp_path: Path) -> None:
    mark = tmp_path / "asked"
    command = f"test -e {mark}.again && exit 0; test -e {mark} && touch {mark}.again; touch {mark}; exit 1"
    theatre.engine.remove("files")
    theatre.engine.run("files", labels={"backup.drill": command}, volumes={"files": "/data"})
    theatre.becomes_known()
    assert theatre.drill("files").outcome is Outcome.GOOD


def test_the_label_decides_where_there_is_a_health_check_too(theatre: Theatre) -> None:
    theatre.engine.run(
        "web", labels={"backup.drill": "true"}, volumes={"files": "/d"}, healthcheck=["needs the network"]
    )
    theatre.engine.becomes["web"] = lambda _: Condition(running=True, health="unhealthy")
    theatre.becomes_known()
    assert theatre.drill("files").outcome is Outcome.GOOD


def test_one_volume_of_the_set_is_drilled_alone_and_the_set_is_not_proven_by_it(theatre: Theatre) -> None:
    report = theatre.drill("db")
    assert (report.outcome, [each.volume for each in report.volumes]) == (Outcome.GOOD, ["db"])
    assert (theatre.listed()["outcome"], theatre.listed()["why"]) == ("partial", "volume files was never tried")
    theatre.drill("files")
    assert theatre.listed()["outcome"] == "good"


def test_a_service_of_several_volumes_gets_all_of_them_those_that_the_set_lacks_are_empty(theatre: Theatre) -> None:
    theatre.engine.remove("db")
    theatre.engine.run(
        "db", volumes={"db": "/data", "files": "/files", "cache": "/cache"}, healthcheck=["ready"]
    )  # fmt: skip
    theatre.becomes_known()
    held = {}

    def look(copy: Container) -> Condition:
        held.update({m.target: sorted(p.name for p in theatre.data(m.volume).iterdir()) for m in copy.mounts})
        return HEALTHY

    theatre.engine.becomes["db"] = look
    report = theatre.drill("db")
    assert held == {"/data": ["large", "one", "pg_control"], "/files": ["one"], "/cache": []}
    assert [(each.volume, each.outcome) for each in report.volumes] == [
        ("db", Outcome.GOOD),
        ("files", Outcome.GOOD),
    ]


def test_services_that_share_a_volume_run_together_servers_first(theatre: Theatre) -> None:
    depends = "com.docker.compose.depends_on"
    project = {"com.docker.compose.project": "shop", "com.docker.compose.service": "db"}
    theatre.engine.remove("db")
    theatre.engine.run("z-db", labels=project, volumes={"db": "/data"}, healthcheck=["ready"])
    client = {**project, "com.docker.compose.service": "web", depends: "db:service_healthy:false"}
    theatre.engine.run("a-web", labels=client, volumes={"db": "/data"}, healthcheck=["ready"])
    theatre.becomes_known()
    running: list[tuple[str, int]] = []

    def look(name: str) -> Callable[[Container], Condition]:
        def condition(_: Container) -> Condition:
            copies = [c for c in theatre.engine.containers() if c.role == "drill" and c.running]
            running.append((name, len({c.mounts[0].volume for c in copies}) * 10 + len(copies)))
            return HEALTHY

        return condition

    theatre.engine.becomes |= {"z-db": look("z-db"), "a-web": look("a-web")}
    assert theatre.drill("db").outcome is Outcome.GOOD
    # One volume, one and then two copies; and once both are there, whether they still are.
    assert running == [("z-db", 11), ("a-web", 12), ("z-db", 12), ("a-web", 12)]


def test_room_for_all_volumes_that_are_tried_together_is_asked_for_before_the_first_is_fetched(
    theatre: Theatre,
) -> None:
    theatre.engine.run("both", volumes={"db": "/d", "files": "/f"}, healthcheck=["x"])
    theatre.becomes_known()
    original, commands = theatre.engine.help_with, []

    def note(like: Any, volume: str, *, command: list[str], target: str) -> Any:
        commands.append([int(part.partition("=")[2]) for part in command if part.startswith("--besides")])
        return original(like, volume, command=command, target=target)

    theatre.engine.help_with = note  # type: ignore[method-assign]
    assert theatre.drill().outcome is Outcome.GOOD
    (needed,), last = commands
    assert needed > len("files") * 1000
    assert last == []


# --- red -------------------------------------------------------------------------------------------------------------


def test_one_flipped_byte_is_red_and_nothing_is_started_on_it(theatre: Theatre) -> None:
    flip(theatre.stores["memory"], f"{theatre.set}/db.tar.gz", 5_000_000)
    report = theatre.drill()
    assert report.outcome is Outcome.FAILED
    assert "SHA-256" in why(report)
    assert {each.volume: each.outcome for each in report.volumes} == {"db": Outcome.FAILED, "files": Outcome.GOOD}
    assert [each.container for each in report.services] == ["files"]
    assert theatre.listed()["outcome"] == "failed"
    (finished,) = [fields for name, fields in theatre.events if name == "drill_finished"]
    assert (finished["outcome"], finished["code"], finished["volumes"]) == ("failed", "archive_damaged", ["db"])


def test_a_service_that_ends_on_the_restored_data_is_red_with_its_last_words(theatre: Theatre) -> None:
    (theatre.data("db") / "pg_control").unlink()
    theatre.set = theatre.backed_up()
    theatre.becomes_known()
    theatre.engine.says = "starting\nFATAL: no control file, password hunter2\n"
    report = theatre.drill()
    assert report.outcome is Outcome.FAILED
    assert "db did not come up on the restored data of db: it ended by itself, with exit code 2" in why(report)
    assert why(report).endswith("the last that it wrote: starting | FATAL: no control file, password …")
    assert "needs what its copy has not: a network; the label" in report.reasons[0].hint
    assert theatre.listed()["outcome"] == "failed"


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Condition(True, health="unhealthy", said="connection refused"), "says unhealthy: connection refused"),
        (Condition(True, health="starting"), "after 0.5 s its health check says starting"),
        (Condition(True, out_of_memory=True, health="healthy"), "ran out of memory (its limit is 1024 MiB)"),
    ],
)
def test_a_service_that_never_becomes_well_is_red(theatre: Theatre, condition: Condition, said: str) -> None:
    theatre.engine.becomes["db"] = lambda _: condition
    report = theatre.drill()
    assert report.outcome is Outcome.FAILED
    assert said in why(report)


@pytest.mark.parametrize("command", ["echo no rows hunter2; exit 3", "sleep 60"])
def test_a_command_that_never_succeeds_is_red(theatre: Theatre, command: str) -> None:
    theatre.engine.remove("files")
    theatre.engine.run("files", labels={"backup.drill": command}, volumes={"files": "/data"})
    theatre.becomes_known()
    report = theatre.drill("files")
    assert report.outcome is Outcome.FAILED
    assert f"its command `{command.replace('hunter2', '…')}`" in why(report)
    assert ("ends with exit code 3: no rows …" if "echo" in command else "has not ended") in why(report)


def test_a_service_that_does_not_stay_up_until_its_neighbours_have_come_is_red(theatre: Theatre) -> None:
    looks = iter([HEALTHY])
    theatre.engine.becomes["db"] = lambda _: next(looks, Condition(running=False, code=139))
    theatre.engine.run("z-neighbour", volumes={"db": "/data"}, healthcheck=["x"])
    theatre.becomes_known()
    report = theatre.drill("db")
    assert {each.container: each.outcome for each in report.services} == {
        "db": Outcome.FAILED,
        "z-neighbour": Outcome.GOOD,
    }
    assert "it ended by itself, with exit code 139" in why(report)


def test_a_service_that_cannot_be_started_is_red(theatre: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(identifier: str) -> bool:
        raise EngineError("exec: ready: not found in hunter2")

    monkeypatch.setattr(theatre.engine, "start", refuse)
    report = theatre.drill("db")
    assert report.outcome is Outcome.FAILED
    assert "it could not be started: exec: ready: not found in …" in why(report)


def test_a_set_that_failed_is_not_made_good_by_a_drill_of_its_other_volumes(theatre: Theatre) -> None:
    theatre.engine.becomes["db"] = lambda _: Condition(running=False, code=1)
    theatre.drill()
    assert theatre.drill("files").outcome is Outcome.GOOD
    assert theatre.listed()["outcome"] == "failed"
    theatre.engine.becomes["db"] = theatre.database
    theatre.drill("db")
    assert theatre.listed()["outcome"] == "good"


def test_a_store_with_a_damaged_copy_is_red_and_the_set_is_tried_from_the_other(theatre: Theatre) -> None:
    flip(theatre.second_store(), f"{theatre.set}/db.tar.gz", 5_000_000)
    report = theatre.drill()
    assert report.outcome is Outcome.PARTIAL
    assert {each.volume: each.store for each in report.volumes} == {"db": "memory", "files": "other"}
    noted = [theatre.marks(name).drilled for name in ("other", "memory")]
    assert [each and each.outcome for each in noted] == [Outcome.FAILED, Outcome.GOOD]
    assert theatre.listed()["outcome"] == "failed"


# --- nothing proves it -----------------------------------------------------------------------------------------------


def test_a_volume_whose_services_prove_nothing_is_restored_and_not_green(theatre: Theatre) -> None:
    theatre.engine.remove("files")
    theatre.engine.run("files", volumes={"files": "/data"})
    theatre.becomes_known()
    report = theatre.drill()
    assert report.outcome is Outcome.PARTIAL
    assert why(report) == "volume files was restored, but nothing proves it: no health check on files"
    assert "backup.drill" in report.reasons[0].hint
    assert [each.container for each in report.services] == ["db"]
    assert theatre.listed()["outcome"] == "partial"


def test_a_volume_whose_service_is_gone_is_restored_and_not_green(theatre: Theatre) -> None:
    theatre.engine.remove("files")
    theatre.engine.run("reader", volumes={"files": "/data"}, read_only=True, healthcheck=["x"])
    theatre.becomes_known()
    report = theatre.drill("files")
    assert report.outcome is Outcome.PARTIAL
    assert why(report) == "volume files was restored, but no container has it that could prove it"


def test_who_does_not_run_is_tried_only_where_nobody_does(theatre: Theatre) -> None:
    theatre.engine.create("job", volumes={"db": "/data"}, healthcheck=["x"])
    theatre.becomes_known()
    assert [each.container for each in theatre.drill("db").services] == ["db"]
    theatre.engine.stop("db", timeout=1)
    theatre.becomes_known()
    assert [each.container for each in theatre.drill("db").services] == ["db", "job"]


# --- no verdict ------------------------------------------------------------------------------------------------------


def no_verdict(theatre: Theatre, kind: type[SidecarError], *named: str, **options: Any) -> SidecarError:
    with pytest.raises(kind) as caught:
        theatre.drill(*named, **options)
    assert theatre.listed() is None
    return caught.value


def test_an_unknown_set_or_volume_is_named_with_the_nearest(theatre: Theatre) -> None:
    assert theatre.set in no_verdict(theatre, NotFound, set_name=theatre.set[:-1] + "9").hint
    assert "files" in no_verdict(theatre, NotFound, "fils").hint


def test_a_disk_without_room_is_found_before_anything_is_fetched_and_leaves_a_tenth_free(theatre: Theatre) -> None:
    original, commands = theatre.engine.help_with, []

    def with_a_small_disk(like: Any, volume: str, *, command: list[str], target: str) -> Any:
        commands.append(command)
        larger = [f"--files={1 << 50}" if part.startswith("--files") else part for part in command]
        return original(like, volume, command=larger, target=target)

    theatre.engine.help_with = with_a_small_disk  # type: ignore[method-assign]
    assert "volume db" in no_verdict(theatre, NoRoom).message
    assert "--reserve=0.1" in commands[0]
    assert not any(each.startswith("--besides") for each in commands[0])  # `files` is tried later
    assert not [progress for progress in theatre.progress if progress.phase == "restoring"]


@pytest.mark.parametrize("error", [EngineUnreachable("no answer"), EngineDenied("not permitted")])
def test_an_engine_that_cannot_be_asked_says_nothing_of_the_set(theatre: Theatre, error: EngineError) -> None:
    theatre.engine.fail("copy", "db", error)
    no_verdict(theatre, type(error), "db")


def test_a_service_that_is_removed_meanwhile_says_nothing_of_the_set(theatre: Theatre) -> None:
    theatre.engine.fail("copy", "db", ContainerGone("the container db does not exist any more", hint="back up again"))
    assert "drill again" in no_verdict(theatre, ContainerGone, "db").hint


def test_a_store_that_is_away_says_nothing_of_the_set(theatre: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    original = theatre.stores["memory"].head

    def head(key: str) -> Any:
        if key.endswith("db.tar.gz"):
            raise StoreUnreachable("no connection")
        return original(key)

    monkeypatch.setattr(theatre.stores["memory"], "head", head)
    no_verdict(theatre, StoreUnreachable)


@pytest.mark.parametrize("phase", ["planning", "restoring", "starting"])
def test_told_to_stop_it_leaves_nothing_and_notes_nothing(theatre: Theatre, phase: str) -> None:
    theatre.engine.becomes["db"] = lambda _: Condition(running=True, health="starting")
    theatre.patience = 60.0

    def follow(progress: Progress) -> None:
        if progress.phase == phase:
            threading.Timer(0.05, theatre.cancelled.set).start()

    no_verdict(theatre, Interrupted, follow=follow)


# --- what a killed one left ------------------------------------------------------------------------------------------


def test_what_a_killed_drill_left_is_removed_and_nothing_of_anybody_else(theatre: Theatre) -> None:
    for state in (STATE, "another-state"):
        labels = {"backup.role": "drill", "backup.drill-of": state}
        theatre.engine.create_volume(f"scratch-{state}", labels=labels)
        theatre.engine.run(f"copy-{state}", labels=labels, volumes={f"scratch-{state}": "/data"})
    theatre.engine.run("helper", labels={"backup.role": "helper"}, volumes={f"scratch-{STATE}": "/volume"})
    theatre.engine.run("helper-of-db", labels={"backup.role": "helper"}, volumes={"db": "/volume"})
    clear(theatre.engine, STATE, theatre.emit)
    names = {container.name for container in theatre.engine.containers()}
    assert names == {"backup", "db", "files", "copy-another-state", "helper-of-db"}
    assert {volume.name for volume in theatre.engine.volumes()} == {"db", "files", "scratch-another-state"}
    assert theatre.events == []


def test_a_scratch_volume_that_somebody_holds_is_named_and_taken_up_by_the_next_drill(theatre: Theatre) -> None:
    theatre.engine.create_volume("scratch", labels={"backup.role": "drill", "backup.drill-of": STATE})
    theatre.engine.run("curious", volumes={"scratch": "/look"})
    clear(theatre.engine, STATE, theatre.emit, patience=0.0)
    ((name, fields),) = theatre.events
    assert (name, fields["volumes"]) == ("drill_left_over", ["scratch"])
    theatre.engine.remove("curious")
    theatre.drill()


def test_an_engine_that_goes_away_before_all_is_removed_is_said(
    theatre: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> bool:
        raise EngineUnreachable("no answer")

    with monkeypatch.context() as away:
        away.setattr(theatre.engine, "remove_volume", refuse)
        with pytest.raises(AssertionError):  # something is left
            theatre.drill("db")
    (fields,) = [fields for name, fields in theatre.events if name == "drill_left_over"]
    assert "no answer" in fields["error"]
    theatre.drill("db")


def test_nobody_real_is_stopped_paused_or_asked_anything_but_what_it_is(theatre: Theatre) -> None:
    theatre.engine.calls.clear()
    theatre.drill()
    asked = {what for what, name in theatre.engine.calls if name in ("db", "files")}
    assert asked == {"copy"}
    assert theatre.engine.state("db") is ContainerState.RUNNING
