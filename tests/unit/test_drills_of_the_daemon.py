"""Drills in the daemon: whose turn it is, who gives way to whom, what is remembered, when it is unhealthy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import Interrupted, NoRoom, NotFound
from sidecar.events import Follow, Progress
from sidecar.report import DrillReport, Outcome, Reason
from sidecar.schedule import parse
from sidecar.service.daemon import Scheduler
from sidecar.service.jobs_port import DrillRequest, RunRequest
from sidecar.service.memory import Memory
from sidecar.service.runs import Runs
from tests.unit.fake_daemon_process import PATIENCE, eventually
from tests.unit.test_verifying import NOON, OLDER, SET, SUNDAY
from tests.unit.test_verifying import World as VerifyingWorld

WHY = "db did not come up"
MONTHLY = parse("0 6 1 * *", UTC)
FIRST = datetime(2026, 2, 1, 6, tzinfo=UTC)


def drilled(outcome: Outcome = Outcome.GOOD, *, newest: bool = True) -> DrillReport:
    reasons = (Reason("drill_failed", WHY),) * (outcome is not Outcome.GOOD)
    return DrillReport("d1", SET if newest else OLDER, outcome, NOON, 1.0, newest, (), (), reasons)


class World(VerifyingWorld):
    """The same with drills; `ends_drill` says how they end."""

    def __init__(self, directory: Path) -> None:
        self.drills: list[DrillRequest] = []
        self.ends_drill: Callable[[threading.Event], DrillReport] = lambda _: drilled()
        super().__init__(directory)

    def start(self) -> Runs:
        memory = Memory(str(self.memory), self.emit)
        runs = Runs(
            self,  # type: ignore[arg-type]
            self.emit,
            now=lambda: self.time,
            verify_schedule=self.schedule,
            drill_schedule=MONTHLY if self.schedule else None,
            remembered=memory.recall(),
            keep=memory.keep,
            clean=lambda text: text.upper(),
        )
        runs.expect_drill(MONTHLY.next_after(self.time) if self.schedule else None)
        runs.recover()
        runs.start()
        return runs

    def drill(self, request: DrillRequest, follow: Follow, cancelled: threading.Event) -> DrillReport:
        self.drills.append(request)
        follow(Progress("starting", "db"))
        return self.ends_drill(cancelled)

    def endless(self, cancelled: threading.Event) -> DrillReport:
        assert cancelled.wait(PATIENCE)
        raise Interrupted("the drill was told to stop")

    def fails_by(self, error: BaseException) -> None:
        def raise_it(_: threading.Event) -> DrillReport:
            raise error

        self.ends_drill = raise_it

    def drill_now(self, report: DrillReport | None = None) -> DrillReport:
        if report:
            self.ends_drill = lambda _: report
        found = self.runs.submit(DrillRequest()).result.result(PATIENCE)
        assert isinstance(found, DrillReport)
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- asked for -------------------------------------------------------------------------------------------------------


def test_a_drill_has_its_turn_and_status_knows_of_it_after_a_restart(world: World) -> None:
    assert world.drill_now().outcome is Outcome.GOOD
    last = {
        "set": SET,
        "time": "2026-01-02T12:00:00Z",
        "outcome": "good",
        "why": "",
        "volumes": [],
        "trigger": "manual",
    }
    assert world.status()["last_drill"] == last
    world.restart()
    assert world.status()["last_drill"] == last


def test_while_it_goes_on_status_says_so_and_cancel_ends_it_which_is_logged(world: World) -> None:
    world.ends_drill = world.endless
    ticket = world.runs.submit(DrillRequest(volumes=("db",)))
    eventually(lambda: ticket.progress, "it begins")
    status = world.status()
    assert (status["state"], status["running"]["phase"], status["running"]["activity"]) == (
        *("drilling", "starting", "drill"),
    )
    assert world.runs.cancel()[0] is ticket
    with pytest.raises(Interrupted):
        ticket.result.result(PATIENCE)
    assert [each["outcome"] for each in world.of("drill_finished")] == ["interrupted"]
    assert world.status()["last_drill"] is None


def test_what_cannot_be_drilled_is_the_last_drill_and_the_daemon_is_healthy_and_goes_on(world: World) -> None:
    world.fails_by(NoRoom("no room", hint="free some"))
    with pytest.raises(NoRoom):
        world.drill_now()
    assert (world.status()["last_drill"]["outcome"], world.status()["healthy"]) == ("failed", True)
    assert [(each["code"], each["hint"]) for each in world.of("drill_finished")] == [("no_room", "free some")]
    assert world.drill_now(drilled()).outcome is Outcome.GOOD


def test_a_name_that_is_no_sets_is_not_the_last_drill(world: World) -> None:
    world.fails_by(NotFound("there is no set"))
    with pytest.raises(NotFound):
        world.drill_now()
    assert world.status()["last_drill"] is None


def test_an_error_that_nobody_expected_is_logged_with_its_trace_and_the_daemon_goes_on(world: World) -> None:
    world.fails_by(KeyError("secret"))
    with pytest.raises(Exception, match="the drill failed unexpectedly: KEYERROR: 'SECRET'"):
        world.drill_now()
    assert "Traceback" in world.of("drill_finished")[0]["trace"]
    assert world.drill_now(drilled()).outcome is Outcome.GOOD


# --- health ----------------------------------------------------------------------------------------------------------


def test_it_is_unhealthy_while_the_newest_set_failed_its_drill_after_a_restart_and_a_newer_set_too(
    world: World,
) -> None:
    world.drill_now(drilled(Outcome.FAILED))
    for _ in range(2):
        status = world.status()
        assert not status["healthy"]
        what_to_do = "mend that, then `run-now`, and `drill` the newer set"
        assert status["why"] == f"set {SET} failed its drill: {WHY}; {what_to_do}"
        world.restart()
    world.run()
    assert not world.status()["healthy"]  # nobody knows whether that one comes up
    world.drill_now(drilled(newest=False))
    assert not world.status()["healthy"]  # that was another set
    world.drill_now(drilled(Outcome.PARTIAL))
    assert world.status()["healthy"]


def test_an_older_set_that_fails_does_not_make_it_unhealthy(world: World) -> None:
    world.drill_now(drilled(Outcome.FAILED, newest=False))
    assert world.status()["healthy"]
    assert world.status()["last_drill"]["why"] == WHY


# --- scheduled -------------------------------------------------------------------------------------------------------


def test_a_scheduled_drill_is_of_the_newest_set_once(world: World) -> None:
    world.runs.drill_when_idle(FIRST)
    eventually(lambda: world.status()["last_drill"] and world.status()["state"] == "idle", "it has ended")
    assert world.drills == [DrillRequest("latest", (), "schedule")]
    world.run()
    assert len(world.drills) == 1
    assert world.remembered()["drill_due"] == "2026-02-01T06:00:00Z"


def test_a_scheduled_one_gives_way_to_a_run_and_begins_anew_afterwards(world: World) -> None:
    world.ends_drill = world.endless
    world.runs.drill_when_idle(FIRST)
    eventually(lambda: world.drills, "it begins")
    world.ends_drill = lambda _: drilled()
    world.runs.submit(RunRequest(), no_wait=True).result.result(PATIENCE)
    eventually(lambda: len(world.drills) == 2 and world.status()["last_drill"], "it has begun anew, and ended")
    assert world.of("drill_finished") == []  # the daemon says nothing of one that gave way


def test_a_verification_that_is_due_comes_first(world: World) -> None:
    order: list[str] = []
    world.ends_drill = world.endless
    world.runs.drill_when_idle(FIRST)
    eventually(lambda: world.drills, "it begins")

    def ends(_: threading.Event) -> DrillReport:
        order.append("drill")
        return drilled()

    world.runs.verify_when_idle(SUNDAY)
    world.ends_drill = ends
    verify = world.ends
    world.ends = lambda cancelled: (order.append("verification"), verify(cancelled))[1]  # type: ignore[func-returns-value]
    world.run()
    eventually(lambda: world.status()["last_drill"], "both have ended")
    assert order == ["verification", "drill"]


def test_a_scheduled_one_that_is_cancelled_does_not_begin_anew(world: World) -> None:
    world.ends_drill = world.endless
    world.runs.drill_when_idle(FIRST)
    eventually(lambda: world.drills, "it begins")
    world.runs.cancel()
    eventually(lambda: world.of("drill_finished"), "it has ended")
    world.run()
    assert len(world.drills) == 1


def test_one_that_kills_the_daemon_is_not_made_again_at_every_start(world: World) -> None:
    world.time = FIRST
    world.runs.expect_drill(MONTHLY.next_after(FIRST))
    world.ends_drill = world.endless
    world.runs.drill_when_idle(FIRST)
    eventually(lambda: world.drills, "it begins")
    killed, world.ends_drill = world.runs, lambda _: drilled()
    world.runs = world.start()  # over what the other had remembered when it was killed
    world.run()
    assert len(world.drills) == 1
    killed.interrupt()
    assert killed.wait_idle(PATIENCE)


def test_one_that_was_missed_while_no_daemon_ran_is_made_up_for(world: World) -> None:
    world.runs.interrupt()
    world.time = FIRST + timedelta(hours=3)
    world.runs = world.start()
    eventually(lambda: world.status()["last_drill"] and world.status()["state"] == "idle", "it is made up for")
    assert world.remembered()["drill_due"] == "2026-03-01T06:00:00Z"


def test_without_a_schedule_nothing_is_made_up_for(world: World) -> None:
    world.runs.interrupt()
    world.time, world.schedule = FIRST + timedelta(hours=3), None
    world.runs = world.start()
    world.run()
    assert world.drills == []


def test_it_comes_due_at_its_own_times() -> None:
    moments = [NOON]
    asked: list[datetime] = []

    class Due:
        def __getattr__(self, name: str) -> Any:
            return asked.append if name == "drill_when_idle" else lambda *_: None

    def wait(seconds: float) -> bool:
        moments[0] += timedelta(seconds=seconds)
        return moments[0] > FIRST + timedelta(days=2)

    scheduler = Scheduler(None, Due(), now=lambda: moments[0], wait=wait, drill=MONTHLY)  # type: ignore[arg-type]
    assert scheduler.next_drill == FIRST
    scheduler.run()
    assert asked == [FIRST]
