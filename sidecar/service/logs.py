"""The log: one JSON line on stdout for each event, with no secret in it, and nothing else on stdout.

docs/LOGS.md is its specification. Everything that a library logs, and every exception that nobody caught, becomes an
event as well, so that whoever reads the stream needs one parser.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import queue
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

from pythonjsonlogger.json import JsonFormatter

from sidecar.events import EVENTS
from sidecar.report import rfc3339

REDACTED = "[redacted]"

# Docker's json-file driver cuts a longer line in two, and neither half is JSON then.
_LONGEST_LINE = 16_000
# (characters of a text, items of a list) that a line may hold, tried in turn until the line fits.
_LIMITS = ((6_000, 100), (1_000, 20), (200, 5), (60, 1))
# How long an emitter waits for its line to be out. A healthy stdout takes microseconds, so a line is out before what
# comes next; a log driver that blocks (its network is down) must not hold a frozen application.
_PATIENCE_SECONDS = 0.25
_MOST_WAITING_LINES = 10_000

Listener = Callable[[str, Mapping[str, Any]], None]


class EventLog:
    """An `Emit` that writes lines to a file descriptor. Emitting never raises and never blocks for long.

    level: the least that is written. secrets: texts that are replaced wherever they stand, in any common escaping.
    listen: who else hears of events (name, fields), already without secrets.
    """

    def __init__(self, descriptor: int, *, level: int = logging.INFO, secrets: Iterable[str] = ()) -> None:
        self._descriptor = descriptor
        self._level = level
        self._formatter = _EventFormatter(secrets)
        self._lines: queue.Queue[tuple[bytes | None, threading.Event]] = queue.Queue(_MOST_WAITING_LINES)
        self._stalled = False
        self._dropped = 0
        self.listen: Listener = lambda _name, _fields: None
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def configure(self, *, level: int, secrets: Iterable[str]) -> None:
        """Write from this level up, without these secrets."""
        self._level = level
        self._formatter = _EventFormatter(secrets)

    def __call__(self, name: str, /, *, level: int | None = None, **fields: Any) -> None:
        """Write one event; its level is that of EVENTS unless given."""
        self.handle(_event(name, level or EVENTS.get(name, logging.WARNING), fields))
        with suppress(Exception):
            self.listen(name, self._formatter.clean(fields))

    def clean(self, text: str) -> str:
        """The text without secrets."""
        cleaned: str = self._formatter.clean(text)
        return cleaned

    def crashed(self, error: BaseException, *, where: str) -> None:
        """Write an exception that nobody expected."""
        trace = "".join(traceback.format_exception(error))
        self("crashed", where=where, error=_in_words(error), trace=trace)

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record of an event or of a library."""
        if record.levelno < self._level:
            return
        written = threading.Event()
        try:
            self._lines.put_nowait((self._formatter.line(record), written))
        except queue.Full:
            self._dropped += 1
            return
        if not self._stalled and not written.wait(_PATIENCE_SECONDS):
            self._stalled = True

    def close(self, timeout: float) -> bool:
        """Wait until every line is out, for at most `timeout` seconds; whether they are. Nothing is written later."""
        written = threading.Event()
        try:
            self._lines.put((None, written), timeout=timeout)
        except queue.Full:
            return False
        return written.wait(timeout)

    def _write(self) -> None:
        while True:
            line, written = self._lines.get()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._out(self._formatter.line(_event("log_lines_dropped", logging.WARNING, {"lines": dropped})))
            self._out(line or b"")
            self._stalled = False
            written.set()
            if line is None:
                return

    def _out(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except OSError:  # nobody reads any more, and there is nowhere else to say so
                return


def claim_stdout() -> int:
    """Keep stdout for the log alone: give a descriptor of it, and send whatever else writes there to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # at once, where the buffer of a closed terminal would keep it until the end
    return own


def install(log: EventLog) -> None:
    """Send to the log, for the whole process: what libraries log from WARNING up, warnings, uncaught exceptions."""
    root = logging.getLogger()
    root.handlers = [_Libraries(log)]
    root.setLevel(logging.WARNING)  # whatever BACKUP_LOG_LEVEL says: botocore's debug log shows signed headers
    logging.captureWarnings(capture=True)

    def uncaught(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        log.crashed(error, where="main thread")

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            log.crashed(args.exc_value, where=f"thread {args.thread.name if args.thread else '(gone)'}")

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            log.crashed(args.exc_value, where=f"{args.err_msg or 'unraisable'}: {args.object!r}")

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable


def _event(name: str, level: int, fields: Mapping[str, Any]) -> logging.LogRecord:
    record = logging.LogRecord("sidecar", level, "", 0, name, None, None)
    record.fields = fields
    return record


class _Libraries(logging.Handler):
    """The root logger's handler."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.handle(record)


class _EventFormatter(JsonFormatter):
    """Records as lines: an event's fields as they are named in docs/LOGS.md, a library's record as event `library`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        forms = {form for secret in secrets if secret for form in _escapings(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def line(self, record: logging.LogRecord) -> bytes:
        """One line, its newline included, short enough for Docker's log drivers. Never raises."""
        event = record.msg if hasattr(record, "fields") else "library"
        head = {"ts": _timestamp(record.created), "level": record.levelname.lower(), "event": event}
        try:
            fields = self.clean(record.fields if hasattr(record, "fields") else self._of_library(record))
            for most in _LIMITS:
                line = self.jsonify_log_record({**head, **_cut(fields, *most), **head})
                if len(line) < _LONGEST_LINE:
                    return line.encode() + b"\n"
            error = "the fields of this event are too long for a line"
        except Exception as exc:  # noqa: BLE001 - whatever it is given
            error = self.clean(f"the fields of this event cannot be written: {_in_words(exc)}")
        return self.jsonify_log_record({**head, "error": error}).encode() + b"\n"

    def clean(self, value: Any) -> Any:
        """A JSON value in which no secret stands."""
        value = value.value if isinstance(value, Enum) else value
        match value:
            case str():
                text = str(value)
                return self._secrets.sub(REDACTED, text) if self._secrets else text
            case Mapping():
                return {self.clean(_plain(key)): self.clean(each) for key, each in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.clean(each) for each in value]
            case bool() | int() | None:
                return value
            case float():
                return value if math.isfinite(value) else None  # JSON has no word for the others
        return self.clean(_plain(value))

    def _of_library(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {"logger": record.name}
        try:
            fields["error"] = record.getMessage()
        except Exception as exc:  # noqa: BLE001 - a library's wrong format arguments must not cost the line
            fields["error"] = f"{record.msg} ({_in_words(exc)})"
        if record.exc_info and record.exc_info[0]:
            fields["trace"] = self.formatException(record.exc_info)
        return fields


def _plain(value: Any) -> Any:
    """A value of some other type as a JSON value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    match value:
        case datetime():
            return rfc3339(value)
        case bytes() | bytearray() | memoryview():
            return os.fsdecode(bytes(value))
        case BaseException():
            return _in_words(value)
    return str(value)


def _in_words(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _escapings(secret: str) -> set[str]:
    """The forms in which a text turns up in other texts: URLs, reprs, JSON."""
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
    }


def _cut(value: Any, characters: int, items: int) -> Any:
    """Shorten what is long: a text in its middle, because a trace tells most at its end."""
    if isinstance(value, str) and len(value) > characters:
        return (
            f"{value[: characters // 4]} ...[{len(value) - characters} characters]... {value[-(characters * 3 // 4) :]}"
        )
    if isinstance(value, list):
        rest = [f"...and {len(value) - items} more"] if len(value) > items else []
        return [_cut(each, characters, items) for each in value[:items]] + rest
    if isinstance(value, dict):
        return {key: _cut(each, characters, items) for key, each in value.items()}
    return value


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
