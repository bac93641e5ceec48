"""With aws, tar and docker alone, by the commands of RECOVER.txt: the whole sample stack comes back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    ACCESS_KEY,
    BUCKET,
    HERE,
    POSTGRES_IMAGE,
    REGION,
    ROOT,
    S3,
    SECRET_KEY,
    Compose,
    Description,
    Machine,
    command,
    describe,
    differences,
    docker,
    is_paused,
    wait_until,
)

pytestmark = pytest.mark.engine("modern")

VOLUMES = ("pgdata", "redisdata", "uploads")


@dataclass
class Backup:
    """A backup of the sample stack, and what the oracle saw while it was held frozen."""

    project: str
    report: dict[str, Any]
    frozen: dict[str, Description]
    paused: dict[str, bool]
    recover: Path


@pytest.fixture(scope="module")
def stack(machine: Machine) -> Iterator[Compose]:
    sizes = {"PGBENCH_SCALE": "1", "PGBENCH_RATE": "50", "UPLOADS_FILES": "400", "UPLOADS_LARGE_MIB": "8"}
    stack = machine.compose(machine.name("stack"), [ROOT / "tests/stack/docker-compose.yml"], sizes)
    try:
        stack.up()
        stack.wait_healthy()
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="module")
def backup(machine: Machine, s3: S3, stack: Compose, make_sidecar: SidecarMaker, tmp_path_factory: Any) -> Backup:
    names = {f"{stack.project}_{volume}" for volume in VOLUMES}
    mounts = [part for name in sorted(names) for part in ("--volume", f"{name}:/seen/{name}:ro")]
    oracle = machine.run("stack-oracle", ["sleep", "infinity"], *mounts)
    try:
        sidecar = make_sidecar("stack", include=[f"{stack.project}_*"], settings={"BACKUP_TEST_STAGE": "frozen=hold"})
        sidecar.up()

        def look() -> tuple[list[Description], dict[str, bool]]:
            seen = describe(oracle, *(f"/seen/{name}" for name in sorted(names)))
            return seen, {each: is_paused(stack.container(each)) for each in stack("ps", "--services").out.split()}

        report, (seen, paused) = sidecar.good_run(stage="frozen", held=look)
    finally:
        machine.remove(oracle)  # or `down -v` could not remove the volumes
    recover = tmp_path_factory.mktemp("recover") / "RECOVER.txt"
    recover.write_bytes(s3.read(f"{sidecar.prefix}/{report['set']}/RECOVER.txt"))
    return Backup(stack.project, report, dict(zip(sorted(names), seen, strict=True)), paused, recover)


@pytest.fixture(scope="module")
def restored(machine: Machine, s3: S3, backup: Backup) -> Iterator[dict[str, str]]:
    """Volume -> the new volume that it was restored into."""
    credentials = ("--env", f"AWS_ACCESS_KEY_ID={ACCESS_KEY}", "--env", f"AWS_SECRET_ACCESS_KEY={SECRET_KEY}")
    options = ("--network", s3.network, "--env", f"AWS_REGION={REGION}", *credentials)
    new = {name: f"{name}-restored" for name in backup.frozen}
    try:
        for name, into in new.items():
            command(HERE / "recover-by-hand", backup.recover, name, into, *options)
        yield new
    finally:
        docker("volume", "rm", *new.values(), check=False)


def test_one_frozen_instant_holds_all_volumes_of_the_project(backup: Backup) -> None:
    assert backup.report["outcome"] == "good"
    (group,) = backup.report["groups"]
    assert group["group"] == backup.project
    assert {volume["volume"] for volume in backup.report["volumes"]} == set(backup.frozen)


def test_exactly_the_containers_that_can_write_a_volume_were_paused(backup: Backup) -> None:
    assert backup.paused == {"postgres": True, "redis": True, "files": True, "pgbench": False}


@pytest.mark.parametrize("volume", VOLUMES)
def test_every_volume_is_bit_for_bit_what_it_was_at_the_frozen_instant(
    machine: Machine, backup: Backup, restored: dict[str, str], volume: str
) -> None:
    name = f"{backup.project}_{volume}"
    oracle = machine.run("restored-oracle", ["sleep", "infinity"], "--volume", f"{restored[name]}:/restored:ro")
    try:
        (found,) = describe(oracle, "/restored")
    finally:
        machine.remove(oracle)
    assert differences(backup.frozen[name], found) == []


def test_the_sample_holds_what_a_restore_could_lose(backup: Backup) -> None:
    """The comparison proves nothing about what is not there."""
    uploads = backup.frozen[f"{backup.project}_uploads"]
    library = [facts for path, facts in uploads.items() if path.startswith("./library/")]
    assert {"file", "directory", "symlink", "fifo"} <= {facts["kind"] for facts in library}
    attributes = {name for facts in library for name in facts["attributes"]}
    assert {"user.origin", "system.posix_acl_access", "system.posix_acl_default"} <= attributes
    assert any(len(facts.get("names", ())) == 2 for facts in library)
    assert any(facts["mode"] == "0o4750" for facts in library)
    assert [4242, 4343] in [facts["owner"] for facts in library]
    assert any(facts["mtime_ns"] % 1000 for facts in library)
    assert any("\udcff" in path for path in uploads)


def test_postgresql_starts_on_the_restored_volume_and_all_transactions_add_up(
    machine: Machine, backup: Backup, restored: dict[str, str]
) -> None:
    data = restored[f"{backup.project}_pgdata"]
    server = machine.run(
        "restored-postgres", ["postgres"], "--volume", f"{data}:/var/lib/postgresql/data", image=POSTGRES_IMAGE
    )
    try:
        ready = ("exec", server, "pg_isready", "--quiet", "--host=127.0.0.1")
        wait_until(lambda: docker(*ready, check=False).code == 0, "PostgreSQL has recovered")
        query = (
            "select (select sum(abalance) from pgbench_accounts), (select sum(delta) from pgbench_history),"
            " (select sum(bbalance) from pgbench_branches), (select count(*) from pgbench_history)"
        )
        answer = docker("exec", server, "psql", "-U", "postgres", "-AtXF", " ", "-c", query).out.split()
    finally:
        machine.remove(server)
    balances, deltas, branches, transactions = map(int, answer)
    assert balances == deltas == branches
    assert transactions > 0


def test_one_file_comes_back_alone_by_the_commands_of_recover_txt(machine: Machine, s3: S3, backup: Backup) -> None:
    """On the bare host, out of the archive of all uploads: a name that is not ASCII, found in the listing."""
    lines = backup.recover.read_text().replace("\\\n", "").splitlines()
    where = next(line.strip() for line in lines if line.strip().startswith("SET="))
    listing, one = (line for line in lines if line.startswith(" " * 7) and line.endswith(("tar -tzf -", " PATH")))
    name, path = f"{backup.project}_uploads", "./library/special/Übersicht der Größen.txt"
    script = f"{where}\n{listing}\nDIR=/scratch/one; mkdir $DIR\n{one}\n".replace("VOLUME", name)

    listed = s3.on_host(script.replace("PATH", f"'{path}'")).out.splitlines()

    assert any(line.endswith("special/empty-directory/") for line in listed)
    (found,) = describe(s3.host, "/scratch/one")
    wanted = backup.frozen[name][path]
    assert [each for each, facts in found.items() if facts["kind"] == "file"] == [path]
    assert found[path] == wanted
    s3.forget("/scratch/one")


def test_recover_txt_tells_how_to_check_an_archive(s3: S3, backup: Backup) -> None:
    lines = backup.recover.read_text().splitlines()
    (check,) = [line.strip() for line in lines if "gzip -t" in line and line.startswith(" " * 7)]
    where = next(line.strip() for line in lines if line.strip().startswith("SET="))
    assert f"s3://{BUCKET}/" in where
    for name in backup.frozen:
        assert s3.on_host(f"{where}\n{check.replace('VOLUME', name)}").out == "whole\n"
