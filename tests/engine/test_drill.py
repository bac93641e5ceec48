"""`drill` on a real engine: services come up on what the set holds, or it is red; nothing real is touched, or left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    BUCKET,
    HOST_IMAGE,
    POSTGRES_IMAGE,
    S3,
    Machine,
    Run,
    Sidecar,
    Terminal,
    describe,
    differences,
    docker,
    inspect,
    logs,
    wait_until,
)
from tests.engines import Running, has_limits

pytestmark = pytest.mark.engine("both")

PASSWORD = "a-password-that-nobody-may-log"
PROVEN_BY_DATA = "grep -q hello /data/letter"
# What a copy of a service that may do anything on the host can see of it.
HARMLESS = (
    'set -e; [ ! -e /run/engine.sock ]; [ ! -e /var/run/docker.sock ]; [ "$(ls /sys/class/net)" = lo ];'
    ' [ ! -e /dev/gift ]; [ "$(cat /etc/app/setting)" = on ]; ! touch /etc/app/other 2> /dev/null;'
    " ! touch /srv/app/other 2> /dev/null; ! mount -o remount,rw /srv/app 2> /dev/null;"
    ' [ "$MODE" = quick ]; [ "$(id -u)" = 0 ]; grep -q hello /data/letter; touch /data/written /cache/written'
)


@dataclass
class Town:
    """Services of several kinds, each with a volume of its own, and the containers that must not notice anything."""

    machine: Machine
    volumes: dict[str, str]
    containers: dict[str, str]
    since: float = 0.0

    def remember(self) -> None:
        self.since = time.time()
        self.before = {name: self._facts(name) for name in self.containers.values()}
        self.content = self.letter()
        self.anonymous = self._dangling()

    def assert_nothing_is_touched(self) -> None:
        assert {name: self._facts(name) for name in self.containers.values()} == self.before
        assert differences(self.content, self.letter()) == []
        for name in self.containers.values():
            window = ("--since", f"{self.since:.3f}", "--until", f"{time.time():.3f}")
            seen = docker(
                "events", *window, "--filter", f"container={name}", "--format", "{{.Action}}"
            ).out.splitlines()
            own = ("exec_", "health_status")  # its own health checks, and this test's looks
            assert [each for each in seen if not each.startswith(own)] == [], name

    def letter(self) -> Any:
        (found,) = describe(self.containers["letter"], "/data")
        return found

    def nothing_anonymous_is_left(self) -> bool:
        return self._dangling() <= self.anonymous

    def _dangling(self) -> set[str]:
        listed = docker("volume", "ls", "--quiet", "--filter", "dangling=true").out.split()
        return {name for name in listed if len(name) == 64}

    def _facts(self, name: str) -> Any:
        facts = inspect(name)
        state = {key: facts["State"][key] for key in ("Status", "Pid", "StartedAt", "Paused")}
        return facts["Id"], state, facts["RestartCount"], sorted(each["Destination"] for each in facts["Mounts"])


def is_healthy(container: str) -> bool:
    return bool(inspect(container)["State"]["Health"]["Status"] == "healthy")


def start_postgres(machine: Machine, text: str, volume: str) -> str:
    health = ("--health-cmd", "pg_isready --quiet --host=127.0.0.1", "--health-interval", "1s")
    options = ("--volume", f"{volume}:/var/lib/postgresql/data", "-e", f"POSTGRES_PASSWORD={PASSWORD}", *health)
    server = machine.run(text, ["postgres"], *options, image=POSTGRES_IMAGE)
    wait_until(partial(is_healthy, server), "PostgreSQL is ready")
    return server


@pytest.fixture(scope="module")
def town(machine: Machine) -> Iterator[Town]:
    volumes = {name: machine.volume(f"drill-{name}") for name in ("pg", "letter", "wild", "never", "mute")}
    binds = f"/srv/{machine.name('drill-binds')}"  # not below /tmp, where sockets may lie
    mkdir = "mkdir -p $0/config $0/writable; echo on > $0/config/setting"
    docker("run", "--rm", "--volume", "/srv:/srv", HOST_IMAGE, "sh", "-c", mkdir, binds)
    cache = machine.volume("drill-cache")
    extra = image_with_a_volume(machine)

    def run(text: str, *options: str, image: str = HOST_IMAGE) -> str:
        script = "echo hello > /data/letter; sleep infinity"
        mount = ("--volume", f"{volumes[text]}:/data")
        return machine.run(f"drill-{text}", ["sh", "-c", script], *mount, *options, image=image)

    containers = {
        "pg": start_postgres(machine, "drill-pg", volumes["pg"]),
        "letter": run("letter", "--label", f"backup.drill={PROVEN_BY_DATA}", image=extra),
        "wild": run(
            "wild",
            *("--label", f"backup.drill={HARMLESS}", "--cap-add", "SYS_ADMIN", "--network", "host", "--pid", "host"),
            *(
                "--restart",
                "always",
                "--device",
                "/dev/null:/dev/gift",
                "--volume",
                "/var/run/docker.sock:/var/run/docker.sock",
                "--env",
                "MODE=quick",
            ),
            *("--volume", "/var/run/docker.sock:/run/engine.sock", "--volume", f"{binds}/config:/etc/app:ro"),
            *("--volume", f"{binds}/writable:/srv/app", "--volume", f"{cache}:/cache"),
        ),
        "never": run("never", "--health-cmd", "echo no rows; false", "--health-interval", "10s"),
        "mute": run("mute"),
    }
    try:
        for name in ("letter", "wild", "never", "mute"):
            there = ("exec", containers[name], "test", "-s", "/data/letter")
            wait_until(lambda there=there: docker(*there, check=False).code == 0, f"{name} has written")
        yield Town(machine, volumes, containers)
    finally:
        machine.remove(*containers.values())
        docker("image", "rm", extra, check=False)
        docker("run", "--rm", "--volume", "/srv:/srv", HOST_IMAGE, "rm", "-r", binds)


def image_with_a_volume(machine: Machine) -> str:
    """The host's image with a VOLUME, for which the engine makes an anonymous one wherever nothing is mounted."""
    made = machine.run("drill-image", ["true"])
    docker("commit", "--change", "VOLUME /extra", made, machine.name("drill-image"))
    machine.remove(made)
    return machine.name("drill-image")


@pytest.fixture(scope="module")
def sidecar(town: Town, make_sidecar: SidecarMaker) -> Sidecar:
    settings = {"BACKUP_DRILL_TIMEOUT": "30s", "BACKUP_DRILL_MEMORY": "512MiB"}
    sidecar = make_sidecar("drill", include=list(town.volumes.values()), settings=settings)
    sidecar.up()
    sidecar.good_run()
    return sidecar


@pytest.fixture(autouse=True)
def _untouched(town: Town, sidecar: Sidecar) -> Iterator[None]:
    """Whatever a drill comes to, and whoever dies: nothing real is touched, nothing is left, and nothing is told."""
    town.remember()
    yield
    wait_until(lambda: scraps(sidecar) == [], "nothing of the drill is left", timeout=30)
    wait_until(town.nothing_anonymous_is_left, "no anonymous volume is left", timeout=30)
    town.assert_nothing_is_touched()
    assert PASSWORD not in logs(sidecar.name).out


def scraps(sidecar: Sidecar) -> list[str]:
    """Containers, volumes and networks that a drill of this sidecar has made, and helpers of it."""
    ours = ("--filter", f"label=backup.drill-of={sidecar.state}")
    found = docker("ps", "--all", "--format", "{{.Names}}", *ours).out.split()
    found += docker("volume", "ls", "--quiet", *ours).out.split()
    by_name = ("--filter", f"name={sidecar.name}-drill-")
    found += docker("ps", "--all", "--format", "{{.Names}}", *by_name).out.split()
    found += docker("volume", "ls", "--quiet", *by_name).out.split()
    found += docker("network", "ls", "--format", "{{.Name}}", *by_name).out.split()
    helpers = ("--filter", f"name={sidecar.name}-helper-")
    return found + docker("ps", "--all", "--format", "{{.Names}}", *helpers).out.split()


def drill(sidecar: Sidecar, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = sidecar.verb("drill", *arguments, "--json")
    assert done.code == code, (done, sidecar.events()[-5:])
    assert PASSWORD not in done.out
    document: dict[str, Any] = done.json()
    return document


def why(report: dict[str, Any]) -> str:
    return "; ".join(each["message"] for each in report["reasons"])


def listed(sidecar: Sidecar, set_name: str) -> Any:
    (found,) = [e for e in sidecar.verb("list", "--json", check=True).json()["sets"] if e["set"] == set_name]
    return found["drilled"]


def newest(sidecar: Sidecar) -> str:
    return sidecar.sets()[-1]


# --- green -----------------------------------------------------------------------------------------------------------


def test_postgresql_with_a_health_check_and_a_service_with_the_label_prove_their_volumes(
    sidecar: Sidecar, town: Town
) -> None:
    done = sidecar.verb("drill", "latest", town.volumes["pg"], town.volumes["letter"])
    assert done.code == 0, done
    assert "good: " + newest(sidecar) in done.out
    assert f"{town.volumes['pg']}: proven" in done.out
    assert "starting" in done.out
    drilled = listed(sidecar, newest(sidecar))
    assert drilled["volumes"] == {town.volumes["pg"]: "good", town.volumes["letter"]: "good"}
    assert (drilled["outcome"], drilled["stores"]) == ("partial", ["s3"])  # of five volumes
    (finished,) = sidecar.events("drill_finished")
    assert (finished["level"], finished["outcome"]) == ("info", "good")
    last = sidecar.verb("status", "--json").json()["last_drill"]
    assert (last["outcome"], last["trigger"], last["set"]) == ("good", "manual", newest(sidecar))


def test_a_copy_of_a_service_that_may_do_anything_can_do_nothing(sidecar: Sidecar, town: Town) -> None:
    report = drill(sidecar, "latest", town.volumes["wild"])
    assert [(each["container"], each["outcome"]) for each in report["services"]] == [(town.containers["wild"], "good")]
    # A drill of another sidecar on this engine is none of ours.
    assert report["volumes"][0]["outcome"] == "good"


def test_while_it_goes_on_a_copy_is_ours_limited_alone_and_on_scratch_volumes(
    on_engine: Running, sidecar: Sidecar, town: Town
) -> None:
    run = begin(sidecar, town.volumes["never"])
    copy = wait_until(lambda: copies(sidecar), "a copy runs")[0]
    facts = inspect(copy)
    host = facts["HostConfig"]
    assert (host["NetworkMode"], host["Privileged"]) == ("none", False)
    if has_limits(on_engine.kind):
        assert host["Memory"] == 512 << 20
    assert host["RestartPolicy"]["Name"] in ("no", "")
    assert (facts["Config"]["Labels"]["backup.role"], host["PortBindings"] or {}) == ("drill", {})
    (mount,) = facts["Mounts"]
    assert (mount["Destination"], mount["RW"]) == ("/data", True)
    assert mount["Name"].startswith(f"{sidecar.name}-drill-")
    assert sidecar.verb("status", "--json").json()["state"] == "drilling"
    assert sidecar.verb("drill", "--no-wait").code == 11
    assert sidecar.verb("cancel").code == 0
    assert run.end().code == 143


def test_ctrl_c_leaves_the_drill_to_the_daemon(sidecar: Sidecar, town: Town) -> None:
    with Terminal(["docker", "exec", "-it", sidecar.name, "drill", "latest", town.volumes["never"]]) as terminal:
        terminal.wait_for(b"starting")
        terminal.type(b"\x03")
        assert terminal.wait() == 130
    assert sidecar.verb("status", "--json").json()["state"] == "drilling"
    assert sidecar.verb("cancel").code == 0
    wait_until(lambda: sidecar.verb("status", "--json").json()["state"] == "idle", "it has ended")


# --- red -------------------------------------------------------------------------------------------------------------


def test_one_flipped_byte_in_the_bucket_is_red(sidecar: Sidecar, town: Town, s3: S3) -> None:
    set_name = newest(sidecar)
    key = f"{sidecar.prefix}/{set_name}/{town.volumes['pg']}.tar.gz"
    whole = s3.read(key)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(flipped))
    try:
        report = drill(sidecar, "latest", town.volumes["pg"], code=1)
    finally:
        s3.client.put_object(Bucket=BUCKET, Key=key, Body=whole)
    assert "is not what was written" in why(report)
    assert report["services"] == []
    assert listed(sidecar, set_name)["outcome"] == "failed"
    assert sidecar.verb("status", "--check").code == 1
    assert "failed its drill" in sidecar.verb("list").out
    assert "FAILED its drill" in sidecar.verb("list", "latest").out
    assert "failed its last drill" in sidecar.verb("restore", "latest", "--dry-run").out
    drill(sidecar, "latest", town.volumes["pg"])
    assert sidecar.verb("status", "--check").code == 0


def test_a_database_that_was_backed_up_without_its_control_file_is_red(
    machine: Machine, make_sidecar: SidecarMaker, sidecar: Sidecar
) -> None:
    volume = machine.volume("drill-broken")
    server = start_postgres(machine, "drill-broken", volume)
    other = make_sidecar("drill-broken", include=[volume], settings={"BACKUP_DRILL_TIMEOUT": "60s"})
    try:
        docker("stop", server)
        surgeon = ("run", "--rm", "--volume", f"{volume}:/data", HOST_IMAGE, "rm", "/data/global/pg_control")
        docker(*surgeon)
        other.up()
        other.good_run()
        report = drill(other, code=1)
        assert "pg_control" in why(report)
        assert "it ended by itself, with exit code" in why(report)
        assert [each["outcome"] for each in report["services"]] == ["failed"]
        assert scraps(other) == []
        (finished,) = other.events("drill_finished")
        assert (finished["level"], finished["outcome"], finished["code"]) == ("error", "failed", "drill_failed")
        assert PASSWORD not in logs(other.name).out
    finally:
        machine.remove(server)
        other.down()


def test_a_service_whose_health_check_never_turns_green_is_red(sidecar: Sidecar, town: Town) -> None:
    report = drill(sidecar, "latest", town.volumes["never"], code=1)
    assert "after 30 s its health check says unhealthy: no rows" in why(report)
    assert "needs what its copy has not: a network; the label" in report["reasons"][0]["hint"]
    assert report["volumes"][0]["outcome"] == "failed"
    assert listed(sidecar, newest(sidecar))["outcome"] == "failed"


# --- nothing proves it; nothing there --------------------------------------------------------------------------------


def test_a_volume_that_nothing_proves_is_restored_and_not_green(sidecar: Sidecar, town: Town) -> None:
    done = sidecar.verb("drill", "latest", town.volumes["mute"])
    assert done.code == 3, done
    assert f"nothing proves it: no health check on {town.containers['mute']}" in done.out
    assert "backup.drill=COMMAND" in done.out


def test_an_unknown_set_or_volume_is_10_with_the_nearest_name(sidecar: Sidecar, town: Town) -> None:
    wrong = newest(sidecar) + "x"
    done = sidecar.verb("drill", wrong)
    assert (done.code, newest(sidecar) in done.err) == (10, True)
    done = sidecar.verb("drill", "latest", town.volumes["pg"] + "s")
    assert (done.code, town.volumes["pg"] in done.err) == (10, True)


def test_it_explains_itself(sidecar: Sidecar) -> None:
    told = sidecar.verb("drill", "--help")
    assert told.code == 0
    assert "docker exec backup drill latest shop_pgdata" in told.out


# --- scheduled, told to stop, killed ---------------------------------------------------------------------------------


def test_it_is_done_on_schedule(sidecar: Sidecar, town: Town) -> None:
    sidecar.up(BACKUP_DRILL_SCHEDULE="* * * * *", BACKUP_DRILL_TIMEOUT="1s")
    try:
        wait_until(lambda: sidecar.events("drill_finished"), "a scheduled drill has ended", timeout=120)
        last = wait_until(lambda: sidecar.verb("status", "--json").json()["last_drill"], "it is known")
        assert (last["trigger"], last["set"]) == ("schedule", newest(sidecar))
        assert sidecar.verb("status", "--json").json()["next_drill"]
    finally:
        sidecar.up(BACKUP_DRILL_SCHEDULE=None, BACKUP_DRILL_TIMEOUT="30s")


def begin(sidecar: Sidecar, *volumes: str) -> Run:
    return Run(["exec", sidecar.name, "drill", "latest", *volumes])


def copies(sidecar: Sidecar) -> list[str]:
    ours = ("--filter", f"label=backup.drill-of={sidecar.state}")
    return docker("ps", "--format", "{{.Names}}", *ours).out.split()


def scratch(sidecar: Sidecar) -> list[str]:
    return docker("volume", "ls", "--quiet", "--filter", f"label=backup.drill-of={sidecar.state}").out.split()


def test_told_to_stop_in_the_middle_it_leaves_in_time_and_takes_everything_with_it(
    sidecar: Sidecar, town: Town
) -> None:
    run = begin(sidecar, town.volumes["never"])
    wait_until(lambda: copies(sidecar), "a copy runs")
    began = time.monotonic()
    docker("stop", sidecar.name)
    assert time.monotonic() - began < 10
    assert run.end().code != 0
    assert scraps(sidecar) == []
    sidecar.start()


@pytest.mark.parametrize("how", ["process", "kill"])
@pytest.mark.parametrize("moment", ["restoring", "starting"])
def test_killed_in_the_middle_nothing_is_left_once_it_runs_again(
    sidecar: Sidecar, town: Town, how: str, moment: str
) -> None:
    before = inspect(sidecar.name)["State"]["StartedAt"]
    run = begin(sidecar, town.volumes["never"])
    there: Callable[..., list[str]] = copies if moment == "starting" else scratch
    wait_until(lambda: there(sidecar), f"it is {moment}", every=0.01)
    if how == "process":
        docker("exec", sidecar.name, "sh", "-c", "kill -9 -1", check=False)
        wait_until(lambda: inspect(sidecar.name)["State"]["StartedAt"] != before, "it has come back")
        run.end()
    else:
        docker("kill", sidecar.name)
        run.end()
        assert scraps(sidecar)
        docker("start", sidecar.name)
    sidecar.wait_ready()
    assert scraps(sidecar) == []


def test_what_another_sidecar_drills_is_left_alone(machine: Machine, sidecar: Sidecar, town: Town) -> None:
    labels = ("--label", "backup.role=drill", "--label", f"backup.drill-of={machine.name('another')}")
    theirs = machine.volume("drill-theirs", *labels)
    copy = machine.run("drill-theirs", ["sleep", "infinity"], *labels, "--volume", f"{theirs}:/data")
    try:
        drill(sidecar, "latest", town.volumes["letter"])
        docker("restart", sidecar.name)
        sidecar.wait_ready()
        assert inspect(copy)["State"]["Running"]
    finally:
        machine.remove(copy)
