"""Blocks: their pieces, one after another, are a tar stream, wherever the boundaries fall."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Sequence
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.archive.blocks import BlockPlan, Range, plan_blocks
from sidecar.archive.entry import Entry, Kind, Signature
from sidecar.archive.records import head
from tests.unit.entries import MadeUp, made_up

RECORD = 512
END = 2 * RECORD
patient = settings(max_examples=60, deadline=None)  # a busy machine proves nothing wrong
targets = st.one_of(st.integers(1, 40).map(lambda records: records * RECORD), st.integers(1, 20_000))


def filled(plan: BlockPlan, spool: bytes) -> bytes:
    raw = b"".join(
        spool[piece.position : piece.position + piece.length] if isinstance(piece, Range) else piece
        for piece in plan.pieces
    )
    assert len(raw) == plan.raw_length
    return raw


def members(stream: bytes) -> list[tuple[bytes, bytes, bytes | None, int]]:
    """Name, type, content and where the data begins, as tarfile reads the stream."""
    with tarfile.open(fileobj=io.BytesIO(stream), mode="r:", errorlevel=2) as archive:
        found = []
        for member in archive:
            source = archive.extractfile(member) if member.isreg() or member.issparse() else None
            content = source.read() if source else None
            found.append((os.fsencode(member.name), member.type, content, member.offset_data))
        return found


def outgrows(entry: Entry, target: int) -> bool:
    stored = -(-entry.data_length // RECORD) * RECORD
    return entry.kind is Kind.FILE and stored > 0 and len(head(entry)) + stored > target


def first_of(plan: BlockPlan) -> bytes | None:
    """The file that a block begins with or inside of."""
    return plan.continues.path if plan.continues else plan.entries[0][0].path if plan.entries else None


@patient
@given(made_up=made_up(), target=targets)
def test_the_blocks_together_are_the_tar_stream_of_the_entries(made_up: MadeUp, target: int) -> None:
    stream = b"".join(filled(plan, made_up.spool) for plan in plan_blocks(made_up.entries, target=target))

    assert len(stream) % RECORD == 0
    assert stream.endswith(bytes(END))
    assert [(name, content) for name, _, content, _ in members(stream)] == [
        (b"./" + entry.path, made_up.contents.get(entry.path)) for entry in made_up.entries
    ]


@patient
@given(made_up=made_up(), target=targets)
def test_boundaries_change_nothing_of_the_stream(made_up: MadeUp, target: int) -> None:
    cut = b"".join(filled(plan, made_up.spool) for plan in plan_blocks(made_up.entries, target=target))
    (whole,) = plan_blocks(made_up.entries, target=2**40)

    assert cut == filled(whole, made_up.spool)


@patient
@given(made_up=made_up(), records=st.integers(1, 40))
def test_a_block_exceeds_its_target_by_no_more_than_a_head_or_the_end(made_up: MadeUp, records: int) -> None:
    target = records * RECORD
    largest_head = max((len(head(entry)) for entry in made_up.entries), default=0)

    *blocks, last = plan_blocks(made_up.entries, target=target)

    assert all(plan.raw_length < target + max(largest_head, 1) for plan in blocks)
    assert last.raw_length < target + max(largest_head, 1) + END


@patient
@given(made_up=made_up(), records=st.integers(1, 40))
def test_only_before_and_at_the_end_of_a_file_larger_than_a_block_is_a_block_smaller_than_its_target(
    made_up: MadeUp, records: int
) -> None:
    target = records * RECORD
    large = {entry.path for entry in made_up.entries if outgrows(entry, target)}
    plans = list(plan_blocks(made_up.entries, target=target))
    for plan, following in itertools.pairwise(plans):
        if plan.raw_length < target:
            assert large & {first_of(plan), first_of(following)}


@patient
@given(made_up=made_up(), before=made_up(), records=st.integers(2, 40))
def test_a_file_larger_than_a_block_is_cut_into_the_same_blocks_wherever_it_stands(
    made_up: MadeUp, before: MadeUp, records: int
) -> None:
    target = records * RECORD

    def cut(entries: Sequence[Entry], path: bytes) -> list[list[bytes | Range]]:
        return [plan.pieces for plan in plan_blocks(entries, target=target) if first_of(plan) == path]

    others = [entry for entry in before.entries if entry.path not in made_up.contents]
    for entry in made_up.entries:
        if outgrows(entry, target):
            alone = cut([entry], entry.path)
            assert len(alone) > 1
            assert cut([*others, *made_up.entries], entry.path) == alone


@patient
@given(made_up=made_up(), target=targets)
def test_every_entry_is_in_one_block_with_the_offset_of_its_records(made_up: MadeUp, target: int) -> None:
    plans = list(plan_blocks(made_up.entries, target=target))
    raw = [filled(plan, made_up.spool) for plan in plans]

    assert [entry for plan in plans for entry, _ in plan.entries] == list(made_up.entries)
    for number, plan in enumerate(plans):
        for entry, at in plan.entries:
            name, *_ = members(raw[number][at:] + b"".join(raw[number + 1 :]))[0]
            assert name == b"./" + entry.path


@patient
@given(made_up=made_up(), target=targets)
@example(  # nothing of the data fits behind the head, and the data ends with a block
    made_up=MadeUp((Entry(b"f", Kind.FILE, Signature(1, 1024, 0, 0, 0, 0, 0)),), bytes(1024), {b"f": bytes(1024)}),
    target=RECORD,
)
def test_a_block_that_begins_inside_a_file_says_which_and_how_far(made_up: MadeUp, target: int) -> None:
    plans = list(plan_blocks(made_up.entries, target=target))
    begins = {name: data for name, _, _, data in members(b"".join(filled(p, made_up.spool) for p in plans))}
    lengths = {entry.path: entry.data_length for entry in made_up.entries}

    offset = 0
    for plan in plans:
        inside = [
            (path, offset - begins[b"./" + path])
            for path, length in lengths.items()
            if 0 <= offset - begins[b"./" + path] < length
        ]
        assert ([tuple(plan.continues)] if plan.continues else []) == inside
        offset += plan.raw_length


def test_no_entries_make_one_block_that_ends_the_archive() -> None:
    plans: Sequence[Any] = list(plan_blocks([]))

    assert [filled(plan, b"") for plan in plans] == [bytes(END)]


def test_small_files_fill_a_block_together_and_a_large_one_runs_through_several() -> None:
    def file(path: bytes, size: int, position: int) -> Entry:
        return Entry(path, Kind.FILE, Signature(1, size, 0o644, 0, 0, 0, 0), position=position)

    small = [file(b"%d" % number, 100, number * 100) for number in range(10)]
    large = file(b"large", 10 * 8192, 1000)

    plans = list(plan_blocks([*small, large], target=8192))

    assert [entry.path for entry, _ in plans[0].entries] == [b"%d" % number for number in range(8)]
    assert plans[2].entries == [(large, 0)]
    assert sum(1 for plan in plans if plan.continues and plan.continues.path == b"large") == 10
    assert [plan.raw_length for plan in plans] == [8192, 2048, *[8192] * 10, 512, END]
