"""Raw copies of file data on the state volume, taken while the application runs and put right while it is frozen.

One file a volume: room is given forward and never taken back, written to and read at any position. Its bounds are
checked before the freeze (`reserve`) and again while it grows, because its disk is the application's disk too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from sidecar.archive import filesystem
from sidecar.errors import SidecarError, SpoolFull

BUFFER = 1024 * 1024  # larger ones were no faster, and each volume of a group has one
DISK_RESERVE = 0.10  # of the disk, always left free
_PAGE = 4096
_LARGE = 16 * _PAGE
_STEP = 16 * BUFFER  # reserved at once when room runs out
_MOST_GROWTH = 1024 * BUFFER


def with_growth(size: int) -> int:
    """Room to reserve for files of `size` bytes: some of them grow or are made anew while they are copied."""
    return size + min(size // 8, _MOST_GROWTH)


class SpoolSpace:
    """The spool's directory and its bounds, shared by all volumes of a group.

    most: BACKUP_SPOOL_MAX in bytes, or None for no bound but the disk's reserve.
    """

    def __init__(self, directory: Path, most: int | None = None) -> None:
        self._directory = directory
        self._most = most
        self._claimed = 0
        self._lent = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for stale in directory.iterdir():  # what a killed run left; nothing else lives here
                stale.unlink()
        except OSError as exc:
            raise _failed("cleaning the spool", exc, 0) from exc

    @property
    def directory(self) -> Path:
        """Where files of a run may lie; emptied at the next start."""
        return self._directory

    def claim(self, length: int) -> None:
        """Count `length` bytes more against the bounds. Raises SpoolFull with the bytes needed in all."""
        wanted = self._claimed + length
        if self._most is not None and wanted > self._most:
            raise SpoolFull(
                f"the spool needs {wanted:,} bytes and may hold {self._most:,}",
                needed=wanted,
                hint="raise BACKUP_SPOOL_MAX, or split the group with the volume label backup.group",
            )
        try:
            disk = os.statvfs(self._directory)
        except OSError as exc:
            raise _failed("asking the spool's disk for its size", exc, wanted) from exc
        free = disk.f_bavail * disk.f_frsize - int(disk.f_blocks * disk.f_frsize * DISK_RESERVE) - self._lent
        if length > free:
            raise SpoolFull(
                f"the spool needs {wanted:,} bytes; its disk has {max(free, 0):,} bytes left above the "
                f"{DISK_RESERVE:.0%} that are kept free for the application",
                needed=wanted,
                hint="free space on the disk of the backup-state volume, or put that volume on a larger disk",
            )
        self._claimed = wanted

    def release(self, length: int) -> None:
        """Give claimed bytes back."""
        self._claimed -= length

    def lend(self, length: int) -> None:
        """Note claimed bytes that take no room now (negative: no longer), and will as the application writes.

        A clone shares the application's blocks until these are written to, and then each of them takes another one.
        """
        self._lent += length

    def new(self, name: str, suffix: str = ".raw") -> Spool:
        """An empty spool file for one volume."""
        return Spool(self, self.path(name, suffix))

    def path(self, name: str, suffix: str) -> Path:
        """Where a file for a volume lies; names of volume plug-ins may hold slashes."""
        return self._directory / f"{quote(name, safe='')}{suffix}"


class Spool:
    """The spool file of one volume. Leaving the `with` block deletes it and gives its space back.

    block: bytes; what is cloned begins on multiples of it.
    """

    def __init__(self, space: SpoolSpace, path: Path) -> None:
        self._space = space
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise _failed("making a spool file", exc, 0) from exc
        self._end = 0
        self._reserved = 0
        self.block = max(_PAGE, os.fstatvfs(self._file).f_bsize)
        self._cloned_end = self._lent = 0
        # What was written last, waiting for what follows it: many small files are one write.
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = 0
        self._filled = 0

    def reserve(self, length: int) -> None:
        """Allocate room for `length` bytes in all, so that a full disk is found before anything is frozen.

        Raises SpoolFull, and SidecarError when the disk fails otherwise; so do `allot`, `write`, `put` and `flush`.
        """
        more = length - self._reserved
        if more <= 0:
            return
        self._space.claim(more)
        try:
            os.posix_fallocate(self._file, self._reserved, more)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # else it cannot allocate ahead; writing will tell
                self._space.release(more)
                raise _failed("reserving room in the spool", exc, length) from exc
        self._reserved = length

    @property
    def reserved(self) -> int:
        """Bytes reserved."""
        return self._reserved

    @property
    def end(self) -> int:
        """Where the room given so far ends."""
        return self._end

    def allot(self, length: int, *, blocks: bool = False) -> int:
        """Give `length` bytes of room; where they begin. Many begin on a page, so that writing a few reads none.

        blocks: they begin on a block, so that they can be cloned.
        """
        unit = self.block if blocks else 1 if length < _LARGE else _PAGE
        position = -(-self._end // unit) * unit
        end = position + length
        if end > self._reserved:
            try:
                self.reserve(end + _STEP)
            except SpoolFull:
                self.reserve(end)
        self._end = end
        return position

    def write(self, data: memoryview, position: int) -> None:
        """Put bytes where room was given. They may wait in a buffer for more; `flush` says when they may not."""
        if position != self._start + self._filled or self._filled + len(data) > BUFFER:
            self.flush()
            self._start = position
        if len(data) < _LARGE:
            self._buffer[self._filled : self._filled + len(data)] = data
            self._filled += len(data)
            return
        self.flush()
        self.put(data, position)
        self._start = position + len(data)

    def put(self, data: memoryview, position: int) -> None:
        """Put bytes where room was given, at once. Safe from several threads; what `write` holds back comes later."""
        written = 0
        while written < len(data):
            try:
                written += os.pwrite(self._file, data[written:], position + written)
            except OSError as exc:
                raise _failed("writing the spool", exc, self._end) from exc

    def clone(self, source: int, offset: int, position: int, length: int) -> None:
        """Share these blocks of an open file, which must be on the spool's file system. Raises OSError: see there.

        Their room stays claimed and gives up what it has on the disk: as much as the application may need to keep its
        files apart from it.
        """
        self.flush()  # or what waits from before might come after it
        filesystem.clone(source, offset, self._file, position, length)
        if (new := position + length - max(position, self._cloned_end)) > 0:  # not only cloned once more
            self._cloned_end = position + length
            self._lent += new
            self._space.lend(new)

    def flush(self) -> None:
        """Put what `write` holds back."""
        self.put(self._buffer[: self._filled], self._start)
        self._start += self._filled
        self._filled = 0

    def read_into(self, views: Sequence[memoryview], position: int) -> None:
        """Fill the views, one after another, from `position`. Safe from several threads once all is flushed.

        Raises EOFError for what no room was given for: it would be zeros.
        """
        if position + sum(map(len, views)) > self._end:
            raise EOFError(f"the spool {self._path} ends at {self._end}")
        first = 0  # of the views that are not full
        rest: memoryview | None = None  # of that one, when it is full in part
        while first < len(views):
            wanted = list(views[first : first + _IOV_MAX])
            if rest is not None:
                wanted[0] = rest
            try:
                got = os.preadv(self._file, wanted, position)
            except OSError as exc:
                raise _failed("reading the spool", exc, 0) from exc
            if got == 0:
                raise EOFError(f"the spool {self._path} ends at {position}")
            position += got
            rest = None
            for view in wanted:
                if got < len(view):
                    rest = view[got:]
                    break
                got -= len(view)
                first += 1

    def close(self) -> None:
        """Delete the file and give the space back. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._space.release(self._reserved)
            self._space.lend(-self._lent)
            with suppress(FileNotFoundError):
                self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_IOV_MAX = 512  # half of Linux's limit


def _failed(what: str, exc: OSError, needed: int) -> SidecarError:
    """An error of the spool's disk, never to be taken for one of the volume that is being read."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpoolFull(
            f"{what} failed: {exc.strerror}",
            needed=needed,
            hint="free space on the disk of the backup-state volume",
        )
    return SidecarError(
        f"{what} failed: {exc.strerror}",
        hint="is the backup-state volume mounted writable, and its disk sound? see the kernel's log",
    )
