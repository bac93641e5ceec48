"""The guard's container: made, replaced without a gap, removed.

What is cut off in the middle leaves guards that hold more than they should, never less; the next look puts it right.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from sidecar.engine.journal import Journal
from sidecar.engine.port import Engine
from sidecar.errors import ContainerGone, EngineError
from sidecar.events import Emit
from sidecar.guarding import Guarded, Verdict, choose, decide, guards_among, held_by, home_of, labels_of, used_among
from sidecar.jobs.restore import owed_volumes
from sidecar.model import Container
from sidecar.plan import Selection, Surroundings, make_plan

# On a volume that the engine has made because it was removed between our look and our request.
_MADE_LABEL = "backup.made-for"
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class GuardTools:
    """What the guard is looked after with; wiring makes it.

    look, selection: what the plan of a whole run is made from. own: our container. state: what is mounted as our state.
    journal: says which volumes a restore is at work on.
    """

    engine: Engine
    look: Callable[[], Surroundings]
    selection: Selection
    own: Callable[[], Container]
    state: Callable[[Container], str]
    journal: Journal
    emit: Emit


def guard(released: Collection[str], tools: GuardTools) -> Guarded:
    """See to it that a guard holds every volume that is worth it and not released; how things are then.

    A new guard runs before an old one goes. A volume that a restore is making is left alone until it is made. Emits
    `guard_changed`. Raises EngineError.
    """
    for _ in range(_ATTEMPTS):
        if (guarded := _attempt(frozenset(released), tools)) is not None:
            return guarded
    raise EngineError("volumes come and go faster than they can be guarded", hint="nothing to do: it is tried again")


def dismiss(tools: GuardTools) -> None:
    """Remove our guard, if there is one; emits `guard_changed` then. Raises EngineError."""
    own = tools.own()
    guards = guards_among(tools.engine.containers(), tools.state(own))
    for each in guards:
        tools.engine.remove(each.id)
    _say(tools.emit, guards, frozenset(), "")


def sign(engine: Engine, own: Container) -> object:
    """Compares equal as long as no volume has come or gone and the guard is as it was: two small questions."""
    guard: object = None
    with suppress(ContainerGone):
        found = engine.container(home_of(own))
        guard = found.id, found.state
    return guard, [(volume.name, volume.created) for volume in engine.volumes()]


def _attempt(released: frozenset[str], tools: GuardTools) -> Guarded | None:
    """None when a volume has gone meanwhile: look again."""
    around, own = tools.look(), tools.own()
    guards = guards_among(around.containers, tools.state(own))
    worth, left_out = choose(make_plan(tools.selection, around), around.volumes)
    held = frozenset[str]().union(*map(held_by, guards))
    # Read after the look: what a restore has made and not finished stands in its journal.
    being_made = frozenset(owed_volumes(tools.journal)) - held
    wanted = worth - released - being_made
    home, names = home_of(own), {container.name for container in around.containers}
    verdict = decide(guards, wanted, home=home, image=own.image_id, taken=names)
    name = _carry_out(verdict, wanted, home, own, tools)
    if name is None:
        return None
    if verdict.make or verdict.remove:
        _say(tools.emit, guards, wanted, name)
    users = used_among(worth, around.volumes, around.containers)
    return Guarded(name, tuple(sorted(wanted)), tuple(sorted(worth & released)), left_out, users)


def _carry_out(verdict: Verdict, wanted: Collection[str], home: str, own: Container, tools: GuardTools) -> str | None:
    """The name of the guard that is there now, empty where none is wanted; None when a volume has gone meanwhile."""
    engine = tools.engine
    identifier, name = (verdict.keep.id, verdict.keep.name) if verdict.keep else ("", verdict.make)
    if verdict.make:
        identifier = _made(verdict.make, wanted, own, tools)
        if not identifier:
            return None
    for each in verdict.remove:
        engine.remove(each.id)
    if identifier and name != home:
        engine.rename(identifier, home)
    return home if identifier else ""


def _made(name: str, wanted: Collection[str], own: Container, tools: GuardTools) -> str:
    """A new guard that runs; its ID, empty when a volume has gone meanwhile."""
    engine, mark = tools.engine, secrets.token_hex(8)
    identifier = engine.create_guard(
        own, name, volumes=sorted(wanted), labels=labels_of(tools.state(own)), made={_MADE_LABEL: mark}
    )
    try:
        # A mount of a volume that is not there makes it: one that was removed must not come back, empty, by our doing.
        revived = [volume.name for volume in engine.volumes() if volume.labels.get(_MADE_LABEL) == mark]
        if not revived:
            engine.start(identifier)
            return identifier
    except EngineError:
        with suppress(EngineError):
            engine.remove(identifier)
        raise
    engine.remove(identifier)
    for volume in revived:
        engine.remove_volume(volume)
    return ""


def _say(emit: Emit, before: Collection[Container], now: Collection[str], container: str) -> None:
    held = frozenset[str]().union(*map(held_by, before))
    if before or now:
        emit(
            "guard_changed",
            container=container or None,
            volumes=sorted(now),
            taken=sorted(frozenset(now) - held),
            let_go=sorted(held - frozenset(now)),
        )
