"""What is made of what a scan has seen: findings, commands, the conclusion."""

from __future__ import annotations

import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.report import Outcome
from sidecar.salvage import (
    Erasures,
    Finding,
    Kind,
    Laid,
    Place,
    Salvage,
    Sightings,
    Unseen,
    erasure_findings,
    half_set_finding,
    ordered,
    quoted,
    set_finding,
    split_key,
    upload_finding,
    volume_finding,
)
from sidecar.sets import Manifest, MissingVolume, SetVolume, StoredObject
from sidecar.stores.bucket import Version
from sidecar.stores.port import Pending

NOW = datetime(2026, 1, 3, tzinfo=UTC)
SET = "backup-20260102_030000"
S3 = Place("s3", "s3://b", prefix="p", host="me")


def manifest(**volumes: int) -> Manifest:
    stored = tuple(
        SetVolume(
            name,
            "g",
            Outcome.GOOD,
            StoredObject(f"{SET}/{name}.tar.gz", size, "0" * 8),
            StoredObject(f"{SET}/{name}.index.jsonl.gz", 1, "0" * 8),
            size * 2,
            1,
            "local",
            {},
            {},
            "/",
        )
        for name, size in volumes.items()
    )
    return Manifest(SET, "2026-01-02T03:00:00Z", Outcome.GOOD, "docker-9", "E", "0", stored)


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        (f"{SET}/db.tar.gz", ("", SET, "db.tar.gz")),
        (f"p/me/{SET}/manifest.json", ("p/me", SET, "manifest.json")),
        (f"{SET}/plugin/vol.tar.gz", ("", SET, "plugin/vol.tar.gz")),
        ("p/owner.json", None),
        (f"p/{SET}", None),
        ("backup-20261302_030000/db.tar.gz", None),
        ("my-backup-20260102_030000/db.tar.gz", None),
    ],
)
def test_a_key_is_of_a_set_or_of_no_interest(key: str, parts: tuple[str, str, str] | None) -> None:
    assert split_key(key) == parts


def test_of_a_million_other_keys_nothing_is_kept() -> None:
    seen = Sightings()
    for number in range(1_000_000):
        seen.add(f"photos/backup-of-{number}.jpg", 1)
    assert seen.laid == {}


@given(st.text(alphabet=st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=20))
def test_a_quoted_word_is_that_word_to_a_shell_and_drives_no_terminal(text: str) -> None:
    word = quoted(text)
    assert word.isprintable()
    if "\\x" not in word:
        assert shlex.split(word) == [text]


@pytest.mark.parametrize("text", ["a b'c", "\x1b[31m\n$(x)", "ü\x07\u202e"])
def test_bash_reads_a_quoted_word_as_it_was(text: str) -> None:
    said = subprocess.run(["bash", "-c", f"printf %s {quoted(text)}"], capture_output=True, check=True).stdout
    assert said.decode() == text


# --- sets ------------------------------------------------------------------------------------------------------------


def test_a_set_of_ours_is_restored_by_its_name() -> None:
    found = set_finding(S3, Laid("p/me", SET, {"db": 5}, manifest=True), manifest(db=5))
    assert (found.kind, found.volumes, found.size, found.note) == (Kind.SET, ("db",), 5, "")
    assert found.commands == (f"docker exec -it backup restore {SET}",)
    assert found.time == datetime(2026, 1, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("place", "home", "host"),
    [(S3, "p/other", "other"), (S3, "p", "''"), (Place("s3", "s3://b", host="me"), "", "''"), (S3, "p/x/y", "x/y")],
)
def test_a_set_of_another_host_is_restored_beside_what_is_here(place: Place, home: str, host: str) -> None:
    found = set_finding(place, Laid(home, SET, {"db": 5}, manifest=True), manifest(db=5))
    assert found.commands == (f"docker exec backup restore {SET} db --host {host} --as db_restored --yes",)
    assert "another host, made by docker-9" in found.what


@pytest.mark.parametrize("home", ["", "elsewhere", "pp/me", "p//x", "p/.."])
def test_a_set_that_no_host_name_leads_to_has_its_recover_txt_and_the_prefix(home: str) -> None:
    found = set_finding(S3, Laid(home, SET, {"db": 5}, manifest=True), manifest(db=5))
    path = f"{home}/{SET}".lstrip("/")
    assert found.commands == (f"aws s3 cp s3://b/{path}/RECOVER.txt -",)
    assert f"BACKUP_PREFIX={quoted(home)}" in found.note


def test_what_a_manifest_names_and_the_store_does_not_hold_is_not_offered() -> None:
    laid = Laid("p/me", SET, {"db": 5, "cut": 3}, manifest=True)
    named = manifest(db=5, cut=4, gone=7)
    found = set_finding(S3, laid, named)
    assert (found.volumes, found.size) == (("db",), 5)
    assert "NOT in it although it should be, or of another size: cut, gone" in found.note

    empty = set_finding(S3, Laid("p/me", SET, {}, manifest=True), named)
    assert (empty.volumes, empty.commands) == ((), ())
    assert "no archive of it is there" in empty.note


def test_what_a_set_was_made_without_is_said() -> None:
    made = manifest(db=5)
    made = Manifest(
        made.set, made.time, made.outcome, "h", "E", "0", made.volumes, missing=(MissingVolume("nfs", "", ""),)
    )
    assert "made without nfs" in set_finding(S3, Laid("p/me", SET, {"db": 5}), made).note


def test_half_a_set_is_called_unproven_and_unpacked_by_hand() -> None:
    ours = half_set_finding(S3, Laid("p/me", SET, {"db": 5, "a b": 6}))
    theirs = half_set_finding(Place("local", "/data/backups"), Laid("x", SET, {"db": 5}))

    assert ours.kind is Kind.HALF_SET
    assert ours.size == 11
    assert "not proven to be whole, nor to be of one instant" in ours.note
    assert "the next start of the sidecar removes it" in ours.note
    assert "removes" not in theirs.note
    assert ours.commands[0].startswith(f"aws s3 cp 's3://b/p/me/{SET}/a b.tar.gz' - | tar --numeric-owner")
    assert theirs.commands[0].startswith(f"docker exec backup cat /data/backups/x/{SET}/db.tar.gz | tar")


# --- what is behind --------------------------------------------------------------------------------------------------


def version(document: str, identity: str, hours: int, **facts: Any) -> Version:
    facts = {"latest": False, "marker": False, "size": 9} | facts
    return Version(f"p/me/{SET}/{document}", identity, modified=NOW + timedelta(hours=hours), **facts)


def erased(*versions: Version) -> list[Finding]:
    erasures = Erasures()
    for each in versions:
        erasures.add(each)
    return erasure_findings(Place("s3", "s3://b", "p", "me", "http://s3:8333"), erasures)


def marker(document: str, identity: str, hours: int, *, latest: bool = True) -> Version:
    return version(document, identity, hours, latest=latest, marker=True, size=0)


def test_a_deleted_set_comes_back_by_removing_its_markers_the_manifests_last() -> None:
    (found,) = erased(
        version("manifest.json", "m1", 0),
        marker("manifest.json", "m2", 1),
        version("z.tar.gz", "z1", 0),
        marker("z.tar.gz", "z2", 1, latest=False),
        marker("z.tar.gz", "z3", 2),
    )
    start = "aws --endpoint-url http://s3:8333 s3api delete-object --bucket b --key"
    assert found.kind is Kind.DELETED_SET
    assert (found.volumes, found.size) == (("z",), 9)
    assert found.commands == (
        f"{start} p/me/{SET}/z.tar.gz --version-id z3",
        f"{start} p/me/{SET}/z.tar.gz --version-id z2",
        f"{start} p/me/{SET}/manifest.json --version-id m2",
    )
    assert "then restore it" in found.note


def test_an_archive_undeleted_without_its_manifest_is_not_called_a_set() -> None:
    (found,) = erased(version("z.tar.gz", "z1", 0), marker("z.tar.gz", "z2", 1))
    assert "not proven to be whole" in found.note


def test_a_marker_with_nothing_behind_it_is_nothing_to_recover() -> None:
    assert erased(marker("z.tar.gz", "z2", 1), marker("manifest.json", "m2", 1)) == []


def test_what_was_made_again_after_it_was_deleted_is_not_deleted() -> None:
    again = version("z.tar.gz", "z3", 2, latest=True)
    assert erased(version("z.tar.gz", "z1", 0), marker("z.tar.gz", "z2", 1, latest=False), again) == []


def test_an_archive_that_was_overwritten_can_be_fetched_and_other_documents_are_no_matter() -> None:
    (found,) = erased(
        version("z.tar.gz", "old", 0),
        version("z.tar.gz", "older", -1),
        version("z.tar.gz", "new", 2, latest=True),
        version("marks.json", "old", 0),
    )
    assert found.kind is Kind.OLD_VERSION
    assert found.commands[0].endswith(f"get-object --bucket b --key p/me/{SET}/z.tar.gz --version-id old z.tar.gz")


@pytest.mark.parametrize(
    ("document", "sent", "told"),
    [("db.tar.gz", 7, True), ("db.tar.gz", None, True), ("db.tar.gz", 0, False), ("db.index.jsonl.gz", 7, False)],
)
def test_only_an_archive_with_parts_is_worth_completing_by_hand(document: str, sent: int | None, told: bool) -> None:
    found = upload_finding(S3, Pending(f"p/me/{SET}/{document}", "u", NOW), sent)
    assert (found is not None) == told
    if found:
        assert (found.kind, found.size, found.volumes) == (Kind.UPLOAD, sent, ("db",))
        assert "a last resort" in found.note


def test_a_volume_is_backed_up_or_looked_into_and_a_leftover_is_named() -> None:
    facts: dict[str, Any] = {"held": "PostgreSQL 16", "size": 4, "newest": NOW, "whole": False}
    idle = volume_finding("pg", "/volumes/pg/_data", leftover="", **facts)
    cut = volume_finding("pg", "/volumes/pg/_data", container="depot", leftover=".volume-backup-restore", **facts)

    assert idle.what == "volume pg (PostgreSQL 16)"
    assert idle.at_least
    assert idle.commands[0] == "docker exec backup run-now pg"
    assert "docker run --rm -it -v pg:/data alpine sh" in idle.commands
    assert cut.kind is Kind.LEFTOVER
    assert cut.commands == (
        "docker exec depot ls -la /volumes/pg/_data/.volume-backup-restore",
        "docker exec depot restore latest pg --yes",
    )


# --- the conclusion --------------------------------------------------------------------------------------------------


def finding(kind: Kind, days: int, *volumes: str) -> Finding:
    return Finding(kind, f"{kind.value} {days}", "s3://b", NOW - timedelta(days=days), 1, volumes, ("command",))


def test_the_newest_proven_backup_of_each_volume_is_named_before_anything_newer_that_is_not() -> None:
    found = ordered(
        [
            finding(Kind.HALF_SET, 0, "db", "web"),
            finding(Kind.SET, 3, "db"),
            finding(Kind.SET, 1, "db"),
            finding(Kind.VOLUME, 2, "web"),
        ]
    )
    salvage = Salvage(found, (), NOW)

    assert [each.kind for each in found] == [Kind.SET, Kind.SET, Kind.HALF_SET, Kind.VOLUME]
    assert {volume: each.what for volume, each in salvage.newest().items()} == {"db": "set 1", "web": "half_set 0"}
    assert salvage.conclusion == (
        "The newest backup that can be recovered: db of 2026-01-02 00:00 UTC (set 1). "
        "Only what is not proven to be whole is left of the others: web of 2026-01-03 00:00 UTC (half_set 0)."
    )
    assert salvage.outcome == "good"


def test_nothing_is_said_to_be_nothing_and_what_was_not_looked_at_to_be_that() -> None:
    nothing = Salvage((), (), NOW)
    denied = Salvage((), (Unseen("store s3", "denied"),), NOW)
    both = Salvage((finding(Kind.SET, 1, "db"),), (Unseen("store s3", "denied"),), NOW)

    assert (nothing.outcome, nothing.conclusion) == ("not_found", "Nothing that could be recovered was found.")
    assert denied.outcome == "partial"
    assert denied.conclusion.endswith("was found. Not looked at, or not to the end: store s3.")
    assert (both.outcome, both.as_json()["found"]) == ("partial", True)


def test_a_set_without_archives_recovers_nothing() -> None:
    empty = set_finding(S3, Laid("p/me", SET, {}, manifest=True), manifest(db=5))
    assert Salvage((empty,), (), NOW).newest() == {}
    assert Salvage((empty,), (), NOW).outcome == "not_found"
