"""A host in memory, with a stack on it, and the backup job."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sidecar.archive.spool import SpoolSpace
from sidecar.engine.deadman import DeadMan
from sidecar.engine.journal import Journal
from sidecar.events import EVENTS, Progress
from sidecar.jobs.backup import SetNames, Tools, backup
from sidecar.jobs.ownership import Claimant
from sidecar.model import ContainerState, Mount
from sidecar.plan import Selection, Surroundings, make_plan
from sidecar.report import RunReport
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Store
from tests.contract.fake_engine import FakeEngine

PROJECT = {"com.docker.compose.project": "shop"}


class Shop:
    """A host with the volumes `db` and `files` of project `shop`, used by containers of those names, and our own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engine = FakeEngine()
        self.stores: dict[str, Store] = {"memory": MemoryStore(off_host=True)}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.progress: list[Progress] = []
        self.cancelled = threading.Event()
        self.spool_most: int | None = None
        self.local_by_default = False
        self.start = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)  # before any file was made, so that all are hot
        self.unstepped_ns: Callable[[], int] | None = None  # the same moment, if not given
        self.second = 0
        self.full_every = timedelta(days=7)
        self.boot = "this boot"
        for name in ("db", "files"):
            self.engine.add_volume(name, labels=PROJECT)
            self.engine.run(name, labels=PROJECT, volumes={name: "/data"})
            (self.data(name) / "one").mkdir(parents=True)
            (self.data(name) / "one" / "file").write_bytes(name.encode() * 1000)
        self.engine.run("backup", labels={"backup.role": "sidecar"}, volumes={}, binds={})
        self.engine.be("backup")

    def add(self, name: str, volume: str, **labels: str) -> None:
        """Another container that writes a volume; labels without `backup.`, with `_` for a dash."""
        said = {f"backup.{label.replace('_', '-')}": text for label, text in labels.items()}
        self.engine.run(name, labels=PROJECT | said, volumes={volume: "/data"})

    def data(self, volume: str) -> Path:
        return self.directory / "volumes" / volume / "_data"

    def emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        assert name in EVENTS, f"{name} is not a documented event"
        json.dumps(fields)
        self.events.append((name, fields))

    def tick(self) -> datetime:
        return self.start + timedelta(seconds=self.second)

    def wait(self, seconds: float) -> None:
        self.second += 1

    def run(
        self,
        *named: str,
        selection: Selection | None = None,
        follow: Callable[[Progress], None] | None = None,
        tags: Mapping[str, str] | None = None,
        full: bool = False,
    ) -> RunReport:
        def plan(named: tuple[str, ...]) -> Any:
            own = [Mount("volume", "", str(self.data(v.name)), False, v.name) for v in self.engine.volumes()]
            return make_plan(
                replace(selection or Selection(), named=named),
                Surroundings(self.engine.volumes(), self.engine.containers(), own, frozenset(), {}, frozenset()),
            )

        state = self.directory / "state"
        state.mkdir(exist_ok=True)
        tools = Tools(
            engine=self.engine,
            plan=plan,
            stores=self.stores,
            journal=Journal(state / "journal.json"),
            spool=lambda: SpoolSpace(state / "spool", self.spool_most),
            names=SetNames(self.tick, self.wait),
            dead_man=lambda run, emit: DeadMan(
                self.engine, self.engine.container("backup"), run=run, lease=30.0, state="/state", emit=emit
            ),
            claimant=Claimant(self.engine.identity().id, "shop-host", "backup-state", lambda _: None),
            state=state,
            max_pause=30.0,
            full_every=self.full_every,
            boot=self.boot,
            level=1,
            threads=2,
            host="shop-host",
            version="test",
            endpoint=None,
            local_by_default=self.local_by_default,
            stage_fault=None,
            warnings=(),
            emit=self.emit,
            now=self.tick,
            unstepped_ns=self.unstepped_ns or (lambda: int(self.tick().timestamp() * 1e9)),
        )
        return backup(named, tags or {"why": "test"}, tools, follow or self.progress.append, self.cancelled, full=full)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]

    def archive(self, report: RunReport, volume: str, store: str = "memory") -> dict[str, bytes]:
        """The files of an archive as Python's tarfile reads them."""
        with self.stores[store].open(f"{report.set}/{volume}.tar.gz") as source:
            data = source.read()
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            return {
                member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive.getmembers()
                if member.isreg()
            }

    def frozen(self) -> list[str]:
        return [c.name for c in self.engine.containers() if c.state is ContainerState.PAUSED]

    def objects(self, store: str = "memory") -> list[str]:
        return [stored.key for stored in self.stores[store].list()]
