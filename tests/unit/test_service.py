"""The service: what reaches the log, who runs when, what the control API answers, how the daemon ends."""

from __future__ import annotations

import ast
import http.client
import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cli.client import Complaint, Daemon
from sidecar.errors import (
    Busy,
    EngineUnreachable,
    Interrupted,
    MountMissing,
    NotFound,
    SidecarError,
    StoreDenied,
    ThawFailed,
)
from sidecar.events import EVENTS, Follow, Progress
from sidecar.guarding import Guarded
from sidecar.report import Outcome, Reason, RestoredVolume, RestoreReport, RunReport, VolumeReport
from sidecar.schedule import parse
from sidecar.service import alone
from sidecar.service.api import ControlApi, ControlSocket, Server
from sidecar.service.daemon import Scheduler
from sidecar.service.guardian import Guardian
from sidecar.service.jobs_port import Report, RestoreRequest, RunRequest
from sidecar.service.logs import EventLog
from sidecar.service.memory import Memory, Remembered
from sidecar.service.runs import Runs, Ticket
from tests.unit.fake_daemon_process import PATIENCE, REPOSITORY, environment, eventually, fake_daemon, listens

LOGS = REPOSITORY / "docs" / "LOGS.md"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


# --- the log ---------------------------------------------------------------------------------------------------------


@contextmanager
def captured_log(**options: Any) -> Iterator[tuple[EventLog, Callable[[], list[dict[str, Any]]]]]:
    """A log and what reads back the lines that it has written."""
    with tempfile.TemporaryFile() as file:
        log = EventLog(file.fileno(), **options)

        def lines() -> list[dict[str, Any]]:
            text = os.pread(file.fileno(), 1 << 24, 0).decode("ascii")
            assert not text or text.endswith("\n")
            return [json.loads(line) for line in text.splitlines()]

        yield log, lines
        assert log.close(PATIENCE)


def test_an_event_is_one_json_line_with_its_time_level_name_and_fields():
    with captured_log() as (log, lines):
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        log("group_frozen", group="shop", containers=("db", "web"), outcome=Outcome.GOOD, at=NOON, error=None)
        after = datetime.now(UTC)

        (line,) = lines()

    ts = line.pop("ts")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ts)
    assert before <= datetime.fromisoformat(ts) <= after
    assert line == {
        "level": "info",
        "event": "group_frozen",
        "group": "shop",
        "containers": ["db", "web"],
        "outcome": "good",
        "at": "2026-01-02T12:00:00Z",
        "error": None,
    }


def test_an_event_has_its_usual_level_unless_the_emitter_says_otherwise():
    with captured_log() as (log, lines):
        log("run_failed")
        log("volume_finished", level=logging.ERROR)

        assert [line["level"] for line in lines()] == ["error", "error"]


def test_events_below_the_level_are_not_written():
    with captured_log(level=logging.WARNING) as (log, lines):
        log("run_started")
        log("store_retry")

        assert [line["event"] for line in lines()] == ["store_retry"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(value=json_values)
def test_any_value_becomes_one_line_of_strict_json(value: object):
    with captured_log() as (log, lines):
        log("run_started", value=value)

        (line,) = lines()

    assert line["event"] == "run_started"
    json.dumps(line, allow_nan=False)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no words for it")


def test_emitting_never_raises_whatever_it_is_given():
    endless: list[Any] = []
    endless.append(endless)
    with captured_log() as (log, lines):
        log("run_started", value=Unprintable())
        log("run_started", value=endless)
        log("an event that nobody knows")

        assert [line["event"] for line in lines()] == ["run_started", "run_started", "an event that nobody knows"]


@pytest.mark.parametrize(
    "fields",
    [
        {"error": "x" * 100_000},
        {"changed_files": [f"./a/path/that/has/some/length/{number}" for number in range(100_000)]},
        {"deep": {"error": ["\n" * 50_000] * 50}},
        {f"key{number}": "word" for number in range(5_000)},
    ],
    ids=["text", "list", "deep", "many"],
)
def test_a_line_is_short_enough_for_dockers_log_drivers(fields: dict[str, Any]):
    with captured_log() as (log, lines):
        log("file_changed", run="r1", **fields)

        (line,) = lines()

    assert len(json.dumps(line)) < 16_384
    assert line["event"] == "file_changed"


def test_a_long_trace_keeps_its_end_which_names_the_error():
    with captured_log() as (log, lines):
        log("crashed", trace="frame\n" * 20_000 + "KeyError: 'Mounts'")

        assert lines()[0]["trace"].endswith("KeyError: 'Mounts'")


def escaped(secret: str) -> list[str]:
    """The forms that URLs, reprs and JSON give a text."""
    return [secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]]


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (key, *strings(each))
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


@settings(max_examples=40, deadline=None)
@given(secret=st.text(st.characters(blacklist_categories=["Cs"]), min_size=8, max_size=40), before=st.text(max_size=5))
def test_no_secret_reaches_the_log_in_any_form_in_any_place(secret: str, before: str):
    with captured_log(secrets=[secret]) as (log, lines):
        for form in escaped(secret):
            log("run_failed", error=f"{before}{form}!", nested=[{"key": (form,)}, {f"{before}{form}": 1}])
        log("run_failed", error=ValueError(secret), raw=secret.encode())
        log.crashed(ValueError(f"it is {secret}"), where="here")

        found = [text for line in lines() for text in strings(line)]

    for form in escaped(secret):
        assert not [text for text in found if form in text]


def test_a_log_driver_that_takes_no_lines_does_not_hold_the_emitter_and_gets_them_later():
    reading, writing = os.pipe()
    log = EventLog(writing)
    began = time.monotonic()
    for number in range(400):
        log("run_started", run=str(number), error="x" * 1_000)  # 400 KB into a pipe of 64 KiB that nobody reads
    took = time.monotonic() - began

    assert took < 5
    with os.fdopen(reading) as pipe:
        runs = [json.loads(pipe.readline())["run"] for _ in range(400)]
    os.close(writing)
    assert runs == [str(number) for number in range(400)]


def test_lines_that_cannot_be_kept_are_counted_and_the_count_is_told():
    reading, writing = os.pipe()
    log = EventLog(writing)
    for number in range(12_000):
        log("run_started", run=str(number), pad="x" * 40)
    drained = threading.Thread(target=lambda: log.close(PATIENCE))
    drained.start()
    told: list[dict[str, Any]] = []
    kept = 0
    with os.fdopen(reading) as pipe:
        while not told or kept + told[0]["lines"] < 12_000:
            line = json.loads(pipe.readline())
            if line["event"] == "log_lines_dropped":
                told.append(line)
            else:
                kept += 1
    drained.join(PATIENCE)
    os.close(writing)

    assert kept >= 10_000
    assert [line["lines"] for line in told] == [12_000 - kept]


def test_libraries_warnings_and_uncaught_exceptions_become_events_and_nothing_else_reaches_stdout():
    script = """
import logging, os, sys, threading, warnings
from sidecar.service.logs import EventLog, claim_stdout, install
log = EventLog(claim_stdout())
log.configure(level=logging.INFO, secrets=["hunter2!"])
install(log)
print("printed")
os.system("echo from a child")
logging.getLogger("botocore").debug("quiet")
logging.getLogger("urllib3").warning("pool of %s is full", "hunter2!")
logging.getLogger("docker").error("%d", "wrong arguments")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("uvicorn.error").exception("request failed")
warnings.warn("an old way")
thread = threading.Thread(target=lambda: int("hunter2!"), name="worker")
thread.start(); thread.join()
log("run_started")
raise KeyError("main")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE
    )

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("library", "warning"),
        ("library", "error"),
        ("library", "error"),
        ("library", "warning"),
        ("crashed", "error"),
        ("run_started", "info"),
        ("crashed", "error"),
    ]
    assert lines[0]["error"] == "pool of [redacted] is full"
    assert "ZeroDivisionError" in lines[2]["trace"]
    assert lines[4]["where"] == "thread worker"
    assert lines[6]["error"] == "KeyError: 'main'"
    assert "hunter2!" not in done.stdout
    assert "printed" in done.stderr
    assert "from a child" in done.stderr


# --- docs/LOGS.md ----------------------------------------------------------------------------------------------------

SECTIONS = {
    name: (level, set(re.findall(r"`(\w+)`(?: \(|,|$)", fields, re.MULTILINE)), json.loads(example))
    for name, level, fields, example in re.findall(
        r"^### `(\w+)` \((\w+)\)$.*?^Fields: (.*?)$.*?^```json\n(.*?)\n```$", LOGS.read_text(), re.MULTILINE | re.DOTALL
    )
}


def emitted() -> Iterator[tuple[str, str, set[str]]]:
    """Every call in the sources that names an event: (place, event, fields)."""
    for path in sorted((REPOSITORY / "sidecar").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=called) | ast.Name(id=called), args=[ast.Constant(str(name)), *_]
                ):
                    if called in ("emit", "_emit", "event", "log"):
                        fields = {keyword.arg for keyword in node.keywords if keyword.arg}
                        yield f"{path.name}:{node.lineno}", name, fields - {"level"}


def test_every_event_is_documented_and_every_documented_event_exists():
    assert SECTIONS.keys() == EVENTS.keys()


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_an_events_example_is_a_line_with_its_documented_level_and_fields(name: str):
    level, fields, example = SECTIONS[name]

    assert example["event"] == name
    assert example["level"] == level == logging.getLevelName(EVENTS[name]).lower()
    assert example.keys() - {"ts", "level", "event"} <= fields


def test_every_event_that_the_sources_emit_is_known_with_all_its_fields():
    calls = list(emitted())

    assert len(calls) > 15
    for place, name, fields in calls:
        assert name in SECTIONS, place
        assert fields <= SECTIONS[name][1], f"{place}: {name} has fields that docs/LOGS.md lacks"


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """An `Emit` that keeps what it gets."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        self.events.append((name, fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for each, fields in self.events if each == name]


def report(outcome: Outcome = Outcome.GOOD, **fields: Any) -> RunReport:
    return RunReport("r1", "backup-20260102_120000", outcome, NOON, 5.0, paused_ms=1.0, off_host=True, **fields)


def restored(outcome: Outcome = Outcome.GOOD, **fields: Any) -> RestoreReport:
    volumes = (RestoredVolume("shop", outcome, store="s3"),)
    return RestoreReport("x1", "backup-20260102_030000", outcome, NOON, 5.0, 1.0, ("db",), volumes, **fields)


class ScriptedJobs:
    """Jobs whose runs do what a test says; `begun` has the requests in the order in which their runs began."""

    def __init__(self, *runs: Callable[[Follow, threading.Event], Report]) -> None:
        self.runs = list(runs)
        self.begun: list[RunRequest | RestoreRequest] = []
        self.recoveries: list[Callable[[], None]] = []
        self.recovered = 0

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        self.begun.append(request)
        return self.runs.pop(0)(follow, cancelled) if self.runs else report()

    def restore(self, request: RestoreRequest, follow: Follow, cancelled: threading.Event) -> RestoreReport:
        self.begun.append(request)
        ended = self.runs.pop(0)(follow, cancelled) if self.runs else restored()
        assert isinstance(ended, RestoreReport)
        return ended

    def restore_plan(self, request: RestoreRequest) -> dict[str, Any]:
        return {"set": request.set_name, "volumes": list(request.volumes)}

    def plan(self) -> dict[str, Any]:
        raise KeyError("Mounts")

    def sets(
        self, set_name: str | None, volume: str | None, pattern: str | None, host: str | None = None
    ) -> dict[str, Any]:
        raise NotFound(f"no set {set_name} of {volume} with {pattern}", hint="look again")

    def guard(self, released: Collection[str]) -> Guarded:
        return Guarded("backup-guard", tuple({"a", "b"} - set(released)), tuple(released), used=frozenset("ab"))

    def dismiss_guard(self) -> None:
        raise AssertionError("nobody has asked for that")

    def guard_sign(self) -> object:
        return None

    def recover(self) -> None:
        if self.recoveries:
            self.recoveries.pop(0)()
        self.recovered += 1


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object) -> Any:
        raise error

    return raise_it


class Gate:
    """A run that begins, and ends when the test opens it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, follow: Follow, cancelled: threading.Event) -> RunReport:
        follow(Progress("copying", "shop_data", 10, 100))
        self.begun.set()
        assert self.open.wait(PATIENCE)
        return report()


def until_cancelled(_: Follow, cancelled: threading.Event) -> RunReport:
    assert cancelled.wait(PATIENCE)
    raise Interrupted("the run was told to stop")


def make_runs(jobs: ScriptedJobs, emit: Recorder | None = None, **options: Any) -> Runs:
    options = {"now": lambda: NOON, "recover_every": 0.01, "clean": lambda text: text.upper()} | options
    runs = Runs(jobs, emit or Recorder(), **options)
    runs.recover()
    runs.start()
    return runs


def result(ticket: Ticket) -> RunReport:
    return ticket.result.result(PATIENCE)


def test_runs_are_made_one_at_a_time_in_the_order_in_which_they_were_asked_for():
    gate = Gate()
    jobs = ScriptedJobs(gate)
    runs = make_runs(jobs)
    first = runs.submit(RunRequest(("a",)))
    assert gate.begun.wait(PATIENCE)
    second, third = runs.submit(RunRequest(("b",))), runs.submit(RunRequest(("c",)))

    assert [each.volumes for each in jobs.begun] == [("a",)]
    assert runs.ahead_of(first) is None
    assert runs.ahead_of(second) is first
    assert runs.ahead_of(third) is second

    gate.open.set()
    result(third)
    assert [each.volumes for each in jobs.begun] == [("a",), ("b",), ("c",)]


def test_a_request_that_must_not_wait_is_refused_while_a_run_goes_on_and_taken_when_none_does():
    gate = Gate()
    jobs = ScriptedJobs(gate)
    runs = make_runs(jobs)
    running = runs.submit(RunRequest())
    assert gate.begun.wait(PATIENCE)
    with pytest.raises(Busy, match="since 2026-01-02T12:00:00Z"):
        runs.submit(RunRequest(), no_wait=True)
    gate.open.set()
    result(running)
    assert runs.wait_idle(PATIENCE)
    result(runs.submit(RunRequest(), no_wait=True))
    assert len(jobs.begun) == 2


def test_a_scheduled_run_waits_behind_another_but_never_twice():
    gate, emit = Gate(), Recorder()
    jobs = ScriptedJobs(gate)
    runs = make_runs(jobs, emit)
    runs.submit(RunRequest())
    assert gate.begun.wait(PATIENCE)

    scheduled = runs.submit_scheduled(NOON)
    assert scheduled is not None
    assert runs.submit_scheduled(NOON) is None
    assert "still waits" in emit.named("run_skipped")[0]["error"]

    gate.open.set()
    result(scheduled)
    assert [each.trigger for each in jobs.begun] == ["manual", "schedule"]


def test_a_store_that_fails_makes_a_failed_report_and_an_event_and_the_daemon_goes_on():
    emit = Recorder()
    runs = make_runs(ScriptedJobs(raising(StoreDenied("s3 refuses", hint="grant it", store="s3"))), emit)

    failed = result(runs.submit(RunRequest()))

    assert failed.outcome is Outcome.FAILED
    assert failed.set is None
    assert [(each.code, each.message, each.hint, each.store) for each in failed.reasons] == [
        ("store_denied", "s3 refuses", "grant it", "s3")
    ]
    assert emit.named("run_failed")[0]["code"] == "store_denied"
    assert result(runs.submit(RunRequest())).outcome is Outcome.GOOD


@pytest.mark.parametrize("error", [KeyError("Mounts"), MemoryError(), SystemExit(3)])
def test_an_error_that_nobody_expected_fails_the_run_with_its_trace_in_the_log(error: BaseException):
    emit = Recorder()
    runs = make_runs(ScriptedJobs(raising(error)), emit)

    failed = result(runs.submit(RunRequest()))

    assert failed.outcome is Outcome.FAILED
    assert failed.reasons[0].code == "internal_error"
    assert type(error).__name__.upper() in failed.reasons[0].message  # upper: through what takes secrets out
    assert "Traceback" in emit.named("run_failed")[0]["trace"]
    assert result(runs.submit(RunRequest())).outcome is Outcome.GOOD


def test_a_request_for_what_does_not_exist_is_refused_and_is_not_the_last_run():
    runs = make_runs(ScriptedJobs(raising(NotFound("no volume x"))))

    with pytest.raises(NotFound):
        result(runs.submit(RunRequest(("x",))))

    assert runs.status()["last_run"] is None


def test_stopping_interrupts_the_run_and_refuses_those_that_wait_or_come():
    jobs = ScriptedJobs(until_cancelled)
    runs = make_runs(jobs)
    running = runs.submit(RunRequest())
    eventually(lambda: jobs.begun, "the run begins")
    waiting = runs.submit(RunRequest())

    assert runs.interrupt() is running
    assert runs.wait_idle(PATIENCE)
    assert result(running).outcome is Outcome.INTERRUPTED
    with pytest.raises(Interrupted):
        result(waiting)
    with pytest.raises(Interrupted):
        runs.submit(RunRequest())
    assert len(jobs.begun) == 1


def test_stopping_while_idle_interrupts_nothing():
    runs = make_runs(ScriptedJobs())

    assert runs.interrupt() is None
    assert runs.wait_idle(0)


def test_recovery_that_fails_for_now_is_tried_again_until_it_succeeds():
    emit = Recorder()
    jobs = ScriptedJobs()
    jobs.recoveries = [raising(EngineUnreachable("no engine")), raising(KeyError("x")), lambda: None]
    runs = make_runs(jobs, emit)

    eventually(lambda: runs.status()["healthy"], "recovery succeeds")

    assert [each["code"] for each in emit.named("recover_failed")] == ["engine_unreachable", "internal_error"]
    assert jobs.recovered == 1


def test_no_run_is_made_before_what_an_earlier_one_left_is_put_right():
    jobs = ScriptedJobs()
    jobs.recoveries = [raising(EngineUnreachable("no engine"))] * 2
    runs = Runs(jobs, Recorder(), now=lambda: NOON, recover_every=1000)
    runs.recover()
    runs.start()

    why = runs.status()["why"]
    refused = result(runs.submit(RunRequest()))
    made = result(runs.submit(RunRequest()))

    assert why == "what an earlier run left is not put right yet: no engine"
    assert (refused.outcome, refused.reasons[0].code) == (Outcome.FAILED, "engine_unreachable")
    assert made.outcome is Outcome.GOOD
    assert len(jobs.begun) == 1


def test_a_missing_mount_is_not_waited_for():
    jobs = ScriptedJobs()
    jobs.recoveries = [raising(MountMissing("/state is not mounted"))]

    with pytest.raises(MountMissing):
        Runs(jobs, Recorder(), now=lambda: NOON).recover()


def test_status_tells_what_runs_how_the_last_run_went_and_when_each_volume_was_last_good():
    gate = Gate()
    volumes = (VolumeReport("shop", Outcome.GOOD), VolumeReport("wiki", Outcome.PARTIAL))
    jobs = ScriptedJobs(lambda *_: report(Outcome.PARTIAL, volumes=volumes), gate)
    runs = make_runs(jobs)
    assert runs.status()["why"] == "no run has ended yet"
    result(runs.submit(RunRequest()))
    second = runs.submit(RunRequest(("shop",)))
    assert gate.begun.wait(PATIENCE)

    status = runs.status()

    assert status["state"] == "running"
    assert status["healthy"] is False
    assert status["why"] == "the last run was partial"
    assert status["last_run"]["outcome"] == "partial"
    assert status["last_good"] == {"shop": "2026-01-02T12:00:00Z"}
    assert status["running"] == {
        "phase": "copying",
        "volume": "shop_data",
        "done_bytes": 10,
        "total_bytes": 100,
        "activity": "run",
        "trigger": "manual",
        "volumes": ["shop"],
        "since": "2026-01-02T12:00:00Z",
    }
    gate.open.set()
    result(second)
    assert runs.wait_idle(PATIENCE)
    assert runs.status()["state"] == "idle"


# --- restores --------------------------------------------------------------------------------------------------------


def test_a_restore_waits_for_the_run_before_it_and_a_run_for_the_restore():
    gate = Gate()
    jobs = ScriptedJobs(gate, lambda *_: restored(), lambda *_: report())
    runs = make_runs(jobs)
    first = runs.submit(RunRequest())
    assert gate.begun.wait(PATIENCE)
    second = runs.submit(RestoreRequest("latest", ("shop",)))
    third = runs.submit(RunRequest(("a",)))
    assert runs.ahead_of(second) is first
    assert runs.ahead_of(third) is second
    with pytest.raises(Busy, match=r"a run \(manual\)"):
        runs.submit(RestoreRequest(), no_wait=True)
    gate.open.set()
    assert result(second) == restored()
    result(third)
    assert jobs.begun == [RunRequest(), RestoreRequest("latest", ("shop",)), RunRequest(("a",))]


def test_status_says_that_it_restores_and_a_restore_is_no_run():
    begun, go_on = threading.Event(), threading.Event()

    def restoring(follow: Follow, cancelled: threading.Event) -> RestoreReport:
        follow(Progress("restoring", "shop", 1, 2))
        begun.set()
        assert go_on.wait(PATIENCE)
        return restored()

    runs = make_runs(ScriptedJobs(restoring))
    ticket = runs.submit(RestoreRequest())
    assert begun.wait(PATIENCE)
    status = runs.status()
    assert (status["state"], status["running"]["phase"], status["running"]["activity"]) == (
        "restoring",
        "restoring",
        "restore",
    )
    go_on.set()
    result(ticket)
    assert runs.wait_idle(PATIENCE)
    assert (runs.status()["state"], runs.status()["last_run"]) == ("idle", None)


@pytest.mark.parametrize("error", [NotFound("no set", hint="look"), RuntimeError("never expected")])
def test_a_restore_that_fails_is_logged_told_and_no_end_of_the_daemon(error: Exception):
    events = Recorder()
    runs = make_runs(ScriptedJobs(raising(error)), events)
    ticket = runs.submit(RestoreRequest("latest", ("shop",)))
    with pytest.raises(SidecarError) as caught:
        result(ticket)
    (event,) = events.named("restore_finished")
    assert event["outcome"] == "failed"
    assert event["error"] == caught.value.message
    assert ("trace" in event) == isinstance(error, RuntimeError)
    assert result(runs.submit(RunRequest())) == report()


def test_containers_that_a_restore_could_not_start_are_looked_after_before_anything_else():
    stuck = restored(Outcome.PARTIAL, reasons=(Reason("thaw_failed", "still frozen: db", "docker start db"),))
    jobs = ScriptedJobs(lambda *_: stuck)
    runs = make_runs(jobs)
    recovered = jobs.recovered
    result(runs.submit(RestoreRequest()))
    assert runs.wait_idle(PATIENCE)
    result(runs.submit(RunRequest()))
    assert jobs.recovered == recovered + 1


# --- health ----------------------------------------------------------------------------------------------------------

DAILY = parse("0 3 * * *", UTC)


def ending(outcome: Outcome, *reasons: Reason) -> Callable[..., RunReport]:
    return lambda *_: report(outcome, reasons=reasons)


def health(runs: Runs) -> tuple[bool, str]:
    assert runs.wait_idle(PATIENCE)
    status = runs.status()
    return status["healthy"], status["why"]


def test_a_daemon_whose_last_run_was_good_is_healthy():
    runs = make_runs(ScriptedJobs(ending(Outcome.FAILED), ending(Outcome.GOOD)))
    result(runs.submit(RunRequest()))
    result(runs.submit(RunRequest()))

    assert health(runs) == (True, "the last run was good, at 2026-01-02T12:00:00Z")


@pytest.mark.parametrize(
    ("outcome", "how"),
    [(Outcome.PARTIAL, "was partial"), (Outcome.FAILED, "failed"), (Outcome.INTERRUPTED, "was interrupted")],
)
def test_a_daemon_whose_last_run_was_not_good_is_not_healthy_and_says_why(outcome: Outcome, how: str):
    runs = make_runs(ScriptedJobs(ending(outcome, Reason("x", "the disk is full"), Reason("x", "the disk is full"))))
    result(runs.submit(RunRequest()))

    assert health(runs) == (False, f"the last run {how}: the disk is full")


def test_a_good_run_of_one_volume_does_not_hide_that_the_run_of_all_was_not_good():
    runs = make_runs(ScriptedJobs(ending(Outcome.FAILED, Reason("x", "no network")), ending(Outcome.GOOD)))
    result(runs.submit(RunRequest()))
    result(runs.submit(RunRequest(("shop",))))

    assert health(runs) == (False, "the last run of all volumes failed: no network")


def test_containers_that_a_run_could_not_thaw_make_it_unhealthy_until_recovery_has_thawed_them():
    jobs = ScriptedJobs(ending(Outcome.PARTIAL, Reason.of(ThawFailed("still frozen: db"))), ending(Outcome.GOOD))
    runs = make_runs(jobs, recover_every=1000)
    result(runs.submit(RunRequest()))
    assert health(runs) == (False, "what an earlier run left is not put right yet")
    assert jobs.recovered == 1

    result(runs.submit(RunRequest()))

    assert health(runs)[0]
    assert jobs.recovered == 2


class SetClock:
    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def __call__(self) -> datetime:
        return self.moment


def test_a_new_daemon_is_healthy_until_its_first_run_is_overdue():
    clock = SetClock(NOON)
    runs = make_runs(ScriptedJobs(), now=clock, schedule=DAILY)
    runs.expect(datetime(2026, 1, 3, 3, tzinfo=UTC))
    assert health(runs) == (True, "no run has ended yet; the first is due at 2026-01-03T03:00:00Z")

    clock.moment = datetime(2026, 1, 4, 3, tzinfo=UTC)
    assert health(runs)[0]

    clock.moment += timedelta(seconds=1)
    assert health(runs) == (False, "the scheduled run of 2026-01-03T03:00:00Z is overdue")


def test_a_scheduled_run_that_goes_on_and_on_becomes_overdue_although_the_last_one_was_good():
    clock, gate = SetClock(NOON), Gate()
    runs = make_runs(ScriptedJobs(ending(Outcome.GOOD), gate), now=clock, schedule=DAILY)
    result(runs.submit(RunRequest()))
    endless = runs.submit_scheduled(NOON)
    assert endless
    assert gate.begun.wait(PATIENCE)
    runs.expect(NOON + timedelta(days=30))
    assert runs.status()["healthy"]

    clock.moment = NOON + timedelta(days=1, seconds=1)
    assert runs.status()["why"] == "the scheduled run of 2026-01-02T12:00:00Z is overdue"
    gate.open.set()
    result(endless)


def test_without_a_schedule_nothing_is_ever_overdue():
    clock = SetClock(NOON)
    runs = make_runs(ScriptedJobs(), now=clock)
    runs.expect(None)
    clock.moment += timedelta(days=1000)

    assert health(runs) == (True, "no run has ended yet")


# --- what is remembered across restarts ------------------------------------------------------------------------------


class Restarts:
    """Daemons' queues one after another, over one file that remembers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.emit = Recorder()
        self.clock = SetClock(NOON)

    def start(self, *runs: Callable[..., RunReport], schedule: Any = DAILY) -> tuple[Runs, ScriptedJobs]:
        memory, jobs = Memory(str(self.path), self.emit), ScriptedJobs(*runs)
        made = make_runs(
            jobs, self.emit, now=self.clock, schedule=schedule, remembered=memory.recall(), keep=memory.keep
        )
        made.expect(schedule.next_after(self.clock()) if schedule else None)
        made.catch_up()
        return made, jobs


@pytest.fixture
def restarts(tmp_path: Path) -> Restarts:
    return Restarts(tmp_path / "daemon.json")


def test_status_tells_the_same_after_a_restart(restarts: Restarts):
    volumes = (VolumeReport("shop", Outcome.GOOD), VolumeReport("wiki", Outcome.PARTIAL))
    reasons = (Reason("x", "wiki changed", "freeze it"),)
    before, _ = restarts.start(lambda *_: report(Outcome.PARTIAL, volumes=volumes, reasons=reasons))
    result(before.submit(RunRequest()))
    assert before.wait_idle(PATIENCE)

    after, _ = restarts.start()

    assert after.status() == before.status()
    assert after.status()["last_good"] == {"shop": "2026-01-02T12:00:00Z"}
    assert [each["error"] for each in restarts.emit.named("memory_reset")] == [f"there is no {restarts.path}"]


def test_what_a_reader_was_told_is_remembered_even_if_the_daemon_dies_the_next_moment(restarts: Restarts):
    before, _ = restarts.start()
    result(before.submit(RunRequest()))

    assert json.loads(restarts.path.read_bytes())["last_run"]["outcome"] == "good"
    assert json.loads(restarts.path.read_bytes())["running"] is None


def test_a_run_that_the_daemon_did_not_survive_is_the_last_run_and_was_interrupted(restarts: Restarts):
    gate = Gate()
    before, _ = restarts.start(ending(Outcome.GOOD), gate)
    result(before.submit(RunRequest()))
    restarts.clock.moment = NOON + timedelta(hours=1)
    killed = before.submit(RunRequest(tags={"a": "b"}))
    assert gate.begun.wait(PATIENCE)

    after, jobs = restarts.start()

    assert health(after) == (False, "the last run was interrupted: the daemon ended in the middle of it")
    assert after.status()["last_run"]["started"] == "2026-01-02T13:00:00Z"
    assert jobs.begun == []
    gate.open.set()
    result(killed)


@pytest.mark.parametrize("missed", [1, 2, 400])
def test_scheduled_runs_that_were_missed_are_made_up_for_once(restarts: Restarts, missed: int):
    restarts.start()
    restarts.clock.moment += timedelta(days=missed)

    after, jobs = restarts.start()
    eventually(lambda: after.status()["last_run"], "the missed run ends")

    assert [each.trigger for each in jobs.begun] == ["schedule"]
    assert [each["due"] for each in restarts.emit.named("run_caught_up")] == ["2026-01-03T03:00:00Z"]
    assert after.wait_idle(PATIENCE)
    _, jobs = restarts.start()
    assert jobs.begun == []
    assert len(restarts.emit.named("run_caught_up")) == 1


def test_a_run_that_kills_the_daemon_is_not_made_again_at_every_start(restarts: Restarts):
    restarts.start()
    restarts.clock.moment += timedelta(days=1)
    deadly = Gate()
    restarts.start(deadly)
    assert deadly.begun.wait(PATIENCE)

    after, jobs = restarts.start()

    assert health(after) == (False, "the last run was interrupted: the daemon ended in the middle of it")
    assert jobs.begun == []
    assert len(restarts.emit.named("run_caught_up")) == 1
    deadly.open.set()


def test_nothing_is_made_up_for_at_the_very_first_start_nor_before_a_run_was_due(restarts: Restarts):
    restarts.start()
    restarts.clock.moment = datetime(2026, 1, 3, 2, 59, 59, tzinfo=UTC)
    _, jobs = restarts.start()

    assert jobs.begun == []
    assert restarts.emit.named("run_caught_up") == []


def test_nothing_is_made_up_for_when_the_schedule_is_off_now_or_was_off_then(restarts: Restarts):
    restarts.start()
    restarts.clock.moment += timedelta(days=2)
    restarts.start(schedule=None)
    restarts.clock.moment += timedelta(days=2)
    restarts.start()

    assert restarts.emit.named("run_caught_up") == []


def test_a_new_schedule_has_not_missed_what_the_old_one_never_promised(restarts: Restarts):
    restarts.start(schedule=parse("0 3 * * *", UTC))
    restarts.clock.moment = datetime(2026, 1, 2, 20, tzinfo=UTC)
    restarts.start(schedule=parse("0 18 * * *", UTC))

    assert restarts.emit.named("run_caught_up") == []


def test_a_scheduled_run_that_waited_in_vain_when_the_daemon_was_stopped_is_made_up_for(restarts: Restarts):
    before, jobs = restarts.start(until_cancelled)
    running = before.submit(RunRequest(("big",)))
    eventually(lambda: jobs.begun, "the run begins")
    restarts.clock.moment = datetime(2026, 1, 3, 3, tzinfo=UTC)
    waiting = before.submit_scheduled(restarts.clock())
    assert waiting
    before.expect(datetime(2026, 1, 4, 3, tzinfo=UTC))
    before.interrupt()
    assert result(running).outcome is Outcome.INTERRUPTED

    after, jobs = restarts.start()
    eventually(lambda: len(jobs.begun) == 1, "the run is made up for")

    assert [each["due"] for each in restarts.emit.named("run_caught_up")] == ["2026-01-03T03:00:00Z"]
    assert after.wait_idle(PATIENCE)


def test_a_missed_run_is_not_forgotten_when_the_daemon_dies_before_it_has_made_up_for_it(restarts: Restarts):
    restarts.start()
    restarts.clock.moment += timedelta(days=1)
    memory = Memory(str(restarts.path), restarts.emit)
    dying = Runs(
        ScriptedJobs(), Recorder(), now=restarts.clock, schedule=DAILY, remembered=memory.recall(), keep=memory.keep
    )
    dying.expect(DAILY.next_after(restarts.clock()))

    assert memory.recall().due == datetime(2026, 1, 3, 3, tzinfo=UTC)


def test_volumes_that_came_and_went_over_the_years_do_not_pile_up(restarts: Restarts):
    old = {f"ci{number}": f"2025-01-01T00:00:00.{number % 1000:03}Z" for number in range(3_000)}
    runs = make_runs(
        ScriptedJobs(lambda *_: report(volumes=(VolumeReport("shop", Outcome.GOOD),))),
        remembered=Remembered(last_good=old),
    )
    result(runs.submit(RunRequest()))

    assert len(runs.status()["last_good"]) == 2_000
    assert "shop" in runs.status()["last_good"]


KNOWN = Remembered(
    last_run=json.loads(json.dumps(report(reasons=(Reason("x", "why"),)).as_json())) | {"trigger": "manual"},
    last_whole_run=None,
    last_good={"shop": "2026-01-02T12:00:00Z"},
    running={"trigger": "schedule", "volumes": [], "since": "2026-01-02T12:00:00Z"},
    due=NOON,
)


def test_what_is_kept_is_what_is_recalled(tmp_path: Path):
    memory = Memory(str(tmp_path / "daemon.json"), Recorder())
    memory.keep(KNOWN)

    assert memory.recall() == KNOWN
    assert [path.name for path in tmp_path.iterdir()] == ["daemon.json"]


def test_a_memory_torn_at_any_byte_is_started_anew_and_said(tmp_path: Path):
    path, emit = tmp_path / "daemon.json", Recorder()
    Memory(str(path), emit).keep(KNOWN)
    whole = path.read_bytes()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert Memory(str(path), emit).recall() == Remembered()

    assert len(emit.named("memory_reset")) == len(whole)
    assert all("is damaged" in each["error"] for each in emit.named("memory_reset"))


@settings(max_examples=60, deadline=None)
@given(
    document=st.fixed_dictionaries(
        {"format": st.just(1) | json_values},
        optional=dict.fromkeys(("last_run", "last_whole_run", "last_good", "running", "due"), json_values),
    )
)
def test_a_memory_of_any_other_content_stops_no_daemon(document: dict[str, Any]):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "daemon.json")
        path.write_text(json.dumps(document, default=repr))
        remembered = Memory(str(path), Recorder()).recall()

    Runs(ScriptedJobs(), Recorder(), now=lambda: NOON, schedule=DAILY, remembered=remembered).status()


def test_a_state_volume_that_takes_nothing_is_said_and_the_run_is_made_all_the_same(tmp_path: Path):
    emit = Recorder()
    memory = Memory(str(tmp_path / "gone" / "daemon.json"), emit)
    runs = make_runs(ScriptedJobs(), emit, keep=memory.keep)

    assert result(runs.submit(RunRequest())).outcome is Outcome.GOOD
    assert "No such file or directory" in emit.named("memory_unwritten")[0]["error"]


# --- the schedule's clock --------------------------------------------------------------------------------------------


class SimulatedClock:
    """A wall clock that moves only while someone waits; `jumps` (after so many waits, by so much) set it meanwhile."""

    def __init__(
        self, start: datetime, end: datetime, jumps: dict[int, timedelta] | None = None, least_waits: int = 0
    ) -> None:
        self.moment = start
        self.end = end
        self.jumps = jumps or {}
        self.least_waits = least_waits
        self.waits = 0

    def now(self) -> datetime:
        return self.moment

    def wait(self, seconds: float) -> bool:
        assert 0 <= seconds <= 30
        self.waits += 1
        # Real sleeps end a little late, and never exactly.
        self.moment += timedelta(seconds=seconds, microseconds=137) + self.jumps.pop(self.waits, timedelta())
        return self.moment >= self.end and self.waits > self.least_waits


class Times:
    """Runs that note when they were asked for."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock = clock
        self.asked: list[datetime] = []
        self.expected: list[datetime | None] = []
        self.verified: list[datetime] = []

    def verify_when_idle(self, due: datetime) -> None:
        self.verified.append(due)

    def expect_verification(self, due: datetime | None) -> None:
        pass

    def drill_when_idle(self, _: datetime) -> None:
        raise AssertionError("no drill is scheduled")

    def expect_drill(self, due: datetime | None) -> None:
        assert due is None

    def submit_scheduled(self, due: datetime) -> None:
        assert due == self.expected[-1]
        self.asked.append(self.clock.now())

    def expect(self, due: datetime | None) -> None:
        self.expected.append(due)


def scheduled_times(expression: str, clock: SimulatedClock) -> list[str]:
    times = Times(clock)
    Scheduler(parse(expression, UTC), times, now=clock.now, wait=clock.wait).run()  # type: ignore[arg-type]
    return [moment.isoformat(sep=" ", timespec="minutes")[:16] for moment in times.asked]


def test_scheduled_runs_start_at_their_times_day_after_day():
    clock = SimulatedClock(NOON, NOON + timedelta(days=3))

    assert scheduled_times("0 3 * * *", clock) == ["2026-01-03 03:00", "2026-01-04 03:00", "2026-01-05 03:00"]


def test_a_machine_that_slept_over_several_due_times_makes_one_run_when_it_wakes():
    clock = SimulatedClock(NOON, NOON + timedelta(days=6), {5: timedelta(days=4)})

    assert scheduled_times("0 3 * * *", clock) == ["2026-01-06 12:02", "2026-01-07 03:00", "2026-01-08 03:00"]


def test_a_clock_that_is_set_back_a_little_does_not_make_the_same_run_twice():
    start = datetime(2026, 1, 3, 2, 59, tzinfo=UTC)
    clock = SimulatedClock(start, start + timedelta(hours=2), {3: timedelta(minutes=-20)})

    assert scheduled_times("0 3 * * *", clock) == ["2026-01-03 03:00"]
    assert not clock.jumps


def test_a_clock_that_started_years_ahead_and_is_set_right_does_not_wait_for_that_year():
    ahead = NOON.replace(year=2038)
    clock = SimulatedClock(ahead, NOON + timedelta(days=1), {2: NOON - ahead}, least_waits=3)

    assert scheduled_times("0 3 * * *", clock) == ["2026-01-03 03:00"]


# Expressions, and the period in minutes, counted from midnight, that they mean.
PERIODS = [("* * * * *", 1), ("*/20 * * * *", 20), ("0 * * * *", 60), ("0 */3 * * *", 180), ("0 0 * * *", 1440)]
JUMPS = st.dictionaries(
    st.integers(1, 200),  # waits, of at most half a minute
    # Ahead by anything, as a machine that slept; back by little, as a clock that is set right.
    st.one_of(st.integers(1, 2 * 86_400), st.integers(-900, -1)).map(lambda seconds: timedelta(seconds=seconds)),
    max_size=3,
)


@settings(max_examples=100, deadline=None)
@given(schedule=st.sampled_from(PERIODS), begins=st.integers(0, 1439), jumps=JUMPS)
def test_however_the_clock_jumps_what_became_due_is_run_once_when_it_is_next_looked_at(schedule, begins, jumps):
    """Against the due minutes that the clock passes between two looks, if they lie after the last that was run."""
    expression, period = schedule
    start = NOON + timedelta(minutes=begins)
    clock = SimulatedClock(start, start, dict(jumps), least_waits=200)
    looks = [start]

    def wait(seconds: float) -> bool:
        stopped = clock.wait(seconds)
        looks.extend([] if stopped else [clock.now()])
        return stopped

    times = Times(clock)
    Scheduler(parse(expression, UTC), times, now=clock.now, wait=wait).run()  # type: ignore[arg-type]

    expected: list[datetime] = []
    latest = -1_000_000
    for before, look in pairwise(looks):
        first, last = ((each - NOON) // timedelta(minutes=1) for each in (before, look))
        if any((minute + 720) % period == 0 for minute in range(max(first, latest) + 1, last + 1)):
            expected.append(look)
            latest = last
    assert times.asked == expected
    assert not clock.jumps


def test_without_a_schedule_nothing_starts_by_itself():
    clock = SimulatedClock(NOON, NOON + timedelta(days=2))
    times = Times(clock)
    scheduler = Scheduler(None, times, now=clock.now, wait=clock.wait)  # type: ignore[arg-type]
    scheduler.run()

    assert scheduler.next_run is None
    assert times.expected == [None]
    assert times.asked == []


# --- the control API -------------------------------------------------------------------------------------------------


@dataclass
class Api:
    path: str
    runs: Runs
    jobs: ScriptedJobs
    crashes: list[str]

    @property
    def client(self) -> Daemon:
        return Daemon(self.path)

    def raw(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
        """Status and object of a request as a stranger would make it."""
        connection = http.client.HTTPConnection("daemon")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(self.path)
        connection.request(method, path, body)
        response = connection.getresponse()
        status, document = response.status, json.loads(response.read())
        connection.close()
        return status, document


@contextmanager
def control_api(*scripted: Callable[..., RunReport], warnings: tuple[str, ...] = ()) -> Iterator[Api]:
    with tempfile.TemporaryDirectory(prefix="sidecar-") as directory:
        jobs = ScriptedJobs(*scripted)
        runs = make_runs(jobs)
        crashes: list[str] = []
        path = f"{directory}/control.sock"
        guardian = Guardian(jobs, Recorder(), on=True, path=Path(directory, "guard.json"), now=lambda: NOON)
        api = ControlApi(
            runs,
            jobs,
            guardian,
            facts=lambda: {"schedule": "0 3 * * *", "next_run": "2026-01-03T03:00:00Z"},
            warnings=warnings,
            crashed=lambda error, where: crashes.append(f"{where}: {error!r}"),
        )
        server = Server(
            api.app(), ControlSocket(path).listen(), crashed=lambda error, where: crashes.append(f"{where}: {error!r}")
        )
        server.start()
        yield Api(path, runs, jobs, crashes)
        server.stop(PATIENCE)


def test_a_run_is_followed_through_warnings_and_progress_to_its_report():
    gate = Gate()
    with control_api(gate, warnings=("BACKUP_GUARD is set",)) as api:
        lines = api.client.follow("/runs", {"volumes": ["shop"], "full": True, "tags": {"why": "upgrade"}})

        assert next(lines) == {"warning": "BACKUP_GUARD is set"}
        assert next(lines) == {
            "progress": {"phase": "copying", "volume": "shop_data", "done_bytes": 10, "total_bytes": 100}
        }
        gate.open.set()
        assert list(lines) == [{"report": json.loads(json.dumps(report().as_json()))}]
        assert api.jobs.begun == [RunRequest(("shop",), full=True, tags={"why": "upgrade"})]


def test_a_restore_is_followed_to_its_report_and_planned_without_one():
    with control_api(lambda *_: restored()) as api:
        assert api.client.get("/restores", {"set": "latest", "volume": ["a", "b"]}) == {
            "set": "latest",
            "volumes": ["a", "b"],
        }
        lines = list(api.client.follow("/restores", {"set": "latest", "volumes": ["shop"]}))
        assert lines[-1] == {"report": json.loads(json.dumps(restored().as_json()))}
        assert api.jobs.begun == [RestoreRequest("latest", ("shop",))]


@pytest.mark.parametrize("path", ["/restores", "/drills"])
@pytest.mark.parametrize("body", [b"[]", b'{"set": 1}', b'{"volumes": "a"}', b'{"what": 1}', b'{"no_wait": "x"}'])
def test_a_malformed_request_restores_nothing(body: bytes, path: str):
    with control_api() as api:
        status, document = api.raw("POST", path, body)
        assert (status, document["code"]) == (400, "usage")
        assert api.jobs.begun == []


def test_a_reader_is_told_why_a_run_stands_still():
    gate = Gate()
    with control_api(gate) as api:
        lines = api.client.follow("/runs", {})
        next(lines)
        api.runs.notice("store_retry", {"error": "s3 answered 503", "hint": "wait"})
        api.runs.notice("group_frozen", {"group": "shop"})

        assert next(lines) == {"warning": "s3 answered 503 - wait"}
        gate.open.set()
        assert [line.keys() for line in lines] == [{"report"}]


def test_a_second_reader_is_told_for_what_it_waits_and_then_has_its_own_run():
    gate = Gate()
    with control_api(gate) as api:
        first = api.client.follow("/runs", {"volumes": ["a"]})
        next(first)
        second = api.client.follow("/runs", {"volumes": ["b"]})

        assert next(second) == {
            "waiting_for": {"activity": "run", "trigger": "manual", "volumes": ["a"], "since": "2026-01-02T12:00:00Z"}
        }
        gate.open.set()
        assert [line.keys() for line in second] == [{"report"}]
        assert [each.volumes for each in api.jobs.begun] == [("a",), ("b",)]


def test_progress_comes_in_a_trickle_however_often_the_run_tells_it():
    def busy(follow: Follow, _: threading.Event) -> RunReport:
        end = time.monotonic() + 0.5
        count = 0
        while time.monotonic() < end:
            count += 1
            follow(Progress("packing", "shop", count, 0))
        assert count > 1_000
        return report()

    with control_api(busy) as api:
        lines = list(api.client.follow("/runs", {}))

    assert 2 <= len([line for line in lines if "progress" in line]) <= 8


def test_a_reader_who_leaves_does_not_stop_the_run():
    gate = Gate()
    with control_api(gate) as api:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(api.path)
        connection.sendall(b"POST /runs HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        assert gate.begun.wait(PATIENCE)
        connection.close()

        assert api.client.get("/status")["state"] == "running"
        gate.open.set()
        assert api.runs.wait_idle(PATIENCE)
        assert api.client.get("/status")["last_run"]["outcome"] == "good"
        assert api.crashes == []


def test_a_refused_request_is_an_error_line_or_a_status_with_the_same_words():
    gate = Gate()
    with control_api(raising(NotFound("no volume x", hint="there is y")), gate) as api:
        assert list(api.client.follow("/runs", {"volumes": ["x"]})) == [
            {"error": {"code": "not_found", "message": "no volume x", "hint": "there is y"}}
        ]
        running = api.client.follow("/runs", {})
        next(running)
        status, error = api.raw("POST", "/runs", b'{"no_wait": true}')
        gate.open.set()
        list(running)

    assert (status, error["code"]) == (409, "busy")
    assert error["message"].startswith("a run (manual) has been going on since")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"volume": []}',
        b'{"volumes": "a"}',
        b'{"volumes": [1]}',
        b'{"tags": {"a": 1}}',
        b'{"full": 1}',
        b"\xff",
    ],
)
def test_a_malformed_request_starts_nothing_and_says_why(body: bytes):
    with control_api() as api:
        status, error = api.raw("POST", "/runs", body)

        assert (status, error["code"]) == (400, "usage")
        assert error["message"]
        assert api.jobs.begun == []


def test_an_unexpected_error_of_one_request_is_logged_and_the_next_is_answered():
    with control_api() as api:
        status, error = api.raw("GET", "/plan")

        assert (status, error["code"]) == (500, "internal_error")
        assert "Mounts" not in error["message"]
        assert api.crashes == ["GET /plan: KeyError('Mounts')"]
        assert api.raw("GET", "/status")[0] == 200


def test_cancelling_ends_the_run_that_goes_on_and_no_other():
    with control_api(until_cancelled) as api:
        running, waiting = api.runs.submit(RunRequest(("a",))), api.runs.submit(RunRequest(("b",)))
        eventually(lambda: api.jobs.begun, "the run begins")

        answer = api.client.post("/cancel")

        assert (answer["ended"], answer["outcome"], answer["set"]) == (True, "interrupted", None)
        assert answer["cancelled"] == {
            "activity": "run",
            "trigger": "manual",
            "volumes": ["a"],
            "since": "2026-01-02T12:00:00Z",
        }
        assert [each["volumes"] for each in answer["waiting"]] == [["b"]]
        assert result(running).outcome is Outcome.INTERRUPTED
        assert result(waiting).outcome is Outcome.GOOD
        assert api.runs.wait_idle(PATIENCE)
        assert api.raw("POST", "/cancel")[0] == 404
        assert api.crashes == []


def test_a_run_that_came_to_its_end_all_the_same_is_told_as_it_ended():
    def deaf(_: Follow, cancelled: threading.Event) -> RunReport:
        assert cancelled.wait(PATIENCE)
        return report()

    with control_api(deaf) as api:
        api.runs.submit(RunRequest())
        eventually(lambda: api.jobs.begun, "the run begins")
        answer = api.client.post("/cancel")

    assert (answer["ended"], answer["outcome"], answer["set"]) == (True, "good", "backup-20260102_120000")


def test_arguments_reach_the_list_of_sets_as_they_were_given():
    with control_api() as api:
        with pytest.raises(Complaint) as caught:
            api.client.get("/sets", {"set": "latest", "volume": "a b", "pattern": "*.sql&x=1"})

        assert (caught.value.code, caught.value.message) == ("not_found", "no set latest of a b with *.sql&x=1")
        assert api.raw("GET", "/sets")[0] == 404


def test_a_volume_is_released_for_as_long_as_is_said_and_protected_again():
    with control_api() as api:
        released = api.client.post("/guard/release", {"volume": "a", "for": "90s"})
        assert released == api.client.get("/guard") == api.client.get("/status")["guard"]
        assert (released["released"], list(released["protected"])) == ({"a": "2026-01-02T12:01:30Z"}, ["b"])
        assert api.client.post("/guard/release", {"volume": "b"})["released"]["b"] == "2026-01-02T12:10:00Z"
        assert list(api.client.post("/guard/protect", {"volume": "b"})["released"]) == ["a"]


@pytest.mark.parametrize(
    ("wanted", "code"),
    [({"volume": "a", "for": "soon"}, "usage"), ({"volume": "a", "until": "x"}, "usage"), ({}, "not_found")],
)
def test_a_release_that_cannot_be_understood_is_refused(wanted: dict[str, str], code: str):
    with control_api() as api:
        with pytest.raises(Complaint) as caught:
            api.client.post("/guard/release", wanted)
        assert caught.value.code == code
        assert api.client.get("/guard")["released"] == {}


def test_status_has_what_the_interface_promises():
    with control_api(warnings=("w",)) as api:
        status = api.client.get("/status")

    assert status.keys() >= {
        *("state", "healthy", "why", "next_run", "last_run", "last_good"),
        *("last_verify", "last_drill", "guard", "pending", "running"),
    }
    assert (status["state"], status["next_run"], status["warnings"]) == ("idle", "2026-01-03T03:00:00Z", ["w"])


def test_only_its_owner_may_open_the_control_socket():
    with control_api() as api:
        assert stat.S_IMODE(os.stat(api.path).st_mode) == 0o600


def test_a_socket_that_a_dead_daemon_left_is_replaced_and_a_living_daemons_is_not():
    with tempfile.TemporaryDirectory(prefix="sidecar-") as directory:
        path = f"{directory}/control.sock"
        dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        dead.bind(path)
        dead.close()

        living = ControlSocket(path)
        listener = living.listen()
        with pytest.raises(Busy, match="another daemon"):
            ControlSocket(path)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(path)
        client.close()
        listener.close()


def test_a_directory_that_cannot_be_written_is_a_missing_mount(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(MountMissing, match="cannot be written"):
        ControlSocket(str(tmp_path / "file" / "control.sock"))


# --- the daemon, as a process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_that_is_told_to_stop_says_so_and_leaves_in_order(how: signal.Signals):
    with fake_daemon() as daemon:
        daemon.wait_for("daemon_started")

        assert daemon.stop(how) == 0

    assert [line["event"] for line in daemon.events()] == [
        "memory_reset",
        "recovered",
        "daemon_started",
        "daemon_stopped",
    ]
    assert daemon.events()[-1]["mid_run"] is False


def test_a_daemon_that_is_told_to_stop_mid_run_ends_the_run_tells_its_reader_and_leaves_with_143():
    with fake_daemon() as daemon:
        daemon.wait_for("daemon_started")
        lines = Daemon(daemon.socket).follow("/runs", {"volumes": ["hold"]})
        next(lines)

        assert daemon.stop() == 143
        (last,) = [line for line in lines if "report" in line]

    assert last["report"]["outcome"] == "interrupted"
    assert last["report"]["reasons"][0]["code"] == "interrupted"
    assert [line["event"] for line in daemon.events()][-2:] == ["run_failed", "daemon_stopped"]
    assert daemon.events()[-1]["mid_run"] is True


def test_a_run_that_does_not_end_does_not_hold_the_daemon():
    with fake_daemon(FAKE_PATIENCE="0.2") as daemon:
        daemon.wait_for("daemon_started")
        lines = Daemon(daemon.socket).follow("/runs", {"volumes": ["stuck"]})
        next(lines)

        assert daemon.stop() == 143
        with pytest.raises(Complaint) as caught:
            list(lines)

    assert caught.value.code == "interrupted"
    stopped = daemon.events()[-1]
    assert (stopped["event"], stopped["level"]) == ("daemon_stopped", "error")
    assert "did not end" in stopped["error"]


def test_until_the_engine_is_there_whoever_asks_is_told_what_is_waited_for_and_then_served():
    with fake_daemon(FAKE_ENGINE_AWAY="yes") as daemon:
        daemon.wait_for("start_delayed")
        client = Daemon(daemon.socket)

        waiting = client.get("/status")
        with pytest.raises(Complaint) as caught:
            list(client.follow("/runs", {}))
        daemon.gate.touch()
        daemon.wait_for("daemon_started")

        assert (waiting["state"], waiting["healthy"]) == ("starting", False)
        assert waiting["why"] == "not started yet: nothing answers; start the engine"
        assert (caught.value.code, caught.value.hint) == ("engine_unreachable", "start the engine")
        assert caught.value.message == "the daemon has not started yet: nothing answers"
        assert client.get("/status").keys() >= waiting.keys()
        assert client.get("/status")["state"] == "idle"


def test_while_the_engine_is_away_a_stop_is_heeded_at_once():
    with fake_daemon(FAKE_ENGINE_AWAY="yes") as daemon:
        daemon.wait_for("start_delayed")

        assert daemon.stop() == 0


def test_while_it_recovers_status_answers_and_a_run_waits_and_is_told_so():
    with fake_daemon(FAKE_SLOW_RECOVERY="1") as daemon:
        client = Daemon(daemon.socket)
        eventually(lambda: listens(daemon.socket), "the daemon listens")
        eventually(lambda: "put right" in client.get("/status")["why"], "it recovers")
        state = client.get("/status")["state"]
        lines = list(client.follow("/runs", {}))

    assert state == "starting"
    assert any("still starting" in line.get("warning", "") for line in lines)
    assert lines[-1]["report"]["outcome"] == "good"


def test_a_stop_during_recovery_is_heeded_once_everything_is_thawed():
    with fake_daemon(FAKE_SLOW_RECOVERY="0.3") as daemon:
        eventually(lambda: listens(daemon.socket), "the daemon listens")

        assert daemon.stop() == 0

    assert "recovered" in [line["event"] for line in daemon.events()]


def test_a_daemon_that_was_down_when_a_run_was_due_makes_it_when_it_starts_and_says_so(tmp_path: Path):
    memory = str(tmp_path / "daemon.json")
    Memory(memory, Recorder()).keep(Remembered(due=NOON))
    with fake_daemon(FAKE_MEMORY=memory) as daemon:
        assert daemon.wait_for("run_caught_up")["due"] == "2026-01-02T12:00:00Z"
        assert daemon.wait_for("run_started")["trigger"] == "schedule"
        daemon.wait_for("run_finished")
        assert daemon.stop() == 0

    with fake_daemon(FAKE_MEMORY=memory) as daemon:
        daemon.wait_for("daemon_started")
        assert Daemon(daemon.socket).get("/status")["last_run"]["trigger"] == "schedule"
        assert daemon.stop() == 0
    assert "run_caught_up" not in [line["event"] for line in daemon.events()]


def test_a_daemon_that_was_killed_mid_run_says_so_when_it_is_there_again(tmp_path: Path):
    memory = str(tmp_path / "daemon.json")
    with fake_daemon(FAKE_MEMORY=memory) as daemon:
        daemon.wait_for("daemon_started")
        next(Daemon(daemon.socket).follow("/runs", {"volumes": ["hold"]}))
        daemon.stop(signal.SIGKILL)

    with fake_daemon(FAKE_MEMORY=memory) as daemon:
        daemon.wait_for("daemon_started")
        status = Daemon(daemon.socket).get("/status")

    assert (status["healthy"], status["why"]) == (
        False,
        "the last run was interrupted: the daemon ended in the middle of it",
    )


def test_settings_that_cannot_be_used_are_all_named_and_the_daemon_leaves_with_2():
    with fake_daemon(S3_BACKUP_BUKET="sets", BACKUP_MAX_PAUSE="soon") as daemon:
        assert daemon.process.wait(PATIENCE) == 2
        line = daemon.wait_for("config_invalid")

    assert len(line["problems"]) == 2
    assert "S3_BACKUP_BUCKET" in line["error"]
    assert len(daemon.lines) == 1


def test_a_second_daemon_at_the_same_socket_gives_way_before_it_touches_anything():
    with fake_daemon() as first:
        first.wait_for("daemon_started")
        with fake_daemon(first.socket) as second:
            assert second.process.wait(PATIENCE) == 11
            assert "another daemon" in second.wait_for("daemon_stopped")["error"]
            assert [line["event"] for line in second.events()] == ["daemon_stopped"]
        assert Daemon(first.socket).get("/status")["state"] == "idle"


def test_a_second_daemon_on_the_same_state_volume_says_who_holds_it_and_touches_nothing(tmp_path: Path):
    memory = str(tmp_path / "daemon.json")
    with fake_daemon(FAKE_MEMORY=memory, BACKUP_GUARD="off") as first:
        first.wait_for("daemon_started")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with fake_daemon(FAKE_MEMORY=memory) as second:
            assert second.process.wait(PATIENCE) == 11
            error = second.wait_for("daemon_stopped")["error"]
            assert error.startswith(
                f"the state volume is held by the daemon in container {socket.gethostname()}, since"
            )
            assert [line["event"] for line in second.events()] == ["daemon_stopped"]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    with fake_daemon(FAKE_MEMORY=memory) as third:  # the kernel has freed it
        third.wait_for("daemon_started")


def test_a_daemon_whose_place_another_sidecar_has_leaves_with_11_and_serves_nobody():
    with fake_daemon(FAKE_RIVAL="other") as daemon:
        assert daemon.process.wait(PATIENCE) == 11
        stopped = daemon.wait_for("daemon_stopped")
        assert (stopped["error"], stopped["hint"]) == ("s3 belongs to the sidecar other", "stop one of them")
        assert [line["event"] for line in daemon.events()] == ["memory_reset", "daemon_stopped"]


def test_a_state_volume_that_takes_no_file_is_said_and_stops_no_daemon(tmp_path: Path):
    emit = Recorder()
    (tmp_path / "daemon.lock").mkdir()
    assert alone.hold(str(tmp_path), "c", NOON, emit) is None
    assert [name for name, _ in emit.events] == ["memory_unwritten"]


def test_the_daemons_stdout_is_json_alone_and_holds_no_secret():
    secret = "wJalrXUtnFEMI/K7MDENG"
    with fake_daemon(
        AWS_ACCESS_KEY_ID="demo", AWS_SECRET_ACCESS_KEY=secret, BACKUP_OBJECT_LOCK="governance:30d"
    ) as daemon:
        daemon.wait_for("daemon_started")
        (last,) = [line for line in Daemon(daemon.socket).follow("/runs", {"volumes": ["crash"]}) if "report" in line]
        assert daemon.stop() == 0
        assert daemon.process.stderr
        stderr = daemon.process.stderr.read().decode()

    events = [line["event"] for line in daemon.events()]  # each of them parsed as JSON
    assert {"config_warning", "run_started", "run_failed"} <= set(events)
    assert secret not in "".join(daemon.lines)
    assert secret not in json.dumps(last)
    assert "a library that prints" in stderr
    assert "and one that writes to the descriptor" in stderr
