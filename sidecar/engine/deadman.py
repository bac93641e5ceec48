"""The dead man: a short-lived container of our own image that thaws when we cannot.

No policy restarts a container after `docker kill backup` or `docker rm -f backup`, and a process that is itself
suspended runs no guard. So before a run freezes anything, a second container with nothing but the engine's socket and
the journal (read only) stands by. It thaws what the journal names as this run's, and runs the post hooks that it names,
when the sidecar's container is gone, is not running, or was started anew, or when something stays frozen for longer
than the lease. It ends when told to, or when its work is done.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from sidecar.engine.hooks import finish, read_debts
from sidecar.engine.journal import Journal
from sidecar.engine.port import Engine
from sidecar.engine.recovery import thaw_owed
from sidecar.errors import ContainerGone, EngineError, JournalUnreadable
from sidecar.events import Emit
from sidecar.model import Container

ROLE = "deadman"
HELPER = "helper"
READY = "standing by"

# Seconds. The start of a container takes about one on two busy cores; LOOK_EVERY bounds how long the application stands
# still after our death; GRACE is what a thaw may take beyond the budget before it counts as hung.
START = 20.0
LOOK_EVERY = 0.25
GRACE = 15.0


@dataclass(frozen=True, slots=True)
class Watched:
    """Whom the dead man watches: a start of the sidecar's container, and the run that may owe a thaw."""

    container: str
    started_at: str
    run: str


class DeadMan:
    """The sidecar's hold on its dead man, for one run.

    It is launched in the background when the block is entered, because a container takes a second to start; `ready` is
    waited for before anything is frozen; when the block is left it is removed, in the background too, because nobody
    has to wait for that. One that cannot be removed stands by until the sidecar's container ends. lease: seconds that
    one freeze may last.
    state: where the journal lies. Where the engine refuses (a socket proxy that lets no container start) the run goes
    on without one, and says so: emits `deadman_missing`.
    """

    def __init__(
        self,
        engine: Engine,
        own: Container,
        *,
        run: str,
        lease: float,
        state: str,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._own = own
        self._command = [
            "deadman",
            f"--container={own.id}",
            f"--started-at={own.started_at}",
            f"--run={run}",
            f"--lease={lease:g}",
        ]
        self._state = state
        self._emit = emit
        self._clock = clock
        self._sleep = sleep
        self._launched = ""
        self._missing: EngineError | None = None
        self._thread = threading.Thread(target=self._launch, name="dead-man", daemon=True)

    def ready(self) -> bool:
        """Wait until it stands by; False where there is none."""
        self._thread.join()
        return self._missing is None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            threading.Thread(target=self._dismiss, name="dead-man", daemon=True).start()
        except RuntimeError:  # no more threads
            self._dismiss()

    def _dismiss(self) -> None:
        self._thread.join()
        if self._launched:
            with suppress(EngineError):
                self._engine.remove(self._launched)

    def _launch(self) -> None:
        try:
            self._launched = self._engine.launch(self._own, role=ROLE, command=self._command, keep=(self._state,))
            until = self._clock() + START
            while READY not in self._engine.output(self._launched):
                if self._clock() >= until:
                    raise EngineError(
                        f"the dead man was not ready within {START:g} s", hint="is this machine overloaded?"
                    )
                self._sleep(0.02)
        except EngineError as error:
            self._missing = error
            self._emit("deadman_missing", error=error.message, hint=error.hint)


def bury(engine: Engine, own: Container, state: str) -> None:
    """Remove the dead men and helpers that were made for us and never started, because we were killed in between.

    The engine removes by itself those that have run. One that is left keeps its volumes from being removed. Ours are
    those that have our state mounted at `state`, and those named after our container. Raises EngineError.
    """
    kept = {mount.volume or mount.source for mount in own.mounts if mount.target == state}
    named = re.compile(rf"{re.escape(own.name)}-(?:{ROLE}|{HELPER})-[0-9a-f]{{6}}")
    for container in engine.containers():
        ours = named.fullmatch(container.name) or any(
            (mount.volume or mount.source) in kept for mount in container.mounts
        )
        if ours and container.role in (ROLE, HELPER) and not container.running:
            engine.remove(container.id)


def stand_by(
    engine: Engine,
    journal: Journal,
    watched: Watched,
    *,
    lease: float,
    say: Callable[[str], None],
    settle: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Sequence[str]:
    """The dead man's whole life: watch, thaw if need be, end. The names of the containers it thawed.

    settle: what has to be done before anything is thawed. Raises ThawFailed when one could not be thawed, and what
    `settle` raises: then nothing is thawed.
    """
    say(READY)
    since: float | None = None
    while True:
        alive = _alive(engine, watched)
        owed, frozen = _owed(journal, watched.run)
        since = (since if since is not None else clock()) if frozen else None
        if not alive or (since is not None and clock() - since > lease + GRACE):
            if not owed:
                return ()
            settle()
            thawed = thaw_owed(engine, journal, watched.run, clock=clock, sleep=sleep)
            say(f"thawed {', '.join(thawed) or 'nothing'}: the sidecar is {'too late' if alive else 'gone'}")
            _finish(engine, journal, say, clock=clock)
            return thawed
        sleep(LOOK_EVERY)


def _alive(engine: Engine, watched: Watched) -> bool:
    """Whether the sidecar still runs. An engine that does not answer cannot thaw either: wait for it."""
    try:
        found = engine.container(watched.container)
    except ContainerGone:
        return False
    except EngineError:
        return True
    return found.running and found.started_at == watched.started_at


def _owed(journal: Journal, run: str) -> tuple[bool, bool]:
    """Whether the journal names something that this run owes, and whether something frozen is among it.

    A damaged one may: then thaw what it names.
    """
    try:
        entry = journal.read()
        hooks = read_debts(journal)
    except JournalUnreadable:
        return True, True
    frozen = entry is not None and entry.run == run and bool(entry.frozen)
    return frozen or (hooks is not None and hooks[0] == run), frozen


def _finish(engine: Engine, journal: Journal, say: Callable[[str], None], *, clock: Callable[[], float]) -> None:
    """Run the post hooks that are owed. What fails is left to the sidecar that comes back."""

    def emit(name: str, /, *, level: int | None = None, **fields: Any) -> None:  # noqa: ARG001 - as of Emit
        say(f"{name}: {fields['container']}: {fields['error'] or 'good'}")

    try:
        finish(engine, journal, emit, may_write=False, clock=clock)
    except (EngineError, JournalUnreadable) as error:
        say(error.message)
