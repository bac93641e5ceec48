"""A directory as a store: nothing is visible before it is whole and on the disk."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from isal import isal_zlib

from sidecar.durable import sync_directory
from sidecar.errors import (
    BucketMissing,
    ChecksumMismatch,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
)
from sidecar.stores.pool import combine
from sidecar.stores.port import MEBIBYTE, Capabilities, Pending, Stored
from sidecar.stores.rules import AbortingUpload, check_copy, check_part, check_parts, check_range, full_key

# Uploads under way live here, on the same file system, so that a rename publishes them. No key may begin with it.
PENDING = ".pending"

# No request carries a part, so only sense limits it.
LIMITS = Capabilities(most_parts=1_000_000, least_part=1, most_part=5 * 1024 * MEBIBYTE, least_copy=1)

_CHUNK = MEBIBYTE


def _now() -> datetime:
    return datetime.now(UTC)


class LocalStore:
    """Sets below `root`/`prefix`. root must exist: a missing mount is never filled in silently.

    Files are made for their owner alone (0600, directories 0700): archives hold the applications' secrets.
    """

    def __init__(
        self,
        root: str,
        *,
        prefix: str = "",
        name: str = "local",
        off_host: bool = False,
        now: Callable[[], datetime] = _now,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self.name = name
        self.off_host = off_host
        self._root = os.path.abspath(root)
        self._prefix = prefix.strip("/")
        self._now = now
        self._token = token

    @property
    def location(self) -> str:
        """The directory."""
        return os.path.join(self._root, self._prefix) if self._prefix else self._root

    @property
    def capabilities(self) -> Capabilities:
        """No limits but those of the contract."""
        return LIMITS

    def begin(
        self,
        key: str,
        *,
        content_type: str = "application/octet-stream",  # noqa: ARG002 files have none
    ) -> _LocalUpload:
        """See Store.begin."""
        self._path(key)
        with self._translated(key):
            return _LocalUpload(self, key, self._new_pending(key))

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/json",  # noqa: ARG002 files have none
        if_absent: bool = False,
    ) -> Stored:
        """See Store.put."""
        self._path(key)
        with self._translated(key):
            workplace = self._new_pending(key)
            try:
                body = os.path.join(workplace, "body")
                with _opened(body, os.O_WRONLY | os.O_CREAT) as descriptor:
                    _write(descriptor, memoryview(data), 0)
                    os.fsync(descriptor)
                if if_absent:
                    try:
                        stored = self._publish(body, key, link=True)
                    except FileExistsError:
                        return self._same_content(key, data)
                else:
                    stored = self._publish(body, key, link=False)
            finally:
                shutil.rmtree(workplace, ignore_errors=True)
        return _with_checksum(stored, isal_zlib.crc32(data))

    def head(self, key: str) -> Stored:
        """See Store.head."""
        with self._file(key) as (_, stored):
            return stored

    @contextmanager
    def open(
        self, key: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None
    ) -> Iterator[_LocalSource]:
        """See Store.open."""
        with self._file(key) as (descriptor, stored):
            span = check_range(stored, offset, length, if_match, self.name)
            yield _LocalSource(self, stored, descriptor, offset, span)

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """See Store.list."""
        base = self.location
        home = os.path.join(self._root, PENDING)
        # Normalised, as the names walked are compared; no prefix may lead out of the store or into uploads under way.
        start = os.path.normpath(os.path.join(base, os.path.dirname(prefix)))
        if not _is_below(start, base) or _is_below(start, home):
            return
        found = []
        with self._translated(prefix):
            os.stat(self._root)
            for directory, subdirectories, names in os.walk(start, onerror=self._walk_failed):
                if directory == self._root and PENDING in subdirectories:
                    subdirectories.remove(PENDING)
                for name in names:
                    path = os.path.join(directory, name)
                    key = os.path.relpath(path, base)
                    # A name that is not UTF-8 is nobody's key.
                    if key.startswith(prefix) and not any("\ud800" <= letter <= "\udfff" for letter in key):
                        with suppress(FileNotFoundError):  # deleted meanwhile
                            status = os.lstat(path)
                            if stat.S_ISREG(status.st_mode):
                                found.append(_stored(key, status))
        yield from sorted(found, key=lambda stored: stored.key)

    def delete(self, keys: Sequence[str]) -> None:
        """See Store.delete. Directories that become empty go too."""
        for key in keys:
            path = self._path(key)
            with self._translated(key):
                os.stat(self._root)
                try:
                    os.unlink(path)
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    continue
                directory = os.path.dirname(path)
                with suppress(FileNotFoundError):  # another delete has removed the empty directory
                    sync_directory(directory)
                while directory != self._root:
                    try:
                        os.rmdir(directory)
                    except OSError:
                        break
                    directory = os.path.dirname(directory)

    def pending(self, prefix: str = "") -> Iterator[Pending]:
        """See Store.pending."""
        found = []
        with self._translated(prefix):
            os.stat(self._root)
            home = os.path.join(self._root, PENDING)
            with suppress(FileNotFoundError):
                for identifier in os.listdir(home):
                    # Without its key file it was killed while being made or removed: it belongs to no key, and shows
                    # under the empty one so that somebody removes it.
                    full = ""
                    with (
                        suppress(FileNotFoundError),
                        open(os.path.join(home, identifier, "key"), encoding="utf-8") as file,
                    ):
                        full = file.read()
                    key = full.removeprefix(self._prefix + "/") if self._prefix else full
                    ours = not full or not self._prefix or full.startswith(self._prefix + "/")
                    if ours and key.startswith(prefix):
                        found.append(Pending(key, identifier, _started(identifier)))
        yield from sorted(found, key=lambda pending: (pending.key, pending.started, pending.upload))

    def abort_pending(self, upload: Pending) -> None:
        """See Store.abort_pending."""
        if not upload.upload or "/" in upload.upload or upload.upload in (".", ".."):
            raise StoreError(f"{upload.upload!r} is not an upload of this store", store=self.name)
        with self._translated(upload.key):
            os.stat(self._root)
            self._remove_pending(os.path.join(self._root, PENDING, upload.upload))

    def _path(self, key: str) -> str:
        full = full_key(self._prefix, key, self.name)
        if full.split("/", 1)[0] == PENDING:
            raise StoreError(f"{key!r} is not a key: {PENDING} holds uploads under way", store=self.name)
        return os.path.join(self._root, full)

    def _new_pending(self, key: str) -> str:
        home = os.path.join(self._root, PENDING)
        with suppress(FileExistsError):
            os.mkdir(home, 0o700)
        milliseconds = int(self._now().timestamp() * 1000)
        workplace = os.path.join(home, f"{milliseconds:x}-{self._token()}")
        os.mkdir(workplace, 0o700)
        with open(os.path.join(workplace, "key"), "w", encoding="utf-8") as file:
            file.write(full_key(self._prefix, key, self.name))
        return workplace

    def _remove_pending(self, workplace: str) -> None:
        # A part that is just being written may add a name while we remove them, and another abort may remove too.
        for _ in range(10):
            try:
                shutil.rmtree(workplace)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
            if not os.path.lexists(workplace):
                return
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), workplace)

    def _publish(self, body: str, key: str, *, link: bool) -> Stored:
        """Give a file that is on the disk its key, durably. With link, raises FileExistsError when the key is taken."""
        path = self._path(key)
        directory = os.path.dirname(path)
        for attempt in range(100):
            try:
                self._make_directories(directory)
                if link:
                    _rename_if_absent(body, path)
                else:
                    os.rename(body, path)
                break
            except FileNotFoundError:
                # Somebody's delete has just removed the empty directory; or there is nothing to publish (into).
                if attempt == 99 or not os.path.isdir(self._root) or not os.path.lexists(body):
                    raise
        sync_directory(directory)
        return _stored(key, os.lstat(path))

    def _make_directories(self, directory: str) -> None:
        if directory == self._root or os.path.isdir(directory):
            return
        parent = os.path.dirname(directory)
        self._make_directories(parent)
        with suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        sync_directory(parent)

    def _same_content(self, key: str, data: bytes) -> Stored:
        with self.open(key) as source:
            if source.stored.size != len(data) or source.read() != data:
                raise ObjectExists(f"{key} exists already, with another content", store=self.name)
            return source.stored

    @contextmanager
    def _file(self, key: str) -> Iterator[tuple[int, Stored]]:
        path = self._path(key)
        with self._translated(key):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ObjectMissing(f"{key} is not in {self.location}", store=self.name)
            yield descriptor, _stored(key, status)
        finally:
            os.close(descriptor)

    def _walk_failed(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(error, key) from error

    def _translate(self, error: OSError, key: str) -> StoreError:
        what = f"{key} in {self.location}: {os.strerror(error.errno or 0)}"
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                return StoreFull(what, hint=f"free space on the disk of {self._root}", store=self.name)
            case errno.EACCES | errno.EPERM | errno.EROFS:
                hint = f"let root write to what is mounted at {self._root}, by its owner and mode and without `ro`"
                return StoreDenied(what, hint=hint, store=self.name)
            case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.ELOOP if os.path.isdir(self._root):
                return ObjectMissing(f"{key} is not in {self.location}", store=self.name)
            case errno.ENOENT | errno.ENOTDIR:
                return BucketMissing(
                    f"the directory {self._root} does not exist",
                    hint=f"mount a directory of the host at {self._root}, or correct BACKUP_LOCAL_DIR",
                    store=self.name,
                )
            case _:
                return StoreError(what, hint=f"look after the disk of {self._root}", store=self.name)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part on the disk: in the body at offset, or, when offset is None, in a file of its own."""

    size: int
    crc32: int
    offset: int | None


class _LocalUpload(AbortingUpload):
    """Parts go one behind the other into `body`, which is the object when none is left out: nothing is written twice.

    A part that comes before its predecessor (threads overtake each other) waits in a file of its own and is moved in
    when its turn has come.
    """

    def __init__(self, store: LocalStore, key: str, workplace: str) -> None:
        self.key = key
        self._store = store
        self._workplace = workplace
        self._body = os.path.join(workplace, "body")
        self._lock = threading.Lock()
        self._next = 1  # the number whose place in the body is the end
        self._end = 0
        self._places: dict[int, tuple[int, int]] = {}  # number to (offset, length) reserved in the body
        self._pieces: dict[int, _Piece] = {}

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        check_part(self.key, number, len(data), LIMITS, self._store.name)
        if isal_zlib.crc32(data) != crc32:
            raise ChecksumMismatch(f"part {number} of {self.key} does not have its checksum", store=self._store.name)
        self._take(number, len(data), iter([memoryview(data)]))

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        check_copy(self.key, number, source, offset, length, LIMITS, self._store.name)
        with self._store._file(source.key) as (descriptor, stored):
            if stored.entity != source.entity:
                raise ObjectChanged(f"{source.key} is not what it was", store=self._store.name)
            # Through memory, although the kernel could copy: the checksum of the whole is compared at the end, so the
            # bytes must be read anyway, and blocks lie at odd offsets, which no file system can share.
            self._take(number, length, self._chunks(source.key, descriptor, offset, length))

    def complete(self, numbers: Sequence[int], *, size: int, crc32: int) -> Stored:
        with self._lock:
            lengths = {number: piece.size for number, piece in self._pieces.items()}
            self._still_there()
            check_parts(self.key, numbers, lengths, size, LIMITS, self._store.name)
            chosen = [(number, self._pieces[number]) for number in numbers]
            if combine((piece.size, piece.crc32) for _, piece in chosen) != (size, crc32):
                raise ChecksumMismatch(f"{self.key} does not have its checksum", store=self._store.name)
            with self._store._translated(self.key):
                stored = self._store._publish(self._assemble(chosen, size), self.key, link=False)
            self.completed = True
            shutil.rmtree(self._workplace, ignore_errors=True)
        return _with_checksum(stored, crc32)

    def abort(self) -> None:
        if self.completed:
            return
        with self._store._translated(self.key):
            os.stat(self._store._root)
            self._store._remove_pending(self._workplace)
        self.aborted = True

    def _take(self, number: int, length: int, chunks: Iterator[memoryview]) -> None:
        with self._lock:
            self._still_there()
            self._pieces.pop(number, None)
            offset = self._reserve(number, length)
        with self._store._translated(self.key):
            path, position = (self._own_file(number), 0) if offset is None else (self._body, offset)
            crc32 = 0
            with _opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
                if offset is None:
                    os.ftruncate(descriptor, 0)
                for chunk in chunks:
                    _write(descriptor, chunk, position)
                    crc32 = isal_zlib.crc32(chunk, crc32)
                    position += len(chunk)
            with self._lock:
                self._pieces[number] = _Piece(length, crc32, offset)
                self._move_in()

    def _reserve(self, number: int, length: int) -> int | None:
        """The part's place in the body, or None when it has none (yet)."""
        if number == self._next:
            self._places[number] = (self._end, length)
            self._next += 1
            self._end += length
        offset, room = self._places.get(number, (None, 0))
        return offset if room == length else None

    def _move_in(self) -> None:
        """Move parts that came early behind their predecessors, now that the end of those is known."""
        while (piece := self._pieces.get(self._next)) is not None:
            number = self._next
            offset = self._reserve(number, piece.size)
            assert offset is not None
            with _opened(self._own_file(number), os.O_RDONLY) as source, _opened(self._body, os.O_WRONLY) as body:
                _copy(source, 0, body, offset, piece.size)
            os.unlink(self._own_file(number))
            self._pieces[number] = _Piece(piece.size, piece.crc32, offset)

    def _assemble(self, chosen: Sequence[tuple[int, _Piece]], size: int) -> str:
        """The path of a file that holds these parts, on the disk."""
        position = whole = 0
        for _, piece in chosen:
            if piece.offset != position:
                break
            position += piece.size
            whole += 1
        path = self._body
        if any(piece.offset is not None for _, piece in chosen[whole:]):
            # Parts were left out or replaced by longer ones: the object is written once more.
            path, position, whole = os.path.join(self._workplace, "object"), 0, 0
        with _opened(path, os.O_WRONLY | os.O_CREAT) as target:
            for number, piece in chosen[whole:]:
                source_path = self._own_file(number) if piece.offset is None else self._body
                with _opened(source_path, os.O_RDONLY) as source:
                    _copy(source, piece.offset or 0, target, position, piece.size)
                position += piece.size
            os.ftruncate(target, size)
            os.fsync(target)
        return path

    def _chunks(self, key: str, descriptor: int, offset: int, length: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_CHUNK, length)))
        while length:
            count = os.preadv(descriptor, [buffer[: min(len(buffer), length)]], offset)
            if not count:
                raise ObjectChanged(f"{key} became shorter while it was copied", store=self._store.name)
            yield buffer[:count]
            offset += count
            length -= count

    def _own_file(self, number: int) -> str:
        return os.path.join(self._workplace, f"part-{number}")

    def _still_there(self) -> None:
        if self.completed or not os.path.isdir(self._workplace):
            with self._store._translated(self.key):
                os.stat(self._store._root)
            raise ObjectMissing(f"the upload of {self.key} was aborted or completed", store=self._store.name)


class _LocalSource:
    def __init__(self, store: LocalStore, stored: Stored, descriptor: int, offset: int, span: int) -> None:
        self.stored = stored
        self._store = store
        self._descriptor = descriptor
        self._offset = offset
        self._rest = span

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._rest if size < 0 else min(size, self._rest)
        if not wanted:
            return b""
        with self._store._translated(self.stored.key):
            data = os.pread(self._descriptor, wanted, self._offset)
        if not data:
            raise ObjectChanged(f"{self.stored.key} became shorter while it was read", store=self._store.name)
        self._offset += len(data)
        self._rest -= len(data)
        return data


def _stored(key: str, status: os.stat_result) -> Stored:
    # A replaced object is another inode; mtime tells when somebody wrote into it.
    entity = f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
    return Stored(key, status.st_size, entity, modified=datetime.fromtimestamp(status.st_mtime, UTC))


def _with_checksum(stored: Stored, crc32: int) -> Stored:
    return Stored(stored.key, stored.size, stored.entity, checksum=f"crc32:{crc32:08x}", modified=stored.modified)


def _started(identifier: str) -> datetime:
    try:
        return datetime.fromtimestamp(int(identifier.split("-", 1)[0], 16) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(os.path.join(directory, ""))


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(descriptor, data, offset)
        data = data[count:]
        offset += count


def _copy(source: int, source_offset: int, target: int, target_offset: int, length: int) -> None:
    """Copy inside the kernel where it can."""
    while length:
        try:
            count = os.copy_file_range(source, target, length, source_offset, target_offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            data = os.pread(source, min(length, _CHUNK), source_offset)
            _write(target, memoryview(data), target_offset)
            count = len(data)
        if not count:
            raise OSError(errno.EIO, "a part became shorter")
        source_offset += count
        target_offset += count
        length -= count


def _rename_if_absent(body: str, path: str) -> None:
    try:
        os.link(body, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # vfat and some network file systems know no hard links; what is left is a narrow race between two hosts.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
        os.rename(body, path)
