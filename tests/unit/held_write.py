"""A write that has begun and does not end until it is told to: what makes time stamps lie.

It needs root; tests that use it are skipped, with the reason, where that is missing.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

_PAGE = 4096  # of a file system, and of memory wherever we run

# <linux/userfaultfd.h>
_NEW = 0xAA00
_API = 0xC018AA3F
_REGISTER = 0xC020AA00
_COPY = 0xC028AA03
_VERSION = 0xAA
_MISSING = 1
_SECONDS = 20  # far more than a page fault takes on any machine


class WriteInFlight:
    """A write(2) over a file's first page that is inside the kernel: the time stamps are there, the bytes are not."""

    def __init__(self, data: bytes, descriptor: int, handler: int, source: mmap.mmap) -> None:
        self._data = data
        self._handler = handler
        self._address = _address(source)
        self._result: list[int] = []
        # The thread waits for the page that it is to write, holding what a slow disk would have it hold.
        self._thread = threading.Thread(target=lambda: self._result.append(os.pwrite(descriptor, source, 0)))
        self._thread.start()
        faults = select.poll()
        faults.register(handler, select.POLLIN)
        assert faults.poll(_SECONDS * 1000), "the write has not asked for its bytes"

    def land(self) -> None:
        """Let the bytes arrive, and wait until the call has returned."""
        if self._thread.is_alive():
            page = ctypes.create_string_buffer(self._data, _PAGE)
            request = struct.pack("QQQQq", self._address, ctypes.addressof(page), _PAGE, 0, 0)
            fcntl.ioctl(self._handler, _COPY, request)
        self._thread.join(_SECONDS)
        assert self._result == [_PAGE]


@contextmanager
def write_in_flight(path: Path, data: bytes, *, direct: bool = False) -> Iterator[WriteInFlight]:
    """Begin to overwrite the file's first page with `data`, a page; it lands when it is told to, or at the end.

    The bytes come from memory whose page is served by us (userfaultfd(2)). The kernel asks for it when it has stamped
    ctime and before it changes the file: with write(2), and with O_DIRECT when `direct`. What a slow disk does for
    seconds lasts as long as a test wants.
    """
    assert len(data) == _PAGE
    with ExitStack() as undo:
        handler = _userfaultfd(undo)
        source = undo.enter_context(mmap.mmap(-1, _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        fcntl.ioctl(handler, _REGISTER, struct.pack("QQQQ", _address(source), _PAGE, _MISSING, 0))
        descriptor = os.open(path, os.O_WRONLY | (os.O_DIRECT if direct else 0))
        undo.callback(os.close, descriptor)
        write = WriteInFlight(data, descriptor, handler, source)
        undo.callback(write.land)
        yield write


def _userfaultfd(undo: ExitStack) -> int:
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"holding a write needs /dev/userfaultfd (Linux 6.1, root): {error.strerror}")
    try:
        handler = fcntl.ioctl(device, _NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)
    undo.callback(os.close, handler)
    fcntl.ioctl(handler, _API, struct.pack("QQQ", _VERSION, 0, 0))
    return handler


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
