"""One run at a time: who asked, who waits, what became of it."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sidecar.errors import Busy, ConfigInvalid, Interrupted, MountMissing, NotFound, SidecarError
from sidecar.events import Emit, Progress
from sidecar.report import Outcome, Reason, RunReport, rfc3339
from sidecar.service.jobs_port import Jobs, RunRequest

# The request itself was wrong: whoever asked gets the error, and no run took place.
_REFUSED = (NotFound, Busy, ConfigInvalid)
_LOOK_AT_LOG = "the log of the container `backup` has the details"


@dataclass(eq=False)
class Ticket:
    """A run that was asked for, as its followers see it.

    progress: the newest there is. notices: sentences for whoever follows, in order. result: the report, or the error
    when no run took place.
    """

    request: RunRequest
    asked: datetime
    started: datetime | None = None
    progress: Progress | None = None
    notices: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    result: Future[RunReport] = field(default_factory=Future)

    def follow(self, progress: Progress, /) -> None:
        """Take note of the run's progress; followers look at it in their own time."""
        self.progress = progress

    def as_json(self) -> dict[str, Any]:
        """Who is waited for, and since when."""
        return {
            "trigger": self.request.trigger,
            "volumes": list(self.request.volumes),
            "since": rfc3339(self.started or self.asked),
        }


class Runs:
    """The queue of runs and the thread that makes them.

    now: aware time. recover_every: seconds between attempts to recover. clean: takes secrets out of the text of an
    exception that nobody expected, because that goes into the report too.
    """

    def __init__(
        self,
        jobs: Jobs,
        emit: Emit,
        *,
        now: Callable[[], datetime],
        recover_every: float = 15.0,
        clean: Callable[[str], str] = str,
    ) -> None:
        self._jobs = jobs
        self._emit = emit
        self._now = now
        self._recover_every = recover_every
        self._clean = clean
        self._recovered = False
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._stopping = False
        self._last: tuple[RunReport, RunRequest] | None = None
        self._last_good: dict[str, datetime] = {}

    # --- asking ------------------------------------------------------------------------------------------------------

    def submit(self, request: RunRequest, *, no_wait: bool = False) -> Ticket:
        """Ask for a run; it starts when those before it have ended.

        Raises Busy when it would have to wait and must not, Interrupted when the daemon is stopping.
        """
        with self._changed:
            if self._stopping:
                raise _stopped()
            before = self._waiting[-1] if self._waiting else self._running
            if before and no_wait:
                raise Busy(
                    f"a run ({before.request.trigger}) has been going on since {before.as_json()['since']}",
                    hint="leave out --no-wait to run after it",
                )
            ticket = Ticket(request, asked=self._now())
            self._waiting.append(ticket)
            self._changed.notify_all()
            return ticket

    def submit_scheduled(self) -> Ticket | None:
        """Ask for a scheduled run, unless the one before has not even begun."""
        with self._changed:
            waiting = next((each for each in self._waiting if each.request.trigger == "schedule"), None)
        if waiting:
            self._emit(
                "run_skipped",
                error=f"the scheduled run of {rfc3339(waiting.asked)} still waits for its turn",
                hint="runs take longer than BACKUP_SCHEDULE leaves between them",
            )
            return None
        return self.submit(RunRequest(trigger="schedule"))

    def ahead_of(self, ticket: Ticket) -> Ticket | None:
        """Whom a ticket waits for; None once its own run has begun."""
        with self._changed:
            if ticket not in self._waiting:
                return None
            position = self._waiting.index(ticket)
            return self._waiting[position - 1] if position else self._running

    def notice(self, event: str, fields: Mapping[str, Any]) -> None:
        """Tell the followers of the running run of an event that explains why it stands still."""
        running = self._running
        if running and event == "store_retry":
            running.notices.append(
                " - ".join(str(fields[key]) for key in ("error", "hint") if fields.get(key)) or event
            )

    def status(self) -> dict[str, Any]:
        """The part of `status --json` that is known here."""
        with self._changed:
            running, last = self._running, self._last
            state = "stopping" if self._stopping else "running" if running else "idle"
            progress = (running.progress if running else None) or Progress("planning")
            why = self._why_unhealthy()
            return {
                "state": state,
                "healthy": why is None,
                "why": why or ("the last run was good" if last else "no run has ended since the daemon started"),
                "last_run": _short(*last) if last else None,
                "last_good": {volume: rfc3339(moment) for volume, moment in sorted(self._last_good.items())},
                "running": None
                if running is None
                else {
                    "phase": progress.phase,
                    "volume": progress.volume,
                    "done_bytes": progress.done_bytes,
                    "total_bytes": progress.total_bytes,
                    **running.as_json(),
                },
                "waiting": [each.as_json() for each in self._waiting],
            }

    def _why_unhealthy(self) -> str | None:
        if not self._recovered:
            return "what an earlier run left is not put right yet"
        if self._last and (report := self._last[0]).outcome is not Outcome.GOOD:
            reasons = "; ".join(dict.fromkeys(reason.message for reason in report.reasons))
            return f"the last run was {report.outcome}" + (f": {reasons}" if reasons else "")
        return None

    # --- running -----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Put right what a killed run left. Where that fails for now, it is tried again later and before every run.

        Raises ConfigInvalid and MountMissing, which time does not mend.
        """
        try:
            self._recover()
        except (ConfigInvalid, MountMissing):
            raise
        except SidecarError as exc:
            self._emit("recover_failed", code=exc.code, error=exc.message, hint=exc.hint)
        except Exception as exc:  # noqa: BLE001 - a daemon that does not start would not thaw anything either
            self._emit("recover_failed", code="internal_error", error=repr(exc), trace=traceback.format_exc())

    def start(self) -> None:
        """Begin to serve the queue, in a thread of its own."""
        threading.Thread(target=self._work, name="run", daemon=True).start()

    def interrupt(self) -> Ticket | None:
        """Take no more requests, refuse those that wait, tell the run to end; give it, if there is one."""
        with self._changed:
            self._stopping = True
            while self._waiting:
                self._waiting.popleft().result.set_exception(_stopped())
            if self._running:
                self._running.cancelled.set()
            self._changed.notify_all()
            return self._running

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no run goes on, for at most `timeout` seconds; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, timeout)

    def _recover(self) -> None:
        if not self._recovered:
            self._jobs.recover()
            self._recovered = True

    def _work(self) -> None:
        while ticket := self._next():
            try:
                ticket.result.set_result(self._run(ticket))
            except SidecarError as exc:
                ticket.result.set_exception(exc)
            finally:
                with self._changed:
                    self._running = None
                    self._changed.notify_all()

    def _next(self) -> Ticket | None:
        """The next run's ticket, once there is one; None when the daemon stops."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._stopping, None if self._recovered else self._recover_every
                )
                if self._stopping:
                    return None
                if self._waiting:
                    self._running = self._waiting.popleft()
                    self._running.started = self._now()
                    return self._running
            self._recover_again()

    def _recover_again(self) -> None:
        try:
            self.recover()
        except SidecarError as exc:
            self._emit("recover_failed", code=exc.code, error=exc.message, hint=exc.hint)

    def _run(self, ticket: Ticket) -> RunReport:
        started = ticket.started or ticket.asked
        try:
            self._recover()
            report = self._jobs.backup(ticket.request, ticket.follow, ticket.cancelled)
        except _REFUSED as exc:
            self._emit("run_failed", trigger=ticket.request.trigger, code=exc.code, error=exc.message, hint=exc.hint)
            raise
        except SidecarError as exc:
            report = self._failed(ticket, started, Reason.of(exc))
        except BaseException as exc:  # noqa: BLE001 - a run that fails never stops the daemon, whatever it raises
            words = self._clean(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
            reason = Reason("internal_error", f"the run failed unexpectedly: {words}", _LOOK_AT_LOG)
            report = self._failed(ticket, started, reason, trace=traceback.format_exc())
        with self._changed:
            self._last = (report, ticket.request)
            good = [each.volume for each in report.volumes if each.outcome is Outcome.GOOD and report.set]
            self._last_good |= dict.fromkeys(good, report.started)
        return report

    def _failed(self, ticket: Ticket, started: datetime, reason: Reason, **fields: Any) -> RunReport:
        """The report of a run that ended in an error, which is logged."""
        interrupted = reason.code == Interrupted.code
        outcome = Outcome.INTERRUPTED if interrupted else Outcome.FAILED
        duration_ms = (self._now() - started).total_seconds() * 1000
        self._emit(
            "run_failed",
            trigger=ticket.request.trigger,
            outcome=outcome.value,
            code=reason.code,
            error=reason.message,
            hint=reason.hint,
            volume=reason.volume,
            store=reason.store,
            duration_ms=round(duration_ms, 1),
            **fields,
        )
        return RunReport("", None, outcome, started, duration_ms, paused_ms=0.0, off_host=False, reasons=(reason,))


def _stopped() -> Interrupted:
    return Interrupted("the daemon was told to stop", hint="run it again once the container runs")


def _short(report: RunReport, request: RunRequest) -> dict[str, Any]:
    document = report.as_json()
    kept = ("run", "set", "outcome", "started", "duration_ms", "paused_ms", "off_host", "reasons")
    return {key: document[key] for key in kept} | {"trigger": request.trigger}
