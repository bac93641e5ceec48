"""What a volume held, guessed from the names of well-known files in its top two levels. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

# Its text is the major version of the server that made the directory.
PG_VERSION = "PG_VERSION"

# Names that tell, and what they tell; all globs of a row must match. The first row that fits wins: the more telling
# before the more common. A name ends in `/` where it is a directory.
_SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".minio.sys/",), "MinIO"),
    (("grafana.db",), "Grafana"),
    (("ibdata1",), "MySQL or MariaDB"),
    (("WiredTiger",), "MongoDB"),
    (("chunks_head/", "wal/"), "Prometheus"),
    (("nodes/",), "Elasticsearch or OpenSearch"),
    (("_state/",), "Elasticsearch or OpenSearch"),
    (("appendonlydir/",), "Redis or Valkey"),
    (("appendonly.aof",), "Redis or Valkey"),
    (("dump.rdb",), "Redis or Valkey"),
    (("acme.json",), "Traefik (its certificates)"),
    (("mnesia/",), "RabbitMQ"),
    (("raft/", "serf/"), "Consul"),
    (("member/",), "etcd"),
    (("filer.toml",), "SeaweedFS"),
    (("[0-9]*.dat", "[0-9]*.idx"), "SeaweedFS (a volume server)"),
    (("hooks/", "objects/", "refs/"), "a Git repository"),
    (("gitea/",), "Gitea"),
    (("wp-content/",), "WordPress"),
    (("config.php", "*.php"), "a PHP application"),
    (("*.sqlite",), "SQLite"),
    (("*.sqlite3",), "SQLite"),
    (("*.db",), "a database file, perhaps SQLite"),
    (("backup-[0-9]*_[0-9]*/",), "sets of a backup sidecar"),
    (("daemon.lock", "daemon.json"), "the state of a backup sidecar"),
)


def held(names: Iterable[str], texts: Mapping[str, str]) -> str:
    """`PostgreSQL 16`, `Redis or Valkey`, ...; empty where nothing is known by its name.

    names: paths of the top two levels, directories with a `/` at their end. texts: what stands in the small files among
    them that say more than their name (PG_VERSION).
    """
    ordered = sorted(names, key=lambda name: (name.rstrip("/").count("/"), name))
    for path in ordered:
        if path.rpartition("/")[2] == PG_VERSION:
            # Nobody but the application chose what stands there.
            version = texts.get(path, "").strip()
            return f"PostgreSQL {version}" if version.replace(".", "").isdigit() else "PostgreSQL"
    # Level by level: what lies at the top tells more than the same name one below.
    levels: dict[str, list[str]] = {}
    for path in ordered:
        directory, slash, name = path.partition("/")
        levels.setdefault(directory if slash and name else "", []).append(name or path)
    for inside in levels.values():
        for signs, what in _SIGNS:
            if all(any(fnmatchcase(name, sign) for name in inside) for sign in signs):
                return what
    return ""
