"""The oracle: describes directories by lstat(2), SHA-256 and the raw extended attributes, one JSON object a line.

It runs inside containers that know nothing of the product (standard library alone), on the frozen volume and on what
`tar` gave back; both descriptions must be equal. Usage: python3 describe.py DIRECTORY...
"""

import hashlib
import json
import os
import stat
import subprocess
import sys
from typing import Any

LARGE = 64 << 20
PAGE = 4096

# Set by the host's own security module, different in every container.
OF_THE_HOST = {"security.selinux"}


def describe(root: str) -> dict[str, dict[str, Any]]:
    """Path -> what anyone can observe there. An entry with several names names them all."""
    # Relative to the root, because a path may have 4,095 bytes and no more.
    os.chdir(root)
    found = subprocess.run(["find", ".", "-print0"], stdout=subprocess.PIPE, check=True).stdout
    described: dict[str, dict[str, Any]] = {}
    names: dict[tuple[int, int], list[str]] = {}
    for raw in found.split(b"\0")[:-1]:
        path = os.fsdecode(raw)
        status = os.lstat(raw)
        described[path] = _facts(raw, status)
        if not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    for same in names.values():
        for path in same:
            described[path]["names"] = sorted(same)
    return described


def _facts(path: bytes, status: os.stat_result) -> dict[str, Any]:
    kind = stat.S_IFMT(status.st_mode)
    facts: dict[str, Any] = {
        "kind": {
            stat.S_IFREG: "file",
            stat.S_IFDIR: "directory",
            stat.S_IFLNK: "symlink",
            stat.S_IFIFO: "fifo",
            stat.S_IFSOCK: "socket",
            stat.S_IFCHR: "character device",
            stat.S_IFBLK: "block device",
        }[kind],
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": [status.st_uid, status.st_gid],
        "mtime_ns": status.st_mtime_ns,
        "attributes": {
            name: os.getxattr(path, os.fsencode(name), follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if name not in OF_THE_HOST
        },
    }
    if kind == stat.S_IFREG:
        facts |= {"size": status.st_size, "sha256": _digest(path)}
    elif kind == stat.S_IFLNK:
        facts["target"] = os.fsdecode(os.readlink(path))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        facts["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    return facts


def _digest(path: bytes) -> str:
    """SHA-256 of the content. Of large files: of all pages that are not zero, or 10 GB of hole would take a minute."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    digest = hashlib.sha256()
    try:
        size = os.fstat(descriptor).st_size
        if size <= LARGE:
            while chunk := os.read(descriptor, 1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
        end = 0
        while end < size:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                break
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            for offset in range(start // PAGE * PAGE, end, PAGE):
                page = os.pread(descriptor, PAGE, offset)
                if page.strip(b"\0"):
                    digest.update(b"%d:" % offset + page)
        return f"{digest.hexdigest()} (pages of {size} bytes)"
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    for directory in sys.argv[1:]:
        # Lone surrogates stand for bytes that are not UTF-8; JSON's escapes carry them.
        print(json.dumps(describe(directory)))
