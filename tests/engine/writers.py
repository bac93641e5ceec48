"""Applications that never stop writing, at full speed, in every way that files are written.

Each process owns a directory below DIRECTORY and counts its steps in `steps` there, which tells a test that it was
writing. Sizes are bounded, so it can go on for hours. Usage: python3 writers.py DIRECTORY
"""

import contextlib
import mmap
import os
import random
import struct
import sys
from collections.abc import Callable

FILES = 120
LARGE = 4 << 20


class Steps:
    """A counter in a file, bumped in place."""

    def __init__(self, directory: str) -> None:
        self._file = os.open(os.path.join(directory, "steps"), os.O_RDWR | os.O_CREAT, 0o644)
        self._count = int.from_bytes(os.pread(self._file, 8, 0), "little")

    def add(self) -> int:
        self._count += 1
        os.pwrite(self._file, self._count.to_bytes(8, "little"), 0)
        return self._count


def small_files(directory: str) -> None:
    """Creates, appends, truncates, deletes, links, renames over."""
    numbers = random.Random()
    steps = Steps(directory)
    while True:
        step = steps.add()
        path = os.path.join(directory, f"document-{numbers.randrange(FILES):03d}")
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            match step % 8:
                case 0 | 1:  # the careful way
                    with open(path + ".new", "wb") as file:
                        file.write(numbers.randbytes(numbers.randrange(40_000)))
                    os.rename(path + ".new", path)
                case 2 | 3:
                    with open(path, "ab") as file:
                        file.write(f"line {step}\n".encode() * numbers.randrange(1, 50))
                case 4:
                    os.truncate(path, numbers.randrange(10_000))
                case 5:
                    with open(path, "r+b") as file:
                        file.seek(numbers.randrange(1 + os.path.getsize(path)))
                        file.write(b"in the middle of it, number %d" % step)
                case 6:
                    os.unlink(path)
                case _ if os.path.exists(path + ".link"):
                    os.unlink(path + ".link")
                case _:
                    os.link(path, path + ".link")


def directories(directory: str) -> None:
    """Makes, moves and removes whole trees."""
    numbers = random.Random()
    steps = Steps(directory)
    while True:
        step = steps.add()
        tree = os.path.join(directory, f"tree-{numbers.randrange(8)}")
        with contextlib.suppress(OSError):
            os.mkdir(tree)
            for name in ("a", "b", "c"):
                with open(os.path.join(tree, name), "w") as file:
                    file.write(f"{step}\n" * 20)
            os.symlink(f"../somewhere-{step}", os.path.join(tree, "link"))
            os.chmod(tree, numbers.choice((0o700, 0o755, 0o1777)))
        other = os.path.join(directory, f"tree-{numbers.randrange(8)}")
        with contextlib.suppress(OSError):
            if step % 3:
                os.rename(tree, other)
            for name in os.listdir(other):
                os.unlink(os.path.join(other, name))
            os.rmdir(other)


def large_file(directory: str) -> None:
    """Overwrites pages of a large file at random, as databases do, and appends to a log that is cut off at times."""
    numbers = random.Random()
    steps = Steps(directory)
    data = os.open(os.path.join(directory, "table"), os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(data, numbers.randbytes(LARGE), 0)
    log = os.open(os.path.join(directory, "log"), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        step = steps.add()
        page = struct.pack("<Q", step) * 1024
        os.pwrite(data, page, numbers.randrange(LARGE // 8192) * 8192)
        os.write(log, page[: numbers.randrange(1, 300)])
        if os.fstat(log).st_size > LARGE:
            os.ftruncate(log, 0)
        if step % 500 == 0:
            os.fdatasync(data)


def mapped_file(directory: str) -> None:
    """Stores through a shared mapping: no system call, and no new time stamp for a page that is dirty already."""
    numbers = random.Random()
    steps = Steps(directory)
    data = os.open(os.path.join(directory, "mapped"), os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(data, numbers.randbytes(LARGE), 0)
    with mmap.mmap(data, LARGE) as memory:
        while True:
            step = steps.add()
            for _ in range(50):
                memory[(place := numbers.randrange(LARGE - 8)) : place + 8] = struct.pack("<Q", step)


def main() -> None:
    """Start one process for each way."""
    root = sys.argv[1]
    ways: list[Callable[[str], None]] = [small_files, directories, large_file, mapped_file]
    for way in ways:
        directory = os.path.join(root, way.__name__)
        os.makedirs(directory, exist_ok=True)
        if os.fork() == 0:
            way(directory)
            os._exit(1)
    os.wait()  # none of them ever ends, unless it fails
    sys.exit("a writer has failed")


if __name__ == "__main__":
    main()
