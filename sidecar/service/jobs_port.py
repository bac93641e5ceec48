"""What the daemon asks of the jobs; wiring gives it the real ones."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from sidecar.events import Follow
from sidecar.report import RestoreReport, RunReport


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
    """One restore as it was asked for. set_name: a set's, or `latest`; volumes: names, all of the set when empty."""

    activity: ClassVar[str] = "restore"
    state: ClassVar[str] = "restoring"

    set_name: str = "latest"
    volumes: tuple[str, ...] = ()
    trigger: str = "manual"


# What the daemon does one at a time. activity: what it is called; state: of `status --json` while it goes on.
Request = RunRequest | RestoreRequest
Report = RunReport | RestoreReport


class Jobs(Protocol):
    """What the product does.

    Methods block and may be called from several threads; of `recover`, `backup` and `restore` one at a time.
    """

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        """Make one backup.

        Once `cancelled` is set it thaws, aborts and ends within seconds: by raising Interrupted or with a report whose
        outcome is `interrupted`. Raises NotFound for a volume that does not exist, before anything is touched. It emits
        `run_started` and `run_finished`; the daemon emits `run_failed` for whatever is raised.
        """

    def restore(self, request: RestoreRequest, follow: Follow, cancelled: threading.Event) -> RestoreReport:
        """Put volumes back to what they were.

        Raises SidecarError when nothing has been touched: NotFound, SpoolFull's like for the volume's disk, a damaged
        archive, Interrupted once `cancelled` is set. It emits `restore_started` and, when it returns,
        `restore_finished`; the daemon emits `restore_finished` for whatever is raised.
        """

    def restore_plan(self, request: RestoreRequest) -> dict[str, Any]:
        """The object of `restore --dry-run --json`: what a restore would do now. Raises what `restore` would refuse."""

    def plan(self) -> dict[str, Any]:
        """The object of `plan --json`: what a run would do now."""

    def sets(self, set_name: str | None, volume: str | None, pattern: str | None) -> dict[str, Any]:
        """The object of `list --json`: all sets, or the one named; with volume its files, as `{"files": [...]}`.

        pattern: a glob over the files' paths. Raises NotFound for a set or volume that does not exist.
        """

    def recover(self) -> None:
        """Put right what a killed run left: thaw what it froze, abort what it uploaded. Idempotent."""
