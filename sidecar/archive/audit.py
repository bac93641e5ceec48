"""Whether an archive holds the entries that its index names, by another reader than our own code: Python's tarfile.

The blocks' checksums prove that the bytes are those that were written; this, that what was written is what the index
says. Hard links, long names, holes and all are read as anybody who restores the archive will read them.
"""

from __future__ import annotations

import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple, cast

from sidecar.archive.entry import Kind
from sidecar.archive.index import IndexedBlock, IndexedFile
from sidecar.archive.records import END_OF_ARCHIVE, RECORD
from sidecar.errors import ArchiveDamaged

_HINT = "another set, or another store's copy of it, may be whole; please report it, with the log of that run"
_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.FIFOTYPE: Kind.FIFO,
    tarfile.CHRTYPE: Kind.CHARACTER_DEVICE,
    tarfile.BLKTYPE: Kind.BLOCK_DEVICE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
}


def in_order(indexed: IndexedBlock) -> None:
    """A block's entries begin one behind the other, and inside of it. Raises ArchiveDamaged."""
    places = [file.at for file in indexed.files]
    whole = all(isinstance(at, int) and 0 <= at < indexed.block.raw_length for at in places)
    if not whole or any(one >= other for one, other in pairwise(places)):
        raise ArchiveDamaged(f"the index has entries out of order in the block at {indexed.block.offset}", hint=_HINT)


def audit(blocks: Iterable[tuple[IndexedBlock, bytes]]) -> int:
    """Compare the entries of a tar stream, given by its blocks, with what the index says of each block; how many.

    Each entry's place, name, type, target, size of data, mode and owner are compared, and whether it may have extended
    attributes; and no file may follow a link, because it could be one to be written through. One block is in memory,
    and the entries that begin in it. Raises ArchiveDamaged with the first difference, and what `blocks` raises.
    """
    stream = _Stream(iter(blocks))
    count = 0
    only_files = True
    try:
        with tarfile.open(
            fileobj=cast(Any, stream),  # it reads forward, which is all that is asked of it here
            mode="r:",
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            members: list[tarfile.TarInfo] = vars(tar)["members"]
            while (member := tar.next()) is not None:
                members.clear()  # it would keep a million of them
                _compare(member, stream)
                if member.isreg() and not only_files:
                    raise ArchiveDamaged(
                        f"file {_shown(_path(member.name))} comes behind links or directories",
                        hint=_HINT,
                    )
                only_files = member.isreg()
                count += 1
            end = tar.offset
    except (tarfile.TarError, ValueError, LookupError, TypeError, EOFError, OverflowError) as exc:
        raise ArchiveDamaged(f"behind entry {count} the tar stream cannot be read: {exc}", hint=_HINT) from exc
    if stream.last + stream.rest() != END_OF_ARCHIVE:
        raise ArchiveDamaged(f"the tar stream goes wrong at {end}, behind entry {count}", hint=_HINT)
    if stream.expected:
        _, first, _ = stream.expected[0]
        raise ArchiveDamaged(f"the index names {_shown(first.path)}, which the archive does not hold", hint=_HINT)
    return count


class _Seen(NamedTuple):
    """What both can say of an entry."""

    at: int
    path: bytes
    kind: Kind | None
    link: bytes
    size: int
    mode: int
    uid: int
    gid: int


def _compare(member: tarfile.TarInfo, stream: _Stream) -> None:
    found = _found(member)
    if not stream.expected:
        raise ArchiveDamaged(f"the archive holds {_shown(found.path)}, which the index does not name", hint=_HINT)
    at, file, plain = stream.expected.popleft()
    if plain and any(keyword.startswith("SCHILY.") for keyword in member.pax_headers):
        raise ArchiveDamaged(
            f"entry {_shown(found.path)} has extended attributes, and its block has none by the index", hint=_HINT
        )
    named = _named(at, file)
    for what, one, other in zip(_Seen._fields, found, named, strict=True):
        if one != other:
            raise ArchiveDamaged(
                f"entry {_shown(found.path)} has {what} {_shown(one)} in the archive, and {_shown(other)} in the index",
                hint=_HINT,
            )


def _found(member: tarfile.TarInfo) -> _Seen:
    kind = _KINDS.get(member.type)
    link = _path(member.linkname) if kind is Kind.HARD_LINK else member.linkname.encode("utf-8", "surrogateescape")
    size = member.size if kind is Kind.FILE else 0
    return _Seen(member.offset, _path(member.name), kind, link, size, member.mode & 0o7777, member.uid, member.gid)


def _named(at: int, file: IndexedFile) -> _Seen:
    signature = file.signature
    size = signature.size if file.kind is Kind.FILE else 0
    return _Seen(at, file.path, file.kind, file.link, size, signature.mode & 0o7777, signature.uid, signature.gid)


def _path(name: str) -> bytes:
    """As the index has it: without `./`, the root empty."""
    path = name.encode("utf-8", "surrogateescape")
    return b"" if path in (b".", b"./") else path.removeprefix(b"./")


def _shown(value: object) -> str:
    return repr(value)[1:] if isinstance(value, bytes) else str(value)


class _Stream:
    """Blocks as one file that is read forward.

    expected: entries of the blocks met so far, each with its place, and whether its block is one without attributes.

    last: what the last `read` gave.
    """

    def __init__(self, blocks: Iterator[tuple[IndexedBlock, bytes]]) -> None:
        self._blocks = blocks
        self._raw = memoryview(b"")
        self._start = 0  # of `_raw` in the stream
        self._at = 0  # in `_raw`
        self.expected: deque[tuple[int, IndexedFile, bool]] = deque()
        self.last = b""

    def tell(self) -> int:
        return self._start + self._at

    def seek(self, position: int) -> int:
        """Forward only; at the end it stays there."""
        if position < self.tell():
            raise ValueError(f"an entry begins before the end of another, at {position}")
        while position > self._start + len(self._raw) and self._next():
            pass
        self._at = min(position - self._start, len(self._raw))
        return self.tell()

    def read(self, size: int) -> bytes:
        pieces = []
        while size:
            if self._at == len(self._raw) and not self._next():
                break
            piece = bytes(self._raw[self._at : self._at + size])
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        self.last = b"".join(pieces)
        return self.last

    def rest(self) -> bytes:
        """What is left; cut off where it is more than could ever be right."""
        left = b""
        while len(left) <= len(END_OF_ARCHIVE) and (piece := self.read(RECORD)):
            left += piece
        while self._next():  # to see which entries the index names there
            pass
        return left

    def _next(self) -> bool:
        following = next(self._blocks, None)
        if following is None:
            return False
        indexed, raw = following
        self._start += len(self._raw)
        self._raw, self._at = memoryview(raw), 0
        plain = indexed.attributed == 0
        self.expected.extend((self._start + file.at, file, plain) for file in indexed.files)
        return True
