"""The contract of the engine: what jobs and the freeze ask of Docker. tests/contract/test_engine.py is its proof.

Methods block until the engine has answered and may be called from several threads. Every failure is an `EngineError`;
nothing of an SDK gets out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from sidecar.model import Container, EngineIdentity, Volume


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """One event of /events with type `container`: `start`, `die`, `pause`, `unpause`, `create`, `destroy`, ..."""

    action: str
    container: str
    name: str


class Watch(Protocol):
    """The container events since the watch began."""

    def events(self) -> Sequence[ContainerEvent]:
        """All events that the engine had emitted when this was called, in order.

        Raises EngineError when the stream was lost: silence must not look like peace.
        """


class Engine(Protocol):
    """A Docker Engine."""

    def identity(self) -> EngineIdentity:
        """Who the engine is."""

    def volumes(self) -> list[Volume]:
        """All named volumes, by name, anonymous ones too."""

    def containers(self, *, running_only: bool = False) -> list[Container]:
        """All containers with their mounts, by name; one that vanishes between list and inspection is left out."""

    def container(self, identifier: str) -> Container:
        """One container by ID or name. Raises ContainerGone."""

    def pause(self, identifier: str) -> None:
        """Freeze its processes. A container that is paused already is an error (FreezeFailed), as is one not running."""

    def unpause(self, identifier: str) -> None:
        """Thaw it. One that is not paused is success; raises ContainerGone when it does not exist."""

    def stop(self, identifier: str, *, timeout: int) -> None:
        """Stop it, killing after `timeout` seconds. One that is not running is success."""

    def start(self, identifier: str) -> None:
        """Start it. One that runs is success."""

    def watch(self) -> AbstractContextManager[Watch]:
        """Follow container events; the stream is established when the block is entered."""

    def this_container(self) -> Container | None:
        """The container that this process runs in, or None outside of one."""
