"""One verification, top to bottom: whether all is there that the manifest names, and is what was written.

Quick asks what costs little: objects, sizes, the store's own checksums, the whole index. Full reads every byte of every
archive as well, and compares its entries with the index. What a store could not be asked is no verdict on the set.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import tee

from isal import isal_zlib

from sidecar import sets
from sidecar.archive.audit import audit, in_order
from sidecar.archive.index import IndexedBlock
from sidecar.archive.reader import read_blocks
from sidecar.errors import (
    DAMAGE,
    ArchiveDamaged,
    Interrupted,
    NotFound,
    ObjectMissing,
    SetInvalid,
    SidecarError,
)
from sidecar.events import Emit, Follow, Progress
from sidecar.jobs.catalogue import documents_of_sets, read_manifest
from sidecar.jobs.download import Fetched, described_archive, proven_blocks, proven_index
from sidecar.jobs.marks import mark
from sidecar.jobs.ownership import Claimant
from sidecar.plan import nearest
from sidecar.report import Outcome, Reason, VerifiedVolume, VerifyReport, rfc3339
from sidecar.sets import How, Manifest, Marks, SetVolume, StoredObject, Verified
from sidecar.stores.port import Store, Stored

_ELSEWHERE = "another set, or another store's copy of it, may be whole: `list` shows them; test what this one lies on"


@dataclass(frozen=True, slots=True)
class VerifyTools:
    """What a verification works with; wiring makes it.

    stores: by name, retrying already. claimant: who notes the verdict. threads: downloads at once.
    """

    stores: Mapping[str, Store]
    claimant: Claimant
    threads: int
    emit: Emit
    now: Callable[[], datetime]


def verify(set_name: str, how: How, tools: VerifyTools, follow: Follow, cancelled: threading.Event) -> VerifyReport:
    """Verify a set, or the newest for `latest`, in every store that has it, and note the verdict in its marks.

    Raises NotFound when there is no such set, or it is deleted meanwhile; a store's error when none can be asked;
    Interrupted soon after `cancelled` is set. Nothing is noted then.
    """
    work = _Verification(how, tools, follow, cancelled)
    for store in work.holders(set_name):
        if manifest := work.manifest(store):
            for stored in manifest.volumes:
                work.volume(store, stored)
            work.recover(store)
    work.note()
    return work.report()


class _Verification:
    """The steps of `verify`."""

    def __init__(self, how: How, tools: VerifyTools, follow: Follow, cancelled: threading.Event) -> None:
        self._how = how
        self._tools = tools
        self._follow = follow
        self._cancelled = cancelled
        self._id = uuid.uuid4().hex[:12]
        self._started = tools.now()
        self._began = time.monotonic()
        self._holders: list[Store] = []
        self._volumes: list[VerifiedVolume] = []
        self._damage: dict[str, list[Reason]] = {}  # by store
        self._unknown: list[Reason] = []
        self._damaged: dict[str, str] = {}  # store -> why, as it is noted
        self._warnings: list[str] = []

    def holders(self, set_name: str) -> list[Store]:
        """The stores that have the set."""
        self._follow(Progress("planning"))
        found: dict[str, list[Store]] = {}
        errors: dict[str, SidecarError] = {}
        for name, store in self._tools.stores.items():
            try:
                for each in documents_of_sets(store):
                    found.setdefault(each, []).append(store)
            except SidecarError as error:
                errors[name] = error
        newest = _latest(found) or set_name
        self._set = newest if set_name == "latest" else set_name
        self._newest = self._set == newest
        if self._set not in found:
            if errors:  # it may lie there
                raise next(iter(errors.values()))
            hint = nearest(set_name, found, "`list` shows the sets") if found else "`run-now` makes one"
            raise NotFound(f"there is no set {set_name!r}", hint=hint)
        for name, away in errors.items():
            self._could_not(away, name)
        self._holders = found[self._set]
        return self._holders

    def manifest(self, store: Store) -> Manifest | None:
        """The manifest, which speaks of this set alone; None where it does not, or cannot be read."""
        try:
            return read_manifest(store, self._set)
        except SidecarError as error:
            self._went_wrong(error, store)
            return None

    def volume(self, store: Store, stored: SetVolume) -> None:
        """Whether one archive and its index are what was written, in one store."""
        self._check()
        self._follow(Progress("verifying", stored.volume))
        try:
            index, archive = self._described(store, stored)
            if self._how is How.FULL:
                self._read(store, stored, index, archive)
        except SidecarError as error:
            reason = self._went_wrong(error, store, stored.volume)
            damaged = isinstance(error, DAMAGE)
            self._volumes.append(
                VerifiedVolume(
                    store.name,
                    stored.volume,
                    Outcome.FAILED,
                    damaged=damaged,
                    error=reason.message,
                    hint=reason.hint,
                )
            )
        else:
            read = stored.index.size + (stored.archive.size if self._how is How.FULL else 0)
            self._volumes.append(VerifiedVolume(store.name, stored.volume, Outcome.GOOD, bytes_read=read))

    def recover(self, store: Store) -> None:
        """RECOVER.txt is there. What it says is for people, and may have been written for another store."""
        try:
            if not store.head(sets.recover_key(self._set)).size:
                raise SetInvalid(f"{store.location}/{sets.recover_key(self._set)} is empty")
        except SidecarError as error:
            self._went_wrong(error, store)

    def note(self) -> None:
        """Note each store's verdict in the set's marks there, unless it could not be asked."""
        self._check()
        for store in self._holders:
            damage = self._damage.get(store.name, [])
            if not damage and any(reason.store == store.name for reason in self._unknown):
                continue
            more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
            why = damage[0].message + more if damage else ""
            outcome = Outcome.FAILED if damage else Outcome.GOOD
            verdict = Verified(rfc3339(self._tools.now()), self._how, outcome, why)
            try:
                marks = mark(store, self._set, self._tools.claimant, lambda marks: _noted(marks, verdict))  # noqa: B023
                why = marks.damaged
            except SidecarError as error:
                self._warnings.append(f"the verdict could not be noted in {store.name}: {error.message}")
            if why:
                self._damaged[store.name] = why

    def report(self) -> VerifyReport:
        """What the verification says of itself; emits `verify_finished`."""
        reasons = [reason for damage in self._damage.values() for reason in damage] + self._unknown
        reasons += [
            Reason(
                "known_damaged",
                f"this found nothing wrong, but a full verification before did: {why}",
                f"`verify {self._set}` reads every byte again",
                store=store,
            )
            for store, why in self._damaged.items()
            if store not in self._damage
        ]
        report = VerifyReport(
            verify=self._id,
            set=self._set,
            how=self._how.value,
            outcome=Outcome.FAILED if reasons else Outcome.GOOD,
            started=self._started,
            duration_ms=(time.monotonic() - self._began) * 1000,
            newest=self._newest,
            volumes=tuple(self._volumes),
            damaged=dict(self._damaged),
            reasons=tuple(reasons),
            warnings=tuple(self._warnings),
        )
        first = reasons[0] if reasons else None
        self._tools.emit(
            "verify_finished",
            level=logging.ERROR if reasons else logging.INFO,
            verify=self._id,
            set=self._set,
            how=self._how.value,
            outcome=report.outcome.value,
            stores=[store.name for store in self._holders],
            volumes=[each.volume for each in self._volumes if each.outcome is not Outcome.GOOD],
            bytes_read=sum(each.bytes_read for each in self._volumes),
            duration_ms=round(report.duration_ms, 1),
            code=first.code if first else None,
            error=first.message if first else None,
            hint=first.hint if first else None,
            warnings=self._warnings,
        )
        return report

    # --- one volume --------------------------------------------------------------------------------------------------

    def _described(self, store: Store, stored: SetVolume) -> tuple[bytes, Stored]:
        """The index and the archive, of which manifest, index and store tell the same."""
        _vouched(store, stored.index)
        index = proven_index(store, stored)
        files = crc32 = 0
        blocks = []
        for each in read_blocks(index):
            self._check()
            in_order(each)
            files += len(each.files)
            crc32 = isal_zlib.crc32_combine(crc32, each.block.crc32, each.block.length)
            blocks.append(each.block)
        archive = described_archive(store, stored, blocks)
        if files != stored.files:
            raise ArchiveDamaged(
                f"the index of {stored.volume} in {store.location} names {files} entries, "
                f"and the manifest {stored.files}",
            )
        if f"{crc32:08x}" != stored.archive.crc32:
            raise ArchiveDamaged(
                f"the index of {stored.volume} in {store.location} tells of an archive with the CRC32 {crc32:08x}, "
                f"and the manifest of one with {stored.archive.crc32}",
            )
        _vouched(store, stored.archive, archive)
        return index, archive

    def _read(self, store: Store, stored: SetVolume, index: bytes, archive: Stored) -> None:
        """Every byte: each block against its SHA-256 and gzip's checksum, the whole, and the entries in it."""
        indexed, again = tee(read_blocks(index))
        crc32 = 0

        def blocks(fetched: Iterator[Fetched]) -> Iterator[tuple[IndexedBlock, bytes]]:
            nonlocal crc32
            done = 0
            for each, (raw, its_crc32) in zip(indexed, fetched, strict=True):
                self._check()
                crc32 = isal_zlib.crc32_combine(crc32, its_crc32, each.block.length)
                yield each, raw
                done += len(raw)
                self._follow(Progress("verifying", stored.volume, done, stored.raw_bytes))

        try:
            blocks_of_it = (each.block for each in again)
            with proven_blocks(store, archive, blocks_of_it, threads=self._tools.threads) as fetched:
                audit(blocks(fetched))
        except ArchiveDamaged as error:
            if archive.key not in error.message:
                error.message = f"{store.location}/{archive.key}: {error.message}"
            raise
        if f"{crc32:08x}" != stored.archive.crc32:
            raise ArchiveDamaged(
                f"{store.location}/{archive.key} has the CRC32 {crc32:08x}, and {stored.archive.crc32} in the manifest",
            )

    # --- what went wrong ---------------------------------------------------------------------------------------------

    def _went_wrong(self, error: SidecarError, store: Store, volume: str | None = None) -> Reason:
        """Take note of damage, or of what could not be asked. Raises Interrupted and NotFound on."""
        if isinstance(error, Interrupted | NotFound):
            raise error
        if isinstance(error, DAMAGE):
            try:
                store.head(sets.manifest_key(self._set))
            except ObjectMissing:
                raise NotFound(
                    f"set {self._set} is in {store.location} no more: it was deleted, or that disk is not mounted",
                    hint="`list` shows the sets",
                    store=store.name,
                ) from error
            except SidecarError as away:
                return self._could_not(away, store.name, volume)
            reason = Reason(error.code, error.message, _ELSEWHERE, volume, store.name)
            self._damage.setdefault(store.name, []).append(reason)
            return reason
        return self._could_not(error, store.name, volume)

    def _could_not(self, error: SidecarError, store: str, volume: str | None = None) -> Reason:
        self._check()
        message = f"{volume or self._set} could not be verified in {store}: {error.message}"
        reason = Reason(error.code, message, error.hint, volume, store)
        self._unknown.append(reason)
        return reason

    def _check(self) -> None:
        """Raises Interrupted when told to stop."""
        if self._cancelled.is_set():
            raise Interrupted("the verification was told to stop", hint="the same command verifies; nothing was noted")


def _latest(found: Mapping[str, list[Store]]) -> str | None:
    """The set that `latest` means to a restore, too (`Catalogue.find`): the newest of all volumes.

    Without one, the newest of those that were asked for by name; never what a restore had made before it.
    """
    of_some = None
    for set_name in sorted(found, reverse=True):
        try:
            manifest = read_manifest(found[set_name][0], set_name)
        except SidecarError:
            return set_name  # whatever is wrong with it is for the verification to say
        if sets.PRE_RESTORE not in manifest.tags:
            if not manifest.named:
                return set_name
            of_some = of_some or set_name
    return of_some or max(found, default=None)


def _noted(marks: Marks, verdict: Verified) -> Marks:
    """A quick look that finds nothing wrong leaves what a full verification has said, good or bad."""
    known = marks.verified
    if verdict.how is How.QUICK and verdict.outcome is Outcome.GOOD and known and known.how is How.FULL:
        return marks
    return replace(marks, verified=verdict)


def _vouched(store: Store, described: StoredObject, found: Stored | None = None) -> None:
    """The object is there, has its size, and the checksum that the store vouches for, if it does.

    Raises ArchiveDamaged, StoreError.
    """
    found = found or store.head(described.key)
    kind, _, checksum = found.checksum.partition(":")
    if found.size != described.size:
        raise ArchiveDamaged(
            f"{store.location}/{described.key} has {found.size} bytes, and {described.size} in the manifest",
        )
    if kind == "crc32" and checksum != described.crc32:
        raise ArchiveDamaged(
            f"{store.location}/{described.key} has the CRC32 {checksum}, says the store, and {described.crc32} in the "
            "manifest",
        )
