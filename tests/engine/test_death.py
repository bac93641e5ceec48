"""Told to stop, killed, or left by its user in the middle of a run: all is thawed, and no half set counts."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from sidecar.config import STAGES
from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    S3,
    Machine,
    Run,
    Sidecar,
    Terminal,
    api,
    command,
    docker,
    inspect,
    is_paused,
    wait_until,
)
from tests.engines import Running

pytestmark = pytest.mark.engine("both")

# Random, so that an upload of it takes a moment that can be caught.
MEBIBYTES = 160
WRITER = [
    "sh",
    "-c",
    f"head -c {MEBIBYTES}M /dev/urandom > /large/file; while :; do echo more >> /data/log; sleep 0.1; done",
]


@dataclass
class Shop:
    """Two small volumes of one group, a large one, and a container that writes them."""

    volumes: list[str]
    large: str
    writer: str

    def is_paused(self) -> bool:
        return is_paused(self.writer)


@pytest.fixture(scope="module")
def shop(machine: Machine) -> Iterator[Shop]:
    group = ("--label", f"backup.group={machine.name('death')}")
    data, more, large = (machine.volume(f"death-{name}", *group) for name in ("data", "more", "large"))
    mounts = ("--volume", f"{data}:/data", "--volume", f"{more}:/more", "--volume", f"{large}:/large")
    writer = machine.run("death-writer", WRITER, *mounts)
    try:
        wait_until(lambda: docker("exec", writer, "test", "-s", "/data/log", check=False).code == 0, "it writes")
        yield Shop([data, more], large, writer)
    finally:
        machine.remove(writer)


@pytest.fixture(scope="module")
def sidecar(shop: Shop, make_sidecar: SidecarMaker) -> Sidecar:
    """Started anew by each test, with a stage at which it is held or killed."""
    return make_sidecar("death", include=shop.volumes)


@pytest.fixture(scope="module")
def large_sidecar(shop: Shop, make_sidecar: SidecarMaker) -> Sidecar:
    """The same for the large volume."""
    return make_sidecar("death-large", include=[shop.large])


def assert_nothing_is_left(sidecar: Sidecar, s3: S3, shop: Shop, sets: list[str]) -> None:
    """No container paused, no helper, no upload pending, and no object but those of the sets there were."""
    assert not shop.is_paused()
    wait_until(lambda: sidecar.helpers() == [], "the dead man has left", timeout=20)
    assert s3.pending(sidecar.prefix) == []
    assert {key.split("/")[0] for key in s3.keys(sidecar.prefix)} <= {"owner.json", *sets}


def assert_next_run_is_good(sidecar: Sidecar, s3: S3, shop: Shop, sets: list[str], *, stage: str = "") -> None:
    """The sidecar, which runs again, makes a set; stage: where it is held."""
    assert sidecar.sets() == sets
    report, _ = sidecar.good_run(stage=stage)
    assert sidecar.sets() == [*sets, report["set"]]
    assert_nothing_is_left(sidecar, s3, shop, [*sets, report["set"]])


def manifests(sidecar: Sidecar, s3: S3) -> list[str]:
    return sorted(key.split("/")[0] for key in s3.keys(sidecar.prefix) if key.endswith("/manifest.json"))


def thaws(sidecar: Sidecar) -> list[list[str]]:
    """Whom each recovery has thawed, as the log says it. (Others aborted uploads.)"""
    return [each["containers"] for each in sidecar.events("recovered") if "containers" in each]


def stop(sidecar: Sidecar) -> float:
    """`docker stop`; the seconds it took."""
    began = time.monotonic()
    docker("stop", sidecar.name)
    return time.monotonic() - began


# --- docker stop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["planned", "frozen", "archived"])
def test_told_to_stop_in_the_middle_it_thaws_cleans_up_and_leaves_in_time(
    sidecar: Sidecar, s3: S3, shop: Shop, stage: str
) -> None:
    sidecar.up(BACKUP_TEST_STAGE=f"{stage}=hold")
    sets = manifests(sidecar, s3)
    run = sidecar.begin()
    sidecar.wait_held(stage, run)
    assert shop.is_paused() == (stage == "frozen")

    seconds = stop(sidecar)

    assert seconds < 10
    assert inspect(sidecar.name)["State"]["ExitCode"] == 143
    assert_nothing_is_left(sidecar, s3, shop, sets)
    assert run.end().code in (137, 143)  # with the container goes whoever was in it, unless it was quicker
    assert [event["mid_run"] for event in sidecar.events("daemon_stopped")] == [True]
    sidecar.start()
    assert_next_run_is_good(sidecar, s3, shop, sets, stage=stage)


@contextmanager
def in_the_middle_of_an_upload(sidecar: Sidecar, s3: S3) -> Iterator[Run]:
    """A run whose upload is under way; for the block the store holds its breath, so that it is not over before."""
    sidecar.up(BACKUP_TEST_STAGE="thawed=hold")
    run = sidecar.begin()
    with sidecar.held("thawed", run):
        pass
    wait_until(lambda: s3.pending(sidecar.prefix), "an upload has begun", every=0.005)
    docker("pause", s3.container)
    try:
        yield run
    finally:
        docker("unpause", s3.container)


def was_told_to_stop(sidecar: Sidecar, since: float) -> bool:
    """Whether the engine has sent it a signal."""
    seen = api().events(since=since, until=time.time(), decode=True, filters={"container": sidecar.name})
    return any(each["Action"] == "kill" for each in seen)


def test_told_to_stop_while_it_uploads_it_aborts_the_upload(large_sidecar: Sidecar, s3: S3, shop: Shop) -> None:
    with ThreadPoolExecutor(1) as aside:
        with in_the_middle_of_an_upload(large_sidecar, s3) as run:
            since = time.time()
            stopping = aside.submit(stop, large_sidecar)
            wait_until(lambda: was_told_to_stop(large_sidecar, since), "it is told to stop")
        seconds = stopping.result()

    assert seconds < 10
    assert inspect(large_sidecar.name)["State"]["ExitCode"] == 143
    assert_nothing_is_left(large_sidecar, s3, shop, [])
    run.end()


def test_told_to_stop_while_the_store_hangs_it_leaves_in_time(sidecar: Sidecar, s3: S3, shop: Shop) -> None:
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    sets = manifests(sidecar, s3)
    run = sidecar.begin()
    with sidecar.held("frozen", run):
        docker("pause", s3.container)
    try:
        # The freeze ends although the store hangs; what hangs is the upload.
        wait_until(lambda: not shop.is_paused(), "all is thawed", timeout=10)
        assert is_paused(s3.container)
        seconds = stop(sidecar)
    finally:
        docker("unpause", s3.container)
    assert seconds < 10
    assert inspect(sidecar.name)["State"]["ExitCode"] == 143
    assert [event["mid_run"] for event in sidecar.events("daemon_stopped")] == [True]
    run.end()
    sidecar.start()
    assert_next_run_is_good(sidecar, s3, shop, sets, stage="frozen")


def test_told_to_stop_while_idle_it_leaves_at_once_and_well(sidecar: Sidecar) -> None:
    sidecar.up(BACKUP_TEST_STAGE=None)
    assert stop(sidecar) < 5
    assert inspect(sidecar.name)["State"]["ExitCode"] == 0
    assert sidecar.events()[-1]["event"] == "daemon_stopped"


# --- SIGKILL ---------------------------------------------------------------------------------------------------------


@pytest.mark.engine("machine")
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_it_thaws_when_it_comes_back_and_no_half_set_counts(
    sidecar: Sidecar, s3: S3, shop: Shop, stage: str
) -> None:
    sidecar.up(BACKUP_TEST_STAGE=f"{stage}=kill")
    sets = manifests(sidecar, s3)

    done = sidecar.run_now()

    # Its own restart policy brings it back: nobody has asked for this, unlike `docker kill`.
    sidecar.wait_restarted()
    assert done.code not in (0, 3)
    assert not shop.is_paused()
    recovered = thaws(sidecar)
    if stage in ("journalled", "frozen"):
        # The dead man, who stands by, may have been quicker than the restart.
        assert recovered in ([[]], [[shop.writer]])
    else:
        assert recovered == []

    now = manifests(sidecar, s3)
    assert len(now) == len(sets) + (stage == "committed")
    assert_nothing_is_left(sidecar, s3, shop, now)
    sidecar.up(BACKUP_TEST_STAGE=None)
    assert_next_run_is_good(sidecar, s3, shop, now)


def hold_frozen(sidecar: Sidecar, shop: Shop) -> Run:
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    run = sidecar.begin()
    sidecar.wait_held("frozen", run)
    assert shop.is_paused()
    return run


@pytest.mark.parametrize("verb", ["kill", "rm"])
def test_killed_for_good_while_frozen_the_dead_man_thaws(sidecar: Sidecar, s3: S3, shop: Shop, verb: str) -> None:
    """No restart policy acts after `docker kill`, and nothing is left to act after `docker rm -f`."""
    run = hold_frozen(sidecar, shop)
    sets = manifests(sidecar, s3)

    docker("rm", "--force", sidecar.name) if verb == "rm" else docker("kill", sidecar.name)

    wait_until(lambda: not shop.is_paused(), "the dead man has thawed it", timeout=10)
    run.end()
    wait_until(lambda: sidecar.helpers() == [], "the dead man has left", timeout=20)
    sidecar.up()
    assert thaws(sidecar) == [[]]
    assert_next_run_is_good(sidecar, s3, shop, sets, stage="frozen")


def test_killed_together_with_its_dead_man_it_thaws_at_the_next_start(sidecar: Sidecar, s3: S3, shop: Shop) -> None:
    """A power cut, as far as containers can show one."""
    run = hold_frozen(sidecar, shop)
    sets = manifests(sidecar, s3)
    docker("kill", *sidecar.helpers())
    docker("kill", sidecar.name)
    run.end()
    assert shop.is_paused()

    sidecar.start()

    assert not shop.is_paused()
    assert thaws(sidecar) == [[shop.writer]]
    assert_next_run_is_good(sidecar, s3, shop, sets, stage="frozen")


@contextmanager
def engine_hangs_over(running: Running, container: str) -> Iterator[Callable[[], bool]]:
    """The engine cannot thaw the container, as when a command was being started inside it while it was paused.

    Here because what would thaw it, containerd's shim, is suspended. Gives a function that asks the kernel, not the
    engine, whether the container's processes are frozen.
    """
    process = inspect(container)["State"]["Pid"]
    proc = running.root / "proc"
    status = proc / str(process) / "status"
    (shim,) = re.findall(r"^PPid:\t(\d+)$", status.read_text(), re.MULTILINE)
    assert (proc / shim / "comm").read_text().startswith("containerd-shim")
    state = re.compile(r"^State:\tD", re.MULTILINE)  # in the kernel's refrigerator (v1); v2 shows it in its own file
    groups = re.findall(r"^0::/(.*)$", (proc / str(process) / "cgroup").read_text(), re.MULTILINE)
    events = running.root.joinpath("sys/fs/cgroup", *groups, "cgroup.events")

    def is_frozen() -> bool:
        if events.exists():
            return "frozen 1" in events.read_text()
        return bool(state.search(status.read_text()))

    assert is_frozen()
    command(*running.inside(), "kill", "-STOP", shim)
    try:
        yield is_frozen
    finally:
        command(*running.inside(), "kill", "-CONT", shim)


@pytest.mark.parametrize("fate", ["lives", "is killed"])
def test_what_the_engine_hangs_over_is_thawed_past_it(
    on_engine: Running, sidecar: Sidecar, s3: S3, shop: Shop, fate: str
) -> None:
    """By the sidecar, or by its dead man."""
    run = hold_frozen(sidecar, shop)
    sets = manifests(sidecar, s3)
    with engine_hangs_over(on_engine, shop.writer) as is_frozen:
        if fate == "lives":
            sidecar.release("frozen")
        else:
            docker("kill", sidecar.name)
        wait_until(lambda: not is_frozen(), "the kernel has thawed it", timeout=30)
    run.end()
    wait_until(lambda: not shop.is_paused(), "the engine knows", timeout=30)
    wait_until(lambda: sidecar.helpers() == [], "the dead man has left", timeout=30)
    sidecar.up()
    now = manifests(sidecar, s3)
    if fate == "is killed":
        assert now == sets
    assert_next_run_is_good(sidecar, s3, shop, now, stage="frozen")


@pytest.mark.engine("machine")
def test_commands_that_are_started_inside_all_the_time_cost_a_run_at_most(sidecar: Sidecar, shop: Shop) -> None:
    """About one freeze in six meets one half-way, and the engine hangs over it until the kernel is told."""
    over = threading.Event()

    def start_commands() -> None:
        while not over.is_set():
            docker("exec", shop.writer, "true", check=False)

    sidecar.up(BACKUP_TEST_STAGE=None)
    with ThreadPoolExecutor(4) as starters:
        starting = [starters.submit(start_commands) for _ in range(4)]
        try:
            outcomes = []
            for _ in range(6):
                outcomes.append(sidecar.run_now("--json").json()["outcome"])
                assert not shop.is_paused()
        finally:
            over.set()
        for each in starting:
            each.result()
    assert "good" in outcomes


def test_what_others_restarted_and_paused_since_is_not_thawed(sidecar: Sidecar, shop: Shop) -> None:
    run = hold_frozen(sidecar, shop)
    docker("kill", *sidecar.helpers())
    docker("kill", sidecar.name)
    run.end()
    docker("restart", "--time", "1", shop.writer)
    docker("pause", shop.writer)
    try:
        sidecar.start()
        assert shop.is_paused()
        assert thaws(sidecar) == [[]]
    finally:
        docker("unpause", shop.writer)


def test_with_a_torn_journal_it_thaws_at_the_next_start_whom_that_still_names(
    sidecar: Sidecar, s3: S3, shop: Shop, machine: Machine
) -> None:
    run = hold_frozen(sidecar, shop)
    sets = manifests(sidecar, s3)
    docker("kill", *sidecar.helpers())
    docker("kill", sidecar.name)
    run.end()
    name = inspect(shop.writer)["Id"]
    tear = f"grep -q {name} $0; sed -i 's/\\({name}\\).*/\\1/' $0; tail -c 64 $0"
    tool = machine.run("death-tear", ["sleep", "infinity"], "--volume", f"{sidecar.state}:/state")
    try:
        end = docker("exec", tool, "sh", "-ec", tear, "/state/journal.json").out.strip()
    finally:
        machine.remove(tool)
    assert end == name
    assert shop.is_paused()

    docker("start", sidecar.name)

    wait_until(lambda: not shop.is_paused(), "it is thawed", timeout=20)
    recovered = wait_until(lambda: sidecar.events("recovered"), "it says so")[0]
    assert (recovered["containers"], recovered["damaged"]) == ([shop.writer], True)
    sidecar.wait_ready()
    # Whatever else is paused on this machine might be ours, too: then it makes no run until a person has looked.
    for refused in sidecar.events("recover_failed"):
        assert "then remove /state/journal.json" in refused["hint"]
        sidecar.verb("rm", "-f", "/state/journal.json")
    assert_next_run_is_good(sidecar, s3, shop, sets, stage="frozen")


def test_killed_while_it_uploads_it_aborts_the_upload_when_it_comes_back(
    large_sidecar: Sidecar, s3: S3, shop: Shop
) -> None:
    with in_the_middle_of_an_upload(large_sidecar, s3) as run:
        docker("kill", large_sidecar.name)
    run.end()
    assert len(s3.pending(large_sidecar.prefix)) == 1

    large_sidecar.start()

    assert_nothing_is_left(large_sidecar, s3, shop, [])
    (recovered,) = large_sidecar.events("recovered")
    assert recovered["uploads"] == 1
    assert_next_run_is_good(large_sidecar, s3, shop, [], stage="thawed")


# --- out of memory ---------------------------------------------------------------------------------------------------


@pytest.mark.needs_limits
def test_killed_by_the_kernel_for_want_of_memory_while_frozen_it_comes_back_and_thaws(
    shop: Shop, s3: S3, make_sidecar: SidecarMaker
) -> None:
    limit = {"mem_limit": "512m", "memswap_limit": "512m"}
    sidecar = make_sidecar("death-memory", include=shop.volumes, service=limit)
    run = hold_frozen(sidecar, shop)
    since = f"{time.time() - 1:.0f}"
    # Raising the score of one's own process needs no capability: the daemon goes first, whoever takes the memory.
    assert sidecar.to_daemon("echo 1000 > /proc/$daemon/oom_score_adj").code == 0

    hog = Run(["exec", sidecar.name, "/opt/sidecar/bin/python", "-c", "b'x' * (2 << 30)"])

    wait_until(lambda: not shop.is_paused(), "it is thawed", timeout=10)
    assert hog.end().code == 137
    run.end()
    # The engine hears of it from the kernel (memory.oom_control, memory.events), and nobody sent a signal.
    seen = docker(
        *("events", "--since", since, "--until", f"{time.time() + 1:.0f}", "--filter", f"container={sidecar.name}"),
        *("--format", "{{.Actor.Attributes.name}} {{.Action}} {{.Actor.Attributes.exitCode}}"),
    ).out.splitlines()
    assert f"{sidecar.name} oom <no value>" in seen
    ends = [line for line in seen if line.startswith((f"{sidecar.name} kill", f"{sidecar.name} die"))]
    assert ends == [f"{sidecar.name} die 137"]
    sidecar.wait_restarted()
    assert thaws(sidecar) in ([[]], [[shop.writer]])  # the dead man may have been quicker
    assert_nothing_is_left(sidecar, s3, shop, [])
    assert_next_run_is_good(sidecar, s3, shop, [], stage="frozen")


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_watching_and_not_the_run(sidecar: Sidecar, s3: S3, shop: Shop) -> None:
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    sets = sidecar.sets()
    sidecar.forget_held()
    with Terminal(["docker", "exec", "-it", sidecar.name, "run-now"]) as terminal:
        terminal.wait_for(b"freezing")
        sidecar.wait_held("frozen")
        terminal.type(b"\x03")
        assert terminal.wait() == 130
        shown = terminal.output.decode()
    assert re.search(r"the run goes on", shown)
    assert "Traceback" not in shown
    assert shop.is_paused()
    sidecar.release("frozen")
    wait_until(lambda: sidecar.sets()[:-1] == sets, "the run has ended in a set")
    (finished,) = wait_until(lambda: sidecar.events("run_finished"), "the run has said so")
    assert finished["outcome"] == "good"
    assert_nothing_is_left(sidecar, s3, shop, sidecar.sets())


def test_a_terminal_shows_progress_and_ends_with_the_report(sidecar: Sidecar, shop: Shop) -> None:
    sidecar.up(BACKUP_TEST_STAGE="archived=hold")
    with Terminal(["docker", "exec", "-it", sidecar.name, "run-now"]) as terminal:
        terminal.wait_for(b"packing")
        sidecar.wait_held("archived")
        sidecar.release("archived")
        code = terminal.wait(120)
        shown = terminal.output.decode()
    assert code == 0, shown
    assert all(volume in shown for volume in shop.volumes), shown
    assert re.search(r"backup-[0-9]{8}_[0-9]{6}", shown)
