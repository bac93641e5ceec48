"""The settled rule: which signatures are old enough to be believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.archive.entry import Signature
from sidecar.archive.settled import MARGIN_NS, Unstepped, keeps_times, settled

SECOND = 10**9
SYNCED = 1_800_000_000 * SECOND


def signature(*, mtime: int, ctime: int) -> Signature:
    return Signature(1, 10, 0o100644, 0, 0, mtime, ctime)


@pytest.mark.parametrize(
    ("mtime_ago", "ctime_ago", "is_settled"),
    [
        (60, 60, True),
        (3600, 86_400, True),
        (59.999_999_999, 3600, False),
        (3600, 59.999_999_999, False),  # times can be set back, ctime cannot
        (3600, 1.5, False),  # a direct write stamps when it begins, and its bytes land seconds later
        (3600, 1, False),  # a time stamp of whole seconds, cut off
        (3600, 0, False),
        (-3600, 3600, False),  # from the future
        (3600, -3600, False),
    ],
)
def test_only_a_file_that_nobody_touched_in_the_minute_before_the_sync_is_settled(
    mtime_ago: float, ctime_ago: float, is_settled: bool
) -> None:
    touched = signature(mtime=SYNCED - round(mtime_ago * SECOND), ctime=SYNCED - round(ctime_ago * SECOND))

    assert settled(touched.mtime_ns, touched.ctime_ns, SYNCED) is is_settled


@pytest.mark.parametrize(
    ("name", "magic", "keeps"),
    [
        ("ext4", 0xEF53, True),
        ("xfs", 0x58465342, True),
        ("btrfs", 0x9123683E, True),
        ("f2fs", 0xF2F52010, True),
        ("overlay", 0x794C7630, False),
        ("tmpfs", 0x01021994, False),
        ("nfs", 0x6969, False),
        ("fuse", 0x65735546, False),
        ("zfs", 0x2FC12FC1, False),
        ("nothing known", 0, False),
    ],
)
def test_times_are_believed_on_file_systems_where_it_was_tried_only(name: str, magic: int, keeps: bool) -> None:
    assert keeps_times(magic) is keeps


# What happens to a clock: seconds that pass until it is read, and how far it is set just before that.
HOURS = st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0, 0, 0, -3600, -30, 30, 90, 86_400])), max_size=12)


@given(HOURS, st.integers(0, 400))
def test_whatever_is_done_to_the_clock_what_is_a_minute_old_by_it_is_a_minute_old(
    happened: list[tuple[int, int]], touched: int
) -> None:
    """`touched` seconds after the first reading a file gets its time stamps by the clock as it is then."""
    steady, ahead = 0, SYNCED
    clock = Unstepped(SYNCED, 0)
    stamp = None
    for passes, step in [*happened, (1, 0)]:
        if stamp is None and touched <= steady + passes:
            stamp = ahead + touched * SECOND
        steady += passes
        ahead += step * SECOND
        synced = clock.time_ns(ahead + steady * SECOND, steady * SECOND)
        if stamp is not None and settled(stamp, stamp, synced):
            assert (steady - touched) * SECOND >= MARGIN_NS


def test_a_clock_that_nobody_sets_is_itself_and_a_step_is_forgotten_after_a_minute() -> None:
    clock = Unstepped(SYNCED, 0)
    assert clock.time_ns(SYNCED + 300 * SECOND, 300 * SECOND) == SYNCED + 300 * SECOND
    stepped = SYNCED + 3600 * SECOND
    assert clock.time_ns(stepped + 310 * SECOND, 310 * SECOND) == SYNCED + 310 * SECOND
    assert clock.time_ns(stepped + 360 * SECOND, 360 * SECOND) == SYNCED + 360 * SECOND
    assert clock.time_ns(stepped + 370 * SECOND, 370 * SECOND) == stepped + 370 * SECOND
