"""One machine and one S3 server for all end-to-end tests; a sidecar for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidecar.engine.docker import DockerEngine
from tests.engine.harness import PRODUCT_IMAGE, ROOT, S3, Machine, Sidecar, command

SidecarMaker = Callable[..., Sidecar]


@pytest.fixture(scope="session")
def machine(docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Names, containers and volumes of this session; the images are those of the sources as they are now."""
    command(ROOT / "tests/machine/product-image", PRODUCT_IMAGE, timeout=900)
    command(ROOT / "tests/machine/stack-images", timeout=900)
    machine = Machine(tmp_path_factory.mktemp("engine"))
    try:
        yield machine
    finally:
        machine.clean()


@pytest.fixture(scope="session")
def s3(machine: Machine) -> S3:
    """A SeaweedFS server in a container, with one bucket."""
    s3 = S3(machine)
    s3.up()
    return s3


@pytest.fixture(scope="module")
def make_sidecar(machine: Machine, s3: S3) -> Iterator[SidecarMaker]:
    """Makes sidecars, which are removed after the module at the latest. Arguments as of Sidecar."""
    made: list[Sidecar] = []

    def make(text: str, **options: Any) -> Sidecar:
        made.append(Sidecar(machine, s3, text, **options))
        return made[-1]

    try:
        yield make
    finally:
        for sidecar in made:
            sidecar.down()
