"""Reports, plans and lists as people read them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLOURS = {
    "damaged": "red",
    "failed its drill": "red",
    "came up": "green",
    "good": "green",
    "partial": "yellow",
    "failed": "red",
    "interrupted": "red",
}
_AS_IF_NEVER = {
    "run": "everything is thawed, and no set was made",
    "restore": "every volume is as it was",
    "verification": "nothing is noted of the set",
    "drill": "nothing is noted of the set, and nothing of the drill is left",
}
_BETWEEN = "  "  # columns
# Of what `scan` found of one kind in one place, and of commands for one of them.
_SETS_SHOWN = 3
_ALIKE_SHOWN = 30
_COMMANDS_SHOWN = 8


def printable(text: object) -> str:
    """The text with its control characters and lone surrogates escaped: a file's name must not drive a terminal."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in str(text)
    )


def size(count: float | None) -> str:
    """Bytes for people: `1.9 GiB`."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def duration(milliseconds: float | None) -> str:
    """A time span for people: `182 ms`, `41.3 s`, `3 min 20 s`, `2 h 5 min`."""
    if milliseconds is None:
        return ""
    if milliseconds < 1_000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Words:
    """Writes to one console; everything that came from outside is printed as it is, never as markup."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self.console = Console(force_terminal=terminal, highlight=False, soft_wrap=True)

    def line(self, text: str = "", style: str = "") -> None:
        """One line."""
        self.console.print(Text(printable(text), style=style))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        """Rows under their columns' names, fitted into a terminal; `right` names the columns of numbers."""
        if not self._terminal:
            self.lines(columns, rows, right=right)
            return
        texts = _printables(rows)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for number, column in enumerate(columns):
            justify: Literal["left", "right"] = "right" if column in right else "left"
            # A set's name is there to be copied, so it is never cut in two.
            least = max((len(row[number]) for row in texts), default=0) if column == "set" else None
            table.add_column(column, justify=justify, overflow="fold", min_width=least)
        for row in texts:
            table.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in row))
        if texts:
            self.console.print(table)

    def lines(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        """Each row whole and on one line, however long, so that it can be copied, and read by `grep` and `awk`."""
        texts = _printables(rows)
        widths = [max(map(cell_len, column)) for column in zip(columns, *texts, strict=True)]
        for number, row in enumerate([tuple(columns), *texts] if texts else []):
            cells = [
                _padding(cell, width) + cell if column in right else cell + _padding(cell, width)
                for column, cell, width in zip(columns, row, widths, strict=True)
            ]
            self.console.print(Text(_BETWEEN.join(cells).rstrip(), style="bold" if number == 0 else ""))

    # --- run-now -----------------------------------------------------------------------------------------------------

    def report(self, report: dict[str, Any]) -> None:
        """A run's end: what was done, what it cost the application, where it lies, and whatever is not well."""
        volumes, groups = report["volumes"], report["groups"]
        self.table(
            ("volume", "outcome", "entries", "read", "archive", "sent", "paused"),
            [
                (
                    each["volume"],
                    each["outcome"],
                    each["files"],
                    size(each["bytes_read"]),
                    size(each["archive_bytes"]),
                    size(each["bytes_uploaded"]),
                    duration(_paused(each, groups)),
                )
                for each in volumes
            ],
            right=("entries", "read", "archive", "sent", "paused"),
        )
        self.line()
        outcome = report["outcome"]
        what = f"set {report['set']}" if report["set"] else "no set was made"
        self.line(f"{outcome}: {what}, in {duration(report['duration_ms'])}", _COLOURS.get(outcome, ""))
        for group in groups:
            unfrozen = group.get("unfrozen", [])
            containers = ", ".join(each for each in group["containers"] if each not in unfrozen)
            waited = f"{containers} paused for {duration(group['paused_ms'])}" if containers else "nothing was paused"
            if group["paused_ms"] or not containers:  # a group that fails before its freeze waited for nothing
                self.line(f"  {group['group']}: {waited}")
            if unfrozen:
                self.line(f"  {group['group']}: not paused, as `plan` explains: {', '.join(unfrozen)}", "yellow")
        for name, store in report["stores"].items():
            self._store(name, store)
        if report["set"] and not report["off_host"]:
            self.line("  nothing of this set is off this host", "yellow")
        for each in volumes:
            if each["changed_files"]:
                self.line(f"  {each['volume']}: changed while frozen: {_some(each['changed_files'])}", "yellow")
        self._reasons(report)
        self._warnings("not protected by any backup", [_unprotected(each) for each in report["unprotected"]])
        self._warnings("warnings", report["warnings"])

    def _store(self, name: str, store: dict[str, Any]) -> None:
        where = store.get("location") or name
        if store["outcome"] == "good":
            self.line(f"  lies in {where} ({size(store['bytes_uploaded'])} written)")
        elif store.get("error"):
            self.line(f"  {where}: {store['outcome']}: {_sentence(store['error'], store.get('hint'))}", "yellow")
        else:
            self.line(f"  {where}: nothing of this run is kept there", "yellow")
        if store["pending"]:
            self.line(f"  {where}: to be shipped later", "yellow")

    def _reasons(self, report: dict[str, Any]) -> None:
        reasons = []
        for each in report["reasons"]:
            named = [(key, each[key]) for key in ("volume", "store") if each.get(key)]
            about = " ".join(str(name) for key, name in named if f"{key} {name}" not in each["message"])
            about = about if named else _groups_of(each["message"], report["volumes"])
            reasons.append((f"{about}: " if about else "") + _sentence(each["message"], each["hint"]))
        reasons = list(dict.fromkeys(reasons))
        said = " ".join(reasons)
        reasons += [
            f"{each['volume']}: {_sentence(each['error'], each['hint'])}"
            for each in report["volumes"]
            if each["error"] and each["error"] not in said
        ]
        self._warnings(f"why it is {report['outcome']}", reasons)

    def _warnings(self, title: str, sentences: Sequence[str]) -> None:
        if sentences:
            self.line()
            self.line(f"{title}:", "yellow")
            for each in sentences:
                self.line(f"  - {each}")

    # --- restore -----------------------------------------------------------------------------------------------------

    def restore_plan(self, plan: dict[str, Any]) -> None:
        """What a restore would do now."""
        self.line(f"set {plan['set']}, made on {_host(plan)}, begun {_moment(plan['time'])}", "bold")
        self.table(
            ("  volume", "entries", "size", "to fetch", ""),
            [
                (
                    f"  {each['volume']}",
                    each["files"],
                    size(each["raw_bytes"]),
                    size(each["archive_bytes"]),
                    _fate(each, plan["pattern"]),
                )
                for each in plan["volumes"]
            ],
            right=("entries", "size", "to fetch"),
        )
        if plan["safety"]:
            self.line("  what is there now is backed up first, to a set of its own (--no-safety: it is not)")
        if plan["containers"]:
            self.line(f"  stopped for it, and started again: {', '.join(plan['containers'])}")
        else:
            self.line("  no container that runs uses them: none is stopped")
        self._warnings("warnings", plan["warnings"])

    def restored(self, report: dict[str, Any]) -> None:
        """A restore's end."""
        self.line()
        outcome = report["outcome"]
        self.line(f"{outcome}: {report['set']}, in {duration(report['duration_ms'])}", _COLOURS.get(outcome, ""))
        for each in report["volumes"]:
            if each["error"]:
                self.line(f"  {each['volume']}: {_sentence(each['error'], each['hint'])}", "red")
            else:
                made = "made and " if each["created"] else ""
                into = f" into {each['into']}" if each["into"] != each["volume"] else ""
                self.line(
                    f"  {each['volume']}: {made}restored{into}, {_entries(each)}, {size(each['bytes_written'])}, "
                    f"from store {each['store']}"
                )
        if report["containers"]:
            containers = ", ".join(report["containers"])
            self.line(f"  {containers} stopped for {duration(report['stopped_ms'])}, and started again")
        if report["safety"]:
            self.line(f"  what was there before is in set {report['safety']}")
        told = [each["error"] for each in report["volumes"]]
        reasons = [each for each in report["reasons"] if each["message"] not in told]
        self._warnings(f"why it is {outcome}", [_sentence(each["message"], each["hint"]) for each in reasons])

    # --- verify ------------------------------------------------------------------------------------------------------

    def verified(self, report: dict[str, Any]) -> None:
        """A verification's end: one line for each volume in each store."""
        self.table(
            ("store", "volume", "verdict", "read"),
            [
                (
                    each["store"],
                    each["volume"],
                    "damaged" if each["damaged"] else "not verified" if each["error"] else "whole",
                    size(each["bytes_read"]),
                )
                for each in report["volumes"]
            ],
            right=("read",),
        )
        self.line()
        outcome = report["outcome"]
        self.line(
            f"{outcome}: {report['set']}, verified ({report['how']}) in {duration(report['duration_ms'])}",
            _COLOURS.get(outcome, ""),
        )
        reasons = [_sentence(each["message"], each["hint"]) for each in report["reasons"]]
        self._warnings(f"why it is {outcome}", list(dict.fromkeys(reasons)))
        self._warnings("warnings", report["warnings"])

    # --- drill -------------------------------------------------------------------------------------------------------

    def drilled(self, report: dict[str, Any]) -> None:
        """A drill's end: each service of which a copy was started, each volume, and whatever is not well."""
        self.table(
            ("service", "proven by", "verdict", "after", "volumes"),
            [
                (
                    each["container"],
                    each["proof"],
                    "failed" if each["error"] else "came up",
                    duration(each["duration_ms"]),
                    ", ".join(each["volumes"]),
                )
                for each in report["services"]
            ],
            right=("after",),
        )
        self.line()
        outcome = report["outcome"]
        self.line(
            f"{outcome}: {report['set']}, drilled in {duration(report['duration_ms'])}", _COLOURS.get(outcome, "")
        )
        for each in report["volumes"]:
            verdict = {"good": "proven", "partial": "not proven"}.get(each["outcome"], "failed")
            came = f", {_entries(each)}, {size(each['bytes_written'])}, from store {each['store']}"
            self.line(f"  {each['volume']}: {verdict}{came if each['files'] else ''}", _COLOURS[each["outcome"]])
        reasons = [_sentence(each["message"], each["hint"]) for each in report["reasons"]]
        self._warnings(f"why it is {outcome}", list(dict.fromkeys(reasons)))
        self._warnings("warnings", report["warnings"])

    # --- keep --------------------------------------------------------------------------------------------------------

    def kept(self, document: dict[str, Any]) -> None:
        """What was noted of a set."""
        what = "is kept" if document["keep"] else "may be pruned in its time"
        self.line(f"{document['set']} {what} (noted in {', '.join(document['stores'])})")
        errors = [f"{name}: {_sentence(each['message'], each['hint'])}" for name, each in document["errors"].items()]
        self._warnings("not noted everywhere", errors)

    # --- plan --------------------------------------------------------------------------------------------------------

    def plan(self, plan: dict[str, Any]) -> None:
        """What a run would do now."""
        if not plan["groups"]:
            self.line("there is no volume to back up", "yellow")
        for number, group in enumerate(plan["groups"]):
            if number:
                self.line()
            self.line(f"group {group['group']}", "bold")
            self.table(
                ("  volume", "at"),
                [(f"  {each['volume']}", each.get("mountpoint", "")) for each in group["volumes"]],
            )
            if group["containers"]:
                self.table(
                    ("  container", "quiesced by", "because"),
                    [(f"  {each['container']}", each["quiesce"], each["why"]) for each in group["containers"]],
                )
                self._hooks(group["containers"])
            else:
                self.line("  no container can write to it: nothing is frozen")
        if plan["skipped"]:
            self.line()
            self.line("left out", "bold")
            self.table(
                ("  volume", "why", "hint"),
                [(f"  {each['volume']}", each["why"], each.get("hint", "")) for each in plan["skipped"]],
            )
        self._warnings("not protected by any backup", [_unprotected(each) for each in plan["unprotected"]])
        self._warnings("warnings", plan["warnings"])
        self.line()
        stores = ", ".join(f"{name} ({location})" for name, location in plan.get("stores", {}).items())
        if stores:
            self.line(f"sets go to {stores}")
        self._next_run(plan)

    def _hooks(self, containers: Sequence[dict[str, Any]]) -> None:
        """The commands that will be run in the containers around the freeze."""
        self.table(
            ("  hook", "in", "command", "at most", "if it fails"),
            [
                (
                    f"  {when}",
                    each["container"],
                    hooks[when],
                    duration(hooks["timeout_ms"]),
                    "the group fails" if when == "pre" and hooks["on_failure"] == "abort" else "the run is partial",
                )
                for each in containers
                if (hooks := each.get("hooks"))
                for when in ("pre", "post")
                if hooks[when]
            ],
        )

    def _next_run(self, document: dict[str, Any]) -> None:
        if document.get("next_run"):
            schedule = f" (schedule {document['schedule']})" if document.get("schedule") else ""
            self.line(f"next run at {_moment(document['next_run'])}{schedule}")
        else:
            self.line("no run is scheduled", "yellow")

    # --- list --------------------------------------------------------------------------------------------------------

    def listing(self, document: dict[str, Any], *, one_set: bool) -> None:
        """All sets, one set's volumes, or one volume's files."""
        if "files" in document:
            self._files(document["files"])
        elif one_set:
            for each in document["sets"]:
                self._volumes(each)
        elif document["sets"]:
            self._sets(document["sets"])
        else:
            self.line(_sentence("there is no set", document.get("hint")))

    def _sets(self, sets: Sequence[dict[str, Any]]) -> None:
        self.table(
            ("set", "outcome", "volumes", "size", "archives", "stores", "verified", "drilled", "tags"),
            [
                (
                    each["set"],
                    _state(each),
                    len(each["volumes"]),
                    size(sum(volume["raw_bytes"] for volume in each["volumes"].values())),
                    size(sum(volume["archive_bytes"] for volume in each["volumes"].values())),
                    ", ".join(each["stores"]),
                    _when_verified(each),
                    _when_drilled(each),
                    ", ".join(f"{key}={text}" for key, text in each["tags"].items()) + (" (kept)" * each["keep"]),
                )
                for each in sets
            ],
            right=("volumes", "size", "archives"),
        )

    def _volumes(self, described: dict[str, Any]) -> None:
        stores = ", ".join(described["stores"])
        self.line(f"{described['set']}: {_state(described)}, made on {_host(described)}, lies in {stores}")
        self.table(
            ("volume", "entries", "size", "archive"),
            [
                (name, each["files"], size(each["raw_bytes"]), size(each["archive_bytes"]))
                for name, each in described["volumes"].items()
            ],
            right=("entries", "size", "archive"),
        )
        if why := _damage(described):
            self.line(f"  DAMAGED in {', '.join(described['verified']['stores'])}: {why}", "red")
        elif described["verified"]:
            self.line(f"  verified {_when_verified(described)}")
        if why := _failed_drill(described):
            self.line(f"  FAILED its drill {_when_drilled(described)}: {why}", "red")
        elif described["drilled"]:
            why = described["drilled"]["why"]
            self.line(f"  drilled {_when_drilled(described)}{f': {why}' if why else ''}")
        if described["keep"]:
            self.line("  kept: it is never pruned")
        for name, why in described.get("missing", {}).items():
            self.line(f"  NOT in this set: {name}: {why}", "yellow")
        for name, paths in described.get("changed_files", {}).items():
            self.line(f"  {name}: changed while frozen: {_some(paths)}", "yellow")

    def _files(self, files: Sequence[dict[str, Any]]) -> None:
        self.lines(
            ("mode", "owner", "size", "changed", "path"),
            [
                (
                    _mode(each),
                    f"{each['uid']}:{each['gid']}",
                    each["size"],
                    _moment(each["mtime"]),
                    each["path"],
                )
                for each in files
            ],
            right=("owner", "size"),
        )

    # --- status ------------------------------------------------------------------------------------------------------

    def status(self, status: dict[str, Any]) -> None:
        """What the daemon is doing, and how the last run went."""
        self.line(
            f"{status['state']}, {'healthy' if status['healthy'] else 'not healthy'}: {status['why']}",
            "green" if status["healthy"] else "yellow",
        )
        if running := status["running"]:
            self.line(f"running since {_moment(running['since'])}: {step(running)}")
        if last := status["last_run"]:
            what = last["set"] or "no set"
            self.line(f"last run at {_moment(last['started'])}: {last['outcome']}, {what}")
        if verify := status.get("last_verify"):
            why = f": {verify['why']}" if verify["why"] else ""
            what = f"{verify['set'] or 'the newest set'} ({verify['how']})"
            self.line(f"last verification at {_moment(verify['time'])}: {verify['outcome']}, {what}{why}")
        if drill := status.get("last_drill"):
            why = f": {drill['why']}" if drill["why"] else ""
            what = drill["set"] or "the newest set"
            self.line(f"last drill at {_moment(drill['time'])}: {drill['outcome']}, {what}{why}")
        if status["last_good"]:
            self.table(
                ("volume", "last good backup"),
                [(name, _moment(moment)) for name, moment in status["last_good"].items()],
            )
        self._pending(status.get("pending", []))
        if guard := status.get("guard"):
            self._guarded(guard)
        self._next_run(status)
        self._warnings("warnings", status.get("warnings", []))

    def _pending(self, pending: Sequence[dict[str, Any]]) -> None:
        for store in dict.fromkeys(each["store"] for each in pending):
            owed = [each for each in pending if each["store"] == store]
            self.line(f"not in {store} yet: {_some([each['set'] for each in owed])}; shipped when it is back", "yellow")
            last = max(owed, key=lambda each: str(each["set"]))
            if last["error"]:
                tries = f"after {last['attempts']} attempt(s) since {_moment(last['since'])}: "
                self.line(f"  {tries}{last['error']}")

    def guard(self, guard: dict[str, Any]) -> None:
        """What the guard protects, and what not."""
        self._guarded(guard)
        if guard["protected"]:
            self.table(
                ("  protected", "since", ""),
                [
                    (f"  {name}", _moment(since), "no container has it" if name in guard["unused"] else "")
                    for name, since in guard["protected"].items()
                ],
            )
        if guard["unprotected"]:
            by_reason: dict[str, list[str]] = {}
            for each in guard["unprotected"]:
                by_reason.setdefault(each["why"], []).append(each["volume"])
            self.table(("  not protected", "why"), [(f"  {_some(names)}", why) for why, names in by_reason.items()])

    def _guarded(self, guard: dict[str, Any]) -> None:
        if not guard["on"]:
            self.line("the guard is off: `docker-compose down -v` deletes volumes", "yellow")
            return
        if guard["error"]:
            self.line(f"the guard is not as it should be: {_sentence(guard['error'], guard['hint'])}", "yellow")
        if guard["container"]:
            count = len(guard["protected"])
            self.line(f"guard: {guard['container']} keeps {count} volume{'s' * (count != 1)} from being deleted")
        elif not guard["error"]:
            self.line("guard: no volume to protect")
        for name, until in guard["released"].items():
            self.line(f"guard: {name} may be deleted until {_moment(until)}", "yellow")

    def cancelled(self, document: dict[str, Any]) -> None:
        """What became of a run that was told to stop, and which still wait."""
        self.line(f"{_asked(document['cancelled'])} was told to stop")
        if not document["ended"]:
            self.line("it has not ended yet; `status` shows how far it is", "yellow")
        elif document["outcome"] == "interrupted":
            self.line(f"it has ended: {_AS_IF_NEVER[document['cancelled']['activity']]}")
        else:
            what = f": {document['outcome']}, {document['set'] or 'no set'}" if document["outcome"] else ""
            self.line(f"it had come to its end already{what}", "yellow")
        for each in document["waiting"]:
            self.line(f"still waiting for its turn: {_asked(each)}")

    # --- check -------------------------------------------------------------------------------------------------------

    def finding(self, finding: dict[str, str]) -> None:
        """One line of `check`, and what to do about it below."""
        colour = {"ok": "green", "warning": "yellow", "error": "red"}[finding["result"]]
        self.line(f"{finding['result']:<8} {finding['check']}: {finding['message']}", colour)
        if finding["hint"]:
            self.line(f"         {finding['hint']}")

    def checked(self, outcome: str) -> None:
        """What all of `check` comes to."""
        self.line()
        self.line(
            {
                "good": "a backup should work",
                "partial": "a backup should work, but see the warnings",
                "failed": "a backup, or a part of it, will fail: see the errors",
            }[outcome],
            _COLOURS[outcome],
        )

    # --- scan --------------------------------------------------------------------------------------------------------

    def salvage(self, document: dict[str, Any]) -> None:
        """What can be recovered and how: the surest first; then what was not looked at, and what it comes to."""
        alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for each in document["findings"]:
            alike.setdefault((each["kind"], each["where"], each["home"]), []).append(each)
        for findings in alike.values():
            most = _SETS_SHOWN if findings[0]["kind"] == "set" else _ALIKE_SHOWN
            for each in findings[:most]:
                self._found(each)
            if rest := findings[most:]:
                oldest = f" back to {_moment(rest[-1]['time'])}" if rest[-1]["time"] else ""
                self.line(f"and {len(rest)} more of that kind there{oldest}: --json has them all")
                self.line()
        for each in document["unseen"]:
            self.line(f"not looked at: {each['place']}: {_sentence(each['why'], each['hint'])}", "yellow")
        for remark in document["remarks"]:
            self.line(remark)
        if document["unseen"] or document["remarks"]:
            self.line()
        self.line(document["conclusion"], _COLOURS.get(document["outcome"], "red"))

    def _found(self, finding: dict[str, Any]) -> None:
        self.line(finding["what"], "bold")
        taken = size(finding["bytes"]) and ("at least " * finding["at_least"]) + size(finding["bytes"])
        old = f"{_moment(finding['time'])} ({_age(finding['age_seconds'])})" if finding["time"] else ""
        self.line(f"  {', '.join(filter(None, [old, taken, 'in ' + finding['where']]))}")
        if finding["kind"] not in ("volume", "leftover"):  # these are named for it
            self.line(f"  volumes: {', '.join(finding['volumes'])}")
        if finding["note"]:
            self.line(f"  {finding['note']}")
        commands = finding["commands"]
        for command in commands[:_COMMANDS_SHOWN]:
            self.line(f"      {command}")
        if len(commands) > _COMMANDS_SHOWN:
            self.line(f"  and {len(commands) - _COMMANDS_SHOWN} more commands: --json has them all")
        self.line()


def _printables(rows: Iterable[Sequence[object]]) -> list[tuple[str, ...]]:
    return [tuple(printable(each) for each in row) for row in rows]


def _padding(cell: str, width: int) -> str:
    return " " * (width - cell_len(cell))


def _age(seconds: float) -> str:
    """`3 days old`, `5 h old`, `12 min old`, `in the future`."""
    minutes = round(seconds / 60)
    if minutes < 0:
        return "in the future"
    if minutes < 120:
        return f"{minutes} min old"
    return f"{minutes // 60} h old" if minutes < 48 * 60 else f"{minutes // 1440} days old"


def _entries(volume: dict[str, Any]) -> str:
    """What `files` of a document counts: directories and links too, of which a restore brings those above a file."""
    return "1 entry" if volume["files"] == 1 else f"{volume['files']} entries"


def _host(described: dict[str, Any]) -> str:
    """The machine that made a set, and what finds it: the machine's own name is not always its BACKUP_HOST."""
    return f"{described['host']} (--host {shlex.quote(described['backup_host'])})"


def _fate(volume: dict[str, Any], pattern: str | None) -> str:
    if not volume["exists"]:
        return "is made" if volume["into"] == volume["volume"] else f"is made, as {volume['into']}"
    return "is replaced" if pattern is None else f"gets what matches {pattern}; all else stays"


def step(progress: dict[str, Any]) -> str:
    """Where a run is: `packing shop_data, 120 MiB of 1.0 GiB`."""
    text = " ".join(filter(None, [progress["phase"], progress["volume"]]))
    if progress["total_bytes"]:
        return f"{text}, {size(progress['done_bytes'])} of {size(progress['total_bytes'])}"
    return f"{text}, {size(progress['done_bytes'])}" if progress["done_bytes"] else text


def _groups_of(message: str, volumes: Sequence[dict[str, Any]]) -> str:
    """The groups that failed for that reason, each as a whole; empty where it is not one of a group's."""
    groups = list(dict.fromkeys(each["group"] for each in volumes if each["error"] == message and each["group"]))
    return f"group{'s' * (len(groups) > 1)} {', '.join(groups)}" if groups else ""


def _paused(volume: dict[str, Any], groups: Sequence[dict[str, Any]]) -> float | None:
    """How long a volume's group was paused, where the report tells which group that was."""
    of_group = [each["paused_ms"] for each in groups if each["group"] == volume.get("group") or len(groups) == 1]
    return of_group[0] if of_group else None


def _asked(run: dict[str, Any]) -> str:
    """A run as it was asked for, which has no name yet."""
    volumes = f" of {_some(run['volumes'])}" if run["volumes"] else ""
    return f"the {run['activity']} ({run['trigger']}){volumes} of {_moment(run['since'])}"


def _sentence(message: str | None, hint: str | None) -> str:
    return "; ".join(filter(None, [message, hint])) or "no reason is known"


def _state(described: dict[str, Any]) -> str:
    """What a set of `list` is worth by what is known today; its outcome is what the run said of it."""
    if _damage(described):
        return "damaged"
    return "failed its drill" if _failed_drill(described) else str(described["outcome"])


def _damage(described: dict[str, Any]) -> str:
    """Why a set of `list` is known to be damaged; empty when it is not."""
    verified = described["verified"]
    return str(verified["why"]) if verified and verified["outcome"] == "failed" else ""


def _when_verified(described: dict[str, Any]) -> str:
    verified = described["verified"]
    return f"{_moment(verified['time'])} ({verified['how']})" if verified else ""


def _failed_drill(described: dict[str, Any]) -> str:
    """Why a set of `list` has failed its drill; empty when it has not."""
    drilled = described["drilled"]
    return str(drilled["why"]) if drilled and drilled["outcome"] == "failed" else ""


def _when_drilled(described: dict[str, Any]) -> str:
    drilled = described["drilled"]
    return f"{_moment(drilled['time'])} ({drilled['outcome']})" if drilled else ""


def _unprotected(mount: dict[str, Any]) -> str:
    return f"{mount['container']}: {mount['mount']} ({mount['why']})"


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _moment(moment: object) -> str:
    """A time of a document: RFC 3339 text without its `T`, or seconds since 1970."""
    if isinstance(moment, int | float):
        try:
            moment = datetime.fromtimestamp(moment).astimezone().isoformat(sep=" ", timespec="seconds")
        except (ValueError, OverflowError, OSError):
            return str(moment)
    return str(moment).replace("T", " ").replace("Z", " UTC")


def _mode(file: dict[str, Any]) -> str:
    """`0644` with the type's letter before it, or the mode as the document has it."""
    mode = file["mode"]
    letters = {"file": "-", "dir": "d", "symlink": "l", "hardlink": "h", "fifo": "p", "socket": "s"}
    kind = letters.get(str(file["type"]), f"{file['type']} ")
    return f"{kind}{mode & 0o7777:04o}" if isinstance(mode, int) else f"{kind}{mode}"
