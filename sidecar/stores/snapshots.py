"""What Amazon may have beside a bucket: snapshots of this machine's disks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete snapshot of a disk of the instance that we run on. taken: when it was begun; disk_bytes: of all of it.

    disk: its volume's ID; device: what the instance calls it.
    """

    name: str
    disk: str
    device: str
    instance: str
    region: str
    zone: str
    taken: datetime
    disk_bytes: int
