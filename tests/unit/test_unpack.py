"""A restore inside a volume: all of it or nothing, whenever it ends."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.archive import unpack
from sidecar.archive.unpack import GO, LEAVE, STAGING, STREAM, Expected, Word, restore_into, settle
from sidecar.errors import NoRoom, RestoreFailed

OLD = {"kept.txt": b"old", "d/deep": b"old too", "only-old": b"x"}
NEW = {"kept.txt": b"new", "e/other": b"new too", ".hidden": b"y"}


def lay(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def found(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def packed(source: Path) -> bytes:
    """By GNU tar, the root last, as our archives have it."""
    names = sorted((str(p.relative_to(source)) for p in source.rglob("*") if not p.is_dir()), reverse=True)
    names += [f"./{p.relative_to(source)}" for p in sorted(source.rglob("*"), reverse=True) if p.is_dir()] + ["."]
    command = ["tar", "--format=pax", "--xattrs", "--acls", "--no-recursion", "-cf", "-", "--", *names]
    return subprocess.run(command, cwd=source, check=True, capture_output=True).stdout


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    root.mkdir()
    lay(root, OLD)
    return root


@pytest.fixture
def stream(tmp_path: Path) -> bytes:
    source = tmp_path / "source"
    source.mkdir()
    lay(source, NEW)
    os.utime(source, ns=(1_000_000_000, 1_234_567_890_123_456_789))
    source.chmod(0o750)
    os.setxattr(source, "user.colour", b"blue")
    return packed(source)


class Words(list[Word]):
    def __call__(self, word: Word, **_: str) -> None:
        self.append(word)


def restored(root: Path, data: bytes, *, length: int | None = None, files: int = 5, **beyond: Any) -> Words:
    """Feed it through a pipe, as the engine does."""
    reader, writer = os.pipe()
    words = Words()

    def feed() -> None:
        with os.fdopen(writer, "wb") as pipe, suppress(BrokenPipeError):
            pipe.write(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        restore_into(
            str(root),
            Expected(len(data.removesuffix(GO).removesuffix(LEAVE)) if length is None else length, files, **beyond),
            reader,
            words,
        )
    finally:
        os.close(reader)
        feeder.join()
    return words


def test_the_volume_becomes_what_arrived_and_its_root_with_it(volume: Path, stream: bytes) -> None:
    os.setxattr(volume, "user.old", b"1")
    words = restored(volume, stream + GO)
    assert words == [Word.READY, Word.UNPACKED, Word.EXCHANGED]
    assert found(volume) == NEW
    facts = volume.stat()
    assert (facts.st_mode & 0o7777, facts.st_mtime_ns) == (0o750, 1_234_567_890_123_456_789)
    assert {name: os.getxattr(volume, name) for name in os.listxattr(volume)} == {"user.colour": b"blue"}


def through_the_fifo(root: Path, data: bytes, *, length: int, last: bytes) -> Words:
    """What it says to one who sends the stream through the FIFO, and then `last` on standard input, and is gone."""
    reader, writer = os.pipe()
    words = Words()

    def say(word: Word, **_: str) -> None:
        words.append(word)
        if word is Word.READY:
            stream = os.open(root / STAGING / STREAM, os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(stream, True)
            feeder = threading.Thread(target=lambda: (os.write(stream, data), os.close(stream)))
            feeder.start()
        elif word is Word.UNPACKED:
            assert not (root / STAGING / STREAM).exists()
            os.write(writer, last)
            os.close(writer)

    try:
        restore_into(str(root), Expected(length, 5), reader, say)
    finally:
        os.close(reader)
    return words


def test_through_the_fifo_it_is_the_same(volume: Path, stream: bytes) -> None:
    assert through_the_fifo(volume, stream, length=len(stream), last=LEAVE)[-1] is Word.AS_IT_WAS
    assert found(volume) == OLD
    words = through_the_fifo(volume, stream, length=len(stream), last=GO)
    assert words == [Word.READY, Word.UNPACKED, Word.EXCHANGED]
    assert found(volume) == NEW


def test_a_fifo_whose_sender_has_gone_early_changes_nothing(volume: Path, stream: bytes) -> None:
    with pytest.raises(RestoreFailed, match=r"ended after|tar ended"):
        through_the_fifo(volume, stream[:4000], length=len(stream), last=b"")
    assert found(volume) == OLD


def test_nothing_changes_before_the_word_to_go(volume: Path, stream: bytes) -> None:
    os.utime(volume, ns=(1, 1_000_000_000))
    before = volume.stat()
    assert restored(volume, stream + LEAVE) == [Word.READY, Word.UNPACKED, Word.AS_IT_WAS]
    assert found(volume) == OLD
    assert (volume.stat().st_ino, volume.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert restored(volume, stream) == [Word.READY, Word.UNPACKED]  # its sender has died
    settled = Words()
    settle(str(volume), settled)
    assert (settled, found(volume)) == ([Word.AS_IT_WAS], OLD)
    assert volume.stat().st_mtime_ns == before.st_mtime_ns


def test_the_roots_time_stays_what_others_have_made_it_meanwhile(
    volume: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(volume, ns=(1, 1_000_000_000))
    sync = unpack._sync

    def meanwhile(directory: str) -> None:
        (volume / "by-the-application").write_bytes(b"")
        os.utime(volume, ns=(5, 5_000_000_000))
        sync(directory)

    monkeypatch.setattr(unpack, "_sync", meanwhile)
    restored(volume, stream + LEAVE)
    assert volume.stat().st_mtime_ns > 5_000_000_000  # our own directory went after it


@pytest.mark.parametrize("cut", [0, 511, 512, 1536, 4000])
def test_a_stream_that_ends_early_changes_nothing_even_where_tar_takes_it_for_the_end(
    volume: Path, stream: bytes, cut: int
) -> None:
    with pytest.raises(RestoreFailed, match=r"ended after|tar ended"):
        restored(volume, stream[:cut], length=len(stream))
    assert found(volume) == OLD


def test_a_stream_that_tar_refuses_changes_nothing_and_says_what_tar_said(volume: Path) -> None:
    with pytest.raises(RestoreFailed, match="This does not look like a tar archive"):
        restored(volume, b"rubbish" * 1000 + GO)
    assert found(volume) == OLD


def test_a_disk_without_room_is_refused_before_anything_is_sent(volume: Path) -> None:
    with pytest.raises(NoRoom, match="bytes free"):
        restored(volume, b"", length=1 << 60)
    with pytest.raises(NoRoom):
        restored(volume, b"", length=0, files=1 << 50)
    with pytest.raises(NoRoom):
        restored(volume, b"", besides=1 << 60)
    assert found(volume) == OLD


def test_a_share_of_the_disk_that_is_to_stay_free_counts_as_taken(volume: Path, stream: bytes) -> None:
    with pytest.raises(NoRoom, match="beyond the 100% of it that are left to the applications"):
        restored(volume, stream, reserve=1.0)
    assert found(volume) == OLD
    restored(volume, stream + GO, reserve=0.001)
    assert found(volume) == NEW


def hostile(*members: tuple[str, bytes, str]) -> bytes:
    """Entries of name, type and link target (or content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
            else:
                info.linkname = text
                tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../escaped", tarfile.REGTYPE, "x")],
        [("a/../../../escaped", tarfile.REGTYPE, "x")],
        [("out", tarfile.SYMTYPE, ".."), ("out/escaped", tarfile.REGTYPE, "x")],
        [("out", tarfile.SYMTYPE, "../../.."), ("out/escaped", tarfile.REGTYPE, "x")],
        [("out", tarfile.LNKTYPE, "../../../outside"), ("out", tarfile.REGTYPE, "x")],
        [(STAGING, tarfile.DIRTYPE, ""), (f"{STAGING}/leaving", tarfile.REGTYPE, "{}")],
    ],
    ids=["dots", "dots inside", "symlink", "symlink far", "hard link", "our own directory"],
)
def test_an_archive_that_leads_out_of_the_volume_is_refused_and_writes_nothing_there(
    tmp_path: Path, volume: Path, members: list[tuple[str, bytes, str]]
) -> None:
    (tmp_path / "outside").write_bytes(b"untouched")
    around = {path for path in tmp_path.rglob("*") if volume not in path.parents}
    data = hostile(*members)
    with pytest.raises(RestoreFailed):
        restored(volume, data + GO)
    assert {path for path in tmp_path.rglob("*") if volume not in path.parents} == around
    assert (tmp_path / "outside").read_bytes() == b"untouched"
    assert found(volume) == OLD


def test_absolute_names_end_inside_the_volume(volume: Path, tmp_path: Path) -> None:
    data = hostile((f"{tmp_path}/absolute", tarfile.REGTYPE, "x"))
    assert restored(volume, data + GO)[-1] is Word.EXCHANGED
    assert not (tmp_path / "absolute").exists()
    assert list(found(volume)) == [f"{tmp_path}/absolute".lstrip("/")]


# --- cut off ---------------------------------------------------------------------------------------------------------


class Dead(BaseException):
    """Stands for SIGKILL: nothing of the process runs after it."""


CALLS = (
    "rename",
    "rmdir",
    "unlink",
    "mkdir",
    "chown",
    "utime",
    "fsync",
    "setxattr",
    "removexattr",
    "chmod",
    "makedirs",
)


def die_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """The process dies at the n-th system call that changes something; gives how many there were so far."""
    count = 0

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count >= number:
                raise Dead
            return original(*arguments, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    return lambda: count


def test_killed_at_any_step_the_volume_is_as_it_was_or_restored_once_it_is_settled(
    tmp_path: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[bool] = []
    times_lost = 0
    for number in range(1, 300):
        root = tmp_path / f"volume-{number}"
        root.mkdir()
        lay(root, OLD)
        with monkeypatch.context() as patched:
            calls = die_at(patched, number)
            try:
                restored(root, stream + GO)
            except Dead:
                assert calls() >= number
            else:
                break

        settled = Words()
        settle(str(root), settled)

        assert found(root) in (OLD, NEW), number
        assert not (root / STAGING).exists()
        is_new = found(root) == NEW
        # After it has ended, and before it has begun, there is nothing to settle.
        assert settled in ([Word.CLEAN], [Word.EXCHANGED] if is_new else [Word.AS_IT_WAS])
        if is_new and settled == [Word.EXCHANGED]:
            mode, mtime_ns, attributes = volume_root_facts(root)
            assert (mode, attributes) == (0o750, {"user.colour": b"blue"})
            times_lost += mtime_ns != 1_234_567_890_123_456_789
        outcomes.append(is_new)
    else:
        pytest.fail("it never came to its end")
    assert times_lost <= 2  # the root's own time, between the very last calls: it cannot outlive the note of it
    # There is one moment at which it is decided.
    assert outcomes == sorted(outcomes)
    assert 0 < sum(outcomes) < len(outcomes)


def test_killed_while_it_settles_it_is_settled_the_next_time(
    tmp_path: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after the moment of decision, then again and again at each step of the repair."""
    for number in range(1, 300):
        root = tmp_path / f"volume-{number}"
        root.mkdir()
        lay(root, OLD)
        with monkeypatch.context() as patched:
            patched.setattr(unpack, "_go_on", raising_dead)
            with pytest.raises(Dead):
                restored(root, stream + GO)
        with monkeypatch.context() as patched:
            die_at(patched, number)
            try:
                settle(str(root), Words())
            except Dead:
                pass
            else:
                break
        settle(str(root), Words())
        assert found(root) == NEW
        assert not (root / STAGING).exists()
    else:
        pytest.fail("it never came to its end")
    assert number > 10


def raising_dead(*_: object) -> None:
    raise Dead


def volume_root_facts(root: Path) -> tuple[int, int, dict[str, bytes]]:
    facts = root.stat()
    attributes = {name: os.getxattr(root, name) for name in os.listxattr(root)}
    return facts.st_mode & 0o7777, facts.st_mtime_ns, attributes


def test_what_is_complete_is_exchanged_when_that_was_decided_and_what_is_not_is_not(
    volume: Path, stream: bytes
) -> None:
    restored(volume, stream)  # and its sender dies
    words = Words()
    settle(str(volume), words, go=True)
    assert (words, found(volume)) == ([Word.EXCHANGED], NEW)
    (volume / STAGING / "new").mkdir(parents=True)
    settle(str(volume), words, go=True)
    assert (words, found(volume)) == ([Word.EXCHANGED, Word.AS_IT_WAS], NEW)


def test_what_cannot_be_moved_away_leaves_the_volume_as_it_was(
    volume: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def refusing(source: Any, target: Any, **options: Any) -> None:
        if os.fsencode(source).endswith(b"/only-old") and b"/old/" in os.fsencode(target):
            raise OSError(1, "Operation not permitted", source)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(RestoreFailed, match="only-old' cannot be moved away: Operation not permitted"):
        restored(volume, stream + GO)
    assert found(volume) == OLD
    assert not (volume / STAGING).exists()


def test_it_stays_until_the_other_end_is_closed_so_that_the_volume_stays_mounted(volume: Path, stream: bytes) -> None:
    reader, writer = os.pipe()
    words, said = Words(), threading.Event()

    def say(word: Word, **_: str) -> None:
        words.append(word)
        if word is Word.EXCHANGED:
            said.set()

    work = threading.Thread(target=restore_into, args=(str(volume), Expected(len(stream), 5), reader, say))
    work.start()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(stream + GO)
        pipe.flush()
        assert said.wait(30)
        settle(str(volume), words)  # which need not wait for it
        assert work.is_alive()
    work.join(30)
    assert not work.is_alive()
    os.close(reader)
    assert words[-1] is Word.CLEAN


def test_a_second_restore_of_the_same_volume_waits_for_the_first(volume: Path, stream: bytes) -> None:
    reader, writer = os.pipe()
    first, second = Words(), Words()
    ready = threading.Event()

    def say(word: Word, **_: str) -> None:
        first.append(word)
        ready.set()

    def hold() -> None:
        with pytest.raises(RestoreFailed):
            restore_into(str(volume), Expected(len(stream), 5), reader, say)

    holder = threading.Thread(target=hold)
    holder.start()
    assert ready.wait(30)
    waiter = threading.Thread(target=settle, args=(str(volume), second))
    waiter.start()
    os.write(writer, stream[:512])
    assert second == []
    os.close(writer)  # its sender is gone
    waiter.join(30)
    holder.join(30)
    os.close(reader)
    assert second == [Word.CLEAN]
    assert found(volume) == OLD


# --- deep ------------------------------------------------------------------------------------------------------------


def dug(root: Path, levels: int) -> None:
    """A file below so many directories."""
    directory = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("n", dir_fd=directory)
        below = os.open("n", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
    os.close(directory)


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_tree_deeper_than_python_calls_itself_is_exchanged_and_cleared_away(
    tmp_path: Path, volume: Path, is_given_up: bool
) -> None:
    """1,400 levels: more than calls are nested or descriptors open, and still a path that the kernel takes."""
    source = tmp_path / "deep"
    source.mkdir()
    dug(source, 1400)
    dug(volume, 1400)
    arriving = subprocess.run(["tar", "-cf", "-", "."], cwd=source, check=True, capture_output=True).stdout
    words = restored(volume, arriving + (LEAVE if is_given_up else GO), files=1402)
    assert words[-1] is (Word.AS_IT_WAS if is_given_up else Word.EXCHANGED)
    assert set(os.listdir(volume)) == ({"kept.txt", "d", "only-old", "n"} if is_given_up else {"n"})
    merged(volume, arriving)
    assert os.path.exists(volume / ("n/" * 1400) / "f")
    assert not (volume / STAGING).exists()
    for tree in (source, volume):  # pytest's own way of clearing up is not made for them
        subprocess.run(["rm", "-rf", str(tree)], check=True)


# --- some files only -------------------------------------------------------------------------------------------------


def merged(root: Path, data: bytes) -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as pipe, suppress(BrokenPipeError):
            pipe.write(data + GO)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        restore_into(str(root), Expected(len(data), 5, merge=True), reader, Words())
    finally:
        os.close(reader)
        feeder.join()


def test_of_some_files_each_replaces_its_namesake_and_all_else_stays(volume: Path, stream: bytes) -> None:
    (volume / "e").mkdir()
    (volume / "e" / "mine").write_bytes(b"stays")
    merged(volume, stream)
    assert found(volume) == OLD | NEW | {"e/mine": b"stays"}
    assert not (volume / STAGING).exists()


@pytest.mark.parametrize("in_the_way", ["directory for a file", "file for a directory", "symlink for a directory"])
def test_what_stands_where_a_file_or_a_directory_was_makes_way(
    volume: Path, stream: bytes, in_the_way: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    if in_the_way == "directory for a file":
        (volume / "kept.txt").unlink()
        (volume / "kept.txt" / "full").mkdir(parents=True)
    elif in_the_way == "file for a directory":
        (volume / "e").write_bytes(b"a file")
    else:
        (volume / "e").symlink_to(outside)
    merged(volume, stream)
    assert found(volume) == OLD | NEW
    assert list(outside.iterdir()) == []


def test_killed_at_any_step_of_a_merge_it_is_finished_or_has_not_begun_once_it_is_settled(
    tmp_path: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[bool] = []
    for number in range(1, 300):
        root = tmp_path / f"volume-{number}"
        root.mkdir()
        lay(root, OLD)
        with monkeypatch.context() as patched:
            die_at(patched, number)
            try:
                merged(root, stream)
            except Dead:
                pass
            else:
                break
        settle(str(root), Words())
        assert found(root) in (OLD, OLD | NEW), number
        assert not (root / STAGING).exists()
        outcomes.append(found(root) == OLD | NEW)
    else:
        pytest.fail("it never came to its end")
    assert outcomes == sorted(outcomes)
    assert 0 < sum(outcomes) < len(outcomes)


def posix_acl(*entries: tuple[int, int, int]) -> bytes:
    """As the extended attribute has it: version 2, then tag, permissions and id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY_ID = 0xFFFFFFFF
EVERYBODY_MAY = posix_acl((1, 7, NOBODY_ID), (2, 7, 4711), (4, 7, NOBODY_ID), (16, 7, NOBODY_ID), (32, 7, NOBODY_ID))


@pytest.mark.parametrize("plain", [True, False])
def test_what_the_volumes_root_would_have_its_files_inherit_is_not_theirs(
    volume: Path, tmp_path: Path, plain: bool
) -> None:
    source = tmp_path / "without-attributes"
    source.mkdir()
    lay(source, NEW)
    source.chmod(0o750)
    for attribute in ("system.posix_acl_default", "system.posix_acl_access"):
        os.setxattr(volume, attribute, EVERYBODY_MAY)
    restored(volume, packed(source) + GO, plain=plain)
    assert found(volume) == NEW
    assert {os.fspath(path): os.listxattr(path) for path in [volume, *volume.rglob("*")] if os.listxattr(path)} == {}
    assert [path.stat().st_mode & 0o7777 for path in (volume, volume / "e", volume / "e" / "other")] == [
        path.stat().st_mode & 0o7777 for path in (source, source / "e", source / "e" / "other")
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_what_has_arrived_goes_to_the_disk_while_more_arrives_and_a_disk_that_fails_then_is_heard(
    volume: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(unpack, "_WRITE_OUT", 1)
    monkeypatch.setattr(unpack, "_PIECE", 512)
    sync, calls = unpack._sync, 0

    def counted(directory: str) -> None:
        nonlocal calls
        calls += 1
        if fails and calls == 1:
            raise OSError(errno.EIO, "Input/output error", directory)
        sync(directory)

    monkeypatch.setattr(unpack, "_sync", counted)
    if fails:
        with pytest.raises(OSError, match="Input/output"):
            restored(volume, stream + GO)
        assert found(volume) == OLD
    else:
        assert restored(volume, stream + GO)[-1] is Word.EXCHANGED
        assert calls > 1
        assert found(volume) == NEW


def test_what_tar_says_is_told_also_where_the_disk_fails_meanwhile(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_WRITE_OUT", 1)

    def fails(directory: str) -> None:
        raise OSError(errno.EIO, "Input/output error", directory)

    monkeypatch.setattr(unpack, "_sync", fails)
    with pytest.raises(RestoreFailed, match="This does not look like a tar archive"):
        restored(volume, b"rubbish" * 1000 + GO)
    assert found(volume) == OLD
