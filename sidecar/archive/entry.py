"""One directory entry of a volume as it was at the frozen instant. Pure."""

from __future__ import annotations

import stat
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What an entry is. The letters stand in the index."""

    FILE = "file"
    HARD_LINK = "hardlink"
    SYMLINK = "symlink"
    FIFO = "fifo"
    CHARACTER_DEVICE = "char"
    BLOCK_DEVICE = "block"
    DIRECTORY = "dir"
    SOCKET = "socket"  # recorded in the index; no tar record exists for it


_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFSOCK: Kind.SOCKET,
}


def kind_of(mode: int) -> Kind:
    """The kind that `st_mode` says; hard links are told apart by the walk."""
    return _KINDS[stat.S_IFMT(mode)]


class Signature(NamedTuple):
    """What must be equal for a file to count as unchanged: bytes, bits, ids and nanoseconds of lstat(2)."""

    ino: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int


Fingerprint = int


def fingerprint(path: bytes, signature: Signature) -> Fingerprint:
    """A number that stands for a file as it is, in this process.

    Python's hash of tuples, because it costs a third of any other here, inside the freeze. Two numbers are different
    for certain if only the last time stamp is (within 73 years), and else but for one chance in 2**61.
    """
    return hash((path, *signature))


class Extent(NamedTuple):
    """`length` bytes of a file from `offset`; what no extent covers is a hole."""

    offset: int
    length: int


class Range(NamedTuple):
    """`length` bytes of the spool from `position`."""

    position: int
    length: int


class Entry(NamedTuple):
    """One entry. A NamedTuple because a million are made inside a freeze.

    path: relative to the volume, no leading `./`; the volume's root is b"". link: a symlink's target or the path that a
    hard link repeats. attributes: extended attributes as (name, value), ACLs among them. device: (major, minor).
    extents: the data of a regular file in file order; None means all of it. position: where the data lies in the spool,
    the extents one after another; ranges: where it lies instead, in this order, if not in one piece.
    """

    path: bytes
    kind: Kind
    signature: Signature
    link: bytes = b""
    attributes: tuple[tuple[bytes, bytes], ...] = ()
    device: tuple[int, int] = (0, 0)
    extents: tuple[Extent, ...] | None = None
    position: int = 0
    ranges: tuple[Range, ...] = ()

    @property
    def data_length(self) -> int:
        """Bytes of data of a regular file, holes left out."""
        if self.kind is not Kind.FILE:
            return 0
        if self.extents is None:
            return self.signature.size
        return sum(extent.length for extent in self.extents)

    @property
    def spooled(self) -> tuple[Range, ...]:
        """Where the data of a regular file lies in the spool, one range after another."""
        return self.ranges or (Range(self.position, self.data_length),)
