"""Mistakes of the operator and stores that fail: said in words, nobody frozen for it, and the daemon lives on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    BUCKET,
    ENDPOINT,
    HERE,
    HOST_IMAGE,
    PRODUCT_IMAGE,
    S3,
    Machine,
    Sidecar,
    command,
    describe,
    differences,
    docker,
    inspect,
    is_paused,
    logs,
    remove_volume,
    wait_until,
)

pytestmark = pytest.mark.engine("modern")

# Nothing listens there. The patience of a nightly run is not that of a test.
UNREACHABLE = {"AWS_ENDPOINT_URL_S3": "http://s3:9", "AWS_MAX_ATTEMPTS": "2"}


@dataclass
class Shop:
    """A volume, and the container that can write it."""

    volume: str
    app: str


@pytest.fixture(scope="module")
def shop(machine: Machine) -> Iterator[Shop]:
    volume = machine.volume("mistakes")
    script = "mkdir -p /data/d; echo content > /data/d/file; ln -s d/file /data/link; touch /data/ready; sleep infinity"
    app = machine.run("mistakes-app", ["sh", "-c", script], "--volume", f"{volume}:/data")
    try:
        wait_until(lambda: docker("exec", app, "test", "-e", "/data/ready", check=False).code == 0, "files are there")
        yield Shop(volume, app)
    finally:
        machine.remove(app)


@pytest.fixture
def sidecar(request: pytest.FixtureRequest, shop: Shop, make_sidecar: SidecarMaker) -> Iterator[Sidecar]:
    """Not started yet."""
    sidecar = make_sidecar(f"mistake-{id(request)}", include=[shop.volume])
    yield sidecar
    sidecar.down()


def another_engine(s3: S3, prefix: str) -> None:
    owner = {"format": 1, "kind": "owner", "engine": "ANOTHER", "host": "elsewhere", "since": "2026-01-01T00:00:00Z"}
    s3.client.put_object(Bucket=BUCKET, Key=f"{prefix}/owner.json", Body=json.dumps(owner).encode())


# --- the store does not take it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"S3_BACKUP_BUCKET": "no-such-bucket"}, "bucket no-such-bucket does not exist", "S3_BACKUP_BUCKET"),
        ({"AWS_SECRET_ACCESS_KEY": "not-the-secret-of-this-key"}, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody-knows-this-key"}, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (UNREACHABLE, "no connection to http://s3:9", "AWS_ENDPOINT_URL_S3"),
        (UNREACHABLE | {"AWS_ENDPOINT_URL_S3": "http://no-such-host:8333"}, "http://no-such-host:8333", "AWS_ENDPOINT"),
    ],
    ids=["bucket", "secret key", "access key", "port", "host"],
)
def test_a_store_that_cannot_be_used_fails_the_run_in_words_and_nobody_is_frozen_for_it(
    sidecar: Sidecar, shop: Shop, settings: Mapping[str, str], message: str, hint: str
) -> None:
    sidecar.up(settings)

    report = sidecar.report(code=1)

    assert (report["outcome"], report["set"], report["off_host"]) == ("failed", None, False)
    assert report["stores"]["s3"]["outcome"] == "failed"
    (reason,) = report["reasons"]
    assert message in reason["message"]
    assert hint in reason["hint"]
    assert reason["store"] == "s3"
    in_words = sidecar.run_now()
    assert in_words.code == 1
    assert message in in_words.out
    assert hint in in_words.out
    assert sidecar.events("group_frozen") == []
    assert not is_paused(shop.app)
    # The daemon lives on, says that all is not well, and `list` says why it knows of no set.
    assert inspect(sidecar.name)["RestartCount"] == 0
    status = sidecar.verb("status", "--json", check=True).json()
    assert (status["state"], status["healthy"]) == ("idle", False)
    assert message in status["why"]
    listed = sidecar.verb("list")
    assert listed.code == 1
    assert message in listed.err
    for secret in ("not-the-secret-of-this-key", "nobody-knows-this-key"):
        assert secret not in logs(sidecar.name).out + in_words.out + json.dumps(report)


def test_a_prefix_of_another_host_is_refused_with_a_way_out(sidecar: Sidecar, shop: Shop, s3: S3) -> None:
    another_engine(s3, sidecar.prefix)
    sidecar.up()

    report = sidecar.report(code=1)

    (reason,) = report["reasons"]
    assert "belongs to host elsewhere" in reason["message"]
    assert "BACKUP_HOST" in reason["hint"]
    assert sidecar.events("group_frozen") == []
    assert s3.keys(sidecar.prefix) == ["owner.json"]

    # The way out.
    sidecar.up(BACKUP_HOST="this-one")
    good, _ = sidecar.good_run()
    assert f"this-one/{good['set']}/manifest.json" in s3.keys(sidecar.prefix)


# --- settings that cannot be used ------------------------------------------------------------------------------------


def test_a_misspelt_setting_ends_the_container_with_2_and_the_nearest_name(sidecar: Sidecar) -> None:
    sidecar.up(ready=False, S3_BACKUP_BUCKET=None, S3_BACKUP_BUKET="backups", BACKUP_MAX_PAUSE="soon")
    (invalid, *_) = wait_until(lambda: sidecar.events("config_invalid"), "it has said what is wrong")
    assert any("S3_BACKUP_BUKET" in each and "S3_BACKUP_BUCKET?" in each for each in invalid["problems"])
    assert any("BACKUP_MAX_PAUSE" in each and "'soon'" in each for each in invalid["problems"])
    wait_until(lambda: inspect(sidecar.name)["State"]["ExitCode"] == 2, "it has left with exit code 2")


# --- local sets ------------------------------------------------------------------------------------------------------


def local_set(sidecar: Sidecar, script: str) -> str:
    """What a shell prints in the host's directory of local sets, which may be another user's here."""
    there = ("run", "--rm", "--volume", f"{sidecar.local_directory}:/sets:ro", "--workdir", "/sets")
    return docker(*there, HOST_IMAGE, "bash", "-euc", script).out


def test_a_local_set_comes_back_by_tar_alone(machine: Machine, sidecar: Sidecar, shop: Shop, tmp_path: Path) -> None:
    sidecar.up(BACKUP_STORES="local", S3_BACKUP_BUCKET=None)
    report, _ = sidecar.good_run()
    assert (report["outcome"], report["off_host"]) == ("good", False)  # accepted explicitly
    assert sidecar.events("not_off_host") == []

    # Copied to another place, as after the loss of the host.
    recover = tmp_path / "RECOVER.txt"
    recover.write_text(local_set(sidecar, f"cat {report['set']}/RECOVER.txt"))
    new = machine.name("mistakes-restored")
    directory = ("--volume", f"{sidecar.local_directory}/{report['set']}:/copied:ro", "--workdir", "/copied")
    command(HERE / "recover-by-hand", recover, shop.volume, new, *directory)
    oracle = machine.run(
        "local-oracle", ["sleep", "infinity"], "--volume", f"{shop.volume}:/live:ro", "--volume", f"{new}:/new:ro"
    )
    try:
        live, restored = describe(oracle, "/live", "/new")
    finally:
        machine.remove(oracle)
        remove_volume(new)
    assert differences(live, restored) == []


def test_without_a_bucket_every_run_warns_that_nothing_is_off_this_host(sidecar: Sidecar) -> None:
    sidecar.up(S3_BACKUP_BUCKET=None)
    for _ in range(2):
        report = sidecar.report(code=3)
        assert (report["outcome"], report["off_host"]) == ("partial", False)
        assert [each["code"] for each in report["reasons"]] == ["not_off_host"]
        assert "BACKUP_STORES=local" in report["reasons"][0]["hint"]
    assert [each["level"] for each in sidecar.events("not_off_host")] == ["warning"] * 2
    assert len(sidecar.sets()) == 2
    in_words = sidecar.run_now()
    assert in_words.code == 3
    assert "nothing is off this host" in in_words.out


def pending(sidecar: Sidecar) -> list[dict[str, Any]]:
    """What stores have missed, as `status` tells it."""
    return list(sidecar.verb("status", "--json", check=True).json()["pending"])


def test_one_of_two_stores_that_fails_leaves_the_others_set_good(sidecar: Sidecar, s3: S3) -> None:
    sidecar.up(UNREACHABLE, BACKUP_STORES="s3,local")
    report = sidecar.report(code=3)
    assert (report["outcome"], report["off_host"]) == ("partial", False)
    assert {name: each["outcome"] for name, each in report["stores"].items()} == {"s3": "failed", "local": "good"}
    assert "no connection" in report["stores"]["s3"]["error"]
    assert [each["outcome"] for each in report["volumes"]] == ["good"]
    assert sorted(local_set(sidecar, f"ls {report['set']}").split())[0] == "RECOVER.txt"
    assert local_set(sidecar, f"gzip -t {report['set']}/*.tar.gz && echo whole") == "whole\n"
    listed = sidecar.verb("list", "--json")
    assert listed.code == 3  # sets may be missing from it
    assert [each["stores"] for each in listed.json()["sets"]] == [["local"]]

    # Remembered by a container that is made anew. The store is back: that set and the next lie in both.
    sidecar.up(AWS_ENDPOINT_URL_S3=ENDPOINT)
    good, _ = sidecar.good_run()
    assert good["off_host"] is True
    wait_until(lambda: not pending(sidecar), "the missed set is shipped")
    both = {each["set"]: sorted(each["stores"]) for each in sidecar.verb("list", "--json").json()["sets"]}
    assert both == {report["set"]: ["local", "s3"], good["set"]: ["local", "s3"]}


RELAY = """
import socket, threading

def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    finally:
        sink.shutdown(socket.SHUT_WR)

listener = socket.create_server(("", 8333))
while True:
    client, _ = listener.accept()
    server = socket.create_connection(("s3", 8333))
    for ends in ((client, server), (server, client)):
        threading.Thread(target=copy, args=ends, daemon=True).start()
"""


def test_a_store_that_dies_in_the_middle_of_a_run_costs_its_set_and_no_other(
    machine: Machine, sidecar: Sidecar, shop: Shop, s3: S3
) -> None:
    relay = machine.run(
        "relay", ["python3", "-c", RELAY], "--network", s3.network, "--network-alias", "store-that-dies"
    )
    try:
        sidecar.up(
            BACKUP_STORES="s3,local",
            BACKUP_TEST_STAGE="frozen=hold",
            AWS_ENDPOINT_URL_S3="http://store-that-dies:8333",
            AWS_MAX_ATTEMPTS="2",
        )
        run = sidecar.begin("--json")
        with sidecar.held("frozen", run):
            assert s3.keys(sidecar.prefix) == ["owner.json"]  # it had reached the store
            machine.remove(relay)
        done = run.end()
    finally:
        machine.remove(relay)
    report: dict[str, Any] = done.json()
    assert done.code == 3, done
    assert {name: each["outcome"] for name, each in report["stores"].items()} == {"s3": "failed", "local": "good"}
    assert sidecar.events("store_retry")
    assert [each["store"] for each in sidecar.events("store_failed")] == ["s3"]
    assert s3.keys(sidecar.prefix) == ["owner.json"]
    assert not is_paused(shop.app)


def test_a_store_that_is_back_gets_the_set_that_it_missed_and_nobody_is_frozen_for_it(
    machine: Machine, sidecar: Sidecar, shop: Shop, s3: S3
) -> None:
    sidecar.up(
        BACKUP_STORES="s3,local",
        AWS_ENDPOINT_URL_S3="http://store-that-comes-back:8333",
        AWS_MAX_ATTEMPTS="2",
    )
    report = sidecar.report(code=3)
    assert report["stores"]["s3"]["pending"] is True
    assert report["stores"]["local"]["pending"] is False
    (owed,) = pending(sidecar)
    assert (owed["set"], owed["store"]) == (report["set"], "s3")
    assert f"not in s3 yet: {report['set']}" in sidecar.verb("status", check=True).out
    assert sidecar.verb("status", "--check").code == 1
    assert "to be shipped later" in sidecar.run_now().out  # a second set that is missed
    assert len(pending(sidecar)) == 2
    frozen = len(sidecar.events("group_frozen"))

    relay = machine.run(
        "relay", ["python3", "-c", RELAY], "--network", s3.network, "--network-alias", "store-that-comes-back"
    )
    try:
        # The first try comes a minute after the run, by itself.
        wait_until(lambda: not pending(sidecar), "both sets are shipped", timeout=240, every=0.5)
        (listed, _) = sidecar.verb("list", "--json", check=True).json()["sets"]
        status = sidecar.verb("status", "--json", check=True).json()
        checked = sidecar.verb("status", "--check")
    finally:
        machine.remove(relay)

    assert (listed["set"], sorted(listed["stores"])) == (report["set"], ["local", "s3"])
    assert len(sidecar.events("group_frozen")) == frozen
    assert [each["set"] for each in sidecar.events("set_shipped")].count(report["set"]) == 1
    assert checked.code == 0, checked
    assert "its set is in s3 since" in status["why"]
    assert status["last_run"]["off_host"] is True
    # Object by object the bytes of the local set; RECOVER.txt alone tells of another place.
    there = f"{sidecar.prefix}/{report['set']}"
    names = [key.removeprefix(f"{report['set']}/") for key in s3.keys(sidecar.prefix) if report["set"] in key]
    sums = dict(line.split()[::-1] for line in local_set(sidecar, f"cd {report['set']}; sha256sum *").splitlines())
    assert sorted(names) == sorted(sums)
    for name in names:
        same = hashlib.sha256(s3.read(f"{there}/{name}")).hexdigest() == sums[name]
        assert same == (name != "RECOVER.txt"), name
    assert "s3 cp" in s3.read(f"{there}/RECOVER.txt").decode()
    # And plain tar gives back what the application has.
    restored = s3.restore(sidecar.prefix, report["set"], shop.volume)
    assert s3.on_host('cat "$1/d/file" && readlink "$1/link"', restored).out == "content\nd/file\n"
    s3.forget(restored)


def test_a_sidecar_that_is_stopped_or_killed_while_it_ships_leaves_nothing_and_ships_again(
    machine: Machine, make_sidecar: SidecarMaker, s3: S3
) -> None:
    volume = machine.volume("shipped")
    app = machine.run(
        "shipped-app", ["sh", "-c", "head -c 30M /dev/urandom > /data/f; sleep infinity"], "-v", f"{volume}:/data"
    )
    slow = RELAY.replace("sink.sendall(data)", "sink.sendall(data); time.sleep(0.3)").replace(
        "import ", "import time, "
    )
    sidecar = make_sidecar("shipping", include=[volume])
    away = {"AWS_ENDPOINT_URL_S3": "http://slow-store:8333", "AWS_MAX_ATTEMPTS": "2", "BACKUP_STORES": "s3,local"}
    try:
        size = ("exec", app, "stat", "-c", "%s", "/data/f")
        wait_until(lambda: docker(*size, check=False).out == f"{30 * 1024 * 1024}\n", "the file is there")
        sidecar.up(away)
        report = sidecar.report(code=3)
        machine.run("slow", ["python3", "-c", slow], "--network", s3.network, "--network-alias", "slow-store")
        for stop, code in ((("stop", "--time", "10"), 0), (("kill",), 137)):
            sidecar.up()
            wait_until(lambda: f"{report['set']}/{volume}.tar.gz" in "".join(s3.pending(sidecar.prefix)), "it ships")
            assert sidecar.verb("status", "--json").json()["state"] == "shipping"
            began = time.monotonic()
            docker(*stop, sidecar.name)
            assert time.monotonic() - began < 9
            assert inspect(sidecar.name)["State"]["ExitCode"] == code
            assert [key for key in s3.keys(sidecar.prefix) if key != "owner.json"] == []
            assert code == 137 or s3.pending(sidecar.prefix) == []

        sidecar.up(AWS_ENDPOINT_URL_S3=ENDPOINT)
        wait_until(lambda: not pending(sidecar), "the set is shipped")
        assert s3.pending(sidecar.prefix) == []
        assert sidecar.verb("status", "--check").code == 0
        restored = s3.restore(sidecar.prefix, report["set"], volume)
        here = s3.on_host('sha256sum < "$1/f"', restored).out
        assert here == docker("exec", app, "sh", "-c", "sha256sum < /data/f").out
        s3.forget(restored)
    finally:
        machine.remove(machine.name("slow"), app)
        sidecar.down()


# --- one sidecar for each engine -------------------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_state_volume_leaves_with_11_and_says_who_holds_it(
    machine: Machine, sidecar: Sidecar, s3: S3
) -> None:
    sidecar.up()
    environment = [part for each in inspect(sidecar.name)["Config"]["Env"] for part in ("--env", each)]
    role = ("--label", "backup.role=sidecar")
    mounts = ("--volumes-from", sidecar.name, "--network", s3.network)
    twin = machine.run("twin", [], *mounts, *role, *environment, image=PRODUCT_IMAGE)
    try:
        left = docker("wait", twin).out.strip()
        (stopped,) = [json.loads(line) for line in logs(twin).out.splitlines()]
    finally:
        machine.remove(twin)
    assert left == "11"
    assert stopped["event"] == "daemon_stopped"
    assert inspect(sidecar.name)["Id"].startswith(stopped["error"].split("in container ")[1].split(",")[0])
    # The first has not noticed; and a one-off container of ours beside it is welcome.
    sidecar.good_run()
    check = docker("run", "--rm", *mounts, *role, *environment, PRODUCT_IMAGE, "check", check=False)
    assert check.code in (0, 3), check


def test_a_second_sidecar_that_would_write_to_the_same_place_leaves_with_11_until_the_first_is_gone(
    sidecar: Sidecar, shop: Shop, make_sidecar: SidecarMaker, s3: S3
) -> None:
    sidecar.up()
    sidecar.good_run()
    second = make_sidecar(f"second-{sidecar.name[-6:]}", include=[shop.volume])
    try:
        second.up({"BACKUP_PREFIX": sidecar.prefix}, ready=False)
        (stopped, *_) = wait_until(lambda: second.events("daemon_stopped"), "it has said why it leaves")
        wait_until(lambda: inspect(second.name)["State"]["ExitCode"] == 11, "it has left with exit code 11")
        assert f"belongs to the sidecar {sidecar.name}, which runs on this host" in stopped["error"]
        assert "BACKUP_PREFIX" in stopped["hint"]
        assert second.events("daemon_started") == []
        sidecar.good_run()

        sidecar.down()  # and its state is lost with it
        wait_until(lambda: second.events("daemon_started"), "its restart policy has brought it back", timeout=120)
        report, _ = second.good_run()
        (taken,) = second.events("prefix_taken_over")
        assert sidecar.state in taken["error"]
        assert f"{report['set']}/manifest.json" in s3.keys(sidecar.prefix)
    finally:
        second.down()
