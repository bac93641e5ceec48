"""What is pending, when it is tried again, and what of it reaches the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from sidecar.errors import ChecksumMismatch, StoreDenied, StoreUnreachable
from sidecar.report import Outcome, RunReport, StoreReport
from sidecar.service.shipments import Shipment, Shipments

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OLD, NEW = "backup-20260101_030000", "backup-20260102_030000"
AWAY = StoreUnreachable("no connection", store="s3")


def run(set_name: str | None, **stores: StoreReport) -> RunReport:
    return RunReport("r", set_name, Outcome.PARTIAL, NOON, 5.0, paused_ms=1.0, off_host=False, stores=stores)


GOOD, MISSED = StoreReport(Outcome.GOOD), StoreReport(Outcome.FAILED, pending=True, error="no connection")


def owed(*sets: str, store: str = "s3") -> Shipments:
    return Shipments(Shipment(each, store, NOON) for each in sets)


def tries(shipments: Shipments, start: datetime, hours: float) -> tuple[list[float], list[float]]:
    """The minutes at which a store that stays away is tried, and those at which that is said."""
    tried, said, now = [], [], start
    while (now - start) < timedelta(hours=hours):
        while shipment := shipments.next(now):
            tried.append((now - start) / MINUTE)
            if shipments.failed(shipment, AWAY, now):
                said.append((now - start) / MINUTE)
        now += timedelta(seconds=10)
    return tried, said


def test_what_a_store_missed_is_pending_and_due_a_minute_later() -> None:
    shipments = Shipments()
    shipments.ended(run(NEW, local=GOOD, s3=MISSED), NOON)
    assert [each.as_json() for each in shipments.pending] == [
        {"set": NEW, "store": "s3", "since": "2026-01-02T12:00:00Z", "attempts": 0, "error": "no connection"}
    ]
    assert shipments.next(NOON) is None
    assert shipments.seconds(NOON) == 60
    assert shipments.next(NOON + MINUTE) == shipments.pending[0]


def test_nothing_is_pending_after_a_run_that_made_no_set_or_of_a_store_that_is_owed_none() -> None:
    shipments = Shipments()
    shipments.ended(run(None, s3=MISSED), NOON)
    shipments.ended(run(NEW, local=StoreReport(Outcome.FAILED), s3=GOOD), NOON)
    assert shipments.pending == ()
    assert shipments.seconds(NOON) is None


def test_a_store_that_stays_away_is_tried_after_1_2_5_and_then_every_15_minutes_whatever_it_is_owed() -> None:
    tried, _ = tries(owed(OLD, NEW), NOON, 1)
    assert tried == [0, 1, 3, 8, 23, 38, 53]


def test_a_day_without_a_network_is_a_line_an_hour() -> None:
    _, said = tries(owed(NEW), NOON, 24)
    assert said[0] == 0
    assert 20 <= len(said) <= 24
    assert min(later - earlier for earlier, later in pairwise(said)) >= 60


def test_another_reason_is_said_at_once() -> None:
    shipments = owed(NEW)
    (shipment,) = shipments.pending
    assert shipments.failed(shipment, AWAY, NOON)
    assert not shipments.failed(shipment, AWAY, NOON + MINUTE)
    assert shipments.failed(shipment, StoreDenied("no", store="s3"), NOON + 2 * MINUTE)


def test_the_newest_set_goes_first_and_the_others_follow_at_once() -> None:
    shipments = owed(OLD, NEW)
    first = shipments.next(NOON)
    assert first
    assert first.set == NEW
    shipments.arrived(first)
    second = shipments.next(NOON)
    assert second
    assert second.set == OLD
    shipments.arrived(second)
    assert shipments.next(NOON) is None


def test_a_damaged_set_holds_up_no_other() -> None:
    shipments = owed(OLD, NEW)
    first = shipments.next(NOON)
    assert first
    assert shipments.failed(first, ChecksumMismatch("damaged", store="local"), NOON)
    second = shipments.next(NOON)
    assert second
    assert second.set == OLD
    shipments.arrived(second)
    assert shipments.next(NOON) is None
    assert shipments.next(NOON + MINUTE) == shipments.pending[0]
    assert (shipments.pending[0].set, shipments.pending[0].attempts, shipments.pending[0].error) == (NEW, 1, "damaged")


def test_a_store_that_is_away_holds_up_no_other_store() -> None:
    shipments = Shipments([Shipment(NEW, "s3", NOON), Shipment(OLD, "elsewhere", NOON)])
    first = shipments.next(NOON)
    assert first
    shipments.failed(first, AWAY, NOON)
    second = shipments.next(NOON)
    assert second
    assert second.store == "elsewhere"


def test_a_store_that_has_just_taken_a_set_is_due_at_once() -> None:
    shipments = owed(OLD)
    tries(shipments, NOON, 1)
    later = NOON + timedelta(hours=1)
    assert shipments.next(later) is None
    shipments.ended(run(NEW, local=GOOD, s3=GOOD), later)
    assert shipments.next(later) == shipments.pending[0]


def test_a_run_that_fails_too_does_not_hurry_the_next_try() -> None:
    shipments = owed(OLD)
    tries(shipments, NOON, 1)  # the last at minute 53
    shipments.ended(run(NEW, local=GOOD, s3=MISSED), NOON + 60 * MINUTE)
    assert shipments.next(NOON + 61 * MINUTE) is None
    due = shipments.next(NOON + 68 * MINUTE)
    assert due
    assert due.set == NEW


def test_a_clock_that_was_years_ahead_and_is_set_right_does_not_wait_for_that_year() -> None:
    shipments = owed(NEW)
    shipments.failed(shipments.pending[0], AWAY, NOON + timedelta(days=3650))
    assert shipments.next(NOON) == shipments.pending[0]


def test_what_is_owed_to_a_store_that_is_not_configured_any_more_is_given_up_by_name() -> None:
    shipments = Shipments([Shipment(NEW, "s3", NOON), Shipment(OLD, "elsewhere", NOON)])
    assert [each.set for each in shipments.drop_stores_but(["s3", "local"])] == [OLD]
    assert [each.set for each in shipments.pending] == [NEW]
