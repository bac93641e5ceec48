"""Is there anything left to recover, and with which command? Every place where something may lie, looked at once.

Nothing is changed anywhere. What cannot be looked at is said as such, and the rest is looked at all the same: after a
loss, engine and stores may be half there. `sidecar.salvage` judges what is seen here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from sidecar import sets
from sidecar.archive.survey import survey
from sidecar.archive.unpack import DONE, STAGING
from sidecar.contents import PG_VERSION, held
from sidecar.engine.port import Engine
from sidecar.errors import ObjectMissing, SetInvalid, SidecarError
from sidecar.jobs.catalogue import read_document
from sidecar.jobs.discover import Discovery
from sidecar.model import Volume
from sidecar.plan import can_reach
from sidecar.salvage import (
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
    upload_finding,
    volume_finding,
)
from sidecar.stores.bucket import Bucket
from sidecar.stores.port import Store, Stored

Listed = TypeVar("Listed")

_TELL_EVERY = 1_000  # keys: a page of S3's


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

    stores: by name, made when asked for, because that may fail. engine, discovery: as a run would have them. now:
    aware; ages are told by it. say: told what is being looked at.
    """

    stores: Mapping[str, Callable[[], Searched]]
    engine: Callable[[], Engine]
    discovery: Callable[[Engine], Discovery]
    now: datetime
    say: Callable[[str], None] = lambda _: None
    limits: Limits = field(default_factory=Limits)


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
    return Salvage(ordered(search.findings), tuple(search.unseen), grounds.now)


class _Search:
    def __init__(self, grounds: Grounds) -> None:
        self.findings: list[Finding] = []
        self.unseen: list[Unseen] = []
        self._grounds = grounds
        self._limits = grounds.limits

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
        what = f"the objects of {place.location}"

        def objects(prefix: str) -> Iterable[Stored]:
            return searched.bucket.objects(prefix) if searched.bucket else searched.whole.list(prefix)

        for prefix in _own_first(place):
            with self.looking(_below(what, prefix)):
                for stored in self._bounded(objects(prefix), _below(what, prefix)):
                    seen.add(stored.key, stored.size)
        for number, laid in enumerate(seen.newest_first(manifest=True)):
            if number < self._limits.manifests:
                with self.looking(f"{place.location}/{laid.path}"):
                    self._set(searched, laid)
            else:
                self.findings.append(set_finding(place, laid, None))
        self.findings += [half_set_finding(place, laid) for laid in seen.newest_first(manifest=False)]

    def _set(self, searched: Searched, laid: Laid) -> None:
        key = f"{laid.path}/{sets.MANIFEST}"
        try:
            manifest = sets.Manifest.from_json(read_document(searched.whole, key), where=key)
        except ObjectMissing:  # pruned since it was listed
            return
        except SetInvalid as error:
            if laid.archives:
                self.findings.append(half_set_finding(searched.place, laid, error.message))
            return
        except SidecarError:
            self.findings.append(set_finding(searched.place, laid, None))
            raise
        self.findings.append(set_finding(searched.place, laid, manifest))

    def deleted(self, place: Place, bucket: Bucket) -> None:
        """What lies below delete markers, and versions that were overwritten."""
        erasures, what = Erasures(), f"the older versions in {place.location}"
        for prefix in _own_first(place):
            with self.looking(_below(what, prefix)):
                for version in self._bounded(bucket.versions(prefix), _below(what, prefix)):
                    erasures.add(version)
        self.findings += erasure_findings(place, erasures)

    def unfinished(self, place: Place, bucket: Bucket) -> None:
        """Uploads that were begun and never completed."""
        uploads, what = {}, f"the unfinished uploads in {place.location}"
        for prefix in _own_first(place):
            with self.looking(_below(what, prefix)):
                for upload in self._bounded(bucket.uploads(prefix), _below(what, prefix)):
                    uploads[upload.key, upload.upload] = upload
        for number, upload in enumerate(sorted(uploads.values(), key=lambda each: each.started, reverse=True)):
            sent = None
            if number < self._limits.uploads:
                try:
                    sent = bucket.sent(upload)
                except ObjectMissing:  # completed or aborted since it was listed
                    continue
                except SidecarError:  # its size alone is not known
                    sent = None
            if finding := upload_finding(place, upload, sent):
                self.findings.append(finding)

    def _bounded(self, listing: Iterable[Listed], what: str) -> Iterator[Listed]:
        """At most so many of it; that there were more is said."""
        most = self._limits.keys
        for number, each in enumerate(islice(listing, most + 1)):
            if number == most:
                hint = "what lies behind them was not seen: list it with the AWS CLI, prefix by prefix"
                self.unseen.append(Unseen(what, f"it goes on after {most:,} keys", hint))
                return
            if number % _TELL_EVERY == 0:
                self._grounds.say(f"looking at {what}: {number:,} keys")
            yield each

    # --- this host ---------------------------------------------------------------------------------------------------

    def volumes(self, engine: Engine) -> None:
        """Volumes that no container uses, and those with a restore's leftovers. Raises EngineError, MountMissing."""
        discovery = self._grounds.discovery(engine)
        volumes = {volume.name: volume for volume in engine.volumes()}
        users = [container for container in engine.containers() if not container.role]
        plan = discovery(tuple(volumes))
        for skipped in plan.skipped:
            if skipped.code != "own_volume":
                self.unseen.append(Unseen(f"volume {skipped.volume}", skipped.why, skipped.hint))
        for planned in (planned for group in plan.groups for planned in group.volumes):
            used = any(can_reach(container, planned.volume) for container in users)
            with self.looking(f"volume {planned.volume.name}"):
                self._volume(planned.volume, planned.path, used=used)

    def _volume(self, volume: Volume, path: str, *, used: bool) -> None:
        """Raises VolumeUnavailable."""
        leftover = next((name for name in (STAGING, DONE) if os.path.lexists(os.path.join(path, name))), "")
        if used and not leftover:
            return
        seen = survey(path, most=self._limits.entries, read=(PG_VERSION,))
        if seen.files or not seen.whole:
            self.findings.append(
                volume_finding(
                    volume.name,
                    path,
                    held=held(seen.names, seen.texts),
                    size=seen.size,
                    newest=None if seen.newest is None else datetime.fromtimestamp(seen.newest, UTC),
                    whole=seen.whole,
                    leftover=leftover,
                )
            )


def _own_first(place: Place) -> Sequence[str]:
    """Prefixes to list: ours, which no bound must hide and no permission is likely to, then all there is."""
    return tuple(dict.fromkeys((f"{place.own}/" if place.own and place.bucket else "", "")))


def _below(what: str, prefix: str) -> str:
    return f"{what} below {prefix}" if prefix else what
