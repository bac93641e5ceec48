"""The archive is the frozen instant: what an oracle saw while everything stood still is what plain tar gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import HERE, S3, Description, Machine, Sidecar, describe, differences, docker, wait_until

pytestmark = pytest.mark.engine

RUNS = 10


@dataclass
class Busy:
    """A volume that four processes write to at full speed, an oracle that may read it, and a sidecar."""

    volume: str
    writers: str
    oracle: str
    sidecar: Sidecar

    def steps(self) -> list[int]:
        """How far each writer has come."""
        script = 'for file in /data/*/steps; do od -An -tu8 "$file"; done'
        return [int(line) for line in docker("exec", self.oracle, "sh", "-c", script).out.split()]

    def wait_until_all_write(self) -> None:
        before = self.steps()
        assert len(before) == 4
        wait_until(lambda: all(now > then for now, then in zip(self.steps(), before, strict=True)), "all writers write")


@pytest.fixture(scope="module")
def busy(machine: Machine, make_sidecar: SidecarMaker) -> Iterator[Busy]:
    volume = machine.volume("busy")
    script = (HERE / "writers.py").read_text()
    # At full speed, but last in the queue: what is timed elsewhere must not wait for them.
    modest = ("--cpu-shares", "64")
    writers = machine.run("writers", ["python3", "-c", script, "/data"], "--volume", f"{volume}:/data", *modest)
    oracle = machine.run("writers-oracle", ["sleep", "infinity"], "--volume", f"{volume}:/data:ro")
    try:
        sidecar = make_sidecar("oracle", include=[volume], settings={"BACKUP_TEST_STAGE": "frozen=hold"})
        sidecar.up()
        yield Busy(volume, writers, oracle, sidecar)
    finally:
        machine.remove(writers, oracle)


@pytest.fixture(scope="module")
def seen() -> list[Description]:
    """What the oracle saw in each run."""
    return []


@pytest.mark.parametrize("run_number", range(1, RUNS + 1))
def test_the_archive_is_the_frozen_instant_with_writers_at_full_speed_around_it(
    busy: Busy, s3: S3, seen: list[Description], run_number: int
) -> None:
    busy.wait_until_all_write()
    report, (oracle,) = busy.sidecar.good_run(stage="frozen", held=lambda: describe(busy.oracle, "/data"))
    busy.wait_until_all_write()

    directory = s3.restore(busy.sidecar.prefix, report["set"], busy.volume)
    (restored,) = describe(s3.host, directory)
    s3.forget(directory)
    assert differences(oracle, restored) == []
    assert sum(facts["kind"] == "file" for facts in oracle.values()) > 50

    # They were writing, each of them, between this instant and the one before.
    for before in seen[-1:]:
        assert len({path.split("/")[1] for path in changed(before, oracle)}) == 4
    seen.append(oracle)


def changed(before: Description, now: Description) -> set[str]:
    return {path for path in before.keys() & now.keys() if before[path].get("sha256") != now[path].get("sha256")}
