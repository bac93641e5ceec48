"""One contract, two engines: Docker, and the one in memory that the fast tests of the jobs run on."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sidecar.engine.docker import connect
from sidecar.engine.evidence import disturbance
from sidecar.engine.port import OUTPUT_KEPT, Condition, Copied, Engine, Executed, Helper
from sidecar.errors import AlreadyPaused, ContainerGone, EngineError, HelperEnded, NotRunning
from sidecar.model import ContainerState, Mount, Quiesce
from tests.contract.docker_user import DockerUser
from tests.contract.fake_engine import FakeEngine
from tests.engines import Engines, choose, has_limits, kinds


@dataclass
class Rig:
    engine: Engine
    user: Any

    def full(self, name: str) -> str:
        return self.user.full(name) if isinstance(self.user, DockerUser) else name

    def state(self, name: str) -> ContainerState:
        return self.engine.container(self.full(name)).state


REAL = [pytest.param(kind, marks=pytest.mark.engine("both")) for kind in choose("both", kinds())]
LIMITING = [each for each in REAL if has_limits(str(each.values[0]))]
on_real_engines = pytest.mark.parametrize("rig", REAL, indirect=True)


on_those_with_limits = pytest.mark.parametrize("rig", ["memory", *LIMITING], indirect=True)


@pytest.fixture(params=["memory", *REAL])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "memory":
        fake = FakeEngine()
        fake.directory = tmp_path
        yield Rig(fake, fake)
        return
    engines: Engines = request.getfixturevalue("engines")
    with engines.on(request.param) as running:
        engine = connect(os.environ)
        user = DockerUser(engine, running.base_image)
        try:
            yield Rig(engine, user)
        finally:
            user.clean()


def test_an_engine_says_who_it_is(rig: Rig) -> None:
    identity = rig.engine.identity()
    assert identity.id
    assert identity.name
    assert identity.version
    assert identity.root.startswith("/")


def test_a_volume_is_listed_with_its_labels_and_where_its_data_is(rig: Rig) -> None:
    rig.user.add_volume("data", labels={"backup.group": "shop"})
    volume = next(volume for volume in rig.engine.volumes() if volume.name == rig.full("data"))
    assert volume.labels["backup.group"] == "shop"
    assert volume.driver == "local"
    assert volume.mountpoint == f"{rig.engine.identity().root}/volumes/{rig.full('data')}/_data"
    assert not volume.anonymous


def test_a_container_is_found_by_id_and_by_name_with_what_it_is_made_of(rig: Rig) -> None:
    made = rig.user.run(
        "app", labels={"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
        volumes={"data": "/data"}, binds={"/srv": "/host"}, stop_timeout=7,
    )  # fmt: skip
    by_name = rig.engine.container(rig.full("app"))
    assert by_name == rig.engine.container(made.id)
    assert (by_name.name, by_name.state) == (rig.full("app"), ContainerState.RUNNING)
    assert by_name.pid > 0
    assert (by_name.project, by_name.service, by_name.role) == ("shop", "web", "")
    assert rig.full("app") in by_name.addresses
    assert (by_name.stop_timeout, by_name.auto_remove) == (7, False)
    mounts = {mount.kind: mount for mount in by_name.mounts}
    assert (mounts["volume"].volume, mounts["volume"].target) == (rig.full("data"), "/data")
    assert (mounts["bind"].source, mounts["bind"].target, mounts["bind"].volume) == ("/srv", "/host", "")
    assert all(mount.writable for mount in by_name.mounts)


def test_what_a_container_may_only_read_is_told_apart(rig: Rig) -> None:
    made = rig.user.create("reader", volumes={"data": "/data"}, read_only=True)
    assert [mount.writable for mount in made.mounts] == [False]


def test_a_container_that_removes_itself_and_the_usual_grace_period_are_known(rig: Rig) -> None:
    made = rig.user.create("once", auto_remove=True)
    assert (made.auto_remove, made.stop_timeout) == (True, 10)


def test_all_containers_are_listed_or_those_whose_processes_exist(rig: Rig) -> None:
    for name in ("runs", "paused", "exited"):
        rig.user.run(name)
    rig.user.create("created")
    rig.engine.pause(rig.full("paused"))
    rig.user.exit("exited")
    ours = {rig.full(name) for name in ("runs", "paused", "exited", "created")}
    listed = [container.name for container in rig.engine.containers()]
    assert listed == sorted(listed)
    assert ours <= set(listed)
    running = {container.name for container in rig.engine.containers(running_only=True)}
    assert running & ours == {rig.full("runs"), rig.full("paused")}


@pytest.mark.parametrize("operation", ["container", "pause", "unpause", "start"])
def test_a_container_that_does_not_exist_is_gone(rig: Rig, operation: str) -> None:
    with pytest.raises(ContainerGone):
        getattr(rig.engine, operation)("0" * 64)


def test_stopping_a_container_that_does_not_exist_finds_it_gone(rig: Rig) -> None:
    with pytest.raises(ContainerGone):
        rig.engine.stop("0" * 64, timeout=1)


def test_a_paused_container_keeps_its_process_and_runs_on_after_the_thaw(rig: Rig) -> None:
    before = rig.user.run("app")
    rig.engine.pause(before.id)
    paused = rig.engine.container(before.id)
    assert (paused.state, paused.pid, paused.started_at) == (ContainerState.PAUSED, before.pid, before.started_at)
    assert rig.engine.unpause(before.id) is True
    assert rig.engine.container(before.id) == before


def test_a_container_that_is_paused_already_is_told_apart_from_one_that_we_paused(rig: Rig) -> None:
    rig.user.run("app")
    rig.engine.pause(rig.full("app"))
    with pytest.raises(AlreadyPaused):
        rig.engine.pause(rig.full("app"))


def test_what_does_not_run_cannot_be_paused(rig: Rig) -> None:
    rig.user.create("app")
    with pytest.raises(NotRunning):
        rig.engine.pause(rig.full("app"))


def test_thawing_what_is_not_paused_changes_nothing_and_says_so(rig: Rig) -> None:
    before = rig.user.run("app")
    rig.user.create("created")
    assert rig.engine.unpause(before.id) is False
    assert rig.engine.unpause(rig.full("created")) is False
    assert rig.engine.container(before.id) == before


def test_what_has_been_stopped_is_not_listed_as_running_a_moment_later(rig: Rig) -> None:
    app = rig.user.run("app")
    for _ in range(10):  # Docker 26.1's own list was stale in 9 of 10
        assert rig.engine.stop(app.id, timeout=0)
        assert app.id not in {each.id for each in rig.engine.containers(running_only=True)}
        assert rig.engine.start(app.id)


def test_stop_and_start_say_whether_there_was_something_to_do(rig: Rig) -> None:
    before = rig.user.run("app")
    assert rig.engine.stop(before.id, timeout=0) is True
    stopped = rig.engine.container(before.id)
    assert (stopped.state, stopped.pid, stopped.started_at) == (ContainerState.EXITED, 0, before.started_at)
    assert rig.engine.stop(before.id, timeout=0) is False
    assert rig.engine.start(before.id) is True
    started = rig.engine.container(before.id)
    assert started.state is ContainerState.RUNNING
    assert started.started_at != before.started_at
    assert rig.engine.start(before.id) is False


def test_restarting_a_paused_container_lets_it_run_anew(rig: Rig) -> None:
    before = rig.user.run("app")
    rig.engine.pause(before.id)
    rig.user.restart("app")
    after = rig.engine.container(before.id)
    assert after.state is ContainerState.RUNNING
    assert (after.id, after.started_at != before.started_at, after.pid != before.pid) == (before.id, True, True)


def test_a_signal_to_a_paused_container_resumes_the_same_process(rig: Rig) -> None:
    before = rig.user.run("app")
    rig.engine.pause(before.id)
    with rig.engine.watch() as watch:
        rig.user.kill("app", "TERM")
        # The engine sees the resumption a moment after it happened.
        after = before
        for _ in range(1000):
            after = rig.engine.container(before.id)
            if after.state is not ContainerState.PAUSED:
                break
        assert after == before
        assert "unpause" in [event.action for event in watch.events() if event.container == before.id]


def test_a_watch_sees_what_happens_after_it_began_in_order_and_nothing_before(rig: Rig) -> None:
    app = rig.user.run("app", labels={"backup.role": "helper"})
    rig.engine.pause(app.id)
    rig.engine.unpause(app.id)
    with rig.engine.watch() as watch:
        assert [event for event in watch.events() if event.container == app.id] == []
        rig.engine.pause(app.id)
        first = [event for event in watch.events() if event.container == app.id]
        assert [(event.action, event.name, event.role) for event in first] == [("pause", app.name, "helper")]
        rig.engine.unpause(app.id)
        rig.engine.stop(app.id, timeout=0)
        rig.engine.start(app.id)
        actions = [event.action for event in watch.events() if event.container == app.id]
        first, second, *end, last = [action for action in actions if action != "kill"]
        assert (first, second, last) == ("pause", "unpause", "start")
        assert sorted(end) == ["die", "stop"]  # 20.10 tells of the death first, 26.1 of the stop


def test_a_watch_knows_which_volumes_a_container_had_that_is_gone(rig: Rig) -> None:
    rig.user.add_volume("logs")
    with rig.engine.watch() as watch:
        once = rig.user.run("once", volumes={"data": "/data"}, binds={"/srv": "/host"})
        rig.user.remove("once")
        mounted = [event.mounted for event in watch.events() if event.container == once.id and event.mounted]
    assert mounted == [Mount("volume", "", "/data", writable=True, volume=rig.full("data"))]


@pytest.mark.parametrize(
    ("act", "sign"),
    [("restart", "start"), ("kill", "die"), ("remove", "destroy"), ("copy_into", "extract-to-dir")],
)
def test_what_a_user_does_to_a_paused_container_disturbs_the_freeze(rig: Rig, act: str, sign: str) -> None:
    app = rig.user.run("app", volumes={"data": "/tmp"})
    with rig.engine.watch() as watch:
        rig.engine.pause(app.id)
        getattr(rig.user, act)("app")
        try:
            rig.engine.unpause(app.id)
        except ContainerGone:
            assert act == "remove"
        events = watch.events()
    assert sign in [event.action for event in events if event.container == app.id]
    assert disturbance(events, app.id, Quiesce.PAUSE)


@pytest.mark.parametrize("action", [Quiesce.PAUSE, Quiesce.STOP])
def test_our_own_freeze_and_thaw_disturb_nothing(rig: Rig, action: Quiesce) -> None:
    app = rig.user.run("app")
    with rig.engine.watch() as watch:
        if action is Quiesce.PAUSE:
            rig.engine.pause(app.id)
            frozen_at = time.monotonic()
            held = time.monotonic() - frozen_at
            rig.engine.unpause(app.id)
        else:
            rig.engine.stop(app.id, timeout=0)
            held = 0.0
            rig.engine.start(app.id)
        assert disturbance(watch.events(), app.id, action, held) == []


def test_more_events_than_the_engine_keeps_are_all_seen_or_refused(rig: Rig) -> None:
    app = rig.user.run("app0")
    with rig.engine.watch() as watch:
        for number in range(300):
            rig.user.rename(f"app{number}", f"app{number + 1}")
        try:
            seen = [event for event in watch.events() if event.container == app.id]
        except EngineError:
            return
        assert len(seen) == 300


def test_five_containers_are_paused_at_once(rig: Rig) -> None:
    names = [rig.user.run(f"app{number}").name for number in range(5)]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(rig.engine.pause, names))
        assert {rig.engine.container(name).state for name in names} == {ContainerState.PAUSED}
        assert list(pool.map(rig.engine.unpause, names)) == [True] * 5


# --- commands --------------------------------------------------------------------------------------------------------


def patient(seconds: float = 60.0) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


def shell(rig: Rig, name: str, script: str, waiting: Callable[[], bool] | None = None) -> Executed:
    return rig.engine.execute(rig.full(name), ["sh", "-c", script], waiting=waiting or patient())


def test_a_command_says_what_it_wrote_and_how_it_ended(rig: Rig) -> None:
    rig.user.run("app")
    assert shell(rig, "app", "echo good") == Executed(0, "good\n")
    assert shell(rig, "app", "echo bad; echo worse >&2; exit 3") in (
        Executed(3, "bad\nworse\n"),
        Executed(3, "worse\nbad\n"),  # the engine reads two pipes
    )
    assert shell(rig, "app", "exit 0") == Executed(0, "")


def test_of_what_a_command_writes_the_end_is_kept(rig: Rig) -> None:
    rig.user.run("app")
    done = shell(rig, "app", "i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); echo line $i; done")
    whole = "".join(f"line {number}\n" for number in range(1, 3001))
    assert done == Executed(0, whole[-OUTPUT_KEPT:])


def test_a_command_that_is_not_waited_for_any_more_goes_on(rig: Rig) -> None:
    rig.user.run("app")
    mark = f"/tmp/vbs-{uuid.uuid4().hex}"

    def there(path: str) -> bool:
        return shell(rig, "app", f"test -e {path}").code == 0

    script = f"echo begun; touch {mark}; while [ -e {mark} ]; do sleep 0.02; done; echo on; mkdir {mark}.ended"
    given_up = shell(rig, "app", script, lambda: not there(mark))
    assert given_up == Executed(None, "begun\n")
    assert there(mark)
    shell(rig, "app", f"rm {mark}")
    until = time.monotonic() + 60
    while not there(f"{mark}.ended"):
        assert time.monotonic() < until
    shell(rig, "app", f"rmdir {mark}.ended")


@pytest.mark.parametrize("state", ["created", "paused", "exited"])
def test_a_command_needs_a_container_that_runs(rig: Rig, state: str) -> None:
    rig.user.create("app") if state == "created" else rig.user.run("app")
    if state == "paused":
        rig.engine.pause(rig.full("app"))
    if state == "exited":
        rig.user.exit("app")
    with pytest.raises(NotRunning):
        shell(rig, "app", "true")


def test_a_command_in_a_container_that_does_not_exist_finds_it_gone(rig: Rig) -> None:
    with pytest.raises(ContainerGone):
        rig.engine.execute("0" * 64, ["true"], waiting=patient())


@pytest.mark.parametrize("end", ["kill", "remove"])
def test_a_command_ends_with_its_container_and_is_no_success(rig: Rig, end: str) -> None:
    rig.user.run("app")
    ending: list[Thread] = []

    def end_it() -> bool:
        if not ending:
            ending.append(Thread(target=lambda: getattr(rig.user, end)("app")))
            ending[0].start()
        return True

    try:
        done = shell(rig, "app", "sleep 60", end_it)
    except ContainerGone:
        assert end == "remove"
    else:
        assert done.code not in (None, 0)
    ending[0].join()


def test_what_a_command_leaves_running_is_not_waited_for(rig: Rig) -> None:
    rig.user.run("app")
    began = time.monotonic()
    assert shell(rig, "app", "sleep 60 & echo left").code == 0
    assert time.monotonic() - began < 30


def test_an_ordinary_container_does_not_carry_our_connection(rig: Rig) -> None:
    assert not rig.engine.carries_us(rig.user.run("app"))


def test_outside_of_a_container_there_is_no_container_of_ours(rig: Rig) -> None:
    assert rig.engine.this_container() is None


def test_a_container_launched_beside_another_speaks_and_can_be_removed(rig: Rig) -> None:
    like = rig.user.run("like", volumes={"kept": "/kept", "other": "/other"})
    command = ["sh", "-c", "echo standing by; touch /kept/x /x; ls -d /other; sleep 60"]
    launched = rig.engine.launch(rig.engine.container(like.id), role="deadman", command=command, keep=("/kept",))
    try:
        for _ in range(500):
            if "standing by" in (said := rig.engine.output(launched)):
                break
            time.sleep(0.02)
        assert said.splitlines() == ["standing by"]
        found = rig.engine.container(launched)
        assert (found.role, found.auto_remove, found.running) == ("deadman", True, True)
    finally:
        rig.engine.remove(launched)
    with pytest.raises(ContainerGone):
        rig.engine.container(launched)
    rig.engine.remove(launched)


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.fixture
def guards(rig: Rig) -> Iterator[Callable[..., str]]:
    """Makes guards, which are removed afterwards."""
    made: list[str] = []

    def make(name: str, *volumes: str, **labels: str) -> str:
        like = rig.engine.container(rig.user.run(f"like-{name}").id)
        given = {"backup.role": "guard", "backup.guard-of": "state"}
        made.append(rig.engine.create_guard(like, rig.full(name), volumes=volumes, labels=given, made=labels))
        return made[-1]

    try:
        yield make
    finally:
        for identifier in made:
            rig.engine.remove(identifier)


def test_a_guard_keeps_its_volumes_from_being_removed_until_it_is_gone(
    rig: Rig, volume: str, guards: Callable[..., str]
) -> None:
    identifier = guards("guard", volume)
    assert rig.engine.container(identifier).state is ContainerState.CREATED
    assert rig.engine.start(identifier)
    found = rig.engine.container(identifier)
    assert (found.name, found.role, found.labels["backup.guard-of"]) == (rig.full("guard"), "guard", "state")
    assert (found.running, found.auto_remove) == (True, False)
    assert found.image_id == rig.engine.container(rig.full("like-guard")).image_id
    assert [(mount.kind, mount.volume, mount.writable) for mount in found.mounts] == [("volume", volume, False)]
    assert not rig.engine.remove_volume(volume)
    rig.engine.remove(identifier)
    assert rig.engine.remove_volume(volume)


def test_a_volume_that_a_guards_mount_has_made_is_told_apart_from_one_that_was_there(
    rig: Rig, volume: str, guards: Callable[..., str]
) -> None:
    missing = f"{volume}-missing"
    identifier = guards("guard", volume, missing, mark="this")
    try:
        labels = {each.name: dict(each.labels) for each in rig.engine.volumes()}
        assert (labels[volume], labels[missing]) == ({"made": "here"}, {"mark": "this"})
    finally:
        rig.engine.remove(identifier)
        assert rig.engine.remove_volume(missing)


def test_a_container_is_given_another_name_unless_somebody_has_it(rig: Rig, guards: Callable[..., str]) -> None:
    identifier = guards("guard-next")
    rig.user.run("taken")
    rig.engine.rename(identifier, rig.full("guard"))
    assert rig.engine.container(rig.full("guard")).id == identifier
    with pytest.raises(EngineError):
        rig.engine.rename(identifier, rig.full("taken"))
    with pytest.raises(ContainerGone):
        rig.engine.rename("0" * 64, rig.full("other"))


# --- helpers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def volume(rig: Rig) -> Iterator[str]:
    """A volume that the engine's port has made."""
    name = f"vbs-test-{uuid.uuid4().hex[:8]}"
    rig.engine.create_volume(name, labels={"made": "here"})
    try:
        yield name
    finally:
        for _ in range(500):
            if rig.engine.remove_volume(name):
                break
            time.sleep(0.02)
        else:
            pytest.fail("a container keeps the volume")


def test_a_volume_that_is_made_has_its_labels_and_making_it_again_changes_nothing(rig: Rig, volume: str) -> None:
    rig.engine.create_volume(volume, labels={"made": "again"})
    (found,) = [each for each in rig.engine.volumes() if each.name == volume]
    assert (found.driver, dict(found.labels)) == ("local", {"made": "here"})


def test_a_volume_is_made_with_a_driver_and_its_options(rig: Rig) -> None:
    name, options = f"vbs-test-{uuid.uuid4().hex[:8]}", {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    rig.engine.create_volume(name, labels={}, driver="local", options=options)
    try:
        (found,) = [each for each in rig.engine.volumes() if each.name == name]
    finally:
        assert rig.engine.remove_volume(name)
    assert (found.driver, dict(found.options)) == ("local", options)


def test_a_volume_that_a_container_has_is_not_removed_and_one_that_is_gone_is(rig: Rig, volume: str) -> None:
    like = rig.user.run("like")
    with rig.engine.help_with(rig.engine.container(like.id), volume, command=["sh", "-c", "read _"], target="/there"):
        assert not rig.engine.remove_volume(volume)
    assert rig.engine.remove_volume(f"{volume}-that-never-was")


def test_a_helper_takes_bytes_writes_them_into_its_volume_and_answers(rig: Rig, volume: str) -> None:
    like = rig.engine.container(rig.user.run("like").id)
    script = "echo ready; head -c 3000000 > /there/got; read word; echo heard $word; cat > /dev/null; echo ended"
    with rig.engine.help_with(like, volume, command=["sh", "-c", script], target="/there") as helper:
        assert helper.hear(30) == b"ready"
        assert helper.hear(0.05) is None
        for _ in range(3):
            helper.send(b"x" * 1_000_000)
        helper.send(b"go\n")
        assert helper.hear(30) == b"heard go"
        assert [c.role for c in rig.engine.containers() if any(m.volume == volume for m in c.mounts)] == ["helper"]
        helper.end()
        assert helper.hear(30) == b"ended"
        with pytest.raises(HelperEnded):
            helper.hear(30)
    with rig.engine.help_with(like, volume, command=["sh", "-c", "wc -c < /there/got"], target="/there") as helper:
        assert helper.hear(30) == b"3000000"


def test_a_helper_that_has_ended_takes_nothing_more(rig: Rig, volume: str) -> None:
    like = rig.engine.container(rig.user.run("like").id)
    with rig.engine.help_with(like, volume, command=["sh", "-c", "echo last words"], target="/there") as helper:
        with pytest.raises(HelperEnded):
            _send_for_ever(helper)
        assert helper.hear(30) == b"last words"


def _send_for_ever(helper: Helper) -> None:
    for _ in range(1000):
        helper.send(b"x" * 100_000)


def test_a_helper_ends_when_its_block_is_left(rig: Rig, volume: str) -> None:
    like = rig.engine.container(rig.user.run("like").id)
    command = ["sh", "-c", "echo ready; cat > /dev/null; echo gone > /there/end"]
    with rig.engine.help_with(like, volume, command=command, target="/there") as helper:
        assert helper.hear(30) == b"ready"
    for _ in range(500):
        if not any(m.volume == volume for c in rig.engine.containers() for m in c.mounts):
            break
        time.sleep(0.02)
    with rig.engine.help_with(like, volume, command=["sh", "-c", "cat /there/end"], target="/there") as helper:
        assert helper.hear(30) == b"gone"


# --- copies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(rig: Rig) -> Iterator[Callable[..., Copied]]:
    """Makes copies, which are removed afterwards."""
    made: list[Copied] = []

    def make(model: str, *mounts: Mount, memory: int = 1 << 28) -> Copied:
        labels = {"backup.role": "drill", "backup.drill-of": "state"}
        name = rig.full(f"copy-{len(made)}")
        made.append(rig.engine.copy(rig.full(model), name, mounts=mounts, labels=labels, memory=memory))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            rig.engine.remove(each.id)


def until_well(rig: Rig, identifier: str) -> Condition:
    for _ in range(1500):
        if (condition := rig.engine.condition(identifier)).health != "starting":
            break
        time.sleep(0.02)
    return condition


def test_a_health_check_is_known(rig: Rig) -> None:
    assert rig.user.create("checked", healthcheck=["true"]).health_check
    assert not rig.user.create("plain").health_check


@on_those_with_limits
def test_a_memory_limit_is_known(rig: Rig) -> None:
    assert rig.user.create("limited", memory=1 << 27).memory == 1 << 27
    assert rig.user.create("plain").memory == 0


def test_a_copy_is_ours_has_the_mounts_it_is_given_and_no_network_and_is_not_started(
    rig: Rig, volume: str, copy: Callable[..., Copied]
) -> None:
    model = rig.user.run("app", labels={"com.docker.compose.project": "shop"}, volumes={"data": "/data"})
    bind = Mount("bind", "/srv", "/host", writable=True)
    made = copy("app", Mount("volume", "", "/data", writable=True, volume=volume), bind)
    found = rig.engine.container(made.id)
    assert (found.role, found.labels["backup.drill-of"], found.project) == ("drill", "state", "")
    assert (found.state, found.network, found.auto_remove) == (ContainerState.CREATED, "none", False)
    assert found.image_id == model.image_id
    assert [(m.target, m.volume or m.source, m.writable) for m in found.mounts] == [
        ("/data", volume, True),
        ("/host", "/srv", False),
    ]
    assert made.withheld == ()
    assert rig.engine.start(made.id)
    assert rig.engine.condition(made.id) == Condition(running=True)
    assert rig.engine.container(model.id) == model


@on_those_with_limits
def test_a_copy_has_the_limit_that_it_is_given_or_that_of_its_model_where_that_is_less(
    rig: Rig, copy: Callable[..., Copied]
) -> None:
    rig.user.run("plain")
    assert rig.engine.container(copy("plain").id).memory == 1 << 28
    rig.user.run("app", memory=1 << 27)
    assert rig.engine.container(copy("app").id).memory == 1 << 27


def test_a_copys_health_check_is_asked_soon_however_seldom_its_models_is(rig: Rig, copy: Callable[..., Copied]) -> None:
    rig.user.run("app", healthcheck=["true"])
    made = copy("app")
    rig.engine.start(made.id)
    assert until_well(rig, made.id).health == "healthy"


def test_the_copy_of_a_container_that_is_gone_finds_it_gone(rig: Rig, copy: Callable[..., Copied]) -> None:
    with pytest.raises(ContainerGone):
        copy("never-was")
    for ask in (rig.engine.condition, rig.engine.last_words):
        with pytest.raises(ContainerGone):
            ask("0" * 64)


def test_a_container_that_has_ended_says_so(rig: Rig) -> None:
    app = rig.user.run("app")
    rig.user.exit("app")
    assert not rig.engine.condition(app.id).running
    assert rig.engine.condition(app.id).code is not None


@on_real_engines
def test_a_copy_runs_as_its_model_does_and_its_secrets_are_blotted_out(rig: Rig, copy: Callable[..., Copied]) -> None:
    script = (
        "trap 'exit 7' TERM; echo user $(id -u) $MODE $DB_PASSWORD >&2; echo nets $(ls /sys/class/net); sleep 60 & wait"
    )
    environment = {"MODE": "quick", "DB_PASSWORD": "hunter2hunter2"}
    rig.user.run(
        "app", command=["sh", "-c", script], environment=environment, user="1234", cap_add=["SYS_ADMIN", "IPC_LOCK"],
        privileged=True, pid_mode="host", shm_size=1 << 20, tmpfs={"/scratch": "size=1m"},
    )  # fmt: skip
    made = copy("app")
    rig.engine.start(made.id)
    for _ in range(500):
        if len((said := rig.engine.last_words(made.id)).splitlines()) == 2:
            break
        time.sleep(0.02)
    assert sorted(made.blotted(said).splitlines()) == ["nets lo", "user 1234 quick …"]
    assert set(made.withheld) == {"privileged", "capability SYS_ADMIN", "the host's processes"}
    looked = rig.engine.execute(made.id, ["sh", "-c", "ls -d /scratch /dev/mem; df -k /dev/shm"], waiting=patient())
    assert "1024" in looked.output
    assert "cannot access '/dev/mem'" in looked.output
    rig.engine.stop(made.id, timeout=10)
    assert rig.engine.condition(made.id) == Condition(running=False, code=7)
    assert rig.engine.container(made.id).id  # it stays, so that it can be asked


@pytest.mark.parametrize("rig", LIMITING, indirect=True)
def test_a_copy_that_wants_more_memory_than_its_limit_is_ended_and_that_is_known(
    rig: Rig, copy: Callable[..., Copied]
) -> None:
    greedy = ["python3", "-c", "x = bytearray(b'x' * (200 << 20)); input()"]
    rig.user.create("app", command=greedy)
    made = copy("app", memory=32 << 20)
    rig.engine.start(made.id)
    for _ in range(1500):
        if not (condition := rig.engine.condition(made.id)).running:
            break
        time.sleep(0.02)
    assert (condition.running, condition.out_of_memory) == (False, True)
