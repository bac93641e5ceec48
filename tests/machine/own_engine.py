"""Docker Engines of the tests' own: as many at once as one likes, of two kinds, to be stopped and killed.

Each lives in name spaces of its own for processes, mounts, the network, the host's name and IPC, with its own data and
socket. The machine's files are there under the same paths, and what is mounted on the machine later arrives there. So
what is frozen, counted, listed or killed in one is nobody else's. Needs root, dockerd and util-linux.

By hand: `python -m tests.machine.own_engine KIND COMMAND...` runs a command with an engine of its own (KIND: machine or
modern), which ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.commands import command, wait_until

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volume-backup-sidecar"
EX_UNAVAILABLE = 69  # as common.sh has it
FLAGS = (
    "--net",
    "--mount",
    "--pid",
    "--ipc",
    "--uts",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "slave",
)

NEEDED = ("dockerd", "unshare", "nsenter", "setpriv", "ip")

Images = tuple[tuple[str, ...], ...]

# Whatever ends the thread that starts it.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")

# $1: a root of another Debian, or empty; $2: a file that says that all is ready; $3: the engine's data.
# Whoever ignores SIGCHLD has no zombies, also of children that it inherits.
WORLD = """
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
if [ -n "$1" ]; then
    mount --bind "$1/usr" /usr
    mount --bind "$1/etc" /etc
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mkdir -p /etc/docker /var/lib/docker
mount -t tmpfs tmpfs /etc/docker
mount --bind "$3" /var/lib/docker
echo engine > /proc/sys/kernel/hostname
ip link set lo up
: > "$2"
exec env --ignore-signal=CHLD sleep infinity
"""

# $1: the name of an engine. Frozen processes die only when they are thawed, and a control group goes with its last one.
REMOVE_GROUPS = """
cd /sys/fs/cgroup || exit
for try in $(seq 100); do
    find . -path "*/$1/*" -name freezer.state -exec sh -c 'echo THAWED > "$1"' sh {} \\; 2>/dev/null
    find . -depth -type d -path "*/$1*" -exec rmdir {} + 2>/dev/null
    [ -n "$(find . -maxdepth 2 -type d -name "$1")" ] || exit 0
    sleep 0.05
done
"""

# Listens on the machine's loopback interface and connects to a port of the engine's.
FORWARDER = """
import asyncio, ctypes, sys
process, port = sys.argv[1:]

async def pump(reader, writer):
    try:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()

async def serve(reader, writer):
    try:
        there = await asyncio.open_connection("127.0.0.1", int(port))
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
    for each in (writer, there[1]):
        each.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with open(f"/proc/{process}/ns/net") as there:
        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Kind:
    """A kind of engine; root: of another Debian, from which it comes instead of from the machine."""

    name: str
    root: Path | None = None


MACHINE = Kind("machine")


def modern() -> Kind:
    """Debian 13's engine, whose parts are made first if they are not there."""
    return Kind("modern", Path(command(HERE / "modern-root", timeout=1_800).out.strip()))


def kind(name: str) -> Kind:
    return modern() if name == "modern" else MACHINE


@cache
def missing() -> str:
    """Why this machine cannot run an engine of the tests' own; empty if it can."""
    if os.geteuid() != 0:
        return "a Docker Engine of the tests' own needs root"
    if lacking := [each for each in NEEDED if shutil.which(each) is None]:
        return f"a Docker Engine of the tests' own needs {', '.join(lacking)}"
    tried = command("unshare", *FLAGS, "true", check=False)
    return f"there can be no name spaces here: {tried.err.strip()}" if tried.code else ""


class OwnEngine:
    """An engine; it runs from `start` to `stop` or `kill`, in a small world that lasts as long as the block.

    images: the names of those of the machine's images that it has from the beginning, in groups: those that change
    seldom first, so that they are not loaded again with those that change often.
    """

    def __init__(self, kind: Kind = MACHINE, images: Images = ()) -> None:
        self.kind = kind
        self._images = images

    def __enter__(self) -> Self:
        # A socket's path holds 107 bytes at most, so neither below pytest's directory nor below the cache.
        self.directory = Path(tempfile.mkdtemp(prefix="vbs-engine-"))
        self.name = self.directory.name
        self.socket = self.directory / "docker.sock"
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self.directory)
            self._data, self._lock = _new_data(self.name)
            undo.callback(self._forget_data)
            if self._images:
                _fill(self._data / "data", self.kind, self._images)
            ready = self.directory / "ready"
            root = str(self.kind.root or "")
            self._world = subprocess.Popen(
                [*DIES_WITH_US, "unshare", *FLAGS, "sh", "-c", WORLD, "sh", root, ready, self._data / "data"],
                stdin=subprocess.DEVNULL,
            )
            undo.callback(self._world.wait)
            undo.callback(self._world.kill)
            wait_until(lambda: ready.exists() or self._world.poll() is not None, "there is a world for it")
            assert self._world.poll() is None, "there is no world for it: what unshare and mount say is above"
            self.init = int(Path(f"/proc/{self._world.pid}/task/{self._world.pid}/children").read_text().split()[0])
            self._engine: subprocess.Popen[bytes] | None = None
            self._forwarders: list[subprocess.Popen[bytes]] = []
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._undo:
            for forwarder in self._forwarders:
                forwarder.kill()
                forwarder.wait()
            self.kill()
            self.command("sh", "-c", REMOVE_GROUPS, "sh", self.name, check=False)

    # --- its life ----------------------------------------------------------------------------------------------------

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers; options: more of them, for dockerd."""
        assert self._engine is None, "it runs already"
        usual = {
            "pidfile": "/run/docker.pid",
            "config-file": self.directory / "daemon.json",
            "cgroup-parent": f"/{self.name}",
            "exec-opt": "native.cgroupdriver=cgroupfs",
        }
        (self.directory / "daemon.json").write_text("{}")  # not the machine's
        sockets = ("--host=unix:///run/docker.sock", f"--host=unix://{self.socket}")
        with (self.directory / "log").open("ab") as log:
            self._engine = subprocess.Popen(
                [*self.inside(), "dockerd", *sockets, *(f"--{key}={value}" for key, value in usual.items()), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def answers() -> bool:
            assert self._engine
            assert self._engine.poll() is None, (self.directory / "log").read_text()[-3_000:]
            return command("docker", "info", check=False, env=os.environ | self.environment()).code == 0

        wait_until(answers, "the engine answers", every=0.1)

    def stop(self) -> None:
        """Stop it in order, as a package's upgrade does: it stops its containers."""
        assert self._engine
        self.command("sh", "-c", "kill -TERM $(cat /run/docker.pid)")
        self._engine.wait(60)
        self._engine = None

    def kill(self) -> None:
        """SIGKILL to all of them at once: dockerd, containerd, shims, containers."""
        self.command("sh", "-c", "kill -KILL -1", check=False)
        # With cgroup v1, whoever is killed while frozen dies only when thawed.
        for state in Path("/sys/fs/cgroup/freezer", self.name).glob("**/freezer.state"):
            with contextlib.suppress(OSError):  # just removed
                state.write_text("THAWED")
        if self._engine:
            self._engine.wait(60)
            self._engine = None

    # --- its world ---------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """What makes the Docker client, and Compose, use it."""
        client = {"DOCKER_CONFIG": str(self.kind.root / "client")} if self.kind.root else {}
        # DOCKER_SOCKET is the Compose file's: where the sidecar finds it, in the engine's world.
        return {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_SOCKET": "/var/run/docker.sock", **client}

    @property
    def root(self) -> Path:
        """Its file system, with its own /proc and /sys, as seen from outside."""
        return Path(f"/proc/{self.init}/root")

    def command(self, *arguments: str | Path, check: bool = True) -> None:
        """Run a command in its name spaces."""
        command(*self.inside(), *arguments, check=check)

    def reach(self, port: int) -> int:
        """A port of this machine's loopback interface that leads to a port of the engine's."""
        forwarder = subprocess.Popen(
            [*DIES_WITH_US, sys.executable, "-c", FORWARDER, str(self.init), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._forwarders.append(forwarder)
        assert forwarder.stdout
        return int(forwarder.stdout.readline())

    def inside(self) -> list[str]:
        """The command that runs another one in its name spaces."""
        return ["nsenter", f"--target={self.init}", "--net", "--mount", "--pid", "--ipc", "--uts", "--wd=/"]

    def _forget_data(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        self._lock.close()


# --- data directories ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else is in such a block with the same path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _new_data(name: str) -> tuple[Path, IO[str]]:
    """A directory for an engine's data, and a lock that says as long as it is open that somebody uses it."""
    engines = CACHE / "engines"
    with locked(engines / "lock"):
        for left in engines.glob("vbs-engine-*"):  # whoever used it was killed
            with (left / "used").open("a") as used:
                try:
                    fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                command("sh", "-c", REMOVE_GROUPS, "sh", left.name, check=False)
                shutil.rmtree(Path(tempfile.gettempdir(), left.name), ignore_errors=True)
                shutil.rmtree(left, ignore_errors=True)
        directory = engines / name
        (directory / "data").mkdir(parents=True)
        lock = (directory / "used").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return directory, lock


def _fill(data: Path, kind: Kind, images: Images) -> None:
    """Make an engine's data those of one that has loaded these images of the machine's engine.

    They are loaded once. Nobody writes to the files of an image's layers, so all engines share them; what engines
    change is copied. Measured with 1.3 GB in 31,000 files: copied 28 s, linked 3 s.
    """
    names = [name for group in images for name in group]
    identifiers = command("docker", "image", "inspect", "--format={{.Id}}", *names).out.split()
    family = f"images-{kind.name}-{_digest(*names)}"
    template = CACHE / "engines" / f"{family}-{_digest(str(kind.root), *identifiers)}"
    with locked(CACHE / "engines" / f"{family}.lock"):
        if not template.exists():
            for old in template.parent.glob(f"{family}-*"):
                old.rename(dying := old.with_name(f"old-{old.name}"))
                shutil.rmtree(dying)
            _load(template, kind, images)
        command("cp", "-a", "--link", template / "overlay2", data)
        command("cp", "-a", *(each for each in template.iterdir() if each.name != "overlay2"), data)


def _load(template: Path, kind: Kind, images: Images) -> None:
    """Make the data directory of an engine that has just loaded the last group of images."""
    with OwnEngine(kind, images[:-1]) as engine:
        engine.start()
        with subprocess.Popen(["docker", "save", *images[-1]], stdout=subprocess.PIPE) as save:
            load = ["docker", "--host", f"unix://{engine.socket}", "load", "--quiet"]
            subprocess.run(load, stdin=save.stdout, check=True, timeout=900, stdout=subprocess.DEVNULL)
        assert save.returncode == 0
        engine.stop()
        data = engine._data / "data"
        (data / "engine-id").unlink(missing_ok=True)  # each has one of its own
        making = template.with_name(f"new-{template.name}")
        shutil.rmtree(making, ignore_errors=True)
        command("cp", "-a", "--link", data, making)
        making.rename(template)


def _digest(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def main() -> int:
    """Run a command with an engine of its own."""
    if len(sys.argv) < 3 or sys.argv[1] not in ("machine", "modern"):
        print(__doc__, file=sys.stderr)
        return 2
    with OwnEngine(kind(sys.argv[1])) as engine:
        engine.start()
        return subprocess.run(sys.argv[2:], env=os.environ | engine.environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
