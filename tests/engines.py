"""The Docker Engines that tests run on, and who runs what where several workers share a machine.

Where this machine can have engines of its own making, each worker has one of each kind to itself: `machine`, the
engine that is installed here, and `modern`, Debian 13's. Elsewhere all use the engine that is `given`, one test after
another. A test says by its mark on which kinds it runs in `make test`: `engine("machine")`, `engine("modern")` or
`engine("both")`; TEST_ENGINES=both runs every one on both, TEST_ENGINES=modern on that alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from sidecar.engine.docker import DockerEngine, connect
from tests.commands import command
from tests.machine.own_engine import CACHE, EX_UNAVAILABLE, Images, Kind, OwnEngine, kind, locked, missing

SCRIPTS = Path(__file__).parent / "machine"
# Another tag lets two checkouts be tested on one engine at once.
PRODUCT_IMAGE = os.environ.get("TEST_PRODUCT_IMAGE", "volume-backup-sidecar")
STACK_IMAGES = tuple(f"local/demo-{each}" for each in ("postgres", "host", "files", "redis", "s3"))

MODERN_ROOT = CACHE / "debian-13"
# Those that take longest begin first, so that no worker is left alone with one at the end.
FIRST = (
    "test_death",
    "test_drill",
    "test_restore.py",
    "test_random_kills",
    "test_hooks",
    "test_oracle",
    "test_failures_in_words",
    "test_mistakes_and_stores",
)


WANTED = os.environ.get("TEST_ENGINES", "")
assert WANTED in ("", "both", "machine", "modern", "given"), f"TEST_ENGINES={WANTED}: both, machine, modern or given"
# Of the environment as it was given: later it is that of one engine or the other.
IS_GIVEN = bool(WANTED == "given" or os.environ.get("TEST_ENGINE_UNAVAILABLE") or os.environ.get("DOCKER_HOST"))


@cache
def kinds() -> tuple[str, ...]:
    """The kinds of engines that tests can have here."""
    if IS_GIVEN or missing():
        return ("given",)
    return ("machine", "modern") if MODERN_ROOT.exists() else ("machine",)


def choose(wanted: str, able: Sequence[str]) -> list[str]:
    """Those kinds that a test runs on which is to run on `wanted`; what cannot be had is replaced, never left out."""
    wanted = WANTED or wanted
    return [each for each in able if wanted in (each, "both")] or list(able[:1])


def kinds_of(definition: pytest.Item) -> list[str]:
    """The kinds of engines that a test runs on now."""
    marker = definition.get_closest_marker("engine")
    assert marker, f"{definition.nodeid} uses an engine and is not marked so"
    assert marker.args in (("machine",), ("modern",), ("both",)), f"{definition.nodeid} must say where it runs"
    able = [each for each in kinds() if has_limits(each)] if definition.get_closest_marker("needs_limits") else kinds()
    return choose(marker.args[0], able)


def has_limits(name: str) -> bool:
    """Whether such an engine can limit memory, processors and processes."""
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    return name != "modern" or (controllers.exists() and "memory" in controllers.read_text())


def run_script(name: str, *arguments: str) -> str:
    """The standard output of a script of tests/machine; skips the test where the machine cannot provide it."""
    done = command(SCRIPTS / name, *arguments, check=False, timeout=1_800)
    if done.code == EX_UNAVAILABLE:
        pytest.skip(done.err.strip())
    if done.code:
        pytest.fail(f"{name} failed with exit code {done.code}:\n{done.err}", pytrace=False)
    return done.out.strip()


def images(base_image: str) -> Images:
    """Those that an engine of the tests' own has from the beginning."""
    return (base_image, *STACK_IMAGES), (PRODUCT_IMAGE,)


@dataclass
class Running:
    """An engine that runs; own: None if it is this machine's."""

    kind: str
    own: OwnEngine | None = None
    environment: dict[str, str] = field(default_factory=dict)
    base_image: str = ""
    compose: tuple[str, ...] = ("docker-compose",)

    def reach(self, port: int) -> int:
        """The port of this machine's loopback interface at which a port of the engine's loopback interface is."""
        return self.own.reach(port) if self.own else port

    @property
    def root(self) -> Path:
        """The file system, with /proc and /sys, in which the engine runs."""
        return self.own.root if self.own else Path("/")

    def inside(self) -> list[str]:
        """The command that runs another one where the engine runs."""
        return self.own.inside() if self.own else []


def compose_command(environment: dict[str, str]) -> tuple[str, ...]:
    """Compose as the client with this environment has it."""
    has_plugin = command("docker", "compose", "version", check=False, env=os.environ | environment).code == 0
    return ("docker", "compose") if has_plugin else ("docker-compose",)


def running_on(name: str, own: OwnEngine, base_image: str) -> Running:
    environment = own.environment()
    return Running(name, own, environment, base_image, compose_command(environment))


class Engines:
    """This worker's engines, each started when the first test asks for it."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._running: dict[str, Running] = {}
        self._undo = contextlib.ExitStack()

    @contextmanager
    def on(self, name: str) -> Iterator[Running]:
        """The engine of this kind; within the block the Docker client, Compose and `connect(os.environ)` use it."""
        if name not in self._running:
            self._running[name] = self._start(name)
        running = self._running[name]
        with pytest.MonkeyPatch.context() as environment:
            for key, value in running.environment.items():
                environment.setenv(key, value)
            yield running

    def close(self) -> None:
        self._undo.close()

    def _start(self, name: str) -> Running:
        base_image = self.prepare()
        if name == "given":
            # As the client has it, by a context too.
            host = command("docker", "context", "inspect", "--format={{.Endpoints.docker.Host}}").out.strip()
            address = {"DOCKER_HOST": os.environ.get("DOCKER_HOST") or host}
            return Running(name, None, address, base_image, compose_command(address))
        engine = self._undo.enter_context(OwnEngine(kind(name), images(base_image)))
        engine.start()
        return running_on(name, engine, base_image)

    def prepare(self) -> str:
        """Have the images of the sources as they are now, made once for all workers of a run; the base image."""
        if reason := os.environ.get("TEST_ENGINE_UNAVAILABLE"):
            pytest.skip(reason)
        made = CACHE / "made-for-tests"
        with locked(CACHE / "made-for-tests.lock"):
            told = made.read_text().split() if made.exists() else []
            if told[:2] != [self._run, PRODUCT_IMAGE]:
                run_script("engine-up")
                run_script("product-image", PRODUCT_IMAGE)
                run_script("stack-images")
                told = [self._run, PRODUCT_IMAGE, run_script("base-image")]
                made.write_text(" ".join(told))
        return told[2]


# --- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engines(testrun_uid: str) -> Iterator[Engines]:
    engines = Engines(testrun_uid)
    try:
        yield engines
    finally:
        engines.close()


@pytest.fixture(scope="module")
def on_engine(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Running]:
    """The engine that this module's tests run on; a module is run once for each of its kinds."""
    with engines.on(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def docker_engine(on_engine: Running) -> DockerEngine:
    """The product's view of it."""
    return connect(os.environ)


@pytest.fixture(scope="module")
def base_image(on_engine: Running) -> str:
    """An image with a shell and Python."""
    return on_engine.base_image


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "on_engine" in metafunc.fixturenames:
        names = kinds_of(metafunc.definition)
        metafunc.parametrize("on_engine", names, indirect=True, scope="module", ids=names)


# --- known faults ----------------------------------------------------------------------------------------------------


class KnownFault(Exception):
    """What a test marked `known_fault` is about has happened; any other failure of it is one."""


@contextmanager
def fault() -> Iterator[None]:
    """The assertions that a known fault breaks."""
    try:
        yield
    except AssertionError as error:
        raise KnownFault(str(error)) from error


def known_to_fail(name: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, raises=KnownFault, reason=f"known fault {name}")


# --- who runs what, and how long it took ------------------------------------------------------------------------------


def engine_of(nodeid: str) -> str | None:
    """The kind of engine that a test runs on."""
    found = re.search(r"[\[-](machine|modern|given)[\]-]", nodeid)
    return found[1] if found else None


def unit_of(nodeid: str) -> str:
    """What one worker runs in one piece: a file, or a file on one kind of engine; all that share the given engine."""
    file, kind = nodeid.partition("::")[0], engine_of(nodeid)
    if kind is None:
        return file
    return "the given engine" if kind == "given" else f"{file} on {kind}"


class ByUnit(LoadScopeScheduling):
    """Gives the next unit to whoever has least left to do."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByUnit:
    config.option.loadscopereorder = False  # ours is the better order
    return ByUnit(config, log)  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        ahead = [place for place, name in enumerate(FIRST) if name in file]
        return ahead[0] if ahead else len(FIRST) + (not file.startswith("tests/engine"))

    items.sort(key=turn)
    for item in items:
        for marker in item.iter_markers("known_fault"):
            item.add_marker(known_to_fail(marker.args[0]))


@cache
def versions() -> list[str]:
    """What is here, for the head of the report."""

    def said(*arguments: str | Path) -> str:
        with contextlib.suppress(OSError):
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
            if found := re.search(r"\d+\.\d+\.\d+", done.stdout):
                return found[0]
        return "not found"

    cgroups = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    compose = said(SCRIPTS / "compose", "version")
    lines = [f"engine `machine`: Docker {said('dockerd', '--version')}, Compose {compose}, cgroup {cgroups}"]
    if "modern" in kinds():
        there = ("chroot", MODERN_ROOT)
        engine, compose = said(*there, "dockerd", "--version"), said(*there, "docker", "compose", "version")
        lines.append(f"engine `modern`: Docker {engine}, Compose {compose}, cgroup v2")
    else:
        lines.append("engine `modern`: not here (tests/machine/modern-root makes it); its tests run on `machine`")
    why = "as asked" if IS_GIVEN else missing()
    return lines if kinds() != ("given",) else [f"one engine, the given one, for all tests, one after another: {why}"]


def pytest_report_header() -> list[str]:
    return versions()


def processor_seconds() -> tuple[float, float]:
    """Seconds since boot that the processors have worked, and that they have had."""
    with contextlib.suppress(OSError):
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        per_second = os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - ticks[3] - ticks[4]) / per_second, sum(ticks) / per_second
    return 0.0, 0.0


_BEGAN = (time.monotonic(), *processor_seconds())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where the time went, and what tests have to say."""
    reports = [each for group in terminalreporter.stats.values() for each in group if hasattr(each, "duration")]
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds[unit_of(report.nodeid)] += report.duration
    notes = {value for report in reports for name, value in report.user_properties if name == "note"}
    for note in sorted(map(str, notes)):
        terminalreporter.write_line(note)
    if sum(seconds.values()) < 60:
        return
    terminalreporter.section("longest files")
    for unit, taken in seconds.most_common(15):
        terminalreporter.write_line(f"{taken:6.0f} s {unit}")
    worked, had = (now - then for now, then in zip(processor_seconds(), _BEGAN[1:], strict=True))
    terminalreporter.write_line(
        f"{sum(seconds.values()):6.0f} s of tests in {time.monotonic() - _BEGAN[0]:.0f} s;"
        f" processors busy for {worked:.0f} of {had:.0f} s"
    )


def fill_once(of: Kind, base_image: str) -> None:
    """Load the images for engines of this kind."""
    with OwnEngine(of, images(base_image)):
        pass


if __name__ == "__main__":  # beforehand, so that no worker waits for another
    base = run_script("base-image")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: fill_once(kind(name), base), [each for each in kinds() if each != "given"]))
