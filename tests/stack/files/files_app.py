"""An application that keeps its users' uploads as files: everything a backup must carry, some of it always changing.

At first start it fills the volume with a library of documents: many small files, a few large ones, odd owners and
modes, hard links, symbolic links, extended attributes, ACLs. Then it works on `inbox/` for ever: appends to a log,
writes documents under a temporary name and renames them over the old ones, overwrites in the middle, truncates,
deletes. Each change is counted in Redis.

Settings (environment): UPLOADS (directory), FILES (count of small files), LARGE_MIB (size of the large ones together),
PERIOD (seconds between changes), REDIS (host; empty: none).
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ODD_OWNERS = ((0, 0), (33, 33), (1000, 1000), (4242, 4343), (65534, 65534))
LARGE_FILES = 4


def content(seed: int, size: int) -> bytes:
    """Return bytes that compress about 2:1, the same for the same seed."""
    return random.Random(seed).randbytes(size // 2 + 1).hex().encode()[:size]


def write_large(path: Path, seed: int, size: int) -> None:
    """Write a large file piece by piece."""
    with path.open("wb") as file:
        for offset in range(0, size, 1 << 20):
            file.write(content(seed * 1000 + (offset >> 20), min(1 << 20, size - offset)))


def fill(root: Path, files: int, large_mib: int) -> None:
    """Lay down the library; the last step renames it into place, so a start cut short begins again."""
    work = root / "library.partial"
    subprocess.run(["rm", "-rf", work], check=True)
    work.mkdir(parents=True)
    numbers = random.Random(7)
    for number in range(files):
        folder = work / f"{number // 500:03d}"
        folder.mkdir(exist_ok=True)
        path = folder / f"document-{number:05d}.txt"
        path.write_bytes(content(number, numbers.choice((0, 200, 3_000, 12_000, 40_000))))
        owner = ODD_OWNERS[number % len(ODD_OWNERS)]
        os.chown(path, *owner)
        path.chmod(numbers.choice((0o600, 0o640, 0o644, 0o755, 0o400)))
        # Times lie in the past, to the nanosecond, as they do in a library that has grown over years.
        moment = numbers.randrange(10**18, 17 * 10**17)
        os.utime(path, ns=(moment, moment))
    for number in range(LARGE_FILES):
        write_large(work / f"video-{number}.bin", number, (large_mib << 20) // LARGE_FILES)

    special = work / "special"
    special.mkdir()
    (special / "Übersicht der Größen.txt").write_text("a name that is not ASCII\n")
    with open(os.fsencode(special) + b"/not-utf8-\xff\xfe", "wb") as file:
        file.write(b"a name that is not UTF-8\n")
    (special / "empty").touch()
    (special / "empty-directory").mkdir(mode=0o1777)
    os.link(special / "empty", special / "hard-link-to-empty")
    os.link(work / "000" / "document-00001.txt", special / "hard-link-across-directories")
    (special / "symbolic-link").symlink_to("../000/document-00002.txt")
    (special / "dangling").symlink_to("/nowhere/at/all")
    setuid = special / "setuid"
    setuid.write_text("#!/bin/sh\n")
    setuid.chmod(0o4750)
    os.mkfifo(special / "fifo")
    attributes = special / "with-attributes"
    attributes.write_text("extended attributes\n")
    os.setxattr(attributes, "user.origin", b"scanner\x00\xff")
    access = special / "with-acl"
    access.write_text("an access control list\n")
    folder = special / "folder-with-default-acl"
    folder.mkdir()
    subprocess.run(["setfacl", "-m", "u:4242:rw,g:4343:r", access], check=True)
    subprocess.run(["setfacl", "-m", "d:u:4242:rwx,u:4242:rwx", folder], check=True)
    (folder / "inherits").write_text("from its folder\n")
    with (special / "sparse").open("wb") as sparse:
        sparse.seek(64 << 20)
        sparse.write(b"the end of a hole")
    work.rename(root / "library")


class Counter:
    """Counts in Redis, and goes on without when Redis does not answer."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._connection: socket.socket | None = None

    def add(self) -> None:
        if not self._host:
            return
        try:
            if self._connection is None:
                self._connection = socket.create_connection((self._host, 6379), timeout=5)
            self._connection.sendall(b"INCR uploads\r\n")
            self._connection.recv(64)
        except OSError:
            self._connection = None


def change(inbox: Path, step: int, numbers: random.Random) -> None:
    """Change one or two files, in one of the ways applications do."""
    name = inbox / f"note-{numbers.randrange(40):02d}.txt"
    with (inbox / "activity.log").open("ab") as log:
        log.write(f"{step} {time.time_ns()} {name.name}\n".encode())
    match step % 6:
        case 0 | 1:  # the careful way: a new file, renamed over the old one
            fresh = inbox / f".{name.name}.new"
            fresh.write_bytes(content(step, numbers.randrange(50_000)))
            fresh.rename(name)
        case 2:  # in place
            if name.exists() and (size := name.stat().st_size) > 100:
                with name.open("r+b") as file:
                    file.seek(numbers.randrange(size))
                    file.write(b"overwritten in place")
        case 3:
            name.write_bytes(b"truncated and written anew\n" * numbers.randrange(100))
        case 4:
            name.unlink(missing_ok=True)
        case 5:
            if name.exists():
                link = inbox / f"link-{numbers.randrange(10)}"
                link.unlink(missing_ok=True)
                os.link(name, link)


def main() -> int:
    """Fill once, then change for ever."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    root = Path(os.environ.get("UPLOADS", "/uploads"))
    if not (root / "library").exists():
        fill(root, int(os.environ.get("FILES", "3000")), int(os.environ.get("LARGE_MIB", "64")))
    inbox = root / "inbox"
    inbox.mkdir(exist_ok=True)
    print("ready", flush=True)
    counter = Counter(os.environ.get("REDIS", ""))
    period = float(os.environ.get("PERIOD", "0.05"))
    numbers = random.Random()
    step = 0
    while True:
        with contextlib.suppress(FileNotFoundError):
            change(inbox, step, numbers)
        counter.add()
        step += 1
        time.sleep(period)


if __name__ == "__main__":
    sys.exit(main())
