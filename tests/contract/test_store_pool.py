"""PooledUpload: concurrent, bounded, and honest about the first error."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from sidecar.errors import ChecksumMismatch, ObjectMissing, StoreDenied, StoreError, StoreUnreachable
from sidecar.stores.memory import MemoryStore
from sidecar.stores.pool import PooledUpload, combine
from sidecar.stores.port import Capabilities, Stored, Upload
from tests.contract.store_faults import Script, ScriptedStore


def memory() -> MemoryStore:
    return MemoryStore(capabilities=Capabilities(least_part=1, least_copy=1))


def read(store: MemoryStore, key: str) -> bytes:
    with store.open(key) as source:
        return source.read()


class Held:
    """An upload whose parts wait until they are let go."""

    def __init__(self, inner: Upload) -> None:
        self.key = inner.key
        self.inner = inner
        self.under_way = 0
        self.most = 0
        self.changed = threading.Condition()
        self.open = False
        self.aborts = 0

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        with self.changed:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.open, timeout=20)
            self.under_way -= 1
        self.inner.put(number, data, crc32)

    def let_go(self) -> None:
        with self.changed:
            self.open = True
            self.changed.notify_all()

    def await_under_way(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.under_way == count, timeout=20)

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        self.inner.copy(number, source, offset, length)

    def complete(self, numbers: object, *, size: int, crc32: int) -> Stored:
        return self.inner.complete(numbers, size=size, crc32=crc32)  # type: ignore[arg-type]

    def abort(self) -> None:
        self.aborts += 1
        self.inner.abort()

    def __enter__(self) -> Held:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


@given(parts=st.lists(st.binary(max_size=300)))
def test_checksums_of_parts_combine_to_that_of_the_whole(parts: list[bytes]) -> None:
    whole = b"".join(parts)

    assert combine((len(part), zlib.crc32(part)) for part in parts) == (len(whole), zlib.crc32(whole))


def test_checksums_combine_beyond_four_gibibytes() -> None:
    mebibyte = bytes(1 << 20)
    crc32 = 0
    for _ in range(4097):
        crc32 = isal_zlib.crc32(mebibyte, crc32)  # one after the other; zlib's takes 3 s

    assert combine([(1 << 20, zlib.crc32(mebibyte))] * 4097) == (4097 << 20, crc32)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(parts=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=20), threads=st.integers(1, 5))
def test_parts_become_the_object_however_many_threads_put_them(parts: list[bytes], threads: int) -> None:
    store = memory()
    with PooledUpload(store.begin("k"), threads=threads) as upload:
        for number, data in enumerate(parts, 1):
            upload.put(number, data)
        stored = upload.complete()

    content = b"".join(parts)
    assert read(store, "k") == content
    assert (stored.size, stored.checksum) == (len(content), f"crc32:{zlib.crc32(content):08x}")
    assert upload.bytes_uploaded == len(content)


def test_copies_and_parts_mix_and_only_those_named_are_completed() -> None:
    store = memory()
    source = store.put("old", b"0123456789")
    with PooledUpload(store.begin("new"), threads=3) as upload:
        upload.copy(1, source, 3, 4, zlib.crc32(b"3456"))
        upload.put(2, b"dropped", zlib.crc32(b"dropped"))
        upload.put(3, b"kept", zlib.crc32(b"kept"))
        stored = upload.complete([1, 3])

    assert read(store, "new") == b"3456kept"
    assert stored.size == 8
    assert (upload.bytes_copied, upload.bytes_uploaded) == (4, 11)


def test_a_copy_of_other_bytes_than_the_index_says_is_found_at_the_end() -> None:
    store = memory()
    source = store.put("old", b"0123456789")

    def archive() -> None:
        with PooledUpload(store.begin("new")) as upload:
            upload.copy(1, source, 3, 4, zlib.crc32(b"other"))
            upload.complete()

    with pytest.raises(ChecksumMismatch):
        archive()
    assert [stored.key for stored in store.list()] == ["old"]


def test_as_many_parts_as_threads_are_under_way_and_one_more_waits() -> None:
    held = Held(memory().begin("k"))
    accepted: list[int] = []

    def feed() -> None:
        for number in range(1, 7):
            upload.put(number, b"x")
            accepted.append(number)

    upload = PooledUpload(held, threads=3)
    feeder = in_thread(feed)
    held.await_under_way(3)
    feeder.join(0.2)
    assert feeder.is_alive(), "the fourth part must wait"
    assert accepted == [1, 2, 3]

    held.let_go()
    feeder.join(20)
    assert upload.complete().size == 6
    assert held.most == 3


def test_the_first_error_is_raised_by_the_next_put_and_by_complete() -> None:
    store = memory()
    first = StoreDenied("not allowed")
    script = Script(before={"put_part": [first]})
    upload = PooledUpload(ScriptedStore(store, script).begin("k"), threads=1)
    upload.put(1, b"1")

    def feed() -> None:
        for number in range(2, 5):
            upload.put(number, b"1")

    with pytest.raises(StoreDenied) as caught:
        feed()
    assert caught.value is first
    with pytest.raises(StoreDenied):
        upload.complete()
    script.assert_all_fired()
    upload.abort()
    assert list(store.list()) == []
    assert list(store.pending()) == []


def test_an_error_of_the_last_part_fails_complete() -> None:
    script = Script(before={"put_part": [None, StoreUnreachable("down")]})
    store = memory()

    def archive() -> None:
        with PooledUpload(ScriptedStore(store, script).begin("k"), threads=1) as upload:
            upload.put(1, b"1")
            upload.put(2, b"2")
            upload.complete()

    with pytest.raises(StoreUnreachable):
        archive()
    script.assert_all_fired()
    assert list(store.list()) == []
    assert list(store.pending()) == []


def test_an_error_wakes_a_put_that_is_waiting() -> None:
    script = Script(before={"put_part": [StoreDenied("no")] * 3})
    upload = PooledUpload(ScriptedStore(memory(), script).begin("k"), threads=2)

    def feed() -> None:
        for number in range(1, 100):
            upload.put(number, b"1")

    with pytest.raises(StoreDenied):
        feed()
    upload.abort()


def test_leaving_the_block_by_an_error_aborts() -> None:
    store = memory()

    def archive() -> None:
        with PooledUpload(store.begin("k")) as upload:
            upload.put(1, b"1")
            raise RuntimeError("the tree cannot be read")

    with pytest.raises(RuntimeError, match="the tree"):
        archive()
    assert list(store.pending()) == []
    assert list(store.list()) == []


def test_abort_waits_for_parts_under_way_and_aborts_again_what_they_left() -> None:
    store = memory()
    held = Held(store.begin("k"))
    upload = PooledUpload(held, threads=2, abort_wait=20)
    upload.put(1, b"1")
    upload.put(2, b"2")
    held.await_under_way(2)
    aborting = in_thread(upload.abort)
    aborting.join(0.1)
    assert aborting.is_alive(), "parts are under way"

    held.let_go()
    aborting.join(20)
    assert not aborting.is_alive()
    assert held.aborts == 2
    assert list(store.pending()) == []


def test_abort_does_not_wait_for_ever_for_a_part_that_hangs() -> None:
    held = Held(memory().begin("k"))
    upload = PooledUpload(held, threads=1, abort_wait=0.1)
    upload.put(1, b"1")
    held.await_under_way(1)

    started = time.monotonic()
    upload.abort()

    assert time.monotonic() - started < 5
    assert held.aborts == 2
    held.let_go()


def test_abort_after_complete_does_nothing() -> None:
    store = memory()
    upload = PooledUpload(store.begin("k"))
    upload.put(1, b"1")
    upload.complete()
    upload.abort()

    assert read(store, "k") == b"1"


def test_an_upload_that_has_ended_takes_no_parts() -> None:
    upload = PooledUpload(memory().begin("k"))
    upload.put(1, b"1")
    upload.complete()
    with pytest.raises(StoreError, match="ended"):
        upload.put(2, b"2")

    aborted = PooledUpload(memory().begin("k"))
    aborted.abort()
    with pytest.raises(StoreError, match="ended"):
        aborted.put(1, b"1")


def test_an_upload_without_parts_is_a_clear_error() -> None:
    store = memory()

    def archive() -> None:
        with PooledUpload(store.begin("k")) as upload:
            upload.complete()

    with pytest.raises(StoreError, match="no parts") as caught:
        archive()
    assert not isinstance(caught.value, ObjectMissing)
    assert list(store.pending()) == []


def test_parts_named_but_never_put_are_a_clear_error() -> None:
    with PooledUpload(memory().begin("k")) as upload:
        upload.put(1, b"1")
        with pytest.raises(StoreError, match="part 2 of k was not put"):
            upload.complete([1, 2])
