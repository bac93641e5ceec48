"""What an S3 server or its SDK said, as one of our errors with the operator's next step. Pure.

Codes are those of the S3 API reference ("Error responses") and of the servers tried; answers to HEAD carry no body, so
that their code is the HTTP status.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import urllib3.exceptions
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

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


class NotS3(Exception):
    """An answer that no S3 server gives; its text says what came instead. passing: it may be another one later."""

    def __init__(self, what: str, *, passing: bool = False) -> None:
        super().__init__(what)
        self.passing = passing


# What calling the SDK, or reading the body it gave, may raise. OSError: a reset while a body is read.
SDK_ERRORS = (
    NotS3,
    sdk.ClientError,
    sdk.BotoCoreError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)

_PERMISSIONS = {
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject and s3:GetObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    # Without s3:ListBucket, S3 answers 403 instead of 404 for an object that does not exist.
    "HeadObject": "s3:GetObject and s3:ListBucket",
    "GetObject": "s3:GetObject and s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListParts": "s3:ListMultipartUploadParts",
    "DeleteObject": "s3:DeleteObject",
}

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the same names with _FILE)"

# Their messages may echo the key or what was signed, so they are left out.
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId": f"check {_KEYS}: the server does not know this key",
    "InvalidClientTokenId": f"check {_KEYS}: the server does not know this key",
    "SignatureDoesNotMatch": f"check {_KEYS}: the secret does not belong to the key",
    "ExpiredToken": "the temporary credentials have expired: give new ones",
    "ExpiredTokenException": "the temporary credentials have expired: give new ones",
    "TokenRefreshRequired": "the temporary credentials have expired: give new ones",
    "InvalidToken": "check AWS_SESSION_TOKEN: it does not belong to the key",
    "RequestTimeTooSkewed": "set this machine's clock: it differs from the server's by more than the server accepts",
}
_MISSING_BUCKET = {"NoSuchBucket"}
_MISSING_OBJECT = {"NoSuchKey", "NoSuchUpload", "NoSuchVersion", "404"}
_PASSING = {
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_DAMAGED = {
    "BadDigest",
    "ChecksumMismatch",
    "InvalidDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_FULL = {"InsufficientCapacity", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}
_WRONG_REGION = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}


# Every S3 server names what it holds; a web server that says 200 to everything does not.
_NAMED_BY_ETAG = {"GetObject", "HeadObject", "PutObject", "UploadPart"}
_OPENSSL_REASON = re.compile(r"certificate verify failed: (.+?) \(_ssl")


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go, for messages: the store's name, bucket, location, and endpoint (none: Amazon's)."""

    store: str
    bucket: str
    location: str
    endpoint: str | None


def check_answer(operation: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raises NotS3 for an answer that gives away a web server, a login page, a port of something else.

    headers: with names in any case. body: empty where it is not read yet. Above 500 it is a gateway's page before a
    server that may come back; 500 itself is also what the SDK makes of a page that came with 200.
    """
    lower = {name.lower(): value.lower() for name, value in headers.items()}
    kind = lower.get("content-type", "").partition(";")[0].strip()
    if status > 500:
        return
    if kind == "text/html" and body.strip() and not body.lstrip().startswith(b"<?xml"):  # moto's XML is `text/html`
        raise NotS3("a web page" if status == 500 else f"a web page (HTTP {status})", passing=status == 500)
    # S3's own redirects say where to in XML, or, to HEAD, in a header of its own.
    if 300 < status < 400 and status != 304 and "xml" not in kind and not any(n.startswith("x-amz-") for n in lower):
        raise NotS3(f"a redirect (HTTP {status})")
    if status < 300 and operation in _NAMED_BY_ETAG and not lower.get("etag"):
        raise NotS3(f"HTTP {status} without an ETag")


def translate(error: BaseException, operation: str, key: str, place: Place) -> StoreError:
    """The StoreError that `error`, raised by `operation` (an S3 API name) on `key`, stands for."""
    what = f"{operation} of {key or 'the bucket'} in {place.location}"
    if isinstance(error, sdk.ClientError):
        return _from_answer(error.response, what, operation, place)
    return _from_sdk(error, what, place)


def shown_endpoint(endpoint: str | None) -> str:
    """The endpoint without what may be a secret in it."""
    if not endpoint:
        return "Amazon S3"
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the endpoint"
    return f"{parts.scheme}://{host}{port}"


def _from_answer(  # noqa: C901, PLR0911, PLR0912 a table, read from top to bottom
    answer: Mapping[str, Any], what: str, operation: str, place: Place
) -> StoreError:
    details: Mapping[str, Any] = answer.get("Error", {})
    metadata: Mapping[str, Any] = answer.get("ResponseMetadata", {})
    code = str(details.get("Code", ""))
    status = int(metadata.get("HTTPStatusCode", 0))
    text = str(details.get("Message") or "").rstrip(". ")
    said = f"{what}: {code}" + (f", {text}" if text else "")
    store = place.store
    if code in _BAD_CREDENTIALS:
        return StoreDenied(f"{what}: {code}", hint=_BAD_CREDENTIALS[code], store=store)
    # An object that is written cannot be missing; servers that answer so without a code mean the bucket.
    no_object = operation in ("HeadBucket", "ListObjectsV2", "ListObjectVersions") or (
        code == "404" and operation in ("PutObject", "CreateMultipartUpload")
    )
    if code in _MISSING_BUCKET or (status == 404 and no_object):
        return BucketMissing(
            f"the bucket {place.bucket} does not exist at {shown_endpoint(place.endpoint)}",
            hint="create it, or correct S3_BACKUP_BUCKET",
            store=store,
        )
    if code in _MISSING_OBJECT:
        return ObjectMissing(said, store=store)
    if code in _WRONG_REGION:
        return StoreError(said, hint=_region_hint(details, metadata, place), store=store)
    if code in _DAMAGED:
        return ChecksumMismatch(said, hint="run again; when it comes back, test this machine's memory", store=store)
    if code in _FULL or status == 507:
        return StoreFull(said, hint="free space in the store, or raise its quota", store=store)
    if code == "InvalidObjectState":
        return StoreError(said, hint="bring the object back from its archive storage class first", store=store)
    if status == 412 or code == "PreconditionFailed":
        return ObjectExists(said, store=store) if operation == "PutObject" else ObjectChanged(said, store=store)
    if status == 416 or code == "InvalidRange":
        return ObjectChanged(said, hint="the object is shorter than it was: run verify", store=store)
    if code == "InvalidPart":
        return StoreError(said, hint="this server may not leave uploaded parts out, as Ceph does not", store=store)
    if code in ("NotImplemented", "MethodNotAllowed") or status in (405, 501):
        return StoreError(said, hint=f"this server does not know {operation} as it was asked", store=store)
    if code in _PASSING or status in (408, 409, 425, 429) or status >= 500:
        return StoreUnreachable(said, hint="the store is busy or failing: see its own status", store=store)
    if status in (401, 403):
        return StoreDenied(said, hint=_permission_hint(operation, details, place), store=store)
    if code == "400" and _is_plain(place.endpoint):  # so Go's servers refuse plain HTTP on a TLS port
        return StoreError(said, hint=_TLS_HINT, store=store)
    return StoreError(said, hint="see the store's documentation of this code", store=store)


def _permission_hint(operation: str, details: Mapping[str, Any], place: Place) -> str:
    if "kms" in (str(details.get("Code", "")) + str(details.get("Message", ""))).lower():
        return "grant kms:GenerateDataKey and kms:Decrypt on the bucket's key"
    permission = _PERMISSIONS.get(operation, f"s3:{operation}")
    grant = f"grant {permission} on {place.location} to these credentials"
    # An answer to HEAD does not say which it is.
    return f"check {_KEYS}, or {grant}" if details.get("Code") == "403" else grant


_TLS_HINT = "if the server speaks TLS on this port, AWS_ENDPOINT_URL_S3 must begin with https://"


def _is_plain(endpoint: str | None) -> bool:
    return (endpoint or "").startswith("http:")


def _region_hint(details: Mapping[str, Any], metadata: Mapping[str, Any], place: Place) -> str:
    region = details.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if region:
        return f"set AWS_REGION={region}"
    return f"set AWS_REGION to the region of the bucket {place.bucket}"


def _from_sdk(error: BaseException, what: str, place: Place) -> StoreError:  # noqa: PLR0911 a table
    store, endpoint = place.store, shown_endpoint(place.endpoint)
    match error:
        case sdk.NoCredentialsError() | sdk.PartialCredentialsError() | sdk.NoAuthTokenError():
            return StoreDenied(
                f"{what}: no credentials were found",
                hint=f"set {_KEYS}, or give the host an instance role",
                store=store,
            )
        case sdk.CredentialRetrievalError() | sdk.MetadataRetrievalError() | sdk.TokenRetrievalError():
            return StoreUnreachable(
                f"{what}: the credentials could not be fetched",
                hint="see whether the host's role or the credential process answers",
                store=store,
            )
        case NotS3():
            return (StoreUnreachable if error.passing else StoreError)(
                f"{what}: {endpoint} answered with {error}, as no S3 server does",
                hint="see what listens there, and correct AWS_ENDPOINT_URL_S3"
                + (" (https:// if it speaks TLS)" if _is_plain(place.endpoint) else ""),
                store=store,
            )
        case sdk.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return _untrusted(error, what, place)
        case sdk.SSLError() if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER" in str(error):
            return StoreError(
                f"{what}: {endpoint} does not speak TLS on this port",
                hint="correct AWS_ENDPOINT_URL_S3: another port, or http:// in a network that you trust",
                store=store,
            )
        case sdk.EndpointConnectionError() | sdk.ConnectTimeoutError() | sdk.ProxyConnectionError():
            return StoreUnreachable(
                f"{what}: no connection to {endpoint}",
                hint=f"see whether {endpoint} is right (AWS_ENDPOINT_URL_S3) and reachable from this container"
                if place.endpoint
                else "see whether this container has a way to the internet, and AWS_REGION is right; "
                "for a server that is not Amazon's, set AWS_ENDPOINT_URL_S3",
                store=store,
            )
        case sdk.ReadTimeoutError():
            return StoreUnreachable(
                f"{what}: {endpoint} did not answer in time", hint="see the store's status and the network", store=store
            )
        case (
            sdk.HTTPClientError()
            | sdk.ConnectionError()
            | sdk.IncompleteReadError()
            | ResponseParserError()
            | urllib3.exceptions.HTTPError()
            | http.client.HTTPException()
            | OSError()
        ) if not isinstance(error, sdk.ValidationError):
            return StoreUnreachable(
                f"{what}: the connection to {endpoint} broke off",
                hint="see the store's status and the network" + (f"; {_TLS_HINT}" if _is_plain(place.endpoint) else ""),
                store=store,
            )
        case sdk.ProfileNotFound() | sdk.ConfigParseError() | sdk.ConfigNotFound():
            return StoreError(
                f"{what}: the AWS configuration cannot be used ({type(error).__name__})",
                hint="check AWS_PROFILE and AWS_CONFIG_FILE",
                store=store,
            )
        case _:
            # Parameters that the SDK itself refuses. Its text may quote an endpoint with a password in it.
            return StoreError(
                f"{what}: the S3 client refused the request ({type(error).__name__})",
                hint="check S3_BACKUP_BUCKET, BACKUP_PREFIX, AWS_REGION and AWS_ENDPOINT_URL_S3",
                store=store,
            )


def _untrusted(error: BaseException, what: str, place: Place) -> StoreError:
    reason = match[1] if (match := _OPENSSL_REASON.search(str(error))) else ""
    hint = "mount its authority's certificate and name it in AWS_CA_BUNDLE"
    if "expired" in reason or "not yet valid" in reason:
        hint = "renew the server's certificate, or set this machine's clock"
    elif "mismatch" in reason:
        hint = "correct AWS_ENDPOINT_URL_S3: the certificate is another server's"
    message = f"{what}: the certificate of {shown_endpoint(place.endpoint)} is not trusted"
    return StoreError(message + (f": {reason}" if reason else ""), hint=hint, store=place.store)
