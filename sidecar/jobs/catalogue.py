"""Which sets there are, and what is in them: read from the manifests and indexes in the stores."""

from __future__ import annotations

import difflib
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from sidecar import sets
from sidecar.archive.index import IndexedFile
from sidecar.archive.reader import read_blocks
from sidecar.errors import NoSets, NotFound, ObjectMissing, SetInvalid, SidecarError, StoreError
from sidecar.plan import nearest
from sidecar.report import Outcome
from sidecar.stores.port import MEBIBYTE, Store

MAKE_ONE = "`run-now` makes one"

_WORST_FIRST = list(reversed(Outcome))
_CHUNK = MEBIBYTE
AT_ONCE = 8  # documents
_HOSTS_NAMED = 20
# Without a prefix a bucket may hold far more than sets, and somebody waits; `scan` looks further.
_KEYS_LOOKED_AT = 200_000


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The sets of all stores that answered. manifests: by set; holders: set -> names of the stores that have it.

    errors: store -> what it answered instead. damaged: sets whose manifest no store can give -> why. marks: set ->
    store -> what is noted there. unread: what could not be read of manifests and marks, one sentence each.
    """

    manifests: Mapping[str, sets.Manifest]
    holders: Mapping[str, tuple[str, ...]]
    errors: Mapping[str, SidecarError]
    damaged: Mapping[str, SetInvalid] = field(default_factory=dict)
    marks: Mapping[str, Mapping[str, sets.Marks]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def find(self, name: str, volumes: Sequence[str] = ()) -> sets.Manifest:
        """The set of that name; for `latest` the newest that has the volumes, if one has; without any, of all volumes.

        A set that was made before a restore, of what that replaced, is never the latest, nor is one whose manifest is
        damaged while there are others. Raises NotFound with the nearest names, NoSets, SetInvalid.
        """
        if name == "latest":
            made = [each for _, each in sorted(self.manifests.items(), reverse=True)]
            newest = [each for each in made if sets.PRE_RESTORE not in each.tags]
            of_all = [each for each in newest if not each.named]
            having = [each for each in newest if {v.volume for v in each.volumes} >= set(volumes)]
            if found := (having if volumes else of_all) or newest:
                return found[0]
        if self.damaged and (name in self.damaged or (name == "latest" and not self.manifests)):
            raise self.damaged.get(name) or self.damaged[max(self.damaged)]
        if not self.manifests and not self.errors:
            raise NoSets(f"there is no set {name!r}, and none at all yet", hint=MAKE_ONE)
        if name not in self.manifests:
            hint = nearest(name, self.manifests, "`list` shows the sets")
            if any(name == each.volume for manifest in self.manifests.values() for each in manifest.volumes):
                hint = f"that is a volume, and a set is named before it, as in `restore latest {shlex.quote(name)}`"
            raise NotFound(f"there is no set {name!r}", hint=hint)
        return self.manifests[name]

    def doubts(self, name: str) -> tuple[str, ...]:
        """Of `latest`: a sentence for each store that may have a newer one, and did not answer."""
        return tuple(
            f"store {store} did not answer, and may have a newer set: {error.message}"
            for store, error in self.errors.items()
            if name == "latest"
        )

    def keep(self, set_name: str) -> bool:
        """Whether one of the stores is to keep the set."""
        return any(marks.keep for marks in self.marks.get(set_name, {}).values())

    def damage(self, set_name: str) -> tuple[str, ...]:
        """A sentence for each copy of the set that is known to be damaged."""
        return tuple(
            f"the copy of {set_name} in {store} is known to be damaged: {marks.damaged}"
            for store, marks in self.marks.get(set_name, {}).items()
            if marks.damaged
        )

    def failed_drill(self, set_name: str) -> tuple[str, ...]:
        """A sentence, if a volume of the set has failed its last drill."""
        drilled = self.drilled(set_name)
        failed = drilled is not None and drilled["outcome"] == Outcome.FAILED
        return (f"{set_name} failed its last drill: {drilled['why']}",) if drilled and failed else ()

    def drilled(self, set_name: str) -> dict[str, Any] | None:
        """The newest of the worst that drills found, and the `stores` where that is noted; None for never."""
        found = {store: marks.drilled for store, marks in self.marks.get(set_name, {}).items()}
        known = {store: each for store, each in found.items() if each}
        if not known:
            return None
        worst = min(_WORST_FIRST.index(each.outcome) for each in known.values())
        told = {store: each for store, each in known.items() if _WORST_FIRST.index(each.outcome) == worst}
        newest = max(told.values(), key=lambda each: each.time)
        return {
            "time": newest.time,
            "outcome": newest.outcome.value,
            "why": newest.why,
            "stores": list(told),
            "volumes": {name: each.outcome.value for name, each in newest.volumes.items()},
        }

    def verified(self, set_name: str) -> dict[str, Any] | None:
        """The newest of the worst that verifications found, and the `stores` of which that was said; None for never."""
        found = {store: marks.verified for store, marks in self.marks.get(set_name, {}).items() if marks.verified}
        failed = {store: each for store, each in found.items() if each.outcome is Outcome.FAILED}
        told = failed or found
        if not told:
            return None
        newest = max(told.values(), key=lambda each: each.time)
        return {
            "time": newest.time,
            "how": newest.how.value,
            "outcome": newest.outcome.value,
            "why": newest.why,
            "stores": list(told),
        }


def read_catalogue(stores: Mapping[str, Store]) -> Catalogue:
    """Read every manifest of every store, several at once; a store that fails is reported in `errors`."""
    manifests: dict[str, sets.Manifest] = {}
    holders: dict[str, tuple[str, ...]] = {}
    errors: dict[str, SidecarError] = {}
    damaged: dict[str, SetInvalid] = {}
    marked: list[tuple[str, str]] = []
    for name, store in stores.items():
        try:
            documents = documents_of_sets(store)
            for set_name, manifest in _manifests(store, documents):
                if isinstance(manifest, SetInvalid):
                    damaged[set_name] = manifest
                    continue
                manifests[set_name] = manifest
                holders[set_name] = (*holders.get(set_name, ()), name)
                if sets.MARKS in documents.get(set_name, ()):
                    marked.append((set_name, name))
        except SidecarError as error:
            errors[name] = error
    marks, unread = _marks(stores, marked)
    unread = (*(f"{each.message}; {each.hint}" for each in damaged.values()), *unread)
    nowhere = {set_name: error for set_name, error in damaged.items() if set_name not in manifests}
    return Catalogue(manifests, holders, errors, nowhere, marks, unread)


def list_sets(stores: Mapping[str, Store], only: str | None = None, *, backup_host: str = "") -> dict[str, Any]:
    """The object of `list --json`, newest set last; with `only`, that set alone (or `latest`).

    backup_host: of the host whose sets the stores have. Raises NotFound, and a store's error when no store answered.
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
                "backup_host": backup_host,
                "stores": list(catalogue.holders[manifest.set]),
                "volumes": {
                    v.volume: {"archive_bytes": v.archive.size, "raw_bytes": v.raw_bytes, "files": v.files}
                    for v in manifest.volumes
                },
                "missing": {missing.volume: missing.why for missing in manifest.missing},
                "changed_files": {v.volume: list(v.changed_files) for v in manifest.volumes if v.changed_files},
                "tags": dict(manifest.tags),
                "keep": catalogue.keep(manifest.set),
                "verified": catalogue.verified(manifest.set),
                "drilled": catalogue.drilled(manifest.set),
            }
            for manifest in chosen
        ],
        "warnings": list(catalogue.unread),
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
    manifest = catalogue.find(set_name, [volume])
    found = {v.volume: v for v in manifest.volumes}
    if volume not in found:
        hint = nearest(volume, found, f"`list {manifest.set}` shows its volumes")
        raise NotFound(f"set {manifest.set} has no volume {volume!r}", hint=hint, volume=volume)
    store = stores[catalogue.holders[manifest.set][0]]
    # By path, because some directories stand in the archive twice (docs/FORMAT.md): one line is what a user expects.
    files = {
        file.path: _file_json(file)
        for block in read_blocks(read_document(store, found[volume].index.key))
        for file in block.files
        if pattern is None or fnmatchcase(_text(file.path), pattern.removeprefix("./"))
    }
    return {"set": manifest.set, "volume": volume, "files": sorted(files.values(), key=lambda file: str(file["path"]))}


def read_document(store: Store, key: str) -> bytes:
    """A small object, whole. Raises StoreError."""
    with store.open(key) as source:
        return b"".join(iter(lambda: source.read(_CHUNK), b""))


def read_manifest(store: Store, set_name: str) -> sets.Manifest:
    """A set's manifest, which speaks of that set alone, and of each volume once. Raises SetInvalid, StoreError."""
    key = sets.manifest_key(set_name)
    manifest = sets.Manifest.from_json(read_document(store, key), where=f"{store.location}/{key}")
    named = {each.key for volume in manifest.volumes for each in (volume.archive, volume.index)}
    if manifest.set != set_name or any(not key.startswith(f"{set_name}/") for key in named):
        raise SetInvalid(f"{store.location}/{key} is another set's", hint="do not trust this set")
    if len({volume.volume for volume in manifest.volumes}) < len(manifest.volumes):
        raise SetInvalid(f"{store.location}/{key} has a volume twice", hint="do not trust this set")
    return manifest


def answered(stores: Mapping[str, Store]) -> Catalogue:
    """The catalogue of the stores that answer. Raises a store's error when none does."""
    catalogue = read_catalogue(stores)
    if len(catalogue.errors) == len(stores):
        raise next(iter(catalogue.errors.values()))
    return catalogue


def hosts_with_sets(listings: Iterable[Callable[[], Iterable[str]]]) -> list[str]:
    """The BACKUP_HOST of each host that has a set, empty for those without one.

    listings: of stores, the keys below what all hosts have in common. One that fails has none to tell.
    """
    hosts = set()
    for listing in listings:
        with suppress(StoreError):
            for key in islice(listing(), _KEYS_LOOKED_AT):
                path, _, document = key.rpartition("/")
                host, _, set_name = path.rpartition("/")
                if document == sets.MANIFEST and sets.set_time(set_name) is not None:
                    hosts.add(host)
    return sorted(hosts)


def none_of_host(asked: str | None, hosts: Sequence[str]) -> NoSets:
    """What one is told who finds no set. asked: the host that was named, None for our own; hosts: all that have sets.

    A new set is no way to what one has lost, so nobody is told to make one who may have asked in the wrong place.
    """
    if asked is None and not hosts:
        return NoSets("there is no set", hint=MAKE_ONE)
    whose = "of this host" if asked is None else f"for --host {shlex.quote(asked)}"
    nearest_first = difflib.get_close_matches(asked or "", hosts, n=_HOSTS_NAMED, cutoff=0.0)
    named = ", ".join(f"--host {shlex.quote(each)}" for each in nearest_first)
    more = f" and {len(hosts) - _HOSTS_NAMED} more" if len(hosts) > _HOSTS_NAMED else ""
    hint = f"there are sets for {named}{more}" if hosts else "nor for any other: does that host have our BACKUP_PREFIX?"
    return NoSets(f"there is no set {whose} here", hint=hint)


def documents_of_sets(store: Store) -> Mapping[str, frozenset[str]]:
    """Set -> which of `manifest.json` and `marks.json` it has, in the order of sets; without the one it is none.

    Raises StoreError.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for stored in store.list("backup-"):
        set_name, _, document = stored.key.partition("/")
        if document in (sets.MANIFEST, sets.MARKS) and sets.set_time(set_name) is not None:
            found[set_name].add(document)
    return {name: frozenset(documents) for name, documents in found.items() if sets.MANIFEST in documents}


def _manifests(store: Store, set_names: Iterable[str]) -> Iterator[tuple[str, sets.Manifest | SetInvalid]]:
    """Set -> its manifest, or what is wrong with it: one damaged document must not hide all other sets."""

    def read(set_name: str) -> sets.Manifest | SetInvalid | None:
        try:
            return read_manifest(store, set_name)
        except ObjectMissing:  # pruned since it was listed
            return None
        except SetInvalid as error:
            return error

    names = list(set_names)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="manifests") as pool:
        for set_name, found in zip(names, pool.map(read, names), strict=True):
            if found is not None:
                yield set_name, found


def _marks(
    stores: Mapping[str, Store], marked: Sequence[tuple[str, str]]
) -> tuple[dict[str, dict[str, sets.Marks]], tuple[str, ...]]:
    """Of (set, store): what is noted there, and sentences for what cannot be read. Several requests at once."""

    def read(each: tuple[str, str]) -> sets.Marks | str | None:
        set_name, name = each
        store, key = stores[name], sets.marks_key(set_name)
        try:
            return sets.Marks.from_json(read_document(store, key), where=f"{store.location}/{key}")
        except ObjectMissing:  # as above
            return None
        except SidecarError as error:
            told = f"whether {set_name} is kept or was verified is not known in {name}: {error.message}"
            return "; ".join(filter(None, [told, error.hint]))

    marks: dict[str, dict[str, sets.Marks]] = defaultdict(dict)
    unread = []
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="marks") as pool:
        for (set_name, name), found in zip(marked, pool.map(read, marked), strict=True):
            if isinstance(found, str):
                unread.append(found)
            elif found:
                marks[set_name][name] = found
    return marks, tuple(unread)


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
