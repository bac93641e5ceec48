"""Verification: each kind of damage is found, and only damage; what it noted holds until something better is known."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sidecar import sets
from sidecar.archive.index import Block
from sidecar.errors import Interrupted, NotFound, OwnedByAnotherHost, StoreUnreachable
from sidecar.events import EVENTS, Progress
from sidecar.jobs.catalogue import list_sets, read_catalogue, read_document
from sidecar.jobs.download import proven_blocks
from sidecar.jobs.marks import keep, mark
from sidecar.jobs.ownership import Claimant
from sidecar.jobs.verify import VerifyTools, verify
from sidecar.report import Outcome, VerifyReport
from sidecar.sets import How, Marks, Verified
from sidecar.stores.local import LocalStore
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Store, Stored, StoredSource
from tests.unit.shop import Shop

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SET, NEWER = "backup-20260102_030400", "backup-20260102_030401"
ARCHIVE, INDEX = f"{SET}/db.tar.gz", f"{SET}/db.index.jsonl.gz"
FULL, QUICK = How.FULL, How.QUICK


class Silent(MemoryStore):
    """A store that vouches for no content, as a directory does."""

    def head(self, key: str) -> Stored:
        return replace(super().head(key), checksum="none")


class Bucket:
    """A store with two sets of the same volumes, what is done to it, and what verifications said."""

    def __init__(self, objects: dict[str, bytes], store: Store | None = None) -> None:
        self.store = store or Silent()
        self.stores: dict[str, Store] = {self.store.name: self.store}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.progress: list[Progress] = []
        self.cancelled = threading.Event()
        self.us = Claimant(json.loads(objects[sets.OWNER])["engine"], "shop-host", "backup-state", lambda _: None)
        for key, data in objects.items():
            self.store.put(key, data)

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        assert name in EVENTS
        json.dumps(fields)
        self.events.append((name, fields))

    def verify(
        self, how: How = FULL, set_name: str = SET, follow: Callable[[Progress], None] | None = None
    ) -> VerifyReport:
        tools = VerifyTools(self.stores, self.us, threads=2, emit=self.emit, now=lambda: NOON)
        return verify(set_name, how, tools, follow or self.progress.append, self.cancelled)

    def read(self, key: str) -> bytes:
        return read_document(self.store, key)

    def change(self, key: str, how: Callable[[bytes], bytes]) -> None:
        self.store.put(key, how(self.read(key)))

    def flip(self, key: str, position: int) -> None:
        def flipped(data: bytes) -> bytes:
            whole = bytearray(data)
            whole[position] ^= 1
            return bytes(whole)

        self.change(key, flipped)

    def in_manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change what the manifest says of `db`."""
        document = json.loads(self.read(f"{SET}/manifest.json"))
        change(next(each for each in document["volumes"] if each["volume"] == "db"))
        self.store.put(f"{SET}/manifest.json", json.dumps(document).encode())

    def lie(self, change: Callable[[list[dict[str, Any]]], object]) -> None:
        """Change the lines of the index of `db`, and have the manifest vouch for it: what a faulty writer would do."""
        lines = [json.loads(line) for line in gzip.decompress(self.read(INDEX)).splitlines()]
        change(lines)
        data = gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self.store.put(INDEX, data)
        self.in_manifest(lambda volume: volume["index"].update(size=len(data), crc32=f"{zlib.crc32(data):08x}"))

    def marks(self, store: str | None = None) -> Marks | None:
        return read_catalogue(self.stores).marks.get(SET, {}).get(store or self.store.name)

    def listed(self, set_name: str = SET) -> dict[str, Any]:
        (found,) = list_sets(self.stores, set_name)["sets"]
        return found


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What two runs leave in a store."""
    shop = Shop(tmp_path_factory.mktemp("shop"))
    for number in range(3):
        (shop.data("db") / f"large{number}").write_bytes(Random(number).randbytes(6 << 20))
    (shop.data("db") / ("name" * 40)).write_bytes(b"a name that the header cannot hold")
    (shop.data("db") / "link").symlink_to("large0")
    with (shop.data("db") / "holes").open("wb") as file:
        file.truncate(1 << 20)
    assert shop.run().set == SET
    (shop.data("db") / "large1").write_bytes(Random(9).randbytes(6 << 20))  # the archive keeps its size
    shop.wait(1)
    assert shop.run().set == NEWER
    return {stored.key: read_document(shop.stores["memory"], stored.key) for stored in shop.stores["memory"].list()}


@pytest.fixture
def bucket(objects: dict[str, bytes]) -> Bucket:
    return Bucket(objects)


# --- whole -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("kind", ["silent", "memory", "local"])
def test_a_set_that_is_what_was_written_is_good(objects: dict[str, bytes], how: How, kind: str, tmp_path: Path) -> None:
    store = {"silent": Silent, "memory": MemoryStore, "local": lambda: LocalStore(str(tmp_path))}[kind]()
    bucket = Bucket(objects, store)
    report = bucket.verify(how)
    assert (report.outcome, report.reasons, report.damaged, report.warnings) == (Outcome.GOOD, (), {}, ())
    assert [(each.volume, each.outcome) for each in report.volumes] == [("db", Outcome.GOOD), ("files", Outcome.GOOD)]
    assert bucket.marks() == Marks(False, Verified("2026-01-02T12:00:00Z", how, Outcome.GOOD), {"drilled": None})
    assert not report.newest
    ((event, fields),) = bucket.events
    assert (event, fields["outcome"], fields["set"]) == ("verify_finished", "good", SET)


def test_latest_is_the_newest_set(bucket: Bucket) -> None:
    report = bucket.verify(set_name="latest")
    assert (report.set, report.newest, report.outcome) == (NEWER, True, Outcome.GOOD)


def test_latest_is_not_what_was_asked_for_by_name_while_there_is_a_set_of_all_volumes(bucket: Bucket) -> None:
    """As `restore latest` has it: else one `run-now VOLUME` would hide that the set of the night is damaged."""
    for key, wanted in ((NEWER, SET), (SET, NEWER)):
        document = json.loads(bucket.read(f"{key}/manifest.json"))
        bucket.store.put(f"{key}/manifest.json", json.dumps(document | {"named": ["db"]}).encode())
        report = bucket.verify(QUICK, set_name="latest")
        assert (report.set, report.newest) == (wanted, True)


def test_latest_is_not_what_a_restore_had_backed_up_before_it(bucket: Bucket) -> None:
    document = json.loads(bucket.read(f"{NEWER}/manifest.json"))
    bucket.store.put(f"{NEWER}/manifest.json", json.dumps(document | {"tags": {"pre-restore": SET}}).encode())
    report = bucket.verify(QUICK, set_name="latest")
    assert (report.set, report.newest) == (SET, True)
    assert not bucket.verify(QUICK, set_name=NEWER).newest


def test_a_full_verification_reads_every_byte_and_a_quick_one_no_archive(objects: dict[str, bytes]) -> None:
    opened: list[tuple[str, int]] = []

    class Counting(Silent):
        def open(self, key: str, **options: Any) -> AbstractContextManager[StoredSource]:
            opened.append((key, options.get("length") or 0))
            return super().open(key, **options)

    bucket = Bucket(objects, Counting())
    bucket.verify(QUICK)
    assert not [key for key, _ in opened if key.endswith(".tar.gz")]
    report = bucket.verify(FULL)
    assert sum(length for key, length in opened if key == ARCHIVE) == len(objects[ARCHIVE])
    (db, _) = report.volumes
    assert db.bytes_read == len(objects[ARCHIVE]) + len(objects[INDEX])
    steps = [each for each in bucket.progress if each.volume == "db" and each.total_bytes]
    assert len(steps) >= 3
    assert steps[-1].done_bytes == steps[-1].total_bytes


def test_blocks_are_fetched_several_at_once_and_never_far_ahead_of_who_reads_them() -> None:
    raws = [Random(number).randbytes(1000) for number in range(50)]
    members = [gzip.compress(raw) for raw in raws]
    blocks, offset = [], 0
    for raw, member in zip(raws, members, strict=True):
        blocks.append(Block(offset, len(member), len(raw), zlib.crc32(member), hashlib.sha256(member).hexdigest()))
        offset += len(member)
    together = threading.Barrier(4, timeout=30)  # passed only by four downloads at the same moment
    opened: list[int] = []

    class Watched(MemoryStore):
        def open(self, key: str, **options: Any) -> AbstractContextManager[StoredSource]:
            opened.append(options["offset"])
            if len(opened) <= 4:
                together.wait()
            return super().open(key, **options)

    store = Watched()
    stored = store.put("a", b"".join(members))
    with proven_blocks(store, stored, blocks, threads=4) as fetched:
        for done, (raw, crc32) in enumerate(fetched):
            assert (raw, crc32) == (raws[done], blocks[done].crc32)
            assert len(opened) <= done + 5
    assert done == 49


def test_the_first_blocks_come_before_anybody_reads_and_no_more_when_nobody_will() -> None:
    member = gzip.compress(b"data")
    sha256 = hashlib.sha256(member).hexdigest()
    blocks = [Block(number * len(member), len(member), 4, zlib.crc32(member), sha256) for number in range(50)]
    opened: list[int] = []
    came = threading.Semaphore(0)

    class Watched(MemoryStore):
        def open(self, key: str, **options: Any) -> AbstractContextManager[StoredSource]:
            opened.append(options["offset"])
            came.release()
            return super().open(key, **options)

    store = Watched()
    stored = store.put("a", member * len(blocks))
    before = threading.active_count()
    with proven_blocks(store, stored, blocks, threads=3):
        assert all(came.acquire(timeout=30) for _ in range(3))
    assert sorted(opened) == [block.offset for block in blocks[:3]]
    assert threading.active_count() == before


# --- damaged ---------------------------------------------------------------------------------------------------------


def _rows(lines: list[dict[str, Any]]) -> list[list[Any]]:
    """The rows of the first block."""
    rows: list[list[Any]] = lines[1]["files"]
    return rows


def _exchange(lines: list[dict[str, Any]], *keys: str) -> None:
    for key in keys:
        lines[1][key], lines[2][key] = lines[2][key], lines[1][key]


def _one_more(bucket: Bucket) -> None:
    def add(lines: list[dict[str, Any]]) -> None:
        last = lines[-2]["files"]
        last.append(["one more", "file", 0, 33188, 0, 0, 0, 0, 0, last[-1][9] + 1])
        lines[-1]["files"] += 1

    bucket.lie(add)
    bucket.in_manifest(lambda volume: volume.update(files=volume["files"] + 1))


def _one_less(bucket: Bucket) -> None:
    def take(lines: list[dict[str, Any]]) -> None:
        lines[-2]["files"].pop()
        lines[-1]["files"] -= 1

    bucket.lie(take)
    bucket.in_manifest(lambda volume: volume.update(files=volume["files"] - 1))


Damage = Callable[[Bucket], object]

# What a quick verification promises to find too, without a store that vouches for contents.
SEEN_BY_BOTH: dict[str, Damage] = {
    "a byte of the index": lambda b: b.flip(INDEX, 40),
    "the last byte of the index": lambda b: b.flip(INDEX, -1),
    "the index is cut": lambda b: b.change(INDEX, lambda data: data[:-9]),
    "the index has grown": lambda b: b.change(INDEX, lambda data: data + b"x"),
    "the index is missing": lambda b: b.store.delete([INDEX]),
    "the index is another set's": lambda b: b.change(INDEX, lambda _: b.read(f"{NEWER}/db.index.jsonl.gz")),
    "the archive is missing": lambda b: b.store.delete([ARCHIVE]),
    "the archive is cut": lambda b: b.change(ARCHIVE, lambda data: data[:-1]),
    "the archive has grown": lambda b: b.change(ARCHIVE, lambda data: data + b"x"),
    "the archive is empty": lambda b: b.change(ARCHIVE, lambda _: b""),
    "RECOVER.txt is missing": lambda b: b.store.delete([f"{SET}/RECOVER.txt"]),
    "RECOVER.txt is empty": lambda b: b.change(f"{SET}/RECOVER.txt", lambda _: b""),
    "the manifest is no JSON": lambda b: b.flip(f"{SET}/manifest.json", 0),
    "the manifest is another set's": lambda b: b.change(
        f"{SET}/manifest.json", lambda _: b.read(f"{NEWER}/manifest.json")
    ),
    "the archive's size in the manifest": lambda b: b.in_manifest(lambda v: v["archive"].update(size=1000)),
    "the archive's sum in the manifest": lambda b: b.in_manifest(lambda v: v["archive"].update(crc32="00000000")),
    "the index's size in the manifest": lambda b: b.in_manifest(lambda v: v["index"].update(size=1)),
    "the index's sum in the manifest": lambda b: b.in_manifest(lambda v: v["index"].update(crc32="00000000")),
    "the raw bytes in the manifest": lambda b: b.in_manifest(lambda v: v.update(raw_bytes=v["raw_bytes"] + 1)),
    "the files in the manifest": lambda b: b.in_manifest(lambda v: v.update(files=v["files"] + 1)),
    "blocks of the index change places": lambda b: b.lie(lambda x: x.insert(1, x.pop(2))),
    "a block of the index is missing": lambda b: b.lie(lambda x: x.pop(1)),
    "the index ends without its summary": lambda b: b.lie(lambda x: x.pop()),
    "the index's summary counts wrong": lambda b: b.lie(lambda x: x[-1].update(files=1)),
    "the index has entries out of order": lambda b: b.lie(lambda x: x[-2]["files"].reverse()),
    "the index has an entry beyond its block": lambda b: b.lie(lambda x: x[-2]["files"][-1].__setitem__(9, 1 << 40)),
    "the index is of another format": lambda b: b.lie(lambda x: x[0].update(format=2)),
}
SEEN_BY_FULL: dict[str, Damage] = {
    "the first byte of the archive": lambda b: b.flip(ARCHIVE, 0),
    "a byte in gzip's header": lambda b: b.flip(ARCHIVE, 5),
    "a byte in a block": lambda b: b.flip(ARCHIVE, 5_000_000),
    "a byte of gzip's checksum": lambda b: b.flip(ARCHIVE, -6),
    "the last byte of the archive": lambda b: b.flip(ARCHIVE, -1),
    "the archive is another set's": lambda b: b.change(
        ARCHIVE, lambda data: (b.read(f"{NEWER}/db.tar.gz") + bytes(1000))[: len(data)]
    ),
    "the index lies about a name": lambda b: b.lie(lambda x: _rows(x)[0].__setitem__(0, "another")),
    "the index lies about a type": lambda b: b.lie(lambda x: _rows(x)[0].__setitem__(1, "fifo")),
    "the index lies about a size": lambda b: b.lie(lambda x: _rows(x)[0].__setitem__(2, 5)),
    "the index lies about a mode": lambda b: b.lie(lambda x: _rows(x)[0].__setitem__(3, 33279)),
    "the index lies about an owner": lambda b: b.lie(lambda x: _rows(x)[0].__setitem__(4, 4242)),
    "the index lies about a place": lambda b: b.lie(
        lambda x: x[-2]["files"][-1].__setitem__(9, x[-2]["files"][-1][9] + 1)
    ),
    "the index lies about a target": lambda b: b.lie(
        lambda x: next(row for row in x[-2]["files"] if row[1] == "symlink").__setitem__(10, "elsewhere")
    ),
    "the index names one entry more": _one_more,
    "the index names one entry less": _one_less,
    "the index exchanges two blocks' sums": lambda b: b.lie(lambda x: _exchange(x, "sha256")),
    "the index exchanges two blocks' entries": lambda b: b.lie(lambda x: _exchange(x, "files")),
    "the index lies about a block's raw length": lambda b: b.lie(
        lambda x: (x[1].update(raw_length=x[1]["raw_length"] + 1), x[2].update(raw_length=x[2]["raw_length"] - 1))
    ),
}


@pytest.mark.parametrize("damage", SEEN_BY_BOTH.values(), ids=SEEN_BY_BOTH)
@pytest.mark.parametrize("how", How)
def test_damage_that_costs_little_to_find_is_found_by_both(bucket: Bucket, how: How, damage: Damage) -> None:
    damage(bucket)
    assert_found(bucket, bucket.verify(how))


@pytest.mark.parametrize("damage", SEEN_BY_FULL.values(), ids=SEEN_BY_FULL)
def test_damage_inside_is_found_by_reading_all_of_it(bucket: Bucket, damage: Damage) -> None:
    damage(bucket)
    assert bucket.verify(QUICK).outcome is Outcome.GOOD  # which shows that nothing else gives it away
    assert_found(bucket, bucket.verify(FULL))


@pytest.mark.parametrize("key", [ARCHIVE, INDEX])
def test_a_store_that_vouches_for_contents_shows_a_flipped_byte_without_reading_it(
    objects: dict[str, bytes], key: str
) -> None:
    bucket = Bucket(objects, MemoryStore())
    bucket.flip(key, 40)
    report = bucket.verify(QUICK)
    assert_found(bucket, report)
    assert "says the store" in report.reasons[0].message


def assert_found(bucket: Bucket, report: VerifyReport) -> None:
    """Said with store, volume and a next step; noted; and nothing is said of the volume that is whole."""
    assert report.outcome is Outcome.FAILED
    (reason,) = report.reasons
    assert reason.hint
    assert reason.store == "memory"
    assert SET in reason.message or "index" in reason.message
    verdicts = {each.volume: (each.outcome, each.damaged) for each in report.volumes}
    assert verdicts.get("files", (Outcome.GOOD, False)) == (Outcome.GOOD, False)
    if reason.volume:
        assert verdicts["db"] == (Outcome.FAILED, True)
    assert report.damaged == {"memory": reason.message}
    noted = Marks.from_json(bucket.read(f"{SET}/marks.json"), where="marks")
    assert noted.damaged == reason.message
    assert bucket.events[-1][1]["error"] == reason.message


def test_every_damaged_volume_has_its_own_verdict(bucket: Bucket) -> None:
    bucket.flip(ARCHIVE, 100)
    bucket.flip(f"{SET}/files.tar.gz", 100)
    report = bucket.verify()
    assert [(each.volume, each.damaged) for each in report.volumes] == [("db", True), ("files", True)]
    assert report.damaged["memory"].endswith("(and 1 more)")


def test_one_stores_copy_is_damaged_and_the_others_is_whole(objects: dict[str, bytes]) -> None:
    bucket = Bucket(objects)
    other = Bucket(objects, Silent(name="local"))
    bucket.stores["local"] = other.store
    bucket.flip(ARCHIVE, 5000)
    report = bucket.verify()
    assert [(each.store, each.volume) for each in report.volumes if each.damaged] == [("memory", "db")]
    assert set(report.damaged) == {"memory"}
    assert other.marks() == Marks(False, Verified("2026-01-02T12:00:00Z", FULL, Outcome.GOOD), {"drilled": None})
    listed = bucket.listed()
    assert (listed["verified"]["outcome"], listed["verified"]["stores"]) == ("failed", ["memory"])


# --- what is known holds until something better is -------------------------------------------------------------------


def test_repaired_and_verified_again_it_is_good(bucket: Bucket) -> None:
    bucket.flip(ARCHIVE, 5000)
    assert bucket.verify().outcome is Outcome.FAILED
    assert bucket.listed()["verified"]["outcome"] == "failed"
    assert read_catalogue(bucket.stores).damage(SET)
    bucket.flip(ARCHIVE, 5000)
    assert bucket.verify().outcome is Outcome.GOOD
    assert bucket.listed()["verified"]["outcome"] == "good"
    assert read_catalogue(bucket.stores).damage(SET) == ()


def test_a_quick_look_does_not_clear_what_a_full_verification_found(bucket: Bucket) -> None:
    bucket.flip(ARCHIVE, 5000)
    found = bucket.verify(FULL).damaged
    report = bucket.verify(QUICK)
    assert report.outcome is Outcome.FAILED
    assert [reason.code for reason in report.reasons] == ["known_damaged"]
    assert report.damaged == found
    assert bucket.listed()["verified"]["how"] == "full"


def test_a_quick_look_that_finds_damage_replaces_an_older_good_verdict(bucket: Bucket) -> None:
    bucket.verify(FULL)
    bucket.store.delete([ARCHIVE])
    bucket.verify(QUICK)
    verified = bucket.listed()["verified"]
    assert (verified["how"], verified["outcome"]) == ("quick", "failed")


class Away(Silent):
    """A store that ends to answer: `fails` says for which key; `fired` counts."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[str], bool] = lambda _: False
        self.error: BaseException = StoreUnreachable("no connection", hint="is it up?", store="memory")
        self.fired = 0

    def open(self, key: str, **options: Any) -> AbstractContextManager[StoredSource]:
        if self.fails(key):
            self.fired += 1
            raise self.error
        return super().open(key, **options)

    def list(self, prefix: str = "") -> Iterator[Stored]:
        if self.fails(prefix):
            self.fired += 1
            raise self.error
        return super().list(prefix)


@pytest.mark.parametrize("key", [ARCHIVE, INDEX, f"{SET}/manifest.json"])
def test_a_store_that_is_away_makes_it_fail_and_says_nothing_of_the_set(objects: dict[str, bytes], key: str) -> None:
    store = Away()
    bucket = Bucket(objects, store)
    bucket.verify()
    before = bucket.read(f"{SET}/marks.json")
    store.fails = lambda each: each == key
    report = bucket.verify()
    assert store.fired
    assert report.outcome is Outcome.FAILED
    assert [reason.code for reason in report.reasons] == ["store_unreachable"]
    assert "could not be verified" in report.reasons[0].message
    assert report.damaged == {}
    assert not any(each.damaged for each in report.volumes)
    assert bucket.read(f"{SET}/marks.json") == before


def test_a_store_that_does_not_answer_at_all_is_said_beside_the_one_that_is_good(objects: dict[str, bytes]) -> None:
    bucket, away = Bucket(objects), Away()
    away.name = "away"
    away.fails = lambda _: True
    bucket.stores["away"] = away
    report = bucket.verify()
    assert away.fired
    assert report.outcome is Outcome.FAILED
    assert [(reason.store, reason.code) for reason in report.reasons] == [("away", "store_unreachable")]
    assert bucket.marks() is not None


def test_no_store_that_answers_is_the_stores_error(objects: dict[str, bytes]) -> None:
    store = Away()
    bucket = Bucket(objects, store)
    store.fails = lambda _: True
    with pytest.raises(StoreUnreachable):
        bucket.verify()
    assert store.fired


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_cut_off_in_the_middle_leaves_marks_as_they_were(objects: dict[str, bytes], error: BaseException) -> None:
    store = Away()
    bucket = Bucket(objects, store)
    bucket.verify()
    before = bucket.read(f"{SET}/marks.json")
    bucket.flip(ARCHIVE, 5000)
    store.error, store.fails = error, lambda key: key == f"{SET}/files.tar.gz"  # `db` is known to be damaged by then
    with pytest.raises(type(error)):
        bucket.verify()
    assert store.fired
    assert bucket.read(f"{SET}/marks.json") == before


def test_told_to_stop_it_ends_and_notes_nothing(bucket: Bucket) -> None:
    def follow(progress: Progress) -> None:
        bucket.progress.append(progress)
        if progress.done_bytes:
            bucket.cancelled.set()

    with pytest.raises(Interrupted):
        bucket.verify(follow=follow)
    assert len([each for each in bucket.progress if each.done_bytes]) == 1
    assert bucket.marks() is None
    assert bucket.events == []


def test_a_set_that_is_deleted_meanwhile_is_not_damaged_but_gone(bucket: Bucket) -> None:
    def follow(progress: Progress) -> None:
        if progress.volume == "files":
            bucket.store.delete([key.key for key in bucket.store.list(SET)])

    with pytest.raises(NotFound, match="no more"):
        bucket.verify(follow=follow)
    assert list(bucket.store.list(SET)) == []


def test_a_set_that_there_is_not_is_named_with_the_nearest(bucket: Bucket) -> None:
    with pytest.raises(NotFound) as caught:
        bucket.verify(set_name=SET[:-1] + "9")
    assert SET in caught.value.hint


# --- marks -----------------------------------------------------------------------------------------------------------


def test_a_set_is_kept_and_unkept_and_that_does_not_disturb_its_verdict(bucket: Bucket) -> None:
    bucket.verify()
    verified = bucket.listed()["verified"]
    assert keep(SET, True, bucket.stores, bucket.us)["stores"] == ["memory"]
    assert (bucket.listed()["keep"], bucket.listed()["verified"]) == (True, verified)
    bucket.verify()
    assert bucket.listed()["keep"]
    keep(SET, False, bucket.stores, bucket.us)
    assert (bucket.listed()["keep"], bucket.listed()["verified"]) == (False, verified)
    assert not bucket.listed(NEWER)["keep"]


def test_what_another_version_noted_is_kept(bucket: Bucket) -> None:
    document = {"format": 1, "kind": "marks", "keep": True, "verified": None, "drilled": {"a": 1}, "colour": "red"}
    bucket.store.put(f"{SET}/marks.json", json.dumps(document).encode())
    bucket.verify()
    noted = json.loads(bucket.read(f"{SET}/marks.json"))
    assert (noted["keep"], noted["drilled"], noted["colour"]) == (True, {"a": 1}, "red")
    assert noted["verified"]["outcome"] == "good"


def test_damaged_marks_are_said_and_hide_nothing_else(bucket: Bucket) -> None:
    bucket.store.put(f"{SET}/marks.json", b"{")
    keep(NEWER, True, bucket.stores, bucket.us)
    document = list_sets(bucket.stores)
    assert [(each["set"], each["keep"]) for each in document["sets"]] == [(SET, False), (NEWER, True)]
    assert document["errors"] == {}
    (warning,) = document["warnings"]
    assert SET in warning
    report = bucket.verify()
    assert report.outcome is Outcome.GOOD
    assert "could not be noted" in report.warnings[0]
    assert bucket.read(f"{SET}/marks.json") == b"{"


def test_marks_cost_one_request_for_each_set_that_has_some(objects: dict[str, bytes]) -> None:
    opened: list[str] = []

    class Counting(MemoryStore):
        def open(self, key: str, **options: Any) -> AbstractContextManager[StoredSource]:
            opened.append(key)
            return super().open(key, **options)

    bucket = Bucket(objects, Counting())
    keep(NEWER, True, bucket.stores, bucket.us)
    opened.clear()
    list_sets(bucket.stores)
    assert [key for key in opened if key.endswith("marks.json")] == [f"{NEWER}/marks.json"]


def test_another_hosts_set_is_verified_and_nothing_is_noted_there(bucket: Bucket) -> None:
    bucket.us = replace(bucket.us, engine="SOMEBODY ELSE")
    report = bucket.verify()
    assert report.outcome is Outcome.GOOD
    assert "belongs to host shop-host" in report.warnings[0]
    assert bucket.marks() is None
    with pytest.raises(OwnedByAnotherHost):
        keep(SET, True, bucket.stores, bucket.us)


def test_two_who_mark_at_once_do_not_undo_each_other(bucket: Bucket) -> None:
    def note(key: str) -> None:
        mark(bucket.store, SET, bucket.us, lambda marks: replace(marks, others={**marks.others, key: True}))

    threads = [threading.Thread(target=note, args=(f"n{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"n{number}" for number in range(20)} <= json.loads(bucket.read(f"{SET}/marks.json")).keys()
