"""The dead man thaws when the sidecar cannot, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.engine.deadman import GRACE, READY, Watched, bury, stand_by
from sidecar.engine.journal import Intent, Journal
from sidecar.engine.recovery import thaw_owed
from sidecar.errors import EngineUnreachable
from sidecar.model import ContainerState, Quiesce
from tests.contract.fake_engine import FakeEngine

RUN = "run-1"
LEASE = 30.0


class Scene:
    """A sidecar that has frozen `db`, and a clock that moves only when somebody sleeps."""

    def __init__(self, directory: Path) -> None:
        self.engine = FakeEngine()
        self.journal = Journal(directory / "journal.json")
        self.sidecar = self.engine.run("backup", labels={"backup.role": "sidecar"})
        self.db = self.engine.run("db")
        self.time = 0.0
        self.said: list[str] = []
        self.then: dict[float, Callable[[], object]] = {}

    def freeze(self, run: str = RUN) -> None:
        intent = Intent(self.db.id, "db", Quiesce.PAUSE, self.db.started_at, self.db.pid)
        self.journal.begin(run=run, group="shop", frozen=[intent])
        self.engine.pause("db")

    def sleep(self, seconds: float) -> None:
        assert self.time < 1000, "the dead man never ends"
        self.time += seconds
        for moment in sorted(self.then):
            if moment <= self.time:
                self.then.pop(moment)()

    def stand_by(self) -> list[str]:
        watched = Watched(self.sidecar.id, self.sidecar.started_at, RUN)
        return list(
            stand_by(
                self.engine,
                self.journal,
                watched,
                lease=LEASE,
                say=self.said.append,
                clock=lambda: self.time,
                sleep=self.sleep,
            )
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_it_says_that_it_is_ready_before_it_looks(scene: Scene) -> None:
    scene.engine.remove("backup")
    scene.stand_by()
    assert scene.said[0] == READY


@pytest.mark.parametrize("death", ["kill", "remove", "restart"])
def test_it_thaws_within_a_second_when_the_sidecar_is_gone(scene: Scene, death: str) -> None:
    scene.freeze()
    thawed_at: list[float] = []
    scene.then = {5.0: lambda: getattr(scene.engine, death)("backup")}
    unpause = scene.engine.unpause

    def noting(identifier: str) -> bool:
        thawed_at.append(scene.time)
        return unpause(identifier)

    scene.engine.unpause = noting  # type: ignore[method-assign]
    assert scene.stand_by() == ["db"]
    assert scene.engine.state("db") is ContainerState.RUNNING
    assert 5.0 <= thawed_at[0] < 6.0


def test_a_freeze_that_outlives_its_lease_is_thawed_though_the_sidecar_seems_to_live(scene: Scene) -> None:
    scene.freeze()
    assert scene.stand_by() == ["db"]
    assert LEASE + GRACE <= scene.time < LEASE + GRACE + 10


def test_freezes_shorter_than_the_lease_are_left_alone_however_many(scene: Scene) -> None:
    def freeze() -> None:
        scene.freeze()

    def thaw() -> None:
        scene.engine.unpause("db")
        scene.journal.clear()

    for number in range(5):
        scene.then[20.0 * number + 1] = freeze
        scene.then[20.0 * number + 15] = thaw
    scene.then[110.0] = lambda: scene.engine.remove("backup")
    assert scene.stand_by() == []
    assert scene.engine.names("unpause") == ["db"] * 5  # the sidecar's own


def test_what_another_run_froze_is_not_its_to_thaw(scene: Scene) -> None:
    scene.freeze(run="run-2")
    scene.engine.restart("backup")
    assert scene.stand_by() == []
    assert scene.engine.state("db") is ContainerState.PAUSED


def test_a_container_that_the_user_paused_stays_paused(scene: Scene) -> None:
    scene.engine.run("other")
    scene.engine.pause("other")
    scene.freeze()
    scene.engine.kill("backup")
    assert scene.stand_by() == ["db"]
    assert scene.engine.state("other") is ContainerState.PAUSED


def test_a_damaged_journal_still_names_whom_to_thaw(scene: Scene) -> None:
    scene.freeze()
    scene.journal.path.write_bytes(scene.journal.path.read_bytes()[:-20])
    scene.engine.kill("backup")
    assert scene.stand_by() == ["db"]


def test_a_pause_that_lands_after_the_death_is_thawed_too(scene: Scene) -> None:
    intent = Intent(scene.db.id, "db", Quiesce.PAUSE, scene.db.started_at, scene.db.pid)
    scene.journal.begin(run=RUN, group="shop", frozen=[intent])
    scene.engine.kill("backup")
    scene.then = {1.0: lambda: scene.engine.pause("db")}
    assert scene.stand_by() == ["db"]
    assert scene.engine.state("db") is ContainerState.RUNNING


@pytest.mark.parametrize("seconds", [1.0, 4.0, 11.0])
def test_who_was_told_to_stop_and_takes_its_time_is_started_again(scene: Scene, seconds: float) -> None:
    """The engine kills it after ten seconds, whoever asked for that."""
    intent = Intent(scene.db.id, "db", Quiesce.STOP, scene.db.started_at, scene.db.pid)
    scene.journal.begin(run=RUN, group="shop", frozen=[intent])
    scene.engine.kill("backup")
    scene.then = {seconds: lambda: scene.engine.stop("db", timeout=10)}
    assert scene.stand_by() == ["db"]
    assert scene.engine.state("db") is ContainerState.RUNNING


def test_who_was_to_be_stopped_and_never_told_runs_on(scene: Scene) -> None:
    intent = Intent(scene.db.id, "db", Quiesce.STOP, scene.db.started_at, scene.db.pid)
    scene.journal.begin(run=RUN, group="shop", frozen=[intent])
    scene.engine.kill("backup")
    assert scene.stand_by() == []
    assert scene.engine.container("db").started_at == scene.db.started_at


@pytest.mark.parametrize("moment", [0.1, 0.25, 0.3, 1.0, 3.0])
def test_what_the_next_run_freezes_while_the_dead_man_of_the_last_one_still_looks_stays_frozen(
    scene: Scene, moment: float
) -> None:
    """The sidecar was killed, is back within a second, and freezes the same start of the same container again."""

    def next_run() -> None:
        scene.engine.unpause("db")
        scene.journal.clear()
        scene.freeze(run="run-2")

    scene.freeze()
    scene.engine.restart("backup")
    scene.then = {moment: next_run}
    scene.stand_by()
    assert scene.engine.state("db") is ContainerState.PAUSED


def test_what_the_next_run_freezes_between_a_look_and_the_thaw_stays_frozen_too(scene: Scene) -> None:
    def next_run() -> None:
        scene.journal.begin(run="run-2", group="shop", frozen=[])

    scene.freeze()
    scene.engine.restart("backup")
    scene.engine.meanwhile("container", "db", next_run)
    assert scene.stand_by() == []
    assert scene.engine.state("db") is ContainerState.PAUSED
    assert scene.engine.unfired == []


def test_what_the_next_run_freezes_between_the_look_at_the_journal_and_the_thaw_stays_frozen_too(scene: Scene) -> None:
    scene.engine.pause("db")
    intent = Intent(scene.db.id, "db", Quiesce.PAUSE, scene.db.started_at, scene.db.pid)
    scene.journal.begin(run="run-2", group="shop", frozen=[intent])
    assert thaw_owed(scene.engine, scene.journal, RUN, clock=lambda: scene.time, sleep=scene.sleep) == ()
    assert scene.engine.state("db") is ContainerState.PAUSED


def test_an_engine_that_is_away_for_a_while_is_waited_for(scene: Scene) -> None:
    scene.freeze()
    scene.engine.fail("container", "backup", EngineUnreachable("nothing answers"), times=8)
    scene.then = {1.0: lambda: scene.engine.kill("backup")}
    assert scene.stand_by() == ["db"]
    assert scene.engine.unfired == []


def test_the_journal_stays_for_the_sidecar_that_comes_back(scene: Scene) -> None:
    scene.freeze()
    scene.engine.kill("backup")
    scene.stand_by()
    assert scene.journal.read() is not None


def test_dead_men_that_were_never_started_are_buried_and_no_others(tmp_path: Path) -> None:
    engine = FakeEngine()
    own = engine.run("backup", labels={"backup.role": "sidecar"}, volumes={"backup-state": "/state"})
    dead_man = {"backup.role": "deadman"}
    engine.create("unborn", labels=dead_man, volumes={"backup-state": "/state"})
    engine.run("standing-by", labels=dead_man, volumes={"backup-state": "/state"})
    engine.create("of-another-sidecar", labels=dead_man, volumes={"other-state": "/state"})
    engine.create("not-ours", volumes={"backup-state": "/state"})
    bury(engine, own, "/state")
    assert {c.name for c in engine.containers()} == {"backup", "standing-by", "of-another-sidecar", "not-ours"}


def test_helpers_that_were_never_started_are_buried_by_their_name_and_no_others() -> None:
    engine = FakeEngine()
    own = engine.run("backup", labels={"backup.role": "sidecar"}, volumes={"backup-state": "/state"})
    helper = {"backup.role": "helper"}
    engine.create("backup-helper-0a1b2c", labels=helper, volumes={"shop_data": "/volume"})
    engine.run("backup-helper-3d4e5f", labels=helper, volumes={"shop_data": "/volume"})
    engine.create("backup-helper-helper-0a1b2c", labels=helper, volumes={"shop_data": "/volume"})  # of `backup-helper`
    engine.create("other-backup-helper-0a1b2c", labels=helper, volumes={"shop_data": "/volume"})
    engine.create("backup-helper-0000aa", volumes={"shop_data": "/volume"})  # the user's, who named it so
    bury(engine, own, "/state")
    assert {c.name for c in engine.containers()} == {
        "backup",
        "backup-helper-3d4e5f",
        "backup-helper-helper-0a1b2c",
        "other-backup-helper-0a1b2c",
        "backup-helper-0000aa",
    }


# --- post hooks ------------------------------------------------------------------------------------------------------


def owe_post_hook(scene: Scene, command: str) -> None:
    owed = {"id": scene.db.id, "name": "db", "started_at": scene.db.started_at, "command": command, "timeout": 60.0}
    scene.journal.owe("post_hooks", {"run": RUN, "group": "shop", "hooks": [owed]})


def test_it_runs_the_post_hooks_that_the_sidecar_owed_once_all_is_thawed(scene: Scene, tmp_path: Path) -> None:
    owe_post_hook(scene, f"touch {tmp_path}/ran")
    scene.freeze()
    scene.then = {5.0: lambda: scene.engine.kill("backup")}
    assert scene.stand_by() == ["db"]
    assert (tmp_path / "ran").exists()
    assert scene.engine.calls.index(("unpause", "db")) < scene.engine.calls.index(("execute", "db"))
    assert scene.said[-1] == "hook_finished: db: good"
    assert "post_hooks" in scene.journal.path.read_text()  # which is the sidecar's to write


def test_a_sidecar_that_dies_in_its_hooks_leaves_the_post_hooks_to_it(scene: Scene, tmp_path: Path) -> None:
    owe_post_hook(scene, f"touch {tmp_path}/ran")
    scene.then = {5.0: lambda: scene.engine.kill("backup")}
    assert scene.stand_by() == []
    assert (tmp_path / "ran").exists()


def test_hooks_that_take_longer_than_a_freeze_may_last_disturb_nobody(scene: Scene, tmp_path: Path) -> None:
    owe_post_hook(scene, f"touch {tmp_path}/ran")
    scene.then = {500.0: scene.journal.path.unlink, 501.0: lambda: scene.engine.remove("backup")}
    assert scene.stand_by() == []
    assert scene.time >= 501
    assert not (tmp_path / "ran").exists()


def test_time_in_hooks_does_not_put_off_the_end_of_a_lease(scene: Scene, tmp_path: Path) -> None:
    owe_post_hook(scene, f"touch {tmp_path}/ran")
    scene.then = {100.0: scene.freeze}
    assert scene.stand_by() == ["db"]
    assert 100 + LEASE + GRACE <= scene.time < 100 + LEASE + GRACE + 10


def test_an_engine_that_goes_away_ends_the_dead_man_with_a_sentence(scene: Scene, tmp_path: Path) -> None:
    owe_post_hook(scene, f"touch {tmp_path}/ran")
    scene.engine.kill("backup")
    scene.engine.fail("execute", "db", EngineUnreachable("nothing answers"))
    assert scene.stand_by() == []
    assert scene.said[-1] == "nothing answers"
    assert scene.engine.unfired == []
