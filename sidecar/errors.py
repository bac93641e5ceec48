"""Every failure that a user may meet: what failed, on what, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class SidecarError(Exception):
    """A failure in words.

    message: what failed and on what, one sentence without a full stop.
    hint: the operator's next step, one sentence; empty only where there is none.
    volume, store: names the failure concerns, where it concerns one.
    `code` is the stable word that scripts match on (`reasons[].code` in JSON).
    """

    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str = "", volume: str | None = None, store: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.volume = volume
        self.store = store


class ConfigInvalid(SidecarError):
    """Settings that cannot be used; `problems` holds one sentence for each mistake found."""

    code = "config_invalid"

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = tuple(problems)


class MountMissing(SidecarError):
    """Something that the container must have mounted is not there (socket, /volumes, /state)."""

    code = "mount_missing"


class WrongUsage(SidecarError):
    """What was asked for makes no sense, however things stand."""

    code = "usage"


class NotFound(SidecarError):
    """No such set, volume or container."""

    code = "not_found"


class NoSets(NotFound):
    """Where sets were looked for there is none at all."""


class Busy(SidecarError):
    """Another job holds the daemon."""

    code = "busy"


class Interrupted(SidecarError):
    """The run was told to stop: a signal, or `cancel`."""

    code = "interrupted"


# --- the Docker Engine -----------------------------------------------------------------------------------------------


class EngineError(SidecarError):
    """The Docker Engine refused or failed a request."""

    code = "engine_error"


class EngineUnreachable(EngineError):
    """Nothing answers on the Docker socket."""

    code = "engine_unreachable"


class EngineSilent(EngineUnreachable):
    """The engine took a request and did not answer in time."""


class EngineDenied(EngineError):
    """The socket (or a proxy before it) does not permit the request."""

    code = "engine_denied"


class ContainerGone(EngineError):
    """The container does not exist any more."""

    code = "container_gone"


class HelperEnded(EngineError):
    """A helper container has ended before it was told to."""

    code = "helper_ended"


class FreezeFailed(EngineError):
    """A dependent could not be frozen."""

    code = "freeze_failed"


class AlreadyPaused(FreezeFailed):
    """Someone else has paused it: not ours to freeze, and not ours to thaw."""


class NotRunning(FreezeFailed):
    """It has no processes that could be frozen."""


class FreezeBroken(EngineError):
    """A dependent did not stay frozen, or a new writer appeared: what was read is not one instant."""

    code = "freeze_broken"


class PauseBudgetSpent(EngineError):
    """BACKUP_MAX_PAUSE ran out before the volume was read; everything is thawed."""

    code = "pause_budget_spent"


class ThawFailed(EngineError):
    """A container that we froze could not be thawed."""

    code = "thaw_failed"


class HookFailed(SidecarError):
    """A command that a container's labels have run around the freeze failed, or did not end in time."""

    code = "hook_failed"


class JournalUnreadable(SidecarError):
    """The freeze journal on the state volume cannot be understood."""

    code = "journal_unreadable"


class JournalUnwritable(SidecarError):
    """The state volume does not take the freeze journal; nothing is frozen without it."""

    code = "journal_unwritable"


# --- volumes ---------------------------------------------------------------------------------------------------------


class VolumeUnavailable(SidecarError):
    """The volume's data cannot be seen from here (not mounted, moved data root)."""

    code = "volume_unavailable"


class VolumeUnreadable(SidecarError):
    """Reading a file of the volume failed."""

    code = "volume_unreadable"


class SpoolFull(SidecarError):
    """The spool's bound, or the disk's reserve, does not hold the group; `needed` is in bytes."""

    code = "spool_full"

    def __init__(self, message: str, *, needed: int, hint: str = "", volume: str | None = None) -> None:
        super().__init__(message, hint=hint, volume=volume)
        self.needed = needed


class NoRoom(SidecarError):
    """The disk of a volume does not hold what is to be restored beside what is there."""

    code = "no_room"


class RestoreRefused(SidecarError):
    """A restore cannot be begun as things stand: who uses the volume must not be stopped, or the volume is special."""

    code = "restore_refused"


class RestoreFailed(SidecarError):
    """A restore did not come to its end; the message says what state the volume is in."""

    code = "restore_failed"


class DrillFailed(SidecarError):
    """A service did not come up on restored data, in a drill."""

    code = "drill_failed"


# --- stores ----------------------------------------------------------------------------------------------------------


class StoreError(SidecarError):
    """A store refused or failed a request. `retryable`: the same request may succeed later."""

    code = "store_error"
    retryable: ClassVar[bool] = False


class StoreUnreachable(StoreError):
    """No connection, a timeout, a 5xx or a throttle: worth trying again."""

    code = "store_unreachable"
    retryable = True


class StoreDenied(StoreError):
    """Credentials are wrong or lack a permission."""

    code = "store_denied"


class BucketMissing(StoreError):
    """The bucket or the directory does not exist."""

    code = "bucket_missing"


class ObjectMissing(StoreError):
    """No object (or upload) under this key."""

    code = "object_missing"


class ObjectExists(StoreError):
    """`put(if_absent=True)` found an object that is not ours."""

    code = "object_exists"


class ObjectChanged(StoreError):
    """The source of a copy is not what it was (if-match failed)."""

    code = "object_changed"


class ChecksumMismatch(StoreError):
    """The store holds other bytes than we sent."""

    code = "checksum_mismatch"


class ReuseFailed(SidecarError):
    """What an earlier archive was to give the next one is not there, or not what it was."""

    code = "reuse_failed"


class EarlierDamaged(ReuseFailed):
    """That earlier archive is not what was written, or gone."""


class StoreFull(StoreError):
    """No space left in the store."""

    code = "store_full"


class OwnedByAnotherHost(StoreError):
    """The prefix carries another engine's owner.json."""

    code = "owned_by_another_host"


class OwnedByAnotherSidecar(StoreError):
    """The prefix belongs to another sidecar, which runs on this engine at this moment."""

    code = "owned_by_another_sidecar"


class ArchiveDamaged(SidecarError):
    """An archive holds other bytes than its index vouches for."""

    code = "archive_damaged"


class SetInvalid(SidecarError):
    """A document of a set (manifest, index) is not in the format."""

    code = "set_invalid"


# What is wrong with a set itself. Any other failure is that of whoever was asked, and says nothing of the set.
DAMAGE = (ArchiveDamaged, ChecksumMismatch, ObjectMissing, SetInvalid)
