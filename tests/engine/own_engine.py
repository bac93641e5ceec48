"""A Docker Engine of the tests' own, to be stopped and killed: this machine's runs what others need.

It lives in name spaces for processes, mounts and the network, with its own data and socket, no bridge and no firewall
rules. What is killed there is dockerd, containerd, the shims and the containers, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.engine.harness import command, wait_until

# The first process of its world. Whoever ignores SIGCHLD has no zombies, also of children that it inherits.
INIT = """
import pathlib, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""

NEEDED = ("dockerd", "unshare", "nsenter")


def missing() -> str:
    """Why this machine cannot run one; empty if it can."""
    if os.geteuid() != 0:
        return "a second Docker Engine needs root"
    lacking = [each for each in NEEDED if shutil.which(each) is None]
    return f"a second Docker Engine needs {', '.join(lacking)}" if lacking else ""


class OwnEngine:
    """The engine; it runs from `start` to `stop` or `kill`, in a small world that lasts as long as the block."""

    def __enter__(self) -> Self:
        # A socket's path holds 107 bytes at most, so not below pytest's directory.
        self.directory = Path(tempfile.mkdtemp(prefix="vbs-engine-"))
        self.socket = self.directory / "docker.sock"
        ready = self.directory / "ready"
        flags = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave")
        # Mounts propagate as systemd sets it up.
        script = 'mount --make-rshared / && exec "$0" -c "$1" "$2"'
        self._world = subprocess.Popen(["unshare", *flags, "sh", "-c", script, sys.executable, INIT, ready])
        wait_until(ready.exists, "there is a world for it")
        self._init = Path(f"/proc/{self._world.pid}/task/{self._world.pid}/children").read_text().split()[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine.poll() is None:
            self.stop()
        self.kill()
        self._thaw()
        self._world.kill()
        self._world.wait()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {"data-root": "data", "exec-root": "run", "pidfile": "dockerd.pid"}
        places = [f"--{option}={self.directory / name}" for option, name in options.items()]
        quiet = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--userland-proxy=false")
        with (self.directory / "log").open("ab") as log:
            self._engine = subprocess.Popen(
                [*self._inside(), "dockerd", f"--host=unix://{self.socket}", *places, *quiet], stdout=log, stderr=log
            )

        def answers() -> bool:
            assert self._engine.poll() is None, (self.directory / "log").read_text()[-3_000:]
            return command("docker", "--host", f"unix://{self.socket}", "info", check=False).code == 0

        wait_until(answers, "the engine answers", every=0.2)

    def stop(self) -> None:
        """Stop it in order, as a package's upgrade does: it stops its containers."""
        command(*self._inside(), "sh", "-c", f"kill -TERM $(cat {self.directory}/dockerd.pid)")
        self._engine.wait(60)

    def kill(self) -> None:
        """SIGKILL to all of them at once. With cgroup v1, what is frozen dies only when it is thawed."""
        command(*self._inside(), "sh", "-c", "kill -KILL -1", check=False)
        self._engine.wait(60)

    def _thaw(self) -> None:
        """Let those die that an engine with cgroup v1 has frozen, and has not lived to thaw."""
        script = "sed -n 's/.*:freezer://p' /proc/[0-9]*/cgroup | sort -u"
        for group in command(*self._inside(), "sh", "-c", script).out.split():
            state = Path(f"/sys/fs/cgroup/freezer{group}/freezer.state")
            if group != "/" and state.exists():
                state.write_text("THAWED")

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--net", "--mount", "--pid"]
