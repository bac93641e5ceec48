"""What a killed run left in a store is put right, and nothing else is touched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sidecar.errors import StoreUnreachable
from sidecar.jobs.ownership import Claimant
from sidecar.jobs.recover import sweep
from sidecar.stores.memory import MemoryStore

OWNER = b'{"format":1,"kind":"owner","engine":"ME","host":"here"}'
ME, ANOTHER = (Claimant(engine, "here", "backup-state", lambda _: None) for engine in ("ME", "ANOTHER"))
START = datetime(2026, 1, 3, tzinfo=UTC)
GOOD, HALF = "backup-20260101_030000", "backup-20260102_030000"


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        self.events.append((name, fields))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def store() -> MemoryStore:
    """A store with a whole set, a half one, an upload under way, and things that are not ours."""
    store = MemoryStore()
    store.put("owner.json", OWNER)
    for key in (f"{GOOD}/db.tar.gz", f"{GOOD}/manifest.json", f"{HALF}/db.tar.gz", f"{HALF}/RECOVER.txt"):
        store.put(key, b"{}")
    for key in ("backup-notes/readme.txt", "backup-20260231_030000/not-a-date", "other/file"):
        store.put(key, b"the user's own")
    store.begin(f"{HALF}/files.tar.gz")
    return store


def keys(store: MemoryStore) -> set[str]:
    return {stored.key for stored in store.list()}


def test_half_sets_and_uploads_of_a_killed_run_are_removed_and_named(store: MemoryStore, log: Log) -> None:
    before = keys(store)
    assert sweep(store, ME, log, START)
    assert before - keys(store) == {f"{HALF}/db.tar.gz", f"{HALF}/RECOVER.txt"}
    assert list(store.pending()) == []
    assert log.events == [("recovered", {"store": "memory", "uploads": 1, "sets": [HALF]})]


def test_another_engines_prefix_is_not_touched(store: MemoryStore, log: Log) -> None:
    before = keys(store)
    assert sweep(store, ANOTHER, log, START)
    assert keys(store) == before
    assert len(list(store.pending())) == 1
    assert log.events == []


def test_a_prefix_without_an_owner_is_not_touched(store: MemoryStore, log: Log) -> None:
    store.delete(["owner.json"])
    before = keys(store)
    assert sweep(store, ME, log, START)
    assert keys(store) == before


def test_a_manifest_that_the_listing_missed_saves_its_set(log: Log) -> None:
    class Lagging(MemoryStore):
        def list(self, prefix: str = "") -> Any:
            return (stored for stored in super().list(prefix) if not stored.key.endswith("manifest.json"))

    store = Lagging()
    store.put("owner.json", OWNER)
    store.put(f"{GOOD}/db.tar.gz", b"data")
    store.put(f"{GOOD}/manifest.json", b"{}")
    assert sweep(store, ME, log, START)
    assert store.head(f"{GOOD}/db.tar.gz").size == 4


def test_a_store_that_does_not_answer_is_left_for_later_and_said(log: Log) -> None:
    class Away(MemoryStore):
        def open(self, key: str, **options: Any) -> Any:
            raise StoreUnreachable("nobody answers", hint="is the network up?", store=self.name)

    assert not sweep(Away(), ME, log, START)
    assert [name for name, _ in log.events] == ["store_failed"]


def test_a_clean_store_says_nothing(log: Log) -> None:
    store = MemoryStore()
    store.put("owner.json", OWNER)
    assert sweep(store, ME, log, START)
    assert log.events == []
