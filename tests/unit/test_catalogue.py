"""Which sets there are, of which host, and what one is told who asks for another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sidecar import config
from sidecar.errors import NoSets, NotFound, StoreUnreachable
from sidecar.jobs.catalogue import hosts_with_sets, list_sets, none_of_host
from sidecar.plan import Selection
from sidecar.service.jobs_port import Jobs, RestoreRequest
from sidecar.stores.local import LocalStore
from sidecar.stores.port import Stored
from tests.unit.shop import Shop

SET = "backup-20260102_030000"


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_a_volume_where_a_set_is_expected_is_told_what_stands_before_it(shop: Shop) -> None:
    shop.run()
    with pytest.raises(NotFound, match="there is no set 'files'") as caught:
        list_sets(shop.stores, "files")
    assert caught.value.hint == "that is a volume, and a set is named before it, as in `restore latest files`"
    with pytest.raises(NotFound) as caught:
        list_sets(shop.stores, "fales")
    assert "volume" not in caught.value.hint


# --- other hosts -----------------------------------------------------------------------------------------------------


class Fleet:
    """A directory with a set of the hosts web-1, db-7 and the one without a name; and the jobs of a sidecar on it."""

    def __init__(self, shop: Shop, directory: Path) -> None:
        directory.mkdir()
        self.shop = shop
        self.directory = str(directory)

    def add(self, host: str) -> str:
        self.shop.stores = {"local": LocalStore(self.directory, prefix=host)}
        self.shop.second += 1
        return str(self.shop.run().set)

    @property
    def settings(self) -> dict[str, str]:
        return {"BACKUP_STORES": "local", "BACKUP_LOCAL_DIR": self.directory}

    def jobs(self, **settings: str) -> Jobs:
        from sidecar import wiring  # noqa: PLC0415 - half a second that the other tests need not wait for

        loaded = config.load(self.settings | settings, lambda path: Path(path).read_text())
        discovery: Any = type("Discovery", (), {"this_container": lambda _: None, "protected": lambda *_: {}})()
        return wiring._Jobs(loaded, self.shop.emit, self.shop.engine, discovery, Selection())


@pytest.fixture
def fleet(shop: Shop, tmp_path: Path) -> Fleet:
    return Fleet(shop, tmp_path / "sets")


def test_a_host_that_has_no_set_is_not_found_and_the_hosts_that_have_are_named_nearest_first(fleet: Fleet) -> None:
    for host in ("db-7", "web-1", ""):
        fleet.add(host)
    jobs = fleet.jobs()
    for ask in (
        lambda: jobs.sets(None, None, None, "webb-1"),
        lambda: jobs.sets("latest", None, None, "webb-1"),
        lambda: jobs.sets("latest", "db", None, "webb-1"),
        lambda: jobs.restore_plan(RestoreRequest(host="webb-1")),
    ):
        with pytest.raises(NoSets) as caught:
            ask()
        assert caught.value.code == "not_found"
        assert caught.value.message == "there is no set for --host webb-1 here"
        assert caught.value.hint.startswith("there are sets for --host web-1, --host ")
        assert caught.value.hint.count("--host") == 3


def test_a_tar_stream_of_a_host_without_a_set_names_the_others(fleet: Fleet) -> None:
    from sidecar import wiring  # noqa: PLC0415 - as above

    fleet.add("web-1")
    with pytest.raises(NoSets, match="for --host web here") as caught:
        wiring.tar_out(fleet.settings, RestoreRequest("latest", ("db",), host="web"), bytes, pytest.fail)
    assert caught.value.hint == "there are sets for --host web-1"


def test_who_has_lost_the_hosts_name_is_told_whose_sets_there_are_and_not_to_make_a_new_one(fleet: Fleet) -> None:
    fleet.add("web-1")
    jobs = fleet.jobs()
    listed = jobs.sets(None, None, None)
    assert (listed["sets"], listed["hint"]) == ([], "there are sets for --host web-1")
    for ask in (lambda: jobs.sets("latest", None, None), lambda: jobs.restore_plan(RestoreRequest())):
        with pytest.raises(NoSets, match="there is no set of this host here") as caught:
            ask()
        assert caught.value.hint == "there are sets for --host web-1"


def test_only_where_nobody_has_a_set_one_is_told_to_make_one(fleet: Fleet) -> None:
    jobs = fleet.jobs()
    assert jobs.sets(None, None, None)["hint"] == "`run-now` makes one"
    with pytest.raises(NoSets, match="none at all yet") as caught:
        jobs.sets("latest", None, None)
    assert caught.value.hint == "`run-now` makes one"
    with pytest.raises(NoSets) as caught:
        jobs.sets(None, None, None, "web-1")
    assert "run-now" not in caught.value.hint


@pytest.mark.parametrize("ours", ["", "web-1"])
def test_a_set_tells_by_what_name_of_a_host_it_is_found_again(fleet: Fleet, ours: str) -> None:
    made = {host: fleet.add(host) for host in ("", "web-1")}
    jobs = fleet.jobs(BACKUP_HOST=ours) if ours else fleet.jobs()
    (listed,) = jobs.sets("latest", None, None)["sets"]
    assert (listed["set"], listed["backup_host"]) == (made[ours], ours)
    plan = jobs.restore_plan(RestoreRequest(host="web-1"))
    assert (plan["set"], plan["backup_host"]) == (made["web-1"], "web-1")
    assert jobs.sets("latest", None, None, listed["backup_host"])["sets"] == [listed]


def test_a_store_that_does_not_answer_hides_no_host_of_another() -> None:
    def away() -> Iterator[str]:
        raise StoreUnreachable("no route", store="away")

    def breaks_off() -> Iterator[str]:
        yield f"web-1/{SET}/manifest.json"
        yield from away()

    assert hosts_with_sets([away, breaks_off, lambda: [f"{SET}/manifest.json"]]) == ["", "web-1"]


def test_what_is_no_set_makes_no_host() -> None:
    keys = ["web/notes/manifest.json", f"db/{SET}/x.tar.gz", "manifest.json", f"db/{SET}/x/manifest.json"]
    assert hosts_with_sets([lambda: keys]) == []


def test_a_bucket_full_of_other_things_is_not_read_to_its_end() -> None:
    assert hosts_with_sets([lambda: (f"photos/{number}" for number in count())]) == []


def test_hosts_of_a_bucket_are_those_below_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    from sidecar import wiring  # noqa: PLC0415 - as above

    def objects(_: object, prefix: str) -> list[Stored]:
        keys = [f"sets/web-1/{SET}/manifest.json", f"sets/{SET}/manifest.json", f"other/db/{SET}/manifest.json"]
        return [Stored(key, 1, "") for key in keys if key.startswith(prefix)]

    monkeypatch.setattr(wiring.S3Bucket, "objects", objects)
    given = {"S3_BACKUP_BUCKET": "bucket", "BACKUP_PREFIX": "sets", "BACKUP_HOST": "db", "AWS_REGION": "eu-central-1"}
    assert wiring._hosts(config.load(given, lambda path: Path(path).read_text())) == ["", "web-1"]


def test_of_very_many_hosts_the_nearest_are_named_and_the_rest_is_counted() -> None:
    hint = none_of_host("web-77", [f"web-{number}" for number in range(100)]).hint
    assert hint.startswith("there are sets for --host web-77")
    assert hint.count("--host") == 20
    assert hint.endswith("and 80 more")
