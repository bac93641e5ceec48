"""The short way to a restore's helper: a FIFO in the volume, which it and we both see.

Through the engine each byte takes four more copies, by three processes. It takes them where this way is not open: the
engine is another machine's, the volume is not below /volumes, or its file system has no FIFOs.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from sidecar.archive.unpack import STAGING, STREAM
from sidecar.engine.port import Helper
from sidecar.errors import HelperEnded
from sidecar.plan import VOLUMES_TARGET

_PIPE = 1024 * 1024  # what anybody may have
_LOOK_EVERY = 0.5  # seconds


@contextmanager
def passage(volume: str, helper: Helper, check: Callable[[], None]) -> Iterator[Callable[[bytes], None]]:
    """What sends bytes to a helper that is ready for them; for all of a stream.

    It raises HelperEnded, EngineError, and what check raises, which it asks while the helper takes nothing.
    """
    pipe = _opened(volume)
    if pipe is None:
        yield helper.send
        return
    try:
        yield lambda data: _write(pipe, data, check)
    finally:
        os.close(pipe)


def _opened(volume: str) -> int | None:
    """The FIFO, if there is one of ours that is read from.

    Nothing on the way may be a symlink, and nothing is opened but a FIFO: whoever uses the volume can lay there what
    he likes. (Our mount of it is read-only, which a FIFO is not concerned by.)
    """
    with ExitStack() as undo:

        def found(name: str, flags: int, directory: int | None = None) -> int:
            descriptor = os.open(name, os.O_PATH | os.O_CLOEXEC | flags, dir_fd=directory)
            undo.callback(os.close, descriptor)
            return descriptor

        try:
            root = found(f"{VOLUMES_TARGET}/{volume}/_data", os.O_DIRECTORY)
            staging = found(STAGING, os.O_DIRECTORY | os.O_NOFOLLOW, root)
            fifo = found(STREAM, os.O_NOFOLLOW, staging)
            facts = os.fstat(fifo)
            if not stat.S_ISFIFO(facts.st_mode) or facts.st_uid != os.geteuid():
                return None
            pipe = os.open(f"/proc/self/fd/{fifo}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
    with suppress(OSError):  # more than the user may have
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
    return pipe


def _write(pipe: int, data: bytes, check: Callable[[], None]) -> None:
    view = memoryview(data)
    try:
        while view:
            try:
                view = view[os.write(pipe, view) :]
            except BlockingIOError:  # it is full
                while not select.select((), (pipe,), (), _LOOK_EVERY)[1]:
                    check()
    except BrokenPipeError as error:
        raise HelperEnded("the helper has ended") from error
