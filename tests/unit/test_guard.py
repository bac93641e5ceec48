"""The guard: what it holds, that no change leaves a gap, and what is said, on an engine in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.engine.journal import Journal
from sidecar.errors import EngineDenied, EngineError, NotFound
from sidecar.guarding import OWNER_LABEL, Verdict, choose, decide, guards_among, held_by, labels_of
from sidecar.jobs.guard import GuardTools, dismiss, guard, sign
from sidecar.jobs.restore import OWED
from sidecar.model import Container, ContainerState, Mount, Volume
from sidecar.plan import Selection, Surroundings, make_plan
from sidecar.service.guardian import Guardian
from tests.contract.fake_engine import FakeEngine

STATE = "backup-state"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

# --- what it holds ---------------------------------------------------------------------------------------------------


def a_guard(name: str, *volumes: str, state: ContainerState = ContainerState.RUNNING, image: str = "new") -> Container:
    mounts = tuple(Mount("volume", "", f"/guarded/{number}", False, each) for number, each in enumerate(volumes))
    return Container(name, name, "", state, "", 1, labels=labels_of(STATE), mounts=mounts, image_id=image)


GOOD = a_guard("backup-guard", "a", "b")
NEXT = a_guard("backup-guard-next", "a", "b")
LESS = a_guard("backup-guard", "a")
MORE = a_guard("backup-guard-next", "a", "b", "c")
STOPPED = a_guard("backup-guard", "a", "b", state=ContainerState.EXITED)
OLD = a_guard("backup-guard", "a", "b", image="old")
PAUSED = a_guard("backup-guard", "a", "b", state=ContainerState.PAUSED)


@pytest.mark.parametrize(
    ("guards", "wanted", "verdict"),
    [
        ([], "ab", Verdict(None, "backup-guard", ())),
        ([], "", Verdict(None, "", ())),
        ([GOOD], "ab", Verdict(GOOD, "", ())),
        ([PAUSED], "ab", Verdict(PAUSED, "", ())),
        ([GOOD], "", Verdict(None, "", (GOOD,))),
        ([LESS], "ab", Verdict(None, "backup-guard-next", (LESS,))),
        ([GOOD], "a", Verdict(None, "backup-guard-next", (GOOD,))),
        ([STOPPED], "ab", Verdict(None, "backup-guard-next", (STOPPED,))),
        ([OLD], "ab", Verdict(None, "backup-guard-next", (OLD,))),
        # what a replacement that was cut off has left
        ([GOOD, MORE], "ab", Verdict(GOOD, "", (MORE,))),
        ([LESS, NEXT], "ab", Verdict(NEXT, "", (LESS,))),
        ([NEXT], "ab", Verdict(NEXT, "", ())),
        ([GOOD, NEXT], "ab", Verdict(GOOD, "", (NEXT,))),
        ([LESS, MORE], "ab", Verdict(None, "backup-guard-next-2", (LESS, MORE))),
        ([MORE], "ab", Verdict(None, "backup-guard", (MORE,))),
    ],
)
def test_one_guard_of_this_image_that_runs_is_to_hold_exactly_what_is_wanted(
    guards: list[Container], wanted: str, verdict: Verdict
):
    taken = [each.name for each in guards]
    assert decide(guards, set(wanted), home="backup-guard", image="new", taken=taken) == verdict


def test_a_name_that_a_stranger_has_is_not_taken_for_a_guard():
    verdict = decide([], {"a"}, home="backup-guard", image="new", taken=["app", "backup-guard", "backup-guard-next"])
    assert verdict == Verdict(None, "backup-guard-next-2", ())


def test_the_guards_of_another_sidecar_are_not_ours_under_whatever_name():
    other = replace(GOOD, labels={**GOOD.labels, OWNER_LABEL: "other-state"})
    stranger = replace(GOOD, labels={OWNER_LABEL: STATE})
    renamed = replace(GOOD, name="formerly-guard")
    assert guards_among([other, stranger, renamed], STATE) == [renamed]


def test_what_would_be_backed_up_is_protected_if_it_would_be_deleted_with_its_volume():
    volumes = [
        Volume("db", "/volumes-of-host/db/_data"),
        Volume("nfs", "/volumes-of-host/nfs/_data", options={"type": "nfs"}),
        Volume("plugged", "/volumes-of-host/plugged/_data", driver="rexray"),
        Volume("f" * 64, "/volumes-of-host/x/_data"),
        Volume("cache", "/volumes-of-host/cache/_data", labels={"backup.exclude": "true"}),
        Volume(STATE, "/volumes-of-host/backup-state/_data"),
        Volume("backup-drill-1f-0", "/volumes-of-host/s/_data", labels={"backup.role": "drill"}),  # nobody's
    ]
    own = [Mount("bind", "/volumes-of-host", "/volumes", False), Mount("volume", "", "/state", True, STATE)]
    mounted = [f"/volumes/{name}/_data" for name in ("nfs", "plugged")]
    plan = make_plan(Selection(include=("*", "ghost")), Surroundings(volumes, [], own, mounted, {}, ()))
    assert {each.volume.name for group in plan.groups for each in group.volumes} == {"db", "nfs", "plugged"}

    worth, left_out = choose(plan, volumes)

    assert worth == {"db"}
    assert {each.volume: each.why for each in left_out} == {
        "nfs": "its driver keeps its data elsewhere",
        "plugged": "its driver keeps its data elsewhere",
        "f" * 64: "it is an anonymous volume",
        "cache": "label backup.exclude on the volume",
        STATE: "it is the sidecar's own",
    }


# --- changing it -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """We are no more: nothing of ours runs after this."""


class Observed:
    """An engine that is looked at before and after every act of ours, and in which we are killed before the `last`."""

    ACTS = ("create_guard", "start", "remove", "rename", "remove_volume")

    def __init__(self, engine: FakeEngine, look: Callable[[], None], last: int = 1_000) -> None:
        self._engine = engine
        self._look = look
        self._left = last
        self.acts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)
        if name not in self.ACTS:
            return method

        def act(*arguments: Any, **options: Any) -> Any:
            self._look()
            if len(self.acts) == self._left:
                raise Killed
            self.acts.append(name)
            given = method(*arguments, **options)
            self._look()
            return given

        return act


@dataclass
class Host:
    """An engine with a sidecar in it, and the log of that."""

    engine: FakeEngine
    directory: Path
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    include: tuple[str, ...] = ()
    name: str = "backup"

    @property
    def own(self) -> Container:
        return self.engine.container(self.name)

    @property
    def journal(self) -> Journal:
        return Journal(self.directory / "journal.json")

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        self.events.append((name, fields))

    def told(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]

    def look(self) -> Surroundings:
        return Surroundings(self.engine.volumes(), self.engine.containers(), self.own.mounts, (), {}, ())

    def tools(self, engine: Any = None) -> GuardTools:
        return GuardTools(
            engine=engine or self.engine,
            look=self.look,
            selection=Selection(include=self.include),
            own=lambda: self.own,
            state=lambda _: STATE,
            journal=self.journal,
            emit=self.emit,
        )

    def guards(self) -> list[Container]:
        return guards_among(self.engine.containers(), STATE)

    def held(self) -> dict[str, set[str]]:
        """What each guard that runs keeps from being deleted."""
        return {each.name: set(held_by(each)) for each in self.guards() if each.running}

    def pull(self, image: str) -> None:
        """The sidecar is made anew, of another image."""
        own = self.own
        self.engine.remove("backup")
        made = self.engine.run("backup", labels=own.labels, volumes={STATE: "/state"}, binds={"/": "/volumes"})
        self.engine._containers[made.id] = replace(made, image_id=image)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    engine = FakeEngine()
    engine.directory = tmp_path
    labels = {"backup.role": "sidecar"}
    engine.run("backup", labels=labels, volumes={STATE: "/state"}, binds={"/": "/volumes"})
    engine.be("backup")
    engine.run("db", volumes={"shop_db": "/data"})
    engine.run("web", volumes={"shop_files": "/data"})
    return Host(engine, tmp_path)


def test_every_volume_gets_a_guard_but_our_own_state(host: Host):
    guarded = guard((), host.tools())

    assert guarded.volumes == ("shop_db", "shop_files")
    assert host.held() == {"backup-guard": {"shop_db", "shop_files"}}
    (made,) = host.guards()
    assert (made.role, any(mount.writable for mount in made.mounts)) == ("guard", False)
    assert not host.engine.remove_volume("shop_db")
    assert host.told("guard_changed") == [
        {
            "container": "backup-guard",
            "volumes": ["shop_db", "shop_files"],
            "taken": ["shop_db", "shop_files"],
            "let_go": [],
        }
    ]


def test_a_guard_that_is_as_it_should_be_is_left_alone(host: Host):
    guard((), host.tools())
    observed = Observed(host.engine, lambda: None)
    before = host.guards()

    guard((), host.tools(observed))

    assert observed.acts == []
    assert host.guards() == before
    assert len(host.told("guard_changed")) == 1


def a_new_volume(host: Host) -> None:
    host.engine.run(f"wiki-{len(host.engine.containers())}", volumes={"wiki": "/data"})


def a_volume_less(host: Host) -> None:
    host.include = ("shop_db",)


def another_image(host: Host) -> None:
    host.pull("sha256:new")


def it_has_died(host: Host) -> None:
    host.engine.kill("backup-guard")


def both_new_and_less(host: Host) -> None:
    a_new_volume(host)
    host.include = ("shop_db", "wiki")


CHANGES = [a_new_volume, a_volume_less, another_image, both_new_and_less]


def observed_change(host: Host, last: int = 1_000) -> Observed:
    """Looks whether every volume that was held, and still is to be, is held by a guard that runs."""
    still = set(held_by(host.guards()[0])) & {v.name for v in host.engine.volumes()}
    still &= set(host.include) or still

    def look() -> None:
        held = set().union(*host.held().values())
        assert still <= held, f"{still - held} without a guard"

    return Observed(host.engine, look, last)


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_leaves_a_gap(host: Host, change: Callable[[Host], None]):
    guard((), host.tools())
    change(host)
    observed = observed_change(host)

    guarded = guard((), host.tools(observed))

    assert observed.acts == ["create_guard", "start", "remove", "rename"]
    assert host.held() == {"backup-guard": set(guarded.volumes)}
    assert len(host.guards()) == 1


@pytest.mark.parametrize("change", [*CHANGES, it_has_died])
@pytest.mark.parametrize("then", [None, a_new_volume, a_volume_less, another_image])
@pytest.mark.parametrize("acts", range(4))
def test_killed_between_any_two_steps_the_next_look_leaves_one_guard_and_no_gap(
    host: Host, change: Callable[[Host], None], then: Callable[[Host], None] | None, acts: int
):
    guard((), host.tools())
    change(host)
    cut_off = Observed(host.engine, lambda: None, acts)
    with pytest.raises(Killed):
        guard((), host.tools(cut_off))
    assert len(cut_off.acts) == acts
    if then:
        then(host)
    running = set().union(*host.held().values())

    def look() -> None:
        wanted = set(host.include) or {v.name for v in host.engine.volumes()} - {STATE}
        assert running & wanted <= set().union(*host.held().values())

    guarded = guard((), host.tools(Observed(host.engine, look)))

    assert host.held() == {"backup-guard": set(guarded.volumes)}
    assert len(host.guards()) == 1
    assert set(guarded.volumes) == (set(host.include) or {v.name for v in host.engine.volumes()} - {STATE})


def test_a_volume_that_is_removed_just_before_it_is_mounted_does_not_come_back(host: Host):
    guard((), host.tools())
    host.engine.add_volume("brief")
    host.include = ("shop_db", "brief")
    look, looks = host.look, []

    def look_and_lose_it() -> Surroundings:
        seen = look()
        if not looks:
            assert host.engine.remove_volume("brief")
        looks.append(seen)
        return seen

    guarded = guard((), replace(host.tools(), look=look_and_lose_it))

    assert len(looks) == 2
    assert guarded.volumes == ("shop_db",)
    assert "brief" not in {volume.name for volume in host.engine.volumes()}
    assert host.held() == {"backup-guard": {"shop_db"}}


def test_a_guard_that_cannot_be_made_leaves_the_old_one_and_no_half_one(host: Host):
    guard((), host.tools())
    a_new_volume(host)
    host.engine.fail("create_guard", "backup", EngineDenied("POST /containers/create is not permitted"))

    with pytest.raises(EngineDenied):
        guard((), host.tools())

    assert host.engine.unfired == []
    assert host.held() == {"backup-guard": {"shop_db", "shop_files"}}


def test_a_guard_that_does_not_start_is_removed_again(host: Host):
    class Unable(Observed):
        def start(self, identifier: str) -> bool:
            self.acts.append("start")
            raise EngineError("no such file: sleep")

    engine = Unable(host.engine, lambda: None)
    with pytest.raises(EngineError, match="sleep"):
        guard((), host.tools(engine))

    assert engine.acts == ["create_guard", "start", "remove"]
    assert host.guards() == []


def test_a_volume_that_a_restore_makes_is_left_alone_until_it_is_made_and_one_that_it_replaces_stays_held(host: Host):
    guard((), host.tools())
    host.journal.owe(OWED, {"set": "s", "volumes": ["shop_db", "lost"]})
    host.engine.add_volume("lost")

    assert guard((), host.tools()).volumes == ("shop_db", "shop_files")
    assert host.engine.remove_volume("lost"), "a restore that fails removes what it made"

    host.engine.add_volume("lost")
    host.journal.settle(OWED)
    assert guard((), host.tools()).volumes == ("lost", "shop_db", "shop_files")


def test_without_a_volume_there_is_no_guard_and_none_is_left(host: Host):
    guard((), host.tools())
    host.include = ("nothing-*",)

    assert guard((), host.tools()).container == ""
    assert host.guards() == []


def test_a_guard_that_is_not_wanted_any_more_goes_and_that_of_another_sidecar_stays(host: Host):
    guard((), host.tools())
    host.engine.run("other-guard", labels=labels_of("other-state"), volumes={"shop_db": "/guarded/0"}, read_only=True)

    dismiss(host.tools())
    dismiss(host.tools())

    assert host.guards() == []
    assert host.engine.state("other-guard") is ContainerState.RUNNING
    assert [fields["let_go"] for fields in host.told("guard_changed")] == [[], ["shop_db", "shop_files"]]


def test_the_sign_differs_when_volumes_come_or_go_or_the_guard_does(host: Host):
    guard((), host.tools())
    signs = [sign(host.engine, host.own), sign(host.engine, host.own)]
    assert signs[0] == signs[1]
    for act in (a_new_volume, it_has_died, lambda host: host.engine.remove("backup-guard")):
        act(host)
        signs.append(sign(host.engine, host.own))
        assert signs[-1] != signs[-2]


# --- keeping it as it should be --------------------------------------------------------------------------------------


class Keeping:
    """A guardian over the real jobs on the engine in memory, whose time a test moves."""

    def __init__(self, host: Host, *, on: bool = True) -> None:
        self.host = host
        self.on = on
        self.seconds = 0.0
        self.looks = 0
        self.refusal: EngineError | None = None
        self.begin()

    def begin(self) -> None:
        """The daemon is started (again)."""
        self.guardian = Guardian(
            self,  # type: ignore[arg-type]
            self.host.emit,
            on=self.on,
            path=self.host.directory / "guard.json",
            now=lambda: NOON + timedelta(seconds=self.seconds),
            clock=lambda: self.seconds,
        )
        self.guardian.look()

    def guard(self, released: Any) -> Any:
        self.looks += 1
        if self.refusal:
            raise self.refusal
        return guard(released, self.host.tools())

    def dismiss_guard(self) -> None:
        dismiss(self.host.tools())

    def guard_sign(self) -> object:
        return sign(self.host.engine, self.host.own)

    def after(self, seconds: float) -> None:
        """Time passes, with a look every few seconds."""
        until = self.seconds + seconds
        while self.seconds < until:
            self.seconds += min(3.0, until - self.seconds)
            self.guardian.look()

    @property
    def held(self) -> set[str]:
        return set().union(*self.host.held().values())


@pytest.fixture
def keeping(host: Host) -> Keeping:
    return Keeping(host)


def test_a_new_volume_is_taken_at_the_next_look(keeping: Keeping):
    a_new_volume(keeping.host)
    keeping.after(3)
    assert keeping.held == {"shop_db", "shop_files", "wiki"}


def test_a_guard_that_somebody_removes_or_stops_is_there_again_at_the_next_look(keeping: Keeping):
    for act in (it_has_died, lambda host: host.engine.remove("backup-guard")):
        act(keeping.host)
        keeping.after(3)
        assert keeping.held == {"shop_db", "shop_files"}


def test_while_nothing_happens_a_whole_look_is_rare(keeping: Keeping):
    keeping.after(6)
    looks = keeping.looks
    keeping.after(30)
    assert keeping.looks == looks + 1


def test_a_release_lets_go_at_once_and_takes_back_when_its_time_is_over(keeping: Keeping):
    status = keeping.guardian.release("shop_db", timedelta(minutes=10))

    assert keeping.held == {"shop_files"}
    assert status["released"] == {"shop_db": "2026-01-02T12:10:00Z"}
    assert status["protected"] == {"shop_files": "2026-01-02T12:00:00Z"}
    keeping.after(599)
    assert keeping.held == {"shop_files"}
    keeping.after(1)
    assert keeping.held == {"shop_db", "shop_files"}
    assert keeping.guardian.status()["released"] == {}
    assert keeping.guardian.status()["protected"]["shop_db"] == "2026-01-02T12:10:00Z"


def test_a_release_survives_a_restart_of_the_daemon(keeping: Keeping):
    keeping.guardian.release("shop_db", timedelta(minutes=10))
    keeping.seconds += 300
    keeping.begin()
    assert keeping.held == {"shop_files"}
    assert keeping.guardian.status()["protected"] == {"shop_files": "2026-01-02T12:00:00Z"}
    keeping.after(300)
    assert keeping.held == {"shop_db", "shop_files"}


def test_a_volume_that_is_deleted_while_released_is_forgotten_when_the_time_is_over(keeping: Keeping):
    keeping.guardian.release("shop_db", timedelta(minutes=10))
    keeping.host.engine.remove("db")
    assert keeping.host.engine.remove_volume("shop_db")
    keeping.after(600)
    assert keeping.held == {"shop_files"}
    assert "shop_db" not in {volume.name for volume in keeping.host.engine.volumes()}


def test_a_release_ends_early_when_told_to(keeping: Keeping):
    keeping.guardian.release("shop_db", timedelta(minutes=10))
    assert keeping.guardian.protect("shop_db")["released"] == {}
    assert keeping.held == {"shop_db", "shop_files"}
    keeping.guardian.protect("shop_db")


@pytest.mark.parametrize(
    ("volume", "words"),
    [("shop_dd", "there is no volume 'shop_dd'"), (STATE, "does not protect volume backup-state: it is the sidecar's")],
)
def test_what_is_not_protected_cannot_be_released_and_the_reason_is_said(keeping: Keeping, volume: str, words: str):
    for act in (lambda: keeping.guardian.release(volume, timedelta(1)), lambda: keeping.guardian.protect(volume)):
        with pytest.raises(NotFound, match=words):
            act()
    assert keeping.held == {"shop_db", "shop_files"}
    assert keeping.guardian.status()["released"] == {}


def test_an_engine_that_refuses_is_said_once_and_asked_again(keeping: Keeping):
    a_new_volume(keeping.host)
    keeping.refusal = EngineDenied("POST /containers/create is not permitted", hint="let it pass")
    keeping.after(300)
    (told,) = keeping.host.told("guard_missing")
    assert (told["code"], told["hint"]) == ("engine_denied", "let it pass")
    assert keeping.guardian.status()["error"] == "POST /containers/create is not permitted"
    assert keeping.looks < 20

    keeping.refusal = None
    keeping.after(30)
    assert keeping.held == {"shop_db", "shop_files", "wiki"}
    assert keeping.guardian.status()["error"] is None
    keeping.refusal = EngineDenied("POST /containers/create is not permitted")
    keeping.after(60)
    assert len(keeping.host.told("guard_missing")) == 2


def test_what_nobody_expected_is_said_with_its_trace_and_does_not_end_the_guard(keeping: Keeping):
    keeping.refusal = ValueError("odd")  # type: ignore[assignment]
    keeping.after(30)
    keeping.refusal = None
    keeping.after(30)
    (told,) = keeping.host.told("guard_missing")
    assert "ValueError: odd" in told["error"]
    assert "Traceback" in told["trace"]
    assert keeping.guardian.status()["error"] is None


def test_switched_off_there_is_no_guard_and_one_that_was_there_goes(keeping: Keeping):
    keeping.on = False
    keeping.begin()
    assert keeping.host.guards() == []
    assert keeping.guardian.status()["on"] is False
    with pytest.raises(NotFound, match="BACKUP_GUARD is off"):
        keeping.guardian.release("shop_db", timedelta(minutes=1))


# --- when the containers of a volume are gone ------------------------------------------------------------------------


def test_what_to_do_about_kept_volumes_names_the_sidecars_own_container(keeping: Keeping):
    keeping.host.engine.rename(keeping.host.own.id, "depot")
    keeping.host.name = "depot"
    for name in ("db", "web"):
        keeping.host.engine.remove(name)
    keeping.after(300)

    (told,) = keeping.host.told("guard_kept")
    assert "docker exec depot run-now shop_db shop_files" in told["hint"]
    assert "docker exec depot guard release shop_db" in told["hint"]


def test_volumes_that_the_guard_has_kept_are_named_once_with_what_to_do(keeping: Keeping):
    for name in ("db", "web"):
        keeping.host.engine.remove(name)
    keeping.after(300)

    (told,) = keeping.host.told("guard_kept")
    assert told["volumes"] == ["shop_db", "shop_files"]
    assert "docker exec backup run-now shop_db shop_files" in told["hint"]
    assert "docker exec backup guard release shop_db" in told["hint"]
    assert keeping.guardian.status()["unused"] == ["shop_db", "shop_files"]
    keeping.begin()
    keeping.after(300)
    assert len(keeping.host.told("guard_kept")) == 1


def test_containers_that_stop_restart_or_are_made_anew_are_not_gone(keeping: Keeping):
    engine = keeping.host.engine
    engine.exit("db")
    engine.remove("web")
    keeping.after(28)
    engine.run("web", volumes={"shop_files": "/data"})
    keeping.after(300)
    assert keeping.host.told("guard_kept") == []


def test_a_stack_that_went_up_again_and_is_taken_down_again_is_said_again(keeping: Keeping):
    engine = keeping.host.engine
    for _ in range(2):
        engine.remove("db")
        keeping.after(90)
        engine.run("db", volumes={"shop_db": "/data"})
        keeping.after(90)
    assert [told["volumes"] for told in keeping.host.told("guard_kept")] == [["shop_db"], ["shop_db"]]


def test_what_went_down_while_the_sidecar_was_down_is_said_when_it_is_back(keeping: Keeping):
    keeping.host.engine.remove("db")
    keeping.begin()
    keeping.after(90)
    assert [told["volumes"] for told in keeping.host.told("guard_kept")] == [["shop_db"]]


def test_a_volume_that_no_container_ever_had_is_nothing_to_speak_of(keeping: Keeping):
    keeping.host.engine.add_volume("archive")
    keeping.after(300)
    assert "archive" in keeping.held
    assert keeping.host.told("guard_kept") == []


# --- what it remembers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"format": 2}', '{"format": 1, "released": {"a": "noon"}, "since": {}, "used": []}'],
)
def test_a_damaged_memory_is_said_and_everything_is_guarded(host: Host, text: str):
    (host.directory / "guard.json").write_text(text)
    keeping = Keeping(host)
    assert [name for name, _ in host.events if name != "guard_changed"] == ["memory_reset"]
    assert keeping.held == {"shop_db", "shop_files"}
    assert json.loads((host.directory / "guard.json").read_text())["format"] == 1


def test_a_disk_that_does_not_take_it_is_said_and_volumes_are_guarded_all_the_same(host: Host):
    (host.directory / "guard.json.new").mkdir()
    keeping = Keeping(host)
    assert host.told("memory_unwritten")
    assert keeping.held == {"shop_db", "shop_files"}
