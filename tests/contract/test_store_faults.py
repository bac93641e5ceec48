"""The real S3 client, a real server, and a proxy between them that refuses, resets, loses and truncates."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tenacity

from sidecar.errors import (
    BucketMissing,
    ChecksumMismatch,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from sidecar.stores.pool import PooledUpload
from sidecar.stores.port import MEBIBYTE
from sidecar.stores.retrying import Retry, RetryingStore, RetryPolicy
from sidecar.stores.s3 import S3Store, connect
from tests.contract.store_faults import (
    Action,
    Answer,
    Corrupt,
    Fault,
    FaultyProxy,
    LoseAnswer,
    ResetRequest,
    Truncate,
)
from tests.contract.store_servers import BUCKET, Server

FIRST = random.Random(1).randbytes(5 * MEBIBYTE)
SECOND = random.Random(2).randbytes(300_000)
CREATE, PART_1, PART_2, COMPLETE = (
    ("POST", "?uploads"),
    ("PUT", "partNumber=1"),
    ("PUT", "partNumber=2"),
    ("POST", "uploadId="),
)
BUSY = Answer(503, "SlowDown")
THROTTLED = Answer(429, "TooManyRequests")


@pytest.fixture(scope="module")
def running_proxy(seaweedfs_server: Server) -> Iterator[tuple[FaultyProxy, Any]]:
    """The proxy and a client of it: making a client takes longer than most tests."""
    with FaultyProxy(seaweedfs_server.endpoint) as proxy:
        yield proxy, connect(seaweedfs_server.settings(endpoint=proxy.endpoint))


@pytest.fixture
def proxy(running_proxy: tuple[FaultyProxy, Any]) -> FaultyProxy:
    """The proxy, with an empty script."""
    proxy, _ = running_proxy
    proxy.faults.clear()
    proxy.requests.clear()
    return proxy


@pytest.fixture
def prefix() -> str:
    return f"faults/{random.SystemRandom().randrange(10**9)}"


@pytest.fixture
def bare(proxy: FaultyProxy, running_proxy: tuple[FaultyProxy, Any], seaweedfs_server: Server, prefix: str) -> S3Store:
    """The store behind the proxy, without retries."""
    return S3Store(seaweedfs_server.settings(prefix, endpoint=proxy.endpoint), running_proxy[1])


@pytest.fixture
def retries() -> list[Retry]:
    return []


@pytest.fixture
def store(bare: S3Store, retries: list[Retry]) -> RetryingStore:
    """The store behind the proxy, with retries that do not wait."""
    return RetryingStore(bare, RetryPolicy(attempts=5), on_retry=retries.append, wait=tenacity.wait_none())


@pytest.fixture(scope="module")
def direct(seaweedfs_server: Server) -> Any:
    """A client past the proxy that knows nothing of our code."""
    return seaweedfs_server.client()


@pytest.fixture
def oracle(direct: Any, prefix: str) -> Callable[[str], bytes]:
    """What the server really holds under a key."""

    def get(key: str) -> bytes:
        body: bytes = direct.get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["Body"].read()
        return body

    return get


def archive(store: RetryingStore | S3Store) -> Any:
    with PooledUpload(store.begin("archive"), threads=2) as upload:
        upload.put(1, FIRST)
        upload.put(2, SECOND)
        return upload.complete()


# --- uploads ---------------------------------------------------------------------------------------------------------


STEPS = {"create": CREATE, "part 1": PART_1, "part 2": PART_2, "complete": COMPLETE}
PASSING: dict[str, list[Action]] = {
    "busy": [BUSY, THROTTLED],
    "5xx": [Answer(500, "InternalError"), Answer(502, "x"), Answer(504, "x")],
    "timeout": [Answer(400, "RequestTimeout")],
    "reset": [ResetRequest(0)],
    "reset in the body": [ResetRequest(100_000)],
}
# S3 may fail after it has begun to answer, where the answer has a body.
ERROR_INSIDE_200: list[Action] = [Answer(200, "InternalError")]


@pytest.mark.parametrize(
    ("step", "actions"),
    [
        *(pytest.param(STEPS[step], PASSING[what], id=f"{what} at {step}") for step in STEPS for what in PASSING),
        *(
            pytest.param(STEPS[step], ERROR_INSIDE_200, id=f"error inside 200 at {step}")
            for step in ("create", "complete")
        ),
    ],
)
def test_an_upload_survives_what_passes(
    store: RetryingStore,
    proxy: FaultyProxy,
    oracle: Callable[[str], bytes],
    retries: list[Retry],
    step: tuple[str, str],
    actions: list[Action],
) -> None:
    proxy.script(*(Fault(*step, action) for action in actions))

    stored = archive(store)

    proxy.assert_all_fired()
    assert len(retries) == len(actions)
    assert oracle("archive") == FIRST + SECOND
    assert stored.checksum == f"crc32:{zlib.crc32(FIRST + SECOND):08x}"
    assert list(store.pending()) == []


def test_a_complete_whose_answer_was_lost_is_found_done(
    store: RetryingStore, proxy: FaultyProxy, oracle: Callable[[str], bytes]
) -> None:
    # SeaweedFS would repeat its answer; Amazon may say that there is no such upload.
    proxy.script(Fault(*COMPLETE, LoseAnswer()), Fault(*COMPLETE, Answer(404, "NoSuchUpload")))

    stored = archive(store)

    proxy.assert_all_fired()
    assert oracle("archive") == FIRST + SECOND
    assert stored.entity == store.head("archive").entity
    assert stored.checksum == f"crc32:{zlib.crc32(FIRST + SECOND):08x}"


@pytest.mark.parametrize("old", [b"", b"the archive of another run"])
def test_an_upload_that_vanished_is_not_mistaken_for_a_done_one(
    store: RetryingStore, proxy: FaultyProxy, oracle: Callable[[str], bytes], old: bytes
) -> None:
    store.put("archive", old)
    proxy.script(Fault(*COMPLETE, Answer(404, "NoSuchUpload")))

    with pytest.raises(ObjectMissing, match="NoSuchUpload"):
        archive(store)

    proxy.assert_all_fired()
    assert oracle("archive") == old
    assert list(store.pending()) == []


def test_a_part_damaged_on_its_way_is_sent_again(
    store: RetryingStore, proxy: FaultyProxy, oracle: Callable[[str], bytes], retries: list[Retry]
) -> None:
    proxy.script(Fault(*PART_1, Corrupt(1_000_000)))

    archive(store)

    proxy.assert_all_fired()
    assert "damaged on its way" in retries[0].error.message
    assert oracle("archive") == FIRST + SECOND


def test_a_small_object_damaged_on_its_way_is_sent_again(
    store: RetryingStore, proxy: FaultyProxy, oracle: Callable[[str], bytes]
) -> None:
    proxy.script(Fault("PUT", "manifest.json", Corrupt(3)))

    store.put("manifest.json", b'{"format": 1}')

    proxy.assert_all_fired()
    assert oracle("manifest.json") == b'{"format": 1}'


def test_a_store_that_stays_down_ends_the_upload_with_its_name_and_leaves_nothing(
    store: RetryingStore, proxy: FaultyProxy, retries: list[Retry]
) -> None:
    proxy.script(*(Fault(*PART_2, BUSY) for _ in range(5)))

    with pytest.raises(StoreUnreachable, match="SlowDown"):
        archive(store)

    proxy.assert_all_fired()
    assert [retry.attempt for retry in retries] == [1, 2, 3, 4]
    assert list(store.pending()) == []
    assert list(store.list()) == []


def test_a_refused_upload_is_not_tried_again_and_is_aborted(
    store: RetryingStore, proxy: FaultyProxy, retries: list[Retry]
) -> None:
    proxy.script(Fault(*PART_1, Answer(403, "AccessDenied")))

    with pytest.raises(StoreDenied):
        archive(store)

    assert retries == []
    assert [request for request in proxy.requests if request.method == "DELETE" and "uploadId=" in request.target]
    assert list(store.pending()) == []


def test_the_client_itself_retries_nothing(bare: S3Store, proxy: FaultyProxy) -> None:
    proxy.script(Fault("PUT", "manifest.json", BUSY))

    with pytest.raises(StoreUnreachable):
        bare.put("manifest.json", b"{}")

    assert len(proxy.requests) == 1


# --- small requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "where", "act"),
    [
        ("PUT", "k", lambda store: store.put("k", b"new")),
        ("HEAD", "k", lambda store: store.head("k")),
        ("GET", "list-type=2", lambda store: list(store.list())),
        ("GET", "?uploads", lambda store: list(store.pending())),
        ("DELETE", "k", lambda store: store.delete(["k"])),
        ("DELETE", "uploadId", lambda store: store.begin("k").abort()),
    ],
    ids=["put", "head", "list", "pending", "delete", "abort"],
)
@pytest.mark.parametrize(
    "action", [BUSY, THROTTLED, ResetRequest(0), LoseAnswer()], ids=["busy", "429", "reset", "lost"]
)
def test_every_request_survives_what_passes(
    store: RetryingStore,
    proxy: FaultyProxy,
    method: str,
    where: str,
    act: Callable[[RetryingStore], object],
    action: Action,
) -> None:
    store.put("k", b"old")
    proxy.script(Fault(method, where, action), Fault(method, where, action))

    act(store)

    proxy.assert_all_fired()


def test_a_claim_whose_answer_was_lost_finds_its_own_object(store: RetryingStore, proxy: FaultyProxy) -> None:
    proxy.script(Fault("PUT", "owner.json", LoseAnswer()))

    stored = store.put("owner.json", b"mine", if_absent=True)

    proxy.assert_all_fired()
    assert stored.entity == store.head("owner.json").entity


def test_a_claim_that_another_host_won_meanwhile_is_refused(
    store: RetryingStore, proxy: FaultyProxy, direct: Any, prefix: str, oracle: Callable[[str], bytes]
) -> None:
    def other_host_claims() -> None:
        direct.delete_object(Bucket=BUCKET, Key=f"{prefix}/owner.json")
        direct.put_object(Bucket=BUCKET, Key=f"{prefix}/owner.json", Body=b"theirs")

    proxy.script(Fault("PUT", "owner.json", LoseAnswer(other_host_claims)))

    with pytest.raises(ObjectExists):
        store.put("owner.json", b"mine", if_absent=True)

    proxy.assert_all_fired()
    assert oracle("owner.json") == b"theirs"


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["ended politely", "reset"])
@pytest.mark.parametrize("size", [100_000, 10 * MEBIBYTE, -1])
def test_a_truncated_download_goes_on_by_range(
    store: RetryingStore, proxy: FaultyProxy, reset: bool, size: int
) -> None:
    store.put("archive", FIRST)
    proxy.requests.clear()
    proxy.script(
        Fault("GET", "archive", Truncate(1_000_000, reset)), Fault("GET", "archive", BUSY),
        Fault("GET", "archive", Truncate(2_000_000, reset)), Fault("GET", "archive", Truncate(0, reset)),
    )  # fmt: skip

    with store.open("archive") as source:
        content = b"".join(iter(lambda: source.read(size), b""))

    proxy.assert_all_fired()
    assert content == FIRST
    ranges = [request.headers.get("range", "bytes=0-") for request in proxy.requests]
    starts = [int(text.removeprefix("bytes=").partition("-")[0]) for text in ranges]
    assert starts == sorted(starts)
    if size == 100_000 and not reset:
        assert starts == [0, 1_000_000, 1_000_000, 3_000_000, 3_000_000], "what has arrived is not fetched again"


def test_a_truncated_range_ends_where_it_should(store: RetryingStore, proxy: FaultyProxy) -> None:
    store.put("archive", FIRST)
    proxy.script(Fault("GET", "archive", Truncate(300_000)))

    with store.open("archive", offset=1_000, length=700_000) as source:
        content = b"".join(iter(lambda: source.read(65536), b""))

    proxy.assert_all_fired()
    assert content == FIRST[1_000:701_000]


@pytest.mark.parametrize("reset", [False, True], ids=["ended politely", "reset"])
def test_without_retries_a_truncated_download_is_an_error_not_an_end(
    bare: S3Store, proxy: FaultyProxy, reset: bool
) -> None:
    bare.put("archive", FIRST)
    proxy.script(Fault("GET", "archive", Truncate(1_000_000, reset)))

    def read_all() -> None:
        with bare.open("archive") as source:
            while source.read(100_000):
                pass

    with pytest.raises(StoreUnreachable):
        read_all()
    proxy.assert_all_fired()


def test_a_download_does_not_go_on_in_another_object(
    store: RetryingStore, proxy: FaultyProxy, direct: Any, prefix: str
) -> None:
    store.put("archive", FIRST)

    def replace() -> None:
        direct.put_object(Bucket=BUCKET, Key=f"{prefix}/archive", Body=FIRST[::-1])

    proxy.script(Fault("GET", "archive", Truncate(1_000_000, meanwhile=replace)))

    def read_all() -> None:
        with store.open("archive") as source:
            while source.read(100_000):
                pass

    with pytest.raises(ObjectChanged):
        read_all()
    proxy.assert_all_fired()


def test_what_replaced_our_object_while_the_answer_was_lost_is_not_taken_for_it(
    store: RetryingStore, proxy: FaultyProxy, direct: Any, prefix: str
) -> None:
    damaged = FIRST + SECOND[:-1] + b"!"

    def replace() -> None:
        direct.put_object(Bucket=BUCKET, Key=f"{prefix}/archive", Body=damaged)

    proxy.script(Fault(*COMPLETE, LoseAnswer(replace)), Fault(*COMPLETE, Answer(404, "NoSuchUpload")))

    with pytest.raises(ObjectMissing):
        archive(store)
    proxy.assert_all_fired()


# --- what a server says, as our errors -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answering_proxy(seaweedfs_server: Server) -> Iterator[tuple[FaultyProxy, Any]]:
    with FaultyProxy(None) as proxy:
        yield proxy, connect(seaweedfs_server.settings(endpoint=proxy.endpoint))


@pytest.fixture
def saying(seaweedfs_server: Server, answering_proxy: tuple[FaultyProxy, Any]) -> Callable[..., S3Store]:
    """Makes a store whose server gives one answer to every request."""

    def make(status: int, code: str, **more: Any) -> S3Store:
        proxy, client = answering_proxy
        proxy.faults.clear()
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            proxy.script(*(Fault(method, "", Answer(status, code, **more)) for _ in range(3)))
        return S3Store(seaweedfs_server.settings("prefix", endpoint=proxy.endpoint), client)

    return make


@pytest.mark.parametrize(
    ("status", "code", "error", "hint"),
    [
        (403, "AccessDenied", StoreDenied, "s3:PutObject"),
        (403, "InvalidAccessKeyId", StoreDenied, "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", StoreDenied, "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", StoreDenied, "expired"),
        (403, "RequestTimeTooSkewed", StoreDenied, "clock"),
        (404, "NoSuchBucket", BucketMissing, "S3_BACKUP_BUCKET"),
        (400, "AuthorizationHeaderMalformed", StoreError, "AWS_REGION"),
        (403, "QuotaExceeded", StoreFull, "quota"),
        (507, "InsufficientStorage", StoreFull, "space"),
        (400, "EntityTooLarge", StoreError, ""),
        (501, "NotImplemented", StoreError, "PutObject"),
        (500, "InternalError", StoreUnreachable, "status"),
        (503, "ServiceUnavailable", StoreUnreachable, "status"),
        (503, "SlowDown", StoreUnreachable, "status"),
        (429, "TooManyRequests", StoreUnreachable, "status"),
        (400, "RequestTimeout", StoreUnreachable, "status"),
        (409, "ConditionalRequestConflict", StoreUnreachable, "status"),
    ],
)
def test_an_answer_becomes_an_error_with_the_next_step(
    saying: Callable[..., S3Store], status: int, code: str, error: type[StoreError], hint: str
) -> None:
    with pytest.raises(StoreError) as caught:
        saying(status, code).put("set/manifest.json", b"{}")

    assert type(caught.value) is error
    assert hint in caught.value.hint
    assert caught.value.store == "seaweedfs"
    assert caught.value.__cause__ is not None
    if error is not BucketMissing:
        assert "set/manifest.json" in caught.value.message


@pytest.mark.parametrize(
    ("act", "permission"),
    [
        (lambda store: store.begin("k"), "s3:PutObject"),
        (lambda store: store.open("k").__enter__(), "s3:GetObject"),
        (lambda store: list(store.list()), "s3:ListBucket"),
        (lambda store: list(store.pending()), "s3:ListBucketMultipartUploads"),
        (lambda store: store.delete(["k"]), "s3:DeleteObject"),
    ],
)
def test_a_denied_request_names_the_permission_it_lacks(
    saying: Callable[..., S3Store], act: Callable[[S3Store], object], permission: str
) -> None:
    with pytest.raises(StoreDenied) as caught:
        act(saying(403, "AccessDenied"))

    assert permission in caught.value.hint


@pytest.mark.parametrize("status", [200, 302, 400, 403, 404])
@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.put("k", b"{}"),
        lambda store: store.begin("k"),
        lambda store: store.open("k").__enter__(),
        lambda store: list(store.list()),
        lambda store: list(store.pending()),
    ],
    ids=["put", "begin", "open", "list", "pending"],
)
def test_a_web_page_is_not_taken_for_an_answer_of_s3(
    saying: Callable[..., S3Store], status: int, act: Callable[[S3Store], object]
) -> None:
    store = saying(status, "", page=b"<html>Welcome!</html>", headers=(("Location", "http://127.0.0.1:1/"),))

    with pytest.raises(StoreError, match=r"answered with (a web page|HTTP 200 without an ETag).*, as no S3") as caught:
        act(store)

    assert "AWS_ENDPOINT_URL_S3" in caught.value.hint


def test_a_gateways_page_is_a_server_that_may_come_back(saying: Callable[..., S3Store]) -> None:
    with pytest.raises(StoreUnreachable, match="Bad Gateway"):
        saying(502, "", page=b"<html>Bad Gateway</html>").put("k", b"{}")


def test_the_right_region_is_told_when_the_server_tells_it(saying: Callable[..., S3Store]) -> None:
    store = saying(400, "AuthorizationHeaderMalformed", details="<Region>eu-central-1</Region>")
    with pytest.raises(StoreError) as caught:
        list(store.list())

    assert caught.value.hint == "set AWS_REGION=eu-central-1"


def test_the_right_region_is_told_by_an_answer_without_body(saying: Callable[..., S3Store]) -> None:
    store = saying(301, "PermanentRedirect", headers=(("x-amz-bucket-region", "eu-west-3"),))
    with pytest.raises(StoreError) as caught:
        store.head("k")

    assert caught.value.hint == "set AWS_REGION=eu-west-3"


def test_a_denied_key_says_that_the_kms_key_is_what_lacks(saying: Callable[..., S3Store]) -> None:
    store = saying(403, "AccessDenied", message="not authorized to perform: kms:GenerateDataKey")
    with pytest.raises(StoreDenied) as caught:
        store.begin("k")

    assert "kms:GenerateDataKey" in caught.value.hint


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_what_a_server_echoes_of_the_credentials_is_not_repeated(saying: Callable[..., S3Store], code: str) -> None:
    store = saying(403, code, message="the key AKIATEST with secretsecret does not match")
    with pytest.raises(StoreDenied) as caught:
        store.put("k", b"")

    assert "AKIATEST" not in str(caught.value) + caught.value.hint
    assert "secretsecret" not in str(caught.value) + caught.value.hint


def test_an_archived_object_says_that_it_must_be_brought_back(saying: Callable[..., S3Store]) -> None:
    with pytest.raises(StoreError, match="InvalidObjectState") as caught, saying(403, "InvalidObjectState").open("k"):
        pass

    assert "storage class" in caught.value.hint
    assert not isinstance(caught.value, StoreDenied)


def test_a_server_that_refuses_checksums_of_full_objects_is_asked_without_and_not_again(
    store: RetryingStore, proxy: FaultyProxy
) -> None:
    proxy.script(Fault(*CREATE, Answer(501, "NotImplemented")))

    first = archive(store)
    archive(store)

    proxy.assert_all_fired()
    creates = [request for request in proxy.requests if request.method == "POST" and "?uploads" in request.target]
    assert ["x-amz-checksum-type" in request.headers for request in creates] == [True, False, False]
    assert first.checksum.startswith("md5-parts:")
    parts = [request for request in proxy.requests if "partNumber" in request.target]
    assert all("content-md5" in request.headers for request in parts)


def test_a_part_damaged_on_its_way_is_found_by_md5_too(
    store: RetryingStore, proxy: FaultyProxy, oracle: Callable[[str], bytes], retries: list[Retry]
) -> None:
    proxy.script(Fault(*CREATE, Answer(501, "NotImplemented")), Fault(*PART_2, Corrupt(1)))

    archive(store)

    proxy.assert_all_fired()
    assert "damaged on its way" in retries[0].error.message
    assert oracle("archive") == FIRST + SECOND


# --- no server, no credentials ---------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named(seaweedfs_server: Server) -> None:
    store = S3Store(seaweedfs_server.settings(endpoint="http://user:secretsecret@127.0.0.1:1/"))
    with pytest.raises(StoreUnreachable) as caught:
        store.put("k", b"")

    assert "http://127.0.0.1:1" in caught.value.message
    assert "AWS_ENDPOINT_URL_S3" in caught.value.hint
    assert "secretsecret" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8333", "http://", "http://user:secretsecret@h o s t/", "http://[::1"])
def test_an_endpoint_that_is_no_url_is_refused_in_words(seaweedfs_server: Server, endpoint: str) -> None:
    with pytest.raises(StoreError) as caught:
        S3Store(seaweedfs_server.settings(endpoint=endpoint))

    assert "AWS_ENDPOINT_URL_S3" in caught.value.hint
    assert "secretsecret" not in str(caught.value) + caught.value.hint
    assert not caught.value.retryable


def test_missing_credentials_say_how_to_give_them(seaweedfs_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    store = S3Store(seaweedfs_server.settings(access_key=None, secret_key=None))

    with pytest.raises(StoreDenied) as caught:
        store.put("k", b"")

    for word in ("AWS_ACCESS_KEY_ID", "_FILE", "instance role"):
        assert word in caught.value.hint


def test_an_impossible_bucket_name_is_refused_in_words(seaweedfs_server: Server) -> None:
    with pytest.raises(StoreError) as caught:
        S3Store(seaweedfs_server.settings(bucket="not a bucket")).put("k", b"")

    assert "S3_BACKUP_BUCKET" in caught.value.hint


def test_settings_hide_their_secrets(seaweedfs_server: Server) -> None:
    shown = repr(seaweedfs_server.settings(session_token="tokentoken"))

    assert "AKIATEST" not in shown
    assert "secretsecret" not in shown
    assert "tokentoken" not in shown


def test_damage_that_is_our_own_is_not_sent_again(store: RetryingStore, retries: list[Retry]) -> None:
    with pytest.raises(ChecksumMismatch), store.begin("archive") as upload:
        upload.put(1, b"damaged in memory", zlib.crc32(b"as it was packed"))

    assert retries == []
