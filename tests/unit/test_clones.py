"""Hot files that are cloned where the file system can: real ones, xfs and btrfs, each in a file of its own.

The oracle is a capture that copies everything afresh, inside the freeze, or the file itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.archive import copies as copies_module
from sidecar.archive import filesystem
from sidecar.archive.copies import CHUNK, CLONED, clone_pays
from sidecar.archive.spool import DISK_RESERVE
from sidecar.engine.deadman import DeadMan
from sidecar.errors import SpoolFull
from sidecar.report import Outcome
from tests.disks import mounted
from tests.unit.edits import edits, punch_hole, tick
from tests.unit.shop import Shop
from tests.unit.trees import no_descriptor_left
from tests.unit.volumes import MEBIBYTE, Volume, captured_while_it_changes, contents, everything

BLOCK = 4096


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(request.param, tmp_path_factory.mktemp("disk"), 400 * MEBIBYTE) as directory:
        yield directory


@pytest.fixture
def volume(disk: Path) -> Iterator[Volume]:
    """Its spool lies beside it, on the same file system."""
    (disk / "volume").mkdir()
    volume = Volume(disk / "volume")
    yield volume
    volume.close()
    shutil.rmtree(disk / "volume")


def shared(path: Path) -> int:
    """Bytes of a file that another one has, too, as FIEMAP tells."""
    most = 500
    request = bytearray(struct.pack("=QQIIII", 0, 2**64 - 1, 1, 0, most, 0) + bytes(56 * most))
    with path.open("rb") as file:
        fcntl.ioctl(file, 0xC020660B, request)
    found = struct.unpack_from("=I", request, 20)[0]
    extents = [struct.unpack_from("=QQQQQI", request, 32 + 56 * number) for number in range(found)]
    return sum(length for _, _, length, _, _, flags in extents if flags & 0x2000)


def whole(size: int) -> int:
    """Bytes in whole blocks: what can be cloned."""
    return size - size % BLOCK


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)


# --- what a clone holds ----------------------------------------------------------------------------------------------


def test_whatever_changes_in_between_the_capture_is_that_of_a_copy_made_in_the_freeze(disk: Path) -> None:
    cloned = []

    @settings(max_examples=60, deadline=None)
    @given(
        first=st.lists(edits, max_size=10),
        rounds=st.lists(
            st.tuples(st.booleans(), st.lists(edits, max_size=8), st.integers(1, 20)), min_size=1, max_size=3
        ),
        last=st.lists(edits, max_size=6),
        at_once=st.sampled_from([BLOCK, 4 * BLOCK, MEBIBYTE]),
    )
    def judge(first: list[Any], rounds: list[Any], last: list[Any], at_once: int) -> None:
        here = disk / "any"
        here.mkdir()
        constants = {"CHUNK": 512, "SLICE": 2048, "_SHARE": 1, "CLONED": BLOCK, "_CLONED_AT_ONCE": at_once}
        try:
            cloned.append(captured_while_it_changes(here, first, rounds, last, constants))
        finally:
            shutil.rmtree(here)

    judge()
    assert any(cloned)  # by no means all: in some nothing is both hot and large


@pytest.mark.parametrize("size", [CLONED, CLONED + 1, 3 * MEBIBYTE - 1, 3 * MEBIBYTE + 12_345])
def test_a_clone_is_the_file_of_the_frozen_instant_whatever_its_size_and_stays_so(volume: Volume, size: int) -> None:
    path = volume.root / "file"
    path.write_bytes(os.urandom(size))
    assert volume.round() == size
    assert volume.round() == size % BLOCK
    overwrite(path, 100_000, b"between the rounds and the freeze")
    content = path.read_bytes()

    frozen = volume.freeze()

    assert volume.copies.cloned == whole(size)
    assert whole(size) <= shared(path) <= whole(size) + BLOCK  # btrfs tells of whole extents
    assert volume.copies.written == size % BLOCK
    assert contents(frozen) == {b"file": content}
    overwrite(path, 0, os.urandom(size))  # the application goes on
    os.sync()
    assert contents(frozen) == {b"file": content}


def test_what_is_in_memory_only_is_in_the_clone(volume: Volume) -> None:
    written, mapped = volume.root / "written", volume.root / "mapped"
    for path in (written, mapped):
        path.write_bytes(os.urandom(MEBIBYTE))
    with mapped.open("r+b") as file, mmap.mmap(file.fileno(), MEBIBYTE) as memory:
        memory[5] = memory[5] ^ 1  # from now on this page is dirty, and another store into it says nothing
        for _ in range(2):
            volume.round()
        for page in range(0, MEBIBYTE, 5 * BLOCK):
            memory[page : page + 8] = b"a store."
        overwrite(written, 300_000, b"not flushed" * 20_000)

        frozen = volume.freeze()

        assert volume.copies.cloned == 2 * MEBIBYTE
        assert contents(frozen) == {b"mapped": memory[:], b"written": written.read_bytes()}
        assert contents(frozen)[b"mapped"][5 * BLOCK :].startswith(b"a store.")


def test_a_file_that_grows_and_shrinks_between_rounds_keeps_its_room(volume: Volume) -> None:
    path = volume.root / "log"
    path.write_bytes(os.urandom(2 * MEBIBYTE + 1000))
    volume.round()
    for _ in range(5):
        with path.open("ab") as file:
            file.write(os.urandom(9000))
        volume.round()
    os.truncate(path, MEBIBYTE + 77)
    volume.round()
    with path.open("ab") as file:
        file.write(os.urandom(MEBIBYTE + 60_000))

    frozen = volume.freeze()

    assert volume.copies.cloned == whole(path.stat().st_size)
    assert volume.copies.spool.end <= path.stat().st_size + BLOCK
    assert len(frozen.files[0].ranges) > 1
    assert contents(frozen) == {b"log": path.read_bytes()}


def test_a_sparse_file_is_cloned_without_its_holes(volume: Volume) -> None:
    path = volume.root / "sparse"
    with path.open("wb") as file:
        file.truncate(20 * MEBIBYTE + 5)
        for offset in (MEBIBYTE + 10, 3 * MEBIBYTE, 7 * MEBIBYTE + 4000):
            os.pwrite(file.fileno(), os.urandom(300_000), offset)
    for _ in range(2):
        volume.round()
    with path.open("r+b") as file:
        punch_hole(file.fileno(), 3 * MEBIBYTE, 10 * BLOCK)
        os.pwrite(file.fileno(), os.urandom(300_000), 2 * MEBIBYTE)

    frozen = volume.freeze()

    assert 1_000_000 < volume.copies.cloned < 2 * MEBIBYTE
    assert frozen.bytes_read < 2 * MEBIBYTE
    assert contents(frozen) == {b"sparse": path.read_bytes()}


def test_small_files_are_compared_and_a_large_one_that_comes_in_the_freeze_is_copied(volume: Volume) -> None:
    (volume.root / "small").write_bytes(os.urandom(CLONED - 1))
    (volume.root / "large").write_bytes(os.urandom(CLONED))
    for _ in range(2):
        volume.round()
    (volume.root / "late").write_bytes(os.urandom(2 * CLONED))

    frozen = volume.freeze()

    assert (volume.copies.cloned, volume.copies.written) == (CLONED, 2 * CLONED)
    assert everything(frozen) == everything(volume.afresh())


def test_a_file_that_is_settled_when_it_is_cloned_is_not_cloned_again(volume: Volume) -> None:
    path = volume.root / "file"
    path.write_bytes(os.urandom(CLONED))
    volume.in_an_hour()
    volume.round()
    assert volume.copies.cloned == CLONED

    frozen = volume.freeze()

    assert volume.copies.cloned == 0
    assert contents(frozen) == {b"file": path.read_bytes()}


def test_a_file_that_someone_moves_and_changes_in_the_freeze_does_not_spoil_what_was_found_first(
    volume: Volume,
) -> None:
    (volume.root / "a").mkdir()
    (volume.root / "z").mkdir()
    path = volume.root / "a" / "file"
    before, behind = os.urandom(CLONED + 7), os.urandom(CLONED + 7)
    path.write_bytes(before)
    for _ in range(2):
        volume.round()
    fired: list[int] = []

    def check() -> None:
        if path.exists() and volume.copies.cloned and not fired:
            fired.append(1)
            path.write_bytes(behind)
            path.rename(volume.root / "z" / "file")

    frozen = volume.freeze(check)

    assert fired
    assert contents(frozen) == {b"a/file": before, b"z/file": behind}


# --- where cloning fails, or does not pay ----------------------------------------------------------------------------


def test_a_spool_on_another_file_system_is_found_out_once_and_the_freeze_compares(disk: Path, tmp_path: Path) -> None:
    root = disk / "volume"
    root.mkdir()
    for name in "abc":
        (root / name).write_bytes(os.urandom(CLONED))
    volume = Volume(root, spool=tmp_path / "spool")
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(volume):
        tried = failing(patch, lambda _: None)
        for _ in range(2):
            volume.round()
        overwrite(root / "b", 100, b"changed")

        frozen = volume.freeze()

        assert len(tried) == 1
        assert (volume.copies.cloned, volume.copies.written) == (0, CHUNK)
        assert everything(frozen) == everything(volume.afresh())
    shutil.rmtree(root)


def failing(patch: pytest.MonkeyPatch, error: Callable[[int], int | None]) -> list[int]:
    """Let cloning fail with the error number that `error` gives for its number; the numbers, as they come."""
    really = filesystem.clone
    calls: list[int] = []

    def clone(*arguments: int) -> None:
        calls.append(len(calls))
        if number := error(calls[-1]):
            raise OSError(number, os.strerror(number))
        really(*arguments)

    patch.setattr(filesystem, "clone", clone)
    return calls


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ETXTBSY, errno.EIO, errno.ENOTTY])
@pytest.mark.parametrize("call", [0, 5, 17, 30, 44])
def test_cloning_that_fails_anywhere_on_its_way_is_made_up_for_by_copying(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, error: int, call: int
) -> None:
    monkeypatch.setattr(copies_module, "_CLONED_AT_ONCE", 64 * 1024)
    for name in "abc":  # 5 calls each, in each of two rounds and in the freeze
        (volume.root / name).write_bytes(os.urandom(CLONED + 40_000))
    calls = failing(monkeypatch, lambda number: error if number == call else None)
    for _ in range(2):
        volume.round()
        tick(volume.root.parent)
        for name in "abc":
            overwrite(volume.root / name, 50_000, os.urandom(150_000))
    end = volume.copies.spool.end

    frozen = volume.freeze()

    assert call in calls
    assert volume.copies.spool.end == end
    assert everything(frozen) == everything(volume.afresh())


def test_a_file_that_can_be_cloned_in_part_only_is_compared(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volume.root / "file"
    path.write_bytes(os.urandom(3 * CLONED))
    monkeypatch.setattr(copies_module, "_CLONED_AT_ONCE", CLONED)
    calls = failing(monkeypatch, lambda number: errno.EINVAL if number else None)
    assert volume.round() == 3 * CLONED
    overwrite(path, 100, b"changed")

    frozen = volume.freeze()

    assert len(calls) == 2
    assert (volume.copies.cloned, volume.copies.written) == (0, CHUNK)
    assert contents(frozen) == {b"file": path.read_bytes()}


def test_what_was_written_before_a_clone_does_not_come_after_it(volume: Volume) -> None:
    path, spool = volume.root / "file", volume.copies.spool
    path.write_bytes(os.urandom(BLOCK))
    position = spool.allot(BLOCK, blocks=True)
    spool.write(memoryview(b"before"), position)
    with path.open("rb") as file:
        spool.clone(file.fileno(), 0, position, BLOCK)
    spool.flush()

    found = bytearray(BLOCK)
    spool.read_into([memoryview(found)], position)
    assert found == path.read_bytes()


def test_of_a_file_that_shrinks_while_it_is_cloned_zeros_stand_for_what_is_gone(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume.root / "file"
    content = os.urandom(3 * CLONED)
    path.write_bytes(content)
    monkeypatch.setattr(copies_module, "_CLONED_AT_ONCE", CLONED)
    for _ in range(2):
        volume.round()
    calls = failing(monkeypatch, lambda number: os.truncate(path, CLONED + 5) if number == 1 else None)

    frozen = volume.freeze()

    assert len(calls) == 2
    assert frozen.changed == [b"file"]
    assert contents(frozen) == {b"file": content[: CLONED + 5] + bytes(2 * CLONED - 5)}


@pytest.mark.parametrize("disk", ["btrfs"], indirect=True)
def test_a_file_that_the_file_system_will_not_share_is_compared_and_others_are_cloned(volume: Volume) -> None:
    for name in "ab":
        path = volume.root / name
        path.touch()
        if name == "a":
            subprocess.run(["chattr", "+C", path], check=True)  # as many do for a database
        path.write_bytes(os.urandom(CLONED))
    for _ in range(2):
        volume.round()

    frozen = volume.freeze()

    assert volume.copies.cloned == CLONED
    assert everything(frozen) == everything(volume.afresh())


def test_a_file_that_takes_long_to_clone_once_more_is_compared_in_the_same_room(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fast", "slow"):
        (volume.root / name).write_bytes(os.urandom(MEBIBYTE))
    slow = (volume.root / "slow").stat().st_ino
    really = filesystem.clone

    def clone(source: int, *rest: int) -> None:
        really(source, *rest)
        volume.seconds += 1.0 if os.fstat(source).st_ino == slow else 0.0

    monkeypatch.setattr(filesystem, "clone", clone)
    written = [volume.round() for _ in range(3)]
    end = volume.copies.spool.end
    overwrite(volume.root / "slow", 100, b"changed")

    frozen = volume.freeze()

    assert written == [2 * MEBIBYTE, MEBIBYTE, 0]  # the first time is no measure: much had to be flushed
    assert (volume.copies.cloned, volume.copies.written) == (MEBIBYTE, CHUNK)
    assert volume.copies.spool.end == end
    assert everything(frozen) == everything(volume.afresh())


@pytest.mark.parametrize(("length", "seconds", "pays"), [(10**9, 0.1, True), (10**9, 0.3, False), (10**6, 0.01, False)])
def test_cloning_pays_where_it_is_faster_than_comparing(length: int, seconds: float, pays: bool) -> None:
    assert clone_pays(length, seconds) is pays


# --- the disk --------------------------------------------------------------------------------------------------------


def test_what_the_application_has_dirtied_is_written_out_before_each_round_that_clones(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume.root / "file").write_bytes(os.urandom(CLONED))
    synced = []
    monkeypatch.setattr(filesystem, "syncfs", synced.append)
    volume.clock = lambda: 10**18  # a minute does not pass

    for _ in range(3):
        volume.round()

    assert len(synced) == 3


def test_room_that_a_clone_does_not_take_yet_is_not_given_to_anybody_else(volume: Volume) -> None:
    disk, spool = volume.root.parent, volume.copies.spool
    (volume.root / "file").write_bytes(os.urandom(100 * MEBIBYTE))

    def left() -> int:
        facts = os.statvfs(disk)
        return facts.f_bavail * facts.f_frsize - int(facts.f_blocks * facts.f_frsize * DISK_RESERVE)

    spool.reserve(100 * MEBIBYTE)
    os.sync()
    before = left()
    for _ in range(2):
        volume.round()
    os.sync()
    assert left() > before + 80 * MEBIBYTE  # the clone has given back what was allocated for it...

    with pytest.raises(SpoolFull):  # ...which the application is going to need as it writes
        volume.space.claim(before + 20 * MEBIBYTE)
    volume.space.claim(before - 20 * MEBIBYTE)
    volume.space.release(before - 20 * MEBIBYTE)
    overwrite(volume.root / "file", 0, os.urandom(100 * MEBIBYTE))
    os.sync()
    assert left() > before - 10 * MEBIBYTE
    spool.close()
    volume.space.claim(left() - 10 * MEBIBYTE)


def test_the_bound_of_the_spool_counts_what_is_cloned(disk: Path) -> None:
    root = disk / "volume"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(2 * MEBIBYTE))
    with contextlib.closing(Volume(root, most=MEBIBYTE)) as volume, pytest.raises(SpoolFull):
        volume.round()
    shutil.rmtree(root)


# --- a whole backup --------------------------------------------------------------------------------------------------


def test_a_backup_clones_before_the_freeze_when_nothing_long_is_left_to_do_and_in_it_and_says_so(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "_COMPARED", 1e-9)  # whatever the machine is busy with
    shop = Shop(disk / "shop")
    content = os.urandom(10 * MEBIBYTE + 5)
    (shop.data("db") / "table").write_bytes(content)
    order: list[str] = []
    really_clone, really_ready = filesystem.clone, DeadMan.ready

    def clone(*arguments: int) -> None:
        order.append("clone")
        really_clone(*arguments)

    def ready(dead_man: DeadMan) -> bool:
        order.append("ready")
        return really_ready(dead_man)

    monkeypatch.setattr(filesystem, "clone", clone)
    monkeypatch.setattr(DeadMan, "ready", ready)
    shop.engine.meanwhile("pause", "db", lambda: order.append("pause"))

    report = shop.run()

    assert report.outcome is Outcome.GOOD, report.reasons
    assert order == ["clone", "clone", "ready", "clone", "ready", "pause", "clone"]
    assert shop.archive(report, "db")["./table"] == content
    assert [each["bytes_cloned"] for each in shop.of("volume_finished")] == [10 * MEBIBYTE, 0]
    shutil.rmtree(disk / "shop")
