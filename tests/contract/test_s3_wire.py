"""What S3Store really sends: recorded by a hook just before it leaves, against real servers."""

from __future__ import annotations

import base64
import hashlib
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sidecar.errors import ObjectMissing, StoreError
from sidecar.stores.pool import PooledUpload
from sidecar.stores.port import MEBIBYTE, Capabilities
from sidecar.stores.s3 import CONNECT_TIMEOUT, READ_TIMEOUT, S3Store, connect, provider_limits
from tests.contract.store_servers import BUCKET, Server

FIRST = random.Random(3).randbytes(5 * MEBIBYTE)
SECOND = random.Random(4).randbytes(100_000)


@dataclass(frozen=True)
class Sent:
    """A request as it left: operation as S3 names it, parameters of the query, headers in lower case."""

    operation: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]


@dataclass
class Wire:
    """A client whose requests are recorded."""

    client: Any
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client.meta.events.register("before-send.s3", self._record)

    def _record(self, request: Any, event_name: str, **_: Any) -> None:
        url = urlsplit(request.url)
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
        }
        operation = event_name.rpartition(".")[2]
        query = parse_qs(url.query, keep_blank_values=True)
        self.sent.append(Sent(operation, request.method, url.path, query, headers))

    def of(self, operation: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.operation == operation]


@pytest.fixture(scope="module")
def recorded(seaweedfs_server: Server) -> Wire:
    return Wire(connect(seaweedfs_server.settings()))


@pytest.fixture
def wire(recorded: Wire) -> Wire:
    recorded.sent.clear()
    return recorded


@pytest.fixture
def prefix() -> str:
    return f"wire/{random.SystemRandom().randrange(10**9)}"


@pytest.fixture
def make(wire: Wire, seaweedfs_server: Server, prefix: str) -> Callable[..., S3Store]:
    def make(**changes: Any) -> S3Store:
        return S3Store(seaweedfs_server.settings(prefix, **changes), wire.client)

    return make


@pytest.fixture
def store(make: Callable[..., S3Store]) -> S3Store:
    return make()


def crc32_header(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def archive(store: S3Store, key: str = "archive") -> Any:
    with PooledUpload(store.begin(key, content_type="application/gzip"), threads=2) as upload:
        upload.put(1, FIRST)
        upload.put(2, SECOND)
        return upload.complete()


# --- checksums -------------------------------------------------------------------------------------------------------


def test_each_part_carries_its_own_crc32_and_nothing_else_to_prove_it(store: S3Store, wire: Wire) -> None:
    archive(store)

    parts = sorted(wire.of("UploadPart"), key=lambda sent: sent.query["partNumber"])
    assert [sent.headers["x-amz-checksum-crc32"] for sent in parts] == [crc32_header(FIRST), crc32_header(SECOND)]
    for sent in parts:
        assert "content-md5" not in sent.headers
        assert "x-amz-trailer" not in sent.headers
        assert sent.headers.get("content-encoding", "") != "aws-chunked"


def test_the_upload_asks_for_a_checksum_of_the_full_object_and_completes_with_ours(store: S3Store, wire: Wire) -> None:
    archive(store)

    (create,) = wire.of("CreateMultipartUpload")
    assert create.headers["x-amz-checksum-algorithm"] == "CRC32"
    assert create.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert create.headers["content-type"] == "application/gzip"
    (complete,) = wire.of("CompleteMultipartUpload")
    assert complete.headers["x-amz-checksum-crc32"] == crc32_header(FIRST + SECOND)
    assert complete.headers["x-amz-checksum-type"] == "FULL_OBJECT"


def test_a_server_that_vouches_in_its_answer_is_asked_nothing_more(store: S3Store, wire: Wire) -> None:
    archive(store)

    assert [sent.operation for sent in wire.sent if sent.operation != "UploadPart"] == [
        "CreateMultipartUpload",
        "CompleteMultipartUpload",
    ]


def test_a_server_that_vouches_only_when_asked_is_asked(moto_server: Server, prefix: str) -> None:
    wire = Wire(connect(moto_server.settings()))
    archive(S3Store(moto_server.settings(prefix), wire.client))

    (head,) = wire.of("HeadObject")
    assert head.headers["x-amz-checksum-mode"] == "ENABLED"


@pytest.fixture
def forgetful(wire: Wire) -> Iterator[None]:
    """A server that does not know checksums of full objects: it ignores the question."""

    def forget(parsed: dict[str, Any], **_: Any) -> None:
        parsed.pop("ChecksumType", None)

    def ignore(params: dict[str, Any], **_: Any) -> None:
        for name in ("x-amz-checksum-algorithm", "x-amz-checksum-type"):
            params["headers"].pop(name, None)

    events = wire.client.meta.events
    events.register("before-call.s3.CreateMultipartUpload", ignore)
    events.register("after-call.s3.CreateMultipartUpload", forget)
    yield
    events.unregister("before-call.s3.CreateMultipartUpload", ignore)
    events.unregister("after-call.s3.CreateMultipartUpload", forget)


@pytest.mark.usefixtures("forgetful")
def test_without_checksums_of_full_objects_each_part_carries_its_md5_and_the_etag_is_compared(
    store: S3Store, wire: Wire
) -> None:
    stored = archive(store)

    bodies = {"1": FIRST, "2": SECOND}
    for sent in wire.of("UploadPart"):
        body = bodies[sent.query["partNumber"][0]]
        assert sent.headers["content-md5"] == base64.b64encode(hashlib.md5(body).digest()).decode()
    (complete,) = wire.of("CompleteMultipartUpload")
    assert "x-amz-checksum-crc32" not in complete.headers
    of_parts = hashlib.md5(hashlib.md5(FIRST).digest() + hashlib.md5(SECOND).digest()).hexdigest()
    assert stored.checksum == f"md5-parts:{of_parts}-2"
    assert stored.entity == f"{of_parts}-2"


@pytest.mark.usefixtures("forgetful")
def test_without_checksums_of_full_objects_another_etag_is_a_mismatch(store: S3Store, wire: Wire) -> None:
    def lie(parsed: dict[str, Any], **_: Any) -> None:
        parsed["ETag"] = f'"{"0" * 32}-2"'

    wire.client.meta.events.register("after-call.s3.CompleteMultipartUpload", lie)
    try:
        with pytest.raises(StoreError, match="another archive than was sent"):
            archive(store)
    finally:
        wire.client.meta.events.unregister("after-call.s3.CompleteMultipartUpload", lie)

    with pytest.raises(ObjectMissing):
        store.head("archive")


@pytest.mark.usefixtures("forgetful")
def test_without_checksums_of_full_objects_a_copy_asks_again_whether_its_source_is_the_same(
    store: S3Store, wire: Wire
) -> None:
    source = archive(store, "old")
    wire.sent.clear()
    with store.begin("new") as upload:
        upload.copy(1, source, 0, len(FIRST))
        upload.complete([1], size=len(FIRST), crc32=zlib.crc32(FIRST))

    copied = [sent.operation for sent in wire.sent].index("UploadPartCopy")
    asked = wire.sent[copied + 1]
    assert (asked.operation, asked.path.rpartition("/")[2]) == ("HeadObject", "old")


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_small_object_carries_its_crc32_and_the_condition(store: S3Store, wire: Wire, if_absent: bool) -> None:
    store.put("owner.json", b'{"format": 1}', if_absent=if_absent)

    (sent,) = wire.sent
    assert sent.operation == "PutObject"
    assert sent.headers["x-amz-checksum-crc32"] == crc32_header(b'{"format": 1}')
    assert sent.headers.get("if-none-match") == ("*" if if_absent else None)


# --- who proves the body ---------------------------------------------------------------------------------------------


def test_without_tls_the_body_is_signed(store: S3Store, wire: Wire) -> None:
    archive(store)

    digests = {sent.headers["x-amz-content-sha256"] for sent in wire.of("UploadPart")}
    assert digests == {hashlib.sha256(FIRST).hexdigest(), hashlib.sha256(SECOND).hexdigest()}


def test_with_tls_the_body_is_not_signed_but_carries_its_checksum(
    seaweedfs_server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", seaweedfs_server.authority)
    settings = seaweedfs_server.settings(prefix, endpoint=seaweedfs_server.tls_endpoint)
    wire = Wire(connect(settings))
    stored = archive(S3Store(settings, wire.client))

    assert {sent.headers["x-amz-content-sha256"] for sent in wire.of("UploadPart")} == {"UNSIGNED-PAYLOAD"}
    assert all("x-amz-checksum-crc32" in sent.headers for sent in wire.of("UploadPart"))
    assert stored.checksum == f"crc32:{zlib.crc32(FIRST + SECOND):08x}"


@pytest.mark.parametrize(("scheme", "signed"), [("http", True), ("https", False)])
def test_an_endpoint_from_the_environment_counts_like_one_from_the_settings(
    seaweedfs_server: Server, monkeypatch: pytest.MonkeyPatch, scheme: str, signed: bool
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{scheme}://127.0.0.1:1")
    client = connect(seaweedfs_server.settings(endpoint=None))

    assert client.meta.endpoint_url == f"{scheme}://127.0.0.1:1"
    assert client.meta.config.s3["payload_signing_enabled"] is signed


def test_a_certificate_that_nobody_vouches_for_is_refused_with_the_way_to_trust_it(
    seaweedfs_server: Server, prefix: str
) -> None:
    store = S3Store(seaweedfs_server.settings(prefix, endpoint=seaweedfs_server.tls_endpoint))
    with pytest.raises(StoreError) as caught:
        store.put("k", b"")

    assert "AWS_CA_BUNDLE" in caught.value.hint
    assert not caught.value.retryable


# --- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_names_range_and_condition(store: S3Store, wire: Wire, prefix: str) -> None:
    source = archive(store, "old set/archive")
    with store.begin("new") as upload:
        upload.copy(1, source, 1234, 5 * MEBIBYTE)

    (sent,) = wire.of("UploadPartCopy")
    assert sent.headers["x-amz-copy-source"] == f"{BUCKET}/{prefix}/old%20set/archive"
    assert sent.headers["x-amz-copy-source-range"] == f"bytes=1234-{1234 + 5 * MEBIBYTE - 1}"
    assert sent.headers["x-amz-copy-source-if-match"] == f'"{source.entity}"'


@pytest.mark.parametrize("kind", ["moto", "seaweedfs"])
def test_in_a_bucket_with_versions_a_copy_names_the_version(
    request: pytest.FixtureRequest, kind: str, prefix: str
) -> None:
    server: Server = request.getfixturevalue(f"{kind}_server")
    plain = server.client()
    plain.create_bucket(Bucket="versions")
    plain.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    wire = Wire(connect(server.settings()))
    store = S3Store(server.settings(prefix, bucket="versions"), wire.client)
    archive(store, "old")
    source = store.head("old")
    assert source.version
    store.put("old", b"another version")

    with store.begin("new") as upload:
        upload.copy(1, source, 0, len(FIRST))
        upload.complete([1], size=len(FIRST), crc32=zlib.crc32(FIRST))

    (sent,) = wire.of("UploadPartCopy")
    assert sent.headers["x-amz-copy-source"].endswith(f"?versionId={source.version}")
    body = plain.get_object(Bucket="versions", Key=f"{prefix}/new")["Body"].read()
    assert body == FIRST


# --- clean-up --------------------------------------------------------------------------------------------------------


def test_an_upload_whose_block_is_left_by_an_error_is_aborted_on_the_wire(store: S3Store, wire: Wire) -> None:
    def unreadable_tree() -> None:
        with store.begin("archive") as upload:
            upload.put(1, SECOND, zlib.crc32(SECOND))
            raise RuntimeError("the tree cannot be read")

    with pytest.raises(RuntimeError, match="the tree"):
        unreadable_tree()

    (create,) = wire.of("CreateMultipartUpload")
    (abort,) = wire.of("AbortMultipartUpload")
    assert abort.path == create.path
    assert list(store.pending()) == []


def test_a_completed_upload_is_not_aborted(store: S3Store, wire: Wire) -> None:
    archive(store)

    assert wire.of("AbortMultipartUpload") == []


def test_objects_are_deleted_one_after_the_other_in_the_order_given(store: S3Store, wire: Wire, prefix: str) -> None:
    keys = ["set/manifest.json", "set/b.tar.gz", "set/a.tar.gz"]
    store.delete(keys)

    assert [(sent.operation, sent.path) for sent in wire.sent] == [
        ("DeleteObject", f"/{BUCKET}/{prefix}/{key}") for key in keys
    ]


# --- settings --------------------------------------------------------------------------------------------------------


def test_storage_class_is_for_archives_and_encryption_for_everything(make: Callable[..., S3Store], wire: Wire) -> None:
    store = make(storage_class="STANDARD_IA", sse="AES256")
    archive(store)
    store.put("manifest.json", b"{}")

    (create,) = wire.of("CreateMultipartUpload")
    (put,) = wire.of("PutObject")
    assert create.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert "x-amz-storage-class" not in put.headers
    assert create.headers["x-amz-server-side-encryption"] == "AES256"
    assert put.headers["x-amz-server-side-encryption"] == "AES256"


def test_the_kms_key_is_named(moto_server: Server, prefix: str) -> None:
    settings = moto_server.settings(prefix, sse="aws:kms", sse_kms_key="key-1")
    wire = Wire(connect(settings))
    store = S3Store(settings, wire.client)
    stored = store.put("manifest.json", b"{}")
    archive(store)

    for sent in (*wire.of("PutObject"), *wire.of("CreateMultipartUpload")):
        assert sent.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert sent.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert not stored.checksum.startswith("md5:"), "under KMS an ETag is no MD5"


def test_a_bucket_with_object_lock_takes_what_we_send(seaweedfs_server: Server, prefix: str) -> None:
    plain = seaweedfs_server.client()
    plain.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    plain.put_object_lock_configuration(
        Bucket="locked",
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
        },
    )
    store = S3Store(seaweedfs_server.settings(prefix, bucket="locked"))
    store.put("manifest.json", b"{}")
    stored = archive(store)

    assert plain.head_object(Bucket="locked", Key=f"{prefix}/archive")["ObjectLockMode"] == "GOVERNANCE"
    assert stored.checksum == f"crc32:{zlib.crc32(FIRST + SECOND):08x}"


def test_time_outs_and_connections_are_bounded_and_the_client_retries_nothing(seaweedfs_server: Server) -> None:
    config = connect(seaweedfs_server.settings(connections=7)).meta.config

    assert (config.connect_timeout, config.read_timeout) == (CONNECT_TIMEOUT, READ_TIMEOUT) == (10, 60)
    assert config.max_pool_connections == 7
    assert config.retries["total_max_attempts"] == 1


@pytest.mark.parametrize(
    ("endpoint", "limits"),
    [
        (None, Capabilities()),
        ("http://127.0.0.1:8333", Capabilities()),
        ("https://account.r2.cloudflarestorage.com", Capabilities(equal_parts=True)),
        ("https://s3.fr-par.scw.cloud", Capabilities(most_parts=1000)),
        ("https://r2.cloudflarestorage.com.example.org", Capabilities()),
        ("http://[::1", Capabilities()),
    ],
)
def test_the_limits_are_those_of_the_provider(endpoint: str | None, limits: Capabilities) -> None:
    assert provider_limits(endpoint) == limits


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["moto", "seaweedfs", pytest.param("ceph", marks=pytest.mark.ceph)])
def test_listings_of_many_pages_are_whole_and_in_order(request: pytest.FixtureRequest, kind: str, prefix: str) -> None:
    server: Server = request.getfixturevalue(f"{kind}_server")
    client = connect(server.settings())
    wire = Wire(client)

    def small_pages(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = 2

    def one_upload_a_page(params: dict[str, Any], **_: Any) -> None:
        params["MaxUploads"] = 1

    client.meta.events.register("provide-client-params.s3.ListObjectsV2", small_pages)
    client.meta.events.register("provide-client-params.s3.ListMultipartUploads", one_upload_a_page)
    store = S3Store(server.settings(prefix), client)
    names = ["a/b", "a-b", "a.b", "é", "c/1", "c/2", "c/3"]
    for name in names:
        store.put(name, b"")
    uploads = [store.begin(key) for key in ("u/1", "u/1", "u/2")]

    assert [stored.key for stored in store.list()] == sorted(names)
    assert [pending.key for pending in store.pending()] == ["u/1", "u/1", "u/2"]
    for upload in uploads:
        upload.abort()
    # moto does not page uploads.
    assert len(wire.of("ListObjectsV2")) >= 4


@pytest.mark.parametrize("prefix_of_other", ["", "another/host", "wire"])
def test_a_server_that_ignores_the_prefix_does_not_make_us_see_what_is_of_another_host(
    moto_server: Server, prefix: str, prefix_of_other: str
) -> None:
    other = S3Store(moto_server.settings(prefix_of_other))
    other.put("object", b"theirs")
    theirs = other.begin("upload")
    client = connect(moto_server.settings())

    def ignore_prefix(params: dict[str, Any], **_: Any) -> None:
        params["Prefix"] = ""

    for operation in ("ListObjectsV2", "ListMultipartUploads"):
        client.meta.events.register(f"provide-client-params.s3.{operation}", ignore_prefix)
    store = S3Store(moto_server.settings(prefix), client)
    store.put("set/object", b"ours")
    ours = store.begin("set/upload")

    assert [stored.key for stored in store.list()] == ["set/object"]
    assert [stored.key for stored in store.list("set/")] == ["set/object"]
    assert [pending.key for pending in store.pending()] == ["set/upload"]
    assert list(store.pending("other/")) == []
    assert list(store.list("other/")) == []
    ours.abort()
    theirs.abort()
