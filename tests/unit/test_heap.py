"""What a job has used does not stay with the daemon."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from pathlib import Path
from sidecar.service.heap import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
blocks = [bytearray(4 << 20) for _ in range(40)]
last = bytearray(4 << 20)  # above them, so that the heap cannot shrink by itself
del blocks
kept = resident() - before
give_back()
print(kept, resident() - before)
"""


def test_memory_of_blocks_that_the_allocator_keeps_goes_back_to_the_kernel() -> None:
    # As the image has it: one heap, which blocks lie in.
    environment = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True)
    kept, left = map(int, ran.stdout.split())
    assert kept > 100 << 20  # or there would be nothing to give back
    assert left < 20 << 20
