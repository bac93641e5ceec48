"""One restore, top to bottom: choose, check, unpack beside, stop, exchange, start.

What arrives is proven block by block before a volume's helper sees it, and lies complete on the volume's disk before
anybody is stopped. Until the exchange, which is renames, every volume is as it was; after it, restored.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sidecar.archive.reader import Extract, everything, matching
from sidecar.archive.unpack import Word
from sidecar.engine.deadman import DeadMan
from sidecar.engine.freeze import Frozen, freeze
from sidecar.engine.journal import Journal
from sidecar.engine.port import Engine, Helper
from sidecar.errors import (
    ArchiveDamaged,
    EngineError,
    Interrupted,
    JournalUnreadable,
    NotFound,
    RestoreFailed,
    RestoreRefused,
    SetInvalid,
    SidecarError,
    StoreError,
    WrongUsage,
)
from sidecar.events import Emit, Follow, Progress
from sidecar.jobs import delivery
from sidecar.jobs.catalogue import Catalogue, answered
from sidecar.jobs.delivery import Delivery, Wanted, settle
from sidecar.jobs.download import find_archive, proven_index, tar_stream
from sidecar.model import Container, Quiesce
from sidecar.plan import can_reach
from sidecar.report import Outcome, Reason, RestoredVolume, RestoreReport, RunReport, worst
from sidecar.restoration import RestoredFrom, RestorePlan, make_restore_plan
from sidecar.sets import PRE_RESTORE, SetVolume
from sidecar.stores.port import Store

# In the journal: `{"set", "volumes", "go"}`, whose helpers may have left something behind; go: all are to be exchanged.
OWED = "restore"

# Seconds. How long to ask, with the containers kept stopped, what became of a volume, before that is reported.
_ASKING = 60.0
_NOWHERE = "no-volume"  # where a tar stream goes to that is only written out


@dataclass(frozen=True, slots=True)
class RestoreTools:
    """What a restore works with; wiring makes it.

    stores: by name, retrying already. own: our own container. protected: IDs of containers that must never be stopped
    -> why. dead_man: for a restore's identifier. safety: makes a set of the volumes named, with these tags; its report.
    threads: downloads at once.
    """

    engine: Engine
    stores: Mapping[str, Store]
    journal: Journal
    own: Callable[[], Container]
    protected: Callable[[Sequence[Container]], Mapping[str, str]]
    dead_man: Callable[[str, Emit], DeadMan]
    safety: Callable[[tuple[str, ...], Mapping[str, str]], RunReport]
    threads: int
    emit: Emit
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Wish:
    """What to restore.

    set_name: a set's, or `latest`. named: its volumes, all when empty. into: the name of a new volume for the one that
    is chosen. pattern: a glob over its paths: then those are put in place, and all else stays. safety: whether what is
    there now is backed up first. drivers: whether volumes that do not exist are made with the driver they had.
    """

    set_name: str = "latest"
    named: tuple[str, ...] = ()
    into: str | None = None
    pattern: str | None = None
    safety: bool = True
    drivers: bool = False


def plan_restore(wish: Wish, tools: RestoreTools) -> tuple[RestorePlan, Catalogue]:
    """What a restore would do, and where the set lies.

    Raises NotFound, WrongUsage, RestoreRefused, EngineError, StoreError.
    """
    catalogue = answered(tools.stores)
    containers = tools.engine.containers()
    plan = make_restore_plan(
        catalogue.find(wish.set_name, wish.named),
        wish.named,
        volumes=tools.engine.volumes(),
        containers=containers,
        protected=tools.protected(containers),
        into=wish.into,
        drivers=wish.drivers,
    )
    if wish.pattern is not None and len(plan.volumes) != 1:
        raise WrongUsage(
            f"a path is in one volume, and {len(plan.volumes)} were chosen", hint="name the VOLUME: restore SET VOLUME"
        )
    warnings = (*catalogue.doubts(wish.set_name), *plan.warnings)
    return replace(plan, warnings=warnings, pattern=wish.pattern, safety=wish.safety), catalogue


def preview(wish: Wish, tools: RestoreTools) -> dict[str, Any]:
    """The object of `restore --dry-run --json`. Raises what `plan_restore` does, NotFound for what matches nothing."""
    plan, catalogue = plan_restore(wish, tools)
    document, holders = plan.as_json(), catalogue.holders[plan.manifest.set]
    if wish.pattern is not None:
        (each,) = plan.volumes
        document["volumes"][0] |= _amounts(_extract(wish, each.stored, [tools.stores[name] for name in holders]))
    known = (*catalogue.damage(plan.manifest.set), *catalogue.failed_drill(plan.manifest.set), *catalogue.unread)
    return document | {"warnings": [*known, *document["warnings"]]}


def restore(wish: Wish, tools: RestoreTools, follow: Follow, cancelled: threading.Event) -> RestoreReport:
    """Put volumes back to what they were in a set.

    Raises SidecarError when nothing has been changed, and says so; what goes wrong later is in the report.
    """
    work = _Restore(wish, tools, follow, cancelled)
    with ExitStack() as undo:
        try:
            plan = work.plan()
            work.keep_what_is_there()
            work.owe(undo)
            beside = [undo.enter_context(work.fetched(each)) for each in plan.volumes]  # proven, and on the disk
            with work.stopped():
                work.decide()  # from here on none is left behind, whoever dies
                for volume in beside:
                    work.exchange(volume)
        except SidecarError as error:
            work.failed(error)  # raised on, unless something has been changed
    return work.report()


def write_tar(
    wish: Wish,
    stores: Mapping[str, Store],
    write: Callable[[bytes], object],
    warn: Callable[[str], None],
    *,
    threads: int,
) -> None:
    """The plain tar stream of one volume, or of what matches in it, each block proven before it is written.

    warn: told what somebody should know of it. Raises NotFound, WrongUsage; ArchiveDamaged, SetInvalid, StoreError:
    then what was written is not whole.
    """
    catalogue = answered(stores)
    manifest = catalogue.find(wish.set_name, wish.named)
    for doubt in catalogue.doubts(wish.set_name):
        warn(doubt)
    plan = make_restore_plan(manifest, wish.named, volumes=(), containers=(), protected={}, into=_NOWHERE)
    (each,) = plan.volumes
    archive = find_archive(stores[catalogue.holders[manifest.set][0]], each.stored, _wanted(wish, each.stored))
    with tar_stream(archive, threads=threads) as stream:
        for raw in stream:
            write(raw)


def _wanted(wish: Wish, volume: SetVolume) -> Callable[[bytes], Extract]:
    """What to take of an archive, by its index. Raises NotFound when nothing matches."""

    def wanted(index: bytes) -> Extract:
        if wish.pattern is None:
            return everything(index)
        extract = matching(index, wish.pattern)
        if not extract.files:
            raise NotFound(
                f"nothing in volume {volume.volume} matches {wish.pattern!r}",
                hint="`list SET VOLUME GLOB` shows what does",
                volume=volume.volume,
            )
        return extract

    return wanted


def _extract(wish: Wish, volume: SetVolume, stores: Sequence[Store]) -> Extract:
    """What will be taken, by the first index that is whole. Raises NotFound, and the last store's error."""
    for store in stores[:-1]:
        with suppress(StoreError, SetInvalid, ArchiveDamaged):
            return _wanted(wish, volume)(proven_index(store, volume))
    return _wanted(wish, volume)(proven_index(stores[-1], volume))


def _amounts(extract: Extract) -> dict[str, int]:
    """As the plan has them of a whole volume; a block is fetched whole, however little of it is wanted."""
    blocks = {piece.block.offset: piece.block.length for piece in extract.pieces}
    return {"files": extract.files, "raw_bytes": extract.length, "archive_bytes": sum(blocks.values())}


def settle_owed(engine: Engine, own: Container, journal: Journal, emit: Emit) -> None:
    """Finish what a killed restore had begun to exchange, and remove what had only arrived.

    Before its containers are started, because half of each is nothing to start on. Raises EngineError, RestoreFailed;
    the journal keeps it then.
    """
    volumes = owed_volumes(journal)
    if not volumes:
        return
    exchanged = settle_volumes(engine, own, volumes, go=is_decided(journal))
    emit("recovered", volumes=list(exchanged), untouched=[name for name in volumes if name not in exchanged])
    journal.settle(OWED)


def settle_volumes(engine: Engine, own: Container, volumes: Sequence[str], *, go: bool) -> tuple[str, ...]:
    """Take up what a restore left in each of the volumes; the names of those that hold what was restored.

    go: whether it had been decided to exchange them; then one in which nothing is left has been, by its helper, which
    goes on when the sidecar has died. Waits for helpers that are still at work. Raises EngineError, RestoreFailed.
    """
    there = {volume.name for volume in engine.volumes()}
    restored = (Word.EXCHANGED, Word.CLEAN) if go else (Word.EXCHANGED,)
    return tuple(name for name in volumes if name in there and settle(engine, own, name, go=go) in restored)


def owed_volumes(journal: Journal) -> tuple[str, ...]:
    """The volumes in which a killed restore may have left something; none where the journal cannot be read."""
    try:
        entry = journal.read()
        return tuple(map(str, entry.others[OWED]["volumes"])) if entry and OWED in entry.others else ()
    except (JournalUnreadable, KeyError, TypeError):
        return ()


def is_decided(journal: Journal) -> bool:
    """Whether the restore that was killed had decided to exchange its volumes."""
    try:
        entry = journal.read()
        return bool(entry and entry.others[OWED]["go"])
    except (JournalUnreadable, KeyError, TypeError):
        return False


@dataclass(slots=True)
class _Beside:
    """A volume whose new content lies beside the old. told: to exchange them; done: it has."""

    restored: RestoredFrom
    extract: Extract
    helper: Helper
    store: str
    told: bool = False
    done: bool = False
    error: SidecarError | None = None

    @property
    def name(self) -> str:
        return self.restored.target


class _Restore:
    """One restore: the steps of `restore`."""

    def __init__(self, wish: Wish, tools: RestoreTools, follow: Follow, cancelled: threading.Event) -> None:
        self._wish = wish
        self._tools = tools
        self._follow = follow
        self._cancelled = cancelled
        self._id = uuid.uuid4().hex[:12]
        self._started = tools.now()
        self._began = time.monotonic()
        self._beside: list[_Beside] = []
        self._frozen: Frozen | None = None
        self._reasons: list[Reason] = []
        self._safety: str | None = None
        self._delivery = Delivery(
            tools.engine,
            tools.own,
            tools.stores,
            threads=tools.threads,
            follow=follow,
            check=self._check,
            passed_over=self._passed_over,
        )

    def plan(self) -> RestorePlan:
        """Look, decide, and say what will be done. Raises what `plan_restore` does."""
        self._follow(Progress("planning"))
        self._plan, self._catalogue = plan_restore(self._wish, self._tools)
        settle_owed(self._tools.engine, self._tools.own(), self._tools.journal, self._emit)
        self._emit(
            "restore_started",
            volumes=self._names(),
            containers=[container.name for container in self._plan.containers],
            warnings=list(self._plan.warnings),
        )
        return self._plan

    def keep_what_is_there(self) -> None:
        """A set of what is about to be replaced, so that it can be undone. Raises RestoreRefused, Interrupted."""
        names = tuple(each.target for each in self._plan.volumes if each.exists)
        if not names or not self._wish.safety:
            return
        for each in self._plan.volumes:
            with suppress(StoreError, SetInvalid, ArchiveDamaged):  # another store may have it whole
                find_archive(self._tools.stores[self._holders()[0]], each.stored, _wanted(self._wish, each.stored))
        report = self._tools.safety(names, {PRE_RESTORE: self._plan.manifest.set})
        self._check()
        kept = {volume.volume for volume in report.volumes if volume.outcome in (Outcome.GOOD, Outcome.PARTIAL)}
        if report.set is None or not kept >= set(names):
            why = report.reasons[0].message if report.reasons else "no reason is known"
            raise RestoreRefused(
                f"what is there now could not be backed up first: {why}",
                hint="mend that; or restore with --no-safety, and lose what is there now",
            )
        self._safety = report.set

    def owe(self, undo: ExitStack) -> None:
        """Note what has to be looked after if we die, and have a second container stand by for whom we stop."""
        self._owe(go=False)
        undo.callback(self._settle_debt)
        if self._plan.containers:
            self._dead_man = undo.enter_context(self._tools.dead_man(self._id, self._emit))

    @contextmanager
    def fetched(self, each: RestoredFrom) -> Iterator[_Beside]:
        """The volume's new content beside the old, from the first store that gives it whole.

        A volume that is left without an exchange is as it was, and gone if it was not there before.
        """
        with ExitStack() as undo:
            if not each.exists:
                self._tools.engine.create_volume(
                    each.target, labels=each.labels, driver=each.driver, options=each.options
                )
                undo.callback(self._remove_unless_done, each.target)
            wanted = Wanted(
                each.stored,
                each.target,
                self._holders(),
                _wanted(self._wish, each.stored),
                merge=self._wish.pattern is not None,
                new=not each.exists,
            )
            delivered = self._delivery.bring(wanted, undo)
            beside = _Beside(each, delivered.extract, delivered.helper, delivered.store)
            self._beside.append(beside)
            yield beside

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Who uses the volumes does not run for the block, and is started again after it.

        Raises EngineError when one cannot be stopped, or started again.
        """
        self._check()
        if self._plan.containers:
            self._follow(Progress("stopping"))
            self._dead_man.ready()
        with freeze(
            self._tools.engine,
            self._tools.journal,
            self._plan.containers,
            run=self._id,
            group=f"restore of {self._plan.manifest.set}",
            budget=math.inf,
            cancelled=threading.Event(),  # whoever is told to stop between two volumes would leave two instants
            emit=self._emit,
            quiesce=lambda _: Quiesce.STOP,
        ) as self._frozen:
            self._refuse_newcomers()
            yield

    def decide(self) -> None:
        """Note that all volumes are to be exchanged: each has its new content on its disk. Raises JournalUnwritable."""
        self._owe(go=True)

    def exchange(self, beside: _Beside) -> None:
        """Old for new. What goes wrong is noted, and the next volume has its turn."""
        self._follow(Progress("exchanging", beside.name))
        beside.told = True
        try:
            word = self._delivery.exchange(beside.helper, beside.name)
        except EngineError as error:
            word = self._settled_for(beside, error)
        except SidecarError as error:
            beside.error = error
            return
        beside.done = word is Word.EXCHANGED
        if not beside.done and beside.error is None:
            beside.error = RestoreFailed(
                f"volume {beside.name} was not restored: its helper ended; it is as it was",
                hint="the same command restores it",
                volume=beside.name,
            )

    def failed(self, error: SidecarError) -> None:
        """Note what went wrong; raise it on while nothing has been changed."""
        if not any(beside.told for beside in self._beside):
            error.message += "; no volume was changed"
            raise error
        self._reasons.append(Reason.of(error))

    def report(self) -> RestoreReport:
        """What the restore says about itself; emits `restore_finished`."""
        volumes = tuple(
            RestoredVolume(
                beside.restored.stored.volume,
                Outcome.GOOD if beside.done else Outcome.FAILED,
                into=beside.name,
                files=beside.extract.files,
                bytes_written=beside.extract.length,
                store=beside.store,
                created=not beside.restored.exists,
                error=beside.error.message if beside.error else None,
                hint=beside.error.hint if beside.error else None,
            )
            for beside in self._beside
        )
        self._reasons += [Reason.of(b.error, volume=b.name) for b in self._beside if b.error]
        outcome = worst(volume.outcome for volume in volumes)
        if outcome is Outcome.GOOD and self._reasons:
            outcome = Outcome.PARTIAL
        report = RestoreReport(
            restore=self._id,
            set=self._plan.manifest.set,
            outcome=outcome,
            started=self._started,
            duration_ms=(time.monotonic() - self._began) * 1000,
            stopped_ms=self._frozen.paused_ms if self._frozen else 0.0,
            containers=self._frozen.containers if self._frozen else (),
            volumes=volumes,
            reasons=tuple(self._reasons),
            safety=self._safety,
        )
        first = self._reasons[0] if self._reasons else None
        self._emit(
            "restore_finished",
            level=logging.INFO if outcome is Outcome.GOOD else logging.ERROR,
            volumes=self._names(),
            outcome=outcome.value,
            duration_ms=round(report.duration_ms, 1),
            stopped_ms=round(report.stopped_ms, 1),
            error=first.message if first else None,
            hint=first.hint if first else None,
        )
        return report

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _holders(self) -> tuple[str, ...]:
        return self._catalogue.holders[self._plan.manifest.set]

    def _passed_over(self, store: str, error: SidecarError) -> None:
        self._emit("store_failed", store=store, code=error.code, error=error.message, hint=error.hint)

    def _settled_for(self, beside: _Beside, error: EngineError) -> Word:
        """What has become of a volume whose helper did not answer. Its containers wait until that is known."""
        until = time.monotonic() + _ASKING
        while True:
            try:
                word = settle(self._tools.engine, self._tools.own(), beside.name, go=True)
            except SidecarError as again:
                if time.monotonic() < until:
                    time.sleep(delivery.LISTEN)
                    continue
                beside.error = RestoreFailed(
                    f"whether volume {beside.name} is restored is not known yet, and nobody is started on half of it: "
                    f"{again.message}",
                    hint="the daemon goes on trying; the same command restores it",
                    volume=beside.name,
                )
                assert self._frozen is not None
                self._frozen.withhold(beside.error)
                return Word.FAILED
            self._delivery.settled(beside.helper)
            if word is Word.CLEAN:
                beside.error = RestoreFailed(
                    f"whether volume {beside.name} was restored is not known: {error.message}",
                    hint="the same command restores it",
                    volume=beside.name,
                )
            return word

    # --- the engine --------------------------------------------------------------------------------------------------

    def _refuse_newcomers(self) -> None:
        """Raises RestoreFailed when someone else has begun to use a volume since the plan was made.

        One that was not there had no user that the plan could stop: whoever has a bind of all that the host has (a
        monitor) is none of a volume that was made a moment ago.
        """
        made = {each.target for each in self._plan.volumes if not each.exists}
        names = set(self._names()) - made
        volumes = [volume for volume in self._tools.engine.volumes() if volume.name in names]
        for container in self._tools.engine.containers(running_only=True):
            uses = any(mount.volume in made for mount in container.mounts)
            if not container.role and (uses or any(can_reach(container, volume) for volume in volumes)):
                raise RestoreFailed(
                    f"{container.name} was started meanwhile, and uses a volume that is to be restored",
                    hint="restore again, away from deployments and restarts",
                )

    def _remove_unless_done(self, name: str) -> None:
        if any(beside.name == name and beside.told for beside in self._beside):
            return
        until = time.monotonic() + delivery.FAREWELL
        with suppress(EngineError):  # an empty volume that nobody asked for is a nuisance and no more
            while not self._tools.engine.remove_volume(name) and time.monotonic() < until:
                time.sleep(0.1)  # its helper is on its way out

    def _settle_debt(self) -> None:
        with suppress(SidecarError):  # the journal keeps it for the next start, or the next restore
            if self._delivery.is_waiting and not self._cancelled.is_set():
                go = any(beside.told for beside in self._beside)
                if not go:
                    self._owe(go=False)  # whatever was decided: or a start after our death would take it for done
                settle_volumes(self._tools.engine, self._tools.own(), self._names(), go=go)
                self._delivery.settled()
            if not self._delivery.is_waiting:
                self._tools.journal.settle(OWED)

    def _owe(self, *, go: bool) -> None:
        self._tools.journal.owe(OWED, {"set": self._plan.manifest.set, "volumes": self._names(), "go": go})

    def _check(self) -> None:
        """Raises Interrupted when told to stop."""
        if self._cancelled.is_set():
            raise Interrupted("the restore was told to stop", hint="the same command restores")

    def _names(self) -> list[str]:
        return [each.target for each in self._plan.volumes]

    def _emit(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        self._tools.emit(name, level=level, restore=self._id, set=self._plan.manifest.set, **fields)
