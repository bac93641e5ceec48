"""An engine in memory that behaves as Docker does; tests/contract/test_engine.py holds both against one contract.

Commands in its containers run on this machine. Besides the engine's port it has what a user does at the keyboard
(`run`, `restart`, `kill`, `copy_into`, ...), and faults: `fail` scripts an error for a call, `meanwhile` runs something
just after a call. Faults that did not happen show in `unfired`.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sidecar.engine.port import (
    OUTPUT_KEPT,
    PATIENT,
    Condition,
    ContainerEvent,
    Copied,
    Executed,
    Helper,
    Watch,
)
from sidecar.errors import AlreadyPaused, ContainerGone, EngineError, EngineUnreachable, HelperEnded, NotRunning
from sidecar.model import Container, ContainerState, EngineIdentity, Mount, Volume

ROOT = "/var/lib/docker"


@dataclass(slots=True)
class Fault:
    """What a call is to meet. lands: the request is carried out nevertheless, `late` looks (inspections) afterwards."""

    operation: str
    name: str
    error: EngineError
    times: int
    lands: bool
    late: int


_ITS_COMMAND = "from sidecar.cli.main import main; main()"


class FakeHelper:
    """A process on this machine in a helper container's stead."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._said = b""

    def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self.process.stdin.write(view) :]  # type: ignore[union-attr]
        except (BrokenPipeError, ValueError) as error:
            raise HelperEnded("the helper has ended") from error

    def end(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]

    def hear(self, timeout: float) -> bytes | None:
        while b"\n" not in self._said:
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                return None
            more = os.read(self.process.stdout.fileno(), 65536)  # type: ignore[union-attr]
            if not more:
                raise HelperEnded("the helper has ended")
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line


class FakeEngine:
    """Docker in memory. Every start gets a new `started_at` and process ID; nothing else depends on time."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._turn = threading.RLock()
        self._containers: dict[str, Container] = {}
        self._volumes: dict[str, Volume] = {}
        self._log: list[ContainerEvent] = []
        self._forgotten = 0
        self._numbers = iter(range(1, 1_000_000))
        self._faults: list[Fault] = []
        self._landing: list[tuple[int, str, Callable[[], None]]] = []
        self._meanwhile: dict[tuple[str, str], list[Callable[[], object]]] = {}
        self._carriers: set[str] = set()
        self._own = ""
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = defaultdict(list)
        self.launched: list[list[str]] = []
        self.executed: list[tuple[str, str]] = []
        self.says = "standing by\n"
        # Where helpers find the volumes' data; refusing: what they meet instead of being started.
        self.directory: Path | None = None
        self.helping: list[FakeHelper] = []
        self.refusing: list[EngineError] = []
        # What becomes of copies: name of the model -> how a copy is, once it runs. Others are well.
        self._models: dict[str, str] = {}
        self.becomes: dict[str, Callable[[Container], Condition]] = {}

    # --- the port ---

    def identity(self) -> EngineIdentity:
        return EngineIdentity("FAKE:ENGINE", "fake-host", "20.10.24", ROOT)

    def volumes(self) -> list[Volume]:
        with self._turn:
            return [self._volumes[name] for name in sorted(self._volumes)]

    def containers(self, *, running_only: bool = False) -> list[Container]:
        with self._turn:
            found = [c for c in self._containers.values() if c.running or not running_only]
            return sorted(found, key=lambda container: container.name)

    def container(self, identifier: str, *, patience: float = PATIENT) -> Container:
        with self._call("container", identifier):
            self._land(identifier)
            return self._find(identifier)

    def pause(self, identifier: str) -> None:
        with self._call("pause", identifier) as done:
            container = self._find(identifier)
            if container.state is ContainerState.PAUSED:
                raise AlreadyPaused(f"{container.name} is already paused")
            if container.state is not ContainerState.RUNNING:
                raise NotRunning(f"{container.name} is not running")
            done(lambda: self._become(container.id, ContainerState.PAUSED, "pause"))

    def unpause(self, identifier: str) -> bool:
        with self._call("unpause", identifier) as done:
            container = self._find(identifier)
            if container.state is not ContainerState.PAUSED:
                return False
            done(lambda: self._become(container.id, ContainerState.RUNNING, "unpause"))
            return True

    def stop(self, identifier: str, *, timeout: int) -> bool:
        with self._call("stop", identifier) as done:
            container = self._find(identifier)
            if not container.running:
                return False
            done(lambda: self._stop(container.id))
            return True

    def start(self, identifier: str) -> bool:
        with self._call("start", identifier) as done:
            container = self._find(identifier)
            if container.running:
                return False
            done(lambda: self._start(container.id))
            return True

    def launch(self, like: Container, *, role: str, command: Sequence[str], keep: Sequence[str]) -> str:
        with self._call("launch", like.name) as done:
            created: list[Container] = []
            name = f"{role}-{len(self.launched)}"
            done(lambda: created.append(self.run(name, labels={"backup.role": role}, auto_remove=True)))
            self.launched.append(list(command))
            return created[0].id

    def create_guard(
        self, like: Container, name: str, *, volumes: Sequence[str], labels: Mapping[str, str], made: Mapping[str, str]
    ) -> str:
        with self._call("create_guard", like.name) as done:
            if any(container.name == name for container in self._containers.values()):
                raise EngineError(f"the name {name} is in use")
            for volume in volumes:
                self.add_volume(volume, labels=made)
            created: list[Container] = []
            mounts = {volume: f"/guarded/{number}" for number, volume in enumerate(volumes)}
            done(lambda: created.append(self.create(name, labels=labels, volumes=mounts, read_only=True)))
            container = replace(created[0], image_id=like.image_id)
            self._containers[container.id] = container
            return container.id

    def copy(
        self, identifier: str, name: str, *, mounts: Sequence[Mount], labels: Mapping[str, str], memory: int
    ) -> Copied:
        with self._call("copy", identifier) as done:
            model = self._find(identifier)
            if any(container.name == name for container in self._containers.values()):
                raise EngineError(f"the name {name} is in use")
            created: list[Container] = []
            done(lambda: created.append(self.create(name, image=model.image, labels=labels)))
            copy = replace(
                created[0],
                image_id=model.image_id,
                network="none",
                health_check=model.health_check,
                memory=model.memory or memory,
                mounts=tuple(
                    replace(m, source=self._volumes[m.volume].mountpoint)
                    if m.kind == "volume"
                    else replace(m, writable=False)
                    for m in sorted(mounts, key=lambda mount: mount.target)
                ),
            )
            self._containers[copy.id] = copy
            self._models[copy.id] = model.name
            return Copied(copy.id, blotted=lambda text: text.replace("hunter2", "…"))

    def condition(self, identifier: str) -> Condition:
        with self._call("condition", identifier):
            container = self._find(identifier)
            if not container.running:
                return Condition(running=False, code=0)
            becomes = self.becomes.get(self._models.get(container.id, container.name))
            if becomes is not None:
                return becomes(container)
            return Condition(running=True, health="healthy" if container.health_check else "")

    def last_words(self, identifier: str) -> str:
        with self._call("last_words", identifier):
            self._find(identifier)
            return self.says

    def output(self, identifier: str) -> str:
        with self._call("output", identifier):
            self._find(identifier)
            return self.says

    def execute(self, identifier: str, command: Sequence[str], *, waiting: Callable[[], bool]) -> Executed:
        with self._turn:
            found = self._containers.get(identifier)
            self.executed.append((found.name if found else identifier, command[-1]))
        with self._call("execute", identifier) as done, tempfile.TemporaryFile() as written:
            container = self._find(identifier)
            if container.state is not ContainerState.RUNNING:
                raise NotRunning(f"{container.name} is {container.state}")
            begun: list[subprocess.Popen[bytes]] = []

            def begin() -> None:
                begun.append(subprocess.Popen(list(command), stdout=written, stderr=written, start_new_session=True))
                self._processes[container.id].append(begun[0])

            done(begin)
            process = begun[0]
            self._turn.release()  # others may ask the engine while it runs
            try:
                while process.poll() is None and waiting():
                    time.sleep(0.005)
            finally:
                self._turn.acquire()
            written.seek(0)
            return Executed(process.returncode, written.read()[-OUTPUT_KEPT:].decode(errors="replace"))

    def create_volume(
        self, name: str, *, labels: Mapping[str, str], driver: str = "local", options: Mapping[str, str] | None = None
    ) -> None:
        self.add_volume(name, labels=labels, driver=driver, options=options)
        self.data(name).mkdir(parents=True, exist_ok=True)

    def remove_volume(self, name: str) -> bool:
        with self._turn:
            if any(mount.volume == name for container in self._containers.values() for mount in container.mounts):
                return False
            self._volumes.pop(name, None)
            if self.directory is not None:
                shutil.rmtree(self.directory / name, ignore_errors=True)
            return True

    @contextmanager
    def help_with(self, like: Container, volume: str, *, command: Sequence[str], target: str) -> Iterator[Helper]:
        """A real process, which finds the volume's directory where the container would have `target`."""
        if self.refusing:
            raise self.refusing.pop(0)
        there = [each.replace(target, str(self.data(volume))) for each in command]
        container = self.run(
            f"helper-{next(self._numbers)}", labels={"backup.role": "helper"}, volumes={volume: target}
        )
        helper = FakeHelper(there if there[0] == "sh" else [sys.executable, "-c", _ITS_COMMAND, *there])
        self.helping.append(helper)
        try:
            yield helper
        finally:
            helper.end()
            helper.process.wait(60)
            helper.process.stdout.close()  # type: ignore[union-attr]
            self.remove(container.id)

    def data(self, volume: str) -> Path:
        """Where the data of a volume lies."""
        assert self.directory is not None, "this engine has no directory for data"
        return self.directory / volume / "_data"

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        with self._turn:
            began = len(self._log)
        yield _FakeWatch(self, began)

    def this_container(self) -> Container | None:
        return self.container(self._own) if self._own else None

    def carries_us(self, container: Container) -> bool:
        return container.name in self._carriers or container.name == self._own

    # --- what a user does ---

    def add_volume(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        driver: str = "local",
        options: Mapping[str, str] | None = None,
    ) -> Volume:
        """docker volume create"""
        with self._turn:
            mountpoint = f"{ROOT}/volumes/{name}/_data"
            return self._volumes.setdefault(
                name, Volume(name, mountpoint, driver, dict(options or {}), dict(labels or {}))
            )

    def create(
        self,
        name: str,
        *,
        image: str = "app",
        labels: Mapping[str, str] | None = None,
        volumes: Mapping[str, str] | None = None,
        binds: Mapping[str, str] | None = None,
        read_only: bool = False,
        auto_remove: bool = False,
        stop_timeout: int = 10,
        healthcheck: Sequence[str] = (),
        memory: int = 0,
    ) -> Container:
        """docker create. volumes: volume -> target; binds: host path -> target."""
        with self._turn:
            number = next(self._numbers)
            # By target, as the adapter sorts Docker's, which come in any order.
            mounts = [Mount("bind", source, target, not read_only) for source, target in (binds or {}).items()]
            for volume, target in (volumes or {}).items():
                mounts.append(Mount("volume", self.add_volume(volume).mountpoint, target, not read_only, volume))
            container = Container(
                id=f"{number:064x}",
                name=name,
                image=image,
                state=ContainerState.CREATED,
                started_at="0001-01-01T00:00:00Z",
                pid=0,
                labels=dict(labels or {}),
                mounts=tuple(sorted(mounts, key=lambda mount: mount.target)),
                auto_remove=auto_remove,
                addresses=frozenset([name]),
                network="default",
                stop_timeout=stop_timeout,
                health_check=bool(healthcheck),
                memory=memory,
            )
            self._containers[container.id] = container
            self._emit("create", container)
            return container

    def run(self, name: str, **options: object) -> Container:
        """docker run --detach; options as for `create`."""
        with self._turn:
            identifier = self.create(name, **options).id  # type: ignore[arg-type]
            self._start(identifier)
            return self._containers[identifier]

    def restart(self, name: str) -> None:
        """docker restart"""
        with self._turn:
            container = self._find(name)
            if container.running:
                self._stop(container.id)
            self._start(container.id)
            self._emit("restart", self._containers[container.id])

    def kill(self, name: str, signal: str = "KILL") -> None:
        """docker kill; the process ignores everything but KILL, as PID 1 does."""
        with self._turn:
            container = self._find(name)
            self._emit("kill", container)
            if signal == "KILL":
                self._die(container.id)
            elif container.state is ContainerState.PAUSED:
                self._become(container.id, ContainerState.RUNNING, "unpause")

    def exit(self, name: str) -> None:
        """Its process ends."""
        with self._turn:
            self._die(self._find(name).id)

    def check_health_at(self, name: str, moment: float | None) -> None:
        """The engine begins its next health check then, in seconds since 1970."""
        with self._turn:
            container = self._find(name)
            self._containers[container.id] = replace(container, health_check=True, next_check=moment)

    def crash_loop(self, name: str) -> None:
        """Its process has ended, and the engine is about to start it again."""
        with self._turn:
            container = self._find(name)
            self._containers[container.id] = replace(container, state=ContainerState.RESTARTING, pid=0)
            self._emit("die", container)

    def come_back(self, name: str) -> None:
        """The engine has started it again."""
        with self._turn:
            self._start(self._find(name).id)

    def remove(self, identifier: str) -> None:
        """docker rm --force; one that is gone is success"""
        with self._turn:
            try:
                container = self._find(identifier)
            except ContainerGone:
                return
            if container.running:
                self._emit("kill", container)
                self._die(container.id)
            if container.id in self._containers:
                del self._containers[container.id]
                self._emit("destroy", container)

    def copy_into(self, name: str) -> None:
        """docker cp FILE NAME:PATH"""
        with self._turn:
            self._mount(self._find(name))
            self._emit("extract-to-dir", self._find(name))

    def rename(self, name: str, new: str) -> None:
        """docker rename"""
        with self._turn:
            if any(container.name == new for container in self._containers.values()):
                raise EngineError(f"the name {new} is in use")
            container = replace(self._find(name), name=new)
            self._containers[container.id] = container
            self._emit("rename", container)

    def happen(self, action: str, name: str) -> None:
        """Any other event: a health check, a look at its processes, ..."""
        with self._turn:
            self._emit(action, self._find(name))

    def be(self, name: str) -> None:
        """From now on, this container is the one we run in."""
        self._own = name

    def carry(self, name: str) -> None:
        """From now on, our own connection runs through this container."""
        self._carriers.add(name)

    # --- faults ---

    def fail(
        self, operation: str, name: str, error: EngineError, *, times: int = 1, lands: bool = False, late: int = 0
    ) -> None:
        """Let the next `times` calls fail. lands: what was asked for happens anyway, after `late` inspections."""
        with self._turn:
            self._faults.append(Fault(operation, self._find(name).name, error, times, lands, late))

    def meanwhile(self, operation: str, name: str, act: Callable[[], object]) -> None:
        """Let `act` happen just after the next such call."""
        with self._turn:
            self._meanwhile.setdefault((operation, self._find(name).name), []).append(act)

    def forget_events(self) -> None:
        """The engine's event buffer is overwritten."""
        with self._turn:
            self._forgotten = len(self._log)
            self._log.append(ContainerEvent("top", "0" * 64, "someone"))

    @property
    def unfired(self) -> list[str]:
        """What was scripted and has not happened."""
        faults = [f"{fault.operation} {fault.name}" for fault in self._faults if fault.times]
        return faults + [" ".join(key) for key, acts in self._meanwhile.items() if acts]

    def state(self, name: str) -> ContainerState:
        """As `docker inspect` shows it; not a call."""
        with self._turn:
            return self._find(name).state

    def names(self, operation: str) -> list[str]:
        """Of which containers this was asked, in order."""
        return [name for what, name in self.calls if what == operation]

    # --- inside ---

    @contextmanager
    def _call(self, operation: str, identifier: str) -> Iterator[Callable[[Callable[[], None]], None]]:
        with self._turn:
            found = self._containers.get(identifier)
            name = found.name if found else identifier
            self.calls.append((operation, name))
            fault = next((f for f in self._faults if (f.operation, f.name) == (operation, name) and f.times), None)
            if fault is not None:
                fault.times -= 1
                if not fault.lands:
                    raise fault.error

            def done(act: Callable[[], None]) -> None:
                if fault is None:
                    act()
                    return
                if fault.late:
                    self._landing.append((fault.late, identifier, act))
                else:
                    act()
                raise fault.error

            yield done
            acts = self._meanwhile.get((operation, name))
        if acts:
            acts.pop(0)()

    def _land(self, identifier: str) -> None:
        """Requests that nobody waits for any more take effect."""
        waiting, self._landing = self._landing, []
        for looks, target, act in waiting:
            if target == identifier and looks <= 1:
                act()
            else:
                self._landing.append((looks - (target == identifier), target, act))

    def _find(self, identifier: str) -> Container:
        if identifier in self._containers:
            return self._containers[identifier]
        for container in self._containers.values():
            if container.name == identifier:
                return container
        raise ContainerGone(f"the container {identifier} does not exist any more")

    def _become(self, identifier: str, state: ContainerState, action: str) -> None:
        container = self._containers[identifier] = replace(self._containers[identifier], state=state)
        self._emit(action, container)

    def _start(self, identifier: str) -> None:
        number = next(self._numbers)
        container = replace(
            self._containers[identifier],
            state=ContainerState.RUNNING,
            started_at=f"2026-01-01T00:00:00.{number:09d}Z",
            pid=1000 + number,
        )
        self._containers[identifier] = container
        self._mount(container)
        self._emit("start", container)

    def _stop(self, identifier: str) -> None:
        container = self._containers[identifier]
        self._emit("kill", container)
        if container.state is ContainerState.PAUSED:
            self._become(identifier, ContainerState.RUNNING, "unpause")
            self._emit("kill", container)
        self._die(identifier)
        self._emit("stop", container)

    def _die(self, identifier: str) -> None:
        for process in self._processes.pop(identifier, ()):
            process.kill()
            process.wait()
        container = replace(self._containers[identifier], state=ContainerState.EXITED, pid=0)
        self._containers[identifier] = container
        self._emit("die", container)
        if container.auto_remove:
            del self._containers[identifier]
            self._emit("destroy", container)

    def _mount(self, container: Container) -> None:
        for mount in container.mounts:
            if mount.kind == "volume":
                mounted = replace(mount, source="")
                self._log.append(ContainerEvent("mount", container.id, "", mounted=mounted))

    def _emit(self, action: str, container: Container) -> None:
        self._log.append(ContainerEvent(action, container.id, container.name, container.role))


class _FakeWatch:
    def __init__(self, engine: FakeEngine, began: int) -> None:
        self._engine = engine
        self._began = began

    def events(self) -> Sequence[ContainerEvent]:
        with self._engine._turn:
            if self._engine._forgotten > self._began:
                raise EngineError("the engine's event log was overwritten while watched", hint="run the backup again")
            return tuple(self._engine._log[self._began :])


def unanswered() -> EngineUnreachable:
    """The error of a request that was not answered."""
    return EngineUnreachable("the Docker Engine did not answer in time")
