"""The engine itself ends while all are frozen, in order or hard, and is started again: all runs again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.engine.docker import DockerEngine
from tests.engine.harness import PRODUCT_IMAGE, Machine, Sidecar, docker, inspect, is_paused, wait_until
from tests.engine.own_engine import OwnEngine, missing

pytestmark = [pytest.mark.engine, pytest.mark.skipif(bool(missing()), reason=missing() or "it can be run")]

WRITER = "while :; do date +%N >> /data/log; sleep 0.05; done"


@pytest.fixture(scope="module")
def engine(machine: Machine, docker_engine: DockerEngine, base_image: str) -> Iterator[OwnEngine]:
    """An engine of our own with the images in it; until the end of the module, `docker` and Compose speak to it."""
    with OwnEngine() as engine, pytest.MonkeyPatch.context() as environment:
        engine.start()
        save = subprocess.Popen(["docker", "save", PRODUCT_IMAGE, base_image], stdout=subprocess.PIPE)
        environment.setenv("DOCKER_HOST", f"unix://{engine.socket}")
        environment.setenv("DOCKER_SOCKET", str(engine.socket))
        subprocess.run(["docker", "load", "--quiet"], stdin=save.stdout, check=True, timeout=300)
        assert save.wait() == 0
        yield engine


@pytest.fixture(scope="module")
def there(engine: OwnEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """What `machine` is on this machine's engine."""
    there = Machine(tmp_path_factory.mktemp("own-engine"))
    try:
        yield there
    finally:
        there.clean()


@pytest.fixture(scope="module")
def applications(there: Machine, base_image: str) -> list[str]:
    """Two containers that write one volume, and that the engine starts again."""
    options = ("--volume", f"{there.volume('data')}:/data", "--restart", "unless-stopped", "--network", "none")
    return [there.run(f"app-{each}", ["sh", "-c", WRITER], *options, image=base_image) for each in (1, 2)]


@pytest.fixture(scope="module")
def sidecar(there: Machine, applications: list[str]) -> Iterator[Sidecar]:
    sidecar = Sidecar(there, None, "restart", include=[there.name("data")])
    try:
        yield sidecar
    finally:
        sidecar.down()


@pytest.mark.parametrize("way", ["in order", "hard"])
def test_an_engine_that_ends_while_all_are_frozen_and_is_started_again_leaves_nobody_frozen(
    engine: OwnEngine, sidecar: Sidecar, applications: list[str], way: str
) -> None:
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    sets = sidecar.sets()
    run = sidecar.begin()
    sidecar.wait_held("frozen", run)
    assert all(map(is_paused, applications))
    assert sidecar.helpers()
    everyone = [sidecar.name, *applications]
    before = {each: inspect(each)["State"]["StartedAt"] for each in everyone}

    engine.stop() if way == "in order" else engine.kill()
    assert run.end().code not in (0, 3)
    engine.start()

    for each in everyone:
        wait_until(lambda: inspect(each)["State"]["StartedAt"] != before[each], f"{each} was started again")  # noqa: B023
    sidecar.wait_ready()
    assert docker("ps", "--quiet", "--filter", "status=paused").out == ""
    assert {inspect(each)["State"]["Status"] for each in everyone} == {"running"}
    wait_until(lambda: sidecar.helpers() == [], "no helper is left", timeout=20)
    assert sidecar.verb("test", "!", "-e", "/state/journal.json").code == 0
    assert sidecar.sets() == sets
    report, _ = sidecar.good_run(stage="frozen")
    assert sidecar.sets() == [*sets, report["set"]]
    assert not any(map(is_paused, applications))
    assert sorted(each.name for each in Path(sidecar.local_directory).glob("backup-*")) == [*sets, report["set"]]
