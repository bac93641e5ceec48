"""The archive is the frozen instant: what an oracle saw while everything stood still is what plain tar gives back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.disks import mounted
from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    HERE,
    HOST_IMAGE,
    S3,
    Description,
    Machine,
    Sidecar,
    describe,
    differences,
    docker,
    wait_until,
)

pytestmark = pytest.mark.engine("machine")

OLD_BYTES = 60_000_000  # as writers.py has them
LARGE_BYTES = 4 << 20  # of the table, and of the file that is mapped, each

RUNS = int(os.environ.get("TEST_ORACLE_RUNS", "10"))
# The engine's own, which is ext4 nearly everywhere, and others, each in a file of its own.
FILE_SYSTEMS = ["the engine's", *os.environ.get("TEST_ORACLE_FILE_SYSTEMS", "").split()]
# With the state volume on it too, so that large hot files are cloned.
CLONING = FILE_SYSTEMS[1:] or ["xfs"]
CLONING_RUNS = RUNS if "TEST_ORACLE_RUNS" in os.environ else 2
# These writers are so fast, and their files so small, that comparing them would be found to be faster than waiting for
# the disk, as cloning does. Here it always pays.
ALWAYS_CLONE = "from sidecar.archive import copies\n\ncopies._COMPARED = 1e-9\n"
HOT = 2  # runs before there is anything to be taken over


@contextmanager
def volume_on(file_system: str, machine: Machine, directory: Path) -> Iterator[str]:
    """A volume on a file system of this type; its name."""
    name = f"busy-{FILE_SYSTEMS.index(file_system)}"
    if file_system == FILE_SYSTEMS[0]:
        yield machine.volume(name)
        return
    disk = directory / file_system
    with disk.open("wb") as file:
        file.truncate(2 << 30)
    subprocess.run([f"mkfs.{file_system}", "-q", disk], check=True)
    device = subprocess.run(["losetup", "--find", "--show", disk], check=True, capture_output=True, text=True).stdout
    volume = machine.volume(name, "--opt", f"type={file_system}", "--opt", f"device={device.strip()}")
    try:
        yield volume
    finally:
        docker("volume", "rm", "--force", volume, check=False)
        subprocess.run(["losetup", "--detach", device.strip()], check=True)


@dataclass
class Busy:
    """A volume that five processes write to, an oracle that may read it, and a sidecar.

    Four write at full speed; the fifth has files that nobody touches, but for a few.
    """

    volume: str
    writers: str
    oracle: str
    sidecar: Sidecar
    seen: list[Description] = field(default_factory=list)  # by the oracle, in each run

    def steps(self) -> list[int]:
        """How far each writer has come."""
        script = 'for file in /data/*/steps; do od -An -tu8 "$file"; done'
        return [int(line) for line in docker("exec", self.oracle, "sh", "-c", script).out.split()]

    def wait_until_old_files_are_old(self) -> None:
        """A minute after they were made they may be taken for unchanged."""
        script = 'test $(($(date +%s) - $(stat -c %Z "$(ls -d /data/old_files/*/* | tail -n 1)"))) -gt 61'
        wait_until(
            lambda: docker("exec", self.oracle, "sh", "-c", script, check=False).code == 0,
            "the files are a minute old",
            timeout=90,
            every=1.0,
        )

    def wait_until_all_write(self) -> None:
        before = self.steps()
        wait_until(lambda: all(now > then for now, then in zip(self.steps(), before, strict=True)), "all writers write")


@pytest.fixture(scope="class", params=FILE_SYSTEMS)
def busy(
    request: pytest.FixtureRequest,
    machine: Machine,
    make_sidecar: SidecarMaker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Busy]:
    with volume_on(request.param, machine, tmp_path_factory.mktemp("disk")) as volume:
        yield from _busy(volume, machine, make_sidecar)


@pytest.fixture(scope="class", params=CLONING)
def cloning(
    request: pytest.FixtureRequest,
    machine: Machine,
    make_sidecar: SidecarMaker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Busy]:
    directory = tmp_path_factory.mktemp("disk")
    with mounted(request.param, directory, 2 << 30, inside=machine.running.inside()) as disk:
        here = machine.running.root / str(disk).lstrip("/")
        seen = docker("run", "--rm", "--volume", f"{disk}:/disk", HOST_IMAGE, "stat", "-f", "-c", "%T", "/disk").out
        if seen.strip() != request.param:
            pytest.skip(f"the engine does not see what is mounted here: it has {seen.strip()} at {disk}")
        options = {}
        for name in ("data", "state"):
            (here / name).mkdir()
            options[name] = {"type": "none", "o": "bind", "device": str(disk / name)}
        given = [part for key, value in options["data"].items() for part in ("--opt", f"{key}={value}")]
        volume = machine.volume(f"cloning-{request.param}", *given)
        (here / "always").mkdir()
        (here / "always" / "sitecustomize.py").write_text(ALWAYS_CLONE)
        state = {"driver": "local", "driver_opts": options["state"]}
        service = {"volumes": [f"{disk / 'always'}:/always:ro"]}
        try:
            yield from _busy(
                volume, machine, make_sidecar, state=state, service=service, settings={"PYTHONPATH": "/always"}
            )
        finally:
            docker("volume", "rm", "--force", volume, check=False)


def _busy(
    volume: str,
    machine: Machine,
    make_sidecar: SidecarMaker,
    settings: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Busy]:
    script = (HERE / "writers.py").read_text()
    # At full speed, but last in the queue: what is timed elsewhere must not wait for them.
    modest = ("--cpu-shares", "64")
    writers = machine.run("writers", ["python3", "-c", script, "/data"], "--volume", f"{volume}:/data", *modest)
    oracle = machine.run("writers-oracle", ["sleep", "infinity"], "--volume", f"{volume}:/data:ro")
    try:
        settings = {"BACKUP_TEST_STAGE": "frozen=hold", **(settings or {})}
        sidecar = make_sidecar(f"oracle-{volume[-1]}", include=[volume], settings=settings, **options)
        sidecar.up()
        busy = Busy(volume, writers, oracle, sidecar)
        wait_until(lambda: len(busy.steps()) == 5, "all writers have begun")
        yield busy
        sidecar.down()
    finally:
        machine.remove(writers, oracle)


# Two classes, so that the writers of the first have ended when those of the second begin.


class TestWhereHotFilesAreCompared:
    """On any file system."""

    @pytest.mark.parametrize("run_number", range(1, RUNS + 1))
    def test_the_archive_is_the_frozen_instant_with_writers_at_full_speed_around_it(
        self, busy: Busy, s3: S3, run_number: int
    ) -> None:
        _judge(busy, s3, run_number)

    def test_after_so_many_sets_no_library_has_complained(self, busy: Busy) -> None:
        assert len(busy.sidecar.events("run_finished")) >= RUNS
        assert busy.sidecar.events("library") == []


class TestWhereHotFilesAreCloned:
    """On file systems that can, with the state volume on the same one."""

    @pytest.mark.parametrize("run_number", range(1, CLONING_RUNS + 1))
    def test_the_archive_is_the_frozen_instant_with_writers_at_full_speed_around_it(
        self, cloning: Busy, s3: S3, run_number: int
    ) -> None:
        _judge(cloning, s3, run_number)

        finished = cloning.sidecar.events("volume_finished")[-1]
        assert finished["bytes_cloned"] >= 2 * LARGE_BYTES


def _judge(busy: Busy, s3: S3, run_number: int) -> None:
    if run_number == HOT + 1:
        busy.wait_until_old_files_are_old()
    busy.wait_until_all_write()
    report, (oracle,) = busy.sidecar.good_run(stage="frozen", held=lambda: describe(busy.oracle, "/data"))
    busy.wait_until_all_write()

    directory = s3.restore(busy.sidecar.prefix, report["set"], busy.volume)
    (restored,) = describe(s3.host, directory)
    s3.forget(directory)
    assert differences(oracle, restored) == []
    assert sum(facts["kind"] == "file" for facts in oracle.values()) > 50

    # They were writing, each of them, between this instant and the one before.
    for before in busy.seen[-1:]:
        assert len({path.split("/")[1] for path in changed(before, oracle)}) == 5
    busy.seen.append(oracle)

    # Most of what is old comes from the archive before, and not all of it, because some has changed.
    (volume,) = report["volumes"]
    assert volume["bytes_reused"] < volume["archive_bytes"]
    if run_number > HOT + 1:
        assert volume["bytes_reused"] > OLD_BYTES // 2


def changed(before: Description, now: Description) -> set[str]:
    return {path for path in before.keys() & now.keys() if before[path].get("sha256") != now[path].get("sha256")}
