"""What a drill will do: copies of which services, on which volumes, and what they are not given. Pure.

Services that share a volume are tried together, as they run together. A volume of theirs that the set has is restored
for them, whether it was asked for or not; one that it has not is empty, as it would be after a loss.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sidecar.errors import NotFound
from sidecar.model import ROLE_LABEL, Container, Mount, Volume
from sidecar.plan import VOLATILE, is_inside, touches
from sidecar.report import Outcome
from sidecar.restoration import chosen_volumes
from sidecar.sets import Manifest, SetVolume

ROLE = "drill"
# On everything that is made for a drill: the sidecar's state volume. Several sidecars may be on one engine.
OWNER_LABEL = "backup.drill-of"
# On a service: a command that succeeds in it once it is of use.
COMMAND_LABEL = "backup.drill"

HEALTH_CHECK, COMMAND = "health check", "command"
ADD_PROOF = f"give it a health check, or the label {COMMAND_LABEL}=COMMAND with one that succeeds once it is of use"

# Where sockets of others lie, too: a socket can be written to through a read-only mount.
_FOREIGN = (*VOLATILE, "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the host that a service has; why: it is not given to a copy, or empty."""

    mount: Mount
    why: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A service of which a copy is started. command: of its label, or empty: then its health check proves it."""

    container: Container
    command: str
    binds: tuple[Bind, ...]

    @property
    def proof(self) -> str:
        """What proves it."""
        return COMMAND if self.command else HEALTH_CHECK

    @property
    def volumes(self) -> frozenset[str]:
        """The names of all that it has, of whatever kind of volume."""
        return frozenset(mount.volume for mount in self.container.mounts if mount.volume)

    def writes(self, volume: str) -> bool:
        """Whether it owns the volume: has it writable."""
        return _writes(self.container, volume)

    def mounts(self, scratch: Mapping[str, str]) -> list[Mount]:
        """What a copy gets; scratch: volume -> the one that stands for it."""
        volumes = [replace(m, volume=scratch[m.volume], source="") for m in self.container.mounts if m.volume]
        return volumes + [replace(each.mount, writable=False) for each in self.binds if not each.why]

    def constraints(self) -> list[str]:
        """What of its mounts it may miss in a copy, in words."""
        read_only = [each.mount.target for each in self.binds if each.mount.writable and not each.why]
        said = [f"writes to {', '.join(read_only)}, which it may only read"] if read_only else []
        return said + [
            f"needs {each.mount.target}, which it does not get ({each.why})" for each in self.binds if each.why
        ]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What is tried at one time. restored: volumes of the set; empty: names of those that the services have besides."""

    services: tuple[Service, ...]
    restored: tuple[SetVolume, ...]
    empty: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unproven:
    """Why no service proves a volume, and what to do about it."""

    why: str
    hint: str


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """The verdicts. unproven: of the volumes that were asked for those which nothing will prove."""

    manifest: Manifest
    rehearsals: tuple[Rehearsal, ...]
    unproven: Mapping[str, Unproven]


def make_drill_plan(
    manifest: Manifest,
    named: Sequence[str],
    *,
    volumes: Sequence[Volume],
    containers: Sequence[Container],
    root: str,
) -> DrillPlan:
    """Decide; `named`: volumes of the set, all of it when empty. root: the engine's own directory on the host.

    Raises NotFound with the nearest names for a volume that the set does not have, and for a set without any.
    """
    if not manifest.volumes:
        raise NotFound(f"set {manifest.set} has no volume", hint="`list` shows the sets")
    chosen = [each.volume for each in chosen_volumes(manifest, named)]
    others = [c for c in containers if not c.role]
    owners = {name: _owners(name, others) for name in chosen}
    tried = {c.id: c for each in owners.values() for c in each if _has_proof(c)}
    services = [_service(c, others, volumes, root) for c in sorted(tried.values(), key=lambda c: c.name)]
    stored = {each.volume: each for each in manifest.volumes}
    rehearsals = [_rehearsal(each, stored) for each in _together(services)]
    covered = {each.volume for rehearsal in rehearsals for each in rehearsal.restored}
    rehearsals += [Rehearsal((), (stored[name],), ()) for name in chosen if name not in covered]
    unproven = {
        name: _why_unproven(owners[name]) for name in chosen if not any(service.writes(name) for service in services)
    }
    return DrillPlan(manifest, tuple(rehearsals), unproven)


def labels_of(state: str) -> dict[str, str]:
    """What everything carries that is made for a drill; state: the sidecar's state volume (or its directory)."""
    return {ROLE_LABEL: ROLE, OWNER_LABEL: state}


def is_scratch(labels: Mapping[str, str], state: str) -> bool:
    """Whether a container or volume with these labels was made for a drill by the sidecar with this state."""
    return labels.get(ROLE_LABEL) == ROLE and labels.get(OWNER_LABEL) == state


def verdict(outcomes: Iterable[Outcome]) -> Outcome:
    """Of a whole from its parts: red if one is red, and green only if all are."""
    seen = set(outcomes)
    return next((each for each in (Outcome.FAILED, Outcome.PARTIAL) if each in seen), Outcome.GOOD)


def _owners(volume: str, containers: Iterable[Container]) -> list[Container]:
    """Who has it writable: those that run, and only where none does, those that could."""
    writers = sorted((c for c in containers if _writes(c, volume)), key=lambda c: c.name)
    return [c for c in writers if c.running] or writers


def _writes(container: Container, volume: str) -> bool:
    return any(mount.volume == volume and mount.writable for mount in container.mounts)


def _has_proof(container: Container) -> bool:
    return bool(_command(container)) or container.health_check


def _command(container: Container) -> str:
    return container.labels.get(COMMAND_LABEL, "").strip()


def _service(container: Container, others: Sequence[Container], volumes: Sequence[Volume], root: str) -> Service:
    binds = [m for m in container.mounts if m.kind == "bind"]
    neighbours = [c for c in others if c.id != container.id]
    given = tuple(Bind(mount, _why_withheld(mount, neighbours, volumes, root)) for mount in binds)
    return Service(container, _command(container), given)


def _why_withheld(mount: Mount, neighbours: Sequence[Container], volumes: Sequence[Volume], root: str) -> str:
    """Why a copy must not even read it: through a socket in it, it would reach what is real. Empty when it may."""
    source = posixpath.normpath(mount.source)
    if source.endswith((".sock", ".socket")):
        return "it is a socket"
    if any(is_inside(source, place) or is_inside(place, source) for place in (*_FOREIGN, root)):
        return f"{source} of the host may hold sockets or the engine's own data"
    if any(touches(mount, volume) for volume in volumes):
        return f"{source} of the host is a volume's data"
    sharing = (c.name for c in neighbours for m in c.mounts if m.kind == "bind" and m.writable and _overlap(m, source))
    if sharer := next(sharing, ""):
        return f"{sharer} writes to it, and may have sockets there"
    return ""


def _overlap(mount: Mount, source: str) -> bool:
    other = posixpath.normpath(mount.source)
    return is_inside(source, other) or is_inside(other, source)


def _together(services: Sequence[Service]) -> list[list[Service]]:
    """Those that share volumes, directly or by others, in the order of their first."""
    groups: list[list[Service]] = []
    for service in services:
        shared = [group for group in groups if any(service.volumes & each.volumes for each in group)]
        joined = [each for group in shared for each in group] + [service]
        groups = [group for group in groups if group not in shared] + [joined]
    return groups


def _rehearsal(services: Sequence[Service], stored: Mapping[str, SetVolume]) -> Rehearsal:
    names = sorted(frozenset[str]().union(*(service.volumes for service in services)))
    return Rehearsal(
        tuple(services),
        tuple(stored[name] for name in names if name in stored),
        tuple(name for name in names if name not in stored),
    )


def _why_unproven(owners: Sequence[Container]) -> Unproven:
    if not owners:
        return Unproven(
            "no container has it that could prove it", "start the service that it belongs to, and drill again"
        )
    names = ", ".join(container.name for container in owners)
    return Unproven(f"nothing proves it: no health check on {names}", ADD_PROOF)
