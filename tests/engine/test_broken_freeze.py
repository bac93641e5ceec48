"""Whoever may write while a group is read makes its backup fail, by name, and everything runs afterwards."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import HOST_IMAGE, Machine, Sidecar, docker, inspect, is_paused, wait_until

pytestmark = pytest.mark.engine("both")

# Writes twice a second, and ends when it is told to.
WRITER = ["sh", "-c", "trap 'exit 0' TERM; while :; do date +%N >> /data/log; sleep 0.5 & wait $!; done"]


@dataclass
class Shop:
    """A volume with two containers that can write it, and a sidecar whose runs are held while all is frozen."""

    machine: Machine
    volume: str
    one: str
    other: str
    sidecar: Sidecar

    @property
    def newcomer(self) -> str:
        return self.machine.name("newcomer")

    def start_writer(self, *options: str) -> None:
        self.machine.run("newcomer", ["sleep", "infinity"], "--volume", f"{self.volume}:/data", *options)

    def writers(self) -> list[str]:
        return [self.one, self.other]


@pytest.fixture(scope="module")
def shop(machine: Machine, make_sidecar: SidecarMaker) -> Iterator[Shop]:
    volume = machine.volume("shop")
    one, other = (machine.run(name, WRITER, "--volume", f"{volume}:/data") for name in ("shop-one", "shop-other"))
    try:
        sidecar = make_sidecar("broken", include=[volume], settings={"BACKUP_TEST_STAGE": "frozen=hold"})
        sidecar.up()
        yield Shop(machine, volume, one, other, sidecar)
    finally:
        machine.remove(one, other)


@pytest.fixture(autouse=True)
def as_it_was(shop: Shop) -> Iterator[None]:
    yield
    shop.machine.remove(shop.newcomer)
    for container in shop.writers():
        docker("start", container)


def restart(shop: Shop) -> str:
    docker("restart", "--time", "5", shop.one)
    return shop.one


def unpause(shop: Shop) -> str:
    docker("unpause", shop.one)
    return shop.one


def unpause_and_pause_again(shop: Shop) -> str:
    docker("unpause", shop.one)
    docker("pause", shop.one)
    return shop.one


def stop(shop: Shop) -> str:
    docker("stop", "--time", "5", shop.one)
    return shop.one


def kill(shop: Shop) -> str:
    docker("kill", shop.one)
    return shop.one


def remove(shop: Shop) -> str:
    docker("rm", "--force", shop.one)
    return shop.one


def start_a_writer(shop: Shop) -> str:
    shop.start_writer()
    return shop.newcomer


def start_a_writer_by_the_volumes_directory(shop: Shop) -> str:
    mountpoint = docker("volume", "inspect", "--format", "{{.Mountpoint}}", shop.volume).out.strip()
    shop.machine.run("newcomer", ["sleep", "infinity"], "--volume", f"{mountpoint}:/elsewhere")
    return shop.newcomer


def a_writer_comes_and_goes(shop: Shop) -> str:
    there = ("--rm", "--name", shop.newcomer, "--volume", f"{shop.volume}:/data")
    docker("run", *there, HOST_IMAGE, "sh", "-c", "echo gone > /data/gone")
    return shop.newcomer


def copy_into_a_frozen_container(shop: Shop) -> str:
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        member = tarfile.TarInfo("copied")
        member.size = 6
        file.addfile(member, BytesIO(b"copied"))
    docker("cp", "-", f"{shop.one}:/data", stdin=archive.getvalue())
    return shop.one


INTERFERENCES = [
    restart,
    unpause,
    unpause_and_pause_again,
    stop,
    kill,
    start_a_writer,
    start_a_writer_by_the_volumes_directory,
    a_writer_comes_and_goes,
    copy_into_a_frozen_container,
    remove,
]


@pytest.mark.parametrize("interfere", INTERFERENCES)
def test_a_group_that_did_not_stand_still_is_not_committed_and_the_next_run_is_good(
    shop: Shop, interfere: Callable[[Shop], str]
) -> None:
    sets = shop.sidecar.sets()
    run = shop.sidecar.begin("--json")
    with shop.sidecar.held("frozen", run):
        assert [is_paused(each) for each in shop.writers()] == [True, True]
        culprit = interfere(shop)
    done = run.end()

    report = done.json()
    assert (done.code, report["outcome"], report["set"]) == (1, "failed", None)
    reasons = [each for each in report["reasons"] if culprit in each["message"]]
    assert [each["code"] for each in reasons] == ["freeze_broken"], report["reasons"]
    assert reasons[0]["hint"]
    assert shop.sidecar.sets() == sets
    assert not any(is_paused(each) for each in shop.writers() if exists(each))
    (failed,) = shop.sidecar.events("run_failed")[-1:]
    assert culprit in failed["error"]

    shop.machine.remove(shop.newcomer)
    for container in shop.writers():
        if exists(container):
            docker("start", container)
        else:
            name = container.removeprefix(shop.machine.name(""))
            shop.machine.run(name, WRITER, "--volume", f"{shop.volume}:/data")
    good, _ = shop.sidecar.good_run(stage="frozen")
    assert shop.sidecar.sets() == [*sets, good["set"]]
    assert not any(is_paused(each) for each in shop.writers())


def exists(container: str) -> bool:
    return docker("container", "inspect", container, check=False).code == 0


def test_a_container_that_only_reads_may_come_and_stay(shop: Shop) -> None:
    def start_reader() -> None:
        shop.machine.remove(shop.newcomer)  # of a run before, that others have disturbed
        shop.machine.run("newcomer", ["sleep", "infinity"], "--volume", f"{shop.volume}:/data:ro")

    shop.sidecar.good_run(stage="frozen", held=start_reader)


def test_what_is_paused_or_stopped_already_is_left_so(shop: Shop) -> None:
    docker("pause", shop.one)
    docker("stop", "--time", "5", shop.other)
    try:
        report, _ = shop.sidecar.good_run(stage="frozen")
        assert is_paused(shop.one)
        assert inspect(shop.other)["State"]["Status"] == "exited"
        assert report["paused_ms"] == 0
    finally:
        docker("unpause", shop.one)


def test_a_container_that_someone_paused_and_thaws_in_the_middle_ends_the_run(shop: Shop) -> None:
    docker("pause", shop.one)
    run = shop.sidecar.begin("--json")
    with shop.sidecar.held("frozen", run):
        docker("unpause", shop.one)
    done = run.end()
    assert done.code == 1
    assert any(shop.one in each["message"] for each in done.json()["reasons"])


def test_a_group_that_takes_longer_than_the_budget_is_thawed_in_time_and_fails(shop: Shop) -> None:
    shop.sidecar.up(BACKUP_MAX_PAUSE="2s")
    try:
        run = shop.sidecar.begin("--json")
        with shop.sidecar.held("frozen", run):
            # Nobody lets the run go on: the thaw does not wait for it.
            wait_until(lambda: not any(is_paused(each) for each in shop.writers()), "all is thawed", timeout=10)
        done = run.end()
        assert done.code == 1
        assert [each["code"] for each in done.json()["reasons"]] == ["pause_budget_spent"]
        assert "BACKUP_MAX_PAUSE" in done.json()["reasons"][0]["hint"]
        assert 2000 <= done.json()["paused_ms"] < 5000
    finally:
        shop.sidecar.up(BACKUP_MAX_PAUSE="120s")
