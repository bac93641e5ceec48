"""The contract of the engine: what jobs and the freeze ask of Docker. tests/contract/test_engine.py is its proof.

Methods block until the engine has answered and may be called from several threads. Every failure is an `EngineError`;
nothing of an SDK gets out. `EngineUnreachable` means that no answer came: what was asked may still be done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.model import Container, EngineIdentity, Mount, Volume

# Seconds without a byte of answer. A pause takes 20 to 35 ms; one that takes longer than QUICK keeps others frozen. An
# engine that has not told within HUNG how a frozen container is, or not thawed it, hangs over it (engine/rescue.py).
HUNG = 2.0
QUICK = 5.0
PATIENT = 60.0


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """One event of type `container`, or a volume's `mount` into one.

    action: its first word (`start`, `die`, `pause`, `unpause`, `exec_create`, `health_status`, ...); container: the ID;
    role: the container's `backup.role`, empty where it is not ours; mounted: what it got, with `mount` alone (which
    tells neither name nor role, and the mount's source neither). at: nanoseconds on the engine's clock, good for the
    time between two events; 0 where it is not known.
    """

    action: str
    container: str
    name: str
    role: str = ""
    mounted: Mount | None = None
    at: int = 0


# Of what a command writes, the end is kept: that many bytes.
OUTPUT_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Executed:
    """What became of a command in a container.

    code: its exit code; None when it was not waited for to its end. output: the end of what it wrote, standard output
    and error as they came, at most OUTPUT_KEPT bytes of it.
    """

    code: int | None
    output: str


@dataclass(frozen=True, slots=True)
class Condition:
    """How a container is doing at this moment.

    code: its process's exit code, None while it runs. out_of_memory: the kernel has ended one of its processes for the
    limit. health: what its health check says (`starting`, `healthy`, `unhealthy`), empty where it has none; said: what
    the last check wrote.
    """

    running: bool
    code: int | None = None
    out_of_memory: bool = False
    health: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Copied:
    """A container that was made as another one is.

    withheld: what the other has and it was not given, in words. blotted: takes out of a text what its environment keeps
    secret.
    """

    id: str
    withheld: tuple[str, ...] = ()
    blotted: Callable[[str], str] = field(default=str, repr=False, compare=False)


class Watch(Protocol):
    """The container events since the watch began."""

    def events(self) -> Sequence[ContainerEvent]:
        """All events that the engine had emitted when this was called, in order.

        Raises EngineError when some may be missing: silence must not look like peace.
        """


class Helper(Protocol):
    """A short-lived container of our own image with one volume, at the other end of its standard input and output."""

    def send(self, data: bytes | memoryview) -> None:
        """Give it bytes; blocks while it is slower than we are. Raises HelperEnded, EngineError."""

    def end(self) -> None:
        """There is nothing more to send. Does not raise: it may have ended itself."""

    def hear(self, timeout: float) -> bytes | None:
        """The next line that it says, without its end; None when it says nothing for `timeout` seconds.

        Raises HelperEnded when it has ended.
        """


class Engine(Protocol):
    """A Docker Engine."""

    def identity(self) -> EngineIdentity:
        """Who the engine is."""

    def volumes(self) -> list[Volume]:
        """All volumes, by name, anonymous ones too."""

    def containers(self, *, running_only: bool = False) -> list[Container]:
        """All containers with their mounts, by name; one that vanishes between list and inspection is left out.

        running_only: those that are running, paused or restarting.
        """

    def container(self, identifier: str, *, patience: float = PATIENT) -> Container:
        """One container by ID or name. patience: seconds. Raises ContainerGone, EngineSilent."""

    def pause(self, identifier: str) -> None:
        """Freeze its processes.

        Raises AlreadyPaused, NotRunning, ContainerGone; any other FreezeFailed when the kernel could not freeze it this
        time ("unable to freeze" on cgroup v1), which is worth another try.
        """

    def unpause(self, identifier: str) -> bool:
        """Thaw it, also past an engine that hangs over it; whether it was paused. Raises ContainerGone."""

    def stop(self, identifier: str, *, timeout: int) -> bool:
        """Stop it, killing after `timeout` seconds; whether it was running. Raises ContainerGone."""

    def start(self, identifier: str) -> bool:
        """Start it; whether it was stopped. Raises ContainerGone."""

    def execute(self, identifier: str, command: Sequence[str], *, waiting: Callable[[], bool]) -> Executed:
        """Run a command in a running container, as its user, and wait for its end.

        waiting: asked several times a second; once it says no, this returns without an exit code. Nobody can end a
        command from outside of its container: it goes on there. Raises ContainerGone, NotRunning (a paused one too).
        """

    def watch(self) -> AbstractContextManager[Watch]:
        """Follow container events; what happens after the block is entered is seen."""

    def this_container(self) -> Container | None:
        """The container that this process runs in (it carries a `backup.role`), or None where there is none."""

    def carries_us(self, container: Container) -> bool:
        """Whether freezing it would cut our own way to the engine: it is this container, or a socket proxy we use."""

    def launch(self, like: Container, *, role: str, command: Sequence[str], keep: Sequence[str]) -> str:
        """Start a container of the image of `like` (ours) that removes itself when it ends; its ID.

        It carries the label `backup.role=ROLE`, has no capability, no network but what the engine's address needs, a
        read-only root file system, the engine's socket, and of the mounts of `like` those at the targets in `keep`,
        read-only.
        """

    def create_guard(
        self, like: Container, name: str, *, volumes: Sequence[str], labels: Mapping[str, str], made: Mapping[str, str]
    ) -> str:
        """Create, without starting it, a container of the image of `like` (ours) that only has volumes; its ID.

        It has them read-only, no network, no capability, no socket, no log, a read-only root file system, does nothing,
        as nobody, and comes back with the engine until it is removed. A volume that does not exist is made, and carries
        the labels `made`; those that exist are left as they are.
        """

    def rename(self, identifier: str, name: str) -> None:
        """Give a container another name, which must be free. Raises ContainerGone."""

    def create_volume(
        self, name: str, *, labels: Mapping[str, str], driver: str = "local", options: Mapping[str, str] | None = None
    ) -> None:
        """Create a volume, a plain local one unless told otherwise; one that exists is left as it is."""

    def remove_volume(self, name: str) -> bool:
        """Remove a volume; False while a container has it. One that is gone is success."""

    def help_with(
        self, like: Container, volume: str, *, command: Sequence[str], target: str
    ) -> AbstractContextManager[Helper]:
        """Start a container of the image of `like` (ours) that has the volume, which exists, writable at `target`.

        It has no network, no socket, a read-only root file system, and of root's capabilities those that give files
        their owners, modes and attributes back. It carries `backup.role=helper`, and removes itself when it
        ends, which it is to do soon after its standard input has: at `end`, when the block is left, or when we die.
        """

    def copy(
        self, identifier: str, name: str, *, mounts: Sequence[Mount], labels: Mapping[str, str], memory: int
    ) -> Copied:
        """Create, without starting it, a container as that one is at this moment, which can do no harm.

        The image, command, user, environment, working directory, health check (asked often), tmpfs, limits and harmless
        capabilities are the same, and never leave the engine's adapter. mounts: all that it has, volumes (which exist;
        one that is not writable keeps what it holds) and binds, these read-only whatever is asked. memory: the limit in
        bytes where the other has none. It has no network, no published port, no restart policy, no device, no
        privilege, no label but `labels` and the image's, no name space of the host's. Raises ContainerGone.
        """

    def condition(self, identifier: str) -> Condition:
        """How it is doing. Raises ContainerGone."""

    def last_words(self, identifier: str) -> str:
        """The end of what a container has written, standard output and error, at most OUTPUT_KEPT bytes of it.

        Raises ContainerGone.
        """

    def output(self, identifier: str) -> str:
        """What a container has written to its standard output so far. Raises ContainerGone."""

    def remove(self, identifier: str) -> None:
        """Remove it, running or not. One that is gone is success."""
