"""Applications that never stop writing, at full speed, in every way that files are written.

Each process owns a directory below DIRECTORY and counts its steps in `steps` there, which tells a test that it was
writing. Sizes are bounded, so it can go on for hours. Usage: python3 writers.py DIRECTORY
"""

import contextlib
import ctypes
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Callable

FILES = 120
LARGE = 4 << 20
OLD_DIRECTORIES = 40
OLD_FILES = 50  # in each
OLD_BYTES = 30_000  # of each; 60 MB in all, which cannot be compressed
PAGE = 4096
PUNCH_HOLE_KEEP_SIZE = 3
# <asm/unistd.h>: io_setup, io_submit, io_getevents.
ASYNCHRONOUS = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}
PWRITE = 1  # <linux/aio_abi.h>: IOCB_CMD_PWRITE


class Steps:
    """A counter in a file, bumped in place."""

    def __init__(self, directory: str) -> None:
        self._file = os.open(os.path.join(directory, "steps"), os.O_RDWR | os.O_CREAT, 0o644)
        self._count = int.from_bytes(os.pread(self._file, 8, 0), "little")

    def add(self) -> int:
        self._count += 1
        os.pwrite(self._file, self._count.to_bytes(8, "little"), 0)
        return self._count


class Asynchronous:
    """Writes that the kernel goes on with by itself, whatever becomes of who asked for them; one at a time."""

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._setup, self._submit, self._events = ASYNCHRONOUS[os.uname().machine]
        self._context = ctypes.c_ulong(0)
        self._file = -1
        self._require(self._call(self._setup, 1, ctypes.byref(self._context)), 0)

    def write(self, path: str, page: mmap.mmap) -> None:
        """Begin to write the page to the file's first one, past the page cache."""
        self._file = os.open(path, os.O_WRONLY | os.O_DIRECT)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        block = struct.pack("<QIIHhIQQqQII", 0, 0, 0, PWRITE, 0, self._file, address, PAGE, 0, 0, 0, 0)
        request = ctypes.create_string_buffer(block, len(block))
        requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        self._require(self._call(self._submit, self._context, 1, requests), 1)

    def wait(self) -> None:
        """Until it has landed, if there is one."""
        if self._file < 0:
            return
        event = ctypes.create_string_buffer(32)
        self._require(self._call(self._events, self._context, ctypes.c_long(1), ctypes.c_long(1), event, None), 1)
        self._require(struct.unpack("<QQqq", event)[2], PAGE)
        os.close(self._file)
        self._file = -1

    @staticmethod
    def _require(result: int, wanted: int) -> None:
        if result != wanted:
            raise OSError(ctypes.get_errno(), f"{result} instead of {wanted}")


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


def old_files(directory: str) -> None:
    """Many files that nobody touches, but a few a second in two directories, in every way there is."""
    numbers = random.Random()
    steps = Steps(directory)
    steps.add()
    for number in range(OLD_DIRECTORIES * OLD_FILES):
        folder = os.path.join(directory, f"{number // OLD_FILES:02d}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"{number % OLD_FILES:02d}"), "wb") as file:
            file.write(numbers.randbytes(OLD_BYTES))
    # Sector by sector, past the page cache, from a page of its own.
    direct = mmap.mmap(-1, PAGE)
    libc = ctypes.CDLL(None)
    asynchronous, page = Asynchronous(), mmap.mmap(-1, PAGE)
    while True:
        asynchronous.wait()
        step = steps.add()
        folder = os.path.join(directory, f"{numbers.randrange(2):02d}")
        path = os.path.join(folder, f"{numbers.randrange(OLD_FILES):02d}")
        data = numbers.randbytes(500)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            match step % 15:
                case 0:
                    with open(path, "ab") as file:
                        file.write(data)
                case 1:
                    with open(path, "r+b") as file:
                        file.seek(numbers.randrange(OLD_BYTES // 2))
                        file.write(data)
                case 2:
                    os.truncate(path, numbers.randrange(OLD_BYTES))
                case 3:
                    with open(path + ".new", "wb") as file:
                        file.write(data * 40)
                    os.rename(path + ".new", path)
                case 4:
                    os.unlink(path)
                    with open(path, "xb") as file:
                        file.write(data * 50)
                case 5:
                    os.chmod(path, 0o600 + step % 64)
                case 6:
                    os.chown(path, step % 1000, step % 100)
                case 7:
                    os.setxattr(path, "user.step", b"%d" % step)
                case 8:  # as if nothing had happened
                    status = os.stat(path)
                    with open(path, "r+b") as file:
                        file.write(data[: status.st_size])
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                case 9 if os.path.exists(path + ".link"):
                    os.unlink(path + ".link")
                case 9:
                    os.link(path, path + ".link")
                case 10:
                    os.rename(folder, folder + ".moved")
                    os.rename(folder + ".moved", folder)
                case 11:
                    with open(path, "r+b") as file:
                        libc.fallocate(file.fileno(), PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(PAGE), ctypes.c_long(PAGE))
                case 12:
                    with open(path, "r+b") as file:
                        os.ftruncate(file.fileno(), max(os.fstat(file.fileno()).st_size, PAGE))
                        with mmap.mmap(file.fileno(), PAGE) as memory:
                            for at in range(0, PAGE, 512):  # the first store dirties the page, the others say nothing
                                memory[at : at + 4] = data[:4]
                case 13:
                    page[:] = data * 8 + bytes(PAGE - 8 * len(data))
                    asynchronous.write(path, page)  # under way while everybody else goes on, or is paused
                case _:
                    direct[:] = data * 8 + bytes(PAGE - 8 * len(data))
                    file_descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
                    os.pwrite(file_descriptor, direct, 0)
                    os.close(file_descriptor)
        time.sleep(0.1)


def main() -> None:
    """Start one process for each way."""
    root = sys.argv[1]
    ways: list[Callable[[str], None]] = [small_files, directories, large_file, mapped_file, old_files]
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
