"""What a volume held, by the names of what is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.contents import held


@pytest.mark.parametrize(
    ("names", "texts", "what"),
    [
        (["PG_VERSION", "base/", "base/1/", "global/"], {"PG_VERSION": "16\n"}, "PostgreSQL 16"),
        (["pgdata/", "pgdata/PG_VERSION", "pgdata/base/"], {"pgdata/PG_VERSION": "9.6\n"}, "PostgreSQL 9.6"),
        (["PG_VERSION"], {"PG_VERSION": "\x1b[31mno"}, "PostgreSQL"),
        (["appendonlydir/", "appendonlydir/appendonly.aof.manifest"], {}, "Redis or Valkey"),
        (["dump.rdb"], {}, "Redis or Valkey"),
        (["ibdata1", "mysql/", "shop/"], {}, "MySQL or MariaDB"),
        ([".minio.sys/", "bucket/"], {}, "MinIO"),
        (["grafana.db", "plugins/"], {}, "Grafana"),
        (["WiredTiger", "WiredTiger.wt", "journal/"], {}, "MongoDB"),
        (["nodes/", "nodes/0/"], {}, "Elasticsearch or OpenSearch"),
        (["_state/", "indices/"], {}, "Elasticsearch or OpenSearch"),
        (["chunks_head/", "wal/", "01HX/"], {}, "Prometheus"),
        (["acme.json"], {}, "Traefik (its certificates)"),
        (["app/", "app/production.sqlite3"], {}, "SQLite"),
        (["uploads/", "uploads/one.jpg"], {}, ""),
        (["wal/"], {}, ""),
        (["grafana.db/"], {}, ""),
        ([], {}, ""),
    ],
)
def test_well_known_files_tell_what_a_volume_held(names: list[str], texts: dict[str, str], what: str) -> None:
    assert held(names, texts) == what


def test_what_lies_at_the_top_counts_before_what_lies_below() -> None:
    assert held(["a/", "a/dump.rdb", "ibdata1"], {}) == "MySQL or MariaDB"


@given(st.lists(st.text(max_size=12), max_size=20))
def test_any_names_at_all_are_no_failure(names: list[str]) -> None:
    assert isinstance(held(names, {}), str)
