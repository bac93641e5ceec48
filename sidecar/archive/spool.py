"""Raw copies of file data on the state volume, taken while the application is frozen.

One file a volume, written forward through one reused buffer, read back at any position. Its bounds are checked before
the freeze (`reserve`) and again while it grows, because its disk is the application's disk too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sidecar.errors import SpoolFull

BUFFER = 4 * 1024 * 1024
DISK_RESERVE = 0.10  # of the disk, always left free


class SpoolSpace:
    """The spool's directory and its bounds, shared by all volumes of a group.

    most: BACKUP_SPOOL_MAX in bytes, or None for no bound but the disk's reserve.
    """

    def __init__(self, directory: Path, most: int | None = None) -> None:
        self._directory = directory
        self._most = most
        self._claimed = 0
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.iterdir():  # what a killed run left; nothing else lives here
            stale.unlink()

    @property
    def directory(self) -> Path:
        """Where files of a run may lie; emptied at the next start."""
        return self._directory

    def claim(self, length: int) -> None:
        """Count `length` bytes more against the bounds. Raises SpoolFull with the bytes needed in all."""
        wanted = self._claimed + length
        if self._most is not None and wanted > self._most:
            raise SpoolFull(
                f"the spool needs {wanted} bytes and may hold {self._most}",
                needed=wanted,
                hint="raise BACKUP_SPOOL_MAX, or split the group with the volume label backup.group",
            )
        disk = os.statvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize - int(disk.f_blocks * disk.f_frsize * DISK_RESERVE)
        if length > free:
            raise SpoolFull(
                f"the spool needs {wanted} bytes; its disk has {max(free, 0)} bytes left above the "
                f"{DISK_RESERVE:.0%} that are kept free for the application",
                needed=wanted,
                hint="free space on the disk of the backup-state volume, or put that volume on a larger disk",
            )
        self._claimed = wanted

    def release(self, length: int) -> None:
        """Give claimed bytes back."""
        self._claimed -= length

    def new(self, name: str) -> Spool:
        """An empty spool file for one volume."""
        return Spool(self, self._directory / f"{name}.raw")


class Spool:
    """The spool file of one volume. Leaving the `with` block deletes it and gives its space back."""

    def __init__(self, space: SpoolSpace, path: Path) -> None:
        self._space = space
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._buffer = memoryview(bytearray(BUFFER))
        self._filled = 0
        self._flushed = 0
        self._allocated = 0

    def reserve(self, length: int) -> None:
        """Allocate room for `length` bytes in all, so that a full disk is found before anything is frozen.

        Raises SpoolFull.
        """
        more = length - self._allocated
        if more <= 0:
            return
        self._space.claim(more)
        try:
            os.posix_fallocate(self._file, self._allocated, more)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # else it cannot allocate ahead; writing will tell
                self._space.release(more)
                raise _full(exc, length) from exc
        self._allocated = length

    @property
    def reserved(self) -> int:
        """Bytes allocated."""
        return self._allocated

    @property
    def position(self) -> int:
        """Where the next byte goes."""
        return self._flushed + self._filled

    def room(self) -> memoryview:
        """The free end of the buffer (never empty): read into it, then say `filled(n)`."""
        return self._buffer[self._filled :]

    def filled(self, length: int) -> None:
        """`length` bytes of `room()` now hold data. Raises SpoolFull."""
        self._filled += length
        if self._filled == BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write the buffer out. Raises SpoolFull."""
        end = self._flushed + self._filled
        if end > self._allocated:
            self.reserve(end)
        written = 0
        while written < self._filled:
            try:
                written += os.pwrite(self._file, self._buffer[written : self._filled], self._flushed + written)
            except OSError as exc:
                raise _full(exc, end) from exc
        self._flushed = end
        self._filled = 0

    def read_into(self, views: Sequence[memoryview], position: int) -> None:
        """Fill the views, one after another, from `position`. Safe from several threads once all is flushed."""
        pending = list(views)
        while pending:
            got = os.preadv(self._file, pending[:_IOV_MAX], position)
            if got == 0:
                raise EOFError(f"the spool {self._path} ends at {position}")
            position += got
            while pending and got >= len(pending[0]):
                got -= len(pending.pop(0))
            if got:
                pending[0] = pending[0][got:]

    def close(self) -> None:
        """Delete the file and give the space back. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._space.release(self._allocated)
            with suppress(FileNotFoundError):
                self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_IOV_MAX = 512  # half of Linux's limit


def _full(exc: OSError, needed: int) -> SpoolFull:
    return SpoolFull(
        f"writing the spool failed: {exc.strerror}",
        needed=needed,
        hint="free space on the disk of the backup-state volume",
    )
