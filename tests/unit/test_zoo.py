"""Everything a volume may hold, through capture and archive, read back by GNU tar, bsdtar and Python's tarfile.

What a reader cannot restore is stated in its test, and everything else is equal.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sidecar.archive.entry import Kind
from tests.unit.trees import (
    BEFORE_1970_NS,
    GIBIBYTE,
    SPARSE_SIZE,
    Packed,
    allocated,
    build_deep,
    build_zoo,
    describe,
    no_descriptor_left,
    pack,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes, owners and capabilities need root")

GNU_TAR = ["tar", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "-xzpf", "-"]  # as in RECOVER.txt
BSDTAR = ["bsdtar", "--numeric-owner", "-xpf", "-"]
PYTHON = [
    sys.executable,
    "-c",
    "import sys, tarfile;tarfile.open(sys.argv[1], 'r:gz').extractall('.', numeric_owner=True, filter='fully_trusted')",
]
SOCKETS = {b"./special/socket", b"./special/socket \xff"}
LINKED_OUT = {b"./symlinks/up", b"./symlinks/hard link that leads out"}

Description = dict[bytes, dict[str, Any]]


class Zoo:
    """The tree, its description and its archive."""

    def __init__(self, root: Path, described: Description, packed: Packed) -> None:
        self.root = root
        self.described = described
        self.packed = packed

    def expected(self) -> Description:
        """What every reader must restore: all but the sockets, and an outward symlink's second name as a symlink."""
        expected = {path: dict(node) for path, node in self.described.items() if path not in SOCKETS}
        for path in LINKED_OUT:
            expected[path]["links"] = {path}
        return expected


@pytest.fixture(scope="module", params=["copied in the freeze", "copied before"])
def zoo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Zoo:
    here = tmp_path_factory.mktemp("zoo")
    build_zoo(here / "volume")
    with no_descriptor_left():
        packed = pack(here / "volume", here / "set", settled=request.param == "copied before")
    return Zoo(here / "volume", describe(here / "volume"), packed)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for very many files: in memory where that has room, because a disk's journal takes ten times as long.

    Removed by rm, because 2,000 levels are too deep for pytest's own cleaning.
    """
    memory = os.statvfs("/dev/shm")
    in_memory = memory.f_bavail * memory.f_frsize > 2 * GIBIBYTE
    here = Path(tempfile.mkdtemp(dir="/dev/shm")) if in_memory else tmp_path_factory.mktemp("roomy")
    yield here
    subprocess.run(["rm", "-rf", here], check=True)


@pytest.fixture(scope="module")
def deep(roomy: Path) -> Zoo:
    here = roomy / "deep"
    here.mkdir()
    build_deep(here / "volume")
    with no_descriptor_left():
        packed = pack(here / "volume", here / "set")
    return Zoo(here / "volume", describe(here / "volume", with_attributes=False), packed)


def extract(command: list[str], archive: Path, to: Path, locale: str) -> list[str]:
    """What the reader says on standard error while it restores into `to`."""
    to.mkdir()
    with archive.open("rb") as source:
        done = subprocess.run(
            [*command, str(archive)] if command is PYTHON else command,
            stdin=subprocess.DEVNULL if command is PYTHON else source,
            cwd=to,
            env={**os.environ, "LC_ALL": locale},
            capture_output=True,
            check=False,
        )
    said = done.stderr.decode(errors="replace").splitlines()
    assert done.returncode == 0, said
    return said


def assert_same(restored: Description, expected: Mapping[bytes, Mapping[str, Any]]) -> None:
    differences = {
        path: {
            key: (node.get(key), expected[path][key]) for key in expected[path] if node.get(key) != expected[path][key]
        }
        for path, node in restored.items()
        if path in expected and node != expected[path]
    }
    assert not differences
    assert restored.keys() == expected.keys()


def assert_holes_are_holes(restored: Path) -> None:
    assert allocated(restored / "holes" / "10 GB") < 2 * 1024 * 1024
    assert allocated(restored / "holes" / "only") == 0


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_gnu_tar_restores_everything_but_sockets(zoo: Zoo, tmp_path: Path, locale: str) -> None:
    said = extract(GNU_TAR, zoo.packed.archive, tmp_path / "restored", locale)

    # It warns of times that it restores nevertheless, and once for each sparse file with a name beyond ASCII.
    said = [line for line in said if "implausibly old time stamp" not in line and "in the future" not in line]
    assert said == ["tar: Ignoring unknown extended header keyword 'hdrcharset'"] * 2
    assert_same(describe(tmp_path / "restored"), zoo.expected())
    assert_holes_are_holes(tmp_path / "restored")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_bsdtar_restores_all_but_default_acls_escaped_attribute_names_and_fractions_before_1970(
    zoo: Zoo, tmp_path: Path, locale: str
) -> None:
    expected = zoo.expected()
    directory = expected[b"./acl/directory"]
    directory["acl"] = frozenset(line for line in directory["acl"] if not line.startswith(b"default:"))
    directory["attributes"] = None
    escaped = expected[b"./attributes/escaped"]  # "=" and "%" of names stay %3D and %25
    assert escaped["attributes"] == {
        b"user.a\\075b=0x657175616c73",
        b"user.100%=0x70657263656e74",
        b"user.%3D=0x6c6f6f6b732065736361706564",
    }
    escaped["attributes"] = {
        b"user.a%3Db=0x657175616c73",
        b"user.100%25=0x70657263656e74",
        b"user.%253D=0x6c6f6f6b732065736361706564",
    }
    for kind in (b"", b"directory "):  # the fraction is taken for one that counts forward
        expected[b"./times/" + kind + b"before 1970"]["mtime_ns"] = -1_234_567_890 * 10**9 + 123_456_789
        expected[b"./times/" + kind + b"just before 1970"]["mtime_ns"] = 1
    assert BEFORE_1970_NS == -1_234_567_890 * 10**9 - 123_456_789

    said = extract(BSDTAR, zoo.packed.archive, tmp_path / "restored", locale)

    assert said == []
    assert_same(describe(tmp_path / "restored"), expected)
    assert_holes_are_holes(tmp_path / "restored")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_python_restores_all_but_attributes_acls_times_of_symlinks_and_nanoseconds(
    zoo: Zoo, tmp_path: Path, locale: str
) -> None:
    expected = zoo.expected()
    # It links to what a symlink leads to, and so makes a second one of a dangling one.
    for path in (b"./symlinks/dangling", b"./symlinks/hard link to it"):
        expected[path]["links"] = {path}

    said = extract(PYTHON, zoo.packed.archive, tmp_path / "restored", locale)

    restored = describe(tmp_path / "restored")
    assert said == []
    assert restored.keys() == expected.keys()
    for path, node in expected.items():
        was = restored[path]
        if node["kind"] != stat.S_IFLNK:
            assert abs(was["mtime_ns"] - node["mtime_ns"]) < 2000  # its times are floating-point numbers
        was["mtime_ns"] = node["mtime_ns"]
        assert was.pop("attributes") is None
        del node["attributes"], node["acl"], was["acl"]
    assert_same(restored, expected)
    assert_holes_are_holes(tmp_path / "restored")


def test_the_index_knows_every_entry_and_the_sockets(zoo: Zoo) -> None:
    rows = [file for block in zoo.packed.blocks() for file in block.files]

    kinds = {
        stat.S_IFREG: {Kind.FILE, Kind.HARD_LINK},
        stat.S_IFLNK: {Kind.SYMLINK, Kind.HARD_LINK},
        stat.S_IFDIR: {Kind.DIRECTORY},
        stat.S_IFIFO: {Kind.FIFO, Kind.HARD_LINK},
        stat.S_IFCHR: {Kind.CHARACTER_DEVICE},
        stat.S_IFBLK: {Kind.BLOCK_DEVICE},
    }
    known = {b"./" + row.path if row.path else b".": row for row in rows}
    assert known.keys() == zoo.described.keys() - SOCKETS
    for path, row in known.items():
        node = zoo.described[path]
        assert row.kind in kinds[node["kind"]]
        assert stat.S_IMODE(row.signature.mode) == node["mode"]
        assert (row.signature.uid, row.signature.gid) == (node["uid"], node["gid"])
        assert row.signature.mtime_ns == node["mtime_ns"]
        assert node["size"] in (row.signature.size, None)
        if row.kind is Kind.SYMLINK:
            assert row.link == node["target"]
        if row.kind is Kind.HARD_LINK:
            assert b"./" + row.link in node["links"] - {path}
            assert known[b"./" + row.link].kind is not Kind.HARD_LINK
    assert {b"./" + path for path in zoo.packed.captured.sockets} == SOCKETS
    assert zoo.packed.captured.changed == []


def test_the_capabilities_of_the_container_suffice_for_all_but_trusted_attributes(zoo: Zoo, tmp_path: Path) -> None:
    packing = "import sys; from pathlib import Path; from tests.unit.trees import pack; pack(*map(Path, sys.argv[1:]))"
    confined = ["setpriv", "--bounding-set=-all,+dac_read_search", "--inh-caps=-all", "--no-new-privs", sys.executable]
    refused = subprocess.run(
        [*confined, "-c", "import os, sys; os.chown(sys.argv[1], 1, 1)", tmp_path], capture_output=True, check=False
    )
    assert b"PermissionError" in refused.stderr  # it is confined indeed

    subprocess.run([*confined, "-c", packing, zoo.root, tmp_path / "set"], cwd=Path(__file__).parents[2], check=True)

    assert contents(tmp_path / "set" / "v.tar.gz") == contents(zoo.packed.archive)


def contents(archive: Path) -> dict[str, tuple[Any, ...]]:
    """What tarfile reads, but for attributes that only CAP_SYS_ADMIN can see."""
    read = {}
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            source = members.extractfile(member) if member.isreg() and member.size < GIBIBYTE else None
            headers = {k: v for k, v in member.pax_headers.items() if not k.startswith("SCHILY.xattr.trusted.")}
            facts = (member.type, member.mode, member.uid, member.gid, member.size, member.linkname, member.mtime)
            read[member.name] = (*facts, headers, source.read() if source else None)
    return read


def test_a_sparse_file_of_10_gb_costs_no_more_than_its_data(zoo: Zoo) -> None:
    assert zoo.described[b"./holes/10 GB"]["size"] == SPARSE_SIZE
    assert zoo.packed.captured.bytes_read < 3 * 1024 * 1024
    assert zoo.packed.summary.raw_size < 4 * 1024 * 1024


def test_2000_nested_directories_are_restored_by_gnu_tar(deep: Zoo, roomy: Path) -> None:
    assert max(len(path) for path in deep.described) == len("./") + 4000

    said = extract(GNU_TAR, deep.packed.archive, roomy / "deep" / "restored", "C")

    assert said == []
    assert_same(describe(roomy / "deep" / "restored", with_attributes=False), deep.described)


def test_2000_nested_directories_are_named_alike_by_bsdtar_and_python(deep: Zoo) -> None:
    listed = subprocess.run(["bsdtar", "-tf", deep.packed.archive], capture_output=True, check=True).stdout
    with tarfile.open(deep.packed.archive, "r:gz") as archive:
        members = {os.fsencode(member.name): member.size for member in archive}

    assert {line.rstrip(b"/") for line in listed.splitlines()} == deep.described.keys()
    assert members == {path: node["size"] or 0 for path, node in deep.described.items()}


@pytest.mark.slow
def test_100_000_small_files_come_back_with_their_content_owners_modes_and_times(roomy: Path) -> None:
    count, of_a_directory = 100_000, 500
    volume = roomy / "volume"
    volume.mkdir()
    for number in range(count):
        if number % of_a_directory == 0:
            directory = os.path.join(volume, f"d{number}")
            os.mkdir(directory)
        descriptor = os.open(f"{directory}/f{number}", os.O_WRONLY | os.O_CREAT, 0o600 + number % 0o100)
        os.write(descriptor, b"%d" % (number * number))
        os.close(descriptor)

    packed = pack(volume, roomy / "set")
    extract(GNU_TAR, packed.archive, roomy / "restored", "C.UTF-8")

    assert packed.summary.files == count + count // of_a_directory + 1
    assert observed(roomy / "restored") == observed(volume)
    assert subprocess.run(["diff", "-r", volume, roomy / "restored"], check=False).returncode == 0


def observed(root: Path) -> set[bytes]:
    """A line for each entry, by find."""
    command = ["find", ".", "-printf", "%P %y %m %U %G %T@ %s\\n"]
    lines = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.splitlines()
    assert len(lines) > 100_000
    return set(lines)
