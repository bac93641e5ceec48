"""What a copy of a container gets of its model, and what it never gets."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.engine.likeness import blotting, copy_of, has_health_check, withheld
from sidecar.model import Mount

SECOND = 1_000_000_000


def inspected(configuration: dict[str, Any] | None = None, **host: Any) -> dict[str, Any]:
    """As GET /containers/ID/json has it."""
    known = {"Env": None, "Cmd": None, "Healthcheck": None, "Labels": {}, "ExposedPorts": {"80/tcp": {}}}
    return {
        "Id": "0" * 64,
        "Image": "sha256:1234",
        "Config": known | (configuration or {}),
        "HostConfig": {"CapAdd": None, "Devices": None, "SecurityOpt": None, "Memory": 0} | host,
    }


def copied(facts: dict[str, Any], *mounts: Mount, memory: int = 1000) -> dict[str, Any]:
    return copy_of(facts, mounts=mounts, labels={"backup.role": "drill"}, memory=memory)


def test_what_its_program_sees_of_itself_is_the_same() -> None:
    same = {
        "Cmd": ["serve"], "Entrypoint": ["/entry"], "Env": ["A=1"], "User": "7:8", "WorkingDir": "/app", "Tty": True,
        "Hostname": "db", "OpenStdin": True, "StopSignal": "SIGINT", "StopTimeout": 60,
    }  # fmt: skip
    host = {
        "ShmSize": 1 << 20, "Tmpfs": {"/run": ""}, "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "Init": True,
        "ReadonlyRootfs": True, "GroupAdd": ["9"], "Sysctls": {"net.core.somaxconn": "9"}, "CapDrop": ["ALL"],
    }  # fmt: skip
    body = copied(inspected(same, **host))
    assert {key: body[key] for key in same} == same
    assert {key: body["HostConfig"][key] for key in host} == host
    assert body["Image"] == "sha256:1234"


def test_nothing_that_reaches_beyond_it_is_given() -> None:
    facts = inspected(
        Privileged=True, Devices=[{"PathOnHost": "/dev/kvm"}], PidMode="host", IpcMode="host", UTSMode="host",
        NetworkMode="host", PortBindings={"80/tcp": [{"HostPort": "80"}]}, PublishAllPorts=True, CgroupParent="x",
        RestartPolicy={"Name": "always"}, Binds=["/var/run/docker.sock:/var/run/docker.sock"], VolumesFrom=["other"],
        SecurityOpt=["seccomp=unconfined", "apparmor=unconfined", "no-new-privileges:true"], DeviceRequests=[{}],
        CapAdd=["ALL", "CAP_SYS_ADMIN", "dac_read_search", "NET_ADMIN", "CAP_IPC_LOCK", "SYS_NICE"], UsernsMode="host",
        Links=["db:db"], Runtime="nvidia", AutoRemove=True, LogConfig={"Type": "gelf"}, OomKillDisable=True,
    )  # fmt: skip
    body = copied(facts)
    host = body["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["CapAdd"] == ["IPC_LOCK", "SYS_NICE"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["LogConfig"]["Type"] == "json-file"
    assert host["Mounts"] == []
    assert body["Labels"] == {"backup.role": "drill"}
    assert set(host) == {
        "Mounts", "NetworkMode", "CapAdd", "SecurityOpt", "Memory", "MemorySwap", "PidsLimit", "CpuShares",
        "OomScoreAdj", "LogConfig",
    }  # fmt: skip
    assert set(body) == {"Image", "Labels", "Healthcheck", "HostConfig"}
    assert withheld(facts) == (
        "privileged", "capability ALL", "capability SYS_ADMIN", "capability DAC_READ_SEARCH", "capability NET_ADMIN",
        "device /dev/kvm", "devices", "the host's processes", "the host's shared memory", "the host's host name",
    )  # fmt: skip


def test_binds_are_read_only_and_bring_nothing_that_is_mounted_below_them() -> None:
    body = copied(
        inspected(Mounts=[{"Type": "tmpfs", "Target": "/t"}, {"Type": "bind", "Source": "/x", "Target": "/x"}]),
        Mount("bind", "/srv/config", "/etc/app", writable=True),
        Mount("volume", "", "/data", writable=True, volume="scratch"),
        Mount("volume", "", "/seen", writable=False, volume="scratch-2"),
    )
    bind, data, seen, memory = body["HostConfig"]["Mounts"]
    assert (bind["ReadOnly"], bind["BindOptions"]["NonRecursive"]) == (True, True)
    assert (data["Source"], data["ReadOnly"], seen["ReadOnly"]) == ("scratch", False, True)
    assert memory == {"Type": "tmpfs", "Target": "/t"}


def test_a_memory_limit_is_the_models_or_else_the_one_given() -> None:
    limited = copied(inspected(Memory=2000, MemorySwap=4000))["HostConfig"]
    assert (limited["Memory"], limited["MemorySwap"]) == (2000, 4000)
    assert copied(inspected())["HostConfig"]["Memory"] == 1000


@pytest.mark.parametrize(
    ("interval", "asked"), [(None, 2 * SECOND), (30 * SECOND, 2 * SECOND), (SECOND // 2, SECOND // 2)]
)
def test_a_health_check_is_the_same_and_asked_often(interval: int | None, asked: int) -> None:
    check = {"Test": ["CMD", "ready"], "Interval": interval, "StartPeriod": SECOND, "StartInterval": SECOND}
    made = copied(inspected({"Healthcheck": check}))["Healthcheck"]
    assert made == {"Test": ["CMD", "ready"], "StartPeriod": SECOND, "Interval": asked}


@pytest.mark.parametrize("check", [None, {}, {"Test": None}, {"Test": []}, {"Test": ["NONE"]}])
def test_a_container_without_a_health_check_is_told_apart(check: dict[str, Any] | None) -> None:
    assert not has_health_check({"Healthcheck": check})
    assert copied(inspected({"Healthcheck": check}))["Healthcheck"] == {"Test": ["NONE"]}


def test_secrets_of_the_environment_are_taken_out_of_a_text() -> None:
    blotted = blotting(["PASSWORD=hunter2", "URL=postgres://me:swordfish@db/x", "MODE=quick", "TOKEN=no", "EMPTY_KEY="])
    said = "hunter2 failed at postgres://me:swordfish@db/x in mode quick, no"
    assert blotted(said) == "… failed at postgres://me:…@db/x in mode quick, no"
