"""What the guard holds, and what has to change for that. Pure.

The guard is a running container that mounts volumes read-only and does nothing. While it has a volume,
`docker-compose down -v`, `docker volume rm` and `docker volume prune` cannot delete it ("volume is in use": tried). A
guard cannot be given another volume: a new one is started, and only then the old one goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sidecar.model import ROLE_LABEL, Container, Volume
from sidecar.plan import Plan, can_reach

ROLE = "guard"
# On the guard: the sidecar's state volume. Several sidecars may be on one engine, and one may get another name.
OWNER_LABEL = "backup.guard-of"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A volume that the guard does not hold although it exists, and why."""

    volume: str
    why: str


@dataclass(frozen=True, slots=True)
class Guarded:
    """How things are once the guard has been looked after.

    container: the guard's name, empty where there is none. volumes: what it holds, by name. released: those among the
    ones asked to be let go that it would hold otherwise. used: of both, those that a container of somebody's has,
    running or not.
    """

    container: str = ""
    volumes: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    used: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """keep: the guard that is as it should be; else make: the name for a new one, empty where none is wanted.

    remove: what has to go, once the one that stays runs.
    """

    keep: Container | None
    make: str
    remove: tuple[Container, ...]


def home_of(own: Container) -> str:
    """The name of a sidecar's guard."""
    return f"{own.name}-{ROLE}"


def sidecar_of(home: str) -> str:
    """The name of the sidecar whose guard is called so."""
    return home.removesuffix(f"-{ROLE}")


def labels_of(state: str) -> dict[str, str]:
    """What a guard carries; state: the sidecar's state volume (or its directory)."""
    return {ROLE_LABEL: ROLE, OWNER_LABEL: state}


def guards_among(containers: Iterable[Container], state: str) -> list[Container]:
    """The guards that the sidecar with this state has made, by name."""
    ours = [c for c in containers if c.role == ROLE and c.labels.get(OWNER_LABEL) == state]
    return sorted(ours, key=lambda container: container.name)


def held_by(guard: Container) -> frozenset[str]:
    """The volumes that it keeps from being deleted, by name."""
    return frozenset(mount.volume for mount in guard.mounts if mount.volume)


def choose(plan: Plan, volumes: Sequence[Volume]) -> tuple[frozenset[str], tuple[LeftOut, ...]]:
    """The names of the volumes worth guarding, and why each of the others is not.

    They are those that a run would back up and whose data is deleted with the volume. A volume with driver options
    (NFS, a bind) lies elsewhere and stays there; a guard would keep it mounted, or not start while its server is away.
    What we have made ourselves, for a drill, is none of anybody's volumes, and not among the others.
    """
    planned = [each.volume for group in plan.groups for each in group.volumes]
    wanted = frozenset(each.name for each in planned if each.driver == "local" and not each.options)
    why = {each.volume: each.why for each in plan.skipped}
    elsewhere = "its driver keeps its data elsewhere"
    others = sorted(each.name for each in volumes if each.name not in wanted and not each.labels.get(ROLE_LABEL))
    return wanted, tuple(LeftOut(name, why.get(name, elsewhere)) for name in others)


def decide(
    guards: Sequence[Container], wanted: Collection[str], *, home: str, image: str, taken: Collection[str]
) -> Verdict:
    """What to do with our guards so that one of them, of this image, holds exactly what is wanted.

    home: the name that it is to have. taken: the names of all containers there are.
    """
    if not wanted:
        return Verdict(None, "", tuple(guards))
    fitting = [each for each in guards if each.running and each.image_id == image and held_by(each) == set(wanted)]
    keep = min(fitting, key=lambda each: (each.name != home, each.name), default=None)
    make = "" if keep else next(name for name in _names(home, len(taken)) if name not in taken)
    return Verdict(keep, make, tuple(each for each in guards if each is not keep))


def used_among(names: Iterable[str], volumes: Iterable[Volume], containers: Iterable[Container]) -> frozenset[str]:
    """Of the volumes named, those that a container which is not ours has, whatever its state."""
    users = [container for container in containers if not container.role]
    named = set(names)
    return frozenset(v.name for v in volumes if v.name in named and any(can_reach(c, v) for c in users))


def _names(home: str, count: int) -> list[str]:
    """One more name than there are containers."""
    return [home, f"{home}-next", *(f"{home}-next-{number}" for number in range(2, count + 1))]
