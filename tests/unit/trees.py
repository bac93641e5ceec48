"""Trees of files to capture: a zoo of everything that a volume may hold, and descriptions of trees by other programs.

The descriptions share nothing with our code: find(1), lstat(2), sha256, getfacl(1) and getfattr(1).
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.archive.capture import Capture, capture, precopy, sync
from sidecar.archive.copies import Copies
from sidecar.archive.index import IndexedBlock
from sidecar.archive.spool import SpoolSpace
from sidecar.archive.writer import ArchiveSummary, read_index_file, write_archive

MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE


# --- from a tree to an archive ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """An archive on disk and all that is known of it."""

    archive: Path
    index: Path
    captured: Capture
    summary: ArchiveSummary

    def blocks(self) -> list[IndexedBlock]:
        return list(read_index_file(self.index))


def pack(root: Path, to: Path, *, check: Callable[[], None] = lambda: None, settled: bool = False) -> Packed:
    """Capture `root` and write its archive and index into `to`, as a backup does.

    settled: it has been copied before, a minute after it was last touched.
    """
    to.mkdir(exist_ok=True)
    archive, index = to / "v.tar.gz", to / "v.index.jsonl.gz"
    with SpoolSpace(to / "spool").new("v") as spool, archive.open("wb") as out:
        copies = Copies(spool)
        if settled:
            sync(os.fspath(root), copies, time.time_ns() + 3600 * 10**9)
            precopy(os.fspath(root), copies, check, lambda _: None)
        captured = capture(os.fspath(root), copies, check, lambda _: None)
        summary = write_archive(
            captured,
            lambda block, _: _write(out, block),
            index,
            volume="v",
            set_name="s",
            level=2,
            threads=2,
            check=check,
        )
    return Packed(archive, index, captured, summary)


def _write(out: Any, block: bytes) -> None:
    out.write(block)


@contextmanager
def no_descriptor_left() -> Any:
    """The process has the same files and directories open after the body as before.

    Sockets do not count: servers of other tests in this process close theirs when they like.
    """
    before = _open_files()
    yield
    left = {number: path for number, path in _open_files().items() if before.get(number) != path}
    assert not left, f"still open: {left}"


def _open_files() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that the list was read from
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return {number: path for number, path in found.items() if not path.startswith("socket:")}


# --- descriptions ----------------------------------------------------------------------------------------------------


_GETFACL = ("getfacl", "--recursive", "--physical", "--numeric", "--absolute-names")
_GETFATTR = ("getfattr", "--recursive", "--no-dereference", "--dump", "--match=-", "--encoding=hex", "--absolute-names")


def describe(root: Path, *, with_attributes: bool = True) -> dict[bytes, dict[str, Any]]:
    """Path to what anyone can observe of it; a hard link names all its paths.

    with_attributes: ask getfacl and getfattr too, which is slow in deep trees.
    """
    found = subprocess.run(["find", ".", "-print0"], cwd=root, capture_output=True, check=True).stdout
    paths = found.split(b"\0")[:-1]
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    inodes: dict[int, set[bytes]] = {}
    described = {}
    acls = _stanzas([*_GETFACL, "."], root) if with_attributes else {}
    attributes = _stanzas([*_GETFATTR, "."], root) if with_attributes else {}
    try:
        for path in paths:
            status = os.lstat(path, dir_fd=top)
            kind = stat.S_IFMT(status.st_mode)
            inodes.setdefault(status.st_ino, set()).add(path)
            described[path] = {
                "kind": kind,
                "mode": stat.S_IMODE(status.st_mode),
                "uid": status.st_uid,
                "gid": status.st_gid,
                "mtime_ns": status.st_mtime_ns,
                "size": status.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else None,
                "device": status.st_rdev,
                "target": os.readlink(path, dir_fd=top) if kind == stat.S_IFLNK else None,
                "content": _digest(path, top) if kind == stat.S_IFREG else None,
                "links": inodes[status.st_ino] if kind != stat.S_IFDIR else None,
                # getfacl names every path but symlinks; getfattr those that have attributes.
                "acl": acls.get(path),
                "attributes": attributes.get(path),
            }
    finally:
        os.close(top)
    return described


def allocated(path: Path) -> int:
    """Bytes that the file takes on the disk."""
    return os.lstat(path).st_blocks * 512


def _stanzas(command: list[str], root: Path) -> dict[bytes, frozenset[bytes]]:
    """What getfacl and getfattr print: `# file: NAME`, lines, a blank line; names with octal escapes."""
    printed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    stanzas = {}
    for stanza in printed.split(b"\n\n"):
        first, _, rest = stanza.strip(b"\n").partition(b"\n")
        if first:
            name = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), first.removeprefix(b"# file: "))
            stanzas[name] = frozenset(rest.split(b"\n"))
    return stanzas


def _digest(path: bytes, top: int) -> str:
    """Of the content: sha256; of large files over the pages that are not zero, so that 10 GB of hole cost nothing."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=top)
    try:
        size = os.fstat(descriptor).st_size
        if size <= 64 * MEBIBYTE:
            digest.update(os.pread(descriptor, size + 1, 0))
            return digest.hexdigest()
        end = 0
        while end < size:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            for offset in range(start // 4096 * 4096, end, 4096):
                page = os.pread(descriptor, 4096, offset)
                if page.strip(b"\0"):
                    digest.update(b"%d:" % offset + page)
        return f"{size}:{digest.hexdigest()}"
    finally:
        os.close(descriptor)


# --- the zoo ---------------------------------------------------------------------------------------------------------

CYRILLIC = "Резервная копия тома с очень длинным именем".encode()  # noqa: RUF001
NOT_UTF8 = bytes(range(0x80, 0x100)).replace(b"/", b"")
SPARSE_SIZE = 10 * GIBIBYTE
BEFORE_1970_NS = -1_234_567_890_123_456_789
AFTER_2038_NS = 3_000_000_000_987_654_321
AFTER_2242_NS = 10_000_000_000_555_555_555


def build_deep(root: Path) -> None:
    """2,000 directories in one another, with files on the way: the deepest path has 4,000 bytes."""
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY)
    for level in range(1999):
        for name in (b"f", b"z") if level % 90 == 0 else ():  # before and after the directory in the order of names
            file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=descriptor)
            os.write(file, b"%d" % level)
            os.close(file)
        os.mkdir(b"m", 0o750, dir_fd=descriptor)
        below = os.open(b"m", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open(b"ff", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=descriptor))
    os.close(descriptor)


def build_zoo(root: Path) -> None:
    """Everything that a Linux file system can hold, on ext4. Needs root: device nodes, owners, capabilities."""
    root.mkdir()
    top = os.fsencode(root) + b"/"

    def write(name: bytes, content: bytes = b"content\n") -> bytes:
        path = top + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return path

    _names(top, write)
    _links(top, write)
    _special_files(top)
    _holes(write)
    _rights(top, write)
    _times(top, write)


def _names(top: bytes, write: Callable[..., bytes]) -> None:
    write(b"plain", b"hello\n")
    write(b"empty", b"")
    os.mkdir(top + b"empty directory")
    write(b"new\nline/and\ttab\r and \\ and \x01 and 'quotes\"")
    write(b" blank-first and blank-last ")
    write(b"-rf")
    write(b"latin1-caf\xe9")
    write("utf8-café".encode())
    write(NOT_UTF8 + b"/" + NOT_UTF8[::-1])  # too long for the header
    write(CYRILLIC + b"/" + CYRILLIC + b"/" + CYRILLIC)
    write(b"255/" + b"n" * 255)
    write(b"255/" + b"\xff" * 255)
    for length in (98, 99, 100, 101, 155, 156):  # around the fields of the header, "./" counts two
        write(b"lengths/" + b"f" * (length - 10))
        write(b"lengths/" + b"d" * (length - 12) + b"/f")
    write(b"/".join([b"d" * 250] * 15) + b"/" + b"f" * 233)  # 3,998 bytes


def _links(top: bytes, write: Callable[..., bytes]) -> None:
    write(b"hard/a/first", b"shared" * 1000)
    os.makedirs(top + b"hard/b/c")
    os.link(top + b"hard/a/first", top + b"hard/b/c/second")
    os.link(top + b"hard/a/first", top + b"hard/b/\xff" + b"x" * 200)
    for name, target in {
        b"dangling": b"nowhere",
        b"absolute": b"/etc/passwd",
        b"up": b"../../../etc/passwd",
        b"to directory": b"../hard",
        b"long": b"t" * 1000,
        b"longest": b"/" + b"t/" * 2047,  # 4,095 bytes
        b"latin1": b"caf\xe9",
        b"long latin1": b"\xe9" * 200,
        b"long utf8": CYRILLIC * 3,
        b"100": b"t" * 100,
        b"101": b"t" * 101,
    }.items():
        path = top + b"symlinks/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(target, path)
    os.lchown(top + b"symlinks/dangling", 4242, 4343)
    os.utime(top + b"symlinks/dangling", ns=(0, 1_111_111_111_222_333_444), follow_symlinks=False)
    os.link(top + b"symlinks/dangling", top + b"symlinks/hard link to it", follow_symlinks=False)
    os.link(top + b"symlinks/up", top + b"symlinks/hard link that leads out", follow_symlinks=False)
    write(b"symlinks/among/a file")
    os.symlink(b"../../up", top + b"symlinks/among/out")
    os.symlink(b"a file", top + b"symlinks/among/in")
    os.symlink(b"/absolute", top + b"out of the root")


def _special_files(top: bytes) -> None:
    os.mkdir(top + b"special")
    os.mkfifo(top + b"special/fifo", 0o620)
    os.link(top + b"special/fifo", top + b"special/hard link to fifo")
    os.mknod(top + b"special/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(top + b"special/large numbers", 0o600 | stat.S_IFCHR, os.makedev(4095, 1_048_575))
    os.mknod(top + b"special/disk", 0o660 | stat.S_IFBLK, os.makedev(254, 17))
    os.chown(top + b"special/disk", 0, 6)
    here = os.open(b".", os.O_RDONLY)
    os.chdir(top + b"special")  # a socket's path may have 107 bytes only
    try:
        for name in (b"socket", b"socket \xff"):
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(name)
    finally:
        os.fchdir(here)
        os.close(here)


def _holes(write: Callable[..., bytes]) -> None:
    def sparse(name: bytes, size: int, runs: dict[int, bytes]) -> None:
        path = write(name, b"")
        with open(path, "r+b") as file:
            for offset, content in runs.items():
                os.pwrite(file.fileno(), content, offset)
            os.truncate(file.fileno(), size)

    random = hashlib.shake_256(b"holes").digest
    sparse(b"holes/10 GB", SPARSE_SIZE, {9 * GIBIBYTE + 12345: random(MEBIBYTE)})
    sparse(b"holes/only", 5 * MEBIBYTE, {})
    sparse(b"holes/at the end", MEBIBYTE, {0: random(8192)})
    sparse(b"holes/at the start", MEBIBYTE, {MEBIBYTE - 5000: random(5000)})
    sparse(b"holes/many", 4 * MEBIBYTE, {offset: random(4096) for offset in range(0, 4 * MEBIBYTE, 65536)})
    sparse(b"holes/odd size", 1_000_001, {300_000: random(3)})
    sparse(b"holes/caf\xe9", MEBIBYTE, {0: b"latin1"})
    sparse(b"holes/" + CYRILLIC * 2, MEBIBYTE, {500_000: b"utf8"})
    sparse(b"holes/" + b"l" * 250, MEBIBYTE, {500_000: b"long"})


def _rights(top: bytes, write: Callable[..., bytes]) -> None:
    os.chmod(write(b"rights/setuid"), 0o4755)
    os.chmod(write(b"rights/setgid"), 0o2755)
    os.chmod(write(b"rights/none"), 0o000)
    for name, mode in ((b"sticky", 0o1777), (b"setgid directory", 0o2775), (b"closed", 0o000), (b"read only", 0o555)):
        write(b"rights/" + name + b"/inside")
        os.chmod(top + b"rights/" + name, mode)
    for name, uid, gid in (
        (b"owned", 1000, 1001),
        (b"octal limit", 2_097_151, 2_097_151),
        (b"beyond octal", 2_097_152, 2_097_153),
        (b"largest", 4_294_967_294, 4_294_967_294),
    ):
        os.chown(write(b"rights/" + name), uid, gid)
        os.makedirs(top + b"rights/directory " + name)
        os.chown(top + b"rights/directory " + name, uid, gid)
    owned_setuid = write(b"rights/setuid of another")
    os.chown(owned_setuid, 1000, 1000)
    os.chmod(owned_setuid, 0o6755)

    write(b"acl/file")
    os.makedirs(top + b"acl/directory/below")
    os.mkfifo(top + b"acl/fifo")
    write(b"acl/directory/below/inside")
    for access in (b"acl/file", b"acl/fifo", b"acl/directory/below"):
        subprocess.run(["setfacl", "-m", "u:4242:rw-,u:0:r-x,g:3000000:--x,m::rwx,o::-", top + access], check=True)
    subprocess.run(["setfacl", "-m", "d:u:4242:rwx,d:g:5:r,d:o::-", top + b"acl/directory"], check=True)
    write(b"acl/directory/inherits")

    attributed = write(b"attributes/file")
    os.setxattr(attributed, b"user.binary", bytes(range(256)))
    os.setxattr(attributed, b"user.empty", b"")
    os.setxattr(attributed, b"user.text", "käse\nwith a second line".encode())
    os.setxattr(attributed, b"user.like a record", b"\n23 path=./somewhere/else\n")
    os.setxattr(attributed, b"user.caf\xe9", b"name is not UTF-8")
    os.setxattr(attributed, b"trusted.of root", b"\x00\xff")
    os.setxattr(write(b"attributes/large"), b"user.large", hashlib.shake_256(b"large").digest(3000))
    escaped = write(b"attributes/escaped")
    os.setxattr(escaped, b"user.a=b", b"equals")
    os.setxattr(escaped, b"user.100%", b"percent")
    os.setxattr(escaped, b"user.%3D", b"looks escaped")
    os.makedirs(top + b"attributes/directory")
    os.setxattr(top + b"attributes/directory", b"user.on a directory", b"yes")
    os.symlink(b"file", top + b"attributes/symlink")
    os.setxattr(top + b"attributes/symlink", b"trusted.on a symlink", b"yes", follow_symlinks=False)
    capable = write(b"attributes/capable")
    os.chown(capable, 1000, 1000)
    os.chmod(capable, 0o755)
    subprocess.run(["setcap", "cap_net_raw,cap_net_bind_service+ep", capable], check=True)


def _times(top: bytes, write: Callable[..., bytes]) -> None:
    for name, nanoseconds in {
        b"epoch": 0,
        b"whole second": 1_600_000_000_000_000_000,
        b"nanoseconds": 1_600_000_000_123_456_789,
        b"before 1970": BEFORE_1970_NS,
        b"before 1970, whole": -86_400_000_000_000,
        b"just before 1970": -1,
        b"after 2038": AFTER_2038_NS,
        b"after 2242": AFTER_2242_NS,
    }.items():
        path = write(b"times/" + name)
        os.utime(path, ns=(0, nanoseconds))
        os.mkdir(top + b"times/directory " + name)
        write(b"times/directory " + name + b"/inside")
        os.utime(top + b"times/directory " + name, ns=(0, nanoseconds))
    os.utime(top, ns=(0, 1_500_000_000_000_000_001))
