"""The journal is on disk before the first pause, and what it says survives us."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.engine.journal import Intent, Journal
from sidecar.errors import JournalUnreadable, JournalUnwritable
from sidecar.model import Quiesce

DB = Intent("d" * 64, "db", Quiesce.PAUSE, "2026-01-01T00:00:00.123456789Z", 41)
WEB = Intent("e" * 64, "web", Quiesce.STOP, "2026-01-01T00:00:01.5Z", 42)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "freeze.json")


def begin(journal: Journal) -> bytes:
    journal.begin(run="run-1", group="shop", frozen=[DB, WEB])
    return journal.path.read_bytes()


def test_there_is_nothing_owed_without_a_file(journal: Journal) -> None:
    assert journal.read() is None
    journal.clear()
    assert journal.read() is None


def test_another_process_reads_what_was_written(journal: Journal) -> None:
    begin(journal)
    entry = Journal(journal.path).read()
    assert entry is not None
    assert (entry.run, entry.group, entry.frozen) == ("run-1", "shop", (DB, WEB))


def test_the_document_on_disk_is_the_documented_one(journal: Journal) -> None:
    assert json.loads(begin(journal)) == {
        "format": 1,
        "run": "run-1",
        "group": "shop",
        "frozen": [
            {"id": "d" * 64, "name": "db", "action": "pause", "started_at": DB.started_at, "pid": 41},
            {"id": "e" * 64, "name": "web", "action": "stop", "started_at": WEB.started_at, "pid": 42},
        ],
    }
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_clearing_leaves_no_file_behind(journal: Journal) -> None:
    begin(journal)
    journal.clear()
    assert list(journal.path.parent.iterdir()) == []


def test_what_a_later_version_keeps_there_is_kept(journal: Journal) -> None:
    document = json.loads(begin(journal)) | {"uploads": ["u1"], "hooks": {"db": "post"}}
    journal.path.write_text(json.dumps(document))
    journal.clear()
    left = json.loads(journal.path.read_text())
    assert (left["frozen"], left["uploads"], left["hooks"]) == ([], ["u1"], {"db": "post"})
    journal.begin(run="run-2", group="blog", frozen=[WEB])
    again = json.loads(journal.path.read_text())
    assert ([intent["name"] for intent in again["frozen"]], again["run"], again["uploads"]) == (
        ["web"],
        "run-2",
        ["u1"],
    )


def test_bytes_reach_the_disk_before_they_get_their_name_and_the_name_before_anything_else(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename, unlink = os.fsync, Path.rename, Path.unlink

    def seen_fsync(descriptor: int) -> None:
        done.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def seen_rename(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    def seen_unlink(self: Path) -> None:
        done.append("unlink")
        unlink(self)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "rename", seen_rename)
    monkeypatch.setattr(Path, "unlink", seen_unlink)
    begin(journal)
    journal.clear()
    assert done == ["sync file", "rename", "sync directory", "unlink", "sync directory"]


def test_a_write_that_fails_leaves_the_journal_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    before = begin(journal)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalUnwritable) as caught:
        journal.begin(run="run-2", group="blog", frozen=[])
    assert caught.value.hint
    assert journal.path.read_bytes() == before


def test_what_a_killed_writer_left_beside_it_is_not_taken_for_the_journal(journal: Journal) -> None:
    journal.path.with_name("freeze.json.new").write_bytes(b'{"format": 1, "run": "torn')
    assert journal.read() is None
    begin(journal)
    assert [path.name for path in journal.path.parent.iterdir()] == ["freeze.json"]


def test_a_journal_torn_at_any_byte_is_refused_and_names_whom_it_still_can(journal: Journal) -> None:
    raw = begin(journal)
    for length in range(len(raw)):
        journal.path.write_bytes(raw[:length])
        with pytest.raises(JournalUnreadable) as caught:
            journal.read()
        assert "docker ps --filter status=paused" in caught.value.hint
        salvaged = journal.salvage()
        assert [intent.id for intent in salvaged] == [i.id for i in (DB, WEB) if i.id.encode() in raw[:length]]
        whole = [
            i for i in (DB, WEB) if json.dumps(i.started_at).encode() + b', "pid": ' + b"%d}" % i.pid in raw[:length]
        ]
        assert list(salvaged)[: len(whole)] == whole


@given(st.binary(max_size=200))
def test_anything_else_in_its_place_is_refused_in_our_words(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    journal = Journal(tmp_path_factory.mktemp("state") / "freeze.json")
    journal.path.write_bytes(content)
    with pytest.raises(JournalUnreadable):
        journal.read()
    journal.salvage()


@pytest.mark.parametrize(
    "document",
    [[], None, 1, {}, {"format": 1}, {"format": 1, "run": "r", "group": "g", "frozen": [{"id": "x"}]},
     {"format": 1, "run": "r", "group": "g", "frozen": {"a": 1}}],
)  # fmt: skip
def test_a_document_of_another_shape_is_refused_in_our_words(journal: Journal, document: object) -> None:
    journal.path.write_text(json.dumps(document))
    with pytest.raises(JournalUnreadable):
        journal.read()


def test_a_journal_of_another_format_is_refused_by_name(journal: Journal) -> None:
    journal.path.write_text(json.dumps(json.loads(begin(journal)) | {"format": 2}))
    with pytest.raises(JournalUnreadable, match="format 2"):
        journal.read()
    assert [intent.name for intent in journal.salvage()] == ["db", "web"]


def test_a_journal_that_is_no_file_is_refused_in_our_words(journal: Journal) -> None:
    journal.path.mkdir()
    with pytest.raises(JournalUnreadable):
        journal.read()


def test_a_missing_state_directory_is_reported_before_anything_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(JournalUnwritable, match="missing"):
        Journal(tmp_path / "missing" / "freeze.json").begin(run="r", group="g", frozen=[DB])


def test_setting_a_damaged_journal_aside_keeps_its_bytes_for_a_person(journal: Journal) -> None:
    journal.path.write_bytes(b"garbage")
    aside = journal.set_aside()
    assert aside.read_bytes() == b"garbage"
    assert journal.read() is None


# --- what is owed besides --------------------------------------------------------------------------------------------


def test_what_else_is_owed_stands_on_disk_beside_what_is_frozen_and_outlives_it(journal: Journal) -> None:
    journal.owe("post_hooks", ["thaw the page"])
    begin(journal)
    document = json.loads(journal.path.read_text())
    assert (document["post_hooks"], len(document["frozen"])) == (["thaw the page"], 2)
    journal.clear()
    entry = Journal(journal.path).read()
    assert entry is not None
    assert (entry.run, entry.group, entry.frozen) == ("run-1", "shop", ())
    assert entry.others == {"post_hooks": ["thaw the page"]}


def test_what_is_settled_is_owed_no_more_and_the_last_takes_the_file_with_it(journal: Journal) -> None:
    journal.owe("post_hooks", ["one", "two"])
    journal.owe("something_else", {"kept": True})
    journal.owe("post_hooks", ["two"])
    assert json.loads(journal.path.read_text())["post_hooks"] == ["two"]
    journal.settle("post_hooks")
    assert json.loads(journal.path.read_text())["something_else"] == {"kept": True}
    journal.settle("something_else")
    assert not journal.path.exists()
    journal.settle("something_else")


def test_settling_a_debt_leaves_what_is_frozen(journal: Journal) -> None:
    journal.owe("post_hooks", ["one"])
    begin(journal)
    journal.settle("post_hooks")
    entry = journal.read()
    assert entry is not None
    assert (entry.frozen, entry.others) == ((DB, WEB), {})


def test_a_debt_that_cannot_be_written_down_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalUnwritable):
        Journal(tmp_path / "missing" / "journal.json").owe("post_hooks", ["one"])
