"""What a bucket tells beyond the contract of a store: all of it, what was deleted, what was never completed.

Keys are whole, not relative to a prefix. Listings are lazy, a page at a time, in the server's order, so that a bucket
of any size needs no more memory than a page; they may fail in the middle. Every failure is a `StoreError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sidecar.stores.port import Pending, Stored


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object, or a delete marker (which has no bytes). latest: it is what the key shows now."""

    key: str
    version: str
    size: int
    modified: datetime
    latest: bool
    marker: bool


class Bucket(Protocol):
    """A bucket, read only."""

    def objects(self, prefix: str) -> Iterator[Stored]:
        """Every object whose key starts with prefix; an empty one: all of the bucket. Needs s3:ListBucket."""

    def versions(self, prefix: str) -> Iterator[Version]:
        """Every version and delete marker. Needs s3:ListBucketVersions.

        A bucket that was never versioned has one version of each object, the latest.
        """

    def uploads(self, prefix: str) -> Iterator[Pending]:
        """Every upload begun and neither completed nor aborted. Needs s3:ListBucketMultipartUploads."""

    def sent(self, upload: Pending) -> int:
        """Bytes of the parts that an upload has. Needs s3:ListMultipartUploadParts. Raises ObjectMissing."""
