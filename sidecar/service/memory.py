"""What the daemon remembers across restarts: one small JSON document on the state volume.

`{"format": 1, "last_run", "last_whole_run", "last_good": {volume: time}, "running", "due", "pending": [{"set", "store",
"since", "attempts", "error"}], "last_verify", "damaged": {"set", "why"}, "verify_due", "last_drill", "drill_failed":
{"set", "why"}, "drill_due"}`, replaced as a whole: a temporary name, fsync, rename. Losing it loses no backup, only
what `status` can tell, whether a run, a verification or a drill was missed, and which sets a store is still to get.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sidecar.durable import replace_file
from sidecar.events import Emit
from sidecar.report import Outcome, rfc3339
from sidecar.service.shipments import Shipment

FORMAT = 1
_KEYS_OF_A_RUN = {"run", "set", "outcome", "started", "duration_ms", "paused_ms", "off_host", "reasons", "trigger"}
_KEYS_OF_A_DRILL = {"set", "time", "outcome", "why", "trigger"}
_KEYS_OF_A_VERIFICATION = _KEYS_OF_A_DRILL | {"how"}


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known of earlier runs.

    last_run, last_whole_run: as `last_run` of `status --json`; the second is the last that no volumes were named for.
    last_good: volume -> RFC 3339 time. running: trigger, volumes and `since` of the run that goes on. due: when the
    oldest scheduled run that has not begun is, or was, due (aware). pending: what stores missed. last_verify: as in
    `status --json`. damaged: `set` and `why` of the newest set, if it is known to be. verify_due: when the scheduled
    verification that has not ended is, or was, due. last_drill, drill_failed, drill_due: the same of drills.
    """

    last_run: Mapping[str, Any] | None = None
    last_whole_run: Mapping[str, Any] | None = None
    last_good: Mapping[str, str] = field(default_factory=dict)
    running: Mapping[str, Any] | None = None
    due: datetime | None = None
    pending: tuple[Shipment, ...] = ()
    last_verify: Mapping[str, Any] | None = None
    damaged: Mapping[str, str] | None = None
    verify_due: datetime | None = None
    last_drill: Mapping[str, Any] | None = None
    drill_failed: Mapping[str, str] | None = None
    drill_due: datetime | None = None


class Memory:
    """The document at `path`. Neither method raises: a daemon that cannot remember still makes backups."""

    def __init__(self, path: str, emit: Emit) -> None:
        self._path = Path(path)
        self._emit = emit

    def recall(self) -> Remembered:
        """What was kept last; nothing, and an event that says so, where that cannot be had."""
        try:
            return _read(self._path.read_bytes())
        except FileNotFoundError:
            self._emit("memory_reset", level=logging.INFO, error=f"there is no {self._path}", hint="")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as exc:
            self._emit(
                "memory_reset",
                error=f"{self._path} is damaged ({type(exc).__name__}: {exc}): nothing is known of earlier runs",
                hint="nothing to do: it is written anew, and `list` shows the sets; see the state volume's disk",
            )
        return Remembered()

    def keep(self, remembered: Remembered) -> None:
        """Put it on disk, durably."""
        document = {
            "format": FORMAT,
            "last_run": remembered.last_run,
            "last_whole_run": remembered.last_whole_run,
            "last_good": dict(remembered.last_good),
            "running": remembered.running,
            "due": rfc3339(remembered.due) if remembered.due else None,
            "pending": [each.as_json() for each in remembered.pending],
            "last_verify": remembered.last_verify,
            "damaged": remembered.damaged,
            "verify_due": rfc3339(remembered.verify_due) if remembered.verify_due else None,
            "last_drill": remembered.last_drill,
            "drill_failed": remembered.drill_failed,
            "drill_due": rfc3339(remembered.drill_due) if remembered.drill_due else None,
        }
        try:
            replace_file(self._path, json.dumps(document).encode())
        except OSError as exc:
            self._emit(
                "memory_unwritten",
                error=f"{self._path} cannot be written: {exc}",
                hint="the state volume must be mounted, writable and not full",
            )


def _read(raw: bytes) -> Remembered:
    """Raises ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError for anything else."""
    document = json.loads(raw)
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']}, not {FORMAT}")
    return Remembered(
        last_run=_run(document["last_run"]),
        last_whole_run=_run(document["last_whole_run"]),
        last_good={str(volume): rfc3339(_moment(time)) for volume, time in document["last_good"].items()},
        running=_running(document["running"]),
        due=_moment(document["due"]) if document["due"] is not None else None,
        # What older versions did not know of.
        pending=tuple(_shipment(each) for each in document.get("pending", ())),
        last_verify=_examination(document.get("last_verify"), _KEYS_OF_A_VERIFICATION),
        damaged=_why_of_a_set(document.get("damaged")),
        verify_due=_moment(document["verify_due"]) if document.get("verify_due") is not None else None,
        last_drill=_examination(document.get("last_drill"), _KEYS_OF_A_DRILL),
        drill_failed=_why_of_a_set(document.get("drill_failed")),
        drill_due=_moment(document["drill_due"]) if document.get("drill_due") is not None else None,
    )


def _run(document: Any) -> dict[str, Any] | None:
    if document is None:
        return None
    if not document.keys() >= _KEYS_OF_A_RUN:
        raise ValueError("a run lacks keys")
    Outcome(document["outcome"])
    _moment(document["started"])
    if not all(isinstance(reason["message"], str) for reason in document["reasons"]):
        raise ValueError("a reason is no text")
    return dict(document)


def _running(document: Any) -> dict[str, Any] | None:
    if document is None:
        return None
    _moment(document["since"])
    return {
        "trigger": str(document["trigger"]),
        "volumes": [str(each) for each in document["volumes"]],
        "since": document["since"],
    }


def _examination(document: Any, keys: set[str]) -> dict[str, Any] | None:
    if document is None:
        return None
    if not document.keys() >= keys:
        raise ValueError("a verification or a drill lacks keys")
    Outcome(document["outcome"])
    _moment(document["time"])
    return dict(document)


def _why_of_a_set(document: Any) -> dict[str, str] | None:
    return None if document is None else {"set": str(document["set"]), "why": str(document["why"])}


def _shipment(document: Any) -> Shipment:
    return Shipment(
        str(document["set"]),
        str(document["store"]),
        _moment(document["since"]),
        int(document["attempts"]),
        str(document["error"]),
    )


def _moment(text: Any) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time is without a zone")
    return moment
