"""The guard on a real engine: what Compose and Docker cannot delete, for how long, and whoever dies meanwhile."""

from __future__ import annotations

import json
import time

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import HOST_IMAGE, LABEL, Compose, Done, Machine, Sidecar, api, docker, inspect, wait_until

pytestmark = pytest.mark.engine("both")

VOLUMES = ("data", "more")


@pytest.fixture(scope="module")
def stack(machine: Machine) -> Compose:
    """A Compose project of one container with two volumes."""
    file = machine.directory / "guarded.json"
    service = {
        "image": HOST_IMAGE,
        "command": ["sleep", "infinity"],
        "init": True,
        "volumes": ["data:/data", "more:/more"],
        "labels": {LABEL: machine.mark},
    }
    volumes = {name: {"labels": {LABEL: machine.mark}} for name in VOLUMES}
    file.write_text(json.dumps({"services": {"app": service}, "volumes": volumes}))
    stack = machine.compose(machine.name("guarded"), [file])
    stack.up()
    docker("exec", stack.container("app"), "sh", "-c", "echo precious > /data/file; sync")
    return stack


@pytest.fixture(scope="module")
def sidecar(stack: Compose, make_sidecar: SidecarMaker) -> Sidecar:
    sidecar = make_sidecar("guarded", include=[f"{stack.project}_*"], settings={"BACKUP_GUARD": "on"})
    sidecar.up()
    return sidecar


@pytest.fixture(autouse=True)
def _guarded(stack: Compose, sidecar: Sidecar) -> None:
    stack.up()
    for volume in guard(sidecar, "status")["released"]:
        sidecar.verb("guard", "protect", volume)
    wait_held(sidecar, stack, *VOLUMES)


def held(sidecar: Sidecar) -> set[str]:
    """The volumes that guards which run have mounted, as Docker says."""
    shown = ("--no-trunc", "--format", "{{.Mounts}}")
    mounts = docker("ps", "--filter", f"label=backup.guard-of={sidecar.state}", *shown).out.split()
    return {name for line in mounts for name in line.split(",")}


def wait_held(sidecar: Sidecar, stack: Compose, *volumes: str, timeout: float = 30) -> None:
    wanted = {f"{stack.project}_{volume}" for volume in volumes}

    def is_so() -> bool:
        return sidecar.guards() == [f"{sidecar.name}-guard"] and held(sidecar) == wanted

    wait_until(is_so, f"the guard has {wanted}, and has had {held(sidecar)}", timeout=timeout)


def remove_volume(stack: Compose, volume: str) -> Done:
    return docker("volume", "rm", f"{stack.project}_{volume}", check=False)


def content(stack: Compose) -> str:
    return docker("exec", stack.container("app"), "cat", "/data/file").out


def guard(sidecar: Sidecar, *arguments: str) -> dict[str, dict[str, str]]:
    document: dict[str, dict[str, str]] = sidecar.verb("guard", *arguments, "--json", check=True).json()
    return document


def test_down_v_deletes_no_volume_and_the_stack_comes_up_again_with_its_data(stack: Compose, sidecar: Sidecar) -> None:
    told_before = len(sidecar.events("guard_kept"))

    done = stack("down", "--volumes", "--timeout", "1", check=False)

    assert docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={stack.project}").out == ""
    print(f"down -v ended with {done.code}: {done.err.splitlines()[-1]}")
    assert "in use" in done.out + done.err
    for volume in VOLUMES:
        assert docker("volume", "inspect", f"{stack.project}_{volume}", check=False).code == 0
    (told,) = wait_until(lambda: sidecar.events("guard_kept")[told_before:], "it is said", timeout=120)
    assert told["volumes"] == [f"{stack.project}_{volume}" for volume in VOLUMES]
    assert f"run-now {stack.project}_data {stack.project}_more" in told["hint"]

    stack.up()
    assert content(stack) == "precious\n"


def test_neither_volume_rm_nor_prune_deletes_what_the_guard_has(stack: Compose, sidecar: Sidecar) -> None:
    stack("rm", "--stop", "--force")
    refused = remove_volume(stack, "data")
    pruned = docker("volume", "prune", "--force", "--filter", f"label=com.docker.compose.project={stack.project}")

    assert (refused.code, "in use" in refused.err) == (1, True)
    assert stack.project not in pruned.out
    stack.up()
    assert content(stack) == "precious\n"


def test_a_new_volume_is_protected_within_seconds(machine: Machine, stack: Compose, sidecar: Sidecar) -> None:
    name = f"{stack.project}_new"
    docker("volume", "create", "--label", f"{LABEL}={machine.mark}", name)
    began = time.monotonic()
    wait_held(sidecar, stack, *VOLUMES, "new", timeout=15)
    print(f"a new volume was protected after {time.monotonic() - began:.1f} s")
    assert remove_volume(stack, "new").code == 1
    guard(sidecar, "release", name)
    assert remove_volume(stack, "new").code == 0


def test_a_release_lets_go_at_once_and_of_nothing_else_and_takes_back(stack: Compose, sidecar: Sidecar) -> None:
    stack("rm", "--stop", "--force")
    began = time.monotonic()
    status = guard(sidecar, "release", f"{stack.project}_more", "--for", "8s")
    print(f"a release took {time.monotonic() - began:.1f} s")

    assert list(status["released"]) == [f"{stack.project}_more"]
    assert held(sidecar) == {f"{stack.project}_data"}
    assert remove_volume(stack, "data").code == 1
    wait_held(sidecar, stack, *VOLUMES)
    assert remove_volume(stack, "more").code == 1
    assert guard(sidecar, "status")["released"] == {}


def test_what_was_released_can_be_deleted_restored_and_is_protected_again(stack: Compose, sidecar: Sidecar) -> None:
    report, _ = sidecar.good_run()
    assert {name for group in report["groups"] for name in group["containers"]} == {stack.container("app")}
    stack("rm", "--stop", "--force")
    guard(sidecar, "release", f"{stack.project}_data", "--for", "1h")
    assert remove_volume(stack, "data").code == 0

    restored = sidecar.verb("restore", report["set"], "--yes", "--json")

    assert restored.code == 0, restored
    assert not guard(sidecar, "protect", f"{stack.project}_data")["released"]
    assert held(sidecar) == {f"{stack.project}_{volume}" for volume in VOLUMES}
    stack.up()
    assert content(stack) == "precious\n"


def test_the_guard_outlives_a_killed_sidecar_and_a_release_is_remembered(stack: Compose, sidecar: Sidecar) -> None:
    stack("rm", "--stop", "--force")
    since = guard(sidecar, "status")["protected"]
    guard(sidecar, "release", f"{stack.project}_more", "--for", "1h")
    docker("kill", sidecar.name)

    assert remove_volume(stack, "data").code == 1
    name = f"{sidecar.name}-guard"
    before = inspect(name)["Id"]
    sidecar.start()
    status = wait_until(lambda: guard(sidecar, "status")["protected"] and guard(sidecar, "status"), "it looks")
    assert status["protected"] == {f"{stack.project}_data": since[f"{stack.project}_data"]}
    assert list(status["released"]) == [f"{stack.project}_more"]
    assert inspect(name)["Id"] == before
    guard(sidecar, "protect", f"{stack.project}_more")


def test_a_guard_that_was_removed_is_back_within_seconds(stack: Compose, sidecar: Sidecar) -> None:
    docker("rm", "--force", *sidecar.guards())
    wait_held(sidecar, stack, *VOLUMES, timeout=15)


def test_it_can_do_nothing_and_costs_next_to_nothing(sidecar: Sidecar) -> None:
    facts = inspect(f"{sidecar.name}-guard")
    host = facts["HostConfig"]

    assert facts["Config"]["Labels"]["backup.role"] == "guard"
    assert (host["NetworkMode"], host["CapDrop"], host["CapAdd"], host["ReadonlyRootfs"]) == (
        "none",
        ["ALL"],
        None,
        True,
    )
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert all((mount["Type"], mount["RW"]) == ("volume", False) for mount in facts["Mounts"])
    assert len(api().top(facts["Id"])["Processes"]) == 1
    print("the guard:", docker("stats", "--no-stream", "--format", "{{.MemUsage}}", facts["Id"]).out.strip())
    began = time.monotonic()
    docker("stop", facts["Id"])
    assert time.monotonic() - began < 5, "nobody who stops it has to wait for the kill"


def test_switched_off_it_goes_and_volumes_can_be_deleted(stack: Compose, sidecar: Sidecar) -> None:
    sidecar.up(BACKUP_GUARD="off")
    wait_until(lambda: sidecar.guards() == [], "the guard is gone")
    refused = sidecar.verb("guard", "release", f"{stack.project}_data")
    assert (refused.code, "BACKUP_GUARD is off" in refused.err) == (10, True)
    assert sidecar.verb("status", "--json", check=True).json()["guard"]["on"] is False
    assert stack("down", "--volumes", "--timeout", "1").code == 0
    assert docker("volume", "inspect", f"{stack.project}_data", check=False).code == 1
    sidecar.up(BACKUP_GUARD="on")
