"""The house keeps its shape: which module may import which, what pure code may touch, and that docs/ says the same.

The rules are tables; `violations` judges any tree of modules by them. The second half of this file shows that it sees
what it should, on small trees that break one rule each.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2]
PACKAGE = "sidecar"

# --- the rules -------------------------------------------------------------------------------------------------------

# Decides without acting: takes time, chance and environment as arguments. The ports are contracts, and pure with them.
PURE = frozenset(
    [
        "errors",
        "events",
        "model",
        "report",
        "config",
        "plan",
        "guarding",
        "restoration",
        "drilling",
        "contents",
        "salvage",
        "schedule",
        "sets",
        "archive.entry",
        "archive.records",
        "archive.blocks",
        "archive.index",
        "archive.settled",
        "stores.port",
        "stores.bucket",
        "stores.parts",
        "stores.rules",
        "stores.snapshots",
        "engine.port",
        "engine.evidence",
        "engine.likeness",
        "service.jobs_port",
        "service.shipments",
        "service.leisure",
    ]
)
LAYERS = {
    "durable": 1,
    "archive": 1,
    "stores": 1,
    "engine": 1,
    "jobs": 2,
    "service": 3,
    "cli": 4,
    "wiring": 4,
    "standby": 4,
}
# Rooms of one layer that know nothing of each other; every arrow that crosses a wall all the same, with its reason.
WALLS = ("archive", "stores", "engine")
# What speaks to the real engine and the real stores: built in one place, handed on as what the ports promise.
ADAPTERS = {
    "engine.docker": ("wiring", "standby"),
    "stores.s3": ("wiring",),
    "stores.s3_bucket": ("wiring",),
    "stores.ebs": ("wiring",),
    "stores.local": ("wiring",),
    "stores.memory": (),
}

# Import name of every package that is not the standard library's -> the modules or rooms it may be imported in.
THIRD_PARTY = {
    "docker": ("engine.docker",),
    "requests": ("engine.docker",),  # what `docker` raises; its dependency
    "urllib3": ("engine.docker", "stores.s3_errors"),  # what `docker` and `botocore` raise; their dependency
    "boto3": ("stores.s3", "stores.ebs"),
    "botocore": ("stores.s3", "stores.s3_errors", "stores.ebs"),
    "tenacity": ("stores.retrying",),
    "isal": ("archive", "stores", "jobs"),
    "xxhash": ("archive.copies",),
    "croniter": ("schedule",),
    "pythonjsonlogger": ("service.logs",),
    "starlette": ("service",),
    "uvicorn": ("service",),
    "click": ("cli",),
    "rich": ("cli",),
}

# The standard library as far as it decides and does nothing. A module that is not here is not forbidden for ever, but
# whoever adds it says that it reads no clock, no chance, no environment, no file and no network.
PURE_LIBRARY = frozenset(
    [
        "__future__",
        "abc",
        "bisect",
        "collections",
        "collections.abc",
        "contextlib",
        "dataclasses",
        "datetime",
        "difflib",
        "enum",
        "fnmatch",
        "functools",
        "hashlib",
        "itertools",
        "json",
        "logging",
        "math",
        "operator",
        "os",
        "posixpath",
        "re",
        "shlex",
        "stat",
        "string",
        "struct",
        "textwrap",
        "threading",
        "types",
        "typing",
        "urllib.parse",
        "zlib",
        "zoneinfo",
    ]
)
# Of these only a part is pure: the attributes that pure code may use.
PARTLY_PURE = {
    "os": re.compile(r"fsencode|fsdecode"),
    "logging": re.compile(r"[A-Z]+|getLevelNamesMapping"),  # levels, not loggers
    "threading": re.compile(r"Event"),  # as the type of an argument
}
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"})
CLOCKS = frozenset({"now", "utcnow", "today"})  # of datetime and date

NO_NAMES = frozenset({"util", "utils", "helper", "helpers", "common", "misc", "shared", "tools", "lib"})


# --- reading modules -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """A module without the package's name: `archive.index`, `plan`; the package's own __init__ is ``."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @property
    def room(self) -> str:
        return self.name.split(".")[0]

    @property
    def layer(self) -> int:
        return 0 if not self.name or self.name in PURE else LAYERS[self.room]


def read_tree(root: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = Module(name, ast.parse(path.read_text(), str(path)), is_package)
    return modules


def imports(module: Module) -> Iterator[str]:
    """Full names that a module imports, wherever the statement stands: `json`, `sidecar.plan`, `sidecar.plan.Plan`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                here = [PACKAGE, *module.name.split(".")] if module.name else [PACKAGE]
                base = here[: len(here) - node.level + module.is_package]
                start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def arrows(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, module in modules.items():
        for imported in imports(module):
            if imported.split(".")[0] != PACKAGE:
                continue
            target = imported.removeprefix(PACKAGE).removeprefix(".")
            while target not in modules and target:  # `sidecar.plan.Plan` is the module `plan`
                target = target.rpartition(".")[0]
            found[name].add(target)
    return found


def packages_used(module: Module) -> set[str]:
    """Top names of the packages that are neither ours nor the standard library's."""
    names = {imported.split(".")[0] for imported in imports(module)}
    return names - {PACKAGE} - sys.stdlib_module_names


def is_within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


# --- judging them ----------------------------------------------------------------------------------------------------


def violations(modules: Mapping[str, Module]) -> list[str]:
    """Every breach of a rule, in words."""
    unknown = [m.name for m in modules.values() if m.name and m.name not in PURE and m.room not in LAYERS]
    if unknown:
        return [f"{name} is in no layer: give it one in LAYERS or PURE" for name in unknown]
    drawn = arrows(modules)
    found = [f"{name}: a module's name says what it is for" for name in modules if NO_NAMES & set(name.split("."))]
    for name, targets in drawn.items():
        for target in sorted(targets):
            found += broken_by_arrow(modules[name], modules[target])
    for module in modules.values():
        for package in sorted(packages_used(module)):
            if package not in THIRD_PARTY:
                found.append(f"{module.name} imports {package}, which has no place in THIRD_PARTY")
            elif not is_within(module.name, THIRD_PARTY[package]):
                found.append(f"{module.name} imports {package}, which is for {', '.join(THIRD_PARTY[package])}")
        if module.layer == 0:
            found += [f"{module.name} is pure, and {what}" for what in effects(module)]
    return found + [f"a circle of imports: {' -> '.join(circle)}" for circle in circles(drawn)]


def broken_by_arrow(source: Module, target: Module) -> Iterator[str]:
    arrow = f"{source.name} imports {target.name}"
    if target.layer > source.layer:
        yield f"{arrow}, which lies above it (layers {source.layer} and {target.layer})"
    if target.room == "cli" and source.room != "cli":
        yield f"{arrow}: nothing imports the command line"
    walled = source.room in WALLS and target.room in WALLS and source.room != target.room
    if walled:
        yield f"{arrow}, which is another room of the same layer"
    if target.name in ADAPTERS and source.room != target.room and source.name not in ADAPTERS[target.name]:
        yield f"{arrow}: ask for what the port promises, wiring hands it in"


def effects(module: Module) -> Iterator[str]:
    """What a pure module does that it should be told instead."""
    for imported in imports(module):
        top = imported.split(".")[0]
        if top not in sys.stdlib_module_names:
            continue
        if imported not in PURE_LIBRARY and imported.rpartition(".")[0] not in PURE_LIBRARY:
            yield f"imports {imported}"
        if top in PARTLY_PURE and imported != top and not PARTLY_PURE[top].fullmatch(imported.rpartition(".")[2]):
            yield f"uses {imported}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PARTLY_PURE:
            if not PARTLY_PURE[node.value.id].fullmatch(node.attr):
                yield f"uses {node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            yield from (f"hides {a.name} behind {a.asname}" for a in node.names if a.name in PARTLY_PURE and a.asname)
        elif isinstance(node, ast.Call):
            yield from effects_of_call(node)


def effects_of_call(call: ast.Call) -> Iterator[str]:
    match call.func:
        case ast.Name(name) if name in IMPURE_CALLS:
            yield f"calls {name}()"
        case ast.Attribute(attr=name) if name in CLOCKS:
            yield f"reads the clock by {name}()"
        case ast.Attribute(attr="astimezone") if not call.args and not call.keywords:
            yield "reads the machine's time zone by astimezone()"


def circles(drawn: Mapping[str, set[str]]) -> list[list[str]]:
    """One circle of imports for each group of modules that import each other."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            if not any(set(circle) & set(other) for other in found):
                found.append([*circle, name])
            return
        if name in done:
            return
        for target in sorted(drawn[name] - {name}):
            follow(target, [*path, name])
        done.add(name)

    for name in sorted(drawn):
        follow(name, [])
    return found


# --- the house as it stands ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    return read_tree(HOME / PACKAGE)


def test_every_module_keeps_the_rules_of_the_house(house: dict[str, Module]) -> None:
    assert violations(house) == []


def test_no_rule_speaks_of_a_module_that_is_gone(house: dict[str, Module]) -> None:
    rooms = {module.room for module in house.values()}
    places = {place for allowed in THIRD_PARTY.values() for place in allowed}
    used = {
        (package, place)
        for package, allowed in THIRD_PARTY.items()
        for place in allowed
        if any(is_within(m.name, (place,)) and package in packages_used(m) for m in house.values())
    }

    assert set(house) >= PURE
    assert rooms >= set(LAYERS)
    assert set(house) >= set(ADAPTERS) | {place for places in ADAPTERS.values() for place in places}
    assert set(house) >= places
    assert used == {(package, place) for package, allowed in THIRD_PARTY.items() for place in allowed}


# --- that the judge sees ---------------------------------------------------------------------------------------------


def a_house(**sources: str) -> dict[str, Module]:
    """Modules by name, `__` for a dot; those that others import are there too."""
    named = {name.replace("__", "."): textwrap.dedent(text) for name, text in sources.items()}
    modules = {name: Module(name, ast.parse(text)) for name, text in named.items()}
    for room in ("", "archive", "stores", "engine", "jobs", "service", "cli"):
        modules.setdefault(room, Module(room, ast.parse(""), is_package=True))
    return modules


def judged(**sources: str) -> str:
    (verdict,) = violations(a_house(**sources))
    return verdict


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("plan", "archive.writer"),
        ("config", "wiring"),
        ("archive.writer", "jobs.backup"),
        ("engine.freeze", "service.daemon"),
        ("stores.local", "wiring"),
        ("jobs.backup", "service.daemon"),
        ("jobs.backup", "wiring"),
        ("service.daemon", "wiring"),
    ],
)
@pytest.mark.parametrize(
    "statement",
    [
        "from sidecar.{room} import {name}",
        "import sidecar.{whole}",
        "from sidecar.{whole} import Thing",
        "def later():\n    import sidecar.{whole} as it",
        "if TYPE_CHECKING:\n    from sidecar.{whole} import Thing",
    ],
)
def test_an_import_that_points_up_is_seen_wherever_it_stands(importer: str, imported: str, statement: str) -> None:
    room, _, name = imported.rpartition(".")
    text = statement.format(room=room, name=name, whole=imported).replace("sidecar. ", "sidecar ")
    modules = a_house(**{importer.replace(".", "__"): text, imported.replace(".", "__"): ""})

    assert f"{importer} imports {imported}, which lies above it" in "\n".join(violations(modules))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("archive.writer", "stores.pool"),
        ("archive.capture", "stores.port"),
        ("stores.pool", "archive.blocks"),
        ("engine.freeze", "archive.spool"),
        ("stores.pool", "engine.port"),
    ],
)
def test_rooms_of_one_layer_know_nothing_of_each_other(importer: str, imported: str) -> None:
    modules = {importer.replace(".", "__"): f"import sidecar.{imported}", imported.replace(".", "__"): ""}

    assert "another room of the same layer" in judged(**modules)


def test_nothing_imports_the_command_line_not_even_wiring() -> None:
    assert "nothing imports the command line" in judged(wiring="import sidecar.cli.main", cli__main="")


@pytest.mark.parametrize("adapter", ["engine.docker", "stores.s3", "stores.local", "stores.memory"])
def test_jobs_see_engine_and_stores_through_their_ports(adapter: str) -> None:
    modules = {"jobs__backup": f"import sidecar.{adapter}", adapter.replace(".", "__"): ""}

    assert "ask for what the port promises" in judged(**modules)


def test_wiring_builds_the_real_ones_but_none_that_is_for_tests() -> None:
    assert violations(a_house(wiring="import sidecar.stores.s3", stores__s3="")) == []
    assert "port promises" in judged(wiring="import sidecar.stores.memory", stores__memory="")


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("jobs__backup", "import docker"),
        ("engine__freeze", "from docker.errors import DockerException"),
        ("stores__pool", "import boto3.session"),
        ("jobs__backup", "from botocore import exceptions"),
        ("cli__main", "import starlette"),
        ("service__daemon", "def later():\n    import click"),
        ("service__api", "from rich.console import Console"),
        ("plan", "from isal import isal_zlib"),
        ("config", "import croniter"),
    ],
)
def test_a_third_partys_package_stays_in_its_room(module: str, statement: str) -> None:
    assert "which is for" in judged(**{module: statement})


def test_a_package_without_a_place_is_seen() -> None:
    assert "no place in THIRD_PARTY" in judged(jobs__backup="import leftpad")


def test_relative_imports_are_followed() -> None:
    assert "another room" in judged(archive__writer="from ..stores import pool", stores__pool="")
    assert "another room" in judged(archive__writer="from ..stores.pool import combine", stores__pool="")
    assert "above it" in judged(plan="from . import wiring", wiring="")
    assert violations(a_house(archive__writer="from .spool import Spool", archive__spool="")) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import time",
        "from time import monotonic",
        "import random",
        "import secrets",
        "import uuid",
        "import socket",
        "import subprocess",
        "import urllib.request",
        "from pathlib import Path",
        "import os.path",
        "from os import environ",
        "import os\nos.environ['X']",
        "import os\nos.getenv('X')",
        "import os\nos.stat('/')",
        "import os\nos.path.exists('/')",
        "import os as system",
        "import logging\nlogging.getLogger()",
        "from logging import getLogger",
        "import threading\nthreading.Thread()",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.utcnow()",
        "from datetime import date\ndate.today()",
        "moment.astimezone()",
        "open('/etc/passwd')",
        "print('x')",
        "def later():\n    return __import__('time')",
    ],
)
def test_pure_code_that_reads_clock_chance_environment_files_or_network_is_seen(statement: str) -> None:
    assert "plan is pure, and" in "\n".join(violations(a_house(plan=statement)))
    assert violations(a_house(jobs__backup=statement)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import os\nos.fsencode('x')",
        "from os import fsdecode",
        "import logging\nlogging.WARNING",
        "from datetime import UTC, datetime\nmoment.astimezone(UTC)",
        "from collections.abc import Mapping",
        "from urllib.parse import urlsplit",
        "import threading\ndef f(stop: threading.Event): ...",
    ],
)
def test_pure_code_may_use_what_only_decides(statement: str) -> None:
    assert violations(a_house(plan=statement)) == []


def test_circles_are_seen_and_named() -> None:
    verdict = judged(
        archive__a="import sidecar.archive.b", archive__b="from sidecar.archive import c", archive__c="from .a import x"
    )

    assert verdict == "a circle of imports: archive.a -> archive.b -> archive.c -> archive.a"


@pytest.mark.parametrize("name", ["archive__utils", "jobs__helpers", "stores__common__names"])
def test_a_drawer_for_odds_and_ends_is_seen(name: str) -> None:
    assert "a module's name says what it is for" in judged(**{name: ""})


def test_a_module_outside_of_every_layer_is_seen() -> None:
    assert "sheds.tool is in no layer" in judged(sheds__tool="import docker")


# --- docs/ARCHITECTURE.md --------------------------------------------------------------------------------------------


def section(document: str, heading: str) -> str:
    """The text of docs/`document` under `## heading`."""
    text = (HOME / "docs" / document).read_text()
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/{document} has no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_the_architecture_lists_every_module_that_there_is_and_none_that_is_gone(house: dict[str, Module]) -> None:
    there = {name.replace(".", "/") + ".py" for name, module in house.items() if not module.is_package}
    listed = re.findall(r"`([\w/]+\.py)`", section("ARCHITECTURE.md", "The rooms"))

    assert sorted(listed) == sorted(there)


def test_the_arrows_in_the_architecture_are_those_of_the_code(house: dict[str, Module]) -> None:
    drawn: dict[str, set[str]] = {}
    for name, targets in arrows(house).items():
        room = house[name].room
        drawn.setdefault(room, set()).update({house[target].room for target in targets} - {room, ""})
    expected = [
        f"| {room} | {', '.join(sorted(targets))} |" for room, targets in sorted(drawn.items()) if room and targets
    ]

    written = [f"| {room} | {targets} |" for room, targets in rows(section("ARCHITECTURE.md", "The arrows"))]
    assert written == expected, "docs/ARCHITECTURE.md should have these rows:\n" + "\n".join(expected)


# --- docs/DEPENDENCIES.md --------------------------------------------------------------------------------------------


def declared() -> tuple[list[str], list[str]]:
    """The names of the runtime packages and of those for development, as pyproject.toml has them."""
    project = tomllib.loads((HOME / "pyproject.toml").read_text())
    return tuple(
        [re.split(r"[\[<>=!~ ;]", requirement)[0] for requirement in group]
        for group in (project["project"]["dependencies"], project["dependency-groups"]["dev"])
    )


@pytest.mark.parametrize(("heading", "group"), [("In the image", 0), ("For development", 1)])
def test_every_dependency_has_its_reason_in_the_documentation(heading: str, group: int) -> None:
    table = rows(section("DEPENDENCIES.md", heading))

    assert [name for name, *_ in table] == [f"`{name}`" for name in sorted(declared()[group])]
    assert all(len(why) > 20 for _, why, _ in table)
    assert all(instead for _, _, instead in table)


# Names under which packages are imported, where they differ from the names under which they are installed.
IMPORT_NAMES = {"python-json-logger": "pythonjsonlogger"}


def test_every_package_of_the_image_is_used(house: dict[str, Module]) -> None:
    used = set().union(*(packages_used(module) for module in house.values()))

    assert [name for name in declared()[0] if IMPORT_NAMES.get(name, name) not in used] == []
