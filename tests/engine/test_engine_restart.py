"""The engine itself ends while all are frozen, in order or hard, and is started again: all runs again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.harness import Machine, Sidecar, docker, inspect, is_paused, wait_until
from tests.engines import Running, images, running_on
from tests.machine.own_engine import OwnEngine, kind, missing

pytestmark = [pytest.mark.engine("both"), pytest.mark.skipif(bool(missing()), reason=missing() or "it can be run")]

WRITER = "while :; do echo more >> /data/log; sleep 0.05; done"


@pytest.fixture(scope="module")
def mortal(on_engine: Running) -> Iterator[Running]:
    """One of the same kind that may end; until the end of the module, `docker` and Compose speak to it."""
    own_one = OwnEngine(kind(on_engine.kind), images(on_engine.base_image))
    with own_one as own, pytest.MonkeyPatch.context() as environment:
        own.start()
        for key, value in own.environment().items():
            environment.setenv(key, value)
        yield running_on(on_engine.kind, own, on_engine.base_image)


@pytest.fixture(scope="module")
def there(mortal: Running, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """What `machine` is on an engine that lives."""
    return Machine(mortal, tmp_path_factory.mktemp("mortal"))


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
    mortal: Running, sidecar: Sidecar, applications: list[str], way: str
) -> None:
    assert mortal.own
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    sets = sidecar.sets()
    run = sidecar.begin()
    sidecar.wait_held("frozen", run)
    assert all(map(is_paused, applications))
    assert sidecar.helpers()
    everyone = [sidecar.name, *applications]
    before = {each: inspect(each)["State"]["StartedAt"] for each in everyone}

    mortal.own.stop() if way == "in order" else mortal.own.kill()
    assert run.end().code not in (0, 3)
    mortal.own.start()

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
