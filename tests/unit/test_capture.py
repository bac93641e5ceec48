"""Capture: what it reads, and every way in which a volume may change under it."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.archive.capture import Capture, capture, measure
from sidecar.archive.copies import Copies
from sidecar.archive.entry import Entry, Kind
from sidecar.archive.spool import SpoolSpace
from sidecar.archive.writer import write_archive
from sidecar.errors import SidecarError, SpoolFull, VolumeUnavailable, VolumeUnreadable
from tests.unit.trees import no_descriptor_left

MEBIBYTE = 1024 * 1024
SECRET = b"of another volume"


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture(autouse=True)
def _never_blocks() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise TimeoutError("the capture hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Files and directories a, m, z; the hazards happen to `m`, and the others have to come through whole."""
    root = tmp_path / "volume"
    for directory in ("a directory", "m directory", "z directory"):
        (root / directory).mkdir(parents=True)
        (root / directory / "inside").write_bytes(directory.encode())
    for file in ("a", "m", "z"):
        (root / file).write_bytes(file.encode() * 3000)
    other = tmp_path / "other"
    other.mkdir()
    (other / "inside").write_bytes(SECRET)
    return root


class Result:
    """A capture, and the archive made of it as tarfile reads it."""

    def __init__(self, captured: Capture, members: dict[str, bytes | None]) -> None:
        self.captured = captured
        self.members = members

    @property
    def changed(self) -> list[str]:
        return [os.fsdecode(path) for path in self.captured.changed]

    def entry(self, path: str) -> Entry:
        (found,) = [e for e in [*self.captured.files, *self.captured.others] if e.path == path.encode()]
        return found


def captured(
    root: Path, check: Callable[[], None] = lambda: None, copied: Callable[[int], None] = lambda _: None
) -> Result:
    archive = io.BytesIO()
    with SpoolSpace(root.parent / "spool").new("v") as spool:
        found = capture(os.fspath(root), Copies(spool), check, copied)
        write_archive(
            found,
            lambda block, _: archive.write(block) and None,
            root.parent / "index",
            volume="v",
            set_name="s",
            level=0,
            threads=1,
            check=lambda: None,
        )
    archive.seek(0)
    members = {}
    with tarfile.open(fileobj=archive, mode="r:gz") as read:
        for member in read:
            source = read.extractfile(member) if member.isreg() else None
            members[member.name] = source.read() if source else None
    assert SECRET not in b"".join(content or b"" for content in members.values())
    return Result(found, members)


def assert_others_whole(result: Result) -> None:
    for file in ("a", "z"):
        assert result.members[f"./{file}"] == file.encode() * 3000
        assert result.members[f"./{file} directory/inside"] == f"{file} directory".encode()


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`before(function, act, when)`: act once, just before the first call of os.`function` whose arguments suit."""
    fired: list[str] = []
    armed: list[str] = []

    def arm(function: str, act: Callable[[], object], when: Callable[..., bool]) -> None:
        really = getattr(os, function)
        armed.append(function)

        def called(*arguments: Any, **options: Any) -> Any:
            if function not in fired and when(*arguments, **options):
                fired.append(function)
                act()
            return really(*arguments, **options)

        monkeypatch.setattr(os, function, called)

    yield arm
    assert sorted(fired) == sorted(armed), "the hazard did not happen"


def named(name: str) -> Callable[..., bool]:
    return lambda path, *_, **__: path == name


# --- what vanishes or becomes something else -------------------------------------------------------------------------


def test_a_file_that_vanishes_between_listing_and_opening_is_left_out_and_named(
    volume: Path, before: Callable[..., None]
) -> None:
    before("open", (volume / "m").unlink, named("m"))

    result = captured(volume)

    assert "m" in result.changed
    assert "./m" not in result.members
    assert_others_whole(result)


def test_a_directory_that_vanishes_is_left_out_and_named(volume: Path, before: Callable[..., None]) -> None:
    def vanish() -> None:
        (volume / "m directory" / "inside").unlink()
        (volume / "m directory").rmdir()

    before("open", vanish, named("m directory"))

    result = captured(volume)

    assert "m directory" in result.changed
    assert not any(name.startswith("./m directory") for name in result.members)
    assert_others_whole(result)


def test_a_file_that_becomes_a_symlink_is_not_followed(volume: Path, before: Callable[..., None]) -> None:
    def become_symlink() -> None:
        (volume / "m").unlink()
        (volume / "m").symlink_to(volume.parent / "other" / "inside")

    before("open", become_symlink, named("m"))

    result = captured(volume)

    assert "m" in result.changed
    assert "./m" not in result.members
    assert_others_whole(result)


def test_a_directory_that_becomes_a_symlink_to_another_tree_leads_nowhere(
    volume: Path, before: Callable[..., None]
) -> None:
    def become_symlink() -> None:
        (volume / "m directory").rename(volume.parent / "moved")
        (volume / "m directory").symlink_to(volume.parent / "other")

    before("open", become_symlink, named("m directory"))

    result = captured(volume)

    assert "m directory" in result.changed
    assert "./m directory/inside" not in result.members
    assert_others_whole(result)


def test_a_directory_that_becomes_a_symlink_while_it_is_read_is_read_on_where_it_was(
    volume: Path, before: Callable[..., None]
) -> None:
    def become_symlink() -> None:
        (volume / "m directory").rename(volume / "moved")
        (volume / "m directory").symlink_to(volume.parent / "other")

    before("open", become_symlink, named("inside"))
    (volume / "a directory" / "inside").unlink()
    (volume / "m directory" / "second").write_bytes(b"second")

    result = captured(volume)

    assert result.members["./m directory/inside"] == b"m directory"
    assert result.members["./m directory/second"] == b"second"
    assert "" in result.changed  # the volume's root: a name in it has changed


def special_kinds() -> dict[str, Callable[[Path], object]]:
    def bind(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            here = os.open(".", os.O_RDONLY)
            os.chdir(path.parent)
            try:
                listening.bind(path.name)
            finally:
                os.fchdir(here)
                os.close(here)

    kinds: dict[str, Callable[[Path], object]] = {"fifo": os.mkfifo, "socket": bind, "directory": os.mkdir}
    if os.geteuid() == 0:
        kinds["device"] = lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    return kinds


@pytest.mark.parametrize("kind", sorted(special_kinds()))
def test_a_file_that_becomes_something_else_is_not_read_and_does_not_block(
    volume: Path, before: Callable[..., None], kind: str
) -> None:
    def become() -> None:
        (volume / "m").unlink()
        special_kinds()[kind](volume / "m")

    before("open", become, named("m"))

    result = captured(volume)

    assert "m" in result.changed
    assert "./m" not in result.members
    assert_others_whole(result)


@pytest.mark.parametrize("becomes", ["file", "directory", "nothing"])
def test_a_fifo_that_becomes_something_else_is_left_out_and_named(
    volume: Path, before: Callable[..., None], becomes: str
) -> None:
    (volume / "m").unlink()
    os.mkfifo(volume / "m")

    def become() -> None:
        (volume / "m").unlink()
        if becomes == "file":
            (volume / "m").write_bytes(b"file")
        elif becomes == "directory":
            (volume / "m").mkdir()

    before("stat", become, named("m"))

    result = captured(volume)

    assert "m" in result.changed
    assert "./m" not in result.members
    assert_others_whole(result)


@pytest.mark.parametrize("becomes", ["file", "another symlink", "nothing"])
def test_a_symlink_that_changes_while_it_is_read_is_named(
    volume: Path, before: Callable[..., None], becomes: str
) -> None:
    (volume / "m").unlink()
    (volume / "m").symlink_to("first")

    def become() -> None:
        (volume / "m").unlink()
        if becomes == "file":
            (volume / "m").write_bytes(b"file")
        elif becomes == "another symlink":
            (volume / "m").symlink_to("second")

    before("readlink", become, named("m"))

    result = captured(volume)

    assert "m" in result.changed
    assert_others_whole(result)


# --- what changes while it is read -----------------------------------------------------------------------------------


def at_offset(offset: int) -> Callable[..., bool]:
    return lambda _, __, position: position >= offset


LARGE = 10 * MEBIBYTE


@pytest.fixture
def large(volume: Path) -> Path:
    """`m` with so much data that it is read in several goes."""
    (volume / "m").write_bytes(os.urandom(LARGE))
    return volume / "m"


def test_a_file_that_shrinks_while_it_is_read_is_filled_with_zeros_and_named(
    volume: Path, large: Path, before: Callable[..., None]
) -> None:
    content = large.read_bytes()
    before("preadv", lambda: os.truncate(large, 5 * MEBIBYTE), at_offset(1))

    result = captured(volume)

    assert result.changed == ["m"]
    assert result.members["./m"] == content[: 5 * MEBIBYTE] + bytes(LARGE - 5 * MEBIBYTE)
    assert result.entry("m").signature.size == LARGE
    assert_others_whole(result)


def test_a_file_that_shrinks_to_nothing_before_it_is_read_is_named(volume: Path, before: Callable[..., None]) -> None:
    before("listxattr", lambda: os.truncate(volume / "m", 0), lambda where, **_: _path_of(where) == volume / "m")

    result = captured(volume)

    assert result.changed == ["m"]
    assert result.members["./m"] == bytes(3000)
    assert_others_whole(result)


def _path_of(descriptor: int | str) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")) if isinstance(descriptor, int) else Path(descriptor)


def test_a_file_that_grows_while_it_is_read_is_kept_as_long_as_it_was_and_named(
    volume: Path, large: Path, before: Callable[..., None]
) -> None:
    content = large.read_bytes()

    def grow() -> None:
        with large.open("ab") as file:
            file.write(b"more")

    before("preadv", grow, at_offset(1))

    result = captured(volume)

    assert result.changed == ["m"]
    assert result.members["./m"] == content
    assert_others_whole(result)


@pytest.mark.parametrize("act", ["overwritten", "chmod", "touched"])
def test_a_file_that_is_written_or_touched_while_it_is_read_is_named(
    volume: Path, large: Path, before: Callable[..., None], act: str
) -> None:
    status = large.stat()

    def change() -> None:
        if act == "overwritten":
            with large.open("r+b") as file:
                file.write(b"overwritten")
            os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))  # as some programs do; ctime betrays it
        elif act == "chmod":
            large.chmod(0o604)
        else:
            os.utime(large)

    before("preadv", change, at_offset(1))

    result = captured(volume)

    assert result.changed == ["m"]
    assert result.entry("m").signature.mode == status.st_mode
    assert result.entry("m").signature.mtime_ns == status.st_mtime_ns
    assert_others_whole(result)


def test_a_file_that_is_replaced_while_it_is_read_is_whole_as_it_was_and_named(
    volume: Path, large: Path, before: Callable[..., None]
) -> None:
    content = large.read_bytes()
    (volume.parent / "new").write_bytes(b"new")
    before("preadv", lambda: (volume.parent / "new").replace(large), at_offset(1))

    result = captured(volume)

    assert "m" in result.changed
    assert result.members["./m"] == content
    assert_others_whole(result)


@pytest.mark.parametrize("name", ["new", "a directory/new", "z directory/new"])
def test_a_name_that_appears_in_a_directory_while_it_is_read_is_noticed(
    volume: Path, large: Path, before: Callable[..., None], name: str
) -> None:
    before("preadv", (volume / name).touch, at_offset(1))

    result = captured(volume)

    directory = os.path.dirname(name)
    expected = {"": [""], "a directory": [], "z directory": []}[directory]  # read before, is read later: no lie
    assert result.changed == expected
    assert ("./z directory/new" in result.members) == (directory == "z directory")


def sparse(path: Path, size: int, runs: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        for offset, content in runs.items():
            os.pwrite(file.fileno(), content, offset)
        os.truncate(file.fileno(), size)


@pytest.mark.parametrize("size", [0, 100, 70_000, 500_000, 4 * MEBIBYTE])
def test_a_sparse_file_whose_end_moves_while_its_holes_are_sought_is_named(
    volume: Path, before: Callable[..., None], size: int
) -> None:
    runs = {65536: b"first" * 1000, 300_000: b"second" * 1000}
    sparse(volume / "m", MEBIBYTE, runs)

    def move_the_end() -> None:
        os.truncate(volume / "m", size)
        if size > MEBIBYTE:
            with (volume / "m").open("r+b") as file:
                os.pwrite(file.fileno(), b"beyond", 3 * MEBIBYTE)

    before("lseek", move_the_end, lambda _, offset, how: how == os.SEEK_HOLE)

    result = captured(volume)

    assert result.changed == ["m"]
    content = result.members["./m"]
    assert content is not None
    assert len(content) == MEBIBYTE
    kept = min(size, MEBIBYTE)
    assert (
        content[:kept]
        == b"".join([bytes(65536), runs[65536], bytes(300_000 - 70536), runs[300_000]]).ljust(MEBIBYTE, b"\0")[:kept]
    )
    assert_others_whole(result)


def test_a_sparse_file_that_shrinks_while_it_is_read_leaves_every_byte_behind_it_in_its_place(
    volume: Path, before: Callable[..., None]
) -> None:
    sparse(volume / "m", MEBIBYTE, {65536: b"first" * 1000, 300_000: b"second" * 1000, 700_000: b"third" * 1000})
    before("preadv", lambda: os.truncate(volume / "m", 66_000), at_offset(65536))

    result = captured(volume)

    assert result.changed == ["m"]
    assert result.members["./m"] == (bytes(65536) + b"first" * 1000)[:66_000].ljust(MEBIBYTE, b"\0")
    assert_others_whole(result)


def test_an_attribute_that_vanishes_takes_no_other_with_it(volume: Path, before: Callable[..., None]) -> None:
    for name in ("user.a", "user.m", "user.z"):
        os.setxattr(volume / "m", name, name.encode())
    before("getxattr", lambda: os.removexattr(volume / "m", "user.m"), lambda _, name, **__: name == "user.m")

    result = captured(volume)

    assert result.entry("m").attributes == ((b"user.a", b"user.a"), (b"user.z", b"user.z"))
    assert result.changed == ["m"]


# --- what cannot be read ---------------------------------------------------------------------------------------------


def failing(number: int, when: Callable[..., bool], really: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            raise OSError(number, os.strerror(number))
        return really(*arguments, **options)

    return called


@pytest.mark.parametrize(
    ("function", "when", "path"),
    [
        ("open", named("m"), "m"),
        ("open", named("m directory"), "m directory"),
        ("preadv", lambda descriptor, *_: _path_of(descriptor).name == "m", "m"),
        ("listxattr", lambda where, **_: _path_of(where).name == "m", "m"),
        ("listxattr", lambda where, **_: _path_of(where).name == "m directory", "m directory"),
        ("listxattr", lambda where, **_: str(where).endswith("/fifo"), "fifo"),
        ("scandir", lambda where: _path_of(where).name == "m directory", "m directory"),
        ("readlink", named("symlink"), "symlink"),
    ],
)
def test_a_disk_error_names_the_file_and_what_to_look_at(
    volume: Path, monkeypatch: pytest.MonkeyPatch, function: str, when: Callable[..., bool], path: str
) -> None:
    os.mkfifo(volume / "fifo")
    (volume / "symlink").symlink_to("a")
    really_readlink = os.readlink

    def unpatched(descriptor: int | str) -> Path:
        return Path(really_readlink(f"/proc/self/fd/{descriptor}")) if isinstance(descriptor, int) else Path(descriptor)

    monkeypatch.setitem(globals(), "_path_of", unpatched)
    monkeypatch.setattr(os, function, failing(errno.EIO, when, getattr(os, function)))

    with pytest.raises(VolumeUnreadable) as failed:
        captured(volume)

    assert f"{os.fspath(volume / path)!r} failed: Input/output error" in failed.value.message
    assert "kernel's log" in failed.value.hint


@pytest.mark.parametrize("act", [captured, lambda root: measure(os.fspath(root))], ids=["capture", "measure"])
def test_a_volume_that_is_not_there_is_unavailable(tmp_path: Path, act: Callable[[Path], object]) -> None:
    with pytest.raises(VolumeUnavailable, match="nowhere") as failed:
        act(tmp_path / "nowhere")
    assert "/volumes" in failed.value.hint

    (tmp_path / "file").touch()
    with pytest.raises(VolumeUnavailable):
        act(tmp_path / "file")

    (tmp_path / "symlink").symlink_to(tmp_path)
    with pytest.raises(VolumeUnavailable):
        act(tmp_path / "symlink")


@contextmanager
def nobody(directory: Path) -> Iterator[None]:
    """Without root's rights, in `directory`."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give its rights away")
    here = os.open(".", os.O_RDONLY)
    os.chdir(directory)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.fchdir(here)
        os.close(here)


@pytest.mark.parametrize("name", ["m", "m directory"])
def test_a_missing_capability_is_named(volume: Path, name: str) -> None:
    volume.chmod(0o755)
    (volume / name).chmod(0)
    space = SpoolSpace(volume.parent / "spool")

    with space.new("v") as spool:
        spool.reserve(MEBIBYTE)
        with nobody(volume), pytest.raises(VolumeUnreadable, match="Permission denied") as failed:
            capture(".", Copies(spool), lambda: None, lambda _: None)

    assert repr(f"./{name}") in failed.value.message
    assert "DAC_READ_SEARCH" in failed.value.hint


# --- deep, wide, often -----------------------------------------------------------------------------------------------


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def nested(root: Path, levels: int) -> None:
    """Directories `m` in one another; in each a file before and one after it in the order of names."""
    descriptor = os.open(root, os.O_RDONLY)
    for level in range(levels):
        for name in ("f", "z"):
            file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=descriptor)
            os.write(file, b"%d" % level)
            os.close(file)
        os.mkdir("m", dir_fd=descriptor)
        below = os.open("m", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def test_a_tree_deeper_than_the_limit_of_open_files_is_read_whole(tmp_path: Path) -> None:
    levels = 700
    (tmp_path / "volume").mkdir()
    nested(tmp_path / "volume", levels)

    with open_files(200):
        files, size, _ = measure(os.fspath(tmp_path / "volume"))
        result = captured(tmp_path / "volume")

    assert files == 2 * levels
    assert size == sum(2 * len(str(level)) for level in range(levels)) == result.captured.bytes_read
    expected = {
        os.path.join(".", *["m"] * level, name): b"%d" % level for level in range(levels) for name in ("f", "z")
    }
    assert {name: content for name, content in result.members.items() if content is not None} == expected
    assert len(result.members) == 3 * levels + 1
    assert result.changed == []


def test_a_tree_that_goes_deep_again_on_its_way_up_is_read_whole(tmp_path: Path) -> None:
    nested_directories = tmp_path / "volume" / Path(*["m"] * 250)
    nested_directories.mkdir(parents=True)
    for level in (240, 180, 120, 60):
        branch = tmp_path / "volume" / Path(*["m"] * level) / Path(*["n"] * 130)
        branch.mkdir(parents=True)
        (branch / "f").write_bytes(b"%d" % level)

    assert measure(os.fspath(tmp_path / "volume")) == (4, 11, 11)
    result = captured(tmp_path / "volume")

    assert sorted(content for content in result.members.values() if content) == [b"120", b"180", b"240", b"60"]
    assert len(result.members) == 1 + 250 + 4 * 130 + 4
    assert result.changed == []


def test_a_tree_wider_than_the_limit_of_open_files_is_measured(tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / "volume" / str(number)).mkdir(parents=True)
        (tmp_path / "volume" / str(number) / "f").write_bytes(b"12345")

    with open_files(200):
        assert measure(os.fspath(tmp_path / "volume")) == (400, 2000, 2000)


def test_a_deep_directory_that_is_moved_away_while_it_is_read_does_not_lead_out_of_the_volume(tmp_path: Path) -> None:
    volume, other = tmp_path / "volume", tmp_path / "other"
    volume.mkdir()
    other.mkdir()
    nested(volume, 400)
    (other / "zz").write_bytes(SECRET)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 350:  # so deep that the upper directories are closed by now
            (volume / "m" / "m").rename(other / "m")

    with pytest.raises(VolumeUnreadable, match="moved away") as failed:
        captured(volume, check)

    assert calls >= 350
    assert "freeze it too" in failed.value.hint


class Stop(Exception):
    pass


@pytest.mark.parametrize("call", [1, 2, 4, 9])
def test_whatever_check_raises_stops_the_walk(volume: Path, large: Path, call: int) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stop

    with pytest.raises(Stop):
        captured(volume, check)
    assert calls == call


def test_check_is_asked_often_in_large_files_in_many_files_and_in_many_directories(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    (root / "empty files").mkdir(parents=True)
    (root / "directories").mkdir()
    for number in range(1000):
        (root / "empty files" / str(number)).touch()
        (root / "directories" / str(number)).mkdir()
    asked: dict[str, int] = {}

    def count(name: str) -> Callable[[], None]:
        def check() -> None:
            asked[name] = asked.get(name, 0) + 1

        return check

    for name in ("empty files", "directories"):
        captured(root / name, count(name))
        (tmp_path / "volume" / "index").unlink()
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(bytes(range(256)) * 4096 * 80)
    captured(tmp_path / "large", count("large"))

    assert asked["empty files"] >= 1000 // 128
    assert asked["directories"] >= 1000
    assert asked["large"] >= 20


def test_copied_is_told_every_byte_as_it_goes(volume: Path, large: Path) -> None:
    told: list[int] = []

    result = captured(volume, copied=told.append)

    assert sum(told) == result.captured.bytes_read == LARGE + 2 * 3000 + 3 * len("a directory")
    assert max(told) <= 5 * MEBIBYTE
    assert 0 not in told


def test_a_spool_that_fills_up_on_the_way_is_not_called_an_unreadable_volume(volume: Path, large: Path) -> None:
    with SpoolSpace(volume.parent / "spool", most=5 * MEBIBYTE).new("v") as spool, pytest.raises(SpoolFull):
        capture(os.fspath(volume), Copies(spool), lambda: None, lambda _: None)


def test_a_broken_spool_is_not_called_an_unreadable_volume(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", failing(errno.EIO, lambda *_: True, os.pwrite))

    with SpoolSpace(volume.parent / "spool").new("v") as spool, pytest.raises(SidecarError) as failed:
        capture(os.fspath(volume), Copies(spool), lambda: None, lambda _: None)

    assert not isinstance(failed.value, VolumeUnreadable)
    assert "spool" in failed.value.message


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_directories_come_after_what_they_hold_and_the_root_last(volume: Path) -> None:
    (volume / "m directory" / "below").mkdir()

    result = captured(volume)

    order = [entry.path.decode() for entry in result.captured.others]
    assert order == ["a directory", "m directory/below", "m directory", "z directory", ""]


def test_a_directory_stands_before_and_after_the_symlinks_that_lead_out_of_it(volume: Path) -> None:
    (volume / "m directory" / "in").symlink_to("inside")
    (volume / "m directory" / "up").symlink_to("../a")
    (volume / "m directory" / "absolute").symlink_to("/etc")
    (volume / "m directory" / "dots").symlink_to("in..side")

    order = [entry.path.decode() for entry in captured(volume).captured.others]

    assert order == [
        *["m directory/dots", "m directory/in"],
        *["a directory", "m directory", "m directory/absolute", "m directory/up", "m directory", "z directory", ""],
    ]


def test_the_data_of_a_hard_linked_file_is_copied_once(volume: Path) -> None:
    os.link(volume / "m", volume / "z directory" / "again")
    result = captured(volume)

    assert result.captured.bytes_read == 3 * 3000 + 3 * len("a directory")
    assert result.entry("z directory/again").kind is Kind.HARD_LINK
    assert result.entry("z directory/again").link == b"m"


def test_measure_counts_hard_links_once_and_holes_not_at_all(volume: Path) -> None:
    os.link(volume / "m", volume / "z directory" / "again")
    sparse(volume / "sparse", 50 * MEBIBYTE, {MEBIBYTE: b"x" * 4096})

    files, size, _ = measure(os.fspath(volume))

    assert files == 7
    assert size == 3 * 3000 + 3 * len("a directory") + 4096
    assert size == captured(volume).captured.bytes_read


def test_measure_passes_over_what_vanishes_or_changes_its_kind_because_nothing_is_frozen(
    volume: Path, before: Callable[..., None]
) -> None:
    def become_symlink() -> None:
        (volume / "m directory").rename(volume.parent / "moved")
        (volume / "m directory").symlink_to(volume.parent / "other")

    before("open", become_symlink, named("m directory"))
    before("stat", (volume / "m").unlink, named("m"))

    assert measure(os.fspath(volume))[:2] == (4, 2 * 3000 + 2 * len("a directory"))


def test_a_file_system_without_extended_attributes_has_none(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listxattr", failing(errno.EOPNOTSUPP, lambda *_, **__: True, os.listxattr))

    assert captured(volume).entry("m").attributes == ()


def test_a_file_system_that_does_not_tell_holes_is_read_whole(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse(volume / "m", MEBIBYTE, {500_000: b"data"})
    monkeypatch.setattr(os, "lseek", failing(errno.EINVAL, lambda _, __, how: how == os.SEEK_DATA, os.lseek))

    result = captured(volume)

    assert result.entry("m").extents is None
    assert result.members["./m"] == bytes(500_000) + b"data" + bytes(MEBIBYTE - 500_004)
