"""The search after a loss: every place is looked at, whatever has become of the others, and nothing is changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sidecar.cli.main import main
from sidecar.cli.words import Words
from sidecar.errors import EngineUnreachable, StoreDenied, StoreUnreachable
from sidecar.jobs.discover import Discovery
from sidecar.jobs.scan import Grounds, Limits, Searched, scan
from sidecar.model import Mount
from sidecar.plan import Selection
from sidecar.report import Outcome
from sidecar.salvage import Finding, Kind, Place, Salvage, Unseen
from sidecar.sets import How, Manifest, Marks, SetVolume, StoredObject, Verified
from sidecar.stores.bucket import Version
from sidecar.stores.local import LocalStore
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Pending, Stored
from sidecar.stores.snapshots import Snapshot
from tests.contract.fake_engine import FakeEngine

NOW = datetime(2026, 1, 3, tzinfo=UTC)
ROOT = "/var/lib/docker/volumes"
OLD, NEW = "backup-20260101_030000", "backup-20260102_030000"


def put_set(
    store: MemoryStore | LocalStore,
    home: str,
    name: str,
    *volumes: str,
    manifest: bytes | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """A set as a sidecar writes it; with another manifest, or (b"") without one."""
    path = f"{home}/{name}".lstrip("/")
    for volume in volumes:
        store.put(f"{path}/{volume}.tar.gz", b"x" * 10)
        store.put(f"{path}/{volume}.index.jsonl.gz", b"x")
    stored = tuple(
        SetVolume(
            v,
            v,
            Outcome.GOOD,
            StoredObject(f"{name}/{v}.tar.gz", 10, "00000000"),
            StoredObject(f"{name}/{v}.index.jsonl.gz", 1, "00000000"),
            20,
            1,
            "local",
            {},
            {},
            "/",
        )
        for v in volumes
    )
    made = Manifest(name, "2026-01-02T03:00:00Z", Outcome.GOOD, "docker-9", "E", "0", stored, tags=tags or {})
    if manifest != b"":
        store.put(f"{path}/manifest.json", manifest or made.to_json())


@dataclass
class FakeBucket:
    """What a bucket lists of a MemoryStore; denied: methods that are, below which prefixes. asked: every listing."""

    store: MemoryStore
    hidden: list[Version] = field(default_factory=list)
    unfinished: list[tuple[Pending, int]] = field(default_factory=list)
    denied: set[tuple[str, str]] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    listed: int = 0

    def objects(self, prefix: str) -> Iterator[Stored]:
        self._ask("objects", prefix)
        for stored in self.store.list(prefix):
            self.listed += 1
            yield stored

    def versions(self, prefix: str) -> Iterator[Version]:
        self._ask("versions", prefix)
        yield from (version for version in self.hidden if version.key.startswith(prefix))

    def uploads(self, prefix: str) -> Iterator[Pending]:
        self._ask("uploads", prefix)
        yield from (upload for upload, _ in self.unfinished if upload.key.startswith(prefix))

    def sent(self, upload: Pending) -> int:
        self._ask("sent", "")
        return next(sent for each, sent in self.unfinished if each == upload)

    def _ask(self, what: str, prefix: str) -> None:
        self.asked.append((what, prefix))
        if (what, prefix) in self.denied:
            raise StoreDenied(f"{what} denied", hint="grant it", store="s3")


@dataclass
class Loss:
    """A host, a bucket and a directory after a loss."""

    directory: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    engine: FakeEngine = field(default_factory=FakeEngine)
    limits: Limits = field(default_factory=Limits)
    mounts: list[Mount] = field(default_factory=list)
    engine_error: Exception | None = None
    place: Place = field(default_factory=lambda: Place("s3", "s3://b", "p", "me"))

    def __post_init__(self) -> None:
        self.bucket = FakeBucket(self.store)
        self.stores: dict[str, Callable[[], Searched]] = {"s3": lambda: Searched(self.place, self.store, self.bucket)}
        self.engine.add_volume("backup-state")
        self.engine.run("backup", labels={"backup.role": "sidecar"})
        self.engine.be("backup")
        self.mounts.append(Mount("volume", f"{ROOT}/backup-state/_data", "/state", True, "backup-state"))

    def volume(self, name: str, **files: str) -> Path:
        data = self.directory / name
        data.mkdir()
        for file, text in files.items():
            (data / file).write_text(text)
            os.utime(data / file, (NOW.timestamp(), NOW.timestamp()))
        self.engine.add_volume(name)
        self.mounts.append(Mount("volume", f"{ROOT}/{name}/_data", str(data), False, name))
        return data

    def scan(self) -> Salvage:
        own = self.engine.container("backup")
        self.engine._containers[own.id] = replace(own, mounts=tuple(self.mounts))

        def connect() -> FakeEngine:
            if self.engine_error:
                raise self.engine_error
            return self.engine

        def discovery(engine: Any) -> Discovery:
            return Discovery(engine, Selection(), None, lambda: "")

        return scan(Grounds(self.stores, connect, discovery, NOW, limits=self.limits))

    def found(self) -> list[tuple[Kind, str, tuple[str, ...]]]:
        return [(each.kind, each.home, each.volumes) for each in self.scan().findings]


@pytest.fixture
def loss(tmp_path: Path) -> Loss:
    return Loss(tmp_path)


# --- stores ----------------------------------------------------------------------------------------------------------


def test_where_there_is_nothing_nothing_is_found_and_everything_was_looked_at(loss: Loss) -> None:
    salvage = loss.scan()
    assert (salvage.findings, salvage.unseen, salvage.outcome) == ((), (), "not_found")
    assert {what for what, _ in loss.bucket.asked} == {"objects", "versions", "uploads"}


def test_sets_of_this_host_of_others_and_anywhere_in_the_bucket_are_found(loss: Loss) -> None:
    put_set(loss.store, "p/me", OLD, "db")
    put_set(loss.store, "p/me", NEW, "db", "web")
    put_set(loss.store, "p/other", NEW, "db")
    put_set(loss.store, "p", OLD, "db")
    put_set(loss.store, "quite/elsewhere", OLD, "db")
    loss.store.put("photos/cat.jpg", b"x")

    assert sorted(loss.found()) == sorted(
        [
            (Kind.SET, "p/me", ("db", "web")),
            (Kind.SET, "p/me", ("db",)),
            (Kind.SET, "p/other", ("db",)),
            (Kind.SET, "p", ("db",)),
            (Kind.SET, "quite/elsewhere", ("db",)),
        ]
    )
    assert loss.scan().newest()["web"].what == f"set {NEW}, good"


def test_a_set_that_is_known_to_be_damaged_or_that_a_restore_replaced_is_not_the_one_to_restore(loss: Loss) -> None:
    oldest = "backup-20251231_030000"
    put_set(loss.store, "p/me", oldest, "db")
    put_set(loss.store, "p/me", OLD, "db")
    marks = Marks(verified=Verified("2026-01-02T04:00:00Z", How.FULL, Outcome.FAILED, "a flipped bit"))
    loss.store.put(f"p/me/{OLD}/marks.json", marks.to_json())
    put_set(loss.store, "p/me", NEW, "db", tags={"pre-restore": oldest})

    salvage = loss.scan()

    assert [each.what for each in salvage.findings] == [
        f"set {oldest}, good",
        f"set {NEW}, good, of what a restore replaced",
        f"set {OLD}, DAMAGED",
    ]
    assert [each.as_json(NOW)["proven"] for each in salvage.findings] == [True, False, False]
    assert f"of {oldest} replaced" in salvage.findings[1].note
    assert "a flipped bit" in salvage.findings[2].note
    assert salvage.newest()["db"].what == f"set {oldest}, good"
    assert NEW not in salvage.conclusion
    assert OLD not in salvage.conclusion


def test_marks_that_cannot_be_read_are_said(loss: Loss) -> None:
    put_set(loss.store, "p/me", NEW, "db")
    loss.store.put(f"p/me/{NEW}/marks.json", b"{")
    salvage = loss.scan()
    assert [each.what for each in salvage.findings] == [f"set {NEW}, good"]
    assert any(f"{NEW}/marks.json" in each.place for each in salvage.unseen)


def test_a_directory_is_searched_as_a_bucket_is(loss: Loss, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    local = LocalStore(str(tmp_path / "sets"))
    put_set(local, "", NEW, "db")
    put_set(local, "other", NEW, "db")
    loss.stores = {"local": lambda: Searched(Place("local", str(tmp_path / "sets")), local)}

    commands = [finding.commands[0] for finding in loss.scan().findings]
    assert sorted(commands) == [
        f"docker exec -it backup restore {NEW}",
        f"docker exec backup restore {NEW} db --host other --as db_restored --yes",
    ]


def test_half_sets_and_sets_whose_manifest_is_damaged_are_found_as_what_they_are(loss: Loss) -> None:
    put_set(loss.store, "p/me", OLD, "db", manifest=b"")
    put_set(loss.store, "p/me", NEW, "web", manifest=b"{ torn")
    loss.store.put("p/me/backup-20260101_000000/RECOVER.txt", b"no archive beside it")

    half = loss.scan().findings
    assert [(each.kind, each.volumes) for each in half] == [(Kind.HALF_SET, ("web",)), (Kind.HALF_SET, ("db",))]
    assert "is damaged" in half[0].what
    assert "it has no manifest" in half[1].what


def test_deleted_sets_and_unfinished_uploads_are_found(loss: Loss) -> None:
    key = f"p/me/{NEW}/db.tar.gz"
    loss.bucket.hidden = [Version(key, "1", 9, NOW, False, False), Version(key, "2", 0, NOW, True, True)]
    loss.bucket.unfinished = [(Pending(f"p/me/{OLD}/web.tar.gz", "u", NOW), 7), (Pending("film.mp4", "v", NOW), 9)]

    assert loss.found() == [(Kind.DELETED_SET, "p/me", ("db",)), (Kind.UPLOAD, "p/me", ("web",))]


def test_a_scan_changes_nothing(loss: Loss) -> None:
    put_set(loss.store, "p/me", OLD, "db", manifest=b"")
    file = loss.volume("idle", PG_VERSION="16\n") / "PG_VERSION"

    def everything() -> tuple[object, ...]:
        status = file.stat()
        return list(loss.store.list()), os.listdir(file.parent), status.st_mtime_ns, status.st_ctime_ns

    before = everything()
    loss.scan()

    assert everything() == before
    assert {what for what, _ in loss.engine.calls} <= {"container"}


# --- what cannot be looked at ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["objects", "versions", "uploads"])
def test_a_listing_that_is_denied_is_said_and_the_rest_is_looked_at(loss: Loss, what: str) -> None:
    put_set(loss.store, "p/me", NEW, "db")
    loss.bucket.denied = {(what, "")}

    salvage = loss.scan()
    assert [finding.kind for finding in salvage.findings] == [Kind.SET]
    assert [(unseen.why, unseen.hint) for unseen in salvage.unseen] == [(f"{what} denied", "grant it")]
    assert salvage.outcome == "partial"
    assert (what, "") in loss.bucket.asked


def test_where_the_whole_bucket_is_denied_this_hosts_prefix_is_looked_at(loss: Loss) -> None:
    put_set(loss.store, "p/me", NEW, "db")
    put_set(loss.store, "p/other", NEW, "db")
    loss.bucket.denied = {("objects", "")}

    salvage = loss.scan()
    assert [finding.home for finding in salvage.findings] == ["p/me"]
    assert [unseen.place for unseen in salvage.unseen] == ["the objects in s3://b"]


def test_sizes_of_uploads_may_be_denied_and_the_uploads_are_told(loss: Loss) -> None:
    loss.bucket.unfinished = [(Pending(f"p/me/{OLD}/web.tar.gz", "u", NOW), 7)]
    loss.bucket.denied = {("sent", "")}

    salvage = loss.scan()
    assert [(finding.kind, finding.size) for finding in salvage.findings] == [(Kind.UPLOAD, None)]
    assert [unseen.why for unseen in salvage.unseen] == ["sent denied"]


def test_a_store_or_an_engine_that_is_gone_leaves_the_others_to_be_looked_at(loss: Loss) -> None:
    def gone() -> Searched:
        raise StoreUnreachable("no connection", hint="see the network", store="gone")

    put_set(loss.store, "p/me", NEW, "db")
    loss.volume("idle", file="x")
    loss.stores = {"gone": gone, **loss.stores}
    salvage = loss.scan()
    assert [finding.kind for finding in salvage.findings] == [Kind.SET, Kind.VOLUME]
    assert [unseen.place for unseen in salvage.unseen] == ["store gone"]

    loss.engine_error = EngineUnreachable("no socket", hint="mount it")
    salvage = loss.scan()
    assert [finding.kind for finding in salvage.findings] == [Kind.SET]
    assert [unseen.place for unseen in salvage.unseen] == ["store gone", "the volumes of this host"]


def test_a_store_that_goes_away_keeps_what_it_has_shown_and_is_not_asked_again(loss: Loss) -> None:
    put_set(loss.store, "p/me", NEW, "db")
    objects = loss.bucket.objects

    def breaks_off(prefix: str) -> Iterator[Stored]:
        yield from objects(prefix)
        raise StoreUnreachable("the connection broke off", store="s3")

    loss.bucket.objects = breaks_off  # type: ignore[method-assign]
    salvage = loss.scan()
    assert [(finding.kind, finding.note) for finding in salvage.findings] == [(Kind.SET, "its manifest was not read")]
    assert [(unseen.place, unseen.why) for unseen in salvage.unseen] == [
        (
            "the objects in s3://b below p/me/, and whatever else is in the store s3",
            "the connection broke off",
        )
    ]
    assert loss.bucket.asked == [("objects", "p/me/")]


def test_a_bound_is_said_and_never_hides_this_hosts_own_sets(loss: Loss) -> None:
    for number in range(50):
        loss.store.put(f"a/{number:02}", b"x")
    put_set(loss.store, "p/me", NEW, "db")
    put_set(loss.store, "z", NEW, "db")
    loss.limits = Limits(keys=20)

    salvage = loss.scan()
    assert [(finding.kind, finding.home) for finding in salvage.findings] == [(Kind.SET, "p/me")]
    assert [(unseen.place, unseen.why) for unseen in salvage.unseen] == [
        ("the objects in s3://b", "there are more than 20")
    ]
    assert loss.bucket.listed <= 3 + 21


def test_beyond_the_bound_sets_are_told_from_the_listing_alone(loss: Loss) -> None:
    put_set(loss.store, "p/me", OLD, "db")
    put_set(loss.store, "p/me", NEW, "db")
    loss.limits = Limits(manifests=1)

    new, old = loss.scan().findings
    assert (new.note, old.note) == ("", "its manifest was not read")
    assert old.volumes == ("db",)


# --- volumes ---------------------------------------------------------------------------------------------------------


def test_a_volume_that_no_container_uses_is_found_with_what_it_held(loss: Loss) -> None:
    loss.volume("idle", PG_VERSION="16\n", data="x" * 1000)
    loss.volume("used", PG_VERSION="16\n")
    loss.volume("stopped", PG_VERSION="16\n")
    loss.volume("empty")
    loss.engine.run("db", volumes={"used": "/data"})
    loss.engine.run("old", volumes={"stopped": "/data"})
    loss.engine.exit("old")
    loss.engine.run("monitoring", binds={"/": "/rootfs"})

    (found,) = loss.scan().findings
    assert (found.kind, found.volumes, found.what) == (Kind.VOLUME, ("idle",), "volume idle (PostgreSQL 16)")
    assert (found.size, found.time) == (1003, NOW)


def test_what_a_restore_left_is_found_in_a_volume_that_is_in_use_too(loss: Loss) -> None:
    data = loss.volume("used", file="x")
    (data / ".volume-backup-restore" / "old").mkdir(parents=True)
    loss.engine.run("app", volumes={"used": "/data"})

    (found,) = loss.scan().findings
    assert found.kind is Kind.LEFTOVER
    assert found.commands[1] == "docker exec backup restore latest used --yes"


def test_a_volume_whose_data_cannot_be_seen_is_said_by_name(loss: Loss) -> None:
    loss.engine.add_volume("nfs", driver="nfs")
    data = loss.volume("lost")
    data.rmdir()

    salvage = loss.scan()
    assert [unseen.place for unseen in salvage.unseen] == ["volume nfs", "volume lost"]
    assert all(unseen.hint for unseen in salvage.unseen)


def test_a_volume_that_only_the_sidecar_sees_is_used_by_nobody_and_another_sidecars_state_is_used(loss: Loss) -> None:
    loss.volume("idle", file="x")
    loss.mounts[-1] = replace(loss.mounts[-1], target="/volumes/idle")
    loss.volume("other-state", file="x")
    loss.engine.run("other", labels={"backup.role": "sidecar"}, volumes={"other-state": "/state"})

    salvage = loss.scan()
    assert [unseen.place for unseen in salvage.unseen] == ["volume idle"]  # looked for at /volumes/idle, which is not
    assert salvage.findings == ()


def test_a_volume_that_goes_while_it_looks_does_not_hide_the_others(loss: Loss) -> None:
    loss.volume("idle", file="x")
    loss.engine.add_volume("going")
    volumes, gone = loss.engine.volumes, []

    def first_with_one_more() -> list[Any]:
        found = volumes()
        if not gone:
            gone.append(loss.engine.remove_volume("going"))
        return found

    loss.engine.volumes = first_with_one_more  # type: ignore[method-assign]
    assert loss.found() == [(Kind.VOLUME, "", ("idle",))]
    assert gone == [True]


def test_the_sidecars_own_volume_is_nothing_lost(loss: Loss) -> None:
    assert "backup-state" in {volume.name for volume in loss.engine.volumes()}
    assert (loss.scan().findings, loss.scan().unseen) == ((), ())


# --- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("BACKUP_", "AWS_", "S3_", "DOCKER_", "NOTIFY_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_the_verb_needs_neither_daemon_nor_engine_and_leaves_with_3_because_it_could_not_look_there(
    no_settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sets").mkdir()
    put_set(LocalStore(str(tmp_path / "sets")), "other", NEW, "db")
    no_settings.setenv("BACKUP_STORES", "local")
    no_settings.setenv("BACKUP_LOCAL_DIR", f"{tmp_path}/sets")
    no_settings.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")

    no_settings.setenv("AWS_EC2_METADATA_DISABLED", "true")
    words = CliRunner().invoke(main, ["scan"])
    document = CliRunner().invoke(main, ["scan", "--json"])

    assert (words.exit_code, document.exit_code) == (3, 3)
    command = f"docker exec backup restore {NEW} db --host other --as db_restored --yes"
    assert f"      {command}\n" in words.stdout
    assert "not looked at: the volumes of this host: there is no Docker socket" in words.stdout
    assert words.stdout.splitlines()[-1].startswith("The newest backup that can be recovered: db of 2026-01-02 03:00")
    told = json.loads(document.stdout)
    assert set(told) == {"outcome", "found", "conclusion", "newest", "findings", "unseen", "remarks"}
    (remark,) = told["remarks"]
    assert "this is no EC2 instance" in remark
    assert f"{remark}\n" in words.stdout
    assert (told["outcome"], told["found"]) == ("partial", True)
    (found,) = told["findings"]
    assert (found["kind"], found["proven"], found["bytes"], found["commands"]) == ("set", True, 10, [command])
    assert told["newest"]["db"]["time"] == "2026-01-02T03:00:00Z"


@pytest.mark.parametrize(("is_gone_soon", "name"), [(False, "depot"), (True, "backup")])
def test_commands_name_the_sidecars_container_unless_that_is_gone_when_they_are_read(
    no_settings: pytest.MonkeyPatch, tmp_path: Path, is_gone_soon: bool, name: str
) -> None:
    from sidecar import wiring  # noqa: PLC0415 - half a second that the other tests need not wait for

    engine = FakeEngine()
    engine.run("depot", labels={"backup.role": "sidecar"}, auto_remove=is_gone_soon)
    engine.be("depot")
    (tmp_path / "sets").mkdir()
    put_set(LocalStore(str(tmp_path / "sets")), "other", NEW, "db")
    put_set(LocalStore(str(tmp_path / "sets")), "", NEW, "db")
    no_settings.setattr(wiring, "_connect", lambda _: engine)
    no_settings.setenv("AWS_EC2_METADATA_DISABLED", "true")
    salvage = wiring.scan({"BACKUP_STORES": "local", "BACKUP_LOCAL_DIR": f"{tmp_path}/sets"}, lambda _: None)
    assert {command.partition(" restore")[0] for found in salvage.findings for command in found.commands} == {
        f"docker exec -it {name}",
        f"docker exec {name}",
    }


def test_settings_that_cannot_be_used_are_exit_code_2(no_settings: pytest.MonkeyPatch) -> None:
    no_settings.setenv("BACKUP_MAX_PAUSE", "soon")
    done = CliRunner().invoke(main, ["scan"])
    assert done.exit_code == 2
    assert "BACKUP_MAX_PAUSE" in done.stderr


A_SET = Finding(Kind.SET, f"set {NEW}", "s3://b", NOW, 1, ("db",), ("a command",))


@pytest.mark.parametrize(
    ("salvage", "code"),
    [
        (Salvage((A_SET,), (), NOW), 0),
        (Salvage((), (), NOW), 10),
        (Salvage((), (Unseen("s3", "denied"),), NOW), 3),
        (Salvage((A_SET,), (Unseen("s3", "denied"),), NOW), 3),
    ],
)
def test_the_exit_code_says_what_was_found(monkeypatch: pytest.MonkeyPatch, salvage: Salvage, code: int) -> None:
    from sidecar import wiring  # noqa: PLC0415 - half a second that the other tests need not wait for

    monkeypatch.setattr(wiring, "scan", lambda environ, say: salvage)

    assert CliRunner().invoke(main, ["scan"]).exit_code == code
    assert CliRunner().invoke(main, ["scan", "--json"]).exit_code == code


def said(salvage: Salvage) -> str:
    words = Words(terminal=False)
    with words.console.capture() as captured:
        words.salvage(salvage.as_json())
    return captured.get()


def test_a_finding_is_told_with_its_age_its_size_and_its_commands() -> None:
    text = said(Salvage((replace(A_SET, size=2048, at_least=True, note="a note"),), (), NOW))
    assert text.splitlines()[:5] == [
        f"set {NEW}",
        "  2026-01-03 00:00:00 UTC (0 min old), at least 2.0 KiB, in s3://b",
        "  volumes: db",
        "  a note",
        "      a command",
    ]


def test_of_many_sets_in_one_place_the_newest_are_shown_and_the_rest_is_counted() -> None:
    text = said(Salvage(tuple(replace(A_SET, what=f"set {n}") for n in range(9)), (), NOW))
    assert "set 2\n" in text
    assert "set 3\n" not in text
    assert "and 6 more of that kind there back to 2026-01-03" in text


def test_a_name_from_the_bucket_does_not_drive_the_terminal(loss: Loss) -> None:
    put_set(loss.store, "p/\x1b[31mevil\n", NEW, "db\x07")
    text = said(loss.scan())
    assert not {"\x1b", "\x07"} & set(text)
    assert r"--host $'\x1b\x5b\x33\x31\x6d" in text


# --- Amazon's disks --------------------------------------------------------------------------------------------------


def only_amazon(look: Callable[[], list[Snapshot] | None]) -> Salvage:
    engine = FakeEngine()

    def nothing(_: object) -> Discovery:
        raise EngineUnreachable("there is no engine")

    return scan(Grounds({}, engine=lambda: engine, discovery=nothing, now=NOW, snapshots=look))


def test_snapshots_of_this_machines_disks_are_found_with_the_commands_that_make_disks_of_them() -> None:
    snapshot = Snapshot("snap-1", "vol-1", "/dev/xvda", "i-1", "eu-west-1", "eu-west-1a", NOW, 8 << 30)
    salvage = only_amazon(lambda: [snapshot])
    (found,) = salvage.findings
    assert found.kind is Kind.SNAPSHOT
    assert found.what == "EBS snapshot snap-1 of this machine's disk vol-1 (/dev/xvda, 8 GiB)"
    assert found.commands == (
        "aws ec2 --region eu-west-1 create-volume --availability-zone eu-west-1a --snapshot-id snap-1",
        "aws ec2 --region eu-west-1 attach-volume --instance-id i-1 --device /dev/sdf --volume-id VOLUME",
    )
    assert not found.as_json(NOW)["proven"]
    assert "EBS snapshot snap-1" in salvage.conclusion
    assert salvage.remarks == ()


def test_off_amazon_one_line_says_so_and_an_amazon_that_does_not_permit_it_is_something_not_looked_at() -> None:
    elsewhere = only_amazon(lambda: None)
    assert "no EC2 instance" in elsewhere.remarks[0]
    assert [each.place for each in elsewhere.unseen] == ["the volumes of this host"]

    def denied() -> list[Snapshot]:
        raise StoreDenied("EC2 in eu-west-1 does not permit it", hint="grant it")

    refused = only_amazon(denied)
    assert refused.remarks == ()
    assert ("EBS snapshots of this machine's disks", "grant it") in [(each.place, each.hint) for each in refused.unseen]
    assert refused.outcome == "partial"
