"""The index: what is written is read back, and what is torn or edited is refused."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.archive import index
from sidecar.archive.blocks import BlockPlan, Continuation, plan_blocks
from sidecar.archive.entry import Kind, Signature, fingerprint
from sidecar.archive.index import Block, FingerprintedBlock, IndexedBlock, read_fingerprints, read_index
from sidecar.archive.writer import read_index_file
from sidecar.errors import SetInvalid
from tests.unit.entries import MadeUp, made_up


def lines_of(
    plans: list[BlockPlan], *, sockets: tuple[bytes, ...] = (), data_crc32: Sequence[Sequence[int]] = ()
) -> list[bytes]:
    lines = [index.header_line("v", "backup-20260101_000000")]
    offset = files = 0
    for number, plan in enumerate(plans):
        block = Block(offset, 100 + number, plan.raw_length, number, f"{number:064x}")
        lines.append(index.block_line(block, plan, data_crc32[number] if number < len(data_crc32) else None))
        offset += block.length
        files += len(plan.entries)
    lines.append(index.summary_line(blocks=len(plans), files=files, size=offset, crc32=7, sockets=sockets))
    return lines


patient = settings(max_examples=50, deadline=None)  # a busy machine proves nothing wrong

SAMPLE = lines_of(
    [
        *plan_blocks([], target=1),
        BlockPlan(raw_length=512, continues=Continuation(b"caf\xe9", 12345)),
    ],
    sockets=(b"s\xff",),
)


@patient
@given(made_up=made_up(), target=st.integers(1, 10_000))
def test_entries_come_back_as_they_were_also_with_names_that_are_not_utf8(made_up: MadeUp, target: int) -> None:
    plans = list(plan_blocks(made_up.entries, target=target))

    blocks = list(read_index(lines_of(plans)))

    assert [[(f.path, f.kind, f.signature, f.at, f.link) for f in indexed.files] for indexed in blocks] == [
        [(e.path, e.kind, e.signature, at, e.link) for e, at in plan.entries] for plan in plans
    ]
    assert [indexed.continues for indexed in blocks] == [plan.continues for plan in plans]
    assert [indexed.block.raw_length for indexed in blocks] == [plan.raw_length for plan in plans]


@patient
@given(made_up=made_up(), target=st.integers(1, 10_000))
def test_a_pool_has_a_fingerprint_of_each_settled_file_and_of_no_other(made_up: MadeUp, target: int) -> None:
    files = (entry for entry in made_up.entries if entry.kind is Kind.FILE)
    settled = [plan for plan in plan_blocks(files, target=target) if plan.entries or plan.continues]
    others = list(plan_blocks((entry for entry in made_up.entries if entry.kind is not Kind.FILE), target=target))
    crc32 = [[len(plan.entries) + place for place in range(len(plan.entries))] for plan in settled]
    lines = lines_of([*settled, *others], data_crc32=crc32)

    blocks = list(read_fingerprints(lines))

    assert [each.line for each in blocks] == lines[1:-1]
    assert [each.block for each in blocks] == [indexed.block for indexed in read_index(lines)]
    assert [each.continues for each in blocks] == [plan.continues is not None for plan in [*settled, *others]]
    assert [(each.fingerprints, each.data_crc32) for each in blocks] == [
        *[
            (tuple(fingerprint(entry.path, entry.signature) for entry, _ in plan.entries), tuple(found))
            for plan, found in zip(settled, crc32, strict=True)
        ],
        *[(None, None) for _ in others],
    ]


ROW = '["f","file",1,2,3,4,5,6,7,8]'


@pytest.mark.parametrize(
    "row",
    [
        '["f","hardlink",1,2,3,4,5,6,7,8,"g"]',
        '["f","symlink",1,2,3,4,5,6,7,8]',
        '["f","file",1,2,3,4,5,6,7]',
        '["f","file",1.0,2,3,4,5,6,7,8]',
        '["f","file",true,2,3,4,5,6,7,8]',
        '["f","file",1,2,3,4,5,6,7,-1]',
        '["f","file",1,2,3,4,5,6,7,1024]',
        '[1,"file",1,2,3,4,5,6,7,8]',
        "[]",
        "null",
    ],
)
def test_a_row_that_is_no_settled_file_of_its_block_is_refused_before_its_line_can_be_taken_over(row: str) -> None:
    line = index.block_line(Block(0, 100, 1024, 0, ""), BlockPlan(raw_length=1024), [])
    summary = index.summary_line(blocks=1, files=1, size=100, crc32=7, sockets=())

    def read(row: str) -> list[FingerprintedBlock]:
        text = line.decode().replace('"files":[]', f'"files":[{row}]').replace('"data_crc32":[]', '"data_crc32":["0"]')
        return list(read_fingerprints([SAMPLE[0], text.encode(), summary]))

    assert read(ROW)[0].fingerprints == (fingerprint(b"f", Signature(7, 1, 2, 3, 4, 5, 6)),)
    with pytest.raises(SetInvalid):
        read(row)


def test_it_is_json_in_ascii_that_any_program_can_read() -> None:
    header, block, other, summary = (json.loads(line.decode("ascii")) for line in SAMPLE)

    assert header["format"] == 1
    assert header["volume"] == "v"
    assert other["continues"] == {"path": "caf\udce9", "stored": 12345}
    assert (block["offset"], other["offset"]) == (0, 100)
    assert summary["sockets"] == ["s\udcff"]


@pytest.mark.parametrize("without", range(len(SAMPLE)))
def test_an_index_without_one_of_its_lines_is_refused(without: int) -> None:
    with pytest.raises(SetInvalid):
        list(read_index(SAMPLE[:without] + SAMPLE[without + 1 :]))


@pytest.mark.parametrize("length", range(len(SAMPLE)))
def test_an_index_that_ends_early_is_refused(length: int) -> None:
    with pytest.raises(SetInvalid):
        list(read_index(SAMPLE[:length]))


def test_an_index_that_goes_on_after_its_summary_is_refused() -> None:
    with pytest.raises(SetInvalid, match="goes on"):
        list(read_index([*SAMPLE, SAMPLE[1]]))


def test_another_format_is_refused_with_the_way_out() -> None:
    header = SAMPLE[0].replace(b'"format":1', b'"format":2')

    with pytest.raises(SetInvalid, match="format 2") as refused:
        list(read_index([header, *SAMPLE[1:]]))
    assert "newer" in refused.value.hint


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        (1, '"offset":0', '"offset":1'),
        (1, '"offset":0', '"offset":"0"'),
        (1, '"length":100', '"length":101'),
        (1, '"length":100', '"length":-100'),
        (1, '"length":100', '"length":"100"'),
        (1, '"crc32":"00000000"', '"crc32":0'),
        (1, '"files":[]', '"files":[[]]'),
        (1, '"files":[]', '"files":[["f","unicorn",0,0,0,0,0,0,0,0]]'),
        (1, '"files":[]', '"files":[["f","file",0,0,0,0,0,0,0,0]]'),
        (2, '"stored":12345', '"stored":null'),
        (3, '"blocks":2', '"blocks":3'),
        (3, '"files":0', '"files":1'),
        (3, '"size":201', '"size":200'),
        (0, '"columns":["path"', '"columns":["name"'),
    ],
)
def test_an_edited_index_is_refused(line: int, old: str, new: str) -> None:
    edited = list(SAMPLE)
    assert old.encode() in edited[line]
    edited[line] = edited[line].replace(old.encode(), new.encode())

    with pytest.raises(SetInvalid):
        list(read_index(edited))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text("abcblocks", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["blocks", "format", "columns", "offset", "files", "x"]), inner, max_size=4)
    ),
)


@patient
@given(line=st.integers(0, len(SAMPLE) - 1), value=st.one_of(json_values.map(json.dumps).map(str.encode), st.binary()))
@pytest.mark.parametrize("read", [read_index, read_fingerprints])
def test_no_nonsense_in_place_of_a_line_raises_anything_but_set_invalid(
    read: Callable[[Iterable[bytes]], Iterable[object]], line: int, value: bytes
) -> None:
    with pytest.raises(SetInvalid):
        list(read([*SAMPLE[:line], value, *SAMPLE[line + 1 :]]))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_torn_or_flipped_index_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = gzip.compress(b"".join(SAMPLE), mtime=0)
    path = tmp_path_factory.getbasetemp() / "index"
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:at]
    else:
        at = max(at, 10)  # before that lie fields of gzip's header that say nothing of the content
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    path.write_bytes(damaged)

    if gzip_reads_the_same(damaged, whole):  # one flip in 7,000 is another way to compress the same
        assert list(read_index_file(path)) == list(read_index(SAMPLE))
        return
    with pytest.raises(SetInvalid):
        list(read_index_file(path))


def gzip_reads_the_same(damaged: bytes, whole: bytes) -> bool:
    try:
        return gzip.decompress(damaged) == gzip.decompress(whole)
    except (OSError, EOFError, zlib.error):
        return False


def test_an_index_file_reads_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(gzip.compress(b"".join(SAMPLE)))

    blocks = list(read_index_file(tmp_path / "index"))

    assert [type(indexed) for indexed in blocks] == [IndexedBlock, IndexedBlock]
    assert blocks[1].continues == (b"caf\xe9", 12345)
