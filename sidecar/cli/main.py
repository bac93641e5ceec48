"""The verbs. Only this module knows exit codes, and it never shows a user a traceback unless asked to."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from sidecar.cli.client import Complaint, Daemon
from sidecar.cli.progress import Display, Lines, Silent, Watcher
from sidecar.cli.words import Words, printable
from sidecar.errors import SidecarError
from sidecar.service import CONTROL_SOCKET

# Outcomes of a run and codes of errors; whatever is not here is 1. click itself leaves with 2 for wrong usage.
EXIT_CODES: Mapping[str, int] = {
    "good": 0,
    "failed": 1,
    "unhealthy": 1,
    "usage": 2,
    "config_invalid": 2,
    "mount_missing": 2,
    "partial": 3,
    "not_found": 10,
    "busy": 11,
    "detached": 130,
    "interrupted": 143,
}

_GUARD_ACTIONS = ("status", "release", "protect")

Verb = Callable[..., str]


def verb(function: Verb) -> Callable[..., None]:
    """Make a verb of a function that gives an outcome or raises: options that all have, errors in words, exit codes."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
    @click.option("--socket", default=CONTROL_SOCKET, hidden=True)
    @click.pass_context
    @functools.wraps(function)
    def run(context: click.Context, /, *, as_json: bool, debug: bool, socket: str, **arguments: Any) -> None:
        # Names of files need not be UTF-8, nor need stdout's encoding hold all others.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            outcome = function(Daemon(socket), as_json=as_json, **arguments)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            outcome = _complain(Complaint("detached", f"{context.info_name} was stopped by Ctrl-C"), as_json=as_json)
        except (Complaint, SidecarError) as exc:
            outcome = _complain(exc, as_json=as_json)
        except Exception as exc:  # noqa: BLE001 - a traceback helps nobody who only wanted a backup
            if debug:
                traceback.print_exc()
            text = f"{context.info_name} failed unexpectedly: {type(exc).__name__}: {exc}"
            hint = "--debug shows where; the log is in `docker logs backup`"
            outcome = _complain(Complaint("failed", text, hint), as_json=as_json)
        context.exit(EXIT_CODES.get(outcome, 1))

    return run


def _complain(error: Complaint | SidecarError, *, as_json: bool) -> str:
    """Say what is wrong, in JSON on stdout or in words on stderr; the error's code."""
    if as_json:
        _print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
    else:
        click.echo(printable(f"error: {error.message}"), err=True)
        if error.hint:
            click.echo(printable(f"  {error.hint}"), err=True)
    return error.code


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document))


def _words() -> Words:
    return Words(terminal=sys.stdout.isatty())


def _example(*lines: str) -> str:
    # \b keeps click from filling the lines
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@click.group(epilog=_example("docker exec backup run-now", "docker exec backup sidecar status --json"))
def main() -> None:
    """Back up every named Docker volume of this host."""


def _tags(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        if key.strip() in tags:
            raise click.BadParameter(f"{key.strip()} is given twice")
        tags[key.strip()] = value.strip()
    return tags


@main.command(
    "run-now",
    epilog=_example(
        "docker exec backup run-now",
        "docker exec backup run-now shop_data --tag reason=upgrade",
        "docker exec backup run-now --no-wait --json",
    ),
)
@click.argument("volumes", metavar="[VOLUME]...", nargs=-1)
@click.option("--full", is_flag=True, help="Read every file, even those that look unchanged.")
@click.option(
    "--tag", "tags", metavar="KEY=VALUE", multiple=True, callback=_tags, help="Note this in the set; may be repeated."
)
@click.option("--no-wait", is_flag=True, help="Give up (exit code 11) when another run is going on.")
@verb
def run_now(
    daemon: Daemon, *, as_json: bool, volumes: tuple[str, ...], full: bool, tags: dict[str, str], no_wait: bool
) -> str:
    """Back up all volumes, or the VOLUMEs named, and follow it to its end.

    The daemon does the work: losing this terminal, or Ctrl-C, does not stop it.

    Exit codes: 0 good, 1 failed, 2 usage or configuration, 3 partial, 10 no such volume, 11 busy, 130 Ctrl-C (the run
    goes on), 143 the daemon was told to stop.
    """
    wanted = {"volumes": volumes, "full": full, "tags": tags, "no_wait": no_wait}
    warned: list[str] = []
    report = _followed(daemon, "run", wanted, warned, as_json=as_json)
    if as_json:
        _print_json(report)
    else:
        report["warnings"] = [each for each in report["warnings"] if each not in warned]
        _words().report(report)
    return str(report["outcome"])


def _watcher(*, as_json: bool) -> Watcher:
    if sys.stderr.isatty():
        return Display(Console(stderr=True, highlight=False))
    return Silent() if as_json else Lines(click.echo)


def _followed(daemon: Daemon, what: str, wanted: dict[str, Any], warned: list[str], *, as_json: bool) -> dict[str, Any]:
    """The report of the job that is asked for, shown while it goes on.

    what: `run`, `restore`, `verification`, `drill`. Warnings that were shown on the way are added to `warned`.
    """
    try:
        with _watcher(as_json=as_json) as watcher:
            return _watch(daemon, f"/{what}s", wanted, watcher, warned)
    except KeyboardInterrupt:
        raise Complaint(
            "detached",
            f"stopped watching; the {what} goes on in the daemon",
            "`status` shows how far it is, `cancel` ends it",
        ) from None


def _watch(daemon: Daemon, path: str, wanted: dict[str, Any], watcher: Watcher, warned: list[str]) -> dict[str, Any]:
    for line in daemon.follow(path, wanted):
        match line:
            case {"waiting_for": before}:
                what = f"the {before['activity']} ({before['trigger']})"
                watcher.say(f"waiting for {what} that has been going on since {before['since']}")
            case {"progress": progress}:
                watcher.progress(progress)
            case {"warning": warning}:
                warned.append(warning)
                watcher.say(f"warning: {warning}")
            case {"error": error}:
                raise Complaint(error["code"], error["message"], error["hint"])
            case {"report": dict(report)}:
                return report
    raise Complaint("failed", "the daemon ended it without a report")


@main.command(epilog=_example("docker exec backup plan"))
@verb
def plan(daemon: Daemon, *, as_json: bool) -> str:
    """Show what a run would do: groups, who is paused, what is left out and why, what no backup covers.

    Exit codes: 0 it could be planned, 1 not: the engine did not answer, or the daemon does not run.
    """
    document = daemon.get("/plan")
    if as_json:
        _print_json(document)
    else:
        _words().plan(document)
    return "good"


@main.command(
    "list",
    epilog=_example(
        "docker exec backup list",
        "docker exec backup list latest",
        "docker exec backup list backup-20260102_030000 shop_data '*.sqlite'",
    ),
)
@click.argument("set_name", metavar="[SET]", required=False)
@click.argument("volume", metavar="[VOLUME]", required=False)
@click.argument("pattern", metavar="[GLOB]", required=False)
@click.option("--host", metavar="NAME", help="Sets of another host (its BACKUP_HOST) in the same stores.")
@verb
def list_sets(
    daemon: Daemon,
    *,
    as_json: bool,
    set_name: str | None,
    volume: str | None,
    pattern: str | None,
    host: str | None,
) -> str:
    """List all sets, the volumes of one SET, or the files of one VOLUME in it (those that match GLOB).

    Exit codes: 0 good, 1 no store answered, 3 one store did not, so that sets may be missing here, 10 no such set,
    volume or file, or no set of that host.
    """
    document = daemon.get("/sets", {"set": set_name, "volume": volume, "pattern": pattern, "host": host})
    if as_json:
        _print_json(document)
    else:
        _words().listing(document, one_set=set_name is not None)
    errors = document.get("errors", {})
    nothing_matches = pattern is not None and not document.get("files")
    if not as_json:
        for store, error in errors.items():
            click.echo(printable(f"warning: store {store} did not answer: {error['message']}"), err=True)
        for warning in document.get("warnings", []):
            click.echo(printable(f"warning: {warning}"), err=True)
        if nothing_matches:
            click.echo(printable(f"error: no file of {volume} matches {pattern}"), err=True)
            click.echo(
                f"  `list {set_name} {volume}` shows all; a glob is for the whole path and needs quotes", err=True
            )
    return "not_found" if nothing_matches else "partial" if errors else "good"


@main.command(
    epilog=_example(
        "docker exec backup status", "docker exec backup status --json", "docker exec backup status --check"
    )
)
@click.option("--check", "only_check", is_flag=True, help="One line: is all well? Exit code 1 when it is not.")
@verb
def status(daemon: Daemon, *, as_json: bool, only_check: bool) -> str:
    """Show what the daemon is doing, when it will run next, and how the last run went.

    With --check (the image's HEALTHCHECK) it is healthy when the last run was good, no scheduled run is overdue by more
    than an interval (at least ten minutes, at most a day), and nothing that a killed run left waits to be put right. A
    new daemon whose first run is not due yet is healthy.

    Exit codes: 0 the daemon answered (with --check: and all is well), 1 it did not, or all is not well.
    """
    document = daemon.get("/status")
    if as_json:
        _print_json(document)
    elif only_check:
        click.echo(printable(f"{'healthy' if document['healthy'] else 'not healthy'}: {document['why']}"))
    else:
        _words().status(document)
    return "unhealthy" if only_check and not document["healthy"] else "good"


@main.command(
    epilog=_example(
        "docker exec -it backup restore",
        "docker exec backup restore latest shop_data --yes",
        "docker exec backup restore backup-20260102_030000 --dry-run",
        "docker exec backup restore latest shop_data --as shop_data_then --yes",
        "docker exec backup restore latest shop_data --path 'config/*' --yes",
        "docker exec backup restore latest shop_data --to -",
    )
)
@click.argument("set_name", metavar="[SET|latest]", required=False, default="latest")
@click.argument("volumes", metavar="[VOLUME]...", nargs=-1)
@click.option("--as", "into", metavar="NAME", help="Into a new volume of this name; nothing else is touched.")
@click.option("--to", "to", metavar="-", help="To standard output (`-`), as plain tar; no volume is touched.")
@click.option("--path", "pattern", metavar="GLOB", help="Only the files, or directories, whose path matches.")
@click.option("--host", metavar="NAME", help="A set of another host (its BACKUP_HOST) in the same stores.")
@click.option("--no-safety", is_flag=True, help="Do not back up first what is replaced.")
@click.option("--with-driver", is_flag=True, help="Make lost volumes with the driver and options that they had.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what it would do, and do nothing.")
@click.option("--no-wait", is_flag=True, help="Give up (exit code 11) when a run or a restore is going on.")
@verb
def restore(
    daemon: Daemon,
    *,
    as_json: bool,
    set_name: str,
    volumes: tuple[str, ...],
    into: str | None,
    to: str | None,
    pattern: str | None,
    host: str | None,
    no_safety: bool,
    with_driver: bool,
    yes: bool,
    dry_run: bool,
    no_wait: bool,
) -> str:
    """Put all volumes of a set, or the VOLUMEs named, back to what they were: files, owners, modes, times, attributes.

    What a volume holds now is replaced, and backed up first into a set of its own, so that a restore can be undone. All
    of it is fetched, proven against its checksums and unpacked beside what is there, while the application runs; then
    the containers that use the volumes are stopped, old and new change places, and the containers are started again,
    servers before clients. What goes wrong before that changes nothing. A volume that does not exist is made: with its
    labels, and as a plain local one, unless --with-driver, or you when asked, say otherwise (passwords among a driver's
    options are never recorded).

    It needs as much free room on the volume's disk as the set has bytes unpacked.

    Exit codes: 0 good, 1 failed, 2 usage, or nobody was there to say yes, 3 partial, 10 no such set, volume or file, 11
    busy, 130 Ctrl-C (it goes on), 143 it was cancelled, or the daemon told to stop.
    """
    if to is not None:
        if into is not None or yes or dry_run:
            raise click.UsageError("--to touches no volume: it goes with neither --as, --yes nor --dry-run")
        return _restore_to(to, set_name, volumes, pattern, host, as_json=as_json)
    chosen = {"set": set_name, "into": into, "pattern": pattern, "host": host}
    question = {**chosen, "volume": volumes, "safety": None if no_safety else "yes"}
    plan = daemon.get("/restores", {**question, "drivers": "yes" if with_driver else None})
    if not (yes or dry_run or as_json) and sys.stdin.isatty() and _would_have_drivers(plan):
        with_driver, plan = True, daemon.get("/restores", {**question, "drivers": "yes"})
    if not as_json:
        _words().restore_plan(plan)
    if dry_run:
        if as_json:
            _print_json(plan)
        return "good"
    if not yes:
        _ask(as_json=as_json)
    warned = list(plan["warnings"])
    wanted = {**chosen, "set": plan["set"], "volumes": volumes, "safety": not no_safety, "no_wait": no_wait}
    wanted["drivers"] = with_driver
    report = _followed(daemon, "restore", wanted, warned, as_json=as_json)
    if as_json:
        _print_json(report)
    else:
        _words().restored(report)
    return str(report["outcome"])


def _restore_to(
    to: str, set_name: str, volumes: tuple[str, ...], pattern: str | None, host: str | None, *, as_json: bool
) -> str:
    """Plain tar on standard output. It reads the stores alone, so it needs no daemon, and waits for none."""
    if to != "-" or as_json or len(volumes) != 1:
        raise click.UsageError("--to takes `-` (standard output), one SET and one VOLUME, and no --json")
    if sys.stdout.isatty():
        raise click.UsageError(
            "a terminal is no place for a tar stream: docker exec CONTAINER restore ... --to - > FILE.tar"
        )
    from sidecar import wiring  # noqa: PLC0415 - as in `daemon`
    from sidecar.service.jobs_port import RestoreRequest  # noqa: PLC0415

    request = RestoreRequest(set_name, volumes, pattern=pattern, host=host)
    wiring.tar_out(os.environ, request, sys.stdout.buffer.write, lambda text: click.echo(f"warning: {text}", err=True))
    sys.stdout.buffer.flush()
    return "good"


def _would_have_drivers(plan: dict[str, Any]) -> bool:
    """Whether a person wants the lost volumes as they were, not as plain local ones. Raises Complaint on Ctrl-C."""
    special = [each for each in plan["volumes"] if each["special"]]
    for each in special:
        click.echo(printable(f"volume {each['volume']} does not exist. It was made with {each['special']}."))
    return bool(special) and _confirmed("Make it so again, wherever that leads? (No: as a plain local volume)")


def _ask(*, as_json: bool) -> None:
    """Raises Complaint unless a person says yes."""
    if as_json or not sys.stdin.isatty():
        raise Complaint(
            "usage",
            "nobody is here to say yes, so nothing was done",
            "add --yes, or ask for a terminal: docker exec -it",
        )
    if not _confirmed("Replace what these volumes hold now?"):
        raise Complaint("usage", "nothing was done")


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, default=False)
    except click.Abort:
        raise Complaint("detached", "stopped by Ctrl-C: nothing was done") from None


@main.command(
    epilog=_example(
        "docker exec backup verify",
        "docker exec backup verify --quick",
        "docker exec backup verify backup-20260102_030000 --json",
    )
)
@click.argument("set_name", metavar="[SET|latest]", required=False, default="latest")
@click.option("--quick", is_flag=True, help="Do not read the archives.")
@click.option("--full", is_flag=True, help="Read every byte; the default.")
@click.option("--no-wait", is_flag=True, help="Give up (exit code 11) when something else is going on.")
@verb
def verify(daemon: Daemon, *, as_json: bool, set_name: str, quick: bool, full: bool, no_wait: bool) -> str:
    """Read a set back from every store that has it, and say whether it is what was written.

    Every archive is fetched and compared with its checksums, and its entries with the index. With --quick only what
    costs little is: whether all objects are there, their sizes, the checksums that the store vouches for, the indexes.
    The verdict is noted beside the set: `list` shows it, and a damaged set does not count as good.

    Exit codes: 0 it is whole, 1 it is not, or that could not be found out, 2 usage, 10 no such set, 11 busy, 130 Ctrl-C
    (it goes on), 143 it was cancelled, or the daemon told to stop.
    """
    if quick and full:
        raise click.UsageError("--quick does not go with --full")
    wanted = {"set": set_name, "how": "quick" if quick else "full", "no_wait": no_wait}
    report = _followed(daemon, "verification", wanted, [], as_json=as_json)
    if as_json:
        _print_json(report)
    else:
        _words().verified(report)
    return str(report["outcome"])


@main.command(
    epilog=_example(
        "docker exec backup drill",
        "docker exec backup drill latest shop_pgdata",
        "docker exec backup drill backup-20260102_030000 --json",
    )
)
@click.argument("set_name", metavar="[SET|latest]", required=False, default="latest")
@click.argument("volumes", metavar="[VOLUME]...", nargs=-1)
@click.option("--no-wait", is_flag=True, help="Give up (exit code 11) when something else is going on.")
@verb
def drill(daemon: Daemon, *, as_json: bool, set_name: str, volumes: tuple[str, ...], no_wait: bool) -> str:
    """Prove a set by use: restore it into scratch volumes, and start copies of its services on them.

    A copy has its service's image, command, user and environment, as they are now, and a memory limit; it has no
    network and no published port, and nothing of it is writable but the scratch volumes. It must become healthy in
    time; or the command in its label backup.drill, run inside, must succeed. Running containers and their volumes are
    not touched, and nothing is left behind. The verdict is noted beside the set: `list` shows it.

    Exit codes: 0 each volume is proven, 1 one is not, or that could not be found out, 3 a volume was restored, but
    nothing proves it, 10 no such set or volume, 11 busy, 130 Ctrl-C (it goes on), 143 it was cancelled, or the daemon
    told to stop.
    """
    wanted = {"set": set_name, "volumes": volumes, "no_wait": no_wait}
    report = _followed(daemon, "drill", wanted, [], as_json=as_json)
    if as_json:
        _print_json(report)
    else:
        _words().drilled(report)
    return str(report["outcome"])


@main.command(epilog=_example("docker exec backup keep backup-20260102_030000"))
@click.argument("set_name", metavar="SET")
@verb
def keep(daemon: Daemon, *, as_json: bool, set_name: str) -> str:
    """Never prune this SET, in any store that has it.

    Exit codes: 0 it is noted, 1 it could not be, 3 in one store it could not, 10 no such set.
    """
    return _keep(daemon, set_name, wanted=True, as_json=as_json)


@main.command(epilog=_example("docker exec backup unkeep backup-20260102_030000"))
@click.argument("set_name", metavar="SET")
@verb
def unkeep(daemon: Daemon, *, as_json: bool, set_name: str) -> str:
    """Let this SET be pruned in its time, as any other.

    Exit codes: 0 it is noted, 1 it could not be, 3 in one store it could not, 10 no such set.
    """
    return _keep(daemon, set_name, wanted=False, as_json=as_json)


def _keep(daemon: Daemon, set_name: str, *, wanted: bool, as_json: bool) -> str:
    document = daemon.post("/keep", {"set": set_name, "keep": wanted})
    if as_json:
        _print_json(document)
    else:
        _words().kept(document)
    return "partial" if document["errors"] else "good"


@main.command(epilog=_example("docker exec backup cancel"))
@verb
def cancel(daemon: Daemon, *, as_json: bool) -> str:
    """Stop what is going on.

    A run thaws what it froze, aborts its uploads, and leaves no set behind. A restore that has not begun to exchange
    leaves every volume as it was; one that has goes through. A verification notes nothing, nor does a drill, which
    leaves nothing behind. What waits for its turn is not cancelled.

    Exit codes: 0 it was told, 1 the daemon does not run, 10 nothing is going on.
    """
    document = daemon.post("/cancel")
    if as_json:
        _print_json(document)
    else:
        _words().cancelled(document)
    return "good"


@main.command(
    epilog=_example(
        "docker exec backup guard status",
        "docker exec backup guard release shop_data --for 30m",
        "docker exec backup guard protect shop_data",
    )
)
@click.argument("action", metavar="[status|release|protect]", default="status", type=click.Choice(_GUARD_ACTIONS))
@click.argument("volume", metavar="[VOLUME]", required=False)
@click.option("--for", "span", metavar="DURATION", help="How long to let go of VOLUME: 90s, 10m, 2h. Default: 10m.")
@verb
def guard(daemon: Daemon, *, as_json: bool, action: str, volume: str | None, span: str | None) -> str:
    """Show what the guard protects from `docker-compose down -v` and its like, or let it go of a VOLUME for a while.

    The guard is a container that has every volume that is backed up, so that none of them can be deleted while it runs.
    `release` lets go of one at once; when the time is over it is taken again, if it still exists. `protect` takes it
    again now.

    Exit codes: 0 good, 1 failed: the engine refused, or the daemon does not run, 2 usage, 10 no such volume, or one
    that the guard does not protect.
    """
    if (action == "status") != (volume is None):
        raise click.UsageError("status takes no VOLUME" if volume else f"{action} needs a VOLUME")
    if span and action != "release":
        raise click.UsageError("--for goes with release")
    if action == "status":
        document = daemon.get("/guard")
    else:
        document = daemon.post(f"/guard/{action}", {"volume": volume} | ({"for": span} if span else {}))
    if as_json:
        _print_json(document)
    else:
        _words().guard(document)
    return "good"


@main.command(
    epilog=_example(
        "docker exec backup check", "docker compose -f docker-compose.backup.yml run --rm backup check --json"
    )
)
@verb
def check(_: Daemon, *, as_json: bool) -> str:
    """Try everything that a backup needs: settings, engine, mounts, room in the spool, every store.

    Each line is ok, a warning or an error, with what to do about it. To each store a small object is written, read and
    deleted; no set, no container and no run is touched, so it may be used at any time. It needs no daemon.

    Exit codes: 0 all is ok, 3 there are warnings, 1 there are errors.
    """
    from sidecar import wiring  # noqa: PLC0415 - as in `daemon`

    words, findings = _words(), []
    for finding in wiring.check(os.environ):
        findings.append(finding)
        if not as_json:
            words.finding(finding.as_json())
    results = {finding.verdict.value for finding in findings}
    outcome = "failed" if "error" in results else "partial" if "warning" in results else "good"
    if as_json:
        _print_json({"outcome": outcome, "checks": [finding.as_json() for finding in findings]})
    else:
        words.checked(outcome)
    return outcome


@main.command(
    epilog=_example(
        "docker exec backup scan",
        "docker compose -f docker-compose.backup.yml run --rm backup scan",
        "docker exec backup scan --json",
    )
)
@verb
def scan(_: Daemon, *, as_json: bool) -> str:
    """Search for whatever is left to recover after a loss, and say with which command.

    It looks for sets of this host and of others in every store, in a bucket below every prefix; for archives without a
    manifest, deleted objects and unfinished uploads; and for volumes of this host that no container uses. It changes
    nothing, and needs no daemon.

    Exit codes: 0 something was found, 10 nothing was, 3 something could not be looked at (whether or not anything was
    found), 2 settings.
    """
    from sidecar import wiring  # noqa: PLC0415 - as in `daemon`

    with _telling() as say:
        salvage = wiring.scan(os.environ, say)
    document = salvage.as_json()
    if as_json:
        _print_json(document)
    else:
        _words().salvage(document)
    return salvage.outcome


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """Shows what goes on to somebody at a terminal, on standard error."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with Console(stderr=True, highlight=False).status("") as status:
        yield lambda text: status.update(Text(printable(text)))


@main.command("daemon", epilog=_example("docker run ... volume-backup-sidecar daemon"))
@click.option("--socket", default=CONTROL_SOCKET, hidden=True)
def run_daemon(socket: str) -> None:
    """Be the daemon: the schedule, and the runs that the other verbs ask for. The image's own command.

    It writes JSON lines to stdout and nothing else. Exit codes: 0 stopped while idle, 143 stopped in the middle of a
    run, 2 settings or a missing mount, 11 another daemon runs in this container.
    """
    # Here, because no other verb needs the engine's and the stores' libraries, which take half a second to load.
    from sidecar import wiring  # noqa: PLC0415
    from sidecar.service.daemon import serve  # noqa: PLC0415
    from sidecar.service.heap import search_seldom  # noqa: PLC0415

    search_seldom()
    # Not sys.exit: a thread that hangs in a request to a dead server would hold it until Docker kills us.
    os._exit(EXIT_CODES[serve(os.environ, wiring.build_jobs, socket_path=socket)])


@main.command("deadman", hidden=True)
@click.option("--container", required=True)
@click.option("--started-at", required=True)
@click.option("--run", required=True)
@click.option("--lease", required=True, type=float)
@click.option("--debug", is_flag=True)
def run_dead_man(*, container: str, started_at: str, run: str, lease: float, debug: bool) -> None:
    """Thaw what a run froze if the sidecar's container is no more. The sidecar starts it for each run."""
    from sidecar import standby  # noqa: PLC0415 - as above

    try:
        standby.stand_by(os.environ, container=container, started_at=started_at, run=run, lease=lease, say=click.echo)
    except SidecarError as exc:
        if debug:
            traceback.print_exc()
        sys.exit(EXIT_CODES.get(_complain(exc, as_json=False), 1))


@main.command("tell-kernel", hidden=True)
@click.argument("order")
@click.argument("container")
def run_rescue(*, order: str, container: str) -> None:
    """Freeze or thaw a container that its engine hangs over: see engine/rescue.py."""
    from sidecar.engine.rescue import Order, tell_kernel  # noqa: PLC0415 - as above

    for path in tell_kernel(Order(order), container):
        click.echo(path)


@main.command("unpack", hidden=True)
@click.option("--length", required=True, type=int)
@click.option("--files", required=True, type=int)
@click.option("--merge", is_flag=True)
@click.option("--reserve", default=0.0)
@click.option("--besides", default=0)
@click.option("--new", is_flag=True)
@click.option("--plain", is_flag=True)
@click.option("--root", required=True)
def run_unpack(*, root: str, **expected: Any) -> None:
    """Be a restore's helper: take a tar stream on stdin into the volume at ROOT, and exchange it when told to."""
    from sidecar.archive.unpack import Expected, restore_into  # noqa: PLC0415 - a helper loads nothing else

    _answer(lambda say: restore_into(root, Expected(**expected), sys.stdin.fileno(), say))


@main.command("settle", hidden=True)
@click.option("--root", required=True)
@click.option("--go", is_flag=True)
def run_settle(*, root: str, go: bool) -> None:
    """Be the helper that takes up a restore which was cut off, in the volume at ROOT."""
    from sidecar.archive.unpack import settle  # noqa: PLC0415 - as above

    _answer(lambda say: settle(root, say, go=go))


def _answer(act: Callable[[Callable[..., None]], None]) -> None:
    """Do it, and say each word as a line of JSON: whoever listens is the sidecar."""

    def say(word: str, **fields: str) -> None:
        click.echo(json.dumps({"word": word, **fields}))

    try:
        act(say)
    except SidecarError as exc:
        say("failed", code=exc.code, error=exc.message, hint=exc.hint)
    except OSError as exc:
        say(
            "failed",
            code="failed",
            error=f"{exc.filename or 'the volume'}: {exc.strerror}",
            hint="see the volume's disk",
        )
