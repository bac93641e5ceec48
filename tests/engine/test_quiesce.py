"""The label backup.quiesce end to end: who is stopped, in which order; who is left running, and that it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import S3, Machine, Sidecar, docker, inspect, is_paused, wait_until

pytestmark = pytest.mark.engine("both")

# Says on disk that it was closed in good order, and takes that back when it starts.
CLOSES = """
name=$0
rm -f /data/$name.closed; echo open >> /data/$name.log
trap 'echo closed > /data/$name.closed; exit 0' TERM
while :; do sleep 0.1 & wait $!; done
"""
WRITES = "while :; do echo more >> /loose/log; sleep 0.05; done"

Start = Callable[..., str]


@pytest.fixture(scope="module")
def volume(machine: Machine) -> str:
    return machine.volume("quiesce")


@pytest.fixture(scope="module")
def sidecar(volume: str, make_sidecar: SidecarMaker) -> Sidecar:
    return make_sidecar("quiesce", include=[volume])


@pytest.fixture
def start(machine: Machine, volume: str) -> Iterator[Start]:
    """Starts containers with the volume at /data, and labels as of Compose v2."""
    made: list[str] = []

    def start(name: str, script: str, *options: str, quiesce: str = "", depends_on: str = "") -> str:
        labels = {"com.docker.compose.project": machine.name("quiesce"), "com.docker.compose.service": name}
        labels |= {"backup.quiesce": quiesce} if quiesce else {}
        labels |= {"com.docker.compose.depends_on": f"{depends_on}:service_started:false"} if depends_on else {}
        given = [part for label, text in labels.items() for part in ("--label", f"{label}={text}")]
        made.append(machine.name(f"quiesce-{name}"))
        mount = ("--volume", f"{volume}:/data", "--stop-timeout", "10")
        return machine.run(f"quiesce-{name}", ["sh", "-c", script, name], *mount, *given, *options)

    try:
        yield start
    finally:
        machine.remove(*made)


def said_by(sidecar: Sidecar, container: str) -> tuple[str, str]:
    """What `plan` says of a container."""
    (group,) = sidecar.verb("plan", "--json", check=True).json()["groups"]
    return next((each["quiesce"], each["why"]) for each in group["containers"] if each["container"] == container)


def test_who_asks_to_be_stopped_is_captured_closed_and_started_again_servers_first(
    sidecar: Sidecar, s3: S3, volume: str, start: Start
) -> None:
    db = start("db", CLOSES, quiesce="stop")
    web = start("web", CLOSES, quiesce="stop", depends_on="db")
    wait_until(lambda: docker("exec", web, "test", "-e", "/data/web.log", check=False).code == 0, "they are open")
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    assert said_by(sidecar, db) == ("stop", "label backup.quiesce")
    before = {name: inspect(name)["State"]["StartedAt"] for name in (db, web)}

    def stopped() -> list[str]:
        return [inspect(name)["State"]["Status"] for name in (db, web)]

    report, held = sidecar.good_run(stage="frozen", held=stopped)

    assert held == ["exited", "exited"]
    after = {name: inspect(name)["State"] for name in (db, web)}
    assert [state["Status"] for state in after.values()] == ["running", "running"]
    assert all(after[name]["StartedAt"] > before[name] for name in (db, web))
    assert after[web]["FinishedAt"] < after[db]["FinishedAt"]
    assert after[db]["StartedAt"] < after[web]["StartedAt"]
    directory = s3.restore(sidecar.prefix, report["set"], volume)
    assert s3.on_host('cat "$1/db.closed" "$1/web.closed"', directory).out == "closed\nclosed\n"
    gone = "! test -e /data/db.closed && ! test -e /data/web.closed"
    wait_until(lambda: docker("exec", db, "sh", "-c", gone, check=False).code == 0, "they are open again")
    assert [event["containers"] for event in sidecar.events("group_frozen")][-1] == [web, db]
    assert [event["containers"] for event in sidecar.events("group_thawed")][-1] == [db, web]
    assert report["paused_ms"] > 0


@pytest.mark.parametrize("kill", ["sidecar", "both"])
def test_who_was_stopped_is_started_again_after_a_kill(sidecar: Sidecar, start: Start, kill: str) -> None:
    """By the dead man, or by the next start."""
    db = start("db", CLOSES, quiesce="stop")
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    run = sidecar.begin()
    sidecar.wait_held("frozen", run)
    assert inspect(db)["State"]["Status"] == "exited"
    if kill == "both":
        docker("kill", *sidecar.helpers())
    docker("kill", sidecar.name)
    run.end()
    if kill == "both":
        assert inspect(db)["State"]["Status"] == "exited"
        sidecar.start()
    wait_until(lambda: inspect(db)["State"]["Status"] == "running", "it is started again", timeout=20)
    wait_until(lambda: sidecar.helpers() == [], "the dead man has left", timeout=20)


def test_who_asks_to_be_left_alone_runs_on_and_that_is_said(sidecar: Sidecar, machine: Machine, start: Start) -> None:
    loose = start("loose", WRITES, "--volume", f"{machine.volume('quiesce-beside')}:/loose", quiesce="none")
    held_still = start("other", CLOSES)
    sidecar.up(BACKUP_TEST_STAGE="frozen=hold")
    assert said_by(sidecar, loose) == ("none", "label backup.quiesce")
    started = inspect(loose)["State"]["StartedAt"]

    def runs_on() -> tuple[bool, bool]:
        def size() -> int:
            return int(docker("exec", loose, "stat", "-c", "%s", "/loose/log").out)

        before = size()
        wait_until(lambda: size() > before, "it writes while the group is read")
        return is_paused(loose), is_paused(held_still)

    report, paused = sidecar.good_run(stage="frozen", held=runs_on)

    assert paused == (False, True)
    assert inspect(loose)["State"]["StartedAt"] == started
    assert report["groups"][0]["unfrozen"] == [loose]
    (event,) = sidecar.events("group_frozen")[-1:]
    assert event["containers"] == [held_still]
    assert event["unfrozen"] == {loose: "its label backup.quiesce says so"}


def test_who_is_left_alone_and_writes_into_the_volume_makes_it_partial(
    sidecar: Sidecar, volume: str, start: Start
) -> None:
    # Large, so that it takes longer to read than until the next write.
    writes = "head -c 300M /dev/zero > /data/torn; while :; do echo more >> /data/torn; done"
    loose = start("loose", writes, quiesce="none")
    written = lambda: int(docker("exec", loose, "stat", "-c", "%s", "/data/torn").out) > 300 << 20  # noqa: E731
    wait_until(written, "it appends")
    sidecar.up(BACKUP_TEST_STAGE=None)

    report = sidecar.report(code=3)

    assert [each["code"] for each in report["reasons"]] == ["file_changed"]
    assert [each["changed_files"] for each in report["volumes"]] == [["torn"]], volume
