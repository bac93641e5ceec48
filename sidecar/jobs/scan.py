"""Is there anything left to recover, and with which command? Every place where something may lie, looked at once.

Nothing is changed anywhere. What cannot be looked at is said as such, and the rest is looked at all the same: after a
loss, engine and stores may be half there. `sidecar.salvage` judges what is seen here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from sidecar import sets
from sidecar.archive.survey import survey
from sidecar.archive.unpack import DONE, STAGING
from sidecar.contents import PG_VERSION, held
from sidecar.engine.port import Engine
from sidecar.errors import (
    BucketMissing,
    NotFound,
    ObjectMissing,
    SetInvalid,
    SidecarError,
    StoreError,
    StoreUnreachable,
)
from sidecar.jobs.catalogue import read_document
from sidecar.jobs.discover import Discovery
from sidecar.model import Container, Volume
from sidecar.plan import VOLUMES_TARGET, Plan
from sidecar.salvage import (
    USUAL_NAME,
    Erasures,
    Finding,
    Laid,
    Place,
    Salvage,
    Sightings,
    Unseen,
    erasure_findings,
    half_set_finding,
    ordered,
    set_finding,
    snapshot_finding,
    upload_finding,
    volume_finding,
)
from sidecar.stores.bucket import Bucket
from sidecar.stores.port import Store
from sidecar.stores.snapshots import Snapshot

Listed = TypeVar("Listed")

_TELL_EVERY = 1_000  # keys: a page of S3's
_ATTEMPTS = 5
_NO_EC2 = (
    "no EBS snapshots were looked for: this is no EC2 instance (or its metadata service does not answer a container, "
    "which takes a hop limit of 2)"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is looked at before the rest is said not to have been.

    keys: of each listing; manifests, uploads: read or measured in each store, the newest; entries: of each volume.
    """

    keys: int = 500_000
    manifests: int = 500
    uploads: int = 50
    entries: int = 200_000


@dataclass(frozen=True, slots=True)
class Searched:
    """A store. whole: all of it, without prefix and host. bucket: what only S3 can tell, None for a directory."""

    place: Place
    whole: Store
    bucket: Bucket | None = None


@dataclass(frozen=True, slots=True)
class Grounds:
    """Where to look; wiring makes it.

    stores: by name, made when asked for, because that may fail. engine, discovery: as a run would have them. snapshots:
    of this machine's disks, None where it is no EC2 instance. now: aware; ages are told by it. say: told what is being
    looked at. container: the name of the sidecar's, for commands.
    """

    stores: Mapping[str, Callable[[], Searched]]
    engine: Callable[[], Engine]
    discovery: Callable[[Engine], Discovery]
    now: datetime
    snapshots: Callable[[], Sequence[Snapshot] | None] = lambda: None
    say: Callable[[str], None] = lambda _: None
    limits: Limits = field(default_factory=Limits)
    container: str = USUAL_NAME


def scan(grounds: Grounds) -> Salvage:
    """Look everywhere. Raises nothing that has a name."""
    search = _Search(grounds)
    for name, make in grounds.stores.items():
        with search.looking(f"store {name}"):
            searched = make()
            search.sets(searched)
            if searched.bucket:
                search.deleted(searched.place, searched.bucket)
                search.unfinished(searched.place, searched.bucket)
    with search.looking("the volumes of this host"):
        search.volumes(grounds.engine())
    with search.looking("EBS snapshots of this machine's disks"):
        search.snapshots()
    return Salvage(ordered(search.findings), tuple(search.unseen), grounds.now, tuple(search.remarks))


class _Search:
    def __init__(self, grounds: Grounds) -> None:
        self.findings: list[Finding] = []
        self.unseen: list[Unseen] = []
        self.remarks: list[str] = []
        self._grounds = grounds
        self._limits = grounds.limits
        self._gone: set[str] = set()  # stores that do not answer

    @contextmanager
    def looking(self, place: str) -> Iterator[None]:
        """What fails inside could not be looked at; what was seen before stays."""
        self._grounds.say(f"looking at {place}")
        try:
            yield
        except SidecarError as error:
            self.unseen.append(Unseen(place, error.message, error.hint))

    # --- stores ------------------------------------------------------------------------------------------------------

    def sets(self, searched: Searched) -> None:
        """Sets and half sets: of this host, of others, anywhere in the bucket."""
        place, seen = searched.place, Sightings()
        listing = searched.bucket.objects if searched.bucket else searched.whole.list
        for stored in self._listed(place, "the objects", listing):
            seen.add(stored.key, stored.size)
        for number, laid in enumerate(seen.newest_first(manifest=True)):
            if number < self._limits.manifests and place.store not in self._gone:
                self._set(searched, laid)
            else:
                self.findings.append(set_finding(place, laid, None))
        self.findings += [half_set_finding(place, laid) for laid in seen.newest_first(manifest=False)]

    def _set(self, searched: Searched, laid: Laid) -> None:
        place, key = searched.place, f"{laid.path}/{sets.MANIFEST}"
        self._grounds.say(f"reading {place.location}/{key}")
        try:
            manifest = sets.Manifest.from_json(read_document(searched.whole, key), where=key)
        except ObjectMissing:  # pruned since it was listed
            return
        except SetInvalid as error:
            if laid.archives:
                self.findings.append(half_set_finding(place, laid, error.message))
            return
        except StoreError as error:
            self.findings.append(set_finding(place, laid, None))
            self._failed(place, f"{place.location}/{key}", error)
            return
        self.findings.append(set_finding(place, laid, manifest, self._damage(searched, laid) if laid.marks else ""))

    def _damage(self, searched: Searched, laid: Laid) -> str:
        """Why a set is known to be damaged; empty where it is not."""
        key = f"{laid.path}/{sets.MARKS}"
        try:
            return sets.Marks.from_json(read_document(searched.whole, key), where=key).damaged
        except ObjectMissing:
            return ""
        except SetInvalid as error:
            self.unseen.append(Unseen(f"{searched.place.location}/{key}", error.message, error.hint))
        except StoreError as error:
            self._failed(searched.place, f"{searched.place.location}/{key}", error)
        return ""

    def deleted(self, place: Place, bucket: Bucket) -> None:
        """What lies below delete markers, and versions that were overwritten."""
        erasures = Erasures()
        for version in self._listed(place, "older versions", bucket.versions):
            erasures.add(version)
        self.findings += erasure_findings(place, erasures)

    def unfinished(self, place: Place, bucket: Bucket) -> None:
        """Uploads that were begun and never completed."""
        listed = self._listed(place, "unfinished uploads", bucket.uploads)
        uploads = {(upload.key, upload.upload): upload for upload in listed}
        for number, upload in enumerate(sorted(uploads.values(), key=lambda each: each.started, reverse=True)):
            sent = None
            if number < self._limits.uploads and place.store not in self._gone:
                try:
                    sent = bucket.sent(upload)
                except ObjectMissing:  # completed or aborted since it was listed
                    continue
                except StoreError as error:
                    self._failed(place, f"the size of the unfinished upload {upload.key}", error)
            if finding := upload_finding(place, upload, sent):
                self.findings.append(finding)

    def _listed(self, place: Place, what: str, listing: Callable[[str], Iterable[Listed]]) -> Iterator[Listed]:
        """All that is listed, at most so many; a failure, and that there was more, is said.

        Ours first, which no bound must hide, and which may be permitted where the whole bucket is not; so some comes
        twice.
        """
        own = f"{place.own}/" if place.own and place.bucket else ""
        for prefix in dict.fromkeys((own, "")):
            if place.store in self._gone:
                return
            where = f"{what} in {place.location}" + (f" below {prefix}" if prefix else "")
            try:
                for number, each in enumerate(listing(prefix)):
                    if number == self._limits.keys:
                        hint = "what lies behind was not seen: list it with the AWS CLI, prefix by prefix"
                        self.unseen.append(Unseen(where, f"there are more than {number:,}", hint))
                        break
                    if number % _TELL_EVERY == 0:
                        self._grounds.say(f"looking at {where}: {number:,}")
                    yield each
            except StoreError as error:
                self._failed(place, where, error)

    def _failed(self, place: Place, what: str, error: StoreError) -> None:
        """Say it. A store that does not answer is not asked again: each time would cost as much patience."""
        if isinstance(error, StoreUnreachable | BucketMissing):
            self._gone.add(place.store)
            what = f"{what}, and whatever else is in the store {place.store}"
        self.unseen.append(Unseen(what, error.message, error.hint))

    # --- Amazon ------------------------------------------------------------------------------------------------------

    def snapshots(self) -> None:
        """Snapshots of the disks that this machine has at Amazon. Raises StoreError."""
        found = self._grounds.snapshots()
        if found is None:
            self.remarks.append(_NO_EC2)
        else:
            self.findings += map(snapshot_finding, found)

    # --- this host ---------------------------------------------------------------------------------------------------

    def volumes(self, engine: Engine) -> None:
        """Volumes that no container uses, and those with a restore's leftovers. Raises EngineError, MountMissing."""
        plan = self._plan_of_all(engine)
        containers = engine.containers()
        used = {volume.name for volume in engine.volumes() if any(_uses(each, volume) for each in containers)}
        for skipped in plan.skipped:
            if skipped.code != "own_volume" and skipped.volume not in used:
                self.unseen.append(Unseen(f"volume {skipped.volume}", skipped.why, skipped.hint))
        for planned in (planned for group in plan.groups for planned in group.volumes):
            with self.looking(f"volume {planned.volume.name}"):
                self._volume(planned.volume, planned.path, used=planned.volume.name in used)

    def _plan_of_all(self, engine: Engine) -> Plan:
        """Where the data of every volume is, anonymous ones too; asked again when one has gone meanwhile."""
        discovery = self._grounds.discovery(engine)
        for _ in range(_ATTEMPTS - 1):
            with suppress(NotFound):
                return discovery(tuple(volume.name for volume in engine.volumes()))
        return discovery(tuple(volume.name for volume in engine.volumes()))

    def _volume(self, volume: Volume, path: str, *, used: bool) -> None:
        """Raises VolumeUnavailable."""
        leftover = next((name for name in (STAGING, DONE) if os.path.lexists(os.path.join(path, name))), "")
        if used and not leftover:
            return
        now = self._grounds.now.timestamp()
        seen = survey(path, most=self._limits.entries, read=(PG_VERSION,), now=now)
        if seen.files or not seen.whole:
            self.findings.append(
                volume_finding(
                    volume.name,
                    path,
                    container=self._grounds.container,
                    held=held(seen.names, seen.texts),
                    size=seen.size,
                    newest=None if seen.newest is None else datetime.fromtimestamp(seen.newest, UTC),
                    whole=seen.whole,
                    leftover=leftover,
                )
            )


def _uses(container: Container, volume: Volume) -> bool:
    """Whether it mounts the volume by name, as `docker volume prune` sees it: a bind of all there is keeps nothing.

    A sidecar that mounts a volume only to see it does not use it.
    """
    mounts = [mount for mount in container.mounts if mount.volume == volume.name]
    if container.role:
        return any(mount.writable and not mount.target.startswith(f"{VOLUMES_TARGET}/") for mount in mounts)
    return bool(mounts)
