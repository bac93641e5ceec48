"""One walk over a volume that copies every regular file into the spool.

Everything is opened relative to a directory descriptor with O_NOFOLLOW, because a hostile application could put a
symlink in the place of a directory and have us read another volume. Nothing is ever mapped: a truncated file would
kill us with SIGBUS.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sidecar.archive.entry import Entry, Extent, Kind, Signature, kind_of
from sidecar.archive.spool import Spool
from sidecar.errors import SidecarError, VolumeUnavailable, VolumeUnreadable

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_OPEN_DIRECTORY = _OPEN_FILE | os.O_DIRECTORY
_REPLACED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # vanished; now a symlink, a file, a socket
_SECTOR = 512  # the unit of st_blocks, whatever the file system's block is


@dataclass(slots=True)
class Capture:
    """What one walk found.

    files: regular files in the order of the spool; others: hard links, symlinks, special files, then directories,
    children before parents, the root last; sockets: paths that no archive can hold; changed: paths that were not the
    same before and after they were read; bytes_read: data bytes copied.
    """

    spool: Spool
    files: list[Entry] = field(default_factory=list)
    others: list[Entry] = field(default_factory=list)
    sockets: list[bytes] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)
    bytes_read: int = 0


def measure(root: str) -> tuple[int, int]:
    """Number of regular files, and the bytes that a capture of them would take; hard links count once.

    An estimate, because nothing is frozen. Raises VolumeUnavailable, VolumeUnreadable.
    """
    files = size = 0
    linked: set[tuple[int, int]] = set()
    pending = [_open_root(root)]
    try:
        while pending:
            directory = pending.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        try:
                            status = entry.stat(follow_symlinks=False)
                            if stat.S_ISDIR(status.st_mode):
                                pending.append(os.open(entry.name, _OPEN_DIRECTORY, dir_fd=directory))
                                continue
                        except FileNotFoundError:
                            continue
                        if not stat.S_ISREG(status.st_mode):
                            continue
                        if status.st_nlink > 1:
                            if (status.st_dev, status.st_ino) in linked:
                                continue
                            linked.add((status.st_dev, status.st_ino))
                        files += 1
                        size += min(status.st_size, status.st_blocks * _SECTOR)
            finally:
                os.close(directory)
    except OSError as exc:
        raise _unreadable(root, exc) from exc
    finally:
        for directory in pending:
            os.close(directory)
    return files, size


def capture(root: str, spool: Spool, check: Callable[[], None], copied: Callable[[int], None]) -> Capture:
    """Copy the tree below `root` into the spool, as one walk.

    check: called often; raises to stop (budget spent, told to stop). copied: told the bytes copied since its last call.
    Raises what check raises, SpoolFull, VolumeUnavailable, VolumeUnreadable.
    """
    walk = _Walk(Capture(spool), check, copied)
    top = _open_root(root)
    try:
        walk.run(top)
    except OSError as exc:
        raise _unreadable(root, exc, walk.path) from exc
    spool.flush()
    return walk.capture


def _open_root(root: str) -> int:
    try:
        return os.open(root, _OPEN_DIRECTORY)
    except OSError as exc:
        raise VolumeUnavailable(
            f"{root} cannot be opened: {exc.strerror}",
            hint="is the engine's volume directory mounted at /volumes, and DAC_READ_SEARCH among the capabilities?",
        ) from exc


def _unreadable(root: str, exc: OSError, path: bytes = b"") -> SidecarError:
    where = os.path.join(root, os.fsdecode(path)) if path else root
    hints = {
        errno.EACCES: "the container needs cap_add: [DAC_READ_SEARCH]",
        errno.EPERM: "the container needs cap_add: [DAC_READ_SEARCH]",
        errno.EIO: "the disk or the file system is damaged: see the kernel's log",
        errno.EMFILE: "directories are nested deeper than the limit of open files: raise ulimits.nofile",
        errno.ESTALE: "the network file system lost the file: is its server up?",
    }
    return VolumeUnreadable(f"reading {where!r} failed: {exc.strerror}", hint=hints.get(exc.errno or 0, ""))


@dataclass(slots=True)
class _Level:
    descriptor: int
    path: bytes
    before: os.stat_result
    names: Iterator[os.DirEntry[str]]


class _Walk:
    """Depth first without recursion: a 4,000-byte path may be 2,000 directories deep."""

    def __init__(self, captured: Capture, check: Callable[[], None], copied: Callable[[int], None]) -> None:
        self.capture = captured
        self.path = b""  # for error messages
        self._check = check
        self._copied = copied
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._directories: list[Entry] = []

    def run(self, top: int) -> None:
        levels = [self._enter(top, b"")]
        try:
            while levels:
                level = levels[-1]
                entry = next(level.names, None)
                if entry is None:
                    self._leave(level)
                    levels.pop()
                    os.close(level.descriptor)
                    continue
                self.path = os.path.join(level.path, os.fsencode(entry.name))
                if entry.is_dir(follow_symlinks=False):
                    self._check()
                    try:
                        descriptor = os.open(entry.name, _OPEN_DIRECTORY, dir_fd=level.descriptor)
                    except OSError as exc:
                        if exc.errno in _REPLACED:
                            self.capture.changed.append(self.path)
                            continue
                        raise
                    levels.append(self._enter(descriptor, self.path))
                elif entry.is_file(follow_symlinks=False):
                    self._regular(level.descriptor, entry.name)
                else:
                    self._special(level.descriptor, entry.name)
        finally:
            for level in levels:
                os.close(level.descriptor)
        self.capture.others += self._directories

    def _enter(self, descriptor: int, path: bytes) -> _Level:
        try:
            before = os.fstat(descriptor)
            with os.scandir(descriptor) as entries:
                names = sorted(entries, key=_name)
        except BaseException:
            os.close(descriptor)
            raise
        return _Level(descriptor, path, before, iter(names))

    def _leave(self, level: _Level) -> None:
        if _signature(os.fstat(level.descriptor)) != _signature(level.before):
            self.capture.changed.append(level.path)
        attributes = _attributes(level.descriptor)
        self._directories.append(Entry(level.path, Kind.DIRECTORY, _signature(level.before), attributes=attributes))

    def _regular(self, directory: int, name: str) -> None:
        try:
            descriptor = os.open(name, _OPEN_FILE, dir_fd=directory)
        except OSError as exc:
            if exc.errno in _REPLACED:
                self.capture.changed.append(self.path)
                return
            raise
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                self.capture.changed.append(self.path)
                return
            if before.st_nlink > 1:
                identity = (before.st_dev, before.st_ino)
                first = self._first_names.setdefault(identity, self.path)
                if first != self.path:
                    entry = Entry(self.path, Kind.HARD_LINK, _signature(before), link=first)
                    self.capture.others.append(entry)
                    return
            attributes = _attributes(descriptor)
            extents = _extents(descriptor, before)
            position = self.capture.spool.position
            whole = True
            for offset, length in extents if extents is not None else ((0, before.st_size),):
                whole = self._copy(descriptor, offset, length) and whole
            if not whole or _signature(os.fstat(descriptor)) != _signature(before):
                self.capture.changed.append(self.path)
        finally:
            os.close(descriptor)
        self.capture.files.append(
            Entry(self.path, Kind.FILE, _signature(before), b"", attributes, (0, 0), extents, position)
        )

    def _copy(self, descriptor: int, offset: int, length: int) -> bool:
        """Exactly `length` bytes into the spool; zeros where the file has become shorter, which returns False."""
        spool = self.capture.spool
        end = offset + length
        while offset < end:
            room = spool.room()[: end - offset]
            got = os.preadv(descriptor, [room], offset)
            if got == 0:
                self._fill_with_zeros(end - offset)
                return False
            spool.filled(got)
            offset += got
            self.capture.bytes_read += got
            self._copied(got)
            self._check()
        return True

    def _fill_with_zeros(self, length: int) -> None:
        spool = self.capture.spool
        while length:
            room = spool.room()[:length]
            room[:] = bytes(len(room))
            spool.filled(len(room))
            length -= len(room)

    def _special(self, directory: int, name: str) -> None:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            kind = kind_of(status.st_mode)
            if kind is Kind.SOCKET:
                self.capture.sockets.append(self.path)
                return
            if kind in (Kind.FILE, Kind.DIRECTORY):  # it was something else when the directory was listed
                self.capture.changed.append(self.path)
                return
            link = os.fsencode(os.readlink(name, dir_fd=directory)) if kind is Kind.SYMLINK else b""
            attributes = _attributes(f"/proc/self/fd/{directory}/{name}")
        except FileNotFoundError:
            self.capture.changed.append(self.path)
            return
        device = (0, 0)
        if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        self.capture.others.append(Entry(self.path, kind, _signature(status), link, attributes, device))


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _signature(status: os.stat_result) -> Signature:
    return Signature(
        status.st_ino,
        status.st_size,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _attributes(where: int | str) -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes in the order of their names; none where the file system has none."""
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
        if not names:
            return ()
        return tuple((os.fsencode(n), os.getxattr(where, n, follow_symlinks=follow)) for n in sorted(names))
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENODATA):
            return ()
        raise


def _extents(descriptor: int, status: os.stat_result) -> tuple[Extent, ...] | None:
    """The runs of data of a file with holes; None for one without."""
    size = status.st_size
    if status.st_blocks * _SECTOR >= size:
        return None
    extents = []
    offset = 0
    try:
        while offset < size:
            try:
                start = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # nothing but a hole up to the end
                    break
                raise
            offset = os.lseek(descriptor, start, os.SEEK_HOLE)
            extents.append(Extent(start, min(offset, size) - start))
    except OSError as exc:
        if exc.errno == errno.EINVAL:  # the file system does not tell
            return None
        raise
    # A compressed or an inline file takes fewer blocks than its size without having a hole.
    return None if extents == [Extent(0, size)] else tuple(extents)
