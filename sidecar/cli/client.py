"""Talking to the daemon: HTTP over its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from sidecar.service import CONTROL_SOCKET

_CONNECT_SECONDS = 5.0


class Complaint(Exception):
    """What a user is told instead of a result. code: as in `sidecar.errors`, or one of this package's own."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Daemon:
    """The daemon behind a control socket. Every method raises Complaint, in the daemon's own words where it has any."""

    def __init__(self, socket_path: str = CONTROL_SOCKET) -> None:
        self._path = socket_path

    def get(self, path: str, query: Mapping[str, str | Sequence[str] | None] | None = None) -> dict[str, Any]:
        """One JSON object. query: a sequence is given as often as it has members."""
        given = {name: text for name, text in (query or {}).items() if text is not None}
        return _whole(self._request("GET", path + ("?" + urlencode(given, doseq=True) if given else "")))

    def post(self, path: str, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One JSON object, for a request that changes something."""
        return _whole(self._request("POST", path, json.dumps(wanted).encode() if wanted else None))

    def follow(self, path: str, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Ask for a job (`/runs`, `/restores`, `/verifications`); its lines until `report` or `error`.

        A stream that ends before is a Complaint.
        """
        response = self._request("POST", path, json.dumps(wanted).encode())
        while True:
            try:
                line = response.readline()
            except (OSError, http.client.HTTPException) as exc:
                raise _broken_off() from exc
            if not line:
                raise _broken_off()
            document = _document(line)
            yield document
            if document.keys() & {"report", "error"}:
                return

    def _request(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path, body)
        except OSError as exc:
            raise _unreachable(self._path, exc) from exc
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise _broken_off() from exc
        if response.status != http.client.OK:
            error = _document(response.read())
            raise Complaint(
                error.get("code", "failed"), error.get("message", "the daemon refused"), error.get("hint", "")
            )
        return response


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("daemon")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CONNECT_SECONDS)
        self.sock.connect(self._path)
        self.sock.settimeout(None)  # a run takes as long as it takes


def _whole(response: http.client.HTTPResponse) -> dict[str, Any]:
    try:
        return _document(response.read())
    except (OSError, http.client.HTTPException) as exc:
        raise _broken_off() from exc


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as exc:
        raise Complaint("failed", "the daemon answered something that is not JSON") from exc
    if not isinstance(document, dict):
        raise Complaint("failed", "the daemon answered something that is not an object")
    return document


def _unreachable(path: str, error: OSError) -> Complaint:
    if isinstance(error, PermissionError):
        return Complaint(
            "daemon_unreachable",
            f"the control socket {path} may not be opened",
            "run this as root in the container: docker exec backup ...",
        )
    return Complaint(
        "daemon_unreachable",
        f"no daemon answers on {path}",
        "run it in the container (docker exec backup ...); if the daemon does not start, `docker logs backup` says why",
    )


def _broken_off() -> Complaint:
    return Complaint(
        "interrupted",
        "the daemon stopped before it had answered",
        "`docker logs backup` says why; what was frozen is thawed when it starts again",
    )
