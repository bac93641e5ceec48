"""The contract of every store. Comments here are the contract; tests/contract/test_store.py is its proof.

Keys are `/`-separated UTF-8 text relative to the store's prefix, at most 1,024 bytes with it; no segment is empty, `.`
or `..`, and no key is another key's directory. All methods may be called from several threads at once. Every failure is
a `StoreError` with the store's name; nothing of an SDK gets out.
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

    An upload refuses what is beyond them, also where the server would not, so that all stores refuse alike.

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

    size in bytes; entity is an opaque token that changes when the content does (S3: the ETag), for `copy` and for
    `open(if_match=...)`; version is the store's version identifier or an empty string; modified is aware, in UTC.
    checksum: `crc32:` and eight lower-case hexadecimal digits, or `md5-parts:` and the ETag, or `md5:` and the digest,
    or `none` where the store vouches for nothing. From `complete` and `put`: what it vouched for *and we compared*.
    From `head`: what it vouches for. From `list`: `none`, as listings do not carry it.
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

    Numbers start at 1 and need not be put in order. Putting a number again, after the first has returned or raised,
    replaces it. Nothing is visible under the key before `complete` returns, and never half of it. After `abort`, `put`,
    `copy` and `complete` raise ObjectMissing.
    """

    key: str

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        """Send one part of at least one byte; `crc32` is that of `data` (zlib's polynomial).

        A body that differs from its crc32 never becomes part of an object: ChecksumMismatch here, or from `complete`
        where the server does not check parts.
        """

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        """Make part `number` of `length` bytes of `source` from `offset`, inside the store.

        Raises ObjectChanged when source is not what it was, ObjectMissing when it is gone. Needs
        `capabilities.copies_ranges`.
        """

    def complete(self, numbers: Sequence[int], *, size: int, crc32: int) -> Stored:
        """Make the object of these parts, at least one, in this order, which ascends, and check it.

        size and crc32 are those of the whole object. Raises ChecksumMismatch, and removes the object, when the store
        holds something else. An object of that key is replaced. When it raises something else, the upload is still
        there: complete again, or abort.
        """

    def abort(self) -> None:
        """Give the upload up and free what was sent. Idempotent; does nothing after `complete`.

        Parts that are being put meanwhile may land: call it again when they have ended (PooledUpload does).
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Source(Protocol):
    """Bytes of an object, read forward."""

    def read(self, size: int = -1, /) -> bytes:
        """The next 1 to `size` bytes, all that are left when negative; b"" only at the true end."""


class StoredSource(Source, Protocol):
    """What `Store.open` gives: the bytes, and the object they are of (the whole of it, not the range)."""

    @property
    def stored(self) -> Stored:
        """The object being read."""


class Store(Protocol):
    """A place where sets live."""

    name: str  # as in BACKUP_STORES: `s3`, `local`, `memory`
    off_host: bool  # whether a set here survives the loss of this machine

    @property
    def location(self) -> str:
        """For people: `s3://bucket/prefix`, `/data/backups`."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do, and its limits."""

    def begin(self, key: str, *, content_type: str = "application/octet-stream") -> Upload:
        """Start an upload. The abort is registered in the same breath."""

    def put(self, key: str, data: bytes, *, content_type: str = "application/json", if_absent: bool = False) -> Stored:
        """Store a small object at once, durably when it returns.

        if_absent: raises ObjectExists when another content is there already; the same content is success (a retried
        request finds its own object).
        """

    def head(self, key: str) -> Stored:
        """Size, entity and checksum of an object. Raises ObjectMissing."""

    def open(
        self, key: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None
    ) -> AbstractContextManager[StoredSource]:
        """Read `length` bytes from `offset` (to the end when None).

        Raises ObjectMissing; ObjectChanged when the object's entity is not `if_match`, or when it ends before the range
        does. A connection that ends early raises StoreUnreachable instead of looking like the end of the object.
        """

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """Every object whose key starts with prefix, in the order of the keys' code points."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, in this order: a key is gone, durably, before the next is touched.

        A key that is not there is not an error.
        """

    def pending(self, prefix: str = "") -> Iterator[Pending]:
        """Uploads under way below prefix, whoever began them."""

    def abort_pending(self, upload: Pending) -> None:
        """Abort an upload of an earlier process. Idempotent."""
