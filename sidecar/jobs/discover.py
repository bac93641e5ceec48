"""What there is, from the engine and never from a list that a user keeps; then the plan."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from sidecar.engine.port import Engine
from sidecar.errors import MountMissing
from sidecar.model import Container
from sidecar.plan import VOLUMES_TARGET, Plan, Selection, Surroundings, make_plan

_ESCAPED = re.compile(r"\\([0-7]{3})")  # mountinfo writes blanks, tabs, newlines and backslashes so
_SOCKET_HINT = "start the sidecar through docker-compose.backup.yml, which mounts all it needs"


class Discovery:
    """Makes plans. selection: what the settings ask for; endpoint: the S3 server's URL, or None for Amazon's."""

    def __init__(
        self,
        engine: Engine,
        selection: Selection,
        endpoint: str | None,
        mountinfo: Callable[[], str] = lambda: Path("/proc/self/mountinfo").read_text(),
    ) -> None:
        self._engine = engine
        self._selection = selection
        self._endpoint = endpoint
        self._mountinfo = mountinfo

    def __call__(self, named: tuple[str, ...]) -> Plan:
        """The plan for the volumes named, or for all.

        Raises NotFound for a name that does not exist, MountMissing outside of a container, EngineError.
        """
        return make_plan(replace(self._selection, named=named), self.look())

    def look(self) -> Surroundings:
        """What a plan is made from. Raises MountMissing outside of a container, EngineError."""
        containers = self._engine.containers()
        return Surroundings(
            volumes=self._engine.volumes(),
            containers=containers,
            own_mounts=self.this_container().mounts,
            mount_points=mount_points(self._mountinfo()),
            protected=self.protected(containers),
            bucket_hosts=bucket_hosts(self._endpoint, containers),
        )

    def protected(self, containers: Sequence[Container]) -> dict[str, str]:
        """IDs of those that must never stand still -> why."""
        why = "it carries our own connection to the engine"
        return {c.id: why for c in containers if not c.role and self._engine.carries_us(c)}

    def this_container(self) -> Container:
        """Our own container. Raises MountMissing when we are in none."""
        found = self._engine.this_container()
        if found is None:
            raise MountMissing("this process runs in no container that the engine knows", hint=_SOCKET_HINT)
        return found

    def check_mounts(self) -> None:
        """Raises MountMissing when the volumes' directory or the state volume is not mounted as it must be."""
        mounts = self.this_container().mounts
        targets = {mount.target for mount in mounts}
        explicit = any(target.startswith(VOLUMES_TARGET + "/") for target in targets)
        if VOLUMES_TARGET not in targets and not explicit:
            raise MountMissing(
                f"nothing is mounted at {VOLUMES_TARGET}: no volume's data can be seen",
                hint=f"mount the engine's volume directory there, read-only: {_SOCKET_HINT}",
            )
        if "/state" not in targets:
            raise MountMissing(
                "nothing is mounted at /state: a freeze could not be undone after a crash",
                hint=f"mount the volume backup-state there: {_SOCKET_HINT}",
            )
        if any(mount.target == "/state" and not mount.writable for mount in mounts):
            raise MountMissing(
                "/state is mounted read-only: a freeze could not be undone after a crash",
                hint="mount the volume backup-state there without `ro`",
            )


def mount_points(mountinfo: str) -> frozenset[str]:
    """The mount points of a /proc/PID/mountinfo (proc(5): the fifth field)."""
    points = (line.split(" ", 5)[4] for line in mountinfo.splitlines() if line.count(" ") > 5)
    return frozenset(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), point) for point in points)


def bucket_hosts(endpoint: str | None, containers: list[Container]) -> frozenset[str]:
    """IDs of the containers that the S3 endpoint leads to: by a name or an address, or by a port of this host."""
    if endpoint is None:
        return frozenset()
    url = urlsplit(endpoint)
    by_port = url.port if url.hostname == "host.docker.internal" else None
    return frozenset(c.id for c in containers if url.hostname in c.addresses or by_port in c.published)
