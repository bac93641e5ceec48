"""Blocks that are there already, those of an earlier archive and those that the live pass has just made.

Each is valid as long as every file in it is what it was. A walk tells the pool which files it has met; whatever block
then misses one has fallen, and its other files have to be read again. So nothing has to be known of a file but a number
that stands for its path and its signature: a million files are a dictionary of a million numbers.

Blocks are tied together twice. A *chain* is a block with those after it that a large file of it runs on into: it is
whole or it is nothing. A *stretch* is as many chains, one after another, as make parts of an upload, and falls with any
of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import stat_result
from typing import NamedTuple, TypeVar

from sidecar.archive import index
from sidecar.archive.entry import Fingerprint, Kind, Range
from sidecar.archive.index import Block, FingerprintedBlock
from sidecar.archive.member import Member
from sidecar.archive.spool import Spool

Item = TypeVar("Item")


class PooledBlock(NamedTuple):
    """A block that is there. line: of an index, in the pool's spool; files: entries that begin in it."""

    block: Block
    line: Range
    files: int


@dataclass(slots=True)
class Chain:
    """Blocks that are valid together. wanted, seen: sums of the numbers of its files, and of those that a walk met."""

    blocks: list[PooledBlock] = field(default_factory=list)
    wanted: int = 0
    seen: int = 0
    fallen: bool = False

    @property
    def length(self) -> int:
        """Compressed bytes."""
        return sum(each.block.length for each in self.blocks)


class Part(NamedTuple):
    """A part of the upload: number, bytes, and their CRC32. offset: where the earlier archive has them, or None."""

    number: int
    length: int
    crc32: int
    offset: int | None


@dataclass(slots=True)
class Stretch:
    """Chains that were uploaded together. parts: those of the upload; loose: bytes that are in none, being too few."""

    chains: list[Chain] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    loose: bytes = b""


class Pool:
    """The blocks for one volume's next archive. spool: holds the lines of their indexes, and what no store has yet."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.stretches: list[Stretch] = []
        self._known: dict[Fingerprint, Chain] = {}
        self._earlier: list[Chain] = []
        self._there: dict[str, Range] = {}
        self._kept: dict[int, Range] = {}
        self._parts = 0

    @property
    def parts(self) -> int:
        """How many numbers of parts are taken."""
        return self._parts

    @property
    def length(self) -> int:
        """Compressed bytes of all blocks that stand."""
        return sum(chain.length for stretch in self.stretches for chain in stretch.chains)

    @property
    def raw_length(self) -> int:
        """Bytes of their tar stream."""
        chains = (chain for stretch in self.stretches for chain in stretch.chains)
        return sum(each.block.raw_length for chain in chains for each in chain.blocks)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no file."""
        return not self._known

    def load(self, blocks: Iterable[FingerprintedBlock]) -> None:
        """Take the blocks of an earlier archive whose files were settled when it was made.

        They are candidates: `choose` makes parts of those that a walk has left standing. Of all others, too, it is
        known which bytes they are: see `origin_of`. Raises what the iteration raises, SpoolFull; then
        it is empty again.
        """
        try:
            self._load(blocks)
        except BaseException:
            self._known, self._earlier, self._there = {}, [], {}
            raise

    def _load(self, blocks: Iterable[FingerprintedBlock]) -> None:
        chain: Chain | None = None
        for block, line, continues, fingerprints, _ in blocks:
            self._there[block.sha256] = Range(block.offset, block.length)
            if not continues:
                chain = None
            if fingerprints is None or (continues and chain is None):
                continue
            if chain is None:
                chain = Chain()
                self._earlier.append(chain)
            for number in fingerprints:
                self.expect(chain, number)
            self.extend(chain, block, line, len(fingerprints))

    def origin_of(self, member: Member) -> int | None:
        """Where the earlier archive has the very bytes of a block that was made anew; None where it has not."""
        found = self._there.get(member.sha256)
        return found.position if found is not None and found.length == len(member.data) else None

    def expect(self, chain: Chain, number: Fingerprint) -> None:
        """The chain holds a file of that number."""
        self._known[number] = chain
        chain.wanted += number

    def extend(self, chain: Chain, block: Block, line: bytes, files: int) -> None:
        """Append a block to a chain, with its line of an index."""
        chain.blocks.append(PooledBlock(block, self._write(line), files))

    def next_part(self, length: int, crc32: int, offset: int | None = None) -> Part:
        """A part with the next number."""
        self._parts += 1
        return Part(self._parts, length, crc32, offset)

    def begin_walk(self) -> None:
        """Forget which files have been met."""
        for chain in self._chains():
            chain.seen = 0

    def meet(self, path: bytes, status: stat_result, device: int) -> bool:
        """Note that a walk has met this file; whether a block holds it. device: the volume's own."""
        number = hash(  # as `fingerprint` has it, without making a signature
            (
                path,
                status.st_ino,
                status.st_size,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
        )
        chain = self._known.get(number)
        if chain is None or chain.fallen or status.st_dev != device:
            return False
        chain.seen += number
        return True

    def holds(self, number: Fingerprint) -> bool:
        """Whether a block that stands holds a file of this number."""
        chain = self._known.get(number)
        return chain is not None and not chain.fallen

    def fallen(self) -> list[Chain]:
        """After a walk: the chains that have fallen since the last time. Their files are in no block any more."""
        for chain in self._earlier:
            chain.fallen = chain.fallen or chain.seen != chain.wanted
        found = [chain for chain in self._earlier if chain.fallen]
        self._earlier = [chain for chain in self._earlier if not chain.fallen]
        standing = []
        for stretch in self.stretches:
            if all(chain.seen == chain.wanted and not chain.fallen for chain in stretch.chains):
                standing.append(stretch)
                continue
            for chain in stretch.chains:
                chain.fallen = True
                found.append(chain)
        self.stretches = standing
        return found

    def choose(self, least: int, target: int, most: int) -> list[Chain]:
        """Make stretches of the earlier archive's chains that stand, in their order, for the store to copy.

        least: bytes that the store copies at least; target: that a part should have; most: parts. The chains that fall
        because they are too few beside one another: between those, each gap begins another part.
        """
        runs = list(_neighbours(self._earlier))
        lengths = [sum(chain.length for chain in run) for run in runs]
        left = most
        chosen = set()
        for place in sorted(range(len(runs)), key=lambda place: -lengths[place]):
            parts = lengths[place] // target + 1
            if lengths[place] >= least and parts <= left:
                left -= parts
                chosen.add(place)
        found: list[Chain] = []
        for place, run in enumerate(runs):
            if place not in chosen:
                for chain in run:
                    chain.fallen = True
                found += run
                continue
            for together in _portions(run, [chain.length for chain in run], least, target):
                blocks = [each.block for chain in together for each in chain.blocks]
                portions = _portions(blocks, [block.length for block in blocks], least, target)
                self.stretches.append(Stretch(together, [self._copied(portion) for portion in portions]))
        self._earlier = []
        return found

    def files_of(self, chain: Chain) -> Iterator[bytes]:
        """The paths of a chain's files, read from its lines."""
        for each in chain.blocks:
            for file in index.read_line(self.read(each.line)).files:
                if file.kind is Kind.FILE:
                    yield file.path

    def keep_bytes(self, part: Part, data: bytes) -> None:
        """Hold the bytes of a part that some store could not take yet."""
        self._kept[part.number] = self._write(data)

    def bytes_of(self, part: Part) -> bytes:
        """The bytes of a part that were held."""
        return self.read(self._kept[part.number])

    def read(self, where: Range) -> bytes:
        """Bytes of the pool's spool."""
        self._spool.flush()
        buffer = bytearray(where.length)
        self._spool.read_into([memoryview(buffer)], where.position)
        return bytes(buffer)

    def _write(self, data: bytes) -> Range:
        position = self._spool.allot(len(data))
        self._spool.write(memoryview(data), position)
        return Range(position, len(data))

    def in_order(self) -> Iterator[tuple[Stretch, Iterator[tuple[bytes, PooledBlock]]]]:
        """The stretches that stand, as they follow one another in the archive; each with the lines of its blocks.

        Loose ones come last.
        """
        for stretch in sorted(self.stretches, key=lambda stretch: (not stretch.parts, stretch.parts[:1])):
            yield stretch, self._lines(stretch)

    def reused(self) -> int:
        """Bytes of the stretches that stand which are the earlier archive's."""
        parts = (part for stretch in self.stretches for part in stretch.parts)
        return sum(part.length for part in parts if part.offset is not None)

    def _copied(self, blocks: Sequence[Block]) -> Part:
        length = sum(block.length for block in blocks)
        return self.next_part(length, index.combined_crc32(blocks), blocks[0].offset)

    def _lines(self, stretch: Stretch) -> Iterator[tuple[bytes, PooledBlock]]:
        for chain in stretch.chains:
            for each in chain.blocks:
                yield self.read(each.line), each

    def _chains(self) -> Iterator[Chain]:
        yield from self._earlier
        for stretch in self.stretches:
            yield from stretch.chains


def contiguous(pieces: Iterable[tuple[int | None, int]]) -> int | None:
    """Where pieces (offset, length) begin that follow one another without a gap; None where they do not."""
    begin = end = None
    for offset, length in pieces:
        if offset is None or (end is not None and offset != end):
            return None
        begin = offset if begin is None else begin
        end = offset + length
    return begin


def _neighbours(chains: Iterable[Chain]) -> Iterator[list[Chain]]:
    """Chains that follow one another without a gap."""
    run: list[Chain] = []
    end = -1
    for chain in chains:
        if run and chain.blocks[0].block.offset != end:
            yield run
            run = []
        run.append(chain)
        last = chain.blocks[-1].block
        end = last.offset + last.length
    if run:
        yield run


def _portions(items: Sequence[Item], lengths: Sequence[int], least: int, target: int) -> Iterator[list[Item]]:
    """The items cut into portions of about `target` bytes, none of fewer than `least` unless all of them are."""
    portion: list[Item] = []
    have = 0
    left = sum(lengths)
    for item, length in zip(items, lengths, strict=True):
        portion.append(item)
        have += length
        left -= length
        if have >= max(target, least) and (left == 0 or left >= least):
            yield portion
            portion = []
            have = 0
    if portion:
        yield portion
