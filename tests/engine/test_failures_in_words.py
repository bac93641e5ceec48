"""Whatever is missing, wrong, full or silent: the user reads one sentence and what to do, and nobody stays frozen.

Everything is read where a user reads it: the container's log, a verb's output and exit code, `status`. These containers
are started by `docker run`, so that each can lack a mount, a network or a permission that the Compose file would give.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from tests.engine.harness import (
    BUCKET,
    ENDPOINT,
    HOST_IMAGE,
    LABEL,
    NOT_OURS,
    PRODUCT_IMAGE,
    REGION,
    S3,
    Done,
    Machine,
    Run,
    docker,
    inspect,
    is_paused,
    logs,
    wait_until,
)

pytestmark = pytest.mark.engine("machine")

HARDENED = (
    *("--read-only", "--cap-drop", "ALL", "--cap-add", "DAC_READ_SEARCH", "--security-opt", "no-new-privileges:true"),
    *("--tmpfs", "/tmp", "--tmpfs", "/run/backup:mode=0700,size=1m"),
)
SOCKET = ("--volume", "/var/run/docker.sock:/var/run/docker.sock")
LOCAL = {"BACKUP_STORES": "local"}
BLOCK = 600_000


def environment(settings: dict[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]


@dataclass(frozen=True)
class Box:
    """A sidecar in a container of its own."""

    name: str

    def verb(self, *arguments: str) -> Done:
        """What a user gets from `docker exec`; a traceback is a bug wherever it shows."""
        done = docker("exec", self.name, *arguments, check=False, timeout=120)
        assert "Traceback" not in done.out + done.err
        return done

    def events(self, *names: str) -> list[dict[str, Any]]:
        done = logs(self.name)
        assert "Traceback" not in done.out + done.err
        events = [json.loads(line) for line in done.out.splitlines()]
        return [each for each in events if not names or each["event"] in names]

    def wait_ready(self) -> None:
        wait_until(lambda: self.events("daemon_started", "config_invalid"), f"{self.name} is ready")
        assert not self.events("config_invalid"), self.events("config_invalid")

    def ended(self) -> int:
        """Its exit code."""
        wait_until(lambda: inspect(self.name)["State"]["Status"] == "exited", f"{self.name} has ended")
        return int(inspect(self.name)["State"]["ExitCode"])


class Street:
    """A volume, the application that writes it, a network, and sidecars that each lack something."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.volume = machine.volume("words-data")
        self.network = machine.name("words")
        docker("network", "create", "--label", f"{LABEL}={machine.mark}", self.network)
        script = f"head -c {BLOCK} /dev/urandom > /data/file; touch /data/ready; exec sleep infinity"
        self.app = machine.run("words-app", ["sh", "-c", script], "--volume", f"{self.volume}:/data")
        self.volumes = ("--volume", f"{machine.volumes_directory}:/volumes:ro,rslave")
        self._made: list[str] = [self.app]
        self._count = 0
        wait_until(
            lambda: docker("exec", self.app, "test", "-e", "/data/ready", check=False).code == 0, "a file is there"
        )

    def state(self, *options: str) -> tuple[str, str]:
        """A state volume that nobody else has, as an option of `docker run`."""
        self._count += 1
        return ("--volume", f"{self.machine.volume(f'words-state-{self._count}', *options)}:/state")

    def all_mounts(self) -> tuple[str, ...]:
        return (*SOCKET, *self.volumes, *self.state())

    def box(self, *options: str, command: Sequence[str] = (), **settings: str) -> Box:
        """Start a sidecar. It is removed after the test."""
        self._count += 1
        usual = {"BACKUP_SCHEDULE": "off", "BACKUP_GUARD": "off", "BACKUP_EXCLUDE": NOT_OURS}
        given = usual | {"BACKUP_INCLUDE": self.volume} | settings
        name = self.machine.run(
            f"words-{self._count}", command, *HARDENED, *options, *environment(given), image=PRODUCT_IMAGE
        )
        self._made.append(name)
        return Box(name)

    def server(self, host: str, script: str, *arguments: str, options: Sequence[str] = ()) -> str:
        """Run a Python script as a host of the network; the container's name."""
        where = ("--network", self.network, "--network-alias", host, *options)
        name = self.machine.run(f"words-{host}", ["python3", "-uc", script, *arguments], *where)
        self._made.append(name)
        wait_until(lambda: "ready" in logs(name).out, f"{host} is ready")
        return name

    def remove(self, *, keep: int = 0) -> None:
        """Remove all containers but the first ones."""
        self.machine.remove(*self._made[keep:])
        del self._made[keep:]

    @property
    def size(self) -> int:
        return len(self._made)


@pytest.fixture(scope="module")
def whole_street(machine: Machine) -> Iterator[Street]:
    street = Street(machine)
    try:
        yield street
    finally:
        street.remove()
        docker("network", "rm", street.network)


@pytest.fixture
def street(whole_street: Street) -> Iterator[Street]:
    """After each test the application runs: nothing that went wrong has left it frozen."""
    before = whole_street.size
    try:
        yield whole_street
        assert not is_paused(whole_street.app)
    finally:
        whole_street.remove(keep=before)


def assert_said(text: str, *words: str) -> None:
    assert [word for word in words if word not in text] == [], text


# --- settings --------------------------------------------------------------------------------------------------------

CRON = "five cron fields (`0 3 * * *`)"


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        pytest.param(
            {
                "BACKUP_SCHEDULE": "every night",
                "BACKUP_VERIFY_SCHEDULE": "0 3 * * * * *",
                "BACKUP_DRILL_SCHEDULE": "61 3 * * *",
            },
            [
                ("BACKUP_SCHEDULE is 'every night'", CRON),
                ("BACKUP_VERIFY_SCHEDULE is '0 3 * * * * *': it has 7 fields", CRON),
                ("BACKUP_DRILL_SCHEDULE is '61 3 * * *'", "out of range", CRON),
            ],
            id="text, seven fields, out of range",
        ),
        pytest.param(
            {"BACKUP_SCHEDULE": "0 3 31 2 *", "BACKUP_VERIFY_SCHEDULE": "0 0 3 * * *", "TZ": "Europe/Berln"},
            [
                ("BACKUP_SCHEDULE is '0 3 31 2 *': it never comes due", CRON),
                ("BACKUP_VERIFY_SCHEDULE is '0 0 3 * * *'", "of six fields the seconds are the last"),
                ("TZ is 'Europe/Berln'", "such as Europe/Berlin"),
            ],
            id="31 February, seconds first, time zone",
        ),
        pytest.param(
            {"BACKUP_SPOOL_MAX": "20", "BACKUP_MAX_PAUSE": "half a minute", "BACKUP_PREFFIX": "sets"},
            [
                ("BACKUP_SPOOL_MAX is '20'", "such as 64MiB"),
                ("BACKUP_MAX_PAUSE is 'half a minute'", "such as 90s"),
                ("BACKUP_PREFFIX", "did you mean BACKUP_PREFIX?"),
            ],
            id="size, duration, unknown name",
        ),
        pytest.param(
            {
                "AWS_ACCESS_KEY_ID": "a-key-that-is-none",
                "AWS_ACCESS_KEY_ID_FILE": "/run/secrets/key",
                "AWS_SECRET_ACCESS_KEY_FILE": "/run/secrets/nothing",
            },
            [
                ("AWS_ACCESS_KEY_ID and AWS_ACCESS_KEY_ID_FILE are both set",),
                ("AWS_SECRET_ACCESS_KEY_FILE names '/run/secrets/nothing'", "No such file"),
            ],
            id="both, a file that is missing",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_all_named_at_once_and_end_with_2(
    street: Street, settings: dict[str, str], problems: list[tuple[str, ...]]
) -> None:
    box = street.box(**settings)

    assert box.ended() == 2
    (invalid,) = box.events()
    assert len(invalid["problems"]) == len(problems), invalid["problems"]
    for words in problems:
        assert any(all(word in problem for word in words) for problem in invalid["problems"]), invalid["problems"]
    assert "docs/SETTINGS.md" in invalid["hint"]
    assert "a-key-that-is-none" not in logs(box.name).out


def test_a_misspelt_name_in_dotenv_which_compose_drops_in_silence_is_found(street: Street) -> None:
    directory = street.machine.volume("words-compose")
    there = ("--volume", f"{directory}:/compose")
    docker("run", "--rm", *there, HOST_IMAGE, "sh", "-c", "echo S3_BACKUP_BUKET=mine > /compose/.env")

    box = street.box(*there)

    assert box.ended() == 2
    assert_said(box.events()[0]["error"], "S3_BACKUP_BUKET is not a known setting", "did you mean S3_BACKUP_BUCKET?")


# --- mounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounted", "settings", "error", "hint"),
    [
        ("volumes state", {}, "there is no Docker socket", "-v /var/run/docker.sock:/var/run/docker.sock"),
        (
            "socket volumes state",
            {"DOCKER_HOST": "unix:///run/podman.sock"},
            "there is no Docker socket at unix:///run/podman.sock",
            "correct DOCKER_HOST",
        ),
        ("socket state", {}, "nothing is mounted at /volumes", "docker-compose.backup.yml"),
        ("socket volumes", {}, "nothing is mounted at /state", "backup-state"),
        ("socket volumes state:ro", {}, "/state is mounted read-only", "without `ro`"),
    ],
    ids=["no socket", "another socket", "no volumes", "no state", "state read-only"],
)
def test_a_mount_that_is_missing_ends_the_container_with_2_and_one_sentence(
    street: Street, mounted: str, settings: dict[str, str], error: str, hint: str
) -> None:
    volume, state = street.state()
    mounts = {
        "socket": SOCKET,
        "volumes": street.volumes,
        "state": (volume, state),
        "state:ro": (volume, f"{state}:ro"),
    }

    box = street.box(*(option for name in mounted.split() for option in mounts[name]), **LOCAL | settings)

    assert box.ended() == 2
    (said,) = box.events()
    assert said["code"] == "mount_missing"
    assert_said(said["error"], error)
    assert_said(said["hint"], hint)


def test_the_volumes_of_another_machine_are_none_of_ours(street: Street) -> None:
    elsewhere = ("--volume", f"{street.machine.directory}/elsewhere:/volumes:ro", "--volume", "/data/backups")
    box = street.box(*SOCKET, *elsewhere, *street.state(), **LOCAL)
    box.wait_ready()

    done = box.verb("run-now")

    assert done.code == 1
    assert_said(done.out, "failed: no set was made", f"volume {street.volume}: its data is at", "DOCKER_VOLUMES_DIR")
    assert f"{street.volume}: volume" not in done.out  # named once
    checked = box.verb("check")
    assert checked.code == 1
    assert_said(checked.out, "there is no volume to back up", "DOCKER_VOLUMES_DIR")
    assert box.events("group_frozen") == []


# --- the engine ------------------------------------------------------------------------------------------------------

# A Docker socket proxy that answers requests which match a pattern as HAProxy does, and says so.
DENYING_PROXY = r"""
import http.client, http.server, re, socket, sys

class Engine(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if re.search(sys.argv[1], f"{self.command} {self.path}"):
            print("denied", self.command, self.path)
            status, kind, data = 403, "text/html", b"<html><body><h1>403 Forbidden</h1></body></html>"
        else:
            engine = Engine("engine")
            engine.request(self.command, self.path, body, dict(self.headers))
            answer = engine.getresponse()
            status, kind, data = answer.status, answer.headers.get("Content-Type", "text/plain"), answer.read()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_DELETE = answer

server = http.server.ThreadingHTTPServer(("", 2375), Handler)
print("ready")
server.serve_forever()
"""

PRIVATE_SOCKET = """
import os, socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("/there/docker.sock")
os.chmod("/there/docker.sock", 0o600)
os.chown("/there/docker.sock", 1234, 1234)
print("ready")
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("docker_host", "error", "hint"),
    [
        ("tcp://socket-proxy:1", "nothing answers at tcp://socket-proxy:1: connection refused", "DOCKER_HOST"),
        ("tcp://no-such-host:2375", "nothing answers at tcp://no-such-host:2375: no such host is known", "DOCKER_HOST"),
        ("tcp://socket-proxy:2375", "GET /version is not permitted on the Docker socket", "socket proxy"),
        ("unix:///there/docker.sock", "of user 1234, group 1234, mode 0600", "group_add"),
    ],
    ids=["nothing there", "no such host", "denying proxy", "another user's"],
)
def test_while_the_engine_cannot_be_used_the_daemon_waits_and_every_verb_says_for_what(
    street: Street, docker_host: str, error: str, hint: str
) -> None:
    there = ("--volume", f"{street.machine.volume('words-socket')}:/there")
    if docker_host.startswith("unix:"):
        street.server("private", PRIVATE_SOCKET, options=there)
    else:
        street.server("socket-proxy", DENYING_PROXY, "/version", options=SOCKET)
    box = street.box(
        *("--network", street.network, *there, *street.volumes, *street.state()), DOCKER_HOST=docker_host, **LOCAL
    )
    (delayed, *_) = wait_until(partial(box.events, "start_delayed"), "it has said what it waits for")

    assert_said(delayed["error"], error)
    assert_said(delayed["hint"], hint)
    status = box.verb("status")
    assert status.code == 0
    assert_said(status.out, "starting, not healthy", error, hint)
    assert box.verb("status", "--check").code == 1
    done = box.verb("run-now")
    assert done.code == 1
    assert_said(done.err, "the daemon has not started yet", error, hint)
    checked = box.verb("check")
    assert checked.code == 1
    assert_said(checked.out, error, hint)
    assert inspect(box.name)["State"]["Status"] == "running"


@pytest.mark.parametrize(
    ("denied", "code", "request_denied"),
    [
        ("POST .*/pause$", 1, "POST /containers/"),
        ("POST .*/unpause$", 1, "/unpause"),
        ("GET .*/info$", 1, "GET /info"),
        ("POST .*/containers/create", 0, "POST /containers/create"),
    ],
    ids=["pause", "unpause", "info", "create"],
)
def test_a_socket_proxy_that_denies_a_request_is_named_with_it_and_nobody_is_frozen_for_good(
    street: Street, denied: str, code: int, request_denied: str
) -> None:
    proxy = street.server("socket-proxy", DENYING_PROXY, denied, options=SOCKET)
    box = street.box(
        *("--network", street.network, *street.volumes, *street.state(), "--volume", "/data/backups"),
        DOCKER_HOST="tcp://socket-proxy:2375",
        **LOCAL,
    )
    box.wait_ready()

    done = box.verb("run-now")

    assert done.code == code, done
    assert_said(done.out, request_denied, "is not permitted on the Docker socket", "let the socket proxy")
    assert "denied" in logs(proxy).out
    # Who may freeze and not thaw does not freeze.
    assert bool(box.events("group_frozen")) == (code == 0)
    assert "paused for 0 ms" not in done.out


def test_a_guard_that_a_socket_proxy_denies_is_said_once_and_harms_no_backup(street: Street) -> None:
    proxy = street.server("socket-proxy", DENYING_PROXY, "POST .*/containers/create.*-guard", options=SOCKET)
    box = street.box(
        *("--network", street.network, *street.volumes, *street.state(), "--volume", "/data/backups"),
        DOCKER_HOST="tcp://socket-proxy:2375",
        BACKUP_GUARD="on",
        **LOCAL,
    )
    box.wait_ready()
    wait_until(lambda: logs(proxy).out.count("denied") > 1, "it has been tried again")

    done = box.verb("run-now")

    assert done.code == 0, done
    (told,) = box.events("guard_missing")
    assert_said(told["error"] + told["hint"], "POST /containers/create is not permitted", "let the socket proxy")
    assert_said(box.verb("guard", "status").out, "the guard is not as it should be", "let the socket proxy")
    assert "guard" not in done.out


# --- the state volume ------------------------------------------------------------------------------------------------


def tmpfs(size: str) -> tuple[str, ...]:
    return ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", f"o=size={size}")


def test_a_full_state_volume_fails_the_run_before_anybody_waits(street: Street) -> None:
    box = street.box(*SOCKET, *street.volumes, *street.state(*tmpfs("512k")), "--volume", "/data/backups", **LOCAL)
    box.wait_ready()
    touch = ("exec", street.app, "touch", "/data/file")  # what nobody has touched for a minute needs no spool

    docker(*touch)
    too_small = box.verb("run-now")
    filled = docker("exec", box.name, "sh", "-c", "head -c 600000 /dev/zero > /state/filler", check=False)
    assert "No space left on device" in filled.err
    docker(*touch)
    full = box.verb("run-now")

    for done in (too_small, full):
        assert done.code == 1
        assert_said(done.out, "the spool needs 675,000 bytes", "the disk of the backup-state volume")
    assert box.events("group_frozen") == []
    assert_said(box.verb("status").out, "idle, not healthy: the last run failed: the spool needs 675,000 bytes")
    (unwritten, *_) = box.events("memory_unwritten")
    assert_said(unwritten["error"] + unwritten["hint"], "No space left on device", "the state volume must be")
    checked = box.verb("check")
    assert checked.code == 1
    assert_said(checked.out, "/state cannot be written: No space left on device", "put that volume on a larger disk")


# --- local sets ------------------------------------------------------------------------------------------------------


def test_a_local_store_that_cannot_be_written_says_which_way_to_mend_it(street: Street) -> None:
    full = street.machine.volume("words-full", *tmpfs("300k"))
    other = street.machine.volume("words-other")
    docker(
        "run",
        "--rm",
        "--volume",
        f"{other}:/there",
        HOST_IMAGE,
        "sh",
        "-c",
        "touch /there/x; chown 1234 /there; chmod 700 /there",
    )
    cases: list[tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = [
        (("--volume", f"{full}:/data/backups"), {}, ("No space left on device", "free space on the disk")),
        (("--volume", f"{other}:/data/backups:ro"), {}, ("Read-only file system", "without `ro`")),
        (("--volume", f"{other}:/data/backups"), {}, ("Permission denied", "let root write", "owner and mode")),
        ((), {"BACKUP_LOCAL_DIR": "/data/none"}, ("/data/none does not exist", "BACKUP_LOCAL_DIR")),
    ]
    boxes = [street.box(*street.all_mounts(), *mounts, **LOCAL | more) for mounts, more, _ in cases]
    for box, (_, _, words) in zip(boxes, cases, strict=True):
        box.wait_ready()
        done = box.verb("run-now")
        assert done.code == 1
        assert_said(done.out, "failed: no set was made", *words)
        assert_said(json.dumps(box.events("run_failed")[-1]), *words)
        assert box.verb("status", "--check").code == 1
        assert inspect(box.name)["State"]["Status"] == "running"


# --- something else than an S3 server --------------------------------------------------------------------------------

# Ports below 1000 answer every request with a web page and that status; 1443 does so over TLS; 1999 answers nobody,
# because its queue of connections is full.
NO_S3 = r"""
import http.server, socket, ssl, subprocess, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        port = self.server.server_address[1]
        page = b"<!doctype html><html><body><h1>Welcome!</h1></body></html>"
        self.send_response(port if port < 1000 else 200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Location", "https://login.example.test/")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

subprocess.run(
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=no-s3"
    " -addext subjectAltName=DNS:no-s3 -keyout /tmp/key -out /tmp/certificate",
    shell=True, check=True, stderr=subprocess.DEVNULL,
)
for port in (200, 302, 404, 1443):
    server = http.server.ThreadingHTTPServer(("", port), Handler)
    if port == 1443:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("/tmp/certificate", "/tmp/key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
silent = socket.socket()
silent.bind(("", 1999))
silent.listen(0)
waiting = [socket.create_connection(("127.0.0.1", 1999))]
print("ready")
threading.Event().wait()
"""


def s3_settings(endpoint: str, **more: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "a-key-of-nobody-at-all", "AWS_SECRET_ACCESS_KEY": "a-secret-of-nobody-at-all"}
    return {
        "S3_BACKUP_BUCKET": BUCKET,
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_MAX_ATTEMPTS": "1",
        **keys,
        **more,
    }


@pytest.fixture(scope="module")
def no_s3(whole_street: Street) -> str:
    return whole_street.server("no-s3", NO_S3)


@dataclass(frozen=True)
class Silent:
    """A sidecar whose store takes no connection, what `status` said while it started, and a run that waits for it."""

    box: Box
    starting: str
    run: Run


@pytest.fixture(scope="module")
def silent(whole_street: Street, no_s3: str) -> Silent:
    street = whole_street
    box = street.box(*street.all_mounts(), "--network", street.network, **s3_settings("http://no-s3:1999"))

    def looking() -> str:
        """What it says once it looks for what an earlier run has left; before that it reads its settings."""
        said = box.verb("status").out
        return said if "an earlier run" in said else ""

    starting = wait_until(looking, "it says what it is doing")
    assert not box.events("daemon_started")
    return Silent(box, starting, Run(["exec", box.name, "run-now"]))


# `silent` takes half a minute, in which this test has something to do.
@pytest.mark.usefixtures("silent")
def test_what_is_no_s3_server_is_told_from_one_and_the_daemon_lives_on(street: Street) -> None:
    not_s3 = "as no S3 server does"
    trust = ("the certificate of https://no-s3:1443 is not trusted: self-signed certificate", "AWS_CA_BUNDLE")
    cases: list[tuple[str, tuple[str, ...]]] = [
        ("http://no-s3:200", ("http://no-s3:200 answered with a web page", not_s3)),
        ("http://no-s3:302", ("answered with a web page (HTTP 302)", not_s3)),
        ("http://no-s3:404", ("answered with a web page (HTTP 404)", not_s3)),
        ("https://no-s3:1443", trust),
        ("https://no-s3:404", ("https://no-s3:404 does not speak TLS on this port", "http://")),
        ("http://no-s3:1443", ("the connection to http://no-s3:1443 broke off", "must begin with https://")),
    ]
    boxes = [
        street.box(*street.all_mounts(), "--network", street.network, **s3_settings(endpoint)) for endpoint, _ in cases
    ]
    for box, (endpoint, words) in zip(boxes, cases, strict=True):
        box.wait_ready()
        done = box.verb("run-now")
        assert done.code == 1, (endpoint, done)
        assert_said(done.out, "failed: no set was made", *words)
        assert endpoint.startswith("https://no-s3:1443") or "AWS_ENDPOINT_URL_S3" in done.out
        listed = box.verb("list")
        assert listed.code == 1
        assert_said(listed.err, *words)
        assert box.events("group_frozen", "crashed", "recover_failed") == []
        assert_said(box.verb("status").out, "idle, not healthy: the last run failed", words[0])
        assert inspect(box.name)["State"]["Status"] == "running"


def test_without_a_network_a_run_fails_at_once_and_says_where_it_could_not_get(street: Street) -> None:
    alone = ("--network", "none")
    elsewhere = street.box(*street.all_mounts(), *alone, **s3_settings("https://s3.example.test"))
    amazon = street.box(*street.all_mounts(), *alone, **s3_settings(""))
    cases: list[tuple[Box, tuple[str, ...]]] = [
        (elsewhere, ("no connection to https://s3.example.test", "AWS_ENDPOINT_URL_S3")),
        (amazon, ("no connection to Amazon S3", "a way to the internet")),
    ]
    for box, words in cases:
        box.wait_ready()
        began = time.monotonic()
        done = box.verb("run-now")
        assert done.code == 1
        assert time.monotonic() - began < 20
        assert_said(done.out, *words)


def test_a_store_that_never_answers_costs_a_bounded_time_and_status_answers_meanwhile(silent: Silent) -> None:
    done = silent.run.end()

    assert_said(silent.starting, "starting, not healthy: what an earlier run left is not put right yet")
    assert done.code == 1
    assert_said(done.out, "the daemon is still starting", "no connection to http://no-s3:1999", "AWS_ENDPOINT_URL_S3")
    # Three requests, each of which waits for 10 s: two for what an earlier run left, one for the run.
    (failed,) = silent.box.events("run_failed")
    took = datetime.fromisoformat(failed["ts"]) - datetime.fromisoformat(silent.box.events()[0]["ts"])
    assert 25 < took.total_seconds() < 50
    assert_said(silent.box.verb("status").out, "idle, not healthy", "no connection to http://no-s3:1999")


def test_a_key_that_may_only_write_is_told_what_it_lacks(street: Street, s3: S3) -> None:
    configure = "s3.configure -user=writer -access_key=may-only-write-key -secret_key=may-only-write-secret"
    shell = ("weed", "shell", "-master=localhost:9333")
    docker("exec", "-i", s3.container, *shell, stdin=f"{configure} -buckets={BUCKET} -actions=Write -apply".encode())
    keys = {"AWS_ACCESS_KEY_ID": "may-only-write-key", "AWS_SECRET_ACCESS_KEY": "may-only-write-secret"}
    settings = s3_settings(ENDPOINT, BACKUP_PREFIX=f"{street.machine.mark}/words", **keys)
    box = street.box(*street.all_mounts(), "--network", s3.network, **settings)
    box.wait_ready()
    written: Callable[[], Done] = partial(box.verb, "run-now")
    wait_until(lambda: written().code == 0, "the server knows the key", timeout=30, every=1)

    checked = box.verb("check")
    again = box.verb("run-now")  # it cannot see whose the prefix is

    for done in (checked, again):
        assert done.code == 1
        assert_said(done.out, "GetObject of owner.json", "AccessDenied", "grant s3:GetObject")
    assert "may-only-write-secret" not in logs(box.name).out + checked.out


# --- names and verbs -------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest_one(street: Street) -> None:
    box = street.box(*street.all_mounts(), "--volume", "/data/backups", **LOCAL)
    box.wait_ready()
    empty = box.verb("list", "latest")
    assert empty.code == 10
    assert_said(empty.err, "there is no set 'latest', and none at all yet", "`run-now` makes one")
    report = box.verb("run-now", "--json").json()
    wrong_set = report["set"][:-1] + ("1" if report["set"][-1] != "1" else "2")
    wrong_volume = street.volume.replace("words-data", "word-data")
    cases: list[tuple[tuple[str, ...], int, tuple[str, ...]]] = [
        (("run-now", wrong_volume), 10, (wrong_volume, f"did you mean {street.volume}")),
        (("list", wrong_set), 10, (wrong_set, f"did you mean {report['set']}")),
        (("list", "latest", wrong_volume), 10, (wrong_volume, f"did you mean {street.volume}")),
        (("list", "latest", street.volume, "*.exe"), 10, ("matches *.exe", f"`list latest {street.volume}` shows all")),
        (("cancel",), 10, ("nothing is going on", "`status`")),
        (("sidecar", "run-nwo"), 2, ("run-now",)),
        (("list", "--jsn"), 2, ("--json",)),
    ]
    for arguments, code, words in cases:
        done = box.verb(*arguments)
        assert done.code == code, (arguments, done)
        assert_said(done.err, *words)


def test_without_a_daemon_every_verb_says_where_to_look(street: Street) -> None:
    box = street.box(*street.all_mounts(), "--entrypoint", "sleep", command=["infinity"], **LOCAL)
    for verb in ("run-now", "plan", "list", "status", "cancel"):
        done = box.verb(verb)
        assert done.code == 1
        assert_said(done.err, "no daemon answers", "`docker logs backup` says why")
    assert box.verb("run-now", "--json").json()["error"]["code"] == "daemon_unreachable"
