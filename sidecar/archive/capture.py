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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter

from sidecar.archive import filesystem
from sidecar.archive.copies import READERS, Copies, same, signature_of
from sidecar.archive.entry import Entry, Kind, fingerprint, kind_of
from sidecar.archive.packer import Packer
from sidecar.archive.pool import Chain, Pool
from sidecar.archive.settled import keeps_times, settled
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


def measure(root: str, synced_ns: int | None = None) -> tuple[int, int, int]:
    """Number of regular files, the bytes of their data, and how many of those are not settled.

    Hard links count once. synced_ns: as for `settled`; None where nothing is. An estimate, because nothing is frozen.
    Raises VolumeUnavailable, VolumeUnreadable.
    """
    files = size = hot = 0
    linked: set[tuple[int, int]] = set()
    path = [b""]
    try:
        with closing(_Descent(_open_root(root))) as descent:
            trusted = synced_ns is not None and keeps_times(filesystem.type_of(descent.levels[0].descriptor))
            for status in _files(descent, path):
                if status.st_nlink > 1:
                    identity = (status.st_dev, status.st_ino)
                    if identity in linked:
                        continue
                    linked.add(identity)
                length = min(status.st_size, status.st_blocks * _SECTOR)
                files += 1
                size += length
                if not (trusted and settled(status.st_mtime_ns, status.st_ctime_ns, synced_ns or 0)):
                    hot += length
    except OSError as exc:
        raise _unreadable(root, exc, path[0]) from exc
    return files, size, hot


def _files(descent: _Descent, path: list[bytes]) -> Iterator[os.stat_result]:
    """The status of every regular file on the way; path: where it is, for error messages."""
    while descent.levels:
        level = descent.levels[-1]
        for name, kind in level.names:
            path[0] = level.prefix + _encoded(name)
            if kind is Kind.DIRECTORY and descent.enter(name, path[0]):
                break
            if kind is not Kind.FILE:
                continue
            try:
                status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield status
        else:
            descent.leave()


def sync(root: str, copies: Copies, now_ns: int) -> None:
    """What `Copies.sync` does, for the volume at `root`. One that is not there is for the next walk to tell."""
    with suppress(VolumeUnavailable):
        top = _open_root(root)
        try:
            copies.sync(top, now_ns)
        finally:
            os.close(top)


def pack(
    root: str,
    copies: Copies,
    pool: Pool,
    packer: Packer,
    check: Callable[[], None],
    copied: Callable[[int], None],
    choose: Callable[[], Sequence[Chain]],
) -> None:
    """The live pass, as one walk: what the pool has not is packed if it is settled, and copied if it is hot.

    choose: when the walk has met all files, makes parts of the earlier archive's chains that stand; gives those that
    are of no use, whose files are read like the others. Otherwise as `precopy`; raises what the packer's `send` raises.
    """
    walk = _Walk(copies, check, copied, pool=pool, packer=packer)

    def fallen() -> Iterator[Chain]:
        yield from pool.fallen()
        packer.drain()
        yield from choose()
        packer.end()
        walk.packer = None
        yield from pool.fallen()

    _while_it_changes(root, walk, fallen)


def precopy(
    root: str, copies: Copies, check: Callable[[], None], copied: Callable[[int], None], pool: Pool | None = None
) -> None:
    """Bring the copies of the files below `root` that are in no block of the pool up to date, as one walk.

    While they are being changed: nothing that changes on the way is an error, because a later walk meets it again.
    check, copied: as for `capture`. Raises what check raises, SpoolFull, VolumeUnavailable, VolumeUnreadable.
    """
    _while_it_changes(root, _Walk(copies, check, copied, pool=pool), pool.fallen if pool else lambda: ())


def _while_it_changes(root: str, walk: _Walk, fallen: Callable[[], Iterable[Chain]]) -> None:
    top = _open_root(root)
    try:
        try:
            walk.run(top)
        except _MovedAway:
            pass
        except OSError as exc:
            if exc.errno not in _PASSING:
                raise
        walk.read_again(top, fallen())
    except OSError as exc:
        raise _unreadable(root, exc, walk.path) from exc
    finally:
        os.close(top)
    walk.capture.spool.flush()


def capture(
    root: str,
    copies: Copies,
    check: Callable[[], None],
    copied: Callable[[int], None],
    pool: Pool | None = None,
) -> Capture:
    """Bring the copies of the tree below `root` up to date for the last time, as one walk; all that it found.

    pool: blocks that hold what is not copied; those that no longer do have fallen when this returns.
    check: called often (each directory, 4 MiB, 128 entries); raises to stop (budget spent, told to stop).
    copied: told the bytes read since its last call, as often.
    Raises what check raises, SpoolFull, VolumeUnavailable, VolumeUnreadable.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="compare") as readers:
        walk = _Walk(copies, check, copied, readers, pool)
        top = _open_root(root)
        try:
            with _no_garbage_collection():
                walk.run(top)
                if pool:
                    walk.read_again(top, pool.fallen())
        except OSError as exc:
            raise _unreadable(root, exc, walk.path) from exc
        finally:
            os.close(top)
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
    """One walk: the live pass, which has a packer; one of `precopy`; or the last one, of `capture`, with readers."""

    def __init__(
        self,
        copies: Copies,
        check: Callable[[], None],
        copied: Callable[[int], None],
        readers: Executor | None = None,
        pool: Pool | None = None,
        packer: Packer | None = None,
    ) -> None:
        self.capture = Capture(copies.spool)
        self.path = b""  # for error messages
        self._copies = copies
        self._check = check
        self._copied = copied
        self._readers = readers
        self._pool = pool
        self.packer = packer
        self._afresh = packer is not None and pool is not None and pool.is_empty  # a first backup: all must be opened
        self._device = -1
        self._last = readers is not None
        self._gone = _REPLACED if self._last else _PASSING
        self._untold = 0
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._directories: list[Entry] = []

    def run(self, top: int) -> None:
        self._copies.written = self._copies.cloned = 0
        if self._pool:
            self._pool.begin_walk()
            self._device = os.fstat(top).st_dev
        with closing(_Descent(os.open(".", _OPEN_DIRECTORY, dir_fd=top))) as descent:
            while descent.levels:
                level = descent.levels[-1]
                prefix, directory = level.prefix, level.descriptor
                for number, (name, kind) in enumerate(level.names):
                    if not number % _TELL_EVERY_ENTRIES:
                        self._tell()
                    self.path = prefix + _encoded(name)
                    if kind is Kind.FILE:
                        self._regular(directory, name)
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
            if not self._afresh:
                status = os.lstat(name, dir_fd=directory)
                if status.st_nlink > 1 and (first := self._first_names.get((status.st_dev, status.st_ino))):
                    self.capture.others.append(Entry(path, Kind.HARD_LINK, signature_of(status), first))
                    return
                if (self._pool and self._pool.meet(path, status, self._device)) or self._is_copied(status):
                    if status.st_nlink > 1:
                        self._first_name(status)
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
            self._take(descriptor, before)
        finally:
            os.close(descriptor)

    def _is_copied(self, status: os.stat_result) -> bool:
        """Whether the spool holds this file, and known without reading it."""
        entry = self._copies.unchanged(status, last=self._last)
        if entry is not None:
            self.capture.files.append(entry if entry.path == self.path else entry._replace(path=self.path))
        return entry is not None

    def _take(self, descriptor: int, before: os.stat_result) -> None:
        """Read an open regular file into a block or into the spool."""
        path = self.path
        attributes = _attributes(descriptor)
        if (
            self.packer
            and self._copies.is_settled(before)
            and self.packer.add(descriptor, before, signature_of(before), path, attributes, self._read)
        ):
            return
        entry, still = self._copies.bring(descriptor, before, path, attributes, self._read, self._readers)
        if not still:
            self.capture.changed.append(path)
        self.capture.files.append(entry)

    def read_again(self, top: int, fallen: Iterable[Chain]) -> None:
        """Take the files of chains that have fallen, unless the walk has taken them or they are gone."""
        taken: set[bytes] | None = None
        for chain in fallen:
            assert self._pool is not None
            if taken is None:
                taken = {entry.path for entry in self.capture.files}
            for path in self._pool.files_of(chain):
                if path not in taken:
                    self._again(top, path)
                    self._tell()

    def _again(self, top: int, path: bytes) -> None:
        assert self._pool is not None
        self.path = path
        try:
            descriptor = _open_below(top, path)
            try:
                before = os.fstat(descriptor)
                is_link = before.st_nlink > 1 and self._first_name(before)  # it is in the archive as a link to that
                is_packed = self._pool.holds(fingerprint(path, signature_of(before)))  # by now, into another block
                if stat.S_ISREG(before.st_mode) and not is_link and not is_packed:
                    self._take(descriptor, before)
            finally:
                os.close(descriptor)
        except OSError as exc:
            if exc.errno not in self._gone:  # else its directory has changed, and the walk knows
                raise

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


def _open_below(top: int, path: bytes) -> int:
    """Open a file by its path, through no symlink. Raises OSError."""
    *above, name = path.split(b"/")
    directory = top
    try:
        for each in above:
            below = os.open(each, _OPEN_DIRECTORY, dir_fd=directory)
            if directory != top:
                os.close(directory)
            directory = below
        return os.open(name, _OPEN_FILE, dir_fd=directory)
    finally:
        if directory != top:
            os.close(directory)


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
