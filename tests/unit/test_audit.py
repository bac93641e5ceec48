"""The entries of an archive against its index: everything that a volume may hold agrees, and a wrong stream is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.archive.audit import audit, in_order
from sidecar.archive.index import IndexedBlock
from sidecar.archive.reader import read_blocks, unpacked
from sidecar.errors import ArchiveDamaged
from tests.unit.test_reader import Archive, archive
from tests.unit.trees import build_zoo

__all__ = ["archive"]  # the fixture

Blocks = list[tuple[IndexedBlock, bytes]]


def blocks(whole: Archive) -> Blocks:
    found = []
    for each in read_blocks(whole.index):
        in_order(each)
        block = each.block
        found.append((each, unpacked(block, whole.data[block.offset : block.offset + block.length])))
    return found


def test_everything_that_a_file_system_can_hold_is_what_its_index_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_zoo(tmp_path / "zoo")
    zoo = blocks(Archive(tmp_path / "zoo", tmp_path / "archive", monkeypatch))
    assert len(zoo) > 20  # entries run through many blocks, and their heads over borders
    assert audit(zoo) == sum(len(each.files) for each, _ in zoo) > 150


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
    archive: Archive, damage: Callable[[Blocks], Blocks]
) -> None:
    whole = blocks(archive)
    assert audit(whole) == sum(len(each.files) for each, _ in whole)
    with pytest.raises(ArchiveDamaged):
        audit(damage(whole))


def test_any_header_byte_that_matters_shows(archive: Archive) -> None:
    whole = blocks(archive)
    (indexed, raw), *rest = whole
    at = indexed.files[0].at
    for position in (0, 3, 101, 109, 117, 125, 148, 156):  # name, mode, owner, group, size, checksum, type
        changed = bytearray(raw)
        changed[at + position] ^= 1
        with pytest.raises(ArchiveDamaged):
            audit([(indexed, bytes(changed)), *rest])
