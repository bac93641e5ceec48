"""Put right what a killed run left frozen, by the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from sidecar.engine.journal import Entry, Intent, Journal
from sidecar.engine.port import HUNG, Engine
from sidecar.errors import ContainerGone, EngineError, EngineSilent, FreezeFailed, JournalUnreadable, ThawFailed
from sidecar.events import Emit
from sidecar.model import ContainerState, Quiesce

# Seconds to go on trying through an engine that is briefly away, and between two tries.
PATIENCE = 30.0
PAUSE_BETWEEN = 0.2
# A request that was sent just before its sender died is carried out within this time.
LANDING = 3.0


def recover(
    journal: Journal,
    engine: Engine,
    emit: Emit,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:
    """Thaw what a killed run left frozen; the names of those that were. Call it before anything else at start.

    Only what the journal names and what is still as that run left it (the same start of the same container) is thawed.
    Raises ThawFailed (the journal stays; call it again), and JournalUnreadable when a damaged journal leaves open
    whether a container that is still paused is ours: what it does name is thawed nevertheless.
    """
    entry, damage = _read(journal)
    intents = _owed(journal, entry)
    if not intents and not damage:
        return ()
    thawed = _thaw_all(engine, intents, clock=clock, sleep=sleep)
    thawed += _start_late(engine, intents, clock=clock, sleep=sleep)
    paused = _paused(engine) if damage else ()
    if thawed or not paused:
        emit(
            "recovered",
            run=entry.run if entry else "",
            group=entry.group if entry else "",
            containers=list(thawed),
            damaged=damage is not None,
        )
    if not damage:
        journal.clear()
    elif not paused:
        journal.set_aside()
    else:
        raise JournalUnreadable(
            f"{damage.message}; these containers are paused, perhaps by us: {', '.join(paused)}",
            hint=f"thaw those that should run (docker unpause {' '.join(paused)}), then remove {journal.path}",
        ) from damage
    return thawed


def _paused(engine: Engine) -> tuple[str, ...]:
    return tuple(c.name for c in engine.containers(running_only=True) if c.state is ContainerState.PAUSED)


def thaw_owed(
    engine: Engine,
    journal: Journal,
    run: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:
    """Thaw what the journal names as this run's, and leave the journal to its owner: for one who may only read it.

    Looks for a while, because a pause that its caller did not live to see answered may land late; but what a new run
    has frozen meanwhile is that run's. The names of those thawed. Raises ThawFailed.
    """
    entry, _ = _read(journal)
    intents = _owed(journal, entry) if entry is None or entry.run == run else ()
    until = clock() + LANDING
    thawed: list[str] = []

    def ours() -> bool:
        now, _ = _read(journal)
        return now is None or now.run == run

    while True:
        thawed += _thaw_all(engine, intents, clock=clock, sleep=sleep, ours=ours)
        if clock() >= until or not ours():
            break
        sleep(PAUSE_BETWEEN)
    thawed += _start_late(engine, intents, clock=clock, sleep=sleep, ours=ours)
    return tuple(dict.fromkeys(thawed))


def _read(journal: Journal) -> tuple[Entry | None, JournalUnreadable | None]:
    try:
        return journal.read(), None
    except JournalUnreadable as error:
        return None, error


def _owed(journal: Journal, entry: Entry | None) -> tuple[Intent, ...]:
    return entry.frozen if entry else journal.salvage()


def thaw_failed(stuck: Sequence[tuple[str, Quiesce, Exception]]) -> ThawFailed:
    """The worst that can happen, with the commands that end it. stuck: name, how it was frozen, why it still is."""
    commands = []
    for action, verb in ((Quiesce.PAUSE, "unpause"), (Quiesce.STOP, "start")):
        names = [name for name, how, _ in stuck if how is action]
        commands += [f"docker {verb} {' '.join(names)}"] if names else []
    why = "; ".join(f"{name}: {error}" for name, _, error in stuck)
    return ThawFailed(
        f"still frozen: {', '.join(name for name, _, _ in stuck)} ({why})", hint=f"run: {' && '.join(commands)}"
    )


def _thaw_all(
    engine: Engine,
    intents: Sequence[Intent],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    ours: Callable[[], bool] = lambda: True,
) -> tuple[str, ...]:
    until = clock() + PATIENCE
    thawed: list[str] = []
    while True:
        stuck: dict[Intent, EngineError] = {}
        for intent in intents:
            try:
                name = _put_back(engine, intent, ours)
            except EngineError as error:
                stuck[intent] = error
                continue
            thawed += [name] if name else []
        if not stuck:
            return tuple(thawed)
        if clock() >= until:
            raise thaw_failed([(intent.name or intent.id[:12], intent.action, why) for intent, why in stuck.items()])
        sleep(PAUSE_BETWEEN)
        intents = tuple(stuck)


def _start_late(
    engine: Engine,
    intents: Sequence[Intent],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    ours: Callable[[], bool] = lambda: True,
) -> tuple[str, ...]:
    """Start again who was told to stop and takes the time that its owner grants it: a stop cannot be taken back.

    Nobody can see whether one that still runs was told; so it is looked at for as long. The names of those started.
    """
    stops = [intent for intent in intents if intent.action is Quiesce.STOP]
    began = clock()
    thawed: list[str] = []
    while stops:
        late = any(clock() < began + LANDING + seconds for seconds in _granted(engine, stops))
        thawed += _thaw_all(engine, stops, clock=clock, sleep=sleep, ours=ours)  # after that look: it may have ended
        if not late or not ours():
            break
        sleep(PAUSE_BETWEEN)
    return tuple(thawed)


def _granted(engine: Engine, stops: Sequence[Intent]) -> list[float]:
    """The seconds that each may take to stop which still runs as it did when the run meant to stop it."""
    granted = []
    for intent in stops:
        with suppress(EngineError):
            found = engine.container(intent.id, patience=HUNG)
            if found.running and intent.started_at in ("", found.started_at):
                granted.append(float(found.stop_timeout))
    return granted


def _put_back(engine: Engine, intent: Intent, ours: Callable[[], bool]) -> str:
    """Thaw one container if it is as we left it; its name if it was thawed. Raises EngineError while it is not.

    ours: whether a freeze that is seen is still the one that we owe. Asked after looking: whoever else froze it wrote
    the journal before.
    """
    left = ContainerState.PAUSED if intent.action is Quiesce.PAUSE else ContainerState.EXITED
    try:
        try:
            found = engine.container(intent.id, patience=HUNG)
        except EngineSilent:
            # An engine that hangs over a frozen container tells nothing of it until it is thawed (rescue.py).
            if intent.action is Quiesce.PAUSE and ours() and engine.unpause(intent.id):
                return intent.name
            raise
        if found.state is not left or (intent.started_at and found.started_at != intent.started_at):
            return ""
        if not ours():
            return ""
        if intent.action is Quiesce.PAUSE:
            engine.unpause(found.id)
        else:
            engine.start(found.id)
        now = engine.container(found.id, patience=HUNG)
    except ContainerGone:
        return ""
    if (now.state, now.started_at) == (left, found.started_at):
        raise FreezeFailed(f"{found.name} is still {left}")
    return found.name
