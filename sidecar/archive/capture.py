"""One walk over a volume that brings the spool's copy of every regular file up to date.

Everything is opened relative to a directory descriptor with O_NOFOLLOW, because a hostile application could put a
symlink in the place of a directory and have us read another volume. Nothing is ever mapped: a truncated file would
kill us with SIGBUS.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter

from sidecar.archive.copies import READERS, Copies, same, signature_of
from sidecar.archive.entry import Entry, Kind, kind_of
from sidecar.archive.spool import Spool
from sidecar.errors import SidecarError, VolumeUnavailable, VolumeUnreadable

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_OPEN_DIRECTORY = _OPEN_FILE | os.O_DIRECTORY
_REPLACED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # vanished; now a symlink, a file, a socket
_SECTOR = 512  # the unit of st_blocks, whatever the file system's block is
_PASSING = (
    *_REPLACED,
    errno.ESTALE,
    errno.EAGAIN,
)  # what a walk meets while others write: deleted by another host, leased
_OPEN_LEVELS = 100  # descriptors for the way down; a process may have as few as 1,024
_TELL_EVERY = 1024 * 1024  # bytes; asking and telling for each small file would cost as much as reading it
_TELL_EVERY_ENTRIES = 128
# os.fsencode without its questions, which took a tenth of the walk over unchanged files.
_encoded = partial(str.encode, encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors())


@dataclass(slots=True)
class Capture:
    """What one walk found.

    files: regular files in the order of the spool; others: hard links, symlinks, special files, then directories,
    children before parents, the root last; a directory with symlinks that lead out of it stands both before and after
    those. sockets: paths that no archive can hold; changed: paths that were not the same before and after they were
    read.
    """

    spool: Spool
    files: list[Entry] = field(default_factory=list)
    others: list[Entry] = field(default_factory=list)
    sockets: list[bytes] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)

    @property
    def bytes_read(self) -> int:
        """Data bytes of all files, whenever they were copied. Added up when asked for, which is after the thaw."""
        return sum(file.data_length for file in self.files)


def measure(root: str) -> tuple[int, int]:
    """Number of regular files, and the bytes that a capture of them would take; hard links count once.

    An estimate, because nothing is frozen. Raises VolumeUnavailable, VolumeUnreadable.
    """
    files = size = 0
    linked: set[tuple[int, int]] = set()
    path = b""
    try:
        with closing(_Descent(_open_root(root))) as descent:
            while descent.levels:
                level = descent.levels[-1]
                for name, kind in level.names:
                    path = level.prefix + os.fsencode(name)
                    if kind is Kind.DIRECTORY and descent.enter(name, path):
                        break
                    if kind is not Kind.FILE:
                        continue
                    try:
                        status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if status.st_nlink > 1:
                        identity = (status.st_dev, status.st_ino)
                        if identity in linked:
                            continue
                        linked.add(identity)
                    if stat.S_ISREG(status.st_mode):
                        files += 1
                        size += min(status.st_size, status.st_blocks * _SECTOR)
                else:
                    descent.leave()
    except OSError as exc:
        raise _unreadable(root, exc, path) from exc
    return files, size


def sync(root: str, copies: Copies, now_ns: int) -> None:
    """What `Copies.sync` does, for the volume at `root`. One that is not there is for the next walk to tell."""
    with suppress(VolumeUnavailable):
        top = _open_root(root)
        try:
            copies.sync(top, now_ns)
        finally:
            os.close(top)


def precopy(root: str, copies: Copies, check: Callable[[], None], copied: Callable[[int], None]) -> None:
    """Bring the copies of the files below `root` up to date, as one walk, while they are being changed.

    Nothing that changes on the way is an error: a later walk meets it again. check, copied: as for `capture`.
    Raises what check raises, SpoolFull, VolumeUnavailable, VolumeUnreadable.
    """
    walk = _Walk(copies, check, copied)
    top = _open_root(root)
    try:
        walk.run(top)
    except _MovedAway:
        pass
    except OSError as exc:
        if exc.errno not in _PASSING:
            raise _unreadable(root, exc, walk.path) from exc
    copies.spool.flush()


def capture(root: str, copies: Copies, check: Callable[[], None], copied: Callable[[int], None]) -> Capture:
    """Bring the copies of the tree below `root` up to date for the last time, as one walk; all that it found.

    check: called often (each directory, 4 MiB, 128 entries); raises to stop (budget spent, told to stop).
    copied: told the bytes read since its last call, as often.
    Raises what check raises, SpoolFull, VolumeUnavailable, VolumeUnreadable.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="compare") as readers:
        walk = _Walk(copies, check, copied, readers)
        top = _open_root(root)
        try:
            with _no_garbage_collection():
                walk.run(top)
        except OSError as exc:
            raise _unreadable(root, exc, walk.path) from exc
    copies.spool.flush()
    return walk.capture


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A walk makes no cycles, but so many tuples that looking for some took a microsecond for each file."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _MovedAway(VolumeUnreadable):
    """A directory was moved out of the one that we came from."""


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
        errno.EMFILE: "the limit of open files is too low: raise ulimits.nofile",
        errno.EAGAIN: "a program holds a lease on the file (Samba's kernel oplocks): let the sidecar stop it instead",
        errno.ESTALE: "the network file system lost the file: is its server up?",
    }
    return VolumeUnreadable(f"reading {where!r} failed: {exc.strerror}", hint=hints.get(exc.errno or 0, ""))


@dataclass(slots=True)
class _Level:
    descriptor: int  # -1 while it is closed
    path: bytes
    prefix: bytes  # of its entries' paths
    before: os.stat_result
    names: Iterator[tuple[str, Kind | None]]
    outward: list[Entry] = field(default_factory=list)


class _Descent:
    """The directories from the root down to the one being read.

    Without recursion, and with few descriptors open, because a 4,000-byte path may be 2,000 directories deep: those
    high up are closed on the way down, and opened again through `..` on the way up.
    """

    def __init__(self, top: int) -> None:
        self.levels: list[_Level] = []
        self._push(top, b"", b"")

    def enter(self, name: str, path: bytes) -> bool:
        """Go down into the last level's directory `name`; False where it is none any more."""
        try:
            descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=self.levels[-1].descriptor)
        except OSError as exc:
            if exc.errno in _REPLACED:
                return False
            raise
        self._push(descriptor, path, path + b"/")
        if len(self.levels) > _OPEN_LEVELS:
            high = self.levels[-1 - _OPEN_LEVELS]
            if high.descriptor >= 0:
                os.close(high.descriptor)
                high.descriptor = -1
        return True

    def leave(self) -> None:
        """Go up. Raises VolumeUnreadable where what is above is not the directory that we came from."""
        level = self.levels[-1]
        if len(self.levels) > 1 and self.levels[-2].descriptor < 0:
            above = self.levels[-2]
            above.descriptor = os.open("..", _OPEN_DIRECTORY, dir_fd=level.descriptor)
            if not os.path.samestat(os.fstat(above.descriptor), above.before):
                raise _MovedAway(
                    f"the directory {os.fsdecode(level.path)!r} was moved away while it was read",
                    hint="something outside the frozen containers writes to the volume: find it and freeze it too",
                )
        self.levels.pop()
        os.close(level.descriptor)

    def close(self) -> None:
        """Close what is open."""
        for level in self.levels:
            if level.descriptor >= 0:
                os.close(level.descriptor)
        self.levels.clear()

    def _push(self, descriptor: int, path: bytes, prefix: bytes) -> None:
        try:
            before = os.fstat(descriptor)
            with os.scandir(descriptor) as entries:
                # Not the entries themselves: they remember the number of a descriptor that may be closed by then.
                names = [(entry.name, _listed_kind(entry)) for entry in entries]
            names.sort(key=itemgetter(0))
        except BaseException:
            os.close(descriptor)
            raise
        self.levels.append(_Level(descriptor, path, prefix, before, iter(names)))


class _Walk:
    """One walk of `precopy`, or the last one, of `capture`, which has readers."""

    def __init__(
        self,
        copies: Copies,
        check: Callable[[], None],
        copied: Callable[[int], None],
        readers: Executor | None = None,
    ) -> None:
        self.capture = Capture(copies.spool)
        self.path = b""  # for error messages
        self._copies = copies
        self._check = check
        self._copied = copied
        self._readers = readers
        self._last = readers is not None
        self._gone = _REPLACED if self._last else _PASSING
        self._untold = 0
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._directories: list[Entry] = []

    def run(self, top: int) -> None:
        self._copies.written = 0
        with closing(_Descent(top)) as descent:
            while descent.levels:
                level = descent.levels[-1]
                for number, (name, kind) in enumerate(level.names):
                    if number % _TELL_EVERY_ENTRIES == 0:
                        self._tell()
                    self.path = level.prefix + _encoded(name)
                    if kind is Kind.FILE:
                        self._regular(level.descriptor, name)
                    elif kind is not Kind.DIRECTORY:
                        self._special(level, name)
                    elif descent.enter(name, self.path):
                        break
                    else:
                        self.capture.changed.append(self.path)
                else:
                    self._finish(level)
                    descent.leave()
        self._tell()
        self.capture.others += self._directories

    def _tell(self) -> None:
        self._check()
        if self._untold:
            self._copied(self._untold)
            self._untold = 0

    def _finish(self, level: _Level) -> None:
        self.path = level.path
        if signature_of(os.fstat(level.descriptor)) != signature_of(level.before):
            self.capture.changed.append(level.path)
        attributes = _attributes(level.descriptor)
        directory = Entry(level.path, Kind.DIRECTORY, signature_of(level.before), attributes=attributes)
        if level.outward:
            # GNU tar makes these symlinks at the very end, and sets their directory's times after that only if it met
            # the directory just before them; bsdtar sets them as it meets it, and so wants it after them (both tried).
            self._directories += [directory, *level.outward]
        self._directories.append(directory)

    def _regular(self, directory: int, name: str) -> None:
        path = self.path
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if status.st_nlink > 1 and (first := self._first_names.get((status.st_dev, status.st_ino))):
                self.capture.others.append(Entry(path, Kind.HARD_LINK, signature_of(status), first))
                return
            if entry := self._copies.unchanged(status, last=self._last):
                if status.st_nlink > 1:
                    self._first_name(status)
                self.capture.files.append(entry if entry.path == path else entry._replace(path=path))
                return
            descriptor = os.open(name, _OPEN_FILE, dir_fd=directory)
        except OSError as exc:
            if exc.errno in self._gone:
                self.capture.changed.append(path)
                return
            raise
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                self.capture.changed.append(path)
                return
            if before.st_nlink > 1 and (first := self._first_name(before)):
                self.capture.others.append(Entry(path, Kind.HARD_LINK, signature_of(before), first))
                return
            attributes = _attributes(descriptor)
            entry, still = self._copies.bring(descriptor, before, path, attributes, self._read, self._readers)
            if not still:
                self.capture.changed.append(path)
        finally:
            os.close(descriptor)
        self.capture.files.append(entry)

    def _read(self, length: int) -> None:
        self._untold += length
        if self._untold >= _TELL_EVERY:
            self._tell()

    def _first_name(self, status: os.stat_result) -> bytes:
        """The path under which this inode has been seen before; empty the first time."""
        first = self._first_names.setdefault((status.st_dev, status.st_ino), self.path)
        return b"" if first == self.path else first

    def _special(self, level: _Level, name: str) -> None:
        path = self.path
        directory = level.descriptor
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            kind = kind_of(status.st_mode)
            if kind is Kind.SOCKET:
                self.capture.sockets.append(path)
                return
            if kind in (Kind.FILE, Kind.DIRECTORY):  # it was something else when the directory was listed
                self.capture.changed.append(path)
                return
            link = os.fsencode(os.readlink(name, dir_fd=directory)) if kind is Kind.SYMLINK else b""
            outward = _leads_out(link)
            # A symlink that leads out and has two names becomes two: the archive may hold the first one too late.
            if status.st_nlink > 1 and not outward and (first := self._first_name(status)):
                self.capture.others.append(Entry(path, Kind.HARD_LINK, signature_of(status), first))
                return
            attributes = _attributes(f"/proc/self/fd/{directory}/{name}")
            if not same(os.stat(name, dir_fd=directory, follow_symlinks=False), status):
                self.capture.changed.append(path)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EINVAL):  # vanished; not a symlink any more
                raise
            self.capture.changed.append(path)
            return
        device = (0, 0)
        if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        entry = Entry(path, kind, signature_of(status), link, attributes, device)
        (level.outward if outward else self.capture.others).append(entry)


def _listed_kind(entry: os.DirEntry[str]) -> Kind | None:
    """What the directory's listing says; None for what is neither a regular file nor a directory."""
    if entry.is_file(follow_symlinks=False):
        return Kind.FILE
    return Kind.DIRECTORY if entry.is_dir(follow_symlinks=False) else None


def _leads_out(link: bytes) -> bool:
    """Whether a symlink's target is one that GNU tar distrusts: absolute, or with `..`."""
    return link.startswith(b"/") or b".." in link.split(b"/")


def _attributes(where: int | str) -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes in the order of their names; none where the file system has none."""
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            return ()
        raise
    if not names:
        return ()
    attributes = []
    for name in sorted(names):
        try:
            attributes.append((os.fsencode(name), os.getxattr(where, name, follow_symlinks=follow)))
        except OSError as exc:
            if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP):  # taken away meanwhile (ctime tells); only a name
                raise
    return tuple(attributes)
