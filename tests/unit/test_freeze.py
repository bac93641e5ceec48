"""Whatever we freeze, we thaw; and what is called frozen was frozen all the time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.engine.freeze import Frozen, freeze, freeze_order
from sidecar.engine.journal import Intent, Journal
from sidecar.engine.recovery import recover
from sidecar.errors import (
    AlreadyPaused,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    FreezeBroken,
    FreezeFailed,
    Interrupted,
    JournalUnreadable,
    JournalUnwritable,
    PauseBudgetSpent,
    SidecarError,
    ThawFailed,
)
from sidecar.events import Follow
from sidecar.model import Container, ContainerState, Quiesce
from sidecar.report import Outcome, RunReport
from sidecar.service.jobs_port import RunRequest
from sidecar.service.runs import Runs
from tests.contract.fake_engine import FakeEngine, unanswered

RUNNING, PAUSED, EXITED = ContainerState.RUNNING, ContainerState.PAUSED, ContainerState.EXITED


class Clock:
    """Monotonic seconds that pass only when someone sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self._turn = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._turn:
            self.now += seconds


class Bench:
    """An engine in memory, a journal, and what was emitted."""

    def __init__(self, directory: Path) -> None:
        self.engine = FakeEngine()
        self.journal = Journal(directory / "freeze.json")
        self.clock = Clock()
        self.cancelled = threading.Event()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.stages: list[str] = []

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        self.events.append((name, fields))

    def app(self, name: str, *, depends_on: str = "", quiesce: str = "", **options: Any) -> Container:
        """A container of the Compose project `shop` that writes its volume."""
        labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": name} | options.pop("labels", {})
        if depends_on:
            labels["com.docker.compose.depends_on"] = depends_on
        if quiesce:
            labels["backup.quiesce"] = quiesce
        return self.engine.run(name, labels=labels, volumes={"data": "/data"}, **options)

    def dependents(self) -> list[Container]:
        ids = self.writers(self.engine.containers())
        return [container for container in self.engine.containers() if container.id in ids]

    @staticmethod
    def writers(containers: Sequence[Container]) -> set[str]:
        return {c.id for c in containers if any(m.volume == "data" and m.writable for m in c.mounts)}

    def freeze(self, containers: Sequence[Container] | None = None, **options: Any) -> AbstractContextManager[Frozen]:
        return freeze(
            self.engine, self.journal, self.dependents() if containers is None else containers,
            run="run-1", group="shop", cancelled=self.cancelled, emit=self.emit,
            clock=self.clock, sleep=self.clock.sleep, **{"budget": 30.0, "stage": self.stages.append, **options},
        )  # fmt: skip

    def recover(self) -> tuple[str, ...]:
        return recover(self.journal, self.engine, self.emit, clock=self.clock, sleep=self.clock.sleep)

    def states(self, *names: str) -> list[ContainerState]:
        return [self.engine.state(name) for name in names]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds of real time."""
    until = time.monotonic() + 10
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


# --- the order -------------------------------------------------------------------------------------------------------


def names(steps: list[list[Container]]) -> list[list[str]]:
    return [[container.name for container in step] for step in steps]


def test_clients_are_frozen_before_the_servers_they_depend_on(bench: Bench) -> None:
    db = bench.app("db")
    cache = bench.app("cache")
    api = bench.app("api", depends_on="db:service_healthy:false,cache:service_started:true")
    web = bench.app("web", depends_on="api:service_started:false")
    assert names(freeze_order([db, cache, api, web])) == [["web"], ["api"], ["cache", "db"]]


def test_containers_that_depend_on_nothing_are_frozen_in_one_step_by_name(bench: Bench) -> None:
    assert names(freeze_order([bench.app("b"), bench.app("c"), bench.app("a")])) == [["a", "b", "c"]]


def test_the_same_service_name_in_another_project_is_another_server(bench: Bench) -> None:
    other = bench.app("other-db", labels={"com.docker.compose.project": "blog", "com.docker.compose.service": "db"})
    web = bench.app("web", depends_on="db:service_started:false")
    assert names(freeze_order([other, web])) == [["other-db", "web"]]


def test_all_replicas_of_a_client_come_before_all_replicas_of_its_server(bench: Bench) -> None:
    made = [bench.app(f"web-{i}", depends_on="db:service_started:false") for i in (1, 2)]
    made += [bench.app(f"a-db-{i}", labels={"com.docker.compose.service": "db"}) for i in (1, 2)]
    assert names(freeze_order(made)) == [["web-1", "web-2"], ["a-db-1", "a-db-2"]]


@given(st.dictionaries(st.integers(0, 6), st.sets(st.integers(0, 6)), max_size=7))
def test_whatever_depends_on_whatever_everyone_is_frozen_once(graph: dict[int, set[int]]) -> None:
    engine = FakeEngine()
    containers = [
        engine.create(
            f"s{number}",
            labels={
                "com.docker.compose.project": "p",
                "com.docker.compose.service": f"s{number}",
                "com.docker.compose.depends_on": ",".join(f"s{other}:service_started:false" for other in others),
            },
        )
        for number, others in graph.items()
    ]
    steps = freeze_order(containers)
    assert sorted(c.name for step in steps for c in step) == sorted(c.name for c in containers)
    assert all(steps)


# --- frozen for the block, thawed after it ---------------------------------------------------------------------------


def test_all_are_frozen_in_the_block_and_run_after_it(bench: Bench) -> None:
    bench.app("db")
    bench.app("web")
    with bench.freeze() as frozen:
        assert bench.states("db", "web") == [PAUSED, PAUSED]
        assert frozen.containers == ("db", "web")
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert bench.states("db", "web") == [RUNNING, RUNNING]
    assert bench.journal.read() is None
    assert bench.stages == ["journalled", "frozen", "thawed"]


def test_the_journal_on_disk_names_all_of_them_before_the_first_is_frozen(tmp_path: Path) -> None:
    on_disk: list[list[str]] = []

    class Witness(FakeEngine):
        def pause(self, identifier: str) -> None:
            document = json.loads((tmp_path / "freeze.json").read_text())
            on_disk.append([intent["name"] for intent in document["frozen"]])
            super().pause(identifier)

    bench = Bench(tmp_path)
    bench.engine = Witness()
    bench.app("db")
    bench.app("web", depends_on="db:service_started:false")
    with bench.freeze():
        pass
    assert on_disk == [["web", "db"], ["web", "db"]]


def test_thawing_goes_the_other_way_round(bench: Bench) -> None:
    bench.app("db")
    bench.app("web", depends_on="db:service_started:false")
    with bench.freeze():
        pass
    assert bench.engine.names("pause") == ["web", "db"]
    assert bench.engine.names("unpause") == ["db", "web"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SidecarError("unreadable")])
def test_whatever_ends_the_block_all_is_thawed(bench: Bench, error: BaseException) -> None:
    bench.app("db")

    def capture() -> None:
        with bench.freeze():
            raise error

    with pytest.raises(type(error)):
        capture()
    assert bench.states("db") == [RUNNING]
    assert bench.journal.read() is None


def test_the_wait_is_measured_from_the_first_pause_to_the_last_unpause(bench: Bench) -> None:
    bench.app("db")
    with bench.freeze() as frozen:
        bench.clock.sleep(1.5)
    assert frozen.paused_ms == pytest.approx(1500)
    assert bench.events == [
        ("group_frozen", {"group": "shop", "containers": ["db"], "unfrozen": {}, "duration_ms": 0.0}),
        ("group_thawed", {"group": "shop", "containers": ["db"], "paused_ms": 1500.0}),
    ]


def test_containers_found_paused_or_stopped_are_left_as_found(bench: Bench) -> None:
    bench.app("runs")
    bench.app("paused")
    bench.app("exited")
    bench.engine.pause("paused")
    bench.engine.exit("exited")
    bench.engine.calls.clear()
    with bench.freeze() as frozen:
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert bench.states("runs", "paused", "exited") == [RUNNING, PAUSED, EXITED]
    assert bench.engine.names("unpause") == bench.engine.names("pause") == ["runs"]


def test_where_nothing_runs_nothing_waits_and_no_budget_ends(bench: Bench) -> None:
    bench.app("db")
    bench.engine.exit("db")
    with bench.freeze(budget=1.0) as frozen:
        bench.clock.sleep(3600)
        assert bench.journal.read() is None
        frozen.check()
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert frozen.paused_ms == 0.0
    assert bench.engine.names("pause") == []


def test_who_must_not_be_frozen_is_left_alone_and_named_with_the_reason(bench: Bench) -> None:
    bench.app("db")
    bench.app("loose", quiesce="none")
    bench.app("helper", labels={"backup.role": "helper"})
    bench.app("proxy")
    bench.app("backup")
    bench.engine.carry("proxy")
    bench.engine.be("backup")
    with bench.freeze() as frozen:
        assert bench.states("db", "loose", "helper", "proxy", "backup") == [PAUSED, RUNNING, RUNNING, RUNNING, RUNNING]
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert sorted(frozen.unfrozen) == ["backup", "helper", "loose", "proxy"]
    assert "connection" in frozen.unfrozen["proxy"]


def test_a_container_that_restarts_is_waited_for(bench: Bench) -> None:
    db = bench.app("db")
    bench.engine.crash_loop("db")
    bench.engine.meanwhile("container", "db", lambda: bench.engine.come_back("db"))
    with bench.freeze([db]) as frozen:
        assert bench.states("db") == [PAUSED]
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert not bench.engine.unfired


@pytest.mark.parametrize("begins_in", [0.2, 0.0, -0.5])
def test_nobody_is_frozen_in_the_moment_in_which_a_health_check_begins(bench: Bench, begins_in: float) -> None:
    bench.app("db")
    bench.app("web")
    moment = bench.clock.now + begins_in
    bench.engine.check_health_at("db", moment)
    with bench.freeze(wall=bench.clock):
        assert 0.7 < bench.clock.now - moment < 1
        assert bench.states("db", "web") == [PAUSED, PAUSED]


@pytest.mark.parametrize("begins_in", [5.0, -5.0, None])
def test_far_from_a_health_check_nobody_waits(bench: Bench, begins_in: float | None) -> None:
    bench.app("db")
    began = bench.clock.now
    bench.engine.check_health_at("db", None if begins_in is None else began + begins_in)
    with bench.freeze(wall=bench.clock):
        assert bench.clock.now == began


def test_a_restart_while_a_health_check_is_awaited_breaks_nothing(bench: Bench) -> None:
    bench.app("db")
    bench.engine.check_health_at("db", bench.clock.now)
    bench.engine.meanwhile("container", "db", lambda: bench.engine.restart("db"))
    with bench.freeze(wall=bench.clock) as frozen:
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert not bench.engine.unfired


def test_a_container_that_is_checked_all_the_time_is_frozen_nevertheless(bench: Bench) -> None:
    bench.app("db")
    began = bench.clock.now
    bench.engine.check_health_at("db", began)

    def wall() -> float:
        bench.engine.check_health_at("db", bench.clock.now)
        return bench.clock.now

    with bench.freeze(wall=wall):
        assert 3 <= bench.clock.now - began < 4
        assert bench.states("db") == [PAUSED]


def test_a_container_that_keeps_restarting_fails_the_freeze_and_nothing_is_touched(bench: Bench) -> None:
    bench.app("db")
    bench.app("loop")
    bench.engine.crash_loop("loop")
    with pytest.raises(FreezeFailed, match="loop keeps restarting"), bench.freeze():
        pytest.fail("frozen")
    assert bench.engine.names("pause") == []
    assert bench.clock.now < 110


def test_a_dependent_that_vanished_since_it_was_planned_is_passed_over(bench: Bench) -> None:
    bench.app("db")
    bench.app("old")
    planned = bench.dependents()
    bench.engine.remove("old")
    with bench.freeze(planned) as frozen:
        frozen.confirm(bench.writers)
    assert frozen.containers == ("db",)


def test_without_a_journal_nothing_is_frozen(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "missing")
    bench.app("db")
    with pytest.raises(JournalUnwritable), bench.freeze():
        pytest.fail("frozen")
    assert bench.engine.names("pause") == []


def test_what_an_earlier_run_left_frozen_is_thawed_before_a_new_freeze(bench: Bench) -> None:
    old = bench.app("old")
    bench.journal.begin(run="run-0", group="blog", frozen=[intent(old)])
    bench.engine.pause("old")
    with bench.freeze([bench.app("db")]):
        assert bench.states("old", "db") == [RUNNING, PAUSED]
    assert bench.events[0] == (
        "recovered", {"run": "run-0", "group": "blog", "containers": ["old"], "damaged": False},
    )  # fmt: skip


# --- stop instead of pause -------------------------------------------------------------------------------------------


def test_a_container_that_asks_for_it_is_stopped_and_started_again(bench: Bench) -> None:
    bench.app("db", quiesce="stop")
    bench.app("web", depends_on="db:service_started:false")
    with bench.freeze() as frozen:
        assert bench.states("db", "web") == [EXITED, PAUSED]
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert bench.states("db", "web") == [RUNNING, RUNNING]
    assert bench.engine.names("unpause") == ["web"]


@pytest.mark.parametrize(
    "options",
    [{"auto_remove": True}, {"labels": {"com.docker.swarm.task.id": "t1"}}, {"stop_timeout": 30}],
    ids=["removes itself", "swarm task", "may take the whole budget to stop"],
)
def test_what_must_not_be_stopped_is_refused_before_anything_is_touched(bench: Bench, options: dict[str, Any]) -> None:
    bench.app("api")
    bench.app("db", quiesce="stop", **options)
    with pytest.raises(FreezeFailed, match="db") as caught, bench.freeze():
        pytest.fail("frozen")
    assert "backup.quiesce=pause" in caught.value.hint
    assert bench.engine.names("pause") == bench.engine.names("stop") == []
    assert bench.states("db") == [RUNNING]


def test_a_stopped_container_that_someone_starts_breaks_the_freeze_and_is_not_stopped_again(bench: Bench) -> None:
    bench.app("db", quiesce="stop")

    def capture() -> None:
        with bench.freeze() as frozen:
            frozen.confirm(bench.writers)
            bench.engine.start("db")

    with pytest.raises(FreezeBroken, match="db"):
        capture()
    assert bench.states("db") == [RUNNING]


def test_a_stop_that_was_not_answered_and_lands_late_is_still_undone(bench: Bench) -> None:
    bench.app("db", quiesce="stop")
    bench.engine.fail("stop", "db", unanswered(), lands=True, late=20)
    with pytest.raises(EngineUnreachable), bench.freeze():
        pytest.fail("frozen")
    assert bench.states("db") == [RUNNING]
    assert bench.engine.names("start")[-1] == "db"
    assert not bench.engine.unfired


# --- when freezing fails ---------------------------------------------------------------------------------------------


def test_if_one_cannot_be_frozen_all_others_are_thawed(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.app(name)
    bench.engine.fail("pause", "b", EngineDenied("POST /containers/b/pause is not permitted"))
    with pytest.raises(EngineDenied), bench.freeze():
        pytest.fail("frozen")
    assert bench.states("a", "b", "c") == [RUNNING] * 3
    assert bench.journal.read() is None


def test_a_pause_that_was_not_answered_but_landed_is_undone(bench: Bench) -> None:
    bench.app("db")
    bench.engine.fail("pause", "db", unanswered(), lands=True)
    with pytest.raises(EngineUnreachable), bench.freeze():
        pytest.fail("frozen")
    assert bench.states("db") == [RUNNING]


@pytest.mark.parametrize("late", [1, 2, 10])
def test_a_pause_that_lands_after_our_unpause_is_undone_too(bench: Bench, late: int) -> None:
    bench.app("db")
    bench.engine.fail("pause", "db", unanswered(), lands=True, late=late)
    with pytest.raises(EngineUnreachable), bench.freeze():
        pytest.fail("frozen")
    assert bench.states("db") == [RUNNING]
    assert len(bench.engine.names("unpause")) == 2
    assert bench.journal.read() is None


def test_a_kernel_that_cannot_freeze_at_once_is_asked_again(bench: Bench) -> None:
    bench.app("db")
    bench.engine.fail("pause", "db", FreezeFailed("unable to freeze"), times=3)
    with bench.freeze() as frozen:
        frozen.confirm(bench.writers)
    assert frozen.intact
    assert not bench.engine.unfired


def test_a_kernel_that_never_freezes_it_is_given_up_in_seconds(bench: Bench) -> None:
    bench.app("db")
    bench.engine.fail("pause", "db", FreezeFailed("unable to freeze"), times=10**9)
    with pytest.raises(FreezeFailed, match="unable to freeze"), bench.freeze(budget=3600.0):
        pytest.fail("frozen")
    assert bench.clock.now <= 100 + 6


def test_a_pause_that_someone_else_made_just_before_ours_is_not_thawed(bench: Bench) -> None:
    db = bench.app("db")
    bench.app("web")
    bench.engine.meanwhile("container", "db", lambda: bench.engine.pause("db"))
    with pytest.raises(AlreadyPaused), bench.freeze():
        pytest.fail("frozen")
    assert bench.states("db", "web") == [PAUSED, RUNNING]
    assert bench.engine.container("db").pid == db.pid


def test_a_container_that_stops_just_before_it_is_frozen_fails_the_freeze(bench: Bench) -> None:
    bench.app("db")
    bench.engine.meanwhile("container", "db", lambda: bench.engine.exit("db"))
    with pytest.raises(FreezeFailed, match="db stopped"), bench.freeze():
        pytest.fail("frozen")


def test_a_failure_between_journal_and_freeze_leaves_neither(bench: Bench) -> None:
    bench.app("db")

    def stage(name: str) -> None:
        assert bench.journal.read() is not None
        raise OSError(name)

    with pytest.raises(OSError, match="journalled"), bench.freeze(stage=stage):
        pytest.fail("frozen")
    assert bench.engine.names("pause") == []
    assert bench.journal.read() is None


def test_without_a_thread_for_the_guard_nothing_is_frozen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.app("db")

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="thread"), bench.freeze():
        pytest.fail("frozen")
    assert bench.engine.names("pause") == []
    assert bench.journal.read() is None


# --- when thawing is hard --------------------------------------------------------------------------------------------


def test_an_engine_that_is_briefly_away_is_asked_until_all_are_thawed(bench: Bench) -> None:
    bench.app("db")
    bench.app("web")
    with bench.freeze():
        bench.engine.fail("unpause", "db", unanswered(), times=20)
        bench.engine.fail("container", "web", unanswered(), times=3)
    assert bench.states("db", "web") == [RUNNING, RUNNING]
    assert not bench.engine.unfired
    assert bench.journal.read() is None


def test_a_container_that_cannot_be_thawed_is_named_with_the_command_and_stays_in_the_journal(bench: Bench) -> None:
    bench.app("db")
    bench.app("web")

    def capture() -> None:
        with bench.freeze():
            bench.engine.fail("unpause", "db", EngineError("broken shim"), times=10**9)
            raise ValueError("the reader failed too")

    with pytest.raises(ThawFailed, match="db") as caught:
        capture()
    assert caught.value.hint == "run: docker unpause db"
    assert isinstance(caught.value.__context__, ValueError)
    assert bench.states("db", "web") == [PAUSED, RUNNING]
    entry = bench.journal.read()
    assert entry is not None
    assert [i.name for i in entry.frozen] == ["db", "web"]


def test_what_could_not_be_thawed_then_is_thawed_by_a_later_recovery(bench: Bench) -> None:
    bench.app("db")
    bench.engine.fail("unpause", "db", EngineError("broken shim"), times=10**3)
    with pytest.raises(ThawFailed), bench.freeze():
        pass
    while bench.engine.unfired:
        with pytest.raises(EngineError):
            bench.engine.unpause("db")
    assert bench.recover() == ("db",)
    assert bench.states("db") == [RUNNING]


def test_without_a_new_thread_all_is_thawed_nevertheless(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.app("db")
    bench.app("web")

    def no_thread(self: ThreadPoolExecutor, *_: object) -> None:
        raise RuntimeError("can't start new thread")

    with bench.freeze():
        monkeypatch.setattr(ThreadPoolExecutor, "submit", no_thread)
    assert bench.states("db", "web") == [RUNNING, RUNNING]


def test_those_that_hang_while_they_are_frozen_do_not_keep_the_others_frozen(bench: Bench) -> None:
    hanging = [f"db-{number}" for number in range(8)]
    answered = threading.Event()
    for name in hanging:
        bench.app(name)
        bench.engine.meanwhile("pause", name, lambda: answered.wait(60))
    bench.app("web", labels={"com.docker.compose.depends_on": "db-0:service_started:false"})
    for number in range(1, 8):
        bench.app(f"web-{number}", depends_on=f"db-{number}:service_started:false")
    seen: list[bool] = []

    def user() -> None:
        frozen = eventually(lambda: bench.states("web", *hanging) == [PAUSED] * 9)
        bench.cancelled.set()
        seen.append(frozen and eventually(lambda: bench.states("web") == [RUNNING]))
        answered.set()

    watcher = threading.Thread(target=user)
    watcher.start()
    with pytest.raises(Interrupted), bench.freeze():
        pytest.fail("frozen")
    watcher.join()
    assert seen == [True]
    assert bench.states("web", *hanging) == [RUNNING] * 9


def test_a_journal_that_cannot_be_cleared_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.app("db")

    def no_space(self: Path) -> None:
        raise OSError(30, "Read-only file system")

    def capture() -> None:
        with bench.freeze() as frozen:
            frozen.confirm(bench.writers)
            monkeypatch.setattr(Path, "unlink", no_space)

    with pytest.raises(JournalUnwritable):
        capture()
    assert bench.states("db") == [RUNNING]


# --- the guard -------------------------------------------------------------------------------------------------------


def test_a_spent_budget_thaws_while_the_reader_still_hangs(bench: Bench) -> None:
    bench.app("db")

    def capture() -> None:
        with bench.freeze(budget=30.0) as frozen:
            bench.clock.sleep(29.9)
            frozen.check()
            assert bench.states("db") == [PAUSED]
            bench.clock.sleep(0.1)
            assert eventually(lambda: bench.states("db") == [RUNNING])
            with pytest.raises(PauseBudgetSpent):
                frozen.check()
            frozen.confirm(bench.writers)

    with pytest.raises(PauseBudgetSpent) as caught:
        capture()
    assert "BACKUP_MAX_PAUSE" in caught.value.hint
    assert bench.journal.read() is None
    assert bench.engine.names("unpause") == ["db"]


def test_a_cancelled_run_thaws_while_the_reader_still_hangs(bench: Bench) -> None:
    bench.app("db")

    def capture() -> None:
        with bench.freeze() as frozen:
            bench.cancelled.set()
            assert eventually(lambda: bench.states("db") == [RUNNING])
            frozen.confirm(bench.writers)

    with pytest.raises(Interrupted):
        capture()


def test_a_run_that_is_cancelled_already_freezes_nothing(bench: Bench) -> None:
    bench.app("db")
    bench.cancelled.set()
    with pytest.raises(Interrupted), bench.freeze():
        pytest.fail("frozen")
    assert bench.engine.names("pause") == []


def test_leaving_late_without_a_confirmation_is_no_success(bench: Bench) -> None:
    bench.app("db")
    with pytest.raises(PauseBudgetSpent), bench.freeze(budget=1.0):
        bench.clock.sleep(2)


def test_leaving_without_a_confirmation_is_not_called_intact(bench: Bench) -> None:
    bench.app("db")
    with bench.freeze() as frozen:
        pass
    assert not frozen.intact


# --- did it stay frozen? ---------------------------------------------------------------------------------------------


def broken(bench: Bench, act: Callable[[], object], *, late: Callable[[], object] = lambda: None) -> str:
    """Freeze, let something happen before (or after) the confirmation; the FreezeBroken that must come of it."""

    def capture() -> None:
        with bench.freeze() as frozen:
            act()
            frozen.confirm(bench.writers)
            late()

    with pytest.raises(FreezeBroken) as caught:
        capture()
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("act", ["restart", "kill", "remove", "copy_into"])
def test_what_a_user_does_to_a_frozen_container_breaks_the_freeze(bench: Bench, act: str) -> None:
    bench.app("db")
    bench.app("web")
    assert "db" in broken(bench, lambda: getattr(bench.engine, act)("db"))
    assert bench.states("web") == [RUNNING]


def test_a_container_that_was_resumed_and_paused_again_looks_the_same_but_breaks_the_freeze(bench: Bench) -> None:
    bench.app("db")

    def resume_and_pause() -> None:
        bench.engine.unpause("db")
        bench.engine.pause("db")

    assert "db did not stay frozen" in broken(bench, resume_and_pause)


@pytest.mark.parametrize("act", ["unpause", "restart", "copy_into"])
def test_what_happens_between_the_confirmation_and_the_thaw_breaks_the_freeze_too(bench: Bench, act: str) -> None:
    bench.app("db")
    assert "db" in broken(bench, lambda: None, late=lambda: getattr(bench.engine, act)("db"))


def test_a_container_that_someone_signalled_is_resumed_and_breaks_the_freeze(bench: Bench) -> None:
    bench.app("db")
    assert "is running, not paused" in broken(bench, lambda: bench.engine.kill("db", "TERM"))


def test_the_confirmation_itself_sees_what_lasts(bench: Bench) -> None:
    bench.app("restarted")
    bench.app("removed")
    bench.app("other")
    bench.engine.pause("other")

    def restart_and_pause() -> None:
        bench.engine.restart("restarted")
        bench.engine.pause("restarted")

    for act, message in [
        (restart_and_pause, "restarted was started anew"),
        (lambda: bench.engine.unpause("other"), "other is running, not paused"),
        (lambda: bench.engine.remove("removed"), "removed was removed"),
    ]:
        with bench.freeze() as frozen:
            act()
            with pytest.raises(FreezeBroken, match=message):
                frozen.confirm(bench.writers)
        bench.engine.unpause("other")
        bench.engine.pause("other")


def test_a_budget_that_is_spent_during_the_confirmation_is_spent(bench: Bench) -> None:
    bench.app("db")

    def capture() -> None:
        with bench.freeze() as frozen:
            bench.engine.meanwhile("container", "db", lambda: bench.clock.sleep(31))
            with pytest.raises(PauseBudgetSpent):
                frozen.confirm(bench.writers)

    with pytest.raises(PauseBudgetSpent):
        capture()
    assert not bench.engine.unfired


def test_what_happens_after_the_thaw_breaks_nothing(bench: Bench) -> None:
    bench.app("db")
    with bench.freeze() as frozen:
        frozen.confirm(bench.writers)
        bench.engine.meanwhile("unpause", "db", lambda: bench.engine.restart("db"))
    assert frozen.intact
    assert not bench.engine.unfired


def test_what_changes_no_file_breaks_nothing(bench: Bench) -> None:
    bench.app("db")
    with bench.freeze() as frozen:
        for action in ("exec_die", "health_status", "top", "mount", "archive-path", "rename"):
            bench.engine.happen(action, "db")
        frozen.confirm(bench.writers)
    assert frozen.intact


@pytest.mark.parametrize("state", ["paused", "exited"])
def test_a_container_that_was_left_as_found_and_came_to_life_breaks_the_freeze(bench: Bench, state: str) -> None:
    bench.app("db")
    bench.app("other")
    if state == "paused":
        bench.engine.pause("other")
    else:
        bench.engine.exit("other")

    def wake() -> None:
        bench.engine.unpause("other")
        bench.engine.start("other")

    assert "other" in broken(bench, wake)


def test_a_container_that_was_found_stopped_and_ran_for_a_moment_breaks_the_freeze(bench: Bench) -> None:
    bench.app("db")
    bench.app("job")
    bench.engine.exit("job")

    def run_once() -> None:
        bench.engine.start("job")
        bench.engine.exit("job")

    assert "job" in broken(bench, lambda: None, late=run_once)


def test_removing_a_stopped_container_breaks_nothing(bench: Bench) -> None:
    bench.app("db")
    bench.app("done")
    bench.engine.exit("done")
    with bench.freeze() as frozen:
        bench.engine.remove("done")
        frozen.confirm(bench.writers)
    assert frozen.intact


def test_a_new_writer_breaks_the_freeze(bench: Bench) -> None:
    bench.app("db")
    assert "intruder was started" in broken(bench, lambda: bench.app("intruder"))


def test_a_writer_that_was_there_but_not_among_the_dependents_breaks_the_freeze(bench: Bench) -> None:
    db = bench.app("db")
    bench.app("missed")

    def capture() -> None:
        with bench.freeze([db]) as frozen:
            frozen.confirm(bench.writers)

    with pytest.raises(FreezeBroken, match="missed"):
        capture()


def test_a_writer_that_came_and_went_breaks_the_freeze(bench: Bench) -> None:
    bench.app("db")

    def come_and_go() -> None:
        bench.app("once", auto_remove=True)
        bench.engine.exit("once")

    assert "once was started" in broken(bench, come_and_go)


def test_others_that_came_and_went_break_nothing(bench: Bench) -> None:
    bench.app("db")
    with bench.freeze() as frozen:
        for name, volumes, read_only in [
            ("build", {}, False),
            ("ci", {"cache": "/c"}, False),
            ("r", {"data": "/d"}, True),
        ]:
            bench.engine.run(name, volumes=volumes, read_only=read_only, auto_remove=True)
            bench.engine.exit(name)
        frozen.confirm(bench.writers)
    assert frozen.intact


def test_a_copy_into_a_new_container_that_never_ran_breaks_the_freeze(bench: Bench) -> None:
    bench.app("db")

    def copy() -> None:
        bench.engine.create("shell", volumes={"data": "/data"})
        bench.engine.copy_into("shell")

    assert "shell" in broken(bench, copy)


def test_new_containers_that_cannot_write_the_volumes_break_nothing(bench: Bench) -> None:
    bench.app("db")
    with bench.freeze() as frozen:
        bench.engine.run("reader", volumes={"data": "/data"}, read_only=True)
        bench.engine.run("elsewhere", volumes={"other": "/data"})
        bench.engine.run("helper", labels={"backup.role": "helper"}, volumes={"data": "/data"}, auto_remove=True)
        bench.engine.exit("helper")
        frozen.confirm(bench.writers)
    assert frozen.intact


def test_a_writer_that_starts_after_the_thaw_breaks_nothing(bench: Bench) -> None:
    bench.app("db")
    with bench.freeze() as frozen:
        frozen.confirm(bench.writers)
        bench.engine.meanwhile("unpause", "db", lambda: bench.app("later"))
    assert frozen.intact
    assert not bench.engine.unfired


def test_an_event_log_with_a_gap_is_no_proof(bench: Bench) -> None:
    bench.app("db")
    assert "cannot be known" in broken(bench, bench.engine.forget_events)


def test_an_engine_that_does_not_answer_the_confirmation_is_no_proof(bench: Bench) -> None:
    bench.app("db")

    def capture() -> None:
        with bench.freeze() as frozen:
            bench.engine.fail("container", "db", unanswered())
            frozen.confirm(bench.writers)

    with pytest.raises(EngineUnreachable):
        capture()
    assert bench.states("db") == [RUNNING]


# --- after a kill ----------------------------------------------------------------------------------------------------


def intent(container: Container, action: Quiesce = Quiesce.PAUSE) -> Intent:
    return Intent(container.id, container.name, action, container.started_at, container.pid)


def test_recovery_thaws_exactly_what_a_killed_run_froze(bench: Bench) -> None:
    db, web, idle = bench.app("db"), bench.app("web", quiesce="stop"), bench.app("idle")
    bench.app("users-own")
    bench.app("off")
    bench.journal.begin(run="r", group="g", frozen=[intent(db), intent(web, Quiesce.STOP), intent(idle)])
    bench.engine.pause("db")
    bench.engine.stop("web", timeout=10)
    bench.engine.pause("users-own")
    bench.engine.exit("off")
    assert bench.recover() == ("db", "web")
    assert bench.states("db", "web", "idle", "users-own", "off") == [RUNNING, RUNNING, RUNNING, PAUSED, EXITED]
    assert bench.journal.read() is None
    assert bench.events == [("recovered", {"run": "r", "group": "g", "containers": ["db", "web"], "damaged": False})]


def test_recovery_starts_who_was_told_to_stop_and_takes_its_time(bench: Bench) -> None:
    db = bench.app("db", quiesce="stop")
    bench.journal.begin(run="run-1", group="shop", frozen=[Intent(db.id, "db", Quiesce.STOP, db.started_at, db.pid)])

    def sleep(seconds: float) -> None:
        bench.clock.sleep(seconds)
        if bench.clock() > 109 and bench.engine.container("db").started_at == db.started_at:
            bench.engine.stop("db", timeout=10)

    assert recover(bench.journal, bench.engine, bench.emit, clock=bench.clock, sleep=sleep) == ("db",)
    assert bench.engine.state("db") is RUNNING
    assert bench.journal.read() is None


def test_recovery_without_a_journal_does_nothing_and_says_nothing(bench: Bench) -> None:
    bench.app("users-own")
    bench.engine.pause("users-own")
    assert bench.recover() == ()
    assert bench.states("users-own") == [PAUSED]
    assert bench.events == []


def test_what_was_started_anew_after_the_kill_and_then_paused_is_someone_elses(bench: Bench) -> None:
    db, web = bench.app("db"), bench.app("web", quiesce="stop")
    bench.journal.begin(run="r", group="g", frozen=[intent(db), intent(web, Quiesce.STOP)])
    for name in ("db", "web"):
        bench.engine.restart(name)
    bench.engine.pause("db")
    bench.engine.exit("web")
    assert bench.recover() == ()
    assert bench.states("db", "web") == [PAUSED, EXITED]
    assert bench.journal.read() is None


def test_recovery_does_not_mind_containers_that_are_gone(bench: Bench) -> None:
    gone, db = bench.app("gone"), bench.app("db")
    bench.journal.begin(run="r", group="g", frozen=[intent(gone), intent(db)])
    bench.engine.pause("db")
    bench.engine.remove("gone")
    assert bench.recover() == ("db",)


def test_recovery_waits_for_an_engine_that_is_briefly_away(bench: Bench) -> None:
    db = bench.app("db")
    bench.journal.begin(run="r", group="g", frozen=[intent(db)])
    bench.engine.pause("db")
    bench.engine.fail("container", "db", unanswered(), times=5)
    bench.engine.fail("unpause", "db", unanswered(), times=5)
    assert bench.recover() == ("db",)
    assert not bench.engine.unfired


def test_recovery_is_done_when_an_inspection_says_so(bench: Bench) -> None:
    db = bench.app("db")
    bench.journal.begin(run="r", group="g", frozen=[intent(db)])
    bench.engine.pause("db")
    bench.engine.meanwhile("unpause", "db", lambda: bench.engine.pause("db"))  # a request of the killed run lands late
    assert bench.recover() == ("db",)
    assert bench.states("db") == [RUNNING]
    assert not bench.engine.unfired


def test_a_recovery_that_fails_thaws_the_others_names_the_command_and_can_be_repeated(bench: Bench) -> None:
    db, web = bench.app("db"), bench.app("web")
    bench.journal.begin(run="r", group="g", frozen=[intent(db), intent(web)])
    bench.engine.pause("db")
    bench.engine.pause("web")
    bench.engine.fail("unpause", "db", EngineError("broken shim"), times=10**9)
    with pytest.raises(ThawFailed) as caught:
        bench.recover()
    assert caught.value.hint == "run: docker unpause db"
    assert bench.states("web") == [RUNNING]
    assert bench.journal.read() is not None
    assert bench.events == []


def test_a_journal_torn_at_any_byte_never_leaves_a_container_frozen_silently(tmp_path: Path) -> None:
    whole = Bench(tmp_path)
    for name in ("db", "web"):
        whole.app(name)
    whole.journal.begin(run="r", group="g", frozen=[intent(c) for c in whole.dependents()])
    raw = whole.journal.path.read_bytes()
    recovered = 0
    for length in range(len(raw)):
        bench = Bench(tmp_path)
        bench.app("db")
        bench.app("web")
        bench.engine.pause("db")
        bench.engine.pause("web")
        bench.journal.path.write_bytes(raw[:length])
        named = [c.name for c in bench.dependents() if c.id.encode() in raw[:length]]
        refused = None
        try:
            bench.recover()
        except JournalUnreadable as error:
            refused = error
        left = [c.name for c in bench.dependents() if c.state is PAUSED]
        assert not set(left) & set(named)
        said = [fields for event, fields in bench.events if event == "recovered"]
        if refused is not None:
            assert [name for fields in said for name in fields["containers"]] == named
            assert left
            assert all(name in refused.hint for name in left)
            assert bench.journal.path.exists()
        else:
            recovered += 1
            assert not left
            assert bench.events[-1][1] == {"run": "", "group": "", "containers": ["db", "web"], "damaged": True}
            assert not bench.journal.path.exists()
            bench.journal.path.with_name("freeze.json.damaged").unlink()
    assert recovered > 50


class JobsThatRecover:
    """The jobs of a daemon that starts on the bench; a backup would need all to be put right."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def recover(self) -> None:
        self._bench.recover()

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        raise AssertionError("a run was made before all was put right")


def test_a_daemon_that_starts_with_a_journal_torn_at_any_byte_thaws_whom_it_names_and_says_so(tmp_path: Path) -> None:
    """It starts in every case; and what it could not name it asks a person about, and makes no run before."""
    whole = Bench(tmp_path)
    db = whole.app("db")
    whole.journal.begin(run="r", group="g", frozen=[intent(db)])
    raw = whole.journal.path.read_bytes()
    said = []
    for length in range(len(raw)):
        bench = Bench(tmp_path)
        bench.app("db")
        bench.engine.pause("db")
        bench.journal.path.write_bytes(raw[:length])

        runs = Runs(JobsThatRecover(bench), bench.emit, now=lambda: datetime(2026, 1, 2, tzinfo=UTC))  # type: ignore[arg-type]
        runs.recover()

        ((event, fields),) = bench.events
        said.append(event)
        named = db.id.encode() in raw[:length]
        assert bench.states("db") == [RUNNING if named else PAUSED]
        if named:
            assert (event, fields["containers"], fields["damaged"]) == ("recovered", ["db"], True)
            assert runs.status()["healthy"]
            bench.journal.path.with_name("freeze.json.damaged").unlink()
        else:
            assert (event, fields["code"]) == ("recover_failed", JournalUnreadable.code)
            assert "docker unpause db" in fields["hint"]
            assert runs.status()["why"].startswith("what an earlier run left is not put right yet")
            runs.start()
            report = runs.submit(RunRequest()).result.result(10)
            assert (report.outcome, report.reasons[0].code) == (Outcome.FAILED, JournalUnreadable.code)
            runs.interrupt()
    assert set(said) == {"recovered", "recover_failed"}


# --- and together ----------------------------------------------------------------------------------------------------

FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["pause", "unpause", "stop", "start", "container"]),
        st.sampled_from(["db", "web", "job"]),
        st.sampled_from(["unanswered", "refused"]),
        st.integers(1, 4),
        st.booleans(),
        st.integers(0, 8),
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(faults=FAULTS, fails=st.booleans(), confirms=st.booleans())
def test_whatever_fails_in_whatever_way_all_run_afterwards_or_the_journal_says_who_does_not(
    tmp_path_factory: pytest.TempPathFactory,
    faults: list[tuple[str, str, str, int, bool, int]],
    fails: bool,
    confirms: bool,
) -> None:
    bench = Bench(tmp_path_factory.mktemp("state"))
    bench.app("db")
    bench.app("web", depends_on="db:service_started:false")
    bench.app("job", quiesce="stop")
    bench.app("users-own")
    bench.engine.pause("users-own")
    dependents = bench.dependents()
    for operation, name, kind, times, lands, late in faults:
        error = unanswered() if kind == "unanswered" else EngineError("refused")
        # Only a request that was not answered may have been carried out.
        unknown = kind == "unanswered" and lands and operation != "container"
        bench.engine.fail(operation, name, error, times=times, lands=unknown, late=late if unknown else 0)
    failure: Exception | None = None
    try:
        with bench.freeze(dependents) as frozen:
            if fails:
                raise ValueError("the reader failed")
            if confirms:
                frozen.confirm(bench.writers)
    except (SidecarError, ValueError) as error:
        failure = error
    for name in ("db", "web", "job") * 10:  # whatever may land yet lands
        with suppress(EngineError):
            bench.engine.container(name)
    running = [name for name in ("db", "web", "job") if bench.engine.state(name) is RUNNING]
    if isinstance(failure, ThawFailed):
        entry = bench.journal.read()
        assert entry is not None
        assert {i.name for i in entry.frozen} | set(running) == {"db", "web", "job"}
        assert failure.hint
    else:
        assert running == ["db", "web", "job"]
        assert bench.journal.read() is None
    assert failure is not None or not fails
    assert bench.states("users-own") == [PAUSED]
