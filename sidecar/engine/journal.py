"""The freeze journal: which containers we are about to freeze, on disk before the first of them is.

One JSON document on the state volume:
`{"format": 1, "run", "group", "frozen": [{"id", "name", "action": "pause"|"stop", "started_at", "pid"}], ...}`.
Whatever else a killed run owes (hooks.py) stands beside `frozen`, under a key of its own. Keys that this version does
not know are kept.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sidecar.durable import replace_file, sync_directory
from sidecar.errors import JournalUnreadable, JournalUnwritable
from sidecar.model import Quiesce

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Intent:
    """One container as it was just before we froze it; started_at is empty where a damaged journal does not tell it."""

    id: str
    name: str
    action: Quiesce
    started_at: str
    pid: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What the journal holds. others: what is owed besides, by key, known to this version or not."""

    run: str
    group: str
    frozen: tuple[Intent, ...]
    others: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The journal at `path`. Its directory must exist; it may be used from several threads, by one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.Lock()

    def read(self) -> Entry | None:
        """What is owed, or None when nothing is. Raises JournalUnreadable."""
        raw = self._bytes()
        if raw is None:
            return None
        try:
            document = json.loads(raw)
            if document["format"] != FORMAT:
                raise JournalUnreadable(
                    f"the freeze journal {self.path} has format {document['format']}, not {FORMAT}",
                    hint="another version wrote it: see `docker ps --filter status=paused`, then remove the file",
                )
            frozen = tuple(map(_intent, document["frozen"]))
            others = {key: value for key, value in document.items() if key not in ("format", "run", "group", "frozen")}
            return Entry(str(document["run"]), str(document["group"]), frozen, others)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise JournalUnreadable(
                f"the freeze journal {self.path} is damaged: {error!r}",
                hint="see `docker ps --filter status=paused`, thaw with `docker unpause NAME`, then remove the file",
            ) from error

    def salvage(self) -> tuple[Intent, ...]:
        """The containers that a journal which `read` refuses still names, as far as they can be made out."""
        raw = self._bytes() or b""
        intents: dict[str, Intent] = {}
        for piece in re.findall(rb"\{[^{}]*\}", raw):
            with suppress(ValueError, KeyError, TypeError):
                intent = _intent(json.loads(piece))
                intents[intent.id] = intent
        for name in re.findall(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", raw):
            identifier = name.decode("ascii")
            intents.setdefault(identifier, Intent(identifier, "", Quiesce.PAUSE, "", 0))
        return tuple(intents.values())

    def begin(self, *, run: str, group: str, frozen: Sequence[Intent]) -> None:
        """Put on disk what is about to be frozen. Raises JournalUnwritable, JournalUnreadable."""
        with self._turn:
            before = self.read()
            self._write(Entry(run, group, tuple(frozen), before.others if before else {}))

    def clear(self) -> None:
        """All is thawed: nothing frozen is owed any more. Raises JournalUnwritable, JournalUnreadable."""
        with self._turn:
            entry = self.read()
            if entry is None:
                return
            if entry.others:
                self._write(Entry(entry.run, entry.group, (), entry.others))
                return
            self._remove()

    def owe(self, key: str, what: Any) -> None:
        """Put on disk, under a key of its own, what else is owed until `settle`.

        It stays through `begin` and `clear`, which are about what is frozen. Raises JournalUnwritable,
        JournalUnreadable.
        """
        with self._turn:
            entry = self.read() or Entry("", "", ())
            self._write(replace(entry, others={**entry.others, key: what}))

    def settle(self, key: str) -> None:
        """What stands under the key is owed no more. Raises JournalUnwritable, JournalUnreadable."""
        with self._turn:
            entry = self.read()
            if entry is None or key not in entry.others:
                return
            others = {name: what for name, what in entry.others.items() if name != key}
            if entry.frozen or others:
                self._write(replace(entry, others=others))
            else:
                self._remove()

    def set_aside(self) -> Path:
        """Rename a damaged journal, so that a new one can be written; its new path. Raises JournalUnwritable."""
        aside = self.path.with_name(self.path.name + ".damaged")
        try:
            self.path.rename(aside)
            sync_directory(self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        return aside

    def _bytes(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalUnreadable(
                f"the freeze journal {self.path} cannot be read: {error}", hint="see the state volume's disk"
            ) from error

    def _keep(self, entry: Entry) -> None:
        if entry.frozen or entry.others:
            self._write(entry)
            return
        try:
            self.path.unlink()
            sync_directory(self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, entry: Entry) -> None:
        document = {
            "format": FORMAT,
            "run": entry.run,
            "group": entry.group,
            "frozen": [asdict(intent) for intent in entry.frozen],
            **entry.others,
        }
        try:
            replace_file(self.path, json.dumps(document).encode())
        except OSError as error:
            raise self._unwritable(error) from error

    def _remove(self) -> None:
        try:
            self.path.unlink()
            sync_directory(self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> JournalUnwritable:
        return JournalUnwritable(
            f"the freeze journal {self.path} cannot be written: {error}",
            hint="the state volume must be mounted, writable and not full",
        )


def _intent(facts: Mapping[str, Any]) -> Intent:
    return Intent(
        id=str(facts["id"]),
        name=str(facts["name"]),
        action=Quiesce(facts["action"]),
        started_at=str(facts["started_at"]),
        pid=int(facts["pid"]),
    )
