"""EBS snapshots: found on an EC2 instance, passed over in a moment anywhere else, and every refusal said in words.

EC2 is moto's server, and the metadata service one of ours on the loopback interface.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3.session
import pytest
from moto.server import ThreadedMotoServer

from sidecar.errors import StoreDenied, StoreError, StoreUnreachable
from sidecar.stores.ebs import snapshots, this_instance

REGION = "eu-central-1"
KEYS = {"access_key": "AKIATEST", "secret_key": "secretsecret"}
REFUSED = b"""<?xml version="1.0"?><Response><Errors><Error><Code>UnauthorizedOperation</Code>
<Message>You are not authorized to perform this operation.</Message></Error></Errors></Response>"""


@dataclass
class Answers:
    """A web server's: path -> (status, body); and what it was asked, with which token."""

    of: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def web_server(answers: Answers) -> Iterator[Answers]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            answers.asked.append((self.command, self.path, self.headers.get("X-aws-ec2-metadata-token")))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.of.get(self.path, (404, b"not found"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    answers.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def identity(instance: str) -> dict[str, tuple[int, bytes]]:
    document = {"instanceId": instance, "region": REGION, "availabilityZone": f"{REGION}b"}
    return {"/latest/dynamic/instance-identity/document": (200, json.dumps(document).encode())}


TOKEN = {"/latest/api/token": (200, b"a-token")}


@pytest.fixture
def metadata() -> Iterator[Answers]:
    with web_server(Answers()) as answers:
        yield answers


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of one that accepts connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def ec2() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def environ(metadata: Answers, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """As in a container of ours; boto3 reads the process's own."""
    name = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
    monkeypatch.setenv(name, metadata.url)
    return {name: metadata.url}


def point_ec2_to(address: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    environ["AWS_ENDPOINT_URL_EC2"] = address
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", address)


def test_the_snapshots_of_this_instances_disks_are_found_and_no_others(
    ec2: str, metadata: Answers, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = boto3.session.Session("AKIATEST", "secretsecret", region_name=REGION).client("ec2", endpoint_url=ec2)
    image = client.describe_images()["Images"][0]["ImageId"]
    ours, theirs = client.run_instances(ImageId=image, MinCount=2, MaxCount=2)["Instances"]

    def disks(instance: dict[str, Any]) -> list[str]:
        filters = [{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}]
        return [each["VolumeId"] for each in client.describe_volumes(Filters=filters)["Volumes"]]

    more = client.create_volume(AvailabilityZone=f"{REGION}a", Size=7)["VolumeId"]
    client.attach_volume(VolumeId=more, InstanceId=ours["InstanceId"], Device="/dev/sdf")
    made = {disk: client.create_snapshot(VolumeId=disk)["SnapshotId"] for disk in [*disks(ours), *disks(theirs)]}
    metadata.of = TOKEN | identity(ours["InstanceId"])
    point_ec2_to(ec2, environ, monkeypatch)

    found = snapshots(environ, **KEYS)

    assert found is not None
    assert {(each.name, each.disk) for each in found} == {(made[disk], disk) for disk in disks(ours)}
    (second,) = [each for each in found if each.disk == more]
    assert (second.device, second.disk_bytes, second.region, second.zone) == ("/dev/sdf", 7 << 30, REGION, f"{REGION}b")
    assert second.taken.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert [(what, token) for what, _, token in metadata.asked] == [("PUT", None), ("GET", "a-token")]


def test_an_instance_without_snapshots_has_none(
    ec2: str, metadata: Answers, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata.of = TOKEN | identity("i-without-disks")
    point_ec2_to(ec2, environ, monkeypatch)
    assert snapshots(environ, **KEYS) == []


def test_a_metadata_service_without_tokens_is_asked_without_one(metadata: Answers, environ: dict[str, str]) -> None:
    metadata.of = identity("i-1")
    instance = this_instance(environ)
    assert instance is not None
    assert (instance.name, instance.region) == ("i-1", REGION)
    assert metadata.asked[-1][2] is None


DOCUMENT = next(iter(identity("")))
PORTAL = (200, b"<html>sign in</html>")


@pytest.mark.parametrize(
    "answers",
    [{}, dict.fromkeys((*TOKEN, DOCUMENT), PORTAL), TOKEN | {DOCUMENT: (200, b"[1]")}],
    ids=["not found", "a captive portal", "another document"],
)
def test_what_answers_something_else_is_no_ec2(
    metadata: Answers, environ: dict[str, str], answers: dict[str, tuple[int, bytes]]
) -> None:
    metadata.of = answers
    assert snapshots(environ) is None


def test_where_nobody_answers_it_takes_two_seconds_at_most_and_a_proxy_is_not_asked(
    deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("http_proxy", nobody)
    for address in (deaf, nobody):
        began = time.monotonic()
        assert snapshots({"AWS_EC2_METADATA_SERVICE_ENDPOINT": address}) is None
        assert time.monotonic() - began < 4  # on a machine that is busy
    assert snapshots({"AWS_EC2_METADATA_DISABLED": "true"}) is None


def test_a_role_that_may_not_look_is_told_what_to_grant(
    metadata: Answers, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata.of = TOKEN | identity("i-1")
    with web_server(Answers({"/": (403, REFUSED)})) as refusing:
        point_ec2_to(refusing.url, environ, monkeypatch)
        with pytest.raises(StoreDenied, match="does not permit it") as denied:
            snapshots(environ, **KEYS)
    assert "ec2:DescribeSnapshots" in denied.value.hint


def test_an_instance_without_a_role_and_keys_is_told_to_get_one(
    metadata: Answers, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    metadata.of = TOKEN | identity("i-1")
    with pytest.raises(StoreDenied, match="no credentials were found") as denied:
        snapshots(environ)
    assert "role" in denied.value.hint


def test_an_ec2_that_does_not_answer_is_given_up_and_the_s3_servers_address_is_not_taken_for_it(
    deaf: str, metadata: Answers, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata.of = TOKEN | identity("i-1")
    monkeypatch.setattr("sidecar.stores.ebs._READ_SECONDS", 0.5)
    point_ec2_to(deaf, environ, monkeypatch)
    began = time.monotonic()
    with pytest.raises(StoreUnreachable, match="did not answer"):
        snapshots(environ, **KEYS)
    assert time.monotonic() - began < 10

    # What is set for S3 alone or for all is the bucket's server: EC2 is Amazon's.
    monkeypatch.delenv("AWS_ENDPOINT_URL_EC2")
    del environ["AWS_ENDPOINT_URL_EC2"]
    with web_server(Answers({"/": (200, b"an S3 server")})) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        monkeypatch.setattr("sidecar.stores.ebs._CONNECT_SECONDS", 0.5)
        monkeypatch.setenv("HTTPS_PROXY", deaf)  # so that nothing leaves this machine
        with pytest.raises(StoreError):
            snapshots(environ, **KEYS)
    assert s3.asked == []
