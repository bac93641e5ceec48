"""Time stamps that lie, on a real ext4, and whole backups that are right nevertheless.

Each test runs the job twice over: as it is, and with the one rule taken away that guards against the lie. Then the
archive has to be wrong, or else the test would show nothing. What the file holds is read by the test itself.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sidecar.archive import filesystem, settled
from sidecar.archive.settled import Unstepped
from sidecar.events import Progress
from sidecar.report import RunReport
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Capabilities
from tests.disks import mounted
from tests.unit.edits import tick
from tests.unit.held_write import write_in_flight
from tests.unit.shop import Shop

PAGE = mmap.PAGESIZE
OLD = b"old\n" * (PAGE // 4)
NEW = b"new\n" * (PAGE // 4)
# Phases of a run: the file has just been packed; everything is about to be frozen; the run is over.
READ, COPIED, DONE = "copying", "freezing", "done"
ATTEMPTS = 5  # the kernel may write a page out by itself just then, and nothing is wrong


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with mounted("ext4", tmp_path) as directory:
        yield directory


def make_shop(directory: Path) -> Shop:
    """A shop whose store takes over the smallest blocks."""
    directory.mkdir()
    shop = Shop(directory)
    capabilities = Capabilities(least_part=1, least_copy=1)
    shop.stores = {"memory": MemoryStore(off_host=True, capabilities=capabilities)}
    return shop


def run(shop: Shop, at_ns: int, phase: str = "", act: Callable[[], object] | None = None) -> RunReport:
    """A backup of `db` by a clock that says `at_ns`, in which `act` happens as soon as it is in that phase."""
    fired: list[object] = []

    def follow(progress: Progress) -> None:
        if act and progress.phase == phase and not fired:
            fired.append(act())

    shop.start = datetime.fromtimestamp(at_ns / 1e9, UTC)
    report = shop.run("db", follow=follow)
    assert len(fired) == (act is not None)
    return report


def archived(shop: Shop, report: RunReport, path: Path) -> bytes:
    return shop.archive(report, "db")[f"./{path.relative_to(shop.data('db'))}"]


def time_stamps(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns


# --- a store into a page that is mapped, shared and dirty already ----------------------------------------------------


def store_behind_our_back(directory: Path, moment: str) -> tuple[bool, list[bool]]:
    """Two backups of a mapped file, and a store into it at that moment.

    Whether the store has moved a time stamp, and whether each archive holds the file as it was.
    """
    shop = make_shop(directory)
    path = shop.data("db") / "mapped"
    path.write_bytes(bytes(2 * PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 2 * PAGE) as memory:
        memory[100] = 1  # the page is dirty, and its file has new time stamps
        tick(directory)
        before = time_stamps(path)
        in_an_hour = time.time_ns() + 3600 * 10**9

        def store() -> None:
            memory[200] = 2

        first = run(shop, in_an_hour, moment, None if moment == DONE else store)
        expected = path.read_bytes()
        if moment == DONE:
            store()
        has_moved = time_stamps(path) != before
        second = run(shop, in_an_hour + 3600 * 10**9)
        assert path.read_bytes()[200] == 2
        return has_moved, [archived(shop, first, path) == expected, archived(shop, second, path) == path.read_bytes()]


@pytest.mark.parametrize("moment", [READ, COPIED, DONE])
def test_a_store_that_moves_no_time_stamp_is_in_the_archive_because_of_the_sync(
    ext4: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    assert store_behind_our_back(ext4 / "synced", moment) == (True, [True, True])

    # The danger is real on this kernel: it takes nothing but the sync away to have archives that are wrong, and the
    # next one takes the wrong block over.
    monkeypatch.setattr(filesystem, "syncfs", lambda _: None)
    unsynced = [store_behind_our_back(ext4 / f"unsynced-{number}", moment) for number in range(ATTEMPTS)]
    assert (False, [moment == DONE, False]) in unsynced


# --- bytes that land after their time stamps --------------------------------------------------------------------------


@pytest.mark.parametrize("lands_before_the_freeze", [True, False])
@pytest.mark.parametrize("direct", [False, True], ids=["write", "O_DIRECT"])
@pytest.mark.parametrize("weakened", [False, True], ids=["as it is", "a second"])
def test_a_write_that_takes_seconds_is_in_the_archive_because_of_the_margin(
    ext4: Path, monkeypatch: pytest.MonkeyPatch, weakened: bool, direct: bool, lands_before_the_freeze: bool
) -> None:
    if weakened:
        monkeypatch.setattr(settled, "MARGIN_NS", 10**9)
    shop = make_shop(ext4 / "shop")
    path = shop.data("db") / "file"
    path.write_bytes(OLD)
    tick(ext4)
    before = time_stamps(path)
    with write_in_flight(path, NEW, direct=direct) as write:
        stamped = time_stamps(path)
        assert stamped > before
        assert path.read_bytes() == OLD

        five_seconds_later = max(stamped) + 5 * 10**9
        first = run(shop, five_seconds_later, COPIED, write.land if lands_before_the_freeze else None)
        frozen = path.read_bytes()
        assert frozen == (NEW if lands_before_the_freeze else OLD)
    assert path.read_bytes() == NEW
    assert time_stamps(path) == stamped  # nothing tells
    second = run(shop, five_seconds_later + 3600 * 10**9)
    third = run(shop, five_seconds_later + 7200 * 10**9)

    assert (archived(shop, first, path) == frozen) is not (weakened and lands_before_the_freeze)
    assert [archived(shop, each, path) for each in (second, third)] == [OLD if weakened else NEW] * 2
    assert third.volumes[0].bytes_read == 0  # it was a block that was taken over


def test_a_write_that_began_before_the_clock_was_set_back_is_in_the_archive(ext4: Path) -> None:
    """Its time stamps are of tomorrow: such files are believed in by nobody."""
    shop = make_shop(ext4 / "shop")
    path = shop.data("db") / "file"
    path.write_bytes(OLD)
    tick(ext4)
    with write_in_flight(path, NEW):
        yesterday = max(time_stamps(path)) - 24 * 3600 * 10**9
        first = run(shop, yesterday)
    assert archived(shop, first, path) == OLD  # as it was while everything stood still
    second = run(shop, yesterday + 600 * 10**9)

    assert archived(shop, second, path) == NEW


@pytest.mark.parametrize("known", [True, False], ids=["as it is", "by the wall clock alone"])
def test_a_write_in_flight_when_the_clock_is_set_forward_is_in_the_archive_because_the_step_is_known(
    ext4: Path, known: bool
) -> None:
    shop = make_shop(ext4 / "shop")
    path = shop.data("db") / "file"
    path.write_bytes(OLD)
    tick(ext4)
    with write_in_flight(path, NEW) as write:
        began = max(time_stamps(path))
        clock = Unstepped(began, 0)
        tomorrow = began + 24 * 3600 * 10**9

        def run_after(seconds: int, act: Callable[[], object] | None = None) -> RunReport:
            shop.unstepped_ns = lambda: clock.time_ns(wall, seconds * 10**9) if known else wall
            wall = tomorrow + seconds * 10**9
            return run(shop, wall, COPIED if act else "", act)

        first = run_after(5, write.land)
    second = run_after(3600)

    assert [archived(shop, each, path) for each in (first, second)] == [NEW if known else OLD] * 2
