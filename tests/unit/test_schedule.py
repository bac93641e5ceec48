"""The schedule: due times against a calendar walked minute by minute, and the nights when clocks change."""

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


# Nights when clocks change, north and south of the equator, by half an hour, at midnight, backwards in spring (Dublin),
# around Ramadan, over a whole day; and leap days.
NIGHTS = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("Europe/Dublin", "2026-03-29"),
    ("Europe/Dublin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("America/St_Johns", "2026-03-08"),
    ("America/Havana", "2026-03-08"),
    ("America/Havana", "2026-11-01"),
    ("America/Santiago", "2026-04-05"),
    ("America/Santiago", "2026-09-06"),
    ("Australia/Sydney", "2026-04-05"),
    ("Australia/Sydney", "2026-10-04"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("Pacific/Auckland", "2026-04-05"),
    ("Pacific/Auckland", "2026-09-27"),
    ("Asia/Beirut", "2026-03-29"),
    ("Africa/Casablanca", "2026-02-15"),
    ("Africa/Casablanca", "2026-03-22"),
    ("Pacific/Apia", "2011-12-30"),
    ("UTC", "2028-02-29"),
    ("Asia/Kolkata", "2028-02-29"),
]
EXPRESSIONS = [
    "30 2 * * *",
    "0 3 * * *",
    "0 0 * * *",
    "45 23 * * *",
    "30 1 * * 0,6",
    "0 1,2,3 * * *",
    "30 1-4 * * *",
    "15,45 0-3 * * 0",
    "*/20 2 * * *",
    "0 * * * *",
    "59 * * * *",
    "*/15 * * * *",
    "7 */2 * * *",
    "0 12 29 2 *",
    "5 2 29 * 0",
]


def is_due(expression: str, wall: datetime) -> bool:
    """Whether the five fields name this minute, by the words of crontab(5)."""
    minute, hour, day, month, weekday = expression.split()
    if not (matches(minute, wall.minute) and matches(hour, wall.hour) and matches(month, wall.month)):
        return False
    days = [matches(day, wall.day), matches(weekday, wall.isoweekday() % 7)]
    return any(days) if day != "*" and weekday != "*" else all(days)


def walk(expression: str, zone: ZoneInfo, first: datetime, last: datetime) -> list[datetime]:
    """The due times from `first` to `last`, found by looking at what a wall clock shows in each real minute.

    Minutes that the clock jumps over count when it lands, unless the schedule is for every hour; minutes that it shows
    again do not count, unless the hours are given by an asterisk.
    """
    hours = expression.split()[1]
    found, moment = [], first
    shown = (first - timedelta(minutes=1)).astimezone(zone).replace(tzinfo=None)
    while moment <= last:
        local = moment.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0)
        jumped_over = range(1, max(1, (wall - shown) // timedelta(minutes=1)))
        if (is_due(expression, wall) and (hours.startswith("*") or not local.fold)) or (
            hours != "*" and any(is_due(expression, shown + timedelta(minutes=each)) for each in jumped_over)
        ):
            found.append(moment)
        shown = wall
        moment += timedelta(minutes=1)
    return found


@pytest.mark.parametrize(("zone_name", "night"), NIGHTS)
def test_around_a_night_of_the_calendar_every_schedule_is_due_when_a_walk_along_the_wall_clock_says(zone_name, night):
    zone = ZoneInfo(zone_name)
    start = datetime.fromisoformat(night).replace(tzinfo=UTC) - timedelta(hours=20)
    end = start + timedelta(hours=60)
    for expression in EXPRESSIONS:
        schedule, due = parse(expression, zone), []
        moment = schedule.next_after(start)
        while moment <= end:
            due.append(moment)
            moment = schedule.next_after(moment)

        assert due == walk(expression, zone, start + timedelta(minutes=1), end), expression


def test_the_walk_itself_sees_the_hours_that_are_missing_and_those_that_come_twice():
    """The oracle above against what newspapers print."""
    spring, autumn = datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)
    three_hours = timedelta(hours=3)
    assert walk("30 2 * * *", BERLIN, spring, spring + three_hours) == [spring + timedelta(hours=1)]
    assert walk("30 2 * * *", BERLIN, autumn, autumn + three_hours) == [autumn + timedelta(minutes=30)]
    assert len(walk("30 * * * *", BERLIN, autumn, autumn + three_hours)) == 3


def test_the_twenty_ninth_of_february_is_due_in_leap_years_alone():
    assert due_times(parse("0 3 29 2 *", UTC), datetime(2027, 1, 1, tzinfo=UTC), 3) == [
        "2028-02-29T03:00+00:00",
        "2032-02-29T03:00+00:00",
        "2036-02-29T03:00+00:00",
    ]


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
