"""Tar records of one entry: POSIX's pax interchange format as GNU tar, bsdtar and Python read it. Pure.

A record is `[extended header, its data,] header, data, padding`; this module makes all but the data. Our own code and
not `tarfile` because it costs half the time for each small file, and writes what `tarfile` cannot: sparse maps, ACLs,
bytes that are not text.

Sources: pax(1) of POSIX.1-2017; "Extended File Attributes" SCHILY.* of star(5); "PAX Format, Version 1.0" for sparse
files in the GNU tar manual; acl(5) and <linux/posix_acl_xattr.h> for ACLs.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from functools import lru_cache

from sidecar.archive.entry import Entry, Extent, Kind

RECORD = 512
END_OF_ARCHIVE = bytes(2 * RECORD)

_TYPE = {
    Kind.FILE: b"0",
    Kind.HARD_LINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER_DEVICE: b"3",
    Kind.BLOCK_DEVICE: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_PAX_TYPE = b"x"
_LONG_NAME_TYPE, _LONG_LINK_TYPE = b"L", b"K"
_MAGIC = b"ustar\x0000"
_NO_NAMES = bytes(64)  # uname and gname stay empty: a name would be looked up on the restoring host and remap the ids
_NAME, _PREFIX, _LINK = 100, 155, 100
_LARGEST_ID = 0o7777777
_LARGEST_SIZE = 0o77777777777  # 8 GiB - 1; also the latest mtime (2242)

_ACL_ATTRIBUTES = {b"system.posix_acl_access": b"SCHILY.acl.access", b"system.posix_acl_default": b"SCHILY.acl.default"}
_ACL_VERSION = b"\2\0\0\0"
_ACL_TAGS = {0x01: "user:", 0x02: "user:", 0x04: "group:", 0x08: "group:", 0x10: "mask:", 0x20: "other:"}
_ACL_NAMED = (0x02, 0x08)


def padding(length: int) -> int:
    """Zero bytes that follow `length` bytes of data."""
    return -length % RECORD


def head(entry: Entry) -> bytes:
    """All records of an entry that come before its data, a sparse file's map among them."""
    signature = entry.signature
    name = b"./" + entry.path if entry.path else b"."
    if entry.kind is Kind.DIRECTORY:
        name += b"/"
    link = b"./" + entry.link if entry.kind is Kind.HARD_LINK else entry.link
    size = entry.data_length

    sparse_map = b""
    sparse_keywords: list[tuple[bytes, bytes]] = []
    if entry.extents is not None:
        sparse_map = _sparse_map(entry.extents, signature.size)
        size += len(sparse_map)
        sparse_keywords = _sparse_keywords(name, signature.size)
        directory, _, base = name.rpartition(b"/")
        name = directory + b"/GNUSparseFile.0/" + base
    prefix, short_name, keywords, long = _names(name, link)
    extended = b"".join([_pax_record(*each) for each in keywords]) if keywords else b""
    seconds, nanoseconds = divmod(signature.mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= seconds <= _LARGEST_SIZE:
        extended += _pax_record(b"mtime", _decimal_time(seconds, nanoseconds))
    uid, gid = signature.uid, signature.gid
    if uid > _LARGEST_ID or gid > _LARGEST_ID:
        extended += _pax_record(b"uid", b"%d" % uid) + _pax_record(b"gid", b"%d" % gid)
        uid, gid = min(uid, _LARGEST_ID), min(gid, _LARGEST_ID)
    # After `path`, because tarfile takes the last of two names.
    if entry.attributes or sparse_keywords:
        rest = _attribute_keywords(entry.attributes) + sparse_keywords
        extended += b"".join([_pax_record(*each) for each in rest])

    header = _header(
        short_name,
        prefix,
        signature.mode & 0o7777,
        uid,
        gid,
        size,
        min(max(seconds, 0), _LARGEST_SIZE),
        _TYPE[entry.kind],
        link[:_LINK],
        entry.device,
    )
    if not extended:
        return long + header + sparse_map
    # The long records come after the extended header: Python's tarfile lets what comes first have the last word, and
    # a sparse file's GNU.sparse.name must have it.
    length = len(extended)
    return b"%b%b%b%b%b%b" % (_extended_header(length), extended, bytes(-length % RECORD), long, header, sparse_map)


def acl_text(value: bytes) -> bytes:
    """The short text form of acl(5), ids in numbers, of a POSIX ACL as its extended attribute holds it.

    Raises ValueError for what is none (a FUSE file system hands on whatever it likes).
    """
    version, entries = value[:4], value[4:]
    if version != _ACL_VERSION or not entries or len(entries) % 8:
        raise ValueError(f"{value!r} is no POSIX ACL")
    words = []
    for tag, permissions, identifier in struct.iter_unpack("<HHI", entries):
        if tag not in _ACL_TAGS:
            raise ValueError(f"{value!r} is no POSIX ACL")
        who = str(identifier) if tag in _ACL_NAMED else ""
        bits = "".join(letter if permissions & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        words.append(f"{_ACL_TAGS[tag]}{who}:{bits}")
    return ",".join(words).encode()


def _names(name: bytes, link: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    """The header's prefix and name fields, and what carries a name or a target that fits none: keywords, records."""
    if len(name) <= _NAME and len(link) <= _LINK:
        return b"", name, [], b""
    keywords = []
    long = b""
    if len(link) > _LINK:
        if link.isascii():
            keywords.append((b"linkpath", link))
        else:
            long = _long_record(_LONG_LINK_TYPE, link)
    prefix, short_name = _split(name)
    if not short_name:
        short_name = name[:_NAME]
        if name.isascii():
            keywords.append((b"path", name))
        else:
            long += _long_record(_LONG_NAME_TYPE, name)
    return prefix, short_name, keywords, long


def _split(name: bytes) -> tuple[bytes, bytes]:
    """The ustar prefix and name fields; both empty when they cannot hold it. A directory's slash stays in the name.

    Names beyond ASCII go there as raw bytes too: no reader converts them, whereas bsdtar in the C locale calls a
    `path` keyword that is not ASCII an error (tried).
    """
    if len(name) <= _NAME:
        return b"", name
    if len(name) <= _PREFIX + 1 + _NAME:
        cut = name.find(b"/", len(name) - _NAME - 1, min(_PREFIX + 1, len(name) - 1))
        if cut > 0:
            return name[:cut], name[cut + 1 :]
    return b"", b""


def _long_record(kind: bytes, name: bytes) -> bytes:
    """GNU's record for a name or a link target that the header cannot hold, used for those beyond ASCII.

    A `path` keyword is UTF-8 by its standard: where the name or the locale is not, bsdtar 3.6 restores the file and
    yet exits with 1. `hdrcharset=BINARY` contents it, but then GNU tar 1.34 warns of that keyword for every file. This
    record is raw bytes to all; with it GNU tar, bsdtar and Python's tarfile (3.6 to 3.13) are silent and right, in the
    locales C and C.UTF-8 (all tried).
    """
    return _header(b"././@LongLink", b"", 0o644, 0, 0, len(name) + 1, 0, kind, b"", (0, 0)) + (
        name + bytes(1 + padding(len(name) + 1))
    )


def _sparse_keywords(name: bytes, size: int) -> list[tuple[bytes, bytes]]:
    """The true name stands here, so that a reader that knows no sparse files cannot put the map under that name.

    Beyond ASCII it costs one warning by GNU tar ("Ignoring unknown extended header keyword 'hdrcharset'").
    """
    charset = [] if name.isascii() else [(b"hdrcharset", b"BINARY")]
    return [
        *charset,
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]


def _attribute_keywords(attributes: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, bytes]]:
    keywords = []
    for attribute, value in attributes:
        if attribute in _ACL_ATTRIBUTES:
            with suppress(ValueError):
                keywords.append((_ACL_ATTRIBUTES[attribute], acl_text(value)))
                continue
        # GNU tar decodes %3D and %25 in attribute names, because "=" ends a keyword.
        escaped = attribute.replace(b"%", b"%25").replace(b"=", b"%3D")
        keywords.append((b"SCHILY.xattr." + escaped, value))
    return keywords


def _decimal_time(seconds: int, nanoseconds: int) -> bytes:
    """Seconds with nine decimals; POSIX counts the fraction away from the sign: -0.5 is half a second before 1970.

    nanoseconds: after `seconds`, also before 1970.
    """
    if seconds < 0 and nanoseconds:
        sign = b"" if seconds < -1 else b"-"  # -0 is no number
        return b"%s%d.%09d" % (sign, seconds + 1, 1_000_000_000 - nanoseconds)
    return b"%d.%09d" % (seconds, nanoseconds)


def _sparse_map(extents: tuple[Extent, ...], size: int) -> bytes:
    """Count, then offset and length of each run of data, in decimal lines, padded to a record.

    GNU tar takes the file's end from a last empty run when the file ends in a hole.
    """
    runs = list(extents)
    if not runs or runs[-1].offset + runs[-1].length < size:
        runs.append(Extent(size, 0))
    text = b"%d\n" % len(runs) + b"".join(b"%d\n%d\n" % run for run in runs)
    return text + bytes(padding(len(text)))


@lru_cache(maxsize=1024)  # nearly every file has one, and they differ in this length only
def _extended_header(length: int) -> bytes:
    return _header(b"./PaxHeaders", b"", 0o644, 0, 0, length, 0, _PAX_TYPE, b"", (0, 0))


def _pax_record(keyword: bytes, value: bytes) -> bytes:
    """`LENGTH KEYWORD=VALUE` and a newline, where LENGTH counts itself."""
    return b"%d %b=%b\n" % (_record_length(len(keyword) + len(value) + 3), keyword, value)


@lru_cache(maxsize=1024)
def _record_length(body: int) -> int:
    """body: bytes of the keyword and the value, of the blank, "=" and the newline."""
    length = body + len(str(body))
    return body + len(str(length))


def _header(
    name: bytes,
    prefix: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    kind: bytes,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    begin = b"%b%b%b%011o\0" % (
        name.ljust(_NAME, b"\0"),
        _owner_fields(mode, uid, gid),
        b"%011o\0" % size if size <= _LARGEST_SIZE else _binary(size),
        mtime,
    )
    end, its_sum = _last_fields(kind, link, device, prefix)
    return b"%b%06o\0 %b" % (begin, _sum(begin) + its_sum + 8 * ord(" "), end)  # with blanks for the sum itself


def _sum(fields: bytes) -> int:
    """The sum of all bytes, of 256 at most.

    Adler-32's lower half is 1 + that modulo 65,521, and so many bytes do not come so far; sum() took half of a small
    file's time.
    """
    return (zlib.adler32(fields) & 0xFFFF) - 1


@lru_cache(maxsize=256)  # most files of a volume have the same few owners and modes
def _owner_fields(mode: int, uid: int, gid: int) -> bytes:
    return b"%07o\0%07o\0%07o\0" % (mode, uid, gid)


@lru_cache(maxsize=256)  # of all regular files with short names these are the same
def _last_fields(kind: bytes, link: bytes, device: tuple[int, int], prefix: bytes) -> tuple[bytes, int]:
    """What comes behind the checksum, and its sum."""
    fields = b"%b%b%b%b%07o\0%07o\0%b" % (kind, link.ljust(_LINK, b"\0"), _MAGIC, _NO_NAMES, *device, prefix)
    fields = fields.ljust(RECORD - 156, b"\0")
    return fields, _sum(fields[:256]) + _sum(fields[256:])


def _binary(size: int) -> bytes:
    """GNU's form of a size of 8 GiB and more.

    A `size` keyword would be POSIX's, but with one tarfile (3.10 to 3.13) loses its way behind a sparse file (tried).
    """
    return b"\x80" + size.to_bytes(11, "big")
