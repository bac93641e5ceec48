"""Freeze a group's containers, and thaw them whatever happens.

    with freeze(engine, journal, dependents, ...) as frozen:
        ...read; frozen.check() now and then...
        frozen.confirm(writers)
    # thawed; and here only if all of them stayed frozen from the first byte read to the last

What carries the promise that whatever we freeze, we thaw:
- the journal names every container before the first is touched, for a process that is killed (recovery.py);
- one thread, the guard, does every thaw: when the block is left, when the budget is spent, when the run is cancelled.
  It runs before the first pause and needs nothing of the reader, who may hang in a read of a dead disk;
- a request without an answer may still land, so whatever was asked for is undone, and looked after for a while;
- it ends with an inspection; until that says that all run, the journal stays.

What carries the promise that a committed group was frozen: `docker stop`, `restart` and `kill` resume a paused
container, and another can be started. `confirm` compares the state of each container while frozen. Once thawed, the
engine's event log must show nothing but our own pause and unpause on them, and no start of anything else that can write
(evidence.py). The states alone would miss what came and went, and the application need not wait for the log (10 ms).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from sidecar.engine.evidence import arrivals, disturbance, remembered, stirred
from sidecar.engine.journal import Intent, Journal
from sidecar.engine.port import HUNG, ContainerEvent, Engine, Watch
from sidecar.engine.recovery import PATIENCE, PAUSE_BETWEEN, recover, thaw_failed
from sidecar.errors import (
    AlreadyPaused,
    ContainerGone,
    EngineError,
    EngineUnreachable,
    FreezeBroken,
    FreezeFailed,
    Interrupted,
    NotRunning,
    PauseBudgetSpent,
    SidecarError,
    ThawFailed,
)
from sidecar.events import Emit
from sidecar.model import Container, ContainerState, Quiesce

QUIESCE_LABEL = "backup.quiesce"

# Seconds. Settling: for a container that is restarting. Trying: to freeze one that the kernel cannot freeze at once.
# Landing: how long a request without an answer is looked after.
SETTLING = 5.0
TRYING = 5.0
LANDING = 5.0
# A health check that begins while its container is paused hangs, and the engine with it (rescue.py): nobody is frozen
# so shortly before one begins, nor so shortly after. Checked more often than that, it is frozen nevertheless.
BEFORE_A_CHECK = 0.3
AFTER_A_CHECK = 0.7
AWAITING_A_CHECK = 3.0
# How late the guard may notice a cancelled run or a spent budget.
GUARD_EVERY = 0.02
# A container that does not answer must not keep those behind it frozen for longer than this.
STEP = 1.0
# Measured on two cores, five containers: 95 ms one after another, 75 ms at once (20 to 35 ms each).
AT_ONCE = 8

Writers = Callable[[Sequence[Container]], set[str]]


def labelled_quiesce(container: Container) -> Quiesce:
    """What the container's label asks for; pause where it has none or an unknown one."""
    try:
        return Quiesce(container.labels.get(QUIESCE_LABEL, Quiesce.PAUSE))
    except ValueError:
        return Quiesce.PAUSE


def freeze_order(containers: Sequence[Container]) -> list[list[Container]]:
    """In which order to freeze: clients before the servers they depend on; those of one step at once, by name. Pure.

    From the label `com.docker.compose.depends_on` of Compose v2 (`SERVICE:CONDITION:RESTART,...`) within a project.
    Containers without it (docker-compose 1 writes none) depend on nothing.
    """
    left = sorted(containers, key=lambda container: container.name)
    steps: list[list[Container]] = []
    while left:
        wanted = {
            (container.project, service)
            for container in left
            for dependency in container.labels.get("com.docker.compose.depends_on", "").split(",")
            if (service := dependency.partition(":")[0]) and service != container.service
        }
        step = [container for container in left if (container.project, container.service) not in wanted]
        # Compose refuses cycles; labels written by hand may have one, and must not keep us here.
        steps.append(step or left)
        left = [container for container in left if container not in steps[-1]]
    return steps


@contextmanager
def freeze(
    engine: Engine,
    journal: Journal,
    containers: Sequence[Container],
    *,
    run: str,
    group: str,
    budget: float,
    cancelled: threading.Event,
    emit: Emit,
    quiesce: Callable[[Container], Quiesce] = labelled_quiesce,
    stage: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    wall: Callable[[], float] = time.time,
) -> Iterator[Frozen]:
    """Freeze `containers` (a group's dependents, stopped ones too) for the block, for at most `budget` seconds.

    However the block is left, all is thawed when this returns; on a spent budget, or when `cancelled` is set, it is
    thawed at once, while the block still runs. Containers found paused or stopped are left so. stage is told
    `journalled`, `frozen` and `thawed` as they are reached. What an earlier run left frozen is thawed first.

    Raises FreezeFailed, PauseBudgetSpent, Interrupted, JournalUnwritable, JournalUnreadable or another EngineError
    before the block. After a block that was left without an exception: FreezeBroken if what `confirm` was called for
    did not hold; PauseBudgetSpent or Interrupted if time was up and it was not called. After any block: ThawFailed if a
    container is still frozen.
    """
    recover(journal, engine, emit, clock=clock, sleep=sleep)
    _await_checks(engine, containers, quiesce, clock=clock, sleep=sleep, wall=wall)
    with engine.watch() as watch:
        scene = _survey(engine, containers, quiesce, budget, clock=clock, sleep=sleep)
        if scene.holds:
            journal.begin(run=run, group=group, frozen=[_intent(hold) for hold in scene.holds])
        terms = _Terms(group, budget, cancelled, clock, sleep, emit)
        frozen = Frozen(engine, journal, watch, scene, terms)
        try:
            frozen._enter(stage)
            yield frozen
        finally:
            frozen._leave()
        stage("thawed")
        frozen._verify()


@dataclass(slots=True)
class _Hold:
    """One container that we freeze. Its undo is in place before the act: `release` is due once `asked` is set."""

    engine: Engine
    clock: Callable[[], float]
    before: Container
    action: Quiesce
    asked: bool = False
    # The request had no answer: it may land yet.
    unsure: bool = False
    # Our own request thawed it, so nobody else had.
    undisturbed: bool = False
    # From the answer to our freeze to our request to thaw, in seconds.
    held: float = float("inf")
    released_at: float | None = None
    trouble: Exception | None = None
    _frozen_at: float | None = None
    _closed: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def take(self, until: float, sleep: Callable[[float], None]) -> None:
        """Freeze it; nothing is done once a release has begun. until: when to give up on a kernel that cannot."""
        with self._turn:
            while not self._closed.is_set():
                self.asked = True
                try:
                    self._freeze()
                except AlreadyPaused:
                    self.asked = False  # someone else's, not ours to thaw
                    raise
                except EngineUnreachable:
                    self.unsure = True
                    raise
                except (NotRunning, ContainerGone) as error:
                    raise FreezeFailed(
                        f"{self.before.name} stopped just before it was to be frozen", hint="run the backup again"
                    ) from error
                except FreezeFailed:
                    if self.clock() >= until:
                        raise
                    sleep(0.05)
                else:
                    self._frozen_at = self.clock()
                    return

    def release(self) -> None:
        """Thaw it. May be called again and again, by any thread; never raises: `trouble` is the failure, or None."""
        self._closed.set()
        with self._turn:
            if not self.asked or (self.released_at is not None and self.trouble is None):
                return
            try:
                self._thaw()
                self.trouble = None
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are thawed too, and it is reported
                self.trouble = error

    def inspect(self) -> None:
        """Ask the engine whether it runs again; never raises: `trouble` tells."""
        if not self._turn.acquire(blocking=False):
            self.trouble = self.trouble or EngineError("the engine has not answered yet")
            return
        try:
            if self.asked:
                self._look()
        finally:
            self._turn.release()

    def may_land(self) -> bool:
        """Whether a freeze that was not answered, and that we have not undone, may still come."""
        return self.unsure and not self.undisturbed

    def _freeze(self) -> None:
        if self.action is Quiesce.PAUSE:
            self.engine.pause(self.before.id)
        else:
            self.engine.stop(self.before.id, timeout=self.before.stop_timeout)

    def _thaw(self) -> None:
        undo = self.engine.unpause if self.action is Quiesce.PAUSE else self.engine.start
        if self._frozen_at is not None and self.released_at is None:
            self.held = self.clock() - self._frozen_at
        try:
            thawed = undo(self.before.id)
        except ContainerGone:
            thawed = False  # removed by someone: nothing is frozen any more
        self.undisturbed = self.undisturbed or thawed
        if thawed or self.released_at is None:
            self.released_at = self.clock()

    def _look(self) -> None:
        try:
            now = self.engine.container(self.before.id, patience=HUNG)
        except ContainerGone:
            self.trouble = None
        except EngineError as error:
            self.trouble = error
        else:
            stopped = not now.running and now.started_at == self.before.started_at
            frozen = now.state is ContainerState.PAUSED if self.action is Quiesce.PAUSE else stopped
            if frozen:
                self.trouble = self.trouble or FreezeFailed(f"{now.name} is still {now.state}")
            elif self.released_at is not None:
                self.trouble = None


@dataclass(frozen=True, slots=True)
class _Scene:
    """What there was to freeze.

    around: all that ran; given: the IDs of the group's dependents; steps: who is frozen, in this order; unfrozen: name
    -> why.
    """

    around: tuple[Container, ...]
    given: frozenset[str]
    steps: tuple[tuple[_Hold, ...], ...]
    as_found: tuple[Container, ...]
    unfrozen: Mapping[str, str]

    @property
    def holds(self) -> list[_Hold]:
        return [hold for step in self.steps for hold in step]


@dataclass(frozen=True, slots=True)
class _Terms:
    """Under which conditions it is frozen. budget: seconds."""

    group: str
    budget: float
    cancelled: threading.Event
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    emit: Emit


class Frozen:
    """A frozen group: what the block of `freeze` gets.

    containers: the names of those we froze, in that order; unfrozen: those that may write nevertheless, name -> why;
    deadline: when the budget is spent, on `clock`, infinite where nothing had to be frozen; paused_ms: from the first
    pause request to the last unpause reply, known once thawed; intact: all stayed frozen, known once the block is left.
    """

    def __init__(self, engine: Engine, journal: Journal, watch: Watch, scene: _Scene, terms: _Terms) -> None:
        self._engine = engine
        self._journal = journal
        self._watch = watch
        self._scene = scene
        self._terms = terms
        self.containers = tuple(hold.before.name for hold in scene.holds)
        self.unfrozen = dict(scene.unfrozen)
        self.deadline = float("inf")
        self.paused_ms = 0.0
        self.intact = False
        self._began: float | None = None
        self._writers: Writers | None = None
        self._log: Sequence[ContainerEvent] | EngineError = ()
        self._stuck: ThawFailed | None = None
        self._withheld: SidecarError | None = None
        self._journal_trouble: SidecarError | None = None
        self._spoiled = threading.Event()
        self._left = threading.Event()
        # Two pools, and a thread for each thaw: no request that hangs may stand in the way of a thaw.
        self._freezing = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="freeze")
        self._thawing = ThreadPoolExecutor(max(1, len(scene.holds)), thread_name_prefix="thaw")
        self._guard = threading.Thread(target=self._stand_guard, name="freeze-guard")

    def check(self) -> None:
        """Raise Interrupted or PauseBudgetSpent if reading on is of no use. Quick; for any thread."""
        if self._terms.cancelled.is_set():
            raise Interrupted(f"the run was told to stop while {self._terms.group} was frozen")
        if self._spoiled.is_set() or self._terms.clock() >= self.deadline:
            raise PauseBudgetSpent(
                f"{self._terms.group} was not read within {self._terms.budget:g} s",
                hint="raise BACKUP_MAX_PAUSE, or make the group smaller (label backup.group on its volumes)",
            )

    def confirm(self, writers: Writers) -> None:
        """Call it when all is read: raises FreezeBroken unless every container is as we left it.

        writers: which of some containers (their IDs) can write the group's volumes; pure. What the event log alone can
        tell (what came and went, a writer that was started) is raised when the block is left: nothing may be committed
        before that. One inspection per container, 1 to 1.5 ms.
        """
        self.check()
        strangers = writers(self._scene.around) - self._scene.given
        for container in self._scene.around:
            if container.id in strangers and not container.role:
                raise self._new_writer(container.name)
        for hold in self._scene.holds:
            if hold.action is Quiesce.PAUSE:
                self._must_be(hold.before, ContainerState.PAUSED, hold.before.pid)
            else:
                self._must_be(hold.before, ContainerState.EXITED, 0)
        for container in self._scene.as_found:
            self._must_be(container, container.state, container.pid)
        self.check()
        self._writers = writers

    def withhold(self, why: SidecarError) -> None:
        """Do not thaw when the block is left: what they would run on is not whole. The journal keeps them."""
        self._withheld = why

    def _must_be(self, before: Container, state: ContainerState, pid: int) -> None:
        try:
            now = self._engine.container(before.id, patience=HUNG)
        except ContainerGone as error:
            if not before.running:
                return  # a stopped container that was removed wrote nothing
            raise _broken(before.name, "was removed") from error
        if now.started_at != before.started_at:
            raise _broken(before.name, "was started anew")
        if (now.state, now.pid) != (state, pid):
            raise _broken(
                before.name, f"is {now.state}, not {state}" if now.state is not state else "has a new process"
            )

    # --- the caller's thread ---

    def _enter(self, stage: Callable[[str], None]) -> None:
        """Freeze all of them. Whatever fails here, `_leave` undoes it."""
        self._guard.start()
        stage("journalled")
        self.check()
        clock = self._terms.clock
        if self._scene.steps:
            self._began = clock()
            self.deadline = self._began + self._terms.budget
        for step in self._scene.steps:
            until = min(self.deadline, clock() + TRYING)
            taking = [self._freezing.submit(hold.take, until, self._terms.sleep) for hold in step]
            wait(taking)
            self.check()
            for future in taking:
                future.result()
        took = 0.0 if self._began is None else (clock() - self._began) * 1000
        self._terms.emit(
            "group_frozen",
            group=self._terms.group,
            containers=list(self.containers),
            unfrozen=self.unfrozen,
            duration_ms=round(took, 1),
        )
        stage("frozen")

    def _leave(self) -> None:
        """Have it thawed, and wait for that. Raises ThawFailed."""
        self._left.set()
        if self._guard.ident is None:
            self._thaw()  # the guard could not be started, so nothing was frozen
        else:
            self._guard.join()
        self._freezing.shutdown(wait=False)
        self._thawing.shutdown(wait=False)
        if self._stuck is not None:
            raise self._stuck

    def _verify(self) -> None:
        """After the thaw, on the way to a commit: raises FreezeBroken if the freeze had a hole."""
        if self._journal_trouble is not None:
            raise self._journal_trouble
        if self._writers is None:
            self.check()
            return
        if isinstance(self._log, EngineError):
            raise FreezeBroken(
                f"whether {self._terms.group} stayed frozen cannot be known: {self._log.message}", hint=self._log.hint
            ) from self._log
        for hold in self._scene.holds:
            events = disturbance(self._log, hold.before.id, hold.action, hold.held)
            if events or not hold.undisturbed:
                raise _broken(hold.before.name, f"did not stay frozen (events: {', '.join(events) or 'thawed before'})")
        for container in self._scene.as_found:
            if events := stirred(self._log, container):
                raise _broken(container.name, f"did not stay {container.state} (events: {', '.join(events)})")
        self._judge_arrivals(self._log, self._writers)
        self.intact = True

    def _judge_arrivals(self, log: Sequence[ContainerEvent], writers: Writers) -> None:
        known = self._scene.given | {container.id for container in self._scene.around}
        ours = {hold.before.id: hold.action for hold in self._scene.holds}
        for identifier, event in arrivals(log, known, ours).items():
            try:
                container = self._engine.container(identifier)
            except ContainerGone:
                container = remembered(log, event)
            if identifier in writers([container]):
                raise self._new_writer(container.name)

    def _new_writer(self, name: str) -> FreezeBroken:
        return FreezeBroken(
            f"{name} was started, and can write the volumes of {self._terms.group}, while they were read",
            hint="run the backup again, away from deployments and restarts",
        )

    # --- the guard's thread ---

    def _stand_guard(self) -> None:
        while not self._left.wait(GUARD_EVERY):
            if self._terms.cancelled.is_set() or self._terms.clock() >= self.deadline:
                self._spoiled.set()
                break
        self._thaw()

    def _thaw(self) -> None:
        holds = self._scene.holds
        if holds and self._withheld is not None:
            self._stuck = thaw_failed([(hold.before.name, hold.action, self._withheld) for hold in holds])
            return
        for step in reversed(self._scene.steps):
            self._release(step)
        self._settle(holds)
        if self._writers is not None:
            # At once, because what happens from here on is none of ours.
            try:
                self._log = self._watch.events()
            except EngineError as error:
                self._log = error
        self._look_after_the_unsure()
        released = [hold.released_at for hold in holds if hold.released_at is not None]
        if released and self._began is not None:
            self.paused_ms = (max(released) - self._began) * 1000
        stuck = [(hold.before.name, hold.action, hold.trouble) for hold in holds if hold.trouble]
        if stuck:
            self._stuck = thaw_failed(stuck)
            return
        try:
            self._journal.clear()
        except SidecarError as error:
            self._journal_trouble = error
        if self._began is not None or not holds:
            self._terms.emit(
                "group_thawed",
                group=self._terms.group,
                containers=[hold.before.name for hold in reversed(holds) if hold.asked],
                paused_ms=round(self.paused_ms, 1),
            )

    def _release(self, holds: Sequence[_Hold]) -> None:
        futures: list[Future[None]] = []
        for hold in holds:
            try:
                futures.append(self._thawing.submit(hold.release))
            except RuntimeError:  # no thread to be had, or the interpreter is shutting down: then one after another
                hold.release()
        wait(futures, timeout=STEP)

    def _settle(self, holds: Sequence[_Hold]) -> None:
        """Until an inspection says that all run, or patience ends."""
        until = self._terms.clock() + PATIENCE
        while True:
            for hold in holds:
                hold.inspect()
            stuck = [hold for hold in holds if hold.trouble]
            if not stuck or self._terms.clock() >= until:
                return
            self._terms.sleep(PAUSE_BETWEEN)
            self._release(stuck)

    def _look_after_the_unsure(self) -> None:
        """A freeze that was not answered may land after our thaw; a stop takes its time."""
        began = self._terms.clock()
        for hold in self._scene.holds:
            until = began + LANDING + (hold.before.stop_timeout if hold.action is Quiesce.STOP else 0)
            while hold.may_land() and hold.trouble is None and self._terms.clock() < until:
                self._terms.sleep(0.1)
                self._settle([hold])


def _survey(
    engine: Engine,
    containers: Sequence[Container],
    quiesce: Callable[[Container], Quiesce],
    budget: float,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> _Scene:
    """Look at everything anew, just before it is frozen. Raises FreezeFailed for what cannot be."""
    around = tuple(engine.containers(running_only=True))
    until = clock() + SETTLING
    unfrozen: dict[str, str] = {}
    as_found, running = [], []
    for container in containers:
        try:
            now = _settled(engine, container, until, clock=clock, sleep=sleep)
        except ContainerGone:
            continue
        if why := _why_unfrozen(engine, now, quiesce(now)):
            unfrozen[now.name] = why
        elif now.state is ContainerState.RUNNING:
            _must_be_stoppable(now, quiesce(now), budget)
            running.append(now)
        else:
            as_found.append(now)
    steps = tuple(tuple(_Hold(engine, clock, c, quiesce(c)) for c in step) for step in freeze_order(running))
    return _Scene(around, frozenset(c.id for c in containers), steps, tuple(as_found), unfrozen)


def _await_checks(
    engine: Engine,
    containers: Sequence[Container],
    quiesce: Callable[[Container], Quiesce],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    wall: Callable[[], float],
) -> None:
    """Wait for a moment in which no health check of those that will be paused begins.

    Before anything else is looked at: what starts or stops while we wait is none of the freeze's concern.
    """
    until = clock() + AWAITING_A_CHECK
    checked = [each.id for each in containers if each.health_check and quiesce(each) is Quiesce.PAUSE]
    while checked and clock() < until:
        try:
            found = [engine.container(identifier) for identifier in checked]
        except ContainerGone:  # the freeze sees for itself
            return
        if not any(_is_near_check(each.next_check, wall()) for each in found if each.running):
            return
        sleep(0.05)


def _is_near_check(begins: float | None, now: float) -> bool:
    return begins is not None and begins - BEFORE_A_CHECK <= now <= begins + AFTER_A_CHECK


def _settled(
    engine: Engine, container: Container, until: float, *, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Container:
    """The container as it is now; one that is restarting is waited for."""
    now = engine.container(container.id)
    while now.state is ContainerState.RESTARTING:
        if clock() >= until:
            raise FreezeFailed(
                f"{now.name} keeps restarting", hint=f"see `docker logs {now.name}`, or stop it for the backup"
            )
        sleep(0.1)
        now = engine.container(container.id)
    return now


def _why_unfrozen(engine: Engine, container: Container, quiesce: Quiesce) -> str:
    if container.role:
        return f"it is our own ({container.role})"
    if engine.carries_us(container):
        return "it carries our own connection to the engine"
    return f"its label {QUIESCE_LABEL} says so" if quiesce is Quiesce.NONE else ""


def _must_be_stoppable(container: Container, action: Quiesce, budget: float) -> None:
    if action is not Quiesce.STOP:
        return
    if container.auto_remove:
        raise FreezeFailed(
            f"{container.name} must not be stopped: it removes itself, and its anonymous volumes, when it stops",
            hint=f"run it without --rm, or label it {QUIESCE_LABEL}=pause",
        )
    if "com.docker.swarm.task.id" in container.labels:
        raise FreezeFailed(
            f"{container.name} must not be stopped: Swarm would start another task in its place",
            hint=f"label it {QUIESCE_LABEL}=pause",
        )
    if container.stop_timeout >= budget:
        raise FreezeFailed(
            f"{container.name} may take {container.stop_timeout} s to stop, but may be frozen for {budget:g} s only",
            hint=f"raise BACKUP_MAX_PAUSE, lower its stop_grace_period, or label it {QUIESCE_LABEL}=pause",
        )


def _intent(hold: _Hold) -> Intent:
    before = hold.before
    return Intent(before.id, before.name, hold.action, before.started_at, before.pid)


def _broken(name: str, what: str) -> FreezeBroken:
    return FreezeBroken(
        f"{name} {what} while its volumes were read", hint="run the backup again, away from deployments and restarts"
    )
