"""A volume that is copied in rounds and then captured, what a capture holds, and file systems to have volumes on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.archive import copies as copies_module
from sidecar.archive import spool as spool_module
from sidecar.archive.capture import Capture, capture, precopy, sync
from sidecar.archive.copies import Copies
from sidecar.archive.spool import SpoolSpace
from tests.unit.edits import edit, populate, tick

MEBIBYTE = 1024 * 1024
HOUR_NS = 3600 * 10**9


class Volume:
    """A volume's directory, and copies of it in a spool beside it."""

    def __init__(self, root: Path, most: int | None = None, spool: Path | None = None) -> None:
        self.root = root
        self.clock = time.time_ns
        self.space = SpoolSpace(spool or root.parent / f"{root.name}-spool", most)
        self._spools = contextlib.ExitStack()
        self.seconds = 0.0  # of a clock that stands still unless a test moves it
        self.copies = Copies(self._spools.enter_context(self.space.new("v")), lambda: self.seconds)

    def round(self, check: Callable[[], None] = lambda: None) -> int:
        """One round while the application runs; the bytes that it wrote."""
        sync(os.fspath(self.root), self.copies, self.clock())
        precopy(os.fspath(self.root), self.copies, check, lambda _: None)
        return self.copies.written

    def freeze(self, check: Callable[[], None] = lambda: None) -> Capture:
        return capture(os.fspath(self.root), self.copies, check, lambda _: None)

    def afresh(self) -> Capture:
        fresh = Copies(self._spools.enter_context(self.space.new("fresh")))
        return capture(os.fspath(self.root), fresh, lambda: None, lambda _: None)

    def in_an_hour(self) -> None:
        """From now on the clock is an hour ahead: whatever has not changed by the next sync is settled."""
        clock = self.clock
        self.clock = lambda: clock() + HOUR_NS

    def close(self) -> None:
        self._spools.close()


def contents(captured: Capture) -> dict[bytes, bytes]:
    """Of every regular file, holes as zeros."""
    found = {}
    for entry in captured.files:
        data = bytearray(entry.data_length)
        at = 0
        for position, length in entry.spooled if data else ():
            captured.spool.read_into([memoryview(data)[at : at + length]], position)
            at += length
        content = bytearray(entry.signature.size)
        at = 0
        for offset, length in ((0, len(data)),) if entry.extents is None else entry.extents:
            content[offset : offset + length] = data[at : at + length]
            at += length
        assert at == len(data)
        found[entry.path] = bytes(content)
    return found


def everything(captured: Capture) -> dict[str, Any]:
    """What an archive is made of. Not where holes are: a copy may hold zeros where the disk has none by now."""
    return {
        "files": [entry[:6] for entry in captured.files],
        "others": captured.others,
        "sockets": captured.sockets,
        "changed": captured.changed,
        "contents": contents(captured),
        "bytes": sum(entry.data_length for entry in captured.files) - captured.bytes_read,
    }


def captured_while_it_changes(
    here: Path,
    first: list[Any],
    rounds: list[tuple[bool, list[Any], int]],
    last: list[Any],
    constants: dict[str, int],
) -> int:
    """Judge the capture of a volume that these edits happen to, before, within and after its rounds; bytes cloned.

    constants: of `copies`. Each round: whether what has not been touched since is settled, edits, at which check.
    """
    root = here / "volume"
    root.mkdir()
    populate(root)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as undo:
        for name, value in constants.items():
            patch.setattr(copies_module, name, value)
        for name, value in {"_PAGE": 64, "_LARGE": 1024}.items():
            patch.setattr(spool_module, name, value)
        volume = Volume(root)
        undo.callback(volume.close)
        for change in [("new directory", 1, 0, 0), *first]:
            edit(root, *change)
        for believing, changes, when in rounds:
            if believing:  # what has not been touched for a minute is not read again
                volume.in_an_hour()
            waiting = iter([None] * (when - 1))

            def meanwhile(changes: list[Any] = changes, waiting: Iterator[None] = waiting) -> None:
                if next(waiting, "now") == "now" and changes:
                    tick(here)
                    while changes:
                        edit(root, *changes.pop())

            volume.round(meanwhile)
            meanwhile()
            tick(here)
        for change in last:
            edit(root, *change)

        frozen = volume.freeze()
        assert everything(frozen) == everything(volume.afresh())
        return volume.copies.cloned
