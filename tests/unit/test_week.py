"""A week of runs every minute, on a simulated clock: each is made once, and nothing grows."""

from __future__ import annotations

import gc
import os
import sys
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.events import Follow, Progress
from sidecar.report import Outcome, Reason, RunReport, VolumeReport
from sidecar.schedule import Schedule, parse
from sidecar.service.daemon import Scheduler
from sidecar.service.jobs_port import RunRequest
from sidecar.service.logs import EventLog
from sidecar.service.memory import Memory
from sidecar.service.runs import Runs
from tests.unit.fake_daemon_process import PATIENCE

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
A_DAY, A_WEEK = 1_440, 10_080
# Of 8,640 runs between the two looks, one that left a single object behind in every tenth would show.
BLOCKS, PAGES = 800, 2_048


class Week:
    """A wall clock that moves when the daemon waits, and jobs that note at which minute they were called.

    It stands still until the run that came due has ended, as a run of a second within a minute does.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.moment = MONDAY
        self.made = array("l", [0]) * A_WEEK
        self.submitted = self.ended = 0
        self.idle = threading.Condition()
        self.looks: dict[int, dict[str, int]] = {}

    # --- the clock ---

    def now(self) -> datetime:
        return self.moment

    def wait(self, seconds: float) -> bool:
        with self.idle:
            assert self.idle.wait_for(lambda: self.ended == self.submitted, PATIENCE)
        if self.ended in (A_DAY, A_WEEK) and self.ended not in self.looks:
            self.looks[self.ended] = self.look()
        self.moment += timedelta(seconds=seconds, microseconds=137)
        return self.ended == A_WEEK

    # --- the jobs ---

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        follow(Progress("copying", "shop_data", 10, 100))
        minute = (self.moment - MONDAY) // MINUTE
        self.made[minute - 1] += 1
        reasons: tuple[Reason, ...] = ()
        if minute % 7 == 1:  # not the last of a day that is looked at, so that what is remembered then has one size
            reasons = (Reason("file_changed", f"a file changed at {self.moment}", "freeze it"),)
        outcome = Outcome.PARTIAL if reasons else Outcome.GOOD
        name = f"backup-{self.moment:%Y%m%d_%H%M%S}"
        volumes = (VolumeReport("shop_data", outcome, files=3, bytes_read=1_000),)
        facts: dict[str, Any] = {"paused_ms": 1.0, "off_host": True, "reasons": reasons, "volumes": volumes}
        return RunReport(f"{minute:012x}", name, outcome, self.moment, 5.0, **facts)

    def recover(self) -> None:
        """Nothing is left by anyone."""

    # --- what may not grow ---

    def look(self) -> dict[str, int]:
        gc.collect()
        return {
            "blocks": sys.getallocatedblocks(),
            "pages": int(Path("/proc/self/statm").read_text().split()[1]),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "files": len(list(self.state.iterdir())),
            "bytes": sum(each.stat().st_size for each in self.state.iterdir()),
        }


class CountedRuns(Runs):
    """The real queue, of which the week knows how many runs it was asked for and how many have ended."""

    def __init__(self, week: Week, *arguments: Any, **options: Any) -> None:
        super().__init__(week, *arguments, **options)  # type: ignore[arg-type]
        self._week = week

    def submit(self, request: RunRequest, **options: Any) -> Any:
        self._week.submitted += 1
        ticket = super().submit(request, **options)
        ticket.result.add_done_callback(self._ended)
        return ticket

    def _ended(self, _: object) -> None:
        with self._week.idle:
            self._week.ended += 1
            self._week.idle.notify_all()


@contextmanager
def daemon(week: Week, schedule: Schedule) -> Iterator[Scheduler]:
    """What `serve` puts together, over a clock and jobs that are the week's."""
    with open(os.devnull, "wb") as nowhere:
        log = EventLog(nowhere.fileno())
        memory = Memory(str(week.state / "daemon.json"), log)
        runs = CountedRuns(
            week, log, now=week.now, schedule=schedule, remembered=memory.recall(), keep=memory.keep, clean=log.clean
        )
        runs.recover()
        scheduler = Scheduler(schedule, runs, now=week.now, wait=week.wait)
        runs.start()
        runs.catch_up()
        try:
            yield scheduler
        finally:
            runs.interrupt()
            assert runs.wait_idle(PATIENCE)
            assert log.close(PATIENCE)


def test_in_a_week_of_runs_every_minute_each_is_made_once_and_nothing_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 60,000 waits for the disk are of no interest here.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    week = Week(tmp_path)

    with daemon(week, parse("* * * * *", UTC)) as scheduler:
        scheduler.run()

    assert list(week.made) == [1] * A_WEEK
    assert week.submitted == A_WEEK
    first, last = week.looks[A_DAY], week.looks[A_WEEK]
    grown = {what: last[what] - first[what] for what in first}
    assert grown["blocks"] < BLOCKS, grown
    assert grown["pages"] < PAGES, grown
    assert (grown["descriptors"], grown["threads"], grown["files"]) == (0, 0, 0), grown
    assert abs(grown["bytes"]) < 10, grown
