"""Starts fake_daemon.py as a process of its own, and reads its log."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 10  # seconds; nothing here takes one when it works


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until it holds; a test that would wait for ever fails instead."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.002)


def listens(path: str) -> bool:
    """Whether somebody accepts connections on the Unix socket: it is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def environment(**settings: str) -> dict[str, str]:
    """A small environment: what the machine has set must not become a setting."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "120", "TERM": "xterm-256color"} | settings


@dataclass
class DaemonProcess:
    process: subprocess.Popen[bytes]
    socket: str
    gate: Path
    lines: list[str] = field(default_factory=list)
    _arrived: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._arrived.put(line.decode())
        self._arrived.put(None)

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next event of this name that nobody has waited for yet."""
        while (line := self._arrived.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
            if json.loads(line)["event"] == event:
                return dict(json.loads(line))
        raise AssertionError(f"the daemon ended without {event}: {self.lines}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code; afterwards `lines` has its whole log."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(PATIENCE)
        while (line := self._arrived.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return code

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@contextmanager
def fake_daemon(socket: str | None = None, **settings: str) -> Iterator[DaemonProcess]:
    """A daemon over jobs that only pretend; it is stopped at the end if it still runs."""
    # Not pytest's tmp_path: a Unix socket's path holds 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="sidecar-") as directory:
        path, gate = socket or f"{directory}/run/control.sock", Path(directory, "gate")
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests/unit/fake_daemon.py"), path, str(gate)],
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        daemon = DaemonProcess(process, path, gate)
        reader = threading.Thread(target=daemon.read)
        reader.start()
        try:
            yield daemon
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
            reader.join(PATIENCE)
            for stream in (process.stdout, process.stderr):
                assert stream
                stream.close()
