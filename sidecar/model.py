"""What the engine told us, as plain values: volumes, containers, mounts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

ROLE_LABEL = "backup.role"


class ContainerState(StrEnum):
    """`State.Status` of the Engine API (v1.41)."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class Quiesce(StrEnum):
    """How a dependent is kept from writing while its volumes are read."""

    PAUSE = "pause"
    STOP = "stop"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a container, from `Mounts[]` of its inspection.

    kind: `volume`, `bind`, `tmpfs`, `npipe` or `cluster`; volume: the volume's name, empty unless kind is `volume`;
    source: absolute host path; target: path in the container; writable: `RW`.
    """

    kind: str
    source: str
    target: str
    writable: bool
    volume: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """One container, from its inspection.

    started_at is the engine's RFC 3339 text, kept as it is because it is only compared; pid is 0 when not running.
    image_id: what `image` (a name) stood for when it was created. addresses: every name and IP address under which
    other containers reach it. published: the host's TCP ports that lead into it. network: `HostConfig.NetworkMode`
    (`container:ID` shares that container's network). stop_timeout: the seconds its owner grants it to stop by itself.
    health_check: whether the engine asks it, again and again, how it is. memory: its limit in bytes, 0 for none.
    next_check: when the engine begins to ask it next, in seconds since 1970; None where that is not known.
    """

    id: str
    name: str
    image: str
    state: ContainerState
    started_at: str
    pid: int
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    auto_remove: bool = False
    image_id: str = ""
    addresses: frozenset[str] = frozenset()
    published: frozenset[int] = frozenset()
    network: str = ""
    stop_timeout: int = 10
    health_check: bool = False
    memory: int = 0
    next_check: float | None = field(default=None, compare=False)

    @property
    def project(self) -> str:
        """The Compose project, or an empty string."""
        return self.labels.get("com.docker.compose.project", "")

    @property
    def service(self) -> str:
        """The Compose service, or an empty string."""
        return self.labels.get("com.docker.compose.service", "")

    @property
    def role(self) -> str:
        """Our own `backup.role`, or an empty string for containers that are not ours."""
        return self.labels.get(ROLE_LABEL, "")

    @property
    def running(self) -> bool:
        """Whether its processes exist, frozen or not."""
        return self.state in (ContainerState.RUNNING, ContainerState.PAUSED, ContainerState.RESTARTING)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a container's labels have run inside it, by `sh -c`, before (pre) and after (post) the freeze of its group.

    Empty where there is nothing to run. timeout: seconds, for each. abort: a pre hook that fails ends the group's
    backup before anything is frozen; otherwise the run goes on and is partial.
    """

    pre: str = ""
    post: str = ""
    timeout: float = 60.0
    abort: bool = True


@dataclass(frozen=True, slots=True)
class Volume:
    """One named volume; mountpoint is the engine's path of its data on the host (`.../NAME/_data`)."""

    name: str
    mountpoint: str
    driver: str = "local"
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def project(self) -> str:
        """The Compose project that created it, or an empty string."""
        return self.labels.get("com.docker.compose.project", "")

    @property
    def anonymous(self) -> bool:
        """Whether the engine named it: a label since 23.0, 64 hexadecimal digits at all times."""
        hexadecimal = len(self.name) == 64 and all(c in "0123456789abcdef" for c in self.name)
        return "com.docker.volume.anonymous" in self.labels or hexadecimal


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Who the engine is: `ID`, `Name`, `ServerVersion`, `DockerRootDir` of /info."""

    id: str
    name: str
    version: str
    root: str
