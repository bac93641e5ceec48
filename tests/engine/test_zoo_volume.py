"""Everything that a Linux file system can hold, once through the whole product and back by aws and tar."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import SidecarMaker
from tests.engine.harness import S3, Description, Machine, describe, differences, docker

pytestmark = pytest.mark.engine("machine")

TREES = Path(__file__).parents[1] / "unit" / "trees.py"
MORE_FILES = 5_000

# The zoo's builder is one for all tests. It runs where the volume is, and where the product is not: what its module
# imports of the product for other purposes is left empty.
BUILD = """
import pathlib, sys, unittest.mock

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sidecar":
            sys.modules[name] = unittest.mock.MagicMock(__path__=[])
            import importlib.machinery
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        return sys.modules[spec.name]
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Nothing())
module = type(sys)("trees")
sys.modules["trees"] = module
exec(compile(sys.stdin.read(), "trees.py", "exec"), module.__dict__)
module.build_zoo(pathlib.Path("/data/zoo"))
for number in range(MORE_FILES):
    folder = pathlib.Path(f"/data/many/{number // 500}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.txt").write_text(f"file {number}\\n" * (number % 40))
"""


def build(more_files: int = MORE_FILES) -> str:
    """A program that reads the builder from its standard input, and fills /data."""
    return BUILD.replace("MORE_FILES", str(more_files))


@pytest.fixture
def zoo(machine: Machine) -> Iterator[str]:
    """A volume with the zoo in it; a container that can write it runs."""
    volume = machine.volume("zoo")
    # Some of it (attributes of the name space `trusted`) takes more than root in a container usually has.
    keeper = machine.run("zoo-keeper", ["sleep", "infinity"], "--cap-add", "SYS_ADMIN", "--volume", f"{volume}:/data")
    try:
        docker("exec", "-i", keeper, "python3", "-c", build(), stdin=TREES.read_bytes())
        yield volume
    finally:
        machine.remove(keeper)


def test_the_file_zoo_comes_back_by_aws_and_tar_as_it_was(
    machine: Machine, s3: S3, zoo: str, make_sidecar: SidecarMaker
) -> None:
    sidecar = make_sidecar("zoo", include=[zoo])
    sidecar.up()
    report, _ = sidecar.good_run()
    # Not the keeper: it sees attributes that neither the product nor a plain host's root in a container may see.
    oracle = machine.run("zoo-oracle", ["sleep", "infinity"], "--volume", f"{zoo}:/data:ro")
    (seen,) = describe(oracle, "/data")
    machine.remove(oracle)

    directory = s3.restore(sidecar.prefix, report["set"], zoo)
    (restored,) = describe(s3.host, directory)
    sparse = int(s3.on_host('stat --format %b "$1/zoo/holes/10 GB"', directory).out) * 512
    s3.forget(directory)

    seen = as_archived(seen)
    assert differences(seen, restored) == []
    assert sparse < 8 << 20  # its holes are holes again
    # The comparison proves nothing about what is not there.
    assert {facts["kind"] for facts in seen.values()} == {
        "file", "directory", "symlink", "fifo", "socket", "character device", "block device",
    }  # fmt: skip
    assert {facts["kind"] for facts in restored.values()} == {facts["kind"] for facts in seen.values()} - {"socket"}
    assert max(map(len, seen)) >= 4_000
    assert any("\n" in path for path in seen)
    assert any("\udcff" in path for path in seen)
    assert sum(path.startswith("./many/") for path in seen) > MORE_FILES

    listed = sidecar.verb("list", report["set"], zoo, "--json", check=True).json()["files"]
    assert sorted(each["path"] for each in listed) == sorted(as_listed(path) for path in restored)
    # And by the product itself, into the volume that has lost all of it.
    docker("exec", machine.name("zoo-keeper"), "sh", "-c", "rm -rf /data/zoo /data/many; touch /data/ruined")
    done = sidecar.verb("restore", "latest", zoo, "--yes")
    assert done.code == 0, done
    oracle = machine.run("zoo-oracle", ["sleep", "infinity"], "--volume", f"{zoo}:/data:ro")
    (by_product,) = describe(oracle, "/data")
    machine.remove(oracle)
    assert differences(seen, by_product) == []

    in_words = sidecar.verb("list", report["set"], zoo, "zoo/new*", check=True).out
    assert "new\\nline" in in_words


def as_archived(seen: Description) -> Description:
    """What an archive holds of it: a symlink that leads out of the tree and has two names becomes two (FORMAT.md)."""
    apart = [path for path in ("./zoo/symlinks/up", "./zoo/symlinks/hard link that leads out") if path in seen]
    assert all(len(seen[path]["names"]) == 2 for path in apart)
    return seen | {path: seen[path] | {"names": [path]} for path in apart}


def as_listed(path: str) -> str:
    """A path of a description as `list` has it: bytes that are no UTF-8 escaped."""
    return os.fsencode(path).decode(errors="backslashreplace").removeprefix("./")
