"""Blocks of an earlier archive in the next one: what the stores copy, what is noticed, and that nothing is lost."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from isal import isal_zlib

from sidecar.archive import capture as walks
from sidecar.archive import filesystem, packer, writer
from sidecar.archive.blocks import plan_blocks
from sidecar.archive.reader import read_blocks
from sidecar.errors import SidecarError, StoreUnreachable, VolumeUnreadable
from sidecar.events import Progress
from sidecar.jobs.ownership import Claimant
from sidecar.jobs.verify import VerifyTools, verify
from sidecar.report import Outcome, RunReport
from sidecar.sets import How
from sidecar.stores import parts
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Capabilities, Stored
from tests.unit.edits import tick
from tests.unit.shop import Shop

ALL = Capabilities(least_part=1, least_copy=1)
EXT4 = 0xEF53


class Bucket(MemoryStore):
    """A store whose objects can be damaged as a disk or a person does it."""

    def alter(self, key: str, data: bytes, *, silently: bool = False) -> None:
        stored, _ = self._objects[key]
        entity = stored.entity if silently else "another"
        checksum = stored.checksum if silently else f"crc32:{isal_zlib.crc32(data):08x}"
        self._objects[key] = (replace(stored, size=len(data), entity=entity, checksum=checksum), data)

    def data(self, key: str) -> bytes:
        return self._objects[key][1]


@pytest.fixture(autouse=True)
def _any_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "type_of", lambda _: EXT4)
    monkeypatch.setattr(filesystem, "syncfs", lambda _: None)
    monkeypatch.setattr(packer, "TARGET", 4096)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A shop in which nothing has been touched for years."""
    shop = Shop(tmp_path)
    shop.start += timedelta(days=3650)
    shop.stores = {"s3": Bucket(name="s3", off_host=True, capabilities=ALL)}
    for name in ("db", "files"):
        for number in range(10):
            (shop.data(name) / f"{number}").write_bytes(os.urandom(2000))
    return shop


def next_day(shop: Shop) -> None:
    shop.start += timedelta(days=1)


def contents(shop: Shop, volume: str) -> dict[str, bytes]:
    root = shop.data(volume)
    return {f"./{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_whole(shop: Shop, report: RunReport) -> None:
    assert report.outcome is Outcome.GOOD, report.reasons
    for store in shop.stores:
        for volume in ("db", "files"):
            assert shop.archive(report, volume, store) == contents(shop, volume)
    assert shop.frozen() == []


def reused(report: RunReport) -> dict[str, int]:
    return {each.volume: each.bytes_reused for each in report.volumes}


def refusals(shop: Shop) -> list[str]:
    return [fields["error"] for fields in shop.of("reuse_refused")]


def test_what_has_not_changed_is_neither_read_nor_sent_again(shop: Shop) -> None:
    first = shop.run()
    assert_whole(shop, first)
    assert reused(first) == {"db": 0, "files": 0}
    next_day(shop)
    second = shop.run()
    assert_whole(shop, second)
    for volume in second.volumes:
        assert volume.bytes_read == 0
        assert volume.bytes_reused > 20_000
        assert volume.bytes_uploaded < 1000
        assert volume.bytes_uploaded + volume.bytes_reused == volume.archive_bytes
    assert refusals(shop) == []


def test_an_archive_with_blocks_of_another_is_verified_like_any(shop: Shop) -> None:
    shop.run()
    next_day(shop)
    (shop.data("db") / "new").write_bytes(b"new")
    second = shop.run()
    assert reused(second)["db"] > 20_000
    tools = VerifyTools(
        stores=shop.stores,
        claimant=Claimant(shop.engine.identity().id, "shop-host", "backup-state", lambda _: None),
        threads=2,
        emit=shop.emit,
        now=shop.tick,
    )
    report = verify("latest", How.FULL, tools, lambda _: None, threading.Event())
    assert (report.set, report.outcome) == (second.set, Outcome.GOOD), report


def test_an_archive_stays_whole_when_those_that_it_was_made_of_are_deleted(shop: Shop) -> None:
    first = shop.run()
    next_day(shop)
    second = shop.run()
    shop.stores["s3"].delete([key for key in shop.objects("s3") if key.startswith(str(first.set))])
    assert_whole(shop, second)


def test_every_store_copies_from_its_own(shop: Shop) -> None:
    shop.stores["local"] = MemoryStore(name="local", capabilities=ALL)
    shop.run()
    next_day(shop)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second)["db"] > 20_000


def test_a_store_that_missed_the_earlier_set_makes_all_get_everything(shop: Shop) -> None:
    shop.run()
    next_day(shop)
    shop.stores["local"] = MemoryStore(name="local", capabilities=ALL)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second) == {"db": 0, "files": 0}


@pytest.mark.parametrize(
    "limits",
    [
        replace(ALL, leaves_parts_out=False),
        replace(ALL, equal_parts=True),
        replace(ALL, copies_ranges=False),
        replace(ALL, leaves_parts_out=False, copies_ranges=False),
    ],
    ids=["leaves none out", "equal parts", "does not copy", "neither"],
)
def test_a_store_that_can_less_gets_whole_archives_too(shop: Shop, limits: Capabilities) -> None:
    shop.stores = {"s3": Bucket(name="s3", off_host=True, capabilities=limits)}

    def change(progress: Any) -> None:
        if progress.phase == "freezing":
            (shop.data("db") / "3").write_bytes(b"changed while it was sent")

    assert_whole(shop, shop.run(follow=change))
    next_day(shop)
    second = shop.run()
    assert_whole(shop, second)
    copies = limits.copies_ranges and not limits.equal_parts
    assert (reused(second)["files"] > 20_000) == copies
    assert bool(refusals(shop)) == (not copies)


@pytest.fixture
def log(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file in `db`, by what small blocks and parts make of it."""
    monkeypatch.setattr(parts, "SMALLEST_TARGET", 8192)
    monkeypatch.setattr(writer, "plan_blocks", partial(plan_blocks, target=4096))
    path = shop.data("db") / "log"
    path.write_bytes(os.urandom(100_000))
    return path


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(os.urandom(5000))


@pytest.mark.parametrize("is_hot", [False, True])
@pytest.mark.parametrize("limits", [ALL, replace(ALL, leaves_parts_out=False)], ids=["all", "leaves none out"])
def test_of_a_large_file_that_grows_only_what_is_new_is_sent(
    shop: Shop, log: Path, limits: Capabilities, is_hot: bool
) -> None:
    if is_hot:
        shop.start -= timedelta(days=3650)  # by that clock everything is touched in the future
    shop.stores = {"s3": Bucket(name="s3", off_host=True, capabilities=limits)}
    shop.run()
    next_day(shop)
    grow(log)
    second = shop.run()
    assert_whole(shop, second)
    (db,) = [volume for volume in second.volumes if volume.volume == "db"]
    assert db.bytes_reused > 80_000
    assert db.bytes_uploaded + db.bytes_reused == db.archive_bytes
    assert second.stores["s3"].bytes_uploaded < 80_000


@pytest.mark.parametrize("is_hot", [False, True])
def test_of_a_large_file_whose_earlier_blocks_were_altered_without_a_trace_everything_is_sent(
    shop: Shop, log: Path, is_hot: bool
) -> None:
    if is_hot:
        shop.start -= timedelta(days=3650)
    first = shop.run()
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    (at,) = [
        each.block.offset
        for each in read_blocks(bucket.data(f"{first.set}/db.index.jsonl.gz"))
        if each.continues and 40_000 < each.continues[1] < 44_097
    ]
    data = bytearray(bucket.data(f"{first.set}/db.tar.gz"))
    data[at + 100] ^= 1
    bucket.alter(f"{first.set}/db.tar.gz", bytes(data), silently=True)
    next_day(shop)
    grow(log)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second)["db"] == 0
    assert f"verify {first.set}" in second.warnings[0]


def test_a_store_that_wants_all_parts_after_all_is_found_out_and_gets_them_later(shop: Shop) -> None:
    """As Ceph does, which nothing tells apart from others beforehand."""

    class Strict(Bucket):
        said = ALL

        @property
        def capabilities(self) -> Capabilities:
            return self.said

        def begin(self, key: str, **options: Any) -> Any:
            upload = super().begin(key, **options)
            complete = upload.complete

            def strictly(numbers: Any, **expected: Any) -> Stored:
                self.said = replace(ALL, leaves_parts_out=False)
                try:
                    return complete(numbers, **expected)
                finally:
                    self.said = ALL

            upload.complete = strictly  # type: ignore[method-assign]
            return upload

    shop.stores = {"s3": Strict(name="s3", off_host=True)}

    def change(progress: Any) -> None:
        if progress.phase == "freezing":
            (shop.data("db") / "3").write_bytes(b"changed while it was sent")

    report = shop.run(follow=change)
    assert_whole(shop, report)
    (anew,) = shop.of("group_begun_anew")
    assert "without all parts" in anew["error"]
    assert list(shop.stores["s3"].pending()) == []


@pytest.mark.parametrize("damage", ["deleted", "truncated", "replaced", "longer"])
def test_an_earlier_archive_that_is_not_what_it_was_is_noticed_before_anything_is_copied(
    shop: Shop, damage: str
) -> None:
    first = shop.run()
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    key = f"{first.set}/db.tar.gz"
    data = bucket.data(key)
    match damage:
        case "deleted":
            bucket.delete([key])
        case "truncated":
            bucket.alter(key, data[:-100])
        case "longer":
            bucket.alter(key, data + data)
        case "replaced":
            bucket.alter(key, bytes(len(data)))
    next_day(shop)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second)["db"] == 0
    assert reused(second)["files"] > 20_000
    assert [fields["volume"] for fields in shop.of("reuse_refused")] == ["db"]
    assert len(shop.of("group_frozen")) == 2
    (told,) = second.warnings
    assert key in told


def test_an_earlier_archive_altered_without_a_trace_is_noticed_by_the_new_ones_checksum(shop: Shop) -> None:
    first = shop.run()
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    key = f"{first.set}/files.tar.gz"
    data = bytearray(bucket.data(key))
    data[5000] ^= 1
    bucket.alter(key, bytes(data), silently=True)
    next_day(shop)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second) == {"db": 0, "files": 0}
    (anew,) = shop.of("group_begun_anew")
    (told,) = second.warnings  # good as it is, it has shown that another is not
    assert f"{first.set}/files.tar.gz" in told
    assert f"verify {first.set}" in told
    assert anew["error"] in told
    assert len(shop.of("group_frozen")) == 3
    assert len(second.groups) == 1
    assert sorted(each.volume for each in second.volumes) == ["db", "files"]


@pytest.mark.parametrize(("what", "said"), [("delete", "is not in the store"), ("replace", "is not what it was")])
def test_an_earlier_archive_deleted_or_replaced_before_it_is_copied_costs_a_second_attempt(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    first = shop.run()
    next_day(shop)
    store = shop.stores["s3"]
    assert isinstance(store, Bucket)
    head = store.head

    def head_and_lose(key: str) -> Stored:
        stored = head(key)
        if key == f"{first.set}/db.tar.gz" and what == "delete":
            store.delete([key])
        elif key == f"{first.set}/db.tar.gz":
            store.alter(key, store.data(key)[::-1])
        return stored

    monkeypatch.setattr(store, "head", head_and_lose)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second) == {"db": 0, "files": 0}
    (anew,) = shop.of("group_begun_anew")
    assert said in anew["error"]
    (told,) = second.warnings
    assert f"{first.set}/db.tar.gz" in told


def test_a_store_that_does_not_answer_what_is_asked_of_it_gets_everything(shop: Shop) -> None:
    shop.run()
    next_day(shop)

    class Forgetful(Bucket):
        def list(self, prefix: str = "") -> Any:
            if prefix == "backup-":
                raise StoreUnreachable("listing timed out", store=self.name)
            return super().list(prefix)

    forgetful = Forgetful(name="s3", off_host=True, capabilities=ALL)
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    forgetful._objects = bucket._objects
    shop.stores = {"s3": forgetful}
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second) == {"db": 0, "files": 0}
    assert refusals(shop) == ["listing timed out"] * 2


def test_a_set_that_is_known_to_be_damaged_gives_nothing(shop: Shop) -> None:
    first = shop.run()
    marks = {
        "format": 1,
        "kind": "marks",
        "keep": False,
        "verified": {"time": "2036-01-01T00:00:00Z", "how": "full", "outcome": "failed", "why": "a flipped bit"},
    }
    shop.stores["s3"].put(f"{first.set}/marks.json", json.dumps(marks).encode())
    next_day(shop)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second) == {"db": 0, "files": 0}
    assert "a flipped bit" in refusals(shop)[0]


def test_everything_is_read_again_when_that_is_due_and_when_it_is_asked_for(shop: Shop) -> None:
    shop.full_every = timedelta(days=3)
    read = []
    for full in (False, False, False, False, True, False):
        report = shop.run(full=full)
        assert_whole(shop, report)
        read.append(report.volumes[0].bytes_read > 0)
        next_day(shop)
    assert read == [True, False, False, True, True, False]


@pytest.mark.parametrize("boot", ["another boot", ""], ids=["known", "unknown"])
def test_after_a_power_cut_everything_is_read_again_because_time_stamps_may_have_been_taken_back(
    shop: Shop, boot: str
) -> None:
    """A file that was overwritten just before may have its new data and its old times."""
    shop.run()
    shop.boot = boot
    next_day(shop)
    second = shop.run()
    assert_whole(shop, second)
    assert reused(second) == {"db": 0, "files": 0}
    assert all(volume.bytes_read > 20_000 for volume in second.volumes)
    next_day(shop)
    assert (reused(shop.run())["db"] > 20_000) == bool(boot)


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
def test_a_clock_that_jumps_between_runs_costs_a_reading_and_no_file(shop: Shop, days: int) -> None:
    shop.run()
    shop.start += timedelta(days=days)
    (shop.data("db") / "5").write_bytes(b"after the jump")
    second = shop.run()
    assert_whole(shop, second)
    assert (reused(second)["files"] > 0) is (days == 1)  # as if a day had passed; else nobody knows when it was read
    _assert_same_as_full(shop, second)
    shop.start -= timedelta(days=days)
    next_day(shop)
    (shop.data("db") / "6").write_bytes(b"when it was put right")
    third = shop.run()
    assert_whole(shop, third)
    _assert_same_as_full(shop, third)


@pytest.mark.parametrize("days", [-1, 1])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_as_old_as_the_jump_is_in_the_archive_too(shop: Shop, days: int, when: str) -> None:
    """By a clock about which the files are as old as they are: what is touched today is not settled, or is of tomorrow.

    Of the same size, and with the modification time of before: only the time of the change itself tells.
    """
    settled_for_an_hour = datetime.now(UTC) + timedelta(hours=1)
    shop.start = settled_for_an_hour - (timedelta(days=days) if when == "before" else timedelta(0))
    shop.run()
    shop.start = settled_for_an_hour + (timedelta(days=days) if when == "after" else timedelta(0))
    tick(shop.directory)
    for volume, name in (("db", "3"), ("files", "7")):
        path = shop.data(volume) / name
        status = path.stat()
        path.write_bytes(os.urandom(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = shop.run()
    assert_whole(shop, second)
    _assert_same_as_full(shop, second)


def _assert_same_as_full(shop: Shop, report: RunReport) -> None:
    """The archives hold what those hold for which everything is read once more."""
    full = shop.run(full=True)
    assert full.outcome is Outcome.GOOD, full.reasons
    for volume in ("db", "files"):
        assert shop.archive(report, volume, "s3") == shop.archive(full, volume, "s3")
    shop.stores["s3"].delete([key for key in shop.objects("s3") if key.startswith(str(full.set))])


def test_a_file_that_differs_under_its_old_signature_makes_the_run_partial_and_is_named(shop: Shop) -> None:
    first = shop.run()
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    _lie_about(bucket, str(first.set), "db")
    next_day(shop)
    second = shop.run(full=True)
    assert second.outcome is Outcome.PARTIAL
    (reason,) = second.reasons
    assert (reason.code, reason.volume) == ("file_differs", "db")
    assert shop.archive(second, "db", "s3") == contents(shop, "db")
    assert [fields["volume"] for fields in shop.of("file_differs")] == ["db"]


FORGERIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "kind": lambda document: document["files"][0].__setitem__(1, "no such kind"),
    "length": lambda document: document.update(raw_length=document["raw_length"] + 512),
    "hash": lambda document: document.update(sha256=["x"]),
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_an_index_that_is_forged_costs_its_volume_a_reading_and_no_other(
    shop: Shop, forge: Callable[[dict[str, Any]], None], full: bool
) -> None:
    """Its checksum is right: it is known when its rows are read, by when blocks have been taken from others."""
    first = shop.run()
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    _forge(bucket, str(first.set), "db", forge, line=2)
    next_day(shop)
    second = shop.run(full=full)
    assert_whole(shop, second)
    assert reused(second)["db"] == 0
    assert (reused(second)["files"] > 20_000) is not full
    assert len(refusals(shop)) == 1
    assert shop.of("group_begun_anew") == []


def _lie_about(bucket: Bucket, set_name: str, volume: str) -> None:
    """Have the index tell of other contents of one file: as if the disk had changed it since."""

    def lie(document: dict[str, Any]) -> None:
        document["data_crc32"][0] = f"{int(document['data_crc32'][0], 16) ^ 1:08x}"

    _forge(bucket, set_name, volume, lie)


def _forge(
    bucket: Bucket, set_name: str, volume: str, change: Callable[[dict[str, Any]], None], *, line: int = 1
) -> None:
    """Change the line of a block in an index, and what the manifest says of that."""
    key = f"{set_name}/{volume}.index.jsonl.gz"
    lines = gzip.decompress(bucket.data(key)).splitlines()
    document = json.loads(lines[line])
    change(document)
    lines[line] = json.dumps(document, separators=(",", ":")).encode()
    data = gzip.compress(b"\n".join(lines) + b"\n")
    bucket.alter(key, data)
    manifest = json.loads(bucket.data(f"{set_name}/manifest.json"))
    for each in manifest["volumes"]:
        if each["volume"] == volume:
            each["index"] |= {"size": len(data), "crc32": f"{isal_zlib.crc32(data):08x}"}
    bucket.alter(f"{set_name}/manifest.json", json.dumps(manifest).encode())


# --- an index that was made up by somebody who can write into the bucket, and so has right checksums -----------------


def forge(shop: Shop, report: RunReport, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the first block of settled files in the index of `db`, and have the manifest vouch for that."""
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    key, manifest_key = f"{report.set}/db.index.jsonl.gz", f"{report.set}/manifest.json"
    lines = [json.loads(line) for line in gzip.decompress(bucket.data(key)).splitlines()]
    block = next(line for line in lines if line.get("data_crc32"))
    before = len(block["files"])
    change(block)
    lines[-1]["files"] += len(block["files"]) - before
    forged = gzip.compress(b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines))
    manifest = json.loads(bucket.data(manifest_key))
    (stored,) = [each["index"] for each in manifest["volumes"] if each["volume"] == "db"]
    stored.update(size=len(forged), crc32=f"{isal_zlib.crc32(forged):08x}")
    bucket.alter(key, forged)
    bucket.alter(manifest_key, json.dumps(manifest).encode())


def of_first_file(place: int, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def act(block: dict[str, Any]) -> None:
        block["files"][0][place] = change(block["files"][0][place])

    return act


def nothing(block: dict[str, Any]) -> None:
    block["files"], block["data_crc32"] = [], []


def offset_last(block: dict[str, Any]) -> None:
    block["offset"] = block.pop("offset")


@pytest.mark.parametrize(
    "change",
    [
        of_first_file(0, lambda _: "../x"),
        of_first_file(0, lambda _: "/x"),
        of_first_file(2, lambda _: 2**100),
        # Python's hashes of numbers repeat themselves after so many.
        of_first_file(2, lambda size: size + 2**61 - 1),
        of_first_file(2, lambda size: size + (2**61 - 1) * 2**40),
        of_first_file(4, lambda uid: uid + (2**61 - 1) * 2**40),
        nothing,
        offset_last,
    ],
    ids=["above", "absolute", "wide", "hash-alike", "wide-hash-alike", "wide-uid", "no-files", "offset-last"],
)
@pytest.mark.parametrize("changed", [False, True], ids=["standing", "fallen"])
def test_a_made_up_index_is_refused_and_the_volume_read_anew(
    shop: Shop, change: Callable[[dict[str, Any]], None], changed: bool
) -> None:
    forge(shop, shop.run(), change)
    next_day(shop)
    if changed:
        for number in range(10):
            (shop.data("db") / f"{number}").write_bytes(b"changed")
    second = shop.run()
    assert_whole(shop, second)
    assert len(refusals(shop)) == 1
    assert reused(second)["db"] == 0
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    described = [file for block in read_blocks(bucket.data(f"{second.set}/db.index.jsonl.gz")) for file in block.files]
    assert max(file.signature.size for file in described) < 10_000


# --- limits of stores ------------------------------------------------------------------------------------------------


FEW = Capabilities(least_part=1, least_copy=1, most_parts=40)


@pytest.mark.parametrize(
    "limits",
    [FEW, replace(FEW, equal_parts=True), replace(FEW, leaves_parts_out=False)],
    ids=["few", "equal", "all-kept"],
)
@pytest.mark.parametrize("settled", [True, False], ids=["settled", "hot"])
def test_parts_grow_so_that_their_numbers_last_though_nobody_measured_first(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, limits: Capabilities, settled: bool
) -> None:
    monkeypatch.setattr(parts, "SMALLEST_TARGET", 1)
    monkeypatch.setattr(writer, "plan_blocks", partial(plan_blocks, target=4096))
    shop.stores = {"s3": Bucket(name="s3", off_host=True, capabilities=limits)}
    for number in range(250):  # 125 blocks, each of which would be a part
        (shop.data("db") / f"more-{number}").write_bytes(os.urandom(2000))
    if not settled:
        shop.start = datetime.now(UTC)
    report = shop.run()
    assert_whole(shop, report)


@pytest.mark.parametrize("grown", ["db", "files"])
def test_parts_grow_with_a_volume_that_has_grown_a_lot_since_the_earlier_set(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, grown: str
) -> None:
    monkeypatch.setattr(parts, "SMALLEST_TARGET", 1)
    shop.stores = {"s3": Bucket(name="s3", off_host=True, capabilities=FEW)}
    assert_whole(shop, shop.run())
    next_day(shop)
    for number in range(250):
        (shop.data(grown) / f"more-{number}").write_bytes(os.urandom(2000))
    second = shop.run()
    assert_whole(shop, second)
    assert refusals(shop) == []


def test_of_an_archive_that_has_come_apart_no_more_is_copied_than_there_are_parts(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SMALLEST_TARGET", 1)
    monkeypatch.setattr("sidecar.jobs.volume._COPIED_AT_ONCE", 1)
    for number in range(250):
        (shop.data("db") / f"more-{number:03}").write_bytes(os.urandom(2000))
    first = shop.run()
    assert_whole(shop, first)
    next_day(shop)
    shop.stores["s3"]._capabilities = FEW  # type: ignore[attr-defined]
    bucket = shop.stores["s3"]
    assert isinstance(bucket, Bucket)
    blocks = list(read_blocks(bucket.data(f"{first.set}/db.index.jsonl.gz")))
    for block in [block for block in blocks if block.data_crc32][::3]:  # about 40 gaps
        (shop.data("db") / os.fsdecode(block.files[0].path)).write_bytes(b"changed")
    second = shop.run()
    assert_whole(shop, second)
    assert 10_000 < reused(second)["db"] < 300_000
    assert refusals(shop) == []


# --- room in the spool -----------------------------------------------------------------------------------------------


def test_room_for_growth_is_found_before_anything_is_frozen_however_short_the_pass(shop: Shop) -> None:
    shop.start = datetime.now(UTC)
    for number in range(100):
        (shop.data("db") / f"hot-{number}").write_bytes(os.urandom(200_000))
    shop.spool_most = 21_000_000  # an eighth more than all files do not fit
    report = shop.run()
    assert [reason.code for reason in report.reasons] == ["spool_full"]
    assert shop.engine.names("pause") == []


def test_a_long_pass_learns_early_that_what_follows_has_no_room(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.jobs.volume._LONG", 0.0)
    for number in range(20):
        hot = shop.data("files") / f"hot-{number}"
        hot.write_bytes(os.urandom(100_000))
        os.utime(hot, (shop.start.timestamp(),) * 2)
    shop.spool_most = 1_000_000
    seen: list[Progress] = []
    report = shop.run(follow=seen.append)
    (reason,) = report.reasons
    assert reason.code == "spool_full"
    assert "2,250,000" in reason.message
    assert not any(each.done_bytes for each in seen)


@pytest.mark.parametrize("error", [VolumeUnreadable("stale"), walks._MovedAway("moved away")], ids=["stale", "moved"])
def test_a_look_ahead_that_fails_changes_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: SidecarError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sidecar.jobs.volume._LONG", 0.0)
    monkeypatch.setattr(walks, "measure", fail)
    report = shop.run()
    assert_whole(shop, report)
    assert all(each.bytes_read > 20_000 for each in report.volumes)
    shop.start = datetime.now(UTC)
    shop.spool_most = 10_000
    assert [reason.code for reason in shop.run().reasons] == ["spool_full"]
