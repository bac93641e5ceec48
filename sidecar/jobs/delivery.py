"""A volume's archive on its way from a store into a volume: proven block by block, to the helper that unpacks it.

A helper is a container of our own image that has one volume and nothing else (`archive/unpack.py` is what it does). It
says one word after another; which they are is told there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from sidecar.archive.reader import Extract
from sidecar.archive.unpack import GO, LEAVE, Word
from sidecar.engine.port import Engine, Helper
from sidecar.errors import (
    ArchiveDamaged,
    EngineError,
    HelperEnded,
    NoRoom,
    RestoreFailed,
    SetInvalid,
    SidecarError,
    StoreError,
)
from sidecar.events import Follow, Progress
from sidecar.jobs.download import find_archive, tar_stream
from sidecar.jobs.passage import passage
from sidecar.model import Container
from sidecar.sets import SetVolume
from sidecar.stores.port import Store

TARGET = "/volume"

# Seconds. A disk takes its time to write everything down, or to delete what was there.
PATIENCE = 3600.0
LISTEN = 0.5
# How long a helper that is told to give up may take while the daemon has ten seconds to live.
FAREWELL = 4.0
_LAST_WORDS = (Word.AS_IT_WAS, Word.EXCHANGED, Word.CLEAN)
_SEE_DISK = "see the disk of the volume"


@dataclass(frozen=True, slots=True)
class Delivered:
    """What lies beside a volume's content. helper: waits for what becomes of it; store: where it came from."""

    extract: Extract
    helper: Helper
    store: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is brought: a volume of a set, from the first of `holders` (stores) that has it whole, into `target`.

    choose: says of an index (the whole object) what to take; merge: that may be less than all. new: `target` was made a
    moment ago. reserve: the share of
    the volume's disk that must stay free; besides: bytes of it that are to be brought later. called: the volume's name
    for people, where that is not `target`.
    """

    stored: SetVolume
    target: str
    holders: Sequence[str]
    choose: Callable[[bytes], Extract]
    merge: bool = False
    new: bool = False
    reserve: float = 0.0
    besides: int = 0
    called: str = ""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.called or self.target


class Delivery:
    """The helpers of one job, and what they have said.

    own: our own container. stores: by name. threads: downloads at once. check: raises Interrupted when the job is told
    to stop. passed_over: told of a store that has not got an archive whole, while another is still to be asked.
    """

    def __init__(
        self,
        engine: Engine,
        own: Callable[[], Container],
        stores: Mapping[str, Store],
        *,
        threads: int,
        follow: Follow,
        check: Callable[[], None],
        passed_over: Callable[[str, SidecarError], None],
    ) -> None:
        self._engine = engine
        self._own = own
        self._stores = stores
        self._threads = threads
        self._follow = follow
        self._check = check
        self._passed_over = passed_over
        self._waiting: set[int] = set()

    @property
    def is_waiting(self) -> bool:
        """Whether a helper has not said its last word: something may be left in its volume."""
        return bool(self._waiting)

    def settled(self, helper: Helper | None = None) -> None:
        """What a helper may have left, or any of them, is put right by others."""
        if helper is None:
            self._waiting.clear()
        else:
            self._waiting.discard(id(helper))

    def bring(self, wanted: Wanted, undo: ExitStack) -> Delivered:
        """Unpack the volume beside what `target` holds; undone with `undo` unless it is exchanged.

        Raises the last store's error when none has it whole, and NoRoom, RestoreFailed, EngineError, Interrupted.
        """
        for name in wanted.holders:
            with ExitStack() as attempt:
                try:
                    archive = find_archive(self._stores[name], wanted.stored, wanted.choose)
                    with tar_stream(archive, threads=self._threads) as stream:  # begins to come while the helper starts
                        helper = self._helper(wanted, archive.extract, attempt)
                        self._send(wanted, stream, archive.extract.length, helper)
                except (StoreError, SetInvalid, ArchiveDamaged) as error:
                    error.store = error.store or name
                    if name == wanted.holders[-1]:
                        raise
                    self._passed_over(name, error)
                    continue
                undo.enter_context(attempt.pop_all())
                return Delivered(archive.extract, helper, name)
        raise AssertionError("a set lies in a store")

    def exchange(self, helper: Helper, volume: str) -> Word:
        """Have old and new change places; it cannot be told to stop. Raises as `word`."""
        helper.send(GO)
        return self.word(helper, volume, interruptible=False)

    def word(self, helper: Helper, volume: str, *, interruptible: bool = True) -> Word:
        """The next thing that it says. Raises NoRoom, RestoreFailed, EngineError; Interrupted when told to stop."""
        until = time.monotonic() + PATIENCE
        while (line := helper.hear(LISTEN)) is None:
            if interruptible:
                self._check()
            if time.monotonic() >= until:
                raise _silent(volume)
        return self._heard(line, helper, volume)

    def _helper(self, wanted: Wanted, extract: Extract, undo: ExitStack) -> Helper:
        """A container that has the volume, and says that there is room."""
        command = ["unpack", f"--root={TARGET}", f"--length={extract.length}", f"--files={extract.files}"]
        command += ["--merge"] if wanted.merge else []
        command += ["--plain"] if extract.plain else []
        command += ["--new"] if wanted.new else []
        command += [f"--reserve={wanted.reserve}"] if wanted.reserve else []
        command += [f"--besides={wanted.besides}"] if wanted.besides else []
        helper = undo.enter_context(self._engine.help_with(self._own(), wanted.target, command=command, target=TARGET))
        self._waiting.add(id(helper))
        undo.callback(self._dismiss, helper, wanted.name)
        self.word(helper, wanted.name)
        return helper

    def _send(self, wanted: Wanted, stream: Iterable[bytes], total: int, helper: Helper) -> None:
        done = 0
        with passage(wanted.target, helper, self._check) as send:
            for raw in stream:
                self._check()
                try:
                    send(raw)
                except HelperEnded:
                    self.word(helper, wanted.name)  # raises its own reason, where it gave one
                    raise
                done += len(raw)
                self._follow(Progress("restoring", wanted.name, done, total))
        self.word(helper, wanted.name)

    def _heard(self, line: bytes, helper: Helper, volume: str) -> Word:
        try:
            word = _understood(line, volume)
        except (NoRoom, RestoreFailed):  # it has cleaned up before it said so
            self._waiting.discard(id(helper))
            raise
        if word in _LAST_WORDS:
            self._waiting.discard(id(helper))
        return word

    def _dismiss(self, helper: Helper, volume: str) -> None:
        """Let it clean up, and go. One that dies, or takes longer than a moment, leaves the volume to be settled."""
        with suppress(EngineError):
            if id(helper) in self._waiting:
                helper.send(LEAVE)
        helper.end()
        until = time.monotonic() + FAREWELL
        with suppress(SidecarError):
            while id(helper) in self._waiting and time.monotonic() < until:
                if line := helper.hear(LISTEN):
                    self._heard(line, helper, volume)


def settle(engine: Engine, own: Container, volume: str, *, go: bool) -> Word:
    """Have a helper take up what another may have left in a volume; go: it was to be exchanged.

    Raises EngineError, RestoreFailed.
    """
    command = ["settle", f"--root={TARGET}", *(["--go"] if go else [])]
    with engine.help_with(own, volume, command=command, target=TARGET) as helper:
        until = time.monotonic() + PATIENCE
        while (line := helper.hear(LISTEN)) is None:
            if time.monotonic() >= until:
                raise _silent(volume)
        return _understood(line, volume)


def _silent(volume: str) -> EngineError:
    return EngineError(f"the helper of volume {volume} has said nothing for {PATIENCE:g} s", hint=_SEE_DISK)


def _understood(line: bytes, volume: str) -> Word:
    """What a helper said. Raises NoRoom, RestoreFailed for what it says has failed, EngineError for anything else."""
    try:
        said = json.loads(line)
        word = Word(said["word"])
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"the helper of volume {volume} said what no helper of ours says: {line[:200]!r}",
            hint="is the image whole? build it again",
        ) from error
    if word is Word.FAILED:
        kind = NoRoom if said.get("code") == NoRoom.code else RestoreFailed
        raise kind(f"volume {volume}: {said.get('error')}", hint=str(said.get("hint", "")), volume=volume)
    return word
