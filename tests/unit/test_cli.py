"""The verbs, against a real daemon over its socket: words, JSON, exit codes, a terminal, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from click.testing import CliRunner, Result
from rich.text import Text

from sidecar.cli.main import EXIT_CODES, main
from sidecar.cli.words import Words, duration, printable, size
from sidecar.report import Outcome
from tests.unit.fake_daemon import FILE, PLAN, SET
from tests.unit.fake_daemon_process import PATIENCE, REPOSITORY, DaemonProcess, environment, eventually, fake_daemon

PROGRAM = [sys.executable, "-c", "from sidecar.cli.main import main; main()"]
PROMISED_REPORT = {
    *("run", "set", "outcome", "started", "duration_ms", "paused_ms", "off_host", "reasons", "unprotected"),
    *("stores", "groups", "volumes", "warnings"),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    with fake_daemon(BACKUP_OBJECT_LOCK="governance:30d") as process:
        process.wait_for("daemon_started")
        yield process


def invoke(daemon: DaemonProcess, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--socket", daemon.socket])


@contextmanager
def gate_open(daemon: DaemonProcess) -> Iterator[None]:
    daemon.gate.touch()
    try:
        yield
    finally:
        daemon.gate.unlink()


# Hidden ones are for the product itself.
VERBS = sorted(name for name, command in main.commands.items() if not command.hidden)


# --- run-now ---------------------------------------------------------------------------------------------------------


def test_a_good_run_is_told_in_words_and_leaves_with_0(daemon: DaemonProcess):
    done = invoke(daemon, "run-now")

    assert done.exit_code == 0
    assert "packing shop_data\n" in done.stdout
    header, row = [line.split() for line in done.stdout.splitlines() if line.startswith(("volume ", "shop_data "))]
    amounts = [" ".join(row[start : start + 2]) for start in (3, 5, 7, 9)]
    assert dict(zip(header, [*row[:3], *amounts], strict=True)) == {
        "volume": "shop_data",
        "outcome": "good",
        "entries": "12",
        "read": "9.0 MiB",
        "archive": "5.0 MiB",
        "sent": "2.0 MiB",
        "paused": "182 ms",
    }
    assert "good: set backup-20260102_030000, in 41.3 s" in done.stdout
    assert "shop: shop-db-1, shop-web-1 paused for 182 ms" in done.stdout
    assert "shop: not paused, as `plan` explains: shop-cache-1" in done.stdout
    assert "lies in local" in done.stdout
    assert "shop-web-1: /srv/uploads (a bind mount)" in done.stdout
    assert done.stderr == ""


def test_a_partial_run_says_why_and_what_to_do_and_leaves_with_3(daemon: DaemonProcess):
    done = invoke(daemon, "run-now", "partial")

    assert done.exit_code == 3
    assert "nothing is off this host; set S3_BACKUP_BUCKET" in done.stdout
    assert "nothing of this set is off this host" in done.stdout


def test_a_files_name_does_not_drive_the_terminal(daemon: DaemonProcess):
    done = invoke(daemon, "run-now", "partial")

    assert "\x1b" not in done.stdout
    assert r"a\x1b[31m\nb\udcff.txt" in done.stdout


@pytest.mark.parametrize(
    ("volume", "code", "words"),
    [
        ("failed", 1, "s3: s3 refuses backups/x; grant s3:PutObject"),
        ("crash", 1, "the run failed unexpectedly: RuntimeError"),
    ],
)
def test_a_failed_run_says_why_and_leaves_with_1(daemon: DaemonProcess, volume: str, code: int, words: str):
    done = invoke(daemon, "run-now", volume)

    assert done.exit_code == code
    assert words in done.stdout
    assert "Traceback" not in done.output


def test_a_volume_that_does_not_exist_is_exit_code_10(daemon: DaemonProcess):
    done = invoke(daemon, "run-now", "missing")

    assert done.exit_code == 10
    assert done.stderr == "error: there is no volume missing\n  there are shop_data and wiki\n"


def test_settings_that_do_nothing_yet_are_pointed_out_once(daemon: DaemonProcess):
    assert invoke(daemon, "run-now").stdout.count("BACKUP_OBJECT_LOCK is set, but this version") == 1


@pytest.mark.parametrize("volume", ["good", "partial", "failed", "crash"])
def test_json_of_a_run_is_one_object_with_all_that_is_promised_and_the_same_exit_code(
    daemon: DaemonProcess, volume: str
):
    done = invoke(daemon, "run-now", volume, "--json")

    document = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert document.keys() >= PROMISED_REPORT
    assert done.exit_code == {"good": 0, "partial": 3, "failed": 1}[document["outcome"]]


def test_json_of_an_error_is_one_object_too(daemon: DaemonProcess):
    done = invoke(daemon, "run-now", "missing", "--json")

    assert json.loads(done.stdout) == {
        "error": {"code": "not_found", "message": "there is no volume missing", "hint": "there are shop_data and wiki"}
    }
    assert done.exit_code == 10


def test_tags_and_volumes_reach_the_run(daemon: DaemonProcess):
    invoke(daemon, "run-now", "a", "b", "--tag", "reason=big=upgrade", "--tag", "who = me")

    started = daemon.wait_for("run_started")
    while started["volumes"] != ["a", "b"]:
        started = daemon.wait_for("run_started")
    assert started["tags"] == {"reason": "big=upgrade", "who": "me"}


@pytest.mark.parametrize(
    "words",
    [
        ("run-now", "--tag", "reason"),
        ("run-now", "--tag", "=x"),
        ("run-now", "--tag", "a=1", "--tag", "a=2"),
        ("run-now", "--fast"),
        ("plan", "everything"),
        ("list", "a", "b", "c", "d"),
        ("verify", "--quick", "--full"),
        ("verify", "latest", "--full", "--quick"),
        ("restart",),
    ],
)
def test_wrong_usage_is_exit_code_2_and_starts_nothing(words: tuple[str, ...]):
    done = CliRunner().invoke(main, [*words])

    assert done.exit_code == 2
    assert "Error:" in done.stderr


@contextmanager
def waiting_run(daemon: DaemonProcess) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on until the gate is open, with its reader."""
    reader = subprocess.Popen(
        [*PROGRAM, "run-now", "gate", "--socket", daemon.socket], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout
    for line in reader.stdout:
        if line == "copying shop_data\n":
            break
    try:
        yield reader
    finally:
        daemon.gate.touch()
        reader.communicate(timeout=PATIENCE)
        daemon.gate.unlink()


def test_a_run_that_must_not_wait_is_exit_code_11_while_another_goes_on(daemon: DaemonProcess):
    with waiting_run(daemon):
        done = invoke(daemon, "run-now", "--no-wait")

    assert done.exit_code == 11
    assert "a run (manual) has been going on since" in done.stderr


def test_a_run_that_waits_says_for_what_and_then_has_its_turn(daemon: DaemonProcess):
    with waiting_run(daemon):
        second = subprocess.Popen(
            [*PROGRAM, "run-now", "--socket", daemon.socket], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert second.stdout
        for line in second.stdout:
            if line.startswith("waiting for the run (manual) that has been going on since "):
                break
        else:
            pytest.fail("it did not say that it waits")

    rest, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0
    assert "good: set" in rest


# --- without, and with a dying daemon --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run-now", "plan", "list", "status", "cancel"])
def test_without_a_daemon_a_verb_says_so_in_a_sentence_with_a_hint(verb: str):
    done = CliRunner().invoke(main, [verb, "--socket", "/nowhere/control.sock"])

    assert done.exit_code == 1
    first, hint = done.stderr.splitlines()
    assert first == "error: no daemon answers on /nowhere/control.sock"
    assert "docker logs backup" in hint
    assert done.stdout == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_a_daemon_that_is_told_to_stop_mid_run_is_exit_code_143(as_json: bool):
    with fake_daemon() as own:
        own.wait_for("daemon_started")
        reader = subprocess.Popen(
            [*PROGRAM, "run-now", "hold", "--socket", own.socket, *(["--json"] if as_json else [])],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        own.wait_for("run_started")
        assert own.stop() == 143
        stdout, _ = reader.communicate(timeout=PATIENCE)

    assert reader.returncode == 143
    if as_json:
        assert json.loads(stdout)["outcome"] == "interrupted"
    else:
        assert "the run was told to stop" in stdout


def test_a_daemon_that_is_killed_mid_run_is_exit_code_143_with_a_sentence():
    with fake_daemon() as own:
        own.wait_for("daemon_started")
        reader = subprocess.Popen(
            [*PROGRAM, "run-now", "hold", "--socket", own.socket], env=environment(), stderr=subprocess.PIPE, text=True
        )
        own.wait_for("run_started")
        own.process.kill()
        _, stderr = reader.communicate(timeout=PATIENCE)

    assert reader.returncode == 143
    assert stderr.startswith("error: the daemon stopped before it had answered\n")


def test_an_unexpected_error_is_a_sentence_and_a_traceback_only_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.cli.client.Daemon.get", lambda *_: {"no": "groups"})

    done = CliRunner().invoke(main, ["plan"])
    debugged = CliRunner().invoke(main, ["plan", "--debug"])

    assert done.exit_code == debugged.exit_code == 1
    assert done.stderr.splitlines()[0] == "error: plan failed unexpectedly: KeyError: 'groups'"
    assert "--debug" in done.stderr
    assert "Traceback" not in done.output
    assert "Traceback" in debugged.output


# --- plan, list, status ----------------------------------------------------------------------------------------------


def test_plan_names_groups_who_is_quiesced_and_how_what_is_left_out_and_why(daemon: DaemonProcess):
    done = invoke(daemon, "plan")

    assert done.exit_code == 0
    for words in (
        "group shop",
        "/var/lib/docker/volumes/shop_data/_data",
        "shop-db-1  pause        BACKUP_QUIESCE",
        "pre   shop-db-1  pg_dump > /dump/[all]  10 min 0 s  the group fails",
        "post  shop-db-1  rm /dump/*             10 min 0 s  the run is partial",
        "no container can write to it",
        "nfs     it is not mounted  mount it",
        "shop-web-1: /srv/uploads (a bind mount)",
        "container x has a label [that] nobody knows",
        "sets go to s3 (s3://sets/backups), local (/data/backups)",
        "(schedule 0 3 * * *)",
    ):
        assert words in done.stdout, words


def test_json_of_a_plan_is_the_plan_with_what_the_daemon_knows(daemon: DaemonProcess):
    document = json.loads(invoke(daemon, "plan", "--json").stdout)

    assert document["schedule"] == "0 3 * * *"
    assert document.pop("next_run").endswith("T03:00:00Z")
    assert document.pop("next_verify").endswith("T05:00:00Z")
    assert document.pop("next_drill").endswith("-01T06:00:00Z")
    assert document == PLAN | {"schedule": "0 3 * * *"}


def test_an_engine_that_does_not_answer_is_exit_code_1_with_its_hint(daemon: DaemonProcess):
    with gate_open(daemon):
        done = invoke(daemon, "plan")

    assert done.exit_code == 1
    assert done.stderr == "error: nothing answers on /var/run/docker.sock\n  mount the socket\n"


def test_list_shows_sets_then_volumes_then_files(daemon: DaemonProcess):
    sets = invoke(daemon, "list").stdout
    volumes = invoke(daemon, "list", "latest").stdout
    files = invoke(daemon, "list", "latest", "shop_data").stdout

    assert (
        "backup-20260102_030000  good           1  9.0 MiB   5.0 MiB  s3                         reason=upgrade" in sets
    )
    assert "shop_data       12  9.0 MiB  5.0 MiB" in volumes
    assert "made on host-1 (--host ''), lies in s3" in volumes
    assert r"-0644  999:0     3  2026-01-01 00:00:00+00:00  ./a\x1b[31m\nb\udcff.txt" in files


def test_where_there_is_no_set_what_to_do_is_said(capsys) -> None:
    Words(terminal=False).listing({"sets": [], "hint": "there are sets for --host web-1"}, one_set=False)
    assert capsys.readouterr().out == "there is no set; there are sets for --host web-1\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_one_long_path_is_told_whole_and_costs_no_other_row_a_column(capsys, monkeypatch, terminal: bool) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "/".join(["d" * 200] * 8)
    files = [{**FILE, "path": "notes.txt"}, {**FILE, "path": long, "size": 12_345_678_901}]

    Words(terminal=terminal).listing({"files": files}, one_set=False)

    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    moment = r"[\d-]+ [\d:]+[+-]\d\d:\d\d"
    assert re.fullmatch(r" *mode +owner +size +changed +path", lines[0])
    assert re.fullmatch(rf"-0644  999:0 +3  {moment}  notes\.txt", lines[1])
    assert re.fullmatch(rf"-0644  999:0  12345678901  {moment}  {long}", lines[2])


def test_a_table_on_a_narrow_terminal_cuts_nothing_off(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "v" * 150

    Words(terminal=True).listing({"sets": [SET | {"volumes": {name: SET["volumes"]["shop_data"]}}]}, one_set=True)

    shown = capsys.readouterr().out
    assert "…" not in shown
    assert shown.count("v") >= len(name)


def test_list_shows_only_files_that_match_and_none_is_exit_code_10(daemon: DaemonProcess):
    some = invoke(daemon, "list", "latest", "shop_data", "*.sqlite")
    none = invoke(daemon, "list", "latest", "shop_data", "*.mp4")

    assert (some.exit_code, some.stdout.count("./")) == (0, 1)
    assert none.exit_code == 10
    assert none.stderr.startswith("error: no file of shop_data matches *.mp4\n  `list latest shop_data` shows all")


def test_a_set_that_does_not_exist_is_exit_code_10(daemon: DaemonProcess):
    assert invoke(daemon, "list", "backup-19700101_000000").exit_code == 10


def test_a_store_that_does_not_answer_makes_the_list_partial(daemon: DaemonProcess):
    with gate_open(daemon):
        done = invoke(daemon, "list")

    assert done.exit_code == 3
    assert "there is no set" in done.stdout
    assert done.stderr == "warning: store s3 did not answer: no route\n"


def test_json_of_a_list_is_what_the_interface_promises(daemon: DaemonProcess):
    assert json.loads(invoke(daemon, "list", "--json").stdout)["sets"] == [SET]
    files = json.loads(invoke(daemon, "list", "latest", "shop_data", "--json").stdout)["files"]
    assert files[1]["path"] == "./a\x1b[31m\nb\udcff.txt"


def test_status_tells_the_state_the_last_run_and_the_next(daemon: DaemonProcess):
    invoke(daemon, "run-now")

    words = invoke(daemon, "status").stdout
    document = json.loads(invoke(daemon, "status", "--json").stdout)

    assert "idle, healthy: the last run was good" in words
    assert "last run at 2026-01-02 03:00:00 UTC: good, backup-20260102_030000" in words
    assert "next run at" in words
    assert document["last_run"]["set"] == "backup-20260102_030000"
    assert document["last_good"] == {"shop_data": "2026-01-02T03:00:00Z"}


def test_check_of_a_healthy_daemon_is_one_line_and_exit_code_0(daemon: DaemonProcess):
    invoke(daemon, "run-now")
    done = invoke(daemon, "status", "--check")

    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "healthy: the last run was good, at 2026-01-02T03:00:00Z\n"


@pytest.mark.parametrize(
    ("volume", "line"),
    [
        ("partial", "not healthy: the last run was partial: nothing is off this host\n"),
        ("failed", "not healthy: the last run failed: s3 refuses backups/x\n"),
    ],
)
def test_check_of_an_unhealthy_daemon_is_one_line_that_says_why_and_exit_code_1(
    daemon: DaemonProcess, volume: str, line: str
):
    invoke(daemon, "run-now", volume)
    done = invoke(daemon, "status", "--check")
    document = invoke(daemon, "status", "--check", "--json")
    invoke(daemon, "run-now")

    assert (done.exit_code, done.stdout) == (1, line)
    assert (document.exit_code, json.loads(document.stdout)["healthy"]) == (1, False)


def test_check_without_a_daemon_is_exit_code_1():
    done = CliRunner().invoke(main, ["status", "--check", "--socket", "/nowhere/control.sock"])

    assert done.exit_code == 1
    assert "no daemon answers" in done.stderr


# --- verify, keep ----------------------------------------------------------------------------------------------------


def test_a_whole_set_is_told_in_words_and_leaves_with_0(daemon: DaemonProcess):
    done = invoke(daemon, "verify", "--quick")

    assert done.exit_code == 0
    assert "verifying shop_data\n" in done.stdout
    assert re.search(r"^s3 +shop_data +whole +5.0 MiB$", done.stdout, re.MULTILINE)
    assert "good: backup-20260102_030000, verified (quick) in 7.3 s" in done.stdout


def test_a_damaged_set_says_what_is_wrong_and_what_to_do_and_leaves_with_1(daemon: DaemonProcess):
    with gate_open(daemon):
        done = invoke(daemon, "verify")
        status = invoke(daemon, "status")
        checked = invoke(daemon, "status", "--check")
    invoke(daemon, "verify")

    assert done.exit_code == 1
    assert re.search(r"^s3 +shop_data +damaged", done.stdout, re.MULTILINE)
    assert "failed: backup-20260102_030000, verified (full)" in done.stdout
    assert "- the block at 8388464 is not what was written; another set may be whole" in done.stdout
    assert "failed, backup-20260102_030000 (full): the block at 8388464 is not" in status.stdout
    assert checked.exit_code == 1
    assert checked.stdout.startswith("not healthy: the newest set, backup-20260102_030000, is damaged: the block")
    assert invoke(daemon, "status", "--check").stdout.find("damaged") == -1


@pytest.mark.parametrize(("options", "how"), [((), "full"), (("--full",), "full"), (("--quick",), "quick")])
def test_a_verification_is_full_unless_it_is_to_be_quick(daemon: DaemonProcess, options: tuple[str, ...], how: str):
    assert json.loads(invoke(daemon, "verify", *options, "--json").stdout)["how"] == how


def test_json_of_a_verification_is_one_object(daemon: DaemonProcess):
    done = invoke(daemon, "verify", "latest", "--json")
    document = json.loads(done.stdout)

    assert (done.exit_code, document["how"], document["outcome"]) == (0, "full", "good")
    assert document["volumes"][0].keys() >= {"store", "volume", "outcome", "bytes_read", "damaged", "error", "hint"}


def test_a_set_that_does_not_exist_is_neither_verified_nor_kept(daemon: DaemonProcess):
    for verb in ("verify", "keep", "unkeep"):
        done = invoke(daemon, verb, "backup-19700101_000000")
        assert (done.exit_code, done.stderr.partition("\n")[0]) == (
            10,
            "error: there is no set 'backup-19700101_000000'",
        )


def test_a_set_on_which_its_services_come_up_is_told_in_words_and_leaves_with_0(daemon: DaemonProcess):
    done = invoke(daemon, "drill")

    assert done.exit_code == 0
    assert "starting shop-db-1\n" in done.stdout
    assert re.search(r"^shop-db-1 +health check +came up +4.2 s +shop_data$", done.stdout, re.MULTILINE)
    assert "good: backup-20260102_030000, drilled in 7.3 s" in done.stdout
    assert "  shop_data: proven, 12 entries, 9.0 MiB, from store s3\n" in done.stdout


def test_a_service_that_does_not_come_up_says_why_and_what_to_do_and_leaves_with_1(daemon: DaemonProcess):
    with gate_open(daemon):
        done = invoke(daemon, "drill")
        status = invoke(daemon, "status")
        checked = invoke(daemon, "status", "--check")
    invoke(daemon, "drill")

    assert done.exit_code == 1
    assert re.search(r"^shop-db-1 +health check +failed", done.stdout, re.MULTILINE)
    assert "- shop-db-1 did not come up: it ended by itself; see what it wrote\n" in done.stdout
    assert "last drill at" in status.stdout
    assert "failed, backup-20260102_030000: shop-db-1 did not come up: it ended by itself" in status.stdout
    assert checked.exit_code == 1
    assert checked.stdout.startswith("not healthy: set backup-20260102_030000 failed its drill: shop-db-1 did not")
    assert invoke(daemon, "status", "--check").stdout.find("drill") == -1


def test_a_volume_that_nothing_proves_leaves_with_3_and_names_the_label(daemon: DaemonProcess):
    done = invoke(daemon, "drill", "latest", "wiki")

    assert done.exit_code == 3
    assert "  wiki: not proven, 12 entries" in done.stdout
    assert "backup.drill" in done.stdout


def test_json_of_a_drill_is_one_object(daemon: DaemonProcess):
    done = invoke(daemon, "drill", "latest", "--json")
    document = json.loads(done.stdout)

    assert (done.exit_code, document["outcome"], document["newest"]) == (0, "good", True)
    assert document["services"][0].keys() >= {"container", "outcome", "proof", "volumes", "duration_ms", "error"}
    assert document["volumes"][0].keys() >= {"volume", "outcome", "files", "bytes_written", "store", "error", "hint"}


def test_a_set_or_volume_that_does_not_exist_is_not_drilled(daemon: DaemonProcess):
    assert invoke(daemon, "drill", "backup-19700101_000000").exit_code == 10
    done = invoke(daemon, "drill", "latest", "missing")
    assert (done.exit_code, "there are shop_data and wiki" in done.stderr) == (10, True)


def test_a_set_that_failed_its_drill_says_so_in_the_list() -> None:
    drilled = {"time": "2026-02-01T06:00:41Z", "outcome": "failed", "why": "db did not come up", "stores": ["s3"]}
    words = Words(terminal=False)
    with words.console.capture() as captured:
        words.listing({"sets": [SET | {"drilled": drilled}]}, one_set=False)
        words.listing({"sets": [SET | {"drilled": drilled}]}, one_set=True)
        words.listing({"sets": [SET | {"drilled": drilled | {"outcome": "good", "why": ""}}]}, one_set=True)

    assert re.search(r"^backup-20260102_030000 +failed its drill ", captured.get(), re.MULTILINE)
    assert "2026-02-01 06:00:41 UTC (failed)" in captured.get()
    assert "  FAILED its drill 2026-02-01 06:00:41 UTC (failed): db did not come up\n" in captured.get()
    assert "  drilled 2026-02-01 06:00:41 UTC (good)\n" in captured.get()


def test_a_set_is_kept_and_a_store_in_which_that_could_not_be_noted_is_named(daemon: DaemonProcess):
    kept = invoke(daemon, "keep", "backup-20260102_030000")
    unkept = invoke(daemon, "unkeep", "backup-20260102_030000", "--json")
    with gate_open(daemon):
        partly = invoke(daemon, "keep", "backup-20260102_030000")

    assert (kept.exit_code, kept.stdout) == (0, "backup-20260102_030000 is kept (noted in s3)\n")
    assert (unkept.exit_code, json.loads(unkept.stdout)["keep"]) == (0, False)
    assert partly.exit_code == 3
    assert "- local: it is away; mount it" in partly.stdout


def test_list_calls_a_damaged_set_damaged_and_says_when_it_was_verified_and_that_it_is_kept(capsys):
    found = {"time": "2026-01-04T05:00:00Z", "how": "full", "outcome": "failed", "why": "a block", "stores": ["s3"]}
    whole = {"set": "b", "verified": found | {"outcome": "good", "why": ""}, "keep": True}
    words = Words(terminal=False)

    words.listing({"sets": [SET | {"verified": found}, SET | whole]}, one_set=False)
    words.listing({"sets": [SET | {"verified": found}]}, one_set=True)
    words.listing({"sets": [SET | whole]}, one_set=True)

    text = capsys.readouterr().out
    assert re.search(r"^backup-20260102_030000 +damaged .*2026-01-04 05:00:00 UTC \(full\)", text, re.MULTILINE)
    assert re.search(r"^b +good .*2026-01-04 05:00:00 UTC \(full\) .*\(kept\)$", text, re.MULTILINE)
    assert "  DAMAGED in s3: a block\n" in text
    assert "  verified 2026-01-04 05:00:00 UTC (full)\n  kept: it is never pruned\n" in text


# --- cancel ----------------------------------------------------------------------------------------------------------


@contextmanager
def running(daemon: DaemonProcess, volume: str) -> Iterator[subprocess.Popen[str]]:
    """A reader of a run that has begun."""
    command = [*PROGRAM, "run-now", volume, "--socket", daemon.socket]
    reader = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout
        assert any(line == "copying shop_data\n" for line in reader.stdout)
        yield reader
    finally:
        reader.kill()
        reader.communicate(timeout=PATIENCE)


def test_cancel_ends_the_run_that_goes_on_and_its_reader_is_told(daemon: DaemonProcess):
    with running(daemon, "hold") as reader:
        done = invoke(daemon, "cancel")
        shown, _ = reader.communicate(timeout=PATIENCE)

    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("the run (manual) of hold of 20")
    assert first.endswith(" UTC was told to stop")
    assert second == "it has ended: everything is thawed, and no set was made"
    assert reader.returncode == 143
    assert "interrupted: no set was made" in shown
    assert invoke(daemon, "status", "--check").stdout.startswith("not healthy: the last run was interrupted")
    invoke(daemon, "run-now")


def test_cancel_leaves_the_runs_that_wait_and_names_them(daemon: DaemonProcess):
    with running(daemon, "hold") as reader:
        second = subprocess.Popen(
            [*PROGRAM, "run-now", "shop_data", "wiki", "--socket", daemon.socket],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert second.stdout
        assert any(line.startswith("waiting for the run") for line in second.stdout)
        document = json.loads(invoke(daemon, "cancel", "--json").stdout)
        rest, _ = second.communicate(timeout=PATIENCE)
        reader.communicate(timeout=PATIENCE)

    assert (document["ended"], document["outcome"], document["set"]) == (True, "interrupted", None)
    assert document["cancelled"]["volumes"] == ["hold"]
    assert [each["volumes"] for each in document["waiting"]] == [["shop_data", "wiki"]]
    assert second.returncode == 0
    assert "good: set" in rest


def test_cancel_says_in_words_who_still_waits():
    words = Words(terminal=False)
    run = {"activity": "run", "trigger": "schedule", "volumes": [], "since": "2026-01-02T03:00:00Z"}
    waiting = [{"activity": "run", "trigger": "manual", "volumes": ["a", "b"], "since": "2026-01-02T03:05:00Z"}]
    with words.console.capture() as captured:
        words.cancelled({"cancelled": run, "ended": False, "outcome": None, "set": None, "waiting": waiting})

    assert captured.get().splitlines() == [
        "the run (schedule) of 2026-01-02 03:00:00 UTC was told to stop",
        "it has not ended yet; `status` shows how far it is",
        "still waiting for its turn: the run (manual) of a, b of 2026-01-02 03:05:00 UTC",
    ]


def test_cancel_while_nothing_runs_is_exit_code_10(daemon: DaemonProcess):
    done = invoke(daemon, "cancel")

    assert done.exit_code == 10
    assert done.stderr == "error: nothing is going on\n  `status` shows how the last one ended\n"


# --- restore ---------------------------------------------------------------------------------------------------------


def test_a_restore_shows_what_it_will_do_then_does_it_and_says_how_it_went(daemon: DaemonProcess):
    done = invoke(daemon, "restore", "latest", "shop_data", "--yes")

    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "set backup-20260102_030000, made on host-1 (--host ''), begun 2026-01-02 03:00:00 UTC"
    assert any("shop_data" in line and "is replaced" in line for line in lines)
    assert "  stopped for it, and started again: shop-db-1" in lines
    assert "good: backup-20260102_030000, in 7.3 s" in lines
    assert "  shop_data: restored, 12 entries, 9.0 MiB, from store s3" in lines
    assert "  shop-db-1 stopped for 912 ms, and started again" in lines


def test_the_forms_of_a_restore_are_shown_in_words(daemon: DaemonProcess):
    words = invoke(daemon, "restore", "latest", "shop_data", "--yes").stdout
    assert "what is there now is backed up first" in words
    assert "what was there before is in set backup-20260102_085900" in words
    words = invoke(daemon, "restore", "latest", "shop_data", "--no-safety", "--yes").stdout
    assert "backed up first" not in words
    assert "what was there before" not in words
    words = invoke(daemon, "restore", "latest", "shop_data", "--as", "then", "--yes").stdout
    assert "is made, as then" in words
    assert "restored into then" in words
    assert (
        "gets what matches a/*; all else stays"
        in invoke(daemon, "restore", "latest", "shop_data", "--path", "a/*", "--dry-run").stdout
    )


@pytest.mark.parametrize("arguments", ["a --to x", "a --to - --json", "--to -", "a b --to -"])
def test_a_tar_stream_is_of_one_volume_and_goes_to_standard_output(daemon: DaemonProcess, arguments: str):
    done = invoke(daemon, "restore", "latest", *arguments.split())
    assert done.exit_code == 2
    assert "--to takes `-`" in done.output


def test_without_a_yes_and_without_a_terminal_nothing_is_restored(daemon: DaemonProcess):
    for options in ([], ["--json"]):
        done = invoke(daemon, "restore", *options)
        assert done.exit_code == 2
        assert "nobody is here to say yes" in done.output
        assert "good" not in done.output


def test_a_dry_run_shows_and_does_nothing(daemon: DaemonProcess):
    assert "good" not in invoke(daemon, "restore", "--dry-run").output
    document = json.loads(invoke(daemon, "restore", "--dry-run", "--json").stdout)
    assert document["volumes"][0]["volume"] == "shop_data"


def test_json_of_a_restore_is_one_object(daemon: DaemonProcess):
    done = invoke(daemon, "restore", "--yes", "--json")
    document = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (document["outcome"], document["volumes"][0]["outcome"]) == ("good", "good")


def test_a_restore_that_changes_nothing_says_so_and_leaves_with_its_code(daemon: DaemonProcess):
    done = invoke(daemon, "restore", "latest", "missing", "--yes")
    assert done.exit_code == 10
    assert "there is no volume missing" in done.stderr
    done = invoke(daemon, "restore", "latest", "damaged", "--yes")
    assert done.exit_code == 1
    assert "no volume was changed" in done.stderr


def test_a_restore_that_was_half_done_says_of_each_volume_what_became_of_it(daemon: DaemonProcess):
    done = invoke(daemon, "restore", "latest", "half", "--yes")
    assert done.exit_code == 3
    assert "  wiki: its helper ended; the same command restores it" in done.stdout
    assert done.stdout.count("its helper ended") == 1


# --- guard -----------------------------------------------------------------------------------------------------------


def test_the_guard_says_what_it_protects_and_what_not(daemon: DaemonProcess):
    done = invoke(daemon, "guard")
    assert done.exit_code == 0
    assert "guard: backup-guard keeps 2 volumes from being deleted\n" in done.stdout
    assert re.search(r"^  wiki +\d{4}-.*no container has it$", done.stdout, re.MULTILINE)
    assert re.search(r"^  backup-state +it is the sidecar's own$", done.stdout, re.MULTILINE)
    document = json.loads(invoke(daemon, "guard", "status", "--json").stdout)
    assert document == json.loads(invoke(daemon, "status", "--json").stdout)["guard"]
    assert list(document["protected"]) == ["shop_data", "wiki"]
    assert "guard: backup-guard keeps 2 volumes" in invoke(daemon, "status").stdout


def test_a_volume_is_released_and_protected_again(daemon: DaemonProcess):
    done = invoke(daemon, "guard", "release", "wiki", "--for", "2h")
    assert done.exit_code == 0
    assert re.search(r"^guard: wiki may be deleted until ", done.stdout, re.MULTILINE)
    assert "backup-guard keeps 1 volume from" in done.stdout
    assert "wiki" not in invoke(daemon, "guard", "protect", "wiki").stdout.partition("protected")[0]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["release"], 2, "release needs a VOLUME"),
        (["status", "wiki"], 2, "status takes no VOLUME"),
        (["protect", "wiki", "--for", "1h"], 2, "--for goes with release"),
        (["release", "wiki", "--for", "soon"], 2, "it is not a duration"),
        (["free", "wiki"], 2, "'free' is not one of"),
        (["release", "wikki"], 10, "did you mean wiki"),
        (["release", "backup-state"], 10, "it is the sidecar's own"),
    ],
)
def test_what_the_guard_cannot_do_is_refused_in_words(daemon: DaemonProcess, words: list[str], code: int, told: str):
    done = invoke(daemon, "guard", *words)
    assert (done.exit_code, told in done.stderr) == (code, True), done.output


# --- help and exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example_that_it_accepts(verb: str):
    text = CliRunner().invoke(main, [verb, "--help"]).stdout

    examples = [line.split() for line in text.partition("Example:\n")[2].splitlines() if line.strip()]
    assert examples
    for example in examples:
        assert example[0] == "docker"
        words = [word.strip("'") for word in example[example.index(verb) + 1 :]]
        command = main.commands[verb]
        command.make_context(verb, words, resilient_parsing=False)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_says_its_exit_codes(verb: str):
    assert re.search(r"Exit\s+codes:\s+0 ", CliRunner().invoke(main, [verb, "--help"]).stdout)


@pytest.mark.parametrize(("wrong", "right"), [("run-nwo", "run-now"), ("stauts", "status"), ("plans", "plan")])
def test_a_misspelt_verb_is_told_the_nearest_one(wrong: str, right: str):
    result = CliRunner().invoke(main, [wrong])
    assert result.exit_code == 2
    assert right in result.stderr


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "daemon"])
def test_every_verb_that_answers_can_answer_in_json(verb: str):
    assert any("--json" in parameter.opts for parameter in main.commands[verb].params)


def test_every_outcome_of_a_run_has_an_exit_code():
    assert {outcome.value: EXIT_CODES[outcome] for outcome in Outcome} == {
        "good": 0,
        "failed": 1,
        "partial": 3,
        "interrupted": 143,
    }


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "daemon"])
def test_the_image_has_an_executable_for_every_verb(verb: str):
    module, function = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"][verb].split(":")

    assert getattr(sys.modules[module], function) is main.commands[verb]


def test_the_readme_has_every_verb_and_no_other():
    table = (REPOSITORY / "README.md").read_text().partition("## Verbs")[2].partition("Exit codes")[0]

    assert sorted(re.findall(r"^\| `([a-z-]+)", table, re.MULTILINE)) == [verb for verb in VERBS if verb != "daemon"]


def test_the_images_healthcheck_is_a_verb_that_exists():
    (words,) = re.findall(
        r"^HEALTHCHECK .*?CMD (\[.*?\])$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE | re.S
    )

    verb, *options = json.loads(words)
    assert main.commands[verb].make_context(verb, options).params["only_check"]


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 1024**2, "5.0 MiB"), (150 * 1024**3, "150 GiB")],
)
def test_a_size_has_a_unit_that_people_read(count: int, words: str):
    assert size(count) == words


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(0.4, "0 ms"), (182.4, "182 ms"), (41_300, "41.3 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min")],
)
def test_a_duration_has_a_unit_that_people_read(milliseconds: float, words: str):
    assert duration(milliseconds) == words


def test_what_cannot_be_printed_is_escaped_and_everything_else_left_alone():
    assert printable("a\tb\x07\u202e\udcffÄ漢") == "a\\tb\\x07\\u202e\\udcffÄ漢"


# --- a terminal ------------------------------------------------------------------------------------------------------


# A session's leader that opens a terminal has it as its own; without that its Ctrl-C would reach nobody. Nor would it
# where these tests run in a shell's background, which has SIGINT ignored by all that it starts.
_ON_A_TERMINAL = (
    "import os, signal; os.close(os.open(os.ttyname(0), os.O_RDWR)); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); " + PROGRAM[-1]
)


class Terminal:
    """A program on a terminal of its own, and all that it has shown there."""

    def __init__(self, *words: str, columns: str = "120") -> None:
        self.process, self._master = self._start(words, columns)
        self.shown = b""

    @staticmethod
    def _start(words: tuple[str, ...], columns: str) -> tuple[subprocess.Popen[bytes], int]:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", _ON_A_TERMINAL, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(COLUMNS=columns),
            start_new_session=True,
        )
        os.close(slave)
        return process, master

    def read(self, until: bytes = b"") -> str:
        """What was shown, up to a text or the program's end, without the terminal's own codes."""
        deadline = time.monotonic() + PATIENCE
        while not until or until not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.shown
            try:
                chunk = os.read(self._master, 65_536)
            except OSError:  # the other side has closed
                break
            if not chunk:
                break
            self.shown += chunk
        return Text.from_ansi(self.shown.decode().replace("\r\n", "\n")).plain

    def interrupt(self) -> str:
        """Ctrl-C, and again after a while if nothing happens, as a person does; all that was shown."""
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < until:
            self.type(b"\x03")
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
        return self.read()

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def close(self) -> int:
        code = self.process.wait(PATIENCE)
        os.close(self._master)
        return code


def test_on_a_terminal_progress_moves_and_the_end_is_a_table(daemon: DaemonProcess):
    terminal = Terminal("run-now", "gate", "--socket", daemon.socket)
    terminal.read(until=b"1.0/4.0 MiB")
    with gate_open(daemon):
        shown = terminal.read()

    assert terminal.close() == 0
    assert "good: set backup-20260102_030000" in shown
    assert b"copying shop_data" in terminal.shown
    assert b"\x1b[32m" in terminal.shown  # good is green


def test_ctrl_c_leaves_with_130_and_the_run_goes_on(daemon: DaemonProcess):
    terminal = Terminal("run-now", "gate", "--socket", daemon.socket)
    terminal.read(until=b"copying shop_data")
    shown = terminal.interrupt()

    assert terminal.close() == 130
    assert "the run goes on in the daemon" in shown
    assert json.loads(invoke(daemon, "status", "--json").stdout)["state"] == "running"
    with gate_open(daemon):
        assert daemon.wait_for("run_finished")
        eventually(lambda: json.loads(invoke(daemon, "status", "--json").stdout)["state"] == "idle", "the run ends")


def test_json_on_a_terminal_keeps_progress_on_stderr(daemon: DaemonProcess):
    master, slave = pty.openpty()
    done = subprocess.run(
        [*PROGRAM, "run-now", "--json", "--socket", daemon.socket],
        stdout=subprocess.PIPE,
        stderr=slave,
        env=environment(),
        check=False,
        timeout=PATIENCE,
    )
    os.close(slave)
    shown = os.read(master, 65_536)
    os.close(master)

    assert json.loads(done.stdout)["outcome"] == "good"
    assert b"waiting for the daemon" in shown


@pytest.mark.parametrize("words", [("plan",), ("plan", "--json")])
def test_a_reader_that_has_gone_gets_no_traceback(daemon: DaemonProcess, words: tuple[str, ...]):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROGRAM, *words, "--socket", daemon.socket],
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=PATIENCE,
    )
    os.close(writing)

    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.parametrize(("answer", "into"), [(b"y\n", "with its driver"), (b"n\n", "shop_data"), (b"\n", "shop_data")])
def test_a_person_is_asked_whether_a_lost_volume_gets_its_driver_again(daemon: DaemonProcess, answer: bytes, into: str):
    terminal = Terminal("restore", "latest", "lost", "--socket", daemon.socket)
    asked = terminal.read(until=b"plain local volume) [y/N]")
    assert "It was made with driver nfs." in asked
    terminal.type(answer)
    terminal.read(until=b"hold now? [y/N]")
    terminal.type(b"y\n")
    shown = terminal.read()
    assert terminal.close() == 0
    assert ("restored into with its driver" in shown) == (into == "with its driver")


def test_without_a_terminal_a_lost_volume_gets_its_driver_only_by_the_flag(daemon: DaemonProcess):
    plain = invoke(daemon, "restore", "latest", "lost", "--yes")
    assert (plain.exit_code, "restored into" in plain.stdout) == (0, False)
    wanted = invoke(daemon, "restore", "latest", "lost", "--with-driver", "--yes")
    assert (wanted.exit_code, "restored into with its driver" in wanted.stdout) == (0, True)
