"""A store in memory, as strict as S3, for the fast tests of other rooms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count

from isal import isal_zlib

from sidecar.errors import ChecksumMismatch, ObjectChanged, ObjectExists, ObjectMissing
from sidecar.stores.port import Capabilities, Pending, Stored
from sidecar.stores.rules import AbortingUpload, check_copy, check_part, check_parts, check_range, full_key


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """Objects in a dictionary. `capabilities` set how strict it is; `now` stamps objects and uploads."""

    def __init__(
        self,
        *,
        name: str = "memory",
        off_host: bool = False,
        capabilities: Capabilities | None = None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self.name = name
        self.off_host = off_host
        self._capabilities = capabilities or Capabilities()
        self._now = now
        self._lock = threading.RLock()
        self._tokens = count(1)
        self._objects: dict[str, tuple[Stored, bytes]] = {}
        self._uploads: dict[str, _MemoryUpload] = {}

    @property
    def location(self) -> str:
        """For people."""
        return f"{self.name}:"

    @property
    def capabilities(self) -> Capabilities:
        """As given."""
        return self._capabilities

    def begin(
        self,
        key: str,
        *,
        content_type: str = "application/octet-stream",  # noqa: ARG002 kept nowhere
    ) -> _MemoryUpload:
        """See Store.begin."""
        full_key("", key, self.name)
        with self._lock:
            token = str(next(self._tokens))
            upload = self._uploads[token] = _MemoryUpload(self, key, token, self._now())
        return upload

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/json",  # noqa: ARG002 kept nowhere
        if_absent: bool = False,
    ) -> Stored:
        """See Store.put."""
        full_key("", key, self.name)
        with self._lock:
            if if_absent and key in self._objects:
                stored, there = self._objects[key]
                if there != data:
                    raise ObjectExists(f"{key} exists already, with another content", store=self.name)
                return stored
            return self._keep(key, bytes(data))

    def head(self, key: str) -> Stored:
        """See Store.head."""
        return self._get(key)[0]

    def open(
        self, key: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None
    ) -> AbstractContextManager[_MemorySource]:
        """See Store.open."""
        stored, data = self._get(key)
        span = check_range(stored, offset, length, if_match, self.name)
        return nullcontext(_MemorySource(stored, memoryview(data)[offset : offset + span]))

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """See Store.list."""
        with self._lock:
            found = [stored for key, (stored, _) in self._objects.items() if key.startswith(prefix)]
        for stored in sorted(found, key=lambda stored: stored.key):
            yield replace(stored, checksum="none")

    def delete(self, keys: Sequence[str]) -> None:
        """See Store.delete."""
        for key in keys:
            full_key("", key, self.name)
            with self._lock:
                self._objects.pop(key, None)

    def pending(self, prefix: str = "") -> Iterator[Pending]:
        """See Store.pending."""
        with self._lock:
            uploads = list(self._uploads.values())
        return iter([Pending(u.key, u.token, u.started) for u in uploads if u.key.startswith(prefix)])

    def abort_pending(self, upload: Pending) -> None:
        """See Store.abort_pending."""
        with self._lock:
            self._uploads.pop(upload.upload, None)

    def _get(self, key: str) -> tuple[Stored, bytes]:
        full_key("", key, self.name)
        with self._lock:
            if key not in self._objects:
                raise ObjectMissing(f"{key} is not in the store", store=self.name)
            return self._objects[key]

    def _keep(self, key: str, data: bytes) -> Stored:
        with self._lock:
            entity = str(next(self._tokens))
            checksum = f"crc32:{isal_zlib.crc32(data):08x}"
            stored = Stored(key, len(data), entity, checksum=checksum, modified=self._now())
            self._objects[key] = (stored, data)
        return stored


class _MemoryUpload(AbortingUpload):
    def __init__(self, store: MemoryStore, key: str, token: str, started: datetime) -> None:
        self.key = key
        self.token = token
        self.started = started
        self._store = store
        self._parts: dict[int, bytes] = {}

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        self._still_there()
        check_part(self.key, number, len(data), self._store.capabilities, self._store.name)
        if isal_zlib.crc32(data) != crc32:
            raise ChecksumMismatch(f"part {number} of {self.key} does not have its checksum", store=self._store.name)
        with self._store._lock:
            self._parts[number] = bytes(data)

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        self._still_there()
        check_copy(self.key, number, source, offset, length, self._store.capabilities, self._store.name)
        stored, data = self._store._get(source.key)
        if stored.entity != source.entity:
            raise ObjectChanged(f"{source.key} is not what it was", store=self._store.name)
        with self._store._lock:
            self._parts[number] = data[offset : offset + length]

    def complete(self, numbers: Sequence[int], *, size: int, crc32: int) -> Stored:
        with self._store._lock:
            self._still_there()
            lengths = {number: len(part) for number, part in self._parts.items()}
            check_parts(self.key, numbers, lengths, size, self._store.capabilities, self._store.name)
            data = b"".join(self._parts[number] for number in numbers)
            if isal_zlib.crc32(data) != crc32:
                raise ChecksumMismatch(f"{self.key} does not have its checksum", store=self._store.name)
            stored = self._store._keep(self.key, data)
            del self._store._uploads[self.token]
            self._parts.clear()
            self.completed = True
        return stored

    def abort(self) -> None:
        with self._store._lock:
            self._store._uploads.pop(self.token, None)
            self._parts.clear()
            self.aborted = not self.completed

    def _still_there(self) -> None:
        if self.token not in self._store._uploads:
            raise ObjectMissing(f"the upload of {self.key} was aborted or completed", store=self._store.name)


class _MemorySource:
    def __init__(self, stored: Stored, data: memoryview) -> None:
        self.stored = stored
        self._rest = data

    def read(self, size: int = -1, /) -> bytes:
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)
