"""Commands around a freeze: in which order, what their failures mean, and that what was begun is finished."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.engine import hooks
from sidecar.engine.freeze import freeze
from sidecar.engine.hooks import finish, hooked
from sidecar.engine.journal import Intent, Journal
from sidecar.engine.port import Executed
from sidecar.engine.recovery import recover
from sidecar.errors import (
    EngineDenied,
    EngineUnreachable,
    FreezeFailed,
    HookFailed,
    Interrupted,
    JournalUnreadable,
    JournalUnwritable,
    SidecarError,
    ThawFailed,
)
from sidecar.model import Container, ContainerState, Hooks, Quiesce
from tests.contract.fake_engine import FakeEngine


class Killed(BaseException):
    """The process is gone: nothing that it would have done happens any more."""


class Mortal(FakeEngine):
    """An engine whose client may be killed just before or just after a command, and then asks for nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = False
        self.dies_before = self.dies_after = ""

    def execute(self, identifier: str, command: Sequence[str], *, waiting: Callable[[], bool]) -> Executed:
        self._live(self.dies_before, command)
        done = super().execute(identifier, command, waiting=waiting)
        self._live(self.dies_after, command)
        return done

    def container(self, identifier: str, **options: Any) -> Container:
        self._live()
        return super().container(identifier, **options)

    def _live(self, text: str = "", command: Sequence[str] = ()) -> None:
        self.dead = self.dead or (bool(text) and text in command[-1])
        if self.dead:
            raise Killed


class Bench:
    """An engine, a journal, and a diary that every hook writes its name into."""

    def __init__(self, directory: Path) -> None:
        self.engine = Mortal()
        self.journal = Journal(directory / "journal.json")
        self.path = directory / "diary"
        self.cancelled = threading.Event()
        self.events: list[tuple[str, int | None, dict[str, Any]]] = []
        self.complaints: list[SidecarError] = []
        self.hooks: dict[str, Hooks] = {}
        self.quiesce: dict[str, Quiesce] = {}

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        json.dumps(fields)
        self.events.append((name, level, fields))

    def app(
        self, name: str, *, pre: str = "", post: str = "", depends_on: str = "", quiesce: str = "pause", **options: Any
    ) -> Container:
        """A container of the project `shop`. Its hooks note `NAME pre` and `NAME post`, and do what is given."""
        labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": name}
        if depends_on:
            labels["com.docker.compose.depends_on"] = f"{depends_on}:service_started:false"
        self.hooks[name] = Hooks(
            f"echo {name} pre >> {self.path}; {pre}", f"echo {name} post >> {self.path}; {post}", **options
        )
        self.quiesce[name] = Quiesce(quiesce)
        return self.engine.run(name, labels=labels, volumes={"data": "/data"})

    def hooked(self, *containers: Container, run: str = "run-1") -> AbstractContextManager[None]:
        return hooked(
            self.engine,
            self.journal,
            containers or self.engine.containers(),
            hooks=lambda container: self.hooks[container.name],
            quiesce=lambda container: self.quiesce[container.name],
            run=run,
            group="shop",
            cancelled=self.cancelled,
            emit=self.emit,
            complain=self.complaints.append,
            sleep=lambda _: None,
        )

    def freeze(self) -> AbstractContextManager[Any]:
        return freeze(
            self.engine,
            self.journal,
            self.engine.containers(),
            run="run-1",
            group="shop",
            budget=30.0,
            cancelled=self.cancelled,
            emit=self.emit,
            quiesce=lambda container: self.quiesce[container.name],
        )

    def leave_frozen(self, container: Container) -> None:
        """As the freeze does, which then comes to no thaw."""
        intent = Intent(container.id, container.name, Quiesce.PAUSE, container.started_at, container.pid)
        self.journal.begin(run="run-1", group="shop", frozen=[intent])
        self.engine.pause(container.id)

    def note(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text + "\n")

    def come_back(self) -> None:
        """A new process, as the sidecar does at its start."""
        self.engine.dead = False
        self.engine.dies_before = self.engine.dies_after = ""
        recover(self.journal, self.engine, self.emit, sleep=lambda _: None)
        finish(self.engine, self.journal, self.emit)

    @property
    def diary(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    @property
    def owed(self) -> list[str]:
        """The containers whose post hooks the journal names."""
        if not self.journal.path.exists():
            return []
        return [each["name"] for each in json.loads(self.journal.path.read_text())["post_hooks"]["hooks"]]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, _, fields in self.events if name == event]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- in good days ----------------------------------------------------------------------------------------------------


def test_pre_hooks_run_clients_before_servers_and_post_hooks_the_other_way_round(bench: Bench) -> None:
    bench.app("db")
    bench.app("web", depends_on="db")
    with bench.hooked():
        bench.note("frozen")
    assert bench.diary == ["web pre", "db pre", "frozen", "db post", "web post"]
    assert bench.complaints == []
    assert not bench.journal.path.exists()


def test_nothing_is_frozen_while_a_hook_runs(bench: Bench) -> None:
    bench.app("db")
    with bench.hooked(), bench.freeze():
        pass
    order = [operation for operation, _ in bench.engine.calls if operation in ("execute", "pause", "unpause")]
    assert order == ["execute", "pause", "unpause", "execute"]


def test_the_freeze_does_not_take_the_run_s_own_post_hooks_for_those_of_a_killed_one(bench: Bench) -> None:
    bench.app("db")
    with bench.hooked(), bench.freeze():
        assert bench.diary == ["db pre"]
        assert bench.owed == ["db"]
    assert bench.diary == ["db pre", "db post"]


def test_all_post_hooks_are_on_disk_before_the_first_pre_hook_runs(bench: Bench) -> None:
    bench.app("db")
    bench.app("web", depends_on="db", pre=f"cat {bench.journal.path}")
    with bench.hooked():
        pass
    document = json.loads(bench.of("hook_finished")[0]["output"])
    owed = document["post_hooks"]
    assert [each["name"] for each in owed["hooks"]] == ["db", "web"]
    assert (owed["run"], owed["group"], document["frozen"]) == ("run-1", "shop", [])


def test_without_hooks_nothing_is_asked_written_or_said(bench: Bench) -> None:
    db = bench.app("db")
    bench.hooks["db"] = Hooks()
    with bench.hooked(db):
        assert not bench.journal.path.exists()
    assert bench.engine.calls == []
    assert bench.events == []


def test_a_pre_hook_alone_owes_nothing(bench: Bench) -> None:
    bench.app("db")
    bench.hooks["db"] = Hooks(pre="true")
    with bench.hooked():
        assert not bench.journal.path.exists()
    assert [fields["hook"] for fields in bench.of("hook_finished")] == ["pre"]


def test_the_log_has_what_a_hook_wrote_and_how_it_ended(bench: Bench) -> None:
    bench.app("db", pre="echo dumped 3 tables")
    with bench.hooked():
        pass
    name, level, fields = bench.events[0]
    assert (name, level) == ("hook_finished", None)
    assert fields.pop("duration_ms") >= 0
    assert fields == {
        "group": "shop", "container": "db", "hook": "pre", "command": bench.hooks["db"].pre, "exit_code": 0,
        "output": "dumped 3 tables\n", "error": None, "hint": None,
    }  # fmt: skip


@pytest.mark.parametrize("state", ["exited", "paused"])
def test_what_does_not_run_has_no_hooks_and_owes_none(bench: Bench, state: str) -> None:
    bench.app("db")
    bench.engine.exit("db") if state == "exited" else bench.engine.pause("db")
    with bench.hooked():
        assert bench.owed == []
    assert bench.diary == []
    assert [(fields["hook"], fields["error"]) for fields in bench.of("hook_skipped")] == [("pre", f"db is {state}")]


def test_a_dependent_that_vanished_since_it_was_planned_is_passed_over(bench: Bench) -> None:
    gone, db = bench.app("gone"), bench.app("db")
    bench.engine.remove("gone")
    with bench.hooked(gone, db):
        pass
    assert bench.diary == ["db pre", "db post"]


def test_a_container_that_we_stop_ourselves_has_its_post_hook_run_in_its_new_start(bench: Bench) -> None:
    bench.app("db", quiesce="stop")
    with bench.hooked(), bench.freeze():
        assert bench.engine.state("db") is ContainerState.EXITED
    assert bench.diary == ["db pre", "db post"]
    assert bench.complaints == []


# --- a pre hook that fails -------------------------------------------------------------------------------------------


def test_a_pre_hook_that_fails_ends_it_before_anything_is_frozen_and_all_post_hooks_run(bench: Bench) -> None:
    bench.app("db", pre="echo no space left; exit 3")
    bench.app("api")
    bench.app("web", depends_on="db")
    with pytest.raises(HookFailed) as caught, bench.hooked():
        pytest.fail("frozen")
    assert caught.value.message == "the pre hook of db ended with exit code 3: no space left"
    assert caught.value.hint
    assert bench.diary == ["api pre", "web pre", "db pre", "db post", "web post", "api post"]
    assert bench.complaints == []
    assert not bench.journal.path.exists()
    failed = [(level, fields["container"]) for _, level, fields in bench.events if fields["error"]]
    assert failed == [(logging.ERROR, "db")]


def test_a_pre_hook_that_may_fail_is_complained_about_and_the_rest_goes_on(bench: Bench) -> None:
    bench.app("db", pre="exit 3", abort=False)
    with bench.hooked():
        bench.note("frozen")
    assert bench.diary == ["db pre", "frozen", "db post"]
    assert [error.message for error in bench.complaints] == ["the pre hook of db ended with exit code 3"]
    assert [(level, fields["exit_code"]) for _, level, fields in bench.events] == [(logging.WARNING, 3), (None, 0)]


@pytest.mark.parametrize("abort", [True, False])
def test_a_pre_hook_that_takes_too_long_goes_on_in_its_container_and_is_said_to(bench: Bench, abort: bool) -> None:
    bench.app("db", pre="echo begun; sleep 60", timeout=0.3, abort=abort)
    with suppress(HookFailed), bench.hooked():
        assert not abort
    (event, _) = bench.of("hook_finished")
    assert event["error"].startswith("the pre hook of db did not end within 0.3 s")
    assert "goes on running there" in event["error"]
    assert "backup.hook-timeout" in event["hint"]
    assert (event["exit_code"], event["output"]) == (None, "begun\n")
    assert len(bench.complaints) == (0 if abort else 1)
    assert bench.diary == ["db pre", "db post"]
    bench.engine.kill("db")


def test_a_pre_hook_that_the_engine_does_not_let_run_is_a_failure_with_its_hint(bench: Bench) -> None:
    bench.app("db")
    bench.engine.fail("execute", "db", EngineDenied("POST exec is not permitted", hint="let the proxy pass it"))
    with pytest.raises(HookFailed, match="could not be run: POST exec is not permitted") as caught, bench.hooked():
        pytest.fail("frozen")
    assert caught.value.hint == "let the proxy pass it"
    assert bench.diary == ["db post"]
    assert bench.engine.unfired == []


def test_without_a_journal_no_hook_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.journal = Journal(tmp_path / "missing" / "journal.json")
    bench.app("db")
    with pytest.raises(JournalUnwritable), bench.hooked():
        pytest.fail("frozen")
    assert bench.diary == []


# --- post hooks run whatever happens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [FreezeFailed("db cannot be frozen"), ValueError("a bug"), KeyboardInterrupt()])
def test_post_hooks_run_however_the_block_ends_and_its_own_error_is_the_one_that_counts(
    bench: Bench, error: BaseException
) -> None:
    bench.app("db", post="exit 1")
    with pytest.raises(type(error)), bench.hooked():
        raise error
    assert bench.diary == ["db pre", "db post"]
    assert [type(each) for each in bench.complaints] == [HookFailed]


def test_a_post_hook_that_fails_is_complained_about_and_is_done(bench: Bench) -> None:
    bench.app("db", post="echo what; exit 1")
    bench.app("web")
    with bench.hooked():
        pass
    assert [error.message for error in bench.complaints] == ["the post hook of db ended with exit code 1: what"]
    assert bench.diary[2:] == ["web post", "db post"]
    assert [level for name, level, fields in bench.events if fields["error"]] == [logging.ERROR]
    assert not bench.journal.path.exists()


def test_a_post_hook_of_a_container_that_was_restarted_or_removed_since_does_not_run(bench: Bench) -> None:
    for name in ("gone", "restarted", "stopped", "stays"):
        bench.app(name)
    with bench.hooked():
        bench.engine.remove("gone")
        bench.engine.restart("restarted")
        bench.engine.exit("stopped")
    assert bench.diary[4:] == ["stays post"]
    assert [(fields["container"], fields["hook"]) for fields in bench.of("hook_skipped")] == [
        ("stopped", "post"), ("restarted", "post"), ("gone", "post"),
    ]  # fmt: skip
    assert not bench.journal.path.exists()


def test_a_post_hook_that_the_engine_could_not_be_asked_for_stays_owed_and_runs_before_the_next_group(
    bench: Bench,
) -> None:
    db = bench.app("db")
    web = bench.app("web")
    with bench.hooked(db):
        bench.engine.fail("execute", "db", EngineUnreachable("nothing answers"))
    assert len(bench.complaints) == 1
    assert bench.owed == ["db"]
    with bench.hooked(web, run="run-2"):
        assert bench.diary == ["db pre", "db post", "web pre"]
    assert [fields["run"] for fields in bench.of("hook_finished") if fields.get("replayed")] == ["run-1"]
    assert bench.engine.unfired == []


def test_a_container_that_could_not_be_thawed_keeps_its_post_hook_owed_until_it_is(bench: Bench) -> None:
    db = bench.app("db")
    bench.app("web")

    def stuck() -> None:
        with bench.hooked():
            bench.leave_frozen(db)
            raise ThawFailed("still frozen: db")

    with pytest.raises(ThawFailed):
        stuck()
    assert bench.diary[2:] == ["web post"]
    assert bench.owed == ["db"]
    bench.come_back()
    assert bench.engine.state("db") is ContainerState.RUNNING
    assert bench.diary[2:] == ["web post", "db post"]
    assert not bench.journal.path.exists()


def test_a_journal_that_cannot_be_written_any_more_is_complained_about_and_all_hooks_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.app("db")
    bench.app("web")

    def full(*_: Any) -> None:
        raise JournalUnwritable("the disk is full")

    with bench.hooked():
        monkeypatch.setattr(bench.journal, "owe", full)
        monkeypatch.setattr(bench.journal, "settle", full)
    assert bench.diary[2:] == ["web post", "db post"]
    assert {error.message for error in bench.complaints} == {"the disk is full"}


# --- told to stop ----------------------------------------------------------------------------------------------------


def test_told_to_stop_it_does_not_wait_for_a_pre_hook_and_still_runs_the_post_hooks(bench: Bench) -> None:
    bench.app("db", pre="sleep 60")
    timer = threading.Timer(0.1, bench.cancelled.set)
    timer.start()
    with pytest.raises(Interrupted, match="pre hook of db"), bench.hooked():
        pytest.fail("frozen")
    assert bench.diary == ["db pre", "db post"]
    assert "told to stop" in bench.of("hook_finished")[0]["hint"]
    bench.engine.kill("db")


def test_told_to_stop_between_pre_hooks_it_runs_no_more_of_them(bench: Bench) -> None:
    bench.app("a")
    bench.app("b")
    bench.engine.meanwhile("execute", "a", bench.cancelled.set)
    with pytest.raises(Interrupted), bench.hooked():
        pytest.fail("frozen")
    assert bench.diary == ["a pre", "b post", "a post"]


def test_told_to_stop_it_begins_every_post_hook_and_waits_for_all_of_them_together_but_briefly(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HASTE", 0.3)
    for name in ("a", "b", "c"):
        bench.app(name, post="sleep 60")
    with bench.hooked():
        bench.cancelled.set()
    assert bench.diary[3:] == ["c post", "b post", "a post"]
    assert [fields["exit_code"] for fields in bench.of("hook_finished")[3:]] == [None] * 3
    took = [fields["duration_ms"] for fields in bench.of("hook_finished")[3:]]
    assert took[0] >= 300
    assert took[1] < 300
    assert took[2] < 300
    assert not bench.journal.path.exists()  # they have begun, and end by themselves
    for name in ("a", "b", "c"):
        bench.engine.kill(name)


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["dies_before", "dies_after"])
@pytest.mark.parametrize("hook", ["web pre", "db pre", "db post", "web post"])
def test_killed_around_any_hook_every_post_hook_runs_when_it_comes_back(bench: Bench, point: str, hook: str) -> None:
    bench.app("db")
    bench.app("web", depends_on="db")
    setattr(bench.engine, point, f"echo {hook} ")
    with pytest.raises(Killed), bench.hooked():
        pass
    whole = ["web pre", "db pre", "db post", "web post"]
    before = bench.diary
    assert before == whole[: whole.index(hook) + (point == "dies_after")]  # it died where it was to die

    bench.come_back()

    again = bench.diary[len(before) :]
    assert again == (["web post"] if hook == "web post" else ["db post", "web post"])
    assert all(fields["replayed"] and fields["run"] == "run-1" for fields in bench.of("hook_finished")[-len(again) :])
    assert not bench.journal.path.exists()
    bench.come_back()
    assert bench.diary == before + again


def test_killed_while_a_pre_hook_runs_the_post_hook_runs_when_it_comes_back(bench: Bench, tmp_path: Path) -> None:
    def die() -> bool:
        bench.engine.dead = (tmp_path / "begun").exists()
        if bench.engine.dead:
            raise Killed
        return True

    bench.app("db", pre=f"touch {tmp_path}/begun; sleep 60")
    execute = bench.engine.execute
    bench.engine.execute = lambda name, command, *, waiting: execute(name, command, waiting=die)  # type: ignore[method-assign]
    with pytest.raises(Killed), bench.hooked():
        pass
    bench.engine.execute = execute  # type: ignore[method-assign]

    bench.come_back()

    assert bench.diary == ["db pre", "db post"]
    bench.engine.kill("db")


def test_killed_while_frozen_all_is_thawed_and_then_the_post_hooks_run(bench: Bench) -> None:
    db = bench.app("db")

    def killed() -> None:
        with bench.hooked():
            bench.leave_frozen(db)
            bench.engine.dead = True
            raise Killed

    with pytest.raises(Killed):
        killed()
    assert bench.engine.state("db") is ContainerState.PAUSED

    bench.come_back()

    assert bench.engine.state("db") is ContainerState.RUNNING
    assert [operation for operation, _ in bench.engine.calls if operation in ("execute", "pause", "unpause")] == [
        "execute", "pause", "unpause", "execute",
    ]  # fmt: skip
    assert bench.diary == ["db pre", "db post"]
    assert not bench.journal.path.exists()


def test_what_was_restarted_since_the_death_is_left_alone(bench: Bench) -> None:
    bench.app("db")
    bench.app("web")
    bench.engine.dies_after = "echo web pre "
    with pytest.raises(Killed), bench.hooked():
        pass
    bench.engine.restart("db")

    bench.come_back()

    assert bench.diary[2:] == ["web post"]
    assert [fields["container"] for fields in bench.of("hook_skipped")] == ["db"]
    assert not bench.journal.path.exists()


def test_an_engine_that_is_away_when_it_comes_back_is_asked_again_later(bench: Bench) -> None:
    bench.app("db")
    bench.engine.dies_after = "echo db pre "
    with pytest.raises(Killed), bench.hooked():
        pass
    bench.engine.fail("execute", "db", EngineUnreachable("nothing answers"))
    with pytest.raises(EngineUnreachable):
        bench.come_back()
    assert bench.owed == ["db"]
    bench.come_back()
    assert bench.diary == ["db pre", "db post"]
    assert bench.engine.unfired == []


def test_a_replayed_post_hook_that_fails_is_done_and_its_event_says_so(bench: Bench) -> None:
    bench.app("db", post="exit 7")
    bench.engine.dies_after = "echo db pre "
    with pytest.raises(Killed), bench.hooked():
        pass
    bench.come_back()
    name, level, fields = bench.events[-1]
    assert (name, level, fields["exit_code"], fields["replayed"]) == ("hook_finished", logging.ERROR, 7, True)
    assert not bench.journal.path.exists()


def test_whoever_comes_back_begins_every_post_hook_and_waits_for_all_of_them_together_but_briefly(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "REPLAY", 0.3)
    bench.app("a", post="sleep 60")
    bench.app("b", post="sleep 60")
    bench.engine.dies_after = "echo b pre "
    with pytest.raises(Killed), bench.hooked():
        pass
    bench.come_back()
    assert bench.diary == ["a pre", "b pre", "b post", "a post"]
    assert [fields["exit_code"] for fields in bench.of("hook_finished")[-2:]] == [None, None]
    assert "killed" in bench.of("hook_finished")[-1]["hint"]
    assert not bench.journal.path.exists()
    for name in ("a", "b"):
        bench.engine.kill(name)


def test_post_hooks_in_a_journal_that_nobody_understands_are_not_forgotten_in_silence(bench: Bench) -> None:
    bench.journal.owe("post_hooks", {"run": "run-1", "group": "shop", "hooks": [{"name": "db"}]})
    with pytest.raises(JournalUnreadable, match="post hooks") as caught:
        bench.come_back()
    assert "backup.post" in caught.value.hint
    assert bench.journal.path.exists()
