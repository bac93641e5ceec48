"""One job at a time, a run, a restore, a verification or a drill: who asked, who waits, what became of it."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from sidecar.errors import Busy, ConfigInvalid, Interrupted, MountMissing, NotFound, SidecarError, ThawFailed
from sidecar.events import Emit, Progress
from sidecar.report import DrillReport, Outcome, Reason, RestoreReport, RunReport, VerifyReport, rfc3339
from sidecar.schedule import Schedule
from sidecar.service.heap import give_back
from sidecar.service.jobs_port import (
    DrillRequest,
    Jobs,
    Report,
    Request,
    RestoreRequest,
    RunRequest,
    Shipped,
    ShipRequest,
    VerifyRequest,
)
from sidecar.service.leisure import Leisure
from sidecar.service.memory import Remembered
from sidecar.service.shipments import Shipment, Shipments

# The request itself was wrong: whoever asked gets the error, and no run took place.
_REFUSED = (NotFound, Busy, ConfigInvalid)
_LOOK_AT_LOG = "the log of the container `backup` has the details"
Examined = TypeVar("Examined", VerifyReport, DrillReport)

# Volumes come and go for years; the last good backup of one that nobody has backed up for so long is in `list`.
_MOST_VOLUMES = 2_000


def _forget_nothing(_: Remembered) -> None:
    return


@dataclass(eq=False)
class Ticket:
    """A job that was asked for, as its followers see it.

    due: when a scheduled run was due. progress: the newest there is. notices: sentences for whoever follows, in order.
    result: the report, or the error when nothing took place.
    """

    request: Request
    asked: datetime
    due: datetime | None = None
    started: datetime | None = None
    progress: Progress | None = None
    notices: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    result: Future[Report] = field(default_factory=Future)

    @property
    def gives_way(self) -> bool:
        """Whether nobody waits for it: it ends for whatever is asked for, and is done later."""
        return isinstance(self.request, ShipRequest) or self.is_at_leisure

    @property
    def is_at_leisure(self) -> bool:
        """Whether it was the schedule that asked for a verification or a drill."""
        return isinstance(self.request, VerifyRequest | DrillRequest) and self.request.trigger == "schedule"

    def follow(self, progress: Progress, /) -> None:
        """Take note of the run's progress; followers look at it in their own time."""
        self.progress = progress

    def as_json(self) -> dict[str, Any]:
        """Who is waited for, and since when."""
        return {
            "activity": self.request.activity,
            "trigger": self.request.trigger,
            "volumes": list(self.request.volumes),
            "since": rfc3339(self.started or self.asked),
        }


class Runs:
    """The queue of jobs and the thread that does them, one after another. `starting`: until that thread begins.

    now: aware time. schedule: of the scheduled runs; verify_schedule, drill_schedule: of the others. stores: the names
    of those configured. remembered: of earlier processes; keep: remembers for later ones, and must not raise.
    recover_every: seconds between attempts to recover; look_every: between looks at the clock, which may be set, while
    a shipment is not due yet. clean: takes secrets out of the text of an exception that nobody expected, because that
    goes into the report too.
    """

    def __init__(
        self,
        jobs: Jobs,
        emit: Emit,
        *,
        now: Callable[[], datetime],
        schedule: Schedule | None = None,
        verify_schedule: Schedule | None = None,
        drill_schedule: Schedule | None = None,
        stores: Sequence[str] = (),
        remembered: Remembered | None = None,
        keep: Callable[[Remembered], None] = _forget_nothing,
        recover_every: float = 15.0,
        look_every: float = 60.0,
        clean: Callable[[str], str] = str,
    ) -> None:
        self._jobs = jobs
        self._emit = emit
        self._now = now
        self._recover_every = recover_every
        self._look_every = look_every
        self._clean = clean
        self._recovered = False
        self._not_recovered = ""  # why, where that is known
        self.starting = True
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._stopping = False
        self._schedule = schedule
        self._keep = keep
        self._writing = threading.Lock()  # taken before `_changed`: what is kept last is what was true last
        remembered = _as_found(remembered or Remembered())
        self._last = remembered.last_run
        self._last_whole = remembered.last_whole_run
        self._last_good = dict(remembered.last_good)
        self._under_way: dict[str, Any] | None = None
        self._missed = _if_due(remembered.due, now()) if schedule else None
        self._next_due: datetime | None = None
        self._last_verify = remembered.last_verify
        self._damaged = remembered.damaged  # the newest set, while it is known to be
        self._last_drill = remembered.last_drill
        self._drill_failed = remembered.drill_failed  # the newest set that was drilled, while it is known to fail
        self._verifications = Leisure(_if_due(remembered.verify_due, now()) if verify_schedule else None)
        self._drills = Leisure(_if_due(remembered.drill_due, now()) if drill_schedule else None)
        self._shipments = Shipments(remembered.pending)
        for shipment in self._shipments.drop_stores_but(stores):
            self._say_dropped(shipment, f"BACKUP_STORES does not name {shipment.store} any more")

    # --- asking ------------------------------------------------------------------------------------------------------

    def submit(self, request: Request, *, no_wait: bool = False, due: datetime | None = None) -> Ticket:
        """Ask for a job; it starts when those before it have ended. due: when it was, if it is a scheduled run.

        Raises Busy when it would have to wait and must not, Interrupted when the daemon is stopping.
        """
        with self._changed:
            if self._stopping:
                raise _stopped()
            before = self._waiting[-1] if self._waiting else self._running
            if self._running and self._running.gives_way:
                self._running.cancelled.set()
            if before and no_wait and not before.gives_way:
                what = f"a {before.request.activity} ({before.request.trigger})"
                raise Busy(
                    f"{what} has been going on since {before.as_json()['since']}",
                    hint="leave out --no-wait to run after it",
                )
            ticket = Ticket(request, asked=self._now(), due=due)
            self._waiting.append(ticket)
            self._changed.notify_all()
            return ticket

    def expect(self, due: datetime | None) -> None:
        """Take note of when the next scheduled run is due: if nobody is there then, it is made up for later."""
        with self._changed:
            self._next_due = due
        self._remember()

    def expect_verification(self, due: datetime | None) -> None:
        """Take note of when the next scheduled verification is due: one that is missed is made up for, as a run is."""
        with self._changed:
            self._verifications.next = due
        self._remember()

    def expect_drill(self, due: datetime | None) -> None:
        """Take note of when the next scheduled drill is due: one that is missed is made up for, as a run is."""
        with self._changed:
            self._drills.next = due
        self._remember()

    def verify_when_idle(self, due: datetime) -> None:
        """Verify the newest set as soon as nothing else is to be done; whatever is asked for meanwhile comes first."""
        self._at_leisure(self._verifications, due)

    def drill_when_idle(self, due: datetime) -> None:
        """Drill the newest set, in the same way."""
        self._at_leisure(self._drills, due)

    def _at_leisure(self, jobs: Leisure, due: datetime) -> None:
        with self._changed:
            jobs.owed = jobs.owed or due
            self._changed.notify_all()

    def catch_up(self) -> Ticket | None:
        """Ask for one run in place of all scheduled ones that were missed while no daemon ran, if there were any."""
        with self._changed:
            # Forgotten before it begins: a run that kills the daemon must not be made again at every start.
            missed, self._missed = self._missed, None
        if missed is None:
            return None
        self._emit(
            "run_caught_up",
            due=rfc3339(missed),
            error=f"the scheduled run of {rfc3339(missed)} was missed, because the daemon was not running",
            hint="nothing to do: it is made up for now",
        )
        return self.submit_scheduled(missed)

    def submit_scheduled(self, due: datetime) -> Ticket | None:
        """Ask for the scheduled run that is due, unless the one before has not even begun."""
        with self._changed:
            waiting = next((each for each in self._waiting if each.request.trigger == "schedule"), None)
        if waiting:
            self._emit(
                "run_skipped",
                error=f"the scheduled run of {rfc3339(waiting.asked)} still waits for its turn",
                hint="runs take longer than BACKUP_SCHEDULE leaves between them",
            )
            return None
        return self.submit(RunRequest(trigger="schedule"), due=due)

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
            running = self._running
            state = "stopping" if self._stopping else running.request.state if running else "idle"
            state = "starting" if self.starting and state == "idle" else state
            progress = (running.progress if running else None) or Progress("planning")
            why = self._why_unhealthy()
            return {
                "state": state,
                "healthy": why is None,
                "why": why or self._why_healthy(),
                "last_run": self._last,
                "last_good": dict(sorted(self._last_good.items())),
                "last_verify": self._last_verify,
                "last_drill": self._last_drill,
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
                "pending": [each.as_json() for each in self._shipments.pending],
            }

    def _why_unhealthy(self) -> str | None:
        if not self._recovered:
            why = self._not_recovered or ("the daemon is still starting" if self.starting else "")
            return "what an earlier run left is not put right yet" + (f": {why}" if why else "")
        for which, last in (("the last run", self._last), ("the last run of all volumes", self._last_whole)):
            if last and last["outcome"] != Outcome.GOOD:
                reasons = "; ".join(dict.fromkeys(reason["message"] for reason in last["reasons"]))
                how = "failed" if last["outcome"] == Outcome.FAILED else f"was {last['outcome']}"
                return f"{which} {how}" + (f": {reasons}" if reasons else "")
        if self._damaged:
            return f"the newest set, {self._damaged['set']}, is damaged: {self._damaged['why']}"
        if self._drill_failed:
            what = f"set {self._drill_failed['set']} failed its drill: {self._drill_failed['why']}"
            return f"{what}; mend that, then `run-now`, and `drill` the newer set"
        owed = [each.due for each in (self._running, *self._waiting) if each and each.due]
        due = min([*owed, *filter(None, [self._missed, self._next_due])], default=None)
        if self._schedule and due and self._now() > self._schedule.overdue_after(due):
            return f"the scheduled run of {rfc3339(due)} is overdue"
        return None

    def _why_healthy(self) -> str:
        if self._last:
            later = "".join(
                f"; its set is in {store} since {at}" for store, at in self._last.get("shipped", {}).items()
            )
            return f"the last run was good, at {self._last['started']}{later}"
        first = f"; the first is due at {rfc3339(self._next_due)}" if self._next_due else ""
        return f"no run has ended yet{first}"

    def _remember(self) -> None:
        with self._writing:
            with self._changed:
                waiting = [each.due for each in self._waiting if each.due]
                remembered = Remembered(
                    last_run=self._last,
                    last_whole_run=self._last_whole,
                    last_good=dict(self._last_good),
                    running=self._under_way,
                    due=min([*waiting, *filter(None, [self._missed, self._next_due])], default=None),
                    pending=self._shipments.pending,
                    last_verify=self._last_verify,
                    damaged=self._damaged,
                    verify_due=self._verifications.due,
                    last_drill=self._last_drill,
                    drill_failed=self._drill_failed,
                    drill_due=self._drills.due,
                )
            self._keep(remembered)

    # --- running -----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Put right what a killed run left. Where that fails for now, it is tried again later and before every run.

        Raises ConfigInvalid and MountMissing, which time does not mend, and Busy when another sidecar has our place.
        """
        try:
            self._recover()
        except (ConfigInvalid, MountMissing, Busy):
            raise
        except SidecarError as exc:
            self._not_recovered = "; ".join(filter(None, [exc.message, exc.hint]))
            self._emit("recover_failed", code=exc.code, error=exc.message, hint=exc.hint)
        except Exception as exc:  # noqa: BLE001 - a daemon that does not start would not thaw anything either
            self._emit("recover_failed", code="internal_error", error=repr(exc), trace=traceback.format_exc())

    def start(self) -> None:
        """Begin to serve the queue, in a thread of its own."""
        self.starting = False
        threading.Thread(target=self._work, name="run", daemon=True).start()

    def cancel(self) -> tuple[Ticket, list[Ticket]]:
        """Tell the job that goes on to end; it, and those that still wait for their turn. Raises NotFound."""
        with self._changed:
            if self._running is None:
                raise NotFound("nothing is going on", hint="`status` shows how the last one ended")
            if isinstance(self._running.request, ShipRequest):
                raise NotFound("only a shipment is going on", hint="it gives way to whatever is asked for")
            if self._running.is_at_leisure:
                self._leisure(self._running.request).ended()  # it is not to begin anew
            self._running.cancelled.set()
            return self._running, list(self._waiting)

    def interrupt(self) -> Ticket | None:
        """Take no more requests, refuse those that wait, tell what goes on to end; give the run, if there is one."""
        with self._changed:
            self._stopping = True
            # A scheduled run that never had its turn is made up for by the next daemon.
            self._missed = min([each.due for each in self._waiting if each.due], default=self._missed)
            while self._waiting:
                self._waiting.popleft().result.set_exception(_stopped())
            if self._running:
                self._running.cancelled.set()
            self._changed.notify_all()
            return None if self._running and self._running.gives_way else self._running

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no run and no shipment goes on, for at most `timeout` seconds; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, timeout)

    def _recover(self) -> None:
        if not self._recovered:
            self._jobs.recover()
            self._recovered = True

    def _work(self) -> None:
        while ticket := self._next():
            tell = self._done(ticket)
            with self._changed:
                self._running = None
                self._changed.notify_all()
            give_back()
            tell()  # last: whoever hears of its end finds the daemon idle

    def _done(self, ticket: Ticket) -> Callable[[], None]:
        """Do what a ticket asks for; what tells its followers how it ended."""
        try:
            if isinstance(ticket.request, ShipRequest):
                self._ship(ticket, ticket.request.shipment)
                return lambda: None  # nobody follows it
            return partial(ticket.result.set_result, self._do(ticket, ticket.request))
        except SidecarError as exc:
            return partial(ticket.result.set_exception, exc)

    def _next(self) -> Ticket | None:
        """The next ticket: a run's, or a shipment's when no run waits; None when the daemon stops."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._stopping or (self._owed_at_leisure() and self._recovered),
                    self._patience(),
                )
                if self._stopping:
                    return None
                if self._waiting:
                    self._running = self._waiting.popleft()
                    self._running.started = self._now()
                    return self._running
                shipment = self._shipments.next(self._now()) if self._recovered else None
                if shipment:
                    self._running = Ticket(ShipRequest(shipment), asked=self._now())
                    return self._running
                if self._recovered and (owed := self._owed_at_leisure()):
                    self._running = Ticket(owed, asked=self._now())
                    return self._running
            if not self._recovered:
                self._recover_again()

    def _patience(self) -> float | None:
        """Seconds until there is something to do that nobody asks for."""
        if not self._recovered:
            return self._recover_every
        seconds = self._shipments.seconds(self._now())
        return None if seconds is None else min(seconds, self._look_every)

    def _recover_again(self) -> None:
        try:
            self.recover()
        except SidecarError as exc:
            self._emit("recover_failed", code=exc.code, error=exc.message, hint=exc.hint)

    def _leisure(self, request: Request) -> Leisure:
        return self._drills if isinstance(request, DrillRequest) else self._verifications

    def _owed_at_leisure(self) -> VerifyRequest | DrillRequest | None:
        """What a schedule has asked for; a verification first, which costs less, and finds what a drill would meet."""
        if self._verifications.owed:
            return VerifyRequest(trigger="schedule")
        return DrillRequest(trigger="schedule") if self._drills.owed else None

    def _do(self, ticket: Ticket, request: RunRequest | RestoreRequest | VerifyRequest | DrillRequest) -> Report:
        match request:
            case RestoreRequest():
                return self._restore(ticket, request)
            case VerifyRequest():
                report = self._examined(ticket, request, partial(self._jobs.verify, request))
                self._note_verified(report, request)
                return report
            case DrillRequest():
                drilled = self._examined(ticket, request, partial(self._jobs.drill, request))
                self._note_drilled(drilled, request)
                return drilled
        return self._run(ticket, request)

    def _examined(
        self, ticket: Ticket, request: VerifyRequest | DrillRequest, examine: Callable[..., Examined]
    ) -> Examined:
        """The report of a verification or a drill. Raises the reason why there is none, which is logged."""
        over, jobs = True, self._leisure(request)
        with self._changed:
            jobs.going_on = ticket.is_at_leisure
        self._remember()
        try:
            return examine(ticket.follow, ticket.cancelled)
        except Interrupted as exc:
            over = not (ticket.gives_way and jobs.owed)
            if over:
                self._not_examined(request, exc)
            raise
        except SidecarError as exc:
            self._not_examined(request, exc)
            raise
        except BaseException as exc:
            words = self._clean(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
            error = SidecarError(f"the {request.activity} failed unexpectedly: {words}", hint=_LOOK_AT_LOG)
            self._not_examined(request, error, trace=traceback.format_exc())
            raise error from exc
        finally:
            with self._changed:
                jobs.going_on = False
                if over and ticket.is_at_leisure:
                    jobs.ended()
            self._remember()

    def _note_verified(self, report: VerifyReport, request: VerifyRequest) -> None:
        why = "; ".join(dict.fromkeys([*report.damaged.values(), *(reason.message for reason in report.reasons)]))
        with self._changed:
            self._last_verify = self._known(request, report.set, report.outcome, why)
            if report.newest and report.damaged:
                self._damaged = {"set": report.set, "why": "; ".join(dict.fromkeys(report.damaged.values()))}
            elif report.newest and report.outcome is Outcome.GOOD:
                self._damaged = None
        self._remember()

    def _note_drilled(self, report: DrillReport, request: DrillRequest) -> None:
        why = "; ".join(dict.fromkeys(reason.message for reason in report.reasons))
        with self._changed:
            self._last_drill = self._known(request, report.set, report.outcome, why)
            if report.newest:
                self._drill_failed = {"set": report.set, "why": why} if report.outcome is Outcome.FAILED else None
        self._remember()

    def _known(
        self, request: VerifyRequest | DrillRequest, name: str | None, outcome: Outcome, why: str
    ) -> dict[str, Any]:
        """As `last_verify` and `last_drill` of `status --json`."""
        how = {"how": request.how} if isinstance(request, VerifyRequest) else {"volumes": list(request.volumes)}
        known = {"set": name, "time": rfc3339(self._now()), "outcome": outcome.value, "why": why}
        return known | how | {"trigger": request.trigger}

    def _not_examined(self, request: VerifyRequest | DrillRequest, error: SidecarError, **fields: Any) -> None:
        outcome = Outcome.INTERRUPTED if isinstance(error, Interrupted) else Outcome.FAILED
        if outcome is Outcome.FAILED and not isinstance(error, NotFound):
            name = None if request.set_name == "latest" else request.set_name
            known = self._known(request, name, outcome, error.message)
            with self._changed:
                if isinstance(request, DrillRequest):
                    self._last_drill = known
                else:
                    self._last_verify = known
        if isinstance(request, VerifyRequest):
            fields["how"] = request.how
        self._emit(
            "drill_finished" if isinstance(request, DrillRequest) else "verify_finished",
            level=logging.ERROR,
            set=request.set_name,
            outcome=outcome.value,
            code=error.code,
            error=error.message,
            hint=error.hint,
            **fields,
        )

    def _restore(self, ticket: Ticket, request: RestoreRequest) -> RestoreReport:
        """The report of a restore. Raises the reason why nothing was touched, which is logged."""
        try:
            self._recover()
            report = self._jobs.restore(request, ticket.follow, ticket.cancelled)
        except SidecarError as exc:
            self._recovered = self._recovered and not isinstance(exc, ThawFailed)
            error, trace = exc, {}
        except BaseException as exc:  # noqa: BLE001 - a restore that fails never stops the daemon, whatever it raises
            self._recovered = False  # the journal says what it had begun
            words = self._clean(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
            error = SidecarError(f"the restore failed unexpectedly: {words}", hint=_LOOK_AT_LOG)
            trace = {"trace": traceback.format_exc()}
        else:
            if any(reason.code == ThawFailed.code for reason in report.reasons):
                self._recovered = False  # the journal says whom; it is tried again until they run
            return report
        outcome = Outcome.INTERRUPTED if isinstance(error, Interrupted) else Outcome.FAILED
        self._emit(
            "restore_finished",
            level=logging.ERROR,
            set=request.set_name,
            volumes=list(request.volumes),
            outcome=outcome.value,
            code=error.code,
            error=error.message,
            hint=error.hint,
            **trace,
        )
        raise error

    def _run(self, ticket: Ticket, request: RunRequest) -> RunReport:
        with self._changed:
            self._under_way = ticket.as_json()
        self._remember()
        report: RunReport | None = None
        try:
            report = self._made(ticket, request)
        finally:
            with self._changed:
                self._under_way = None
                if report:
                    self._note(report, request)
            self._remember()  # before anybody is told: what a reader has seen is still true after a crash
        return report

    def _made(self, ticket: Ticket, request: RunRequest) -> RunReport:
        """The report of a run. Raises what `_REFUSED` names, when no run took place."""
        started = ticket.started or ticket.asked
        try:
            self._recover()
            return self._jobs.backup(request, ticket.follow, ticket.cancelled)
        except _REFUSED as exc:
            self._emit("run_failed", trigger=ticket.request.trigger, code=exc.code, error=exc.message, hint=exc.hint)
            raise
        except SidecarError as exc:
            return self._failed(ticket, started, Reason.of(exc))
        except BaseException as exc:  # noqa: BLE001 - a run that fails never stops the daemon, whatever it raises
            words = self._clean(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
            reason = Reason("internal_error", f"the run failed unexpectedly: {words}", _LOOK_AT_LOG)
            return self._failed(ticket, started, reason, trace=traceback.format_exc())

    def _note(self, report: RunReport, request: RunRequest) -> None:
        self._last = _short(report, request)
        if not request.volumes:
            self._last_whole = self._last
        if report.set:
            self._damaged = None  # there is a newer one
        self._shipments.ended(report, self._now())
        if any(reason.code == ThawFailed.code for reason in report.reasons):
            self._recovered = False  # the journal says whom; it is tried again until they run
        good = [each.volume for each in report.volumes if each.outcome is Outcome.GOOD and report.set]
        self._last_good |= dict.fromkeys(good, rfc3339(report.started))
        for volume in sorted(self._last_good, key=lambda each: self._last_good[each])[:-_MOST_VOLUMES]:
            del self._last_good[volume]

    def _ship(self, ticket: Ticket, shipment: Shipment) -> None:
        """Try a shipment; what became of it is noted, remembered, and said unless it has been."""
        try:
            if self._drop_lost(shipment):
                return
            shipped = self._jobs.ship(shipment.set, shipment.store, ticket.follow, ticket.cancelled)
        except Interrupted:
            return  # somebody asked for something: it is due again as soon as that is done
        except NotFound as exc:
            self._drop(shipment, exc.message)
        except SidecarError as exc:
            self._not_shipped(shipment, exc)
        except BaseException as exc:  # noqa: BLE001 - as in `_made`
            words = self._clean(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
            error = SidecarError(f"the shipment failed unexpectedly: {words}", hint=_LOOK_AT_LOG)
            self._not_shipped(shipment, error, trace=traceback.format_exc())
        else:
            self._arrived(ticket, shipment, shipped)
        self._remember()

    def _drop_lost(self, next_one: Shipment) -> bool:
        """Give up all that can never arrive, before any store is asked; whether the next one is among it."""
        pending = self._shipments.pending
        gone = self._jobs.lost([each.set for each in pending])
        for each in pending:
            if each.set in gone:
                self._drop(each, gone[each.set])
        if gone:
            self._remember()
        return next_one.set in gone

    def _drop(self, shipment: Shipment, why: str) -> None:
        with self._changed:
            self._shipments.forget(shipment)
        self._say_dropped(shipment, why)

    def _arrived(self, ticket: Ticket, shipment: Shipment, shipped: Shipped) -> None:
        now = self._now()
        with self._changed:
            self._shipments.arrived(shipment)
            self._last, self._last_whole = (
                _delivered(each, shipment, shipped, now) for each in (self._last, self._last_whole)
            )
        self._emit(
            "set_shipped",
            set=shipment.set,
            store=shipment.store,
            since=rfc3339(shipment.since),
            attempts=shipment.attempts + 1,
            bytes_uploaded=shipped.bytes_uploaded,
            duration_ms=round((now - ticket.asked).total_seconds() * 1000, 1),
        )

    def _not_shipped(self, shipment: Shipment, error: SidecarError, **fields: Any) -> None:
        with self._changed:
            worth_saying = self._shipments.failed(shipment, error, self._now())
        if worth_saying:
            store = error.store or shipment.store
            self._emit(
                "store_failed",
                set=shipment.set,
                store=store,
                code=error.code,
                error=f"set {shipment.set} was not shipped to {shipment.store}: {error.message}",
                hint=error.hint,
                **fields,
            )

    def _say_dropped(self, shipment: Shipment, why: str) -> None:
        self._emit(
            "shipment_dropped",
            set=shipment.set,
            store=shipment.store,
            error=f"set {shipment.set} will never be in {shipment.store}: {why}",
            hint="nothing to do if newer sets are there: `list` shows them",
        )

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


def _if_due(moment: datetime | None, now: datetime) -> datetime | None:
    return moment if moment and moment <= now else None


def _short(report: RunReport, request: RunRequest) -> dict[str, Any]:
    document = report.as_json()
    kept = ("run", "set", "outcome", "started", "duration_ms", "paused_ms", "off_host", "reasons")
    as_kept = {"outcome": report.outcome.value, "reasons": list(document["reasons"])}  # as JSON gives it back
    return {key: document[key] for key in kept} | as_kept | {"trigger": request.trigger}


def _delivered(
    run: Mapping[str, Any] | None, shipment: Shipment, shipped: Shipped, now: datetime
) -> Mapping[str, Any] | None:
    """A run as it is to be judged now that its set lies in a store that had missed it."""
    if run is None or run["set"] != shipment.set:
        return run
    reasons = [each for each in run["reasons"] if (each["code"], each.get("store")) != ("store_failed", shipment.store)]
    outcome = run["outcome"] if reasons or run["outcome"] != Outcome.PARTIAL else Outcome.GOOD.value
    return {
        **run,
        "outcome": outcome,
        "reasons": reasons,
        "off_host": run["off_host"] or shipped.off_host,
        "shipped": {**run.get("shipped", {}), shipment.store: rfc3339(now)},
    }


def _as_found(remembered: Remembered) -> Remembered:
    """What an earlier process remembered, as it is now that this process is gone: its run is no more."""
    running = remembered.running
    if running is None:
        return remembered
    reason = Reason(Interrupted.code, "the daemon ended in the middle of it", "`docker logs backup` may say why")
    since = datetime.fromisoformat(running["since"]).astimezone(UTC)
    report = RunReport("", None, Outcome.INTERRUPTED, since, 0.0, paused_ms=0.0, off_host=False, reasons=(reason,))
    request = RunRequest(volumes=tuple(running["volumes"]), trigger=running["trigger"])
    # How long it took, and whom it held for how long, nobody lived to tell.
    last = _short(report, request) | {"duration_ms": None, "paused_ms": None}
    return replace(
        remembered, last_run=last, last_whole_run=remembered.last_whole_run if request.volumes else last, running=None
    )
