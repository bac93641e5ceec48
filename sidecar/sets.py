"""The documents of a set: its name, its keys, its manifest, marks, RECOVER.txt, the prefix's owner. Pure.

docs/FORMAT.md specifies what is written here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sidecar.errors import SetInvalid
from sidecar.report import Outcome, Reason, rfc3339

FORMAT = 1
MANIFEST = "manifest.json"
# The tag of a set that a restore had made of what it replaced; its value is the set that was restored.
PRE_RESTORE = "pre-restore"
RECOVER = "RECOVER.txt"
MARKS = "marks.json"
OWNER = "owner.json"

_SET_NAME = re.compile(r"backup-([0-9]{8}_[0-9]{6})")
_STAMP = "%Y%m%d_%H%M%S"
# Mount options (`password=` of CIFS, `secret=` of Ceph) and plugins' own (`s3-secret-access-key`; `config`, a whole
# rclone.conf). A word too many costs an option's value in the manifest, a word too few somebody's password.
_SECRET = re.compile("pass|pwd|secret|cred|token|key|conf", re.IGNORECASE)
_BLOT = "…"
_SECRET_AND_REST = re.compile(rf"((?:{_SECRET.pattern})[^=]{{0,64}}=).*", re.DOTALL | re.IGNORECASE)
_PASSWORD_IN_ADDRESS = re.compile(r"(//[^/@:\s]*:)[^/\s]*@")


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


def moment(text: str) -> datetime | None:
    """The aware time that RFC 3339 text means; None for what is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


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


def marks_key(set_: str) -> str:
    """Where lies what is noted of it after it was made."""
    return f"{set_}/{MARKS}"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that the manifest vouches for. size in bytes; crc32 in hexadecimal, of the whole object."""

    key: str
    size: int
    crc32: str


@dataclass(frozen=True, slots=True)
class SetVolume:
    """One volume of a set. Sizes in bytes; raw_bytes: of the tar stream; files: entries with a tar record.

    read_at: RFC 3339, when all of it was last read, blocks of an earlier archive having been taken over since; may be
    empty in older sets.
    """

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
    read_at: str = ""


@dataclass(frozen=True, slots=True)
class SetGroup:
    """One frozen instant of a set; frozen_at: RFC 3339, when everything stood still."""

    group: str
    frozen_at: str
    paused_ms: float
    containers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MissingVolume:
    """A volume that should be in the set and is not; why: what failed, hint: the operator's next step."""

    volume: str
    why: str
    hint: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes a set a set: written last, deleted first.

    time: RFC 3339, when the run began. named: the volumes that the run was asked for; empty when it was for all.
    boot: the kernel's random identifier of the host's boot; empty in older sets.
    """

    set: str
    time: str
    outcome: Outcome
    host: str
    engine: str
    version: str
    volumes: tuple[SetVolume, ...]
    groups: tuple[SetGroup, ...] = ()
    missing: tuple[MissingVolume, ...] = ()
    reasons: tuple[Reason, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    boot: str = ""

    def to_json(self) -> bytes:
        """The document."""
        return _document({"format": FORMAT, "kind": "manifest", **asdict(self)})

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Manifest:
        """Read one back; `where` is named in errors. Unknown keys are ignored. Raises SetInvalid."""
        document = _read(data, where)
        with _damaged(where):
            return cls(
                set=_text(document["set"]),
                time=_text(document["time"]),
                outcome=Outcome(document["outcome"]),
                host=_text(document["host"]),
                engine=_text(document["engine"]),
                version=_text(document["version"]),
                volumes=tuple(_volume(v) for v in _list(document["volumes"])),
                groups=tuple(_group(g) for g in _list(document["groups"])),
                missing=tuple(
                    MissingVolume(_text(m["volume"]), _text(m["why"]), _text(m["hint"]))
                    for m in _list(document["missing"])
                ),
                reasons=tuple(_reason(r) for r in _list(document["reasons"])),
                tags=_texts(document["tags"]),
                named=tuple(_text(name) for name in _list(document.get("named", []))),  # older ones have neither
                boot=_text(document.get("boot", "")),
            )


class How(StrEnum):
    """How a set was verified: what can be told without reading the archives, or every byte."""

    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found in one store. time: RFC 3339; why: a sentence, empty where all is good."""

    time: str
    how: How
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class DrilledVolume:
    """What the last drill of a volume came to. time: RFC 3339; why: a sentence, empty where a service came up on it."""

    time: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class Drilled:
    """What drills of a set have found. outcome, why: of the set; volumes: of those that were ever tried."""

    time: str
    outcome: Outcome
    why: str
    volumes: Mapping[str, DrilledVolume]


def drilled(before: Drilled | None, found: Mapping[str, DrilledVolume], names: Sequence[str]) -> Drilled:
    """What is known of a set once these volumes of it were tried; names: all that it has.

    One that failed is not made up for by others, and the set is good only when each of them is.
    """
    known = {name: each for name, each in {**(before.volumes if before else {}), **found}.items() if name in names}
    untried = [name for name in names if name not in known]
    time = max(each.time for each in found.values())
    for outcome in (Outcome.FAILED, Outcome.PARTIAL):
        if why := next((each.why for each in known.values() if each.outcome is outcome), ""):
            return Drilled(time, outcome, why, known)
    if untried:
        return Drilled(time, Outcome.PARTIAL, f"volume {untried[0]} was never tried", known)
    return Drilled(time, Outcome.GOOD, "", known)


@dataclass(frozen=True, slots=True)
class Marks:
    """What may change after a set is made. keep: never prune it.

    others: what is kept as it is: keys of other versions; and `drilled`, of which each version reads what it can.
    """

    keep: bool = False
    verified: Verified | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drilled(self) -> Drilled | None:
        """What drills have found; None where there was none, or only another version can tell."""
        document = self.others.get("drilled")
        try:
            return None if document is None else _drilled(document)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def with_drilled(self, drilled: Drilled) -> Marks:
        """The same with this noted."""
        return replace(self, others={**self.others, "drilled": asdict(drilled)})

    @property
    def damaged(self) -> str:
        """Why this copy is known to be damaged; empty when it is not."""
        return self.verified.why if self.verified and self.verified.outcome is Outcome.FAILED else ""

    def to_json(self) -> bytes:
        """The document."""
        verified = asdict(self.verified) if self.verified else None
        known = {"format": FORMAT, "kind": "marks", "keep": self.keep, "verified": verified, "drilled": None}
        return _document(known | dict(self.others))

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Marks:
        """Read one back; `where` is named in errors. Raises SetInvalid."""
        document = _read(data, where)
        with _damaged(where):
            return cls(
                keep=_switch(document["keep"]),
                verified=_verified(document["verified"]),
                others={key: value for key, value in document.items() if key not in _MARKED},
            )


# Keys of marks.json that this version writes itself.
_MARKED = frozenset(("format", "kind", "keep", "verified"))


def lacks_secrets(options: Mapping[str, str]) -> bool:
    """Whether some of them were blotted out, so that nobody can make the volume anew by what is recorded."""
    return any(_BLOT in value for value in options.values())


def without_secrets(options: Mapping[str, str]) -> dict[str, str]:
    """Driver options as they may be recorded: values that look like credentials are blotted out."""
    return {name: _BLOT if _SECRET.search(name) else _blotted(value) for name, value in options.items()}


def _blotted(value: str) -> str:
    value = _PASSWORD_IN_ADDRESS.sub(rf"\1{_BLOT}@", value)
    return ",".join(_SECRET_AND_REST.sub(rf"\1{_BLOT}", option) for option in value.split(","))


@dataclass(frozen=True, slots=True)
class Owner:
    """Who writes below a prefix. engine: the engine's ID; host: its name; state: see `owner_document`, may be empty."""

    engine: str
    host: str
    state: str = ""


def owner_document(engine: str, host: str, since: datetime, state: str) -> bytes:
    """`owner.json`: which engine writes below this prefix (its ID and name), and which of its sidecars.

    state: what that sidecar has mounted at /state, a volume's name or a directory of the host.
    """
    names = {"engine": engine, "host": host, "state": state, "since": rfc3339(since)}
    return _document({"format": FORMAT, "kind": "owner", **names})


def owner_of(data: bytes) -> Owner:
    """Read an `owner.json`; an older one names no state. Raises SetInvalid."""
    document = _read(data, OWNER)
    with _damaged(OWNER):
        return Owner(_text(document["engine"]), _text(document["host"]), _text(document.get("state", "")))


def recover_text(manifest: Manifest, *, base: str, endpoint: str | None) -> str:
    """RECOVER.txt: how to get every volume back with `aws`, `tar` and `docker` alone.

    base: `s3://bucket/prefix` or a directory; endpoint: of an S3 server that is not Amazon's. It is a document for a
    bad day, so each step says what it does, and every command can be pasted: commands, and they alone, are indented by
    seven blanks.
    """
    from_s3 = base.startswith("s3://")
    base = base.rstrip("/")
    # The option and not AWS_ENDPOINT_URL: the AWS CLI of Debian 12 (2.9) does not know that variable.
    fetch = f"aws --endpoint-url {shlex.quote(endpoint)} s3 cp" if endpoint else "aws s3 cp"
    lines = [
        f"RECOVER {manifest.set}",
        "",
        f"Backup of host {manifest.host}, begun {manifest.time}, outcome {manifest.outcome}.",
        *(f"NOT in this set: {_in_one_line(m.volume)}: {_in_one_line(m.why)}" for m in manifest.missing),
        "Everything here is a plain .tar.gz. You need GNU tar (as root)" + (" and the AWS CLI." if from_s3 else "."),
        "Do not use Python's tarfile in mode r|gz: it reads only the first part, and says nothing.",
        "",
        "This file is for the set as it was written; manifest.json beside it says the same for programs.",
        "",
        "1. Where to get it from",
        "",
    ]
    if from_s3:
        lines += [
            "   Give the AWS CLI your credentials (aws configure), then:",
            "",
            f"       SET={shlex.quote(f'{base}/{manifest.set}')}",
            "",
        ]
    else:
        # Not the path as written: the host knows that directory by another name, and it may have been copied.
        lines += [
            "   Go to the directory that this file lies in (the backup container wrote it as",
            f"   {base}/{manifest.set}), then:",
            "",
            "       SET=$PWD",
            "",
        ]
    lines += [
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
            *_origin(volume),
            *(f"   Changed while it was read: {_in_one_line(path)}" for path in volume.changed_files),
            "",
            f"       {read} \\",
            "         | tar --numeric-owner --acls --xattrs --xattrs-include='*' -xzpf - -C \"$DIR\"",
            "",
        ]
    read = f'{fetch} "$SET"/VOLUME.tar.gz -' if from_s3 else 'cat "$SET"/VOLUME.tar.gz'
    lines += [
        "4. One file or directory of a volume alone. The first command lists all; PATH is as it stands there. Of a",
        "   hard link, name the file that holds its data as well.",
        "",
        f"       {read} | tar -tzf -",
        f"       {read} \\",
        "         | tar --acls --xattrs --xattrs-include='*' --numeric-owner -xzpf - -C \"$DIR\" PATH",
        "",
        "5. To check an archive without unpacking it: gzip checks every block against its checksum.",
        "",
        (
            f'       {fetch} "$SET"/VOLUME.tar.gz - | gzip -t && echo whole'
            if from_s3
            else '       gzip -t "$SET"/VOLUME.tar.gz && echo whole'
        ),
        "",
        "6. Start again. Compose:  docker-compose up -d",
        "",
    ]
    return "\n".join(lines)


def _origin(volume: SetVolume) -> list[str]:
    """What `docker volume create NAME` alone would not bring back."""
    if volume.driver == "local" and not volume.options:
        return []
    options = "".join(f" --opt {_in_one_line(f'{name}={value}')}" for name, value in sorted(volume.options.items()))
    return [f"   Its data came from elsewhere: it was made with --driver {_in_one_line(volume.driver)}{options}"]


def _in_one_line(text: str) -> str:
    """Names that others chose, harmless even when the whole document is pasted into a shell."""
    return shlex.quote("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def _read(data: bytes, where: str) -> dict[str, Any]:
    """A document of our format. Raises SetInvalid."""
    with _damaged(where):
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise SetInvalid(
                f"{where} has format {document['format']!r}, and this version reads {FORMAT}",
                hint="use the version that wrote it, or a newer one",
            )
        return dict(document)


@contextmanager
def _damaged(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        what = f"it has no {exc}" if isinstance(exc, KeyError) else str(exc)
        if where.endswith(f"/{MARKS}"):
            hint = "delete it, then verify the set again, and keep it again if it was kept"
        elif where == OWNER:
            hint = "move it away by hand if the prefix is yours alone"
        else:
            hint = "its archives may be whole all the same: RECOVER.txt beside it says how to read them"
        raise SetInvalid(f"{where} is damaged: {what}", hint=hint) from exc


def _volume(document: dict[str, Any]) -> SetVolume:
    return SetVolume(
        volume=_text(document["volume"]),
        group=_text(document["group"]),
        outcome=Outcome(document["outcome"]),
        archive=_object(document["archive"]),
        index=_object(document["index"]),
        raw_bytes=_count(document["raw_bytes"]),
        files=_count(document["files"]),
        driver=_text(document["driver"]),
        options=_texts(document["options"]),
        labels=_texts(document["labels"]),
        mountpoint=_text(document["mountpoint"]),
        changed_files=tuple(_text(path) for path in _list(document["changed_files"])),
        read_at=_text(document.get("read_at", "")),
    )


def _verified(document: dict[str, Any] | None) -> Verified | None:
    if document is None:
        return None
    outcome = Outcome(document["outcome"])
    if outcome not in (Outcome.GOOD, Outcome.FAILED):
        raise ValueError(f"a verification is never {outcome}")
    why = _text(document["why"])
    if bool(why) is (outcome is Outcome.GOOD):
        raise ValueError("its outcome and why do not agree")
    return Verified(_text(document["time"]), How(document["how"]), outcome, why)


def _drilled(document: dict[str, Any]) -> Drilled:
    volumes = {
        _text(name): DrilledVolume(_text(each["time"]), Outcome(each["outcome"]), _text(each["why"]))
        for name, each in document["volumes"].items()
    }
    return Drilled(_text(document["time"]), Outcome(document["outcome"]), _text(document["why"]), volumes)


def _object(document: dict[str, Any]) -> StoredObject:
    return StoredObject(_text(document["key"]), _count(document["size"]), _text(document["crc32"]))


def _group(document: dict[str, Any]) -> SetGroup:
    containers = tuple(_text(name) for name in _list(document["containers"]))
    return SetGroup(_text(document["group"]), _text(document["frozen_at"]), _number(document["paused_ms"]), containers)


def _reason(document: dict[str, Any]) -> Reason:
    volume, store = document["volume"], document["store"]
    return Reason(
        _text(document["code"]),
        _text(document["message"]),
        _text(document["hint"]),
        None if volume is None else _text(volume),
        None if store is None else _text(store),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text belongs")
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{type(value).__name__} where true or false belongs")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{type(value).__name__} where a count belongs")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{type(value).__name__} where a number belongs")
    return float(value)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} where a list belongs")
    return value


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where an object belongs")
    return {name: _text(text) for name, text in value.items()}


def _document(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=True).encode() + b"\n"
