"""The preflight: what it finds wrong, what it says to do, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sidecar import config
from sidecar.cli.main import main
from sidecar.cli.words import Words
from sidecar.errors import EngineDenied, EngineUnreachable, StoreDenied, StoreUnreachable
from sidecar.jobs import check as preflight
from sidecar.jobs.check import Finding, Premises, Verdict, propagation
from sidecar.jobs.discover import Discovery
from sidecar.model import Mount
from sidecar.plan import Selection
from sidecar.sets import owner_document
from sidecar.stores.local import LocalStore
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Store
from tests.contract.fake_engine import FakeEngine
from tests.unit.shop import Shop

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROOT = "/var/lib/docker/volumes"
MOUNTINFO = "36 25 8:1 /docker/volumes /volumes ro,relatime {} - ext4 /dev/sda1 rw\n"
Disk = namedtuple("Disk", "f_frsize f_blocks f_bavail")


@dataclass
class Host:
    """A host on which all is well, until a test breaks something."""

    directory: Path
    engine: FakeEngine = field(default_factory=FakeEngine)
    stores: dict[str, Callable[[], Store]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=lambda: {"BACKUP_STORES": "local"})
    mountinfo: str = MOUNTINFO.format("master:1")
    engine_error: Exception | None = None
    now: Callable[[], datetime] = lambda: NOON

    def __post_init__(self) -> None:
        self.state.mkdir()
        self.data.mkdir()
        (self.data / "file").write_bytes(b"x" * 5_000)
        self.engine.add_volume("db")
        self.engine.add_volume("backup-state")
        self.engine.run("app", volumes={"db": "/data"})
        self.engine.run("backup", labels={"backup.role": "sidecar"})
        self.engine.be("backup")
        self.mounts = {
            "/volumes": Mount("bind", ROOT, "/volumes", False),
            "/state": Mount("volume", f"{ROOT}/backup-state/_data", "/state", True, "backup-state"),
            str(self.data): Mount("volume", f"{ROOT}/db/_data", str(self.data), False, "db"),
        }
        self.store = MemoryStore(now=lambda: NOON)
        self.stores["memory"] = lambda: self.store

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def data(self) -> Path:
        return self.directory / "db"

    def check(self) -> list[Finding]:
        own = self.engine.container("backup")
        self.engine._containers[own.id] = replace(own, mounts=tuple(self.mounts.values()))

        def connect() -> FakeEngine:
            if self.engine_error:
                raise self.engine_error
            return self.engine

        premises = Premises(
            engine=connect,
            discovery=lambda engine: Discovery(engine, Selection(), None, lambda: ""),
            stores=self.stores,
            state=self.state,
            mountinfo=lambda: self.mountinfo,
            token="0123456789abcdef",
            now=self.now,
        )
        return list(preflight.check(config.load(self.settings, lambda path: Path(path).read_text()), premises))

    def wrong(self) -> list[tuple[str, str, str]]:
        """Subject, result and message of all that is not ok."""
        return [(f.subject, f.verdict.value, f.message) for f in self.check() if f.verdict is not Verdict.OK]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_host_on_which_all_is_well_gets_nothing_but_ok_from_every_subject(host: Host):
    findings = host.check()

    assert {finding.verdict for finding in findings} == {Verdict.OK}, findings
    assert {finding.subject for finding in findings} == {
        *("settings", "engine", "mounts", "volumes", "state", "store memory")
    }


def test_a_check_changes_nothing_on_the_host_nor_in_the_store(host: Host):
    host.store.put("backup-20260101_030000/manifest.json", b"{}")
    host.store.put("owner.json", owner_document("FAKE:ENGINE", "me", NOON, "backup-state"))
    before = list(host.store.list())
    host.check()

    assert list(host.store.list()) == before
    assert list(host.store.pending()) == []
    assert list(host.state.iterdir()) == []
    assert {name for what, name in host.engine.calls if what != "container"} == {"check-0123456789abcdef"}


def test_everything_that_is_not_well_has_a_hint(host: Host):
    host.settings = {}
    host.mounts["/volumes"] = replace(host.mounts["/volumes"], writable=True)
    host.mounts["/state"] = replace(host.mounts["/state"], kind="tmpfs")
    host.engine.run("web", binds={"/srv/uploads": "/uploads"})
    host.engine.add_volume("nfs", driver="nfs")
    host.store.put("owner.json", owner_document("ANOTHER", "other-host", NOON, "state"))
    findings = [finding for finding in host.check() if finding.verdict is not Verdict.OK]

    assert len(findings) >= 6
    assert [finding for finding in findings if not finding.hint] == []


def test_a_place_that_another_running_sidecar_has_is_an_error_until_that_is_gone(host: Host):
    host.store.put("owner.json", owner_document("FAKE:ENGINE", "me", NOON, "other-state"))
    host.engine.run("other", labels={"backup.role": "sidecar"}, volumes={"other-state": "/state"})
    (wrong,) = [each for each in host.wrong() if each[0] == "store memory"]
    assert wrong[1] == "error"
    assert "belongs to the sidecar other, which runs on this host" in wrong[2]
    host.engine.remove("other")
    assert [each for each in host.wrong() if each[0] == "store memory"] == []


# --- settings, engine, mounts ----------------------------------------------------------------------------------------


def test_settings_that_will_disappoint_are_warnings(host: Host):
    host.settings = {"BACKUP_OBJECT_LOCK": "governance:30d"}

    (planned, nowhere) = [finding for finding in host.check() if finding.subject == "settings"]
    assert (planned.verdict, nowhere.verdict) == (Verdict.WARNING, Verdict.WARNING)
    assert "BACKUP_OBJECT_LOCK is set" in planned.message
    assert "S3_BACKUP_BUCKET is not set" in nowhere.message


@pytest.mark.parametrize(
    "error",
    [
        EngineUnreachable("there is no Docker socket", hint="mount it"),
        EngineDenied("no permission to use the Docker socket", hint="run as root"),
    ],
)
def test_without_an_engine_that_is_one_error_and_the_stores_are_looked_at_nevertheless(host: Host, error: EngineDenied):
    host.engine_error = error
    findings = host.check()

    assert [f for f in findings if f.verdict is not Verdict.OK] == [
        Finding("engine", Verdict.ERROR, error.message, error.hint)
    ]
    assert "store memory" in [finding.subject for finding in findings]


def test_a_proxy_that_does_not_let_pause_through_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch):
    def refused(identifier: str) -> None:
        raise EngineDenied(f"POST /containers/{identifier}/pause is not permitted on the Docker socket")

    monkeypatch.setattr(host.engine, "pause", refused)

    assert host.wrong() == [
        ("engine", "error", "POST /containers/check-0123456789abcdef/pause is not permitted on the Docker socket")
    ]


@pytest.mark.parametrize("target", ["/volumes", "/state"])
def test_a_missing_mount_is_an_error_that_names_it(host: Host, target: str):
    del host.mounts[target]

    ((subject, result, message),) = host.wrong()
    assert (subject, result) == ("mounts", "error")
    assert f"nothing is mounted at {target}" in message


def test_a_state_volume_that_is_mounted_read_only_is_an_error(host: Host):
    host.mounts["/state"] = replace(host.mounts["/state"], writable=False)

    assert host.wrong() == [
        ("mounts", "error", "/state is mounted read-only: a freeze could not be undone after a crash")
    ]


def test_a_process_in_no_container_is_told_so(host: Host):
    host.engine.be("")

    assert host.wrong() == [("mounts", "error", "this process runs in no container that the engine knows")]


def test_volumes_that_are_mounted_writable_are_a_warning(host: Host):
    host.mounts["/volumes"] = replace(host.mounts["/volumes"], writable=True)

    assert host.wrong() == [
        ("mounts", "warning", "/volumes is mounted writable, and a backup needs to read only"),
    ]


def test_a_mount_without_propagation_is_a_warning_only_where_a_volume_is_mounted_later(host: Host):
    host.mountinfo = MOUNTINFO.format("")
    assert host.wrong() == []

    host.engine.add_volume("nfs", driver="nfs")
    assert any("that concerns nfs" in message for _, _, message in host.wrong())

    host.mountinfo = MOUNTINFO.format("master:1")
    assert not any("that concerns nfs" in message for _, _, message in host.wrong())


@pytest.mark.parametrize(
    ("optional", "word"),
    [
        ("master:1", "slave"),
        ("shared:7", "shared"),
        ("shared:7 master:1", "slave"),
        ("", "private"),
        ("unbindable", "private"),
    ],
)
def test_propagation_is_read_as_proc_5_describes_it(optional: str, word: str):
    line = MOUNTINFO.format(optional).replace("  ", " ")

    assert propagation(line, "/volumes") == word
    assert propagation(line, "/other") == ""


def test_what_would_make_a_run_partial_is_a_warning(host: Host):
    host.engine.add_volume("elsewhere")
    host.engine._volumes["elsewhere"] = replace(host.engine._volumes["elsewhere"], mountpoint="/mnt/elsewhere/_data")
    host.engine.run("web", binds={"/srv/uploads": "/uploads"})
    found = host.wrong()

    assert {(subject, result) for subject, result, _ in found} == {("volumes", "warning")}
    assert any("volume elsewhere:" in message for _, _, message in found)
    assert any("web:/uploads is not backed up" in message for _, _, message in found)


def test_a_host_whose_volumes_are_all_out_of_sight_is_an_error(host: Host):
    for name, volume in host.engine._volumes.items():
        host.engine._volumes[name] = replace(volume, mountpoint=f"/mnt/{name}/_data")
    del host.mounts[str(host.data)]

    assert ("volumes", "error", "there is no volume to back up") in host.wrong()


def test_a_host_without_volumes_is_a_warning(host: Host):
    host.engine._volumes.clear()
    del host.mounts[str(host.data)]

    assert ("volumes", "warning", "there is no volume to back up") in host.wrong()


# --- the state volume ------------------------------------------------------------------------------------------------


def test_a_state_volume_that_takes_no_file_is_an_error(host: Host):
    host.state.rmdir()
    host.state.write_bytes(b"")

    assert ("state", "error", f"{host.state} cannot be written: Not a directory") in host.wrong()


@pytest.mark.parametrize(
    ("available", "spooled", "result"),
    [(200, 0, None), (112, 0, None), (106, 0, "warning"), (105, 0, "error"), (0, 0, "error"), (10, 300, None)],
)
def test_the_spool_must_hold_the_largest_group_and_leave_a_tenth_of_the_disk(
    host: Host, monkeypatch: pytest.MonkeyPatch, available: int, spooled: int, result: str | None
):
    # 1,000 blocks of 1,000 bytes, of which 100 stay free; the group takes 5,000 bytes, 5,625 with its growth.
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(1_000, 1_000, available))
    (host.state / "spool").mkdir()
    (host.state / "spool" / "db.raw").write_bytes(b"x" * spooled * 1_000)  # of a run that goes on

    assert [found for _, found, _ in host.wrong()] == ([result] if result else [])
    assert (host.state / "spool" / "db.raw").exists()


def test_a_spool_that_is_bounded_too_tightly_is_an_error_that_names_the_setting(host: Host):
    host.settings["BACKUP_SPOOL_MAX"] = "4kB"

    (found,) = [finding for finding in host.check() if finding.verdict is not Verdict.OK]
    assert (found.subject, found.verdict) == ("state", Verdict.ERROR)
    assert "BACKUP_SPOOL_MAX" in found.hint


# --- stores ----------------------------------------------------------------------------------------------------------


class Broken(MemoryStore):
    """A store in which the operations named fail, or are answered wrongly."""

    def __init__(self, **errors: Any) -> None:
        super().__init__(now=lambda: NOON)
        self.errors = errors
        self.fired: set[str] = set()

    def fault(self, operation: str) -> None:
        if operation in self.errors:
            self.fired.add(operation)
            raise self.errors[operation]

    def put(self, key: str, data: bytes, **options: Any) -> Any:
        stored = super().put(key, data, **options)
        self.fault("put")  # after it has landed: an answer that is lost
        return stored

    def open(self, key: str, **options: Any) -> Any:
        if key.startswith("check-"):
            self.fault("open")
        return super().open(key, **options)

    def list(self, prefix: str = "") -> Any:
        self.fault("list")
        return super().list(prefix)

    def begin(self, key: str, **options: Any) -> Any:
        self.fault("begin")
        return super().begin(key, **options)

    def delete(self, keys: Any) -> None:
        self.fault("delete")
        super().delete(keys)

    def left(self) -> list[str]:
        return [stored.key for stored in super().list()]


def denied(operation: str) -> StoreDenied:
    return StoreDenied(f"{operation} is refused", hint=f"grant {operation}", store="memory")


@pytest.mark.parametrize("operation", ["put", "open", "list", "begin", "delete"])
def test_a_permission_that_is_missing_is_an_error_with_its_hint_and_the_probe_is_removed(host: Host, operation: str):
    store = Broken(**{operation: denied(operation)})
    host.stores["memory"] = lambda: store

    assert [finding for finding in host.check() if finding.verdict is not Verdict.OK] == [
        Finding("store memory", Verdict.ERROR, f"{operation} is refused", f"grant {operation}")
    ]
    assert store.fired == {operation}
    assert store.left() == (["check-0123456789abcdef"] if operation == "delete" else [])


def test_permissions_that_are_missing_are_all_named_at_once(host: Host):
    store = Broken(open=denied("open"), list=denied("list"), delete=denied("delete"))
    host.stores["memory"] = lambda: store

    assert [message for _, _, message in host.wrong()] == ["open is refused", "list is refused", "delete is refused"]


class Forgetful(MemoryStore):
    def open(self, key: str, **options: Any) -> Any:
        if key.startswith("check-"):
            super().put(key, b"something else")
        return super().open(key, **options)


class Hiding(MemoryStore):
    def list(self, prefix: str = "") -> Iterator[Any]:
        return iter(())


class Keeping(MemoryStore):
    def delete(self, keys: Any) -> None:
        return


@pytest.mark.parametrize(
    ("kind", "words"), [(Forgetful, "gives back other bytes"), (Hiding, "does not list"), (Keeping, "still has")]
)
def test_a_store_that_answers_and_lies_is_found_out(host: Host, kind: type[MemoryStore], words: str):
    store = kind(now=lambda: NOON)
    host.stores["memory"] = lambda: store

    ((subject, result, message),) = host.wrong()
    assert (subject, result) == ("store memory", "error")
    assert words in message


def test_a_prefix_of_another_engine_is_an_error_and_nothing_is_written_there(host: Host):
    host.store.put("owner.json", owner_document("ANOTHER", "other-host", NOON, "state"))
    before = list(host.store.list())

    assert [f for f in host.check() if f.verdict is not Verdict.OK] == [
        Finding(
            "store memory",
            Verdict.ERROR,
            "memory: belongs to host other-host",
            "give this host a BACKUP_HOST name or a BACKUP_PREFIX of its own",
        )
    ]
    assert list(host.store.list()) == before


def test_an_owner_that_cannot_be_read_is_an_error(host: Host):
    host.store.put("owner.json", b"{")

    assert [(subject, result) for subject, result, _ in host.wrong()] == [("store memory", "error")]


@pytest.mark.parametrize(
    ("off", "words"),
    [
        (timedelta(seconds=-50), None),
        (timedelta(seconds=50), None),
        (timedelta(minutes=-5), "300 s behind this machine's"),
        (timedelta(hours=1), "3600 s ahead of this machine's"),
    ],
)
def test_a_clock_that_differs_from_the_stores_is_a_warning(host: Host, off: timedelta, words: str | None):
    host.stores["memory"] = lambda: MemoryStore(now=lambda: NOON + off)

    found = host.wrong()
    assert [result for _, result, _ in found] == (["warning"] if words else [])
    assert all(words and message.endswith(words) for _, _, message in found)


def test_every_store_is_looked_at_whatever_is_wrong_with_the_others(host: Host):
    def unreachable() -> Store:
        raise StoreUnreachable("no connection to http://s3", hint="see the network", store="s3")

    host.stores = {"s3": unreachable, **host.stores}

    assert host.wrong() == [("store s3", "error", "no connection to http://s3")]
    assert host.check()[-1].subject == "store memory"


def test_a_directory_is_probed_as_a_bucket_is(host: Host, tmp_path: Path):
    (tmp_path / "sets").mkdir()
    host.now = lambda: datetime.now(UTC)
    host.stores = {
        "local": lambda: LocalStore(str(tmp_path / "sets")),
        "gone": lambda: LocalStore(str(tmp_path / "gone"), name="gone"),
    }
    findings = [finding for finding in host.check() if finding.subject.startswith("store")]

    assert [finding.verdict for finding in findings] == [Verdict.OK, Verdict.ERROR]
    assert [path.name for path in (tmp_path / "sets").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("available", "result"), [(9, "warning"), (11, None), (0, "warning")])
def test_a_directory_whose_disk_does_not_hold_one_more_set_like_the_last_is_a_warning(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, result: str | None
):
    shop = Shop(tmp_path / "shop")
    (tmp_path / "sets").mkdir()
    (shop.data("db") / "noise").write_bytes(os.urandom(10 << 20))
    shop.stores = {"local": LocalStore(str(tmp_path / "sets"))}
    last = shop.run()
    shop.second += 1
    assert shop.run("files").set  # a set of one volume tells nothing of what the next of all needs
    host.now = lambda: datetime.now(UTC)
    host.stores = {"local": lambda: LocalStore(str(tmp_path / "sets"))}
    real = os.statvfs
    monkeypatch.setattr(
        os, "statvfs", lambda at: Disk(1 << 20, 1_000, available) if str(at) == str(tmp_path / "sets") else real(at)
    )

    found = [f for f in host.check() if f.subject == "store local" and f.verdict is not Verdict.OK]
    assert [f.verdict.value for f in found] == ([result] if result else [])
    for each in found:
        assert each.message == f"{tmp_path}/sets has {available} MiB free, and {last.set} has 10 MiB"
        assert "BACKUP_LOCAL_DIR" in each.hint


# --- the verb --------------------------------------------------------------------------------------------------------


@contextmanager
def settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("BACKUP_", "AWS_", "S3_", "DOCKER_", "NOTIFY_"))]:
        monkeypatch.delenv(name)
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    yield


def test_the_verb_needs_no_daemon_says_what_is_wrong_with_a_hint_and_leaves_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "sets").mkdir()
    nowhere = f"unix://{tmp_path}/docker.sock"
    with settings_of_the_machine(
        monkeypatch, BACKUP_STORES="local", BACKUP_LOCAL_DIR=f"{tmp_path}/sets", DOCKER_HOST=nowhere
    ):
        words = CliRunner().invoke(main, ["check"])
        document = CliRunner().invoke(main, ["check", "--json"])

    assert (words.exit_code, document.exit_code) == (1, 1)
    assert f"error    engine: there is no Docker socket at {nowhere}" in words.stdout
    assert "         mount it" in words.stdout
    assert f"ok       store local: {tmp_path}/sets: a probe was written" in words.stdout
    assert words.stdout.splitlines()[-1] == "a backup, or a part of it, will fail: see the errors"
    assert json.loads(document.stdout)["outcome"] == "failed"
    assert {"check", "result", "message", "hint"} == set(json.loads(document.stdout)["checks"][0])


def test_settings_that_cannot_be_used_are_all_there_is_to_say(monkeypatch: pytest.MonkeyPatch):
    with settings_of_the_machine(monkeypatch, S3_BACKUP_BUKET="sets", BACKUP_MAX_PAUSE="soon"):
        done = CliRunner().invoke(main, ["check", "--json"])

    checks = json.loads(done.stdout)["checks"]
    assert done.exit_code == 1
    assert [(each["check"], each["result"]) for each in checks] == [("settings", "error")] * 2
    assert any("did you mean S3_BACKUP_BUCKET" in each["message"] for each in checks)


@pytest.mark.parametrize(
    ("results", "code"), [((), 0), (("ok",), 0), (("ok", "warning"), 3), (("warning", "error", "ok"), 1)]
)
def test_the_exit_code_is_that_of_the_worst_finding(
    monkeypatch: pytest.MonkeyPatch, results: tuple[str, ...], code: int
):
    from sidecar import wiring  # noqa: PLC0415 - half a second that the other tests need not wait for

    findings = [Finding("engine", Verdict(result), "a message", "a hint") for result in results]
    monkeypatch.setattr(wiring, "check", lambda environ: iter(findings))

    assert CliRunner().invoke(main, ["check"]).exit_code == code
    assert CliRunner().invoke(main, ["check", "--json"]).exit_code == code


def test_a_finding_is_one_line_with_its_hint_below():
    words = Words(terminal=False)
    with words.console.capture() as captured:
        words.finding(Finding("store s3", Verdict.ERROR, "no bucket", "create it").as_json())
        words.finding(Finding("engine", Verdict.OK, "it answers").as_json())

    assert captured.get() == "error    store s3: no bucket\n         create it\nok       engine: it answers\n"
