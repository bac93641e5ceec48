"""What Python's `os` has not: the type of a file system, and syncfs(2)."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_LARGER_THAN_ANY_STATFS = 512


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


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
