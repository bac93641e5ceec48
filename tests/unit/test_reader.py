"""Parts of an archive, by its index: what a glob takes out is what GNU tar takes out of the whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.archive import writer
from sidecar.archive.blocks import plan_blocks
from sidecar.archive.capture import capture, measure
from sidecar.archive.copies import Copies
from sidecar.archive.index import COLUMNS, Block
from sidecar.archive.reader import Extract, everything, matching, read_blocks, unpacked
from sidecar.archive.records import END_OF_ARCHIVE
from sidecar.archive.spool import SpoolSpace
from sidecar.errors import ArchiveDamaged, SetInvalid


class Archive:
    """A tree, its archive and its index; small blocks, so that there are many."""

    def __init__(self, tree: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, target: int = 4096) -> None:
        monkeypatch.setattr(writer, "plan_blocks", lambda entries: plan_blocks(entries, target=target))
        directory.mkdir(exist_ok=True)
        blocks: list[bytes] = []
        with SpoolSpace(directory / "spool").new("v") as spool:
            spool.reserve(measure(str(tree))[1])
            captured = capture(str(tree), Copies(spool), lambda: None, lambda _: None)
            writer.write_archive(
                captured,
                lambda block, _: blocks.append(block),
                directory / "index",
                volume="v",
                set_name="s",
                level=1,
                threads=1,
                check=lambda: None,
            )
        self.data = b"".join(blocks)
        self.index = (directory / "index").read_bytes()

    def stream(self, extract: Extract) -> bytes:
        pieces = []
        for piece in extract.pieces:
            block = piece.block
            pieces.append(
                unpacked(block, self.data[block.offset : block.offset + block.length])[piece.start : piece.end]
            )
        return b"".join(pieces) + END_OF_ARCHIVE


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    tree = tmp_path / "tree"
    chance = random.Random(3)
    for name in ("a/one.txt", "a/b/two.txt", "a/b/large.bin", "c/three.txt", "top.txt", "a/empty"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        size = 50_000 if "large" in name else 0 if "empty" in name else 700
        (tree / name).write_bytes(chance.randbytes(size))
    os.link(tree / "a" / "one.txt", tree / "c" / "hard")
    (tree / "c" / "soft").symlink_to("../top.txt")
    (tree / "c" / "out").symlink_to("/etc")
    with (tree / "c" / "holes").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(500_000)
        file.write(b"data" * 100)
    return Archive(tree, tmp_path / "archive", monkeypatch)


def names(stream: bytes) -> set[str]:
    listed = subprocess.run(["tar", "-tf", "-"], input=stream, capture_output=True, check=True)
    assert listed.stderr == b""
    return {name.removeprefix("./").rstrip("/") for name in listed.stdout.decode().splitlines()}


def test_everything_is_the_whole_tar_stream(archive: Archive) -> None:
    extract = everything(archive.index)
    stream = archive.stream(extract)
    whole = subprocess.run(["zcat"], input=archive.data, capture_output=True, check=True).stdout
    assert stream == whole
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert (extract.length, extract.files) == (len(whole), len(tar.getmembers()))


def test_an_archive_is_plain_where_its_index_says_of_every_block_that_nothing_has_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"data")
    assert everything(Archive(tree, tmp_path / "one", monkeypatch).index).plain
    os.setxattr(tree / "file", "user.colour", b"blue")
    index = Archive(tree, tmp_path / "other", monkeypatch).index
    assert not everything(index).plain
    older = gzip.decompress(index).replace(b',"attributed":1', b"").replace(b',"attributed":0', b"")
    assert not everything(gzip.compress(older)).plain
    assert not matching(index, "file").plain


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("top.txt", {"top.txt"}),
        ("./top.txt", {"top.txt"}),
        ("a/b", {"a", "a/b", "a/b/two.txt", "a/b/large.bin"}),
        ("a/b/", {"a", "a/b", "a/b/two.txt", "a/b/large.bin"}),
        ("a/b/large.bin", {"a", "a/b", "a/b/large.bin"}),
        ("*/two.txt", {"a", "a/b", "a/b/two.txt"}),
        ("c/holes", {"c", "c/holes"}),
        ("c/out", {"c", "c/out"}),
        ("*.txt", {"a", "a/one.txt", "a/b", "a/b/two.txt", "c", "c/three.txt", "top.txt"}),
        ("nothing", set()),
    ],
)
def test_a_glob_takes_out_what_it_names_and_the_directories_above(
    archive: Archive, pattern: str, wanted: set[str]
) -> None:
    extract = matching(archive.index, pattern)
    stream = archive.stream(extract)
    assert names(stream) == wanted
    assert len(stream) == extract.length
    whole = archive.stream(everything(archive.index))
    for name in wanted:
        assert one(stream, name) == one(whole, name)


def test_brackets_of_a_name_are_written_in_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "photos[br]").mkdir(parents=True)
    (tmp_path / "tree" / "photos[br]" / "one").touch()
    archive = Archive(tmp_path / "tree", tmp_path / "archive", monkeypatch)
    assert names(archive.stream(matching(archive.index, "photos[[]br]"))) == {"photos[br]", "photos[br]/one"}
    assert not matching(archive.index, "photos[br]").files


def one(stream: bytes, name: str) -> tuple[object, ...]:
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        member = tar.getmember("./" + name)
        content = tar.extractfile(member) if member.isreg() else None
        return member.type, member.mode, member.uid, member.mtime, member.linkname, content.read() if content else None


def test_a_hard_link_brings_the_entry_that_holds_its_data(archive: Archive) -> None:
    for name in ("a/one.txt", "c/hard"):
        found = names(archive.stream(matching(archive.index, name)))
        assert name in found
        with tarfile.open(fileobj=io.BytesIO(archive.stream(matching(archive.index, name)))) as tar:
            content = tar.extractfile("./" + name)
            assert content is not None
            assert len(content.read()) == 700


def test_a_small_file_of_a_large_archive_needs_the_blocks_that_it_lies_in_and_no_others(archive: Archive) -> None:
    assert len(everything(archive.index).pieces) > 10
    lies = {
        each.block.offset
        for each in read_blocks(archive.index)
        if b"top.txt" in [file.path for file in each.files] or (each.continues and each.continues[0] == b"top.txt")
    }
    assert {piece.block.offset for piece in matching(archive.index, "top.txt").pieces} == lies
    assert len(lies) <= 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 9_000), min_size=1, max_size=12),
    target=st.sampled_from([512, 1024, 4096, 20_000]),
    chosen=st.integers(0, 11),
)
def test_any_file_comes_out_of_any_archive_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], target: int, chosen: int
) -> None:
    directory = tmp_path_factory.mktemp("any")
    tree = directory / "tree"
    chance = random.Random(len(sizes))
    contents = {}
    for number, size in enumerate(sizes):
        path = tree / f"d{number % 3}" / f"file{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        contents[f"d{number % 3}/file{number:02d}"] = chance.randbytes(size)
        path.write_bytes(contents[f"d{number % 3}/file{number:02d}"])
    with pytest.MonkeyPatch.context() as patch:
        archive = Archive(tree, directory / "archive", patch, target)
    name = sorted(contents)[chosen % len(contents)]
    stream = archive.stream(matching(archive.index, name))
    assert names(stream) == {name, name.partition("/")[0]}
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        content = tar.extractfile("./" + name)
        assert content is not None
        assert content.read() == contents[name]


# --- what is no archive of ours --------------------------------------------------------------------------------------


def test_a_block_is_refused_for_one_flipped_bit_and_for_what_the_index_does_not_claim(archive: Archive) -> None:
    block = next(read_blocks(archive.index)).block
    data = bytearray(archive.data[block.offset : block.offset + block.length])
    data[len(data) // 2] ^= 1
    with pytest.raises(ArchiveDamaged, match="SHA-256"):
        unpacked(block, bytes(data))
    with pytest.raises(ArchiveDamaged, match="SHA-256"):
        unpacked(block, bytes(data[:-1]))


def test_a_gzip_bomb_is_cut_off_where_the_index_says_that_it_ends() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(bytes(200 << 20)) + packer.flush()
    block = Block(0, len(bomb), 8 << 20, zlib.crc32(bomb), hashlib.sha256(bomb).hexdigest())
    with pytest.raises(ArchiveDamaged, match="does not hold the 8388608 bytes"):
        unpacked(block, bomb)


@pytest.mark.parametrize("claim", [0, 65 << 20, 1 << 40])
def test_an_index_that_claims_what_no_block_holds_is_refused(claim: int) -> None:
    header = {"format": 1, "kind": "index", "volume": "v", "set": "s", "columns": COLUMNS}
    block = {"offset": 0, "length": 10, "raw_length": claim, "crc32": "0", "sha256": "x", "files": []}
    index = gzip.compress(b"".join(json.dumps(each).encode() + b"\n" for each in (header, block)))
    with pytest.raises(SetInvalid, match="claims a block"):
        everything(index)
    with pytest.raises(SetInvalid):
        everything(index[:-9])


@pytest.mark.parametrize(
    ("path", "kind", "link"),
    [("../out", "file", None), ("a/../../out", "dir", None), ("/etc/out", "file", None), ("in", "hardlink", "../out")],
)
def test_an_index_that_leads_out_of_the_volume_is_refused_whatever_is_wanted_of_it(
    path: str, kind: str, link: str | None
) -> None:
    header = {"format": 1, "kind": "index", "volume": "v", "set": "s", "columns": COLUMNS}
    row = [path, kind, 0, 0o644, 0, 0, 0, 0, 1, 0, *([link] if link else [])]
    block = {"offset": 0, "length": 10, "raw_length": 512, "crc32": "0", "sha256": "x", "files": [row]}
    index = gzip.compress(b"".join(json.dumps(each).encode() + b"\n" for each in (header, block)))
    with pytest.raises(SetInvalid, match="leads out of the volume"):
        everything(index)
    with pytest.raises(SetInvalid, match="leads out of the volume"):
        matching(index, "*")


@pytest.mark.parametrize("row", [[], ["a"], ["a", "file", *[0] * 7], ["a", "file", *[0] * 10], {"": 1}])
def test_an_index_whose_rows_are_no_rows_is_refused_whatever_is_wanted_of_it(row: object) -> None:
    header = {"format": 1, "kind": "index", "volume": "v", "set": "s", "columns": COLUMNS}
    block = {"offset": 0, "length": 10, "raw_length": 512, "crc32": "0", "sha256": "x", "files": [row]}
    index = gzip.compress(b"".join(json.dumps(each).encode() + b"\n" for each in (header, block)))
    with pytest.raises(SetInvalid, match="is damaged"):
        everything(index)
