"""A look over a volume that nobody stands still for: how large, how new, and what its top two levels are called.

Bounded in entries and in depth. As in a capture, everything is opened relative to a directory descriptor with
O_NOFOLLOW, because a symlink could lead into another volume.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from sidecar.errors import VolumeUnavailable

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_OPEN_DIRECTORY = _OPEN_FILE | os.O_DIRECTORY
_DEEPEST = 64  # levels; each has a descriptor open
_NAMES_KEPT = 2_000
_TEXT_KEPT = 16  # bytes


@dataclass(slots=True)
class Survey:
    """What was seen.

    names: paths of the top two levels, directories with a `/` at their end (2,000 at most). texts: the beginning of
    those that were to be read. files, size: regular files and the bytes that they take on disk. newest: the latest
    mtime of a file that does not lie in the future, seconds since 1970, or None. whole: everything was seen; else there
    is at least that much.
    """

    names: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    files: int = 0
    size: int = 0
    newest: float | None = None
    whole: bool = True


def survey(root: str, *, most: int, read: Collection[str], now: float) -> Survey:
    """Look over the tree below `root`, at `most` entries. read: names of small files whose text is wanted.

    now: seconds since 1970.

    Raises VolumeUnavailable where there is nothing to open. What vanishes or cannot be opened below is passed over, and
    the survey is not `whole`.
    """
    seen = Survey()
    try:
        top = os.open(root, _OPEN_DIRECTORY)
    except OSError as error:
        raise VolumeUnavailable(
            f"{root} cannot be opened: {error.strerror}",
            hint="is the engine's volume directory mounted at /volumes, and DAC_READ_SEARCH among the capabilities?",
        ) from error
    try:
        _Look(seen, most, read, now).into(top, "", 1)
    finally:
        os.close(top)
    return seen


@dataclass(slots=True)
class _Look:
    seen: Survey
    left: int  # entries that may still be looked at
    read: Collection[str]
    now: float

    def into(self, directory: int, prefix: str, depth: int) -> None:
        below: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not self.left:
                        self.seen.whole = False
                        break
                    self.left -= 1
                    with suppress(FileNotFoundError):
                        if self._at(directory, entry.name, prefix, top=depth <= 2):
                            below.append(entry.name)
        except OSError:
            self.seen.whole = False
        for name in sorted(below):
            if not self.left or depth == _DEEPEST:
                self.seen.whole = False
                break
            try:
                descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
            except OSError:
                self.seen.whole = False
                continue
            try:
                self.into(descriptor, f"{prefix}{name}/", depth + 1)
            finally:
                os.close(descriptor)

    def _at(self, directory: int, name: str, prefix: str, *, top: bool) -> bool:
        """Take notice of one entry; whether it is a directory."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        is_directory = stat.S_ISDIR(status.st_mode)
        if top and len(self.seen.names) < _NAMES_KEPT:
            self.seen.names.append(f"{prefix}{name}" + "/" * is_directory)
        if stat.S_ISREG(status.st_mode):
            self.seen.files += 1
            self.seen.size += min(status.st_size, status.st_blocks * 512)
            if status.st_mtime <= self.now and (self.seen.newest is None or status.st_mtime > self.seen.newest):
                self.seen.newest = status.st_mtime
            if top and name in self.read:
                self.seen.texts[f"{prefix}{name}"] = _text(directory, name)
        return is_directory


def _text(directory: int, name: str) -> str:
    """The beginning of a small file; empty where it cannot be read, or is none any more."""
    try:
        descriptor = os.open(name, _OPEN_FILE, dir_fd=directory)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return os.read(descriptor, _TEXT_KEPT).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
