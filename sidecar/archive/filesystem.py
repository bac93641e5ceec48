"""What Python's `os` has not: the type of a file system, syncfs(2), and blocks that two files share."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_LARGER_THAN_ANY_STATFS = 512
_FICLONERANGE = 0x4020940D
_FILE_CLONE_RANGE = struct.Struct("=qQQQ")  # source, where it begins there, length, where it begins here


def type_of(descriptor: int) -> int:
    """statfs(2)'s f_type of the file system that the open file is on. Raises OSError."""
    buffer = ctypes.create_string_buffer(_LARGER_THAN_ANY_STATFS)
    if _libc.fstatfs(descriptor, buffer):
        raise _failure()
    # The first field, a long wherever we run; elsewhere it gives a number that nobody knows, which is safe.
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def syncfs(descriptor: int) -> None:
    """Write out what the file system of the open file holds back; may take as long as its disk. Raises OSError.

    Works without privileges and through a read-only mount. Other threads go on meanwhile.
    """
    if _libc.syncfs(descriptor):
        raise _failure()


def clone(source: int, offset: int, target: int, position: int, length: int) -> None:
    """Let the target have `length` bytes of the source, whole blocks of both, by sharing them. Raises OSError.

    Needs to read the source and no more, even through a read-only mount. What of the range is only in memory, mapped or
    not, is written to the disk first. Any error may stand for "not here": other file systems, other flags of the files,
    and before kernel 5.18 other mounts. What is shared by then stays so.
    """
    fcntl.ioctl(target, _FICLONERANGE, _FILE_CLONE_RANGE.pack(source, offset, length, position))


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
