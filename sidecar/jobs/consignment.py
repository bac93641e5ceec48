"""One set on its way to one store. A store that fails takes nothing more and says why; the others go on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from isal import isal_zlib

from sidecar import sets
from sidecar.errors import (
    ChecksumMismatch,
    ObjectMissing,
    StoreDenied,
    StoreError,
)
from sidecar.events import Emit
from sidecar.jobs.ownership import Claimant, claim
from sidecar.report import Outcome, StoreReport
from sidecar.stores.parts import PartAssembler
from sidecar.stores.pool import PooledUpload
from sidecar.stores.port import MEBIBYTE, Store

_CHUNK = 8 * MEBIBYTE


class Consignment:
    """Objects of one set in one store.

    Leaving the `with` block without `commit` aborts the upload under way and removes what was stored: without its
    manifest nothing of it counts, so this only saves space.
    """

    def __init__(self, store: Store, emit: Emit, *, threads: int) -> None:
        self.store = store
        self.error: StoreError | None = None
        self.committed = False
        self.bytes_uploaded = 0
        self._emit = emit
        self._threads = threads
        self._keys: list[str] = []
        self._upload: PooledUpload | None = None
        self._parts: PartAssembler | None = None

    @property
    def alive(self) -> bool:
        """Whether the store still takes what it is given."""
        return self.error is None

    def report(self, *, pending: bool) -> StoreReport:
        """What the store got. pending: what it missed is to be shipped later."""
        return StoreReport(
            Outcome.GOOD if self.committed else Outcome.FAILED,
            self.bytes_uploaded,
            pending=pending and not self.committed,
            error=self.error.message if self.error else None,
            hint=self.error.hint if self.error else None,
            location=self.store.location,
        )

    def claim(self, us: Claimant, since: datetime) -> None:
        """Make the prefix ours, or fail when it is another's: two would overwrite and prune each other's sets."""
        self._try(lambda: claim(self.store, us, since, self._emit))

    def holds(self, set_name: str) -> bool:
        """Whether the store has a set of that name already."""
        held = False

        def look() -> None:
            nonlocal held
            try:
                self.store.head(sets.manifest_key(set_name))
                held = True
            except (ObjectMissing, StoreDenied):  # S3 denies the question to a key that may only write
                pass

        self._try(look)
        return held

    def begin(self, key: str, expected: int, content_type: str = "application/gzip") -> None:
        """Start an object of at most `expected` bytes, as far as known."""

        def start() -> None:
            self._keys.append(key)  # before the act: an answer may be lost when the object is there already
            self._upload = PooledUpload(self.store.begin(key, content_type=content_type), threads=self._threads)
            self._parts = PartAssembler(expected, self.store.capabilities)

        self._try(start)

    def deliver(self, block: bytes) -> None:
        """Add bytes to the object; blocks while the store is slower than we are."""

        def send() -> None:
            assert self._upload is not None
            assert self._parts is not None
            for number, data in self._parts.add(block):
                self._upload.put(number, data)

        self._try(send)

    def room_within(self, timeout: float) -> bool:
        """Whether `deliver` would not wait for the store, or not for long, after at most `timeout` seconds."""
        return self._upload is None or self._upload.room_within(timeout)

    def sent_within(self, timeout: float) -> bool:
        """Whether `finish` would not wait for parts under way, after at most `timeout` seconds."""
        return self._upload is None or self._upload.sent_within(timeout)

    def flush(self) -> None:
        """Send what is left of the object; blocks like `deliver`. `finish` does so too, and waits for it."""

        def send() -> None:
            assert self._upload is not None
            assert self._parts is not None
            for number, data in self._parts.end():
                self._upload.put(number, data)

        self._try(send)

    def finish(self, size: int, crc32: int) -> None:
        """Complete the object; size and crc32 are what it must be. The store has vouched for it when this returns."""

        def complete() -> None:
            assert self._upload is not None
            stored = self._upload.complete()
            self._upload = None
            # The store and we agree on what was sent; that it is what was compressed is the last link of the chain.
            vouched = stored.checksum if stored.checksum.startswith("crc32:") else f"crc32:{crc32:08x}"
            if (stored.size, vouched) != (size, f"crc32:{crc32:08x}"):
                raise ChecksumMismatch(
                    f"{stored.key} has {stored.size} bytes, {stored.checksum}; {size} bytes, crc32:{crc32:08x} "
                    "were sent",
                    hint="run the backup again; if it comes back, test this machine's memory",
                    store=self.store.name,
                )
            self.bytes_uploaded += stored.size

        self.flush()
        self._try(complete)

    def send_file(self, key: str, path: Path) -> None:
        """Store a file of the state volume whole."""
        size = crc = 0
        self.begin(key, path.stat().st_size)
        with path.open("rb") as source:
            while self.alive and (chunk := source.read(_CHUNK)):
                self.deliver(chunk)
                size += len(chunk)
                crc = isal_zlib.crc32(chunk, crc)
        self.finish(size, crc)

    def put(self, key: str, data: bytes, content_type: str = "application/json") -> None:
        """Store a small document."""

        def put() -> None:
            self._keys.append(key)  # as in `begin`: a manifest must not stay when what it names is removed
            self.store.put(key, data, content_type=content_type)
            self.bytes_uploaded += len(data)

        self._try(put)

    def commit(self, key: str, manifest: bytes) -> None:
        """Store the manifest: from here on the set exists in this store."""
        self.put(key, manifest)
        self.committed = self.alive

    def drop(self) -> None:
        """Give up the object under way, because its source failed."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            self._quietly(upload.abort)

    def fail(self, error: StoreError) -> None:
        """Note that the store failed; it takes nothing more."""
        if self.error is None:
            self.error = error
            self._emit("store_failed", store=self.store.name, code=error.code, error=error.message, hint=error.hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
        if not self.committed and self._keys:
            keys, self._keys = self._keys, []
            self._quietly(lambda: self.store.delete(keys[::-1]))

    def _try(self, act: Callable[[], None]) -> None:
        if not self.alive:
            return
        try:
            act()
        except StoreError as error:
            self.fail(error)
            self.drop()

    def _quietly(self, act: Callable[[], None]) -> None:
        """Clean up as far as possible; what is left has no manifest and is removed by the next start."""
        try:
            act()
        except StoreError as error:
            self._emit("upload_aborted", store=self.store.name, error=error.message, hint=error.hint)
