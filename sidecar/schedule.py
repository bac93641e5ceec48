"""When a scheduled job is due: cron expressions in a time zone. Pure; the moment is an argument."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from croniter import croniter
from croniter.croniter import CroniterBadDateError, CroniterError

ACCEPTED = "five cron fields (`0 3 * * *`), six with the seconds last, or `@hourly`, `@daily`, `@weekly`, `@monthly`"

_WORDS = frozenset({"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"})
# croniter's `H` and `R` pick a value by chance, anew in every process: a restart would move or repeat a run.
_BY_CHANCE = re.compile(r"(?:^|,)[hr](?:[(/,]|$)", re.IGNORECASE)
# Any moment will do to ask whether an expression ever fires; this one lies before a leap day.
_TRIAL = datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC)
_LEAST_GAP = timedelta(minutes=1)
# How late a run may end before it counts as overdue: one interval, within these bounds.
_LEAST_TOLERANCE, _MOST_TOLERANCE = timedelta(minutes=10), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron expression read in `zone`; made by `parse`."""

    expression: str
    zone: tzinfo

    def next_after(self, moment: datetime) -> datetime:
        """The first due time strictly after `moment` (aware), in UTC.

        A time that daylight saving skips is due at the end of the gap, unless the hour field is `*`: the hours around
        it have theirs. A time that comes twice is due once, unless the hour field starts with `*`: then the schedule
        means an interval, and both hours have their runs (cron's rule).
        """
        moments = croniter(self.expression, moment.astimezone(self.zone))
        due: datetime = moments.get_next(datetime)
        while due.fold and not self._every_hour:
            due = moments.get_next(datetime)
        return due.astimezone(UTC)

    def overdue_after(self, due: datetime) -> datetime:
        """The moment from which the run that was due at `due` should have ended.

        One interval later, because a run may take long, but at least ten minutes and at most a day.
        """
        interval = self.next_after(due) - due
        return due + min(max(interval, _LEAST_TOLERANCE), _MOST_TOLERANCE)

    @property
    def _every_hour(self) -> bool:
        fields = self.expression.split()
        return fields == ["@hourly"] or (len(fields) > 1 and fields[1].startswith("*"))


def parse(expression: str, zone: tzinfo) -> Schedule:
    """Read a cron expression. Raises ValueError, whose text says what is wrong."""
    fields = expression.split()
    if fields[:1] and fields[0].startswith("@"):
        if expression.lower() not in _WORDS:
            raise ValueError(f"{expression} is not one of {', '.join(sorted(_WORDS))}")
    elif len(fields) not in (5, 6):
        raise ValueError(f"it has {len(fields)} fields")
    if any(_BY_CHANCE.search(each) for each in fields):
        raise ValueError("it leaves a field to chance (H or R)")
    schedule = Schedule(" ".join(fields).lower() if len(fields) == 1 else " ".join(fields), zone)
    try:
        first = schedule.next_after(_TRIAL)
        second = schedule.next_after(first)
    except CroniterBadDateError as exc:
        raise ValueError("it never comes due") from exc
    except CroniterError as exc:
        raise ValueError(str(exc)) from exc
    if second - first < _LEAST_GAP:
        raise ValueError("it comes due more than once a minute; of six fields the seconds are the last")
    return schedule
