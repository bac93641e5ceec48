"""The daemon's memory: how often it is searched for cycles, and what a job has used, given back when it is over."""

from __future__ import annotations

import ctypes
import gc

_libc = ctypes.CDLL(None)
_NEW_OBJECTS = 20_000  # a few MB


def search_seldom() -> None:
    """Have Python look for cycles among new objects when there are many, and never again among those there are now.

    A walk makes some tuples for each file, and no cycle: with Python's own settings looking for some took a fifteenth
    of a first backup of small files.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 5, 5)


def give_back() -> None:
    """Let the kernel have what the allocator keeps for the next block.

    It keeps up to 200 MB, because asking the kernel anew for every block of 8 MiB cost a tenth of a backup's processor
    time. Does nothing where the C library is not glibc (malloc_trim(3)).
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim:
        trim(0)
