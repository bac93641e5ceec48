"""Archives made of blocks that are there already: whatever happened to the tree, each is a whole archive of it.

The oracle is the tree itself, read by lstat(2) and open(2) when nothing changes any more, against what Python's tarfile
finds in the archive.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import os
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from sidecar.archive import capture as walks
from sidecar.archive import filesystem, packer, writer
from sidecar.archive.blocks import plan_blocks
from sidecar.archive.copies import Copies
from sidecar.archive.entry import fingerprint
from sidecar.archive.index import combined_crc32
from sidecar.archive.packer import Packer
from sidecar.archive.pool import Chain, Part, Pool, Stretch
from sidecar.archive.reader import read_blocks, read_fingerprinted
from sidecar.archive.spool import SpoolSpace
from sidecar.archive.writer import write_archive
from tests.unit.edits import edit, edits, populate, tick
from tests.unit.trees import no_descriptor_left

HOUR_NS = 3600 * 10**9
EXT4 = 0xEF53


@dataclass
class Made:
    """An archive as a store would have it, its index, and how it came about."""

    data: bytes
    index: bytes
    copied: int  # bytes taken from the archive before
    differing: list[bytes]
    left_out: int  # parts that were sent in vain
    packed: int  # data bytes read by the live pass
    in_parts: int  # bytes of the archive that are parts of the upload: at the next run the store can copy them
    found: int  # bytes of blocks that were delivered though the archive before has them


class Volume:
    """A volume, and a store that holds parts by number, as S3 does."""

    least = 2048
    most = 10_000

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = time.time_ns
        self.earlier: Made | None = None
        self.defers = False
        self._beside = root.parent

    def in_an_hour(self) -> None:
        """Whatever has not changed by the next run is settled."""
        tick(self._beside)
        clock = self.clock
        self.clock = lambda: clock() + HOUR_NS

    def back_up(
        self,
        meanwhile: Callable[[str], None] = lambda _: None,
        *,
        full: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Made:
        """One backup. meanwhile: told `packed`, `copied` when the tree may change; full: as of run-now."""
        root = os.fspath(self.root)
        parts: dict[int, bytes] = {}
        body: list[bytes] = []
        kept: list[int] = []
        differing: list[bytes] = []
        earlier = self.earlier
        with contextlib.ExitStack() as undo:
            space = SpoolSpace(self._beside / "spool")
            copies = Copies(undo.enter_context(space.new("v")))
            pool = Pool(undo.enter_context(space.new("v", ".pool")))
            recorded = {}
            if earlier and full:
                recorded = {
                    fingerprint(file.path, file.signature): crc32
                    for block in read_blocks(earlier.index)
                    for file, crc32 in zip(block.files, block.data_crc32 or (), strict=False)
                }
            elif earlier:
                pool.load(read_fingerprinted(earlier.index))

            def send(part: Part, data: bytes) -> None:
                assert (part.length, part.crc32) == (len(data), isal_zlib.crc32(data))
                if part.offset is not None:  # the packer has made what was there: the store copies it
                    assert earlier is not None
                    assert part.length >= self.least
                    assert earlier.data[part.offset : part.offset + part.length] == data
                    parts[part.number] = data
                elif self.defers:
                    pool.keep_bytes(part, data)
                else:
                    parts[part.number] = data

            def choose() -> list[Chain]:
                fallen = pool.choose(self.least, 3 * self.least, self.most)
                for part in (part for stretch in pool.stretches for part in stretch.parts if part.offset is not None):
                    assert earlier is not None
                    assert part.offset is not None
                    parts[part.number] = earlier.data[part.offset : part.offset + part.length]
                return fallen

            def keep(stretch: Stretch) -> None:
                for part in stretch.parts:
                    kept.append(part.number)
                    body.append(pool.bytes_of(part) if part.number not in parts else parts[part.number])
                    assert len(body[-1]) == part.length >= self.least
                body.append(stretch.loose)

            walks.sync(root, copies, self.clock())
            assert copies.synced_ns is not None
            with ThreadPoolExecutor(2) as executor:
                live = Packer(
                    pool,
                    send,
                    least=self.least,
                    target=lambda _: 2 * self.least,
                    synced_ns=copies.synced_ns,
                    level=1,
                    executor=executor,
                    threads=2,
                    recorded=recorded,
                    differs=differing.append,
                )
                try:
                    walks.pack(root, copies, pool, live, check, lambda _: None, choose)
                finally:
                    live.abandon()
            meanwhile("packed")
            walks.precopy(root, copies, check, lambda _: None, pool)
            meanwhile("copied")
            captured = walks.capture(root, copies, check, lambda _: None, pool)
            found = 0

            def deliver(block: bytes, offset: int | None) -> None:
                nonlocal found
                if offset is not None:
                    assert earlier is not None
                    assert earlier.data[offset : offset + len(block)] == block
                    found += len(block)
                body.append(block)

            index = self._beside / "index"
            reused = pool.reused()
            summary = write_archive(
                captured,
                deliver,
                index,
                volume="v",
                set_name="s",
                level=1,
                threads=2,
                check=check,
                pool=pool,
                keep=keep,
            )
            assert not captured.changed
        made = Made(
            b"".join(body),
            index.read_bytes(),
            reused,
            differing,
            len(parts.keys() - set(kept)),
            live.bytes_read,
            sum(len(parts[number]) for number in kept if number in parts),
            found,
        )
        assert (summary.size, summary.crc32) == (len(made.data), isal_zlib.crc32(made.data))
        assert kept == sorted(kept)
        self.earlier = made
        return made


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture(autouse=True)
def _any_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file system the tests are on keeps times, and the disk of others is left alone."""
    monkeypatch.setattr(filesystem, "type_of", lambda _: EXT4)
    monkeypatch.setattr(filesystem, "syncfs", lambda _: None)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "TARGET", 8192)
    monkeypatch.setattr(writer, "plan_blocks", functools.partial(plan_blocks, target=8192))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    (tmp_path / "volume").mkdir()
    return Volume(tmp_path / "volume")


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """What an archive of the tree has to give back."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        attributes: dict[str, bytes] = {}
        content: Any = None
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        name = "./" + os.fspath(path.relative_to(root)) if path != root else "."
        times = None if kind == stat.S_IFLNK else status.st_mtime_ns
        mode = None if kind == stat.S_IFLNK else stat.S_IMODE(status.st_mode)
        found[name] = (kind, mode, status.st_uid, status.st_gid, times, content, attributes)
    return found


_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
}


def unpacked(data: bytes) -> dict[str, tuple[Any, ...]]:
    """What Python's tarfile finds, hard links as the files that they are."""
    found: dict[str, tuple[Any, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            name = member.name
            if member.islnk():
                found[name] = found[member.linkname]
                continue
            kind = _KINDS[member.type]
            content: Any = None
            if kind == stat.S_IFREG:
                assert name not in found, f"{name} is there twice"
                file = archive.extractfile(member)
                assert file is not None
                content = hashlib.sha256(file.read()).hexdigest()
            elif kind == stat.S_IFLNK:
                content = member.linkname
            times = None
            if kind != stat.S_IFLNK:
                seconds, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
                times = int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
            attributes = {
                key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            mode = None if kind == stat.S_IFLNK else member.mode
            found[name] = (kind, mode, member.uid, member.gid, times, content, attributes)
    return found


def assert_whole(volume: Volume, made: Made) -> None:
    assert unpacked(made.data) == tree(volume.root)
    lines = gzip.decompress(made.index).splitlines()
    assert len(lines) >= 3
    for each in read_blocks(made.index):
        data = made.data[each.block.offset : each.block.offset + each.block.length]
        assert hashlib.sha256(data).hexdigest() == each.block.sha256
        assert len(gzip.decompress(data)) == each.block.raw_length


# --- any tree, any edits, one backup after another -------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    first=st.lists(edits, max_size=10),
    runs=st.lists(
        st.tuples(
            st.lists(edits, max_size=6),
            st.lists(edits, max_size=4),
            st.lists(edits, max_size=4),
            st.booleans(),
            st.booleans(),
            st.sampled_from([False, False, False, True]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_whatever_changes_between_and_during_backups_each_archive_is_that_of_the_frozen_tree(
    tmp_path_factory: pytest.TempPathFactory, first: list[Any], runs: list[Any]
) -> None:
    here = tmp_path_factory.mktemp("any")
    (here / "volume").mkdir()
    volume = Volume(here / "volume")

    def change(changes: list[Any]) -> None:
        tick(here)
        for each in changes:
            edit(volume.root, *each)
        tick(here)

    populate(volume.root)
    volume.in_an_hour()
    begun = volume.back_up()
    assert begun.in_parts > 70_000
    change(first)
    for before, while_packing, while_copying, ages, volume.defers, full in runs:
        change(before)
        volume.clock = time.time_ns
        if ages:
            volume.in_an_hour()
        during = {"packed": while_packing, "copied": while_copying}
        made = volume.back_up(lambda stage, during=during: change(during[stage]), full=full)  # type: ignore[misc]
        assert_whole(volume, made)
        assert not made.differing
    # However it got there: what is settled by now, and made parts of an upload, is taken over whole by the next one.
    volume.defers = False
    volume.clock = time.time_ns
    volume.in_an_hour()
    settled = volume.back_up()
    made = volume.back_up()
    assert_whole(volume, made)
    assert made.copied >= settled.in_parts


_DAY_NS = 24 * HOUR_NS


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.sampled_from([-_DAY_NS, -61 * 10**9, 0, 59 * 10**9, HOUR_NS, _DAY_NS]),
            st.lists(edits, max_size=4),
            st.lists(edits, max_size=3),
        ),
        min_size=2,
        max_size=4,
    ),
)
def test_however_the_clock_is_stepped_between_backups_each_archive_is_that_of_a_fresh_one(
    tmp_path_factory: pytest.TempPathFactory, runs: list[Any]
) -> None:
    """By clocks that are a day behind the files' time stamps and a day before them, one after another."""
    here = tmp_path_factory.mktemp("any")
    (here / "volume").mkdir()
    volume, fresh = Volume(here / "volume"), Volume(here / "volume")
    populate(volume.root)
    for step, before, while_packing in runs:
        tick(here)
        for each in before:
            edit(volume.root, *each)
        tick(here)

        def change(stage: str, changes: list[Any] = while_packing) -> None:
            tick(here)
            while changes:
                edit(volume.root, *changes.pop())
            tick(here)

        now = time.time_ns() + step
        volume.clock = fresh.clock = lambda now=now: now  # type: ignore[misc]
        made = volume.back_up(change)
        assert_whole(volume, made)
        fresh.earlier = None
        assert unpacked(fresh.back_up().data) == unpacked(made.data)


# --- what is reused, and what is not ---------------------------------------------------------------------------------


def fill(root: Path, count: int = 40, size: int = 3000) -> None:
    for number in range(count):
        directory = root / f"d{number % 4}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(os.urandom(size))


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(os.urandom(10_000))


def patched(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(50_000)
        file.write(b"changed")


@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.parametrize("change", [grown, patched])
def test_of_a_large_file_that_changed_only_the_blocks_that_did_are_sent(
    volume: Volume, change: Callable[[Path], None], is_settled: bool
) -> None:
    """A log that grows, a table that changes in one place: hot or settled, and with others before and behind it."""
    fill(volume.root)
    large = volume.root / "d1" / "large"
    large.write_bytes(os.urandom(120_000))
    for number in (1, 2):
        if is_settled:
            volume.in_an_hour()
        made = volume.back_up()
        assert_whole(volume, made)
        if number == 1:
            change(large)
            (volume.root / "d0" / "f0").write_bytes(os.urandom(5000))  # nothing lies where it did
    reused = made.copied if is_settled else made.found
    assert reused > 120_000 - 4 * 8192


def test_a_full_run_sends_everything_again(volume: Volume) -> None:
    (volume.root / "large").write_bytes(os.urandom(120_000))
    for full in (False, True):
        made = volume.back_up(full=full)
        assert_whole(volume, made)
        assert (made.found, made.copied) == (0, 0)
    assert volume.back_up().found > 100_000


def test_what_is_settled_is_read_once_and_then_copied_inside_the_store(volume: Volume) -> None:
    fill(volume.root)
    volume.in_an_hour()
    first = volume.back_up()
    assert (first.packed, first.copied) == (40 * 3000, 0)
    second = volume.back_up()
    assert second.packed == 0
    assert second.copied > 40 * 3000
    assert_whole(volume, second)


def test_what_is_hot_is_in_no_block_that_a_later_archive_takes_over(volume: Volume) -> None:
    fill(volume.root)
    first = volume.back_up()
    assert first.packed == 0
    assert all(each.data_crc32 is None for each in read_blocks(first.index))
    volume.in_an_hour()
    second = volume.back_up()
    assert (second.packed, second.copied) == (40 * 3000, 0)


def test_a_change_costs_the_blocks_that_it_touches(volume: Volume) -> None:
    fill(volume.root)
    volume.in_an_hour()
    first = volume.back_up()
    (volume.root / "d0" / "f0").write_bytes(b"new")
    second = volume.back_up()
    assert len(first.data) // 2 < second.copied < len(first.data)
    assert 0 < second.packed < 40 * 3000 // 2
    assert_whole(volume, second)


def test_a_change_while_the_rest_is_copied_makes_its_part_be_left_out(volume: Volume) -> None:
    fill(volume.root)
    volume.in_an_hour()

    def change(stage: str) -> None:
        if stage == "copied":
            (volume.root / "d0" / "f0").unlink()

    made = volume.back_up(change)
    assert made.left_out == 1
    assert_whole(volume, made)


def test_a_file_larger_than_a_block_is_taken_over_whole_or_not_at_all(volume: Volume) -> None:
    large = volume.root / "large"
    large.write_bytes(os.urandom(100_000))
    fill(volume.root, 4)
    volume.in_an_hour()
    volume.back_up()
    assert volume.back_up().packed == 0
    with large.open("ab") as file:
        file.write(b"more")
    made = volume.back_up()
    assert made.packed >= 100_004
    assert_whole(volume, made)


def test_a_large_file_that_changes_while_it_is_packed_is_read_anew(volume: Volume) -> None:
    large = volume.root / "large"
    large.write_bytes(os.urandom(100_000))
    volume.in_an_hour()
    touched = False

    def check() -> None:
        nonlocal touched
        if packing and not touched:
            touched = True
            tick(volume.root.parent)
            with large.open("r+b") as file:
                file.write(b"changed")

    packing = True

    def meanwhile(stage: str) -> None:
        nonlocal packing
        packing = False

    made = volume.back_up(meanwhile, check=check)
    assert touched
    assert_whole(volume, made)


def test_a_directory_that_was_renamed_is_read_anew(volume: Volume) -> None:
    fill(volume.root)
    volume.in_an_hour()
    volume.back_up()
    (volume.root / "d1").rename(volume.root / "e1")
    assert_whole(volume, volume.back_up())


def test_a_hard_link_whose_first_name_moves_behind_the_other_is_there_once(volume: Volume) -> None:
    fill(volume.root)
    (volume.root / "d1" / "f1").rename(volume.root / "d1" / "a")
    os.link(volume.root / "d1" / "a", volume.root / "d2" / "a")
    volume.in_an_hour()
    volume.back_up()
    (volume.root / "d2").rename(volume.root / "c2")
    assert_whole(volume, volume.back_up())


def test_reading_everything_tells_of_a_file_that_differs_under_the_same_signature(volume: Volume) -> None:
    fill(volume.root)
    volume.in_an_hour()
    first = volume.back_up()
    assert volume.back_up(full=True).differing == []
    # What no file system does: the index is made to tell of other contents, as if the disk had changed them.
    text = gzip.decompress(first.index).decode()
    (block,) = [each for each in read_blocks(first.index) if any(file.path == b"d0/f0" for file in each.files)]
    assert block.data_crc32 is not None
    place = [file.path for file in block.files].index(b"d0/f0")
    crc32 = f"{block.data_crc32[place]:08x}"
    assert text.count(crc32) == 1
    first.index = gzip.compress(text.replace(crc32, f"{block.data_crc32[place] ^ 1:08x}").encode())
    volume.earlier = first
    assert volume.back_up().differing == []
    volume.earlier = first
    made = volume.back_up(full=True)
    assert made.differing == [b"d0/f0"]
    assert made.copied == 0
    assert_whole(volume, made)


@pytest.mark.parametrize("full", [True, False], ids=["full", "first"])
def test_a_file_that_changes_while_it_is_read_is_archived_as_it_is_then_and_is_no_alarm(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    fill(volume.root)
    volume.in_an_hour()
    if full:
        volume.back_up()
    file = volume.root / "d0" / "f0"
    read = packer._fill
    changed: list[Path] = []

    def change_first(descriptor: int, view: memoryview, offset: int) -> bool:
        if not changed and os.path.samestat(os.fstat(descriptor), file.stat()):
            tick(volume.root.parent)
            file.write_bytes(bytes(file.stat().st_size))
            changed.append(file)
        return read(descriptor, view, offset)

    monkeypatch.setattr(packer, "_fill", change_first)
    made = volume.back_up(full=full)
    assert changed == [file]
    assert made.differing == []
    assert_whole(volume, made)


def test_files_are_packed_by_age_so_that_what_changes_leaves_old_blocks_whole(volume: Volume) -> None:
    fill(volume.root, 60)
    in_40_days = time.time_ns() + 40 * 24 * HOUR_NS
    volume.clock = lambda: in_40_days  # ctime cannot be set
    late = sorted(path for path in volume.root.rglob("*") if path.is_file())[::2]
    for path in late:
        os.utime(path, ns=(in_40_days - HOUR_NS, in_40_days - HOUR_NS))
    made = volume.back_up()
    names = {os.fsencode(path.relative_to(volume.root)) for path in late}
    packed = [each for each in read_blocks(made.index) if each.data_crc32 is not None]
    assert len(packed) > 10
    assert all(len({file.path in names for file in each.files}) == 1 for each in packed)
    assert_whole(volume, made)


def test_a_run_of_blocks_too_short_to_be_copied_is_packed_again(volume: Volume) -> None:
    (volume.root / "small").write_bytes(os.urandom(500))
    volume.in_an_hour()
    volume.back_up()
    made = volume.back_up()
    assert (made.packed, made.copied) == (500, 0)
    assert_whole(volume, made)


# --- arithmetic ------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=20))
def test_the_checksum_of_blocks_is_that_of_their_bytes(pieces: list[bytes]) -> None:
    blocks = [packer.index.Block(0, len(each), 0, isal_zlib.crc32(each), "") for each in pieces]
    assert combined_crc32(blocks) == isal_zlib.crc32(b"".join(pieces))
