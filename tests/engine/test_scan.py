"""`scan` on a real engine and a real S3 server: what is left is found, and the printed command brings it back."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import BUCKET, S3, Machine, Sidecar, docker, remove_volume

pytestmark = pytest.mark.engine("machine")

HALF = "backup-20200102_030405"


@dataclass
class Loss:
    """Two hosts that share a prefix; what is left of the one, seen from the other."""

    ours: Sidecar
    prefix: str
    volume: str  # of the other host
    idle: str  # a PostgreSQL's, that no container uses
    sets: dict[str, str]
    report: dict[str, Any]

    def found(self, kind: str, *volumes: str) -> list[dict[str, Any]]:
        return [
            each
            for each in self.report["findings"]
            if each["kind"] == kind and set(volumes) <= set(each["volumes"]) and self.is_here(each)
        ]

    def is_here(self, finding: dict[str, Any]) -> bool:
        """Whether it is of this test: others use this engine, and this bucket."""
        return finding["where"] == "docker" or finding["home"].startswith(self.prefix)


@pytest.fixture(scope="module")
def loss(machine: Machine, s3: S3, make_sidecar: SidecarMaker) -> Loss:
    prefix = f"{machine.mark}/scan"
    volume, idle = machine.volume("scan-data"), machine.volume("scan-idle")
    mounts = ("--volume", f"{volume}:/data", "--volume", f"{idle}:/idle")
    app = machine.run("scan-app", ["sleep", "infinity"], *mounts)
    docker("exec", app, "sh", "-c", "echo precious > /data/file; echo 15 > /idle/PG_VERSION; mkdir /idle/base")
    sets = {}
    try:
        for host in ("theirs", "ours"):
            sidecar = make_sidecar(
                f"scan-{host}",
                include=[volume],
                settings={"BACKUP_PREFIX": prefix, "BACKUP_HOST": host, "AWS_EC2_METADATA_DISABLED": "true"},
            )
            sidecar.up()
            sets[host] = sidecar.good_run()[0]["set"]
            if host == "theirs":
                sidecar.down()
    finally:
        machine.remove(app)
    archive = s3.read(f"{prefix}/theirs/{sets['theirs']}/{volume}.tar.gz")
    s3.client.put_object(Bucket=BUCKET, Key=f"{prefix}/ours/{HALF}/half.tar.gz", Body=archive)
    done = sidecar.verb("scan", "--json", timeout=300)
    assert done.code in (0, 3), done
    return Loss(sidecar, prefix, volume, idle, sets, done.json())


def test_everything_that_is_left_is_found_with_what_it_is(loss: Loss) -> None:
    theirs, ours = (
        next(each for each in loss.found("set", loss.volume) if each["home"].endswith(host))
        for host in ("/theirs", "/ours")
    )
    assert loss.sets["theirs"] in theirs["what"]
    assert ours["commands"] == [f"docker exec -it {loss.ours.name} restore {loss.sets['ours']}"]
    assert theirs["proven"]
    assert theirs["bytes"] > 0
    (half,) = loss.found("half_set", "half")
    assert HALF in half["what"]
    assert not half["proven"]
    (idle,) = loss.found("volume", loss.idle)
    assert idle["what"] == f"volume {loss.idle} (PostgreSQL 15)"
    assert (idle["bytes"], idle["age_seconds"] < 3600) == (3, True)
    assert loss.report["newest"][loss.volume]["kind"] == "set"
    assert loss.report["found"]


def test_the_command_that_it_prints_restores_the_other_hosts_set(loss: Loss) -> None:
    (theirs,) = [each for each in loss.found("set", loss.volume) if each["home"].endswith("/theirs")]
    (command,) = theirs["commands"]
    into = f"{loss.volume}_restored"
    assert command == (
        f"docker exec {loss.ours.name} restore {loss.sets['theirs']} {loss.volume} --host theirs --as {into} --yes"
    )
    try:
        done = docker(*shlex.split(command)[1:], timeout=300)
        assert done.code == 0, done
        read = docker("exec", loss.ours.name, "cat", f"/volumes/{into}/_data/file")
        assert read.out == "precious\n"
    finally:
        remove_volume(into)


def test_an_unproven_archive_is_unpacked_by_the_command_that_it_prints(loss: Loss, s3: S3) -> None:
    (half,) = loss.found("half_set", "half")
    s3.on_host(f"mkdir /scratch/half; {half['commands'][0].replace('DIRECTORY', '/scratch/half')}")
    assert s3.on_host("cat /scratch/half/file").out == "precious\n"


def test_at_a_terminal_or_in_a_pipe_it_is_told_in_words_and_ends_in_a_conclusion(loss: Loss) -> None:
    done = loss.ours.verb("scan", timeout=300)
    assert done.code in (0, 3), done
    assert f"volume {loss.idle} (PostgreSQL 15)" in done.out
    assert f"docker exec {loss.ours.name} run-now {loss.idle}" in done.out
    assert "The newest backup that can be recovered: " in done.out.splitlines()[-1]
