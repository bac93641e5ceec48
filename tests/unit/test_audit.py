"""The entries of an archive against its index: everything that a volume may hold agrees, and a wrong stream is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from sidecar.archive import writer
from sidecar.archive.audit import audit, in_order
from sidecar.archive.blocks import plan_blocks
from sidecar.archive.index import IndexedBlock
from sidecar.archive.reader import read_blocks, unpacked
from sidecar.errors import ArchiveDamaged
from tests.unit.trees import build_zoo, pack

Blocks = list[tuple[IndexedBlock, bytes]]


def blocks(tree: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Blocks:
    """The archive of a tree; in small blocks, so that there are many."""
    monkeypatch.setattr(writer, "plan_blocks", lambda entries: plan_blocks(entries, target=4096))
    packed = pack(tree, directory)
    data = packed.archive.read_bytes()
    found = []
    for each in read_blocks(packed.index.read_bytes()):
        in_order(each)
        block = each.block
        found.append((each, unpacked(block, data[block.offset : block.offset + block.length])))
    return found


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blocks:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "large").write_bytes(Random(3).randbytes(50_000))
    (tree / "small").write_bytes(b"hello")
    (tree / "link").symlink_to("small")
    return blocks(tree, tmp_path / "archive", monkeypatch)


def test_everything_that_a_file_system_can_hold_is_what_its_index_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_zoo(tmp_path / "zoo")
    zoo = blocks(tmp_path / "zoo", tmp_path / "archive", monkeypatch)
    assert len(zoo) > 20  # entries run through many blocks, and their heads over borders
    assert audit(zoo) == sum(len(each.files) for each, _ in zoo) > 150


def test_an_entry_with_attributes_in_a_block_that_claims_none_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"data")
    os.setxattr(tree / "file", "user.colour", b"blue")
    whole = blocks(tree, tmp_path / "archive", monkeypatch)
    assert audit(whole) == 2
    with pytest.raises(ArchiveDamaged, match="has extended attributes, and its block has none"):
        audit([(replace(each, attributed=0), raw) for each, raw in whole])


def cut(whole: Blocks, length: int) -> Blocks:
    return [*whole[:-1], (whole[-1][0], whole[-1][1][:-length])]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: cut(whole, 1),
        lambda whole: cut(whole, 512),
        lambda whole: cut(whole, 1024),
        lambda whole: cut(whole, 1536),
        lambda whole: whole[:-1],
        lambda whole: [*whole, (whole[-1][0], bytes(512))],
        lambda whole: [*cut(whole, 1024), (whole[-1][0], b"x" * 1024)],
        lambda whole: whole[1:],
        lambda whole: [(whole[0][0], bytes(len(whole[0][1]))), *whole[1:]],
        lambda whole: [(whole[0][0], b"\xff" * len(whole[0][1])), *whole[1:]],
        lambda _: [],
    ],
)
def test_a_stream_that_is_no_whole_tar_stream_is_damaged_and_nothing_else_is_raised(
    whole: Blocks, damage: Callable[[Blocks], Blocks]
) -> None:
    assert audit(whole) == sum(len(each.files) for each, _ in whole)
    with pytest.raises(ArchiveDamaged):
        audit(damage(whole))


def test_any_header_byte_that_matters_shows(whole: Blocks) -> None:
    (indexed, raw), *rest = whole
    at = indexed.files[0].at
    for position in (0, 3, 101, 109, 117, 125, 148, 156):  # name, mode, owner, group, size, checksum, type
        changed = bytearray(raw)
        changed[at + position] ^= 1
        with pytest.raises(ArchiveDamaged):
            audit([(indexed, bytes(changed)), *rest])
