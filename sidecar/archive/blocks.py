"""Which tar records go into which block. Pure arithmetic over entries.

A block is about `TARGET` bytes of tar records, and becomes one gzip member. Small files follow one another without
regard to blocks. What is larger than a block has blocks of its own, and is cut at the same places wherever it stands:
so the blocks of a part of it that did not change come out the same, and a store that has them need not be sent them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sidecar.archive.entry import Entry, Kind, Range
from sidecar.archive.records import END_OF_ARCHIVE, head, padding

TARGET = 8 * 1024 * 1024


class Continuation(NamedTuple):
    """The file that a block begins inside of, and how many bytes of its stored data came before."""

    path: bytes
    stored: int


@dataclass(slots=True)
class BlockPlan:
    """One block to be made: pieces are literal bytes and ranges of the spool; raw_length is their sum in bytes.

    entries: those whose records begin here, each with its offset in the raw block.
    """

    pieces: list[bytes | Range] = field(default_factory=list)
    raw_length: int = 0
    entries: list[tuple[Entry, int]] = field(default_factory=list)
    continues: Continuation | None = None

    def add(self, piece: bytes) -> None:
        """Append literal bytes, joined to a literal before them."""
        if piece:
            self.pieces.append(piece)
            self.raw_length += len(piece)

    def add_range(self, position: int, length: int) -> None:
        """Append bytes of the spool."""
        self.pieces.append(Range(position, length))
        self.raw_length += length


def is_large(head_length: int, data_length: int, target: int) -> bool:
    """Whether a file has blocks of its own, by the bytes of its records before its data, and of its stored data."""
    return data_length > 0 and head_length + data_length + padding(data_length) > target


def plan_blocks(entries: Iterable[Entry], *, target: int = TARGET) -> Iterator[BlockPlan]:
    """The blocks of an archive of these entries, in their order; the last one ends the archive.

    A block ends as soon as it holds `target` bytes, or a file begins or ends that is larger than a block; only an
    entry's head (names, attributes, a sparse map) may carry it beyond that.
    """
    block = BlockPlan()
    for entry in entries:
        records = head(entry)
        length = entry.data_length if entry.kind is Kind.FILE else 0
        large = is_large(len(records), length, target)
        if block.raw_length >= target or (large and block.raw_length):
            yield block
            block = BlockPlan()
        block.entries.append((entry, block.raw_length))
        block.add(records)
        if not length:
            continue
        stored = 0
        for spooled in entry.spooled:
            position, left = spooled
            while left:
                if block.raw_length >= target:
                    yield block
                    block = BlockPlan(continues=Continuation(entry.path, stored))
                run = min(left, target - block.raw_length)
                block.add_range(position, run)
                position += run
                left -= run
                stored += run
        block.add(bytes(padding(stored)))
        if large:
            yield block
            block = BlockPlan()
    block.add(END_OF_ARCHIVE)
    yield block
