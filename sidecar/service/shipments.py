"""Sets that a store missed and is to get later: which one is next, when, and what is worth a line in the log. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sidecar.errors import SidecarError
from sidecar.report import Outcome, RunReport, rfc3339

# After so many failures in a row, so long until the next try; the last holds for all that follow.
BACK_OFF = (timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=5), timedelta(minutes=15))
# A day without a network is a line an hour, unless what is wrong changes.
SAY_EVERY = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Shipment:
    """A set that `store` missed. since: aware, when the run ended; attempts: in vain so far; error: of the last."""

    set: str
    store: str
    since: datetime
    attempts: int = 0
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """As `pending` of `status --json` has it."""
        return {
            "set": self.set,
            "store": self.store,
            "since": rfc3339(self.since),
            "attempts": self.attempts,
            "error": self.error,
        }


@dataclass(slots=True)
class _Trouble:
    """What has failed in a row: a store, or one set's way to it."""

    failures: int = 0
    next_try: datetime | None = None
    code: str = ""
    said: datetime | None = None


class Shipments:
    """What is pending; one thread at a time. It knows no store and no clock: `now` is an aware time."""

    def __init__(self, pending: Iterable[Shipment] = ()) -> None:
        self._pending = {(each.set, each.store): each for each in pending}
        # By store, whose failure holds up all its sets, and by (set, store), where that one set is to blame.
        self._trouble: dict[str | tuple[str, str], _Trouble] = {}

    @property
    def pending(self) -> tuple[Shipment, ...]:
        """The oldest set first."""
        return tuple(sorted(self._pending.values(), key=lambda each: (each.set, each.store)))

    def drop_stores_but(self, configured: Collection[str]) -> tuple[Shipment, ...]:
        """Forget, and give, what is pending for a store that is not configured any more."""
        dropped = tuple(each for each in self.pending if each.store not in configured)
        for each in dropped:
            self.forget(each)
        return dropped

    def ended(self, report: RunReport, now: datetime) -> None:
        """Take note of a run: what its stores missed is pending, and those that took its set are back."""
        for name, store in report.stores.items():
            if store.outcome is Outcome.GOOD:
                self._trouble.pop(name, None)
            elif store.pending and report.set:
                self._pending[report.set, name] = Shipment(report.set, name, now, error=store.error or "")
                trouble = self._trouble.setdefault(name, _Trouble())
                trouble.next_try = trouble.next_try or now + BACK_OFF[0]

    def next(self, now: datetime) -> Shipment | None:
        """What to ship now: the newest set first, because a loss of this host would need that one."""
        due = [each for each in self.pending if self._wait(each, now) == timedelta()]
        return due[-1] if due else None

    def seconds(self, now: datetime) -> float | None:
        """How long until something is due; None when nothing is pending."""
        waits = [self._wait(each, now).total_seconds() for each in self._pending.values()]
        return min(waits, default=None)

    def forget(self, shipment: Shipment) -> None:
        """It has arrived, or never can."""
        key = (shipment.set, shipment.store)
        self._pending.pop(key, None)
        self._trouble.pop(key, None)

    def arrived(self, shipment: Shipment) -> None:
        """It is there: its store's other sets are due at once."""
        self.forget(shipment)
        self._trouble.pop(shipment.store, None)

    def failed(self, shipment: Shipment, error: SidecarError, now: datetime) -> bool:
        """Take note of a failed try; whether it is worth a line: the first, another reason, or an hour of silence."""
        key = (shipment.set, shipment.store)
        self._pending[key] = replace(shipment, attempts=shipment.attempts + 1, error=error.message)
        trouble = self._trouble.setdefault(shipment.store if error.store == shipment.store else key, _Trouble())
        trouble.next_try = now + BACK_OFF[min(trouble.failures, len(BACK_OFF) - 1)]
        trouble.failures += 1
        silent = trouble.said is not None and timedelta() <= now - trouble.said < SAY_EVERY
        if silent and trouble.code == error.code:
            return False
        trouble.code, trouble.said = error.code, now
        return True

    def _wait(self, shipment: Shipment, now: datetime) -> timedelta:
        troubles = (self._trouble.get(shipment.store), self._trouble.get((shipment.set, shipment.store)))
        waits = [trouble.next_try - now for trouble in troubles if trouble and trouble.next_try]
        # A clock that was years ahead and is set right must not leave us waiting for that year.
        return max((each for each in waits if timedelta() < each <= BACK_OFF[-1]), default=timedelta())
