"""One block compressed: a gzip member, with the checksums that its index and the stores want."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from isal import isal_zlib

GZIP = 31  # isal's and zlib's wbits for one gzip member with its header and trailer; MTIME stays 0


class Member(NamedTuple):
    """A gzip member. crc32, sha256 (hexadecimal): of its bytes."""

    data: bytes
    crc32: int
    sha256: str


def make_member(raw: bytearray | memoryview, level: int) -> Member:
    """Compress a block; level: ISA-L's, 0 to 3."""
    data = isal_zlib.compress(raw, level, GZIP)
    return Member(data, isal_zlib.crc32(data), hashlib.sha256(data).hexdigest())
