"""One archive and its index: the pool's blocks, then the rest, filled from the spool, compressed on all cores."""

from __future__ import annotations

import gzip
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from isal import igzip, isal_zlib

from sidecar.archive import index
from sidecar.archive.blocks import BlockPlan, plan_blocks
from sidecar.archive.capture import Capture
from sidecar.archive.entry import Range
from sidecar.archive.member import Member, make_member
from sidecar.archive.pool import Pool, Stretch
from sidecar.archive.spool import Spool
from sidecar.errors import SetInvalid

_INDEX_LEVEL = 2


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    """A finished archive, in bytes. files counts entries with a tar record; crc32 is that of the whole archive."""

    size: int
    raw_size: int
    files: int
    blocks: int
    crc32: int


def write_archive(
    captured: Capture,
    deliver: Callable[[bytes, int | None], None],
    index_path: Path,
    *,
    volume: str,
    set_name: str,
    level: int,
    threads: int,
    check: Callable[[], None],
    packed: Callable[[int], None] = lambda _: None,
    pool: Pool | None = None,
    keep: Callable[[Stretch], None] = lambda _: None,
) -> ArchiveSummary:
    """The pool's blocks, then what was captured, packed, compressed and delivered in order; the index beside.

    keep: told each stretch of the pool that is part of the archive, before anything is delivered. deliver: takes each
    block, and where the earlier archive has the same bytes, if it has; it is called from this thread only, and blocks
    when the stores are slower than we are. level: ISA-L's, 0 to 3. check raises to stop. packed: told the raw bytes of
    each block done. At most `threads` + 2 blocks are in memory. Raises what deliver, check and packed raise.
    """
    entries = chain(captured.files, captured.others)
    size = raw_size = files = blocks = crc = 0
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="compress") as compressors,
        igzip.IGzipFile(index_path, "wb", compresslevel=_INDEX_LEVEL) as lines,
    ):
        lines.write(index.header_line(volume, set_name))
        for stretch, described in pool.in_order() if pool else ():
            for line, pooled in described:
                lines.write(index.moved_line(line, size))
                size += pooled.block.length
                raw_size += pooled.block.raw_length
                crc = isal_zlib.crc32_combine(crc, pooled.block.crc32, pooled.block.length)
                files += pooled.files
                blocks += 1
            keep(stretch)
        under_way: deque[tuple[BlockPlan, Future[Member]]] = deque()

        def finish_oldest() -> None:
            nonlocal size, raw_size, files, blocks, crc
            plan, future = under_way.popleft()
            member = future.result()
            block = index.Block(size, len(member.data), plan.raw_length, member.crc32, member.sha256)
            lines.write(index.block_line(block, plan))
            crc = isal_zlib.crc32_combine(crc, member.crc32, len(member.data))
            size += len(member.data)
            raw_size += plan.raw_length
            files += len(plan.entries)
            blocks += 1
            deliver(member.data, pool.origin_of(member) if pool else None)
            packed(plan.raw_length)

        try:
            for plan in plan_blocks(entries):
                check()
                under_way.append((plan, compressors.submit(_make, plan, captured.spool, level)))
                while len(under_way) > threads + 1:
                    finish_oldest()
            while under_way:
                check()
                finish_oldest()
        except BaseException:
            for _, future in under_way:
                future.cancel()
            raise
        lines.write(index.summary_line(blocks=blocks, files=files, size=size, crc32=crc, sockets=captured.sockets))
    return ArchiveSummary(size, raw_size, files, blocks, crc)


def read_index_file(path: Path) -> Iterator[index.IndexedBlock]:
    """The blocks of an index file, as `index.read_index` gives them. Raises SetInvalid."""
    with igzip.IGzipFile(path, "rb") as lines:
        try:
            yield from index.read_index(lines)
        except (EOFError, gzip.BadGzipFile, isal_zlib.error) as exc:  # type: ignore[misc]  # isal's stub gives no class
            raise SetInvalid(f"the index is not whole: {exc}", hint="verify the set") from exc


def _make(plan: BlockPlan, spool: Spool, level: int) -> Member:
    return make_member(_fill(plan, spool), level)


def _fill(plan: BlockPlan, spool: Spool) -> bytearray:
    raw = bytearray(plan.raw_length)
    view = memoryview(raw)
    at = 0
    run: list[memoryview] = []  # ranges that follow one another in the spool are read by one call
    run_position = run_end = 0
    for piece in plan.pieces:
        if isinstance(piece, Range):
            if run and piece.position != run_end:
                spool.read_into(run, run_position)
                run = []
            if not run:
                run_position = piece.position
            run.append(view[at : at + piece.length])
            run_end = piece.position + piece.length
            at += piece.length
        else:
            raw[at : at + len(piece)] = piece
            at += len(piece)
    if run:
        spool.read_into(run, run_position)
    return raw
