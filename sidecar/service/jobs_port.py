"""What the daemon asks of the jobs; wiring gives it the real ones."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from sidecar.events import Follow
from sidecar.guarding import Guarded
from sidecar.report import DrillReport, RestoreReport, RunReport, VerifyReport
from sidecar.service.shipments import Shipment


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One run as it was asked for.

    volumes: names, all volumes when empty. full: read everything, whatever signatures say. tags: for the manifest.
    trigger: `manual` or `schedule`.
    """

    activity: ClassVar[str] = "run"
    state: ClassVar[str] = "running"

    volumes: tuple[str, ...] = ()
    full: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    trigger: str = "manual"


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """One restore as it was asked for.

    set_name: a set's, or `latest`. volumes: names, all of the set when empty. into: the name of a new volume for the
    one that is named. pattern: a glob over the paths of the one that is named. host: whose sets, ours when None.
    safety: whether what is there now is backed up first. drivers: whether volumes that do not exist are made with the
    driver and options that they had.
    """

    activity: ClassVar[str] = "restore"
    state: ClassVar[str] = "restoring"

    set_name: str = "latest"
    volumes: tuple[str, ...] = ()
    into: str | None = None
    pattern: str | None = None
    host: str | None = None
    safety: bool = True
    drivers: bool = False
    trigger: str = "manual"


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One verification as it was asked for. set_name: a set's, or `latest`; how: `quick` or `full`."""

    activity: ClassVar[str] = "verification"
    state: ClassVar[str] = "verifying"

    set_name: str = "latest"
    how: str = "full"
    trigger: str = "manual"
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DrillRequest:
    """One drill as it was asked for. set_name: a set's, or `latest`; volumes: names, all of the set when empty."""

    activity: ClassVar[str] = "drill"
    state: ClassVar[str] = "drilling"

    set_name: str = "latest"
    volumes: tuple[str, ...] = ()
    trigger: str = "manual"


@dataclass(frozen=True, slots=True)
class ShipRequest:
    """A set that is to be copied to a store that missed it, which the daemon does when nobody asks for anything."""

    activity: ClassVar[str] = "shipment"
    state: ClassVar[str] = "shipping"

    shipment: Shipment
    volumes: tuple[str, ...] = ()
    trigger: str = "pending"


@dataclass(frozen=True, slots=True)
class Shipped:
    """What a shipment came to. bytes_uploaded: none where the set was there already; off_host: the store's."""

    bytes_uploaded: int
    off_host: bool


# What the daemon does one at a time. activity: what it is called; state: of `status --json` while it goes on.
Request = RunRequest | RestoreRequest | VerifyRequest | DrillRequest | ShipRequest
Report = RunReport | RestoreReport | VerifyReport | DrillReport


class Jobs(Protocol):
    """What the product does.

    Methods block and may be called from several threads; of `recover`, `backup`, `restore`, `verify` and `drill`
    one at a time.
    """

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        """Make one backup.

        Once `cancelled` is set it thaws, aborts and ends within seconds: by raising Interrupted or with a report whose
        outcome is `interrupted`. Raises NotFound for a volume that does not exist, before anything is touched. It emits
        `run_started` and `run_finished`; the daemon emits `run_failed` for whatever is raised.
        """

    def ship(self, set_name: str, store: str, follow: Follow, cancelled: threading.Event) -> Shipped:
        """Copy a set from the store of this host that has it to the store of that name, whole or not at all.

        Raises NotFound when it is lost meanwhile, Interrupted soon after `cancelled` is set, SidecarError
        with the store's name.
        """

    def lost(self, set_names: Sequence[str]) -> Mapping[str, str]:
        """Of these sets, those that no store of this host has (any more), each with the words for it. SidecarError."""

    def restore(self, request: RestoreRequest, follow: Follow, cancelled: threading.Event) -> RestoreReport:
        """Put volumes back to what they were.

        Raises SidecarError when nothing has been touched: NotFound, SpoolFull's like for the volume's disk, a damaged
        archive, Interrupted once `cancelled` is set. It emits `restore_started` and, when it returns,
        `restore_finished`; the daemon emits `restore_finished` for whatever is raised.
        """

    def restore_plan(self, request: RestoreRequest) -> dict[str, Any]:
        """The object of `restore --dry-run --json`: what a restore would do now. Raises what `restore` would refuse."""

    def verify(self, request: VerifyRequest, follow: Follow, cancelled: threading.Event) -> VerifyReport:
        """Read a set back, and note what was found.

        Raises NotFound, a store's error when none can be asked, Interrupted once `cancelled` is set: nothing is noted
        then. It emits `verify_finished` when it returns; the daemon emits it for whatever is raised.
        """

    def drill(self, request: DrillRequest, follow: Follow, cancelled: threading.Event) -> DrillReport:
        """Restore a set into scratch volumes, start copies of its services on them, and note how they did.

        Raises NotFound, NoRoom, EngineError, a store's error, Interrupted once `cancelled` is set: nothing is noted
        then, and whatever it raises, nothing is left. It emits `drill_finished` when it returns; the daemon emits it
        for whatever is raised.
        """

    def keep(self, set_name: str, wanted: bool) -> dict[str, Any]:
        """Note that a set is kept from pruning, or not; the object of `keep --json`. Raises NotFound, SidecarError."""

    def plan(self) -> dict[str, Any]:
        """The object of `plan --json`: what a run would do now."""

    def sets(
        self, set_name: str | None, volume: str | None, pattern: str | None, host: str | None = None
    ) -> dict[str, Any]:
        """The object of `list --json`: all sets, or the one named; with volume its files, as `{"files": [...]}`.

        pattern: a glob over the files' paths. Raises NotFound for a set or volume that does not exist.
        """

    def guard(self, released: Collection[str]) -> Guarded:
        """See to it that a guard holds every volume that a run would back up, but those released; how things are then.

        One call at a time. Raises SidecarError.
        """

    def dismiss_guard(self) -> None:
        """Remove the guard, if there is one. Raises SidecarError."""

    def guard_sign(self) -> object:
        """Compares equal as long as no volume has come or gone and the guard is as it was. Cheap; SidecarError."""

    def recover(self) -> None:
        """Put right what a killed run left: thaw what it froze, abort what it uploaded. Idempotent.

        Raises Busy when another sidecar that runs on this engine writes to the same place.
        """
