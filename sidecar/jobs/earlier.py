"""The earlier archive whose blocks the next one may take over: the newest that all stores have, whole by all signs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sidecar import sets
from sidecar.archive.index import FingerprintedBlock
from sidecar.archive.reader import read_fingerprinted
from sidecar.errors import ArchiveDamaged, ObjectMissing, SetInvalid, SidecarError, StoreError
from sidecar.jobs.catalogue import documents_of_sets, read_document, read_manifest
from sidecar.jobs.download import proven_index
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

    def blocks(self) -> Iterator[FingerprintedBlock]:
        """Its blocks; hearsay until the iteration is over. Raises SetInvalid."""
        length = raw_length = 0
        for each in read_fingerprinted(self.index):
            length += each.block.length
            raw_length += each.block.raw_length
            yield each
        wanted = (self.volume.archive.size, self.volume.raw_bytes)
        if (length, raw_length) != wanted:
            raise SetInvalid(
                f"the index of {self.volume.volume} in set {self.set} tells of {length} bytes, {raw_length} unpacked, "
                f"and the manifest of {wanted[0]}, {wanted[1]} unpacked",
                hint=f"`verify {self.set}` says what is wrong with it",
            )

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
        self._names: list[str] | SidecarError | None = None
        self._manifests: dict[str, sets.Manifest] = {}

    def find(self, volume: str) -> Earlier | None:
        """The newest archive of a volume; None where there is none yet.

        Raises SidecarError where there is one that cannot be used: its store does not answer, or it is not what its
        manifest says.
        """
        for name in self._newest():
            manifest = self._manifest(name)
            for each in manifest.volumes:
                if each.volume == volume:
                    return self._described(manifest, each)
        return None

    def _described(self, manifest: sets.Manifest, volume: sets.SetVolume) -> Earlier:
        index = proven_index(next(iter(self._stores.values())), volume)
        stored = {store.name: store.head(volume.archive.key) for store in self._stores.values()}
        for store in self._stores.values():
            self._refuse_damaged(store, manifest.set)
            found = stored[store.name]
            vouched = found.checksum if found.checksum.startswith("crc32:") else f"crc32:{volume.archive.crc32}"
            if (found.size, vouched) != (volume.archive.size, f"crc32:{volume.archive.crc32}"):
                raise ArchiveDamaged(
                    f"{store.location}/{found.key} is not what was written ({found.size} bytes, {found.checksum})",
                    hint="`verify` says what is wrong with the older sets",
                )
        return Earlier(manifest.set, manifest.boot, volume, stored, index)

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
            try:
                common = set.intersection(*(set(documents_of_sets(store)) for store in self._stores.values()))
                self._names = sorted(common, reverse=True)[:_OLDEST]
            except StoreError as error:  # it is not asked for each volume anew, with all its patience
                self._names = error
        if isinstance(self._names, SidecarError):
            raise self._names
        return self._names

    def _manifest(self, name: str) -> sets.Manifest:
        if name not in self._manifests:
            self._manifests[name] = read_manifest(next(iter(self._stores.values())), name)  # the same in all of them
        return self._manifests[name]
