"""The events that reach the log, and the progress of a run. Pure: who emits gets an `Emit` or a `Follow` as argument.

docs/LOGS.md describes every event; a test holds it against `EVENTS`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

# event -> usual level. An emitter may raise it (a run that ended badly is logged higher than one that did not).
EVENTS: dict[str, int] = {
    "daemon_started": logging.INFO,
    "start_delayed": logging.WARNING,
    "daemon_stopped": logging.INFO,
    "config_invalid": logging.ERROR,
    "config_warning": logging.WARNING,
    "recovered": logging.WARNING,
    "prefix_taken_over": logging.WARNING,
    "recover_failed": logging.ERROR,
    "memory_reset": logging.WARNING,
    "memory_unwritten": logging.ERROR,
    "run_started": logging.INFO,
    "deadman_missing": logging.WARNING,
    "hook_finished": logging.INFO,
    "hook_skipped": logging.WARNING,
    "group_frozen": logging.INFO,
    "group_thawed": logging.INFO,
    "volume_finished": logging.INFO,
    "volume_skipped": logging.WARNING,
    "file_changed": logging.WARNING,
    "file_differs": logging.ERROR,
    "reuse_refused": logging.WARNING,
    "group_begun_anew": logging.WARNING,
    "unprotected_mount": logging.WARNING,
    "store_retry": logging.WARNING,
    "store_failed": logging.ERROR,
    "set_shipped": logging.INFO,
    "shipment_dropped": logging.WARNING,
    "upload_aborted": logging.WARNING,
    "not_off_host": logging.WARNING,
    "run_finished": logging.INFO,
    "run_failed": logging.ERROR,
    "run_skipped": logging.WARNING,
    "run_caught_up": logging.WARNING,
    "restore_started": logging.WARNING,
    "restore_finished": logging.INFO,
    "guard_changed": logging.INFO,
    "guard_kept": logging.WARNING,
    "guard_missing": logging.WARNING,
    "verify_finished": logging.INFO,
    "drill_finished": logging.INFO,
    "drill_left_over": logging.WARNING,
    "crashed": logging.ERROR,
    "library": logging.WARNING,
    "log_lines_dropped": logging.WARNING,
}


class Emit(Protocol):
    """Write one event. `name` is a key of EVENTS; fields are JSON values named as in docs/LOGS.md."""

    def __call__(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        """Write it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is, sizes in bytes.

    phase: `planning`, `copying` (the application runs), `hooks`, `freezing`, `comparing` (it stands still), `packing`,
    `committing` of a run; `planning`, `restoring`, `stopping`, `exchanging` of a restore; `planning`,
    `verifying`; `shipping`; `planning`, `restoring`, `starting` (volume: the service's container) of a drill.

    total_bytes is 0 while it is not known.
    """

    phase: str
    volume: str | None = None
    done_bytes: int = 0
    total_bytes: int = 0


class Follow(Protocol):
    """Who watches a run: called often (per block), from several threads; must be quick and must not raise."""

    def __call__(self, progress: Progress, /) -> None:
        """Take note of it."""
