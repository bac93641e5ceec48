"""The contract of every store. Comments here are the contract; tests/contract/test_store.py is its proof.

Keys are `/`-separated ASCII or UTF-8 text relative to the store's prefix. All methods may be called from several
threads at once. Every failure is a `StoreError` with the store's name; nothing of an SDK gets out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the store can do, and its limits in bytes and counts (AWS's are the defaults).

    copies_ranges: `Upload.copy` works inside the store, without the bytes passing through us.
    leaves_parts_out: `complete` may name fewer parts than were put (Ceph: no).
    equal_parts: all parts but the last must have the same size (R2).
    """

    copies_ranges: bool = True
    leaves_parts_out: bool = True
    equal_parts: bool = False
    most_parts: int = 10_000
    least_part: int = 5 * MEBIBYTE
    most_part: int = 5 * 1024 * MEBIBYTE
    least_copy: int = 5 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the store holds it.

    size in bytes; entity is an opaque token that changes when the content does (S3: the ETag), to be given to `copy`
    as `if_match`; version is the store's version identifier or an empty string; checksum says what the store vouched
    for and we compared: `crc32:XXXXXXXX`, `md5-parts:...`, or `none` where it vouches for nothing.
    """

    key: str
    size: int
    entity: str
    version: str = ""
    checksum: str = "none"
    modified: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """An upload that was begun and neither completed nor aborted."""

    key: str
    upload: str
    started: datetime


class Upload(Protocol):
    """One object under way, in numbered parts. Leaving the `with` block aborts unless `complete` returned.

    Numbers start at 1 and need not be put in order. Putting a number again replaces it. Nothing is visible under the
    key before `complete` returns, and never half of it.
    """

    key: str

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        """Send one part; `crc32` is that of `data` (zlib's polynomial). The store refuses a body that differs."""

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        """Make part `number` of `length` bytes of `source` from `offset`, inside the store.

        Raises ObjectChanged when source is not what it was, ObjectMissing when it is gone.
        """

    def complete(self, numbers: Sequence[int], *, size: int, crc32: int) -> Stored:
        """Make the object of these parts, in this order, and check it.

        size and crc32 are those of the whole object. Raises ChecksumMismatch, and removes the object, when the store
        holds something else.
        """

    def abort(self) -> None:
        """Give the upload up and free what was sent. Idempotent; does nothing after `complete`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Source(Protocol):
    """Bytes of an object, read forward. `read(n)` gives 1 to n bytes, and b"" only at the true end."""

    def read(self, size: int = -1, /) -> bytes: ...


class Store(Protocol):
    """A place where sets live."""

    name: str  # as in BACKUP_STORES: `s3`, `local`, `memory`
    off_host: bool  # whether a set here survives the loss of this machine

    @property
    def location(self) -> str:
        """For people: `s3://bucket/prefix`, `/data/backups`."""

    @property
    def capabilities(self) -> Capabilities: ...

    def begin(self, key: str, *, content_type: str = "application/octet-stream") -> Upload:
        """Start an upload. The abort is registered in the same breath."""

    def put(self, key: str, data: bytes, *, content_type: str = "application/json", if_absent: bool = False) -> Stored:
        """Store a small object at once, durably when it returns.

        if_absent: raises ObjectExists when another content is there already; the same content is success (a retried
        request finds its own object).
        """

    def head(self, key: str) -> Stored:
        """Size and entity of an object. Raises ObjectMissing."""

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> AbstractContextManager[Source]:
        """Read `length` bytes from `offset` (to the end when None). Raises ObjectMissing; an end that comes early
        raises StoreUnreachable instead of looking like the end of the object.
        """

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """Every object whose key starts with prefix, in the order of the keys' code points."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, in this order; a key that is not there is not an error."""

    def pending(self, prefix: str = "") -> Iterator[Pending]:
        """Uploads under way below prefix, whoever began them."""

    def abort_pending(self, upload: Pending) -> None:
        """Abort an upload of an earlier process. Idempotent."""
