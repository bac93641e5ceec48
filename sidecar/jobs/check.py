"""Would a backup work? Settings, engine, mounts, room in the spool, a probe of every store: all that is wrong, at once.

Everything is tried the way a run would use it, and nothing of a run is touched: no container, no set, no journal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from sidecar.archive.capture import measure
from sidecar.archive.spool import DISK_RESERVE, with_growth
from sidecar.config import Settings
from sidecar.engine.port import Engine
from sidecar.errors import (
    ChecksumMismatch,
    ContainerGone,
    EngineError,
    NotFound,
    ObjectMissing,
    SetInvalid,
    SidecarError,
    StoreDenied,
    StoreError,
)
from sidecar.jobs.catalogue import answered, read_document
from sidecar.jobs.discover import Discovery
from sidecar.jobs.ownership import Claimant, admitted, claimant
from sidecar.plan import VOLUMES_TARGET, Plan
from sidecar.stores.port import MEBIBYTE, Store

STATE_TARGET = "/state"
# S3 stamps whole seconds and refuses requests that are 15 minutes off; sets are named by our own clock.
_MOST_SKEW = timedelta(minutes=1)
_NEARLY_FULL = 0.8


class Verdict(StrEnum):
    """What one look found."""

    OK = "ok"
    WARNING = "warning"  # a backup works, and will be partial or disappoint
    ERROR = "error"  # a backup, or a part of it, fails


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. subject: `settings`, `engine`, `mounts`, `volumes`, `state`, or `store NAME`."""

    subject: str
    verdict: Verdict
    message: str
    hint: str = ""

    def as_json(self) -> dict[str, str]:
        """As `check --json` has it."""
        return {"check": self.subject, "result": self.verdict.value, "message": self.message, "hint": self.hint}


@dataclass(frozen=True, slots=True)
class Premises:
    """What a backup rests on; wiring makes it.

    engine, discovery, stores: as a run would have them, made when asked for, because that may fail. state: the state
    volume's directory. mountinfo: of this process. token: random text for the probes' names. now: aware time.
    """

    engine: Callable[[], Engine]
    discovery: Callable[[Engine], Discovery]
    stores: Mapping[str, Callable[[], Store]]
    state: Path
    mountinfo: Callable[[], str]
    token: str
    now: Callable[[], datetime]


def check(settings: Settings, premises: Premises) -> Iterator[Finding]:
    """Look at everything, one finding after the other as it is found. Raises nothing that has a name."""
    yield from _settings(settings)
    engine = identity = us = plan = None
    try:
        engine = premises.engine()
        identity = engine.identity()
        yield Finding("engine", Verdict.OK, f"Docker Engine {identity.version} on {identity.name} answers")
        yield from _permissions(engine, premises.token)
    except SidecarError as error:
        yield _wrong("engine", error)
    if engine and identity:
        try:
            discovery = premises.discovery(engine)
            us = claimant(engine, discovery.this_container(), host=identity.name, target=STATE_TARGET)
            yield from _mounts(engine, discovery, premises.mountinfo())
            plan = discovery(())
            yield from _volumes(plan)
        except SidecarError as error:
            yield _wrong("mounts", error)
    yield from _state(premises.state, premises.token)
    yield from _room(premises.state, settings.spool_max, plan)
    for name, make in premises.stores.items():
        try:
            store = make()
            yield from _store(f"store {name}", store, us, premises)
            if not store.off_host:
                yield from _room_for_a_set(f"store {name}", store)
        except SidecarError as error:
            yield _wrong(f"store {name}", error)


def _wrong(subject: str, error: SidecarError) -> Finding:
    return Finding(subject, Verdict.ERROR, error.message, error.hint)


# --- settings, engine, mounts ----------------------------------------------------------------------------------------


def _settings(settings: Settings) -> Iterator[Finding]:
    for warning in settings.warnings:
        yield Finding("settings", Verdict.WARNING, warning, "docs/SETTINGS.md says what it does")
    if settings.local_by_default:
        yield Finding(
            "settings",
            Verdict.WARNING,
            "S3_BACKUP_BUCKET is not set: sets are kept in a local directory only, and every run is partial",
            "set S3_BACKUP_BUCKET (is its name spelt right in .env?), or accept it with BACKUP_STORES=local",
        )
    elif not settings.warnings:
        yield Finding("settings", Verdict.OK, f"sets go to {' and '.join(settings.stores)}")


def _permissions(engine: Engine, token: str) -> Iterator[Finding]:
    """Whether a proxy before the socket lets through what a freeze needs: asked for a container that is not there."""
    nobody = f"check-{token}"
    refused = False
    for act in (engine.pause, engine.unpause):
        try:
            act(nobody)
        except ContainerGone:
            continue
        except EngineError as error:
            refused = True
            yield _wrong("engine", error)
    if not refused:
        yield Finding("engine", Verdict.OK, "containers may be paused and unpaused")


def _mounts(engine: Engine, discovery: Discovery, mountinfo: str) -> Iterator[Finding]:
    """Raises MountMissing, EngineError."""
    own = {mount.target: mount for mount in discovery.this_container().mounts}
    discovery.check_mounts()
    yield Finding("mounts", Verdict.OK, f"{VOLUMES_TARGET} and {STATE_TARGET} are mounted")
    if STATE_TARGET in own and own[STATE_TARGET].kind == "tmpfs":
        yield Finding(
            "mounts",
            Verdict.ERROR,
            f"{STATE_TARGET} lies in memory: after a reboot nobody would know what was frozen",
            "mount the volume backup-state there, as docker-compose.backup.yml does",
        )
    if VOLUMES_TARGET not in own:
        return
    if own[VOLUMES_TARGET].writable:
        yield Finding(
            "mounts",
            Verdict.WARNING,
            f"{VOLUMES_TARGET} is mounted writable, and a backup needs to read only",
            "mount it with `ro`, as docker-compose.backup.yml does",
        )
    late = [volume.name for volume in engine.volumes() if volume.driver != "local" or volume.options]
    if late and propagation(mountinfo, VOLUMES_TARGET) == "private":
        yield Finding(
            "mounts",
            Verdict.WARNING,
            f"what is mounted on the host later does not appear in {VOLUMES_TARGET}; that concerns {', '.join(late)}",
            "mount it with `rslave` (BACKUP_PROPAGATION), or each of these volumes at /volumes/NAME",
        )


def propagation(mountinfo: str, point: str) -> str:
    """`shared`, `slave` or `private`, or an empty text where nothing is mounted (proc(5): the optional fields)."""
    found = ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 6 and fields[4] == point:
            optional = fields[6 : fields.index("-")] if "-" in fields else fields[6:]
            kinds = {field.partition(":")[0] for field in optional}
            found = "slave" if "master" in kinds else "shared" if "shared" in kinds else "private"
    return found


def _volumes(plan: Plan) -> Iterator[Finding]:
    count = sum(len(group.volumes) for group in plan.groups)
    if count:
        message = f"{count} volume(s) in {len(plan.groups)} group(s) would be backed up; `plan` shows them"
        yield Finding("volumes", Verdict.OK, message)
    else:
        # A host without volumes is no mistake; one whose volumes cannot be seen is.
        verdict = Verdict.ERROR if any(skipped.failed for skipped in plan.skipped) else Verdict.WARNING
        yield Finding("volumes", verdict, "there is no volume to back up", "`plan` says why each is left out")
    for skipped in plan.skipped:
        if skipped.failed:
            yield Finding("volumes", Verdict.WARNING, f"volume {skipped.volume}: {skipped.why}", skipped.hint)
    for mount in plan.unprotected:
        message = f"{mount.container}:{mount.mount} is not backed up: {mount.why}"
        yield Finding("volumes", Verdict.WARNING, message, mount.hint)
    for warning in plan.warnings:
        yield Finding("volumes", Verdict.WARNING, warning)


# --- the state volume ------------------------------------------------------------------------------------------------


def _state(state: Path, token: str) -> Iterator[Finding]:
    """Whether a journal could be written: nothing is frozen without one."""
    probe = state / f"check-{token}"
    try:
        try:
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(token.encode())
                file.flush()
                os.fsync(file.fileno())
        finally:
            with suppress(FileNotFoundError):
                probe.unlink()
    except OSError as error:
        hint = "the state volume must be mounted, writable and not full"
        yield Finding("state", Verdict.ERROR, f"{state} cannot be written: {error.strerror}", hint)
        return
    yield Finding("state", Verdict.OK, f"{state} can be written")


def _room(state: Path, most: int | None, plan: Plan | None) -> Iterator[Finding]:
    """Whether the spool has room for the largest group, and for its growth while it is copied."""
    try:
        disk = os.statvfs(state)
    except OSError:  # it has been said that nothing can be written there
        return
    free = disk.f_bavail * disk.f_frsize - int(disk.f_blocks * disk.f_frsize * DISK_RESERVE) + _spooled(state)
    bounded = most is not None and most < free
    room = max(0, most if most is not None and bounded else free)
    needs: dict[str, int] = {}
    for group in plan.groups if plan else ():
        needs[group.name] = 0
        for planned in group.volumes:
            try:
                needs[group.name] += with_growth(measure(planned.path, time.time_ns())[2])
            except SidecarError as error:
                message = f"volume {planned.volume.name} will fail: {error.message}"
                yield Finding("volumes", Verdict.WARNING, message, error.hint)
    largest = max(needs, key=lambda name: needs[name], default="")
    need = needs.get(largest, 0)
    verdict = Verdict.ERROR if need > room else Verdict.WARNING if need > room * _NEARLY_FULL else Verdict.OK
    hint = "free space on the disk of the backup-state volume, or put that volume on a larger disk"
    if bounded:
        hint = "raise BACKUP_SPOOL_MAX, or split the group with the volume label backup.group"
    needed = f"; the largest group, {largest}, needs {_mebibytes(need)}" if largest else ""
    message = f"the spool has room for {_mebibytes(room)} (a tenth of the disk stays free){needed}"
    yield Finding("state", verdict, message, "" if verdict is Verdict.OK else hint)


def _spooled(state: Path) -> int:
    """What a run that goes on has in the spool now, and gives back."""
    taken = 0
    with suppress(OSError):
        for path in (state / "spool").iterdir():
            with suppress(OSError):
                taken += path.stat().st_blocks * 512
    return taken


def _mebibytes(count: int) -> str:
    return f"{count / MEBIBYTE:,.0f} MiB"


# --- stores ----------------------------------------------------------------------------------------------------------


def _store(subject: str, store: Store, us: Claimant | None, premises: Premises) -> Iterator[Finding]:
    """Whose prefix it is; then write, read, list and delete an object that no set could have. Raises StoreError."""
    if us:
        with suppress(ObjectMissing):  # nothing was ever stored here
            admitted(store, us)
    key = f"check-{premises.token}"
    data = f"A probe of the volume backup sidecar; it may be deleted. {premises.token}\n".encode()
    try:
        before = premises.now()
        store.put(key, data, content_type="text/plain")
        after = premises.now()
        steps = (_reads_back, _lists, _takes_large_objects)
        wrong = [error for step in steps if (error := _failed(step, store, key, data))]
        yield from _clock(subject, store, key, before, after)
    except BaseException:  # a put whose answer was lost, or Ctrl-C
        with suppress(StoreError):
            store.delete([key])
        raise
    wrong += filter(None, [_failed(_deletes, store, key, data)])
    yield from (_wrong(subject, error) for error in wrong)
    if not wrong:
        yield Finding(subject, Verdict.OK, f"{store.location}: a probe was written, read, listed and deleted")


def _room_for_a_set(subject: str, store: Store) -> Iterator[Finding]:
    """Whether a directory's disk has room for one more set like the last one of all volumes. Raises StoreError."""
    try:
        disk = os.statvfs(store.location)
    except OSError:  # it is not there before the first set is
        return
    with suppress(NotFound, SetInvalid):
        last = answered({store.name: store}).find("latest")
        need, free = sum(volume.archive.size for volume in last.volumes), disk.f_bavail * disk.f_frsize
        if need > free:
            yield Finding(
                subject,
                Verdict.WARNING,
                f"{store.location} has {_mebibytes(free)} free, and {last.set} has {_mebibytes(need)}",
                "make room on that disk, or keep sets on a larger one (BACKUP_LOCAL_DIR)",
            )


def _failed(step: Callable[[Store, str, bytes], None], store: Store, key: str, data: bytes) -> StoreError | None:
    """What a step of the probe raised: the others are tried all the same, because permissions are missing in lots."""
    try:
        step(store, key, data)
    except StoreError as error:
        return error
    return None


def _reads_back(store: Store, key: str, data: bytes) -> None:
    if read_document(store, key) != data:
        raise ChecksumMismatch(
            f"{store.location} gives back other bytes than {key} was written with",
            hint="see the store's own health",
            store=store.name,
        )


def _lists(store: Store, key: str, _: bytes) -> None:
    if key not in [stored.key for stored in store.list(key)]:
        raise StoreError(
            f"{store.location} does not list {key}, which it holds", hint="see the store's own health", store=store.name
        )


def _takes_large_objects(store: Store, key: str, _: bytes) -> None:
    """An archive goes up in parts: that needs permissions, and a storage class, of its own."""
    store.begin(key).abort()


def _deletes(store: Store, key: str, _: bytes) -> None:
    store.delete([key])
    # S3 denies the question to a key that may not list, which has been said.
    with suppress(ObjectMissing, StoreDenied):
        store.head(key)
        raise StoreError(f"{store.location} still has {key}, which was deleted", hint="delete it", store=store.name)


def _clock(subject: str, store: Store, key: str, before: datetime, after: datetime) -> Iterator[Finding]:
    """Compare the store's clock with ours, where the object tells it."""
    try:
        stamped = store.head(key).modified
    except StoreError:
        return
    if stamped is None:
        return
    skew = stamped - after if stamped > after else before - stamped if stamped < before else timedelta()
    if skew > _MOST_SKEW:
        way = "ahead of" if stamped > after else "behind"
        yield Finding(
            subject,
            Verdict.WARNING,
            f"the clock of {store.location} is {skew.total_seconds():.0f} s {way} this machine's",
            "set this machine's clock (NTP): sets are named by it, and S3 refuses requests that are 15 minutes off",
        )
