"""The spool: its bytes, its bounds, and what a full disk does to it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.archive import spool as spool_module
from sidecar.archive.spool import BUFFER, DISK_RESERVE, Spool, SpoolSpace
from sidecar.errors import SidecarError, SpoolFull
from tests.unit.trees import no_descriptor_left

MEBIBYTE = 1024 * 1024


def fill(spool: Spool, content: bytes) -> None:
    spool.write(memoryview(content), spool.allot(len(content)))


def read(spool: Spool, position: int, lengths: list[int]) -> list[bytes]:
    views = [memoryview(bytearray(length)) for length in lengths]
    spool.read_into(views, position)
    return [bytes(view) for view in views]


@settings(max_examples=80, deadline=None)
@given(
    buffer=st.integers(8, 64),
    rooms=st.lists(st.integers(1, 200), min_size=1, max_size=8),
    writes=st.lists(
        st.tuples(st.sampled_from(["write", "put"]), st.integers(0, 7), st.integers(0, 199), st.binary(max_size=200)),
        max_size=30,
    ),
    reads=st.lists(st.tuples(st.integers(0, 1500), st.lists(st.integers(1, 40), min_size=1, max_size=40)), max_size=5),
)
def test_what_was_written_last_is_read_back_from_any_position_into_any_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    buffer: int,
    rooms: list[int],
    writes: list[tuple[str, int, int, bytes]],
    reads: list[tuple[int, list[int]]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BUFFER": buffer, "_IOV_MAX": 3, "_PAGE": 8, "_LARGE": 8}.items():
            patch.setattr(spool_module, name, value)
        with SpoolSpace(tmp_path_factory.getbasetemp() / "spool").new("v") as spool:
            positions = [spool.allot(length) for length in rooms]
            expected = bytearray(spool.end)
            for how, number, offset, content in writes:
                room = number % len(rooms)
                data = content[: max(0, rooms[room] - offset)]
                position = positions[room] + offset
                expected[position : position + len(data)] = data
                if how == "put":
                    spool.flush()
                getattr(spool, how)(memoryview(data), position)
            spool.flush()

            for position, lengths in [(0, [len(expected)]), *reads]:
                if position + sum(lengths) <= len(expected):
                    assert b"".join(read(spool, position, lengths)) == expected[position : position + sum(lengths)]


def test_rooms_do_not_overlap_and_large_ones_begin_on_a_page(tmp_path: Path) -> None:
    with SpoolSpace(tmp_path / "spool").new("v") as spool:
        lengths = [10, 20, 100_000, 5, 4096, 70_000]
        positions = [spool.allot(length) for length in lengths]

    ends = [position + length for position, length in zip(positions, lengths, strict=True)]
    assert all(end <= position for end, position in zip(ends, positions[1:], strict=False))
    assert [position % 4096 for position, length in zip(positions, lengths, strict=True) if length > 65536] == [0, 0]
    assert positions[1] == 10  # small ones lie close together, and are written together


def test_short_reads_of_the_disk_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(5000)
    really = os.preadv
    calls = 0

    def short(descriptor: int, views: list[memoryview], position: int) -> int:
        nonlocal calls
        calls += 1
        return really(descriptor, [views[0][:7]], position)

    with SpoolSpace(tmp_path / "spool").new("v") as spool:
        fill(spool, content)
        spool.flush()
        monkeypatch.setattr(os, "preadv", short)

        assert b"".join(read(spool, 100, [1, 6, 7, 8, 900])) == content[100:1022]
    assert calls > 100


def test_the_bound_is_checked_before_anything_is_written_and_says_what_is_needed(tmp_path: Path) -> None:
    space = SpoolSpace(tmp_path / "spool", most=10 * MEBIBYTE)
    with space.new("a") as first, space.new("b") as second:
        first.reserve(6 * MEBIBYTE)

        with pytest.raises(SpoolFull) as full:
            second.reserve(5 * MEBIBYTE)

        assert full.value.needed == 11 * MEBIBYTE
        assert "BACKUP_SPOOL_MAX" in full.value.hint
        assert second.reserved == 0
        assert (tmp_path / "spool" / "b.raw").stat().st_size == 0
        second.reserve(4 * MEBIBYTE)


def test_room_is_on_the_disk_once_it_is_reserved(tmp_path: Path) -> None:
    with SpoolSpace(tmp_path / "spool").new("v") as spool:
        spool.reserve(3 * MEBIBYTE)
        spool.reserve(2 * MEBIBYTE)

        assert spool.reserved == 3 * MEBIBYTE
        assert (tmp_path / "spool" / "v.raw").stat().st_blocks * 512 >= 3 * MEBIBYTE


def test_a_volume_that_grew_since_it_was_measured_is_held_to_the_bound_while_it_is_copied(tmp_path: Path) -> None:
    space = SpoolSpace(tmp_path / "spool", most=3 * BUFFER)
    with space.new("v") as spool:
        spool.reserve(BUFFER)

        with pytest.raises(SpoolFull) as full:
            fill(spool, bytes(4 * BUFFER))

        assert full.value.needed == 4 * BUFFER


def test_leaving_deletes_the_file_gives_its_room_back_and_may_be_repeated(tmp_path: Path) -> None:
    space = SpoolSpace(tmp_path / "spool", most=MEBIBYTE)
    with no_descriptor_left():
        for _ in range(3):
            with space.new("v") as spool:
                spool.reserve(MEBIBYTE)
            spool.close()

            assert os.listdir(tmp_path / "spool") == []


def test_a_failure_inside_deletes_the_file_too(tmp_path: Path) -> None:
    space = SpoolSpace(tmp_path / "spool")

    with no_descriptor_left(), pytest.raises(ZeroDivisionError), space.new("v"):
        raise ZeroDivisionError

    assert os.listdir(tmp_path / "spool") == []


def test_what_a_killed_run_left_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "volume.raw").write_bytes(b"left")
    (tmp_path / "spool" / "volume.index").write_bytes(b"left")

    space = SpoolSpace(tmp_path / "spool")

    assert os.listdir(space.directory) == []


def test_two_spools_of_one_name_are_refused_and_neither_is_harmed(tmp_path: Path) -> None:
    space = SpoolSpace(tmp_path / "spool")
    with space.new("v") as spool:
        fill(spool, b"content")
        spool.flush()

        with pytest.raises(SidecarError, match="spool"):
            space.new("v")

        assert read(spool, 0, [7]) == [b"content"]


def test_a_fault_of_the_spools_disk_is_not_called_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with SpoolSpace(tmp_path / "spool").new("v") as spool:
        fill(spool, b"content")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", broken)
            with pytest.raises(SidecarError, match="writing the spool failed: Input/output error") as failed:
                spool.flush()
            assert not isinstance(failed.value, SpoolFull)
        spool.flush()
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(SidecarError, match="reading the spool failed"):
            read(spool, 0, [7])


def test_a_spool_that_ends_early_is_never_read_as_zeros_beyond_its_end(tmp_path: Path) -> None:
    with SpoolSpace(tmp_path / "spool").new("v") as spool:
        fill(spool, b"content")
        spool.flush()

        with pytest.raises(EOFError):
            read(spool, 0, [8])


# --- on a disk of its own --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", mounted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_a_tenth_of_the_disk_stays_free_for_the_application(small_disk: Path) -> None:
    space = SpoolSpace(small_disk / "spool")
    with space.new("v") as spool:
        spool.reserve(int(36 * MEBIBYTE) - 4096)

        with pytest.raises(SpoolFull, match="10%") as full:
            spool.reserve(37 * MEBIBYTE)

        disk = os.statvfs(small_disk)
        assert disk.f_bavail >= int(DISK_RESERVE * disk.f_blocks)
        assert full.value.needed == 37 * MEBIBYTE
        assert "backup-state" in full.value.hint


def test_the_tenth_is_kept_while_a_grown_volume_is_copied(small_disk: Path) -> None:
    with SpoolSpace(small_disk / "spool").new("v") as spool:
        with pytest.raises(SpoolFull):
            fill(spool, bytes(40 * MEBIBYTE))

        disk = os.statvfs(small_disk)
        assert disk.f_bavail >= int(DISK_RESERVE * disk.f_blocks)


def test_a_disk_that_others_fill_after_the_check_is_a_full_spool(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SpoolSpace(small_disk / "spool")
    really = os.posix_fallocate

    def others_first(*arguments: int) -> None:
        (small_disk / "other").write_bytes(bytes(20 * MEBIBYTE))
        really(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", others_first)
    with space.new("v") as spool:
        with pytest.raises(SpoolFull, match="No space left on device") as full:
            spool.reserve(30 * MEBIBYTE)
        assert full.value.needed == 30 * MEBIBYTE
        assert spool.reserved == 0

    (small_disk / "other").unlink()
    monkeypatch.undo()
    with space.new("v") as again:
        again.reserve(30 * MEBIBYTE)


def test_a_file_system_that_cannot_allocate_ahead_is_found_full_by_writing(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with SpoolSpace(small_disk / "spool").new("v") as spool:
        spool.reserve(20 * MEBIBYTE)
        (small_disk / "other").write_bytes(bytes(30 * MEBIBYTE))

        with pytest.raises(SpoolFull, match="No space left on device"):
            fill(spool, os.urandom(20 * MEBIBYTE))
