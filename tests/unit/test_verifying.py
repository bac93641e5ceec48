"""Verifications in the daemon: whose turn it is, who gives way to whom, what is remembered, when it is unhealthy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import Interrupted, NotFound, StoreUnreachable
from sidecar.events import EVENTS, Follow, Progress
from sidecar.report import Outcome, Reason, RunReport, VerifyReport
from sidecar.schedule import parse
from sidecar.service.daemon import Scheduler
from sidecar.service.jobs_port import RunRequest, VerifyRequest
from sidecar.service.memory import Memory
from sidecar.service.runs import Runs
from tests.unit.fake_daemon_process import PATIENCE, eventually

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
WEEKLY = parse("0 5 * * 0", UTC)
SUNDAY = datetime(2026, 1, 4, 5, tzinfo=UTC)
SET, OLDER = "backup-20260102_030000", "backup-20260101_030000"
WHY = "the block at 8388464 is not what was written"


def verified(*, damaged: bool = False, newest: bool = True, unknown: bool = False) -> VerifyReport:
    reasons = (Reason("archive_damaged", WHY, store="s3"),) * damaged
    reasons += (Reason("store_unreachable", "it could not be verified in s3", store="s3"),) * unknown
    return VerifyReport(
        verify="v1",
        set=SET if newest else OLDER,
        how="full",
        outcome=Outcome.FAILED if reasons else Outcome.GOOD,
        started=NOON,
        duration_ms=1.0,
        newest=newest,
        volumes=(),
        damaged={"s3": WHY} if damaged else {},
        reasons=reasons,
    )


class World:
    """A daemon's queue over a state volume, with a clock that a test sets; `ends` says how verifications end."""

    def __init__(self, directory: Path) -> None:
        self.memory = directory / "daemon.json"
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.time = NOON
        self.begun: list[VerifyRequest] = []
        self.made: list[RunRequest] = []
        self.ends: Callable[[threading.Event], VerifyReport] = lambda _: verified()
        self.schedule: Any = WEEKLY
        self.runs = self.start()

    def start(self) -> Runs:
        memory = Memory(str(self.memory), self.emit)
        runs = Runs(
            self,  # type: ignore[arg-type]
            self.emit,
            now=lambda: self.time,
            verify_schedule=self.schedule,
            remembered=memory.recall(),
            keep=memory.keep,
            clean=lambda text: text.upper(),
        )
        runs.expect_verification(WEEKLY.next_after(self.time) if self.schedule else None)
        runs.recover()
        runs.start()
        return runs

    def restart(self) -> None:
        self.runs.interrupt()
        assert self.runs.wait_idle(PATIENCE)
        self.runs = self.start()

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        assert name in EVENTS
        self.events.append((name, fields))

    # --- jobs ---

    def recover(self) -> None:
        pass

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        self.made.append(request)
        return RunReport("r", SET, Outcome.GOOD, NOON, 1.0, 1.0, off_host=True)

    def verify(self, request: VerifyRequest, follow: Follow, cancelled: threading.Event) -> VerifyReport:
        self.begun.append(request)
        follow(Progress("verifying", "db", 10, 100))
        return self.ends(cancelled)

    # --- how a verification ends ---

    def long(self, cancelled: threading.Event) -> VerifyReport:
        assert cancelled.wait(PATIENCE)
        raise Interrupted("the verification was told to stop")

    def error(self, error: BaseException) -> None:
        def raise_it(_: threading.Event) -> VerifyReport:
            raise error

        self.ends = raise_it

    # --- what a test does and sees ---

    def verify_now(self, report: VerifyReport | None = None) -> VerifyReport:
        if report:
            self.ends = lambda _: report
        ticket = self.runs.submit(VerifyRequest())
        found = ticket.result.result(PATIENCE)
        assert isinstance(found, VerifyReport)
        return found

    def run(self) -> None:
        self.runs.submit(RunRequest()).result.result(PATIENCE)

    def status(self) -> dict[str, Any]:
        return self.runs.status()

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]

    def remembered(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.memory.read_bytes())
        return document


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- asked for -------------------------------------------------------------------------------------------------------


def test_a_verification_has_its_turn_and_status_knows_of_it_after_a_restart(world: World) -> None:
    assert world.verify_now().outcome is Outcome.GOOD
    last = {
        "set": SET,
        "time": "2026-01-02T12:00:00Z",
        "how": "full",
        "outcome": "good",
        "why": "",
        "trigger": "manual",
    }
    assert world.status()["last_verify"] == last
    world.restart()
    assert world.status()["last_verify"] == last


def test_while_it_goes_on_status_says_so_and_a_run_waits_for_one_that_somebody_asked_for(world: World) -> None:
    opened = threading.Event()

    def until_opened(cancelled: threading.Event) -> VerifyReport:
        assert opened.wait(PATIENCE)
        assert not cancelled.is_set()
        return verified()

    world.ends = until_opened
    verification = world.runs.submit(VerifyRequest(how="quick"))
    eventually(lambda: world.begun, "it begins")
    run = world.runs.submit(RunRequest())
    status = world.status()
    assert (status["state"], status["running"]["phase"], status["running"]["activity"]) == (
        "verifying",
        "verifying",
        "verification",
    )
    assert world.runs.ahead_of(run) is verification
    opened.set()
    run.result.result(PATIENCE)
    assert world.begun[0].how == "quick"


def test_cancel_ends_it_and_that_is_logged(world: World) -> None:
    world.ends = world.long
    ticket = world.runs.submit(VerifyRequest())
    eventually(lambda: world.begun, "it begins")
    assert world.runs.cancel()[0] is ticket
    with pytest.raises(Interrupted):
        ticket.result.result(PATIENCE)
    assert [each["outcome"] for each in world.of("verify_finished")] == ["interrupted"]
    assert world.status()["last_verify"] is None


def test_what_cannot_be_verified_is_the_last_verification_and_the_daemon_is_healthy_and_goes_on(world: World) -> None:
    world.error(StoreUnreachable("no connection", hint="is it up?", store="s3"))
    with pytest.raises(StoreUnreachable):
        world.verify_now()
    assert (world.status()["last_verify"]["outcome"], world.status()["healthy"]) == ("failed", True)
    assert [(each["code"], each["hint"]) for each in world.of("verify_finished")] == [
        ("store_unreachable", "is it up?")
    ]
    assert world.verify_now(verified()).outcome is Outcome.GOOD


def test_an_error_that_nobody_expected_is_logged_with_its_trace_and_the_daemon_goes_on(world: World) -> None:
    world.error(KeyError("secret"))
    with pytest.raises(Exception, match="unexpectedly: KEYERROR: 'SECRET'"):
        world.verify_now()
    assert "Traceback" in world.of("verify_finished")[0]["trace"]
    assert world.verify_now(verified()).outcome is Outcome.GOOD


def test_a_name_that_is_no_sets_is_not_the_last_verification(world: World) -> None:
    world.error(NotFound("there is no set"))
    with pytest.raises(NotFound):
        world.verify_now()
    assert world.status()["last_verify"] is None


# --- health ----------------------------------------------------------------------------------------------------------


def test_it_is_unhealthy_while_the_newest_set_is_known_to_be_damaged_after_a_restart_too(world: World) -> None:
    world.run()
    world.verify_now(verified(damaged=True))
    for _ in range(2):
        assert (world.status()["healthy"], world.status()["why"]) == (
            False,
            f"the newest set, {SET}, is damaged: {WHY}",
        )
        world.restart()
    world.verify_now(verified(unknown=True))
    assert not world.status()["healthy"]  # nothing better is known
    world.verify_now(verified(newest=False))
    assert not world.status()["healthy"]  # that was another set
    world.verify_now(verified())
    assert world.status()["healthy"]


def test_a_newer_set_makes_it_healthy_again(world: World) -> None:
    world.verify_now(verified(damaged=True))
    assert not world.status()["healthy"]
    world.run()
    assert world.status()["healthy"]


def test_damage_of_an_older_set_does_not_make_it_unhealthy(world: World) -> None:
    world.verify_now(verified(damaged=True, newest=False))
    assert world.status()["healthy"]
    assert world.status()["last_verify"]["why"] == WHY


# --- scheduled -------------------------------------------------------------------------------------------------------


def test_a_scheduled_verification_is_of_the_newest_set_in_full_once(world: World) -> None:
    world.runs.verify_when_idle(SUNDAY)
    eventually(lambda: world.status()["last_verify"] and world.status()["state"] == "idle", "it has ended")
    assert world.begun == [VerifyRequest("latest", "full", "schedule")]
    world.run()
    assert len(world.begun) == 1
    assert world.remembered()["verify_due"] == "2026-01-04T05:00:00Z"


def test_a_scheduled_one_gives_way_to_a_run_and_begins_anew_afterwards(world: World) -> None:
    world.ends = world.long
    world.runs.verify_when_idle(SUNDAY)
    eventually(lambda: world.begun, "it begins")
    world.ends = lambda _: verified()
    world.runs.submit(RunRequest(), no_wait=True).result.result(PATIENCE)
    eventually(lambda: len(world.begun) == 2 and world.status()["last_verify"], "it has begun anew, and ended")
    assert len(world.made) == 1
    assert world.of("verify_finished") == []  # the daemon says nothing of one that gave way


def test_a_scheduled_one_that_is_cancelled_does_not_begin_anew(world: World) -> None:
    world.ends = world.long
    world.runs.verify_when_idle(SUNDAY)
    eventually(lambda: world.begun, "it begins")
    world.runs.cancel()
    eventually(lambda: world.of("verify_finished"), "it has ended")
    world.run()
    assert len(world.begun) == 1


def test_stopping_the_daemon_in_the_middle_of_a_scheduled_one_is_no_interruption_and_the_next_takes_it_up(
    world: World,
) -> None:
    world.time = SUNDAY
    world.ends = world.long
    world.runs.verify_when_idle(SUNDAY)
    eventually(lambda: world.begun, "it begins")
    assert world.runs.interrupt() is None
    assert world.runs.wait_idle(PATIENCE)
    world.ends = lambda _: verified()
    world.runs = world.start()
    eventually(lambda: world.status()["last_verify"], "it is taken up")
    assert [each.trigger for each in world.begun] == ["schedule", "schedule"]


def test_one_that_kills_the_daemon_is_not_made_again_at_every_start(world: World) -> None:
    world.time = SUNDAY
    world.runs.expect_verification(WEEKLY.next_after(SUNDAY))
    world.ends = world.long
    world.runs.verify_when_idle(SUNDAY)
    eventually(lambda: world.begun, "it begins")
    killed, world.ends = world.runs, lambda _: verified()
    world.runs = world.start()  # over what the other had remembered when it was killed
    world.run()
    assert len(world.begun) == 1
    killed.interrupt()
    assert killed.wait_idle(PATIENCE)


def test_one_that_was_missed_while_no_daemon_ran_is_made_up_for(world: World) -> None:
    world.runs.interrupt()
    world.time = SUNDAY + timedelta(hours=3)
    world.runs = world.start()
    eventually(lambda: world.status()["last_verify"] and world.status()["state"] == "idle", "it is made up for")
    assert world.remembered()["verify_due"] == "2026-01-11T05:00:00Z"


def test_without_a_schedule_nothing_is_made_up_for(world: World) -> None:
    world.runs.interrupt()
    world.time, world.schedule = SUNDAY + timedelta(hours=3), None
    world.runs = world.start()
    world.run()
    assert world.begun == []


def test_each_schedule_comes_due_at_its_own_times() -> None:
    moments = [NOON]
    asked: list[tuple[str, datetime]] = []

    class Both:
        def submit_scheduled(self, due: datetime) -> None:
            asked.append(("run", due))

        def verify_when_idle(self, due: datetime) -> None:
            asked.append(("verification", due))

        def expect(self, _: datetime | None) -> None:
            pass

        def expect_verification(self, _: datetime | None) -> None:
            pass

        def drill_when_idle(self, _: datetime) -> None:
            raise AssertionError("no drill is scheduled")

        def expect_drill(self, due: datetime | None) -> None:
            assert due is None

    def wait(seconds: float) -> bool:
        moments[0] += timedelta(seconds=seconds)
        return moments[0] > NOON + timedelta(days=2)

    daily = parse("0 3 * * *", UTC)
    scheduler = Scheduler(daily, Both(), now=lambda: moments[0], wait=wait, verify=WEEKLY)  # type: ignore[arg-type]
    assert scheduler.next_verify == SUNDAY
    scheduler.run()
    assert asked == [
        ("run", datetime(2026, 1, 3, 3, tzinfo=UTC)),
        ("run", datetime(2026, 1, 4, 3, tzinfo=UTC)),
        ("verification", SUNDAY),
    ]
