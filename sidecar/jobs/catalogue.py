"""Which sets there are, and what is in them: read from the manifests and indexes in the stores."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sidecar import sets
from sidecar.archive.index import IndexedFile, read_index
from sidecar.errors import NotFound, ObjectMissing, SidecarError, StoreError
from sidecar.plan import nearest
from sidecar.stores.port import MEBIBYTE, Store

# The tag of a set that a restore had made of what it replaced; its value is the set that was restored.
PRE_RESTORE = "pre-restore"

_CHUNK = MEBIBYTE


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The sets of all stores that answered. manifests: by set; holders: set -> names of the stores that have it.

    errors: store -> what it answered instead.
    """

    manifests: Mapping[str, sets.Manifest]
    holders: Mapping[str, tuple[str, ...]]
    errors: Mapping[str, SidecarError]

    def find(self, name: str, volumes: Sequence[str] = ()) -> sets.Manifest:
        """The set of that name; for `latest` the newest, that has the volumes, if one has.

        A set that was made before a restore, of what that replaced, is never the latest. Raises NotFound with the
        nearest names.
        """
        if name == "latest":
            newest = [each for _, each in sorted(self.manifests.items(), reverse=True) if PRE_RESTORE not in each.tags]
            having = [each for each in newest if {v.volume for v in each.volumes} >= set(volumes)]
            if found := having or newest:
                return found[0]
        if not self.manifests and not self.errors:
            raise NotFound(f"there is no set {name!r}, and none at all yet", hint="`run-now` makes one")
        if name not in self.manifests:
            raise NotFound(f"there is no set {name!r}", hint=nearest(name, self.manifests, "`list` shows the sets"))
        return self.manifests[name]


def read_catalogue(stores: Mapping[str, Store]) -> Catalogue:
    """Read every manifest of every store; one that fails is reported in `errors`."""
    manifests: dict[str, sets.Manifest] = {}
    holders: dict[str, tuple[str, ...]] = {}
    errors: dict[str, SidecarError] = {}
    for name, store in stores.items():
        try:
            for manifest in _manifests(store):
                manifests[manifest.set] = manifest
                holders[manifest.set] = (*holders.get(manifest.set, ()), name)
        except SidecarError as error:
            errors[name] = error
    return Catalogue(manifests, holders, errors)


def list_sets(stores: Mapping[str, Store], only: str | None = None) -> dict[str, Any]:
    """The object of `list --json`, newest set last; with `only`, that set alone (or `latest`).

    Raises NotFound, and a store's error when no store answered.
    """
    catalogue = answered(stores)
    chosen = [catalogue.find(only)] if only else [m for _, m in sorted(catalogue.manifests.items())]
    return {
        "sets": [
            {
                "set": manifest.set,
                "time": manifest.time,
                "outcome": manifest.outcome.value,
                "host": manifest.host,
                "stores": list(catalogue.holders[manifest.set]),
                "volumes": {
                    v.volume: {"archive_bytes": v.archive.size, "raw_bytes": v.raw_bytes, "files": v.files}
                    for v in manifest.volumes
                },
                "missing": {missing.volume: missing.why for missing in manifest.missing},
                "changed_files": {v.volume: list(v.changed_files) for v in manifest.volumes if v.changed_files},
                "tags": dict(manifest.tags),
                "keep": False,
                "verified": None,
                "drilled": None,
            }
            for manifest in chosen
        ],
        "errors": {
            name: {"code": error.code, "message": error.message, "hint": error.hint}
            for name, error in catalogue.errors.items()
        },
    }


def list_files(stores: Mapping[str, Store], set_name: str, volume: str, pattern: str | None) -> dict[str, Any]:
    """The entries of one archive whose path matches the glob, from its index.

    Raises NotFound for an unknown set or volume, StoreError, SetInvalid.
    """
    catalogue = answered(stores)
    manifest = catalogue.find(set_name)
    found = {v.volume: v for v in manifest.volumes}
    if volume not in found:
        hint = nearest(volume, found, f"`list {manifest.set}` shows its volumes")
        raise NotFound(f"set {manifest.set} has no volume {volume!r}", hint=hint, volume=volume)
    store = stores[catalogue.holders[manifest.set][0]]
    # By path, because some directories stand in the archive twice (docs/FORMAT.md): one line is what a user expects.
    files = {
        file.path: _file_json(file)
        for block in read_index(_lines(store, found[volume].index.key))
        for file in block.files
        if pattern is None or fnmatchcase(_text(file.path), pattern.removeprefix("./"))
    }
    return {"set": manifest.set, "volume": volume, "files": sorted(files.values(), key=lambda file: str(file["path"]))}


def read_document(store: Store, key: str) -> bytes:
    """A small object, whole. Raises StoreError."""
    with store.open(key) as source:
        return b"".join(iter(lambda: source.read(_CHUNK), b""))


def answered(stores: Mapping[str, Store]) -> Catalogue:
    """The catalogue of the stores that answer. Raises a store's error when none does."""
    catalogue = read_catalogue(stores)
    if len(catalogue.errors) == len(stores):
        raise next(iter(catalogue.errors.values()))
    return catalogue


def _manifests(store: Store) -> Iterator[sets.Manifest]:
    for stored in store.list("backup-"):
        set_name, _, document = stored.key.partition("/")
        if document != sets.MANIFEST or sets.set_time(set_name) is None:
            continue
        try:
            data = read_document(store, stored.key)
        except ObjectMissing:  # pruned since it was listed
            continue
        yield sets.Manifest.from_json(data, where=f"{store.location}/{stored.key}")


def _lines(store: Store, key: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(31)
    rest = b""
    with store.open(key) as source:
        while chunk := source.read(_CHUNK):
            try:
                rest += inflate.decompress(chunk)
            except zlib.error as exc:
                raise StoreError(f"{key} is damaged: {exc}", hint="verify the set", store=store.name) from exc
            *lines, rest = rest.split(b"\n")
            yield from lines


def _file_json(file: IndexedFile) -> dict[str, Any]:
    signature = file.signature
    row = {
        "path": _text(file.path),
        "type": file.kind.value,
        "size": signature.size,
        "mode": f"{signature.mode & 0o7777:04o}",
        "uid": signature.uid,
        "gid": signature.gid,
        "mtime": signature.mtime_ns / 1e9,
    }
    return row | {"link": _text(file.link)} if file.link else row


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace") or "."
