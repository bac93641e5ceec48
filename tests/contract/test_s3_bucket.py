"""What only S3 tells, on real servers: all objects, versions and delete markers, unfinished uploads.

And the way back: the very commands that `scan` prints are run, where the AWS CLI is at hand.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from sidecar.errors import BucketMissing, ObjectMissing, StoreDenied, StoreUnreachable
from sidecar.salvage import Erasures, Place, erasure_findings, upload_finding
from sidecar.stores.port import Pending
from sidecar.stores.s3_bucket import S3Bucket
from tests.contract.store_servers import ACCESS_KEY, BUCKET, SECRET_KEY, Server

SET = "backup-20260102_030000"
_buckets = itertools.count(1)


@pytest.fixture(params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def versioned(server: Server) -> tuple[S3Bucket, Any, str]:
    """A new bucket with versioning: as the product sees it, as boto3 does, its name."""
    name, client = f"versioned-{next(_buckets)}", server.client()
    client.create_bucket(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return S3Bucket(server.settings(bucket=name)), client, name


def run(command: str, server: Server, directory: Path) -> bytes:
    """A printed command, as an operator runs it."""
    if shutil.which("aws") is None:
        pytest.skip("no AWS CLI")
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_PAGER": "",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], env=environment, cwd=directory, capture_output=True, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_every_object_is_listed_over_many_pages(server: Server) -> None:
    name, client = f"pages-{next(_buckets)}", server.client()
    client.create_bucket(Bucket=name)
    for number in range(7):
        client.put_object(Bucket=name, Key=f"a/{number}", Body=b"x" * number)
    client.put_object(Bucket=name, Key="b", Body=b"")
    bucket = S3Bucket(server.settings(bucket=name))
    pages = []

    def two_at_a_time(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = 2
        pages.append(dict(params))

    bucket._client.meta.events.register("provide-client-params.s3.ListObjectsV2", two_at_a_time)

    assert sorted((each.key, each.size) for each in bucket.objects("a/")) == [(f"a/{n}", n) for n in range(7)]
    assert len(pages) >= 4
    assert len(list(bucket.objects(""))) == 8


def test_a_listing_is_lazy(server: Server) -> None:
    asked: list[str] = []

    def request(operation: str, key: str, act: Any) -> Any:
        asked.append(operation)
        return act()

    listing = S3Bucket(server.settings(), request=request).objects("")
    assert asked == []
    next(listing, None)
    assert asked == ["ListObjectsV2"]


def test_a_deleted_set_is_found_and_the_printed_commands_bring_it_back(
    server: Server, versioned: tuple[S3Bucket, Any, str], tmp_path: Path
) -> None:
    bucket, client, name = versioned
    keys = [f"p/{SET}/db.tar.gz", f"p/{SET}/manifest.json"]
    for key in keys:
        client.put_object(Bucket=name, Key=key, Body=key.encode())
    for key in keys:
        client.delete_object(Bucket=name, Key=key)
    assert list(bucket.objects("")) == []

    erasures = Erasures()
    for version in bucket.versions(""):
        erasures.add(version)
    (found,) = erasure_findings(Place("s3", f"s3://{name}", "p", "", server.endpoint), erasures)
    assert (found.volumes, found.size, len(found.commands)) == (("db",), len(keys[0]), 2)

    for command in found.commands:
        run(command, server, tmp_path)
    assert [each.key for each in bucket.objects("")] == keys
    assert client.get_object(Bucket=name, Key=keys[0])["Body"].read() == keys[0].encode()


def test_an_overwritten_archive_is_found_and_the_printed_command_fetches_it(
    server: Server, versioned: tuple[S3Bucket, Any, str], tmp_path: Path
) -> None:
    bucket, client, name = versioned
    for body in (b"old", b"new one"):
        client.put_object(Bucket=name, Key=f"{SET}/db.tar.gz", Body=body)

    erasures = Erasures()
    for version in bucket.versions(""):
        erasures.add(version)
    (found,) = erasure_findings(Place("s3", f"s3://{name}", endpoint=server.endpoint), erasures)

    assert found.size == 3
    run(found.commands[0], server, tmp_path)
    assert (tmp_path / "db.tar.gz").read_bytes() == b"old"


def test_a_bucket_without_versions_has_nothing_behind_its_objects(server: Server) -> None:
    name, client = f"plain-{next(_buckets)}", server.client()
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key=f"{SET}/db.tar.gz", Body=b"x")
    client.put_object(Bucket=name, Key=f"{SET}/web.tar.gz", Body=b"x")
    client.delete_object(Bucket=name, Key=f"{SET}/web.tar.gz")

    erasures = Erasures()
    for version in S3Bucket(server.settings(bucket=name)).versions(""):
        erasures.add(version)
    assert erasures.erased == {}


def test_an_unfinished_upload_is_found_with_its_size_and_the_printed_commands_make_what_is_there_of_it(
    server: Server, tmp_path: Path
) -> None:
    name, client = f"uploads-{next(_buckets)}", server.client()
    client.create_bucket(Bucket=name)
    key = f"p/{SET}/db.tar.gz"
    (tmp_path / "hello.txt").write_text("hello")
    (tmp_path / "noise").write_bytes(os.urandom(9 * 1024 * 1024))
    archive = subprocess.run(
        ["tar", "-C", tmp_path, "-cz", "hello.txt", "noise"], capture_output=True, check=True
    ).stdout
    part, rest = archive[: 5 * 1024 * 1024], archive[5 * 1024 * 1024 :]
    assert rest
    identity = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
    client.upload_part(Bucket=name, Key=key, UploadId=identity, PartNumber=1, Body=part)
    bucket = S3Bucket(server.settings(bucket=name))

    (upload,) = bucket.uploads("")
    assert (upload.key, upload.upload, bucket.sent(upload)) == (key, identity, len(part))
    assert list(bucket.uploads("elsewhere")) == []

    found = upload_finding(Place("s3", f"s3://{name}", "p", "", server.endpoint), upload, len(part))
    assert found
    parts, complete, unpack = found.commands
    run(parts, server, tmp_path)
    run(complete, server, tmp_path)
    (tmp_path / "out").mkdir()
    # tar says that it ends early, as the note does.
    run(unpack.replace("DIRECTORY", "out") + " || true", server, tmp_path)
    assert (tmp_path / "out" / "hello.txt").read_text() == "hello"


def test_the_parts_of_an_upload_that_is_gone_are_missing(server: Server) -> None:
    client = server.client()
    key = f"gone/{next(_buckets)}"
    identity = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    (upload,) = S3Bucket(server.settings()).uploads(key)
    client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=identity)

    with pytest.raises(ObjectMissing):
        S3Bucket(server.settings()).sent(upload)


def refuse(bucket: S3Bucket, operation: str, status: int, code: str) -> list[str]:
    """Have the server answer so; the list fills with what was answered so."""
    fired: list[str] = []

    def answer(**_: Any) -> tuple[Any, dict[str, Any]]:
        fired.append(operation)
        body = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return AWSResponse("", status, {}, None), body

    bucket._client.meta.events.register(f"before-call.s3.{operation}", answer)
    return fired


@pytest.mark.parametrize(
    ("operation", "method", "permission"),
    [
        ("ListObjectsV2", "objects", "s3:ListBucket "),
        ("ListObjectVersions", "versions", "s3:ListBucketVersions"),
        ("ListMultipartUploads", "uploads", "s3:ListBucketMultipartUploads"),
    ],
)
def test_a_denied_listing_names_the_permission_to_grant(
    moto_server: Server, operation: str, method: str, permission: str
) -> None:
    bucket = S3Bucket(moto_server.settings())
    fired = refuse(bucket, operation, 403, "AccessDenied")

    with pytest.raises(StoreDenied) as caught:
        list(getattr(bucket, method)(""))
    assert f"grant {permission}" in caught.value.hint
    assert fired == [operation]


def test_sizes_that_may_not_be_seen_name_their_permission(moto_server: Server) -> None:
    bucket = S3Bucket(moto_server.settings())
    fired = refuse(bucket, "ListParts", 403, "AccessDenied")
    with pytest.raises(StoreDenied) as caught:
        bucket.sent(Pending("key", "upload", datetime(2026, 1, 1, tzinfo=UTC)))
    assert "s3:ListMultipartUploadParts" in caught.value.hint
    assert fired == ["ListParts"]


@pytest.mark.parametrize("method", ["objects", "versions", "uploads"])
def test_a_bucket_or_a_server_that_is_not_there_is_said(moto_server: Server, method: str) -> None:
    with pytest.raises(BucketMissing):
        list(getattr(S3Bucket(moto_server.settings(bucket="nobodys")), method)(""))
    with pytest.raises(StoreUnreachable):
        list(getattr(S3Bucket(moto_server.settings(endpoint="http://127.0.0.1:9")), method)(""))
