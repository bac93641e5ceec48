"""Everything is lost but the bucket: stack, volumes, sidecar, its state, the guard. A new sidecar brings all back.

The oracle is what the applications themselves said before (rows, keys), and the files as lstat(2) and SHA-256 see them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.harness import (
    BUCKET,
    ROOT,
    S3,
    Compose,
    Description,
    Machine,
    Sidecar,
    describe,
    differences,
    docker,
    wait_until,
)

pytestmark = pytest.mark.engine("modern")

VOLUMES = ("pgdata", "redisdata", "uploads")
DATABASES = ("postgres", "redis")
WRITERS = ("pgbench", "files")
TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers", "customers")
# The owner's own figure, by hand.
BOUND = 120.0


@dataclass
class Oracle:
    """What was there before: each table's rows, each key's value, each file; and each volume's labels."""

    rows: dict[str, str]
    keys: dict[str, str]
    files: Description
    labels: dict[str, Any]


@dataclass
class Stack:
    """The sample stack, what it held when it was backed up, and how long each step back took."""

    machine: Machine
    s3: S3
    compose: Compose
    sidecar: Sidecar | None = None
    before: Oracle = field(init=False)
    set: str = ""
    took: dict[str, float] = field(default_factory=dict)

    def volume(self, name: str) -> str:
        return f"{self.compose.project}_{name}"

    def rows(self) -> dict[str, str]:
        """Of each table: how many rows, and a digest of all of them."""
        digest = "select count(*) || ' ' || md5(string_agg(t::text, E'\\n' order by t::text)) from {} t"
        return {table: self._sql(digest.format(table)) for table in TABLES}

    def keys(self) -> dict[str, str]:
        """Of each key: its value, as Redis would hand it to another server."""
        names = self._redis("--scan").split()
        return {name: self._redis("--no-raw", "DUMP", name) for name in sorted(names)}

    def files(self) -> Description:
        mount = ("--volume", f"{self.volume('uploads')}:/uploads:ro")
        oracle = self.machine.run("loss-oracle", ["sleep", "infinity"], *mount)
        try:
            (found,) = describe(oracle, "/uploads")
        finally:
            self.machine.remove(oracle)
        return found

    def labels(self) -> dict[str, Any]:
        shown = docker("volume", "inspect", *map(self.volume, VOLUMES)).json()
        return {each["Name"]: (each["Labels"], each["Driver"], each["Options"]) for each in shown}

    def see(self) -> Oracle:
        return Oracle(self.rows(), self.keys(), self.files(), self.labels())

    def add_what_a_customer_has(self) -> None:
        self._sql("create table customers as select n as id, md5(n::text) as name from generate_series(1, 5000) n")
        for number in range(20):
            self._redis("RPUSH", f"basket:{number}", *(f"thing-{each}" for each in range(number + 1)))
        self._redis("HSET", "prices", "tea", "2.40", "coffee", "2.90")
        self._redis("SET", "customers:count", "5000")

    def go_on(self) -> None:
        """The world moves on behind the backup, and what comes back must not be this."""
        self._sql("delete from customers where id % 2 = 0")
        self._redis("FLUSHALL")
        docker("exec", self.compose.container("files"), "sh", "-c", "rm -r /uploads/library; echo x > /uploads/new")

    def _sql(self, query: str) -> str:
        psql = ("psql", "-U", "postgres", "-AtXq", "-v", "ON_ERROR_STOP=1")
        return docker("exec", self.compose.container("postgres"), *psql, "-c", query).out.strip()

    def _redis(self, *arguments: str) -> str:
        return docker("exec", self.compose.container("redis"), "redis-cli", *arguments).out


@pytest.fixture(scope="module")
def stack(machine: Machine, s3: S3) -> Iterator[Stack]:
    sizes = {"PGBENCH_SCALE": "2", "PGBENCH_RATE": "50", "UPLOADS_FILES": "600", "UPLOADS_LARGE_MIB": "16"}
    compose = machine.compose(machine.name("loss"), [ROOT / "tests/stack/docker-compose.yml"], sizes)
    stack = Stack(machine, s3, compose)
    try:
        compose.up()
        compose.wait_healthy()
        back_up(stack)
        yield stack
    finally:
        if stack.sidecar:
            stack.sidecar.down()
        compose.down()


def new_sidecar(stack: Stack, **settings: str) -> Sidecar:
    """As on the first day: it knows the bucket, and (for the sake of others on this machine) which volumes are ours."""
    include = [f"{stack.compose.project}_*"]
    options = {"BACKUP_GUARD": "on"} | settings
    stack.sidecar = Sidecar(stack.machine, stack.s3, "loss", include=include, settings=options)
    stack.sidecar.up()
    return stack.sidecar


def back_up(stack: Stack) -> None:
    """Backed up while databases run and nobody writes, so that there is one truth; then all write on."""
    sidecar = new_sidecar(stack)
    stack.add_what_a_customer_has()
    stack.compose("stop", *WRITERS)
    stack.before = stack.see()
    stack.set = sidecar.good_run()[0]["set"]
    stack.compose("start", *WRITERS)
    stack.go_on()


def lose_everything(stack: Stack) -> None:
    """`down -v` once the guard has let go; then whatever was ours on this machine. Only the bucket is left."""
    sidecar = stack.sidecar
    assert sidecar is not None
    for volume in map(stack.volume, VOLUMES):
        assert sidecar.verb("guard", "release", volume).code == 0
    stack.compose("down", "--volumes", "--timeout", "2")
    sidecar.down()
    left = docker("volume", "ls", "--quiet").out.split()
    assert not {sidecar.state, *map(stack.volume, VOLUMES)} & set(left)
    names = docker("ps", "--all", "--format", "{{.Names}}").out.split()
    assert not [name for name in names if name.startswith((stack.compose.project, sidecar.name))]


def bring_back(stack: Stack, *restore: str, **settings: str) -> Sidecar:
    """What its owner does now, each step timed."""
    stack.took.clear()
    began = last = time.monotonic()

    def done(step: str) -> None:
        nonlocal last
        stack.took[step] = time.monotonic() - last
        last = time.monotonic()

    sidecar = new_sidecar(stack, **settings)
    done("a new sidecar")
    restored = sidecar.verb("restore", *restore, "--yes", timeout=300)
    assert restored.code == 0, restored
    assert restored.out.count("made and restored") == len(VOLUMES), restored.out
    done("restore --yes")
    # The files first: their application changes them as soon as it runs.
    looked = time.monotonic()
    found = stack.files()
    began, last = (moment + time.monotonic() - looked for moment in (began, last))
    stack.compose.up(*DATABASES)
    stack.compose.wait_healthy()
    now = (stack.rows(), stack.keys(), stack.labels())
    stack.compose.up()
    stack.compose.wait_healthy()
    done("the stack up and healthy")
    stack.took["all of it"] = last - began
    assert differences(stack.before.files, found) == []
    assert now == (stack.before.rows, stack.before.keys, stack.before.labels)
    return sidecar


def told(stack: Stack, what: str) -> str:
    return f"{what}: " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in stack.took.items())


def test_everything_but_the_bucket_is_lost_and_one_command_brings_all_of_it_back(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    assert len(stack.before.keys) >= 22
    assert stack.before.rows["customers"].startswith("5000 ")
    assert len(stack.before.files) > 600

    lose_everything(stack)
    sidecar = bring_back(stack, "latest")

    record_property("note", told(stack, "total loss, same machine"))
    assert stack.took["all of it"] < BOUND
    # And it is protected again, by the set and by the guard.
    report, _ = sidecar.good_run()
    assert {each["volume"] for each in report["volumes"]} == {stack.volume(name) for name in VOLUMES}
    wait_until(lambda: sidecar.guards() == [f"{sidecar.name}-guard"], "there is a guard again")
    refused = docker("volume", "rm", stack.volume("uploads"), check=False)
    assert refused.code == 1


def test_a_new_machine_restores_what_the_lost_one_had_and_then_backs_up_beside_it(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    lose_everything(stack)
    # An engine's ID is all by which a store tells machines apart: the bucket is another machine's now.
    key = f"{stack.machine.mark}/loss/owner.json"
    owner = json.loads(stack.s3.read(key)) | {"engine": "LOST:LOST:LOST", "host": "lost"}
    stack.s3.client.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(owner).encode())

    sidecar = bring_back(stack, stack.set)

    record_property("note", told(stack, "total loss, new machine"))
    refused = sidecar.run_now()
    assert refused.code == 1
    assert "belongs to host lost" in refused.out
    assert "BACKUP_HOST" in refused.out
    lose_everything(stack)
    sidecar = bring_back(stack, stack.set, "--host", "", BACKUP_HOST="new")
    sidecar.good_run()
    assert json.loads(stack.s3.read(key)) == owner
