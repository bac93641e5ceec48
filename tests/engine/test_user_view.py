"""What a user sees of a sidecar that works: verbs, JSON, exit codes, the log, and never a secret."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidecar.events import EVENTS
from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    ACCESS_KEY,
    BUCKET,
    S3,
    SECRET_KEY,
    Machine,
    Run,
    Sidecar,
    describe,
    differences,
    docker,
    is_paused,
    logs,
    wait_until,
)

pytestmark = pytest.mark.engine("modern")

LAY_DOWN = """
mkdir -p /data/letters/old && cd /data
echo hello > readme.md
for number in 1 2 3; do echo "letter $number" > letters/old/letter-$number.txt; done
ln -s ../readme.md letters/link
printf 'not utf-8' > "$(printf 'caf\\351')"
touch /data/ready
exec sleep infinity
"""

# INTERFACE: the keys of `run-now --json` and of what lies in it.
REPORT = {
    "run", "set", "outcome", "started", "duration_ms", "paused_ms", "off_host", "reasons", "unprotected", "stores",
    "groups", "volumes", "warnings",
}  # fmt: skip
STORE = {"outcome", "bytes_uploaded", "pending", "error", "hint"}
GROUP = {"group", "containers", "paused_ms", "outcome"}
VOLUME = {
    "volume", "outcome", "files", "bytes_read", "archive_bytes", "bytes_uploaded", "bytes_reused", "changed_files",
    "error", "hint",
}  # fmt: skip
REASON = {"code", "volume", "store", "message", "hint"}
UNPROTECTED = {"container", "mount", "why"}
LISTED = {"set", "time", "outcome", "host", "stores", "volumes", "tags", "keep", "verified", "drilled"}
STATUS = {
    "state", "healthy", "why", "next_run", "last_run", "last_good", "last_verify", "last_drill", "guard", "pending",
    "running",
}  # fmt: skip
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z")


@dataclass
class Shop:
    """A volume with known files, another one, and the container that can write both."""

    notes: str
    other: str
    app: str
    sidecar: Sidecar


@pytest.fixture(scope="module")
def app(machine: Machine) -> Iterator[tuple[str, str, str]]:
    notes, other = machine.volume("user-notes"), machine.volume("user-other")
    mounts = ("--volume", f"{notes}:/data", "--volume", f"{other}:/other")
    app = machine.run("user-app", ["bash", "-c", LAY_DOWN], *mounts)
    try:
        wait_until(lambda: docker("exec", app, "test", "-e", "/data/ready", check=False).code == 0, "files are there")
        yield notes, other, app
    finally:
        machine.remove(app)


@pytest.fixture(scope="module")
def shop(app: tuple[str, str, str], make_sidecar: SidecarMaker) -> Shop:
    notes, other, container = app
    sidecar = make_sidecar("user", include=[notes, other])
    sidecar.up()
    return Shop(notes, other, container, sidecar)


@pytest.fixture(scope="module")
def one_set(shop: Shop) -> dict[str, Any]:
    """The report of one good run."""
    report, _ = shop.sidecar.good_run("--tag", "reason=a test", "--tag", "by=us")
    assert isinstance(report, dict)
    return report


# --- plan ------------------------------------------------------------------------------------------------------------


def test_plan_says_what_a_run_would_do_and_where_sets_go(shop: Shop) -> None:
    plan = shop.sidecar.verb("plan", "--json", check=True).json()
    volumes = {each["volume"]: group for group in plan["groups"] for each in group["volumes"]}
    assert set(volumes) == {shop.notes, shop.other}
    for group in volumes.values():
        assert [(each["container"], each["quiesce"]) for each in group["containers"]] == [(shop.app, "pause")]
    assert plan["stores"] == {"s3": f"s3://{BUCKET}/{shop.sidecar.prefix}"}
    assert shop.sidecar.state in {each["volume"] for each in plan["skipped"]}
    assert all(each["why"] for each in plan["skipped"])

    text = shop.sidecar.verb("plan", check=True).out
    for word in (shop.notes, shop.app, "pause", f"s3://{BUCKET}/{shop.sidecar.prefix}"):
        assert word in text


def test_plan_freezes_and_writes_nothing(shop: Shop, s3: S3) -> None:
    before = (s3.keys(shop.sidecar.prefix), len(shop.sidecar.events()))
    shop.sidecar.verb("plan", check=True)
    assert (s3.keys(shop.sidecar.prefix), len(shop.sidecar.events())) == before


# --- run-now ---------------------------------------------------------------------------------------------------------


def test_run_now_json_is_one_object_of_the_interface_and_nothing_else(shop: Shop) -> None:
    shop.sidecar.good_run()
    done = shop.sidecar.run_now("--json")
    if done.code == 0:  # or another container came and went; what is printed is held against the interface anyhow
        assert done.err == ""
    report = done.json()
    assert done.out.count("\n") == 1
    assert report.keys() >= REPORT
    assert RFC_3339.fullmatch(report["started"])
    assert report["duration_ms"] > report["paused_ms"] > 0
    assert set(report["stores"]) == {"s3"}
    assert all(each.keys() >= STORE for each in report["stores"].values())
    assert all(each.keys() >= GROUP for each in report["groups"])
    assert all(each.keys() >= VOLUME for each in report["volumes"])
    assert {each["volume"] for each in report["volumes"]} == {shop.notes, shop.other}


def test_a_good_run_is_off_this_host_and_without_reasons(one_set: dict[str, Any]) -> None:
    assert one_set["off_host"] is True
    assert (one_set["reasons"], one_set["unprotected"], one_set["warnings"]) == ([], [], [])
    assert re.fullmatch(r"backup-\d{8}_\d{6}", one_set["set"])


def test_run_now_in_words_prints_plain_lines_where_there_is_no_terminal(shop: Shop) -> None:
    done = shop.sidecar.run_now()
    assert done.code == 0, done
    assert "\x1b" not in done.out
    assert "\r" not in done.out
    for word in (shop.notes, shop.app, "good: set backup-", f"s3://{BUCKET}/{shop.sidecar.prefix}"):
        assert word in done.out


def test_run_now_with_a_name_backs_up_that_volume_alone(shop: Shop) -> None:
    report, _ = shop.sidecar.good_run(shop.notes)
    assert [each["volume"] for each in report["volumes"]] == [shop.notes]
    assert list(shop.sidecar.verb("list", report["set"], "--json").json()["sets"][0]["volumes"]) == [shop.notes]


def test_a_volume_that_does_not_exist_is_10_and_the_nearest_name(shop: Shop) -> None:
    done = shop.sidecar.run_now(shop.notes + "s")
    assert done.code == 10
    assert f"did you mean {shop.notes}" in done.err
    assert shop.sidecar.run_now(shop.notes + "s", "--json").json()["error"]["code"] == "not_found"


def test_wrong_usage_is_2(shop: Shop) -> None:
    done = shop.sidecar.run_now("--fulll")
    assert done.code == 2
    assert "--full" in done.err


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_shows_every_set_with_its_tags(shop: Shop, one_set: dict[str, Any]) -> None:
    sets = shop.sidecar.verb("list", "--json", check=True).json()["sets"]
    assert all(each.keys() >= LISTED for each in sets)
    assert [each["set"] for each in sets] == sorted(each["set"] for each in sets)
    (found,) = [each for each in sets if each["set"] == one_set["set"]]
    assert found["tags"] == {"reason": "a test", "by": "us"}
    assert found["outcome"] == "good"
    assert found["stores"] == ["s3"]
    reported = {each["volume"]: each for each in one_set["volumes"]}
    for name, volume in found["volumes"].items():
        assert (volume["files"], volume["archive_bytes"]) == (reported[name]["files"], reported[name]["archive_bytes"])
    assert one_set["set"] in shop.sidecar.verb("list", check=True).out


def test_list_of_one_set_shows_its_volumes(shop: Shop, one_set: dict[str, Any]) -> None:
    text = shop.sidecar.verb("list", one_set["set"], check=True).out
    assert shop.notes in text
    assert shop.other in text


def test_latest_is_the_newest_set_of_all_volumes(shop: Shop, one_set: dict[str, Any]) -> None:
    of_one, _ = shop.sidecar.good_run(shop.notes)
    listed = shop.sidecar.verb("list", "--json", check=True).json()["sets"]
    assert listed[-1]["set"] == of_one["set"]
    of_all = [each["set"] for each in listed if each["volumes"].keys() >= {shop.notes, shop.other}]
    newest = shop.sidecar.verb("list", "latest", "--json", check=True).json()["sets"]
    assert [each["set"] for each in newest] == of_all[-1:]


def test_list_of_one_volume_shows_the_files_that_match(shop: Shop, one_set: dict[str, Any]) -> None:
    listed = shop.sidecar.verb("list", one_set["set"], shop.notes, "letters/*.txt", "--json", check=True).json()
    assert [each["path"].removeprefix("./") for each in listed["files"]] == [
        f"letters/old/letter-{number}.txt" for number in (1, 2, 3)
    ]
    assert all(each["size"] == len("letter 1\n") for each in listed["files"])
    everything = shop.sidecar.verb("list", one_set["set"], shop.notes, check=True).out
    assert "readme.md" in everything
    assert r"caf\xe9" in everything


@pytest.mark.parametrize("arguments", [["backup-19990101_000000"], ["latest", "no-such-volume"]])
def test_list_of_what_does_not_exist_is_10(shop: Shop, one_set: dict[str, Any], arguments: list[str]) -> None:
    done = shop.sidecar.verb("list", *arguments)
    assert done.code == 10
    assert arguments[-1] in done.err


def test_list_of_files_that_match_nothing_is_10(shop: Shop, one_set: dict[str, Any]) -> None:
    assert shop.sidecar.verb("list", one_set["set"], shop.notes, "*.exe").code == 10


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_tells_how_the_last_run_went(shop: Shop, one_set: dict[str, Any]) -> None:
    shop.sidecar.good_run(shop.notes)
    status = shop.sidecar.verb("status", "--json", check=True).json()
    assert status.keys() >= STATUS
    assert (status["state"], status["healthy"], status["running"]) == ("idle", True, None)
    assert status["last_run"]["outcome"] == "good"
    assert status["last_run"]["set"] == shop.sidecar.sets()[-1]
    assert set(status["last_good"]) == {shop.notes, shop.other}


# --- the log, and secrets --------------------------------------------------------------------------------------------


def test_the_log_is_json_lines_with_documented_events(shop: Shop, one_set: dict[str, Any]) -> None:
    for event in shop.sidecar.events():
        assert event["event"] in EVENTS
        assert event["level"] in ("debug", "info", "warning", "error", "critical")
        assert RFC_3339.fullmatch(event["ts"])
    of_the_run = [each for each in shop.sidecar.events() if each.get("run") == one_set["run"]]
    names = [each["event"] for each in of_the_run]
    assert names[0] == "run_started"
    assert names[-1] == "run_finished"
    assert {"group_frozen", "group_thawed", "volume_finished"} <= set(names)
    (thawed,) = [
        each
        for each in of_the_run
        if each["event"] == "group_thawed" and each["group"] == one_set["groups"][0]["group"]
    ]
    assert thawed["paused_ms"] == one_set["groups"][0]["paused_ms"]


def test_no_secret_is_in_the_log_in_any_output_or_in_any_object(shop: Shop, s3: S3, one_set: dict[str, Any]) -> None:
    outputs = [logs(shop.sidecar.name).out]
    for arguments in (["plan"], ["plan", "--json"], ["list"], ["list", "--json"], ["status", "--json"], ["check"]):
        done = shop.sidecar.verb(*arguments, check=True)
        outputs += [done.out, done.err]
    done = shop.sidecar.run_now(shop.notes)
    outputs += [done.out, done.err, json.dumps(one_set)]
    texts = [output.encode() for output in outputs]
    keys = s3.keys(shop.sidecar.prefix)
    assert any(key.endswith("manifest.json") for key in keys)
    for key in keys:
        content = s3.read(f"{shop.sidecar.prefix}/{key}")
        texts += [content, gzip.decompress(content) if key.endswith(".gz") else b""]
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert not any(secret.encode() in text for text in texts)


# --- one at a time, cancel -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(app: tuple[str, str, str], make_sidecar: SidecarMaker) -> Sidecar:
    """A sidecar whose runs are held while the application is frozen."""
    sidecar = make_sidecar("held", include=[app[0]], settings={"BACKUP_TEST_STAGE": "frozen=hold"})
    sidecar.up()
    return sidecar


def test_a_second_run_waits_its_turn_or_is_11_if_it_must_not(held: Sidecar) -> None:
    first = held.begin("--json")
    with held.held("frozen", first):
        busy = held.run_now("--no-wait")
        assert busy.code == 11
        assert "--no-wait" in busy.err
        status = held.verb("status", "--json").json()
        assert status["state"] == "running"
        assert status["running"]["phase"] in ("freezing", "comparing")
        second = Run(["exec", held.name, "run-now"])
        wait_until(lambda: held.verb("status", "--json").json()["waiting"], "the second run waits")
    assert first.end().json()["outcome"] == "good"
    with held.held("frozen", second):
        pass
    done = second.end()
    assert done.code == 0
    assert "waiting for the run (manual)" in done.out


def test_a_cancelled_run_thaws_and_leaves_no_set(shop: Shop, held: Sidecar, s3: S3) -> None:
    sets = held.sets()
    run = held.begin("--json")
    held.wait_held("frozen", run)
    assert is_paused(shop.app)

    assert held.verb("cancel").code == 0

    assert not is_paused(shop.app)
    done = run.end()
    assert done.code == 143
    assert done.json()["outcome"] == "interrupted"
    assert held.sets() == sets
    assert {key.split("/")[0] for key in s3.keys(held.prefix)} <= {"owner.json", *sets}
    assert held.verb("cancel").code == 10


# --- by itself -------------------------------------------------------------------------------------------------------


def test_a_schedule_makes_a_set_by_itself(shop: Shop, make_sidecar: SidecarMaker) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=8)
    sidecar = make_sidecar("scheduled", include=[shop.notes], settings={"BACKUP_SCHEDULE": f"* * * * * {soon.second}"})
    sidecar.up()
    (started, *_) = sidecar.events("daemon_started")
    assert datetime.fromisoformat(started["next_run"])
    finished = wait_until(lambda: sidecar.events("run_finished"), "the schedule has made a run", timeout=90)
    assert finished[0]["outcome"] == "good"
    assert finished[0]["set"] in sidecar.sets()
    assert sidecar.verb("status", "--json").json()["last_run"]["trigger"] == "schedule"
    sidecar.down()


# --- what is not protected -------------------------------------------------------------------------------------------


def test_what_no_backup_covers_is_named_and_makes_the_run_partial(
    machine: Machine, shop: Shop, make_sidecar: SidecarMaker
) -> None:
    bind = machine.directory / "bound"
    careless = machine.run("careless", ["sleep", "infinity"], "--volume", f"{bind}:/srv/data", "--volume", "/cache")
    sidecar = make_sidecar("unprotected", include=[shop.notes], settings={"BACKUP_EXCLUDE": ""})
    try:
        sidecar.up()
        report = sidecar.report(code=3)
    finally:
        sidecar.down()
        machine.remove(careless)
    assert (report["outcome"], report["off_host"]) == ("partial", True)
    assert all(each.keys() >= UNPROTECTED for each in report["unprotected"])
    assert all(each.keys() >= REASON for each in report["reasons"])
    named = {each["mount"]: each["why"] for each in report["unprotected"] if each["container"] == careless}
    assert set(named) == {"/srv/data", "/cache"}
    assert str(bind) in named["/srv/data"]
    assert any(each["code"] == "unprotected_mount" and careless in each["message"] for each in report["reasons"])
    assert [each["outcome"] for each in report["volumes"]] == ["good"]


# --- volumes that the driver mounts ----------------------------------------------------------------------------------


def test_a_volume_that_its_driver_mounts_is_archived_while_in_use_and_fails_by_name_when_not(
    machine: Machine, shop: Shop, s3: S3, make_sidecar: SidecarMaker
) -> None:
    options = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=8m")
    volume = machine.volume("tmpfs", *options)
    sidecar = make_sidecar("driver", include=[shop.notes, volume])
    sidecar.up()  # before the volume is mounted: the mount must reach it where it is

    fill = "mkdir /data/d && echo in memory > /data/d/file && touch /data/ready && exec sleep infinity"
    user = machine.run("tmpfs-user", ["sh", "-c", fill], "--volume", f"{volume}:/data")
    try:
        wait_until(lambda: docker("exec", user, "test", "-e", "/data/ready", check=False).code == 0, "it is filled")
        report, _ = sidecar.good_run()
        (seen,) = describe(user, "/data")
        directory = s3.restore(sidecar.prefix, report["set"], volume)
        (restored,) = describe(s3.host, directory)
        s3.forget(directory)
        assert differences(seen, restored) == []
        assert "./d/file" in seen
    finally:
        machine.remove(user)

    report = sidecar.report(code=3)
    assert report["outcome"] == "partial"
    (reason,) = report["reasons"]
    assert (reason["code"], reason["volume"]) == ("volume_unavailable", volume)
    assert reason["hint"]
    outcomes = {each["volume"]: each["outcome"] for each in report["volumes"]}
    assert outcomes == {shop.notes: "good", volume: "failed"}
    assert [each["volume"] for each in sidecar.events("volume_skipped")] == [volume]
    assert set(sidecar.verb("list", "latest", "--json").json()["sets"][0]["volumes"]) == {shop.notes}
    sidecar.down()
