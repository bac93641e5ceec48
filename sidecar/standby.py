"""The dead man's wiring, apart: it starts with every run, and the stores' libraries would take longest to load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sidecar.engine import deadman
from sidecar.engine.deadman import Watched
from sidecar.engine.docker import connect
from sidecar.engine.journal import Journal
from sidecar.jobs.restore import is_decided, owed_volumes, settle_volumes

STATE = Path("/state")
JOURNAL = STATE / "journal.json"


def stand_by(
    environ: Mapping[str, str], *, container: str, started_at: str, run: str, lease: float, say: Callable[[str], None]
) -> None:
    """Be the dead man of a run. container, started_at: the sidecar's; lease in seconds. Raises EngineError."""
    engine, journal = connect(environ), Journal(JOURNAL)

    def settle() -> None:
        if volumes := owed_volumes(journal):
            own = engine.this_container()
            assert own is not None, "a dead man is a container"
            settle_volumes(engine, own, volumes, go=is_decided(journal))

    deadman.stand_by(engine, journal, Watched(container, started_at, run), lease=lease, say=say, settle=settle)
