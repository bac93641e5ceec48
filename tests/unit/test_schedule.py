"""The schedule: due times against a calendar walked minute by minute, and the two nights when clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.schedule import Schedule, parse

BERLIN = ZoneInfo("Europe/Berlin")


def due_times(schedule: Schedule, start: datetime, count: int) -> list[str]:
    """The next `count` due times as local text, each asked for from the one before."""
    texts, moment = [], start
    for _ in range(count):
        moment = schedule.next_after(moment)
        texts.append(moment.astimezone(schedule.zone).isoformat(timespec="minutes"))
    return texts


def test_a_daily_schedule_is_due_at_its_local_time_in_winter_and_in_summer():
    schedule = parse("0 3 * * *", BERLIN)

    assert schedule.next_after(datetime(2026, 1, 10, tzinfo=UTC)) == datetime(2026, 1, 10, 2, 0, tzinfo=UTC)
    assert schedule.next_after(datetime(2026, 7, 10, tzinfo=UTC)) == datetime(2026, 7, 10, 1, 0, tzinfo=UTC)


def test_a_due_time_is_strictly_after_the_moment_asked_from():
    schedule = parse("0 3 * * *", UTC)
    due = datetime(2026, 1, 10, 3, tzinfo=UTC)

    assert schedule.next_after(due) == due + timedelta(days=1)
    assert schedule.next_after(due - timedelta(microseconds=1)) == due


def test_every_six_hours_means_every_six_hours():
    assert due_times(parse("0 */6 * * *", UTC), datetime(2026, 5, 1, 1, tzinfo=UTC), 4) == [
        "2026-05-01T06:00+00:00",
        "2026-05-01T12:00+00:00",
        "2026-05-01T18:00+00:00",
        "2026-05-02T00:00+00:00",
    ]


def test_a_time_that_daylight_saving_skips_is_due_when_the_gap_ends():
    assert due_times(parse("30 2 * * *", BERLIN), datetime(2026, 3, 28, 12, tzinfo=BERLIN), 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_a_daily_time_that_comes_twice_is_due_once():
    assert due_times(parse("30 2 * * *", BERLIN), datetime(2026, 10, 24, 12, tzinfo=BERLIN), 2) == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]


def test_an_hourly_schedule_is_due_in_both_of_the_hours_that_are_called_two():
    assert due_times(parse("0 * * * *", BERLIN), datetime(2026, 10, 25, 1, 30, tzinfo=BERLIN), 3) == [
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
    ]


def test_six_fields_have_the_seconds_last():
    assert parse("0 3 * * * 15", UTC).next_after(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(
        2026, 1, 1, 3, 0, 15, tzinfo=UTC
    )


def test_a_word_stands_for_its_expression_in_any_case():
    assert parse("@Daily", UTC).next_after(datetime(2026, 1, 1, 5, tzinfo=UTC)) == datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("", "0 fields"),
        ("0 3 * *", "4 fields"),
        ("* * * * * * *", "7 fields"),
        ("61 3 * * *", "out of range"),
        ("at three o'clock each day", "not acceptable"),
        ("0 0 31 2 *", "never comes due"),
        ("@every 1h", "not one of"),
        ("@reboot", "not one of"),
        ("0 0 3 * * *", "seconds are the last"),
        ("0 3 * * * */20", "more than once a minute"),
        ("R 3 * * *", "to chance"),
        ("0 H(2-4) * * *", "to chance"),
    ],
)
def test_an_expression_that_cannot_be_meant_is_refused_with_the_reason(expression: str, wrong: str):
    with pytest.raises(ValueError, match=wrong):
        parse(expression, UTC)


field_texts = {
    "minute": st.one_of(st.integers(0, 59).map(str), st.sampled_from(["*", "*/7", "*/20", "10-15", "0,30"])),
    "hour": st.one_of(st.integers(4, 23).map(str), st.sampled_from(["*", "*/3", "8-17", "6,18"])),
    "weekday": st.one_of(st.just("*"), st.integers(0, 6).map(str), st.sampled_from(["1-5", "0,6"])),
}


def matches(text: str, value: int) -> bool:
    """One cron field against one number, by the words of crontab(5)."""
    for item in text.split(","):
        span, _, step = item.partition("/")
        low, high = (0, 59) if span == "*" else (int(span.split("-")[0]), int(span.split("-")[-1]))
        if low <= value <= high and (value - low) % int(step or 1) == 0:
            return True
    return False


@settings(max_examples=30, deadline=None)
@given(
    minute=field_texts["minute"],
    hour=field_texts["hour"],
    weekday=field_texts["weekday"],
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]).map(ZoneInfo),
    # Over a year, so that clocks change in some of them. Fixed hours begin at 4: the nights above have their own tests.
    start=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 20)),
)
def test_the_next_due_time_is_the_first_minute_of_the_calendar_that_matches(minute, hour, weekday, zone, start):
    moment = start.replace(tzinfo=UTC)
    each = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    for _ in range(60 * 24 * 9):
        local = each.astimezone(zone)
        if matches(minute, local.minute) and matches(hour, local.hour) and matches(weekday, local.isoweekday() % 7):
            break
        each += timedelta(minutes=1)

    assert parse(f"{minute} {hour} * * {weekday}", zone).next_after(moment) == each


@pytest.mark.parametrize(
    ("expression", "tolerance"),
    [
        ("* * * * *", timedelta(minutes=10)),
        ("0 * * * *", timedelta(hours=1)),
        ("0 3 * * *", timedelta(days=1)),
        ("0 3 * * 0", timedelta(days=1)),
    ],
)
def test_a_run_is_overdue_after_one_interval_but_not_within_ten_minutes_and_always_after_a_day(expression, tolerance):
    schedule = parse(expression, UTC)
    due = schedule.next_after(datetime(2026, 1, 10, tzinfo=UTC))

    assert schedule.overdue_after(due) - due == tolerance
