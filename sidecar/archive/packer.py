"""The live pass: settled files, read straight into blocks, compressed and sent while the application runs.

Files are packed by age, because what has changed lately changes again, and old files make blocks that stay whole. A
file that changes while it is read leaves nothing behind in its block; one that runs through several takes them down.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from isal import isal_zlib

from sidecar.archive import index
from sidecar.archive.blocks import TARGET, BlockPlan, Continuation, is_large
from sidecar.archive.copies import extents_of, same
from sidecar.archive.entry import Entry, Fingerprint, Kind, Signature, fingerprint
from sidecar.archive.member import Member, make_member
from sidecar.archive.pool import Chain, Part, Pool, Stretch, contiguous
from sidecar.archive.records import head, padding

_DAY_NS = 86_400 * 10**9
_AGES = (_DAY_NS, 7 * _DAY_NS, 30 * _DAY_NS)
# An entry's head may carry a block beyond its target; what needs more (a sparse map of 40,000 extents) goes the way of
# hot files.
_LARGEST_HEAD = 1024 * 1024
_SLICE = 1024 * 1024  # read at once, so that whoever waits for us to stop waits for no more


@dataclass(slots=True)
class _Block:
    """A block under way: what it will be, in which chain, and whether that ends with it. crc32: of each file's data."""

    plan: BlockPlan
    chain: Chain
    is_last: bool
    crc32: list[int]


@dataclass(slots=True)
class _Age:
    """The stream of files of one age: the block being filled, and compressed blocks that wait to become a part."""

    buffer: memoryview | None = None
    block: _Block | None = None
    finished: list[tuple[index.Block, _Block]] = field(default_factory=list)  # of a chain that has not ended
    held: list[Member] = field(default_factory=list)
    held_length: int = 0
    stretch: Stretch = field(default_factory=Stretch)


class Packer:
    """Packs files into a pool.

    send: takes each part with its bytes, and blocks while the stores are slower than we are. least, target: bytes of a
    part, and least of one that a store copies. synced_ns: the settled rule's. level: ISA-L's. executor: `threads`
    compressors. differs: told the path of a file that has the signature in `recorded` (fingerprint -> CRC32 of its
    data) and other contents.
    """

    def __init__(
        self,
        pool: Pool,
        send: Callable[[Part, bytes], None],
        *,
        least: int,
        target: Callable[[int], int],
        synced_ns: int,
        level: int,
        executor: Executor,
        threads: int,
        recorded: Mapping[Fingerprint, int] | None = None,
        differs: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self.bytes_read = 0
        self._pool = pool
        self._send = send
        self._least = least
        self._target = target
        self._synced_ns = synced_ns
        self._level = level
        self._executor = executor
        self._threads = threads
        self._recorded = recorded or {}
        self._differs = differs
        self._ages = [_Age() for _ in range(len(_AGES) + 1)]
        self._under_way: deque[tuple[_Age, _Block, memoryview, Future[Member]]] = deque()
        self._buffers: list[memoryview] = []

    def add(
        self,
        descriptor: int,
        before: os.stat_result,
        signature: Signature,
        path: bytes,
        attributes: tuple[tuple[bytes, bytes], ...],
        read: Callable[[int], None],
    ) -> bool:
        """Read an open regular file of the status `before` into a block; False if it did not stand still.

        signature: as in `before`. read: told bytes as they are read; raises to stop. Raises OSError of the volume, what
        `send` raises.
        """
        extents = extents_of(descriptor, before)
        entry = Entry(path, Kind.FILE, signature, b"", attributes, (0, 0), extents)
        records = head(entry)
        if len(records) > _LARGEST_HEAD:
            return False
        runs = ((0, before.st_size),) if extents is None else extents
        length = entry.data_length
        age = self._ages[bisect_left(_AGES, self._synced_ns - max(signature.mtime_ns, signature.ctime_ns))]
        if is_large(len(records), length, TARGET):
            return self._add_large(age, entry, records, runs, descriptor, before, read)
        if age.block is not None and age.block.plan.raw_length + len(records) + length > TARGET:
            self._close(age, is_last=True)
        block, buffer = self._open(age)
        plan = block.plan
        at = plan.raw_length
        start = at + len(records)
        crc32 = 0
        filled = start
        whole = True
        for offset, run in runs:
            if run:
                view = buffer[filled : filled + run]
                whole = whole and _fill(descriptor, view, offset)
                crc32 = isal_zlib.crc32(view, crc32)
                filled += run
        read(length)
        # One that changes meanwhile is noticed by the walk in the freeze; but here it must not seem to differ.
        if not whole or (self._recorded and not same(os.fstat(descriptor), before)):
            return False  # the next file overwrites what was read
        end = filled + padding(length)
        buffer[at:start] = records
        buffer[filled:end] = bytes(end - filled)
        plan.entries.append((entry, at))
        plan.raw_length = end
        block.crc32.append(crc32)
        self._done(block.chain, entry, crc32, length)
        return True

    def drain(self) -> None:
        """Wait for what is being compressed: then no stretch is between two of its parts, and others get numbers."""
        while self._under_way:
            self._finish_oldest()

    def end(self) -> None:
        """All files have come: what is left becomes parts, or loose stretches where it is too little for one."""
        for age in self._ages:
            self._close(age, is_last=True)
        self.drain()
        for age in self._ages:
            if age.held_length >= self._least:
                self._emit(age, len(age.held))
            age.stretch.loose = b"".join(member.data for member in age.held)
            age.held, age.held_length = [], 0
            self._end_stretch(age)
        self._buffers.clear()

    def abandon(self) -> None:
        """Nothing more will come of it: forget what has not been compressed yet."""
        for *_, future in self._under_way:
            future.cancel()
        self._under_way.clear()

    def _done(self, chain: Chain, entry: Entry, crc32: int, length: int) -> None:
        number = fingerprint(entry.path, entry.signature)
        self.bytes_read += length
        self._pool.expect(chain, number)
        chain.seen += number
        if self._recorded and self._recorded.get(number, crc32) != crc32:
            self._differs(entry.path)

    def _add_large(
        self,
        age: _Age,
        entry: Entry,
        records: bytes,
        runs: Sequence[tuple[int, int]],
        descriptor: int,
        before: os.stat_result,
        read: Callable[[int], None],
    ) -> bool:
        """A file that fills blocks of its own, one after another."""
        self._close(age, is_last=True)
        chain = Chain()
        block, buffer = self._open(age, chain)
        first = block
        block.plan.entries.append((entry, 0))
        buffer[: len(records)] = records
        block.plan.raw_length = len(records)
        stored = crc32 = 0
        whole = True
        for offset, length in _pieces(runs):
            done = 0
            while done < length:
                if block.plan.raw_length >= TARGET:
                    self._close(age, is_last=False)
                    block, buffer = self._open(age, chain, Continuation(entry.path, stored))
                at = block.plan.raw_length
                run = min(length - done, max(TARGET - at, 0))
                view = buffer[at : at + run]
                whole = whole and _fill(descriptor, view, offset + done)
                crc32 = isal_zlib.crc32(view, crc32)
                block.plan.raw_length += run
                done += run
                stored += run
                read(run)
        gap = padding(stored)
        at = block.plan.raw_length
        buffer[at : at + gap] = bytes(gap)
        block.plan.raw_length += gap
        whole = whole and same(os.fstat(descriptor), before)
        first.crc32.append(crc32)
        if whole:
            self._done(chain, entry, crc32, stored)
        chain.fallen = not whole
        self._close(age, is_last=True)
        return whole

    def _open(
        self, age: _Age, chain: Chain | None = None, continues: Continuation | None = None
    ) -> tuple[_Block, memoryview]:
        """The block that is being filled, or a new one, of this chain or of one of its own."""
        if age.block is None or age.buffer is None:
            age.buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(TARGET + 2 * _LARGEST_HEAD))
            age.block = _Block(BlockPlan(continues=continues), chain or Chain(), False, [])
        return age.block, age.buffer

    def _close(self, age: _Age, *, is_last: bool) -> None:
        """Have the block that is being filled compressed."""
        block, buffer = age.block, age.buffer
        if block is None or buffer is None:
            return
        age.block = age.buffer = None
        if not block.plan.raw_length:
            self._buffers.append(buffer)
            return
        block.is_last = is_last
        future = self._executor.submit(make_member, buffer[: block.plan.raw_length], self._level)
        self._under_way.append((age, block, buffer, future))
        while len(self._under_way) > self._threads:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        age, block, buffer, future = self._under_way.popleft()
        member = future.result()
        self._buffers.append(buffer)
        raw_length = block.plan.raw_length
        age.finished.append((index.Block(0, len(member.data), raw_length, member.crc32, member.sha256), block))
        age.held.append(member)
        age.held_length += len(member.data)
        if block.is_last:
            self._end_chain(age, block.chain)
        while self._may_send(age) and self._emit_some(age):
            pass

    def _end_chain(self, age: _Age, chain: Chain) -> None:
        for described, block in age.finished:
            line = index.block_line(described, block.plan, block.crc32)
            self._pool.extend(chain, described, line, len(block.plan.entries))
        age.finished.clear()
        age.stretch.chains.append(chain)
        is_enough = age.held_length >= self._target(self._pool.parts + 1) and self._may_send(age)
        if age.stretch.parts or is_enough:
            self._emit(age, len(age.held))
            self._end_stretch(age)

    def _may_send(self, age: _Age) -> bool:
        """Not between two parts of a large file of another age: a stretch is one piece of the archive."""
        return not any(other.stretch.parts for other in self._ages if other is not age)

    def _emit_some(self, age: _Age) -> bool:
        """Send as many blocks as make a part if those behind them could make another; whether that was so.

        So the stretch may end anywhere.
        """
        target = self._target(self._pool.parts + 1)
        if age.held_length < target + self._least:
            return False
        length = 0
        for count, member in enumerate(age.held, 1):
            length += len(member.data)
            if length >= target:
                if age.held_length - length < self._least:
                    return False
                self._emit(age, count)
                return True
        return False

    def _emit(self, age: _Age, count: int) -> None:
        """Send the first `count` of the blocks that wait, as one part, or name where the earlier archive has it."""
        data = b"".join(member.data for member in age.held[:count])
        offset = contiguous([(self._pool.origin_of(member), len(member.data)) for member in age.held[:count]])
        del age.held[:count]
        age.held_length -= len(data)
        part = self._pool.next_part(len(data), isal_zlib.crc32(data), offset if len(data) >= self._least else None)
        age.stretch.parts.append(part)
        self._send(part, data)

    def _end_stretch(self, age: _Age) -> None:
        if age.stretch.chains:
            self._pool.stretches.append(age.stretch)
        age.stretch = Stretch()


def _fill(descriptor: int, view: memoryview, offset: int) -> bool:
    """Fill the view from `offset` of the file; whether it had all of that."""
    filled = os.preadv(descriptor, (view,), offset)  # nearly always all
    while filled < len(view):
        got = os.preadv(descriptor, (view[filled:],), offset + filled)
        if got == 0:
            return False
        filled += got
    return True


def _pieces(runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for offset, length in runs:
        for start in range(0, length, _SLICE):
            yield offset + start, min(_SLICE, length - start)
