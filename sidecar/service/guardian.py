"""Keeps the guard as it should be: soon after volumes come and go, when a release is over, and when it is gone.

What it remembers lies on the state volume: `{"format": 1, "released": {volume: until}, "since": {volume: time}, "used":
[volume]}`. Losing it takes back what was released, and no volume's protection.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sidecar.durable import replace_file
from sidecar.errors import NotFound, SidecarError
from sidecar.events import Emit
from sidecar.guarding import Guarded, sidecar_of
from sidecar.plan import nearest
from sidecar.report import rfc3339
from sidecar.service.jobs_port import Jobs

FORMAT = 1

# Seconds. A look costs three small requests (3 ms of CPU with 25 volumes; tried), a whole one inspects each container.
LOOK_EVERY = 3.0
WHOLE_LOOK_EVERY = 30.0
# A container that is made anew is gone for some seconds, and nobody need be told of that.
GONE_FOR_GOOD = 30.0


@dataclass(slots=True)
class _Known:
    """released: volume -> until when. since: volume -> when it was taken. used: those that a container had."""

    released: dict[str, datetime] = field(default_factory=dict)
    since: dict[str, datetime] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def as_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "format": FORMAT,
            "released": {volume: rfc3339(until) for volume, until in sorted(self.released.items())},
            "since": {volume: rfc3339(since) for volume, since in sorted(self.since.items())},
            "used": sorted(self.used),
        }


class Guardian:
    """on: whether there is to be a guard (BACKUP_GUARD); otherwise one that is there is removed.

    path: where it remembers. now: aware time. clock: seconds, monotonic. The last three: seconds.
    """

    def __init__(
        self,
        jobs: Jobs,
        emit: Emit,
        *,
        on: bool,
        path: Path,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        look_every: float = LOOK_EVERY,
        whole_look_every: float = WHOLE_LOOK_EVERY,
        gone_for_good: float = GONE_FOR_GOOD,
    ) -> None:
        self._jobs = jobs
        self._emit = emit
        self._on = on
        self._path = path
        self._now = now
        self._clock = clock
        self._look_every = look_every
        self._whole_look_every = whole_look_every
        self._gone_for_good = gone_for_good
        self._turn = threading.Lock()  # held while the guard is looked after: one at a time
        self._known = self._recall()
        self._kept = self._known.as_json()
        self._guarded = Guarded()
        self._error: SidecarError | None = None
        self._sign: object = None
        self._next_whole_look = clock()
        self._unused: dict[str, float] = {}  # those that a container had a while ago -> since when none has
        self._dismissed = False

    def start(self) -> None:
        """Look after the guard from now on, in a thread of its own."""
        threading.Thread(target=self._work, name="guard", daemon=True).start()

    def look(self) -> None:
        """Do what is to be done now. Does not raise: what goes wrong is said once, and tried again."""
        with self._turn:
            try:
                if self._is_due():
                    self._look_after()
            except SidecarError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, volumes are to be guarded again later
                self._failed(
                    SidecarError(f"the guard failed unexpectedly: {type(error).__name__}: {error}"),
                    trace=traceback.format_exc(),
                )

    def status(self) -> dict[str, Any]:
        """The object of `guard status --json`, and of `guard` in `status --json`."""
        guarded, known, error = self._guarded, self._known, self._error
        return {
            "on": self._on,
            "container": guarded.container or None,
            "protected": {name: rfc3339(known.since[name]) for name in guarded.volumes if name in known.since},
            "released": {name: rfc3339(until) for name, until in sorted(known.released.items())},
            "unprotected": [{"volume": each.volume, "why": each.why} for each in guarded.left_out],
            "unused": [name for name in guarded.volumes if name not in guarded.used],
            "error": error.message if error else None,
            "hint": error.hint if error else None,
        }

    def release(self, volume: str, span: timedelta) -> dict[str, Any]:
        """Let go of a volume, now and for so long; the status then.

        Raises NotFound for one that is not protected, EngineError.
        """
        with self._turn:
            self._look_after()
            self._must_be_worth_it(volume)
            self._known.released = {**self._known.released, volume: self._now() + span}
            self._look_after()
        return self.status()

    def protect(self, volume: str) -> dict[str, Any]:
        """End a volume's release, if it has one; the status then. Raises as `release` does."""
        with self._turn:
            self._known.released = {name: until for name, until in self._known.released.items() if name != volume}
            self._look_after()
            self._must_be_worth_it(volume)
        return self.status()

    # --- looking after it --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._dismissed:
            self.look()
            time.sleep(self._look_every)

    def _is_due(self) -> bool:
        if self._clock() >= self._next_whole_look or any(u <= self._now() for u in self._known.released.values()):
            return True
        return self._on and self._jobs.guard_sign() != self._sign

    def _look_after(self) -> None:
        """Raises SidecarError."""
        self._next_whole_look = self._clock() + self._whole_look_every
        if not self._on:
            self._jobs.dismiss_guard()
            self._dismissed = True
            return
        now = self._now()
        released = {volume: until for volume, until in self._known.released.items() if until > now}
        self._known.released = released
        self._keep()  # before anything is let go: whoever kills us has it taken back in time
        self._sign = self._jobs.guard_sign()  # before the look, so that what happens meanwhile is seen by the next
        guarded = self._guarded = self._jobs.guard(frozenset(released))
        self._error = None
        self._known.since = {name: self._known.since.get(name, now) for name in guarded.volumes}
        self._note_use(guarded)
        self._keep()

    def _note_use(self, guarded: Guarded) -> None:
        """Say it once when all containers that had a volume are gone for good, and the guard has kept it."""
        known, now = self._known, self._clock()
        known.used = (known.used | guarded.used) & {*guarded.volumes, *guarded.released}
        gone = {name for name in guarded.volumes if name in known.used and name not in guarded.used}
        self._unused = {name: self._unused.get(name, now) for name in gone}
        # All at once, when the last has waited long enough: the volumes of a project fall idle one after another.
        if not gone or now - max(self._unused.values()) < self._gone_for_good:
            return
        known.used -= gone
        names = " ".join(sorted(gone))
        verb = f"docker exec {sidecar_of(guarded.container)}"
        releases = "; ".join(f"{verb} guard release {name}" for name in sorted(gone))
        self._emit(
            "guard_kept",
            volumes=sorted(gone),
            error=f"all containers that used them are gone, and the guard keeps the volumes: {', '.join(sorted(gone))}",
            hint=f"to back them up now: {verb} run-now {names}; to be able to delete them: {releases}",
        )

    def _must_be_worth_it(self, volume: str) -> None:
        guarded = self._guarded
        if not self._on:
            raise NotFound(
                "BACKUP_GUARD is off: nothing is protected", hint="set it to on, and make the container anew"
            )
        worth = (*guarded.volumes, *guarded.released)
        if volume in worth:
            return
        why = next((each.why for each in guarded.left_out if each.volume == volume), None)
        if why is not None:
            raise NotFound(f"the guard does not protect volume {volume}: {why}", hint="nothing to do", volume=volume)
        hint = nearest(volume, worth, "`guard status` lists the volumes")
        raise NotFound(f"there is no volume {volume!r}", hint=hint, volume=volume)

    def _failed(self, error: SidecarError, **fields: Any) -> None:
        if self._error is not None and self._error.message == error.message:
            return
        self._error = error
        self._emit(
            "guard_missing",
            code=error.code,
            error=f"the guard is not as it should be: {error.message}",
            hint=error.hint or "`docker-compose down -v` may delete volumes; BACKUP_GUARD=off does without a guard",
            **fields,
        )

    # --- what it remembers -------------------------------------------------------------------------------------------

    def _recall(self) -> _Known:
        try:
            return _read(self._path.read_bytes())
        except FileNotFoundError:
            return _Known()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            self._emit(
                "memory_reset",
                error=f"{self._path} is damaged ({type(error).__name__}: {error}): every volume is guarded again",
                hint="nothing to do: it is written anew; see the state volume's disk",
            )
            return _Known()

    def _keep(self) -> None:
        document = self._known.as_json()
        if document == self._kept:
            return
        try:
            replace_file(self._path, json.dumps(document).encode())
        except OSError as error:
            self._emit(
                "memory_unwritten",
                level=logging.ERROR,
                error=f"{self._path} cannot be written: {error}",
                hint="the state volume must be mounted, writable and not full",
            )
        self._kept = document


def _read(raw: bytes) -> _Known:
    """Raises ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError for anything else."""
    document = json.loads(raw)
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']}, not {FORMAT}")
    return _Known(
        _moments(document["released"]), _moments(document["since"]), {str(volume) for volume in document["used"]}
    )


def _moments(document: Mapping[str, Any]) -> dict[str, datetime]:
    return {str(volume): datetime.fromisoformat(text).astimezone(UTC) for volume, text in document.items()}
