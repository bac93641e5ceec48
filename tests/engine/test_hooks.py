"""Commands in containers before and after a freeze, and that what was begun is finished, whoever is killed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    HOST_IMAGE,
    POSTGRES_IMAGE,
    ROOT,
    S3,
    Machine,
    Run,
    Sidecar,
    docker,
    inspect,
    is_paused,
    wait_until,
)

pytestmark = pytest.mark.engine("modern")

# Hooks that note themselves beside the volume, which nobody then changes by it.
PRE = "echo pre >> /tmp/diary"
POST = "echo post >> /tmp/diary"
UNTIL_LET_GO = f"{PRE}; touch /tmp/begun; while [ ! -e /tmp/go ]; do sleep 0.05; done"


@dataclass
class App:
    """A container with a volume, made anew with the labels that a test wants."""

    machine: Machine
    volume: str
    names: list[str] = field(default_factory=list)

    def start(self, name: str = "hooks-app", **labels: str) -> str:
        """labels: without `backup.`, with `_` for a dash."""
        options = [
            part for key, text in labels.items() for part in ("--label", f"backup.{key.replace('_', '-')}={text}")
        ]
        self.names.append(self.machine.name(name))
        return self.machine.run(name, ["sleep", "infinity"], "--volume", f"{self.volume}:/data", *options)

    def stop(self) -> None:
        self.machine.remove(*self.names)
        self.names.clear()

    def sees(self, container: str, path: str) -> bool:
        return docker("exec", container, "test", "-e", path, check=False).code == 0

    def diary(self, container: str) -> list[str]:
        return docker("exec", container, "cat", "/tmp/diary", check=False).out.split()


@pytest.fixture(scope="module")
def volume(machine: Machine) -> str:
    return machine.volume("hooks")


@pytest.fixture(scope="module")
def sidecar(volume: str, make_sidecar: SidecarMaker) -> Sidecar:
    return make_sidecar("hooks", include=[volume])


@pytest.fixture
def app(machine: Machine, volume: str) -> Iterator[App]:
    app = App(machine, volume)
    try:
        yield app
    finally:
        app.stop()


def journal(sidecar: Sidecar) -> str:
    """The journal's text, empty where there is none; from a container, because the sidecar may be gone."""
    there = ("--rm", "--volume", f"{sidecar.state}:/state:ro")
    return docker("run", *there, HOST_IMAGE, "sh", "-c", "cat /state/journal.json 2>/dev/null || true").out


# --- in good days ----------------------------------------------------------------------------------------------------


def test_a_dump_that_a_pre_hook_writes_into_the_volume_is_in_the_archive(sidecar: Sidecar, s3: S3, app: App) -> None:
    dump = "echo all tables of $(hostname) > /data/dump && echo dumped"
    container = app.start(pre=dump, post="mv /data/dump /data/dumped-before", hook_timeout="90s")
    sidecar.up(BACKUP_TEST_STAGE=None)
    (group,) = sidecar.verb("plan", "--json", check=True).json()["groups"]
    assert group["containers"][0]["hooks"] == {
        "pre": dump, "post": "mv /data/dump /data/dumped-before", "timeout_ms": 90_000, "on_failure": "abort",
    }  # fmt: skip
    assert dump in sidecar.verb("plan", check=True).out

    report, _ = sidecar.good_run()

    directory = s3.restore(sidecar.prefix, report["set"], app.volume)
    hostname = docker("exec", container, "hostname").out.strip()
    assert s3.on_host('cat "$1/dump"', directory).out == f"all tables of {hostname}\n"
    assert not app.sees(container, "/data/dump")
    assert app.sees(container, "/data/dumped-before")
    pre, post = sidecar.events("hook_finished")[-2:]
    assert (pre["hook"], pre["container"], pre["exit_code"], pre["output"]) == ("pre", container, 0, "dumped\n")
    assert (post["hook"], post["exit_code"], post["run"]) == ("post", 0, report["run"])
    order = [event["event"] for event in sidecar.events("hook_finished", "group_frozen", "group_thawed")][-4:]
    assert order == ["hook_finished", "group_frozen", "group_thawed", "hook_finished"]
    assert journal(sidecar) == ""


def test_a_container_that_is_not_frozen_or_stopped_instead_has_its_hooks_too(sidecar: Sidecar, app: App) -> None:
    loose = app.start("hooks-loose", pre=PRE, post=POST, quiesce="none")
    stopped = app.start("hooks-stopped", pre=PRE, post=POST, quiesce="stop")
    sidecar.up(BACKUP_TEST_STAGE=None)
    before = inspect(stopped)["State"]["StartedAt"]

    sidecar.good_run()

    assert app.diary(loose)[-2:] == ["pre", "post"]
    assert app.diary(stopped)[-2:] == ["pre", "post"]
    assert inspect(stopped)["State"]["StartedAt"] != before


def test_the_database_dump_of_the_readme_is_in_the_backup_and_can_be_read_back(
    s3: S3, machine: Machine, make_sidecar: SidecarMaker
) -> None:
    section = (ROOT / "README.md").read_text().partition("### Hooks")[2].partition("\n## ")[0]
    labels = re.findall(r"^ +(backup\.[a-z-]+): (.*)$", section, re.MULTILINE)
    assert {label for label, _ in labels} == {"backup.pre", "backup.post", "backup.hook-timeout"}
    group = ("--label", f"backup.group={machine.name('hooks-pg')}")
    data, dump = (machine.volume(f"hooks-pg-{name}", *group) for name in ("data", "dump"))
    container = machine.run(
        "hooks-postgres",
        ["postgres"],
        *(part for label, text in labels for part in ("--label", f"{label}={text.replace('$$', '$')}")),
        *("--volume", f"{data}:/var/lib/postgresql/data", "--volume", f"{dump}:/dump"),
        *("-e", "POSTGRES_USER=postgres", "-e", "POSTGRES_DB=postgres", "-e", "POSTGRES_PASSWORD=sample-password"),
        image=POSTGRES_IMAGE,
    )
    try:
        ready = ("exec", container, "psql", "-U", "postgres", "-c", "create table kept as select 4711 as number")
        wait_until(lambda: docker(*ready, check=False).code == 0, "PostgreSQL answers")
        sidecar = make_sidecar("hooks-pg", include=[data, dump])
        sidecar.up()

        report, _ = sidecar.good_run()

        directory = s3.restore(sidecar.prefix, report["set"], dump)
        encoded = s3.on_host('base64 "$1/latest"', directory).out
        script = "base64 -d | pg_restore --data-only --table=kept -f -"
        assert "4711" in docker("exec", "-i", container, "sh", "-c", script, stdin=encoded.encode()).out
        assert docker("exec", container, "ls", "/dump").out == ""
    finally:
        machine.remove(container)


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_pre_hook_that_fails_ends_the_backup_before_anything_is_frozen(sidecar: Sidecar, app: App) -> None:
    container = app.start(pre="echo no space left >&2; exit 5", post=POST)
    sidecar.up(BACKUP_TEST_STAGE=None)

    done = sidecar.run_now("--json")

    assert done.code == 1
    (reason,) = done.json()["reasons"]
    assert (reason["code"], reason["message"]) == (
        "hook_failed", f"the pre hook of {container} ended with exit code 5: no space left",
    )  # fmt: skip
    assert sidecar.events("group_frozen") == []
    assert app.diary(container) == ["post"]
    assert sidecar.helpers() == []


def test_hooks_that_may_fail_make_the_run_partial_and_one_that_takes_too_long_goes_on(
    sidecar: Sidecar, app: App
) -> None:
    container = app.start(pre=UNTIL_LET_GO + "; touch /tmp/ended", hook_timeout="1s", on_hook_failure="continue")
    sidecar.up(BACKUP_TEST_STAGE=None)

    report = sidecar.report(code=3)

    assert (report["outcome"], [each["code"] for each in report["reasons"]]) == ("partial", ["hook_failed"])
    assert "goes on running there" in report["reasons"][0]["message"]
    assert [each["outcome"] for each in report["groups"]] == ["partial"]
    assert report["set"] in sidecar.sets()
    assert not app.sees(container, "/tmp/ended")
    docker("exec", container, "touch", "/tmp/go")
    wait_until(lambda: app.sees(container, "/tmp/ended"), "the hook has ended by itself")


# --- told to stop, killed --------------------------------------------------------------------------------------------


def hold_in_pre_hook(sidecar: Sidecar, app: App) -> tuple[str, Run]:
    """A run whose pre hook has begun and does not end."""
    container = app.start(pre=UNTIL_LET_GO, post=POST)
    sidecar.up(BACKUP_TEST_STAGE=None)
    run = sidecar.begin()
    wait_until(lambda: app.sees(container, "/tmp/begun"), "the pre hook has begun")
    return container, run


def hold_frozen(sidecar: Sidecar, app: App) -> tuple[str, Run]:
    """A run that is held while all is frozen."""
    container = app.start(pre=PRE, post=POST)
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    run = sidecar.begin()
    sidecar.wait_held("frozen", run)
    assert is_paused(container)
    return container, run


HOLDS = [hold_in_pre_hook, hold_frozen]
Hold = Callable[[Sidecar, App], tuple[str, Run]]


@pytest.mark.parametrize("hold", HOLDS)
def test_told_to_stop_it_runs_the_post_hooks_and_leaves_in_time(sidecar: Sidecar, app: App, hold: Hold) -> None:
    container, run = hold(sidecar, app)
    began = time.monotonic()
    docker("stop", sidecar.name)
    assert time.monotonic() - began < 10
    run.end()
    assert inspect(sidecar.name)["State"]["ExitCode"] == 143
    assert not is_paused(container)
    assert app.diary(container) == ["pre", "post"]
    assert journal(sidecar) == ""


@pytest.mark.parametrize("hold", HOLDS)
def test_killed_for_good_the_dead_man_runs_the_post_hooks(sidecar: Sidecar, app: App, hold: Hold) -> None:
    container, run = hold(sidecar, app)
    docker("kill", sidecar.name)
    wait_until(lambda: app.diary(container) == ["pre", "post"], "the dead man has run it", timeout=20)
    run.end()
    assert not is_paused(container)
    wait_until(lambda: sidecar.helpers() == [], "the dead man has left", timeout=20)
    assert "post_hooks" in journal(sidecar)

    sidecar.start()

    assert app.diary(container) == ["pre", "post", "post"]  # a dead man may only read the journal
    assert [event["replayed"] for event in sidecar.events("hook_finished") if event["hook"] == "post"] == [True]
    assert journal(sidecar) == ""


@pytest.mark.parametrize("hold", HOLDS)
def test_killed_together_with_its_dead_man_it_runs_the_post_hooks_when_it_comes_back(
    sidecar: Sidecar, app: App, hold: Hold
) -> None:
    container, run = hold(sidecar, app)
    docker("kill", *sidecar.helpers())
    docker("kill", sidecar.name)
    run.end()
    assert is_paused(container) == (hold is hold_frozen)

    sidecar.start()

    assert not is_paused(container)
    assert app.diary(container) == ["pre", "post"]
    assert [event["replayed"] for event in sidecar.events("hook_finished") if event["hook"] == "post"] == [True]
    assert journal(sidecar) == ""


@pytest.mark.parametrize("stage", ["journalled", "thawed"])
def test_killed_at_a_stage_its_restart_policy_brings_it_back_to_run_the_post_hooks(
    sidecar: Sidecar, app: App, stage: str
) -> None:
    container = app.start(pre=PRE, post=POST)
    sidecar.up(BACKUP_TEST_STAGE=f"{stage}=kill")
    sidecar.run_now()
    sidecar.wait_restarted()
    assert not is_paused(container)
    assert app.diary(container)[:2] == ["pre", "post"]
    assert any(event.get("replayed") for event in sidecar.events("hook_finished"))
    assert journal(sidecar) == ""


def test_a_post_hook_of_a_container_that_was_restarted_since_the_kill_is_left_out(sidecar: Sidecar, app: App) -> None:
    container, run = hold_frozen(sidecar, app)
    docker("kill", *sidecar.helpers())
    docker("kill", sidecar.name)
    run.end()
    docker("restart", "--time", "1", container)

    sidecar.start()

    assert app.diary(container) == ["pre"]
    assert [event["container"] for event in sidecar.events("hook_skipped")] == [container]
    assert journal(sidecar) == ""
