"""`restore` on a real engine: data comes back, nothing is lost when it cannot, and no death leaves half of it."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    BUCKET,
    HOST_IMAGE,
    LABEL,
    S3,
    Description,
    Machine,
    Run,
    Sidecar,
    command,
    describe,
    differences,
    docker,
    inspect,
    logs,
    remove_volume,
    wait_until,
)

pytestmark = pytest.mark.engine("both")

MEBIBYTES = 120
LAY = f"""
set -e; cd /data; mkdir -p many; for i in $(seq 300); do echo "file $i" > many/$i; done
head -c {MEBIBYTES}M /dev/urandom > large; ln large hard; ln -s many/7 soft; chown 4242:4343 many/8; chmod 4750 many/9
touch -d '2001-02-03 04:05:06.789' many/10; truncate -s 50M holes; echo more > /more/file
"""
RUIN = "rm -rf /data/* /more/*; echo ruined > /data/ruined; mkdir /data/other; echo x > /data/other/x; echo y > /more/y"
# `make test-faults`: 50. The seed repeats a series; a failure prints it.
KILLS = int(os.environ.get("TEST_RESTORE_KILLS") or 5)
SEED = os.environ.get("TEST_RESTORE_KILLS_SEED") or str(random.SystemRandom().randrange(1_000_000))


@dataclass
class Shop:
    """Two volumes of one group, a container that uses both, and what they held when they were backed up."""

    machine: Machine
    data: str
    more: str
    app: str
    wanted: dict[str, Description]
    ruined: dict[str, Description]
    set_name: str = ""

    def now(self) -> dict[str, Description]:
        """What is there, as the oracle sees it, which is gone again when a restore looks who uses the volumes."""
        mounts = ("--volume", f"{self.data}:/data:ro", "--volume", f"{self.more}:/more:ro")
        oracle = self.machine.run("restore-oracle", ["sleep", "infinity"], *mounts)
        try:
            return dict(zip(("data", "more"), describe(oracle, "/data", "/more"), strict=True))
        finally:
            self.machine.remove(oracle)

    def ruin(self) -> None:
        docker("exec", self.app, "sh", "-c", RUIN)
        self.ruined = self.now()

    def assert_is(self, wanted: dict[str, Description]) -> None:
        now = self.now()
        for volume, described in wanted.items():
            assert differences(described, now[volume]) == [], volume

    def started_at(self) -> Any:
        return inspect(self.app)["State"]["StartedAt"]

    def is_running(self) -> bool:
        return bool(inspect(self.app)["State"]["Running"])


@pytest.fixture(scope="module")
def shop(machine: Machine) -> Iterator[Shop]:
    group = ("--label", f"backup.group={machine.name('restore')}")
    data, more = machine.volume("restore-data", *group), machine.volume("restore-more", *group)
    mounts = ("--volume", f"{data}:/data", "--volume", f"{more}:/more")
    app = machine.run("restore-app", ["sleep", "infinity"], *mounts)
    try:
        docker("exec", app, "bash", "-c", LAY)
        shop = Shop(machine, data, more, app, {}, {})
        shop.wanted = shop.now()
        yield shop
    finally:
        machine.remove(app)


@pytest.fixture(scope="module")
def sidecar(shop: Shop, make_sidecar: SidecarMaker) -> Sidecar:
    sidecar = make_sidecar("restore", include=[shop.data, shop.more])
    sidecar.up()
    report, _ = sidecar.good_run()
    shop.set_name = report["set"]
    return sidecar


@pytest.fixture(autouse=True)
def _ruined(shop: Shop, sidecar: Sidecar) -> None:
    shop.ruin()


def restore(sidecar: Sidecar, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = sidecar.verb("restore", *arguments, "--yes", "--json")
    assert done.code == code, (done, sidecar.events()[-5:])
    document: dict[str, Any] = done.json()
    return document


def assert_nothing_is_left(sidecar: Sidecar, shop: Shop) -> None:
    """No helper, no dead man, nothing of a restore in a volume, nothing owed."""
    roles = ("ps", "--all", "--quiet", "--filter", f"name={sidecar.name}-", "--filter", "label=backup.role=helper")
    wait_until(lambda: docker(*roles).out == "", "helpers have left", timeout=30)
    assert docker("exec", sidecar.name, "ls", "/state").out.count("journal") == 0
    listed = docker("exec", shop.app, "ls", "-A", "/data", "/more").out
    assert "volume-backup" not in listed


# --- restored --------------------------------------------------------------------------------------------------------


def test_what_was_destroyed_comes_back_as_it_was_and_its_users_run_again(sidecar: Sidecar, shop: Shop) -> None:
    before = shop.started_at()

    done = sidecar.verb("restore", "latest", "--yes")

    assert done.code == 0, done
    assert f"good: {shop.set_name}" in done.out
    assert f"{shop.app} stopped for" in done.out
    shop.assert_is(shop.wanted)
    assert shop.is_running()
    assert shop.started_at() != before
    assert_nothing_is_left(sidecar, shop)
    assert [each["outcome"] for each in sidecar.events("restore_finished")][-1] == "good"


def test_the_stream_goes_past_the_engine_through_a_fifo_in_the_volume(sidecar: Sidecar, shop: Shop) -> None:
    script = (
        "i=0; until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q volume-backup-restore/stream; do "
        "i=$((i + 1)); [ $i -lt 2000 ] || exit 1; sleep 0.01; done"
    )
    seen = Run(["exec", sidecar.name, "sh", "-c", script])
    restore(sidecar, "latest", shop.data, "--no-safety")
    assert seen.end().code == 0


def test_one_volume_of_the_set_is_restored_alone(sidecar: Sidecar, shop: Shop) -> None:
    report = restore(sidecar, shop.set_name, shop.more)
    assert [each["volume"] for each in report["volumes"]] == [shop.more]
    shop.assert_is({"data": shop.ruined["data"], "more": shop.wanted["more"]})


def test_a_dry_run_shows_who_would_be_stopped_and_does_nothing(sidecar: Sidecar, shop: Shop) -> None:
    before = shop.started_at()
    done = sidecar.verb("restore", "--dry-run")
    assert done.code == 0
    assert f"stopped for it, and started again: {shop.app}" in done.out
    assert shop.started_at() == before
    shop.assert_is(shop.ruined)


def test_without_a_terminal_and_without_yes_nothing_is_done(sidecar: Sidecar, shop: Shop) -> None:
    done = sidecar.verb("restore")
    assert done.code == 2
    assert "--yes" in done.err
    shop.assert_is(shop.ruined)


def test_a_volume_that_was_deleted_is_made_again_with_its_labels(
    machine: Machine, sidecar: Sidecar, shop: Shop
) -> None:
    machine.remove(shop.app)
    docker("volume", "rm", shop.more)
    try:
        report = restore(sidecar, "latest", shop.more)
    finally:
        mounts = ("--volume", f"{shop.data}:/data", "--volume", f"{shop.more}:/more")
        machine.run("restore-app", ["sleep", "infinity"], *mounts)
    assert report["volumes"][0]["created"] is True
    labels = docker("volume", "inspect", "--format", "{{json .Labels}}", shop.more).out
    assert machine.name("restore") in labels
    shop.assert_is({"data": shop.ruined["data"], "more": shop.wanted["more"]})


# --- other forms -----------------------------------------------------------------------------------------------------


def test_a_restore_can_be_undone_from_the_set_that_was_made_first(sidecar: Sidecar, shop: Shop) -> None:
    report = restore(sidecar)
    shop.assert_is(shop.wanted)
    undone = restore(sidecar, report["safety"], "--no-safety")
    assert undone["safety"] is None
    shop.assert_is(shop.ruined)
    listed = {each["set"]: each["tags"] for each in sidecar.verb("list", "--json", check=True).json()["sets"]}
    assert listed[report["safety"]] == {"pre-restore": shop.set_name}
    assert restore(sidecar)["set"] == shop.set_name  # which that set is not the latest for


def test_as_a_new_volume_the_live_one_and_its_users_are_left_alone(
    machine: Machine, sidecar: Sidecar, shop: Shop
) -> None:
    before, new = shop.started_at(), machine.name("restore-then")
    done = sidecar.verb("restore", "latest", shop.data, "--as", new, "--yes")
    assert done.code == 0, done
    oracle = machine.run("then-oracle", ["sleep", "infinity"], "--volume", f"{new}:/then:ro")
    try:
        (found,) = describe(oracle, "/then")
    finally:
        machine.remove(oracle)
        remove_volume(new)
    assert differences(shop.wanted["data"], found) == []
    assert shop.started_at() == before
    shop.assert_is(shop.ruined)
    assert sidecar.verb("restore", "latest", shop.data, "--as", shop.more, "--yes").code == 1


def test_one_file_comes_back_and_all_else_stays(sidecar: Sidecar, shop: Shop) -> None:
    restore(sidecar, "latest", shop.data, "--path", "many/9")
    now = shop.now()["data"]
    assert now["./many/9"] == shop.wanted["data"]["./many/9"]
    assert {"./ruined", "./other/x"} <= now.keys()
    assert sidecar.verb("restore", "latest", shop.data, "--path", "manny", "--yes").code == 10


def test_a_volume_goes_to_standard_output_as_plain_tar(sidecar: Sidecar, shop: Shop) -> None:
    script = 'docker exec "$1" restore latest "$2" --to - --path "many/1*" | tar -tf - | sort'
    listed = command("bash", "-euo", "pipefail", "-c", script, "bash", sidecar.name, shop.data).out.split()
    expected = [path for path in shop.wanted["data"] if path.startswith("./many/1")]
    assert listed == sorted(["./many/", *expected])
    missing = sidecar.verb("restore", "latest", shop.data + "s", "--to", "-")
    assert (missing.code, missing.out) == (10, "")
    assert shop.data in missing.err
    shop.assert_is(shop.ruined)


def test_sets_of_another_host_in_the_same_bucket_are_restored_by_its_name(sidecar: Sidecar, shop: Shop) -> None:
    sidecar.up(BACKUP_HOST="new-machine")
    try:
        assert sidecar.verb("restore", "latest", "--yes").code == 10  # it has none of its own
        assert sidecar.verb("list", "--host", "", "--json").json()["sets"]
        restore(sidecar, "latest", shop.more, "--host", "")
        shop.assert_is({"data": shop.ruined["data"], "more": shop.wanted["more"]})
    finally:
        sidecar.up(BACKUP_HOST=None)


# --- volumes with a driver's options ---------------------------------------------------------------------------------


def test_a_lost_volume_with_options_becomes_a_plain_one_unless_its_driver_is_wanted_and_leads_to_nobodys_data(
    machine: Machine, make_sidecar: SidecarMaker
) -> None:
    """A bind of a directory: now another volume's, empty when the one is lost, and then with what is not ours."""
    beside = machine.volume("restore-beside")
    device = docker("volume", "inspect", "--format", "{{.Mountpoint}}", beside).out.strip()
    options = {"type": "none", "o": "bind", "device": device}
    special = machine.volume("restore-special", *(f"--opt={name}={value}" for name, value in options.items()))
    mounts = ("--volume", f"{special}:/data", "--volume", f"{beside}:/beside")
    sidecar = make_sidecar("restore-special", include=[special])

    def app(script: str) -> str:
        out = docker("run", "--rm", "--label", f"{LABEL}={machine.mark}", *mounts, HOST_IMAGE, "sh", "-c", script).out
        return out.strip()

    def made() -> Any:
        (found,) = docker("volume", "inspect", special).json()
        return found["Driver"], found["Options"] or {}, found["Labels"][LABEL]

    def lose() -> None:
        remove_volume(special)

    holder = machine.run("restore-special-app", ["sleep", "infinity"], *mounts)
    try:
        docker("exec", holder, "sh", "-c", "echo precious > /data/file")
        sidecar.up()
        sidecar.good_run()
    finally:
        machine.remove(holder)
    lose()
    refused = sidecar.verb("restore", "latest", special, "--with-driver", "--yes")
    assert refused.code == 1, refused
    assert "holds 'file' and 0 more already, of which there is no backup" in refused.err
    assert docker("volume", "inspect", special, check=False).code == 1
    assert docker("run", "--rm", *mounts[2:], HOST_IMAGE, "cat", "/beside/file").out == "precious\n"

    plain = sidecar.verb("restore", "latest", special, "--yes")
    assert plain.code == 0, plain
    assert f"was made with driver local and options device={device}, o=bind, type=none" in plain.out
    assert made() == ("local", {}, machine.mark)
    assert app("cat /data/file; rm /beside/file") == "precious"
    lose()
    wanted = sidecar.verb("restore", "latest", special, "--with-driver", "--yes")
    assert wanted.code == 0, wanted
    assert made() == ("local", options, machine.mark)
    assert app("cat /beside/file") == "precious"


# --- refused, and nothing is changed ---------------------------------------------------------------------------------


def refused(sidecar: Sidecar, shop: Shop, *arguments: str, code: int) -> str:
    """What a user reads when a restore changes nothing."""
    before = shop.started_at()
    done = sidecar.verb("restore", *arguments, "--yes")
    assert done.code == code, done
    assert "Traceback" not in done.out + done.err + logs(sidecar.name).out
    assert shop.started_at() == before
    shop.assert_is(shop.ruined)
    assert_nothing_is_left(sidecar, shop)
    return done.err


def test_an_unknown_set_or_volume_is_10_with_the_nearest_name(sidecar: Sidecar, shop: Shop) -> None:
    wrong = shop.set_name + "x"  # no set's name is nearer, however many were made within ten seconds
    assert shop.set_name in refused(sidecar, shop, wrong, code=10)
    assert shop.more in refused(sidecar, shop, "latest", shop.more + "s", code=10)


def test_one_flipped_byte_in_the_bucket_is_found_before_anything_is_changed(
    sidecar: Sidecar, shop: Shop, s3: S3
) -> None:
    key = f"{sidecar.prefix}/{shop.set_name}/{shop.data}.tar.gz"
    whole = s3.read(key)
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(damaged))
    try:
        said = refused(sidecar, shop, "latest", code=1)
    finally:
        s3.client.put_object(Bucket=BUCKET, Key=key, Body=whole)
    assert "is not what was written" in said
    assert "no volume was changed" in said


def test_a_container_that_would_vanish_or_was_paused_is_not_stopped(
    machine: Machine, sidecar: Sidecar, shop: Shop
) -> None:
    mount = ("--volume", f"{shop.data}:/data:ro")
    fragile = machine.run("restore-fragile", ["sleep", "infinity"], "--rm", *mount)
    try:
        assert f"docker stop {fragile}" in refused(sidecar, shop, code=1)
    finally:
        machine.remove(fragile)
    paused = machine.run("restore-paused", ["sleep", "infinity"], *mount)
    docker("pause", paused)
    try:
        assert f"docker unpause {paused}" in refused(sidecar, shop, code=1)
    finally:
        machine.remove(paused)


def test_a_disk_that_is_too_small_is_found_before_anything_is_changed(
    machine: Machine, make_sidecar: SidecarMaker
) -> None:
    options = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=60m")
    volume = machine.volume("restore-small", *options)
    app = machine.run("restore-small-app", ["sleep", "infinity"], "--volume", f"{volume}:/data")
    small = make_sidecar("restore-small", include=[volume])
    try:
        docker("exec", app, "sh", "-c", "head -c 30M /dev/urandom > /data/file")
        small.up()
        small.good_run()
        docker("exec", app, "sh", "-c", "echo ruined > /data/ruined")
        done = small.verb("restore", "--yes")
        assert done.code == 1
        assert "bytes free" in done.err
        assert "no volume was changed" in done.err
        assert docker("exec", app, "ls", "-A", "/data").out.split() == ["file", "ruined"]
        # The way out that the hint names.
        docker("exec", app, "rm", "/data/file")
        assert small.verb("restore", "--yes").code == 0
        assert docker("exec", app, "ls", "-A", "/data").out.split() == ["file"]
    finally:
        machine.remove(app)
        small.down()


# --- told to stop, killed --------------------------------------------------------------------------------------------


def test_told_to_stop_while_it_fetches_it_leaves_in_time_and_everything_as_it_was(sidecar: Sidecar, shop: Shop) -> None:
    run = begin(sidecar)
    wait_until(lambda: staging(shop) or run.is_over, "something has arrived", every=0.02)
    began = time.monotonic()
    docker("stop", sidecar.name)
    assert time.monotonic() - began < 10
    assert not run.is_over or run.end().code != 0
    shop.assert_is(shop.ruined)
    sidecar.start()
    assert_nothing_is_left(sidecar, shop)
    restore(sidecar)
    shop.assert_is(shop.wanted)


def begin(sidecar: Sidecar) -> Run:
    return Run(["exec", sidecar.name, "restore", "latest", "--yes"])


def staging(shop: Shop) -> bool:
    return docker("exec", shop.app, "test", "-e", "/data/.volume-backup-restore", check=False).code == 0


def is_at_it(shop: Shop, run: Run) -> bool:
    return run.is_over or not shop.is_running()


def lives_since_another_time(sidecar: Sidecar, moment: str) -> bool:
    return bool(inspect(sidecar.name)["State"]["StartedAt"] != moment)


def how_to_die(sidecar: Sidecar, how: str) -> None:
    if how == "process":
        # All but the init and this shell, as the kernel's OOM killer would; its restart policy brings it back.
        docker("exec", sidecar.name, "sh", "-c", "kill -9 -1", check=False)
    elif how == "kill":
        docker("kill", sidecar.name)
    else:
        docker("rm", "--force", sidecar.name)


@pytest.mark.parametrize("how", ["process", "kill"])
def test_killed_while_one_takes_its_time_to_stop_it_is_started_again(sidecar: Sidecar, shop: Shop, how: str) -> None:
    """The engine kills it after ten seconds, whether or not whoever asked for that still lives."""
    deaf = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
    slow = shop.machine.run("restore-slow", deaf, "--volume", f"{shop.more}:/more")
    try:
        began = inspect(slow)["State"]["StartedAt"]
        lived_since = inspect(sidecar.name)["State"]["StartedAt"]
        run = begin(sidecar)
        wait_until(partial(is_at_it, shop, run), "they stop", every=0.001)
        how_to_die(sidecar, how)
        assert run.end().code != 0
        assert inspect(slow)["State"]["StartedAt"] == began  # or it has not taken its time

        def runs_again() -> bool:
            state = inspect(slow)["State"]
            return bool(state["Running"] and state["StartedAt"] != began)

        wait_until(runs_again, "it has been stopped, and started again", timeout=45)
        wait_until(shop.is_running, "so has the other", timeout=45)
        if how == "kill":
            sidecar.start()
        else:
            wait_until(partial(lives_since_another_time, sidecar, lived_since), "the sidecar has come back")
        sidecar.wait_ready()
        assert_nothing_is_left(sidecar, shop)
    finally:
        shop.machine.remove(slow)
    restore(sidecar)
    shop.assert_is(shop.wanted)


def test_killed_at_random_moments_all_volumes_are_old_or_all_new_all_run_and_the_same_command_finishes(
    sidecar: Sidecar, shop: Shop, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    began = time.monotonic()
    restore(sidecar)
    takes = time.monotonic() - began
    outcomes: Counter[str] = Counter()
    for number in range(KILLS):
        shop.ruin()
        how, moment = chance.choice(["process", "kill", "rm"]), chance.uniform(0, takes)
        what = f"TEST_RESTORE_KILLS_SEED={SEED}, number {number}: {how}"
        lived_since = inspect(sidecar.name)["State"]["StartedAt"]
        run = begin(sidecar)
        if number % 2:  # what matters most takes the shortest: from when they stop until they run again
            wait_until(partial(is_at_it, shop, run), "they stop", every=0.001)
            moment = chance.uniform(0, 0.5)
        time.sleep(moment)
        how_to_die(sidecar, how)
        done = run.end()

        # With nobody left to start it again but the dead man.
        wait_until(shop.is_running, f"the application runs again ({what})", timeout=45)
        if how == "rm":
            sidecar.up()
        elif how == "kill":
            sidecar.start()
        else:
            wait_until(partial(lives_since_another_time, sidecar, lived_since), f"it has come back ({what})")
        sidecar.wait_ready()

        assert_nothing_is_left(sidecar, shop)
        now = shop.now()
        states = {"as they were": shop.ruined, "restored": shop.wanted}
        (found,) = [
            name for name, state in states.items() if not any(differences(state[v], now[v]) for v in state)
        ] or [f"neither ({what})"]
        assert found in states, found
        assert done.code != 0 or found == "restored", what
        outcomes[f"{how}: {'had just ended' if done.code == 0 else found}"] += 1
        restore(sidecar)
        shop.assert_is(shop.wanted)
    assert outcomes.total() == KILLS
    # By chance, one in thousands of series of 20 has none that came before the end.
    assert KILLS < 20 or any("had just ended" not in outcome for outcome in outcomes)
    head = f"{KILLS} kills of a restore that takes {takes:.1f} s (TEST_RESTORE_KILLS_SEED={SEED})"
    told = "\n".join([head, *(f"  {times:3} {outcome}" for outcome, times in sorted(outcomes.items()))])
    record_property("note", told)
