"""Tar records, as Python's tarfile reads them, and byte by byte as POSIX says."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.archive.entry import Entry, Extent, Kind, Signature
from sidecar.archive.records import END_OF_ARCHIVE, RECORD, acl_text, head, padding

NANOSECONDS = 1_000_000_000
GIBIBYTE = 1024**3
patient = settings(deadline=None)  # a busy machine proves nothing wrong


def entry(path: bytes = b"f", kind: Kind = Kind.FILE, **facts: object) -> Entry:
    signature = {"ino": 1, "size": 0, "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0, "ctime_ns": 0}
    signature.update({name: value for name, value in facts.items() if name in signature})
    others = {name: value for name, value in facts.items() if name not in signature}
    return Entry(path, kind, Signature(**signature), **others)


def parse(stream: bytes) -> tarfile.TarInfo:
    """The only member of a stream, by tarfile."""
    with tarfile.open(fileobj=io.BytesIO(stream), mode="r:", errorlevel=2) as archive:
        member = archive.next()
        assert member is not None
        return member


def extended(stream: bytes) -> dict[bytes, bytes]:
    """The keywords of the extended header that the stream begins with, read as POSIX says: LENGTH KEYWORD=VALUE\\n."""
    assert stream[156:157] == b"x"
    data = stream[RECORD : RECORD + int(stream[124:135], 8)]
    keywords = {}
    while data:
        digits, _, _ = data.partition(b" ")
        record, data = data[: int(digits)], data[int(digits) :]
        assert record.endswith(b"\n")
        keyword, _, value = record[len(digits) + 1 : -1].partition(b"=")
        assert keyword not in keywords
        keywords[keyword] = value
    return keywords


def as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


components = st.binary(min_size=1, max_size=255).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)
paths = st.lists(components, min_size=1, max_size=20).map(b"/".join).filter(lambda path: len(path) <= 4000)
targets = st.binary(min_size=1, max_size=4095).filter(lambda target: b"\0" not in target)
times = st.integers(-(2**34) * NANOSECONDS, 2**34 * NANOSECONDS)  # ext4's reach, more than twice
ids = st.one_of(st.integers(0, 2**32 - 2), st.sampled_from([0o7777777, 0o7777777 + 1]))


@patient
@given(path=paths, mode=st.integers(0, 0o7777), uid=ids, gid=ids, mtime_ns=times, size=st.integers(0, 2**62))
@example(path=b"f", mode=0, uid=0, gid=0, mtime_ns=-1, size=0o77777777777)
@example(path=b"f", mode=0, uid=0, gid=0, mtime_ns=(0o77777777777 + 1) * NANOSECONDS, size=0o77777777777 + 1)
def test_tarfile_reads_back_what_a_file_is(
    path: bytes, mode: int, uid: int, gid: int, mtime_ns: int, size: int
) -> None:
    records = head(entry(path, size=size, mode=0o100000 | mode, uid=uid, gid=gid, mtime_ns=mtime_ns))

    member = parse(records + END_OF_ARCHIVE)
    assert len(records) % RECORD == 0
    assert as_bytes(member.name) == b"./" + path
    assert (member.mode, member.uid, member.gid, member.size) == (mode, uid, gid, size)
    assert member.mtime == pytest.approx(mtime_ns / NANOSECONDS, abs=1e-5)
    assert member.isreg()
    assert (member.uname, member.gname) == ("", "")
    assert member.offset_data == len(records)


@patient
@given(path=st.one_of(st.just(b""), paths))
def test_a_directory_keeps_its_name_whatever_its_length(path: bytes) -> None:
    member = parse(head(entry(path, Kind.DIRECTORY)) + END_OF_ARCHIVE)

    assert as_bytes(member.name) == (b"./" + path if path else b".")
    assert member.isdir()


@patient
@given(path=paths, target=targets)
def test_a_symlink_keeps_its_target_whatever_its_length_and_bytes(path: bytes, target: bytes) -> None:
    member = parse(head(entry(path, Kind.SYMLINK, link=target)) + END_OF_ARCHIVE)

    assert (as_bytes(member.name), as_bytes(member.linkname)) == (b"./" + path, target)
    assert member.issym()


@patient
@given(path=paths, first=paths)
def test_a_hard_link_names_its_first_path_as_the_archive_does_and_has_no_data(path: bytes, first: bytes) -> None:
    member = parse(head(entry(path, Kind.HARD_LINK, link=first, size=1000)) + END_OF_ARCHIVE)

    assert (as_bytes(member.name), as_bytes(member.linkname)) == (b"./" + path, b"./" + first)
    assert member.islnk()
    assert int(head(entry(path, Kind.HARD_LINK, link=first, size=1000))[-RECORD + 124 :][:11], 8) == 0


@patient
@given(major=st.integers(0, 4095), minor=st.integers(0, 1_048_575))
def test_device_numbers_are_kept(major: int, minor: int) -> None:
    for kind, is_kind in ((Kind.CHARACTER_DEVICE, tarfile.TarInfo.ischr), (Kind.BLOCK_DEVICE, tarfile.TarInfo.isblk)):
        member = parse(head(entry(b"d", kind, device=(major, minor))) + END_OF_ARCHIVE)

        assert is_kind(member)
        assert (member.devmajor, member.devminor) == (major, minor)


names = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name).map(lambda name: b"user." + name)


@patient
@given(attributes=st.dictionaries(names, st.binary(max_size=300), min_size=1, max_size=8))
@example(attributes={b"user." + b"n" * name: bytes(value) for name in (1, 80) for value in range(60, 120)})
@example(attributes={b"user.n": b"\n12 path=evil\n"})
def test_extended_attributes_of_any_name_and_value_are_records_that_count_themselves_right(
    attributes: dict[bytes, bytes],
) -> None:
    keywords = extended(head(entry(attributes=tuple(attributes.items()))))

    decoded = {
        keyword.removeprefix(b"SCHILY.xattr.").replace(b"%3D", b"=").replace(b"%25", b"%"): value
        for keyword, value in keywords.items()
    }
    assert decoded == attributes


@pytest.mark.parametrize("value", [*range(70, 90), *range(960, 990), *range(9_950, 9_990)])
def test_the_length_of_a_record_counts_its_own_digits(value: int) -> None:
    keywords = extended(head(entry(attributes=((b"user.n", b"v" * value),))))  # around 99/100, 999/1000, 9999/10000

    assert keywords == {b"SCHILY.xattr.user.n": b"v" * value}


@patient
@given(mtime_ns=times)
def test_times_are_decimal_seconds_to_the_nanosecond_and_only_where_the_header_cannot_hold_them(mtime_ns: int) -> None:
    records = head(entry(mtime_ns=mtime_ns))

    if mtime_ns % NANOSECONDS == 0 and 0 <= mtime_ns <= 0o77777777777 * NANOSECONDS:
        assert int(records[136:147], 8) * NANOSECONDS == mtime_ns
    else:
        text = extended(records)[b"mtime"]
        assert re.fullmatch(rb"-?(0|[1-9][0-9]*)\.[0-9]{9}", text)
        assert int(text.replace(b".", b"")) == mtime_ns


acl_entries = st.lists(
    st.tuples(st.sampled_from([0x02, 0x08]), st.integers(0, 7), st.integers(0, 2**32 - 2)),
    unique_by=lambda e: (e[0], e[2]),
)


@patient
@given(named=acl_entries)
def test_an_acl_is_written_in_the_short_text_form_with_numbers(named: list[tuple[int, int, int]]) -> None:
    base = [(0x01, 6, 2**32 - 1), (0x04, 5, 2**32 - 1), (0x10, 7, 2**32 - 1), (0x20, 0, 2**32 - 1)]
    binary = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in sorted(base + named))

    words = extended(head(entry(attributes=((b"system.posix_acl_access", binary),))))[b"SCHILY.acl.access"].split(b",")

    def bits(permissions: int) -> bytes:
        return bytes(letter if permissions & bit else ord("-") for letter, bit in zip(b"rwx", (4, 2, 1), strict=True))

    expected = {b"user::rw-", b"group::r-x", b"mask::rwx", b"other::---"} | {
        {0x02: b"user", 0x08: b"group"}[tag] + b":%d:" % identifier + bits(permissions)
        for tag, permissions, identifier in named
    }
    assert len(words) == len(expected)
    assert set(words) == expected


def test_a_default_acl_has_its_own_keyword() -> None:
    binary = struct.pack("<IHHIHHIHHI", 2, 1, 7, 2**32 - 1, 4, 5, 2**32 - 1, 0x20, 5, 2**32 - 1)

    keywords = extended(head(entry(b"d", Kind.DIRECTORY, attributes=((b"system.posix_acl_default", binary),))))

    assert keywords == {b"SCHILY.acl.default": b"user::rwx,group::r-x,other::r-x"}


@pytest.mark.parametrize(
    "strange", [b"", b"\2\0\0", struct.pack("<I", 3), struct.pack("<IH", 2, 1), struct.pack("<IHHI", 2, 0x40, 1, 1)]
)
def test_an_acl_that_no_linux_kernel_made_is_kept_as_the_bytes_it_is(strange: bytes) -> None:
    with pytest.raises(ValueError, match="ACL"):
        acl_text(strange)

    keywords = extended(head(entry(attributes=((b"system.posix_acl_access", strange),))))

    assert keywords == {b"SCHILY.xattr.system.posix_acl_access": strange}


@st.composite
def sparse_files(draw: st.DrawFn) -> tuple[int, tuple[Extent, ...]]:
    offset, extents = 0, []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=30)):
        extents.append(Extent(offset + gap, length))
        offset += gap + length
    return offset + draw(st.integers(0, 5000)), tuple(extents)


@patient
@given(path=paths, sparse=sparse_files())
@example(path=b"f", sparse=(5000, ()))
@example(path=b"n" * 200, sparse=(10, (Extent(3, 4),)))
def test_tarfile_makes_a_sparse_file_whole_again(path: bytes, sparse: tuple[int, tuple[Extent, ...]]) -> None:
    size, extents = sparse
    data = b"".join(bytes([1 + number % 255]) * length for number, (_, length) in enumerate(extents))
    content = bytearray(size)
    for number, (offset, length) in enumerate(extents):
        content[offset : offset + length] = bytes([1 + number % 255]) * length

    stream = head(entry(path, size=size, extents=extents)) + data + bytes(padding(len(data))) + END_OF_ARCHIVE

    with tarfile.open(fileobj=io.BytesIO(stream), mode="r:") as archive:
        member, beyond = archive.next(), archive.next()
        assert member is not None
        assert beyond is None
        assert as_bytes(member.name) == b"./" + path
        assert member.issparse()
        assert member.size == size
        source = archive.extractfile(member)
        assert source is not None
        assert source.read() == content


def test_a_sparse_file_of_8_exbibytes_needs_no_more_than_its_map() -> None:
    size = 2**63 - 1

    member = parse(head(entry(size=size, extents=(Extent(2**62, 0),))) + END_OF_ARCHIVE)

    assert member.size == size


@pytest.mark.parametrize("extents", [None, (Extent(GIBIBYTE, 9 * GIBIBYTE),)], ids=["whole", "sparse"])
@pytest.mark.parametrize("reader", ["tar", "bsdtar", "tarfile"])
def test_every_reader_finds_its_way_past_9_gibibytes_of_data(
    tmp_path: Path, extents: tuple[Extent, ...] | None, reader: str
) -> None:
    large = entry(b"large", size=20 * GIBIBYTE if extents else 9 * GIBIBYTE, extents=extents)
    archive = tmp_path / "archive.tar"
    with archive.open("wb") as file:  # the data is a hole
        file.write(head(large))
        file.seek(9 * GIBIBYTE, os.SEEK_CUR)
        file.write(head(entry(b"after")) + END_OF_ARCHIVE)

    if reader == "tarfile":
        with tarfile.open(archive) as read:
            found = [(member.name, member.size) for member in read]
    else:
        listed = subprocess.run([reader, "-tvf", archive], capture_output=True, text=True, check=True).stdout
        column = {"tar": 2, "bsdtar": 4}[reader]
        found = [(line.split()[-1], int(line.split()[column])) for line in listed.splitlines()]

    assert found == [("./large", large.signature.size), ("./after", 0)]
