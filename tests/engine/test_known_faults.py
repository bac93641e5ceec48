"""What the product gets wrong, each as a small case of what is right: strictly, it fails until the fault is mended."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import HOST_IMAGE, Machine, api, docker, inspect, names, wait_until
from tests.engines import fault

pytestmark = pytest.mark.engine("both")

WRITE = ["sh", "-c", "while :; do echo more >> /data/log; sleep 0.1; done"]


@pytest.fixture
def volume(request: pytest.FixtureRequest, machine: Machine) -> Iterator[str]:
    """A volume; whoever uses it is removed afterwards."""
    volume = machine.volume(f"fault-{abs(hash(request.node.name)) % 10**6}")
    yield volume
    machine.remove(*names(volume=volume))


@pytest.mark.known_fault("B1")
def test_an_application_that_is_made_anew_between_plan_and_freeze_is_backed_up(
    machine: Machine, volume: str, make_sidecar: SidecarMaker
) -> None:
    file = machine.directory / "anew.json"
    service = {"image": HOST_IMAGE, "init": True, "command": WRITE, "volumes": ["data:/data"]}
    file.write_text(json.dumps({"services": {"app": service}, "volumes": {"data": {"external": True, "name": volume}}}))
    application = machine.compose(machine.name("anew"), [file])
    application.up()
    sidecar = make_sidecar("anew", include=[volume], settings={"BACKUP_TEST_STAGE": "planned=hold"})
    sidecar.up()
    run = sidecar.begin("--json")
    with sidecar.held("planned", run):
        application.up("--force-recreate", "--timeout", "1")
    done = run.end()
    application.down()
    with fault():
        assert done.json()["outcome"] == "good"


@pytest.mark.known_fault("B2")
def test_a_container_that_always_ends_at_once_keeps_nobody_from_a_backup(
    machine: Machine, volume: str, make_sidecar: SidecarMaker
) -> None:
    machine.run("database", WRITE, "--volume", f"{volume}:/data")
    crashes = machine.run("crashes", ["false"], "--restart", "always", "--volume", f"{volume}:/data")
    # Its engine waits twice as long each time: from now on longer than the product does.
    wait_until(lambda: inspect(crashes)["RestartCount"] > 6, "it has ended often", every=0.2)
    sidecar = make_sidecar("crashes", include=[volume])
    sidecar.up()
    report = sidecar.run_now("--json").json()
    with fault():
        assert report["outcome"] == "good"


@pytest.mark.engine("modern")  # 20.10 mounts volumes whole only
@pytest.mark.known_fault("R6")
def test_a_drill_of_a_service_that_has_a_part_of_a_volume_sees_that_part(
    machine: Machine, volume: str, make_sidecar: SidecarMaker
) -> None:
    if tuple(map(int, api().version()["ApiVersion"].split("."))) < (1, 45):
        pytest.skip("this engine mounts volumes whole only")
    docker(
        "run", "--rm", "--volume", f"{volume}:/data", HOST_IMAGE, "sh", "-c", "mkdir /data/part; echo > /data/part/mine"
    )
    part = f"type=volume,source={volume},target=/data,volume-subpath=part"
    machine.run("part", ["sleep", "infinity"], "--mount", part, "--label", "backup.drill=test -e /data/mine")
    sidecar = make_sidecar("part", include=[volume], settings={"BACKUP_DRILL_TIMEOUT": "5s"})
    sidecar.up()
    assert sidecar.report()["outcome"] == "good"
    done = sidecar.verb("drill", "--json")
    with fault():
        assert done.code == 0, done
