"""The copies of a volume's files in its spool, brought up to date as often as wanted: pre-copy, as in live migration.

Each walk brings every file that it meets: what is settled and has not changed is not read again; any other is cloned
where that can be done, and else only the chunks whose hash has moved are written. While the application runs that is
done in rounds, which find less and less to write; once more while it is frozen, and the copies are the files.

A file's data (holes left out) is one stream, cut into chunks, whatever the file looked like when it was copied before:
a chunk that holds the same bytes is kept, and any other is written, so that files that grow or shrink and holes that
move are nothing special. Copies are known by inode, because files and directories are renamed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from itertools import islice

from xxhash import xxh3_128_digest

from sidecar.archive import filesystem
from sidecar.archive.entry import Entry, Extent, Kind, Range, Signature
from sidecar.archive.settled import MARGIN_NS, keeps_times, settled
from sidecar.archive.spool import Spool

CHUNK = 32 * 1024  # databases write pages of 4 to 16 KiB; smaller chunks cost more hashing than they save writing
SLICE = 32 * CHUNK  # read at once
_HASH = 16
_SECTOR = 512  # the unit of st_blocks, whatever the file system's block is

READERS = 2  # nearly all of it is copying from the page cache, which memory bounds; tried on two cores only
_SHARE = 4  # slices: what one reader compares at a time; files of no more are not shared

# Below this comparing was as fast: a clone takes 7 (btrfs) to 21 (xfs) microseconds, comparing 256 KiB 42 to 57.
CLONED = 256 * 1024
_CLONED_AT_ONCE = 64 * 1024 * 1024
_COMPARED = 5e9  # bytes in a second; measured 5 to 9
# Of the first file tried: for any other reason that one file cannot be cloned, but others may.
_NO_CLONES_HERE = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS)

_MOST_ROUNDS = 6
_LITTLE = 8 * 1024 * 1024  # bytes: written in a few milliseconds
_SHRINKS = 0.7  # of the round before, or another one would not become shorter
_LONG = 300.0  # seconds
_SOON = 1.0
_SOON_WHERE_ALL_IS_SETTLED = 3.0
_SOON_READ = 512 * 1024 * 1024


def is_first_round(written: int, size: int, seconds: float) -> bool:
    """Whether a live pass that took `seconds` was the first round; after a longer one much may have changed. Pure.

    written: bytes of hot files that it has copied, of `size` in all. A round costs a walk over all names. Where nobody
    has written anything for a minute it is not worth that, unless much would have to be read inside the freeze after
    all: a scheduled run and the application's own jobs may begin at the same full hour.
    """
    return seconds < (_SOON if written or size > _SOON_READ else _SOON_WHERE_ALL_IS_SETTLED)


def another_round(written: Sequence[int], seconds: float) -> bool:
    """Whether one more round pays before the freeze. Pure.

    written: bytes written by each round so far; seconds: that they took in all, the first one left out.
    """
    if len(written) < 2:
        return not written or written[0] > _LITTLE
    shrinks = written[-1] < _SHRINKS * written[-2]
    return written[-1] > _LITTLE and shrinks and len(written) < _MOST_ROUNDS and seconds < _LONG


def clone_pays(length: int, seconds: float) -> bool:
    """Whether cloning `length` bytes once more, which took so long, is faster than comparing them. Pure.

    It is not where a file is in very many pieces (btrfs: 5 microseconds each; xfs: 40 for each new one), nor where the
    disk is slow to write what the application has written since the last sync: inside the freeze that is waited for.
    """
    return seconds <= length / _COMPARED


_Slice = tuple[int, list[tuple[int, int]]]  # where it begins in the stream; offsets and lengths in the file


@dataclass(slots=True)
class _Copy:
    """A copy in the spool. hashes: of the bytes there, chunk by chunk from the first on; none if settled or cloned.

    room: all that it has there, where that is more than the entry's.
    """

    entry: Entry
    settled: bool
    hashes: bytearray
    cloned: bool = False
    room: tuple[Range, ...] = ()


class Copies:
    """What a spool holds of one volume.

    written: bytes put there by the walk that goes on, or went last; a clone counts when it is made, not when it is made
    once more. cloned: bytes that this walk has cloned, either way.
    """

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic) -> None:
        self.spool = spool
        self.written = 0
        self.cloned = 0
        self._clock = clock
        self._clones: bool | None = None  # whether cloning works here; known when it has been tried
        self._known: dict[tuple[int, int], _Copy] = {}
        self._synced_ns: int | None = None
        self._device = -1
        self._buffers = [memoryview(bytearray(SLICE)) for _ in range(READERS)]

    def sync(self, root: int, now_ns: int) -> None:
        """Write out what the volume's file system holds back, so that what is read from now on may count as settled.

        root: the open directory. Does nothing where that is of no use: on file systems whose times do not tell, and
        within a minute of the last time, when hardly any file can have come of age; but cloning waits for what has come
        since. A disk that fails to write makes every file hot, and is no error here.
        """
        if not self._clones and self._synced_ns is not None and now_ns - self._synced_ns < MARGIN_NS:
            return
        self._synced_ns = None
        try:
            if not keeps_times(filesystem.type_of(root)):
                return
            filesystem.syncfs(root)
        except OSError:
            return
        self._synced_ns = now_ns
        self._device = os.fstat(root).st_dev

    @property
    def synced_ns(self) -> int | None:
        """When `sync` last wrote out the file system; None where nothing may count as settled."""
        return self._synced_ns

    def is_settled(self, status: os.stat_result) -> bool:
        """Whether a file of this status, read from now on, holds what was read for as long as its signature does."""
        if self._synced_ns is None or status.st_dev != self._device:
            return False
        return settled(status.st_mtime_ns, status.st_ctime_ns, self._synced_ns)

    def unchanged(self, status: os.stat_result, *, last: bool) -> Entry | None:
        """The entry of a file of this status whose copy is what it holds, known without reading it; else None.

        last: nothing is brought after this, and the copy is given away.
        """
        identity = (status.st_dev, status.st_ino)
        known = self._known.get(identity)
        if known is None or not known.settled:
            return None
        # As signature_of has it, without making one: this is asked for every file inside the freeze.
        if known.entry.signature != (
            status.st_ino,
            status.st_size,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ):
            return None
        if last:
            del self._known[identity]
        return known.entry

    def bring(
        self,
        descriptor: int,
        before: os.stat_result,
        path: bytes,
        attributes: tuple[tuple[bytes, bytes], ...],
        read: Callable[[int], None],
        last_readers: Executor | None,
    ) -> tuple[Entry, bool]:
        """Make the spool hold what an open regular file holds; the entry, and whether the file stood still meanwhile.

        before: its status, taken before anything else of it was read. Exactly as many bytes are read as that says;
        zeros stand for what is no longer there. read: told bytes as they are read; raises to stop. last_readers: given
        when nothing is brought after this; they share the reading of large files. Raises OSError of the volume,
        SpoolFull.
        """
        identity = (before.st_dev, before.st_ino)
        known = self._known.pop(identity, None)  # until it is whole again, nobody may take it for the file
        size = before.st_size
        extents = extents_of(descriptor, before)
        runs = (Extent(0, size),) if extents is None else extents
        length = sum(run.length for run in runs)
        signature = signature_of(before)
        old = self.is_settled(before)
        # In the freeze only what was cloned before is: nobody knows how much of another file the disk has yet to write.
        # What is smaller than a block (network file systems: 1 to 4 MiB) would take the room of one, and is no clone.
        large = length >= max(CLONED, self.spool.block)
        cloning = known.cloned if known else self._clones is not False and large and not last_readers
        hashes = known.hashes if known else bytearray()
        room = self._room(known, length, hashes, blocks=cloning)
        ranges = _cut(room, length)
        done = self._clone(descriptor, runs, ranges, read, known, last=bool(last_readers)) if cloning else 0
        stream = _Stream(descriptor, ranges, hashes, hashing=not (done or old or last_readers))
        if last_readers and length - done > _SHARE * SLICE:
            whole = self._bring_shared(stream, runs, done, read, last_readers)
        else:
            whole = True
            for piece in _slices(runs, done):
                whole = self._noted(stream.bring([piece], self._buffers, self.spool.write), read) and whole
        still = same(os.fstat(descriptor), before) and whole
        entry = Entry(
            path,
            Kind.FILE,
            signature,
            b"",
            attributes,
            (0, 0),
            extents,
            ranges[0].position if ranges else 0,
            ranges if len(ranges) > 1 else (),
        )
        if not last_readers:
            hashes = bytearray() if old and still else hashes
            self._known[identity] = _Copy(entry, old and still, hashes, done > 0, room if room != ranges else ())
        return entry, still

    def _room(self, known: _Copy | None, length: int, hashes: bytearray, *, blocks: bool) -> tuple[Range, ...]:
        """Room for `length` bytes: what the copy has, and more behind it if need be. blocks: in whole blocks.

        Forgets the hashes of what is not there any more.
        """
        room = (known.room or known.entry.spooled) if known else ()
        have = sum(each.length for each in room)
        del hashes[-(-min(have, length) // CHUNK) * _HASH :]
        if have >= length:
            return room
        more = length - have
        if blocks:
            more = -(-more // self.spool.block) * self.spool.block
        return (*room, Range(self.spool.allot(more, blocks=blocks), more))

    def _clone(
        self,
        descriptor: int,
        runs: Sequence[Extent],
        ranges: Sequence[Range],
        read: Callable[[int], None],
        known: _Copy | None,
        *,
        last: bool,
    ) -> int:
        """Clone the stream's whole blocks: bytes that are there now. The rest is to be copied.

        All but the last bytes, which fill no block. Where cloning fails or does not pay, none count; unless it is the
        last time: then what has been cloned is as good as any other copy.
        """
        began = self._clock()
        done = 0
        length = sum(run.length for run in runs)
        block = self.spool.block
        try:
            for offset, position, run in _pieces(runs, ranges):
                if whole := run - run % block:
                    self.spool.clone(descriptor, offset, position, whole)
                    self._clones = True
                    done += whole
                    read(whole)
                if run % block:
                    break
        except OSError as exc:
            if self._clones is None and exc.errno in _NO_CLONES_HERE:
                self._clones = False
        again = known is not None
        if not last and (length - done >= block or (again and not clone_pays(length, self._clock() - began))):
            return 0
        self.cloned += done
        self.written += 0 if again else done
        return done

    def _bring_shared(
        self, stream: _Stream, runs: Sequence[Extent], done: int, read: Callable[[int], None], readers: Executor
    ) -> bool:
        """All slices, by several readers at once; whether the file still had all bytes. No reader goes on after it."""
        self.spool.flush()  # what is held back must not come after what is put at once
        slices = _slices(runs, done)
        under_way = []
        whole = True
        try:
            while batch := list(islice(slices, _SHARE)):
                under_way.append(readers.submit(stream.bring, batch, self._buffers, self.spool.put))
            for future in under_way:
                whole = self._noted(future.result(), read) and whole
        finally:
            for future in under_way:
                future.cancel()
            wait(under_way)
        return whole

    def _noted(self, brought: tuple[int, int, bool], read: Callable[[int], None]) -> bool:
        length, written, whole = brought
        self.written += written
        read(length)
        return whole


@dataclass(slots=True)
class _Stream:
    """The data of one open file, on its way into its ranges of the spool. hashing: chunks without a hash get one."""

    descriptor: int
    ranges: tuple[Range, ...]
    hashes: bytearray
    hashing: bool

    def bring(
        self, slices: Iterable[_Slice], buffers: list[memoryview], write: Callable[[memoryview, int], None]
    ) -> tuple[int, int, bool]:
        """Bring some slices: bytes read, bytes written, and whether the file still had all of them.

        buffers: one for each thread that is at it.
        """
        buffer = buffers.pop()
        length = written = 0
        whole = True
        try:
            for at, pieces in slices:
                there, view = _read(self.descriptor, pieces, buffer)
                length += len(view)
                whole = whole and there
                for start, end in self._different(view, at):
                    self._write(view[start:end], at + start, write)
                    written += end - start
        finally:
            buffers.append(buffer)
        return length, written, whole

    def _different(self, view: memoryview, at: int) -> Iterator[tuple[int, int]]:
        """Where the view, which is the stream from `at` on, holds other bytes than the spool; notes the new hashes."""
        start = 0
        for offset in range(0, len(view), CHUNK):
            chunk = view[offset : offset + CHUNK]
            place = (at + offset) // CHUNK * _HASH
            known = self.hashes[place : place + _HASH]
            if not known and not self.hashing:
                continue
            found = xxh3_128_digest(chunk)
            if found != known:
                self.hashes[place : place + _HASH] = found
                continue
            if start < offset:
                yield start, offset
            start = offset + len(chunk)
        if start < len(view):
            yield start, len(view)

    def _write(self, data: memoryview, at: int, write: Callable[[memoryview, int], None]) -> None:
        """Put bytes that begin at `at` in the stream where they belong in the spool."""
        for position, length in self.ranges:
            if at < length:
                run = min(len(data), length - at)
                write(data[:run], position + at)
                data = data[run:]
                if not data:
                    return
                at = length
            at -= length


def _slices(runs: Iterable[Extent], done: int) -> Iterator[_Slice]:
    """The stream from `done` on, cut every SLICE bytes: where a slice begins, and offsets and lengths in the file."""
    at = done
    room = SLICE
    pieces = []
    for offset, length in runs:
        skipped = min(done, length)
        done -= skipped
        taken = skipped
        while taken < length:
            piece = min(length - taken, room)
            pieces.append((offset + taken, piece))
            taken += piece
            room -= piece
            if not room:
                yield at, pieces
                at += SLICE
                room = SLICE
                pieces = []
    if pieces:
        yield at, pieces


def _cut(room: Iterable[Range], length: int) -> tuple[Range, ...]:
    """The first `length` bytes of the room."""
    ranges = []
    for position, most in room:
        if run := min(most, length):
            ranges.append(Range(position, run))
            length -= run
    return tuple(ranges)


def _pieces(runs: Iterable[Extent], ranges: Sequence[Range]) -> Iterator[tuple[int, int, int]]:
    """What is in one piece in the file and in the spool, and is not too much at once: offset, position, length."""
    waiting = iter(ranges)
    position = room = 0
    for offset, length in runs:
        taken = 0
        while taken < length:
            if not room:
                position, room = next(waiting)
            piece = min(length - taken, room, _CLONED_AT_ONCE)
            yield offset + taken, position, piece
            taken += piece
            position += piece
            room -= piece


def _read(descriptor: int, pieces: list[tuple[int, int]], buffer: memoryview) -> tuple[bool, memoryview]:
    """The bytes of these pieces, with zeros for what is no longer there, which the first value tells."""
    whole = True
    filled = 0
    for offset, length in pieces:
        end = filled + length
        while filled < end:
            got = os.preadv(descriptor, (buffer[filled:end],), offset + length - (end - filled))
            if got == 0:
                buffer[filled:end] = bytes(end - filled)
                whole = False
                break
            filled += got
        filled = end
    return whole, buffer[:filled]


def signature_of(status: os.stat_result) -> Signature:
    """The signature that a status holds."""
    return Signature(
        status.st_ino,
        status.st_size,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def same(after: os.stat_result, before: os.stat_result) -> bool:
    """Whether nothing has happened to it. Every change moves ctime; size and mtime are for file systems without it."""
    return (
        after.st_ctime_ns == before.st_ctime_ns
        and after.st_mtime_ns == before.st_mtime_ns
        and after.st_size == before.st_size
        and after.st_ino == before.st_ino
    )


def extents_of(descriptor: int, status: os.stat_result) -> tuple[Extent, ...] | None:
    """The runs of data of an open file of this status, if it has holes; one that fills its blocks is not asked."""
    return data_extents(descriptor, status.st_size) if status.st_blocks * _SECTOR < status.st_size else None


def data_extents(descriptor: int, size: int) -> tuple[Extent, ...] | None:
    """The runs of data in the first `size` bytes of a file with holes; None for one without."""
    extents = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole up to the end, which may just have come nearer
                break
            if exc.errno == errno.EINVAL:  # the file system does not tell
                return None
            raise
        if start >= size:  # it has grown
            break
        extents.append(Extent(start, min(end, size) - start))
        offset = end
    # A compressed or an inline file takes fewer blocks than its size without having a hole.
    return None if extents == [Extent(0, size)] else tuple(extents)
