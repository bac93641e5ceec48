"""The one place that retries: a store around a store, with full jitter, a cap, and only for what may pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from sidecar.errors import Interrupted, ObjectMissing, StoreError
from sidecar.stores.port import Capabilities, Pending, Store, Stored, StoredSource, Upload
from sidecar.stores.rules import AbortingUpload

Result = TypeVar("Result")

# How long a back-off may go on after the daemon was told to stop, in seconds.
_SLICE = 0.1


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patiently. A request is given up after `attempts`, or when `total` seconds have passed since the first.

    Before attempt n + 1 the wait is drawn evenly from 0 to base * 2**(n-1) seconds, at most cap ("full jitter": clients
    that failed together do not come back together).
    """

    attempts: int = 20
    total: float = 900.0
    base: float = 0.5
    cap: float = 30.0


# What giving up may cost: a store that just failed for `total` seconds is not asked as patiently to forget an upload,
# which `pending` finds later anyway.
_ABORT = RetryPolicy(attempts=3, total=10.0, base=0.25, cap=1.0)


@dataclass(frozen=True, slots=True)
class Retry:
    """A failed attempt that will be followed by another, for the log event `store_retry`.

    attempt counts from 1; wait in seconds.
    """

    store: str
    operation: str
    key: str
    attempt: int
    wait: float
    error: StoreError


def _nobody(_: Retry) -> None:
    return


def _never() -> bool:
    return False


class RetryingStore:
    """`inner`, where a request that failed with a `retryable` error is made again.

    on_retry is called before each wait. cancelled: when it turns true, a wait ends within 0.1 s and Interrupted is
    raised from the store's error; requests that need no retry still go through, so that uploads can be aborted.
    at_first: the policy until the store has answered once, for whoever can do without it. sleep, clock and wait
    (tenacity's type) are arguments for tests; wait replaces the policy's jitter.
    """

    def __init__(
        self,
        inner: Store,
        policy: RetryPolicy | None = None,
        *,
        at_first: RetryPolicy | None = None,
        on_retry: Callable[[Retry], None] = _nobody,
        cancelled: Callable[[], bool] = _never,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        wait: tenacity.wait.wait_base | None = None,
    ) -> None:
        self.name = inner.name
        self.off_host = inner.off_host
        self._inner = inner
        self._policy = policy or RetryPolicy()
        self._at_first = at_first
        self._on_retry = on_retry
        self._cancelled = cancelled
        self._sleep = sleep
        self._clock = clock
        self._wait = wait

    @property
    def location(self) -> str:
        """The inner store's."""
        return self._inner.location

    @property
    def capabilities(self) -> Capabilities:
        """The inner store's."""
        return self._inner.capabilities

    def begin(self, key: str, *, content_type: str = "application/octet-stream") -> Upload:
        """See Store.begin. An answer that is lost leaves an upload behind, which `pending` shows."""
        return _RetryingUpload(
            self, self.request("begin", key, lambda: self._inner.begin(key, content_type=content_type))
        )

    def put(self, key: str, data: bytes, *, content_type: str = "application/json", if_absent: bool = False) -> Stored:
        """See Store.put."""
        return self.request(
            "put", key, lambda: self._inner.put(key, data, content_type=content_type, if_absent=if_absent)
        )

    def head(self, key: str) -> Stored:
        """See Store.head."""
        return self.request("head", key, lambda: self._inner.head(key))

    @contextmanager
    def open(
        self, key: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None
    ) -> Iterator[StoredSource]:
        """See Store.open. A connection that drops is resumed where it ended, on the same object or not at all."""
        source = _ResumingSource(self, key, offset, length, if_match)
        try:
            yield source
        finally:
            source.close()

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """See Store.list."""
        return iter(self.request("list", prefix, lambda: tuple(self._inner.list(prefix))))

    def delete(self, keys: Sequence[str]) -> None:
        """See Store.delete."""
        for key in keys:
            self.request("delete", key, lambda key=key: self._inner.delete([key]))  # type: ignore[misc]

    def pending(self, prefix: str = "") -> Iterator[Pending]:
        """See Store.pending."""
        return iter(self.request("pending", prefix, lambda: tuple(self._inner.pending(prefix))))

    def abort_pending(self, upload: Pending) -> None:
        """See Store.abort_pending."""
        self.request("abort", upload.key, lambda: self._inner.abort_pending(upload))

    def open_inner(
        self, key: str, offset: int, length: int | None, if_match: str | None
    ) -> AbstractContextManager[StoredSource]:
        """The inner store's `open`, without retries."""
        return self._inner.open(key, offset=offset, length=length, if_match=if_match)

    def request(
        self,
        operation: str,
        key: str,
        act: Callable[[], Result],
        *,
        policy: RetryPolicy | None = None,
        ended: threading.Event | None = None,
    ) -> Result:
        """`act`'s result, asked for again as the policy says. `ended` gives up like `cancelled`, for one upload."""
        policy = policy or self._at_first or self._policy
        started = self._clock()
        failed: list[StoreError] = []

        def worth_trying(error: BaseException) -> bool:
            if not isinstance(error, StoreError) or not error.retryable:
                self._at_first = None  # that was an answer
                return False
            failed[:] = [error]
            return True

        def spent(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number >= policy.attempts or self._clock() - started >= policy.total

        def check() -> None:
            if self._cancelled():
                raise Interrupted(f"{operation} of {key} was given up: the run was told to stop") from failed[0]
            if ended is not None and ended.is_set():
                raise ObjectMissing(f"the upload of {key} was aborted", store=self.name) from failed[0]

        def announce(state: tenacity.RetryCallState) -> None:
            check()
            self._on_retry(Retry(self.name, operation, key, state.attempt_number, state.upcoming_sleep, failed[0]))

        def doze(seconds: float) -> None:
            while seconds > 0:
                self._sleep(min(seconds, _SLICE))
                seconds -= _SLICE
                check()

        result = tenacity.Retrying(
            retry=tenacity.retry_if_exception(worth_trying),
            stop=spent,
            wait=self._wait or tenacity.wait_random_exponential(multiplier=policy.base, max=policy.cap),
            before_sleep=announce,
            sleep=doze,
            reraise=True,
        )(act)
        self._at_first = None
        return result


class _RetryingUpload(AbortingUpload):
    def __init__(self, store: RetryingStore, inner: Upload) -> None:
        self.key = inner.key
        self._store = store
        self._inner = inner
        self._ended = threading.Event()

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        self._request("put_part", lambda: self._inner.put(number, data, crc32))

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        self._request("copy_part", lambda: self._inner.copy(number, source, offset, length))

    def complete(self, numbers: Sequence[int], *, size: int, crc32: int) -> Stored:
        stored = self._request("complete", lambda: self._inner.complete(numbers, size=size, crc32=crc32))
        self.completed = True
        return stored

    def abort(self) -> None:
        if self.completed:
            return
        self._ended.set()  # parts that are waiting for their next attempt give up now
        self._store.request("abort", self.key, self._inner.abort, policy=_ABORT)
        self.aborted = True

    def _request(self, operation: str, act: Callable[[], Result]) -> Result:
        return self._store.request(operation, self.key, act, ended=self._ended)


class _ResumingSource:
    """Reads on from where a dropped connection ended. Each read has the policy's patience, so progress renews it."""

    def __init__(self, store: RetryingStore, key: str, offset: int, length: int | None, if_match: str | None) -> None:
        self._store = store
        self._key = key
        self._offset = offset
        self._length = length
        self._if_match = if_match
        self._stack = ExitStack()
        self._source: StoredSource | None = None
        self.stored = self._retried(lambda source: source.stored)
        self._if_match = self.stored.entity
        # Known from here on, so that the rest is asked for exactly, and nothing when nothing is left.
        self._length = self.stored.size - offset if length is None else length

    def read(self, size: int = -1, /) -> bytes:
        assert self._length is not None
        if not self._length or not size:
            return b""
        data = self._retried(lambda source: source.read(size))
        self._offset += len(data)
        self._length -= len(data)
        return data

    def close(self) -> None:
        self._source = None
        self._stack.close()

    def _retried(self, act: Callable[[StoredSource], Result]) -> Result:
        return self._store.request("read", self._key, lambda: self._attempt(act))

    def _attempt(self, act: Callable[[StoredSource], Result]) -> Result:
        try:
            if self._source is None:
                self._source = self._stack.enter_context(
                    self._store.open_inner(self._key, self._offset, self._length, self._if_match)
                )
            return act(self._source)
        except BaseException:
            self.close()
            raise
