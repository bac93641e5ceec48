"""What a user does to a real engine, under names that no one else uses; all of it is removed afterwards."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Mapping

from docker import APIClient
from docker.errors import NotFound

from sidecar.engine.docker import DockerEngine
from sidecar.model import Container, Volume

LABEL = "volume-backup-sidecar.test"


class DockerUser:
    """The same acts as the fake engine's. Names given and taken are the short ones; `full` gives the engine's."""

    def __init__(self, engine: DockerEngine, image: str) -> None:
        self.engine = engine
        self.client = APIClient(os.environ.get("DOCKER_HOST"), version="auto", timeout=60)
        self._image = image
        self._mark = uuid.uuid4().hex[:8]

    def full(self, name: str) -> str:
        return f"vbs-test-{self._mark}-{name}"

    def add_volume(self, name: str, *, labels: Mapping[str, str] | None = None) -> Volume:
        self.client.create_volume(self.full(name), labels={LABEL: self._mark, **(labels or {})})
        return next(volume for volume in self.engine.volumes() if volume.name == self.full(name))

    def create(
        self,
        name: str,
        *,
        command: list[str] | None = None,
        labels: Mapping[str, str] | None = None,
        volumes: Mapping[str, str] | None = None,
        binds: Mapping[str, str] | None = None,
        read_only: bool = False,
        auto_remove: bool = False,
        stop_timeout: int | None = None,
        healthcheck: list[str] | None = None,
        memory: int = 0,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        **host: object,
    ) -> Container:
        mounts = [f"{self.add_volume(volume).name}:{target}" for volume, target in (volumes or {}).items()]
        mounts += [f"{source}:{target}" for source, target in (binds or {}).items()]
        mode = "ro" if read_only else "rw"
        created = self.client.create_container(
            self._image,
            command or ["sleep", "infinity"],
            name=self.full(name),
            labels={LABEL: self._mark, **(labels or {})},
            stop_timeout=stop_timeout,
            healthcheck={"test": ["CMD", *healthcheck], "interval": 3600 * 10**9} if healthcheck else None,
            environment=dict(environment or {}),
            user=user,
            host_config=self.client.create_host_config(
                binds=[f"{mount}:{mode}" for mount in mounts], auto_remove=auto_remove, mem_limit=memory or None, **host
            ),
        )
        return self.engine.container(created["Id"])

    def run(self, name: str, **options: object) -> Container:
        created = self.create(name, **options)  # type: ignore[arg-type]
        self.client.start(created.id)
        return self.engine.container(created.id)

    def restart(self, name: str) -> None:
        self.client.restart(self.full(name), timeout=0)

    def kill(self, name: str, signal: str = "KILL") -> None:
        self.client.kill(self.full(name), signal)

    def exit(self, name: str) -> None:
        """Its process ends by itself: the engine sees the same as after a kill."""
        self.client.kill(self.full(name), "KILL")
        self.client.wait(self.full(name))

    def remove(self, name: str) -> None:
        self.client.remove_container(self.full(name), force=True)

    def copy_into(self, name: str, path: str = "/tmp") -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as file:
            member = tarfile.TarInfo("copied")
            member.size = 5
            file.addfile(member, io.BytesIO(b"hello"))
        self.client.put_archive(self.full(name), path, archive.getvalue())

    def rename(self, name: str, new: str) -> None:
        self.client.rename(self.full(name), self.full(new))

    def clean(self) -> None:
        """Remove all of it, frozen or not."""
        for listed in self.client.containers(all=True, filters={"label": f"{LABEL}={self._mark}"}):
            try:
                self.client.remove_container(listed["Id"], force=True, v=True)
            except NotFound:  # one that removes itself
                continue
        for listed in self.client.volumes(filters={"label": f"{LABEL}={self._mark}"})["Volumes"] or ():
            self.client.remove_volume(listed["Name"])
        self.client.close()
