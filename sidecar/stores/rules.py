"""What every store does alike: refuse what the contract does not allow, before acting; abort what was not completed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

from sidecar.errors import ChecksumMismatch, ObjectChanged, StoreError
from sidecar.stores.port import Capabilities, Stored

LONGEST_KEY = 1024  # bytes of UTF-8, prefix included: S3's limit, kept everywhere so that sets can move


def full_key(prefix: str, key: str, store: str) -> str:
    """The key below the store's prefix. Raises StoreError for what is not a key."""
    joined = f"{prefix}/{key}" if prefix else key
    segments = joined.split("/")
    if not key or any(segment in ("", ".", "..") for segment in segments) or "\0" in joined:
        raise StoreError(f"{key!r} is not a key: it has an empty, `.` or `..` segment, or a NUL", store=store)
    try:
        length = len(joined.encode())
    except UnicodeEncodeError as error:
        raise StoreError(f"{key!r} is not a key: it is not UTF-8", store=store) from error
    if length > LONGEST_KEY:
        raise StoreError(
            f"the key {joined[:80]}… has {length} bytes, more than {LONGEST_KEY}",
            hint="shorten BACKUP_PREFIX or the volume's name",
            store=store,
        )
    return joined


def check_part(key: str, number: int, length: int, limits: Capabilities, store: str) -> None:
    """Raise StoreError unless part `number` may have `length` bytes (its least is known only at the end)."""
    if not 1 <= number <= limits.most_parts:
        raise StoreError(
            f"part {number} of {key} is outside 1 to {limits.most_parts}", hint="the parts must be larger", store=store
        )
    if not 1 <= length <= limits.most_part:
        raise StoreError(f"part {number} of {key} has {length} bytes, not 1 to {limits.most_part}", store=store)


def check_copy(
    key: str, number: int, source: Stored, offset: int, length: int, limits: Capabilities, store: str
) -> None:
    """Raise StoreError unless part `number` may be that range of source."""
    check_part(key, number, length, limits, store)
    if not limits.copies_ranges:
        raise StoreError(f"part {number} of {key}: the store cannot copy ranges", store=store)
    if length < limits.least_copy:
        raise StoreError(
            f"part {number} of {key} would copy {length} bytes, fewer than {limits.least_copy}", store=store
        )
    if offset < 0 or offset + length > source.size:
        raise StoreError(
            f"part {number} of {key} would copy bytes {offset} to {offset + length} of {source.key}, "
            f"which has {source.size}",
            store=store,
        )


def check_parts(
    key: str, numbers: Sequence[int], lengths: Mapping[int, int], size: int, limits: Capabilities, store: str
) -> None:
    """Raise StoreError unless these parts, of those put (length by number), may become an object.

    Raises ChecksumMismatch when they do not have `size` bytes together.
    """
    if not numbers:
        raise StoreError(f"{key} would have no parts", hint="an empty object is stored with put", store=store)
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise StoreError(f"the parts of {key} are not in ascending order", store=store)
    if missing := [number for number in numbers if number not in lengths]:
        raise StoreError(f"part {missing[0]} of {key} was not put", store=store)
    if not limits.leaves_parts_out and len(numbers) < len(lengths):
        raise StoreError(
            f"{len(lengths) - len(numbers)} parts of {key} would be left out, which this store cannot do", store=store
        )
    chosen = [lengths[number] for number in numbers]
    if small := [length for length in chosen[:-1] if length < limits.least_part]:
        raise StoreError(
            f"a part of {key} that is not its last has {small[0]} bytes, fewer than {limits.least_part}", store=store
        )
    if limits.equal_parts and (any(length != chosen[0] for length in chosen[:-1]) or chosen[-1] > chosen[0]):
        raise StoreError(f"the parts of {key} are not equal in size, which this store wants", store=store)
    if sum(chosen) != size:
        raise ChecksumMismatch(f"the parts of {key} have {sum(chosen)} bytes together, not {size}", store=store)


def check_range(stored: Stored, offset: int, length: int | None, if_match: str | None, store: str) -> int:
    """How many bytes a read gives. Raises ObjectChanged as `Store.open` says."""
    if if_match is not None and stored.entity != if_match:
        raise ObjectChanged(f"{stored.key} was replaced while it was being read", store=store)
    end = stored.size if length is None else offset + length
    if offset > stored.size or end > stored.size:
        raise ObjectChanged(
            f"{stored.key} has {stored.size} bytes, {max(offset, end)} were expected",
            hint="run verify: the object may be damaged",
            store=store,
        )
    return end - offset


class AbortingUpload(ABC):
    """The `with` block of every upload: leaving is not success."""

    key: str
    completed = False
    aborted = False

    @abstractmethod
    def abort(self) -> None:
        """Give the upload up; sets `aborted`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.completed or self.aborted:
            return
        try:
            self.abort()
        except Exception as failure:
            if error is None:
                raise
            # The reason why the block was left outranks the clean-up; the upload stays in `pending`.
            error.add_note(f"the upload of {self.key} could not be aborted: {failure}")
