"""One set on its way to one store. A store that fails takes nothing more and says why; the others go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from isal import isal_zlib

from sidecar import sets
from sidecar.archive.pool import Part, contiguous
from sidecar.errors import (
    DAMAGE,
    ChecksumMismatch,
    EarlierDamaged,
    ObjectChanged,
    ObjectMissing,
    ReuseFailed,
    StoreDenied,
    StoreError,
)
from sidecar.events import Emit
from sidecar.jobs.ownership import Claimant, claim
from sidecar.report import Outcome, StoreReport
from sidecar.stores.parts import Assembled, PartAssembler
from sidecar.stores.pool import PooledUpload
from sidecar.stores.port import MEBIBYTE, Store, Stored

_CHUNK = 8 * MEBIBYTE


class Parcel:
    """One object on its way to one store; nothing happens any more once its store has failed.

    Its parts are those of a pool, put or copied before it is known which of them will belong to the object, then those
    made of what is delivered. defers: a store that cannot leave parts out, or wants them equal, gets the pool's when
    they are kept.
    """

    def __init__(self, owner: Consignment, key: str, expected: int, upload: PooledUpload | None) -> None:
        self.key = key
        self._owner = owner
        self._expected = expected
        self._upload = upload
        self._limits = owner.store.capabilities
        self._assembler: PartAssembler | None = None
        self._next = 1
        self._numbers: list[int] = []
        self._source: Stored | None = None
        self.bytes_copied = 0  # of what was delivered
        self.defers = owner.defers

    def put_part(self, part: Part, data: bytes) -> None:
        """Send a part of the pool; blocks while the store is slower than we are."""
        if self.defers:
            return
        self._next = part.number + 1
        self._try(lambda upload: upload.put(part.number, data, part.crc32))

    def expect(self, size: int) -> None:
        """The most bytes that the object may measure, where that was not known yet when it was begun."""
        self._expected = size

    def reuse(self, source: Stored) -> None:
        """From here on, parts may be copied from this earlier archive."""
        self._source = source

    def copy_part(self, part: Part) -> None:
        """Have the store copy a part of the pool from the earlier archive. Raises ReuseFailed, also later."""
        if self.defers:
            return
        assert part.offset is not None
        self._next = part.number + 1
        self._copy(part.number, part.offset, part.length, part.crc32)

    def keep(self, part: Part, data: Callable[[], bytes]) -> None:
        """The part belongs to the object, and comes next in it. data: gives its bytes, where they were held."""
        if not self.defers:
            self._numbers.append(part.number)
        elif part.offset is not None:
            self._copy(self._number(), part.offset, part.length, part.crc32)
        elif self._limits.equal_parts:
            self.deliver(data())
        else:
            number = self._number()
            self._try(lambda upload: upload.put(number, data(), part.crc32))

    def deliver(self, block: bytes, offset: int | None = None) -> None:
        """Add bytes behind what is kept; blocks while the store is slower than we are.

        offset: where the earlier archive has them. What makes a part there as well is copied. Raises ReuseFailed.
        """
        if self._assembler is None:
            self._assembler = PartAssembler(self._expected, self._limits, self._next)
        self._put(self._assembler.add(block, offset))

    def flush(self) -> None:
        """Send what is left of the object; blocks like `deliver`. `finish` does so too, and waits for it."""
        if self._assembler is not None:
            self._put(self._assembler.end())

    def room_within(self, timeout: float) -> bool:
        """Whether `deliver` would not wait for the store, or not for long, after at most `timeout` seconds."""
        return self._upload is None or self._upload.room_within(timeout)

    def sent_within(self, timeout: float) -> bool:
        """Whether `finish` would not wait for parts under way, after at most `timeout` seconds."""
        return self._upload is None or self._upload.sent_within(timeout)

    def finish(self, size: int, crc32: int) -> None:
        """Complete the object; size and crc32 are what it must be. The store has vouched for it when this returns."""

        def complete(upload: PooledUpload) -> None:
            try:
                stored = upload.complete(self._numbers)
            except ChecksumMismatch:
                raise
            except StoreError as error:
                if upload.parts <= set(self._numbers):
                    raise
                self.drop()
                self._owner.defers = True
                raise ReuseFailed(
                    f"store {self._owner.store.name} does not complete an object without all parts that it was sent: "
                    f"{error.message}",
                    hint="nothing to do: it gets each part later now",
                ) from error
            self._upload = None
            # The store and we agree on what was sent; that it is what was compressed is the last link of the chain.
            vouched = stored.checksum if stored.checksum.startswith("crc32:") else f"crc32:{crc32:08x}"
            if (stored.size, vouched) != (size, f"crc32:{crc32:08x}"):
                raise ChecksumMismatch(
                    f"{stored.key} has {stored.size} bytes, {stored.checksum}; {size} bytes, crc32:{crc32:08x} "
                    "were sent",
                    hint="run the backup again; if it comes back, test this machine's memory",
                    store=self._owner.store.name,
                )
            self._owner.bytes_uploaded += upload.bytes_uploaded

        self.flush()
        self._try(complete)

    def drop(self) -> None:
        """Give the object up."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            self._owner.quietly(upload.abort)

    def _number(self) -> int:
        number = self._next
        self._next += 1
        self._numbers.append(number)
        return number

    def _put(self, parts: Iterable[Assembled]) -> None:
        for number, data, blocks in parts:
            self._numbers.append(number)
            offset = contiguous(blocks)
            if self._source is None or offset is None or len(data) < self._limits.least_copy:
                self._try(partial(_put, number, data))
            else:
                self._copy(number, offset, len(data), isal_zlib.crc32(data))
                self.bytes_copied += len(data)

    def _copy(self, number: int, offset: int, length: int, crc32: int) -> None:
        source = self._source
        assert source is not None
        self._try(lambda upload: upload.copy(number, source, offset, length, crc32))

    def _try(self, act: Callable[[PooledUpload], None]) -> None:
        upload = self._upload
        if upload is None:
            return
        try:
            act(upload)
        except StoreError as error:
            # An altered source is copied without a word; only the checksum of the whole tells.
            altered = self._source is not None and isinstance(error, ChecksumMismatch)
            if upload.copy_failed or altered:
                self.drop()
                assert self._source is not None
                set_name = self._source.key.partition("/")[0]
                why = "what was copied from it is not what was written" if altered else error.message
                kind = EarlierDamaged if isinstance(error, (*DAMAGE, ObjectChanged)) else ReuseFailed
                raise kind(
                    f"the earlier archive {self._owner.store.location}/{self._source.key} cannot be used: {why}",
                    hint=f"nothing of it is in the new set; `verify {set_name}` reads the old one",
                ) from error
            self._owner.fail(error)


def _put(number: int, data: bytes, upload: PooledUpload) -> None:
    upload.put(number, data)


class Consignment:
    """Objects of one set in one store. defers: as of its parcels, those that are begun from now on.

    Leaving the `with` block without `commit` aborts the uploads under way and removes what was stored: without its
    manifest nothing of it counts, so this only saves space.
    """

    def __init__(self, store: Store, emit: Emit, *, threads: int) -> None:
        self.store = store
        self.error: StoreError | None = None
        self.committed = False
        self.bytes_uploaded = 0
        self.defers = not store.capabilities.leaves_parts_out or store.capabilities.equal_parts
        self._emit = emit
        self._threads = threads
        self._room = threading.Semaphore(threads)
        self._keys: list[str] = []
        self._parcels: list[Parcel] = []

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

    def begin(self, key: str, expected: int = 0, content_type: str = "application/gzip") -> Parcel:
        """Start an object of at most `expected` bytes; 0: `Parcel.expect` tells, before anything is delivered."""
        upload: PooledUpload | None = None

        def start() -> None:
            nonlocal upload
            self._keys.append(key)  # before the act: an answer may be lost when the object is there already
            begun = self.store.begin(key, content_type=content_type)
            upload = PooledUpload(begun, threads=self._threads, room=self._room)

        self._try(start)
        parcel = Parcel(self, key, expected, upload)
        self._parcels.append(parcel)
        return parcel

    def send_file(self, key: str, path: Path) -> None:
        """Store a file of the state volume whole."""
        size = crc = 0
        parcel = self.begin(key, path.stat().st_size)
        with path.open("rb") as source:
            while self.alive and (chunk := source.read(_CHUNK)):
                parcel.deliver(chunk)
                size += len(chunk)
                crc = isal_zlib.crc32(chunk, crc)
        parcel.finish(size, crc)

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

    def fail(self, error: StoreError) -> None:
        """Note that the store failed; it takes nothing more."""
        if self.error is None:
            self.error = error
            self._emit("store_failed", store=self.store.name, code=error.code, error=error.message, hint=error.hint)
        self._drop()

    def quietly(self, act: Callable[[], None]) -> None:
        """Clean up as far as possible; what is left has no manifest and is removed by the next start."""
        try:
            act()
        except StoreError as error:
            self._emit("upload_aborted", store=self.store.name, error=error.message, hint=error.hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        if not self.committed and self._keys:
            keys, self._keys = self._keys, []
            self.quietly(lambda: self.store.delete(keys[::-1]))

    def _drop(self) -> None:
        for parcel in self._parcels:
            parcel.drop()
        self._parcels.clear()

    def _try(self, act: Callable[[], None]) -> None:
        if not self.alive:
            return
        try:
            act()
        except StoreError as error:
            self.fail(error)
