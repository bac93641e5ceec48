"""What a run says about itself: the same values for logs, JSON, exit codes and people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sidecar.errors import SidecarError


class Outcome(StrEnum):
    """How a run, a group, a volume or a store ended."""

    GOOD = "good"
    PARTIAL = "partial"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a whole from those of its parts.

    Nothing is good; parts that differ, one of them good or partial, make it partial; an interruption outranks all.
    """
    seen = set(outcomes)
    if Outcome.INTERRUPTED in seen:
        return Outcome.INTERRUPTED
    if seen == {Outcome.FAILED}:
        return Outcome.FAILED
    if seen <= {Outcome.GOOD}:
        return Outcome.GOOD
    return Outcome.PARTIAL


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an outcome is not `good`. code: a stable word; volume and store: names, where it concerns one."""

    code: str
    message: str
    hint: str = ""
    volume: str | None = None
    store: str | None = None

    @classmethod
    def of(cls, error: SidecarError, *, volume: str | None = None, store: str | None = None) -> Reason:
        """The reason that an error gives."""
        return cls(error.code, error.message, error.hint, volume or error.volume, store or error.store)


@dataclass(frozen=True, slots=True)
class Unprotected:
    """A mount whose data no backup covers: where, in which container; why: what it is; hint: what to do."""

    container: str
    mount: str
    why: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What one store got. location: for people. pending: a set lies elsewhere and is to be shipped here later."""

    outcome: Outcome
    bytes_uploaded: int = 0
    pending: bool = False
    error: str | None = None
    hint: str | None = None
    location: str = ""


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One frozen instant. paused_ms: from the first pause request to the last unpause reply, milliseconds.

    containers: all that can write the group's volumes; unfrozen: those among them that were to run on.
    """

    group: str
    containers: tuple[str, ...]
    paused_ms: float
    outcome: Outcome
    unfrozen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """One volume; sizes in bytes. group: empty where it is in none. changed_files: paths that changed while frozen."""

    volume: str
    outcome: Outcome
    files: int = 0
    bytes_read: int = 0
    archive_bytes: int = 0
    bytes_uploaded: int = 0
    bytes_reused: int = 0
    changed_files: tuple[str, ...] = ()
    error: str | None = None
    hint: str | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run. started: aware UTC time; duration_ms and paused_ms (the longest group's): milliseconds."""

    run: str
    set: str | None
    outcome: Outcome
    started: datetime
    duration_ms: float
    paused_ms: float
    off_host: bool
    reasons: tuple[Reason, ...] = ()
    unprotected: tuple[Unprotected, ...] = ()
    stores: Mapping[str, StoreReport] = field(default_factory=dict)
    groups: tuple[GroupReport, ...] = ()
    volumes: tuple[VolumeReport, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object of `run-now --json`."""
        document = asdict(self)
        document["started"] = rfc3339(self.started)
        document["duration_ms"] = round(self.duration_ms, 1)
        document["paused_ms"] = round(self.paused_ms, 1)
        for group in document["groups"]:
            group["paused_ms"] = round(group["paused_ms"], 1)
        return document


@dataclass(frozen=True, slots=True)
class RestoredVolume:
    """One volume of a restore.

    volume: its name in the set; into: its name here. bytes_written: of its tar stream. store: where it came from.
    created: it is new.
    """

    volume: str
    outcome: Outcome
    files: int = 0
    bytes_written: int = 0
    store: str | None = None
    created: bool = False
    error: str | None = None
    hint: str | None = None
    into: str = ""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """One restore.

    stopped_ms: how long `containers` (names) did not run, milliseconds. safety: the set with what was there before.
    """

    restore: str
    set: str
    outcome: Outcome
    started: datetime
    duration_ms: float
    stopped_ms: float
    containers: tuple[str, ...]
    volumes: tuple[RestoredVolume, ...]
    reasons: tuple[Reason, ...] = ()
    safety: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The object of `restore --json`."""
        document = asdict(self)
        document["started"] = rfc3339(self.started)
        document["duration_ms"] = round(self.duration_ms, 1)
        document["stopped_ms"] = round(self.stopped_ms, 1)
        return document


@dataclass(frozen=True, slots=True)
class VerifiedVolume:
    """One volume of a set in one store. bytes_read: from the store. damaged: it is known to be, and not just unread."""

    store: str
    volume: str
    outcome: Outcome
    bytes_read: int = 0
    damaged: bool = False
    error: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """One verification. how: `quick` or `full`; newest: whether no set is newer.

    damaged: store -> why its copy is known to be damaged, from now or from a full verification before a quick one.
    reasons: why it is not good, what could not be verified among it. warnings: what could not be noted.
    """

    verify: str
    set: str
    how: str
    outcome: Outcome
    started: datetime
    duration_ms: float
    newest: bool
    volumes: tuple[VerifiedVolume, ...]
    damaged: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object of `verify --json`."""
        document = asdict(self)
        document["started"] = rfc3339(self.started)
        document["duration_ms"] = round(self.duration_ms, 1)
        return document


@dataclass(frozen=True, slots=True)
class DrilledVolume:
    """One volume of a drill. good: a service came up on it; partial: it was restored, and nothing proves it.

    files, bytes_written: of its tar stream. store: where it came from.
    """

    volume: str
    outcome: Outcome
    files: int = 0
    bytes_written: int = 0
    store: str | None = None
    error: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class DrilledService:
    """One service of which a copy was started. container: the live one's name; proof: `health check` or `command`.

    duration_ms: from its start until it was proven, or not. volumes: those of the set that it had.
    """

    container: str
    outcome: Outcome
    proof: str
    volumes: tuple[str, ...]
    duration_ms: float = 0.0
    error: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class DrillReport:
    """One drill. newest: whether no set is newer. reasons: why it is not good. warnings: what else is worth knowing."""

    drill: str
    set: str
    outcome: Outcome
    started: datetime
    duration_ms: float
    newest: bool
    volumes: tuple[DrilledVolume, ...]
    services: tuple[DrilledService, ...] = ()
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object of `drill --json`."""
        document = asdict(self)
        document["started"] = rfc3339(self.started)
        document["duration_ms"] = round(self.duration_ms, 1)
        for service in document["services"]:
            service["duration_ms"] = round(service["duration_ms"], 1)
        return document


def rfc3339(moment: datetime) -> str:
    """RFC 3339 in UTC with a `Z`, to the millisecond where there is a fraction."""
    moment = moment.astimezone(UTC)
    text = moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")
