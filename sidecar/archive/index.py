"""The index of an archive: its blocks, and in each the files whose records begin there. Pure.

Gzipped JSON lines: a header, one line a block, a summary. A block's line stands for itself, so that the line of a block
that is reused can be taken over with another offset. docs/FORMAT.md is its specification.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sidecar.archive.blocks import BlockPlan
from sidecar.archive.entry import Entry, Kind, Signature
from sidecar.errors import SetInvalid

FORMAT = 1
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

    continues: the file that the block begins inside of, and its stored bytes before.
    """

    block: Block
    files: tuple[IndexedFile, ...]
    continues: tuple[bytes, int] | None


def header_line(volume: str, set_name: str) -> bytes:
    """The first line."""
    return _line({"format": FORMAT, "kind": "index", "volume": volume, "set": set_name, "columns": COLUMNS})


def block_line(block: Block, plan: BlockPlan) -> bytes:
    """The line of one block made after `plan`."""
    document: dict[str, Any] = {
        "offset": block.offset,
        "length": block.length,
        "raw_length": block.raw_length,
        "crc32": f"{block.crc32:08x}",
        "sha256": block.sha256,
        "files": [_row(entry, at) for entry, at in plan.entries],
    }
    if plan.continues is not None:
        document["continues"] = {"path": os.fsdecode(plan.continues.path), "stored": plan.continues.stored}
    return _line(document)


def summary_line(*, blocks: int, files: int, size: int, crc32: int, sockets: Iterable[bytes]) -> bytes:
    """The last line; without it the index is torn. Sockets are named here because no tar record can hold them."""
    return _line(
        {
            "blocks": blocks,
            "files": files,
            "size": size,
            "crc32": f"{crc32:08x}",
            "sockets": [os.fsdecode(path) for path in sockets],
        }
    )


def read_index(lines: Iterable[bytes]) -> Iterator[IndexedBlock]:
    """The blocks of an index. Raises SetInvalid for another format, a torn or an inconsistent index."""
    offset = count = 0
    summary: dict[str, Any] | None = None
    for number, line in enumerate(lines):
        try:
            document = json.loads(line)
            if number == 0:
                if document.get("format") != FORMAT or tuple(document["columns"]) != COLUMNS:
                    raise SetInvalid(f"the index has format {document.get('format')!r}", hint="use a newer version")
                continue
            if summary is not None:
                raise SetInvalid("the index goes on after its summary", hint="verify the set")
            if "blocks" in document:
                summary = document
                continue
            indexed = _block(document)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise SetInvalid(f"line {number + 1} of the index is damaged", hint="verify the set") from exc
        if indexed.block.offset != offset:
            raise SetInvalid(f"the index has a gap at {offset}", hint="verify the set")
        offset += indexed.block.length
        count += 1
        yield indexed
    if summary is None or summary["blocks"] != count or summary["size"] != offset:
        raise SetInvalid("the index is torn", hint="verify the set")


def _row(entry: Entry, at: int) -> list[Any]:
    row = [os.fsdecode(entry.path), entry.kind.value, *entry.signature[1:], entry.signature.ino, at]
    if entry.link:
        row.append(os.fsdecode(entry.link))
    return row


def _block(document: dict[str, Any]) -> IndexedBlock:
    continues = document.get("continues")
    return IndexedBlock(
        Block(
            document["offset"],
            document["length"],
            document["raw_length"],
            int(document["crc32"], 16),
            document["sha256"],
        ),
        tuple(_file(row) for row in document["files"]),
        (os.fsencode(continues["path"]), continues["stored"]) if continues else None,
    )


def _file(row: list[Any]) -> IndexedFile:
    path, kind, size, mode, uid, gid, mtime_ns, ctime_ns, ino, at, *link = row
    signature = Signature(ino, size, mode, uid, gid, mtime_ns, ctime_ns)
    return IndexedFile(os.fsencode(path), Kind(kind), signature, at, os.fsencode(link[0]) if link else b"")


def _line(document: dict[str, Any]) -> bytes:
    # Names that are not UTF-8 travel as lone surrogates (`\udcff`), which ASCII JSON can hold and Python reads back.
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
