"""See Bucket: the listings that only S3 has, at Amazon or at a server that speaks its language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from typing import Any, Protocol, TypeVar

from sidecar.stores.bucket import Version
from sidecar.stores.port import Pending, Stored
from sidecar.stores.s3 import S3Settings, connect
from sidecar.stores.s3_errors import SDK_ERRORS, Place, translate

Result = TypeVar("Result")


class Request(Protocol):
    """Makes one request, again if need be: `RetryingStore.request`."""

    def __call__(self, operation: str, key: str, act: Callable[[], Result], /) -> Result:
        """What `act` gives. Raises what it raised at last."""


def _once(_operation: str, _key: str, act: Callable[[], Result], /) -> Result:
    return act()


class S3Bucket:
    """The bucket of these settings; their prefix means nothing here. Raises StoreError for settings of no use."""

    def __init__(self, settings: S3Settings, *, request: Request = _once) -> None:
        self._client = connect(settings)
        self._bucket = settings.bucket
        self._place = Place(settings.name, settings.bucket, f"s3://{settings.bucket}", settings.endpoint)
        self._request = request

    def objects(self, prefix: str) -> Iterator[Stored]:
        """See Bucket.objects."""
        for page in self._pages("ListObjectsV2", "list_objects_v2", {"Prefix": prefix}, ("ContinuationToken",)):
            for entry in page.get("Contents", ()):
                entity = str(entry.get("ETag", "")).strip('"')
                yield Stored(entry["Key"], entry["Size"], entity, modified=entry["LastModified"].astimezone(UTC))

    def versions(self, prefix: str) -> Iterator[Version]:
        """See Bucket.versions."""
        markers = ("KeyMarker", "VersionIdMarker")
        for page in self._pages("ListObjectVersions", "list_object_versions", {"Prefix": prefix}, markers):
            for kind, marker in (("Versions", False), ("DeleteMarkers", True)):
                for entry in page.get(kind, ()):
                    yield Version(
                        entry["Key"],
                        str(entry.get("VersionId", "null")),
                        int(entry.get("Size", 0)),
                        entry["LastModified"].astimezone(UTC),
                        latest=bool(entry.get("IsLatest")),
                        marker=marker,
                    )

    def uploads(self, prefix: str) -> Iterator[Pending]:
        """See Bucket.uploads."""
        markers = ("KeyMarker", "UploadIdMarker")
        for page in self._pages("ListMultipartUploads", "list_multipart_uploads", {"Prefix": prefix}, markers):
            for entry in page.get("Uploads", ()):
                yield Pending(entry["Key"], entry["UploadId"], entry["Initiated"].astimezone(UTC))

    def sent(self, upload: Pending) -> int:
        """See Bucket.sent."""
        named = {"Key": upload.key, "UploadId": upload.upload}
        pages = self._pages("ListParts", "list_parts", named, ("PartNumberMarker",))
        return sum(part["Size"] for page in pages for part in page.get("Parts", ()))

    def _pages(
        self, operation: str, method: str, named: Mapping[str, str], markers: tuple[str, ...]
    ) -> Iterator[Mapping[str, Any]]:
        marked: dict[str, Any] = {}
        while True:
            answer = self._ask(operation, method, {**named, **marked})
            yield answer
            following = {marker: answer[f"Next{marker}"] for marker in markers if answer.get(f"Next{marker}")}
            if not answer.get("IsTruncated") or not following or following == marked:
                return
            marked = following

    def _ask(self, operation: str, method: str, named: Mapping[str, Any]) -> Mapping[str, Any]:
        key = str(named.get("Key", named.get("Prefix", "")))

        def act() -> Mapping[str, Any]:
            try:
                return getattr(self._client, method)(Bucket=self._bucket, **named)  # type: ignore[no-any-return]
            except SDK_ERRORS as error:
                raise translate(error, operation, key, self._place) from error

        return self._request(operation, key, act)
