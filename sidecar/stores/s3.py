"""Sets in an S3 bucket, at Amazon or at a server that speaks its language. The wire is S3's; the pool is ours.

Every byte is checked twice by somebody else's arithmetic: each part by the server against the CRC32 (or MD5) sent with
it, the whole object against the CRC32 that the parts' combine to.
"""

from __future__ import annotations

import hashlib
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import ClientError
from isal import isal_zlib

from sidecar.errors import (
    BucketMissing,
    ChecksumMismatch,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreUnreachable,
)
from sidecar.stores.pool import combine
from sidecar.stores.port import Capabilities, Pending, Stored
from sidecar.stores.rules import AbortingUpload, check_copy, check_part, check_parts, check_range, full_key
from sidecar.stores.s3_errors import SDK_ERRORS, NotS3, Place, check_answer, translate

Entry = TypeVar("Entry", Stored, Pending)

CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 60  # seconds without a byte: to complete a large upload takes some

# How servers refuse checksum headers they do not know, rather than ignoring them.
_UNKNOWN_CHECKSUM = {"InvalidArgument", "InvalidRequest", "NotImplemented"}


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where and how; made by wiring. What is None comes from boto3's own chain (environment, files, instance role).

    prefix: without slashes at its ends. endpoint: URL of a server that is not Amazon's. storage_class: of archives and
    indexes (uploads in parts); small documents stay in the standard class, so that listing sets needs no thawing.
    sse: `AES256`, `aws:kms` or `aws:kms:dsse`, with sse_kms_key where it is not the account's own key. connections: at
    least as many as threads will use. read_timeout: seconds without a byte. capabilities: where the provider's differ
    from what `provider_limits` knows.
    """

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint: str | None = None
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    connections: int = 16
    read_timeout: int = READ_TIMEOUT
    capabilities: Capabilities | None = None
    name: str = "s3"
    off_host: bool = True


def provider_limits(endpoint: str | None) -> Capabilities:
    """The limits of the provider behind an endpoint, from its documentation; Amazon's for those not known."""
    try:
        host = (urlsplit(endpoint).hostname if endpoint else None) or ""
    except ValueError:
        host = ""
    if host.endswith(".r2.cloudflarestorage.com"):
        return Capabilities(equal_parts=True)
    if host.endswith(".scw.cloud"):
        return Capabilities(most_parts=1_000)
    return Capabilities()


def connect(settings: S3Settings) -> Any:
    """A boto3 client for these settings. Sends nothing. Raises StoreError for settings that cannot be used."""
    try:
        session = boto3.session.Session(
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            aws_session_token=settings.session_token,
            region_name=settings.region,
        )

        def client(*, sign_payload: bool) -> Any:
            made = session.client(
                "s3",
                endpoint_url=settings.endpoint,
                config=Config(
                    connect_timeout=CONNECT_TIMEOUT,
                    read_timeout=settings.read_timeout,
                    max_pool_connections=settings.connections,
                    retries={"total_max_attempts": 1, "mode": "standard"},  # RetryingStore is the one that retries
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    tcp_keepalive=True,
                    s3={"payload_signing_enabled": sign_payload},
                ),
            )
            # Before the SDK makes what it can of a web page, or follows a redirect round and round.
            made.meta.events.register("before-parse.s3.*", _check_answer)
            return made

        # TLS proves the body already, and SHA-256 of it costs 0.9 s of CPU a GiB; without TLS, only that proves it.
        plain = (settings.endpoint or "").startswith("http:")
        made = client(sign_payload=plain)
        if not plain and not str(made.meta.endpoint_url).startswith("https:"):  # the endpoint is from boto3's chain
            made = client(sign_payload=True)
    except SDK_ERRORS as error:
        raise translate(error, "set-up", "", _place(settings)) from error
    except ValueError as error:
        # Not quoted: it may hold a password.
        raise StoreError(
            f"the endpoint of {_place(settings).location} is not a URL",
            hint="give AWS_ENDPOINT_URL_S3 as https://HOST:PORT",
            store=settings.name,
        ) from error
    return made


def _check_answer(operation_model: Any, response_dict: Mapping[str, Any], **_: Any) -> None:
    body = response_dict["body"]
    read = body if isinstance(body, bytes) else b""
    try:
        check_answer(operation_model.name, response_dict["status_code"], response_dict["headers"], read)
    except NotS3:
        if not isinstance(body, bytes):
            body.close()
        raise


class S3Store:
    """See Store. The bucket must exist. Nothing is retried here. `client`: made by `connect` when not given."""

    def __init__(self, settings: S3Settings, client: Any | None = None) -> None:
        self.name = settings.name
        self.off_host = settings.off_host
        self._settings = settings
        self._prefix = settings.prefix.strip("/")
        self._place = _place(settings)
        self._client = client or connect(settings)
        self._asks_full_object = True

    @property
    def location(self) -> str:
        """`s3://bucket/prefix`."""
        return self._place.location

    @property
    def capabilities(self) -> Capabilities:
        """The settings', or else the provider's."""
        return self._settings.capabilities or provider_limits(self._settings.endpoint)

    def begin(self, key: str, *, content_type: str = "application/octet-stream") -> _S3Upload:
        """See Store.begin."""
        request = {**self._object(key), **self._encryption(), "ContentType": content_type}
        if self._settings.storage_class:
            request["StorageClass"] = self._settings.storage_class
        with self.translated("CreateMultipartUpload", key):
            answer = self._create(request)
        # Servers that do not know the checksum ignore the question (Ceph 16); those that do repeat it.
        full_object = answer.get("ChecksumType") == "FULL_OBJECT"
        return _S3Upload(self, self._client, key, self._object(key), answer["UploadId"], full_object=full_object)

    def put(self, key: str, data: bytes, *, content_type: str = "application/json", if_absent: bool = False) -> Stored:
        """See Store.put."""
        crc32 = isal_zlib.crc32(data)
        # The checksum goes along always: a bucket with Object Lock refuses objects without one.
        request = {
            **self._object(key),
            **self._encryption(),
            "Body": data,
            "ContentType": content_type,
            "ChecksumCRC32": _encode(crc32),
        }
        if if_absent:
            request["IfNoneMatch"] = "*"
        try:
            with self.translated("PutObject", key):
                answer = self._client.put_object(**request)
        except ObjectExists:
            return self._same_content(key, data)
        except ChecksumMismatch as error:
            # We have just computed it over these very bytes: they were damaged on the way, and may go again.
            raise StoreUnreachable(f"{key} was damaged on its way to {self.location}", store=self.name) from error
        checksum = _vouched(answer)
        entity = _entity(answer)
        if checksum == "none" and not _opaque(answer) and entity == _md5(data).hexdigest():
            checksum = f"md5:{entity}"
        if checksum.startswith("crc32:") and checksum != f"crc32:{crc32:08x}":
            self._discard(key, answer.get("VersionId", ""))
            raise ChecksumMismatch(
                f"{self.location} holds another {key} than was sent", hint="see the store's own health", store=self.name
            )
        return Stored(key, len(data), entity, _version(answer), checksum)

    def head(self, key: str) -> Stored:
        """See Store.head."""
        try:
            with self.translated("HeadObject", key):
                answer = self._client.head_object(**self._object(key), ChecksumMode="ENABLED")
        except ObjectMissing:
            self._check_bucket()  # a HEAD does not say which of the two is missing
            raise
        return Stored(
            key,
            answer["ContentLength"],
            _entity(answer),
            _version(answer),
            _vouched(answer),
            _time(answer["LastModified"]),
        )

    @contextmanager
    def open(
        self, key: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None
    ) -> Iterator[_S3Source]:
        """See Store.open."""
        source = self._source(key, offset, length, if_match)
        try:
            yield source
        finally:
            source.close()

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """See Store.list. All keys are fetched first, as SeaweedFS lists in the order of directories."""
        found = [
            Stored(self._relative(entry["Key"]), entry["Size"], _entity(entry), modified=_time(entry["LastModified"]))
            for answer in self._pages("ListObjectsV2", "list_objects_v2", prefix, ("ContinuationToken",))
            for entry in answer.get("Contents", ())
        ]
        yield from sorted(self._below(prefix, found), key=lambda stored: stored.key)

    def delete(self, keys: Sequence[str]) -> None:
        """See Store.delete. One request a key: DeleteObjects promises no order, and old servers want MD5 for it."""
        for key in keys:
            with suppress(ObjectMissing), self.translated("DeleteObject", key):
                self._client.delete_object(**self._object(key))

    def pending(self, prefix: str = "") -> Iterator[Pending]:
        """See Store.pending."""
        markers = ("KeyMarker", "UploadIdMarker")
        found = [
            Pending(self._relative(entry["Key"]), entry["UploadId"], _time(entry["Initiated"]))
            for answer in self._pages("ListMultipartUploads", "list_multipart_uploads", prefix, markers)
            for entry in answer.get("Uploads", ())
        ]
        ours = self._below(prefix, found)
        yield from sorted(ours, key=lambda pending: (pending.key, pending.started, pending.upload))

    def abort_pending(self, upload: Pending) -> None:
        """See Store.abort_pending."""
        with suppress(ObjectMissing), self.translated("AbortMultipartUpload", upload.key):
            self._client.abort_multipart_upload(**self._object(upload.key), UploadId=upload.upload)

    @contextmanager
    def translated(self, operation: str, key: str) -> Iterator[None]:
        """Turn what the SDK raises into a StoreError."""
        try:
            yield
        except SDK_ERRORS as error:
            raise translate(error, operation, key, self._place) from error

    def copy_source(self, source: Stored) -> dict[str, str]:
        """An object of this store as UploadPartCopy names it."""
        named: dict[str, str] = self._object(source.key)
        if source.version:
            named["VersionId"] = source.version
        return named

    def check_completed(self, key: str, stored: Stored, size: int, crc32: int, entity: str | None) -> Stored:
        """`stored`, a completed object, with the checksum that proves it; entity is the ETag it must have, if known.

        Raises ChecksumMismatch, and removes the object, when it is another.
        """
        ours = f"crc32:{crc32:08x}"
        if stored.checksum.startswith("crc32:"):
            right, checksum = stored.checksum == ours, ours
        elif entity is not None:
            right, checksum = stored.entity == entity, f"md5-parts:{entity}"
        else:
            right, checksum = True, "none"
        if right and stored.size == size:
            return Stored(key, size, stored.entity, stored.version, checksum, stored.modified)
        removed = self._discard(key, stored.version)
        raise ChecksumMismatch(
            f"{self.location} holds another {key} than was sent: {stored.size} bytes, {stored.checksum}, "
            f"instead of {size}, {ours}",
            hint="see the store's own health" + ("" if removed else f", and remove {key}, which could not be removed"),
            store=self.name,
        )

    def _source(self, key: str, offset: int, length: int | None, if_match: str | None) -> _S3Source:
        if length == 0:
            return self._empty_source(key, offset, length, if_match)
        request = self._object(key)
        if offset or length is not None:
            request["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))
        if if_match is not None:
            request["IfMatch"] = f'"{if_match}"'
        try:
            with self.translated("GetObject", key):
                answer = self._client.get_object(**request)
        except ObjectChanged:
            # S3 refuses a range that begins where the object ends; by our contract nothing is read there.
            if length is None and self.head(key).size == offset:
                return self._empty_source(key, offset, length, if_match)
            raise
        size = _size_of_whole(answer) if "Range" in request else answer["ContentLength"]
        if size is None:
            answer["Body"].close()
            raise StoreError(
                f"{self.location} sent all of {key} instead of a range",
                hint="this server does not know ranged reads",
                store=self.name,
            )
        stored = Stored(key, size, _entity(answer), _version(answer), modified=_time(answer["LastModified"]))
        try:
            return _S3Source(self, stored, answer["Body"], check_range(stored, offset, length, if_match, self.name))
        except BaseException:
            answer["Body"].close()
            raise

    def _empty_source(self, key: str, offset: int, length: int | None, if_match: str | None) -> _S3Source:
        stored = self.head(key)
        return _S3Source(self, stored, None, check_range(stored, offset, length, if_match, self.name))

    def _create(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        create = self._client.create_multipart_upload
        if not self._asks_full_object:
            return create(**request)  # type: ignore[no-any-return]
        try:
            return create(**request, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")  # type: ignore[no-any-return]
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _UNKNOWN_CHECKSUM:
                raise
            answer = create(**request)
            self._asks_full_object = False
            return answer  # type: ignore[no-any-return]

    def _pages(self, operation: str, method: str, prefix: str, markers: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        full = f"{self._prefix}/{prefix}" if self._prefix else prefix
        marked: dict[str, str] = {}
        while True:
            with self.translated(operation, prefix):
                answer = getattr(self._client, method)(Bucket=self._settings.bucket, Prefix=full, **marked)
            yield answer
            following = {marker: answer.get(f"Next{marker}") for marker in markers}
            if not answer.get("IsTruncated") or not any(following.values()) or following == marked:
                return
            marked = {marker: value for marker, value in following.items() if value}

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._settings.bucket, "Key": full_key(self._prefix, key, self.name)}

    def _relative(self, full: str) -> str:
        """The key below the prefix; empty for one that is not below it."""
        if not self._prefix:
            return full
        return full.removeprefix(f"{self._prefix}/") if full.startswith(f"{self._prefix}/") else ""

    def _below(self, prefix: str, found: Iterable[Entry]) -> Iterator[Entry]:
        """Those whose key starts with prefix. A server that ignored it must not make us delete another host's.

        The store's own prefix, which is a key where a console made it as a folder, is none of ours either.
        """
        return (entry for entry in found if entry.key and entry.key.startswith(prefix))

    def _encryption(self) -> dict[str, str]:
        request = {}
        if self._settings.sse:
            request["ServerSideEncryption"] = self._settings.sse
        if self._settings.sse_kms_key:
            request["SSEKMSKeyId"] = self._settings.sse_kms_key
        return request

    def _same_content(self, key: str, data: bytes) -> Stored:
        """Our own object, when a request whose answer was lost is made again; else raises ObjectExists."""
        try:
            with self.open(key) as source:
                same = source.stored.size == len(data) and b"".join(iter(source.read, b"")) == data
        except ObjectMissing as error:
            raise StoreUnreachable(
                f"{key} was there and is gone: somebody else works on it", store=self.name
            ) from error
        if not same:
            raise ObjectExists(f"{key} exists already in {self.location}, with another content", store=self.name)
        return self.head(key)

    def _check_bucket(self) -> None:
        try:
            with self.translated("HeadBucket", ""):
                self._client.head_bucket(Bucket=self._settings.bucket)
        except BucketMissing:
            raise
        except StoreError:
            pass  # not allowed to know: then it is the object that is missing, as far as we can tell

    def _discard(self, key: str, version: str) -> bool:
        """Remove what the store holds wrongly; whether it worked."""
        request = {**self._object(key), **({"VersionId": version} if version else {})}
        try:
            with self.translated("DeleteObject", key):
                self._client.delete_object(**request)
        except StoreError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Part:
    """What the server has: etag as it names it; md5 is the body's digest, where ETags are such.

    crc32 and md5 are None where the server has not proved them to us: those of a copied range.
    """

    length: int
    etag: str
    crc32: int | None = None
    md5: bytes | None = None


class _S3Upload(AbortingUpload):
    """Parts with a CRC32 in the header each, where the server knows checksums of full objects; else with their MD5."""

    def __init__(
        self,
        store: S3Store,
        client: Any,
        key: str,
        named: Mapping[str, Any],
        upload: str,
        *,
        full_object: bool,
    ) -> None:
        self.key = key
        self._store = store
        self._client = client
        self._request = {**named, "UploadId": upload}
        self._full_object = full_object
        self._lock = threading.Lock()
        self._parts: dict[int, _Part] = {}

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        check_part(self.key, number, len(data), self._store.capabilities, self._store.name)
        body = bytes(data)  # no copy when it is bytes; the SDK takes no memoryview
        md5 = None
        if self._full_object:
            proof = {"ChecksumCRC32": _encode(crc32)}
        else:
            self._check_body(number, body, crc32)
            md5 = _md5(body).digest()
            proof = {"ContentMD5": b64encode(md5).decode()}
        try:
            with self._store.translated("UploadPart", self.key):
                answer = self._client.upload_part(**self._request, PartNumber=number, Body=body, **proof)
        except ChecksumMismatch as error:
            self._check_body(number, body, crc32)
            raise self._damaged(number) from error
        if _vouched(answer) not in ("none", f"crc32:{crc32:08x}"):
            self._check_body(number, body, crc32)
            raise self._damaged(number)
        etag = _entity(answer)
        if md5 is not None and _opaque(answer):
            md5 = None
        if md5 is not None and etag != md5.hex():
            raise self._damaged(number)
        with self._lock:
            self._parts[number] = _Part(len(body), etag, crc32, md5)

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        check_copy(self.key, number, source, offset, length, self._store.capabilities, self._store.name)
        with self._store.translated("UploadPartCopy", self.key):
            answer = self._client.upload_part_copy(
                **self._request,
                PartNumber=number,
                CopySource=self._store.copy_source(source),
                CopySourceRange=f"bytes={offset}-{offset + length - 1}",
                CopySourceIfMatch=f'"{source.entity}"',
            )
        # Ceph 16 ignores the condition (tried), and knows no checksum that would show it in the end.
        if not self._full_object and self._store.head(source.key).entity != source.entity:
            raise ObjectChanged(f"{source.key} is not what it was in {self._store.location}", store=self._store.name)
        with self._lock:
            self._parts[number] = _Part(length, _entity(answer["CopyPartResult"]))

    def complete(self, numbers: Sequence[int], *, size: int, crc32: int) -> Stored:
        with self._lock:
            parts = dict(self._parts)
        lengths = {number: part.length for number, part in parts.items()}
        check_parts(self.key, numbers, lengths, size, self._store.capabilities, self._store.name)
        self._check_sum([parts[number] for number in numbers], crc32)
        named = [{"PartNumber": number, "ETag": f'"{parts[number].etag}"'} for number in numbers]
        proof = {"ChecksumCRC32": _encode(crc32), "ChecksumType": "FULL_OBJECT"} if self._full_object else {}
        entity = _entity_of_parts([parts[number] for number in numbers])
        try:
            with self._store.translated("CompleteMultipartUpload", self.key):
                answer = self._client.complete_multipart_upload(
                    **self._request, MultipartUpload={"Parts": named}, **proof
                )
        except ObjectMissing as missing:
            # Of an earlier request, the answer was lost: then the object is there, and is this one.
            stored = self._store_has(size, crc32, entity, missing)
        else:
            self.completed = True  # nothing is left to abort, whatever it is that the store made
            stored = self._from_answer(answer, size, entity)
            stored = self._store.check_completed(self.key, stored, size, crc32, entity)
        self.completed = True
        return stored

    def abort(self) -> None:
        if self.completed:
            return
        with suppress(ObjectMissing), self._store.translated("AbortMultipartUpload", self.key):
            self._client.abort_multipart_upload(**self._request)
        self.aborted = True

    def _from_answer(self, answer: Mapping[str, Any], size: int, entity: str | None) -> Stored:
        vouched = _vouched(answer)
        if _entity(answer) and (vouched != "none" or (not self._full_object and entity is not None)):
            # The answer proves it, so that a key which may only write is enough. Its size follows from the parts.
            return Stored(self.key, size, _entity(answer), _version(answer), vouched)
        return self._store.head(self.key)  # Ceph 16 answers with an empty ETag, moto without the checksum

    def _store_has(self, size: int, crc32: int, entity: str | None, missing: ObjectMissing) -> Stored:
        try:
            stored = self._store.head(self.key)
        except ObjectMissing:
            raise missing from None
        if stored.size == size and stored.checksum == f"crc32:{crc32:08x}":
            return stored
        if stored.size == size and entity is not None and stored.entity == entity:
            return Stored(self.key, size, entity, stored.version, f"md5-parts:{entity}", stored.modified)
        raise missing

    def _check_body(self, number: int, body: bytes, crc32: int) -> None:
        if isal_zlib.crc32(body) != crc32:
            raise ChecksumMismatch(
                f"part {number} of {self.key} does not have its checksum",
                hint="run again; when it comes back, test this machine's memory",
                store=self._store.name,
            )

    def _check_sum(self, parts: Sequence[_Part], crc32: int) -> None:
        """Raise ChecksumMismatch when the parts cannot make an object of that CRC32, as far as we know theirs.

        It is the only comparison with the caller's checksum where the server knows MD5 alone.
        """
        known = [(part.length, part.crc32) for part in parts if part.crc32 is not None]
        if len(known) == len(parts) and combine(known)[1] != crc32:
            raise ChecksumMismatch(f"{self.key} does not have its checksum", store=self._store.name)

    def _damaged(self, number: int) -> StoreUnreachable:
        return StoreUnreachable(
            f"part {number} of {self.key} was damaged on its way to {self._store.location}",
            hint="see the network and the store's own health",
            store=self._store.name,
        )


class _S3Source:
    def __init__(self, store: S3Store, stored: Stored, body: Any, span: int) -> None:
        self.stored = stored
        self._store = store
        self._body = body
        self._rest = span

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._rest if size < 0 else min(size, self._rest)
        if not wanted:
            return b""
        with self._store.translated("GetObject", self.stored.key):
            data: bytes = self._body.read(wanted)
        if not data:
            raise StoreUnreachable(
                f"GetObject of {self.stored.key} in {self._store.location} ended {self._rest} bytes early",
                hint="see the store's status and the network",
                store=self._store.name,
            )
        self._rest -= len(data)
        return data

    def close(self) -> None:
        if self._body is not None:
            self._body.close()


def _place(settings: S3Settings) -> Place:
    prefix = settings.prefix.strip("/")
    location = f"s3://{settings.bucket}" + (f"/{prefix}" if prefix else "")
    return Place(settings.name, settings.bucket, location, settings.endpoint)


def _encode(crc32: int) -> str:
    return b64encode(crc32.to_bytes(4, "big")).decode()


def _vouched(answer: Mapping[str, Any]) -> str:
    """The CRC32 of all the bytes that the server computed, as Stored.checksum; a checksum of checksums is `none`."""
    encoded = answer.get("ChecksumCRC32")
    if not encoded or "-" in encoded or answer.get("ChecksumType") == "COMPOSITE":
        return "none"
    return f"crc32:{b64decode(encoded).hex()}"


def _entity(answer: Mapping[str, Any]) -> str:
    # Some servers quote the ETag here and not there (SeaweedFS, in the result of a copy).
    return str(answer.get("ETag", "")).strip('"')


def _version(answer: Mapping[str, Any]) -> str:
    version = answer.get("VersionId", "")
    return "" if version == "null" else str(version)


def _opaque(answer: Mapping[str, Any]) -> bool:
    """Whether the ETag is not the body's MD5: S3 promises that only without KMS and customers' keys."""
    return str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer


def _entity_of_parts(parts: Sequence[_Part]) -> str | None:
    """The ETag that S3 gives an object of these parts: the MD5 of their MD5s. None unless we computed them all."""
    digests = [part.md5 for part in parts if part.md5 is not None]
    if len(digests) < len(parts):
        return None
    return f"{_md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _size_of_whole(answer: Mapping[str, Any]) -> int | None:
    """The object's size from `bytes 0-4/10`; None when the answer is not a range."""
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _time(value: datetime) -> datetime:
    return value.astimezone(UTC)
