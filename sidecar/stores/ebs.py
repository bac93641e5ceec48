"""Snapshots of the disks of the EC2 instance that we run on; nothing at all anywhere else, and that at once.

It is asked after a loss, by a person who waits: whatever does not answer is given up after a moment.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from urllib.error import HTTPError

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError

from sidecar.errors import StoreDenied, StoreError, StoreUnreachable
from sidecar.stores.snapshots import Snapshot

MOST = 500  # snapshots

_METADATA = "http://169.254.169.254"
_METADATA_SECONDS = 1.0
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 3, 10, 2
_PAGE = 65_536
_GIBIBYTE = 1 << 30
_GRANT = "grant ec2:DescribeVolumes and ec2:DescribeSnapshots to this instance's role, or to the keys that are set"


@dataclass(frozen=True, slots=True)
class Instance:
    """Who we are to Amazon."""

    name: str
    region: str
    zone: str


def snapshots(
    environ: Mapping[str, str],
    *,
    access_key: str | None = None,
    secret_key: str | None = None,
    session_token: str | None = None,
) -> list[Snapshot] | None:
    """The complete snapshots of this instance's disks, the newest MOST of them; None where this is no EC2 instance.

    Without keys, boto3's own chain has them. Raises StoreDenied, StoreUnreachable, StoreError.
    """
    instance = this_instance(environ)
    if instance is None:
        return None
    try:
        client = boto3.session.Session(access_key, secret_key, session_token, instance.region).client(
            "ec2",
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"total_max_attempts": _ATTEMPTS},
                # A server that is given for S3 by AWS_ENDPOINT_URL knows nothing of EC2.
                ignore_configured_endpoint_urls="AWS_ENDPOINT_URL_EC2" not in environ,
            ),
        )
        attached = [{"Name": "attachment.instance-id", "Values": [instance.name]}]
        disks = {
            each["VolumeId"]: str(each["Attachments"][0].get("Device", ""))
            for page in client.get_paginator("describe_volumes").paginate(Filters=attached)
            for each in page["Volumes"]
        }
        of_ours = [{"Name": "volume-id", "Values": sorted(disks)}, {"Name": "status", "Values": ["completed"]}]
        pages = client.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=of_ours) if disks else ()
        found = [_snapshot(each, instance, disks) for page in pages for each in page["Snapshots"]]
    except (BotoCoreError, ClientError, KeyError, ValueError) as error:
        raise _translated(error, instance) from error
    return sorted(found, key=lambda each: each.taken, reverse=True)[:MOST]


def this_instance(environ: Mapping[str, str]) -> Instance | None:
    """What the instance's metadata service says; None when there is none, or what answers is none."""
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    base = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _METADATA).rstrip("/")
    seconds = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    try:
        try:
            token = _ask(f"{base}/latest/api/token", seconds, method="PUT")
        except HTTPError:  # it knows only the older version, which has no tokens
            token = b""
        held = {"X-aws-ec2-metadata-token": token.decode("ascii")} if token else {}
        document = json.loads(_ask(f"{base}/latest/dynamic/instance-identity/document", held))
        facts = [document[key] for key in ("instanceId", "region", "availabilityZone")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Instance(*facts) if all(isinstance(fact, str) for fact in facts) else None


def _ask(url: str, headers: Mapping[str, str], *, method: str = "GET") -> bytes:
    """Past any proxy: it is this machine's own."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - ours, or its user's own
    with opener.open(request, timeout=_METADATA_SECONDS) as response:
        answer: bytes = response.read(_PAGE)
        return answer


def _snapshot(document: Mapping[str, Any], instance: Instance, disks: Mapping[str, str]) -> Snapshot:
    return Snapshot(
        name=document["SnapshotId"],
        disk=document["VolumeId"],
        device=disks[document["VolumeId"]],
        instance=instance.name,
        region=instance.region,
        zone=instance.zone,
        taken=document["StartTime"].astimezone(UTC),
        disk_bytes=document["VolumeSize"] * _GIBIBYTE,
    )


def _translated(error: Exception, instance: Instance) -> StoreError:
    where = f"EC2 in {instance.region}"
    match error:
        case NoCredentialsError():
            return StoreDenied(f"{where}: no credentials were found", hint=f"give the instance a role; {_GRANT}")
        case ClientError():
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("UnauthorizedOperation", "AccessDenied") or "Auth" in code or "Token" in code:
                return StoreDenied(f"{where} does not permit it ({code})", hint=_GRANT)
            return StoreError(f"{where} answered with {code}", hint="try again, or look in the console")
        case HTTPClientError():  # connections and time-outs, too
            hint = "see whether this container has a way to the internet"
            return StoreUnreachable(f"{where} did not answer", hint=hint)
        case _:
            hint = "look for snapshots in the console, or with `aws ec2 describe-snapshots`"
            return StoreError(f"{where} could not be asked ({type(error).__name__})", hint=hint)
