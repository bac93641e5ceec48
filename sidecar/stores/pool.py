"""The bounded pool: parts of one upload go out concurrently, their checksums come together as the object's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from isal import isal_zlib

from sidecar.errors import StoreError
from sidecar.stores.port import Stored, Upload
from sidecar.stores.rules import AbortingUpload

# Seconds that abort waits for parts under way: SIGTERM leaves 10 s for everything, and a part whose connection hangs
# takes up to the read timeout of a minute.
ABORT_WAIT = 3.0


@dataclass(frozen=True, slots=True)
class _Part:
    size: int
    crc32: int


def combine(parts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(size, CRC32) of the concatenation of parts, each (size, CRC32)."""
    size = crc32 = 0
    for part_size, part_crc32 in parts:
        crc32 = isal_zlib.crc32_combine(crc32, part_crc32, part_size)
        size += part_size
    return size, crc32


class PooledUpload(AbortingUpload):
    """Puts and copies parts of `upload` on `threads` threads.

    At most `threads` + 1 parts are in memory: those under way, and the one that `put` is waiting with. Uploads that
    share `room`, a semaphore, share that bound too. The first error of a part is raised by the next call of `put` or
    `copy`, and by `complete`. One thread feeds it. Leaving the `with` block aborts unless `complete` returned.
    """

    def __init__(
        self,
        upload: Upload,
        *,
        threads: int = 4,
        abort_wait: float = ABORT_WAIT,
        room: threading.Semaphore | None = None,
    ) -> None:
        self.key = upload.key
        self.copy_failed = False  # the first error is of a part that was to be copied
        self._upload = upload
        self._abort_wait = abort_wait
        self._room = room or threading.Semaphore(threads)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="upload")
        self._lock = threading.Lock()
        self._under_way: set[Future[None]] = set()
        self._parts: dict[int, _Part] = {}
        self._error: Exception | None = None
        self._uploaded = 0
        self._copied = 0

    @property
    def bytes_uploaded(self) -> int:
        """Bytes of the parts that have been put so far."""
        return self._uploaded

    @property
    def parts(self) -> set[int]:
        """The numbers of the parts that the store has taken so far."""
        with self._lock:
            return set(self._parts)

    @property
    def bytes_copied(self) -> int:
        """Bytes of the parts that have been copied inside the store so far."""
        return self._copied

    def put(self, number: int, data: bytes | memoryview, crc32: int | None = None) -> None:
        """Send a part as soon as a thread is free; blocks until then. Computes crc32 there when it is not given.

        data must not change until `complete` or `abort` returns.
        """
        self._submit(partial(self._put, number, data, crc32))

    def copy(self, number: int, source: Stored, offset: int, length: int, crc32: int) -> None:
        """Copy a range inside the store; crc32 is what it should have, as the index says. Blocks like `put`."""
        self._submit(partial(self._copy, number, source, offset, length, crc32))

    def room_within(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until a part can be put without blocking; whether it can."""
        if not self._room.acquire(timeout=timeout):
            return False
        self._room.release()
        return True

    def sent_within(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until no part is under way; whether that is so."""
        return not wait(self._snapshot(), timeout=timeout).not_done

    def complete(self, numbers: Sequence[int] | None = None) -> Stored:
        """Wait for the parts, then make the object of those named (default: all), in ascending order.

        Raises the first error of a part, and what Upload.complete raises.
        """
        wait(self._snapshot())
        self._raise_first()
        if numbers is None:
            numbers = sorted(self._parts)
        if missing := [number for number in numbers if number not in self._parts]:
            raise StoreError(f"part {missing[0]} of {self.key} was not put")
        size, crc32 = combine((self._parts[number].size, self._parts[number].crc32) for number in numbers)
        stored = self._upload.complete(numbers, size=size, crc32=crc32)
        self.completed = True
        self._executor.shutdown(wait=False)
        return stored

    def abort(self) -> None:
        """Give the upload up. Returns within about `abort_wait` seconds of the store's answer."""
        if self.completed:
            return
        self.aborted = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        under_way = self._snapshot()
        # First, so that space is freed even if we are killed next, and so that retries of parts end.
        self._upload.abort()
        if under_way:
            # S3 keeps a part that lands while the upload is aborted, hence once more when the parts have ended.
            wait(under_way, timeout=self._abort_wait)
            self._upload.abort()

    def _submit(self, act: Callable[[], None]) -> None:
        self._raise_first()
        self._room.acquire()
        try:
            self._raise_first()
            if self.completed or self.aborted:
                raise StoreError(f"the upload of {self.key} has ended")
            future = self._executor.submit(self._run, act)
        except BaseException:
            self._room.release()
            raise
        with self._lock:
            self._under_way.add(future)
        future.add_done_callback(self._ended)

    def _run(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 raised by the feeding thread
            with self._lock:
                if self._error is None:
                    self._error = error

    def _ended(self, future: Future[None]) -> None:
        with self._lock:
            self._under_way.discard(future)
        self._room.release()

    def _put(self, number: int, data: bytes | memoryview, crc32: int | None) -> None:
        if crc32 is None:
            crc32 = isal_zlib.crc32(data)
        self._upload.put(number, data, crc32)
        with self._lock:
            self._parts[number] = _Part(len(data), crc32)
            self._uploaded += len(data)

    def _copy(self, number: int, source: Stored, offset: int, length: int, crc32: int) -> None:
        try:
            self._upload.copy(number, source, offset, length)
        except StoreError:
            with self._lock:
                self.copy_failed = self.copy_failed or self._error is None
            raise
        with self._lock:
            self._parts[number] = _Part(length, crc32)
            self._copied += length

    def _snapshot(self) -> set[Future[None]]:
        with self._lock:
            return set(self._under_way)

    def _raise_first(self) -> None:
        with self._lock:
            error = self._error
        if error is not None:
            raise error
