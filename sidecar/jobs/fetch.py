"""An archive out of a store: several blocks at once, each proven against the index, the index against the manifest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from isal import isal_zlib

from sidecar.archive.index import Block
from sidecar.archive.reader import read_blocks, unpacked
from sidecar.errors import ArchiveDamaged
from sidecar.jobs.catalogue import read_document
from sidecar.sets import SetVolume
from sidecar.stores.port import Store, Stored

OTHER_COPY = "verify the set; another set, or another store's copy of it, may be whole"


class Fetched(NamedTuple):
    """A block's tar stream, proven; crc32: of the compressed bytes as the store gave them."""

    raw: bytes
    crc32: int


def raw_blocks(stored: SetVolume, store: Store, threads: int) -> Iterator[bytes]:
    """The tar stream, block by block, each proven against the index, and the index against the manifest.

    threads: downloads at once. Raises ArchiveDamaged, SetInvalid, StoreError.
    """
    blocks = [each.block for each in read_blocks(proven_index(stored, store))]
    archive = described_archive(stored, store, blocks)
    for fetched in proven_blocks(archive, blocks, store, threads):
        yield fetched.raw


def proven_index(stored: SetVolume, store: Store) -> bytes:
    """The index (the whole object), which has the manifest's size and CRC32. Raises ArchiveDamaged, StoreError."""
    index = read_document(store, stored.index.key)
    if (len(index), f"{isal_zlib.crc32(index):08x}") != (stored.index.size, stored.index.crc32):
        raise ArchiveDamaged(f"{store.location}/{stored.index.key} is not what was written", hint=OTHER_COPY)
    return index


def described_archive(stored: SetVolume, store: Store, blocks: Iterable[Block]) -> Stored:
    """The archive, which has the sizes that its index and the manifest tell. Raises ArchiveDamaged, StoreError."""
    length = raw_length = 0
    for block in blocks:
        length, raw_length = length + block.length, raw_length + block.raw_length
    archive = store.head(stored.archive.key)
    if (length, raw_length) != (stored.archive.size, stored.raw_bytes) or archive.size != stored.archive.size:
        raise ArchiveDamaged(
            f"{store.location}/{archive.key} has {archive.size} bytes, its index tells of {length}, "
            f"and the manifest of {stored.archive.size}",
            hint=OTHER_COPY,
        )
    return archive


def proven_blocks(archive: Stored, blocks: Iterable[Block], store: Store, threads: int) -> Iterator[Fetched]:
    """The blocks of an archive in order; at most `threads` + 1 are in memory.

    Raises ArchiveDamaged, and StoreError also when the object is replaced meanwhile.
    """

    def fetch(block: Block) -> Fetched:
        with store.open(archive.key, offset=block.offset, length=block.length, if_match=archive.entity) as source:
            data = b"".join(iter(lambda: source.read(block.length), b""))
        try:
            return Fetched(unpacked(block, data), isal_zlib.crc32(data))
        except ArchiveDamaged as error:
            error.message = f"{store.location}/{archive.key}: {error.message}"
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix="download") as pool:
        under_way: deque[Future[Fetched]] = deque()
        try:
            for block in blocks:
                under_way.append(pool.submit(fetch, block))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
