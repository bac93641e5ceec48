"""One daemon for each state volume: two would thaw what the other has just frozen, and empty each other's spool."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from datetime import datetime
from typing import IO

from sidecar.errors import Busy
from sidecar.events import Emit
from sidecar.report import rfc3339

LOCK = "daemon.lock"


def hold(directory: str, container: str, now: datetime, emit: Emit) -> IO[str] | None:
    """Hold the state volume for as long as the file that this gives is open; the kernel frees it with its holder.

    container: ours, for whoever finds it held. None, and an event, where the volume takes no file: it does not take a
    journal either then, so that nothing can be frozen. Raises Busy while another daemon holds it, changing nothing.
    """
    path = os.path.join(directory, LOCK)
    try:
        lock = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")  # noqa: SIM115 - see above
    except OSError as exc:
        emit(
            "memory_unwritten",
            error=f"{path} cannot be written: {exc}",
            hint="the state volume must be mounted, writable and not full",
        )
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        holder = lock.read(500).strip() or "another daemon"
        lock.close()
        raise Busy(
            f"the state volume is held by {holder}",
            hint="one daemon for each state volume: stop one of the two (`docker ps`), or give this one a volume of "
            "its own",
        ) from exc
    with suppress(OSError):  # a full disk: then nobody is told who it is
        lock.truncate()
        lock.write(f"the daemon in container {container}, since {rfc3339(now)}\n")
        lock.flush()
    return lock
