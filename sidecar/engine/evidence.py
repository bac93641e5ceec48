"""What the engine's event log says about a freeze: did it hold? Pure.

The log is complete (`Watch.events`), in the order in which things happened, and starts before the first container was
looked at. Container states are compared besides, by the freeze itself; they cannot show what came and went.
"""

from __future__ import annotations

from collections.abc import Container as Collection
from collections.abc import Mapping, Sequence

from sidecar.engine.port import ContainerEvent
from sidecar.model import Container, ContainerState, Quiesce

_EXECS = {"exec_create", "exec_detach", "exec_die", "exec_start"}  # a frozen container runs none; a health check's end
_READS = {"archive-path", "commit", "copy", "export", "mount", "top"}  # `docker cp` out of it mounts its volumes anew
_FACADE = {"attach", "detach", "health_status", "rename", "resize", "update"}
# What cannot change a volume of a container that is frozen. Missing on purpose: `extract-to-dir`, a `docker cp` into
# it, writes although it is paused (tried).
HARMLESS = frozenset(_EXECS | _READS | _FACADE)
# What lets a container write that did not run when we looked.
ARRIVING = frozenset(["extract-to-dir", "restart", "start", "unpause"])

# How our own freeze and thaw appear. A stop is announced as kill, die and stop; a container that has stopped can write
# only after a start.
_OWN = {Quiesce.PAUSE: ("pause", "unpause"), Quiesce.STOP: ("stop", "start")}
_PART_OF = {Quiesce.PAUSE: frozenset[str](), Quiesce.STOP: frozenset(["kill", "die"])}


def disturbance(
    log: Sequence[ContainerEvent], container: str, action: Quiesce, held: float = float("inf")
) -> list[str]:
    """What happened to a container (an ID) that we froze and thawed, if it was not just that; empty if all is well.

    What happened before our freeze does not count (the freeze compares the start time and the process), nor what
    happened after our thaw: so the first thaw must follow at once, and must be ours. It is if there is no other, or if
    it came no sooner after the freeze than we waited before we asked for it (held: seconds, between the answer to our
    freeze and our request to thaw). That our own request did thaw something is the caller's to know.

    The second way is needed because the engine itself repeats short pauses: containerd reports each pause and each end
    of one too, and when its reports arrive after our thaw, both are shown once more, 3 ms later (moby,
    daemon/monitor.go: EventPaused, EventResumed; 4 in 100 pauses of 12 ms, tried on 20.10).
    """
    frozen, thawed = _OWN[action]
    ignored = HARMLESS | _PART_OF[action]
    seen = [event for event in log if event.container == container and event.action not in ignored]
    began = next((place for place, event in enumerate(seen) if event.action == frozen), len(seen))
    after = seen[began + 1 :]
    if after and after[0].action == thawed:
        others = [event for event in after[1:] if event.action == thawed]
        if not others or _apart(seen[began], after[0]) >= held:
            return []
    return [event.action for event in seen] or ["none"]


def _apart(first: ContainerEvent, second: ContainerEvent) -> float:
    """Seconds between two events; less than nothing where that is not known."""
    return (second.at - first.at) / 1e9 if first.at and second.at else -1.0


def stirred(log: Sequence[ContainerEvent], container: Container) -> list[str]:
    """What happened to a container that was paused or stopped already and should have stayed so; empty if nothing."""
    ignored = HARMLESS if container.running else HARMLESS | {"destroy"}
    return [event.action for event in log if event.container == container.id and event.action not in ignored]


def remembered(log: Sequence[ContainerEvent], event: ContainerEvent) -> Container:
    """A container that is gone, as far as the log knows it: with the volumes it had, without its binds.

    A bind of a volume's directory into a container that started and was removed within one freeze leaves no trace.
    """
    mounts = [other.mounted for other in log if other.container == event.container and other.mounted is not None]
    return Container(event.container, event.name, "", ContainerState.DEAD, "", 0, mounts=tuple(mounts))


def arrivals(
    log: Sequence[ContainerEvent], known: Collection[str], ours: Mapping[str, Quiesce]
) -> dict[str, ContainerEvent]:
    """Containers (ID -> event) that came to life before the first of `ours` was thawed, and are not `known` by ID.

    Our own (with a `backup.role`) do not count: they mount volumes on our behalf.
    """
    found: dict[str, ContainerEvent] = {}
    for event in log:
        action = ours.get(event.container)
        if action is not None and event.action == _OWN[action][1]:
            break
        if event.action in ARRIVING and event.container not in known and not event.role:
            found[event.container] = event
    return found
