"""Where a run is, for tests that want it held or killed there (BACKUP_TEST_STAGE). Does nothing otherwise."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from sidecar.config import StageFault


class Stages:
    """Acts on one stage: `frozen=hold` makes the file `held-frozen` and waits until it is removed; `frozen=kill` dies.

    directory: where the file appears (the state volume). Waiting ends when `cancelled` is set.
    """

    def __init__(self, fault: StageFault | None, directory: Path, cancelled: threading.Event) -> None:
        self._fault = fault
        self._directory = directory
        self._cancelled = cancelled

    def __call__(self, stage: str) -> None:
        """The run has come to `stage`, one of config.STAGES."""
        if self._fault is None or stage != self._fault.stage:
            return
        if self._fault.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        held = self._directory / f"held-{stage}"
        held.touch()
        while held.exists() and not self._cancelled.wait(0.005):
            pass
