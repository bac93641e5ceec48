"""The contract of sidecar/stores/port.py, held against every store, bare and wrapped.

Where a server does less than S3 promises, the test names the stores it runs on instead of skipping: moto checks neither
credentials nor parts' checksums nor if-match of copies; Ceph leaves no parts out.
"""

from __future__ import annotations

import hashlib
import random
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import (
    BucketMissing,
    ChecksumMismatch,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
)
from sidecar.stores.local import LocalStore
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Capabilities, Store, Stored, Upload
from sidecar.stores.retrying import RetryingStore

CEPH = pytest.param("ceph", marks=pytest.mark.ceph)
CEPH_RETRYING = pytest.param("ceph+retrying", marks=pytest.mark.ceph)
EVERY = [
    "memory", "memory+retrying", "local", "local+retrying", "moto", "moto+retrying", "seaweedfs", "seaweedfs+retrying",
    CEPH, CEPH_RETRYING,
]  # fmt: skip
EXACT = ["memory", "local", "seaweedfs", "seaweedfs+retrying", CEPH]  # all that are not moto
LEAVE_OUT = ["memory", "local", "moto", "seaweedfs", "seaweedfs+retrying"]

every_store = pytest.mark.parametrize("store", EVERY, indirect=True)
exact_store = pytest.mark.parametrize("store", EXACT, indirect=True)
leaving_store = pytest.mark.parametrize("store", LEAVE_OUT, indirect=True)


@cache
def bytes_of(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def part(store: Store, seed: int, extra: int = 0) -> bytes:
    """A body that this store takes as a part which is not the last."""
    return bytes_of(seed, max(store.capabilities.least_part, 1000) + extra)


def put(upload: Upload, number: int, data: bytes) -> None:
    upload.put(number, data, zlib.crc32(data))


def complete(upload: Upload, numbers: Sequence[int], content: bytes) -> Stored:
    return upload.complete(numbers, size=len(content), crc32=zlib.crc32(content))


def upload_object(store: Store, key: str, parts: Sequence[bytes]) -> Stored:
    with store.begin(key) as upload:
        for number, data in enumerate(parts, 1):
            put(upload, number, data)
        return complete(upload, range(1, len(parts) + 1), b"".join(parts))


def upload_parts(
    store: Store,
    parts: Mapping[int, bytes],
    numbers: Sequence[int],
    *,
    size: int | None = None,
    crc32: int | None = None,
) -> None:
    """Upload `archive` of the parts numbered, with another size or checksum than theirs where given."""
    content = b"".join(parts.get(number, b"") for number in numbers)
    with store.begin("archive") as upload:
        for number, data in parts.items():
            put(upload, number, data)
        upload.complete(
            numbers,
            size=len(content) if size is None else size,
            crc32=zlib.crc32(content) if crc32 is None else crc32,
        )


def read(store: Store, key: str, offset: int = 0, length: int | None = None) -> bytes:
    with store.open(key, offset=offset, length=length) as source:
        return b"".join(iter(lambda: source.read(1_000_000), b""))


def keys(store: Store, prefix: str = "") -> list[str]:
    return [stored.key for stored in store.list(prefix)]


# --- small objects ---------------------------------------------------------------------------------------------------


@every_store
def test_what_was_put_is_read_back(store: Store) -> None:
    before = datetime.now(UTC)

    put_as = store.put("set/manifest.json", b'{"format": 1}')

    assert read(store, "set/manifest.json") == b'{"format": 1}'
    found = store.head("set/manifest.json")
    assert (found.key, found.size, found.entity) == ("set/manifest.json", 13, put_as.entity)
    assert found.modified is not None
    assert abs(found.modified - before) < timedelta(minutes=2)


@every_store
def test_putting_proves_what_is_stored(store: Store) -> None:
    stored = store.put("k", b"proved")

    by_crc32 = f"crc32:{zlib.crc32(b'proved'):08x}"
    by_md5 = f"md5:{hashlib.md5(b'proved').hexdigest()}"
    assert stored.checksum in (by_crc32, by_md5)


@every_store
def test_putting_again_replaces_and_changes_the_entity(store: Store) -> None:
    first = store.put("marks.json", b"{}")
    second = store.put("marks.json", b'{"keep": true}')

    assert read(store, "marks.json") == b'{"keep": true}'
    assert first.entity != second.entity
    assert store.head("marks.json").entity == second.entity


@every_store
def test_an_empty_object_can_be_put_and_read(store: Store) -> None:
    assert store.put("empty", b"").size == 0
    assert store.head("empty").size == 0
    assert read(store, "empty") == b""
    assert read(store, "empty", 0, 0) == b""


@every_store
def test_put_if_absent_stores_what_is_not_there(store: Store) -> None:
    store.put("owner.json", b"mine", if_absent=True)

    assert read(store, "owner.json") == b"mine"


@every_store
def test_put_if_absent_of_the_same_content_again_is_success(store: Store) -> None:
    first = store.put("owner.json", b"mine", if_absent=True)

    assert store.put("owner.json", b"mine", if_absent=True).entity == first.entity


@every_store
@pytest.mark.parametrize("other", [b"theirs", b"min", b"mine!", b""])
def test_put_if_absent_refuses_when_another_content_is_there(store: Store, other: bytes) -> None:
    store.put("owner.json", other)

    with pytest.raises(ObjectExists):
        store.put("owner.json", b"mine", if_absent=True)

    assert read(store, "owner.json") == other


@pytest.mark.parametrize("store", ["memory", "local", "seaweedfs", CEPH], indirect=True)
def test_of_many_hosts_that_put_if_absent_at_once_one_wins(store: Store) -> None:
    start = threading.Barrier(4)

    def claim(host: int) -> bool:
        start.wait()
        try:
            store.put("owner.json", f"host {host}".encode(), if_absent=True)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(4) as hosts:
        won = list(hosts.map(claim, range(4)))

    assert won.count(True) == 1
    assert read(store, "owner.json") == f"host {won.index(True)}".encode()


@every_store
def test_a_key_that_is_not_there_is_missing_to_head_and_open(store: Store) -> None:
    store.put("set/a", b"1")

    with pytest.raises(ObjectMissing):
        store.head("set/b")
    with pytest.raises(ObjectMissing), store.open("set/b"):
        pass
    with pytest.raises(ObjectMissing), store.open("set/b", offset=1, length=0):
        pass
    with pytest.raises(ObjectMissing):
        store.head("set")


@every_store
@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "../a", "./a", "a/.", "nul\0", "half \ud800", "x" * 1100]
)
def test_what_is_not_a_key_is_refused_everywhere(store: Store, key: str) -> None:
    source = replace(store.put("there", bytes(2000)), key=key)
    for attempt in (
        lambda: store.put(key, b""),
        lambda: store.begin(key),
        lambda: store.head(key),
        lambda: store.open(key).__enter__(),
        lambda: store.delete([key]),
    ):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert not isinstance(caught.value, ObjectMissing)
    with pytest.raises(StoreError), store.begin("copy") as upload:
        upload.copy(1, source, 0, 1000)


@every_store
@pytest.mark.parametrize(
    "key", ["späce and ünïcode/日本", "a+b&c=d?e#f%20g", "dots...and~tilde/'quoted'", "x/" * 20 + "deep"]
)
def test_keys_are_kept_as_they_are(store: Store, key: str) -> None:
    store.put(key, b"1")
    upload_object(store, key + ".big", [b"2"])

    assert keys(store) == sorted([key, key + ".big"])
    assert read(store, key) == b"1"
    copy_of = store.head(key)
    assert copy_of.size == 1
    store.delete([key, key + ".big"])
    assert keys(store) == []


# --- reading ---------------------------------------------------------------------------------------------------------


@every_store
@pytest.mark.parametrize(
    ("offset", "length"), [(0, None), (0, 10), (3, 4), (9, 1), (9, None), (10, None), (10, 0), (0, 0), (4, 0)]
)
def test_a_range_holds_the_bytes_of_the_slice(store: Store, offset: int, length: int | None) -> None:
    store.put("digits", b"0123456789")

    end = None if length is None else offset + length
    assert read(store, "digits", offset, length) == b"0123456789"[offset:end]


@every_store
@pytest.mark.parametrize(("offset", "length"), [(0, 11), (9, 2), (10, 1), (11, None), (11, 0), (50, 5)])
def test_a_range_that_the_object_does_not_hold_is_never_a_short_read(
    store: Store, offset: int, length: int | None
) -> None:
    store.put("digits", b"0123456789")

    with pytest.raises(ObjectChanged), store.open("digits", offset=offset, length=length) as source:
        source.read()


@every_store
def test_reading_tells_which_object_it_reads(store: Store) -> None:
    stored = store.put("digits", b"0123456789")

    with store.open("digits", offset=2, length=3) as source:
        assert (source.stored.key, source.stored.size, source.stored.entity) == ("digits", 10, stored.entity)


@every_store
def test_reading_with_if_match_reads_that_object_or_none(store: Store) -> None:
    first = store.put("digits", b"0123456789")
    with store.open("digits", offset=5, if_match=first.entity) as source:
        assert source.read() == b"56789"

    store.put("digits", b"9876543210")

    for offset, length in ((0, None), (5, 2), (10, None), (0, 0)):
        with (
            pytest.raises(ObjectChanged),
            store.open("digits", offset=offset, length=length, if_match=first.entity) as source,
        ):
            source.read()


@every_store
def test_reads_of_any_size_give_all_bytes_and_then_the_end(store: Store) -> None:
    content = bytes_of(1, 300_000)
    store.put("k", content)

    with store.open("k") as source:
        pieces = [source.read(1), source.read(70_000), source.read(0)]
        while piece := source.read(100_000):
            pieces.append(piece)
        assert source.read(10) == b""
        assert source.read() == b""

    assert b"".join(pieces) == content
    assert len(pieces[0]) == 1
    assert all(len(piece) <= 100_000 for piece in pieces)


# --- listing and deleting --------------------------------------------------------------------------------------------


@every_store
def test_a_listing_is_in_the_order_of_code_points(store: Store) -> None:
    names = ["o/a/b", "o/a-b", "o/Z", "o/é", "o/a.b", "o/a/a", "o-1", "o/𝄞", "o/\uffee"]
    for name in names:
        store.put(name, name.encode())

    listed = list(store.list())

    assert [stored.key for stored in listed] == sorted(names)
    assert [stored.size for stored in listed] == [len(name.encode()) for name in sorted(names)]
    assert {stored.checksum for stored in listed} == {"none"}


@every_store
def test_a_listing_knows_the_entities(store: Store) -> None:
    small = store.put("a", b"1")
    big = upload_object(store, "b", [b"2"])

    assert [stored.entity for stored in store.list()] == [small.entity, big.entity]
    assert all(stored.modified is not None and stored.modified.tzinfo is not None for stored in store.list())


@every_store
def test_a_prefix_is_text_not_a_directory(store: Store) -> None:
    for name in ("backup-1/a", "backup-1/b", "backup-10/a", "other"):
        store.put(name, b"")

    assert keys(store, "backup-1") == ["backup-1/a", "backup-1/b", "backup-10/a"]
    assert keys(store, "backup-1/") == ["backup-1/a", "backup-1/b"]
    assert keys(store, "backup-1/b") == ["backup-1/b"]
    assert keys(store, "nothing") == []
    assert keys(store, "nothing/at/all") == []


@every_store
@pytest.mark.parametrize("prefix", ["../", "..", "/", "//", "./", "set/../", ".pending/", "set/archive/"])
def test_no_prefix_leads_elsewhere(store: Store, prefix: str) -> None:
    store.put("set/archive", b"1")
    upload = store.begin("set/other")

    assert keys(store, prefix) == []
    assert list(store.pending(prefix)) == []
    upload.abort()


@every_store
def test_what_is_deleted_is_gone_and_deleting_it_again_is_no_error(store: Store) -> None:
    for name in ("set/a", "set/b", "set/c"):
        store.put(name, b"1")

    store.delete(["set/a", "set/never", "set/c"])
    store.delete(["set/a"])
    store.delete([])

    assert keys(store) == ["set/b"]


@every_store
def test_deleting_goes_in_the_order_given_and_stops_where_it_fails(store: Store) -> None:
    for name in ("manifest", "archive"):
        store.put(name, b"1")

    with pytest.raises(StoreError):
        store.delete(["manifest", "not//a-key", "archive"])

    assert keys(store) == ["archive"]


# --- uploads in parts ------------------------------------------------------------------------------------------------


@every_store
def test_parts_put_in_any_order_become_the_object_in_order(store: Store) -> None:
    parts = [part(store, 1), part(store, 2, 333), b"the end"]
    with store.begin("archive") as upload:
        for number in (3, 1, 2):
            put(upload, number, parts[number - 1])
        stored = complete(upload, [1, 2, 3], b"".join(parts))

    assert read(store, "archive") == b"".join(parts)
    assert stored.size == sum(map(len, parts))
    assert stored.entity == store.head("archive").entity
    assert stored.checksum.startswith(("crc32:", "md5-parts:"))
    if stored.checksum.startswith("crc32:"):
        assert stored.checksum == f"crc32:{zlib.crc32(b''.join(parts)):08x}"


@every_store
def test_numbers_may_have_gaps(store: Store) -> None:
    parts = {2: part(store, 1), 40: part(store, 2), 1000: b"end"}
    with store.begin("archive") as upload:
        for number, data in parts.items():
            put(upload, number, data)
        complete(upload, [2, 40, 1000], b"".join(parts.values()))

    assert read(store, "archive") == b"".join(parts.values())


@leaving_store
def test_parts_that_are_left_out_are_not_in_the_object(store: Store) -> None:
    parts = {number: part(store, number, number) for number in (1, 2, 3)}
    with store.begin("archive") as upload:
        for number, data in parts.items():
            put(upload, number, data)
        complete(upload, [1, 3], parts[1] + parts[3])

    assert read(store, "archive") == parts[1] + parts[3]
    assert list(store.pending()) == []


@pytest.mark.parametrize("store", [CEPH], indirect=True)
def test_a_store_that_cannot_leave_parts_out_says_so_before_trying(store: Store) -> None:
    with pytest.raises(StoreError, match="left out"):
        upload_parts(store, {1: part(store, 1), 2: b"end"}, [2])


@every_store
def test_a_part_put_again_replaces_the_first(store: Store) -> None:
    wrong, right, end = part(store, 1), part(store, 2, 77), b"end"
    with store.begin("archive") as upload:
        put(upload, 1, wrong)
        put(upload, 2, end)
        put(upload, 1, right)
        complete(upload, [1, 2], right + end)

    assert read(store, "archive") == right + end


@every_store
def test_a_part_may_be_a_view_of_a_reused_buffer(store: Store) -> None:
    buffer = bytearray(b"first..")
    with store.begin("archive") as upload:
        upload.put(1, memoryview(buffer)[:5], zlib.crc32(b"first"))
        buffer[:] = b"XXXXXXX"
        complete(upload, [1], b"first")

    assert read(store, "archive") == b"first"


@every_store
def test_parts_may_be_put_from_several_threads(store: Store) -> None:
    parts = [part(store, number, number * 7) for number in range(4)]
    with store.begin("archive") as upload, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: put(upload, number + 1, parts[number]), range(4)))
        complete(upload, [1, 2, 3, 4], b"".join(parts))

    assert read(store, "archive") == b"".join(parts)


@every_store
def test_nothing_is_visible_before_it_is_complete(store: Store) -> None:
    with store.begin("set/archive") as upload:
        put(upload, 1, b"all of it")

        assert keys(store) == []
        with pytest.raises(ObjectMissing):
            store.head("set/archive")
        assert [pending.key for pending in store.pending()] == ["set/archive"]

        complete(upload, [1], b"all of it")

    assert keys(store) == ["set/archive"]
    assert list(store.pending()) == []


@every_store
def test_an_upload_replaces_the_object_of_its_key_only_when_complete(store: Store) -> None:
    upload_object(store, "archive", [b"old"])
    with store.begin("archive") as upload:
        put(upload, 1, b"new")
        assert read(store, "archive") == b"old"
        complete(upload, [1], b"new")

    assert read(store, "archive") == b"new"


@every_store
def test_leaving_the_block_by_an_error_aborts(store: Store) -> None:
    def archive_unreadable_tree() -> None:
        with store.begin("archive") as upload:
            put(upload, 1, b"half")
            raise RuntimeError("the tree cannot be read")

    with pytest.raises(RuntimeError, match="the tree cannot be read"):
        archive_unreadable_tree()

    assert keys(store) == []
    assert list(store.pending()) == []


@every_store
def test_leaving_the_block_without_completing_is_not_success(store: Store) -> None:
    with store.begin("archive") as upload:
        put(upload, 1, b"half")

    assert keys(store) == []
    assert list(store.pending()) == []


@every_store
def test_abort_may_be_repeated_and_does_nothing_after_complete(store: Store) -> None:
    upload = store.begin("given up")
    put(upload, 1, b"half")
    upload.abort()
    upload.abort()
    with store.begin("kept") as upload:
        put(upload, 1, b"whole")
        complete(upload, [1], b"whole")
        upload.abort()

    assert keys(store) == ["kept"]
    assert list(store.pending()) == []


@exact_store
def test_an_aborted_upload_takes_no_more_parts(store: Store) -> None:
    upload = store.begin("given up")
    put(upload, 1, b"half")
    upload.abort()

    with pytest.raises(ObjectMissing):
        put(upload, 2, b"more")
    assert list(store.pending()) == []


@every_store
def test_the_uploads_of_a_killed_process_can_be_found_and_aborted(store: Store) -> None:
    before = datetime.now(UTC)
    for key in ("set-1/a", "set-1/b", "set-2/a"):
        put(store.begin(key), 1, b"half")  # nobody aborts them

    assert [pending.key for pending in store.pending("set-1")] == ["set-1/a", "set-1/b"]
    found = list(store.pending())
    assert [pending.key for pending in found] == ["set-1/a", "set-1/b", "set-2/a"]
    assert all(pending.started.tzinfo is not None for pending in found)
    assert all(pending.started < before + timedelta(minutes=2) for pending in found)
    for pending in found[:2]:
        store.abort_pending(pending)
        store.abort_pending(pending)

    assert list(store.pending()) == found[2:]
    store.abort_pending(found[2])


@every_store
def test_two_uploads_of_one_key_do_not_touch_each_other(store: Store) -> None:
    first, second = store.begin("archive"), store.begin("archive")
    put(first, 1, b"first")
    put(second, 1, b"second")
    assert len(list(store.pending())) == 2
    first.abort()
    with second:
        complete(second, [1], b"second")

    assert read(store, "archive") == b"second"


@every_store
@pytest.mark.parametrize(
    ("numbers", "why"), [([], "no parts"), ([1, 2, 9], "not put"), ([2, 1], "order"), ([1, 1], "order")]
)
def test_only_parts_that_were_put_become_an_object_in_ascending_order(
    store: Store, numbers: list[int], why: str
) -> None:
    with pytest.raises(StoreError, match=why):
        upload_parts(store, {1: part(store, 1), 2: part(store, 2)}, numbers)

    assert keys(store) == []
    assert list(store.pending()) == []


@pytest.mark.parametrize("store", ["memory", "moto", "seaweedfs", CEPH], indirect=True)
def test_a_part_that_is_too_small_and_not_the_last_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="fewer than"):
        upload_parts(store, {1: b"small", 2: b"end"}, [1, 2])

    assert keys(store) == []


@every_store
@pytest.mark.parametrize("number", [0, -1, 10_000_000])
def test_a_part_number_beyond_the_limits_is_refused(store: Store, number: int) -> None:
    with pytest.raises(StoreError, match="outside"), store.begin("archive") as upload:
        put(upload, number, b"1")


@every_store
def test_an_empty_part_is_refused(store: Store) -> None:
    with pytest.raises(StoreError), store.begin("archive") as upload:
        put(upload, 1, b"")


# --- what the store holds is what was sent ---------------------------------------------------------------------------


@every_store
def test_a_body_that_differs_from_its_checksum_never_becomes_an_object(store: Store) -> None:
    def archive_damaged_memory() -> None:
        with store.begin("archive") as upload:
            upload.put(1, b"what arrived", zlib.crc32(b"what we sent"))
            upload.complete([1], size=12, crc32=zlib.crc32(b"what we sent"))

    with pytest.raises(ChecksumMismatch):
        archive_damaged_memory()

    assert keys(store) == []
    assert list(store.pending()) == []


@exact_store
def test_a_body_that_differs_from_its_checksum_is_refused_at_once(store: Store) -> None:
    with pytest.raises(ChecksumMismatch), store.begin("archive") as upload:
        upload.put(1, b"what arrived", zlib.crc32(b"what was meant"))


@every_store
def test_an_object_that_differs_from_its_checksum_is_not_kept(store: Store) -> None:
    with pytest.raises(ChecksumMismatch):
        upload_parts(store, {1: b"one"}, [1], crc32=zlib.crc32(b"two"))

    assert keys(store) == []
    assert list(store.pending()) == []


@every_store
def test_an_object_of_another_size_is_not_made(store: Store) -> None:
    with pytest.raises(ChecksumMismatch):
        upload_parts(store, {1: b"one"}, [1], size=4)

    assert keys(store) == []


@pytest.mark.parametrize("store", ["memory", "local", "moto", "seaweedfs", "seaweedfs+retrying"], indirect=True)
def test_a_copied_range_that_is_not_what_we_think_is_not_kept(store: Store) -> None:
    source = upload_object(store, "old", [part(store, 1, 100)])
    length = len(part(store, 1))

    def copy_other_bytes_than_meant() -> None:
        with store.begin("new") as upload:
            upload.copy(1, source, 50, length)
            complete(upload, [1], part(store, 1, 100)[51 : 51 + length])

    with pytest.raises(ChecksumMismatch):
        copy_other_bytes_than_meant()

    assert keys(store) == ["old"]
    assert list(store.pending()) == []


# --- copies ----------------------------------------------------------------------------------------------------------


@every_store
def test_ranges_of_an_old_object_become_parts_of_a_new_one(store: Store) -> None:
    old = part(store, 1, 5000) + part(store, 2)
    source = upload_object(store, "old/archive", [part(store, 1, 5000), part(store, 2)])
    length = len(part(store, 1))
    fresh = part(store, 3)
    content = old[4321 : 4321 + length] + fresh + old[-length:]
    with store.begin("new/archive") as upload:
        upload.copy(3, source, len(old) - length, length)
        put(upload, 2, fresh)
        upload.copy(1, source, 4321, length)
        stored = complete(upload, [1, 2, 3], content)

    assert read(store, "new/archive") == content
    assert stored.size == len(content)
    assert read(store, "old/archive") == old


@every_store
def test_a_copy_needs_only_what_a_listing_tells(store: Store) -> None:
    content = part(store, 1)
    upload_object(store, "old", [content])
    (source,) = store.list()
    with store.begin("new") as upload:
        upload.copy(1, source, 0, len(content))
        complete(upload, [1], content)

    assert read(store, "new") == content


@exact_store
def test_a_copy_of_a_replaced_object_is_refused(store: Store) -> None:
    source = upload_object(store, "old", [part(store, 1)])
    upload_object(store, "old", [part(store, 2)])

    with pytest.raises(ObjectChanged), store.begin("new") as upload:
        upload.copy(1, source, 0, source.size)


@every_store
def test_a_copy_of_a_vanished_object_is_refused(store: Store) -> None:
    source = upload_object(store, "old", [part(store, 1)])
    store.delete(["old"])

    with pytest.raises(ObjectMissing), store.begin("new") as upload:
        upload.copy(1, source, 0, source.size)


@every_store
def test_a_copy_beyond_the_end_of_its_source_is_refused(store: Store) -> None:
    source = upload_object(store, "old", [part(store, 1)])

    with pytest.raises(StoreError, match="would copy"), store.begin("new") as upload:
        upload.copy(1, source, 1, source.size)


@pytest.mark.parametrize("store", ["memory", "moto", "seaweedfs", CEPH], indirect=True)
def test_a_copy_of_fewer_bytes_than_the_store_takes_is_refused(store: Store) -> None:
    source = upload_object(store, "old", [part(store, 1)])

    with pytest.raises(StoreError, match="fewer than"), store.begin("new") as upload:
        upload.copy(1, source, 0, store.capabilities.least_copy - 1)


# --- what is wrong with the store itself ------------------------------------------------------------------------------


def everything(store: Store) -> Iterator[Callable[[], object]]:
    yield lambda: store.put("k", b"1")
    yield lambda: store.put("k", b"1", if_absent=True)
    yield lambda: store.begin("k")
    yield lambda: store.head("k")
    yield lambda: store.open("k").__enter__()
    yield lambda: list(store.list())
    yield lambda: store.delete(["k"])
    yield lambda: list(store.pending())


@pytest.mark.parametrize("name", ["moto", "seaweedfs", "seaweedfs+retrying", CEPH])
def test_a_missing_bucket_is_named_and_not_made(make_store: Callable[..., Store], name: str) -> None:
    store = make_store(name, bucket="misspelt")

    for attempt in everything(store):
        with pytest.raises(BucketMissing, match="misspelt") as caught:
            attempt()
        assert "S3_BACKUP_BUCKET" in caught.value.hint
        assert caught.value.store == store.name


def test_a_missing_directory_is_named_and_not_made(tmp_path: object) -> None:
    store = LocalStore(f"{tmp_path}/missing")

    for attempt in everything(store):
        with pytest.raises(BucketMissing, match="missing") as caught:
            attempt()
        assert "mount" in caught.value.hint


@pytest.mark.parametrize("name", ["seaweedfs", "seaweedfs+retrying", CEPH])
@pytest.mark.parametrize("wrong", [{"access_key": "AKIAWRONGKEY"}, {"secret_key": "wrongsecret"}])
def test_wrong_credentials_are_denied_without_repeating_them(
    make_store: Callable[..., Store], name: str, wrong: dict[str, str]
) -> None:
    store = make_store(name, **wrong)

    for attempt in everything(store):
        with pytest.raises(StoreDenied) as caught:
            attempt()
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint
        shown = f"{caught.value} {caught.value.hint} {caught.value!r}"
        assert not [secret for secret in wrong.values() if secret in shown]


# --- laws ------------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Parts put in some order, some more than once with other contents, and the numbers that are completed."""
    puts = draw(st.lists(st.tuples(st.integers(1, 8), st.binary(min_size=1, max_size=40)), min_size=1, max_size=16))
    numbers = sorted({number for number, _ in puts})
    chosen = draw(st.lists(st.sampled_from(numbers), min_size=1, unique=True))
    return puts, sorted(chosen)


@pytest.mark.parametrize("kind", ["memory", "local", "local+retrying"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), offset=st.integers(0, 400), length=st.integers(0, 400))
def test_an_object_is_the_last_of_each_part_completed_in_order_and_ranges_are_its_slices(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    history: tuple[list[tuple[int, bytes]], list[int]],
    offset: int,
    length: int,
) -> None:
    store: Store
    if kind == "memory":
        store = MemoryStore(capabilities=Capabilities(least_part=1))
    else:
        store = LocalStore(str(tmp_path_factory.mktemp("root")))
        store = RetryingStore(store) if "+" in kind else store
    puts, chosen = history
    last = dict(puts)
    content = b"".join(last[number] for number in chosen)

    with store.begin("k") as upload:
        for number, data in puts:
            put(upload, number, data)
        stored = complete(upload, chosen, content)

    assert (stored.size, stored.checksum) == (len(content), f"crc32:{zlib.crc32(content):08x}")
    assert read(store, "k") == content
    if offset + length <= len(content):
        assert read(store, "k", offset, length) == content[offset : offset + length]
    else:
        with pytest.raises(ObjectChanged):
            read(store, "k", offset, length)
    assert list(store.pending()) == []
