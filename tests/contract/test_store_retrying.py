"""RetryingStore: what it tries again, how patiently, and when it stops."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
import tenacity
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.errors import (
    ChecksumMismatch,
    Interrupted,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Capabilities
from sidecar.stores.retrying import Retry, RetryingStore, RetryPolicy
from tests.contract.store_faults import Script, ScriptedStore

OPERATIONS = ("begin", "put_part", "copy_part", "complete", "abort", "put", "head", "open", "read", "list", "delete",
              "pending", "abort_pending")  # fmt: skip


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def memory() -> MemoryStore:
    return MemoryStore(capabilities=Capabilities(least_part=1, least_copy=1))


def retrying(script: Script, inner: MemoryStore | None = None, **arguments: object) -> RetryingStore:
    time = Time()
    defaults: dict[str, object] = {"sleep": time.sleep, "clock": time.clock}
    return RetryingStore(ScriptedStore(inner or memory(), script), **(defaults | arguments))  # type: ignore[arg-type]


def use_everything(store: RetryingStore) -> bytes:
    """Every operation of the contract once; the content of the object that comes of it."""
    source = store.put("source", b"0123456789")
    with store.begin("archive") as upload:
        upload.put(1, b"head-", zlib.crc32(b"head-"))
        upload.copy(2, source, 2, 5)
        upload.complete([1, 2], size=10, crc32=zlib.crc32(b"head-23456"))
    with store.begin("given up"):
        pass
    upload = store.begin("left")
    for pending in store.pending():
        store.abort_pending(pending)
    store.delete(["source"])
    assert [stored.key for stored in store.list()] == ["archive"]
    assert store.head("archive").size == 10
    with store.open("archive") as reader:
        content = b"".join(iter(lambda: reader.read(3), b""))
    assert list(store.pending()) == []
    return content


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_tried_again_after_a_failure_that_may_pass(operation: str) -> None:
    script = Script(before={operation: [StoreUnreachable("busy"), StoreUnreachable("busy")]})

    assert use_everything(retrying(script)) == b"head-23456"
    script.assert_all_fired()


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - {"complete", "begin", "read"}))
def test_an_operation_whose_answer_was_lost_may_be_done_twice(operation: str) -> None:
    script = Script(after={operation: [StoreUnreachable("answer lost")]})

    assert use_everything(retrying(script)) == b"head-23456"
    script.assert_all_fired()


@settings(deadline=None, max_examples=150)
@example(faults={"abort": [True, True, True, True]})
@given(faults=st.dictionaries(st.sampled_from(OPERATIONS), st.lists(st.booleans(), max_size=4), max_size=6))
def test_whatever_fails_for_a_while_the_result_is_the_same(faults: dict[str, list[bool]]) -> None:
    # Nobody is patient about an abort: it is tried three times in all.
    before: dict[str, list[Exception | None]] = {
        operation: [
            StoreUnreachable("busy") if fails else None for fails in pattern[: 2 if operation == "abort" else 4]
        ]
        for operation, pattern in faults.items()
    }
    store = retrying(Script(before=before))

    assert use_everything(store) == b"head-23456"


@pytest.mark.parametrize(
    "error",
    [StoreDenied("no"), ObjectMissing("no"), ObjectExists("no"), ObjectChanged("no"), ChecksumMismatch("no"),
     StoreFull("no"), StoreError("no"), RuntimeError("a bug")],
)  # fmt: skip
def test_a_failure_that_will_not_pass_is_not_tried_again(error: Exception) -> None:
    script = Script(before={"put": [error, StoreUnreachable("must not be met")]})

    with pytest.raises(type(error)) as caught:
        retrying(script).put("k", b"")

    assert caught.value is error
    assert script.calls == ["put"]


def test_the_last_error_is_raised_when_the_attempts_are_used_up() -> None:
    errors = [StoreUnreachable(f"attempt {number}") for number in (1, 2, 3)]
    script = Script(before={"head": list(errors)})

    with pytest.raises(StoreUnreachable, match="attempt 3"):
        retrying(script, policy=RetryPolicy(attempts=3)).head("k")

    assert script.calls == ["head"] * 3


def test_it_gives_up_when_the_total_time_has_passed() -> None:
    script = Script(before={"head": [StoreUnreachable("down")] * 1000})
    time = Time()
    store = retrying(
        script,
        policy=RetryPolicy(attempts=1000, total=60.0),
        sleep=time.sleep,
        clock=time.clock,
        wait=tenacity.wait_fixed(7),
    )

    with pytest.raises(StoreUnreachable):
        store.head("k")

    assert 60 <= time.now - 1000 < 60 + 7 + 0.1
    assert len(script.calls) == 10  # at 0, 7, ... 63 s


def test_a_store_that_can_be_done_without_is_given_up_sooner_until_it_has_answered_once() -> None:
    soon, later = RetryPolicy(attempts=3), RetryPolicy(attempts=10)
    for answer in ([], [ObjectMissing("not here")]):
        script = Script(
            before={"head": [*answer, *[StoreUnreachable("down")] * 9], "put": [StoreUnreachable("down")] * 3}
        )
        store = retrying(script, policy=later, at_first=soon)
        with pytest.raises(StoreUnreachable):
            store.put("k", b"")
        assert script.calls == ["put"] * 3
        if answer:
            with pytest.raises(ObjectMissing, match="not here"):
                store.head("k")
        else:
            store.put("k", b"")
        with suppress(ObjectMissing):
            store.head("k")
        assert script.calls.count("head") == 10 + len(answer)


def test_waits_are_drawn_from_a_window_that_doubles_up_to_the_cap() -> None:
    waits: dict[int, list[float]] = {}
    for _ in range(200):
        retries: list[Retry] = []
        script = Script(before={"head": [StoreUnreachable("down")] * 7})
        with pytest.raises(ObjectMissing):
            retrying(script, policy=RetryPolicy(base=0.5, cap=4.0), on_retry=retries.append).head("k")
        for retry in retries:
            waits.setdefault(retry.attempt, []).append(retry.wait)

    for attempt, window in {1: 0.5, 2: 1.0, 3: 2.0, 4: 4.0, 5: 4.0, 6: 4.0, 7: 4.0}.items():
        assert 0 <= min(waits[attempt]) < 0.2 * window, "full jitter begins at nought"
        assert 0.8 * window < max(waits[attempt]) <= window


def test_every_wait_is_slept() -> None:
    retries: list[Retry] = []
    script = Script(before={"head": [StoreUnreachable("down")] * 4})
    time = Time()
    with pytest.raises(ObjectMissing):
        retrying(script, sleep=time.sleep, clock=time.clock, on_retry=retries.append).head("k")

    assert time.now - 1000 == pytest.approx(sum(retry.wait for retry in retries))


def test_every_retry_is_told_with_what_failed_on_what() -> None:
    retries: list[Retry] = []
    busy, gone = StoreUnreachable("busy"), StoreUnreachable("gone")
    script = Script(before={"put_part": [busy, gone]})
    store = retrying(script, on_retry=retries.append)
    with store.begin("set/archive") as upload:
        upload.put(1, b"1", zlib.crc32(b"1"))

    assert [(r.store, r.operation, r.key, r.attempt, r.error) for r in retries] == [
        ("memory", "put_part", "set/archive", 1, busy),
        ("memory", "put_part", "set/archive", 2, gone),
    ]


def test_a_wait_ends_at_once_when_the_daemon_is_told_to_stop() -> None:
    stop = threading.Event()
    time = Time()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if time.now > 1003:
            stop.set()

    busy = StoreUnreachable("busy")
    store = retrying(
        Script(before={"head": [busy]}),
        sleep=sleep,
        clock=time.clock,
        cancelled=stop.is_set,
        wait=tenacity.wait_fixed(30),
    )

    with pytest.raises(Interrupted) as caught:
        store.head("k")

    assert time.now - 1003 < 0.3
    assert caught.value.__cause__ is busy


def test_when_stopping_a_request_is_still_made_but_not_again() -> None:
    inner = memory()
    inner.put("k", b"1")
    script = Script(before={"list": [StoreUnreachable("busy")]})
    store = retrying(script, inner, cancelled=lambda: True, sleep=_never_called)

    assert store.head("k").size == 1
    with store.begin("given up"):
        pass
    assert list(inner.pending()) == []
    with pytest.raises(Interrupted):
        list(store.list())
    script.assert_all_fired()


def _never_called(_: float) -> None:
    raise AssertionError("nothing may be waited for")


def test_abort_ends_the_waits_of_parts_under_way() -> None:
    waiting = threading.Event()
    script = Script(before={"put_part": [StoreUnreachable("down")] * 100_000})

    def sleep(_: float) -> None:
        waiting.set()
        threading.Event().wait(0.005)

    store = retrying(script, sleep=sleep, policy=RetryPolicy(attempts=100_000), wait=tenacity.wait_fixed(3600))
    upload = store.begin("archive")
    met: list[BaseException] = []

    def put() -> None:
        try:
            upload.put(1, b"1", zlib.crc32(b"1"))
        except StoreError as error:
            met.append(error)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    assert waiting.wait(10)
    upload.abort()
    thread.join(10)

    assert not thread.is_alive()
    assert [type(error) for error in met] == [ObjectMissing]


def test_abort_does_not_wait_long_for_a_store_that_is_down() -> None:
    time = Time()
    script = Script(before={"abort": [StoreUnreachable("down")] * 100})
    upload = retrying(script, sleep=time.sleep, clock=time.clock).begin("archive")

    with pytest.raises(StoreUnreachable):
        upload.abort()

    assert time.now - 1000 < 10


def test_the_reason_for_leaving_the_block_is_not_hidden_by_an_abort_that_fails() -> None:
    script = Script(before={"abort": [StoreDenied("not allowed")]})

    def archive() -> None:
        with retrying(script).begin("archive"):
            raise RuntimeError("the tree cannot be read")

    with pytest.raises(RuntimeError, match="the tree") as caught:
        archive()

    assert "not allowed" in caught.value.__notes__[0]
    script.assert_all_fired()


@pytest.mark.parametrize("size", [1, 3, 100, -1])
def test_a_read_goes_on_where_the_connection_dropped(size: int) -> None:
    inner = memory()
    inner.put("k", bytes(range(100)))
    script = Script(before={"read": [None, StoreUnreachable("dropped"), StoreUnreachable("dropped again")]})

    with retrying(script, inner).open("k", offset=10, length=50) as source:
        content = source.read(7) + b"".join(iter(lambda: source.read(size), b""))

    assert content == bytes(range(10, 60))
    script.assert_all_fired()
    assert script.calls.count("open") == 3


def test_a_read_does_not_go_on_in_another_object() -> None:
    inner = memory()
    inner.put("k", b"first content")
    script = Script(before={"read": [None, StoreUnreachable("dropped")]})

    with retrying(script, inner).open("k") as source:
        assert source.read(5) == b"first"
        inner.put("k", b"other content")
        with pytest.raises(ObjectChanged):
            source.read()

    script.assert_all_fired()


def test_progress_renews_the_patience_of_a_long_read() -> None:
    inner = memory()
    inner.put("k", bytes(20))
    drop: Callable[[], list[Exception | None]] = lambda: [StoreUnreachable("dropped"), StoreUnreachable("again"), None]  # noqa: E731
    script = Script(before={"read": [fault for _ in range(20) for fault in drop()]})

    with retrying(script, inner, policy=RetryPolicy(attempts=3)).open("k") as source:
        assert b"".join(iter(lambda: source.read(1), b"")) == bytes(20)

    script.assert_all_fired()
