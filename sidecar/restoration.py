"""What a restore will do: which volumes of a set, who has to stand still for it, what stands in its way. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.errors import NotFound, RestoreRefused
from sidecar.model import Container, ContainerState, Volume
from sidecar.plan import can_reach, nearest
from sidecar.report import Outcome
from sidecar.sets import Manifest, SetVolume

_SWARM_TASK = "com.docker.swarm.task.id"


@dataclass(frozen=True, slots=True)
class RestoredFrom:
    """One volume of the set; exists: whether it is on this engine already. If not, it is made with its labels."""

    stored: SetVolume
    exists: bool


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """The verdicts. containers: who uses one of the volumes and runs, and so is stopped and started again, by name."""

    manifest: Manifest
    volumes: tuple[RestoredFrom, ...]
    containers: tuple[Container, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The object of `restore --dry-run --json`."""
        return {
            "set": self.manifest.set,
            "time": self.manifest.time,
            "host": self.manifest.host,
            "volumes": [
                {
                    "volume": each.stored.volume,
                    "exists": each.exists,
                    "files": each.stored.files,
                    "raw_bytes": each.stored.raw_bytes,
                    "archive_bytes": each.stored.archive.size,
                }
                for each in self.volumes
            ],
            "containers": [container.name for container in self.containers],
            "warnings": list(self.warnings),
        }


def make_restore_plan(
    manifest: Manifest,
    named: Sequence[str],
    *,
    volumes: Sequence[Volume],
    containers: Sequence[Container],
    protected: Mapping[str, str],
) -> RestorePlan:
    """Decide; `named`: volumes of the set, all of it when empty. protected: IDs that must never be stopped -> why.

    Raises NotFound with the nearest names for a volume that the set does not have, RestoreRefused with the first thing
    that stands in the way.
    """
    chosen = _chosen(manifest, named)
    here = {volume.name: volume for volume in volumes}
    for stored in chosen:
        _must_be_plain(stored, here.get(stored.volume))
    targets = [here[stored.volume] for stored in chosen if stored.volume in here]
    users = [c for c in containers if not c.role and c.running and any(can_reach(c, volume) for volume in targets)]
    users.sort(key=lambda container: container.name)
    for container in users:
        _must_be_stoppable(container, protected)
    return RestorePlan(
        manifest,
        tuple(RestoredFrom(stored, stored.volume in here) for stored in chosen),
        tuple(users),
        tuple(_warnings(manifest, chosen, whole=not named)),
    )


def _chosen(manifest: Manifest, named: Sequence[str]) -> list[SetVolume]:
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


def _must_be_plain(stored: SetVolume, volume: Volume | None) -> None:
    """Making a volume with driver options anew could mount, and then overwrite, something that lives elsewhere."""
    if volume is None and (stored.driver != "local" or stored.options):
        raise RestoreRefused(
            f"volume {stored.volume} does not exist, and was made with driver {stored.driver} and options of its own",
            hint="create it as it was (RECOVER.txt of the set shows its driver and options), then restore",
            volume=stored.volume,
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


def _warnings(manifest: Manifest, chosen: Sequence[SetVolume], *, whole: bool) -> list[str]:
    warnings = [
        f"volume {stored.volume}: {len(stored.changed_files)} file(s) changed while it was read and may be torn, "
        f"{stored.changed_files[0]!r} first"
        for stored in chosen
        if stored.outcome is not Outcome.GOOD and stored.changed_files
    ]
    if whole:
        warnings += [f"volume {m.volume} is not in the set: {m.why}" for m in manifest.missing]
    return warnings
