"""One drill, top to bottom: restore a set into scratch volumes, start copies of its services on them, see them come up.

Nothing real is touched: volumes are new, copies have no network, and whatever is made carries a label by which it is
removed afterwards, at the next start if we die. What could not be asked or made for want of room is no verdict.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime

from sidecar import sets
from sidecar.archive.reader import everything
from sidecar.archive.unpack import Word, needed_on_disk
from sidecar.drilling import DrillPlan, Rehearsal, Service, is_scratch, labels_of, make_drill_plan, verdict
from sidecar.engine.freeze import freeze_order
from sidecar.engine.port import Condition, Copied, Engine
from sidecar.errors import (
    ArchiveDamaged,
    ChecksumMismatch,
    ContainerGone,
    DrillFailed,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    Interrupted,
    NotRunning,
    ObjectMissing,
    RestoreFailed,
    SetInvalid,
    SidecarError,
)
from sidecar.events import Emit, Follow, Progress
from sidecar.jobs.catalogue import answered
from sidecar.jobs.delivery import Delivery, Wanted
from sidecar.jobs.marks import mark
from sidecar.jobs.ownership import Claimant
from sidecar.model import Container
from sidecar.report import DrilledService, DrilledVolume, DrillReport, Outcome, Reason, rfc3339
from sidecar.sets import SetVolume
from sidecar.stores.port import Store

# What is wrong with the set, or with what a restore makes of it. Any other failure is that of whoever was asked.
_DAMAGE = (ArchiveDamaged, ChecksumMismatch, ObjectMissing, SetInvalid, RestoreFailed)
_ELSEWHERE = (
    "another set, or another store's copy of it, may be whole: `list` shows them; `verify` reads all of this one"
)
# The share of the disk that stays free: it is the applications' disk, too.
_RESERVE = 0.1

# Seconds between two looks at a copy, and how long what is left may take to go.
_LOOK_EVERY = 0.25
_FAREWELL = 30.0
_LAST_LINES, _LINE = 3, 300


@dataclass(frozen=True, slots=True)
class DrillTools:
    """What a drill works with; wiring makes it.

    stores: by name, retrying already. own: our own container. claimant: who notes the verdict. threads: downloads at
    once. patience: seconds that each service has to come up. memory: the limit, in bytes, of those without one.
    """

    engine: Engine
    stores: Mapping[str, Store]
    own: Callable[[], Container]
    claimant: Claimant
    threads: int
    patience: float
    memory: int
    emit: Emit
    now: Callable[[], datetime]


def drill(
    set_name: str, named: Sequence[str], tools: DrillTools, follow: Follow, cancelled: threading.Event
) -> DrillReport:
    """Try a set, or the newest for `latest`; `named`: those of its volumes, all when empty; the verdict is noted.

    Raises NotFound, NoRoom, EngineError, a store's error, Interrupted soon after `cancelled` is set: nothing is noted
    then. Whatever becomes of it, nothing is left.
    """
    work = _Drill(tools, follow, cancelled)
    plan = work.plan(set_name, named)
    for rehearsal in plan.rehearsals:
        with work.scratch(rehearsal) as scratch:
            if work.restored(rehearsal, scratch):
                work.rehearse(rehearsal, scratch)
    work.judge()
    work.note()
    return work.report()


def clear(engine: Engine, state: str, emit: Emit, *, patience: float = _FAREWELL) -> None:
    """Remove whatever a drill of the sidecar with this state has left; emits `drill_left_over` for what stays.

    patience: seconds. Raises EngineError when the engine cannot be asked.
    """
    containers = engine.containers()
    volumes = [volume.name for volume in engine.volumes() if is_scratch(volume.labels, state)]
    for each in containers:
        helps = each.role == "helper" and any(mount.volume in volumes for mount in each.mounts)
        if helps or is_scratch(each.labels, state):
            engine.remove(each.id)
    until = time.monotonic() + patience
    while volumes := [name for name in volumes if not engine.remove_volume(name)]:
        if time.monotonic() >= until:
            hint = "see which container has them: docker ps --all --filter volume=NAME"
            _say_left_over(emit, volumes, "some container has them", hint)
            return
        time.sleep(_LOOK_EVERY)


def _say_left_over(emit: Emit, volumes: Sequence[str], why: str, hint: str) -> None:
    emit(
        "drill_left_over",
        volumes=list(volumes),
        error=f"scratch volumes of a drill cannot be removed ({', '.join(volumes)}): {why}",
        hint=f"the next drill, or the next start, tries it again; {hint}",
    )


@dataclass(slots=True)
class _Attempt:
    """A service that is tried. volumes: those of the set that it has. error: why it did not come up."""

    service: Service
    volumes: tuple[str, ...]
    copy: Copied | None = None
    duration_ms: float = 0.0
    error: DrillFailed | None = None

    def told(self) -> DrilledService:
        """As the report has it."""
        return DrilledService(
            self.service.container.name,
            Outcome.FAILED if self.error else Outcome.GOOD,
            self.service.proof,
            self.volumes,
            self.duration_ms,
            error=self.error.message if self.error else None,
            hint=self.error.hint if self.error else None,
        )


class _Drill:
    """One drill: the steps of `drill`."""

    def __init__(self, tools: DrillTools, follow: Follow, cancelled: threading.Event) -> None:
        self._tools = tools
        self._follow = follow
        self._cancelled = cancelled
        self._id = uuid.uuid4().hex[:12]
        self._started = tools.now()
        self._began = time.monotonic()
        self._delivery = Delivery(
            tools.engine,
            tools.own,
            tools.stores,
            threads=tools.threads,
            follow=follow,
            check=self._check,
            passed_over=self._passed_over,
        )
        self._bringing = ""  # the volume that is being restored
        self._restored: dict[str, DrilledVolume] = {}
        self._damaged: dict[str, dict[str, SidecarError]] = {}  # store -> volume -> what is wrong with that copy
        self._tried: list[_Attempt] = []
        self._volumes: list[DrilledVolume] = []
        self._warnings: list[str] = []

    def plan(self, set_name: str, named: Sequence[str]) -> DrillPlan:
        """Look, and decide. Raises NotFound, EngineError, a store's error."""
        self._follow(Progress("planning"))
        engine = self._tools.engine
        clear(engine, self._tools.claimant.state, self._tools.emit)
        self._catalogue = answered(self._tools.stores)
        manifest = self._catalogue.find(set_name, named)
        self._plan = make_drill_plan(
            manifest,
            named,
            volumes=engine.volumes(),
            containers=engine.containers(),
            root=engine.identity().root,
        )
        self._newest = manifest.set == self._catalogue.find("latest").set
        self._warnings += (*self._catalogue.doubts(set_name), *self._catalogue.damage(manifest.set))
        return self._plan

    @contextmanager
    def scratch(self, rehearsal: Rehearsal) -> Iterator[Mapping[str, str]]:
        """Volume -> the new one that stands for it during the block. Afterwards nothing is left of what was made."""
        state, token = self._tools.claimant.state, secrets.token_hex(3)
        names = [*(each.volume for each in rehearsal.restored), *rehearsal.empty]
        scratch = {name: f"{self._tools.own().name}-drill-{token}-{number}" for number, name in enumerate(names)}
        try:
            for each in scratch.values():
                self._check()
                self._tools.engine.create_volume(each, labels=labels_of(state))
            yield scratch
        finally:
            patience = 0.0 if self._cancelled.is_set() else _FAREWELL  # then the daemon has ten seconds to live
            try:
                clear(self._tools.engine, state, self._tools.emit, patience=patience)
            except EngineError as error:
                _say_left_over(self._tools.emit, list(scratch.values()), error.message, error.hint)

    def restored(self, rehearsal: Rehearsal, scratch: Mapping[str, str]) -> bool:
        """Whether all volumes of the set are restored. What is wrong with one is noted, and the others are not tried.

        Raises NoRoom, EngineError, StoreError, Interrupted.
        """
        for number, stored in enumerate(rehearsal.restored, 1):
            self._check()
            self._bringing = stored.volume
            # All of them are there at one time, so it is asked for all of them before the first is fetched.
            later = sum(needed_on_disk(each.raw_bytes, each.files) for each in rehearsal.restored[number:])
            try:
                self._restored[stored.volume] = self._brought(stored, scratch[stored.volume], later)
            except _DAMAGE as error:
                self._note_damage(stored.volume, error)
                return False
        return True

    def rehearse(self, rehearsal: Rehearsal, scratch: Mapping[str, str]) -> None:
        """Start a copy of each service, servers before clients; all run until the last of them is proven, or not."""
        order = [c.id for step in reversed(freeze_order([s.container for s in rehearsal.services])) for c in step]
        stored = [each.volume for each in rehearsal.restored]
        proven: list[_Attempt] = []
        for service in sorted(rehearsal.services, key=lambda each: order.index(each.container.id)):
            attempt = _Attempt(service, tuple(name for name in stored if name in service.volumes))
            self._tried.append(attempt)
            self._try_out(attempt, scratch)
            proven += [] if attempt.error else [attempt]
        for attempt in proven:  # and it has stayed up while the others came
            assert attempt.copy is not None
            if why := self._why_ended(attempt.service, self._tools.engine.condition(attempt.copy.id)):
                attempt.error = self._failed(attempt, why)

    def judge(self) -> None:
        """A verdict on each volume: its services', or that nothing proves it. None on one that others only read."""
        for rehearsal in self._plan.rehearsals:
            for stored in rehearsal.restored:
                if judged := self._judged(rehearsal, stored.volume):
                    self._volumes.append(judged)
        self._volumes.sort(key=lambda each: each.volume)

    def note(self) -> None:
        """Note the verdict in the set's marks in each store that has it. Raises Interrupted."""
        self._check()
        time_now, manifest = rfc3339(self._tools.now()), self._plan.manifest
        names = [each.volume for each in manifest.volumes]
        for store in self._catalogue.holders[manifest.set]:
            damaged = self._damaged.get(store, {})
            found = {
                each.volume: sets.DrilledVolume(time_now, Outcome.FAILED, damaged[each.volume].message)
                if each.volume in damaged
                else sets.DrilledVolume(time_now, each.outcome, each.error or "")
                for each in self._volumes
            }
            try:
                mark(
                    self._tools.stores[store],
                    manifest.set,
                    self._tools.claimant,
                    lambda marks: marks.with_drilled(sets.drilled(marks.drilled, found, names)),  # noqa: B023
                )
            except SidecarError as error:
                self._warnings.append(f"the verdict could not be noted in {store}: {error.message}")

    def report(self) -> DrillReport:
        """What the drill says of itself; emits `drill_finished`."""
        reasons = self._reasons()
        outcome = verdict(each.outcome for each in self._volumes)
        if outcome is Outcome.GOOD and reasons:
            outcome = Outcome.PARTIAL  # one copy is damaged, and another was not
        services = tuple(attempt.told() for attempt in self._tried)
        report = DrillReport(
            drill=self._id,
            set=self._plan.manifest.set,
            outcome=outcome,
            started=self._started,
            duration_ms=(time.monotonic() - self._began) * 1000,
            newest=self._newest,
            volumes=tuple(self._volumes),
            services=services,
            reasons=reasons,
            warnings=tuple(self._warnings),
        )
        first = reasons[0] if reasons else None
        levels = {Outcome.GOOD: logging.INFO, Outcome.PARTIAL: logging.WARNING}
        self._tools.emit(
            "drill_finished",
            level=levels.get(outcome, logging.ERROR),
            drill=self._id,
            set=report.set,
            outcome=outcome.value,
            services=[each.container for each in services],
            volumes=[each.volume for each in self._volumes if each.outcome is not Outcome.GOOD],
            bytes_written=sum(each.bytes_written for each in self._volumes),
            duration_ms=round(report.duration_ms, 1),
            code=first.code if first else None,
            error=first.message if first else None,
            hint=first.hint if first else None,
            warnings=self._warnings,
        )
        return report

    def _reasons(self) -> tuple[Reason, ...]:
        reasons = [
            Reason(error.code, error.message, error.hint or _ELSEWHERE, volume, store)
            for store, damaged in self._damaged.items()
            for volume, error in damaged.items()
        ]
        reasons += [Reason.of(attempt.error) for attempt in self._tried if attempt.error]
        told = {reason.message for reason in reasons}
        reasons += [
            Reason("unproven", each.error, each.hint or "", each.volume)
            for each in self._volumes
            if each.error is not None and each.error not in told
        ]
        return tuple(reasons)

    # --- restoring ---------------------------------------------------------------------------------------------------

    def _brought(self, stored: SetVolume, target: str, besides: int) -> DrilledVolume:
        holders = self._catalogue.holders[self._plan.manifest.set]
        wanted = Wanted(stored, target, holders, everything, reserve=_RESERVE, besides=besides, called=stored.volume)
        with ExitStack() as undo:
            delivered = self._delivery.bring(wanted, undo)
            if self._delivery.exchange(delivered.helper, stored.volume) is not Word.EXCHANGED:
                raise RestoreFailed(f"volume {stored.volume} could not be restored", hint=_ELSEWHERE)
        extract = delivered.extract
        return DrilledVolume(stored.volume, Outcome.GOOD, extract.files, extract.length, delivered.store)

    def _passed_over(self, store: str, error: SidecarError) -> None:
        self._tools.emit(
            "store_failed",
            set=self._plan.manifest.set,
            store=store,
            code=error.code,
            error=error.message,
            hint=error.hint,
        )
        if isinstance(error, _DAMAGE):
            self._damaged.setdefault(store, {})[self._bringing] = error
        else:
            self._warnings.append(f"{store} could not be asked for volume {self._bringing}: {error.message}")

    def _note_damage(self, volume: str, error: SidecarError) -> None:
        store = error.store or self._catalogue.holders[self._plan.manifest.set][0]
        self._damaged.setdefault(store, {})[volume] = error
        self._restored[volume] = DrilledVolume(
            volume, Outcome.FAILED, store=store, error=error.message, hint=error.hint or _ELSEWHERE
        )

    def _judged(self, rehearsal: Rehearsal, name: str) -> DrilledVolume | None:
        known = self._restored.get(name)
        tried = [attempt for attempt in self._tried if attempt.service.writes(name)]
        unproven = self._plan.unproven.get(name)
        if known is not None and known.outcome is Outcome.FAILED:
            return known
        if known is None or (not tried and any(service.writes(name) for service in rehearsal.services)):
            why = f"volume {name} was not tried, because another that its services need could not be restored"
            return replace(
                known or DrilledVolume(name, Outcome.GOOD), outcome=Outcome.PARTIAL, error=why, hint=_ELSEWHERE
            )
        if tried:
            red = next((attempt.error for attempt in tried if attempt.error), None)
            return replace(known, outcome=Outcome.FAILED, error=red.message, hint=red.hint) if red else known
        if unproven:
            why = f"volume {name} was restored, but {unproven.why}"
            return replace(known, outcome=Outcome.PARTIAL, error=why, hint=unproven.hint)
        return None

    # --- starting ----------------------------------------------------------------------------------------------------

    def _try_out(self, attempt: _Attempt, scratch: Mapping[str, str]) -> None:
        """Start a copy, and see it come up or not. Raises EngineError where that is nobody's fault; Interrupted."""
        self._check()
        began = time.monotonic()
        self._follow(Progress("starting", attempt.service.container.name))
        try:
            attempt.copy = self._copied(attempt.service, scratch)
            self._tools.engine.start(attempt.copy.id)
            why = self._watched(attempt.service, attempt.copy)
        except ContainerGone as error:
            error.hint = "it, or its copy, was removed meanwhile: drill again"
            raise
        except (EngineUnreachable, EngineDenied):
            raise
        except EngineError as error:
            said = attempt.copy.blotted(error.message) if attempt.copy else error.message
            why = f"it could not be started: {said}"
        attempt.duration_ms = (time.monotonic() - began) * 1000
        attempt.error = self._failed(attempt, why) if why else None

    def _failed(self, attempt: _Attempt, why: str) -> DrillFailed:
        name, on = attempt.service.container.name, ", ".join(attempt.volumes)
        said = f"{name} did not come up on the restored data of {on}: {why}{self._last_words(attempt.copy)}"
        return DrillFailed(said, hint=_hint(attempt.service, attempt.copy))

    def _copied(self, service: Service, scratch: Mapping[str, str]) -> Copied:
        """The copy, which carries the label by which it is removed."""
        return self._tools.engine.copy(
            service.container.id,
            f"{self._tools.own().name}-drill-{secrets.token_hex(3)}",
            mounts=service.mounts(scratch),
            labels=labels_of(self._tools.claimant.state),
            memory=self._tools.memory,
        )

    def _watched(self, service: Service, copy: Copied) -> str:
        """Wait until it is proven; why it is not, or nothing. Raises Interrupted, EngineError."""
        until = time.monotonic() + self._tools.patience
        what = (
            f"command `{copy.blotted(service.command)}` has not ended"
            if service.command
            else "health check has not answered yet"
        )
        answer = f"its {what}"
        while True:
            condition = self._tools.engine.condition(copy.id)
            if ended := self._why_ended(service, condition):
                return ended
            if not service.command and condition.health == "healthy":
                return ""
            if service.command:
                proven, said = self._asked(service, copy, until)
                if proven:
                    return self._why_ended(service, self._tools.engine.condition(copy.id))
                answer = said or answer
            elif condition.health:
                said = copy.blotted(_end_of(condition.said))
                answer = f"its health check says {condition.health}" + (f": {said}" if said else "")
            if time.monotonic() >= until:
                return f"after {self._tools.patience:g} s {answer}"
            self._cancelled.wait(_LOOK_EVERY)
            self._check()

    def _asked(self, service: Service, copy: Copied, until: float) -> tuple[bool, str]:
        """Whether the command of its label has succeeded, and else what it said; nothing where it was cut off."""
        try:
            done = self._tools.engine.execute(
                copy.id,
                ["sh", "-c", service.command],
                waiting=lambda: time.monotonic() < until and not self._cancelled.is_set(),
            )
        except NotRunning:
            return False, ""  # the next look says why
        if done.code is None:
            return False, ""
        said = copy.blotted(_end_of(done.output))
        ended = f"its command `{copy.blotted(service.command)}` ends with exit code {done.code}"
        return done.code == 0, ended + (f": {said}" if said else "")

    def _why_ended(self, service: Service, condition: Condition) -> str:
        if condition.out_of_memory:
            limit = service.container.memory or self._tools.memory
            return f"it ran out of memory (its limit is {limit >> 20} MiB)"
        return "" if condition.running else f"it ended by itself, with exit code {condition.code}"

    def _last_words(self, copy: Copied | None) -> str:
        if copy is None:
            return ""
        with suppress(EngineError):
            if said := _end_of(copy.blotted(self._tools.engine.last_words(copy.id))):
                return f"; the last that it wrote: {said}"
        return ""

    def _check(self) -> None:
        """Raises Interrupted when told to stop."""
        if self._cancelled.is_set():
            raise Interrupted("the drill was told to stop", hint="the same command drills; nothing was noted")


def _hint(service: Service, copy: Copied | None) -> str:
    """What may be the reason besides the data, since a copy has not all that its service has."""
    lacking = ", ".join(["a network", *(copy.withheld if copy else ())])
    known = ", or ".join([f"needs what its copy has not: {lacking}", *service.constraints()])
    label = "" if service.command else "; the label backup.drill=COMMAND can ask for less than a health check does"
    return f"the set may be at fault; or the service {known}{label}"


def _end_of(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(line[-_LINE:] for line in lines[-_LAST_LINES:])
