"""One set of names and one S3 server for all end-to-end tests on an engine; a sidecar for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.harness import S3, Machine, Sidecar
from tests.engines import Running

SidecarMaker = Callable[..., Sidecar]


@pytest.fixture(scope="session")
def machines() -> dict[str, Machine]:
    """By kind of engine."""
    return {}


@pytest.fixture(scope="session")
def stores() -> dict[str, S3]:
    """By kind of engine."""
    return {}


@pytest.fixture(scope="session")
def _cleaned(machines: dict[str, Machine]) -> Iterator[None]:
    """An engine of our own goes with all that it has; a given one is left as it was."""
    yield
    if "given" in machines:
        machines["given"].clean()


@pytest.fixture(scope="module")
def machine(
    on_engine: Running, machines: dict[str, Machine], _cleaned: None, tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    """Names, containers and volumes of this session on this module's engine."""
    if on_engine.kind not in machines:
        machines[on_engine.kind] = Machine(on_engine, tmp_path_factory.mktemp(on_engine.kind))
    return machines[on_engine.kind]


@pytest.fixture(scope="module")
def s3(machine: Machine, stores: dict[str, S3]) -> S3:
    """A SeaweedFS server in a container, with one bucket."""
    if machine.running.kind not in stores:
        s3 = S3(machine)
        s3.up()
        stores[machine.running.kind] = s3
    return stores[machine.running.kind]


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
