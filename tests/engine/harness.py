"""What the end-to-end tests run on: real containers, real Compose files, a real S3 server, the product's own image.

Everything gets names and a label that nobody else has, no fixed port, and is removed afterwards, so that a user's
sidecar, the demonstration and these tests can be on one machine at once. Whatever looks into a volume does so from a
container, because the engine's files may be out of our reach (another user, a virtual machine).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from docker import APIClient
from docker.errors import APIError, NotFound

from tests.commands import Done, command, wait_until
from tests.engines import PRODUCT_IMAGE, Running

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LABEL = "volume-backup-sidecar.test"
# Knows nothing of the product; has aws, tar, python3.
HOST_IMAGE = "local/demo-host"
POSTGRES_IMAGE = "local/demo-postgres"

# As in tests/stack/docker-compose.s3.yml. Long enough that the product takes both for secrets.
ACCESS_KEY = "sample-access-key"
SECRET_KEY = "sample-secret-key"
BUCKET = "backups"
REGION = "us-east-1"
ENDPOINT = "http://s3:8333"

# Other containers on this machine may have bind mounts and anonymous volumes. They are none of these tests' business.
NOT_OURS = "/*," + "?" * 64

# Settings of a sidecar, or of the AWS CLI, in the shell that runs the tests.
_FOREIGN = ("BACKUP_", "NOTIFY_", "AWS_", "S3_", "COMPOSE_", "DOCKER_VOLUMES_DIR", "PGBENCH_", "UPLOADS_", "TZ")


def docker(*arguments: str, **options: Any) -> Done:
    """Run the Docker client."""
    return command("docker", *arguments, **options)


@cache
def _api(host: str | None) -> APIClient:
    return APIClient(host, version="auto", timeout=180)


def api() -> APIClient:
    """The engine's API. What is asked again and again is asked here: it takes a tenth of the client's time."""
    return _api(os.environ.get("DOCKER_HOST"))


def inspect(container: str) -> dict[str, Any]:
    """What the engine says of a container."""
    facts: dict[str, Any] = api().inspect_container(container)
    return facts


def logs(container: str) -> Done:
    """What a container without a terminal has written."""
    out, err = (api().logs(container, stdout=each == "out", stderr=each == "err") for each in ("out", "err"))
    return Done(0, out.decode(errors="replace"), err.decode(errors="replace"))


def names(**filters: str) -> list[str]:
    """The names of all containers, running or not, that match the filters of `docker ps`."""
    return [each["Names"][0].removeprefix("/") for each in api().containers(all=True, filters=filters)]


def is_paused(container: str) -> bool:
    return bool(inspect(container)["State"]["Paused"])


class Machine:
    """Containers and volumes of one test session on one engine, all labelled with its mark."""

    def __init__(self, running: Running, directory: Path) -> None:
        self.running = running
        self.mark = uuid.uuid4().hex[:8]
        self.directory = directory
        self.volumes_directory = docker("info", "--format", "{{.DockerRootDir}}").out.strip() + "/volumes"
        self._compose_down: list[Callable[[], object]] = []
        # Compose must read neither our caller's settings nor a .env beside the Compose file: a user's real bucket may
        # be in there.
        self._empty = directory / "empty.env"
        self._empty.touch()
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}

    def name(self, text: str) -> str:
        """A name that nobody else has."""
        return f"vbs-e2e-{self.mark}-{text}"

    def volume(self, text: str, *options: str) -> str:
        """Create a volume; its full name."""
        label = f"{LABEL}={self.mark}"
        return docker("volume", "create", "--label", label, *options, self.name(text)).out.strip()

    def run(self, text: str, arguments: Sequence[str], *options: str, image: str = HOST_IMAGE) -> str:
        """Start a container in the background; its full name."""
        labels = ("--label", f"{LABEL}={self.mark}")
        docker("run", "--detach", "--init", "--name", self.name(text), *labels, *options, image, *arguments)
        return self.name(text)

    def remove(self, *names: str) -> None:
        """Remove containers, frozen or not, if they are there."""
        docker("rm", "--force", "--volumes", *names, check=False)

    def compose(self, project: str, files: Sequence[Path], environment: Mapping[str, str] | None = None) -> Compose:
        """A Compose project, which is taken down at the end of the session if it is not before."""
        options = ["--env-file", str(self._empty), "-p", project]
        options += [part for file in files for part in ("-f", str(file))]
        compose = Compose(self, project, options, self._environment | dict(environment or {}))
        self._compose_down.append(compose.down)
        return compose

    def files_of(self, volume: str) -> Path | None:
        """A volume's directory, where we can reach it."""
        if self.running.own is None:
            return None
        return self.running.root / api().inspect_volume(volume)["Mountpoint"].lstrip("/")

    def clean(self) -> None:
        """Remove all of it."""
        ours = f"label={LABEL}={self.mark}"
        if containers := docker("ps", "-aq", "--filter", ours).out.split():
            self.remove(*containers)
        for down in reversed(self._compose_down):
            down()
        if volumes := docker("volume", "ls", "-q", "--filter", ours).out.split():
            docker("volume", "rm", *volumes)


class Compose:
    """One project, with Compose as this machine has it."""

    def __init__(self, machine: Machine, project: str, options: Sequence[str], environment: Mapping[str, str]) -> None:
        self._machine = machine
        self.project = project
        self._options = options
        self._environment = environment
        self._is_up = False

    def __call__(self, *arguments: str, **options: Any) -> Done:
        compose = self._machine.running.compose
        return command(*compose, *self._options, *arguments, env=self._environment, cwd=ROOT, **options)

    def up(self, *options: str) -> None:
        self._is_up = True
        self("up", "-d", "--no-build", *options, timeout=300)

    def down(self) -> None:
        """Remove its containers, networks and volumes. Not by Compose, which takes ten times as long."""
        if not self._is_up:
            return
        ours = {"label": f"com.docker.compose.project={self.project}"}
        for container in api().containers(all=True, filters=ours):
            api().remove_container(container["Id"], force=True, v=True)
        for network in api().networks(filters=ours):
            api().remove_network(network["Id"])
        for volume in api().volumes(filters=ours)["Volumes"] or ():
            remove_volume(volume["Name"])
        self._is_up = False

    def container(self, service: str) -> str:
        """The name of a service's container."""
        identifier = self("ps", "-q", service).out.strip()
        assert identifier, f"{self.project} has no container of {service}"
        return str(inspect(identifier)["Name"]).removeprefix("/")

    def wait_healthy(self) -> None:
        for identifier in self("ps", "-q").out.split():
            wait_until(partial(_is_well, identifier), f"{identifier} is healthy", timeout=240)


def remove_volume(volume: str) -> None:
    """Remove a volume if it is there, once nobody has it: a helper or a dead man leaves a moment later."""
    wait_until(partial(_is_removed, volume), f"nobody has {volume}", every=0.2)


def _is_removed(volume: str) -> bool:
    try:
        api().remove_volume(volume)
    except NotFound:
        return True
    except APIError as error:
        if error.status_code == 409:
            return False
        raise
    return True


def _is_well(container: str) -> bool:
    state = inspect(container)["State"]
    assert state["Status"] in ("created", "running"), logs(container).out[-2_000:]
    return (state["Status"], state.get("Health", {}).get("Status", "healthy")) == ("running", "healthy")


class S3:
    """The S3 server, seen from outside: from a bare host in its network, and by boto3."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        seldom = {"S3_HEALTH_INTERVAL": "1h"}
        self.compose = machine.compose(machine.name("s3"), [ROOT / "tests/stack/docker-compose.s3.yml"], seldom)
        self.network = f"{self.compose.project}_default"

    def up(self) -> None:
        self.compose.up()
        self.container = self.compose.container("s3")
        self.host = self._machine.run(
            "host",
            ["sleep", "infinity"],
            *("--network", self.network, "--volume", f"{self._machine.volume('scratch')}:/scratch"),
            *("-e", f"AWS_REGION={REGION}", "-e", f"AWS_ACCESS_KEY_ID={ACCESS_KEY}"),
            *("-e", f"AWS_SECRET_ACCESS_KEY={SECRET_KEY}"),
        )
        port = int(self.compose("port", "s3", "8333").out.strip().rpartition(":")[2])
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._machine.running.reach(port)}",
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 3}),
        )

        wait_until(self._is_ready, "the S3 server has its bucket")

    def _is_ready(self) -> bool:
        try:
            self.client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            self.client.delete_object(Bucket=BUCKET, Key="ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    def on_host(self, script: str, *arguments: str, **options: Any) -> Done:
        """Run a bash script on the bare host."""
        return docker("exec", "-i", self.host, "bash", "-euo", "pipefail", "-c", script, "bash", *arguments, **options)

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, without it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [each["Key"].removeprefix(f"{prefix}/") for page in pages for each in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def pending(self, prefix: str) -> list[str]:
        """The keys of uploads that have begun and are neither complete nor aborted."""
        uploads = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{prefix}/").get("Uploads") or ()
        return [each["Key"] for each in uploads]

    def restore(self, prefix: str, set_name: str, volume: str) -> str:
        """Unpack a volume's archive with aws and tar on the bare host; the directory."""
        directory = f"/scratch/{uuid.uuid4().hex}"
        self.on_host(
            'mkdir -p "$2"; aws --endpoint-url "$3" s3 cp "s3://$1" -'
            " | tar --numeric-owner --acls --xattrs --xattrs-include='*' -xzpf - -C \"$2\"",
            f"{BUCKET}/{prefix}/{set_name}/{volume}.tar.gz",
            directory,
            ENDPOINT,
        )
        return directory

    def forget(self, directory: str) -> None:
        self.on_host('rm -rf "$1"', directory)


Description = dict[str, dict[str, Any]]


def describe(container: str, *directories: str) -> list[Description]:
    """What the oracle sees in directories of a container. A container that runs for longer: one that came and went
    would end the freeze that it is to observe."""
    script = (HERE / "describe.py").read_bytes()
    lines = docker("exec", "-i", container, "python3", "-", *directories, stdin=script).out.splitlines()
    return [json.loads(line) for line in lines]


def differences(expected: Description, found: Description) -> list[str]:
    """What differs between two descriptions, in words; sockets, which no archive can hold, do not count."""
    expected = {path: facts for path, facts in expected.items() if facts["kind"] != "socket"}
    said = [f"{path!r} is missing" for path in expected.keys() - found.keys()]
    said += [f"{path!r} should not be there" for path in found.keys() - expected.keys()]
    for path in expected.keys() & found.keys():
        for fact, value in expected[path].items():
            if found[path].get(fact) != value:
                said.append(f"{path!r}: {fact} is {found[path].get(fact)!r} and was {value!r}")
    return sorted(said)


class Run:
    """A `docker exec ... run-now` under way."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            ["docker", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def end(self, timeout: float = 120) -> Done:
        """Wait for its end."""
        out, err = self._process.communicate(timeout=timeout)
        return Done(self._process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


class Sidecar:
    """The product, through docker-compose.backup.yml and an override, for the volumes that match `include`.

    service: what else the override says of it; state: of its state volume. Without an S3 server it has no network, and
    keeps its sets here.
    """

    def __init__(
        self,
        machine: Machine,
        s3: S3 | None,
        text: str,
        *,
        include: Sequence[str],
        settings: Mapping[str, str] | None = None,
        service: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._machine = machine
        self._s3 = s3
        self._service = dict(service or {})
        self._state = dict(state or {})
        self.name = machine.name(f"backup-{text}")
        self.prefix = f"{machine.mark}/{text}"
        self.state = f"{self.name}-state"
        self.directory = machine.directory / f"backup-{text}"
        self.directory.mkdir()
        # Made by the engine, so that root in the container may write there whoever runs the tests.
        self.local_directory = self.directory / "sets"
        self._override = self.directory / "override.json"
        store = {
            "S3_BACKUP_BUCKET": BUCKET,
            "AWS_ENDPOINT_URL_S3": ENDPOINT,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "BACKUP_PREFIX": self.prefix,
        }
        self._settings = (
            (store if s3 else {"BACKUP_STORES": "local"})
            | {
                "BACKUP_SCHEDULE": "off",
                "BACKUP_INCLUDE": ",".join(include),
                "BACKUP_EXCLUDE": NOT_OURS,
                "BACKUP_MAX_PAUSE": "120s",
                "BACKUP_GUARD": "off",  # tests remove volumes
            }
            | dict(settings or {})
        )
        self._compose = machine.compose(
            self.name,
            [ROOT / "docker-compose.backup.yml", self._override],
            {"BACKUP_LOCAL_DIR": str(self.local_directory), "DOCKER_VOLUMES_DIR": machine.volumes_directory},
        )

    # --- its life ----------------------------------------------------------------------------------------------------

    def up(self, settings: Mapping[str, str] | None = None, *, ready: bool = True, **changes: str | None) -> None:
        """Start it, or start it anew with changed settings (None takes one away): its state stays, its log does not."""
        for name, value in [*(settings or {}).items(), *changes.items()]:
            self._settings.pop(name, None)
            if value is not None:
                self._settings[name] = value
        label = {LABEL: self._machine.mark}
        service = {
            "image": PRODUCT_IMAGE,
            "container_name": self.name,
            "labels": label,
            "environment": self._settings,
            **({"networks": ["default", "store"]} if self._s3 else {"network_mode": "none"}),
            **self._service,
        }
        override = {
            "services": {"backup": service},
            "networks": {"store": {"external": True, "name": self._s3.network}} if self._s3 else {},
            "volumes": {"backup-state": {"name": self.state, "labels": label, **self._state}},
        }
        self._override.write_text(json.dumps(override))  # JSON is YAML
        self._compose.up("--force-recreate")
        if ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until the daemon answers; what an earlier one said before this start of the container does not count."""

        def ready() -> bool:
            state = inspect(self.name)["State"]
            assert not self.events("config_invalid"), self.events("config_invalid")
            began = _comparable(state["StartedAt"])
            return any(_comparable(event["ts"]) >= began for event in self.events("daemon_started"))

        wait_until(ready, f"{self.name} is ready")

    def wait_restarted(self) -> None:
        """Until its restart policy has brought it back once."""

        def again() -> bool:
            # Counted when it dies; until it runs, what is said of its start is about the one before.
            facts = inspect(self.name)
            return facts["RestartCount"] == 1 and facts["State"]["Status"] == "running"

        wait_until(again, f"{self.name} has come back")
        self.wait_ready()

    def to_daemon(self, script: str) -> Done:
        """Run a shell script in the container; in it `$daemon` is the daemon's process, the first that init has."""
        return self._in_state(f"read -r daemon _ < /proc/1/task/1/children; {script}", check=False)

    def start(self) -> None:
        """Start it again after it was stopped or killed."""
        docker("start", self.name)
        self.wait_ready()

    def down(self) -> None:
        """Remove it, its guard, its state, and its local sets."""
        self._compose.down()
        if guards := self.guards():
            self._machine.remove(*guards)
        try:
            shutil.rmtree(self.directory)
        except FileNotFoundError:
            return
        except PermissionError:  # it was root in the container, and is another user here
            docker("run", "--rm", "--volume", f"{self.directory}:/there", HOST_IMAGE, "rm", "-rf", "/there/sets")

    # --- what its user does ------------------------------------------------------------------------------------------

    def verb(self, *arguments: str, check: bool = False, **options: Any) -> Done:
        """`docker exec backup VERB...`."""
        return docker("exec", self.name, *arguments, check=check, **options)

    def run_now(self, *arguments: str) -> Done:
        return self.verb("run-now", *arguments)

    def report(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The report of a whole run, which must end with this exit code."""
        done = self.run_now("--json", *arguments)
        assert done.code == code, (done, self.events()[-5:])
        report: dict[str, Any] = done.json()
        return report

    def good_run(self, *arguments: str, stage: str = "", held: Callable[[], Any] = lambda: None) -> tuple[Any, Any]:
        """The report of a run that must be good, and what `held` gave, called while the run is held at `stage`.

        A container of someone else that comes and goes while we are frozen ends the run, rightly; it is repeated then.
        """
        for _ in range(5):
            run = self.begin("--json", *arguments)
            given = None
            if stage:
                with self.held(stage, run):
                    given = held()
            done = run.end()
            if done.code == 0:
                assert done.json()["outcome"] == "good"
                return done.json(), given
            assert done.code == 1, (done, self.events()[-5:])
            assert all(
                each["code"] == "freeze_broken" and self._machine.mark not in each["message"]
                for each in done.json()["reasons"]
            ), done.out
        raise AssertionError("other containers on this machine come and go all the time")

    def sets(self) -> list[str]:
        """The names of the sets that `list` shows."""
        return [each["set"] for each in self.verb("list", "--json", check=True).json()["sets"]]

    def helpers(self) -> list[str]:
        """The containers that it has made to help it: all that have its state mounted, but for itself."""
        return [name for name in names(volume=self.state) if name != self.name]

    def guards(self) -> list[str]:
        """The guards that it has made, running or not."""
        return names(label=f"backup.guard-of={self.state}")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The log, which is JSON lines on stdout alone."""
        done = logs(self.name)
        assert done.err == ""
        events = [json.loads(line) for line in done.out.splitlines()]
        return [each for each in events if not names or each["event"] in names]

    # --- runs that are held at a stage (BACKUP_TEST_STAGE=STAGE=hold) ------------------------------------------------

    def begin(self, *arguments: str) -> Run:
        """Start a run in the background."""
        self.forget_held()
        return Run(["exec", self.name, "run-now", *arguments])

    def forget_held(self) -> None:
        """Before a run: what an earlier one left."""
        if state := self._machine.files_of(self.state):
            for left in state.glob("held-*"):
                left.unlink()
        else:
            self._in_state("rm -f /state/held-*")

    def wait_held(self, stage: str, run: Run | None = None) -> None:
        """Until the run is held at the stage."""
        if state := self._machine.files_of(self.state):

            def is_there() -> bool:
                reached = (state / f"held-{stage}").exists()
                assert reached or run is None or not run.is_over, run.end()
                return reached

            wait_until(is_there, f"{self.name} is held at {stage}", every=0.01)
            return
        # One exec that waits inside, because each exec makes events in the engine's short log.
        script = f"i=0; until [ -e /state/held-{stage} ]; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; sleep 0.02; done"

        def held() -> bool:
            reached = self._in_state(script, check=False).code == 0
            assert reached or run is None or not run.is_over, run.end()
            return reached

        wait_until(held, f"{self.name} is held at {stage}")

    def release(self, stage: str) -> None:
        if state := self._machine.files_of(self.state):
            (state / f"held-{stage}").unlink(missing_ok=True)
        else:
            self._in_state(f"rm -f /state/held-{stage}")

    @contextmanager
    def held(self, stage: str, run: Run) -> Iterator[None]:
        """The run stands still at `stage` for the block."""
        self.wait_held(stage, run)
        try:
            yield
        finally:
            self.release(stage)

    def _in_state(self, script: str, *, check: bool = True) -> Done:
        return docker("exec", self.name, "sh", "-c", script, check=check)


def _comparable(moment: str) -> str:
    """An RFC 3339 time in UTC to the millisecond; the engine writes nine digits without the zeros at their end."""
    whole, _, fraction = moment.rstrip("Z").partition(".")
    return f"{whole}.{fraction[:3]:0<3}"


@dataclass
class Terminal:
    """A command on a terminal of its own, as a person has one."""

    arguments: Sequence[str]
    output: bytes = field(default=b"", init=False)

    def __enter__(self) -> Terminal:
        self._master, slave = pty.openpty()
        # Wide enough for our long names: on 80 columns they are folded, or not, as long as a pause is.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))

        # The client switches it to raw, so what is typed goes to the process in the container.
        self._process = subprocess.Popen(
            self.arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, pattern: bytes, timeout: float = 60) -> None:
        """Until it has shown something that matches."""
        wait_until(lambda: re.search(pattern, self._read()), f"the terminal shows {pattern!r}", timeout=timeout)

    def wait(self, timeout: float = 60) -> int:
        """Its exit code, once all that it has shown has been read."""

        def over() -> bool:
            self._read()  # or the terminal is full, and the command waits for us
            return self._process.poll() is not None

        wait_until(over, "the command on the terminal has ended", timeout=timeout)
        self._read()
        return int(self._process.returncode)

    def _read(self) -> bytes:
        while select.select([self._master], [], [], 0)[0]:
            try:
                chunk = os.read(self._master, 65536)
            except OSError as error:
                if error.errno == errno.EIO:  # Linux: no one holds the other end any more
                    break
                raise
            if not chunk:
                break
            self.output += chunk
        return self.output
