"""What may be recovered after a loss, by which command, and how sure that is: judged from what `scan` has seen. Pure.

Only a set is proven. Everything else is said to be what it is: the rest of something, which may be better than nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sidecar import sets
from sidecar.report import rfc3339
from sidecar.stores.bucket import Version
from sidecar.stores.port import Pending
from sidecar.stores.snapshots import Snapshot

USUAL_NAME = "backup"  # of the sidecar's container: docker-compose.backup.yml gives it
_ARCHIVE = ".tar.gz"
_UNPACK = "tar --numeric-owner --acls --xattrs --xattrs-include='*' -xzpf - -C DIRECTORY"
_UNPROVEN = "not proven to be whole, nor to be of one instant"


class Kind(StrEnum):
    """What was found; from the surest to the least sure, which is the order of the report."""

    SET = "set"
    DELETED_SET = "deleted_set"  # its objects lie below delete markers
    HALF_SET = "half_set"  # archives without a manifest
    OLD_VERSION = "old_version"  # of an archive that was overwritten
    SNAPSHOT = "snapshot"  # of a disk of this machine, by Amazon
    VOLUME = "volume"  # one that no container uses
    LEFTOVER = "leftover"  # of a restore, inside a volume
    UPLOAD = "upload"  # begun and never completed


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that may be recovered.

    where: the store's or the engine's place. time: of what could be recovered, or None. size in bytes, None where not
    known; at_least: there is more. volumes: whose data. commands: in this order. note: what else to know. second: of a
    set, that any other is to be preferred: it is known to be damaged, or is what a restore replaced.
    """

    kind: Kind
    what: str
    where: str
    time: datetime | None
    size: int | None
    volumes: tuple[str, ...]
    commands: tuple[str, ...]
    note: str = ""
    at_least: bool = False
    home: str = ""
    second: bool = False

    def as_json(self, now: datetime) -> dict[str, Any]:
        """As `scan --json` has it; now: for its age."""
        return {
            "kind": self.kind.value,
            "what": self.what,
            "where": self.where,
            "home": self.home,
            "time": _moment(self.time),
            "age_seconds": round((now - self.time).total_seconds()) if self.time else None,
            "bytes": self.size,
            "at_least": self.at_least,
            "volumes": list(self.volumes),
            "proven": _is_proven(self),
            "commands": list(self.commands),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Unseen:
    """What could not be looked at, wholly or from some point on, and why."""

    place: str
    why: str
    hint: str = ""

    def as_json(self) -> dict[str, str]:
        """As `scan --json` has it."""
        return {"place": self.place, "why": self.why, "hint": self.hint}


@dataclass(frozen=True, slots=True)
class Place:
    """A store, as commands have to name it.

    location: all of it, `s3://bucket` or a directory. prefix, host: BACKUP_PREFIX (of a bucket) and BACKUP_HOST as they
    are set now. endpoint: of an S3 server that is not Amazon's. A `home` is what stands before a set's name in a key.
    container: the sidecar's.
    """

    store: str
    location: str
    prefix: str = ""
    host: str = ""
    endpoint: str | None = None
    container: str = USUAL_NAME

    @property
    def own(self) -> str:
        """The home of this host's sets."""
        return "/".join(filter(None, (self.prefix, self.host)))

    @property
    def bucket(self) -> str:
        """The bucket's name; empty for a directory."""
        return self.location.removeprefix("s3://") if self.location.startswith("s3://") else ""

    def host_of(self, home: str) -> str | None:
        """What `--host` must be for that home; None where it does not lie below the prefix."""
        if home == self.prefix:
            return ""
        below = home.removeprefix(f"{self.prefix}/") if self.prefix else home
        reachable = not self.prefix or home.startswith(f"{self.prefix}/")
        return below if reachable and not {"", ".", ".."} & set(below.split("/")) else None

    def aws(self, words: str) -> str:
        """A command of the AWS CLI."""
        # The option and not the variable, which the CLI of Debian 12 does not know.
        return f"aws --endpoint-url {quoted(self.endpoint)} {words}" if self.endpoint else f"aws {words}"

    def read(self, key: str) -> str:
        """A command that writes an object to standard output."""
        path = quoted(f"{self.location}/{key}")
        return self.aws(f"s3 cp {path} -") if self.bucket else f"docker exec {self.container} cat {path}"


@dataclass(slots=True)
class Laid:
    """A set's directory as a listing shows it. archives: volume -> bytes."""

    home: str
    name: str
    archives: dict[str, int] = field(default_factory=dict)
    manifest: bool = False
    marks: bool = False

    @property
    def path(self) -> str:
        """The key of the directory."""
        return f"{self.home}/{self.name}".lstrip("/")


@dataclass(slots=True)
class Sightings:
    """What a listing of a store's keys has shown, of sets alone: all else is counted and forgotten."""

    laid: dict[tuple[str, str], Laid] = field(default_factory=dict)

    def add(self, key: str, size: int) -> None:
        """Take notice of an object."""
        if (found := split_key(key)) is None:
            return
        home, name, document = found
        laid = self.laid.setdefault((home, name), Laid(home, name))
        if document == sets.MANIFEST:
            laid.manifest = True
        elif document == sets.MARKS:
            laid.marks = True
        elif document.endswith(_ARCHIVE):
            laid.archives[document.removesuffix(_ARCHIVE)] = size

    def newest_first(self, *, manifest: bool) -> list[Laid]:
        """Those that have a manifest, or those that have none and some archive."""
        chosen = [laid for laid in self.laid.values() if laid.manifest == manifest and (manifest or laid.archives)]
        return sorted(chosen, key=lambda laid: (laid.name, laid.home), reverse=True)


@dataclass(slots=True)
class Erased:
    """What lies behind one key: its delete markers, and its newest version that has bytes and is not the latest."""

    markers: list[Version] = field(default_factory=list)
    hidden: Version | None = None

    @property
    def undelete(self) -> tuple[str, ...]:
        """The markers to remove, newest first, so that the object shows again; none where it is not deleted."""
        if self.hidden is None or not any(marker.latest for marker in self.markers):
            return ()
        above = [marker for marker in self.markers if marker.modified >= self.hidden.modified]
        return tuple(m.version for m in sorted(above, key=lambda m: (m.latest, m.modified), reverse=True))


@dataclass(slots=True)
class Erasures:
    """What a listing of versions has shown below set names: (home, set) -> document -> what lies behind it."""

    erased: dict[tuple[str, str], dict[str, Erased]] = field(default_factory=dict)

    def add(self, version: Version) -> None:
        """Take notice of a version or a marker."""
        if version.latest and not version.marker:
            return
        if (found := split_key(version.key)) is None:
            return
        home, name, document = found
        erased = self.erased.setdefault((home, name), {}).setdefault(document, Erased())
        if version.marker:
            erased.markers.append(version)
        elif erased.hidden is None or version.modified > erased.hidden.modified:
            erased.hidden = version


def split_key(key: str) -> tuple[str, str, str] | None:
    """Home, set and document of a key; None for one that is not of a set."""
    if "backup-" not in key:
        return None
    segments = key.split("/")
    for number, segment in enumerate(segments[:-1]):
        if sets.set_time(segment) is not None:
            return "/".join(segments[:number]), segment, "/".join(segments[number + 1 :])
    return None


def quoted(text: str) -> str:
    """A word for a POSIX shell; with control characters, for bash: what is shown can be pasted as it is."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(f"\\x{byte:02x}" for byte in text.encode(errors="surrogateescape")) + "'"


# --- judging ---------------------------------------------------------------------------------------------------------


def set_finding(place: Place, laid: Laid, manifest: sets.Manifest | None, damaged: str = "") -> Finding:
    """A set; manifest: None where it was not read. What it names and the store does not hold is not offered.

    damaged: why it is known to be.
    """
    notes = [f"it is known to be damaged: {damaged}; volumes of it may be whole"] if damaged else []
    replaced = manifest.tags.get(sets.PRE_RESTORE, "") if manifest else ""
    if replaced:
        notes.append(f"it holds what a restore of {replaced} replaced")
    volumes = dict(laid.archives)
    if manifest is None:
        notes.append("its manifest was not read")
    else:
        volumes = {v.volume: v.archive.size for v in manifest.volumes if laid.archives.get(v.volume) == v.archive.size}
        if torn := [v.volume for v in manifest.volumes if v.volume not in volumes]:
            notes.append(f"NOT in it although it should be, or of another size: {', '.join(torn)}")
        if missing := [missing.volume for missing in manifest.missing]:
            notes.append(f"it was made without {', '.join(missing)}")
    return Finding(
        Kind.SET,
        f"{_whose(place, laid.home, manifest)} {laid.name}"
        + (", DAMAGED" if damaged else f", {manifest.outcome}" if manifest else "")
        + (", of what a restore replaced" if replaced else ""),
        place.location,
        sets.set_time(laid.name),
        sum(volumes.values()),
        tuple(sorted(volumes)),
        *_way_back(place, laid, sorted(volumes), notes),
        home=laid.home,
        second=bool(damaged or replaced),
    )


def _whose(place: Place, home: str, manifest: sets.Manifest | None) -> str:
    if home == place.own:
        return "set"
    by = f" by {manifest.host}" if manifest else ""
    where = home or "the top"
    return f"set of another host, made{by} at {where}," if by else f"set of another host at {where},"


def _way_back(place: Place, laid: Laid, volumes: Sequence[str], notes: list[str]) -> tuple[tuple[str, ...], str]:
    """The commands that restore a set's volumes, and the note."""
    host = place.host_of(laid.home)
    if not volumes:
        return (), "; ".join([*notes, "no archive of it is there"])
    if laid.home == place.own:
        return (f"docker exec -it {place.container} restore {laid.name}",), "; ".join(notes)
    if host is not None:
        # Into new volumes: another host's may have the names of ours.
        restore = f"docker exec {place.container} restore {laid.name}"
        ways = (f"{restore} {quoted(v)} --host {quoted(host)} --as {quoted(f'{v}_restored')} --yes" for v in volumes)
        return tuple(ways), "; ".join(notes)
    prefix = f"or start the sidecar with BACKUP_PREFIX={quoted(laid.home)} and without BACKUP_HOST, then `restore`"
    return (place.read(f"{laid.path}/{sets.RECOVER}"),), "; ".join([*notes, prefix])


def half_set_finding(place: Place, laid: Laid, why: str = "it has no manifest") -> Finding:
    """Archives that no readable manifest vouches for; why: what became of it."""
    # Only our own sidecar cleans up, and only where it is at home.
    soon = "; a run that goes on may be writing it, and the next start of the sidecar removes it: copy it first"
    return Finding(
        Kind.HALF_SET,
        f"archives of {laid.path}: {why}",
        place.location,
        sets.set_time(laid.name),
        sum(laid.archives.values()),
        tuple(sorted(laid.archives)),
        tuple(f"{place.read(f'{laid.path}/{v}{_ARCHIVE}')} | {_UNPACK}" for v in sorted(laid.archives)),
        _UNPROVEN + (soon if laid.home == place.own and not laid.manifest else ""),
        home=laid.home,
    )


def erasure_findings(place: Place, erasures: Erasures) -> list[Finding]:
    """Sets whose deletion can be undone, and archives that were overwritten; newest first."""
    found = []
    for (home, name), documents in sorted(erasures.erased.items(), key=lambda item: item[0][1], reverse=True):
        laid = Laid(home, name)
        deleted = {document: erased for document, erased in documents.items() if erased.undelete}
        archives = _archives(deleted)
        if archives:
            # The manifest last: then it is a set, and all that it names is there.
            ordered = sorted(deleted, key=lambda document: (document == sets.MANIFEST, document))
            again = sets.MANIFEST in deleted
            restore = ", then restore it" if again else f"; its manifest is not among them: {_UNPROVEN}"
            found.append(
                Finding(
                    Kind.DELETED_SET,
                    f"deleted set {laid.path}",
                    place.location,
                    sets.set_time(name),
                    sum(version.size for version in archives.values()),
                    tuple(sorted(archives)),
                    tuple(
                        place.aws(f"s3api delete-object {_object(place, laid, document)} --version-id {quoted(marker)}")
                        for document in ordered
                        for marker in deleted[document].undelete
                    ),
                    f"removing the delete markers brings it back{restore}; "
                    "the bucket's lifecycle rules may remove it for good at any time",
                    home=home,
                )
            )
        for volume, version in sorted(_archives({d: e for d, e in documents.items() if not e.markers}).items()):
            fetch = f"s3api get-object {_object(place, laid, volume + _ARCHIVE)} --version-id {quoted(version.version)}"
            found.append(
                Finding(
                    Kind.OLD_VERSION,
                    f"an older version of {laid.path}/{volume}{_ARCHIVE}",
                    place.location,
                    version.modified,
                    version.size,
                    (volume,),
                    (place.aws(f"{fetch} {quoted(volume.replace('/', '_') + _ARCHIVE)}"),),
                    _UNPROVEN,
                    home=home,
                )
            )
    return found


def _archives(documents: Mapping[str, Erased]) -> dict[str, Version]:
    return {
        document.removesuffix(_ARCHIVE): erased.hidden
        for document, erased in documents.items()
        if document.endswith(_ARCHIVE) and erased.hidden is not None
    }


def _object(place: Place, laid: Laid, document: str) -> str:
    return f"--bucket {quoted(place.bucket)} --key {quoted(f'{laid.path}/{document}')}"


def upload_finding(place: Place, upload: Pending, sent: int | None) -> Finding | None:
    """An archive whose upload was begun and not completed; None for an upload of something else.

    sent: bytes of its parts, or None. It has no reader but whoever completes it: then it is an archive that ends early.
    """
    found = split_key(upload.key)
    if found is None or not found[2].endswith(_ARCHIVE) or sent == 0:
        return None
    named = f"--bucket {quoted(place.bucket)} --key {quoted(upload.key)} --upload-id {quoted(upload.upload)}"
    parts = "'{Parts: Parts[].{PartNumber: PartNumber, ETag: ETag}}'"
    return Finding(
        Kind.UPLOAD,
        f"unfinished upload of {upload.key}",
        place.location,
        upload.started,
        sent,
        (found[2].removesuffix(_ARCHIVE),),
        (
            place.aws(f"s3api list-parts {named} --query {parts} --output json > parts.json"),
            place.aws(f"s3api complete-multipart-upload {named} --multipart-upload file://parts.json"),
            f"{place.read(upload.key)} | {_UNPACK}",
        ),
        "a last resort: completed by hand it is an archive that ends early, of which tar unpacks what is there; "
        "a run that goes on may be writing it, and the next start of the sidecar aborts its own",
        home=found[0],
    )


def volume_finding(
    name: str,
    path: str,
    *,
    container: str = USUAL_NAME,
    held: str,
    size: int,
    newest: datetime | None,
    whole: bool,
    leftover: str,
) -> Finding:
    """A volume that no container uses, or one with what a restore left in it (leftover: that directory's name).

    path: where it is in the sidecar's container, of which `container` is the name; the rest as `archive.survey` and
    `contents` tell it. newest: its newest file.
    """
    volume, what = quoted(name), f"volume {name}" + (f" ({held})" if held else "")
    look = f"docker exec {container} ls -la {quoted(f'{path}/{leftover}' if leftover else path)}"
    if leftover:
        note = (
            "what the volume held before that restore is in `old` there, as far as it was moved; "
            "the next start of the sidecar, or another restore, brings it to its end and removes that"
        )
        what += f": a restore left {leftover} in it"
        again = f"docker exec {container} restore latest {volume} --yes"
        return Finding(Kind.LEFTOVER, what, "docker", newest, size, (name,), (look, again), note, at_least=not whole)
    commands = (
        f"docker exec {container} run-now {volume}",
        look,
        f"docker run --rm -it -v {volume}:/data alpine sh",
    )
    note = "no container mounts it, so `docker volume prune` may remove it"
    return Finding(Kind.VOLUME, what, "docker", newest, size, (name,), commands, note, at_least=not whole)


def snapshot_finding(snapshot: Snapshot) -> Finding:
    """A snapshot of one of this machine's disks, which may hold the engine's directory."""
    ec2 = f"aws ec2 --region {quoted(snapshot.region)}"
    disk = f"{snapshot.device}, {snapshot.disk_bytes >> 30} GiB" if snapshot.device else snapshot.disk
    return Finding(
        Kind.SNAPSHOT,
        f"EBS snapshot {snapshot.name} of this machine's disk {snapshot.disk} ({disk})",
        f"EC2, {snapshot.region}",
        snapshot.taken,
        None,
        (f"disk {snapshot.disk}",),
        (
            f"{ec2} create-volume --availability-zone {quoted(snapshot.zone)} --snapshot-id {quoted(snapshot.name)}",
            f"{ec2} attach-volume --instance-id {quoted(snapshot.instance)} --device /dev/sdf --volume-id VOLUME",
        ),
        "a disk as after a power cut, if it is the one that holds the engine's directory; VOLUME is what the first "
        "command prints. Mount it read-only, and look into var/lib/docker/volumes there",
    )


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Salvage:
    """Everything that was found and that was not looked at, at `now`. remarks: what else to know, a sentence each."""

    findings: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]
    now: datetime
    remarks: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """`partial`: something could not be looked at; else `good`: something was found, or `not_found`."""
        return "partial" if self.unseen else "good" if self.newest() else "not_found"

    def newest(self) -> dict[str, Finding]:
        """Volume -> the newest finding that would bring it back: a set, where there is one that is no second choice."""
        best: dict[str, Finding] = {}
        for finding in self.findings:
            for volume in finding.volumes if finding.commands else ():
                held = best.get(volume)
                if held is None or _worth(finding) > _worth(held):
                    best[volume] = finding
        return dict(sorted(best.items()))

    @property
    def conclusion(self) -> str:
        """One or two sentences."""
        newest = self.newest()
        proven = {volume: finding for volume, finding in newest.items() if _is_proven(finding)}
        unproven = {volume: finding for volume, finding in newest.items() if volume not in proven}
        said = []
        if proven:
            said.append(f"The newest backup that can be recovered: {_listed(proven)}.")
        if unproven:
            only = "Only what is not proven to be whole is left" + (" of the others" if proven else "")
            said.append(f"{only}: {_listed(unproven)}.")
        if not newest:
            said.append("Nothing that could be recovered was found.")
        if self.unseen:
            places = dict.fromkeys(unseen.place for unseen in self.unseen)
            said.append(f"Not looked at, or not to the end: {_some(list(places))}.")
        return " ".join(said)

    def as_json(self) -> dict[str, Any]:
        """The object of `scan --json`."""
        return {
            "outcome": self.outcome,
            "found": bool(self.newest()),
            "conclusion": self.conclusion,
            "newest": {
                volume: {"kind": f.kind.value, "what": f.what, "where": f.where, "time": _moment(f.time)}
                for volume, f in self.newest().items()
            },
            "findings": [finding.as_json(self.now) for finding in self.findings],
            "unseen": [unseen.as_json() for unseen in self.unseen],
            "remarks": list(self.remarks),
        }


def _is_proven(finding: Finding) -> bool:
    return finding.kind is Kind.SET and not finding.second


def _worth(finding: Finding) -> tuple[bool, float]:
    return _is_proven(finding), finding.time.timestamp() if finding.time else 0.0


def _moment(time: datetime | None) -> str | None:
    return rfc3339(time) if time else None


def _listed(found: Mapping[str, Finding]) -> str:
    said = []
    for volume, finding in sorted(found.items(), key=lambda item: _worth(item[1]), reverse=True):
        moment = f" of {finding.time:%Y-%m-%d %H:%M} UTC" if finding.time else ""
        names_it = finding.kind in (Kind.VOLUME, Kind.LEFTOVER)
        said.append(f"{finding.what}{moment}" if names_it else f"{volume}{moment} ({finding.what})")
    return _some(said)


def _some(texts: Sequence[str], most: int = 6) -> str:
    rest = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *rest])


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The surest first, then the newest."""
    kinds = list(Kind)
    return tuple(
        sorted(findings, key=lambda f: (kinds.index(f.kind), f.second, -(f.time.timestamp() if f.time else 0.0)))
    )
