"""One volume of a run: its pool of blocks, its copies in the spool, its uploads, and the steps that are its alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from isal import isal_zlib

from sidecar import sets
from sidecar.archive import capture as walks
from sidecar.archive.capture import Capture
from sidecar.archive.copies import Copies
from sidecar.archive.entry import Fingerprint
from sidecar.archive.packer import Packer
from sidecar.archive.pool import Chain, Part, Pool, Stretch
from sidecar.archive.spool import SpoolSpace, with_growth
from sidecar.archive.unpack import is_unsettled
from sidecar.archive.writer import ArchiveSummary, write_archive
from sidecar.errors import SpoolFull, VolumeUnavailable, VolumeUnreadable
from sidecar.jobs.consignment import Consignment, Parcel
from sidecar.jobs.earlier import Earlier
from sidecar.plan import PlannedVolume
from sidecar.stores.parts import part_target, strictest
from sidecar.stores.port import MEBIBYTE, Capabilities

# Bytes copied inside the store at once: more would have to be read again as soon as one file of them changes.
_COPIED_AT_ONCE = 32 * MEBIBYTE
# Seconds after which somebody wants to know how much of a live pass is left, and whether what is hot finds room; and
# the share of all part numbers after which the next ones have to be larger. To look costs a walk over all names, a
# tenth of a short run.
_LONG = 5.0
_MANY = 1 / 50
# Of an upload's part numbers, how many may be copies of an earlier archive that has come apart: an unbroken one needs
# three quarters (stores/parts.py).
_COPIES = 7 / 8
# Records and padding that most entries need at most beside their data: header, name, attributes, sparse map.
_LARGE_ENTRY = 2048


@dataclass(frozen=True, slots=True)
class Compression:
    """level: ISA-L's; threads: compressors."""

    level: int
    threads: int


@dataclass(frozen=True, slots=True)
class Archived:
    """One volume's archive and index in the stores. Sizes in bytes.

    bytes_read: data read from the volume; bytes_reused: of the archive, copied inside the stores; bytes_cloned: of the
    data, cloned inside the freeze. earlier: whose blocks it has taken over. differing: paths of files that the earlier
    index has otherwise under the same signature.
    """

    captured: Capture
    summary: ArchiveSummary
    index: sets.StoredObject
    bytes_read: int
    bytes_reused: int
    bytes_cloned: int
    earlier: Earlier | None
    differing: tuple[bytes, ...]


class VolumeBackup:
    """The steps are called in the order in which they stand here; leaving `undo` gives back what they took.

    consignments: to all stores of the run that are alive. check: raises to stop. All steps raise VolumeUnavailable,
    VolumeUnreadable, SpoolFull, ReuseFailed, and what check raises.

    size: bytes of the volume's data, as far as known; 0 while nobody has looked.
    """

    def __init__(
        self,
        planned: PlannedVolume,
        set_name: str,
        consignments: Sequence[Consignment],
        space: SpoolSpace,
        compression: Compression,
        undo: ExitStack,
        check: Callable[[], None],
    ) -> None:
        self.planned = planned
        self.size = 0
        self._expected = 0
        self._looked = False
        self._name = planned.volume.name
        self._set_name = set_name
        self._consignments = consignments
        self._space = space
        self._compression = compression
        self._undo = undo
        self._check = check
        self._copies = Copies(undo.enter_context(space.new(self._name)))
        self._parcels: list[Parcel] = []
        self._pool: Pool | None = None
        self._earlier: Earlier | None = None
        self._recorded: dict[Fingerprint, int] = {}
        self._packed = 0
        self._differing: list[bytes] = []

    @property
    def written(self) -> int:
        """Bytes that the last walk has put into the spool."""
        return self._copies.written

    @property
    def clones(self) -> bool:
        """Whether the last walk has cloned anything, and so the freeze will."""
        return self._copies.cloned > 0

    @property
    def can_reuse(self) -> bool:
        """Whether a file of this volume may count as unchanged without being read; known after `prepare`."""
        return self._copies.synced_ns is not None

    def sync(self, now_ns: int) -> None:
        """Write out what its file system holds back, and note that: what is read from now on may count as settled."""
        walks.sync(self.planned.path, self._copies, now_ns)

    def prepare(self) -> None:
        """Begin the uploads; reserve room where all of the volume has to be copied."""
        _refuse_unsettled(self.planned)
        if not self.can_reuse:
            self._measure()
        key = sets.archive_key(self._set_name, self._name)
        self._parcels = [each.begin(key) for each in self._consignments]

    def take_over(self, earlier: Earlier | None, *, is_full: bool) -> None:
        """Let `pack` have the blocks of the earlier archive. is_full: only to compare with it what is read.

        Raises SetInvalid for an index that is not what it seemed to be: then nothing is taken over, and another may be.
        """
        if self._copies.synced_ns is None:
            return
        if self._pool is None:
            self._pool = Pool(self._undo.enter_context(self._space.new(self._name, ".pool")))
        if earlier and is_full:
            self._recorded = _recorded(earlier)
        elif earlier:
            self._pool.load(earlier.blocks())
            self._earlier = earlier
        if earlier and not self._looked:
            self.size = earlier.volume.raw_bytes
            self._expected = earlier.volume.archive.size

    def look_ahead(self) -> None:
        """Learn how much there is, and reserve room for what of it is hot. Raises SpoolFull with all that is needed.

        A volume that cannot be read says so in its own time.
        """
        if not self._looked:
            with suppress(VolumeUnavailable, VolumeUnreadable):
                self._measure()

    def pack(self, read: Callable[[int, int], None], following: Sequence[VolumeBackup] = ()) -> None:
        """The live pass: what holds still goes into blocks in the stores, what is hot into the spool.

        Blocks of the earlier archive are copied inside the stores; other settled files are packed and sent. Does
        nothing where nothing can be settled. read: told bytes as they are read, and of how many (0: not known yet).
        following: what comes after it; if this takes long, it is known soon whether there is room for those, too.
        """
        synced_ns = self._copies.synced_ns
        if synced_ns is None:
            return
        assert self._pool is not None
        if self._earlier:
            for each, parcel in zip(self._consignments, self._parcels, strict=True):
                if each.alive:
                    parcel.reuse(self._earlier.stored[each.store.name])
        limits = strictest(each.store.capabilities for each in self._consignments)
        threads = self._compression.threads
        with ThreadPoolExecutor(threads, thread_name_prefix="compress") as executor:
            packer = Packer(
                self._pool,
                self._send,
                least=max(limits.least_part, limits.least_copy),
                target=lambda number: part_target(number, self._expected, limits),
                synced_ns=synced_ns,
                level=self._compression.level,
                executor=executor,
                threads=threads,
                recorded=self._recorded,
                differs=self._differing.append,
            )
            choose = partial(self._copy_earlier, limits)

            def tell(length: int) -> None:
                read(length, self.size)

            check = self._looking_ahead([self, *following], int(limits.most_parts * _MANY))
            try:
                walks.pack(self.planned.path, self._copies, self._pool, packer, check, tell, choose)
            except SpoolFull:
                self.look_ahead()  # raises it with all that is needed
                raise
            finally:
                packer.abandon()
        self._packed = packer.bytes_read
        spool = self._copies.spool
        spool.reserve(with_growth(spool.end))  # by now it is known what is hot
        self.size = self._pool.raw_length + spool.end

    def round(self, read: Callable[[int], None]) -> None:
        """Bring what is copied up to date once more, and copy what is in no block any more."""
        walks.precopy(self.planned.path, self._copies, self._check, read, self._pool)

    def make_room(self) -> None:
        """Room for what the freeze will find: as much as the last round at most."""
        self._copies.spool.reserve(self._copies.spool.end + self._copies.written)

    def capture(self, check: Callable[[], None], read: Callable[[int], None]) -> Capture:
        """The volume as it is while everything stands still."""
        return walks.capture(self.planned.path, self._copies, check, read, self._pool)

    def archive(self, captured: Capture, packed: Callable[[int], None]) -> Archived:
        """Pack, compress and upload what is in no block yet; complete the archive; then its index."""
        index_path = self._space.path(self._name, ".index")
        pooled = self._pool.length if self._pool else 0
        most = captured.bytes_read + _LARGE_ENTRY * (len(captured.files) + len(captured.others))
        for parcel in self._parcels:
            parcel.expect(pooled + most)
        summary = write_archive(
            captured,
            self._deliver,
            index_path,
            volume=self._name,
            set_name=self._set_name,
            level=self._compression.level,
            threads=self._compression.threads,
            check=self._check,
            packed=packed,
            pool=self._pool,
            keep=self._keep,
        )
        for parcel in self._parcels:
            parcel.finish(summary.size, summary.crc32)
        index = _described(sets.index_key(self._set_name, self._name), index_path)
        for consignment in self._consignments:
            consignment.send_file(index.key, index_path)
        index_path.unlink()
        self._check()
        return Archived(
            captured,
            summary,
            index,
            self._packed + captured.bytes_read,
            max(parcel.bytes_copied for parcel in self._parcels) + (self._pool.reused() if self._pool else 0),
            self._copies.cloned,
            self._earlier,
            tuple(self._differing),
        )

    def _measure(self) -> None:
        files, self.size, hot = walks.measure(self.planned.path, self._copies.synced_ns)
        self._looked = True
        self._expected = self.size + _LARGE_ENTRY * files
        self._copies.spool.reserve(with_growth(hot))

    def _looking_ahead(self, volumes: Sequence[VolumeBackup], many: int) -> Callable[[], None]:
        """`check`, which has the volumes look ahead once that has become worth it. many: parts."""
        pool = self._pool
        assert pool is not None
        due = time.monotonic() + _LONG
        looked = False

        def check() -> None:
            nonlocal looked
            self._check()
            if not looked and (time.monotonic() >= due or pool.parts >= many):
                looked = True
                for volume in volumes:
                    volume.look_ahead()

        return check

    def _copy_earlier(self, limits: Capabilities) -> list[Chain]:
        """Have the stores copy what stands of the earlier archive; what they cannot, because it is too little."""
        assert self._pool is not None
        target = max(_COPIED_AT_ONCE, part_target(1, self._expected, limits))
        most = int(limits.most_parts * _COPIES)
        fallen = self._pool.choose(max(limits.least_part, limits.least_copy), target, most)
        for part in [part for stretch in self._pool.stretches for part in stretch.parts if part.offset is not None]:
            self._send(part)
        return fallen

    def _send(self, part: Part, data: bytes = b"") -> None:
        """data: of a part that the earlier archive has not got."""
        assert self._pool is not None
        self._check()
        for parcel in self._parcels:
            if part.offset is None:
                parcel.put_part(part, data)
            else:
                parcel.copy_part(part)
        if part.offset is None and any(parcel.defers for parcel in self._parcels):
            self._pool.keep_bytes(part, data)

    def _keep(self, stretch: Stretch) -> None:
        assert self._pool is not None
        self._check()
        for part in stretch.parts:
            for parcel in self._parcels:
                parcel.keep(part, partial(self._pool.bytes_of, part))
        if stretch.loose:
            self._deliver(stretch.loose)

    def _deliver(self, block: bytes, offset: int | None = None) -> None:
        for parcel in self._parcels:
            parcel.deliver(block, offset)


def _recorded(earlier: Earlier) -> dict[Fingerprint, int]:
    """CRC32 of the data of every file that was settled when the earlier archive was made."""
    return {
        number: crc32
        for each in earlier.blocks()
        for number, crc32 in zip(each.fingerprints or (), each.data_crc32 or (), strict=True)
    }


def _refuse_unsettled(planned: PlannedVolume) -> None:
    """Raises VolumeUnavailable for a volume that holds what a restore has left: half of it may be of another time."""
    if is_unsettled(planned.path):
        name = planned.volume.name
        raise VolumeUnavailable(
            f"a restore of volume {name} was cut off, and has not been settled",
            hint=f"restart the sidecar, or restore it again: restore latest {name}",
            volume=name,
        )


def _described(key: str, path: Path) -> sets.StoredObject:
    crc = size = 0
    with path.open("rb") as source:
        while chunk := source.read(MEBIBYTE):
            crc = isal_zlib.crc32(chunk, crc)
            size += len(chunk)
    return sets.StoredObject(key, size, f"{crc:08x}")
