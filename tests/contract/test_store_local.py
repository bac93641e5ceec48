"""LocalStore's own promises: on the disk before it is visible, and nothing left behind by the killed."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.errors import StoreDenied, StoreError, StoreFull
from sidecar.stores.local import LocalStore
from sidecar.stores.pool import PooledUpload
from sidecar.stores.port import Store, Upload


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path), prefix="host")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk, in order: (`sync` or `publish` or `remove`, path)."""
    seen: list[tuple[str, str]] = []
    sync, rename, link, unlink = os.fsync, os.rename, os.link, os.unlink

    def record_sync(descriptor: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def record_rename(source: str, target: str) -> None:
        seen.append(("publish", f"{source} -> {target}"))
        rename(source, target)

    def record_link(source: str, target: str) -> None:
        seen.append(("publish", f"{source} -> {target}"))
        link(source, target)

    def record_unlink(path: str, **options: object) -> None:
        seen.append(("remove", str(path)))
        unlink(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    monkeypatch.setattr(os, "link", record_link)
    monkeypatch.setattr(os, "unlink", record_unlink)
    return seen


def upload(store: Store, key: str, content: bytes) -> None:
    with store.begin(key) as under_way:
        under_way.put(1, content, zlib.crc32(content))
        under_way.complete([1], size=len(content), crc32=zlib.crc32(content))


@pytest.mark.parametrize(
    "make",
    [
        lambda store: store.put("set/object", b"1"),
        lambda store: store.put("set/object", b"1", if_absent=True),
        lambda store: upload(store, "set/object", b"1"),
    ],
    ids=["put", "put if absent", "upload"],
)
def test_an_object_is_on_the_disk_before_it_is_visible_and_its_name_before_we_say_so(
    store: LocalStore, tmp_path: Path, calls: list[tuple[str, str]], make: Callable[[LocalStore], object]
) -> None:
    make(store)

    (published,) = [index for index, (what, _) in enumerate(calls) if what == "publish"]
    source, target = calls[published][1].split(" -> ")
    assert target == str(tmp_path / "host/set/object")
    assert ("sync", source) in calls[:published]
    assert ("sync", str(tmp_path / "host/set")) in calls[published:]
    # The new directories' names too.
    assert ("sync", str(tmp_path)) in calls[:published]
    assert ("sync", str(tmp_path / "host")) in calls[:published]


def test_a_manifest_is_gone_from_the_disk_before_its_archive_is_touched(
    store: LocalStore, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    store.put("set/manifest.json", b"1")
    store.put("set/archive", b"1")
    store.put("set/index", b"1")
    calls.clear()

    store.delete(["set/manifest.json", "set/archive"])

    assert calls == [
        ("remove", str(tmp_path / "host/set/manifest.json")),
        ("sync", str(tmp_path / "host/set")),
        ("remove", str(tmp_path / "host/set/archive")),
        ("sync", str(tmp_path / "host/set")),
    ]


def test_parts_in_order_are_written_once(store: LocalStore, tmp_path: Path) -> None:
    with store.begin("k") as under_way:
        under_way.put(1, b"1" * 1000, zlib.crc32(b"1" * 1000))
        (body,) = tmp_path.glob(".pending/*/body")
        inode = body.stat().st_ino
        for number in (3, 2):  # overtaken, as threads do
            under_way.put(number, b"1" * 1000, zlib.crc32(b"1" * 1000))
        assert list(tmp_path.glob(".pending/*/part-*")) == [], "the part that came early has its place now"
        assert body.stat().st_size == 3000
        under_way.complete([1, 2, 3], size=3000, crc32=zlib.crc32(b"1" * 3000))

    assert (tmp_path / "host/k").stat().st_ino == inode
    assert (tmp_path / "host/k").stat().st_size == 3000


def test_many_threads_at_once_lose_nothing(store: LocalStore) -> None:
    parts = [bytes([number % 256]) * (1000 + number) for number in range(400)]
    with PooledUpload(store.begin("k"), threads=8) as under_way:
        for number, data in enumerate(parts, 1):
            under_way.put(number, data)
        under_way.complete()

    with store.open("k") as source:
        assert source.read() == b"".join(parts)


def test_objects_can_be_read_by_their_owner_alone(store: LocalStore, tmp_path: Path) -> None:
    store.put("set/manifest.json", b"1")
    upload(store, "set/archive", b"1")

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}


def test_what_is_not_an_object_is_not_listed(store: LocalStore, tmp_path: Path) -> None:
    store.put("set/object", b"1")
    (tmp_path / "host/set/link").symlink_to("object")
    os.mkfifo(tmp_path / "host/set/fifo")
    (tmp_path / "host/empty").mkdir()
    (tmp_path / "elsewhere").write_text("of another prefix")
    Path(os.fsdecode(os.fsencode(tmp_path / "host/set") + b"/not-utf8-\xff")).touch()
    under_way = store.begin("set/other")

    assert [stored.key for stored in store.list()] == ["set/object"]
    under_way.abort()


def test_uploads_under_way_are_not_listed_where_there_is_no_prefix(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    under_way = store.begin("set/archive")
    under_way.put(1, b"half", zlib.crc32(b"half"))

    assert list(store.list()) == []
    assert list(store.list(".pending/")) == []
    assert [pending.key for pending in store.pending()] == ["set/archive"]
    under_way.abort()


def test_directories_that_become_empty_go_too(store: LocalStore, tmp_path: Path) -> None:
    store.put("set-1/object", b"1")
    store.put("set-2/object", b"1")
    store.delete(["set-1/object"])

    assert sorted(path.name for path in (tmp_path / "host").iterdir()) == ["set-2"]


def test_sets_come_and_go_at_once_without_losing_one(store: LocalStore) -> None:
    def work(worker: int) -> None:
        for round_ in range(40):
            store.put(f"shared/directory/{worker}", str(round_).encode())
            with store.open(f"shared/directory/{worker}") as source:
                assert source.read() == str(round_).encode()
            store.delete([f"shared/directory/{worker}"])

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, range(4)))

    assert list(store.list()) == []


def test_a_key_cannot_reach_into_the_uploads_of_others(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with pytest.raises(StoreError, match="pending"):
        store.put(".pending/x/body", b"1")


def test_a_killed_upload_is_invisible_and_can_be_removed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, zlib\n"
        "from sidecar.stores.local import LocalStore\n"
        "store = LocalStore(sys.argv[1], prefix='host')\n"
        "upload = store.begin('set/archive')\n"
        "for number in range(1, 6):\n"
        "    upload.put(number, bytes(100_000), zlib.crc32(bytes(100_000)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    store = LocalStore(str(tmp_path), prefix="host")

    assert list(store.list()) == []
    (pending,) = store.pending()
    assert pending.key == "set/archive"
    store.abort_pending(pending)
    assert list(store.pending()) == []
    assert list((tmp_path / ".pending").iterdir()) == []


def test_another_prefix_sees_neither_objects_nor_uploads(tmp_path: Path, store: LocalStore) -> None:
    store.put("object", b"1")
    under_way = store.begin("archive")

    other = LocalStore(str(tmp_path), prefix="hos")
    assert list(other.list()) == []
    assert list(other.pending()) == []
    under_way.abort()


@pytest.mark.parametrize("upload_of", ["../host", "..", "", "a/b", "."])
def test_only_uploads_can_be_aborted(store: LocalStore, upload_of: str) -> None:
    store.put("object", b"1")
    pending = store.begin("archive")
    (real,) = store.pending()
    with pytest.raises(StoreError, match="not an upload"):
        store.abort_pending(type(real)("archive", upload_of, real.started))

    assert store.head("object").size == 1
    pending.abort()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_name_and_leaves_nothing(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    written = 0
    write = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal written
        if written >= 5000:
            raise OSError(number, os.strerror(number))
        written += len(data[:1500])
        return write(descriptor, data[:1500], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreFull) as caught:
        upload(store, "set/archive", bytes(10_000))

    assert str(tmp_path) in caught.value.hint
    assert list(store.pending()) == []
    assert list(store.list()) == []
    with pytest.raises(StoreFull):
        store.put("set/manifest.json", b"1")
    assert list(tmp_path.glob(".pending/*")) == []


def test_a_part_whose_replacement_failed_half_way_is_not_completed_as_it_was(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is overwritten in place, so half of it is the new one."""
    write = os.pwrite

    def fail_half_way(descriptor: int, data: memoryview, offset: int) -> int:
        if bytes(data[:3]) == b"new":
            return write(descriptor, data[:3], offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def replace(under_way: Upload) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", fail_half_way)
            with pytest.raises(StoreError):
                under_way.put(1, b"new content", zlib.crc32(b"new content"))

    with store.begin("k") as under_way:
        under_way.put(1, b"old content", zlib.crc32(b"old content"))
        replace(under_way)
        with pytest.raises(StoreError, match="not put"):
            under_way.complete([1], size=11, crc32=zlib.crc32(b"old content"))

    assert list(store.list()) == []


def test_a_read_only_disk_has_a_name(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: int = 0) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StoreDenied, match="Read-only") as caught:
        store.put("set/manifest.json", b"1")

    assert "write" in caught.value.hint


def test_a_disk_without_hard_links_can_put_if_absent(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source)

    monkeypatch.setattr(os, "link", refuse)
    store.put("owner.json", b"mine", if_absent=True)
    store.put("owner.json", b"mine", if_absent=True)
    with pytest.raises(StoreError, match="exists already"):
        store.put("owner.json", b"theirs", if_absent=True)


def test_a_file_system_that_cannot_copy_inside_the_kernel_still_completes(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with store.begin("k") as under_way:
        for number, data in ((3, b"three"), (1, b"one"), (2, b"two")):
            under_way.put(number, data, zlib.crc32(data))
        under_way.complete([2, 3], size=8, crc32=zlib.crc32(b"twothree"))

    with store.open("k") as source:
        assert source.read() == b"twothree"


def test_a_part_that_is_being_written_while_its_upload_is_aborted_touches_no_other_file(store: LocalStore) -> None:
    """Descriptor numbers are reused: a part must never write through one that abort has closed."""
    for _ in range(30):
        under_way = store.begin("given up")
        start = threading.Barrier(3)

        def put(number: int, under_way: object = under_way, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                under_way.put(number, b"x" * 200_000, zlib.crc32(b"x" * 200_000))  # type: ignore[attr-defined]
            except StoreError:
                return

        threads = [threading.Thread(target=put, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        start.wait()
        under_way.abort()
        store.put("bystander", b"untouched")
        for thread in threads:
            thread.join()
        under_way.abort()
        with store.open("bystander") as source:
            assert source.read() == b"untouched"
    assert list(store.pending()) == []
