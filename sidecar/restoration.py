"""What a restore will do: which volumes of a set, who has to stand still for it, what stands in its way. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.errors import NotFound, RestoreRefused, WrongUsage
from sidecar.model import Container, ContainerState, Volume
from sidecar.plan import VOLUMES_TARGET, can_reach, nearest
from sidecar.report import Outcome
from sidecar.sets import Manifest, SetVolume, lacks_secrets

_SIDECAR = "sidecar"  # the role
_SWARM_TASK = "com.docker.swarm.task.id"
# Of a volume that was made to restore into: the set and the volume that it is of.
RESTORED_LABEL = "backup.restored-from"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")  # docker volume create


@dataclass(frozen=True, slots=True)
class RestoredFrom:
    """One volume of the set, and the volume `target` that it goes into; where there is none, it is made like this.

    driver, options: not always those that it had, of which the set tells: see `special`.
    """

    stored: SetVolume
    target: str
    exists: bool
    labels: Mapping[str, str]
    driver: str = "local"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def special(self) -> str:
        """How it was made, where that is not how it is made now; empty where there is no difference."""
        if self.exists or self.target != self.stored.volume or (self.driver, self.options) == _made(self.stored):
            return ""
        return made_with(self.stored)


def made_with(stored: SetVolume) -> str:
    """How a volume was made, in words."""
    driver, options = _made(stored)
    told = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return f"driver {driver}" + (f" and options {told}" if told else "")


def _made(stored: SetVolume) -> tuple[str, Mapping[str, str]]:
    return stored.driver, dict(stored.options)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """The verdicts. containers: who uses one of the volumes and runs, and so is stopped and started again, by name.

    pattern: a glob; then what matches it is put in place, and all else stays. safety: what is there is backed up first.
    """

    manifest: Manifest
    volumes: tuple[RestoredFrom, ...]
    containers: tuple[Container, ...]
    warnings: tuple[str, ...]
    pattern: str | None = None
    safety: bool = False

    def as_json(self) -> dict[str, Any]:
        """The object of `restore --dry-run --json`."""
        return {
            "set": self.manifest.set,
            "time": self.manifest.time,
            "host": self.manifest.host,
            "volumes": [
                {
                    "volume": each.stored.volume,
                    "into": each.target,
                    "exists": each.exists,
                    "special": each.special,
                    "files": each.stored.files,
                    "raw_bytes": each.stored.raw_bytes,
                    "archive_bytes": each.stored.archive.size,
                }
                for each in self.volumes
            ],
            "containers": [container.name for container in self.containers],
            "pattern": self.pattern,
            "safety": self.safety and any(each.exists for each in self.volumes),
            "warnings": list(self.warnings),
        }


def make_restore_plan(
    manifest: Manifest,
    named: Sequence[str],
    *,
    volumes: Sequence[Volume],
    containers: Sequence[Container],
    protected: Mapping[str, str],
    into: str | None = None,
    drivers: bool = False,
) -> RestorePlan:
    """Decide; `named`: volumes of the set, all of it when empty. protected: IDs that must never be stopped -> why.

    drivers: volumes that do not exist are made with the driver and options that they had. Else they become plain local
    ones: options may lead to what lives elsewhere, and may be in use by another host.

    into: the name of a new volume for the one that is chosen: always a plain local one, and never with its driver's
    options, which could lead to the live data; nor with its Compose labels. Raises NotFound with the nearest names for
    a volume that the set does not have, WrongUsage, RestoreRefused with the first thing that stands in the way.
    """
    chosen = chosen_volumes(manifest, named)
    here = {volume.name: volume for volume in volumes}
    if into is None:
        restored = [_in_place(stored, stored.volume in here, drivers) for stored in chosen]
    else:
        restored = [_as_new(manifest, chosen, into, here)]
    targets = [here[each.target] for each in restored if each.exists]
    for volume in targets:
        _must_not_be_a_sidecars(volume, containers)
    users = [c for c in containers if not c.role and c.running and any(can_reach(c, volume) for volume in targets)]
    users.sort(key=lambda container: container.name)
    for container in users:
        _must_be_stoppable(container, protected)
    return RestorePlan(
        manifest,
        tuple(restored),
        tuple(users),
        tuple(_warnings(manifest, restored, whole=not named)),
    )


def chosen_volumes(manifest: Manifest, named: Sequence[str]) -> list[SetVolume]:
    """The volumes of a set that are named, or all. Raises NotFound with the nearest names."""
    found = {stored.volume: stored for stored in manifest.volumes}
    for name in named:
        if name in found:
            continue
        missing = next((m for m in manifest.missing if m.volume == name), None)
        if missing:
            raise NotFound(
                f"volume {name} is not in set {manifest.set}: {missing.why}",
                hint="`list` shows the sets; an earlier one may have it",
                volume=name,
            )
        hint = nearest(name, found, f"`list {manifest.set}` shows its volumes")
        raise NotFound(f"set {manifest.set} has no volume {name!r}", hint=hint, volume=name)
    return [found[name] for name in dict.fromkeys(named)] if named else list(manifest.volumes)


def _as_new(manifest: Manifest, chosen: Sequence[SetVolume], into: str, here: Mapping[str, Volume]) -> RestoredFrom:
    if len(chosen) != 1:
        raise WrongUsage(
            f"{len(chosen)} volumes cannot be restored as the one volume {into}",
            hint="name the VOLUME: restore SET VOLUME",
        )
    if not _NAME.fullmatch(into):
        raise WrongUsage(f"{into!r} is no name for a volume", hint="letters, digits, `_`, `.` and `-`, from 2 on")
    if into in here:
        raise RestoreRefused(
            f"volume {into} exists already", hint=f"choose another name, or remove it: docker volume rm {into}"
        )
    return RestoredFrom(chosen[0], into, False, {RESTORED_LABEL: f"{manifest.set}/{chosen[0].volume}"})


def _in_place(stored: SetVolume, exists: bool, drivers: bool) -> RestoredFrom:
    if exists or not drivers:
        return RestoredFrom(stored, stored.volume, exists, stored.labels)
    driver, options = _made(stored)
    if lacks_secrets(options):
        raise RestoreRefused(
            f"volume {stored.volume} was made with {made_with(stored)}; what looks like a password is never recorded",
            hint="create it yourself, then restore; or leave out --with-driver, and it becomes a plain local volume",
            volume=stored.volume,
        )
    return RestoredFrom(stored, stored.volume, exists, stored.labels, driver, options)


def _must_not_be_a_sidecars(volume: Volume, containers: Sequence[Container]) -> None:
    """A sidecar's own state, in no set that a sidecar made: what is in it decides what it does to all other volumes."""
    for container in containers:
        for mount in container.mounts:
            seen = mount.target.startswith(f"{VOLUMES_TARGET}/")  # mounted to be backed up, as NFS volumes may be
            if container.role == _SIDECAR and mount.volume == volume.name and mount.writable and not seen:
                raise RestoreRefused(
                    f"volume {volume.name} is where {container.name} keeps what it knows, and is never restored",
                    hint="who has put it into the set? do not trust that set",
                    volume=volume.name,
                )


def _must_be_stoppable(container: Container, protected: Mapping[str, str]) -> None:
    if container.id in protected:
        why, hint = protected[container.id], "restore by hand, as RECOVER.txt of the set says"
    elif container.auto_remove:
        why, hint = "it would remove itself when it stops", f"stop it yourself: docker stop {container.name}"
    elif _SWARM_TASK in container.labels:
        why, hint = "Swarm would start another task in its place", "scale its service to 0, then restore"
    elif container.state is ContainerState.PAUSED:
        why = "it is paused, and could not be put back into that state"
        hint = f"docker unpause {container.name}, or stop it"
    else:
        return
    raise RestoreRefused(
        f"container {container.name} uses a volume that is to be restored and must not be stopped: {why}", hint=hint
    )


def _warnings(manifest: Manifest, restored: Sequence[RestoredFrom], *, whole: bool) -> list[str]:
    warnings = [
        f"volume {stored.volume}: {len(stored.changed_files)} file(s) changed while it was read and may be torn, "
        f"{stored.changed_files[0]!r} first"
        for stored in (each.stored for each in restored)
        if stored.outcome is not Outcome.GOOD and stored.changed_files
    ]
    warnings += [
        f"volume {each.target} was made with {each.special}; here it becomes a plain local volume "
        "(--with-driver: as it was)"
        for each in restored
        if each.special
    ]
    if whole:
        warnings += [f"volume {m.volume} is not in the set: {m.why}" for m in manifest.missing]
    return warnings
