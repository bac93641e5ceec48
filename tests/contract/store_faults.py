"""Faults between us and a store, scripted, and counted: a fault test that met none proves nothing."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from sidecar.stores.port import Capabilities, Pending, Store, Stored, StoredSource, Upload

# --- on the wire -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Do not ask the server: answer with this status and S3 error code."""

    status: int
    code: str
    message: str = "scripted"
    details: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    page: bytes = b""  # a web page instead of S3's XML


@dataclass(frozen=True)
class ResetRequest:
    """Read so many bytes of the request's body, then reset the connection."""

    after: int


@dataclass(frozen=True)
class LoseAnswer:
    """Let the server do it, then reset the connection instead of answering. meanwhile runs in between."""

    meanwhile: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Truncate:
    """Send so many bytes of the answer's body, then end the connection, politely or by a reset."""

    after: int
    reset: bool = False
    meanwhile: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Corrupt:
    """Flip a bit of the request's body on its way."""

    position: int


Action = Answer | ResetRequest | LoseAnswer | Truncate | Corrupt


@dataclass
class Fault:
    """The next request of this method whose path and query contain `where` meets the action, once."""

    method: str
    where: str
    action: Action
    fired: bool = False


@dataclass(frozen=True)
class Request:
    """A request that arrived: what the client sent, whatever became of it."""

    method: str
    target: str
    headers: dict[str, str]


class FaultyProxy:
    """An HTTP proxy before a server (or before nothing, when every request is answered by a fault).

    Requests are signed for the proxy's address, so the server must believe the Host header, as S3 servers do.
    """

    def __init__(self, upstream: str | None) -> None:
        self.upstream = urlsplit(upstream).netloc if upstream else None
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def script(self, *faults: Fault) -> None:
        """Add faults; of several that match a request, the first that has not fired meets it."""
        self.faults.extend(faults)

    def assert_all_fired(self) -> None:
        """Fails the test when a fault met no request."""
        assert self.faults, "no fault was scripted"
        assert not [fault for fault in self.faults if not fault.fired]

    def arrived(self, request: Request) -> Action | None:
        """Note a request; the action that it meets."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if not fault.fired and fault.method == request.method and fault.where in request.target:
                    fault.fired = True
                    return fault.action
        return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def _handle(self) -> None:
        action = self.proxy.arrived(Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        length = int(self.headers.get("Content-Length", 0))
        if isinstance(action, ResetRequest):
            self.rfile.read(min(action.after, length))
            self._reset()
            return
        body = bytearray(self.rfile.read(length))
        if isinstance(action, Answer):
            self._answer(action)
            return
        if isinstance(action, Corrupt):
            body[action.position] ^= 1
        status, headers, content = self._forward(bytes(body))
        if isinstance(action, LoseAnswer):
            action.meanwhile()
            self._reset()
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if isinstance(action, Truncate):
            self.wfile.write(content[: action.after])
            self.wfile.flush()
            action.meanwhile()
            if action.reset:
                self._reset()
            self.close_connection = True
            return
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        assert self.proxy.upstream is not None, f"no fault for {self.command} {self.path}"
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        skipped = ("connection", "transfer-encoding") + (() if self.command == "HEAD" else ("content-length",))
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in skipped]
        if self.command != "HEAD" and response.status != 204:
            headers.append(("Content-Length", str(len(content))))
        return response.status, headers, content

    def _answer(self, action: Answer) -> None:
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{action.code}</Code><Message>{action.message}</Message>{action.details}</Error>"
        ).encode()
        text = action.page or text
        self.send_response_only(action.status)
        self.send_header("Content-Type", "text/html" if action.page else "application/xml")
        self.send_header("Content-Length", str(len(text)))
        for name, value in action.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


# --- in memory -------------------------------------------------------------------------------------------------------


@dataclass
class Script:
    """For each operation, what its next calls meet: an exception, or None to go through. Beyond it, all go through.

    after: raise when the store has done its work, as when an answer is lost.
    """

    before: dict[str, list[Exception | None]] = field(default_factory=dict)
    after: dict[str, list[Exception | None]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def call(self, operation: str) -> Iterator[None]:
        with self.lock:
            self.calls.append(operation)
        self._meet(self.before, operation)
        yield
        self._meet(self.after, operation)

    def assert_all_fired(self) -> None:
        """Fails the test when part of the script was not played."""
        assert self.before or self.after, "nothing was scripted"
        assert not [rest for rest in (*self.before.values(), *self.after.values()) if rest]

    def _meet(self, script: dict[str, list[Exception | None]], operation: str) -> None:
        with self.lock:
            error = script[operation].pop(0) if script.get(operation) else None
        if error is not None:
            raise error


class ScriptedStore:
    """`inner`, whose operations meet the script: begin put_part copy_part complete abort put head open read list
    delete pending abort_pending.
    """

    def __init__(self, inner: Store, script: Script) -> None:
        self.name = inner.name
        self.off_host = inner.off_host
        self._inner = inner
        self._script = script

    @property
    def location(self) -> str:
        return self._inner.location

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def begin(self, key: str, *, content_type: str = "application/octet-stream") -> Upload:
        with self._script.call("begin"):
            upload = self._inner.begin(key, content_type=content_type)
        return _ScriptedUpload(upload, self._script)

    def put(self, key: str, data: bytes, *, content_type: str = "application/json", if_absent: bool = False) -> Stored:
        with self._script.call("put"):
            return self._inner.put(key, data, content_type=content_type, if_absent=if_absent)

    def head(self, key: str) -> Stored:
        with self._script.call("head"):
            return self._inner.head(key)

    @contextmanager
    def open(
        self, key: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None
    ) -> Iterator[StoredSource]:
        with self._script.call("open"):
            opened: AbstractContextManager[StoredSource] = self._inner.open(
                key, offset=offset, length=length, if_match=if_match
            )
        with opened as source:
            yield _ScriptedSource(source, self._script)

    def list(self, prefix: str = "") -> Iterator[Stored]:
        with self._script.call("list"):
            yield from self._inner.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        with self._script.call("delete"):
            self._inner.delete(keys)

    def pending(self, prefix: str = "") -> Iterator[Pending]:
        with self._script.call("pending"):
            yield from self._inner.pending(prefix)

    def abort_pending(self, upload: Pending) -> None:
        with self._script.call("abort_pending"):
            self._inner.abort_pending(upload)


class _ScriptedUpload:
    def __init__(self, inner: Upload, script: Script) -> None:
        self.key = inner.key
        self._inner = inner
        self._script = script

    def put(self, number: int, data: bytes | memoryview, crc32: int) -> None:
        with self._script.call("put_part"):
            self._inner.put(number, data, crc32)

    def copy(self, number: int, source: Stored, offset: int, length: int) -> None:
        with self._script.call("copy_part"):
            self._inner.copy(number, source, offset, length)

    def complete(self, numbers: Sequence[int], *, size: int, crc32: int) -> Stored:
        with self._script.call("complete"):
            return self._inner.complete(numbers, size=size, crc32=crc32)

    def abort(self) -> None:
        with self._script.call("abort"):
            self._inner.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class _ScriptedSource:
    def __init__(self, inner: StoredSource, script: Script) -> None:
        self.stored = inner.stored
        self._inner = inner
        self._script = script

    def read(self, size: int = -1, /) -> bytes:
        with self._script.call("read"):
            return self._inner.read(size)
