"""What a run will do: which volumes, in which groups, whom it freezes, what it leaves out and why. Pure.

`plan`, `--dry-run` and a run itself use the same verdicts.
"""

from __future__ import annotations

import difflib
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from sidecar.config import duration
from sidecar.errors import NotFound
from sidecar.model import ROLE_LABEL, Container, Hooks, Mount, Quiesce, Volume
from sidecar.report import Unprotected

VOLUMES_TARGET = "/volumes"

# Nothing there outlives a reboot (hier(7): devices, kernel interfaces, run-time files): no backup could bring it back.
VOLATILE = ("/dev", "/proc", "/sys", "/run", "/var/run")

_LABEL_QUIESCE = "backup.quiesce"
_LABEL_PRE = "backup.pre"
_LABEL_POST = "backup.post"
_LABEL_TIMEOUT = "backup.hook-timeout"
_LABEL_FAILURE = "backup.on-hook-failure"
_LABEL_EXCLUDE = "backup.exclude"
_LABEL_GROUP = "backup.group"

_NO_HOOKS = Hooks()


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user asked for: globs of BACKUP_INCLUDE and BACKUP_EXCLUDE, and volumes named for this run."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    quiesce: Quiesce = Quiesce.PAUSE


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the plan is made from.

    own_mounts: our own container's; mount_points: the paths of /proc/self/mountinfo; protected: containers that must
    never be frozen, with the reason (what serves our engine connection); bucket_hosts: containers that serve a store.
    """

    volumes: Sequence[Volume]
    containers: Sequence[Container]
    own_mounts: Sequence[Mount]
    mount_points: Collection[str]
    protected: Mapping[str, str]
    bucket_hosts: Collection[str]


@dataclass(frozen=True, slots=True)
class PlannedVolume:
    """A volume that will be backed up; path: where its data is in our container."""

    volume: Volume
    path: str


@dataclass(frozen=True, slots=True)
class PlannedContainer:
    """A dependent, and how it is kept from writing; why: what says so; hooks: what is run in it around that."""

    container: Container
    quiesce: Quiesce
    why: str
    hooks: Hooks = _NO_HOOKS


@dataclass(frozen=True, slots=True)
class Group:
    """Volumes captured at one frozen instant, and all their dependents."""

    name: str
    volumes: tuple[PlannedVolume, ...]
    containers: tuple[PlannedContainer, ...]

    def quiesce_of(self, container: str) -> Quiesce:
        """How the dependent with this ID is kept from writing."""
        return self._planned(container).quiesce

    def hooks_of(self, container: str) -> Hooks:
        """What is run in the dependent with this ID, before and after."""
        return self._planned(container).hooks

    @property
    def has_hooks(self) -> bool:
        """Whether anything is to be run in any of them."""
        return any(planned.hooks.pre or planned.hooks.post for planned in self.containers)

    def dependents_among(self, containers: Iterable[Container]) -> set[str]:
        """IDs of those containers that can write this group's data."""
        volumes = [planned.volume for planned in self.volumes]
        return {c.id for c in containers if not c.role and any(can_write(c, volume) for volume in volumes)}

    def _planned(self, container: str) -> PlannedContainer:
        return next(planned for planned in self.containers if planned.container.id == container)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A volume that is left out. failed: it should have been backed up, so the run cannot be good."""

    volume: str
    code: str
    why: str
    hint: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The verdicts."""

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    unprotected: tuple[Unprotected, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The object of `plan --json`, without what only the daemon knows."""
        return {
            "groups": [
                {
                    "group": group.name,
                    "volumes": [
                        {"volume": v.volume.name, "mountpoint": v.volume.mountpoint, "path": v.path}
                        for v in group.volumes
                    ],
                    "containers": [
                        {
                            "container": c.container.name,
                            "quiesce": c.quiesce.value,
                            "why": c.why,
                            "hooks": _shown(c.hooks),
                        }
                        for c in group.containers
                    ],
                }
                for group in self.groups
            ],
            "skipped": [{"volume": s.volume, "code": s.code, "why": s.why, "hint": s.hint} for s in self.skipped],
            "unprotected": [{"container": u.container, "mount": u.mount, "why": u.why} for u in self.unprotected],
            "warnings": list(self.warnings),
        }


def make_plan(selection: Selection, around: Surroundings) -> Plan:
    """Decide. Raises NotFound when a volume named for this run does not exist, with the nearest names."""
    _refuse_unknown(selection.named, around.volumes)
    chosen: list[PlannedVolume] = []
    skipped: list[Skipped] = []
    warnings: list[str] = []
    for volume in sorted(around.volumes, key=lambda v: v.name):
        verdict = _left_out(volume, selection, around) or _located(volume, around)
        if isinstance(verdict, Skipped):
            skipped.append(verdict)
            if verdict.code == "holds_bucket":
                warnings.append(f"volume {volume.name} is left out: {verdict.why}; {verdict.hint}")
        else:
            chosen.append(verdict)
    for name in selection.named:
        overruled = _left_out(next(v for v in around.volumes if v.name == name), replace(selection, named=()), around)
        if overruled and overruled.code != "own_volume":
            warnings.append(f"volume {name} is backed up because it was named, although {overruled.why}")
    if not selection.named:
        missing, idle = _matching_nothing(selection.include, around.volumes)
        skipped += missing
        warnings += idle
    others = [c for c in around.containers if not c.role]
    warnings += [
        f"container {c.name} has the label {_LABEL_QUIESCE}={c.labels[_LABEL_QUIESCE]}, which is not one of "
        f"{', '.join(Quiesce)}: it is quiesced as by default"
        for c in _by_name(others)
        if _quiesce_label(c) not in ("", *Quiesce)
    ]
    warnings += [warning for c in _by_name(others) for warning in _hooks(c)[1]]
    return Plan(
        _groups(chosen, others, selection.quiesce, around.protected),
        tuple(skipped),
        # Who names a volume asks about that volume, and not about what others do not protect.
        ()
        if selection.named
        else _unprotected(others, around.volumes, {planned.volume.name for planned in chosen}, selection.exclude),
        tuple(warnings),
    )


def nearest(name: str, names: Iterable[str], otherwise: str) -> str:
    """A hint: the up to three names most like `name`, or `otherwise` when none is."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def can_write(container: Container, volume: Volume) -> bool:
    """Whether it has the volume mounted writable, by name or by a bind at, above or below its mountpoint.

    Sources are compared as the engine reports them; a symlink on the host inside a bind's source is not resolved.
    """
    return any(m.writable and touches(m, volume) for m in container.mounts)


def can_reach(container: Container, volume: Volume) -> bool:
    """Whether it has the volume mounted at all, in either of these ways."""
    return any(touches(m, volume) for m in container.mounts)


def touches(mount: Mount, volume: Volume) -> bool:
    """Whether it gives the volume's data, or a part of it, in either of these ways."""
    if mount.kind == "volume":
        return mount.volume == volume.name
    if mount.kind != "bind":
        return False
    source = posixpath.normpath(mount.source)
    return any(is_inside(source, place) or is_inside(place, source) for place in _places(volume))


def _places(volume: Volume) -> list[str]:
    """Where the host sees the volume's data: its mountpoint, and the directory that the local driver binds there."""
    places = [volume.mountpoint]
    if {"bind", "rbind"} & set(volume.options.get("o", "").split(",")):
        places.append(volume.options.get("device", ""))
    return [posixpath.normpath(place) for place in places if place.startswith("/")]


def is_inside(path: str, parent: str) -> bool:
    """Whether a normal path is `parent`, or below it."""
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def _refuse_unknown(named: Sequence[str], volumes: Sequence[Volume]) -> None:
    names = [volume.name for volume in volumes]
    for name in named:
        if name not in names:
            hint = nearest(name, names, "`plan` lists the volumes there are")
            raise NotFound(f"there is no volume {name!r}", hint=hint, volume=name)


def _matching_nothing(include: Sequence[str], volumes: Sequence[Volume]) -> tuple[list[Skipped], list[str]]:
    """What BACKUP_INCLUDE asks for in vain: by name, a volume that is lost or misspelt; by pattern, worth a warning."""
    names = [volume.name for volume in volumes]
    missing: list[Skipped] = []
    idle: list[str] = []
    for glob in dict.fromkeys(include):
        if any(fnmatchcase(name, glob) for name in names):
            continue
        if set(glob) & set("*?["):
            idle.append(f"BACKUP_INCLUDE has the pattern {glob!r}, which matches no volume")
        else:
            hint = nearest(glob, names, "`plan` lists the volumes there are")
            why = "BACKUP_INCLUDE names it, and there is no such volume"
            missing.append(Skipped(glob, "not_found", why, hint, failed=True))
    return sorted(missing, key=lambda s: s.volume), sorted(idle)


def _left_out(volume: Volume, selection: Selection, around: Surroundings) -> Skipped | None:
    """Why a volume is not to be backed up; None when it is. Nobody need worry, unless it was named for this run."""

    def skip(code: str, why: str, hint: str = "") -> Skipped:
        return Skipped(volume.name, code, why, hint, failed=volume.name in selection.named)

    if _is_ours(volume, around.own_mounts):
        return skip("own_volume", "it is the sidecar's own")
    if selection.named:
        return None if volume.name in selection.named else skip("not_named", "it was not named for this run")
    users = [c for c in around.containers if not c.role and any(m.volume == volume.name for m in c.mounts)]
    # By name only: a bind above the mountpoint (`/srv`) would make every volume look like the bucket's.
    writers = [c for c in _by_name(users) if any(m.volume == volume.name and m.writable for m in c.mounts)]
    holder = next((c.name for c in writers if c.id in around.bucket_hosts), "")
    overruled = volume.name in selection.include  # by its own name, not by a pattern
    verdicts = [
        (_is_true(volume.labels.get(_LABEL_EXCLUDE)), "excluded", "label backup.exclude on the volume", ""),
        (any(fnmatchcase(volume.name, glob) for glob in selection.exclude), "excluded", "BACKUP_EXCLUDE names it", ""),
        (
            bool(selection.include) and not any(fnmatchcase(volume.name, glob) for glob in selection.include),
            "excluded",
            "BACKUP_INCLUDE does not name it",
            "",
        ),
        (
            bool(users) and all(_is_true(c.labels.get(_LABEL_EXCLUDE)) for c in users),
            "excluded",
            "label backup.exclude on every container that mounts it",
            "",
        ),
        (
            volume.anonymous and not overruled,
            "anonymous",
            "it is an anonymous volume",
            "give it a name to have it backed up",
        ),
        (
            bool(holder) and not overruled,
            "holds_bucket",
            f"container {holder} keeps the backup bucket in it, so it would grow with every run",
            f"to back it up all the same, add {volume.name} to BACKUP_INCLUDE or name it in run-now",
        ),
    ]
    return next((skip(code, why, hint) for applies, code, why, hint in verdicts if applies), None)


def _is_ours(volume: Volume, own_mounts: Sequence[Mount]) -> bool:
    """Whether it carries our label, or we write in it (our state, local sets), which would grow with every run."""
    return bool(volume.labels.get(ROLE_LABEL)) or any(
        m.volume == volume.name and m.writable and not is_inside(m.target, VOLUMES_TARGET) for m in own_mounts
    )


def _located(volume: Volume, around: Surroundings) -> PlannedVolume | Skipped:
    """Where the volume's data is in our container; a Skipped that counts as failed when it cannot be seen."""

    def fail(why: str, hint: str) -> Skipped:
        return Skipped(volume.name, "volume_unavailable", why, hint, failed=True)

    explicit_target = f"{VOLUMES_TARGET}/{volume.name}"
    explicit_hint = f"mount the volume read-only at {explicit_target} in docker-compose.backup.yml"
    targets = [m.target for m in around.own_mounts if m.volume == volume.name]
    if targets:
        return PlannedVolume(volume, explicit_target if explicit_target in targets else min(targets))
    roots = [m for m in around.own_mounts if m.target == VOLUMES_TARGET and m.kind == "bind"]
    if not roots:
        return fail(
            f"nothing is mounted at {VOLUMES_TARGET}",
            "mount the engine's volume directory there, as docker-compose.backup.yml does",
        )
    if not volume.mountpoint:
        return fail(f"its driver ({volume.driver}) does not say where its data is", explicit_hint)
    source = posixpath.normpath(roots[0].source)
    mountpoint = posixpath.normpath(volume.mountpoint)
    if not is_inside(mountpoint, source):
        return fail(
            f"its data is at {mountpoint}, and {VOLUMES_TARGET} is {source} of the host",
            f"set DOCKER_VOLUMES_DIR to the engine's volume directory, or {explicit_hint}",
        )
    path = VOLUMES_TARGET + mountpoint[len(source.rstrip("/")) :]
    is_mounted_by_driver = volume.driver != "local" or bool({"type", "device"} & set(volume.options))
    if is_mounted_by_driver and path not in around.mount_points:
        # Without the mount the directory is there and empty: an archive of it would look like a good backup.
        return fail(
            f"its driver mounts it from elsewhere, and {path} is not mounted here",
            f"start a container that uses it and run again, or {explicit_hint}",
        )
    return PlannedVolume(volume, path)


def _groups(
    chosen: Sequence[PlannedVolume],
    containers: Sequence[Container],
    default: Quiesce,
    protected: Mapping[str, str],
) -> tuple[Group, ...]:
    by_name: dict[str, list[PlannedVolume]] = defaultdict(list)
    for planned in chosen:
        by_name[_group_name(planned.volume, containers)].append(planned)
    groups = []
    for name, members in sorted(by_name.items()):
        dependents = [c for c in containers if any(can_write(c, planned.volume) for planned in members)]
        groups.append(
            Group(name, tuple(members), tuple(_quiesced(c, default, protected) for c in _by_name(dependents)))
        )
    return tuple(groups)


def _group_name(volume: Volume, containers: Sequence[Container]) -> str:
    """Label, else the Compose project of the volume, else that of all its dependents, else the volume alone."""
    if label := volume.labels.get(_LABEL_GROUP):
        return label
    if volume.project:
        return volume.project
    projects = {c.project for c in containers if can_write(c, volume)}
    return projects.pop() or volume.name if len(projects) == 1 else volume.name


def _quiesced(container: Container, default: Quiesce, protected: Mapping[str, str]) -> PlannedContainer:
    hooks, _ = _hooks(container)
    if container.id in protected:
        return PlannedContainer(container, Quiesce.NONE, protected[container.id], hooks)
    label = _quiesce_label(container)
    if label in tuple(Quiesce):
        return PlannedContainer(container, Quiesce(label), f"label {_LABEL_QUIESCE}", hooks)
    return PlannedContainer(container, default, "by default" if default is Quiesce.PAUSE else "BACKUP_QUIESCE", hooks)


def _quiesce_label(container: Container) -> str:
    return container.labels.get(_LABEL_QUIESCE, "").strip().lower()


def _hooks(container: Container) -> tuple[Hooks, list[str]]:
    """What its labels have run in it, and what of them cannot be understood."""
    pre, post, timeout, failure = (
        container.labels.get(label, "").strip() for label in (_LABEL_PRE, _LABEL_POST, _LABEL_TIMEOUT, _LABEL_FAILURE)
    )
    warnings = []
    seconds = _NO_HOOKS.timeout
    if timeout:
        try:
            seconds = duration(timeout).total_seconds()
        except ValueError as error:
            warnings.append(
                f"container {container.name} has the label {_LABEL_TIMEOUT}={timeout}, and {error} "
                f"(such as 90s or 10m): it is taken as {_NO_HOOKS.timeout:g}s"
            )
    if failure.lower() not in ("", "abort", "continue"):
        warnings.append(
            f"container {container.name} has the label {_LABEL_FAILURE}={failure}, which is not one of "
            "abort, continue: it is taken as abort"
        )
    return Hooks(pre, post, seconds, abort=failure.lower() != "continue"), warnings


def _shown(hooks: Hooks) -> dict[str, Any] | None:
    if not hooks.pre and not hooks.post:
        return None
    return {
        "pre": hooks.pre or None,
        "post": hooks.post or None,
        "timeout_ms": round(hooks.timeout * 1000),
        "on_failure": "abort" if hooks.abort else "continue",
    }


def _by_name(containers: Iterable[Container]) -> list[Container]:
    return sorted(containers, key=lambda c: c.name)


# It has another name each time that its container is made; and the container's label backup.exclude, which would accept
# it, also leaves out the named volumes that only that container has (the database beside its /configdb).
_HINT_ANONYMOUS = "make it a named volume; where its data is of no worth, name that one in BACKUP_EXCLUDE"


def _unprotected(
    containers: Sequence[Container], volumes: Sequence[Volume], chosen: Collection[str], accepted: Sequence[str]
) -> tuple[Unprotected, ...]:
    """Mounts whose data no backup covers, but for those that the user accepts (BACKUP_EXCLUDE, or the label).

    A bind into a volume's directory has that volume's verdict and none of its own.
    """
    anonymous = {v.name for v in volumes if v.anonymous} - set(chosen)
    places = [place for v in volumes if v.name not in anonymous for place in _places(v)]
    found = []
    for container in _by_name(containers):
        if _is_true(container.labels.get(_LABEL_EXCLUDE)):
            continue
        for mount in sorted(container.mounts, key=lambda m: m.target):  # the engine gives them in any order
            if not mount.writable or _is_accepted(mount, accepted):
                continue
            if mount.volume in anonymous:
                why = "an anonymous volume: only named ones are backed up"
                found.append(Unprotected(container.name, mount.target, why, _HINT_ANONYMOUS))
            elif mount.kind == "bind":
                source = posixpath.normpath(mount.source)
                if not source.endswith(".sock") and not any(is_inside(source, p) for p in (*VOLATILE, *places)):
                    why = f"a bind mount of {mount.source}: only volumes are backed up"
                    hint = f"make it a named volume; or add {source} to BACKUP_EXCLUDE to accept that"
                    found.append(Unprotected(container.name, mount.target, why, hint))
    return tuple(found)


def _is_accepted(mount: Mount, accepted: Sequence[str]) -> bool:
    """Whether BACKUP_EXCLUDE names it. A pattern for paths starts with `/`: `*cache` is about volumes only."""
    if mount.kind == "volume":
        return any(fnmatchcase(mount.volume, glob) for glob in accepted)
    source = posixpath.normpath(mount.source)
    return any(fnmatchcase(source, glob) for glob in accepted if glob.startswith("/"))


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "1", "yes", "on")
