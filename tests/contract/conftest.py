"""The stores that the contract is held against, by name: `memory`, `local`, `moto`, `seaweedfs`, `ceph`.

`NAME+retrying` is the same one inside RetryingStore. Servers start once per session, when the first test asks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.stores.local import LocalStore
from sidecar.stores.memory import MemoryStore
from sidecar.stores.port import Capabilities, Store
from sidecar.stores.retrying import RetryingStore
from sidecar.stores.s3 import S3Store, connect
from tests.contract.store_servers import Server, ceph, moto, seaweedfs

StoreMaker = Callable[..., Store]

_prefixes = itertools.count(1)
_clients: dict[tuple[str | None, ...], Any] = {}


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreMaker:
    """Makes an empty store of a name. Further arguments are settings of S3 stores."""

    def make(name: str, **changes: Any) -> Store:
        kind, _, wrapper = name.partition("+")
        store: Store
        if kind == "memory":
            store = MemoryStore(capabilities=Capabilities(least_part=1000, least_copy=1000))
        elif kind == "local":
            root = tmp_path / f"root-{next(_prefixes)}"
            root.mkdir()
            store = LocalStore(str(root), prefix="a/prefix")
        else:
            server = request.getfixturevalue(f"{kind}_server")
            facts = {"prefix": f"test/{next(_prefixes)}"} | changes
            if kind == "ceph":
                facts["capabilities"] = Capabilities(leaves_parts_out=False)
            settings = server.settings(**facts)
            # Making a client takes 0.2 s, and it knows neither bucket nor prefix.
            wiring = (settings.endpoint, settings.access_key, settings.secret_key)
            if wiring not in _clients:
                _clients[wiring] = connect(settings)
            store = S3Store(settings, _clients[wiring])
        return RetryingStore(store) if wrapper else store

    return make


@pytest.fixture
def store(request: pytest.FixtureRequest, make_store: StoreMaker) -> Store:
    """An empty store of the name that the test is parametrised with."""
    return make_store(request.param)
