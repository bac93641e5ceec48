"""Who writes below a prefix: one engine, and of its sidecars one at a time.

`owner.json` names both. Another engine is always refused. Another sidecar of this engine is refused for as long as it
runs, because each removes at its start what the other is uploading; one that is gone is succeeded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sidecar import sets
from sidecar.engine.port import Engine
from sidecar.errors import ObjectExists, ObjectMissing, OwnedByAnotherHost, OwnedByAnotherSidecar, SetInvalid
from sidecar.events import Emit
from sidecar.jobs.catalogue import read_document
from sidecar.model import Container
from sidecar.stores.port import Store

ROLE = "sidecar"


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims a prefix.

    engine, host: its ID and name. state: what is mounted at /state, a volume's name or a directory of the host: two
    sidecars never share one. running: the name of another container that runs on this engine as the sidecar with that
    state, or None; raises EngineError.
    """

    engine: str
    host: str
    state: str
    running: Callable[[str], str | None]


def claimant(engine: Engine, own: Container, *, host: str, target: str) -> Claimant:
    """This sidecar; target: where its state is mounted. Raises EngineError."""

    def running(state: str) -> str | None:
        return next(
            (
                each.name
                for each in engine.containers(running_only=True)
                if each.role == ROLE and each.id != own.id and state_of(each, target) == state
            ),
            None,
        )

    return Claimant(engine.identity().id, host, state_of(own, target), running)


def state_of(container: Container, target: str) -> str:
    """What a container has mounted at `target`; an empty string when nothing is."""
    return next((mount.volume or mount.source for mount in container.mounts if mount.target == target), "")


def claim(store: Store, us: Claimant, since: datetime, emit: Emit) -> None:
    """Make the prefix ours, durably. Raises what `admitted` does, but for ObjectMissing."""
    document = sets.owner_document(us.engine, us.host, since, us.state)
    try:
        store.put(sets.OWNER, document, if_absent=True)
    except ObjectExists:
        owner = admitted(store, us)
        if owner.state != us.state:
            _succeed(store, us, owner, document, emit)


def _succeed(store: Store, us: Claimant, owner: sets.Owner, document: bytes, emit: Emit) -> None:
    store.put(sets.OWNER, document)
    if owner.state:  # an older version named none
        emit(
            "prefix_taken_over",
            store=store.name,
            error=f"{store.location} belonged to the sidecar with the state {owner.state}, which does not run any more",
            hint=f"nothing to do if the one with the state {us.state} has taken its place",
        )


def is_ours(store: Store, us: Claimant) -> bool:
    """Whether what is under way below the prefix can only be our own; False where nothing was ever stored.

    Raises OwnedByAnotherSidecar, StoreError, EngineError.
    """
    try:
        admitted(store, us)
    except (ObjectMissing, OwnedByAnotherHost):
        return False
    return True


def admitted(store: Store, us: Claimant) -> sets.Owner:
    """The prefix's owner: ourselves, or one in whose place we may step.

    Raises OwnedByAnotherHost, OwnedByAnotherSidecar, ObjectMissing where there is none, StoreError, EngineError.
    """
    try:
        owner = sets.owner_of(read_document(store, sets.OWNER))
    except SetInvalid as error:
        raise OwnedByAnotherHost(error.message, hint=error.hint, store=store.name) from error
    if owner.engine != us.engine:
        raise OwnedByAnotherHost(
            f"{store.location} belongs to host {owner.host}",
            hint="give this host a BACKUP_HOST name or a BACKUP_PREFIX of its own",
            store=store.name,
        )
    other = us.running(owner.state) if owner.state not in ("", us.state) else None
    if other:
        raise OwnedByAnotherSidecar(
            f"{store.location} belongs to the sidecar {other}, which runs on this host",
            hint="one sidecar backs up a whole host: stop one of them, or give each a BACKUP_PREFIX (a directory, for "
            "local sets) of its own",
            store=store.name,
        )
    return owner
