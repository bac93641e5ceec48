"""The daemon: settings, recovery, schedule and control API, until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sidecar import config
from sidecar.config import Settings
from sidecar.errors import Busy, ConfigInvalid, MountMissing, SidecarError
from sidecar.events import Emit
from sidecar.report import Outcome, rfc3339
from sidecar.schedule import Schedule
from sidecar.service import CONTROL_SOCKET, GUARD_MEMORY, MEMORY, alone
from sidecar.service.api import ControlApi, ControlSocket, Door, Server
from sidecar.service.guardian import Guardian
from sidecar.service.jobs_port import Jobs
from sidecar.service.logs import EventLog, claim_stdout, install
from sidecar.service.memory import Memory
from sidecar.service.runs import Runs, Ticket

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Docker kills 10 s after SIGTERM. The run gets most of it; the rest is for its followers' last lines and the log.
RUN_MAY_TAKE, _ANSWERS_MAY_TAKE, _LOG_MAY_TAKE = 7.0, 1.0, 0.5

# The wall clock may be set, and a machine may sleep: look at it at least this often.
_LOOK_EVERY = 30.0
_LITTLE = timedelta(hours=1)

_TRY_AGAIN_EVERY = 15.0


class Timetable:
    """When one schedule is due next; none where it is None. now: as it is made, aware.

    fire: called with each time that has come due. expect: told of the next one, whenever that changes.
    """

    def __init__(
        self,
        schedule: Schedule | None,
        now: datetime,
        *,
        fire: Callable[[datetime], object],
        expect: Callable[[datetime | None], None],
    ) -> None:
        self._schedule = schedule
        self._fire = fire
        self._expect = expect
        self._fired: datetime | None = None
        self._seen = now
        self.next = schedule.next_after(now) if schedule else None
        expect(self.next)

    def look(self, moment: datetime) -> None:
        """Fire what is due at this moment."""
        if self._schedule is None or self.next is None:
            return
        before, self._seen = self._seen, moment
        due = moment >= self.next
        if due:
            self._fired = moment
            self._fire(self.next)
        # A clock that was years ahead and is set right must not leave us waiting for that year; but one that is set
        # back a little must not make the same run twice.
        if due or moment < before:
            just_fired = self._fired is not None and self._fired - _LITTLE < moment < self._fired
            self.next = self._schedule.next_after(self._fired if self._fired and just_fired else moment)
            self._expect(self.next)


class Scheduler:
    """Starts scheduled runs, verifications and drills.

    now: the wall clock, aware. wait: so many seconds; true to stop.
    """

    def __init__(
        self,
        schedule: Schedule | None,
        runs: Runs,
        *,
        now: Callable[[], datetime],
        wait: Callable[[float], bool],
        verify: Schedule | None = None,
        drill: Schedule | None = None,
    ) -> None:
        self._now = now
        self._wait = wait
        self._runs = Timetable(schedule, now(), fire=runs.submit_scheduled, expect=runs.expect)
        self._verifications = Timetable(verify, now(), fire=runs.verify_when_idle, expect=runs.expect_verification)
        self._drills = Timetable(drill, now(), fire=runs.drill_when_idle, expect=runs.expect_drill)

    @property
    def next_run(self) -> datetime | None:
        """When the next scheduled run is due."""
        return self._runs.next

    @property
    def next_verify(self) -> datetime | None:
        """When the next scheduled verification is due."""
        return self._verifications.next

    @property
    def next_drill(self) -> datetime | None:
        """When the next scheduled drill is due."""
        return self._drills.next

    def run(self) -> None:
        """Until told to stop."""
        while not self._wait(self._seconds()):
            self._look()

    def _seconds(self) -> float:
        left = [
            (due - self._now()).total_seconds() for due in (self.next_run, self.next_verify, self.next_drill) if due
        ]
        return min(max(min(left, default=_LOOK_EVERY), 0.0), _LOOK_EVERY)

    def _look(self) -> None:
        # Runs first: the others would only have to give way.
        for timetable in (self._runs, self._verifications, self._drills):
            timetable.look(self._now())


def serve(
    environ: Mapping[str, str],
    build_jobs: Callable[[Settings, Emit], Jobs],
    *,
    socket_path: str = CONTROL_SOCKET,
    memory_path: str = MEMORY,
    run_may_take: float = RUN_MAY_TAKE,
    try_again_every: float = _TRY_AGAIN_EVERY,
) -> str:
    """Be the daemon of this process until it is told to stop; how that went.

    `good`: stopped while idle. `interrupted`: stopped in the middle of a run. `config_invalid`, `mount_missing`: it
    could not begin. `busy`: another daemon runs here, on the same state volume, or writes to the same place. `failed`:
    something that nobody expected. The caller leaves by os._exit, because threads may still be busy; the log is written
    by then.

    memory_path: where it remembers across restarts. run_may_take: the seconds that a run has to end in when the daemon
    is told to stop. try_again_every: seconds between attempts to reach what it cannot begin without.
    """
    # Blocked before the first thread is made, so that every thread inherits it: a stop is taken by our own wait, at a
    # point of our choosing, and not by an exception in the middle of a line.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    log = EventLog(claim_stdout())
    install(log)
    try:
        outcome = _serve(environ, build_jobs, socket_path, memory_path, run_may_take, try_again_every, log)
    except (ConfigInvalid, MountMissing) as exc:
        problems = exc.problems if isinstance(exc, ConfigInvalid) else [exc.message]
        log("config_invalid", code=exc.code, error=exc.message, problems=problems, hint=exc.hint)
        outcome = exc.code
    except Busy as exc:
        log("daemon_stopped", level=logging.ERROR, mid_run=False, error=exc.message, hint=exc.hint)
        outcome = exc.code
    except BaseException as exc:  # noqa: BLE001 - the log is the only place where it can be said
        log.crashed(exc, where="daemon")
        outcome = "failed"
    log.close(_LOG_MAY_TAKE)
    return outcome


def _serve(
    environ: Mapping[str, str],
    build_jobs: Callable[[Settings, Emit], Jobs],
    socket_path: str,
    memory_path: str,
    run_may_take: float,
    try_again_every: float,
    log: EventLog,
) -> str:
    settings = config.load(environ, _read_text)
    log.configure(level=settings.log_level, secrets=settings.secrets())
    # First of all, because whoever recovers while another daemon runs would thaw what that one has just frozen.
    control = ControlSocket(socket_path)

    def crashed(error: BaseException, where: str) -> None:
        log.crashed(error, where=where)

    door = Door()
    server = Server(door, control.listen(), crashed=crashed)
    server.start()  # from now on whoever asks is told what we wait for
    jobs = _when_ready(lambda: build_jobs(settings, log), log, door, try_again_every)
    if jobs is None:
        return "good"
    # Open for as long as we live. Not sooner: that the volume is mounted is known now.
    _held = alone.hold(os.path.dirname(memory_path), socket.gethostname(), _now(), log)
    memory = Memory(memory_path, log)
    runs = Runs(
        jobs,
        log,
        now=_now,
        schedule=settings.schedule,
        verify_schedule=settings.verify_schedule,
        drill_schedule=settings.drill_schedule,
        stores=settings.stores,
        remembered=memory.recall(),
        keep=memory.keep,
        clean=log.clean,
    )
    log.listen = runs.notice
    guardian = Guardian(
        jobs, log, on=settings.guard, path=Path(memory_path).with_name(GUARD_MEMORY), now=_now, clock=time.monotonic
    )
    scheduler = Scheduler(
        settings.schedule,
        runs,
        now=_now,
        wait=_stop_within,
        verify=settings.verify_schedule,
        drill=settings.drill_schedule,
    )

    def facts() -> dict[str, Any]:
        return {
            "schedule": settings.schedule.expression if settings.schedule else None,
            "next_run": rfc3339(scheduler.next_run) if scheduler.next_run else None,
            "next_verify": rfc3339(scheduler.next_verify) if scheduler.next_verify else None,
            "next_drill": rfc3339(scheduler.next_drill) if scheduler.next_drill else None,
        }

    door.app = ControlApi(runs, jobs, guardian, facts=facts, warnings=settings.warnings, crashed=crashed).app()
    runs.recover()  # a store that does not answer holds it up for a minute, in which `status` answers
    runs.start()
    guardian.start()
    log("daemon_started", stores=settings.stores, timezone=str(settings.timezone), **facts())
    for warning in settings.warnings:
        log("config_warning", error=warning)
    runs.catch_up()
    try:
        scheduler.run()
    finally:
        outcome = _stop(runs, server, run_may_take, log)
    return outcome


def _when_ready(build: Callable[[], Jobs], emit: Emit, door: Door, try_again_every: float) -> Jobs | None:
    """The jobs, as soon as what they need (an engine that restarts, too) is there; None when told to stop before.

    Until then the door says what is awaited.

    Raises ConfigInvalid and MountMissing, which time does not mend.
    """
    while True:
        try:
            return build()
        except (ConfigInvalid, MountMissing):
            raise
        except SidecarError as exc:
            emit("start_delayed", code=exc.code, error=exc.message, hint=exc.hint)
            door.why = exc
        if _stop_within(try_again_every):
            return None


def _stop(runs: Runs, server: Server, run_may_take: float, log: EventLog) -> str:
    """End the run, if there is one, and tell its followers; `good` or `interrupted`."""
    begun = time.monotonic()
    interrupted = runs.interrupt()
    ended = runs.wait_idle(run_may_take)
    server.stop(_ANSWERS_MAY_TAKE)
    mid_run = interrupted is not None and not (ended and _came_through(interrupted))
    duration_ms = round((time.monotonic() - begun) * 1000, 1)
    # A shipment that hangs in a request is left to itself: without its manifest nothing of it counts.
    if ended or interrupted is None:
        log("daemon_stopped", mid_run=mid_run, duration_ms=duration_ms)
    else:
        log(
            "daemon_stopped",
            level=logging.ERROR,
            mid_run=True,
            duration_ms=duration_ms,
            error=f"the run did not end within {run_may_take:.0f} s",
            hint="what it froze is thawed when the container starts again; until then: docker unpause NAME",
        )
    return "interrupted" if mid_run else "good"


def _came_through(ticket: Ticket) -> bool:
    """Whether a run that was told to end had got to its end anyway."""
    return ticket.result.exception() is None and ticket.result.result().outcome is not Outcome.INTERRUPTED


def _now() -> datetime:
    return datetime.now(UTC)


def _stop_within(seconds: float) -> bool:
    return signal.sigtimedwait(STOP_SIGNALS, seconds) is not None


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
