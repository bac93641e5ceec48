"""Who may write below a prefix: one engine, and one running sidecar of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidecar.errors import OwnedByAnotherHost, OwnedByAnotherSidecar, StoreUnreachable
from sidecar.events import EVENTS
from sidecar.jobs.ownership import Claimant, claim, claimant, is_ours
from sidecar.jobs.recover import sweep
from sidecar.stores.memory import MemoryStore
from tests.contract.fake_engine import FakeEngine
from tests.contract.store_faults import Script, ScriptedStore

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SIDECAR = {"backup.role": "sidecar"}


class Host:
    """An engine with our sidecar, `backup`, and a store."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.store = MemoryStore()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.minutes = 0
        self.engine.run("backup", labels=SIDECAR, volumes={"backup-state": "/state"})

    def sidecar(self, name: str = "backup") -> Claimant:
        return claimant(self.engine, self.engine.container(name), host=f"host of {name}", target="/state")

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        assert name in EVENTS
        self.events.append((name, fields))

    def claim(self, us: Claimant | None = None) -> None:
        self.minutes += 1
        claim(self.store, us or self.sidecar(), NOON + timedelta(minutes=self.minutes), self.emit)

    def owner(self) -> dict[str, Any]:
        with self.store.open("owner.json") as source:
            return dict(json.loads(source.read()))

    def sweep(self, us: Claimant | None = None) -> bool:
        return sweep(self.store, us or self.sidecar(), self.emit, datetime(2026, 1, 3, tzinfo=UTC))


@pytest.fixture
def host() -> Host:
    return Host()


def another(host: Host, state: str = "other-state") -> Claimant:
    """A second sidecar that runs on the same engine, and has written there."""
    host.engine.run("other", labels=SIDECAR, volumes={state: "/state"})
    other = host.sidecar("other")
    host.claim(other)
    return other


def test_a_new_prefix_is_claimed_for_the_engine_and_the_state_volume(host: Host) -> None:
    host.claim()
    assert (host.owner()["engine"], host.owner()["state"]) == (host.engine.identity().id, "backup-state")
    host.claim()
    assert host.events == []


def test_a_sidecar_that_was_made_anew_with_its_state_goes_on_silently(host: Host) -> None:
    host.claim()
    before = host.owner()
    host.engine.remove("backup")
    host.engine.run("backup", labels=SIDECAR, volumes={"backup-state": "/state"})
    host.claim()
    assert host.sweep()
    assert (host.owner(), host.events) == (before, [])


def test_the_prefix_of_another_sidecar_that_runs_is_refused_by_its_name_and_not_swept(host: Host) -> None:
    other = another(host)
    host.store.begin("backup-20260102_030000/db.tar.gz")  # the other's, under way
    for act in (host.claim, host.sweep, lambda: is_ours(host.store, host.sidecar())):
        with pytest.raises(OwnedByAnotherSidecar, match="the sidecar other, which runs on this host") as caught:
            act()
        assert "BACKUP_PREFIX" in caught.value.hint
    assert len(list(host.store.pending())) == 1
    assert host.owner()["state"] == "other-state"
    host.claim(other)


def test_the_prefix_of_a_sidecar_that_does_not_run_any_more_is_taken_over_and_that_is_said(host: Host) -> None:
    another(host)
    host.engine.kill("other")
    assert host.sweep()
    host.claim()
    assert host.owner()["state"] == "backup-state"
    ((name, fields),) = host.events
    assert name == "prefix_taken_over"
    assert "other-state" in fields["error"]
    # It is refused in its turn, should it come back.
    host.engine.start("other")
    with pytest.raises(OwnedByAnotherSidecar, match="the sidecar backup"):
        host.claim(host.sidecar("other"))


def test_a_place_is_held_from_the_start_on_and_not_only_from_the_first_run(host: Host) -> None:
    another(host)
    host.engine.kill("other")
    assert host.sweep()  # our start
    assert host.owner()["state"] == "backup-state"
    host.engine.start("other")
    with pytest.raises(OwnedByAnotherSidecar, match="the sidecar backup"):
        host.sweep(host.sidecar("other"))  # its start


def test_helpers_dead_men_and_the_users_containers_are_no_sidecars(host: Host) -> None:
    another(host)
    host.engine.kill("other")
    for name, labels in (("a", {"backup.role": "helper"}), ("b", {"backup.role": "deadman"}), ("c", {})):
        host.engine.run(name, labels=labels, volumes={"other-state": "/state"})
    host.claim()


def test_a_sidecar_with_another_volume_elsewhere_does_not_stand_for_the_owner(host: Host) -> None:
    another(host)
    host.engine.kill("other")
    host.engine.run("third", labels=SIDECAR, volumes={"third-state": "/state", "other-state": "/elsewhere"})
    host.claim()


def test_an_older_versions_document_is_completed_without_a_word(host: Host) -> None:
    engine = host.engine.identity().id
    host.store.put("owner.json", json.dumps({"format": 1, "engine": engine, "host": "here"}).encode())
    assert host.sweep()
    host.claim()
    assert host.owner()["state"] == "backup-state"
    assert host.events == []


def test_another_engines_prefix_is_refused_whoever_runs_here(host: Host) -> None:
    host.claim(Claimant("ANOTHER", "elsewhere", "backup-state", lambda _: None))
    with pytest.raises(OwnedByAnotherHost, match="belongs to host elsewhere"):
        host.claim()
    assert not is_ours(host.store, host.sidecar())


def test_a_damaged_document_is_refused_and_nothing_below_it_is_swept(host: Host) -> None:
    host.store.put("owner.json", b"{")
    with pytest.raises(OwnedByAnotherHost, match="damaged"):
        host.claim()
    assert not is_ours(host.store, host.sidecar())


def test_where_nothing_was_ever_stored_nothing_is_ours_yet(host: Host) -> None:
    assert not is_ours(host.store, host.sidecar())


def test_a_store_that_fails_is_not_mistaken_for_one_of_somebody_else(host: Host) -> None:
    host.claim()
    script = Script(before={"open": [StoreUnreachable("away"), StoreUnreachable("away")]})
    away = ScriptedStore(host.store, script)
    with pytest.raises(StoreUnreachable):
        claim(away, host.sidecar(), NOON, host.emit)  # it finds another content
    with pytest.raises(StoreUnreachable):
        is_ours(away, host.sidecar())
    script.assert_all_fired()
