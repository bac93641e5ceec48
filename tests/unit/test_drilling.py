"""What a drill decides: which services are tried together, what proves them, and what a copy never gets to see."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.drilling import DrillPlan, make_drill_plan, verdict
from sidecar.errors import NotFound
from sidecar.model import Container, ContainerState, Mount, Volume
from sidecar.report import Outcome
from sidecar.sets import Drilled, DrilledVolume, Manifest, Marks, SetVolume, StoredObject, drilled

GOOD, PARTIAL, FAILED = Outcome.GOOD, Outcome.PARTIAL, Outcome.FAILED
ROOT = "/var/lib/docker"


def volume(name: str) -> Volume:
    return Volume(name, f"{ROOT}/volumes/{name}/_data")


def container(name: str, *mounts: Mount, proof: str | None = "check", **facts: Any) -> Container:
    labels = {"backup.drill": proof} if proof not in ("check", None) else {}
    return Container(
        id=name,
        name=name,
        image="app",
        state=facts.pop("state", ContainerState.RUNNING),
        started_at="",
        pid=1,
        labels=labels | facts.pop("labels", {}),
        mounts=mounts,
        health_check=proof == "check",
        **facts,
    )


def of(volume: str, *, writable: bool = True) -> Mount:
    return Mount("volume", f"{ROOT}/volumes/{volume}/_data", f"/{volume}", writable, volume)


def bind(source: str, *, writable: bool = False) -> Mount:
    return Mount("bind", source, f"/in{source}", writable)


def manifest(*names: str) -> Manifest:
    archive = StoredObject("k", 1, "0")
    stored = [SetVolume(n, n, GOOD, archive, archive, 1, 1, "local", {}, {}, "") for n in names]
    return Manifest("backup-20260102_030000", "", GOOD, "", "", "", tuple(stored))


def plan(names: str, containers: list[Container], *named: str) -> DrillPlan:
    held = {mount.volume for each in containers for mount in each.mounts if mount.volume}
    volumes = [volume(name) for name in held | set(names.split())]
    return make_drill_plan(manifest(*names.split()), named, volumes=volumes, containers=containers, root=ROOT)


def scenes(made: DrillPlan) -> list[tuple[list[str], list[str], list[str]]]:
    return [
        ([s.container.name for s in r.services], [v.volume for v in r.restored], list(r.empty)) for r in made.rehearsals
    ]


def test_services_that_share_no_volume_are_tried_one_after_another_to_need_less_room() -> None:
    made = plan("db files", [container("db", of("db")), container("web", of("files"))])
    assert scenes(made) == [(["db"], ["db"], []), (["web"], ["files"], [])]


def test_services_that_share_a_volume_even_by_others_are_tried_together() -> None:
    made = plan(
        "a b c d",
        [
            container("one", of("a")),
            container("two", of("b")),
            container("joins", of("a"), of("b"), of("c", writable=False)),
            container("apart", of("d")),
        ],
    )
    assert [(sorted(services), volumes) for services, volumes, _ in scenes(made)] == [
        (["apart"], ["d"]),
        (["joins", "one", "two"], ["a", "b", "c"]),
    ]


def test_what_a_service_needs_is_restored_too_and_what_the_set_has_not_is_empty() -> None:
    made = plan("db files", [container("app", of("db"), of("files"), of("cache"))], "db")
    assert scenes(made) == [(["app"], ["db", "files"], ["cache"])]


def test_a_volume_without_proof_is_restored_alone() -> None:
    made = plan("db logs", [container("db", of("db")), container("shipper", of("logs"), proof=None)])
    assert scenes(made) == [(["db"], ["db"], []), ([], ["logs"], [])]
    assert made.unproven["logs"].why == "nothing proves it: no health check on shipper"
    assert made.unproven["logs"].hint.count("backup.drill") == 1


def test_who_only_reads_a_volume_proves_nothing_about_it() -> None:
    made = plan("db", [container("reader", of("db", writable=False))])
    assert scenes(made) == [([], ["db"], [])]
    assert "no container has it" in made.unproven["db"].why


def test_ours_are_never_tried() -> None:
    ours = container("scratch", of("db"), labels={"backup.role": "drill"})
    assert scenes(plan("db", [ours])) == [([], ["db"], [])]


@pytest.mark.parametrize(
    ("states", "tried"),
    [
        ({"db": "running", "job": "exited"}, ["db"]),
        ({"db": "paused", "job": "created"}, ["db"]),
        ({"db": "exited", "job": "exited"}, ["db", "job"]),
    ],
)
def test_who_runs_is_tried_and_only_where_nobody_does_who_could(states: dict[str, str], tried: list[str]) -> None:
    made = plan("db", [container(name, of("db"), state=ContainerState(state)) for name, state in states.items()])
    assert scenes(made)[0][0] == tried


def test_a_volume_that_the_set_has_not_is_named_with_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        plan("pgdata", [], "pgdta")
    assert "pgdata" in caught.value.hint
    with pytest.raises(NotFound):
        plan("", [])


# --- mounts ----------------------------------------------------------------------------------------------------------


def given(*binds: Mount, beside: list[Container] | None = None) -> tuple[list[Mount], list[str]]:
    """What a copy of a service with these binds gets besides its volume, and how that is told."""
    made = plan("db", [container("db", of("db"), *binds), *(beside or [])])
    (service,) = made.rehearsals[0].services
    _, *mounts = service.mounts({"db": "scratch"})
    return mounts, service.constraints()


def test_volumes_are_scratch_at_the_same_paths() -> None:
    made = plan("db", [container("db", of("db"), of("seen", writable=False))])
    (service,) = made.rehearsals[0].services
    mounts = service.mounts({"db": "scratch-0", "seen": "scratch-1"})
    assert [(m.target, m.volume, m.writable) for m in mounts] == [
        ("/db", "scratch-0", True),
        ("/seen", "scratch-1", False),
    ]


def test_binds_are_read_only_and_those_that_were_not_are_told() -> None:
    mounts, told = given(bind("/srv/config"), bind("/etc/app/app.conf", writable=True))
    assert [(m.source, m.writable) for m in mounts] == [("/srv/config", False), ("/etc/app/app.conf", False)]
    assert told == ["writes to /in/etc/app/app.conf, which it may only read"]


@pytest.mark.parametrize(
    "source",
    [
        *(
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/srv/proxy/engine.sock",
            "/run",
            "/var/run",
            "/",
            "/var",
            "/dev",
        ),
        *("/dev/dri", "/proc", "/sys/fs/cgroup", "/tmp/.X11-unix", "/var/run/../run/docker.sock", "/home/me/x.socket"),
        *(ROOT, "/var/lib", f"{ROOT}/volumes", f"{ROOT}/volumes/db/_data", f"{ROOT}/volumes/other/_data/sub"),
    ],
)
def test_what_may_lead_to_anything_real_is_not_given_at_all(source: str) -> None:
    mounts, told = given(bind(source))
    assert mounts == []
    assert told[0].startswith(f"needs /in{source}, which it does not get (")


def test_a_directory_that_another_container_writes_to_is_not_given_because_of_its_sockets() -> None:
    proxy = container("proxy", bind("/srv/shared", writable=True))
    for source in ("/srv/shared", "/srv/shared/deep", "/srv"):
        assert given(bind(source), beside=[proxy])[0] == []
    assert given(bind("/srv/shared-not"), beside=[proxy])[0] != []
    reader = container("reader", bind("/srv/shared"))
    assert given(bind("/srv/shared"), beside=[reader])[0] != []


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "whole"),
    [([GOOD, GOOD], GOOD), ([GOOD, PARTIAL], PARTIAL), ([GOOD, FAILED], FAILED), ([PARTIAL, FAILED, GOOD], FAILED)],
)
def test_one_red_volume_makes_all_red_and_green_needs_all(outcomes: list[Outcome], whole: Outcome) -> None:
    assert verdict(outcomes) is whole


NOON, LATER = "2026-01-02T12:00:00Z", "2026-01-03T12:00:00Z"


def found(time: str = NOON, **outcomes: Outcome) -> dict[str, DrilledVolume]:
    return {
        name: DrilledVolume(time, each, "" if each is GOOD else f"{name} is {each}") for name, each in outcomes.items()
    }


def test_a_set_is_proven_once_all_of_its_volumes_are() -> None:
    first = drilled(None, found(a=GOOD), ["a", "b"])
    assert (first.outcome, first.why) == (PARTIAL, "volume b was never tried")
    second = drilled(first, found(LATER, b=GOOD), ["a", "b"])
    assert (second.outcome, second.why, second.time) == (GOOD, "", LATER)
    assert second.volumes["a"].time == NOON


def test_a_failure_stays_until_that_volume_is_proven() -> None:
    red = drilled(None, found(a=FAILED, b=GOOD), ["a", "b"])
    still = drilled(red, found(LATER, b=GOOD), ["a", "b"])
    assert (still.outcome, still.why) == (FAILED, "a is failed")
    assert drilled(still, found(LATER, a=GOOD), ["a", "b"]).outcome is GOOD


def test_what_is_noted_is_read_back_and_other_marks_stay() -> None:
    noted = drilled(None, found(a=PARTIAL), ["a"])
    marks = Marks(keep=True, others={"colour": "red"}).with_drilled(noted)
    again = Marks.from_json(marks.to_json(), where="marks")
    assert (again.drilled, again.keep, again.others["colour"]) == (noted, True, "red")
    assert isinstance(again.drilled, Drilled)


@pytest.mark.parametrize("written", [None, {"a": 1}, "yes", {"time": 1, "outcome": "good", "why": "", "volumes": {}}])
def test_what_another_version_noted_is_no_verdict_and_hides_nothing(written: Any) -> None:
    marks = Marks(keep=True, others={"drilled": written})
    again = Marks.from_json(marks.to_json(), where="marks")
    assert (again.drilled, again.keep, again.others["drilled"]) == (None, True, written)
