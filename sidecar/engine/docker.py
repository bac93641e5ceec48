"""The Docker Engine over its HTTP API: requests, their failures in our words, and what the answers mean.

The SDK's client is the transport (Unix socket, TCP, TLS, version negotiation). Its methods are not used where they hide
what the freeze needs: a time-out for each request, and 304 (nothing to do).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from docker import APIClient
from docker.errors import DockerException, TLSParameterError
from docker.utils import kwargs_from_env

from sidecar.engine import likeness
from sidecar.engine.port import (
    HUNG,
    OUTPUT_KEPT,
    PATIENT,
    QUICK,
    Condition,
    ContainerEvent,
    Copied,
    Executed,
    Helper,
    Watch,
)
from sidecar.engine.rescue import CGROUPS, MOUNTED, Order
from sidecar.errors import (
    AlreadyPaused,
    ContainerGone,
    EngineDenied,
    EngineError,
    EngineSilent,
    EngineUnreachable,
    FreezeFailed,
    HelperEnded,
    NotRunning,
)
from sidecar.model import ROLE_LABEL, Container, ContainerState, EngineIdentity, Mount, Volume

T = TypeVar("T")

SOCKET = "unix:///var/run/docker.sock"


# The engine keeps its last 256 events (moby, daemon/events: eventsLimit, 20.10 to 29).
EVENTS_KEPT = 256
# Often enough for 256 events a second.
EVENTS_EVERY = 1.0

_CHECKED_EVERY = 30 * 10**9  # nanoseconds: the engine's default

# Seconds between two looks whether a command in a container has ended, or need not be waited for any more.
LOOK_EVERY = 0.05

# Of a frame header in /containers/ID/logs and /containers/ID/attach, and of what a command writes: bytes; the first
# names the stream.
_FRAME = 8
_STDOUT = 1


def connect(environment: Mapping[str, str]) -> DockerEngine:
    """The engine that DOCKER_HOST (with DOCKER_TLS_VERIFY, DOCKER_CERT_PATH) names, else the one on the usual socket.

    Raises EngineUnreachable, EngineDenied.
    """
    address = environment.get("DOCKER_HOST", "").strip() or SOCKET
    with _translated("negotiate the API version", address):
        arguments = kwargs_from_env(environment=dict(environment))
        client = APIClient(**{"base_url": address, **arguments}, version="auto", timeout=PATIENT)
    return DockerEngine(client, address=address, hostname=environment.get("HOSTNAME", ""))


class DockerEngine:
    """A Docker Engine 20.10 or later (API 1.41).

    client: the SDK's low-level client, for which an API version has been settled. address: what it is connected to, as
    in DOCKER_HOST. proc: where the kernel tells this process about itself. hostname: the last resort for finding our
    own container.
    """

    def __init__(
        self, client: APIClient, *, address: str = SOCKET, proc: Path = Path("/proc/self"), hostname: str = ""
    ) -> None:
        self._client = client
        self._address = address
        self._proc = proc
        self._hostname = hostname
        self._own_id: str | None = None

    def identity(self) -> EngineIdentity:
        """Who the engine is."""
        return self._read("/info", _identity)

    def volumes(self) -> list[Volume]:
        """All volumes, by name, anonymous ones too."""
        return self._read("/volumes", _volumes)

    def containers(self, *, running_only: bool = False) -> list[Container]:
        """All containers with their mounts, by name.

        One list and an inspection each, one after another: 1 to 1.5 ms per container, and threads made it no faster.
        The inspection decides: on Docker 26.1 the list still had a container as running up to 102 ms after its stop had
        been answered, in 9 of 10 stops (none of 10 on 20.10).
        """
        parameters = {"all": "1"}
        if running_only:
            parameters["filters"] = json.dumps({"status": ["running", "paused", "restarting"]})
        found = []
        for identifier in self._read("/containers/json", _identifiers, parameters):
            try:
                container = self.container(identifier)
            except ContainerGone:
                continue
            if not running_only or container.running:
                found.append(container)
        return sorted(found, key=lambda container: container.name)

    def container(self, identifier: str, *, patience: float = PATIENT) -> Container:
        """One container by ID or name. Raises ContainerGone, EngineSilent."""
        return self._read(f"/containers/{identifier}/json", _container, timeout=patience)

    def pause(self, identifier: str) -> None:
        """Freeze its processes."""
        self._ask("POST", f"/containers/{identifier}/pause", timeout=QUICK)

    def unpause(self, identifier: str) -> bool:
        """Thaw it; whether it was paused. An engine that hangs over it is helped (engine/rescue.py)."""
        path = f"/containers/{identifier}/unpause"
        try:
            try:
                self._ask("POST", path, timeout=HUNG)
            except EngineSilent:
                self._have_kernel_told(Order.THAW, identifier)
                self._ask("POST", path, timeout=QUICK)
        except _NotPaused:
            return False
        except _NotFrozen:
            self._have_kernel_told(Order.FREEZE, identifier)
            self._ask("POST", path, timeout=QUICK)
        return True

    def _have_kernel_told(self, order: Order, identifier: str) -> None:
        """By a container of our own image. Raises EngineError."""
        own = self.this_container()
        if own is None:
            return
        body = {
            "Image": own.image_id,
            "Cmd": ["tell-kernel", order.value, identifier],
            "Labels": {ROLE_LABEL: "helper"},
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": {
                "AutoRemove": True,
                # Root of the host, and nothing of it but the right to write what root owns there.
                "Binds": [f"{CGROUPS}:{MOUNTED}"],
                "UsernsMode": "host",
                "SecurityOpt": ["no-new-privileges:true", "label=disable"],
                "CapDrop": ["ALL"],
                "NetworkMode": "none",
                "ReadonlyRootfs": True,
                "PidsLimit": 64,
            },
        }
        helper = self._create(own, "helper", body)
        self.start(helper)
        with suppress(ContainerGone):
            self._ask("POST", f"/containers/{helper}/wait")

    def stop(self, identifier: str, *, timeout: int) -> bool:
        """Stop it, killing after `timeout` seconds; whether it was running."""
        path = f"/containers/{identifier}/stop"
        return self._ask("POST", path, {"t": str(timeout)}, timeout=timeout + PATIENT).status_code != 304

    def start(self, identifier: str) -> bool:
        """Start it; whether it was stopped."""
        return self._ask("POST", f"/containers/{identifier}/start").status_code != 304

    def launch(self, like: Container, *, role: str, command: Sequence[str], keep: Sequence[str]) -> str:
        """Start a container of our own image beside us."""
        own_socket = urlsplit(self._address).path if self._address.startswith("unix:") else ""
        mounts = [
            {
                "Type": mount.kind,
                "Source": mount.volume or mount.source,
                "Target": mount.target,
                # Whoever may write to the engine's socket needs no write access to the file system that it lies on.
                "ReadOnly": mount.target != own_socket,
            }
            for mount in like.mounts
            if mount.target in (*keep, own_socket)
        ]
        body = {
            "Image": like.image_id,
            "Cmd": list(command),
            "Env": [f"DOCKER_HOST={self._address}"],
            "Labels": {ROLE_LABEL: role},
            "Healthcheck": {"Test": ["NONE"]},  # the image's asks the daemon, which a helper is not
            "HostConfig": {
                "AutoRemove": True,
                "Mounts": mounts,
                "NetworkMode": "none" if own_socket else like.network,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges:true"],
                "ReadonlyRootfs": True,
                "PidsLimit": 64,
            },
        }
        identifier = self._create(like, role, body)
        try:
            self.start(identifier)
        except EngineError:
            self.remove(identifier)
            raise
        return identifier

    def create_guard(
        self, like: Container, name: str, *, volumes: Sequence[str], labels: Mapping[str, str], made: Mapping[str, str]
    ) -> str:
        """Create a container of our own image that has volumes and sleeps: 0.5 MB of memory, one process."""
        body = {
            "Image": like.image_id,
            "Entrypoint": ["sleep", "infinity"],
            "User": "65534:65534",
            "Labels": dict(labels),
            "Healthcheck": {"Test": ["NONE"]},
            "StopSignal": "SIGKILL",  # process 1 ignores SIGTERM, and whoever stops it need not wait for that
            "HostConfig": {
                "RestartPolicy": {"Name": "unless-stopped"},
                "Mounts": [
                    {
                        "Type": "volume",
                        "Source": volume,
                        "Target": f"/guarded/{number}",
                        "ReadOnly": True,
                        "VolumeOptions": {"NoCopy": True, "Labels": dict(made)},
                    }
                    for number, volume in enumerate(volumes)
                ],
                "NetworkMode": "none",
                "IpcMode": "none",
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges:true"],
                "ReadonlyRootfs": True,
                "PidsLimit": 8,
                "LogConfig": {"Type": "none"},
            },
        }
        return self._create_named(name, body)

    def rename(self, identifier: str, name: str) -> None:
        """Give a container another name."""
        self._ask("POST", f"/containers/{identifier}/rename", {"name": name})

    def create_volume(
        self, name: str, *, labels: Mapping[str, str], driver: str = "local", options: Mapping[str, str] | None = None
    ) -> None:
        """Create a volume, unless it exists."""
        # Without options the engine shows none at all, as of a volume that Compose makes; with an empty object, that.
        made = {"Driver": driver, "DriverOpts": dict(options) if options else None, "Labels": dict(labels)}
        self._ask("POST", "/volumes/create", body={"Name": name} | made)

    def remove_volume(self, name: str) -> bool:
        """Remove a volume; False while a container has it."""
        try:
            self._ask("DELETE", f"/volumes/{name}")
        except _Missing:
            return True
        except _InUse:
            return False
        return True

    @contextmanager
    def help_with(self, like: Container, volume: str, *, command: Sequence[str], target: str) -> Iterator[Helper]:
        """A container of our own image with one volume, and a connection to its standard input and output."""
        body = {
            "Image": like.image_id,
            "Cmd": list(command),
            "Labels": {ROLE_LABEL: "helper"},
            "Healthcheck": {"Test": ["NONE"]},
            "OpenStdin": True,
            "StdinOnce": True,  # our end of it, however we ended, is its end
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "HostConfig": {
                "AutoRemove": True,
                "Mounts": [{"Type": "volume", "Source": volume, "Target": target}],
                "NetworkMode": "none",
                "CapDrop": ["ALL"],
                "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"],
                "SecurityOpt": ["no-new-privileges:true"],
                "ReadonlyRootfs": True,
                "PidsLimit": 64,
            },
        }
        identifier = self._create(like, "helper", body)
        started = False
        try:
            stream = self._attach(identifier)
            try:
                self.start(identifier)
                started = True
                yield _Conversation(stream, lambda: self._runs(identifier))
            finally:
                with suppress(OSError):  # closing alone would not do: the library may still hold its own end
                    stream.shutdown(socket.SHUT_RDWR)
                stream.close()
        finally:
            if not started:
                self.remove(identifier)

    def _runs(self, identifier: str) -> bool:
        try:
            return self.container(identifier).running
        except ContainerGone:
            return False
        except EngineError:
            return True  # as far as is known

    def _create(self, like: Container, role: str, body: Mapping[str, Any]) -> str:
        # Whoever finds it in `docker ps` sees whose it is.
        return self._create_named(f"{like.name}-{role}-{secrets.token_hex(3)}", body)

    def _create_named(self, name: str, body: Mapping[str, Any]) -> str:
        identifier: str = self._ask("POST", "/containers/create", {"name": name}, body=body).json()["Id"]
        return identifier

    def _attach(self, identifier: str) -> socket.socket:
        """The connection that the engine hands over (API: attach): what we write is its standard input."""
        path = f"/containers/{identifier}/attach"
        with _translated(f"POST {path}", self._address):
            response = self._client.attach_socket(identifier, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            stream: socket.socket = getattr(response, "_sock", response)
            # Ours alone: the library closes its own when it forgets the response. (TLS cannot be duplicated.)
            return stream if isinstance(stream, ssl.SSLSocket) else stream.dup()

    def copy(
        self, identifier: str, name: str, *, mounts: Sequence[Mount], labels: Mapping[str, str], memory: int
    ) -> Copied:
        """Create, without starting it, a harmless copy of a container."""
        facts = self._facts(identifier)
        body = likeness.copy_of(facts, mounts=mounts, labels=labels, memory=memory)
        blotted = likeness.blotting(facts["Config"].get("Env") or ())
        try:
            made = self._create_named(name, body)
        except EngineError as error:
            error.message = blotted(error.message)  # what the engine refuses it may quote
            raise
        return Copied(made, likeness.withheld(facts), blotted)

    def condition(self, identifier: str) -> Condition:
        """How it is doing."""
        return self._read(f"/containers/{identifier}/json", _condition)

    def last_words(self, identifier: str) -> str:
        """The end of what a container has written."""
        wanted = {"stdout": "1", "stderr": "1", "tail": "50"}
        raw = self._ask("GET", f"/containers/{identifier}/logs", wanted).content
        on_terminal = self._facts(identifier)["Config"]["Tty"]  # then there are no frames
        text = raw if on_terminal else b"".join(text for _, text in _Frames().of(raw))
        return text[-OUTPUT_KEPT:].decode(errors="replace")

    def _facts(self, identifier: str) -> dict[str, Any]:
        return self._read(f"/containers/{identifier}/json", dict)

    def output(self, identifier: str) -> str:
        """What a container has written to its standard output so far."""
        raw = self._ask("GET", f"/containers/{identifier}/logs", {"stdout": "1"}).content
        return b"".join(text for _, text in _Frames().of(raw)).decode(errors="replace")

    def remove(self, identifier: str) -> None:
        """Remove it, running or not."""
        with suppress(ContainerGone):
            try:
                self._ask("DELETE", f"/containers/{identifier}", {"force": "1", "v": "1"})
            except EngineError as error:
                if "already in progress" not in error.message:
                    raise

    def execute(self, identifier: str, command: Sequence[str], *, waiting: Callable[[], bool]) -> Executed:
        """Run a command in a running container, and wait for its end."""
        asked = {"AttachStdout": True, "AttachStderr": True, "Cmd": list(command)}
        execution = self._ask("POST", f"/containers/{identifier}/exec", body=asked).json()["Id"]
        output = _Output(self, execution)
        ended = output.wait(waiting)
        # The stream may end a moment before the engine knows how the command did.
        while ended and (code := self._exit_code(identifier, execution)) is None and waiting():
            time.sleep(LOOK_EVERY)
        return Executed(code if ended else None, output.text())

    def _exit_code(self, identifier: str, execution: str) -> int | None:
        """None while the command runs. Raises ContainerGone."""
        try:
            facts = self._read(f"/exec/{execution}/json", dict)
        except EngineError:
            self.container(identifier)  # with the container goes what the engine knows of its commands
            raise
        return None if facts["Running"] else facts["ExitCode"]

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Follow container events from now on."""
        log = _EventLog(self)
        done = threading.Event()
        reader = threading.Thread(target=log.keep_up, args=(done,), name="engine-events", daemon=True)
        reader.start()
        try:
            yield log
        finally:
            done.set()
            reader.join()

    def this_container(self) -> Container | None:
        """The container that this process runs in: the first of `own_identifiers` that carries a `backup.role`."""
        if self._own_id is not None:
            return self.container(self._own_id)
        for candidate in own_identifiers(_text(self._proc / "cgroup"), _text(self._proc / "mountinfo"), self._hostname):
            try:
                container = self.container(candidate)
            except ContainerGone:
                continue
            if container.role:
                self._own_id = container.id
                return container
        return None

    def carries_us(self, container: Container) -> bool:
        """Whether it is this container, or serves our connection to the engine."""
        own = self.this_container()
        return (own is not None and own.id == container.id) or serves_engine(container, self._address, own)

    def recent_events(self) -> list[bytes]:
        """The engine's whole event buffer, oldest first: one JSON document each, its last `EVENTS_KEPT` events.

        An `until` in the past makes the engine answer from its buffer and end; an `until` of zero filters nothing out
        (moby, daemon/events: loadBufferedEvents; tried on 20.10: 256 events in 4 ms). No clock takes part: events are
        stamped before they are queued, so a time range could leave one out, and a stepped clock many. The streaming
        form drops events of a reader that is 100 ms late, silently, and has no mark for "this is all up to now".
        """
        return self._ask("GET", "/events", {"until": "0"}).content.splitlines()

    def _read(
        self,
        path: str,
        meaning: Callable[[Any], T],
        parameters: Mapping[str, str] | None = None,
        *,
        timeout: float = PATIENT,
    ) -> T:
        response = self._ask("GET", path, parameters, timeout=timeout)
        try:
            return meaning(response.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(
                f"the answer to GET {path} is not Docker's: {error!r}", hint="see what listens at DOCKER_HOST"
            ) from error

    def _ask(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        timeout: float = PATIENT,
    ) -> requests.Response:
        client = self._client
        url = f"{client.base_url}/v{client.api_version}{path}"
        with _translated(f"{method} {path}", self._address):
            response: requests.Response = client.request(method, url, params=parameters, json=body, timeout=timeout)
            response.content  # noqa: B018 - reads the answer here, where its failures are translated
        if response.status_code >= 400:
            raise _refusal(method, path, response)
        return response

    def _stream(
        self, path: str, body: Mapping[str, Any], begun: Callable[[requests.Response], None]
    ) -> Iterator[bytes]:
        """What the engine answers to a POST, as it comes, however long that takes; begun: given the open answer."""
        client = self._client
        url = f"{client.base_url}/v{client.api_version}{path}"
        with _translated(f"POST {path}", self._address):
            response = client.request("POST", url, json=body, timeout=(PATIENT, None), stream=True)
            begun(response)
            if response.status_code >= 400:
                raise _refusal("POST", path, response)
            while chunk := response.raw.read1(OUTPUT_KEPT):
                yield chunk


class _Frames:
    """What is in the frames of a stream of the engine: kind, three zeros, length (big endian), bytes."""

    def __init__(self) -> None:
        self._raw = b""

    def of(self, more: bytes) -> Iterator[tuple[int, bytes]]:
        """The frames that are whole with these bytes: which output stream (1: standard output), and its bytes."""
        self._raw += more
        while len(self._raw) >= _FRAME:
            end = _FRAME + int.from_bytes(self._raw[4:_FRAME], "big")
            if len(self._raw) < end:
                return
            yield self._raw[0], self._raw[_FRAME:end]
            self._raw = self._raw[end:]


class _Output:
    """What a command writes, read in a thread of its own: whoever waits for it may stop waiting."""

    def __init__(self, engine: DockerEngine, execution: str) -> None:
        self._engine = engine
        self._execution = execution
        self._frames = _Frames()
        self._text = b""
        self._answer: requests.Response | None = None
        self._left = False
        self._trouble: EngineError | None = None
        self._thread = threading.Thread(target=self._read, name="command-output", daemon=True)

    def wait(self, waiting: Callable[[], bool]) -> bool:
        """Start the command; whether it ended while it was waited for. Raises EngineError."""
        self._thread.start()
        while self._thread.is_alive() and waiting():
            self._thread.join(LOOK_EVERY)
        if self._thread.is_alive():
            self._leave()
            return False
        if self._trouble is not None:
            raise self._trouble
        return True

    def text(self) -> str:
        """The end of what it has written so far."""
        return self._text.decode(errors="replace")

    def _leave(self) -> None:
        self._left = True
        if self._answer is not None:
            with suppress(OSError, ValueError, RuntimeError):  # it has just ended by itself
                self._answer.raw.shutdown()  # wakes the thread

    def _read(self) -> None:
        try:
            for chunk in self._engine._stream(f"/exec/{self._execution}/start", {"Detach": False}, self._begun):
                for _, text in self._frames.of(chunk):
                    self._text = (self._text + text)[-OUTPUT_KEPT:]
        except EngineError as error:
            self._trouble = error
        finally:
            if self._answer is not None:
                self._answer.close()

    def _begun(self, answer: requests.Response) -> None:
        self._answer = answer
        if self._left:
            self._leave()


class _Conversation:
    """A container's standard input and output over one connection. What it says comes in frames, as in its logs."""

    def __init__(self, stream: socket.socket, runs: Callable[[], bool]) -> None:
        self._stream = stream
        self._runs = runs
        self._frames = _Frames()
        self._said = b""
        self._complained = b""

    def send(self, data: bytes | memoryview) -> None:
        """Give it bytes."""
        view = memoryview(data)
        until = time.monotonic() + PATIENT
        self._stream.settimeout(QUICK)
        while view:
            try:
                view = view[self._stream.send(view) :]
                until = time.monotonic() + PATIENT
            except TimeoutError as error:
                # The engine does not always close the connection of a container that has ended (seen on 20.10).
                if not self._runs():
                    raise self._ended() from error
                if time.monotonic() >= until:
                    raise EngineError(
                        f"the helper container has taken nothing for {PATIENT:g} s", hint="see the disk of the volume"
                    ) from error
            except OSError as error:
                raise self._ended() from error

    def end(self) -> None:
        """Nothing more to send."""
        with suppress(OSError):
            self._stream.shutdown(socket.SHUT_WR)

    def hear(self, timeout: float) -> bytes | None:
        """Its next line."""
        self._stream.settimeout(timeout)
        while b"\n" not in self._said:
            try:
                more = self._stream.recv(65536)
            except TimeoutError:
                return None
            except OSError as error:
                raise self._ended() from error
            if not more:
                raise self._ended()
            for kind, text in self._frames.of(more):
                if kind == _STDOUT:
                    self._said += text
                else:
                    self._complained = (self._complained + text)[-2000:]
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _ended(self) -> HelperEnded:
        words = self._complained.decode(errors="replace").strip().rpartition("\n")[2]
        return HelperEnded(
            f"the helper container has ended{f': {words}' if words else ''}", hint="see the engine's log; try again"
        )


class _EventLog:
    """Container events since it was made, gathered from the engine's buffer before that wraps."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._guard = threading.Lock()
        self._events: list[ContainerEvent] = []
        self._lost = False
        buffered = engine.recent_events()
        self._last = buffered[-1] if buffered else None

    def events(self) -> Sequence[ContainerEvent]:
        """All container events up to now. Raises EngineError when the engine has forgotten some."""
        with self._guard:
            self._gather()
            if self._lost:
                raise EngineError(
                    "the engine's event log was overwritten or lost while it was watched",
                    hint="more than 256 events a second, or an engine that was restarted: run the backup again",
                )
            return tuple(self._events)

    def keep_up(self, done: threading.Event) -> None:
        """Gather regularly until told that it is done."""
        while not done.wait(EVENTS_EVERY):
            with self._guard:
                try:
                    self._gather()
                except EngineError:
                    continue  # nothing is lost by it: the buffer is read again, and `events` itself reports a failure

    def _gather(self) -> None:
        buffered = self._engine.recent_events()
        if self._last is None:
            # The buffer was empty at the beginning (an engine just started), so all of it is new unless it has wrapped.
            known = 0
            self._lost = self._lost or len(buffered) >= EVENTS_KEPT
        elif self._last in buffered:
            # First in, first out: while the last one known is still there, so is everything after it.
            known = buffered.index(self._last) + 1
        else:
            known = 0
            self._lost = True
        if buffered:
            self._last = buffered[-1]
        self._events += [event for line in buffered[known:] if (event := _event(json.loads(line)))]


def own_identifiers(cgroup: str, mountinfo: str, hostname: str) -> list[str]:
    """Where to look for our own container, most reliable first: IDs or names, each at most once.

    cgroup and mountinfo: the texts of these files in /proc/self, empty where they cannot be read. Only cgroup v1 (and
    v2 without a private name space) names the container in `cgroup`. The engine mounts /etc/hostname and its like from
    `.../containers/ID/`; with `network_mode: container:X` that is X's directory, hence the check of the caller. The
    hostname is the short ID unless the user has set one.
    """
    candidates = re.findall(r"\b[0-9a-f]{64}\b", cgroup)
    for line in mountinfo.splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[4] in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
            candidates += re.findall(r"/containers/([0-9a-f]{64})/", fields[3])
    candidates += [hostname] if hostname else []
    return list(dict.fromkeys(candidates))


def serves_engine(container: Container, docker_host: str, own: Container | None = None) -> bool:
    """Whether a connection to `docker_host` runs through this container: a socket proxy. Pure.

    docker_host: as in DOCKER_HOST; own: the container that connects. TCP: one of its names, addresses or published
    ports is meant, or it shares our loopback interface. Unix socket: the socket lies on a volume that it can write (a
    proxy that listens there); a bind is taken for the engine's own socket, which others may have mounted too.
    """
    if own is not None and container.id == own.id:
        return False
    parts = urlsplit(docker_host)
    if parts.scheme == "unix":
        above = [] if own is None else [m for m in own.mounts if parts.path.startswith(m.target.rstrip("/") + "/")]
        volume = max(above, key=lambda mount: len(mount.target)).volume if above else ""
        return bool(volume) and any(mount.writable and mount.volume == volume for mount in container.mounts)
    host = (parts.hostname or "").rstrip(".").lower()
    if not host:
        return False
    if host in ("localhost", "::1") or host.startswith("127."):
        named = own is not None and _share_network(container, own)
    else:
        named = host in {address.lower() for address in container.addresses}
    return named or parts.port in container.published


def _share_network(one: Container, other: Container) -> bool:
    """Whether they have one network name space, as with `network_mode: service:X`."""
    first, second = (
        {c.network.removeprefix("container:")} if c.network.startswith("container:") else {c.id, c.name}
        for c in (one, other)
    )
    return not first.isdisjoint(second)


# --- what the answers mean -------------------------------------------------------------------------------------------


def _identity(facts: Mapping[str, Any]) -> EngineIdentity:
    """From GET /info."""
    return EngineIdentity(facts["ID"], facts["Name"], facts["ServerVersion"], facts["DockerRootDir"])


def _identifiers(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """From GET /containers/json."""
    return [listed["Id"] for listed in facts]


def _volumes(facts: Mapping[str, Any]) -> list[Volume]:
    """From GET /volumes."""
    return sorted(map(_volume, facts["Volumes"] or ()), key=lambda volume: volume.name)


def _container(facts: Mapping[str, Any]) -> Container:
    """A container from GET /containers/ID/json."""
    state, configuration, host = facts["State"], facts["Config"], facts["HostConfig"]
    settings = facts["NetworkSettings"]
    name = facts["Name"].removeprefix("/")
    labels = configuration["Labels"] or {}
    addresses = {name, configuration["Hostname"], facts["Id"][:12], labels.get("com.docker.compose.service", "")}
    for network in (settings["Networks"] or {}).values():
        addresses |= {network["IPAddress"], network["GlobalIPv6Address"]}
        addresses |= {*(network["Aliases"] or ()), *(network.get("DNSNames") or ())}
    bindings = [binding for some in (settings.get("Ports") or {}).values() for binding in some or ()]
    stop_timeout = configuration.get("StopTimeout")
    return Container(
        id=facts["Id"],
        name=name,
        image=configuration["Image"],
        image_id=facts["Image"],
        state=ContainerState(state["Status"]),
        started_at=state["StartedAt"],
        pid=state["Pid"],
        labels=labels,
        # The engine lists them in another order each time (tried); a container that did not change must compare equal.
        mounts=tuple(sorted(map(_mount, facts["Mounts"] or ()), key=lambda mount: mount.target)),
        auto_remove=host["AutoRemove"],
        addresses=frozenset(addresses - {""}),
        published=frozenset(int(binding["HostPort"]) for binding in bindings if binding["HostPort"]),
        network=host["NetworkMode"],
        stop_timeout=10 if stop_timeout is None else stop_timeout,
        health_check=likeness.has_health_check(configuration),
        memory=host.get("Memory") or 0,
        next_check=_next_check(state, configuration) if likeness.has_health_check(configuration) else None,
    )


def _next_check(state: Mapping[str, Any], configuration: Mapping[str, Any]) -> float | None:
    """When the engine begins the next health check: its interval after the end of the last (moby, daemon/health.go)."""
    checks = (state.get("Health") or {}).get("Log") or ()
    last = checks[-1]["End"] if checks else state["StartedAt"]
    interval = (configuration.get("Healthcheck") or {}).get("Interval") or _CHECKED_EVERY
    try:
        return datetime.fromisoformat(last).timestamp() + interval / 1e9
    except ValueError:
        return None


def _condition(facts: Mapping[str, Any]) -> Condition:
    """From GET /containers/ID/json."""
    state = facts["State"]
    health = state.get("Health") or {}
    checks = health.get("Log") or ()
    return Condition(
        running=state["Running"],
        code=None if state["Running"] else state["ExitCode"],
        out_of_memory=state["OOMKilled"],
        health="" if health.get("Status") in (None, "none") else health["Status"],
        said=checks[-1]["Output"] if checks else "",
    )


def _mount(facts: Mapping[str, Any]) -> Mount:
    kind = facts["Type"]
    volume = facts["Name"] if kind == "volume" else ""
    return Mount(kind, facts.get("Source", ""), facts["Destination"], facts["RW"], volume)


def _volume(facts: Mapping[str, Any]) -> Volume:
    """A volume from an entry of GET /volumes."""
    return Volume(
        name=facts["Name"],
        mountpoint=facts["Mountpoint"],
        driver=facts["Driver"],
        options=facts["Options"] or {},
        labels=facts["Labels"] or {},
        created=facts.get("CreatedAt", ""),
    )


def _event(facts: Mapping[str, Any]) -> ContainerEvent | None:
    """A container's event from a line of GET /events; None for networks, images, and volumes unless mounted."""
    actor = facts["Actor"]
    attributes = actor["Attributes"]
    if (facts["Type"], facts["Action"]) == ("volume", "mount"):
        mount = Mount("volume", "", attributes["destination"], attributes["read/write"] == "true", actor["ID"])
        return ContainerEvent("mount", attributes["container"], "", mounted=mount)
    if facts["Type"] != "container":
        return None
    action = facts["Action"].partition(":")[0]  # "exec_create: /bin/sh -c ...", "health_status: healthy"
    name, role = attributes.get("name", ""), attributes.get(ROLE_LABEL, "")
    return ContainerEvent(action, actor["ID"], name, role, at=facts.get("timeNano", 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# --- failures in our words -------------------------------------------------------------------------------------------


class _NotPaused(EngineError):
    """What unpause was asked for is so already."""


class _NotFrozen(EngineError):
    """The engine thinks that it is paused, and the kernel has thawed it."""


class _Missing(EngineError):
    """There is no such volume."""


class _InUse(EngineError):
    """A container has the volume."""


def _refusal(method: str, path: str, response: requests.Response) -> EngineError:
    """The engine's (or a proxy's) answer of 400 or above as an error."""
    try:
        said = str(response.json()["message"]).strip()
    except (ValueError, KeyError, TypeError):
        said = response.text.strip()[:200]
    what = f"the Docker Engine answered {response.status_code} to {method} {path}: {said or 'no reason given'}"
    if response.status_code in (401, 403):
        return EngineDenied(
            f"{method} {path} is not permitted on the Docker socket",
            hint="let the socket proxy (or the authorization plugin) pass this method and path",
        )
    words = said.lower()
    act = path.rpartition("/")[2]
    # Texts of moby's errdefs, 20.10 to 29; the status alone does not tell these apart (409, 409, 409 or 500).
    if response.status_code == 404 and "no such container" in words:
        return ContainerGone(f"the container {path.split('/')[2]} does not exist any more", hint="run the backup again")
    if method == "DELETE" and path.startswith("/volumes/"):
        kinds: dict[int, type[EngineError]] = {404: _Missing, 409: _InUse}
        return kinds.get(response.status_code, EngineError)(what, hint="see the engine's log")
    if act == "unpause" and "not paused" in words:  # "is not paused" says the engine, without "is" its runtime
        return _NotPaused(what) if "is not paused" in words else _NotFrozen(what, hint="see the engine's log")
    if act in ("pause", "exec"):
        return _not_paused(what, words) if act == "pause" else _not_executed(what, words)
    return EngineError(what, hint="see the engine's log")


def _not_paused(what: str, words: str) -> FreezeFailed:
    if "already paused" in words:
        return AlreadyPaused(what, hint="someone else has paused it just now; run the backup again")
    if "not running" in words or "is restarting" in words:
        return NotRunning(what, hint="it stopped just now; run the backup again")
    return FreezeFailed(what, hint="see the engine's log; the label backup.quiesce=stop stops it instead")


def _not_executed(what: str, words: str) -> EngineError:
    if "not running" in words or "is paused" in words or "is restarting" in words:
        return NotRunning(what, hint="see that it runs, or take its labels backup.pre and backup.post away")
    return EngineError(what, hint="see the engine's log")


@contextmanager
def _translated(what: str, address: str) -> Iterator[None]:
    """Whatever of the SDK and the libraries below it fails inside becomes an EngineError."""
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, DockerException, OSError, ValueError) as error:
        raise _failure(what, address, error) from error


def _failure(what: str, address: str, error: Exception) -> EngineError:
    causes = list(_causes(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return EngineDenied(
            f"no permission to use the Docker socket at {address}{_owner(address)}",
            hint="its permissions must let this user or its group write: as root, or with that group added "
            "(group_add in Compose, --group-add of docker run)",
        )
    if any(isinstance(cause, FileNotFoundError) for cause in causes):
        return EngineUnreachable(
            f"there is no Docker socket at {address}",
            hint=f"mount it: -v /var/run/docker.sock:{urlsplit(address).path or '/var/run/docker.sock'}"
            + ("" if address == SOCKET else ", or correct DOCKER_HOST"),
        )
    if any(
        isinstance(cause, requests.Timeout | urllib3.exceptions.ReadTimeoutError | TimeoutError) for cause in causes
    ):
        return EngineSilent(
            f"the Docker Engine at {address} did not answer in time: {what}", hint="see whether `docker info` answers"
        )
    for cause in causes:
        if isinstance(cause, requests.HTTPError) and cause.response is not None:
            return _refusal("GET", urlsplit(cause.response.url).path, cause.response)
    if any(isinstance(cause, TLSParameterError) for cause in causes):
        return EngineUnreachable(f"the TLS settings for {address} cannot be used: {error}", hint="see DOCKER_CERT_PATH")
    return EngineUnreachable(
        f"nothing answers at {address}: {_why_nothing_answers(causes) or f'{what}: {error}'}",
        hint="see that the Docker Engine (or the socket proxy that DOCKER_HOST names) runs"
        + ("" if address == SOCKET else ", and that DOCKER_HOST is right"),
    )


def _why_nothing_answers(causes: Sequence[BaseException]) -> str:
    """In a few words where the cause is a usual one; libraries wrap it in several lines of their own."""
    if any(isinstance(cause, urllib3.exceptions.NameResolutionError | socket.gaierror) for cause in causes):
        return "no such host is known here"
    system = [cause for cause in causes if isinstance(cause, OSError) and cause.errno and cause.strerror]
    return str(system[-1].strerror).lower() if system else ""


def _owner(address: str) -> str:
    """Whose socket it is, where that can be seen."""
    try:
        facts = os.stat(urlsplit(address).path)
    except OSError:
        return ""
    return f", which is of user {facts.st_uid}, group {facts.st_gid}, mode {facts.st_mode & 0o777:04o}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it wraps: libraries keep a cause in `__cause__`, `__context__`, or among the arguments."""
    queue, seen = [error], set[int]()
    while queue:
        cause = queue.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        wrapped = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        queue += [inner for inner in wrapped if isinstance(inner, BaseException)]
