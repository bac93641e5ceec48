"""Killed at random moments in random ways, again and again: nobody stays frozen, and nothing half is left.

TEST_KILLS says how often (20; `make test-faults`: 200), TEST_KILLS_SEED repeats a series; a failure prints both.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import BUCKET, ENDPOINT, S3, Machine, Sidecar, docker, inspect, is_paused, wait_until

pytestmark = pytest.mark.engine("modern")

KILLS = int(os.environ.get("TEST_KILLS") or 20)
SEED = os.environ.get("TEST_KILLS_SEED") or str(random.SystemRandom().randrange(1_000_000))

WAYS = ("SIGKILL of the daemon", "docker kill", "docker rm -f", "docker stop")

# The dead man looks four times a second, and the engine of a busy machine takes a while for each request.
BOUND = 10.0

# What takes long to copy (frozen, then) and is small when compressed; what takes long to upload; a log.
# One process: a shell that starts others for each line takes more of the machine than all that is tested.
WRITE = """
import os, time

line = b"a line of text that compresses well\\n"
with open("/text/file", "wb") as text:
    text.write((line * ((120 << 20) // len(line) + 1))[: 120 << 20])
with open("/noise/file", "wb") as noise:
    noise.write(os.urandom(16 << 20))
with open("/noise/log", "ab", 0) as log, open("/text/file", "r+b", 0) as text:
    while True:
        log.write(b"%d\\n" % time.time_ns())
        text.seek((int(time.time()) % 60 + 1) << 20)
        text.write(b"%d\\n" % time.time_ns())
        time.sleep(0.05)
"""

IT_GROWS = """
before=$(wc -c < /noise/log) tries=0
until [ $(wc -c < /noise/log) -gt $before ]; do tries=$((tries + 1)); [ $tries -lt 500 ]; sleep 0.02; done
"""


@dataclass
class Applications:
    """Two containers that write two volumes of one group all the time, and one that its user has paused."""

    volumes: list[str]
    writers: list[str]
    paused_by_user: str

    def frozen(self) -> list[str]:
        return [each for each in self.writers if is_paused(each)]

    def are_well(self) -> None:
        """All write, and what its user has paused is still paused."""
        assert self.frozen() == []
        assert is_paused(self.paused_by_user)
        for writer in self.writers:
            docker("exec", writer, "sh", "-ec", IT_GROWS)


@dataclass
class Deaths:
    """How the sidecar died in each test, and what the engine recorded meanwhile.

    begins, length: of a run, in seconds: from the command until it begins, and from there to its end.
    """

    begins: float
    length: float
    record: Path
    where: Counter[str] = field(default_factory=Counter)
    thawed_after: list[float] = field(default_factory=list)

    def note(self, way: str, name: str, writers: list[str], since: int) -> str:
        """Count a death after `since` (nanoseconds); where in its run it came, by what the engine recorded."""
        died, where = 0, ""
        frozen: set[str] = set()
        frozen_once = False
        for event in map(json.loads, self.record.read_text().splitlines()):
            who, what, when = event["Actor"]["Attributes"]["name"], event["Action"], event["timeNano"]
            if when < since:
                continue
            if who == name and what in ("kill", "die") and not died:
                died, where = when, "frozen" if frozen else "thawed" if frozen_once else "not frozen yet"
            elif who in writers and what == "pause" and not died:
                frozen.add(who)
                frozen_once = True
            elif who in frozen and what == "unpause":
                frozen.discard(who)
                if died and not frozen:
                    self.thawed_after.append((when - died) / 1e9)
        assert died, f"the engine has not seen {name} die"
        self.where[f"{way}, {where}"] += 1
        return where


@pytest.fixture(scope="module")
def applications(machine: Machine) -> Iterator[Applications]:
    group = ("--label", f"backup.group={machine.name('kills')}")
    text, noise = (machine.volume(f"kills-{name}", *group) for name in ("text", "noise"))
    mounts = ("--volume", f"{text}:/text", "--volume", f"{noise}:/noise")
    writers = [machine.run(f"kills-writer-{each}", ["python3", "-c", WRITE], *mounts) for each in (1, 2)]
    paused = machine.run("kills-paused", ["sleep", "infinity"], *mounts)
    try:
        docker("pause", paused)
        wait_until(lambda: docker("exec", writers[0], "test", "-s", "/noise/log", check=False).code == 0, "it writes")
        yield Applications([text, noise], writers, paused)
    finally:
        machine.remove(*writers, paused)


@pytest.fixture(scope="module")
def sidecar(applications: Applications, make_sidecar: SidecarMaker) -> Sidecar:
    sidecar = make_sidecar("kills", include=applications.volumes)
    sidecar.up()
    return sidecar


@pytest.fixture(scope="module")
def deaths(sidecar: Sidecar, applications: Applications, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deaths]:
    sidecar.good_run()
    began = time.monotonic()
    report, _ = sidecar.good_run()
    length = report["duration_ms"] / 1_000
    begins = time.monotonic() - began - length
    record = tmp_path_factory.mktemp("kills") / "events"
    filters = ["type=container", *(f"container={each}" for each in (sidecar.name, *applications.writers))]
    follow = ["docker", "events", "--format={{json .}}", *(f"--filter={each}" for each in filters)]
    with record.open("wb") as file:
        following = subprocess.Popen(follow, stdout=file)
    try:
        yield Deaths(begins, length, record)
    finally:
        following.terminate()
        following.wait()


def manifests(sidecar: Sidecar, s3: S3) -> list[str]:
    return sorted(key.split("/")[0] for key in s3.keys(sidecar.prefix) if key.endswith("/manifest.json"))


def assert_nothing_half_is_left(sidecar: Sidecar, s3: S3) -> list[str]:
    """No upload pending, no object without a set that has its manifest; the sets."""
    assert s3.pending(sidecar.prefix) == []
    sets = manifests(sidecar, s3)
    assert {key.split("/")[0] for key in s3.keys(sidecar.prefix)} == {"owner.json", *sets}
    return sets


def kill(sidecar: Sidecar, way: str) -> None:
    match way:
        case "SIGKILL of the daemon":
            sidecar.to_daemon("kill -9 $daemon")
        case "docker kill":
            docker("kill", sidecar.name)
        case "docker rm -f":
            docker("rm", "--force", sidecar.name)
        case "docker stop":
            docker("stop", sidecar.name)


def bring_back(sidecar: Sidecar, way: str, started_at: str) -> None:
    match way:
        case "SIGKILL of the daemon":  # the restart policy does
            wait_until(lambda: inspect(sidecar.name)["State"]["StartedAt"] != started_at, "it was started anew")
            sidecar.wait_ready()
        case "docker rm -f":
            sidecar.up()
        case _:
            sidecar.start()


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment_in_any_way_all_run_again_nothing_half_is_left_and_the_next_run_is_good(
    sidecar: Sidecar, s3: S3, applications: Applications, deaths: Deaths, number: int
) -> None:
    chance = random.Random(f"{SEED}-{number}")
    way = WAYS[number % len(WAYS)]
    # From just before the run begins (`docker exec` and Python take their time) to just after its end.
    moment = max(0.0, deaths.begins + chance.uniform(-0.4, deaths.length + 0.3))
    print(f"TEST_KILLS_SEED={SEED}, kill {number}: {way}, {moment - deaths.begins:.2f} s into {deaths.length:.2f} s")
    before = manifests(sidecar, s3)
    started_at = inspect(sidecar.name)["State"]["StartedAt"]
    since = time.time_ns()

    run = sidecar.begin("--json")
    time.sleep(moment)
    kill(sidecar, way)
    wait_until(lambda: not applications.frozen(), "all run again", timeout=BOUND)
    done = run.end()
    bring_back(sidecar, way, started_at)

    applications.are_well()
    sets = assert_nothing_half_is_left(sidecar, s3)
    assert sidecar.sets() == sets
    assert sets[: len(before)] == before
    if done.code == 0:  # what was said to be there is there
        assert sets[len(before) :] == [done.json()["set"]]
    assert len(sets) <= len(before) + 1
    report, _ = sidecar.good_run()
    wait_until(lambda: sidecar.helpers() == [], "no helper is left", timeout=20)
    assert assert_nothing_half_is_left(sidecar, s3) == [*sets, report["set"]]
    applications.are_well()
    print(deaths.note(way, sidecar.name, applications.writers, since))


def test_every_listed_set_can_be_read_by_others(
    sidecar: Sidecar,
    s3: S3,
    applications: Applications,
    deaths: Deaths,
    record_property: Callable[[str, object], None],
) -> None:
    sets = sidecar.sets()
    assert len(sets) >= KILLS
    told = [f"{deaths.where.total()} kills (TEST_KILLS_SEED={SEED}); a run takes {deaths.length:.1f} s"]
    told += [f"  {times:3} {where}" for where, times in sorted(deaths.where.items())]
    if deaths.thawed_after:
        told.append(f"  thawed within {max(deaths.thawed_after):.2f} s after a death while frozen")
    record_property("note", "\n".join(told))
    # By chance, one in thousands of series of 20 has none that came between the first pause and the end.
    assert KILLS < 20 or any(not where.endswith("not frozen yet") for where in deaths.where)
    read = s3.on_host(
        'mkdir /scratch/kills; cd /scratch/kills; aws --endpoint-url "$2" s3 sync --only-show-errors "s3://$1" .; '
        "for archive in backup-*/*.tar.gz; do gzip -dc $archive | tar -t > names; grep -qx ./file names; "
        "echo $archive; done; rm -r /scratch/kills",
        f"{BUCKET}/{sidecar.prefix}",
        ENDPOINT,
        timeout=1_200,
    ).out.split()
    assert sorted(read) == sorted(f"{name}/{volume}.tar.gz" for name in sets for volume in applications.volumes)
