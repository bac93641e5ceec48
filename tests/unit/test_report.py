"""What a run says about itself: outcomes, reasons, times, and the JSON that INTERFACE promises."""

import json
from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigInvalid, NotFound, SidecarError, SpoolFull, StoreDenied
from sidecar.report import (
    GroupReport,
    Outcome,
    Reason,
    RunReport,
    StoreReport,
    Unprotected,
    VolumeReport,
    rfc3339,
    worst,
)

GOOD, PARTIAL, FAILED, INTERRUPTED = Outcome.GOOD, Outcome.PARTIAL, Outcome.FAILED, Outcome.INTERRUPTED


def test_outcomes_are_the_four_words_of_the_interface() -> None:
    assert [str(outcome) for outcome in Outcome] == ["good", "partial", "failed", "interrupted"]


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([], GOOD),
        ([GOOD], GOOD),
        ([GOOD, GOOD], GOOD),
        ([PARTIAL], PARTIAL),
        ([FAILED], FAILED),
        ([FAILED, FAILED], FAILED),
        ([GOOD, PARTIAL], PARTIAL),
        ([GOOD, FAILED], PARTIAL),
        ([PARTIAL, FAILED], PARTIAL),
        ([GOOD, PARTIAL, FAILED], PARTIAL),
        ([INTERRUPTED], INTERRUPTED),
        ([GOOD, INTERRUPTED], INTERRUPTED),
        ([FAILED, INTERRUPTED], INTERRUPTED),
        ([GOOD, PARTIAL, FAILED, INTERRUPTED], INTERRUPTED),
    ],
)
def test_the_outcome_of_a_whole_follows_from_its_parts_in_whatever_order(parts: list[Outcome], whole: Outcome) -> None:
    for order in permutations(parts):
        assert worst(iter(order)) is whole


@given(st.lists(st.sampled_from(list(Outcome)), min_size=1))
def test_a_whole_is_good_only_if_every_part_is(parts: list[Outcome]) -> None:
    assert (worst(parts) is GOOD) is all(part is GOOD for part in parts)


# --- reasons ---------------------------------------------------------------------------------------------------------


def test_a_reason_takes_everything_that_an_error_knows() -> None:
    error = StoreDenied("s3://b/k is refused", hint="grant s3:PutObject", volume="db", store="s3")

    assert Reason.of(error) == Reason("store_denied", "s3://b/k is refused", "grant s3:PutObject", "db", "s3")


def test_who_handles_an_error_may_say_better_what_it_concerns() -> None:
    error = StoreDenied("refused", volume="db", store="s3")

    assert Reason.of(error, volume="files", store="local") == Reason("store_denied", "refused", "", "files", "local")


def every_error() -> list[type[SidecarError]]:
    found, pending = [], [SidecarError]
    while pending:
        kind = pending.pop()
        found.append(kind)
        pending += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_that_scripts_can_match_on(kind: type[SidecarError]) -> None:
    assert kind.code.isidentifier()
    assert kind.code == kind.code.lower()


def test_errors_with_more_to_tell_keep_it() -> None:
    assert SpoolFull("no room", needed=7, hint="h", volume="db").needed == 7
    assert ConfigInvalid(["one", "two"]).problems == ("one", "two")
    assert str(ConfigInvalid(["one", "two"])) == "one; two"
    assert (NotFound("gone").hint, NotFound("gone").volume, NotFound("gone").store) == ("", None, None)


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 3, 29, 6, 15, 7, tzinfo=UTC), "2026-03-29T06:15:07Z"),
        (datetime(2026, 3, 29, 6, 15, 7, 120_000, UTC), "2026-03-29T06:15:07.120Z"),
        (datetime(2026, 3, 29, 6, 15, 7, 999_999, UTC), "2026-03-29T06:15:07.999Z"),
        (datetime(2026, 3, 29, 0, 15, 7, tzinfo=timezone(timedelta(hours=14))), "2026-03-28T10:15:07Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_to_the_millisecond(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9999, 12, 30)), st.integers(-840, 840))
def test_a_time_reads_back_as_the_same_moment_to_the_millisecond(moment: datetime, minutes: int) -> None:
    moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))

    late = moment - datetime.fromisoformat(rfc3339(moment))
    assert timedelta(0) <= late < timedelta(milliseconds=1)


# --- the object of `run-now --json` ----------------------------------------------------------------------------------

REPORT = RunReport(
    run="0123456789ab",
    set="backup-20260329_061507",
    outcome=PARTIAL,
    started=datetime(2026, 3, 29, 6, 15, 7, tzinfo=UTC),
    duration_ms=5123.4567,
    paused_ms=131.44,
    off_host=True,
    reasons=(Reason("file_changed", "one file changed", "see plan", "db"),),
    unprotected=(Unprotected("app", "/srv", "a bind mount", "name it"),),
    stores={
        "s3": StoreReport(GOOD, 1234, location="s3://b"),
        "local": StoreReport(FAILED, error="disk full", hint="free space"),
    },
    groups=(GroupReport("shop", ("shop-db-1", "shop-web-1"), 131.44, GOOD),),
    volumes=(
        VolumeReport("db", PARTIAL, 12, 4096, 1234, 1234, 0, ("./log\udcff",), group="shop"),
        VolumeReport("files", FAILED, error="cannot be seen", hint="mount it"),
    ),
    warnings=("a warning",),
)


def test_the_report_of_a_run_is_the_object_of_the_interface_key_by_key() -> None:
    assert json.loads(json.dumps(REPORT.as_json())) == {
        "run": "0123456789ab",
        "set": "backup-20260329_061507",
        "outcome": "partial",
        "started": "2026-03-29T06:15:07Z",
        "duration_ms": 5123.5,
        "paused_ms": 131.4,
        "off_host": True,
        "reasons": [
            {"code": "file_changed", "volume": "db", "store": None, "message": "one file changed", "hint": "see plan"}
        ],
        "unprotected": [{"container": "app", "mount": "/srv", "why": "a bind mount", "hint": "name it"}],
        "stores": {
            "s3": {
                "outcome": "good",
                "bytes_uploaded": 1234,
                "pending": False,
                "error": None,
                "hint": None,
                "location": "s3://b",
            },
            "local": {
                "outcome": "failed",
                "bytes_uploaded": 0,
                "pending": False,
                "error": "disk full",
                "hint": "free space",
                "location": "",
            },
        },
        "groups": [
            {
                "group": "shop",
                "containers": ["shop-db-1", "shop-web-1"],
                "paused_ms": 131.4,
                "outcome": "good",
                "unfrozen": [],
            }
        ],
        "volumes": [
            {
                "volume": "db",
                "outcome": "partial",
                "files": 12,
                "bytes_read": 4096,
                "archive_bytes": 1234,
                "bytes_uploaded": 1234,
                "bytes_reused": 0,
                "changed_files": ["./log\udcff"],
                "error": None,
                "hint": None,
                "group": "shop",
            },
            {
                "volume": "files",
                "outcome": "failed",
                "files": 0,
                "bytes_read": 0,
                "archive_bytes": 0,
                "bytes_uploaded": 0,
                "bytes_reused": 0,
                "changed_files": [],
                "error": "cannot be seen",
                "hint": "mount it",
                "group": "",
            },
        ],
        "warnings": ["a warning"],
    }


def test_making_the_json_leaves_the_report_as_it_was() -> None:
    document = REPORT.as_json()
    document["stores"]["s3"]["outcome"] = "gone"
    document["groups"][0]["paused_ms"] = 0

    assert REPORT.stores["s3"].outcome is GOOD
    assert REPORT.groups[0].paused_ms == 131.44
