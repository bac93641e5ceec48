"""Blocks of an archive back to their bytes of tar stream, each proven first."""

from __future__ import annotations

import gzip
import hashlib
import io

from isal import igzip, isal_zlib

from sidecar.archive.index import Block, read_index
from sidecar.archive.writer import GZIP
from sidecar.errors import ArchiveDamaged, SetInvalid

# A block is about 8 MiB of tar stream (docs/FORMAT.md). What claims to be far larger is no archive of ours.
MOST_RAW = 64 * 1024 * 1024
_HINT = "verify the set; another set, or another store's copy of it, may be whole"


def read_blocks(index: bytes) -> list[Block]:
    """The blocks that an index (the whole object) names, in order. Raises SetInvalid."""
    try:
        blocks = [each.block for each in read_index(igzip.IGzipFile(fileobj=io.BytesIO(index)))]
    except (EOFError, gzip.BadGzipFile, isal_zlib.error) as exc:  # type: ignore[misc]  # isal's stub gives no class
        raise SetInvalid(f"the index is not whole: {exc}", hint=_HINT) from exc
    for block in blocks:
        if not 0 < block.raw_length <= MOST_RAW or not 0 < block.length <= MOST_RAW:
            raise SetInvalid(f"the index claims a block of {block.raw_length} bytes at {block.offset}", hint=_HINT)
    return blocks


def unpacked(block: Block, data: bytes) -> bytes:
    """The tar stream's bytes of one block, of which `data` is what the store gave. Raises ArchiveDamaged."""
    if len(data) != block.length or hashlib.sha256(data).hexdigest() != block.sha256:
        raise ArchiveDamaged(f"the block at {block.offset} is not what was written: its SHA-256 is another", hint=_HINT)
    inflate = isal_zlib.decompressobj(GZIP)
    try:
        raw = inflate.decompress(data, block.raw_length + 1)
    except isal_zlib.error as exc:  # type: ignore[misc]  # as above
        raise ArchiveDamaged(f"the block at {block.offset} is no gzip: {exc}", hint=_HINT) from exc
    if len(raw) != block.raw_length or not inflate.eof or inflate.unused_data:
        raise ArchiveDamaged(
            f"the block at {block.offset} does not hold the {block.raw_length} bytes that the index claims", hint=_HINT
        )
    return bytes(raw)
