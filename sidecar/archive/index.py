"""The index of an archive: its blocks, and in each the files whose records begin there. Pure.

Gzipped JSON lines: a header, one line a block, a summary. A block's line stands for itself, so that the line of a block
that is reused can be taken over with another offset. docs/FORMAT.md is its specification.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from isal import isal_zlib

from sidecar.archive.blocks import BlockPlan
from sidecar.archive.entry import Entry, Fingerprint, Kind, Signature
from sidecar.errors import SetInvalid

FORMAT = 1
_OFFSET = b'{"offset":'
_DAMAGES = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_HASHES = 2**61 - 1  # of Python's, for numbers: from there on, one has the hash of a smaller one
_WIDEST = 2**96  # nanoseconds of a 64-bit time
_KINDS = {kind.value: kind for kind in Kind}
_Made = TypeVar("_Made")
COLUMNS = ("path", "type", "size", "mode", "uid", "gid", "mtime_ns", "ctime_ns", "ino", "at", "link")


class IndexedFile(NamedTuple):
    """One entry of the archive. at: where its records begin in the raw block. link as in Entry."""

    path: bytes
    kind: Kind
    signature: Signature
    at: int
    link: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """One gzip member of the archive, in bytes. sha256: hexadecimal, crc32: of the compressed bytes."""

    offset: int
    length: int
    raw_length: int
    crc32: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexedBlock:
    """A block with the files that begin in it.

    continues: the file that the block begins inside of, and its stored bytes before. data_crc32: of each file's data;
    only of a block whose files were all settled when they were read, so that their signatures can be trusted.
    attributed: how many entries have extended attributes, ACLs among them; None in an older index.
    """

    block: Block
    files: tuple[IndexedFile, ...]
    continues: tuple[bytes, int] | None
    data_crc32: tuple[int, ...] | None = None
    attributed: int | None = None


class FingerprintedBlock(NamedTuple):
    """A block with its line, and a fingerprint for each file that begins in it instead of all that is known of it.

    continues: whether the block begins inside of a file. fingerprints, data_crc32: None where not all of the files were
    settled when they were read, so that their signatures tell nothing.
    """

    block: Block
    line: bytes
    continues: bool
    fingerprints: tuple[Fingerprint, ...] | None
    data_crc32: tuple[int, ...] | None


class BlockSize(NamedTuple):
    """A block, how many entries begin in it, and how many of those have extended attributes, as IndexedBlock has it."""

    block: Block
    files: int
    attributed: int | None


def header_line(volume: str, set_name: str) -> bytes:
    """The first line."""
    return _line({"format": FORMAT, "kind": "index", "volume": volume, "set": set_name, "columns": COLUMNS})


def block_line(block: Block, plan: BlockPlan, data_crc32: Iterable[int] | None = None) -> bytes:
    """The line of one block made after `plan`. data_crc32: as in IndexedBlock."""
    document: dict[str, Any] = {
        "offset": block.offset,
        "length": block.length,
        "raw_length": block.raw_length,
        "crc32": f"{block.crc32:08x}",
        "sha256": block.sha256,
        "files": [_row(entry, at) for entry, at in plan.entries],
        "attributed": sum(bool(entry.attributes) for entry, _ in plan.entries),
    }
    if plan.continues is not None:
        document["continues"] = {"path": _text(plan.continues.path), "stored": plan.continues.stored}
    if data_crc32 is not None:
        document["data_crc32"] = [f"{each:08x}" for each in data_crc32]
    return _line(document)


def moved_line(line: bytes, offset: int) -> bytes:
    """The line of the same block in another archive, where it begins at `offset`."""
    if not line.startswith(_OFFSET):
        raise ValueError("a block's line begins with its offset")
    return b"%s%d%s" % (_OFFSET, offset, line[line.index(b",") :])


def combined_crc32(blocks: Iterable[Block]) -> int:
    """CRC32 of the compressed bytes of blocks that follow one another."""
    crc32 = 0
    for block in blocks:
        crc32 = isal_zlib.crc32_combine(crc32, block.crc32, block.length)
    return crc32


def summary_line(*, blocks: int, files: int, size: int, crc32: int, sockets: Iterable[bytes]) -> bytes:
    """The last line; without it the index is torn. Sockets are named here because no tar record can hold them."""
    return _line(
        {
            "blocks": blocks,
            "files": files,
            "size": size,
            "crc32": f"{crc32:08x}",
            "sockets": [_text(path) for path in sockets],
        }
    )


def read_line(line: bytes) -> IndexedBlock:
    """The block of one line. Raises SetInvalid."""
    try:
        document = json.loads(line)
        return _indexed(_block(document), document)
    except _DAMAGES as exc:
        raise SetInvalid("a line of the index is damaged", hint="verify the set") from exc


def read_index(lines: Iterable[bytes]) -> Iterator[IndexedBlock]:
    """The blocks of an index. Raises SetInvalid for another format, a torn or an inconsistent index.

    A torn one is known at its end only: until the iteration is over, its blocks are hearsay.
    """
    return _read(lines, lambda _, block, document: _indexed(block, document))


def read_fingerprints(lines: Iterable[bytes]) -> Iterator[FingerprintedBlock]:
    """The blocks of an index, as a pool wants them: 2 µs a file, not 4. Otherwise as `read_index`.

    A settled block's line may be taken over into another index, and is refused where `read_line` would refuse it. Of
    files that were not settled nothing is looked at.
    """
    return _read(lines, _fingerprinted)


def read_block_sizes(lines: Iterable[bytes]) -> Iterator[BlockSize]:
    """The blocks of an index. Otherwise as `read_index`; but of a file only its names are looked at: 1 µs, not 4."""
    return _read(lines, lambda _, block, document: BlockSize(block, _count(document["files"]), _attributed(document)))


def _read(lines: Iterable[bytes], make: Callable[[bytes, Block, dict[str, Any]], _Made]) -> Iterator[_Made]:
    """What `make` makes of each block's line."""
    offset = blocks = files = 0
    summary: tuple[int, int, int] | None = None
    for number, line in enumerate(lines):
        try:
            document = json.loads(line)
            if number == 0:
                if document["format"] != FORMAT or tuple(document["columns"]) != COLUMNS:
                    raise SetInvalid(
                        f"the index has format {document['format']!r}, and this version reads {FORMAT}",
                        hint="use the version that wrote it, or a newer one",
                    )
                continue
            if summary is not None:
                raise SetInvalid("the index goes on after its summary", hint="verify the set")
            if "blocks" in document:
                summary = (document["blocks"], document["files"], document["size"])
                continue
            block = _block(document)
            made = make(line, block, document)
            files += len(document["files"])
        except _DAMAGES as exc:
            raise SetInvalid(f"line {number + 1} of the index is damaged", hint="verify the set") from exc
        if block.offset != offset:
            raise SetInvalid(f"the index has a gap at {offset}", hint="verify the set")
        offset += block.length
        blocks += 1
        yield made
    if summary != (blocks, files, offset):
        raise SetInvalid("the index is torn", hint="verify the set")


def _row(entry: Entry, at: int) -> list[Any]:
    row = [_text(entry.path), entry.kind.value, *entry.signature[1:], entry.signature.ino, at]
    if entry.link:
        row.append(_text(entry.link))
    return row


def _block(document: dict[str, Any]) -> Block:
    return Block(
        _number(document["offset"]),
        _number(document["length"]),
        _number(document["raw_length"]),
        int(document["crc32"], 16),
        _hash(document["sha256"]),
    )


def _indexed(block: Block, document: dict[str, Any]) -> IndexedBlock:
    return IndexedBlock(
        block,
        tuple(_file(row) for row in document["files"]),
        _continues(document),
        _data_crc32(document),
        _attributed(document),
    )


def _fingerprinted(line: bytes, block: Block, document: dict[str, Any]) -> FingerprintedBlock:
    data_crc32 = _data_crc32(document)
    continues = _continues(document) is not None
    if data_crc32 is None:
        return FingerprintedBlock(block, line, continues, None, None)
    _attributed(document)
    if not line.startswith(_OFFSET) or not (data_crc32 or continues):
        raise ValueError("a block that no pool has made")
    fingerprints = []
    for row in document["files"]:
        path, kind, size, mode, uid, gid, mtime_ns, ctime_ns, ino, at = row
        numbers = row[2:]
        if (
            kind != Kind.FILE
            or {*map(type, numbers)} != {int}
            or not -(2**63) <= min(numbers) <= max(numbers) < 2**64
            or not 0 <= size < _HASHES
            or not 0 <= at < block.raw_length
        ):
            raise ValueError(f"{row!r} is not a settled file")
        if path.startswith("/") or ".." in path:
            _must_stay_inside(_bytes(path))
        # As `fingerprint` has it, without making a signature.
        fingerprints.append(hash((_bytes(path), ino, size, mode, uid, gid, mtime_ns, ctime_ns)))
    return FingerprintedBlock(block, line, continues, tuple(fingerprints), data_crc32)


def _continues(document: dict[str, Any]) -> tuple[bytes, int] | None:
    continues = document.get("continues")
    return (_bytes(continues["path"]), _number(continues["stored"])) if continues else None


def _attributed(document: dict[str, Any]) -> int | None:
    return _number(document["attributed"]) if "attributed" in document else None


def _count(rows: list[list[Any]]) -> int:
    """How many there are. Raises SetInvalid for one that leads out of the volume, ValueError for what is no row."""
    for row in rows:
        path, kind, last = row[0], row[1], row[-1]
        if len(row) not in (len(COLUMNS) - 1, len(COLUMNS)) or {*map(type, row[2:10])} != {int}:
            raise ValueError(f"{row!r} holds no numbers")
        for name in (path, last) if kind == Kind.HARD_LINK else (path,):
            if name.startswith("/") or ".." in name:
                _must_stay_inside(_bytes(name))
    return len(rows)


def _data_crc32(document: dict[str, Any]) -> tuple[int, ...] | None:
    found = document.get("data_crc32")
    if found is None:
        return None
    if len(found) != len(document["files"]):
        raise ValueError("data_crc32 is not one for each file")
    return tuple(int(each, 16) for each in found)


def _file(row: list[Any]) -> IndexedFile:
    path, kind, size, mode, uid, gid, mtime_ns, ctime_ns, ino, at, *link = row
    numbers = row[2:10]
    if {*map(type, numbers)} != {int} or not -_WIDEST < min(numbers) <= max(numbers) < _WIDEST:
        raise ValueError(f"{row!r} holds no numbers")
    signature = Signature(ino, size, mode, uid, gid, mtime_ns, ctime_ns)
    file = IndexedFile(_bytes(path), _KINDS[kind], signature, at, _bytes(link[0]) if link else b"")
    _must_stay_inside(file.path)
    if file.kind is Kind.HARD_LINK:
        _must_stay_inside(file.link)
    return file


def _must_stay_inside(path: bytes) -> None:
    """No walk over a volume finds such a path: whoever wrote it wants to get at something else. Raises SetInvalid."""
    if path.startswith(b"/") or (b".." in path and b".." in path.split(b"/")):
        raise SetInvalid(f"the index names {path!r}, which leads out of the volume", hint="do not trust this set")


def _hash(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a hash")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a count of bytes")
    return value


def _text(name: bytes) -> str:
    """A name as JSON holds it: bytes that are not UTF-8 travel as lone surrogates (U+DC80 and up), in any locale."""
    return name.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
