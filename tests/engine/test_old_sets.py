"""Sets that earlier versions wrote (tests/old_sets) are listed, verified and restored by this one."""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Machine, Sidecar, describe, differences, docker, remove_volume
from tests.engine.test_zoo_volume import as_archived

pytestmark = pytest.mark.engine("both")

OLD = Path(__file__).parents[1] / "old_sets"
VERSIONS = sorted(each.parent.name for each in OLD.glob("*/seen.json.gz"))
assert VERSIONS


@dataclass
class Past:
    """A sidecar with the sets of an earlier version; seen: what they are, and what the volumes held."""

    machine: Machine
    sidecar: Sidecar
    seen: dict[str, Any]

    def set(self, kind: str) -> str:
        return str(self.seen[kind]["set"])


@pytest.fixture(scope="module", params=VERSIONS)
def past(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Past]:
    seen = json.loads(gzip.decompress((OLD / request.param / "seen.json.gz").read_bytes()))
    sidecar = Sidecar(machine, None, f"old-{request.param}", include=[machine.name("none")])
    try:
        shutil.copytree(OLD / request.param, sidecar.local_directory)
        sidecar.up()
        yield Past(machine, sidecar, seen)
    finally:
        sidecar.down()


def test_all_of_them_are_listed_with_what_they_hold(past: Past) -> None:
    listed = {each["set"]: each for each in past.sidecar.verb("list", "--json", check=True).json()["sets"]}
    assert sorted(listed) == sorted(each["set"] for each in past.seen.values())
    for facts in past.seen.values():
        assert sorted(listed[facts["set"]]["volumes"]) == sorted(facts["held"])
        for volume, held in facts["held"].items():
            files = past.sidecar.verb("list", facts["set"], volume, "--json", check=True).json()["files"]
            assert len(files) == sum(each["kind"] != "socket" for each in held.values())


@pytest.mark.parametrize(("kind", "code"), [("whole", 0), ("reusing", 0), ("damaged", 1)])
def test_they_are_verified_and_a_damaged_one_is_red(past: Past, kind: str, code: int) -> None:
    done = past.sidecar.verb("verify", past.set(kind), "--full")
    assert done.code == code, done
    assert ("plain" in done.out and "damaged" in done.out) == (kind == "damaged")


@pytest.mark.parametrize(("kind", "volume"), [("whole", "plain"), ("whole", "zoo"), ("reusing", "plain")])
def test_what_they_hold_is_restored_as_it_was(past: Past, kind: str, volume: str) -> None:
    assert kind != "reusing" or past.seen[kind]["bytes_reused"][volume] > 0
    new = past.machine.name(f"old-{uuid.uuid4().hex[:8]}")
    done = past.sidecar.verb("restore", past.set(kind), volume, "--as", new, "--yes")
    assert done.code == 0, done
    reader = past.machine.run("old-reader", ["sleep", "infinity"], "--volume", f"{new}:/data:ro")
    try:
        (restored,) = describe(reader, "/data")
    finally:
        past.machine.remove(reader)
        remove_volume(new)
    assert differences(as_archived(past.seen[kind]["held"][volume]), restored) == []


def test_a_damaged_one_is_not_restored(past: Past) -> None:
    new = past.machine.name("old-damaged")
    done = past.sidecar.verb("restore", past.set("damaged"), "plain", "--as", new, "--yes")
    assert done.code == 1, done
    assert docker("volume", "inspect", new, check=False).code == 1
