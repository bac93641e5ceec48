"""Archives and their indexes as written: checked by zlib, hashlib and tarfile alone."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.archive import writer
from sidecar.archive.blocks import plan_blocks
from sidecar.archive.capture import Capture
from sidecar.archive.entry import Entry, Kind, Signature
from sidecar.archive.index import IndexedBlock
from sidecar.archive.spool import Spool, SpoolSpace
from sidecar.archive.writer import ArchiveSummary, read_index_file, write_archive
from tests.unit.entries import MadeUp, made_up
from tests.unit.trees import no_descriptor_left

GZIP_MEMBER = 16 + zlib.MAX_WBITS
NEVER: Callable[[], None] = lambda: None  # noqa: E731


def spooled(space: SpoolSpace, content: bytes) -> Spool:
    spool = space.new("v")
    spool.write(memoryview(content), spool.allot(len(content)))
    spool.flush()
    return spool


def written(
    made_up: MadeUp, here: Path, *, level: int = 2, threads: int = 2, sockets: tuple[bytes, ...] = ()
) -> tuple[list[bytes], list[IndexedBlock], ArchiveSummary]:
    """The delivered blocks, the index as read back, the summary."""
    delivered: list[bytes] = []
    with spooled(SpoolSpace(here / "spool"), made_up.spool) as spool:
        captured = Capture(spool, files=list(made_up.entries), sockets=list(sockets))
        summary = write_archive(
            captured,
            lambda block, _: delivered.append(block),
            here / "index",
            volume="v",
            set_name="s",
            level=level,
            threads=threads,
            check=NEVER,
        )
    return delivered, list(read_index_file(here / "index")), summary


@settings(max_examples=30, deadline=None)
@given(
    made_up=made_up(largest=20_000), target=st.integers(1, 30_000), level=st.integers(0, 3), threads=st.integers(1, 3)
)
def test_each_block_is_a_gzip_member_of_its_own_as_the_index_says(
    made_up: MadeUp, target: int, level: int, threads: int
) -> None:
    with tempfile.TemporaryDirectory() as here, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "plan_blocks", functools.partial(plan_blocks, target=target))
        delivered, blocks, summary = written(made_up, Path(here), level=level, threads=threads)

    archive = b"".join(delivered)
    raw = []
    for member, indexed in zip(delivered, blocks, strict=True):
        block = indexed.block
        assert archive[block.offset : block.offset + block.length] == member
        assert zlib.crc32(member) == block.crc32
        assert hashlib.sha256(member).hexdigest() == block.sha256
        inflate = zlib.decompressobj(GZIP_MEMBER)
        raw.append(inflate.decompress(member))
        assert inflate.eof
        assert not inflate.unused_data
        assert len(raw[-1]) == block.raw_length
    assert summary == ArchiveSummary(
        len(archive), sum(map(len, raw)), len(made_up.entries), len(delivered), zlib.crc32(archive)
    )

    # A file's records begin where the index says: from there tarfile finds it, with the rest of the archive behind.
    assert [(f.path, f.kind, f.signature, f.link) for b in blocks for f in b.files] == [
        (e.path, e.kind, e.signature, e.link) for e in made_up.entries
    ]
    for number, indexed in enumerate(blocks):
        for file in indexed.files:
            stream = raw[number][file.at :] + b"".join(raw[number + 1 :])
            with tarfile.open(fileobj=io.BytesIO(stream), mode="r:") as found:
                first = found.next()
                assert first is not None
                assert os.fsencode(first.name) == b"./" + file.path

    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as whole:
        contents = {}
        for member in whole:
            source = whole.extractfile(member) if member.isreg() or member.issparse() else None
            if source:
                contents[os.fsencode(member.name)] = source.read()
    assert contents == {b"./" + path: content for path, content in made_up.contents.items()}


def file_of(size: int, position: int = 0) -> Entry:
    return Entry(b"f%d" % position, Kind.FILE, Signature(1, size, 0o644, 0, 0, 0, 0), position=position)


def test_files_may_be_archived_in_another_order_than_they_lie_in_the_spool(tmp_path: Path) -> None:
    content = b"".join(bytes([number]) * 1000 for number in range(10))
    order = (3, 4, 0, 9, 8, 1)
    made = MadeUp(tuple(file_of(1000, 1000 * number) for number in order), content, {})

    archive = b"".join(written(made, tmp_path)[0])

    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
        read = [members.extractfile(member).read() for member in members]
    assert read == [bytes([number]) * 1000 for number in order]


def test_the_same_capture_makes_the_same_bytes_however_many_threads(tmp_path: Path) -> None:
    content = os.urandom(20 * 1024 * 1024)
    one = MadeUp((file_of(len(content)),), content, {})

    made = {b"".join(written(one, tmp_path, threads=threads)[0]) for threads in (1, 2, 3)}

    assert len(made) == 1


def test_memory_holds_only_a_few_blocks_while_the_stores_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "plan_blocks", functools.partial(plan_blocks, target=4096))
    threads, made, delivered = 2, 0, 0
    most = 0
    counting = threading.Lock()
    really_fill = writer._fill

    def fill(*arguments: object) -> bytearray:
        nonlocal made
        with counting:
            made += 1
        return really_fill(*arguments)

    def deliver(*_: object) -> None:
        nonlocal delivered, most
        with counting:
            most = max(most, made - delivered)
        delivered += 1

    monkeypatch.setattr(writer, "_fill", fill)
    content = os.urandom(400_000)
    with spooled(SpoolSpace(tmp_path / "spool"), content) as spool:
        captured = Capture(spool, files=[file_of(len(content))])
        write_archive(
            captured, deliver, tmp_path / "i", volume="v", set_name="s", level=0, threads=threads, check=NEVER
        )

    assert delivered == made > 90
    assert most <= threads + 2


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["deliver", "check", "packed"])
def test_what_a_callback_raises_comes_out_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(writer, "plan_blocks", functools.partial(plan_blocks, target=4096))
    calls = dict.fromkeys(("deliver", "check", "packed"), 0)

    def callback(name: str) -> Callable[..., None]:
        def called(*_: object) -> None:
            calls[name] += 1
            if name == where and calls[name] == 3:
                raise Stop

        return called

    content = os.urandom(100_000)
    threads = set(threading.enumerate())
    with spooled(SpoolSpace(tmp_path / "spool"), content) as spool:
        captured = Capture(spool, files=[file_of(len(content))])
        with no_descriptor_left(), pytest.raises(Stop):
            write_archive(
                captured,
                callback("deliver"),
                tmp_path / "i",
                volume="v",
                set_name="s",
                level=2,
                threads=2,
                check=callback("check"),
                packed=callback("packed"),
            )

    assert calls[where] == 3
    assert set(threading.enumerate()) == threads


def test_progress_tells_every_raw_byte(tmp_path: Path) -> None:
    content = os.urandom(20_000_000)
    told: list[int] = []
    with spooled(SpoolSpace(tmp_path / "spool"), content) as spool:
        summary = write_archive(
            Capture(spool, files=[file_of(len(content))]),
            lambda *_: None,
            tmp_path / "i",
            volume="v",
            set_name="s",
            level=0,
            threads=2,
            check=NEVER,
            packed=told.append,
        )

    assert sum(told) == summary.raw_size
    assert len(told) == summary.blocks == 4  # the last one is the archive's end
