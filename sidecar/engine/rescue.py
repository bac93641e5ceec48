"""Thaw a container past an engine that hangs.

A command that is being started inside a container in the moment in which that is paused (`docker exec`, or a health
check's) freezes half-way. Its starter waits for it and holds the lock under which the container would be thawed: the
unpause hangs, and after it every inspection, for good (seen on engine 20.10.24, containerd 1.6.20, runc 1.1.5, cgroup
v1). The kernel knows no such lock: once its freezer is told, the command goes on, and the engine with it.

The engine then still holds the container to be paused, and its runtime refuses to thaw what is not frozen. So the
kernel is told to freeze it once more, for the moment until the engine has thawed it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

CGROUPS = "/sys/fs/cgroup"  # on every host that runs containers
MOUNTED = "/cgroup"  # in the helper


class Order(StrEnum):
    """What the kernel is to do with a container's processes."""

    FREEZE = "freeze"
    THAW = "thaw"


# File -> how it is told: of cgroup v1 (the freezer's hierarchy), of v2.
_WORDS = {
    "freezer.state": {Order.FREEZE: "FROZEN", Order.THAW: "THAWED"},
    "cgroup.freeze": {Order.FREEZE: "1", Order.THAW: "0"},
}


def tell_kernel(order: Order, identifier: str, root: Path = Path(MOUNTED)) -> list[str]:
    """Freeze or thaw the container of this ID, whatever its engine thinks of it; the files that were written.

    root: where the host's cgroups are mounted, writable. Raises OSError.
    """
    written = []
    for directory in _of_container(identifier, root):
        for name, words in _WORDS.items():
            path = directory / name
            if path.exists():
                path.write_text(words[order])
                written.append(os.fspath(path))
    return written


def _of_container(identifier: str, root: Path) -> Iterator[Path]:
    """The container's own cgroups: `docker/ID`, `system.slice/docker-ID.scope`, or below another parent."""
    # On cgroup v1 the other hierarchies are as large, and say nothing of freezing.
    top = root / "freezer" if (root / "freezer").is_dir() else root
    for directory, names, _ in os.walk(top):
        for name in [name for name in names if identifier in name]:
            yield Path(directory, name)
            with suppress(ValueError):
                names.remove(name)  # what it has made below itself is frozen, and thawed, with it
