"""The one place of part-size arithmetic: consecutive blocks become the parts of an upload. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sidecar.stores.port import MEBIBYTE, Capabilities

SMALLEST_TARGET = 8 * MEBIBYTE

Assembled = tuple[int, bytes, list[tuple[int | None, int]]]


def strictest(limits: Iterable[Capabilities]) -> Capabilities:
    """What all of these allow. Of stores that want equal parts, or cannot leave any out, nothing is asked here."""
    every = list(limits)
    return Capabilities(
        copies_ranges=all(each.copies_ranges and not each.equal_parts for each in every),
        most_parts=min(each.most_parts for each in every),
        least_part=max(each.least_part for each in every),
        most_part=min(each.most_part for each in every),
        least_copy=max(each.least_copy for each in every),
    )


def part_target(number: int, expected: int, limits: Capabilities) -> int:
    """How large part `number` (from 1) should be, in bytes.

    expected: the most that the object may measure, as known when it begins. Three quarters of the part numbers hold
    that; should it grow beyond, each further eighth of those left doubles the size, up to the largest part.
    """
    planned = max(1, limits.most_parts * 3 // 4)
    base = max(SMALLEST_TARGET, limits.least_part, -(-expected // planned))
    beyond = max(0, number - planned)
    doublings = -(-beyond * 8 // max(1, limits.most_parts - planned)) if not limits.equal_parts else 0
    return int(min(base << doublings, limits.most_part))


class PartLengths:
    """Which parts blocks of given lengths make, in bytes.

    A part ends where a block ends, so that a later archive can copy ranges of this one by block; only a store that
    wants equal parts has them end elsewhere.
    """

    def __init__(self, expected: int, limits: Capabilities, first: int = 1) -> None:
        self._expected = expected
        self._limits = limits
        self._number = first
        self.held = 0  # bytes that are in no part yet

    def add(self, block: int) -> Iterator[int]:
        """The lengths of the parts that are complete now that `block` bytes more have come."""
        limits = self._limits
        if not limits.equal_parts and self.held + block > limits.most_part and self.held >= limits.least_part:
            yield self._end(self.held)
        self.held += block
        while self.held >= (target := part_target(self._number, self._expected, limits)):
            yield self._end(target if limits.equal_parts else self.held)

    def _end(self, length: int) -> int:
        self.held -= length
        self._number += 1
        return length


class PartAssembler:
    """Takes blocks in order and gives parts, from number `first` on; `end` gives the rest.

    A part is (number, bytes, blocks): the last as (offset, length), offset being what `add` was told of it; no blocks
    where the part does not begin and end with one.
    """

    def __init__(self, expected: int, limits: Capabilities, first: int = 1) -> None:
        self._lengths = PartLengths(expected, limits, first)
        self._number = first
        self._held: list[bytes] = []
        self._blocks: list[tuple[int | None, int]] = []

    def add(self, block: bytes, offset: int | None = None) -> Iterator[Assembled]:
        """The parts that are complete with this block."""
        self._held.append(block)
        self._blocks.append((offset, len(block)))
        for length in self._lengths.add(len(block)):
            data = b"".join(self._held)
            self._held = [data[length:]] if length < len(data) else []
            yield self._part(data[:length])

    def end(self) -> Iterator[Assembled]:
        """The last part, when there is a rest."""
        if self._held:
            data = b"".join(self._held)
            self._held = []
            yield self._part(data)

    def _part(self, data: bytes) -> Assembled:
        blocks, self._blocks = self._blocks, []
        whole = not self._held and sum(length for _, length in blocks) == len(data)
        number, self._number = self._number, self._number + 1
        return number, data, blocks if whole else []
