"""Parts: whatever the blocks and however wrong the guess, an upload keeps to its store's limits."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sidecar.stores.parts import PartAssembler, PartLengths, part_target
from sidecar.stores.port import MEBIBYTE, Capabilities

GIBIBYTE = 1024 * MEBIBYTE
TEBIBYTE = 1024 * GIBIBYTE
LARGEST_BLOCK = 16 * MEBIBYTE

STORES = {
    "AWS": Capabilities(),
    "R2": Capabilities(equal_parts=True),
    "Scaleway": Capabilities(most_parts=1000),
    "Ceph": Capabilities(leaves_parts_out=False),
    "memory": Capabilities(least_part=1, most_parts=10_000_000),
}


def parts_of(blocks: Iterable[int], expected: int, limits: Capabilities) -> list[int]:
    lengths = PartLengths(expected, limits)
    parts = [part for block in blocks for part in lengths.add(block)]
    return [*parts, lengths.held] if lengths.held else parts


def blocks_for(total: int, sizes: list[int]) -> list[int]:
    """Blocks of these sizes, over and over, that add up to about `total`; few enough to be quick."""
    sizes = [max(size, -(-total // 330_000)) for size in sizes]  # a tebibyte of 4 KiB blocks proves no more
    rounds, rest = divmod(total, sum(sizes))
    return sizes * rounds + ([rest] if rest else [])


block_sizes = st.lists(
    st.one_of(st.integers(1, LARGEST_BLOCK), st.sampled_from([8 * MEBIBYTE, LARGEST_BLOCK])), min_size=1, max_size=6
)
totals = st.one_of(
    st.integers(1, GIBIBYTE), st.integers(1, 5 * TEBIBYTE), st.sampled_from([5 * TEBIBYTE, 48 * GIBIBYTE])
)
guesses = st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0])


@settings(max_examples=12, deadline=None)
@example(store="AWS", total=5 * TEBIBYTE, sizes=[LARGEST_BLOCK], guess=0.1)
@example(store="Scaleway", total=600 * GIBIBYTE, sizes=[LARGEST_BLOCK], guess=0.1)
@example(store="Scaleway", total=3600 * GIBIBYTE, sizes=[LARGEST_BLOCK], guess=1.0)
@example(store="R2", total=5 * TEBIBYTE, sizes=[LARGEST_BLOCK], guess=1.0)
@given(store=st.sampled_from(sorted(STORES)), total=totals, sizes=block_sizes, guess=guesses)
def test_parts_fit_the_limits_of_the_store_up_to_5_tebibytes_even_when_the_guess_is_wrong_by_ten(
    store: str, total: int, sizes: list[int], guess: float
) -> None:
    limits = STORES[store]
    if limits.equal_parts:
        guess = max(guess, 1.0)  # parts that must stay equal cannot grow: `expected` has to be the most
    # What the store can hold at all; of that, an eighth when three quarters of the numbers were spent on small parts.
    assume(total <= limits.most_parts * limits.most_part * (0.75 if guess >= 1 else 0.125))
    expected = min(int(total * guess), 5 * TEBIBYTE)
    blocks = blocks_for(total, sizes)

    parts = parts_of(blocks, expected, limits)

    assert sum(parts) == total
    assert len(parts) <= limits.most_parts
    assert all(limits.least_part <= part for part in parts[:-1])
    assert all(0 < part <= limits.most_part for part in parts)
    if limits.equal_parts:
        assert len(set(parts[:-1])) <= 1
        assert parts[-1] <= parts[0]
    else:
        ends, at = set(), 0
        for block in blocks:
            at += block
            ends.add(at)
        at = 0
        for part in parts:
            at += part
            assert at in ends


def test_a_part_is_about_8_mebibytes_until_an_archive_needs_larger_ones() -> None:
    aws = STORES["AWS"]

    assert part_target(1, 0, aws) == 8 * MEBIBYTE
    assert part_target(1, 58 * GIBIBYTE, aws) == 8 * MEBIBYTE
    assert part_target(1, 600 * GIBIBYTE, aws) == pytest.approx(80 * MEBIBYTE, rel=0.05)


def test_parts_grow_when_an_archive_is_larger_than_it_was_expected_to_be() -> None:
    parts = parts_of([8 * MEBIBYTE] * 60_000, 1 * GIBIBYTE, STORES["AWS"])

    assert len(parts) <= 10_000
    assert parts[0] == 8 * MEBIBYTE
    assert max(parts) > 32 * MEBIBYTE
    assert sorted(parts[:-1]) == parts[:-1]


def test_parts_of_the_largest_size_are_never_exceeded_by_the_block_that_would_fill_them() -> None:
    limits = Capabilities(most_parts=3, most_part=20 * MEBIBYTE)

    assert parts_of([9 * MEBIBYTE] * 5, 60 * MEBIBYTE, limits) == [18 * MEBIBYTE, 18 * MEBIBYTE, 9 * MEBIBYTE]


small = Capabilities(least_part=10 * MEBIBYTE, most_part=12 * MEBIBYTE)
equal = Capabilities(least_part=10 * MEBIBYTE, most_part=12 * MEBIBYTE, equal_parts=True)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 6 * MEBIBYTE // 4), max_size=30), limits=st.sampled_from([small, equal]))
def test_the_bytes_of_the_parts_are_the_bytes_of_the_blocks_in_order_and_numbered_from_1(
    sizes: list[int], limits: Capabilities
) -> None:
    blocks = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    assembler = PartAssembler(sum(sizes), limits)

    parts = [part for block in blocks for part in assembler.add(block)]
    parts += assembler.end()

    assert b"".join(data for _, data, _ in parts) == b"".join(blocks)
    assert [number for number, *_ in parts] == list(range(1, len(parts) + 1))
    assert [len(data) for _, data, _ in parts] == parts_of(sizes, sum(sizes), limits)
    assert list(assembler.end()) == []


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 6 * MEBIBYTE // 4), max_size=30), limits=st.sampled_from([small, equal]))
def test_a_part_tells_which_blocks_it_is_made_of_if_it_is_made_of_whole_ones(
    sizes: list[int], limits: Capabilities
) -> None:
    assembler = PartAssembler(sum(sizes), limits)

    parts = [part for number, size in enumerate(sizes) for part in assembler.add(bytes(size), number * 2**20)]
    parts += assembler.end()

    at, block_ends = 0, {sum(sizes[:count]) for count in range(len(sizes) + 1)}
    for _, data, blocks in parts:
        if blocks:
            assert sum(length for _, length in blocks) == len(data)
            assert at in block_ends
        at += len(data)
    if not limits.equal_parts:
        told = [block for *_, blocks in parts for block in blocks]
        assert told == [(number * 2**20, size) for number, size in enumerate(sizes)]
