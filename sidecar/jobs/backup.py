"""One backup, top to bottom: discover, plan, copy, freeze, put right what has changed, thaw, archive, commit.

A set exists if and only if its manifest does; it is written last. Nothing here touches the network while a container is
frozen.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sidecar import sets
from sidecar.archive.capture import Capture
from sidecar.archive.copies import another_round, is_first_round
from sidecar.archive.spool import SpoolSpace
from sidecar.config import StageFault
from sidecar.engine.deadman import DeadMan
from sidecar.engine.freeze import Frozen, freeze
from sidecar.engine.hooks import hooked
from sidecar.engine.journal import Journal
from sidecar.engine.port import Engine
from sidecar.errors import (
    DAMAGE,
    ContainerGone,
    EngineError,
    EngineSilent,
    Interrupted,
    ReuseFailed,
    SetInvalid,
    SidecarError,
    StoreError,
    VolumeUnavailable,
    VolumeUnreadable,
)
from sidecar.events import Emit, Follow, Progress
from sidecar.jobs.consignment import Consignment
from sidecar.jobs.earlier import Earlier, EarlierSets
from sidecar.jobs.ledger import Ledger
from sidecar.jobs.ownership import Claimant
from sidecar.jobs.stages import Stages
from sidecar.jobs.volume import Compression, VolumeBackup
from sidecar.model import Quiesce
from sidecar.plan import Group, Plan, PlannedVolume
from sidecar.report import RunReport, rfc3339
from sidecar.stores.parts import strictest
from sidecar.stores.port import Store


class SetNames:
    """Names of sets, one a second: a run that begins in the second of another takes the next one."""

    def __init__(self, now: Callable[[], datetime], wait: Callable[[float], object]) -> None:
        self._now = now
        self._wait = wait
        self._last = ""

    def next(self, taken: Callable[[str], bool]) -> str:
        """A name that no earlier call gave and that is not `taken` (the clock may have been set back)."""
        while (name := sets.set_name(self._now())) == self._last or taken(name):
            self._wait(0.1)
        self._last = name
        return name


@dataclass(frozen=True, slots=True)
class Tools:
    """What a backup works with; wiring makes it.

    plan: decides about the volumes named (or all) from what the engine says now. stores: by name, retrying already.
    spool: makes the run's empty spool. dead_man: for a run's identifier. claimant: who writes to the stores. max_pause
    in seconds; full_every: how often all of a volume is read, whatever is known of it; boot: the kernel's identifier of
    this boot of the host; level: ISA-L's; threads: compressors, half of the uploads of each store. endpoint: of an S3
    server that is not Amazon's, for RECOVER.txt. local_by_default: nobody said where to keep sets. stage_fault: for
    tests. warnings: said with every run. unstepped_ns: as `archive/settled.py` has it.
    """

    engine: Engine
    plan: Callable[[tuple[str, ...]], Plan]
    stores: Mapping[str, Store]
    journal: Journal
    spool: Callable[[], SpoolSpace]
    names: SetNames
    dead_man: Callable[[str, Emit], DeadMan]
    claimant: Claimant
    state: Path
    max_pause: float
    full_every: timedelta
    boot: str
    level: int
    threads: int
    host: str
    version: str
    endpoint: str | None
    local_by_default: bool
    stage_fault: StageFault | None
    warnings: tuple[str, ...]
    emit: Emit
    now: Callable[[], datetime]
    unstepped_ns: Callable[[], int]


def backup(
    named: tuple[str, ...],
    tags: Mapping[str, str],
    tools: Tools,
    follow: Follow,
    cancelled: threading.Event,
    *,
    full: bool = False,
) -> RunReport:
    """Back up the planned volumes (or those named) into every store. Faults that have a name end in the report.

    full: read everything, and compare it with what the earlier set says. Raises NotFound for a volume that does not
    exist.
    """
    run = _Run(tags, tools, follow, cancelled, full=full)
    with ExitStack() as undo:
        try:
            plan = run.plan(named)
            run.check_thaw_permitted(plan)
            run.stand_by(undo)
            run.open_stores(undo)
            run.stage("planned")
            for group in run.attempts(plan):
                with run.failing_alone(group), ExitStack() as taken:
                    volumes = run.reserve(group, taken)  # a full disk is found before anybody has to wait
                    packed = run.pack(group, volumes)  # blocks of the earlier archive, and other settled files
                    copied = run.precopy(group, packed)  # hot ones, in rounds, while the application runs
                    run.stage("copied")
                    with run.hooked(group, copied) as ready:  # pre hooks; and post hooks, whatever becomes of it
                        captures = run.capture(group, ready)  # journal, freeze, copy what has changed, confirm, thaw
                    for volume, captured in captures:
                        run.archive(group, volume, captured)
                    run.stage("archived")
            run.stage("assembled")
            run.commit()
            run.stage("committed")
        except Interrupted as error:
            run.ledger.interrupted(error)
        except EngineError as error:
            run.ledger.failed(error)
        except StoreError:  # the last store has failed; the report says why each did
            pass
    return run.report()


class _Run:
    """One run: the steps of `backup`."""

    def __init__(
        self, tags: Mapping[str, str], tools: Tools, follow: Follow, cancelled: threading.Event, *, full: bool
    ) -> None:
        self.ledger = Ledger(uuid.uuid4().hex[:12], tools.now(), tools.emit)
        self.stage = Stages(tools.stage_fault, tools.state, cancelled)
        self._tags = tags
        self._tools = tools
        self._follow = follow
        self._cancelled = cancelled
        self._space = tools.spool()
        self._consignments: list[Consignment] = []
        self._engine_id = ""
        self._full = full
        self._reuse = self._may_try_again = True
        self._earlier: EarlierSets | None = None

    def plan(self, named: tuple[str, ...]) -> Plan:
        """Ask the engine, and decide."""
        self._follow(Progress("planning"))
        self._named = named
        self.ledger.event("run_started", named=list(named))
        self._engine_id = self._tools.engine.identity().id
        plan = self._tools.plan(named)
        self.ledger.planned(plan)
        if self._tools.local_by_default:
            self.ledger.not_off_host()
        return plan

    def check_thaw_permitted(self, plan: Plan) -> None:
        """Never freeze what may not be thawed: a socket proxy is asked with a container that is not there.

        Raises EngineDenied.
        """
        nobody = f"permitted-{self.ledger.run}"
        ways = {group.quiesce_of(each.container.id) for group in plan.groups for each in group.containers}
        for quiesce, thaw in ((Quiesce.PAUSE, self._tools.engine.unpause), (Quiesce.STOP, self._tools.engine.start)):
            if quiesce in ways:
                with suppress(ContainerGone):
                    thaw(nobody)

    def stand_by(self, undo: ExitStack) -> None:
        """Have a second container ready to thaw if this one is killed."""
        self._dead_man = undo.enter_context(self._tools.dead_man(self.ledger.run, self.ledger.warn))

    def open_stores(self, undo: ExitStack) -> None:
        """Claim the prefix in every store, and choose the set's name."""
        tools = self._tools
        self._consignments = [
            undo.enter_context(Consignment(store, self.ledger.event, threads=2 * tools.threads))
            for store in tools.stores.values()
        ]
        for consignment in self._consignments:
            consignment.claim(tools.claimant, self.ledger.started)
        self.ledger.set = tools.names.next(lambda name: any(c.holds(name) for c in self._consignments))

    def attempts(self, plan: Plan) -> Iterator[Group]:
        """Each group; and once more where `failing_alone` says so."""
        for group in plan.groups:
            self._reuse = self._may_try_again = True
            yield group
            if not self._may_try_again:
                yield group

    @contextmanager
    def failing_alone(self, group: Group) -> Iterator[None]:
        """A fault of this group ends this group, not the run; without a store left the run ends."""
        self._check()
        self._frozen: Frozen | None = None
        try:
            yield
        except (Interrupted, StoreError) as error:
            self.ledger.group_dropped(group, error, self._paused_ms())
            raise
        except SidecarError as error:
            # A health check that began in the very moment of the freeze, or an earlier archive that was not what it
            # seemed: neither is going to be so again, if nothing is reused.
            if self._may_try_again and isinstance(error, EngineSilent | ReuseFailed):
                self._may_try_again = False
                self._reuse = self._reuse and isinstance(error, EngineSilent)
                self.ledger.group_begun_anew(group, error, self._paused_ms())
                return
            self.ledger.group_failed(group, error, self._paused_ms())

    def reserve(self, group: Group, undo: ExitStack) -> list[VolumeBackup]:
        """Room in the spool for volumes that are all hot, and for their growth. One that cannot be read fails alone.

        Raises SpoolFull.
        """
        begun = [
            VolumeBackup(
                planned,
                self.ledger.set,
                self._alive(),
                self._space,
                Compression(self._tools.level, self._tools.threads),
                undo,
                self._check,
            )
            for planned in group.volumes
        ]
        self._sync(begun)
        volumes = []
        for volume in begun:
            with self._failing_alone(group, volume.planned):
                volume.prepare()
                volumes.append(volume)
        return volumes

    def pack(self, group: Group, volumes: list[VolumeBackup]) -> list[VolumeBackup]:
        """The live pass over each volume. Those that could be read.

        Raises SpoolFull, Interrupted, StoreError, ReuseFailed.
        """
        packed = []
        self._pass_began = self._tools.now()
        for place, volume in enumerate(volumes, 1):
            self._check()
            with self._failing_alone(group, volume.planned):
                earlier = self._earlier_of(volume) if volume.can_reuse and self._reuse else None
                now = self._tools.now()
                is_full = self._full or earlier is None or earlier.is_due(now, self._tools.full_every, self._tools.boot)
                try:
                    volume.take_over(earlier, is_full=is_full)
                except SetInvalid as error:
                    self._refuse(volume, error)
                    volume.take_over(None, is_full=True)
                volume.pack(self._counter("copying", volume.planned), volumes[place:])
                packed.append(volume)
        return packed

    def precopy(self, group: Group, volumes: list[VolumeBackup]) -> list[VolumeBackup]:
        """Copy while the application runs, in rounds, until the freeze would find little. Those that could be read.

        Raises SpoolFull, Interrupted, StoreError.
        """
        began = self._tools.now()
        hot = sum(volume.written for volume in volumes)
        passed = (began - self._pass_began).total_seconds()
        size = sum(volume.size for volume in volumes)
        is_round = is_first_round(hot, size, passed) and all(each.can_reuse for each in volumes)
        written = [hot] if is_round else []
        while volumes and another_round(written, (self._tools.now() - began).total_seconds()):
            volumes = self._round(group, volumes)
            if not written:
                began = self._tools.now()
            written.append(sum(volume.written for volume in volumes))
        return volumes

    @contextmanager
    def hooked(self, group: Group, volumes: list[VolumeBackup]) -> Iterator[list[VolumeBackup]]:
        """Run the group's pre hooks, then the block, then its post hooks, whatever became of the block.

        What the hooks have written is copied before the freeze; gives the volumes that could be read. Raises
        HookFailed, SpoolFull, Interrupted, StoreError.
        """
        if not volumes:
            yield volumes
            return
        if group.has_hooks:
            self._follow(Progress("hooks"))
            self._dead_man.ready()
        with hooked(
            self._tools.engine,
            self._tools.journal,
            [planned.container for planned in group.containers],
            hooks=lambda container: group.hooks_of(container.id),
            quiesce=lambda container: group.quiesce_of(container.id),
            run=self.ledger.run,
            group=group.name,
            cancelled=self._cancelled,
            emit=self.ledger.event,
            complain=lambda error: self.ledger.group_flawed(group, error),
        ):
            yield self._round(group, volumes) if group.has_hooks else volumes

    def capture(self, group: Group, volumes: list[VolumeBackup]) -> list[tuple[VolumeBackup, Capture]]:
        """The group's volumes as of one instant: the copies are put right while its dependents stand still.

        Raises EngineError when they did not, SpoolFull, Interrupted.
        """
        if any(volume.clones for volume in volumes):
            self._dead_man.ready()
            # Nothing long may follow: what is written from now on has to reach the disk inside the freeze.
            volumes = self._round(group, volumes)
        if not volumes:
            return []  # nobody is frozen for volumes that cannot be read
        for volume in volumes:
            volume.make_room()
        self._follow(Progress("freezing"))
        self._dead_man.ready()
        captures = []
        with freeze(
            self._tools.engine,
            self._tools.journal,
            [planned.container for planned in group.containers],
            run=self.ledger.run,
            group=group.name,
            budget=self._tools.max_pause,
            cancelled=self._cancelled,
            emit=self.ledger.event,
            quiesce=lambda container: group.quiesce_of(container.id),
            stage=self.stage,
        ) as frozen:
            self._frozen = frozen
            frozen_at = self._tools.now()
            for volume in volumes:
                with self._failing_alone(group, volume.planned):
                    read = self._counter("comparing", volume.planned)
                    captures.append((volume, volume.capture(frozen.check, read)))
            frozen.confirm(group.dependents_among)
        self.ledger.group_captured(group, frozen_at, frozen.paused_ms)
        return captures

    def archive(self, group: Group, volume: VolumeBackup, captured: Capture) -> None:
        """Complete one volume's archive, then its index. Raises StoreError when no store is left, ReuseFailed."""
        archived = volume.archive(captured, self._counter("packing", volume.planned, captured.bytes_read))
        self.ledger.volume_archived(volume.planned.volume, group.name, archived)

    def commit(self) -> None:
        """RECOVER.txt, then the manifest: with it the set exists. Raises StoreError when no store is left."""
        self._check()
        ledger = self.ledger
        if not ledger.set_volumes:
            return
        self._follow(Progress("committing"))
        manifest = sets.Manifest(
            set=ledger.set,
            time=rfc3339(ledger.started),
            outcome=ledger.outcome_of_volumes(),
            host=self._tools.host,
            engine=self._engine_id,
            version=self._tools.version,
            volumes=tuple(ledger.set_volumes),
            groups=tuple(ledger.set_groups),
            missing=ledger.missing(),
            reasons=tuple(ledger.reasons),
            tags=dict(self._tags),
            named=self._named,
            boot=self._tools.boot,
        )
        for consignment in self._alive():
            endpoint = self._tools.endpoint if consignment.store.off_host else None
            recover = sets.recover_text(manifest, base=consignment.store.location, endpoint=endpoint)
            consignment.put(sets.recover_key(ledger.set), recover.encode(), content_type="text/plain; charset=utf-8")
            consignment.commit(sets.manifest_key(ledger.set), manifest.to_json())
        self._require_store()

    def report(self) -> RunReport:
        """What the run says about itself."""
        # From here a store that missed the set can get it later. Not from a store elsewhere: reading a set back costs
        # money each time that, say, a full disk refuses it.
        lies_here = any(c.committed and not c.store.off_host for c in self._consignments)
        return self.ledger.report(
            {c.store.name: c.report(pending=lies_here) for c in self._consignments},
            off_host=any(c.committed and c.store.off_host for c in self._consignments),
            warnings=self._tools.warnings,
        )

    def _counter(self, phase: str, planned: PlannedVolume, total: int = 0) -> _Counter:
        return _Counter(self._follow, phase, planned.volume.name, total)

    def _sync(self, volumes: list[VolumeBackup]) -> None:
        for volume in volumes:  # all before the first is copied, which gives the disk much to write
            volume.sync(self._tools.unstepped_ns())

    def _round(self, group: Group, volumes: list[VolumeBackup]) -> list[VolumeBackup]:
        """Bring all copies up to date once. Those that could be read."""
        self._sync(volumes)
        readable = []
        for volume in volumes:
            with self._failing_alone(group, volume.planned):
                total = 0 if volume.can_reuse else volume.size
                volume.round(self._counter("copying", volume.planned, total))
                readable.append(volume)
        return readable

    def _earlier_of(self, volume: VolumeBackup) -> Earlier | None:
        """The archive whose blocks may be taken over; why there is none goes into the log."""
        stores = {each.store.name: each.store for each in self._alive()}
        name = volume.planned.volume.name
        if not strictest(store.capabilities for store in stores.values()).copies_ranges:
            self.ledger.event("reuse_refused", volume=name, error="a store cannot copy pieces of an earlier archive")
            return None
        if self._earlier is None:
            self._earlier = EarlierSets(stores)
        try:
            return self._earlier.find(name)
        except SidecarError as error:
            self._refuse(volume, error)
            return None

    def _refuse(self, volume: VolumeBackup, error: SidecarError) -> None:
        tell = self.ledger.warn if isinstance(error, DAMAGE) else self.ledger.event
        tell("reuse_refused", volume=volume.planned.volume.name, error=error.message, hint=error.hint)

    def _paused_ms(self) -> float:
        return self._frozen.paused_ms if self._frozen else 0.0

    def _alive(self) -> list[Consignment]:
        return [consignment for consignment in self._consignments if consignment.alive]

    def _check(self) -> None:
        """Raises Interrupted when told to stop, and a StoreError when no store is left to write to."""
        if self._cancelled.is_set():
            raise Interrupted("the run was told to stop", hint="run-now starts another")
        self._require_store()

    def _require_store(self) -> None:
        if not self._alive():
            raise next(c.error for c in self._consignments if c.error is not None)

    @contextmanager
    def _failing_alone(self, group: Group, planned: PlannedVolume) -> Iterator[None]:
        try:
            yield
        except (VolumeUnavailable, VolumeUnreadable) as error:
            self.ledger.volume_failed(planned.volume.name, group.name, error)


class _Counter:
    """Adds up bytes and tells who follows the run. total: how many there are; 0 while that is not known."""

    def __init__(self, follow: Follow, phase: str, volume: str, total: int) -> None:
        self._follow = follow
        self._phase = phase
        self._volume = volume
        self._total = total
        self._done = 0

    def __call__(self, length: int, total: int = 0) -> None:
        """`length` bytes more are done. total: where that is known only by now."""
        self._done += length
        total = total or self._total
        self._follow(Progress(self._phase, self._volume, self._done, max(self._done, total) if total else 0))
