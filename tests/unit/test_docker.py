"""What Docker's answers and its silence become in our words; which container is ours, which carries our connection."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.engine import docker
from sidecar.engine.docker import DockerEngine, connect, own_identifiers, serves_engine
from sidecar.engine.port import Executed
from sidecar.errors import ContainerGone, EngineDenied, EngineError, EngineSilent, EngineUnreachable
from sidecar.model import Container, Mount
from tests.contract.fake_engine import FakeEngine

# Status and body; status 0 never answers; None hangs up.
Answer = tuple[int, object] | None


class Impostor:
    """A Docker socket that answers what it is told, by method and path; /version as the real one."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix://{path}"
        self.answers: dict[str, Answer] = {"GET /version": (200, {"ApiVersion": "1.41"})}
        self.silent = threading.Event()
        impostor = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                path = self.path.partition("?")[0].removeprefix("/v1.41")
                answer = impostor.answers.get(f"{self.command} {path}", (404, {"message": "page not found"}))
                if answer is None:
                    self.close_connection = True
                    return
                status, body = answer
                if status == 0:
                    impostor.silent.wait(30)
                    self.close_connection = True
                    return
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = _answer

            def log_message(self, *_: object) -> None:
                pass

            def address_string(self) -> str:
                return "unix"

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self.server = Server(str(path), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def engine(self) -> DockerEngine:
        return connect({"DOCKER_HOST": self.address})


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    impostor = Impostor(tmp_path / "s")
    impostor.thread.start()
    yield impostor
    impostor.silent.set()
    impostor.server.shutdown()
    impostor.server.server_close()
    impostor.thread.join()


def test_a_missing_socket_is_to_be_mounted(tmp_path: Path) -> None:
    with pytest.raises(EngineUnreachable) as caught:
        connect({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert f"{tmp_path}/none.sock" in caught.value.message
    assert f"/var/run/docker.sock:{tmp_path}/none.sock, or correct DOCKER_HOST" in caught.value.hint


def test_a_socket_that_nobody_listens_on_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(EngineUnreachable, match="nothing answers") as caught:
        connect({"DOCKER_HOST": f"unix://{path}"})
    assert "runs" in caught.value.hint


@contextmanager
def without_privileges(path: Path) -> Iterator[None]:
    """Root may do everything, so become nobody for a moment."""
    path.chmod(0)
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_socket_that_we_may_not_use_needs_its_group(impostor: Impostor, tmp_path: Path) -> None:
    with without_privileges(tmp_path / "s"), pytest.raises(EngineDenied) as caught:
        impostor.engine()
    assert "permission" in caught.value.message
    assert "group" in caught.value.hint


def test_a_proxy_that_forbids_a_request_is_named_with_method_and_path(impostor: Impostor) -> None:
    impostor.answers["POST /containers/db/pause"] = (403, b"<html>Forbidden</html>")
    with pytest.raises(EngineDenied, match="POST /containers/db/pause") as caught:
        impostor.engine().pause("db")
    assert "proxy" in caught.value.hint


def test_a_proxy_that_forbids_even_the_version_is_told_apart_from_no_engine(impostor: Impostor) -> None:
    impostor.answers["GET /version"] = (403, b"Forbidden")
    with pytest.raises(EngineDenied, match="GET /version"):
        impostor.engine()


def test_an_engine_that_does_not_answer_a_pause_is_given_up_soon(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor.answers["POST /containers/db/pause"] = (0, None)
    monkeypatch.setattr(docker, "QUICK", 0.1)
    with pytest.raises(EngineUnreachable, match="did not answer in time: POST /containers/db/pause"):
        impostor.engine().pause("db")


def test_an_engine_that_hangs_over_a_thaw_is_given_up_when_nobody_can_help(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor.answers["POST /containers/db/unpause"] = (0, None)
    monkeypatch.setattr(docker, "HUNG", 0.1)
    monkeypatch.setattr(docker, "QUICK", 0.1)
    with pytest.raises(EngineSilent, match="did not answer in time: POST /containers/db/unpause"):
        impostor.engine().unpause("db")


def test_an_engine_that_hangs_up_is_unreachable(impostor: Impostor) -> None:
    impostor.answers["GET /info"] = None
    with pytest.raises(EngineUnreachable, match="GET /info"):
        impostor.engine().identity()


def test_a_refusal_carries_the_engines_own_words(impostor: Impostor) -> None:
    impostor.answers["POST /containers/db/start"] = (500, {"message": "port is already allocated"})
    with pytest.raises(EngineError, match="port is already allocated"):
        impostor.engine().start("db")


@pytest.mark.parametrize("body", [b"<html>", [], {}, {"Volumes": [{}]}, {"Volumes": 7}])
def test_something_that_is_not_docker_is_an_error_in_our_words(impostor: Impostor, body: object) -> None:
    impostor.answers["GET /volumes"] = (200, body)
    with pytest.raises(EngineError, match="is not Docker's"):
        impostor.engine().volumes()


def event(number: int) -> bytes:
    actor = {"ID": f"{number:064x}", "Attributes": {"name": f"c{number}"}}
    return json.dumps({"Type": "container", "Action": "start", "Actor": actor, "timeNano": number}).encode() + b"\n"


def watching(impostor: Impostor, before: list[int], after: list[int]) -> Callable[[], list[str]]:
    """The events seen when the engine's buffer held `before` at the start of a watch, and holds `after` later."""

    def buffer(numbers: list[int]) -> None:
        impostor.answers["GET /events"] = (200, b"".join(map(event, numbers)))

    def see() -> list[str]:
        buffer(before)
        with impostor.engine().watch() as watch:
            buffer(after)
            return [seen.name for seen in watch.events()]

    return see


def test_a_watch_gives_what_the_engines_buffer_gained(impostor: Impostor) -> None:
    assert watching(impostor, [1, 2], [1, 2, 3, 4])() == ["c3", "c4"]
    assert watching(impostor, [1, 2], [1, 2])() == []
    assert watching(impostor, [], [1, 2])() == ["c1", "c2"]
    assert watching(impostor, list(range(256)), list(range(255, 400)))() == [f"c{n}" for n in range(256, 400)]


@pytest.mark.parametrize(
    ("before", "after"),
    [([1, 2], [3, 4]), (list(range(256)), list(range(256, 512))), ([], list(range(256))), ([1, 2], [])],
    ids=["restarted", "overwritten", "perhaps overwritten", "emptied"],
)
def test_a_buffer_that_lost_the_last_known_event_is_no_peace(
    impostor: Impostor, before: list[int], after: list[int]
) -> None:
    with pytest.raises(EngineError, match="event log"):
        watching(impostor, before, after)()


# --- which container are we ------------------------------------------------------------------------------------------

OWN = "a" * 64
OTHER = "b" * 64
MOUNTS = f"""\
226 91 0:83 / / rw,relatime master:6 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/H7
243 226 254:0 /var/lib/docker/containers/{OWN}/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/vda rw
244 226 254:0 /var/lib/docker/containers/{OWN}/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw
246 226 254:0 /var/lib/docker/containers/{OTHER}/log /logs rw,relatime - ext4 /dev/vda rw
"""


def test_our_own_id_is_read_from_the_mounts_that_the_engine_makes_for_every_container() -> None:
    assert own_identifiers("0::/\n", MOUNTS, "") == [OWN]


def test_the_cgroup_comes_first_because_a_shared_network_shares_those_mounts() -> None:
    assert own_identifiers(f"9:pids:/docker/{OTHER}\n8:cpu:/docker/{OTHER}\n", MOUNTS, "name") == [OTHER, OWN, "name"]


def test_on_a_host_there_is_no_such_id() -> None:
    assert own_identifiers("0::/user.slice\n", "22 1 8:1 / / rw - ext4 /dev/sda rw\n", "") == []


# --- commands in containers -----------------------------------------------------------------------------------------


def run_command(impostor: Impostor, waiting: Callable[[], bool] = lambda: True) -> Executed:
    impostor.answers["POST /containers/db/exec"] = (201, {"Id": "e1"})
    impostor.answers.setdefault("GET /exec/e1/json", (200, {"Running": False, "ExitCode": 4}))
    return impostor.engine().execute("db", ["true"], waiting=waiting)


def frame(kind: int, text: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(text).to_bytes(4, "big") + text


def test_what_a_command_writes_to_both_streams_is_taken_out_of_the_frames(impostor: Impostor) -> None:
    impostor.answers["POST /exec/e1/start"] = (200, frame(1, b"out\n") + frame(2, "gr\u00fc\u00df \xff".encode()))
    assert run_command(impostor) == Executed(4, "out\ngr\u00fc\u00df \xff")


def test_an_engine_that_never_answers_a_command_is_not_waited_for_longer_than_asked(impostor: Impostor) -> None:
    impostor.answers["POST /exec/e1/start"] = (0, None)
    asked: list[None] = []

    def waiting() -> bool:
        asked.append(None)
        return len(asked) < 3

    assert run_command(impostor, waiting) == Executed(None, "")


def test_an_engine_that_hangs_up_on_a_command_is_unreachable(impostor: Impostor) -> None:
    impostor.answers["POST /exec/e1/start"] = None
    with pytest.raises(EngineUnreachable):
        run_command(impostor)


def test_a_proxy_that_lets_no_command_start_is_named_with_the_path(impostor: Impostor) -> None:
    impostor.answers["POST /exec/e1/start"] = (403, b"Forbidden")
    with pytest.raises(EngineDenied, match="POST /exec/e1/start"):
        run_command(impostor)


def test_a_command_whose_container_was_removed_meanwhile_finds_it_gone(impostor: Impostor) -> None:
    impostor.answers["POST /exec/e1/start"] = (200, b"")
    impostor.answers["GET /exec/e1/json"] = (404, {"message": "No such exec instance: e1"})
    impostor.answers["GET /containers/db/json"] = (404, {"message": "No such container: db"})
    with pytest.raises(ContainerGone):
        run_command(impostor)


# --- which container carries our connection --------------------------------------------------------------------------


def container(name: str, **changes: object) -> Container:
    return replace(FakeEngine().create(name), id=name.ljust(64, "0"), **changes)


PROXY = container("proxy", addresses=frozenset({"proxy", "shop_proxy_1", "172.18.0.5", "fd00::5"}))


@pytest.mark.parametrize(
    "docker_host",
    ["tcp://proxy:2375", "tcp://PROXY.:2375", "tcp://172.18.0.5:2375", "tcp://[fd00::5]:2375", "http://proxy:1"],
)
def test_a_socket_proxy_is_known_by_any_of_its_names_and_addresses(docker_host: str) -> None:
    assert serves_engine(PROXY, docker_host)
    assert not serves_engine(container("web"), docker_host)


def test_a_proxy_behind_a_published_port_of_the_host_is_known_by_the_port() -> None:
    published = container("proxy", published=frozenset({2375}))
    assert serves_engine(published, "tcp://192.168.1.10:2375")
    assert serves_engine(published, "tcp://localhost:2375")
    assert not serves_engine(published, "tcp://192.168.1.10:2376")


def test_a_proxy_in_our_own_network_space_is_known_by_it() -> None:
    proxy = container("proxy")
    backup = container("backup", network=f"container:{proxy.id}")
    assert serves_engine(proxy, "tcp://127.0.0.1:2375", backup)
    assert serves_engine(container("p", network="container:backup"), "tcp://localhost:2375", container("backup"))
    assert not serves_engine(container("web"), "tcp://127.0.0.1:2375", backup)


def test_a_proxy_that_listens_on_a_volume_of_ours_is_known_by_the_volume() -> None:
    ours = Mount("volume", "/v/_data", "/run/proxy", writable=True, volume="proxy-socket")
    backup = container("backup", mounts=(ours, Mount("bind", "/run", "/run", writable=True)))
    proxy = container("proxy", mounts=(replace(ours, target="/elsewhere"),))
    assert serves_engine(proxy, "unix:///run/proxy/docker.sock", backup)
    assert not serves_engine(backup, "unix:///run/proxy/docker.sock", backup)
    assert not serves_engine(container("web"), "unix:///run/proxy/docker.sock", backup)


def test_whoever_else_mounts_the_engines_own_socket_does_not_carry_our_connection() -> None:
    socket = Mount("bind", "/var/run/docker.sock", "/var/run/docker.sock", writable=True)
    backup, portainer = container("backup", mounts=(socket,)), container("portainer", mounts=(socket,))
    assert not serves_engine(portainer, "unix:///var/run/docker.sock", backup)
    assert not serves_engine(portainer, "unix:///var/run/docker.sock")


# --- health checks ---------------------------------------------------------------------------------------------------


def inspection(*, health: object, check: object) -> dict[str, object]:
    """What GET /containers/ID/json answers, as far as we read it."""
    return {
        "Id": "1" * 64,
        "Name": "/db",
        "Image": "sha256:1",
        "Mounts": [],
        "State": {"Status": "running", "StartedAt": "2026-01-02T03:00:00.5Z", "Pid": 7, "Health": health},
        "Config": {"Image": "postgres", "Labels": {}, "Hostname": "db", "Healthcheck": check},
        "HostConfig": {"AutoRemove": False, "NetworkMode": "none"},
        "NetworkSettings": {"Networks": {}},
    }


@pytest.mark.parametrize(
    ("status", "listed"), [("running", True), ("paused", True), ("restarting", True), ("exited", False)]
)
def test_whether_a_container_runs_is_what_its_inspection_says_whatever_a_stale_list_says(
    impostor: Impostor, status: str, listed: bool
) -> None:
    inspected = inspection(health=None, check=None)
    inspected["State"] |= {"Status": status}  # type: ignore[operator]
    impostor.answers["GET /containers/json"] = (200, [{"Id": "1" * 64}])
    impostor.answers[f"GET /containers/{'1' * 64}/json"] = (200, inspected)
    engine = impostor.engine()
    assert [each.name for each in engine.containers(running_only=True)] == ["db"] * listed
    assert [each.name for each in engine.containers()] == ["db"]


THREE = datetime(2026, 1, 2, 3, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("health", "check", "begins"),
    [
        (None, None, None),
        (None, {"Test": ["NONE"]}, None),
        ({"Log": []}, {"Test": ["CMD", "true"], "Interval": 5 * 10**9}, THREE + 5.5),
        ({"Log": None}, {"Test": ["CMD", "true"]}, THREE + 30.5),
        (
            {"Log": [{"End": "2026-01-02T03:00:10Z"}, {"End": "2026-01-02T04:00:20.123456789+01:00"}]},
            {"Test": ["CMD-SHELL", "true"], "Interval": 10 * 10**9},
            THREE + 30.123456,
        ),
        ({"Log": [{"End": "?"}]}, {"Test": ["CMD", "true"]}, None),
    ],
)
def test_when_the_next_health_check_begins_is_an_interval_after_the_end_of_the_last(
    impostor: Impostor, health: object, check: object, begins: float | None
) -> None:
    impostor.answers["GET /containers/db/json"] = (200, inspection(health=health, check=check))
    found = impostor.engine().container("db").next_check
    assert found == (begins if begins is None else pytest.approx(begins, abs=1e-5))
