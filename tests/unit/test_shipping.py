"""The daemon ships what a store missed: when it has nothing else to do, across restarts, and until it has arrived."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import Interrupted, NotFound, StoreUnreachable
from sidecar.events import EVENTS, Follow, Progress
from sidecar.report import Outcome, Reason, RunReport, StoreReport
from sidecar.service.jobs_port import RunRequest, Shipped
from sidecar.service.memory import Memory
from sidecar.service.runs import Runs
from tests.unit.fake_daemon_process import PATIENCE, eventually

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SET = "backup-20260102_120000"
AWAY = "store s3: no connection"
MISSED = RunReport(
    "r1",
    SET,
    Outcome.PARTIAL,
    NOON,
    5.0,
    paused_ms=1.0,
    off_host=False,
    reasons=(Reason("store_failed", AWAY, "is it up?", None, "s3"),),
    stores={"local": StoreReport(Outcome.GOOD), "s3": StoreReport(Outcome.FAILED, pending=True, error="no connection")},
)
GOOD = RunReport("r2", "backup-20260102_130000", Outcome.GOOD, NOON, 5.0, paused_ms=1.0, off_host=True)


class World:
    """A daemon's queue over a state volume, with a clock that a test sets, and a store that is away until it is not."""

    def __init__(self, directory: Path) -> None:
        self.memory = str(directory / "daemon.json")
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.time = NOON
        self.reports = [MISSED]
        self.shipments: list[tuple[str, str]] = []
        self.outcome: Callable[[threading.Event], Shipped] = self.away
        self.gone: dict[str, str] = {}
        self.stores = ("s3", "local")
        self.runs = self.start()

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        assert name in EVENTS
        self.events.append((name, fields))

    def start(self) -> Runs:
        memory = Memory(self.memory, self.emit)
        runs = Runs(
            self,  # type: ignore[arg-type]
            self.emit,
            now=lambda: self.time,
            stores=self.stores,
            remembered=memory.recall(),
            keep=memory.keep,
            look_every=0.005,
            clean=lambda text: text.upper(),
        )
        runs.recover()
        runs.start()
        return runs

    def restart(self) -> None:
        self.runs.interrupt()
        assert self.runs.wait_idle(PATIENCE)
        self.runs = self.start()

    # --- jobs ---

    def recover(self) -> None:
        pass

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        return self.reports.pop(0)

    def lost(self, set_names: Sequence[str]) -> dict[str, str]:
        return {each: self.gone[each] for each in set_names if each in self.gone}

    def ship(self, set_name: str, store: str, follow: Follow, cancelled: threading.Event) -> Shipped:
        self.shipments.append((set_name, store))
        follow(Progress("shipping", "db.tar.gz", 10, 100))
        return self.outcome(cancelled)

    # --- what ship may come to ---

    def away(self, _: threading.Event) -> Shipped:
        raise StoreUnreachable("no connection", hint="is it up?", store="s3")

    def back(self, _: threading.Event) -> Shipped:
        return Shipped(100, off_host=True)

    def long(self, cancelled: threading.Event) -> Shipped:
        assert cancelled.wait(PATIENCE)
        raise Interrupted("the shipment was told to stop")

    # --- what a test does and sees ---

    def run(self, *volumes: str) -> RunReport:
        return self.runs.submit(RunRequest(volumes)).result.result(PATIENCE)

    def minutes_pass(self, minutes: float) -> None:
        """The daemon looks at the clock often enough."""
        self.time += timedelta(minutes=minutes)

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]

    def pending(self) -> list[dict[str, Any]]:
        return list(self.runs.status()["pending"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.runs.interrupt()
    assert world.runs.wait_idle(PATIENCE)


def test_what_a_store_missed_is_pending_and_shipped_when_the_store_is_back(world: World) -> None:
    world.run()
    assert world.pending() == [
        {"set": SET, "store": "s3", "since": "2026-01-02T12:00:00Z", "attempts": 0, "error": "no connection"}
    ]
    assert world.runs.status()["why"] == f"the last run was partial: {AWAY}"
    world.minutes_pass(1)
    eventually(lambda: world.pending()[0]["attempts"] == 1, "it was tried")
    world.outcome = world.back
    world.minutes_pass(2)
    eventually(lambda: not world.pending(), "it has arrived")
    assert world.runs.wait_idle(PATIENCE)

    status = world.runs.status()
    assert status["healthy"]
    assert (
        status["why"] == "the last run was good, at 2026-01-02T12:00:00Z; its set is in s3 since 2026-01-02T12:03:00Z"
    )
    assert (status["last_run"]["outcome"], status["last_run"]["off_host"]) == ("good", True)
    assert world.shipments == [(SET, "s3")] * 2
    (shipped,) = world.named("set_shipped")
    assert (shipped["set"], shipped["store"], shipped["attempts"], shipped["bytes_uploaded"]) == (SET, "s3", 2, 100)


def test_a_run_that_was_not_good_for_another_reason_too_stays_so(world: World) -> None:
    other = Reason("file_changed", "a file changed", "freeze it", "db")
    world.reports = [replace(MISSED, reasons=(*MISSED.reasons, other))]
    world.outcome = world.back
    world.run()
    world.minutes_pass(1)
    eventually(lambda: world.named("set_shipped"), "it has arrived")
    assert world.runs.wait_idle(PATIENCE)
    assert world.runs.status()["why"] == "the last run was partial: a file changed"


def test_a_daemon_that_is_made_anew_ships_what_the_one_before_was_owed(world: World) -> None:
    world.run()
    world.minutes_pass(1)
    eventually(lambda: world.pending()[0]["attempts"] == 1, "it was tried")
    assert world.runs.wait_idle(PATIENCE)
    before = world.pending()
    world.outcome = world.long
    world.restart()
    assert world.pending() == before
    world.outcome = world.back
    world.restart()
    eventually(lambda: world.named("set_shipped"), "it has arrived")
    assert world.runs.wait_idle(PATIENCE)
    world.restart()
    assert world.pending() == []
    assert world.runs.status()["healthy"]


def test_a_run_that_is_asked_for_does_not_wait_for_a_shipment_which_goes_on_later(world: World) -> None:
    world.run()
    world.outcome = world.long
    world.minutes_pass(1)
    eventually(lambda: world.runs.status()["state"] == "shipping", "it is under way")
    assert world.runs.status()["running"]["phase"] == "shipping"

    world.reports, world.outcome = [GOOD], world.back
    ticket = world.runs.submit(RunRequest(), no_wait=True)  # not refused either
    assert ticket.result.result(PATIENCE) == GOOD
    eventually(lambda: world.named("set_shipped"), "it went on")
    assert [name for name, _ in world.events if name == "store_failed"] == []
    assert world.named("set_shipped")[0]["attempts"] == 1


def test_a_daemon_that_is_told_to_stop_ends_a_shipment_and_is_in_the_middle_of_no_run(world: World) -> None:
    world.run()
    world.outcome = world.long
    world.minutes_pass(1)
    eventually(lambda: world.runs.status()["state"] == "shipping", "it is under way")
    with pytest.raises(NotFound):
        world.runs.cancel()
    assert world.runs.interrupt() is None
    assert world.runs.wait_idle(PATIENCE)
    assert world.pending()[0]["attempts"] == 0


def test_a_store_that_stays_away_is_said_once_and_not_at_every_attempt(world: World) -> None:
    world.run()
    for attempts in range(1, 5):
        world.minutes_pass(14)
        eventually(lambda n=attempts: world.pending()[0]["attempts"] >= n, "it was tried")  # type: ignore[misc]
    (said,) = world.named("store_failed")
    assert said["error"] == f"set {SET} was not shipped to s3: no connection"
    assert said["store"] == "s3"


def test_a_set_that_its_store_has_no_more_is_given_up_and_that_is_said(world: World) -> None:
    def gone(_: threading.Event) -> Shipped:
        raise NotFound(f"set {SET} is in /data/backups no more")

    world.outcome = gone
    world.run()
    world.minutes_pass(1)
    eventually(lambda: not world.pending(), "it is given up")
    (dropped,) = world.named("shipment_dropped")
    assert (dropped["set"], dropped["store"]) == (SET, "s3")
    assert f"will never be in s3: set {SET} is in /data/backups no more" in dropped["error"]
    assert not world.runs.status()["healthy"]  # it never was off this host


def test_sets_that_are_pruned_while_a_store_is_away_do_not_pile_up(world: World) -> None:
    world.run()
    world.reports = [replace(MISSED, set="backup-20260102_123000")]
    world.run()
    world.gone = {SET: "it is in /data/backups no more"}
    world.minutes_pass(1)
    eventually(lambda: len(world.pending()) == 1 and world.pending()[0]["attempts"], "the other was tried")
    assert [each["error"] for each in world.named("shipment_dropped")] == [
        f"set {SET} will never be in s3: it is in /data/backups no more"
    ]
    assert world.shipments == [("backup-20260102_123000", "s3")]
    world.gone = {"backup-20260102_123000": "it is in /data/backups no more"}
    world.minutes_pass(15)
    eventually(lambda: not world.pending(), "it is given up")
    assert len(world.shipments) == 1
    assert world.runs.wait_idle(PATIENCE)
    world.restart()
    assert world.pending() == []


def test_a_store_that_is_not_configured_any_more_is_owed_nothing_and_that_is_said(world: World) -> None:
    world.run()
    assert world.runs.wait_idle(PATIENCE)
    world.stores = ("local",)
    world.restart()
    assert world.pending() == []
    assert [(each["set"], each["store"]) for each in world.named("shipment_dropped")] == [(SET, "s3")]


def test_a_fault_that_nobody_expected_is_said_with_its_trace_and_the_daemon_goes_on(world: World) -> None:
    def crash(_: threading.Event) -> Shipped:
        raise RuntimeError("not meant to be")

    world.outcome = crash
    world.run()
    world.minutes_pass(1)
    eventually(lambda: world.named("store_failed"), "it was said")
    (said,) = world.named("store_failed")
    assert "NOT MEANT TO BE" in said["error"]
    assert "RuntimeError" in said["trace"]
    world.reports = [GOOD]
    assert world.run() == GOOD


def test_a_state_volume_of_an_older_version_is_owed_nothing(world: World) -> None:
    world.run()
    assert world.runs.wait_idle(PATIENCE)
    path = Path(world.memory)
    older = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "pending"}
    path.write_text(json.dumps(older))
    recalled = Memory(world.memory, world.emit).recall()
    assert recalled.pending == ()
    assert recalled.last_run
    assert recalled.last_run["set"] == SET
