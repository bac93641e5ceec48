"""Changes of a tree of files, in every way that applications make them, for tests that have any of them happen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
from pathlib import Path

from hypothesis import strategies as st

_libc = ctypes.CDLL(None, use_errno=True)
_PUNCH_HOLE_KEEP_SIZE = 3
EDITS = [
    "new file", "append", "overwrite", "overwrite unseen", "truncate", "rename over", "recreate", "chmod", "chown",
    "set attribute", "link", "unlink", "rename", "rename directory", "punch hole", "fill hole", "become symlink",
    "become directory", "become fifo", "new directory", "remove tree",
]  # fmt: skip

edits = st.tuples(st.sampled_from(EDITS), st.integers(0, 30), st.integers(0, 30), st.integers(0, 20_000))


def populate(root: Path) -> None:
    """A tree that edits find something to change in: what is in it cannot be compressed, and is different everywhere.

    Small files in three directories, one that is empty, one with a hole, one with two names, a large one, a symlink.
    """
    numbers = random.Random(4711)
    for name in ("a", "b/deep", "c"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            (root / name / f"small-{number}").write_bytes(numbers.randbytes(1500))
    (root / "a" / "empty").touch()
    with (root / "b" / "sparse").open("wb") as file:
        file.write(numbers.randbytes(5000))
        file.truncate(100_000)
        file.seek(90_000)
        file.write(numbers.randbytes(3000))
    os.link(root / "a" / "small-1", root / "b" / "second-name")
    (root / "c" / "large").write_bytes(numbers.randbytes(40_000))
    (root / "link").symlink_to("a/small-2")


def edit(root: Path, what: str, one: int, other: int, size: int) -> None:
    """One change of the tree, to the files and directories of these numbers; nothing where there are none."""
    found = sorted(root.rglob("*"))
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    directories = [root, *(path for path in found if path.is_dir() and not path.is_symlink())]
    directory = directories[other % len(directories)]
    data = bytes((one * 7 + other * 13 + at) % 251 for at in range(min(size, 300))) * (1 + size // 300)
    with contextlib.suppress(OSError, shutil.Error):
        match what:
            case "new file":
                with (directory / f"file-{one}").open("xb") as file:  # a fifo of that name would hold us up
                    file.write(data)
                return
            case "new directory":
                (directory / f"directory-{one}").mkdir()
                return
            case "rename directory":
                directory.rename(directories[one % len(directories)] / f"moved-{one}")
                return
            case "remove tree":
                if directory != root:
                    shutil.rmtree(directory)
                return
        if files:
            edit_file(files[one % len(files)], files[other % len(files)], directory, what, one, data)


def edit_file(path: Path, another: Path, directory: Path, what: str, number: int, data: bytes) -> None:
    status = path.stat()
    middle = len(data) % (status.st_size + 1)
    match what:
        case "append":
            with path.open("ab") as file:
                file.write(data)
        case "overwrite" | "overwrite unseen":
            with path.open("r+b") as file:
                file.seek(middle)
                file.write(data[: status.st_size - middle])
            if what == "overwrite unseen":  # as some programs do; ctime betrays it
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "truncate":
            os.truncate(path, middle if len(data) % 2 else status.st_size + len(data))
        case "rename over":
            path.rename(another)
        case "recreate":
            path.unlink()
            path.write_bytes(data[: status.st_size])
        case "chmod":
            path.chmod(0o600 + number)
        case "chown":
            os.chown(path, number, number)
        case "set attribute":
            os.setxattr(path, "user.number", data[:50])
        case "link":
            os.link(path, directory / f"link-{number}")
        case "unlink":
            path.unlink()
        case "rename":
            path.rename(directory / f"renamed-{number}")
        case "punch hole":
            with path.open("r+b") as file:
                punch_hole(file.fileno(), middle // 4096 * 4096, 4096)
        case "fill hole":
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), data[:500], status.st_size + 10_000 if number % 2 else middle)
        case "become symlink":
            path.unlink()
            path.symlink_to("../elsewhere")
        case "become directory":
            path.unlink()
            path.mkdir()
        case "become fifo":
            path.unlink()
            os.mkfifo(path)


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """The file keeps its size."""
    _libc.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length))


def tick(beside: Path) -> None:
    """Return when the clock of the file system has moved on, so that the next change gets another time stamp."""
    probe = beside / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        os.utime(probe)
