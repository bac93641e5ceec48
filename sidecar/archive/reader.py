"""An archive back to its tar stream: which pieces of which blocks, and each block's bytes, proven first."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from isal import igzip, isal_zlib

from sidecar.archive.audit import in_order
from sidecar.archive.entry import Kind
from sidecar.archive.index import (
    Block,
    FingerprintedBlock,
    IndexedBlock,
    read_block_sizes,
    read_fingerprints,
    read_index,
)
from sidecar.archive.member import GZIP
from sidecar.archive.records import END_OF_ARCHIVE
from sidecar.errors import ArchiveDamaged, SetInvalid

# A block is about 8 MiB of tar stream (docs/FORMAT.md). What claims to be far larger is no archive of ours.
MOST_RAW = 64 * 1024 * 1024
# A block's line: 16,384 entries at most, a row of which may be longer than its 512 bytes of tar stream.
_MOST_LINE = 128 * 1024 * 1024
_HINT = "verify the set; another set, or another store's copy of it, may be whole"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `end` of one block's tar stream."""

    block: Block
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Extract:
    """Entries of an archive: pieces of its tar stream in order, which `END_OF_ARCHIVE` has to end; files: how many.

    plain: it is known that none of them has extended attributes, ACLs among them.
    """

    pieces: tuple[Piece, ...]
    files: int
    plain: bool = False

    @property
    def length(self) -> int:
        """Bytes of tar stream, its end included."""
        return sum(piece.end - piece.start for piece in self.pieces) + len(END_OF_ARCHIVE)


def read_blocks(index: bytes) -> Iterator[IndexedBlock]:
    """The blocks that an index (the whole object) names, in order. Raises SetInvalid."""
    with _whole():
        for each in read_index(_lines(index)):
            _require_sane(each.block)
            yield each


def read_fingerprinted(index: bytes) -> Iterator[FingerprintedBlock]:
    """The same blocks, as a pool wants them. Raises SetInvalid."""
    with _whole():
        for each in read_fingerprints(_lines(index)):
            _require_sane(each.block)
            yield each


@contextmanager
def _whole() -> Iterator[None]:
    """Raises SetInvalid for an index that is no gzip, or is cut off."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, isal_zlib.error) as exc:  # type: ignore[misc]  # isal's stub gives no class
        raise SetInvalid(f"the index is not whole: {exc}", hint=_HINT) from exc


def _require_sane(block: Block) -> None:
    if not 0 < block.raw_length <= MOST_RAW or not 0 < block.length <= MOST_RAW:
        raise SetInvalid(f"the index claims a block of {block.raw_length} bytes at {block.offset}", hint=_HINT)


def _lines(index: bytes) -> Iterator[bytes]:
    """Lines of bounded length, however well they are compressed. Raises SetInvalid."""
    source = igzip.IGzipFile(fileobj=io.BytesIO(index))
    while line := source.readline(_MOST_LINE):
        if len(line) == _MOST_LINE:
            raise SetInvalid("the index has a line that is too long to be ours", hint=_HINT)
        yield line


def everything(index: bytes) -> Extract:
    """All entries of an archive. Raises SetInvalid."""
    pieces = []
    entries = 0
    plain = True
    with _whole():
        for block, files, attributed in read_block_sizes(_lines(index)):
            _require_sane(block)
            pieces.append(Piece(block, 0, block.raw_length))
            entries += files
            plain = plain and attributed == 0
    return Extract(_without_end(pieces, pieces[-1:]), entries, plain)


def matching(index: bytes, pattern: str) -> Extract:
    """The entries whose path, or that of a directory above them, matches the glob; and the directories above those.

    Of a hard link the entry that holds its data comes along. The volume's root does not. Raises SetInvalid,
    ArchiveDamaged.
    """
    wanted = _wanted(index, pattern)
    pieces: list[Piece] = []
    last: Piece | None = None
    files = 0
    goes_on = False  # the entry at the end of the block before is wanted
    for each in read_blocks(index):
        in_order(each)
        borders = [*(file.at for file in each.files), each.block.raw_length]
        if goes_on and each.continues and borders[0]:
            pieces.append(Piece(each.block, 0, borders[0]))
        for file, end in zip(each.files, borders[1:], strict=True):
            goes_on = file.path in wanted
            if goes_on:
                files += 1
                pieces.append(Piece(each.block, file.at, end))
        last = Piece(each.block, 0, each.block.raw_length)
    return Extract(_without_end(_joined(pieces), [last] if last else []), files)


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


def _wanted(index: bytes, pattern: str) -> set[bytes]:
    """The paths of `matching`."""
    pattern = pattern.removeprefix("./").strip("/")
    wanted: set[bytes] = set()
    for each in read_blocks(index):
        for file in each.files:
            if any(fnmatchcase(path.decode(errors="backslashreplace"), pattern) for path in _upwards(file.path)):
                wanted.add(file.path)
                if file.kind is Kind.HARD_LINK:
                    wanted.add(file.link)
    return {above for path in wanted for above in _upwards(path)}


def _upwards(path: bytes) -> Iterator[bytes]:
    """A path and the directories above it, without the root."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].block is piece.block and joined[-1].end == piece.start:
            joined[-1] = Piece(piece.block, joined[-1].start, piece.end)
        else:
            joined.append(piece)
    return joined


def _without_end(pieces: Sequence[Piece], last: Sequence[Piece]) -> tuple[Piece, ...]:
    """The pieces without the end of the archive, which lies at the end of its last block."""
    kept = []
    for piece in pieces:
        is_last = any(piece.block is each.block and piece.end == each.end for each in last)
        end = piece.end - len(END_OF_ARCHIVE) if is_last else piece.end
        kept.append(Piece(piece.block, piece.start, max(end, piece.start)))  # an empty one too: its block is proven
    return tuple(kept)
