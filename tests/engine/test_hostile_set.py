"""Whoever can write to the bucket forges a set, checksums and all: it does no harm outside of the volume it names.

Objects are made by Python's tarfile and gzip, documents by json. Of what is not plainly refused, what comes back is
what the archive says, inside the volume. The sidecar has a bound on its memory, which a bomb would meet.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import (
    BUCKET,
    S3,
    Description,
    Done,
    Machine,
    Sidecar,
    describe,
    differences,
    docker,
    inspect,
    logs,
    wait_until,
)

pytestmark = [pytest.mark.engine("machine"), pytest.mark.needs_limits]

COLUMNS = ["path", "type", "size", "mode", "uid", "gid", "mtime_ns", "ctime_ns", "ino", "at", "link"]
KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "dir",
}
TEBIBYTE = 1 << 40
MEMORY = "512m"
Rows = list[list[Any]]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime = kind, link, 1_700_000_000
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info


def packed(*members: tarfile.TarInfo, end: bytes = b"\0" * 1024) -> tuple[bytes, Rows]:
    """A tar stream, each file with 5 bytes; and the rows of an index that tells of it truly."""
    raw, rows = b"", []
    for info in members:
        data = b"evil\n" if info.isreg() and not info.size else b""
        claimed = info.size or len(data)
        info.size = claimed
        size = int(info.pax_headers.get("GNU.sparse.realsize", claimed if info.isreg() else 0))
        path = info.pax_headers.get("GNU.sparse.name", info.name).removeprefix("./")
        row = [path, KINDS[info.type], size, info.mode, 0, 0, 0, 0, 1, len(raw)]
        rows.append([*row, info.linkname] if info.linkname else row)
        raw += info.tobuf(tarfile.PAX_FORMAT) + data.ljust(-len(data) % 512 + len(data), b"\0")
    return raw + end, rows


@dataclass
class Forgery:
    """A set of one volume. raw, rows: the archive's stream and its index, true or not, in one block.

    Each document may be changed at the end, and is vouched for after that.
    """

    raw: bytes
    rows: Rows
    archive: Callable[[bytes], bytes] = lambda data: data
    block: dict[str, Any] = field(default_factory=dict)
    blocks: Sequence[dict[str, Any]] = ()
    index: Callable[[bytes], bytes] = gzip.compress
    volume: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    twice: bool = False

    def objects(self, name: str, volume: str) -> dict[str, bytes]:
        archive = self.archive(gzip.compress(self.raw))
        block = {
            "offset": 0,
            "length": len(archive),
            "raw_length": len(self.raw),
            "crc32": f"{zlib.crc32(archive):08x}",
            "sha256": hashlib.sha256(archive).hexdigest(),
            "files": self.rows,
        } | self.block
        blocks = self.blocks or [block]
        summary = {"blocks": len(blocks), "files": sum(len(each["files"]) for each in blocks), "sockets": []}
        summary |= {"size": sum(each["length"] for each in blocks), "crc32": f"{zlib.crc32(archive):08x}"}
        header = {"format": 1, "kind": "index", "volume": volume, "set": name, "columns": COLUMNS}
        index = self.index(b"".join(json.dumps(line).encode() + b"\n" for line in (header, *blocks, summary)))
        keys = {"archive": (f"{name}/{volume}.tar.gz", archive), "index": (f"{name}/{volume}.index.jsonl.gz", index)}
        stored = {
            what: {"key": key, "size": len(data), "crc32": f"{zlib.crc32(data):08x}"}
            for what, (key, data) in keys.items()
        }
        one = {
            "volume": volume,
            "group": "g",
            "outcome": "good",
            **stored,
            "raw_bytes": sum(each["raw_length"] for each in blocks),
            "files": summary["files"],
            "driver": "local",
            "options": {},
            "labels": {},
            "mountpoint": "/",
            "changed_files": [],
        } | self.volume
        facts = {"set": name, "time": "2030-01-02T03:04:05Z", "outcome": "good", "host": "h", "engine": "e"}
        lists: dict[str, list[str]] = {key: [] for key in ("groups", "missing", "reasons", "named")}
        manifest = {"format": 1, "kind": "manifest", "version": "0", "tags": {}} | facts | lists
        manifest |= {"volumes": [one, one] if self.twice else [one]} | self.manifest
        documents = {f"{name}/manifest.json": json.dumps(manifest).encode(), f"{name}/RECOVER.txt": b"trust me\n"}
        return dict(keys.values()) | documents


def forged(*members: tarfile.TarInfo, **changes: Any) -> Forgery:
    return Forgery(*packed(*members), **changes)


def lying(*members: tarfile.TarInfo, told: str) -> Forgery:
    """The index tells of a harmless name."""
    forgery = forged(*members)
    forgery.rows[-1][0] = told
    return forgery


def sparse(claim: int) -> tarfile.TarInfo:
    """4 KiB of data, and a hole up to `claim`: GNU's format 1.0."""
    info = member("./GNUSparseFile.0/vast", size=512 + 4096)
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "./vast",
        "GNU.sparse.realsize": str(claim),
    }
    return info


def sparse_set(claim: int) -> Forgery:
    raw, rows = packed(sparse(claim), end=b"")
    head = f"2\n0\n4096\n{claim}\n0\n".encode().ljust(512, b"\0")
    return Forgery(raw + head + b"e" * 4096 + b"\0" * 1024, rows)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


ZEROS = gzip.compress(b"\0" * (256 << 20)) * 16  # 4 GiB in 4 MB
GOOD = packed(member("./evil"))
# Blocks of 64 MiB each, it says.
CLAIMS = [
    {"offset": 100 * n, "length": 100, "raw_length": 64 << 20, "crc32": "0", "sha256": "0", "files": []}
    for n in range(TEBIBYTE // (64 << 20))
]

# What is refused: nothing is changed, whatever the archive was meant to do. With the words that are told.
REFUSED: dict[str, tuple[Forgery, str]] = {
    "an absolute name": (forged(member("/volume/evil")), "leads out of the volume"),
    "a name with ..": (forged(member("./a/../../../evil")), "leads out of the volume"),
    "a hard link to what is outside": (forged(member("l", tarfile.LNKTYPE, "../../kept")), "leads out of the volume"),
    "a name with .. that the index hides": (lying(member("../../evil"), told="evil"), "tar ended with 2"),
    "a file through a symlink": (
        forged(member("out", tarfile.SYMTYPE, "../.."), member("out/evil")),
        "tar ended with 2",
    ),
    "a file through an absolute symlink": (
        forged(member("out", tarfile.SYMTYPE, "/volume"), member("out/evil")),
        "tar ended with 2",
    ),
    "a hard link through a symlink": (
        forged(member("out", tarfile.SYMTYPE, "../.."), member("l", tarfile.LNKTYPE, "out/kept"), member("z")),
        "tar ended with 2",
    ),
    "a directory of ours": (
        forged(member("f"), member(".volume-backup-restore/leaving"), member("./", tarfile.DIRTYPE)),
        "no archive of ours does",
    ),
    "1 TiB of file in a short archive": (forged(member("./vast", size=TEBIBYTE)), "tar ended with 2"),
    "a hole of 2^60 bytes": (sparse_set(1 << 60), "tar ended with 2"),
    "1 TiB in blocks": (Forgery(b"", [], lambda _: b"e" * 100 * len(CLAIMS), blocks=CLAIMS), "bytes free"),
    "a gzip bomb": (Forgery(*GOOD, archive=lambda _: ZEROS), "does not hold the"),
    "an index that is a gzip bomb": (Forgery(*GOOD, index=lambda _: ZEROS), "too long to be ours"),
    "an index nested without end": (Forgery(*GOOD, index=lambda _: gzip.compress(nested(1 << 20))), "is damaged"),
    "an index of more bytes than there are": (Forgery(*GOOD, block={"length": 1 << 40}), "the index claims a block"),
    "an index of fewer bytes": (Forgery(*GOOD, block={"raw_length": 1024}), "does not hold the"),
    "an index of other bytes": (Forgery(*GOOD, block={"sha256": "0" * 64}), "its SHA-256 is another"),
    "an index that begins elsewhere": (Forgery(*GOOD, block={"offset": 512}), "has a gap"),
    "a negative length": (Forgery(*GOOD, block={"raw_length": -1}), "is damaged"),
    "rows that hold no numbers": (Forgery(GOOD[0], [[*GOOD[1][0][:9], "x"]]), "is damaged"),
    "another set's archive": (
        Forgery(*GOOD, volume={"archive": {"key": "../../owner.json", "size": 1, "crc32": "0"}}),
        "is another set's",
    ),
    "another set's name": (Forgery(*GOOD, manifest={"set": "backup-20300101_000000"}), "is another set's"),
    "a volume twice": (Forgery(*GOOD, twice=True), "has a volume twice"),
}
# Of those the sets that are what their documents say, whatever that is.
TRUE = ("a directory of ours", "a hole of 2^60 bytes")


@dataclass
class Scene:
    """A volume in use, another beside it, and the set of both that is not forged."""

    machine: Machine
    s3: S3
    app: str
    volumes: tuple[str, str]
    sidecar: Sidecar
    good: str
    number: int = 0

    def seen(self) -> list[Description]:
        return describe(self.app, "/volume", "/beside")

    def place(self, forgery: Forgery, volume: str = "") -> str:
        """Put it into the bucket; its name."""
        self.number += 1
        name = f"backup-20300102_0304{self.number:02d}"
        for key, data in forgery.objects(name, volume or self.volumes[0]).items():
            self.s3.client.put_object(Bucket=BUCKET, Key=f"{self.sidecar.prefix}/{key}", Body=data)
        return name

    def remove(self, name: str) -> None:
        for key in self.s3.keys(f"{self.sidecar.prefix}/{name}"):
            self.s3.client.delete_object(Bucket=BUCKET, Key=f"{self.sidecar.prefix}/{name}/{key}")

    def around(self) -> str:
        """What lies beside the data of a volume in the engine's directory, and what the sidecar has of its own."""
        look = "for v; do find /volumes/$v -mindepth 1 -maxdepth 1; done; find /state /data/backups | sort"
        return docker("exec", self.sidecar.name, "sh", "-c", look, "sh", *self.volumes).out

    def assert_nothing_runs(self) -> None:
        def gone() -> bool:
            ours = ("ps", "--all", "--quiet", "--filter", f"name={self.sidecar.name}-")
            return docker(*ours).out == "" and "journal" not in self.around()

        wait_until(gone, "no helper and no debt is left", timeout=30)
        assert inspect(self.sidecar.name)["RestartCount"] == 0, "it has died of it"
        told = logs(self.sidecar.name).out
        assert "Traceback" not in told
        assert "unexpectedly" not in told


@pytest.fixture(scope="module")
def scene(machine: Machine, s3: S3, make_sidecar: SidecarMaker) -> Iterator[Scene]:
    group = ("--label", f"backup.group={machine.name('hostile')}")
    volumes = (machine.volume("hostile", *group), machine.volume("hostile-beside", *group))
    mounts = ("--volume", f"{volumes[0]}:/volume", "--volume", f"{volumes[1]}:/beside")
    app = machine.run("hostile-app", ["sleep", "infinity"], *mounts)
    try:
        docker("exec", app, "sh", "-c", "mkdir /volume/d; echo precious > /volume/kept; echo x > /beside/kept")
        sidecar = make_sidecar("hostile", include=volumes, service={"mem_limit": MEMORY})
        sidecar.up()
        yield Scene(machine, s3, app, volumes, sidecar, sidecar.good_run()[0]["set"])
    finally:
        machine.remove(app)


@pytest.fixture
def place(scene: Scene) -> Iterator[Callable[..., str]]:
    """Puts a forgery into the bucket, until the end of the test; its name."""
    placed = []

    def place(forgery: Forgery, volume: str = "") -> str:
        placed.append(scene.place(forgery, volume))
        return placed[-1]

    yield place
    for name in placed:
        scene.remove(name)


def restore(scene: Scene, name: str, *arguments: str) -> Done:
    return scene.sidecar.verb("restore", name, *arguments, "--yes", "--no-safety", timeout=300)


@pytest.mark.parametrize("what", REFUSED)
def test_a_forged_set_is_refused_in_words_and_nothing_is_changed(
    scene: Scene, place: Callable[..., str], what: str
) -> None:
    forgery, word = REFUSED[what]
    name = place(forgery)
    before, around, since = scene.seen(), scene.around(), inspect(scene.app)["State"]["StartedAt"]

    done = restore(scene, name, scene.volumes[0])
    verified = scene.sidecar.verb("verify", name, timeout=300)

    assert done.code == 1, done
    assert word in done.err
    assert "Traceback" not in done.out + done.err + verified.out + verified.err
    assert verified.code == (0 if what in TRUE else 1), verified
    assert f"{'good' if what in TRUE else 'failed'}: {name}" in verified.out
    for one, other in zip(before, scene.seen(), strict=True):
        assert differences(one, other) == []
    assert inspect(scene.app)["State"]["StartedAt"] == since
    scene.assert_nothing_runs()
    assert scene.around() == around


def test_one_path_of_an_index_whose_places_lie_is_refused(scene: Scene, place: Callable[..., str]) -> None:
    raw, rows = packed(member("./a"), member("./b"))
    for places in ((4096, 0), (-512, 512), (0, 1 << 50)):
        lie = [[*row[:9], at] for row, at in zip(rows, places, strict=True)]
        done = restore(scene, place(Forgery(raw, lie)), scene.volumes[0], "--path", "*")
        assert done.code == 1, done
        assert "out of order" in done.err
    scene.assert_nothing_runs()


def test_a_volume_that_is_the_sidecars_own_is_never_restored(scene: Scene, place: Callable[..., str]) -> None:
    around = scene.around()
    done = restore(scene, place(forged(member("daemon.json")), scene.sidecar.state))
    assert done.code == 1
    assert "is never restored" in done.err
    assert scene.around() == around


@pytest.mark.parametrize("name", ["/etc", "../../../etc", "a b", "x,readonly=false"])
def test_what_is_no_volumes_name_becomes_neither_a_volume_nor_a_mount(
    scene: Scene, place: Callable[..., str], name: str
) -> None:
    set_name = place(forged(member("evil"), volume={"volume": name}))
    done = restore(scene, set_name)
    assert done.code == 1, done
    assert "Traceback" not in done.out + done.err
    scene.assert_nothing_runs()


# --- what tar makes harmless, or what is only odd: it comes back as it is told, inside the volume ---------------------


@pytest.fixture
def restored(scene: Scene, place: Callable[..., str]) -> Iterator[Callable[[Forgery], tuple[Description, int]]]:
    """Restores a forgery: what the volume is then, and the exit code of `verify`. All is as it was afterwards."""

    def restored(forgery: Forgery) -> tuple[Description, int]:
        name = place(forgery)
        _, beside = scene.seen()
        done = restore(scene, name, scene.volumes[0])
        assert done.code == 0, done
        now, beside_now = scene.seen()
        assert differences(beside, beside_now) == []
        scene.assert_nothing_runs()
        return now, scene.sidecar.verb("verify", name, timeout=300).code

    yield restored
    assert restore(scene, scene.good).code == 0
    assert docker("exec", scene.app, "cat", "/volume/kept").out == "precious\n"


def test_an_absolute_name_that_the_index_hides_ends_inside_the_volume_and_verify_is_red(restored: Any) -> None:
    now, verified = restored(lying(member("/volume/evil"), told="volume/evil"))
    assert now.keys() == {".", "./volume", "./volume/evil"}
    assert verified == 1


def test_a_hole_of_a_tebibyte_takes_no_room(scene: Scene, restored: Any) -> None:
    began = time.monotonic()
    now, verified = restored(sparse_set(TEBIBYTE))
    print(f"a hole of 1 TiB came back in {time.monotonic() - began:.1f} s")
    assert now["./vast"]["size"] == TEBIBYTE
    assert verified == 0


def test_device_nodes_come_back_and_no_container_can_open_them(scene: Scene, restored: Any) -> None:
    disk = member("./disk", tarfile.BLKTYPE, devmajor=254, devminor=0, mode=0o666)
    memory = member("./memory", tarfile.CHRTYPE, devmajor=1, devminor=1, mode=0o666)
    now, verified = restored(forged(disk, memory))
    assert now["./disk"]["device"] == [254, 0]
    assert now["./memory"]["kind"] == "character device"
    for name in ("disk", "memory"):
        done = docker("exec", scene.app, "head", "-c", "1", f"/volume/{name}", check=False)
        assert "Operation not permitted" in done.err
    assert verified == 0


def test_symlinks_that_lead_out_come_back_as_symlinks(restored: Any) -> None:
    now, _ = restored(forged(member("./out", tarfile.SYMTYPE, "../../etc"), member("./", tarfile.DIRTYPE, mode=0o755)))
    assert now["./out"]["target"] == "../../etc"


def test_beside_all_of_them_the_good_set_is_listed_verified_and_restored(
    scene: Scene, place: Callable[..., str]
) -> None:
    for forgery, _ in REFUSED.values():
        place(forgery)
    garbage = place(Forgery(*GOOD))
    key = f"{scene.sidecar.prefix}/{garbage}/manifest.json"
    scene.s3.client.put_object(Bucket=BUCKET, Key=key, Body=nested(1 << 20))
    assert scene.good in scene.sidecar.sets()
    assert scene.sidecar.verb("verify", scene.good).code == 0
    assert restore(scene, scene.good).code == 0
    assert "Traceback" not in scene.sidecar.verb("scan", timeout=300).out
    scene.assert_nothing_runs()
