"""File systems for tests to have volumes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

MEBIBYTE = 1024 * 1024


@contextlib.contextmanager
def mounted(
    file_system: str, directory: Path, size: int = 64 * MEBIBYTE, *, inside: Sequence[str] = ()
) -> Iterator[Path]:
    """A file system of this type, of its own; skips the test where the machine cannot have one.

    inside: the command that runs another in a world of its own, where it is mounted then, and not here.
    """
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    image, at = directory / f"{file_system}-image", directory / file_system
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    for command in ([f"mkfs.{file_system}", "-q", image], [*inside, "mount", "-o", "loop", image, at]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"there is no {command[0]} here")
        if done.returncode:
            pytest.skip(f"{command[0]} fails here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run([*inside, "umount", at], check=True)
        image.unlink()
