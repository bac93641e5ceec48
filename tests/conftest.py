"""What tests of several rooms share: a Docker Engine, found or started, and an image to run containers from.

Tests marked `engine` are skipped, with the reason, where there is neither an engine nor a way to get one; an engine
that should start and does not is an error.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

from sidecar.engine.docker import DockerEngine, connect

# A busy machine is no fault of the code: what takes long is found by what it says, not by a clock.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

MACHINE = Path(__file__).parent / "machine"
EX_UNAVAILABLE = 69


def _machine(script: str) -> str:
    """The standard output of a script of tests/machine; skips the test where the machine cannot provide it."""
    done = subprocess.run([MACHINE / script], capture_output=True, text=True, check=False, timeout=900)
    if done.returncode == EX_UNAVAILABLE:
        pytest.skip(done.stderr.strip())
    if done.returncode:
        pytest.fail(f"{script} failed with exit code {done.returncode}:\n{done.stderr}", pytrace=False)
    return done.stdout.strip()


@pytest.fixture(scope="session")
def docker_engine() -> DockerEngine:
    """The real engine."""
    if reason := os.environ.get("TEST_ENGINE_UNAVAILABLE"):
        pytest.skip(reason)
    _machine("engine-up")
    return connect(os.environ)


@pytest.fixture(scope="session")
def base_image(docker_engine: DockerEngine) -> str:
    """An image with a shell and Python."""
    return _machine("base-image")


@pytest.fixture(autouse=True)
def _engine_where_marked(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("engine"):
        request.getfixturevalue("docker_engine")
