"""The earlier archive whose blocks the next one may take over: the newest that all stores have, whole by all signs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sidecar import sets
from sidecar.archive.index import IndexedBlock
from sidecar.archive.reader import read_blocks, read_lines
from sidecar.errors import ArchiveDamaged, ObjectMissing, SetInvalid, SidecarError, StoreError
from sidecar.jobs.catalogue import documents_of_sets, read_document
from sidecar.jobs.download import described_archive, proven_index
from sidecar.stores.port import Store, Stored

_OLDEST = 10  # sets that are looked through for a volume; what is in none of them has long been something else


@dataclass(frozen=True, slots=True)
class Earlier:
    """An archive of an earlier set. boot: of the host, then; stored: the object in each store; index: all of it."""

    set: str
    boot: str
    volume: sets.SetVolume
    stored: Mapping[str, Stored]
    index: bytes

    def blocks(self) -> Iterator[tuple[bytes, IndexedBlock]]:
        """Its blocks, each with its line. Raises SetInvalid."""
        return read_lines(self.index)

    def is_due(self, now: datetime, every: timedelta, boot: str) -> bool:
        """Whether all of the volume has to be read again, whatever its files look like.

        It was read `every` or longer ago, or nobody knows when (the clock may have jumped); or the host was booted
        since: a power cut takes back time stamps that were not on the disk yet, and may leave the data that came with
        them (fdatasync, O_DIRECT; with lazytime for a day). Then a file looks as it did, and is another.
        """
        if self.boot != boot or not boot:
            return True
        read = sets.moment(self.volume.read_at)
        return read is None or not timedelta(0) <= now - read < every


class EarlierSets:
    """The sets that all of these stores have; each is looked at once."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = stores
        self._names: list[str] | None = None
        self._manifests: dict[str, sets.Manifest] = {}

    def find(self, volume: str) -> Earlier | None:
        """The newest archive of a volume; None where there is none yet.

        Raises SidecarError where there is one that cannot be used: its store does not answer, or it is not what its
        index and its manifest say.
        """
        for name in self._newest():
            for each in self._manifest(name).volumes:
                if each.volume == volume:
                    return self._described(name, each)
        return None

    def _described(self, name: str, volume: sets.SetVolume) -> Earlier:
        stored: dict[str, Stored] = {}
        index = b""
        for store_name, store in self._stores.items():
            self._refuse_damaged(store, name)
            index = proven_index(store, volume)
            found = described_archive(store, volume, (each.block for each in read_blocks(index)))
            if found.checksum.startswith("crc32:") and found.checksum != f"crc32:{volume.archive.crc32}":
                raise ArchiveDamaged(
                    f"{store.location}/{found.key} is not what was written: it has {found.checksum}",
                    hint="`verify` says what is wrong with the older sets",
                )
            stored[store_name] = found
        return Earlier(name, self._manifest(name).boot, volume, stored, index)

    def _refuse_damaged(self, store: Store, name: str) -> None:
        key = sets.marks_key(name)
        try:
            marks = sets.Marks.from_json(read_document(store, key), where=f"{store.location}/{key}")
        except ObjectMissing:
            return
        if marks.damaged:
            raise ArchiveDamaged(f"{store.location}/{name} is known to be damaged: {marks.damaged}")

    def _newest(self) -> list[str]:
        if self._names is None:
            common = set.intersection(*(set(documents_of_sets(store)) for store in self._stores.values()))
            self._names = sorted(common, reverse=True)[:_OLDEST]
        return self._names

    def _manifest(self, name: str) -> sets.Manifest:
        if name not in self._manifests:
            key = sets.manifest_key(name)
            error: SidecarError | None = None
            for store in self._stores.values():
                try:
                    document = read_document(store, key)
                    self._manifests[name] = sets.Manifest.from_json(document, where=f"{store.location}/{key}")
                    break
                except (SetInvalid, StoreError) as caught:
                    error = caught
            else:
                assert error is not None
                raise error
        return self._manifests[name]
