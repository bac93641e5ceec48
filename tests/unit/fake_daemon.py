"""A real daemon over jobs that only pretend: run as a script, `fake_daemon.py SOCKET GATE`, settings as environment.

It remembers beside GATE, or in the file FAKE_MEMORY. With FAKE_ENGINE_AWAY it cannot begin before GATE exists.

What a run does is chosen by the volumes it names: `hold` waits until it is told to stop, `gate` until the file GATE
exists, `stuck` ignores being told, `partial`, `failed`, `crash` and `missing` end so; anything else is good.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sidecar.cli.main import EXIT_CODES
from sidecar.config import Settings
from sidecar.errors import ArchiveDamaged, Busy, EngineUnreachable, Interrupted, NotFound, StoreDenied
from sidecar.events import Emit, Follow, Progress
from sidecar.guarding import Guarded, LeftOut
from sidecar.report import (
    DrilledService,
    DrilledVolume,
    DrillReport,
    GroupReport,
    Outcome,
    Reason,
    RestoredVolume,
    RestoreReport,
    RunReport,
    StoreReport,
    Unprotected,
    VerifiedVolume,
    VerifyReport,
    VolumeReport,
)
from sidecar.service.daemon import serve
from sidecar.service.jobs_port import DrillRequest, RestoreRequest, RunRequest, VerifyRequest

MEBIBYTE = 1024 * 1024
NAME_WITH_ESCAPES = "a\x1b[31m\nb\udcff.txt"

HOOKS = {"pre": "pg_dump > /dump/[all]", "post": "rm /dump/*", "timeout_ms": 600_000, "on_failure": "abort"}
PLAN = {
    "groups": [
        {
            "group": "shop",
            "volumes": [
                {"volume": "shop_data", "mountpoint": "/var/lib/docker/volumes/shop_data/_data", "path": "/volumes/x"}
            ],
            "containers": [
                {"container": "shop-db-1", "quiesce": "pause", "why": "BACKUP_QUIESCE", "hooks": HOOKS},
                {"container": "shop-ui-1", "quiesce": "pause", "why": "BACKUP_QUIESCE", "hooks": None},
            ],
        },
        {"group": "wiki", "volumes": [{"volume": "wiki", "mountpoint": "/m", "path": "/v"}], "containers": []},
    ],
    "skipped": [{"volume": "nfs", "code": "volume_unavailable", "why": "it is not mounted", "hint": "mount it"}],
    "unprotected": [{"container": "shop-web-1", "mount": "/srv/uploads", "why": "a bind mount"}],
    "warnings": ["container x has a label [that] nobody knows"],
    "stores": {"s3": "s3://sets/backups", "local": "/data/backups"},
}
SET: dict[str, Any] = {
    "set": "backup-20260102_030000",
    "time": "2026-01-02T03:00:00Z",
    "outcome": "good",
    "host": "host-1",
    "backup_host": "",
    "stores": ["s3"],
    "volumes": {"shop_data": {"archive_bytes": 5 * MEBIBYTE, "raw_bytes": 9 * MEBIBYTE, "files": 12}},
    "tags": {"reason": "upgrade"},
    "keep": False,
    "verified": None,
    "drilled": None,
}
FILE = {"type": "file", "size": 3, "mode": "0644", "uid": 999, "gid": 0, "mtime": 1_767_225_600.5}


class PretendJobs:
    def __init__(self, settings: Settings, emit: Emit, gate: str) -> None:
        self.settings = settings
        self.emit = emit
        self.gate = gate

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        started = datetime(2026, 1, 2, 3, tzinfo=UTC)
        kind = request.volumes[0] if request.volumes else "good"
        if kind == "missing":
            raise NotFound("there is no volume missing", hint="there are shop_data and wiki")
        self.emit("run_started", run="r1", trigger=request.trigger, volumes=request.volumes, tags=request.tags)
        print("a library that prints")
        os.write(1, b"and one that writes to the descriptor\n")
        follow(Progress("copying", "shop_data", 1 * MEBIBYTE, 4 * MEBIBYTE))
        match kind:
            case "hold":
                cancelled.wait()
                raise Interrupted("the run was told to stop", hint="run it again")
            case "gate":
                while not os.path.exists(self.gate) and not cancelled.wait(0.01):
                    pass
            case "stuck":
                threading.Event().wait()
            case "crash":
                raise RuntimeError(f"not meant to be: {os.environ.get('AWS_SECRET_ACCESS_KEY')}")
            case "failed":
                raise StoreDenied("s3 refuses backups/x", hint="grant s3:PutObject", store="s3")
        outcome = Outcome.PARTIAL if kind == "partial" else Outcome.GOOD
        follow(Progress("packing", "shop_data", 4 * MEBIBYTE, 4 * MEBIBYTE))
        report = RunReport(
            run="r1",
            set="backup-20260102_030000",
            outcome=outcome,
            started=started,
            duration_ms=41_300,
            paused_ms=182.4,
            off_host=outcome is Outcome.GOOD,
            reasons=(Reason("not_off_host", "nothing is off this host", "set S3_BACKUP_BUCKET"),) * (kind == "partial"),
            unprotected=(Unprotected("shop-web-1", "/srv/uploads", "a bind mount"),),
            stores={"local": StoreReport(Outcome.GOOD, bytes_uploaded=5 * MEBIBYTE)},
            groups=(
                GroupReport(
                    "shop", ("shop-db-1", "shop-cache-1", "shop-web-1"), 182.4, Outcome.GOOD, ("shop-cache-1",)
                ),
            ),
            volumes=(
                VolumeReport(
                    "shop_data",
                    outcome,
                    files=12,
                    bytes_read=9 * MEBIBYTE,
                    archive_bytes=5 * MEBIBYTE,
                    bytes_uploaded=2 * MEBIBYTE,
                    bytes_reused=3 * MEBIBYTE,
                    changed_files=(NAME_WITH_ESCAPES,) * (kind == "partial"),
                ),
            ),
            warnings=self.settings.warnings,
        )
        self.emit("run_finished", run=report.run, set=report.set, outcome=outcome)
        return report

    def restore_plan(self, request: RestoreRequest) -> dict[str, Any]:
        if "missing" in request.volumes:
            raise NotFound("there is no volume missing", hint="there are shop_data and wiki")
        volume = {
            "volume": "shop_data",
            "into": request.into or "shop_data",
            "exists": request.into is None and "lost" not in request.volumes,
            "special": "driver nfs" if "lost" in request.volumes and not request.drivers else "",
            "files": 12,
            "raw_bytes": 9 * MEBIBYTE,
            "archive_bytes": 5,
        }
        return {
            "set": SET["set"],
            "time": SET["time"],
            "host": SET["host"],
            "backup_host": SET["backup_host"],
            "volumes": [volume],
            "containers": ["shop-db-1"],
            "pattern": request.pattern,
            "safety": request.safety,
            "warnings": [],
        }

    def restore(self, request: RestoreRequest, follow: Follow, cancelled: threading.Event) -> RestoreReport:
        if "damaged" in request.volumes:
            raise ArchiveDamaged("a block is not what was written; no volume was changed", hint="verify the set")
        follow(Progress("restoring", "shop_data", 1, 2))
        into = request.into or ("with its driver" if request.drivers else "shop_data")
        volumes = (RestoredVolume("shop_data", Outcome.GOOD, 12, 9 * MEBIBYTE, "s3", into=into),)
        outcome, reasons = Outcome.GOOD, ()
        if "half" in request.volumes:
            error = ("its helper ended", "the same command restores it")
            volumes += (RestoredVolume("wiki", Outcome.FAILED, error=error[0], hint=error[1]),)
            outcome, reasons = Outcome.PARTIAL, (Reason("restore_failed", *error, volume="wiki"),)
        started = datetime(2026, 1, 2, 9, tzinfo=UTC)
        safety = "backup-20260102_085900" if request.safety else None
        return RestoreReport("x", SET["set"], outcome, started, 7333.0, 912.4, ("shop-db-1",), volumes, reasons, safety)

    def verify(self, request: VerifyRequest, follow: Follow, cancelled: threading.Event) -> VerifyReport:
        if request.set_name not in ("latest", SET["set"]):
            raise NotFound(f"there is no set {request.set_name!r}", hint="`list` shows the sets")
        follow(Progress("verifying", "shop_data", 1, 2))
        volumes = (VerifiedVolume("s3", "shop_data", Outcome.GOOD, 5 * MEBIBYTE),)
        started = datetime(2026, 1, 4, 5, tzinfo=UTC)
        if not os.path.exists(self.gate):
            return VerifyReport("v", SET["set"], request.how, Outcome.GOOD, started, 7333.0, True, volumes)
        why, hint = "the block at 8388464 is not what was written", "another set may be whole"
        volumes = (VerifiedVolume("s3", "shop_data", Outcome.FAILED, damaged=True, error=why, hint=hint),)
        reasons = (Reason("archive_damaged", why, hint, "shop_data", "s3"),)
        return VerifyReport(
            "v", SET["set"], request.how, Outcome.FAILED, started, 7333.0, True, volumes, {"s3": why}, reasons
        )

    def drill(self, request: DrillRequest, follow: Follow, cancelled: threading.Event) -> DrillReport:
        if request.set_name not in ("latest", SET["set"]):
            raise NotFound(f"there is no set {request.set_name!r}", hint="`list` shows the sets")
        if "missing" in request.volumes:
            raise NotFound("there is no volume missing", hint="there are shop_data and wiki")
        follow(Progress("starting", "shop-db-1"))
        outcome, reasons, services = Outcome.GOOD, (), ()
        if "wiki" in request.volumes:
            outcome = Outcome.PARTIAL
            reasons = (Reason("unproven", "volume wiki was restored, but nothing proves it", "add backup.drill"),)
        else:
            services = (DrilledService("shop-db-1", outcome, "health check", ("shop_data",), 4200.0),)
        if os.path.exists(self.gate):
            why, hint = "shop-db-1 did not come up: it ended by itself", "see what it wrote"
            outcome, reasons = Outcome.FAILED, (Reason("drill_failed", why, hint),)
            services = (DrilledService("shop-db-1", outcome, "health check", ("shop_data",), 4200.0, why, hint),)
        name = request.volumes[0] if request.volumes else "shop_data"
        volumes = (DrilledVolume(name, outcome, 12, 9 * MEBIBYTE, "s3"),)
        started = datetime(2026, 2, 1, 6, tzinfo=UTC)
        return DrillReport("d", SET["set"], outcome, started, 7333.0, True, volumes, services, reasons)

    def keep(self, set_name: str, wanted: bool) -> dict[str, Any]:
        if set_name != SET["set"]:
            raise NotFound(f"there is no set {set_name!r}", hint="`list` shows the sets")
        away = {"local": {"code": "store_unreachable", "message": "it is away", "hint": "mount it"}}
        return {"set": set_name, "keep": wanted, "stores": ["s3"], "errors": away if os.path.exists(self.gate) else {}}

    def plan(self) -> dict[str, Any]:
        if os.path.exists(self.gate):
            raise EngineUnreachable("nothing answers on /var/run/docker.sock", hint="mount the socket")
        return PLAN

    def sets(
        self, set_name: str | None, volume: str | None, pattern: str | None, host: str | None = None
    ) -> dict[str, Any]:
        if set_name not in (None, "latest", SET["set"]):
            raise NotFound(f"there is no set {set_name}", hint="`list` shows all")
        if volume:
            paths = ["./a.sqlite", f"./{NAME_WITH_ESCAPES}"]
            return {"files": [{"path": path, **FILE} for path in paths if not pattern or path.endswith(pattern[1:])]}
        if os.path.exists(self.gate):
            return {"sets": [], "errors": {"s3": {"code": "store_unreachable", "message": "no route", "hint": ""}}}
        return {"sets": [SET], "errors": {}}

    def guard(self, released: Collection[str]) -> Guarded:
        held = tuple(name for name in ("shop_data", "wiki") if name not in released)
        away = tuple(name for name in ("shop_data", "wiki") if name in released)
        left_out = (LeftOut("backup-state", "it is the sidecar's own"),)
        return Guarded("backup-guard", held, away, left_out, frozenset(["shop_data"]))

    def dismiss_guard(self) -> None:
        pass

    def guard_sign(self) -> object:
        return None

    def recover(self) -> None:
        if os.environ.get("FAKE_SLOW_RECOVERY"):
            time.sleep(float(os.environ["FAKE_SLOW_RECOVERY"]))
        if os.environ.get("FAKE_RIVAL"):
            raise Busy(f"s3 belongs to the sidecar {os.environ['FAKE_RIVAL']}", hint="stop one of them")
        self.emit("recovered", containers=["shop-db-1"])


if __name__ == "__main__":
    path, gate = sys.argv[1:3]
    settings = {name: text for name, text in os.environ.items() if not name.startswith("FAKE_")}

    def build(settings: Settings, emit: Emit) -> PretendJobs:
        if os.environ.get("FAKE_ENGINE_AWAY") and not os.path.exists(gate):
            raise EngineUnreachable("nothing answers", hint="start the engine")
        return PretendJobs(settings, emit, gate)

    outcome = serve(
        settings,
        build,
        socket_path=path,
        memory_path=os.environ.get("FAKE_MEMORY", f"{gate}-memory.json"),
        run_may_take=float(os.environ.get("FAKE_PATIENCE", "7")),
        try_again_every=0.05,
    )
    os._exit(EXIT_CODES[outcome])
