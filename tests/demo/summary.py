"""Says in words what a run's JSON report holds.

Usage: summary.py set REPORT | summary REPORT ENTRIES TRANSACTIONS RESTORED RECOVERED (milliseconds: that the sidecar's
restore took, and until the stack ran again).
"""

import json
import sys
from typing import Any


def size(count: float) -> str:
    """Return bytes as people read them."""
    return f"{count / 1e6:,.1f} MB"


def summary(report: dict[str, Any], entries: str, transactions: str, restored_ms: str, recovered_ms: str) -> str:
    """Return the demonstration's last words."""
    volumes = report["volumes"]
    read = sum(volume["bytes_read"] for volume in volumes)
    stored = sum(volume["archive_bytes"] for volume in volumes)
    width = max(len(volume["volume"]) for volume in volumes)
    lines = [f"  Backup {report['set']} ({report['outcome']}), made while the stack was writing:", ""]
    lines += [
        f"    {volume['volume']:{width}}  {volume['files']:>7,} files  {size(volume['bytes_read']):>12} read"
        f"  {size(volume['archive_bytes']):>12} stored"
        for volume in volumes
    ]
    seconds = report["duration_ms"] / 1000
    lines += [
        "",
        f"  The application stood still for {report['paused_ms']:,.0f} ms; the whole backup took {seconds:.1f} s",
        f"  ({size(read)} to {size(stored)}, {read / 1e6 / seconds:,.0f} MB/s from volume to store).",
        "",
        f"  The set lies at s3://backups/demo/{report['set']}: one plain .tar.gz for each volume, an index beside it,",
        "  RECOVER.txt with the commands to get everything back, and manifest.json.",
        "",
        "  Restored with aws and tar alone, by those commands:",
        f"    demo_uploads: {entries} entries, none different from the volume",
        f"    demo_pgdata:  PostgreSQL starts on it, and all {transactions} transactions add up",
        "",
        f"  After docker-compose down -v, all of it came back by `restore` in {int(restored_ms) / 1000:.1f} s,",
        f"  {read / 1e6 / (int(restored_ms) / 1000):,.0f} MB/s from store to disk,",
        f"  and {int(recovered_ms) / 1000:.1f} s after the loss the stack was up and healthy on it.",
        "",
        "  Look around:  docker exec backup list      docker logs backup      docker exec backup run-now",
        "  Clean up:     make demo-down",
    ]
    return "\n".join(lines)


def main() -> int:
    """Print the answer."""
    match sys.argv[1:]:
        case ["set", report]:
            print(json.loads(report)["set"])
        case ["summary", report, *facts] if len(facts) == 4:
            print(summary(json.loads(report), *facts))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
