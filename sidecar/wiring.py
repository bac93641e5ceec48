"""Builds the real engine and the real stores, and hands them to the jobs; for the dead man `standby` does so."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sidecar import __version__, config, sets
from sidecar.archive.settled import Unstepped
from sidecar.archive.spool import SpoolSpace
from sidecar.config import Settings
from sidecar.engine import deadman
from sidecar.engine.deadman import DeadMan
from sidecar.engine.docker import connect
from sidecar.engine.hooks import finish
from sidecar.engine.journal import Journal
from sidecar.engine.port import Engine
from sidecar.engine.recovery import recover
from sidecar.errors import (
    Busy,
    ConfigInvalid,
    EngineUnreachable,
    MountMissing,
    NoSets,
    NotFound,
    ObjectMissing,
    OwnedByAnotherSidecar,
    SidecarError,
    StoreDenied,
)
from sidecar.events import Emit, Follow
from sidecar.guarding import Guarded
from sidecar.jobs import check as preflight
from sidecar.jobs.backup import SetNames, Tools, backup
from sidecar.jobs.catalogue import AT_ONCE, hosts_with_sets, list_files, list_sets, none_of_host
from sidecar.jobs.check import Finding, Premises, Verdict
from sidecar.jobs.discover import Discovery
from sidecar.jobs.drill import DrillTools, clear, drill
from sidecar.jobs.guard import GuardTools, dismiss, guard, sign
from sidecar.jobs.marks import keep
from sidecar.jobs.ownership import Claimant, claimant, state_of
from sidecar.jobs.recover import sweep
from sidecar.jobs.restore import (
    RestoreTools,
    Wish,
    preview,
    restore,
    settle_owed,
    write_tar,
)
from sidecar.jobs.scan import Grounds, Searched
from sidecar.jobs.scan import scan as search
from sidecar.jobs.ship import ShipTools, lost, ship
from sidecar.jobs.verify import VerifyTools, verify
from sidecar.plan import Selection
from sidecar.report import DrillReport, RestoreReport, RunReport, VerifyReport
from sidecar.salvage import USUAL_NAME, Place, Salvage
from sidecar.service.jobs_port import DrillRequest, Jobs, RestoreRequest, RunRequest, Shipped, VerifyRequest
from sidecar.standby import JOURNAL, STATE
from sidecar.stores import ebs
from sidecar.stores.local import LocalStore
from sidecar.stores.port import Store
from sidecar.stores.retrying import Retry, RetryingStore, RetryPolicy
from sidecar.stores.s3 import READ_TIMEOUT, S3Settings, S3Store
from sidecar.stores.s3_bucket import S3Bucket

_WHILE_SOMEBODY_WAITS = RetryPolicy(attempts=3, total=10.0, base=0.25, cap=1.0)
# For a store that has not answered yet, while there is another to write to or to read from.
_BESIDE_ANOTHER = RetryPolicy(attempts=6, total=15.0, base=0.5, cap=4.0)
# Seconds. Small requests that somebody waits for: a verb, the start.
_SOON = 15
# Seconds that scratch volumes which somebody holds are waited for while the daemon does not answer yet.
_AT_START = 3.0
_UNIX = "unix://"
_NO_SOURCE = "it lies in a store of this host, and BACKUP_STORES names none any more"
# Seconds that containers may be kept stopped by a sidecar that seems to live: an exchange deletes what was there.
_LONGEST_RESTORE = 3600.0


def build_jobs(settings: Settings, emit: Emit) -> Jobs:
    """The jobs on this machine's engine and the stores that the settings name.

    Raises MountMissing when the socket, /volumes or /state is not mounted, EngineError, StoreError.
    """
    engine = _connect(settings)
    selection = Selection(include=settings.include, exclude=settings.exclude, quiesce=settings.quiesce)
    discovery = Discovery(engine, selection, settings.endpoint)
    discovery.check_mounts()
    return _Jobs(settings, emit, engine, discovery, selection)


def check(environ: Mapping[str, str]) -> Iterator[Finding]:
    """What stands in the way of a backup, in this container as it is now; see `jobs.check`."""
    try:
        settings = config.load(environ, lambda path: Path(path).read_text(encoding="utf-8"))
    except ConfigInvalid as error:
        for problem in error.problems:
            yield Finding("settings", Verdict.ERROR, problem, error.hint)
        return
    selection = Selection(include=settings.include, exclude=settings.exclude, quiesce=settings.quiesce)
    premises = Premises(
        engine=lambda: _connect(settings),
        discovery=lambda engine: Discovery(engine, selection, settings.endpoint),
        stores={name: partial(_impatient, name, settings) for name in settings.stores},
        state=STATE,
        mountinfo=lambda: Path("/proc/self/mountinfo").read_text(),
        token=secrets.token_hex(8),
        now=_now,
    )
    yield from preflight.check(settings, premises)


def scan(environ: Mapping[str, str], say: Callable[[str], None]) -> Salvage:
    """What is left to recover, wherever the settings lead; see `jobs.scan`. Raises ConfigInvalid."""
    settings = config.load(environ, lambda path: Path(path).read_text(encoding="utf-8"))
    container = _lasting_name(settings)
    grounds = Grounds(
        stores={name: partial(_searched, name, settings, container) for name in settings.stores},
        engine=lambda: _connect(settings),
        discovery=lambda engine: Discovery(engine, Selection(), settings.endpoint),
        snapshots=partial(
            ebs.snapshots,
            environ,
            access_key=settings.access_key_id,
            secret_key=settings.secret_access_key,
            session_token=settings.session_token,
        ),
        now=_now(),
        say=say,
        container=container,
    )
    return search(grounds)


def tar_out(
    environ: Mapping[str, str],
    request: RestoreRequest,
    write: Callable[[bytes], object],
    warn: Callable[[str], None],
) -> None:
    """Write one volume of a set out as plain tar. Raises ConfigInvalid, and what `jobs.restore.write_tar` does."""
    settings = config.load(environ, lambda path: Path(path).read_text(encoding="utf-8"))
    host = _backup_host(request.host, settings)
    stores = _patient(_stores_of(host, settings), settings)
    with _naming_hosts(request.host, settings):
        write_tar(_wish(request), stores, write, warn, threads=2 * _cores())


class _Jobs:
    def __init__(
        self, settings: Settings, emit: Emit, engine: Engine, discovery: Discovery, selection: Selection
    ) -> None:
        self._settings = settings
        self._emit = emit
        self._engine = engine
        self._discovery = discovery
        self._selection = selection
        self._journal = Journal(JOURNAL)
        self._names = SetNames(_now, time.sleep)
        self._unstepped = Unstepped(*_clocks_ns())
        self._bare_stores = {name: _store(name, settings) for name in settings.stores}
        self._prompt_stores = {name: _store(name, settings, read_timeout=_SOON) for name in settings.stores}
        self._unswept = set(settings.stores)

    def backup(self, request: RunRequest, follow: Follow, cancelled: threading.Event) -> RunReport:
        with suppress(OwnedByAnotherSidecar):  # a store that was away at our start: the report will name it
            self._sweep()
        settings = self._settings
        tools = Tools(
            engine=self._engine,
            plan=self._discovery,
            stores=self._stores(cancelled),
            journal=self._journal,
            spool=lambda: SpoolSpace(STATE / "spool", settings.spool_max),
            names=self._names,
            dead_man=self._dead_man,
            claimant=self._claimant(),
            state=STATE,
            max_pause=settings.max_pause.total_seconds(),
            full_every=settings.full_every,
            boot=_boot(),
            level=settings.compression,
            threads=_cores(),
            host=settings.host or self._engine.identity().name,
            version=__version__,
            endpoint=settings.endpoint,
            local_by_default=settings.local_by_default,
            stage_fault=settings.stage_fault,
            warnings=settings.warnings,
            emit=self._emit,
            now=_now,
            unstepped_ns=lambda: self._unstepped.time_ns(*_clocks_ns()),
        )
        return backup(request.volumes, request.tags, tools, follow, cancelled, full=request.full)

    def ship(self, set_name: str, store: str, follow: Follow, cancelled: threading.Event) -> Shipped:
        target, source = self._bare_stores[store], self._source()
        if source is None:
            raise NotFound(_NO_SOURCE)
        # Asked impatiently first: a store that is still away costs no patience, and no line in the log.
        with suppress(ObjectMissing, StoreDenied):
            RetryingStore(target, _WHILE_SOMEBODY_WAITS, cancelled=cancelled.is_set).head(sets.OWNER)
        with suppress(OwnedByAnotherSidecar):  # the shipment will say so
            self._sweep()
        stores = self._stores(cancelled)
        tools = ShipTools(
            source=stores[source.name],
            target=stores[store],
            claimant=self._claimant(),
            endpoint=self._settings.endpoint,
            threads=2 * _cores(),
            emit=self._emit,
            now=_now,
        )
        return Shipped(ship(set_name, tools, follow, cancelled), target.off_host)

    def lost(self, set_names: Sequence[str]) -> Mapping[str, str]:
        source = self._source()
        return dict.fromkeys(set_names, _NO_SOURCE) if source is None else lost(set_names, source)

    def _source(self) -> Store | None:
        """Where sets can be read from without paying for it."""
        return next((store for store in self._bare_stores.values() if not store.off_host), None)

    def restore(self, request: RestoreRequest, follow: Follow, cancelled: threading.Event) -> RestoreReport:
        stores = self._stores(cancelled, host=request.host)
        with _naming_hosts(request.host, self._settings):
            return restore(_wish(request), self._restore_tools(stores, follow, cancelled), follow, cancelled)

    def restore_plan(self, request: RestoreRequest) -> dict[str, Any]:
        stores = self._quick_stores(host=request.host)
        tools = self._restore_tools(stores, lambda _: None, threading.Event())
        with _naming_hosts(request.host, self._settings):
            return preview(_wish(request), tools) | {"backup_host": _backup_host(request.host, self._settings)}

    def _restore_tools(self, stores: Mapping[str, Store], follow: Follow, cancelled: threading.Event) -> RestoreTools:
        def safety(volumes: tuple[str, ...], tags: Mapping[str, str]) -> RunReport:
            return self.backup(RunRequest(volumes, tags=tags), follow, cancelled)

        return RestoreTools(
            engine=self._engine,
            stores=stores,
            journal=self._journal,
            own=self._discovery.this_container,
            protected=self._discovery.protected,
            dead_man=partial(self._dead_man, lease=_LONGEST_RESTORE),
            safety=safety,
            threads=2 * _cores(),
            emit=self._emit,
            now=_now,
        )

    def verify(self, request: VerifyRequest, follow: Follow, cancelled: threading.Event) -> VerifyReport:
        tools = VerifyTools(
            stores=self._stores(cancelled),
            claimant=self._claimant(),
            threads=2 * _cores(),
            emit=self._emit,
            now=_now,
        )
        with _naming_hosts(None, self._settings):
            return verify(request.set_name, sets.How(request.how), tools, follow, cancelled)

    def drill(self, request: DrillRequest, follow: Follow, cancelled: threading.Event) -> DrillReport:
        tools = DrillTools(
            engine=self._engine,
            stores=self._stores(cancelled),
            own=self._discovery.this_container,
            claimant=self._claimant(),
            threads=2 * _cores(),
            patience=self._settings.drill_timeout.total_seconds(),
            memory=self._settings.drill_memory,
            emit=self._emit,
            now=_now,
        )
        with _naming_hosts(None, self._settings):
            return drill(request.set_name, request.volumes, tools, follow, cancelled)

    def keep(self, set_name: str, wanted: bool) -> dict[str, Any]:
        with _naming_hosts(None, self._settings):
            return keep(set_name, wanted, self._quick_stores(), self._claimant())

    def plan(self) -> dict[str, Any]:
        stores = {name: store.location for name, store in self._bare_stores.items()}
        return self._discovery(()).as_json() | {"stores": stores}

    def sets(
        self, set_name: str | None, volume: str | None, pattern: str | None, host: str | None = None
    ) -> dict[str, Any]:
        stores = self._quick_stores(host=host)
        with _naming_hosts(host, self._settings):
            if set_name is not None and volume is not None:
                return list_files(stores, set_name, volume, pattern)
            document = list_sets(stores, set_name, backup_host=_backup_host(host, self._settings))
        if document["sets"] or document["errors"] or document["warnings"]:
            return document
        nothing = none_of_host(host, _hosts(self._settings))
        if host is not None:
            raise nothing
        return document | {"hint": nothing.hint}

    def _quick_stores(self, *, host: str | None = None) -> Mapping[str, Store]:
        stores = self._prompt_stores if host is None else _stores_of(host, self._settings)
        return {name: RetryingStore(store, _WHILE_SOMEBODY_WAITS) for name, store in stores.items()}

    def guard(self, released: Collection[str]) -> Guarded:
        return guard(released, self._guard_tools())

    def dismiss_guard(self) -> None:
        dismiss(self._guard_tools())

    def guard_sign(self) -> object:
        return sign(self._engine, self._discovery.this_container())

    def _guard_tools(self) -> GuardTools:
        return GuardTools(
            engine=self._engine,
            look=self._discovery.look,
            selection=self._selection,
            own=self._discovery.this_container,
            state=partial(state_of, target=str(STATE)),
            journal=self._journal,
            emit=self._emit,
        )

    def recover(self) -> None:
        settle_owed(self._engine, self._discovery.this_container(), self._journal, self._emit)
        recover(self._journal, self._engine, self._emit)
        finish(self._engine, self._journal, self._emit)
        deadman.bury(self._engine, self._discovery.this_container(), str(STATE))
        clear(self._engine, state_of(self._discovery.this_container(), str(STATE)), self._emit, patience=_AT_START)
        try:
            self._sweep()
        except OwnedByAnotherSidecar as error:
            raise Busy(error.message, hint=error.hint, store=error.store) from error

    def _sweep(self) -> None:
        """Until each store has answered once: a store that is away must not hold up the start."""
        if self._unswept:
            us = self._claimant()
            self._unswept -= {
                name for name in self._unswept if sweep(self._prompt_stores[name], us, self._emit, _now())
            }

    def _claimant(self) -> Claimant:
        own, host = self._discovery.this_container(), self._settings.host or self._engine.identity().name
        return claimant(self._engine, own, host=host, target=str(STATE))

    def _dead_man(self, run: str, emit: Emit, *, lease: float | None = None) -> DeadMan:
        own = self._discovery.this_container()
        lease = self._settings.max_pause.total_seconds() if lease is None else lease
        return DeadMan(self._engine, own, run=run, lease=lease, state=str(STATE), emit=emit)

    def _stores(self, cancelled: threading.Event, *, host: str | None = None) -> Mapping[str, Store]:
        stores = self._bare_stores if host is None else _stores_of(host, self._settings)
        return _patient(stores, self._settings, on_retry=self._on_retry, cancelled=cancelled.is_set)

    def _on_retry(self, retry: Retry) -> None:
        self._emit(
            "store_retry",
            store=retry.store,
            operation=retry.operation,
            key=retry.key,
            attempt=retry.attempt,
            wait_ms=round(retry.wait * 1000),
            error=retry.error.message,
            hint=retry.error.hint,
        )


def _connect(settings: Settings) -> Engine:
    try:
        return connect({**os.environ, "DOCKER_HOST": settings.docker_host})
    except EngineUnreachable as error:
        socket = settings.docker_host.removeprefix(_UNIX)
        if settings.docker_host.startswith(_UNIX) and not Path(socket).exists():
            raise MountMissing(error.message, hint=error.hint) from error
        raise


def _store(name: str, settings: Settings, *, read_timeout: int = READ_TIMEOUT) -> Store:
    if name == "local":
        return LocalStore(settings.local_dir, prefix=settings.host or "")
    return S3Store(_s3_settings(settings, read_timeout))


def _s3_settings(settings: Settings, read_timeout: int) -> S3Settings:
    assert settings.bucket is not None, "config.load refuses `s3` without a bucket"
    return S3Settings(
        bucket=settings.bucket,
        prefix="/".join(filter(None, (settings.prefix, settings.host))),
        region=settings.region,
        endpoint=settings.endpoint,
        storage_class=settings.storage_class,
        sse=settings.sse,
        access_key=settings.access_key_id,
        secret_key=settings.secret_access_key,
        session_token=settings.session_token,
        connections=max(2 * _cores(), AT_ONCE) + 2,  # what is more would be opened anew each time, and complained of
        read_timeout=read_timeout,
    )


def _lasting_name(settings: Settings) -> str:
    """By what name `docker exec` finds this sidecar; the usual one where we are gone in a moment (`run --rm`)."""
    with suppress(SidecarError):
        own = _connect(settings).this_container()
        return own.name if own and not own.auto_remove else USUAL_NAME
    return USUAL_NAME


def _searched(name: str, settings: Settings, container: str) -> Searched:
    """A store without its prefix. Raises StoreError."""
    whole = RetryingStore(
        _store(name, replace(settings, prefix="", host=None), read_timeout=_SOON), _WHILE_SOMEBODY_WAITS
    )
    host = settings.host or ""
    if name == "local":
        return Searched(Place(name, whole.location, host=host, container=container), whole)
    place = Place(name, whole.location, settings.prefix or "", host, settings.endpoint, container)
    return Searched(place, whole, S3Bucket(_s3_settings(settings, _SOON), request=whole.request))


def _stores_of(host: str, settings: Settings) -> Mapping[str, Store]:
    """Where another host (BACKUP_HOST; empty: one without a name) keeps its sets, beside ours."""
    theirs = replace(settings, host=host or None)
    return {name: _store(name, theirs) for name in settings.stores}


def _patient(stores: Mapping[str, Store], settings: Settings, **options: Any) -> Mapping[str, Store]:
    """The stores with all the patience that the settings allow; `options` are RetryingStore's."""
    policy = RetryPolicy(attempts=settings.max_attempts)
    at_first = _BESIDE_ANOTHER if len(stores) > 1 else None
    return {name: RetryingStore(store, policy, at_first=at_first, **options) for name, store in stores.items()}


def _backup_host(asked: str | None, settings: Settings) -> str:
    """The name of the host whose sets are meant, as `--host` takes it."""
    return settings.host or "" if asked is None else asked


def _hosts(settings: Settings) -> list[str]:
    """Whose sets there are, wherever the settings lead but for BACKUP_HOST."""
    return hosts_with_sets(partial(_keys, name, settings) for name in settings.stores)


def _keys(name: str, settings: Settings) -> Iterator[str]:
    """The keys of a store below BACKUP_PREFIX, of a bucket a page at a time. Raises StoreError."""
    searched = _searched(name, settings, USUAL_NAME)
    above = f"{searched.place.prefix}/" if searched.place.prefix else ""
    for stored in searched.bucket.objects(above) if searched.bucket else searched.whole.list():
        yield stored.key.removeprefix(above)


@contextmanager
def _naming_hosts(asked: str | None, settings: Settings) -> Iterator[None]:
    """Who finds no set at all where others have some is told of those."""
    try:
        yield
    except NoSets as error:
        hosts = _hosts(settings)
        if asked is None and not hosts:
            raise
        raise none_of_host(asked, hosts) from error


def _wish(request: RestoreRequest) -> Wish:
    return Wish(request.set_name, request.volumes, request.into, request.pattern, request.safety, request.drivers)


def _impatient(name: str, settings: Settings) -> Store:
    """A store for one who waits at a terminal."""
    policy = RetryPolicy(attempts=2, total=20.0, base=0.25, cap=1.0)
    return RetryingStore(_store(name, settings, read_timeout=_SOON), policy)


def _boot() -> str:
    """What the kernel calls this boot; it is the host's, in every container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)))


def _now() -> datetime:
    return datetime.now(UTC)


def _clocks_ns() -> tuple[int, int]:
    """The wall clock, and one that nobody sets."""
    return time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
