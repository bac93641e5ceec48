"""Commands that labels have run inside containers, before and after the freeze of their group.

    with hooked(engine, journal, dependents, ...):  # pre hooks, clients before servers
        with freeze(...):
            ...
    # post hooks, in reverse, after the thaw; whatever became of the block

A pre hook may leave its application in a state that only the post hook ends (a maintenance page, a database in backup
mode). So from before the first pre hook on, all post hooks are owed: on disk, in the freeze journal, until each has
run. `finish` pays what a killed run owes, and so does the dead man, who may only read the journal. A post hook may
therefore run twice, or without its pre hook, or while that still runs: it must be idempotent.

Nothing is frozen while hooks run, so BACKUP_MAX_PAUSE does not count them. A command that takes too long cannot be
ended from outside of its container: it goes on there, and is said to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from sidecar.engine.freeze import freeze_order
from sidecar.engine.journal import Journal
from sidecar.engine.port import Engine
from sidecar.engine.recovery import recover
from sidecar.errors import (
    ContainerGone,
    EngineError,
    EngineUnreachable,
    HookFailed,
    Interrupted,
    JournalUnreadable,
    SidecarError,
)
from sidecar.events import Emit
from sidecar.model import Container, ContainerState, Hooks, Quiesce

# In the journal: `{"run", "group", "hooks": [...]}`, the post hooks in the order in which they are to run.
OWED = "post_hooks"

# Seconds that post hooks are waited for together where somebody waits for us in turn: told to stop, a run has Docker's
# 10 s; and a daemon that pays what a killed run owes does not answer yet. Each has a moment, so that all are begun.
HASTE = 3.0
REPLAY = 30.0
MOMENT = 0.1


@dataclass(frozen=True, slots=True)
class Owed:
    """A post hook that must run, in this start of this container; timeout in seconds.

    started_at is empty where we stop the container ourselves: then any later start will do.
    """

    id: str
    name: str
    started_at: str
    command: str
    timeout: float


class _Patience:
    """How long commands are waited for: their time-out, less once the run has been told to stop, `most` in all."""

    def __init__(self, cancelled: threading.Event, clock: Callable[[], float], most: float = float("inf")) -> None:
        self._cancelled = cancelled
        self._clock = clock
        self._hurried_until = clock() + most

    def for_pre(self, timeout: float) -> Callable[[], bool]:
        """Whether to wait on for a pre hook that begins now."""
        until = self._clock() + timeout
        return lambda: self._clock() < until and not self._cancelled.is_set()

    def for_post(self, timeout: float) -> Callable[[], bool]:
        """Whether to wait on for a post hook that begins now."""
        began = self._clock()

        def waiting() -> bool:
            now = self._clock()
            if self._cancelled.is_set():
                self._hurried_until = min(self._hurried_until, now + HASTE)
            return now < began + timeout and (now < self._hurried_until or now < began + MOMENT)

        return waiting


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs one hook after another, and says how each went. facts: fields of its events."""

    engine: Engine
    emit: Emit
    clock: Callable[[], float]
    facts: Mapping[str, Any]

    def run(
        self,
        hook: str,
        container: Container | Owed,
        command: str,
        timeout: float,
        waiting: Callable[[], bool],
        level: int = logging.ERROR,
    ) -> HookFailed | None:
        """Run it; why it failed, if it did. level: of the event, if it failed. Raises nothing of the engine's."""
        began = self.clock()
        code, output, error = None, "", None
        try:
            done = self.engine.execute(container.id, ["sh", "-c", command], waiting=waiting)
            code, output = done.code, done.output
        except EngineError as failure:
            error = _worded(failure, hook, container.name)
        else:
            if code != 0:
                error = _ended_badly(hook, container.name, code, self.clock() - began, output, timeout)
        self.emit(
            "hook_finished",
            level=None if error is None else level,
            **self.facts,
            container=container.name,
            hook=hook,
            command=command,
            exit_code=code,
            duration_ms=round((self.clock() - began) * 1000, 1),
            output=output,
            error=error.message if error else None,
            hint=error.hint if error else None,
        )
        return error

    def skip(self, hook: str, container: Container | Owed, why: str, level: int | None = None) -> None:
        """Say that a hook does not run, because there is nothing that it could run in."""
        self.emit("hook_skipped", level=level, **self.facts, container=container.name, hook=hook, error=why)


@contextmanager
def hooked(
    engine: Engine,
    journal: Journal,
    containers: Sequence[Container],
    *,
    hooks: Callable[[Container], Hooks],
    quiesce: Callable[[Container], Quiesce],
    run: str,
    group: str,
    cancelled: threading.Event,
    emit: Emit,
    complain: Callable[[SidecarError], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Run the pre hooks of those containers that run, then the block, then the post hooks.

    The post hooks run however the block is left, and if a pre hook fails. What an earlier run owes is done first.
    complain: is told what makes the backup less than good and does not end it: a post hook that failed, a pre hook that
    may fail. Once `cancelled` is set no pre hook is waited for, and post hooks for HASTE seconds in all.

    Raises HookFailed (a pre hook whose failure aborts), Interrupted, JournalUnwritable, JournalUnreadable or another
    EngineError before the block; what the block raises is not replaced.
    """
    recover(journal, engine, emit, clock=clock, sleep=sleep)
    finish(engine, journal, emit, cancelled=cancelled, clock=clock)
    patience = _Patience(cancelled, clock)
    runner = _Runner(engine, emit, clock, {"group": group})
    running = _running(engine, [c for c in containers if hooks(c).pre or hooks(c).post], hooks, runner)
    owed = [_owed(container, hooks(container), quiesce(container)) for container in reversed(running)]
    owed = [each for each in owed if each.command]
    if owed:
        _note(journal, run, group, owed)
    try:
        for container in running:
            _run_pre(runner, container, hooks(container), patience, cancelled, complain)
        yield
    finally:
        _pay(
            runner,
            owed,
            patience.for_post,
            complain,
            note=lambda left: _note(journal, run, group, left),
            frozen=_frozen(journal),
        )


def finish(
    engine: Engine,
    journal: Journal,
    emit: Emit,
    *,
    may_write: bool = True,
    cancelled: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the post hooks that a killed run owes. Call it when all is thawed.

    A hook that fails is done: its event says so. They are waited for REPLAY seconds in all. may_write: False for one
    who may only read the journal. Raises EngineUnreachable (some stay owed; call it again), JournalUnreadable,
    JournalUnwritable.
    """
    debts = read_debts(journal)
    if debts is None:
        return
    run, group, owed = debts
    runner = _Runner(engine, emit, clock, {"run": run, "group": group, "replayed": True})
    patience = _Patience(cancelled or threading.Event(), clock, REPLAY)
    failures: list[SidecarError] = []
    _pay(
        runner,
        owed,
        patience.for_post,
        failures.append,
        note=(lambda left: _note(journal, run, group, left)) if may_write else lambda _: None,
    )
    for error in failures:
        if isinstance(error.__cause__, EngineUnreachable):
            raise error.__cause__
        if not isinstance(error, HookFailed):
            raise error


def read_debts(journal: Journal) -> tuple[str, str, list[Owed]] | None:
    """The run and the group that owe post hooks, and these; None when none are owed. Raises JournalUnreadable."""
    entry = journal.read()
    if entry is None or OWED not in entry.others:
        return None
    debt = entry.others[OWED]
    try:
        owed = [
            Owed(
                str(each["id"]),
                str(each["name"]),
                str(each["started_at"]),
                str(each["command"]),
                float(each["timeout"]),
            )
            for each in debt["hooks"]
        ]
        return str(debt["run"]), str(debt["group"]), owed
    except (KeyError, TypeError, ValueError) as error:
        raise JournalUnreadable(
            f"the post hooks in the freeze journal {journal.path} are damaged: {error!r}",
            hint="run those that are missing by hand (labels backup.post), then remove the file",
        ) from error


def _running(
    engine: Engine, containers: Sequence[Container], hooks: Callable[[Container], Hooks], runner: _Runner
) -> list[Container]:
    """Those that run now, as they are now, in the order in which they will be frozen."""
    found = []
    for container in containers:
        try:
            now = engine.container(container.id)
        except ContainerGone:
            continue
        if now.state in (ContainerState.RUNNING, ContainerState.RESTARTING):
            found.append(now)
        elif hooks(container).pre:
            runner.skip("pre", now, f"{now.name} is {now.state}", logging.INFO)
    return [container for step in freeze_order(found) for container in step]


def _owed(container: Container, hooks: Hooks, quiesce: Quiesce) -> Owed:
    started_at = "" if quiesce is Quiesce.STOP else container.started_at
    return Owed(container.id, container.name, started_at, hooks.post, hooks.timeout)


def _run_pre(
    runner: _Runner,
    container: Container,
    hooks: Hooks,
    patience: _Patience,
    cancelled: threading.Event,
    complain: Callable[[SidecarError], None],
) -> None:
    if cancelled.is_set():
        raise Interrupted("the run was told to stop before all pre hooks had run")
    if not hooks.pre:
        return
    level = logging.ERROR if hooks.abort else logging.WARNING
    error = runner.run("pre", container, hooks.pre, hooks.timeout, patience.for_pre(hooks.timeout), level)
    if cancelled.is_set():
        raise Interrupted(f"the run was told to stop while the pre hook of {container.name} ran")
    if error and hooks.abort:
        raise error
    if error:
        complain(error)


def _note(journal: Journal, run: str, group: str, owed: Sequence[Owed]) -> None:
    if owed:
        journal.owe(OWED, {"run": run, "group": group, "hooks": [asdict(each) for each in owed]})
    else:
        journal.settle(OWED)


def _pay(
    runner: _Runner,
    debts: Sequence[Owed],
    waiting: Callable[[float], Callable[[], bool]],
    complain: Callable[[SidecarError], None],
    *,
    note: Callable[[Sequence[Owed]], None],
    frozen: Collection[str] = (),
) -> None:
    """Run post hooks, and note those that are left as each is done. Whatever fails, the others run.

    Those of containers that are still frozen (IDs) stay owed, and what the engine could not be asked to run.
    """
    left = list(debts)
    for owed in debts:
        if owed.id in frozen:
            continue
        if error := _run_post(runner, owed, waiting(owed.timeout)):
            complain(error)
            if isinstance(error.__cause__, EngineUnreachable):
                continue
        left.remove(owed)
        try:
            note(left)
        except SidecarError as failure:
            complain(failure)


def _frozen(journal: Journal) -> set[str]:
    """Whom the freeze could not thaw."""
    try:
        entry = journal.read()
    except JournalUnreadable:
        return set()
    return {intent.id for intent in entry.frozen} if entry else set()


def _run_post(runner: _Runner, owed: Owed, waiting: Callable[[], bool]) -> HookFailed | None:
    """Run it, where the container is the same start still; why it failed, if it did."""
    with suppress(EngineError):  # then the command meets the same trouble, and says it
        try:
            found = runner.engine.container(owed.id)
        except ContainerGone:
            runner.skip("post", owed, f"{owed.name} does not exist any more")
            return None
        if not found.running or (owed.started_at and found.started_at != owed.started_at):
            runner.skip("post", owed, f"{owed.name} was {'started anew' if found.running else 'stopped'} since")
            return None
    return runner.run("post", owed, owed.command, owed.timeout, waiting)


def _worded(error: EngineError, hook: str, name: str) -> HookFailed:
    failed = HookFailed(f"the {hook} hook of {name} could not be run: {error.message}", hint=error.hint)
    failed.__cause__ = error
    return failed


def _ended_badly(hook: str, name: str, code: int | None, seconds: float, output: str, timeout: float) -> HookFailed:
    if code is None:
        return HookFailed(
            f"the {hook} hook of {name} did not end within {seconds:.1f} s, and goes on running there",
            hint="nothing outside of its container can end it; give it more time with the label backup.hook-timeout"
            if seconds >= timeout
            else "it was not waited for longer, because the run was told to stop, or had been killed before",
        )
    last = output.strip().rpartition("\n")[2]
    return HookFailed(
        f"the {hook} hook of {name} ended with exit code {code}" + (f": {last[-300:]}" if last else ""),
        hint="the event hook_finished in the log has what it wrote",
    )
