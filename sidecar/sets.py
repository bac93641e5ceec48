"""The documents of a set: its name, its keys, its manifest, RECOVER.txt, the prefix's owner. Pure.

docs/FORMAT.md specifies what is written here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from sidecar.errors import SetInvalid
from sidecar.report import Outcome, Reason, rfc3339

FORMAT = 1
MANIFEST = "manifest.json"
RECOVER = "RECOVER.txt"
OWNER = "owner.json"

_SET_NAME = re.compile(r"backup-(\d{8}_\d{6})")
_STAMP = "%Y%m%d_%H%M%S"
_SECRET_OPTION = re.compile(r"(?i)\b(pass\w*|secret\w*|cred\w*|key\w*|token\w*)=[^,\s]*")


def set_name(moment: datetime) -> str:
    """`backup-YYYYMMDD_HHMMSS` of an aware time, in UTC."""
    return "backup-" + moment.astimezone(UTC).strftime(_STAMP)


def set_time(name: str) -> datetime | None:
    """When a set of this name began (UTC), or None when it is no set's name."""
    match = _SET_NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


def archive_key(set_: str, volume: str) -> str:
    """Where a volume's archive lies."""
    return f"{set_}/{volume}.tar.gz"


def index_key(set_: str, volume: str) -> str:
    """Where its index lies."""
    return f"{set_}/{volume}.index.jsonl.gz"


def manifest_key(set_: str) -> str:
    """Where a set's manifest lies."""
    return f"{set_}/{MANIFEST}"


def recover_key(set_: str) -> str:
    """Where its RECOVER.txt lies."""
    return f"{set_}/{RECOVER}"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that the manifest vouches for. size in bytes; crc32 in hexadecimal, of the whole object."""

    key: str
    size: int
    crc32: str


@dataclass(frozen=True, slots=True)
class SetVolume:
    """One volume of a set. Sizes in bytes; raw_bytes: of the tar stream; files: entries with a tar record."""

    volume: str
    group: str
    outcome: Outcome
    archive: StoredObject
    index: StoredObject
    raw_bytes: int
    files: int
    driver: str
    options: Mapping[str, str]
    labels: Mapping[str, str]
    mountpoint: str
    changed_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetGroup:
    """One frozen instant of a set; frozen_at: RFC 3339, when everything stood still."""

    group: str
    frozen_at: str
    paused_ms: float
    containers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes a set a set: written last, deleted first. time: RFC 3339, when the run began."""

    set: str
    time: str
    outcome: Outcome
    host: str
    engine: str
    version: str
    volumes: tuple[SetVolume, ...]
    groups: tuple[SetGroup, ...] = ()
    reasons: tuple[Reason, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The document."""
        return _document({"format": FORMAT, "kind": "manifest", **asdict(self)})

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Manifest:
        """Read one back; `where` is named in errors. Unknown keys are ignored. Raises SetInvalid."""
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise SetInvalid(
                    f"{where} has format {document['format']!r}, and this version reads {FORMAT}",
                    hint="use the version that wrote it, or a newer one",
                )
            return cls(
                set=document["set"],
                time=document["time"],
                outcome=Outcome(document["outcome"]),
                host=document["host"],
                engine=document["engine"],
                version=document["version"],
                volumes=tuple(_volume(v) for v in document["volumes"]),
                groups=tuple(
                    SetGroup(g["group"], g["frozen_at"], g["paused_ms"], tuple(g["containers"]))
                    for g in document["groups"]
                ),
                reasons=tuple(
                    Reason(r["code"], r["message"], r["hint"], r["volume"], r["store"]) for r in document["reasons"]
                ),
                tags=document["tags"],
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise SetInvalid(f"{where} is damaged: {exc!r}", hint="verify the set") from exc


def without_secrets(options: Mapping[str, str]) -> dict[str, str]:
    """Driver options as they may be recorded: values that look like credentials are blotted out."""
    blotted = {}
    for name, value in options.items():
        if _SECRET_OPTION.match(f"{name}="):
            blotted[name] = "…"
        else:
            blotted[name] = _SECRET_OPTION.sub(lambda match: f"{match[1]}=…", value)
    return blotted


def owner_document(engine: str, host: str, since: datetime) -> bytes:
    """`owner.json`: which engine writes below this prefix. engine: its ID; host: its name."""
    return _document({"format": FORMAT, "kind": "owner", "engine": engine, "host": host, "since": rfc3339(since)})


def owner_of(data: bytes) -> tuple[str, str]:
    """Engine ID and host of an `owner.json`. Raises SetInvalid."""
    try:
        document = json.loads(data)
        return str(document["engine"]), str(document["host"])
    except (ValueError, KeyError, TypeError) as exc:
        raise SetInvalid(f"{OWNER} is damaged", hint="move it away by hand if the prefix is yours alone") from exc


def recover_text(manifest: Manifest, *, base: str, endpoint: str | None) -> str:
    """RECOVER.txt: how to get every volume back with `aws`, `tar` and `docker` alone.

    base: `s3://bucket/prefix` or a directory; endpoint: of an S3 server that is not Amazon's. It is a document for a
    bad day, so each step says what it does, and every command can be pasted.
    """
    from_s3 = base.startswith("s3://")
    # The option and not AWS_ENDPOINT_URL: the AWS CLI of Debian 12 (2.9) does not know that variable.
    fetch = f"aws --endpoint-url {shlex.quote(endpoint)} s3 cp" if endpoint else "aws s3 cp"
    lines = [
        f"RECOVER {manifest.set}",
        "",
        f"Backup of host {manifest.host}, begun {manifest.time}, outcome {manifest.outcome}.",
        "Everything here is a plain .tar.gz. You need GNU tar (as root)" + (" and the AWS CLI." if from_s3 else "."),
        "Do not use Python's tarfile in mode r|gz: it reads only the first part, and says nothing.",
        "",
        "This file is for the set as it was written; manifest.json beside it says the same for programs.",
        "",
        "1. Where to get it from",
        "",
    ]
    if from_s3:
        lines += ["   Give the AWS CLI your credentials (aws configure), then:", ""]
    lines += [
        f"       SET={shlex.quote(f'{base}/{manifest.set}')}",
        "",
        "2. Stop what uses the volumes. Compose:  docker-compose stop",
        "",
        "3. One volume at a time. DIR is the directory to restore into; it must exist and should be empty.",
        "   For a new Docker volume:",
        "",
        "       docker volume create NAME",
        "       DIR=$(docker volume inspect --format '{{.Mountpoint}}' NAME)",
        "",
    ]
    for volume in manifest.volumes:
        archive = shlex.quote(volume.archive.key.split("/", 1)[1])
        read = f'{fetch} "$SET"/{archive} -' if from_s3 else f'cat "$SET"/{archive}'
        lines += [
            f"   {volume.volume}: {volume.files} entries, {volume.archive.size} bytes, "
            f"{volume.raw_bytes} bytes unpacked" + ("" if volume.outcome is Outcome.GOOD else f" ({volume.outcome})"),
            "",
            f"       {read} \\",
            "         | tar --numeric-owner --acls --xattrs --xattrs-include='*' -xzpf - -C \"$DIR\"",
            "",
        ]
        lines += [f"       changed while it was read: {path!r}" for path in volume.changed_files]
    lines += [
        "4. To check an archive without unpacking it: gzip checks every block against its checksum.",
        "",
        (
            f'       {fetch} "$SET"/VOLUME.tar.gz - | gzip -t && echo whole'
            if from_s3
            else '       gzip -t "$SET"/VOLUME.tar.gz && echo whole'
        ),
        "",
        "5. Start again. Compose:  docker-compose up -d",
        "",
    ]
    return "\n".join(lines)


def listed(manifests: Mapping[str, Sequence[Manifest]]) -> list[Manifest]:
    """The sets of several stores, each once, oldest first. manifests: store name to its manifests."""
    by_name = {m.set: m for of_store in manifests.values() for m in of_store}
    return [by_name[name] for name in sorted(by_name)]


def _volume(document: dict[str, Any]) -> SetVolume:
    return SetVolume(
        volume=document["volume"],
        group=document["group"],
        outcome=Outcome(document["outcome"]),
        archive=_object(document["archive"]),
        index=_object(document["index"]),
        raw_bytes=document["raw_bytes"],
        files=document["files"],
        driver=document["driver"],
        options=document["options"],
        labels=document["labels"],
        mountpoint=document["mountpoint"],
        changed_files=tuple(document["changed_files"]),
    )


def _object(document: dict[str, Any]) -> StoredObject:
    return StoredObject(document["key"], document["size"], document["crc32"])


def _document(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=True).encode() + b"\n"
