"""Copies made while the application runs: whatever happens to the tree meanwhile, the capture is the frozen tree.

The oracle is a capture that copies everything afresh, inside the freeze; that one is judged by test_capture.py and
test_zoo.py.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.archive import filesystem, settled
from sidecar.archive.capture import precopy
from sidecar.archive.copies import CHUNK, another_round, is_first_round
from sidecar.archive.entry import Kind
from sidecar.errors import SpoolFull, VolumeUnavailable, VolumeUnreadable
from tests.disks import mounted
from tests.unit.edits import edit, edits, punch_hole, tick
from tests.unit.held_write import write_in_flight
from tests.unit.trees import no_descriptor_left
from tests.unit.volumes import MEBIBYTE, Volume, captured_while_it_changes, contents, everything

EXT4 = 0xEF53


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    (tmp_path / "volume").mkdir()
    volume = Volume(tmp_path / "volume")
    yield volume
    volume.close()


really_syncfs = filesystem.syncfs


@pytest.fixture(autouse=True)
def _the_disk_of_others_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync waits until all that others have written is on the disk; a test that needs one has a disk of its own."""
    monkeypatch.setattr(filesystem, "syncfs", lambda _: None)


@pytest.fixture
def _keeps_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file system the tests are on."""
    monkeypatch.setattr(filesystem, "type_of", lambda _: EXT4)


keeps_times = pytest.mark.usefixtures("_keeps_times")


# --- any tree, any edits ---------------------------------------------------------------------------------------------


@keeps_times
@settings(max_examples=150, deadline=None)
@given(
    first=st.lists(edits, max_size=10),
    rounds=st.lists(st.tuples(st.booleans(), st.lists(edits, max_size=8), st.integers(1, 20)), min_size=1, max_size=3),
    last=st.lists(edits, max_size=6),
    chunk=st.sampled_from([16, 512, 4096]),
)
def test_whatever_changes_in_between_the_capture_is_that_of_a_copy_made_in_the_freeze(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[Any],
    rounds: list[tuple[bool, list[Any], int]],
    last: list[Any],
    chunk: int,
) -> None:
    here = tmp_path_factory.mktemp("any")
    captured_while_it_changes(here, first, rounds, last, {"CHUNK": chunk, "SLICE": 4 * chunk, "_SHARE": 1})
    shutil.rmtree(here)


# --- what is settled -------------------------------------------------------------------------------------------------


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened from now on."""
    names: list[str] = []
    really = os.open

    def noting(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if not flags & os.O_DIRECTORY:
            names.append(os.fsdecode(path))
        return really(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", noting)
    return names


@keeps_times
def test_inside_the_freeze_a_settled_file_is_not_even_opened(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume.root / "below").mkdir()
    for name in ("one", "two", "below/three"):
        (volume.root / name).write_bytes(name.encode() * 1000)
    os.setxattr(volume.root / "one", "user.a", b"attribute")
    os.link(volume.root / "one", volume.root / "below" / "link")
    volume.in_an_hour()
    assert volume.round() == 17_000
    (volume.root / "below").rename(volume.root / "moved")
    names = opened(monkeypatch)

    frozen = volume.freeze()

    assert names == []
    assert everything(frozen) == everything(volume.afresh())
    assert contents(frozen)[b"moved/three"] == b"below/three" * 1000


@keeps_times
@pytest.mark.parametrize(
    "change",
    ["overwrite", "overwrite unseen", "append", "truncate", "chmod", "set attribute", "punch hole", "recreate"],
)
def test_a_settled_file_that_changes_is_read_again_and_no_other(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    for name in ("one", "two"):
        (volume.root / name).write_bytes(name.encode() * 10_000)
    volume.in_an_hour()
    volume.round()
    tick(volume.root.parent)
    edit(volume.root, change, 0, 5, 3000)
    names = opened(monkeypatch)

    frozen = volume.freeze()

    assert names == ["one"]
    assert everything(frozen) == everything(volume.afresh())


def test_without_a_sync_nothing_is_settled(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume.root / "file").write_bytes(b"content")
    precopy(os.fspath(volume.root), volume.copies, lambda: None, lambda _: None)
    names = opened(monkeypatch)

    volume.freeze()

    assert names == ["file"]


@pytest.mark.parametrize("trouble", ["another file system", "no type", "sync fails"])
def test_where_times_do_not_tell_or_the_disk_fails_nothing_is_settled(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    asked = []

    def fails(_: int) -> int:
        asked.append(1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filesystem, "type_of", lambda _: 0x01021994 if trouble == "another file system" else EXT4)
    monkeypatch.setattr(filesystem, "syncfs", fails)
    if trouble == "no type":
        monkeypatch.setattr(filesystem, "type_of", fails)
    (volume.root / "file").write_bytes(b"content")
    volume.in_an_hour()
    volume.round()
    names = opened(monkeypatch)

    frozen = volume.freeze()

    assert asked == ([] if trouble == "another file system" else [1])
    assert names == ["file"]
    assert contents(frozen) == {b"file": b"content"}


def test_what_is_mounted_below_a_volume_is_never_settled(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    monkeypatch.setattr(filesystem, "type_of", lambda _: EXT4)
    below = volume.root / "below"
    below.mkdir()
    (volume.root / "here").write_bytes(b"here")
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        (below / "there").write_bytes(b"there")
        volume.in_an_hour()
        volume.round()
        names = opened(monkeypatch)

        frozen = volume.freeze()

        assert names == ["there"]
        assert contents(frozen) == {b"here": b"here", b"below/there": b"there"}
    finally:
        subprocess.run(["umount", below], check=True)


@keeps_times
def test_a_hot_file_comes_of_age_at_a_later_sync_and_is_not_written_again(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume.root / "file").write_bytes(os.urandom(3 * MEBIBYTE))
    assert volume.round() == 3 * MEBIBYTE
    volume.in_an_hour()
    assert volume.round() == 0
    names = opened(monkeypatch)

    frozen = volume.freeze()

    assert names == []
    assert everything(frozen) == everything(volume.afresh())


def test_the_disk_is_synced_again_only_after_a_minute(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(filesystem, "type_of", lambda _: EXT4)
    monkeypatch.setattr(filesystem, "syncfs", synced.append)
    seconds = [1000]
    volume.clock = lambda: seconds[0] * 10**9

    for seconds[0] in (1000, 1001, 1059, 1060, 1100, 1121):
        volume.round()

    assert len(synced) == 3


# --- how time stamps lie ---------------------------------------------------------------------------------------------


def landing_late(monkeypatch: pytest.MonkeyPatch, path: Path, old: bytes) -> list[int]:
    """The first reading of the file finds what it held before its last write, whose time stamps are there already."""
    really = os.preadv
    inode = path.stat().st_ino
    fired: list[int] = []

    def preadv(descriptor: int, views: Any, offset: int, *rest: Any) -> int:
        got = really(descriptor, views, offset, *rest)
        if not fired and os.fstat(descriptor).st_ino == inode:
            fired.append(got)
            views[0][:got] = old[offset : offset + got]
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    return fired


@keeps_times
@pytest.mark.parametrize("weakened", [False, True], ids=["as it is", "a second"])
def test_bytes_that_land_seconds_after_their_time_stamp_are_caught_by_the_margin(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, weakened: bool
) -> None:
    if weakened:
        monkeypatch.setattr(settled, "MARGIN_NS", 10**9)
    path = volume.root / "file"
    path.write_bytes(b"new" * 1000)
    volume.clock = lambda: path.stat().st_ctime_ns + 5 * 10**9  # a slow disk, five seconds after the write began
    fired = landing_late(monkeypatch, path, b"old" * 1000)
    volume.round()
    assert fired == [3000]

    frozen = volume.freeze()

    assert contents(frozen) == {b"file": b"old" * 1000 if weakened else b"new" * 1000}


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with mounted("ext4", tmp_path) as directory:
        yield directory


@pytest.mark.parametrize("direct", [False, True], ids=["write", "O_DIRECT"])
@pytest.mark.parametrize("weakened", [False, True], ids=["as it is", "a second"])
def test_a_write_that_the_kernel_has_not_ended_yet_is_caught_by_the_margin(
    ext4: Path, monkeypatch: pytest.MonkeyPatch, weakened: bool, direct: bool
) -> None:
    if weakened:
        monkeypatch.setattr(settled, "MARGIN_NS", 10**9)
    root = ext4 / "volume"
    root.mkdir()
    path = root / "file"
    path.write_bytes(b"old\n" * 1024)
    tick(ext4)
    with contextlib.closing(Volume(root)) as volume:
        with write_in_flight(path, b"new\n" * 1024, direct=direct):
            volume.clock = lambda: path.stat().st_ctime_ns + 5 * 10**9
            volume.round()

        assert contents(volume.freeze()) == {b"file": (b"old\n" if weakened else b"new\n") * 1024}


@pytest.mark.parametrize("synced", [True, False])
def test_a_store_into_a_mapped_page_that_is_dirty_already_is_caught_by_the_sync(
    ext4: Path, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    if synced:
        monkeypatch.setattr(filesystem, "syncfs", really_syncfs)
    root = ext4 / "volume"
    root.mkdir()
    volume = Volume(root)
    descriptor = os.open(root / "mapped", os.O_RDWR | os.O_CREAT)
    os.pwrite(descriptor, bytes(8192), 0)
    with mmap.mmap(descriptor, 8192) as memory, contextlib.closing(volume):
        os.close(descriptor)
        memory[100] = 1  # the page is dirty, and its file has new time stamps
        volume.in_an_hour()
        volume.round()
        tick(ext4)
        memory[200] = 2

        (content,) = contents(volume.freeze()).values()
        assert (content[100], content[200]) == (1, 2 if synced else 0)


def test_the_type_of_a_file_system_is_what_stat_says(ext4: Path) -> None:
    for path in (ext4, Path("/proc"), Path("/sys"), Path("/dev/shm")):
        printed = subprocess.run(["stat", "-f", "-c", "%t", path], capture_output=True, text=True, check=True).stdout
        descriptor = os.open(path, os.O_RDONLY)
        try:
            assert filesystem.type_of(descriptor) == int(printed, 16)
        finally:
            os.close(descriptor)


def test_a_descriptor_that_is_none_is_an_error_of_the_system() -> None:
    for function in (filesystem.type_of, really_syncfs):
        with pytest.raises(OSError, match="Bad file descriptor"):
            function(-1)


# --- what is hot -----------------------------------------------------------------------------------------------------


def test_of_a_large_hot_file_only_the_chunks_that_changed_are_written(volume: Volume) -> None:
    large = volume.root / "large"
    content = bytearray(os.urandom(20 * MEBIBYTE + 12_345))
    large.write_bytes(content)
    assert volume.round() == len(content)
    assert volume.round() == 0
    for offset in (0, 5 * MEBIBYTE + 17, len(content) - 1):
        content[offset] ^= 1
        with large.open("r+b") as file:
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)

    frozen = volume.freeze()

    assert volume.copies.written == 2 * CHUNK + len(content) % CHUNK
    assert contents(frozen) == {b"large": content}


def test_a_comparison_that_is_stopped_leaves_no_reader_at_it(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume.root / "large").write_bytes(os.urandom(40 * MEBIBYTE))
    volume.round()
    really = os.preadv
    readers, under_way = set(), []

    def preadv(*arguments: Any) -> int:
        readers.add(threading.current_thread())
        under_way.append(1)
        try:
            return really(*arguments)
        finally:
            under_way.pop()

    def stop() -> None:
        if readers:
            raise Stop

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(Stop):
        volume.freeze(stop)

    assert len(readers - {threading.current_thread()}) >= 1
    assert not any(reader.is_alive() for reader in readers - {threading.current_thread()})
    assert under_way == []


def test_a_file_that_grows_keeps_its_copy_and_gets_room_for_the_rest(volume: Volume) -> None:
    log, other = volume.root / "log", volume.root / "other"
    log.write_bytes(os.urandom(5 * MEBIBYTE + 1000))
    other.write_bytes(os.urandom(MEBIBYTE))
    volume.round()
    for _ in range(3):
        with log.open("ab") as file:
            file.write(os.urandom(100_000))
        other.write_bytes(os.urandom(MEBIBYTE))
        assert volume.round() < MEBIBYTE + 100_000 + 2 * CHUNK
    with log.open("ab") as file:
        file.write(os.urandom(100_000))

    frozen = volume.freeze()

    assert volume.copies.written <= 100_000 + 2 * CHUNK
    assert volume.copies.spool.end < log.stat().st_size + MEBIBYTE + 8 * CHUNK
    assert everything(frozen) == everything(volume.afresh())
    assert len(frozen.files[0].ranges) > 1


def test_a_file_that_is_cut_off_and_written_again_with_the_same_bytes_is_written_again(volume: Volume) -> None:
    path = volume.root / "file"
    content = os.urandom(10 * CHUNK + 100)
    for length in (len(content), 2 * CHUNK + 50, len(content), 0):
        path.write_bytes(content[:length])
        volume.round()
    path.write_bytes(content)

    assert contents(volume.freeze()) == {b"file": content}


def test_a_sparse_file_whose_holes_move_is_what_it_is_at_last(volume: Volume) -> None:
    path = volume.root / "sparse"
    with path.open("wb") as file:
        file.truncate(10 * MEBIBYTE)
        for offset in (MEBIBYTE, 3 * MEBIBYTE, 7 * MEBIBYTE):
            os.pwrite(file.fileno(), os.urandom(200_000), offset)
    volume.round()
    with path.open("r+b") as file:
        punch_hole(file.fileno(), 3 * MEBIBYTE, 100 * 4096)
        os.pwrite(file.fileno(), os.urandom(300_000), 2 * MEBIBYTE)

    frozen = volume.freeze()

    assert frozen.bytes_read < 2 * MEBIBYTE
    assert contents(frozen) == {b"sparse": path.read_bytes()}


# --- while the application runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m", "m directory"])
@pytest.mark.parametrize("becomes", ["nothing", "symlink", "fifo", "file"])
def test_what_vanishes_or_becomes_something_else_is_no_error_and_is_met_again(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, name: str, becomes: str
) -> None:
    for file in ("a", "m", "z"):
        (volume.root / file).write_bytes(file.encode() * 1000)
    (volume.root / "m directory").mkdir()
    really = os.open
    fired = []

    def becoming(path: Any, *arguments: Any, **options: Any) -> int:
        if path == name and not fired:
            fired.append(path)
            (volume.root / name).rename(volume.root.parent / "away")
            act = {"symlink": lambda p: p.symlink_to("a"), "fifo": os.mkfifo, "file": Path.touch}.get(becomes)
            if act:
                act(volume.root / name)
        return really(path, *arguments, **options)

    monkeypatch.setattr(os, "open", becoming)
    volume.round()
    assert fired == [name]

    frozen = volume.freeze()

    assert frozen.changed == []
    assert everything(frozen) == everything(volume.afresh())


@pytest.mark.parametrize("change", ["grows", "shrinks", "is overwritten", "vanishes"])
def test_a_file_that_changes_while_it_is_copied_is_no_error_and_is_brought_again(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    large = volume.root / "large"
    large.write_bytes(os.urandom(5 * MEBIBYTE))
    really = os.preadv
    fired = []

    def changing(descriptor: int, views: Any, offset: int) -> int:
        if offset >= 2 * MEBIBYTE and not fired:
            fired.append(offset)
            if change == "grows":
                os.truncate(large, 7 * MEBIBYTE)
            elif change == "shrinks":
                os.truncate(large, 1000)
            elif change == "is overwritten":
                with large.open("r+b") as file:
                    file.write(b"overwritten")
            else:
                large.unlink()
        return really(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", changing)
    volume.in_an_hour()
    volume.round()
    assert fired

    frozen = volume.freeze()

    assert frozen.changed == []
    assert everything(frozen) == everything(volume.afresh())


def test_a_file_under_a_lease_is_left_to_the_freeze(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("a", "m", "z"):
        (volume.root / file).write_bytes(file.encode() * 1000)
    really = os.open

    def leased(path: Any, *arguments: Any, **options: Any) -> int:
        if path == "m":
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return really(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", leased)
        assert volume.round() == 2000
        with pytest.raises(VolumeUnreadable, match="/m' failed"):
            volume.freeze()

    assert contents(volume.freeze()) == {name: name * 1000 for name in (b"a", b"m", b"z")}


def test_a_deep_directory_that_is_moved_away_ends_the_round_and_nothing_else(volume: Volume) -> None:
    deep = volume.root.joinpath(*["m"] * 300)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"content")
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 250:  # so deep that the upper directories are closed by now
            (volume.root / "m" / "m").rename(volume.root / "zz")

    volume.round(check)
    assert calls >= 250

    assert everything(volume.freeze()) == everything(volume.afresh())


def test_a_disk_error_is_one_before_the_freeze_too(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume.root / "file").write_bytes(b"content")

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(VolumeUnreadable, match="/file' failed: Input/output error"):
        volume.round()


def test_a_volume_that_is_not_there_is_unavailable(volume: Volume) -> None:
    volume.root.rmdir()

    with pytest.raises(VolumeUnavailable):
        volume.round()


def test_a_volume_that_outgrows_the_spool_is_found_before_the_freeze(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    with contextlib.closing(Volume(tmp_path / "volume", most=2 * MEBIBYTE)) as volume:
        (volume.root / "a").write_bytes(bytes(MEBIBYTE))
        volume.round()
        (volume.root / "b").write_bytes(bytes(2 * MEBIBYTE))
        with pytest.raises(SpoolFull):
            volume.round()


# --- while it is frozen ----------------------------------------------------------------------------------------------


@keeps_times
@pytest.mark.parametrize("believing", [True, False])
def test_a_file_that_someone_moves_and_changes_in_the_freeze_does_not_spoil_what_was_found_first(
    volume: Volume, believing: bool
) -> None:
    (volume.root / "a").mkdir()
    (volume.root / "z").mkdir()
    path = volume.root / "a" / "file"
    path.write_bytes(b"before" * 20_000)
    if believing:
        volume.in_an_hour()
    volume.round()
    tick(volume.root.parent)

    def check() -> None:
        if path.exists() and fired.append(1) is None and len(fired) == 3:  # `a` has been read, `z` has not
            with path.open("r+b") as file:
                file.write(b"BEHIND" * 20_000)
            path.rename(volume.root / "z" / "file")

    fired: list[int] = []
    frozen = volume.freeze(check)
    assert len(fired) == 3

    assert contents(frozen) == {b"a/file": b"before" * 20_000, b"z/file": b"BEHIND" * 20_000}


@keeps_times
def test_of_two_names_the_first_one_met_carries_the_data_even_if_another_did_before(volume: Volume) -> None:
    (volume.root / "m").write_bytes(b"content")
    os.link(volume.root / "m", volume.root / "z")
    volume.in_an_hour()
    volume.round()
    os.rename(volume.root / "z", volume.root / "a")  # its signature changes, and m's, which is the same file
    volume.in_an_hour()
    volume.round()
    tick(volume.root.parent)
    (volume.root / "n").mkdir()

    frozen = volume.freeze()

    assert [entry.path for entry in frozen.files] == [b"a"]
    assert [(e.path, e.link) for e in frozen.others if e.kind is Kind.HARD_LINK] == [(b"m", b"a")]
    assert everything(frozen) == everything(volume.afresh())


# --- how many rounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "seconds", "more"),
    [
        ([], 0, True),
        ([MEBIBYTE], 0, False),  # a small volume
        ([1000 * MEBIBYTE], 0, True),
        ([1000 * MEBIBYTE, 300 * MEBIBYTE], 3, True),
        ([1000 * MEBIBYTE, 300 * MEBIBYTE, 100 * MEBIBYTE], 4, True),
        ([1000 * MEBIBYTE, 300 * MEBIBYTE, 290 * MEBIBYTE], 4, False),  # it will not become less
        ([1000 * MEBIBYTE, 3 * MEBIBYTE], 1, False),  # a few milliseconds' work
        ([1000 * MEBIBYTE, 2000 * MEBIBYTE], 10, False),
        ([1000 * MEBIBYTE, 300 * MEBIBYTE], 1000, False),
        ([2**40 >> n for n in range(6)], 5, False),
    ],
)
def test_rounds_go_on_as_long_as_they_pay(written: list[int], seconds: float, more: bool) -> None:
    assert another_round(written, seconds) is more


def test_files_smaller_than_a_block_of_the_spools_disk_take_no_more_room_than_they_have(volume: Volume) -> None:
    volume.copies.spool.block = 4 * MEBIBYTE  # as network file systems say
    for number in range(10):
        (volume.root / f"file-{number}").write_bytes(bytes([number]) * 300_000)
    volume.round()
    assert volume.copies.spool.end < 2 * 10 * 300_000
    assert everything(volume.freeze()) == everything(volume.afresh())


@pytest.mark.parametrize(
    ("written", "size", "seconds", "counts"),
    [
        (0, 10**6, 0.5, True),
        (0, 10**6, 2.5, True),
        (0, 10**6, 3.5, False),
        (0, 10**9, 0.5, True),
        (0, 10**9, 2.5, False),
        (1, 10**6, 0.5, True),
        (1, 10**6, 1.5, False),
        (10**9, 10**9, 0.5, True),
    ],
)
def test_a_live_pass_is_a_round_if_little_can_have_changed_since_it_began(
    written: int, size: int, seconds: float, counts: bool
) -> None:
    assert is_first_round(written, size, seconds) is counts
