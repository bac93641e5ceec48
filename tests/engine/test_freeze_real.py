"""The freeze on a real engine: containers that write as fast as they can, a user who interferes, a killed process."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound

from sidecar.engine.docker import DockerEngine, own_identifiers
from sidecar.engine.freeze import Frozen, freeze
from sidecar.engine.journal import Journal
from sidecar.engine.recovery import recover
from sidecar.errors import FreezeBroken, FreezeFailed, Interrupted, PauseBudgetSpent
from sidecar.model import Container, ContainerState
from tests.contract.docker_user import DockerUser
from tests.engines import fault, known_to_fail

pytestmark = pytest.mark.engine("both")

RUNNING, PAUSED, EXITED = ContainerState.RUNNING, ContainerState.PAUSED, ContainerState.EXITED
WRITE = "while true; do echo more >> /data/$0; sleep 0.02; done"
WRITE_FAST = WRITE.replace("sleep 0.02;", "")


class Stack:
    """Containers that write one volume, and the freeze of them."""

    def __init__(self, engine: DockerEngine, user: DockerUser, state: Path) -> None:
        self.engine = engine
        self.user = user
        self.journal = Journal(state / "freeze.json")
        self.cancelled = threading.Event()
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        self.events.append((name, fields))

    def app(self, name: str, *, depends_on: str = "", **options: Any) -> Container:
        """A container that appends to /data/NAME, without end."""
        labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": name} | options.pop("labels", {})
        labels |= {"com.docker.compose.depends_on": depends_on} if depends_on else {}
        options.setdefault("command", ["sh", "-c", WRITE, name])
        return self.user.run(name, labels=labels, volumes={"data": "/data"}, **options)

    def writers(self, containers: Sequence[Container]) -> set[str]:
        volume = self.user.full("data")
        return {c.id for c in containers if any(m.volume == volume and m.writable for m in c.mounts)}

    def freeze(self, **options: Any) -> AbstractContextManager[Frozen]:
        ids = self.writers(containers := self.engine.containers())
        return freeze(
            self.engine, self.journal, [container for container in containers if container.id in ids],
            run="run-1", group="shop", cancelled=self.cancelled, emit=self.emit, **{"budget": 30.0, **options},
        )  # fmt: skip

    def state(self, name: str) -> ContainerState:
        return self.engine.container(self.user.full(name)).state

    def written(self, name: str) -> int:
        """How much it has written: the size of its file, by `docker cp`, which reads from a frozen container too."""
        try:
            chunks, _ = self.user.client.get_archive(self.user.full(name), f"/data/{name}")
        except NotFound:  # not yet
            return 0
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            return archive.getmember(name).size

    def actions(self, *names: str) -> list[tuple[str, str]]:
        """(action, name) of pauses and unpauses, from the engine's own log."""
        wanted = {self.user.full(name): name for name in names}
        log = self.user.client.events(since=1, until=int(time.time()) + 1, decode=True, filters={"type": "container"})
        seen = [(event["Action"], event["Actor"]["Attributes"].get("name", "")) for event in log]
        return [(action, wanted[name]) for action, name in seen if name in wanted and "pause" in action]


@pytest.fixture
def stack(docker_engine: DockerEngine, base_image: str, tmp_path: Path) -> Iterator[Stack]:
    user = DockerUser(docker_engine, base_image)
    try:
        yield Stack(docker_engine, user, tmp_path)
    finally:
        user.clean()


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_writers_at_full_speed_stand_still_while_frozen_and_go_on_afterwards(stack: Stack) -> None:
    for name in ("db", "web"):
        stack.app(name, command=["sh", "-c", WRITE_FAST, name])
        assert eventually(lambda name=name: stack.written(name) > 0)
    with stack.freeze() as frozen:
        first = [stack.written("db"), stack.written("web")]
        time.sleep(0.2)
        assert [stack.written("db"), stack.written("web")] == first
        frozen.confirm(stack.writers)
    assert frozen.intact
    assert eventually(lambda: stack.written("db") > first[0] and stack.written("web") > first[1])
    assert [event for event, _ in stack.events] == ["group_frozen", "group_thawed"]
    assert frozen.paused_ms >= 200
    assert stack.journal.read() is None


def test_clients_are_paused_before_their_servers_and_thawed_after_them(stack: Stack) -> None:
    stack.app("db")
    stack.app("api", depends_on="db:service_healthy:false")
    stack.app("web", depends_on="api:service_started:false")
    with stack.freeze() as frozen:
        frozen.confirm(stack.writers)
    assert stack.actions("db", "api", "web") == [
        ("pause", "web"), ("pause", "api"), ("pause", "db"), ("unpause", "db"), ("unpause", "api"), ("unpause", "web"),
    ]  # fmt: skip


def test_a_container_that_stops_instead_is_started_again_and_nothing_is_broken(stack: Stack) -> None:
    before = stack.app("db", labels={"backup.quiesce": "stop"}, stop_timeout=1)
    stack.app("web", depends_on="db:service_started:false")
    with stack.freeze() as frozen:
        assert (stack.state("db"), stack.state("web")) == (EXITED, PAUSED)
        frozen.confirm(stack.writers)
    assert frozen.intact
    after = stack.engine.container(before.id)
    assert (after.state, after.started_at != before.started_at) == (RUNNING, True)
    assert stack.state("web") is RUNNING


@pytest.mark.parametrize(
    "options",
    [{"auto_remove": True}, {"labels": {"com.docker.swarm.task.id": "t1"}}],
    ids=["removes itself", "swarm task"],
)
def test_what_stopping_would_end_for_good_is_never_stopped(stack: Stack, options: dict[str, Any]) -> None:
    labels = {"backup.quiesce": "stop"} | options.pop("labels", {})
    before = stack.app("job", labels=labels, stop_timeout=1, **options)
    stack.app("web", depends_on="job:service_started:false")
    with pytest.raises(FreezeFailed, match="must not be stopped") as caught, stack.freeze():
        pytest.fail("frozen")
    assert "backup.quiesce=pause" in caught.value.hint
    assert stack.engine.container(before.id) == before
    assert stack.actions("job", "web") == []
    assert stack.journal.read() is None


def test_a_container_that_removes_itself_may_be_paused(stack: Stack) -> None:
    before = stack.app("job", auto_remove=True)
    with stack.freeze() as frozen:
        assert stack.state("job") is PAUSED
        frozen.confirm(stack.writers)
    assert frozen.intact
    assert stack.engine.container(before.id) == before


def interfered(stack: Stack, act: Callable[[], object]) -> str:
    """Freeze `db` and `web`, let a user act in the middle; what the FreezeBroken says."""
    stack.app("db")
    stack.app("web")

    def capture() -> None:
        with stack.freeze() as frozen:
            act()
            frozen.confirm(stack.writers)

    with pytest.raises(FreezeBroken) as caught:
        capture()
    assert stack.state("web") is RUNNING
    assert stack.journal.read() is None
    return caught.value.message


def test_docker_restart_in_the_middle_breaks_the_freeze(stack: Stack) -> None:
    assert "db" in interfered(stack, lambda: stack.user.restart("db"))
    assert stack.state("db") is RUNNING


@pytest.mark.parametrize("sent", ["TERM", "KILL"])
def test_docker_kill_in_the_middle_breaks_the_freeze(stack: Stack, sent: str) -> None:
    assert "db" in interfered(stack, lambda: stack.user.kill("db", sent))


def test_docker_rm_in_the_middle_breaks_the_freeze(stack: Stack) -> None:
    assert "db" in interfered(stack, lambda: stack.user.remove("db"))


def test_docker_cp_into_a_frozen_container_breaks_the_freeze(stack: Stack) -> None:
    assert "extract-to-dir" in interfered(stack, lambda: stack.user.copy_into("db", "/data"))


def test_an_unpause_and_a_pause_by_someone_else_break_the_freeze(stack: Stack) -> None:
    def resume_and_pause() -> None:
        stack.user.client.unpause(stack.user.full("db"))
        stack.user.client.pause(stack.user.full("db"))

    assert "did not stay frozen" in interfered(stack, resume_and_pause)


def test_a_new_writer_breaks_the_freeze(stack: Stack) -> None:
    assert "intruder was started" in interfered(stack, lambda: stack.app("intruder"))


def test_a_writer_that_came_and_went_breaks_the_freeze(stack: Stack) -> None:
    def come_and_go() -> None:
        made = stack.app("once", auto_remove=True, command=["sleep", "0"])
        assert eventually(lambda: made.id not in {container.id for container in stack.engine.containers()})

    assert "once was started" in interfered(stack, come_and_go)


def test_a_container_that_came_and_went_and_could_not_write_breaks_nothing(stack: Stack) -> None:
    stack.app("db")
    with stack.freeze() as frozen:
        made = stack.user.run("build", volumes={"cache": "/c"}, auto_remove=True, command=["sleep", "0"])
        assert eventually(lambda: made.id not in {container.id for container in stack.engine.containers()})
        frozen.confirm(stack.writers)
    assert frozen.intact


def test_health_checks_and_looks_from_outside_break_nothing(stack: Stack) -> None:
    app = stack.app("db")
    stack.user.client.exec_start(stack.user.client.exec_create(app.id, ["sleep", "1"])["Id"], detach=True)
    with stack.freeze() as frozen:
        stack.user.client.top(app.id)
        stack.user.client.stats(app.id, stream=False, one_shot=True)
        stack.written("db")
        stack.user.rename("db", "renamed")
        stack.user.rename("renamed", "db")
        frozen.confirm(stack.writers)
    assert frozen.intact


def test_a_container_that_the_user_paused_stays_paused(stack: Stack) -> None:
    stack.app("db")
    stack.app("users-own")
    stack.engine.pause(stack.user.full("users-own"))
    with stack.freeze() as frozen:
        frozen.confirm(stack.writers)
    assert frozen.intact
    assert (stack.state("db"), stack.state("users-own")) == (RUNNING, PAUSED)


@pytest.mark.parametrize(("why", "error"), [("budget", PauseBudgetSpent), ("cancelled", Interrupted)])
def test_a_reader_that_hangs_does_not_keep_the_application_frozen(
    stack: Stack, tmp_path: Path, why: str, error: type[Exception]
) -> None:
    stack.app("db")
    os.mkfifo(tmp_path / "dead-disk")
    thawed: list[bool] = []
    reading = threading.Event()

    def user() -> None:
        was_frozen = reading.wait(10) and stack.state("db") is PAUSED
        if why == "cancelled":
            stack.cancelled.set()
        thawed.append(was_frozen and eventually(lambda: stack.state("db") is RUNNING))
        (tmp_path / "dead-disk").write_bytes(b"")  # the reader comes back only now

    def capture() -> None:
        with stack.freeze(budget=1.0 if why == "budget" else 60.0) as frozen:
            reading.set()
            (tmp_path / "dead-disk").read_bytes()
            frozen.confirm(stack.writers)

    watcher = threading.Thread(target=user)
    watcher.start()
    with pytest.raises(error):
        capture()
    watcher.join()
    assert thawed == [True]


HOLDER = textwrap.dedent(
    """
    import os, sys, threading
    from pathlib import Path
    from sidecar.engine.docker import connect
    from sidecar.engine.freeze import freeze
    from sidecar.engine.journal import Journal

    engine = connect(os.environ)
    containers = [engine.container(identifier) for identifier in sys.argv[2:]]
    with freeze(engine, Journal(Path(sys.argv[1])), containers, run="killed", group="shop", budget=600.0,
                cancelled=threading.Event(), emit=lambda name, **fields: None):
        print("frozen", flush=True)
        sys.stdin.read()
    """
)


def test_a_process_killed_in_the_middle_leaves_a_journal_from_which_the_next_one_thaws(stack: Stack) -> None:
    db, web = stack.app("db"), stack.app("web", labels={"backup.quiesce": "stop"}, stop_timeout=0)
    stack.app("users-own")
    stack.engine.pause(stack.user.full("users-own"))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, stack.journal.path, db.id, web.id],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "frozen\n"
        holder.send_signal(signal.SIGKILL)
    assert holder.returncode == -signal.SIGKILL
    assert (stack.state("db"), stack.state("web")) == (PAUSED, EXITED)
    assert set(recover(stack.journal, stack.engine, stack.emit)) == {db.name, web.name}
    assert (stack.state("db"), stack.state("web"), stack.state("users-own")) == (RUNNING, RUNNING, PAUSED)
    assert stack.engine.container(db.id) == db
    assert stack.journal.read() is None
    assert stack.events[0][0] == "recovered"


@pytest.mark.parametrize("network", ["bridge", "none", "container"])
def test_a_process_in_a_container_finds_the_container_by_what_its_kernel_says(
    request: pytest.FixtureRequest, stack: Stack, tmp_path: Path, network: str
) -> None:
    other = stack.user.run("other", labels={"backup.role": ""})
    mode = f"container:{other.id}" if network == "container" else network
    own = stack.user.run("backup", labels={"backup.role": "sidecar"}, network_mode=mode)
    client = stack.user.client
    for name in ("cgroup", "mountinfo"):
        told = client.exec_start(client.exec_create(own.id, ["cat", f"/proc/self/{name}"])["Id"])
        (tmp_path / name).write_bytes(told)
    if own.id not in (tmp_path / "cgroup").read_text() + (tmp_path / "mountinfo").read_text():
        # cgroup v2, and the files of the other's network: nothing that the kernel says inside names it.
        assert network == "container"
        request.applymarker(known_to_fail("E14"))
    inside = DockerEngine(client, proc=tmp_path)
    with fault():
        assert inside.this_container() == own
    assert inside.carries_us(own)
    assert not inside.carries_us(stack.app("db"))
    if network != "container":
        # With cgroup v2, or a private name space, the mounts alone must do.
        assert own_identifiers("0::/\n", (tmp_path / "mountinfo").read_text(), "") == [own.id]
