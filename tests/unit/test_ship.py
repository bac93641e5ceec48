"""A set is shipped from one store to another whole or not at all, whatever fails on the way."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sidecar import sets
from sidecar.errors import (
    ChecksumMismatch,
    Interrupted,
    NotFound,
    OwnedByAnotherHost,
    SetInvalid,
    SidecarError,
    StoreError,
    StoreUnreachable,
)
from sidecar.events import Progress
from sidecar.jobs.ownership import Claimant
from sidecar.jobs.recover import sweep
from sidecar.jobs.ship import ShipTools, lost, ship
from sidecar.report import Outcome
from sidecar.stores.local import LocalStore
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import MEBIBYTE, Store, StoredSource
from tests.contract.store_faults import Script, ScriptedStore

SET = "backup-20260102_030000"
ME = Claimant("ME", "here", "backup-state", lambda _: None)
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
# More than two parts, so that parts, and what lies between them, can fail.
ARCHIVE = random.Random(1).randbytes(17 * MEBIBYTE)
BODIES = {
    f"{SET}/db.tar.gz": ARCHIVE,
    f"{SET}/db.index.jsonl.gz": b"index of db",
    f"{SET}/files.tar.gz": random.Random(2).randbytes(5000),
    f"{SET}/files.index.jsonl.gz": b"index of files",
}
EXPECTED = [*sorted([*BODIES, f"{SET}/RECOVER.txt", f"{SET}/manifest.json"]), "owner.json"]


def stored_object(key: str) -> sets.StoredObject:
    return sets.StoredObject(key, len(BODIES[key]), f"{zlib.crc32(BODIES[key]):08x}")


def manifest() -> bytes:
    volumes = tuple(
        sets.SetVolume(
            volume=name,
            group="shop",
            outcome=Outcome.GOOD,
            archive=stored_object(f"{SET}/{name}.tar.gz"),
            index=stored_object(f"{SET}/{name}.index.jsonl.gz"),
            raw_bytes=10_240,
            files=3,
            driver="local",
            options={},
            labels={},
            mountpoint=f"/var/lib/docker/volumes/{name}/_data",
        )
        for name in ("db", "files")
    )
    return sets.Manifest(
        set=SET,
        time="2026-01-02T03:00:00Z",
        outcome=Outcome.GOOD,
        host="here",
        engine="ME",
        version="test",
        volumes=volumes,
    ).to_json()


class Route:
    """A source with one set, a target without, and what was said on the way."""

    def __init__(self, source: Store, target: Store) -> None:
        self.source = source
        self.target = target
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.cancelled = threading.Event()
        self.progress: list[Progress] = []
        source.put("owner.json", sets.owner_document("ME", "here", NOON, "backup-state"))
        for key, body in BODIES.items():
            source.put(key, body)
        source.put(
            f"{SET}/RECOVER.txt", sets.recover_text(read_manifest(), base=source.location, endpoint=None).encode()
        )
        source.put(f"{SET}/manifest.json", manifest())

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        self.events.append((name, fields))

    def ship(
        self,
        *,
        source: Store | None = None,
        target: Store | None = None,
        follow: Callable[[Progress], None] | None = None,
    ) -> int:
        tools = ShipTools(
            source=source or self.source,
            target=target or self.target,
            claimant=ME,
            endpoint="http://s3:9000",
            threads=2,
            emit=self.emit,
            now=lambda: NOON,
        )
        return ship(SET, tools, follow or self.progress.append, self.cancelled)

    def keys(self) -> list[str]:
        return [stored.key for stored in self.target.list()]

    def assert_whole(self) -> None:
        assert self.keys() == EXPECTED
        for key, body in (BODIES | {f"{SET}/manifest.json": manifest()}).items():
            assert content(self.target, key) == body

    def assert_nothing_counts(self) -> None:
        assert set(self.keys()) <= {"owner.json"}


def read_manifest() -> sets.Manifest:
    return sets.Manifest.from_json(manifest(), where="here")


def content(store: Store, key: str) -> bytes:
    with store.open(key) as source:
        return source.read()


@pytest.fixture
def route() -> Route:
    return Route(MemoryStore(name="local"), MemoryStore(name="s3", off_host=True))


@pytest.fixture(params=["memory", "local"])
def any_route(request: pytest.FixtureRequest, tmp_path: Path) -> Route:
    if request.param == "memory":
        return Route(MemoryStore(name="local"), MemoryStore(name="s3", off_host=True))
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    return Route(LocalStore(str(tmp_path / "from")), LocalStore(str(tmp_path / "to"), prefix="host"))


def test_the_target_gets_every_byte_of_the_set_and_the_manifest_last(any_route: Route) -> None:
    script = Script()
    order: list[str] = []

    class Watching(ScriptedStore):
        def begin(self, key: str, **options: Any) -> Any:
            order.append(key)
            return super().begin(key, **options)

        def put(self, key: str, data: bytes, **options: Any) -> Any:
            order.append(key)
            return super().put(key, data, **options)

    sent = any_route.ship(target=Watching(any_route.target, script))

    any_route.assert_whole()
    assert sent == sum(len(content(any_route.target, key)) for key in EXPECTED[:-1])
    assert order[0] == "owner.json"
    assert order[-1] == f"{SET}/manifest.json"
    assert script.calls.count("put_part") > 3
    assert list(any_route.target.pending()) == []
    assert any_route.progress[-1] == Progress(
        "shipping", "files.index.jsonl.gz", sum(map(len, BODIES.values())), sum(map(len, BODIES.values()))
    )


def test_recover_txt_speaks_of_the_place_where_it_lies(route: Route) -> None:
    route.ship()
    assert content(route.target, f"{SET}/RECOVER.txt").decode() == sets.recover_text(
        read_manifest(), base="s3:", endpoint="http://s3:9000"
    )


def test_a_set_that_is_there_already_is_not_touched(route: Route) -> None:
    route.ship()
    before = {stored.key: stored.entity for stored in route.target.list()}
    assert route.ship() == 0
    assert {stored.key: stored.entity for stored in route.target.list()} == before


def test_another_hosts_prefix_gets_nothing(route: Route) -> None:
    route.target.put("owner.json", sets.owner_document("ANOTHER", "elsewhere", NOON, "backup-state"))
    with pytest.raises(OwnedByAnotherHost):
        route.ship()
    assert route.keys() == ["owner.json"]


def test_a_set_that_its_source_has_no_more_is_told_from_a_source_that_fails(route: Route) -> None:
    route.source.delete([f"{SET}/manifest.json"])
    with pytest.raises(NotFound):
        route.ship()
    script = Script(before={"open": [StoreUnreachable("the disk is away", store="local")]})
    with pytest.raises(StoreUnreachable):
        route.ship(source=ScriptedStore(route.source, script))
    script.assert_all_fired()
    route.source.delete(["owner.json"])
    with pytest.raises(StoreError, match="is not what it was"):  # an empty directory where a disk should be mounted
        route.ship()
    assert route.keys() == []


def test_sets_are_lost_only_when_their_store_is_there_and_has_them_no_more(route: Route) -> None:
    gone = "backup-20260101_030000"
    assert lost([SET, gone], route.source) == {gone: "it is in local: no more"}
    route.source.delete(["owner.json"])
    with pytest.raises(StoreError, match="is not what it was"):
        lost([SET, gone], route.source)


def test_what_a_killed_shipment_left_is_written_over(route: Route) -> None:
    route.target.put("owner.json", sets.owner_document("ME", "here", NOON, "backup-state"))
    route.target.put(f"{SET}/db.tar.gz", ARCHIVE[:100])
    route.target.begin(f"{SET}/files.tar.gz")
    assert sweep(
        route.target, ME, route.emit, datetime(2026, 1, 3, tzinfo=UTC)
    )  # as each start does, but for what is stored between
    route.target.put(f"{SET}/db.tar.gz", ARCHIVE[:100])
    route.ship()
    route.assert_whole()
    assert list(route.target.pending()) == []


# --- a damaged source ------------------------------------------------------------------------------------------------


def flip(body: bytes) -> bytes:
    """One bit, in the last part."""
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize("key", [f"{SET}/db.tar.gz", f"{SET}/files.index.jsonl.gz"])
@pytest.mark.parametrize("damage", [flip, lambda body: body[:-1], lambda body: body + b"x", None])
def test_a_damaged_source_is_never_committed_and_is_named(
    route: Route, key: str, damage: Callable[[bytes], bytes] | None
) -> None:
    if damage:
        route.source.put(key, damage(BODIES[key]))
    else:
        route.source.delete([key])
    with pytest.raises(ChecksumMismatch, match=f"the copy in local: is damaged: {key}") as caught:
        route.ship()
    assert caught.value.store == "local"
    route.assert_nothing_counts()
    assert list(route.target.pending()) == []
    route.source.put(key, BODIES[key])
    route.ship()
    route.assert_whole()


def test_a_damaged_manifest_is_never_committed(route: Route) -> None:
    route.source.put(f"{SET}/manifest.json", manifest()[:-20])
    with pytest.raises(SetInvalid, match=f"local:/{SET}/manifest.json"):
        route.ship()
    route.assert_nothing_counts()


def test_a_source_that_is_replaced_while_it_is_read_is_not_mixed(route: Route) -> None:
    class Replaced(MemoryStore):
        def head(self, key: str) -> Any:
            found = super().head(key)
            self.put(key, content(self, key))
            return found

    source = Replaced(name="local")
    other = Route(source, route.target)
    with pytest.raises(SidecarError, match="was replaced"):
        other.ship()
    other.assert_nothing_counts()


# --- faults ----------------------------------------------------------------------------------------------------------


def calls(of: str) -> list[tuple[str, int]]:
    """Every operation of one side of a shipment that meets no fault: (operation, how many calls came before it)."""
    route, script = Route(MemoryStore(name="local"), MemoryStore(name="s3")), Script()
    route.ship(**{of: ScriptedStore(getattr(route, of), script)})
    return [(name, number) for name in sorted(set(script.calls)) for number in range(script.calls.count(name))]


FAULTS = [
    (of, when, *call)
    for of in ("source", "target")
    for when in ("before", "after")
    for call in calls(of)
    # Whether the set is there is answered by an error of its own.
    if (of, when, call[0]) != ("target", "after", "head")
]


@pytest.mark.parametrize(("of", "when", "operation", "number"), FAULTS)
def test_after_a_fault_at_any_operation_all_or_nothing_is_there_and_the_next_try_succeeds(
    route: Route, of: str, when: str, operation: str, number: int
) -> None:
    fault: list[Exception | None] = [None] * number + [StoreUnreachable("it is away", store=of)]
    script = Script(**{when: {operation: fault}})

    with pytest.raises(StoreUnreachable) as caught:
        route.ship(**{of: ScriptedStore(getattr(route, of), script)})

    script.assert_all_fired()
    assert caught.value.store == of
    route.assert_nothing_counts()
    # An upload whose very beginning was lost can only be found by asking the store, as each start does.
    assert len(list(route.target.pending())) == ((of, when, operation) == ("target", "after", "begin"))
    route.ship()
    route.assert_whole()


def test_every_kind_of_operation_was_tried() -> None:
    tried = {(of, operation) for of, _, operation, _ in FAULTS}
    assert {operation for of, operation in tried if of == "source"} == {"head", "open", "read"}
    assert {operation for of, operation in tried if of == "target"} >= {"put", "head", "begin", "put_part", "complete"}


def test_a_manifest_whose_answer_was_lost_and_that_cannot_be_taken_back_leaves_a_whole_set(route: Route) -> None:
    away = StoreUnreachable("it is away", store="s3")
    script = Script(after={"put": [None, None, away]}, before={"delete": [away]})
    with pytest.raises(StoreUnreachable):
        route.ship(target=ScriptedStore(route.target, script))
    script.assert_all_fired()
    route.assert_whole()
    assert [name for name, _ in route.events] == ["upload_aborted"]
    assert route.ship() == 0


@pytest.mark.parametrize("step", range(6))
def test_told_to_stop_at_any_step_it_leaves_nothing_and_goes_another_day(route: Route, step: int) -> None:
    seen: list[Progress] = []

    def follow(progress: Progress) -> None:
        if len(seen) == step:
            route.cancelled.set()
        seen.append(progress)

    with pytest.raises(Interrupted):
        route.ship(follow=follow)
    assert len(seen) == step + 1
    route.assert_nothing_counts()
    assert list(route.target.pending()) == []
    route.cancelled.clear()
    route.ship()
    route.assert_whole()


@pytest.mark.parametrize("hanging", [1, 2, 3])
def test_told_to_stop_while_parts_hang_it_does_not_wait_for_them(route: Route, hanging: int) -> None:
    """With two threads: the last part hangs and is waited for, two do, or so many that there is no room for a third."""
    release, hung = threading.Event(), threading.Semaphore(0)
    whole = -(-len(ARCHIVE) // (8 * MEBIBYTE))

    class Hanging(ScriptedStore):
        def begin(self, key: str, **options: Any) -> Any:
            upload = super().begin(key, **options)
            put = upload.put

            def stuck(number: int, data: bytes | memoryview, crc32: int) -> None:
                if number > whole - hanging:
                    hung.release()
                    release.wait(25)
                put(number, data, crc32)

            upload.put = stuck  # type: ignore[method-assign]
            return upload

    def stop_when_they_hang() -> None:
        for _ in range(min(hanging, 2)):
            assert hung.acquire(timeout=30)
        route.cancelled.set()

    stopper = threading.Thread(target=stop_when_they_hang)
    stopper.start()
    began = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            route.ship(target=Hanging(route.target, Script()))
        assert time.monotonic() - began < 20
    finally:
        release.set()
        stopper.join()
    route.assert_nothing_counts()
    assert list(route.target.pending()) == []


def test_only_parts_of_a_set_are_in_memory_at_once(tmp_path: Path) -> None:
    size, piece = 192 * MEBIBYTE, random.Random(3).randbytes(MEBIBYTE)
    crc = 0
    for _ in range(size // MEBIBYTE):
        crc = zlib.crc32(piece, crc)
    large = replace(stored_object(f"{SET}/db.tar.gz"), size=size, crc32=f"{crc:08x}")

    class Repeating(MemoryStore):
        """The archive is the same piece over and over; nobody has it whole."""

        def head(self, key: str) -> Any:
            return replace(super().head(key), size=size) if key == large.key else super().head(key)

        def open(self, key: str, **options: Any) -> AbstractContextManager[Any]:
            return repeated(super().open(key)) if key == large.key else super().open(key, **options)

    @contextmanager
    def repeated(opened: AbstractContextManager[StoredSource]) -> Iterator[Any]:
        with opened as inner:
            yield Pieces(inner, size // MEBIBYTE)

    class Pieces:
        def __init__(self, inner: StoredSource, count: int) -> None:
            self.stored = inner.stored
            self.left = count

        def read(self, size: int = -1, /) -> bytes:
            self.left -= 1
            return piece if self.left >= 0 else b""

    source = Repeating(name="local")
    source.put(large.key, b"stands for it")
    for key in BODIES.keys() - {large.key}:
        source.put(key, BODIES[key])
    whole = read_manifest()
    volumes = (replace(whole.volumes[0], archive=large), *whole.volumes[1:])
    source.put(f"{SET}/manifest.json", replace(whole, volumes=volumes).to_json())
    target = LocalStore(str(tmp_path))
    tools = ShipTools(source, target, ME, None, 2, lambda *_, **__: None, lambda: NOON)

    tracemalloc.start()
    try:
        ship(SET, tools, lambda _: None, threading.Event())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert target.head(large.key).size == size
    assert most < 64 * MEBIBYTE
