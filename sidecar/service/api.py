"""The control API: HTTP over a Unix socket that only this container's root may open.

POST /runs, /restores, /verifications and /drills stream one JSON object a line until the job's `report` or an `error`;
POST /cancel, /keep, /guard/release and /guard/protect, and GET /plan, /restores (what one would do), /sets, /status and
/guard give one object. An error is `{"code", "message", "hint"}`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sidecar.config import duration
from sidecar.errors import Busy, Interrupted, MountMissing, SidecarError, WrongUsage
from sidecar.service.guardian import Guardian
from sidecar.service.jobs_port import DrillRequest, Jobs, RestoreRequest, RunRequest, VerifyRequest
from sidecar.service.runs import Runs, Ticket

_STATUS = {
    "usage": 400,
    "config_invalid": 400,
    "not_found": 404,
    "busy": 409,
    "engine_denied": 502,
    "store_denied": 502,
    "bucket_missing": 502,
    "engine_unreachable": 503,
    "store_unreachable": 503,
    "interrupted": 503,
}
_TICK_SECONDS = 0.1  # how often a follower is told of progress
_CANCEL_SECONDS = 30.0  # how long to wait for a cancelled run to have thawed and aborted; it takes one or two

# Keys of `status` that have no value before the daemon is ready.
_UNKNOWN = (
    *("next_run", "next_verify", "next_drill", "schedule"),
    *("last_run", "last_verify", "last_drill", "guard", "running"),
)

Crashed = Callable[[BaseException, str], None]
Endpoint = Callable[[Request], Awaitable[Response]]


class Door:
    """What the socket leads to: until the daemon is ready, the reason why it is not; then the API.

    `why`: what it waits for; set by whoever waits. `app`: as uvicorn calls it; set once there is one.
    """

    def __init__(self) -> None:
        self.why = SidecarError("the daemon is starting", hint="try again in a moment")
        self.app: ASGIApp = Starlette(
            routes=[Route("/status", self._status), Route("/{path:path}", self._not_yet, methods=["GET", "POST"])]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        await self.app(scope, receive, send)

    async def _status(self, _: Request) -> Response:
        nothing = dict.fromkeys(_UNKNOWN)
        why = "; ".join(filter(None, ["not started yet: " + self.why.message, self.why.hint]))
        empty: dict[str, Any] = {"last_good": {}, "pending": [], "waiting": [], "warnings": []}
        return _json(nothing | empty | {"state": "starting", "healthy": False, "why": why})

    async def _not_yet(self, _: Request) -> Response:
        told = {"code": self.why.code, "message": f"the daemon has not started yet: {self.why.message}"}
        return _json(told | {"hint": self.why.hint}, status=503)


class ControlApi:
    """The application behind the socket.

    facts: what the daemon alone knows for plan and status (`schedule`, `next_run`). warnings: told to everyone who asks
    for a run or the status. crashed: takes an exception that nobody expected, with where it happened.
    """

    def __init__(
        self,
        runs: Runs,
        jobs: Jobs,
        guardian: Guardian,
        *,
        facts: Callable[[], dict[str, Any]],
        warnings: Sequence[str],
        crashed: Crashed,
    ) -> None:
        self._runs = runs
        self._jobs = jobs
        self._guardian = guardian
        self._facts = facts
        self._warnings = warnings
        self._crashed = crashed

    def app(self) -> Starlette:
        """As uvicorn wants it."""
        return Starlette(
            routes=[
                Route("/runs", self._answered(self._run), methods=["POST"]),
                Route("/restores", self._answered(self._restore), methods=["POST"]),
                Route("/restores", self._answered(self._restore_plan)),
                Route("/verifications", self._answered(self._verify), methods=["POST"]),
                Route("/drills", self._answered(self._drill), methods=["POST"]),
                Route("/keep", self._answered(self._keep), methods=["POST"]),
                Route("/cancel", self._answered(self._cancel), methods=["POST"]),
                Route("/plan", self._answered(self._plan)),
                Route("/sets", self._answered(self._sets)),
                Route("/status", self._answered(self._status)),
                Route("/guard", self._answered(self._guard)),
                Route("/guard/release", self._answered(self._release), methods=["POST"]),
                Route("/guard/protect", self._answered(self._protect), methods=["POST"]),
            ]
        )

    async def _run(self, request: Request) -> Response:
        wanted, no_wait = _run_request(await request.body())
        ticket = self._runs.submit(wanted, no_wait=no_wait)
        return StreamingResponse(self._lines(ticket, self._warnings), media_type="application/x-ndjson")

    async def _restore(self, request: Request) -> Response:
        wanted, no_wait = _restore_request(await request.body())
        ticket = self._runs.submit(wanted, no_wait=no_wait)
        return StreamingResponse(self._lines(ticket, ()), media_type="application/x-ndjson")

    async def _restore_plan(self, request: Request) -> Response:
        query = request.query_params
        wanted = RestoreRequest(
            query.get("set", "latest"),
            tuple(query.getlist("volume")),
            into=query.get("into"),
            pattern=query.get("pattern"),
            host=query.get("host"),
            safety="safety" in query,
            drivers="drivers" in query,
        )
        return _json(await run_in_threadpool(self._jobs.restore_plan, wanted))

    async def _verify(self, request: Request) -> Response:
        wanted, no_wait = _verify_request(await request.body())
        ticket = self._runs.submit(wanted, no_wait=no_wait)
        return StreamingResponse(self._lines(ticket, ()), media_type="application/x-ndjson")

    async def _drill(self, request: Request) -> Response:
        wanted, no_wait = _drill_request(await request.body())
        ticket = self._runs.submit(wanted, no_wait=no_wait)
        return StreamingResponse(self._lines(ticket, ()), media_type="application/x-ndjson")

    async def _keep(self, request: Request) -> Response:
        wanted = _object(await request.body(), {"set", "keep"})
        set_name, keep = wanted.get("set"), wanted.get("keep")
        if not isinstance(set_name, str) or not isinstance(keep, bool):
            raise WrongUsage("set is not a name, or keep not true or false")
        return _json(await run_in_threadpool(self._jobs.keep, set_name, keep))

    async def _cancel(self, _: Request) -> Response:
        ticket, waiting = self._runs.cancel()
        done = asyncio.wrap_future(ticket.result)
        await asyncio.wait({done}, timeout=_CANCEL_SECONDS)
        error = done.exception() if done.done() else None
        report = done.result() if done.done() and not error else None
        cut_off = "interrupted" if isinstance(error, Interrupted) else None
        return _json(
            {
                "cancelled": ticket.as_json(),
                "ended": done.done(),
                "outcome": report.outcome.value if report else cut_off,
                "set": report.set if report else None,
                "waiting": [each.as_json() for each in waiting],
            }
        )

    async def _plan(self, _: Request) -> Response:
        return _json(self._facts() | await run_in_threadpool(self._jobs.plan))

    async def _sets(self, request: Request) -> Response:
        wanted = [request.query_params.get(name) for name in ("set", "volume", "pattern", "host")]
        return _json(await run_in_threadpool(self._jobs.sets, *wanted))

    async def _status(self, _: Request) -> Response:
        known_here = {"guard": self._guardian.status(), "warnings": list(self._warnings)}
        return _json(self._runs.status() | self._facts() | known_here)

    async def _guard(self, _: Request) -> Response:
        return _json(self._guardian.status())

    async def _release(self, request: Request) -> Response:
        wanted = _object(await request.body(), {"volume", "for"})
        try:
            span = duration(str(wanted.get("for", "10m")))
        except ValueError as exc:
            raise WrongUsage(f"for is {wanted['for']!r}, and {exc}: such as 90s, 10m or 1h30m") from exc
        return _json(await run_in_threadpool(self._guardian.release, str(wanted.get("volume", "")), span))

    async def _protect(self, request: Request) -> Response:
        wanted = _object(await request.body(), {"volume"})
        return _json(await run_in_threadpool(self._guardian.protect, str(wanted.get("volume", ""))))

    def _answered(self, endpoint: Endpoint) -> Endpoint:
        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except SidecarError as exc:
                return _json(_error(exc), status=_STATUS.get(exc.code, 500))
            except Exception as exc:  # noqa: BLE001 - one failed request must not be the daemon's end
                self._crashed(exc, f"{request.method} {request.url.path}")
                return _json(_unexpected(exc), status=500)

        return answer

    async def _lines(self, ticket: Ticket, warnings: Sequence[str]) -> AsyncIterator[bytes]:
        try:
            async for each in _follow(self._runs, ticket, warnings):
                yield json.dumps(each).encode() + b"\n"
        except Exception as exc:  # noqa: BLE001 - the status line is sent: an error line is all that is left to say
            self._crashed(exc, "POST /runs")
            yield json.dumps({"error": _unexpected(exc)}).encode() + b"\n"


async def _follow(runs: Runs, ticket: Ticket, warnings: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
    """What a job's reader is told, until its end. A reader who leaves ends this, and not the job."""
    for warning in warnings:
        yield {"warning": warning}
    if runs.starting:
        yield {"warning": "the daemon is still starting: the run begins once what an earlier one left is put right"}
    done = asyncio.wrap_future(ticket.result)
    ahead, progress, told = None, None, 0
    over = False
    while not over:
        over = done.done()  # and once more, for what came last
        if (now_ahead := runs.ahead_of(ticket)) is not ahead:
            ahead = now_ahead
            if ahead:
                yield {"waiting_for": ahead.as_json()}
        for notice in ticket.notices[told:]:
            told += 1
            yield {"warning": notice}
        if ticket.progress is not progress and ticket.progress is not None:
            progress = ticket.progress
            yield {"progress": dataclasses.asdict(progress)}
        if not over:
            await asyncio.wait({done}, timeout=_TICK_SECONDS)
    error = done.exception()
    if error is None:
        yield {"report": done.result().as_json()}
    else:
        yield {"error": _error(error) if isinstance(error, SidecarError) else _unexpected(error)}


def _object(body: bytes, keys: set[str]) -> dict[str, Any]:
    """A body that is an object of no other keys. Raises WrongUsage."""
    try:
        document = json.loads(body or b"{}")
    except ValueError as exc:
        raise WrongUsage(f"the body is not JSON: {exc}") from exc
    if not isinstance(document, dict) or not document.keys() <= keys:
        raise WrongUsage(f"the body is not an object of {', '.join(sorted(keys))}")
    return document


def _names(wanted: dict[str, Any]) -> tuple[str, ...]:
    volumes = wanted.get("volumes", [])
    if not isinstance(volumes, list) or not all(isinstance(each, str) for each in volumes):
        raise WrongUsage("volumes is not a list of names")
    return tuple(volumes)


def _restore_request(body: bytes) -> tuple[RestoreRequest, bool]:
    """The request and whether it must not wait. Raises WrongUsage."""
    wanted = _object(body, {"set", "volumes", "into", "pattern", "host", "safety", "drivers", "no_wait"})
    texts = {name: wanted.get(name) for name in ("into", "pattern", "host")}
    set_name, safety, no_wait = wanted.get("set", "latest"), wanted.get("safety", True), wanted.get("no_wait", False)
    if not all(text is None or isinstance(text, str) for text in (set_name, *texts.values())) or set_name is None:
        raise WrongUsage("set, into, pattern or host is not a text")
    drivers = wanted.get("drivers", False)
    if not all(isinstance(each, bool) for each in (safety, drivers, no_wait)):
        raise WrongUsage("safety, drivers or no_wait is not true or false")
    return RestoreRequest(set_name, _names(wanted), safety=safety, drivers=drivers, **texts), no_wait  # type: ignore[arg-type]


def _verify_request(body: bytes) -> tuple[VerifyRequest, bool]:
    """The request and whether it must not wait. Raises WrongUsage."""
    wanted = _object(body, {"set", "how", "no_wait"})
    set_name, how, no_wait = wanted.get("set", "latest"), wanted.get("how", "full"), wanted.get("no_wait", False)
    if not isinstance(set_name, str) or how not in ("quick", "full") or not isinstance(no_wait, bool):
        raise WrongUsage("set is not a name, how neither quick nor full, or no_wait not true or false")
    return VerifyRequest(set_name, how), no_wait


def _drill_request(body: bytes) -> tuple[DrillRequest, bool]:
    """The request and whether it must not wait. Raises WrongUsage."""
    wanted = _object(body, {"set", "volumes", "no_wait"})
    set_name, no_wait = wanted.get("set", "latest"), wanted.get("no_wait", False)
    if not isinstance(set_name, str) or not isinstance(no_wait, bool):
        raise WrongUsage("set is not a name, or no_wait not true or false")
    return DrillRequest(set_name, _names(wanted)), no_wait


def _run_request(body: bytes) -> tuple[RunRequest, bool]:
    """The request and whether it must not wait. Raises WrongUsage."""
    wanted = _object(body, {"volumes", "full", "tags", "no_wait"})
    volumes, tags = _names(wanted), wanted.get("tags", {})
    full, no_wait = wanted.get("full", False), wanted.get("no_wait", False)
    if not isinstance(tags, dict) or not all(isinstance(each, str) for each in tags.values()):
        raise WrongUsage("tags is not an object of texts")
    if not isinstance(full, bool) or not isinstance(no_wait, bool):
        raise WrongUsage("full and no_wait are not true or false")
    return RunRequest(volumes=volumes, full=full, tags=tags), no_wait


def _error(error: SidecarError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _unexpected(error: BaseException) -> dict[str, Any]:
    # The type alone: the text may hold anything, and the log, which takes secrets out, has it.
    return {
        "code": "internal_error",
        "message": f"the daemon failed unexpectedly: {type(error).__name__}",
        "hint": "the log of the container `backup` has the details",
    }


def _json(document: dict[str, Any], *, status: int = 200) -> Response:
    # ASCII only: a path that is not UTF-8 has lone surrogates, which UTF-8 cannot carry and JSON escapes can.
    return Response(json.dumps(document), status_code=status, media_type="application/json")


class ControlSocket:
    """The path that clients connect to, and the proof that no other daemon runs here.

    Raises Busy when another daemon holds the path, MountMissing when its directory cannot be written.
    """

    def __init__(self, path: str) -> None:
        directory = os.path.dirname(path)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            # The kernel frees the lock with its holder, however that ended; a socket file outlives it.
            self._lock = open(f"{path}.lock", "w")  # noqa: SIM115 - held as long as the process lives
        except OSError as exc:
            raise MountMissing(
                f"the control socket's directory {directory} cannot be written: {exc.strerror}",
                hint=f"mount a tmpfs at {directory}, as docker-compose.backup.yml does",
            ) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise Busy(f"another daemon serves {path}", hint="use run-now, plan, list or status to talk to it") from exc
        self._path = path
        if os.path.lexists(path):
            os.unlink(path)

    def listen(self) -> socket.socket:
        """From now on clients can connect; they are answered once a `Server` serves the socket."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._path)
        os.chmod(self._path, 0o600)  # before listen(): until then nobody can connect
        listener.listen()
        return listener


class Server:
    """uvicorn in a thread, without its signal handlers (it sets them in a main thread only) and without its logs."""

    def __init__(self, app: ASGIApp, listener: socket.socket, *, crashed: Crashed) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._listener = listener
        self._crashed = crashed
        self._thread = threading.Thread(target=self._serve, name="control API", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Let the answers under way end, for at most `timeout` seconds."""
        self._server.should_exit = True
        self._thread.join(timeout)

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except BaseException as exc:  # noqa: BLE001 - uvicorn leaves by SystemExit, which a thread swallows
            self._crashed(exc, "control API")
