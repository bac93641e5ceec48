"""One set from one store to another: what a store missed is shipped later, without a new freeze."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from isal import isal_zlib

from sidecar import sets
from sidecar.errors import ChecksumMismatch, Interrupted, NotFound, ObjectMissing, StoreError
from sidecar.events import Emit, Follow, Progress
from sidecar.jobs.catalogue import read_document
from sidecar.jobs.consignment import Consignment
from sidecar.jobs.ownership import Claimant
from sidecar.stores.port import MEBIBYTE, Store

_CHUNK = 8 * MEBIBYTE
# Seconds between looks at whether we are told to stop: a part may hang for as long as the store's time-out.
_LOOK_EVERY = 0.2


@dataclass(frozen=True, slots=True)
class ShipTools:
    """What a shipment works with; wiring makes it.

    source, target: retrying already. claimant: who writes to the target. endpoint: of an S3 server that is not
    Amazon's, for RECOVER.txt. threads: uploads at once.
    """

    source: Store
    target: Store
    claimant: Claimant
    endpoint: str | None
    threads: int
    emit: Emit
    now: Callable[[], datetime]


def ship(set_name: str, tools: ShipTools, follow: Follow, cancelled: threading.Event) -> int:
    """Copy a set, every byte compared with its manifest on the way; how many bytes were sent, none if it was there.

    Afterwards the target has all of the set or nothing that counts. Raises NotFound when the source has that set no
    more, its StoreError when it is away; SetInvalid or ChecksumMismatch, which name the source, when its copy is
    damaged; the target's StoreError; Interrupted within seconds once `cancelled` is set.
    """
    source, target = tools.source, tools.target
    document = _manifest(source, set_name)
    manifest = sets.Manifest.from_json(document, where=f"{source.location}/{sets.manifest_key(set_name)}")
    with Consignment(target, _without_failures(tools.emit), threads=tools.threads) as consignment:
        consignment.claim(tools.claimant, tools.now())
        if consignment.holds(set_name):
            return 0
        objects = [each for volume in manifest.volumes for each in (volume.archive, volume.index)]
        journey = _Journey(source, consignment, sum(each.size for each in objects), follow, cancelled)
        for each in objects:
            journey.carry(each)
        endpoint = tools.endpoint if target.off_host else None
        recover = sets.recover_text(manifest, base=target.location, endpoint=endpoint)
        consignment.put(sets.recover_key(set_name), recover.encode(), content_type="text/plain; charset=utf-8")
        journey.check()
        consignment.commit(sets.manifest_key(set_name), document)
        journey.check()
    return consignment.bytes_uploaded


def lost(set_names: Iterable[str], source: Store) -> dict[str, str]:
    """Of these sets, those that the source has no more, with the words for it. Raises StoreError when it is away."""
    gone = {}
    for set_name in set_names:
        try:
            source.head(sets.manifest_key(set_name))
        except ObjectMissing:
            gone[set_name] = f"it is in {source.location} no more"
    if gone:
        _require_owner(source)
    return gone


class _Journey:
    """The objects of one set on their way, one after another."""

    def __init__(
        self, source: Store, consignment: Consignment, total: int, follow: Follow, cancelled: threading.Event
    ) -> None:
        self._source = source
        self._consignment = consignment
        self._total = total
        self._done = 0
        self._follow = follow
        self._cancelled = cancelled

    def carry(self, described: sets.StoredObject) -> None:
        """Copy one object; completed only if it is what the manifest says."""
        self.check()
        key, crc32, size = described.key, 0, 0
        try:
            found = self._source.head(key)
            if found.size != described.size:
                raise self._damaged(f"{key} has {found.size} bytes, and {described.size} in the manifest")
            parcel = self._consignment.begin(key, described.size)
            with self._source.open(key, length=found.size, if_match=found.entity) as stored:
                while chunk := stored.read(_CHUNK):
                    self._wait(parcel.room_within)
                    crc32, size = isal_zlib.crc32(chunk, crc32), size + len(chunk)
                    parcel.deliver(chunk)
                    self._done += len(chunk)
                    self._follow(Progress("shipping", key.partition("/")[2], self._done, self._total))
        except ObjectMissing as error:
            raise self._damaged(f"{key}, which its manifest names, is missing") from error
        if (size, f"{crc32:08x}") != (described.size, described.crc32):
            raise self._damaged(
                f"{key} has {size} bytes, crc32:{crc32:08x}, and {described.size} bytes, crc32:{described.crc32}, "
                "in the manifest"
            )
        self._wait(parcel.room_within)
        parcel.flush()
        self._wait(parcel.sent_within)
        parcel.finish(described.size, crc32)

    def check(self) -> None:
        """Raises Interrupted when told to stop, and the target's error once it has failed."""
        if self._consignment.error is not None:
            raise self._consignment.error
        if self._cancelled.is_set() and not self._consignment.committed:
            raise Interrupted("the shipment was told to stop", hint="nothing to do: it is tried again later")

    def _wait(self, within: Callable[[float], bool]) -> None:
        while not within(_LOOK_EVERY):
            self.check()
        self.check()

    def _damaged(self, what: str) -> ChecksumMismatch:
        return ChecksumMismatch(
            f"the copy in {self._source.location} is damaged: {what}",
            hint="test that disk; the next backup makes a new set, and this one cannot be shipped",
            store=self._source.name,
        )


def _manifest(source: Store, set_name: str) -> bytes:
    try:
        return read_document(source, sets.manifest_key(set_name))
    except ObjectMissing as error:
        _require_owner(source)
        raise NotFound(
            f"it is in {source.location} no more", hint="`list` shows the sets", store=source.name
        ) from error


def _require_owner(source: Store) -> None:
    """Where sets were made there is an owner.json: without it this is an empty directory where a disk belongs."""
    try:
        source.head(sets.OWNER)
    except ObjectMissing as error:
        raise StoreError(
            f"{source.location} is not what it was: it has no {sets.OWNER}",
            hint="is the disk that sets are kept on mounted?",
            store=source.name,
        ) from error


def _without_failures(emit: Emit) -> Emit:
    """Whoever ships says that the target failed: it knows for how many attempts that has been so."""

    def pass_on(name: str, /, *, level: int | None = None, **fields: Any) -> None:
        if name != "store_failed":
            emit(name, level=level, **fields)

    return pass_on
