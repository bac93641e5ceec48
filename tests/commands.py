"""Run a command to its end, wait for what comes: what all that drives other programs shares."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, which must be one JSON document."""
        try:
            return json.loads(self.out)
        except ValueError:
            raise AssertionError(f"not one JSON document (exit code {self.code}): {self.out!r} {self.err!r}") from None


def command(
    *arguments: str | Path, stdin: bytes = b"", check: bool = True, timeout: float = 180, **options: Any
) -> Done:
    """Run a command to its end; with `check` a failure fails the test, with all that the command said."""
    done = subprocess.run(arguments, input=stdin, capture_output=True, check=False, timeout=timeout, **options)
    result = Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    if check and result.code:
        shown = shlex.join(map(str, arguments))
        raise AssertionError(f"{shown[:500]} ended with {result.code}:\n{result.out[-3000:]}\n{result.err[-3000:]}")
    return result


def wait_until(condition: Callable[[], Any], what: str, *, timeout: float = 60.0, every: float = 0.05) -> Any:
    """The first true answer of `condition`; fails the test when there is none in time."""
    until = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {timeout:.0f} s in vain until {what}")
        time.sleep(every)
    return answer
