"""The one place of part-size arithmetic: consecutive blocks become the parts of an upload. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.stores.port import MEBIBYTE, Capabilities

SMALLEST_TARGET = 8 * MEBIBYTE


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


class PartAssembler:
    """Takes blocks in order and gives parts: (number, bytes). `end` gives the rest.

    A part holds whole blocks, so that a later archive can copy ranges of this one by block; only a store that wants
    equal parts has them cut elsewhere.
    """

    def __init__(self, expected: int, limits: Capabilities) -> None:
        self._expected = expected
        self._limits = limits
        self._number = 1
        self._held: list[bytes] = []
        self._length = 0

    def add(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """The parts that are complete with this block."""
        self._held.append(block)
        self._length += len(block)
        while self._length >= (target := part_target(self._number, self._expected, self._limits)):
            data = b"".join(self._held)
            cut = target if self._limits.equal_parts else len(data)
            self._held = [data[cut:]] if cut < len(data) else []
            self._length = len(data) - cut
            yield self._number, data[:cut]
            self._number += 1

    def end(self) -> Iterator[tuple[int, bytes]]:
        """The last part, when there is a rest."""
        if self._length:
            yield self._number, b"".join(self._held)
            self._held, self._length = [], 0
            self._number += 1
