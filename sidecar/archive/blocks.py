"""Which tar records go into which block. Pure arithmetic over entries.

A block is about `TARGET` bytes of tar records; entries follow one another without regard to blocks, so that a small
file is whole in one block and a large one runs through several. One block becomes one gzip member.
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


def plan_blocks(entries: Iterable[Entry], *, target: int = TARGET) -> Iterator[BlockPlan]:
    """The blocks of an archive of these entries, in their order; the last one ends the archive.

    A block ends as soon as it holds `target` bytes; only an entry's head (names, attributes, a sparse map) may carry it
    beyond that.
    """
    block = BlockPlan()
    for entry in entries:
        if block.raw_length >= target:
            yield block
            block = BlockPlan()
        block.entries.append((entry, block.raw_length))
        block.add(head(entry))
        if entry.kind is not Kind.FILE:
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
    block.add(END_OF_ARCHIVE)
    yield block
