"""Make sets with the product's image as it is, for later versions to list, verify and restore.

`TEST_PRODUCT_IMAGE=IMAGE python -m tests.old_sets.make DIRECTORY`, as root, on a machine where the tests run. Makes, of
a volume `plain` (text, 24 MiB) and a volume `zoo` (all that a file system can hold): a whole set, one that reuses
blocks of that, and a damaged one; and, by an oracle that knows nothing of the product, what the volumes held.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.engine.harness import Machine, Sidecar, describe, docker
from tests.engine.test_zoo_volume import TREES, build
from tests.engines import images, run_script, running_on
from tests.machine.own_engine import MACHINE, OwnEngine

SETTLED = 61  # seconds
FILL = """
import pathlib
for number in range(3):
    lines = "".join(f"{number} {line} of a long text\\n" for line in range(100))
    pathlib.Path(f"/plain/large-{number}").write_text((lines * 4_000)[: 8 << 20])
for number in range(40):
    pathlib.Path(f"/plain/small-{number}").write_text(f"file {number}\\n" * number)
"""


def main(into: Path) -> None:
    """Fill a directory that is not there yet."""
    scratch = into.parent / f"{into.name}.scratch"
    scratch.mkdir()
    with OwnEngine(MACHINE, images(run_script("base-image"))) as own, pytest.MonkeyPatch.context() as environment:
        own.start()
        for key, value in own.environment().items():
            environment.setenv(key, value)
        machine = Machine(running_on("machine", own, ""), scratch)
        for name in ("plain", "zoo"):
            docker("volume", "create", name)
        mounts = ("--volume", "plain:/plain", "--volume", "zoo:/data", "--cap-add", "SYS_ADMIN")
        keeper = machine.run("keeper", ["sleep", "infinity"], *mounts)
        docker("exec", "-i", keeper, "python3", "-c", build(more_files=0), stdin=TREES.read_bytes())
        docker("exec", keeper, "python3", "-c", FILL)
        time.sleep(SETTLED)  # there is no other way: its clock is the kernel's
        sidecar = Sidecar(machine, None, "old", include=["plain", "zoo"])
        sidecar.up()
        seen = {}
        for kind in ("whole", "reusing", "damaged"):
            report, _ = sidecar.good_run(*(() if kind == "whole" else ("plain",)))
            mounts = ("--volume", "plain:/plain:ro", "--volume", "zoo:/zoo:ro")
            oracle = machine.run("oracle", ["sleep", "infinity"], *mounts)
            held = dict(zip(("plain", "zoo"), describe(oracle, "/plain", "/zoo"), strict=True))
            machine.remove(oracle)
            reused = {each["volume"]: each["bytes_reused"] for each in report["volumes"]}
            seen[kind] = {"set": report["set"], "held": {name: held[name] for name in reused}, "bytes_reused": reused}
            docker("exec", keeper, "sh", "-c", "echo changed > /plain/small-7")
        shutil.copytree(sidecar.local_directory, into)
        archive = into / seen["damaged"]["set"] / "plain.tar.gz"
        body = bytearray(archive.read_bytes())
        body[len(body) // 2] ^= 1
        archive.write_bytes(body)
        told = json.dumps(seen, sort_keys=True).encode()
        (into / "seen.json.gz").write_bytes(gzip.compress(told, mtime=0))
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main(Path(os.path.abspath(sys.argv[1])))
