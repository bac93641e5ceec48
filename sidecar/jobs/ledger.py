"""What a run has found out so far: every verdict is noted once, for the log, for the report and for the manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sidecar import sets
from sidecar.errors import EarlierDamaged, HookFailed, Interrupted, SidecarError
from sidecar.events import Emit
from sidecar.jobs.volume import Archived
from sidecar.model import Quiesce, Volume
from sidecar.plan import Group, Plan
from sidecar.report import GroupReport, Outcome, Reason, RunReport, StoreReport, VolumeReport, rfc3339, worst

# Reasons that hold in every run until the user changes something.
_STANDING = ("unprotected_mount", "not_off_host", "no_volumes")
_LEVELS = {Outcome.GOOD: logging.INFO, Outcome.PARTIAL: logging.WARNING}


class Ledger:
    """Notes verdicts of one run and emits their events. run: its identifier; started: aware time."""

    def __init__(
        self, run: str, started: datetime, emit: Emit, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.run = run
        self.started = started
        self.set = ""
        self.volumes: list[VolumeReport] = []
        self.groups: list[GroupReport] = []
        self.set_volumes: list[sets.SetVolume] = []
        self.set_groups: list[sets.SetGroup] = []
        self.reasons: list[Reason] = []
        self.warnings: list[str] = []
        self._plan = Plan((), (), (), ())
        self._flawed: set[str] = set()
        self._paused_in_vain: dict[str, float] = {}  # group -> milliseconds of a first attempt
        self._interrupted = False
        self._emit = emit
        self._monotonic = monotonic
        self._began = monotonic()

    def event(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        """Emit an event of this run."""
        names = {"run": self.run} | ({"set": self.set} if self.set else {})
        self._emit(name, level=level, **(names | fields))

    def warn(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        """Emit an event of this run, and tell the report's reader of it, though the run may be good."""
        self.event(name, level=level, **fields)
        self.warnings.append("; ".join(filter(None, [fields.get("error"), fields.get("hint")])) or name)

    def because(self, code: str, message: str, hint: str, volume: str | None = None) -> None:
        """Note why the run cannot be good."""
        self.reasons.append(Reason(code, message, hint, volume))

    def planned(self, plan: Plan) -> None:
        """Note what the plan leaves out."""
        self._plan = plan
        for skipped in plan.skipped:
            if not skipped.failed:
                continue
            self.event("volume_skipped", volume=skipped.volume, code=skipped.code, error=skipped.why, hint=skipped.hint)
            self.because(skipped.code, f"volume {skipped.volume}: {skipped.why}", skipped.hint, skipped.volume)
            self.volumes.append(VolumeReport(skipped.volume, Outcome.FAILED, error=skipped.why, hint=skipped.hint))
        for mount in plan.unprotected:
            message = f"{mount.container}:{mount.mount} is not backed up: {mount.why}"
            self.event(
                "unprotected_mount", container=mount.container, mount=mount.mount, error=mount.why, hint=mount.hint
            )
            self.because("unprotected_mount", message, mount.hint)
        if not plan.groups:
            self.because("no_volumes", "there is no volume to back up", "`plan` says why each is left out")

    def not_off_host(self) -> None:
        """Note that nobody said where to keep sets."""
        message = "nothing is off this host: S3_BACKUP_BUCKET is not set, so sets are kept in a local directory only"
        hint = "set S3_BACKUP_BUCKET (is its name spelt right in .env?), or accept it with BACKUP_STORES=local"
        self.event("not_off_host", error=message, hint=hint)
        self.because("not_off_host", message, hint)

    def group_captured(self, group: Group, frozen_at: datetime, paused_ms: float) -> None:
        """Note a frozen instant that may be committed."""
        names = tuple(c.container.name for c in group.containers)
        failed = {volume.volume for volume in self.volumes if volume.outcome is Outcome.FAILED}
        whole = not any(planned.volume.name in failed for planned in group.volumes)
        outcome = Outcome.GOOD if whole else Outcome.PARTIAL
        paused_ms += self._paused_in_vain.get(group.name, 0.0)
        self.groups.append(GroupReport(group.name, names, paused_ms, outcome, _unfrozen(group)))
        self.set_groups.append(sets.SetGroup(group.name, rfc3339(frozen_at), round(paused_ms, 1), names))

    def group_flawed(self, group: Group, error: SidecarError) -> None:
        """Note what makes a group less than good, and does not keep it out of the set."""
        self._flawed.add(group.name)
        self.reasons.append(Reason.of(error))

    def group_dropped(self, group: Group, error: SidecarError, paused_ms: float) -> None:
        """Note that nothing of a group will be in the set, whatever it had come to, and how long it was frozen."""
        names = tuple(c.container.name for c in group.containers)
        outcome = Outcome.INTERRUPTED if isinstance(error, Interrupted) else Outcome.FAILED
        paused_ms += self._paused_in_vain.get(group.name, 0.0)
        self.groups = [g for g in self.groups if g.group != group.name]
        self.groups.append(GroupReport(group.name, names, paused_ms, outcome, _unfrozen(group)))

    def group_failed(self, group: Group, error: SidecarError, paused_ms: float) -> None:
        """Note that a whole group fails; volumes that failed before keep their own reason."""
        self.group_dropped(group, error, paused_ms)
        told = {volume.volume for volume in self.volumes}
        for planned in group.volumes:
            if planned.volume.name not in told:
                self._volume_failed(planned.volume.name, group.name, error)
        self.reasons.append(Reason.of(error))

    def group_begun_anew(self, group: Group, error: SidecarError, paused_ms: float) -> None:
        """Forget what a group had come to, but for how long it was frozen: it is backed up once more."""
        self._paused_in_vain[group.name] = paused_ms
        tell = self.warn if isinstance(error, EarlierDamaged) else self.event  # what was wrong then may be so still
        tell(
            "group_begun_anew",
            group=group.name,
            paused_ms=round(paused_ms, 1),
            error=error.message,
            hint=error.hint,
        )
        names = {planned.volume.name for planned in group.volumes}
        self.volumes = [volume for volume in self.volumes if volume.volume not in names]
        self.set_volumes = [volume for volume in self.set_volumes if volume.volume not in names]
        self.groups = [each for each in self.groups if each.group != group.name]
        self.set_groups = [each for each in self.set_groups if each.group != group.name]
        self.reasons = [reason for reason in self.reasons if reason.volume not in names]

    def volume_failed(self, volume: str, group: str, error: SidecarError) -> None:
        """Note that one volume fails."""
        self._volume_failed(volume, group, error)
        self.reasons.append(Reason.of(error, volume=volume))

    def volume_archived(self, volume: Volume, group: str, archived: Archived) -> None:
        """Note a finished archive."""
        captured, summary = archived.captured, archived.summary
        changed = tuple(path.decode(errors="backslashreplace") or "." for path in captured.changed)
        for path in changed:
            self.event("file_changed", volume=volume.name, group=group, path=path)
        if changed:
            self.because(
                "file_changed",
                f"{len(changed)} file(s) of volume {volume.name} changed while it was frozen, {changed[0]!r} first",
                "something that was not frozen writes there: `plan` shows who is quiesced and how",
                volume.name,
            )
        if archived.differing:
            self._content_differs(volume, archived.differing)
        outcome = Outcome.PARTIAL if changed else Outcome.GOOD
        uploaded = summary.size - archived.bytes_reused
        self.volumes.append(
            VolumeReport(
                volume.name,
                outcome,
                files=summary.files,
                bytes_read=archived.bytes_read,
                archive_bytes=summary.size,
                bytes_uploaded=uploaded,
                bytes_reused=archived.bytes_reused,
                changed_files=changed,
                group=group,
            )
        )
        self.set_volumes.append(
            sets.SetVolume(
                volume=volume.name,
                group=group,
                outcome=outcome,
                archive=sets.StoredObject(
                    sets.archive_key(self.set, volume.name), summary.size, f"{summary.crc32:08x}"
                ),
                index=archived.index,
                raw_bytes=summary.raw_size,
                files=summary.files,
                driver=volume.driver,
                options=sets.without_secrets(volume.options),
                labels=dict(volume.labels),
                mountpoint=volume.mountpoint,
                changed_files=changed,
                read_at=archived.earlier.volume.read_at if archived.earlier else rfc3339(self.started),
            )
        )
        self.event(
            "volume_finished",
            level=_LEVELS[outcome],
            volume=volume.name,
            group=group,
            outcome=outcome.value,
            files=summary.files,
            bytes_read=archived.bytes_read,
            bytes_archive=summary.size,
            bytes_uploaded=uploaded,
            bytes_reused=archived.bytes_reused,
            bytes_cloned=archived.bytes_cloned,
        )

    def interrupted(self, error: SidecarError) -> None:
        """Note that the run was told to stop."""
        self._interrupted = True
        self.reasons.append(Reason.of(error))

    def failed(self, error: SidecarError) -> None:
        """Note a fault that ends the run."""
        self.reasons.append(Reason.of(error))

    def missing(self) -> tuple[sets.MissingVolume, ...]:
        """The volumes that should be in the set and are not."""
        failed = [volume for volume in self.volumes if volume.outcome is Outcome.FAILED]
        return tuple(sets.MissingVolume(each.volume, each.error or "", each.hint or "") for each in failed)

    def outcome_of_volumes(self) -> Outcome:
        """What the manifest says: whether everything that should be in the set is, whole."""
        verdict = worst(volume.outcome for volume in self.volumes)
        return Outcome.PARTIAL if verdict is Outcome.GOOD and self.reasons else verdict

    def report(self, stores: Mapping[str, StoreReport], *, off_host: bool, warnings: Sequence[str]) -> RunReport:
        """The run's report; emits `run_finished` or `run_failed`."""
        for name, store in stores.items():
            if store.error is not None:
                self.reasons.append(
                    Reason("store_failed", f"store {name}: {store.error}", store.hint or "", None, name)
                )
        # What decided comes first: who reads one line only should read that one.
        self.reasons.sort(key=lambda reason: (reason.code in _STANDING, reason.code == HookFailed.code))
        self.groups = [
            replace(group, outcome=worst([group.outcome, Outcome.PARTIAL])) if group.group in self._flawed else group
            for group in self.groups
        ]
        committed = any(store.outcome is Outcome.GOOD for store in stores.values())
        outcome = self._outcome(committed)
        report = RunReport(
            run=self.run,
            set=self.set if committed else None,
            outcome=outcome,
            started=self.started,
            duration_ms=(self._monotonic() - self._began) * 1000,
            paused_ms=max((group.paused_ms for group in self.groups), default=0.0),
            off_host=off_host,
            reasons=tuple(self.reasons),
            unprotected=self._plan.unprotected,
            stores=stores,
            groups=tuple(self.groups),
            volumes=tuple(self.volumes),
            warnings=(*warnings, *self._plan.warnings, *self.warnings),
        )
        first = self.reasons[0] if self.reasons else None
        self.event(
            "run_failed" if outcome in (Outcome.FAILED, Outcome.INTERRUPTED) else "run_finished",
            level=_LEVELS.get(outcome, logging.ERROR),
            outcome=outcome.value,
            duration_ms=round(report.duration_ms, 1),
            paused_ms=round(report.paused_ms, 1),
            bytes_uploaded=sum(store.bytes_uploaded for store in stores.values()),
            reasons=[reason.code for reason in self.reasons],
            error=first.message if first else None,
            hint=first.hint if first else None,
        )
        return report

    def _content_differs(self, volume: Volume, differing: Sequence[bytes]) -> None:
        """Files that have changed under a signature that has not: what unchanged files are known by does not hold."""
        for path in differing:
            self.event("file_differs", volume=volume.name, path=path.decode(errors="backslashreplace"))
        first = differing[0].decode(errors="backslashreplace")
        self.because(
            "file_differs",
            f"{len(differing)} file(s) of volume {volume.name} have the size and times that they had in the set "
            f"before, and other contents, {first!r} first; this set has them as they are now",
            "the power may have failed while it was written, or the disk is failing; sets since then may lack a change",
            volume.name,
        )

    def _volume_failed(self, volume: str, group: str, error: SidecarError) -> None:
        self.volumes.append(VolumeReport(volume, Outcome.FAILED, error=error.message, hint=error.hint, group=group))
        self.event(
            "volume_finished",
            level=logging.ERROR,
            volume=volume,
            group=group,
            outcome=Outcome.FAILED.value,
            error=error.message,
            hint=error.hint,
        )

    def _outcome(self, committed: bool) -> Outcome:
        if self._interrupted:
            return Outcome.INTERRUPTED
        nothing_to_do = [reason.code for reason in self.reasons] == ["no_volumes"]
        if not committed and not nothing_to_do:
            return Outcome.FAILED
        verdict = worst(volume.outcome for volume in self.volumes)
        return Outcome.PARTIAL if self.reasons and verdict is Outcome.GOOD else verdict


def _unfrozen(group: Group) -> tuple[str, ...]:
    return tuple(planned.container.name for planned in group.containers if planned.quiesce is Quiesce.NONE)
