"""From a store to a volume's tar stream: several ranges at once, each block proven, in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from isal import isal_zlib

from sidecar.archive.index import Block
from sidecar.archive.reader import Extract, Piece, read_blocks, unpacked
from sidecar.archive.records import END_OF_ARCHIVE
from sidecar.errors import ArchiveDamaged
from sidecar.jobs.catalogue import read_document
from sidecar.sets import SetVolume
from sidecar.stores.port import Store, Stored

_OTHER_COPY = "verify the set; another set, or another store's copy of it, may be whole"


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive in a store, with what is wanted of it."""

    store: Store
    stored: Stored
    extract: Extract


class Fetched(NamedTuple):
    """A block's tar stream, proven; crc32: of the compressed bytes as the store gave them."""

    raw: bytes
    crc32: int


def find_archive(store: Store, volume: SetVolume, wanted: Callable[[bytes], Extract]) -> Archive:
    """A volume's archive, once its index agrees with the manifest, and its length with both.

    wanted: says of an index (the whole object) what to take. Raises ArchiveDamaged, SetInvalid, StoreError.
    """
    index = proven_index(store, volume)
    extract = wanted(index)
    blocks: Iterable[Block] = [piece.block for piece in extract.pieces]
    if sum(block.length for block in blocks) != volume.archive.size:  # not all of it is wanted
        blocks = (each.block for each in read_blocks(index))
    return Archive(store, described_archive(store, volume, blocks), extract)


def proven_index(store: Store, volume: SetVolume) -> bytes:
    """The index (the whole object), which has the manifest's size and CRC32. Raises ArchiveDamaged, StoreError."""
    index = read_document(store, volume.index.key)
    if (len(index), f"{isal_zlib.crc32(index):08x}") != (volume.index.size, volume.index.crc32):
        raise ArchiveDamaged(f"{store.location}/{volume.index.key} is not what was written", hint=_OTHER_COPY)
    return index


def described_archive(store: Store, volume: SetVolume, blocks: Iterable[Block]) -> Stored:
    """The archive, which has the lengths that the index's blocks and the manifest tell.

    Raises ArchiveDamaged, SetInvalid, StoreError.
    """
    length = raw_length = 0
    for block in blocks:
        length += block.length
        raw_length += block.raw_length
    stored = store.head(volume.archive.key)
    if (length, raw_length) != (volume.archive.size, volume.raw_bytes) or stored.size != volume.archive.size:
        raise ArchiveDamaged(
            f"{store.location}/{stored.key} has {stored.size} bytes, its index tells of {length}, "
            f"and the manifest of {volume.archive.size}",
            hint=_OTHER_COPY,
        )
    return stored


@contextmanager
def tar_stream(archive: Archive, *, threads: int) -> Iterator[Iterator[bytes]]:
    """The tar stream of what is wanted, its end included. At most `threads` + 1 blocks are in memory.

    The first of them are on their way when this is entered. Iterating raises ArchiveDamaged, StoreError.
    """
    blocks = (pieces[0].block for pieces in _by_block(archive.extract.pieces))
    with proven_blocks(archive.store, archive.stored, blocks, threads=threads) as fetched:
        yield _stream(archive.extract, fetched)


def _stream(extract: Extract, fetched: Iterator[Fetched]) -> Iterator[bytes]:
    for pieces, (raw, _) in zip(_by_block(extract.pieces), fetched, strict=True):
        whole = len(pieces) == 1 and (pieces[0].start, pieces[0].end) == (0, len(raw))
        yield raw if whole else b"".join(raw[piece.start : piece.end] for piece in pieces)
    yield END_OF_ARCHIVE


@contextmanager
def proven_blocks(
    store: Store, stored: Stored, blocks: Iterable[Block], *, threads: int
) -> Iterator[Iterator[Fetched]]:
    """Blocks of an archive, in their order; at most `threads` + 1 are in memory.

    The first of them are on their way when this is entered, and none is when it is left. Iterating raises
    ArchiveDamaged, and StoreError, also when the object is replaced meanwhile.
    """
    waiting = iter(blocks)
    under_way: deque[Future[Fetched]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="download") as pool:

        def begin(most: int) -> None:
            under_way.extend(pool.submit(_fetch, store, stored, block) for block in islice(waiting, most))

        def ended() -> Iterator[Fetched]:
            while under_way:
                begin(1)
                yield under_way.popleft().result()

        begin(threads)
        try:
            yield ended()
        finally:
            for future in under_way:
                future.cancel()


def _by_block(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces that follow one another in one block, which is fetched once for all of them."""
    together: list[Piece] = []
    for piece in pieces:
        if together and together[-1].block is not piece.block:
            yield together
            together = []
        together.append(piece)
    if together:
        yield together


def _fetch(store: Store, stored: Stored, block: Block) -> Fetched:
    with store.open(stored.key, offset=block.offset, length=block.length, if_match=stored.entity) as source:
        data = b"".join(iter(lambda: source.read(block.length), b""))
    try:
        return Fetched(unpacked(block, data), isal_zlib.crc32(data))
    except ArchiveDamaged as error:
        error.message = f"{store.location}/{stored.key}: {error.message}"
        raise
