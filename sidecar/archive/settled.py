"""When a file counts as unchanged without being read again: the settled rule. Pure.

A signature that is still the same is no proof by itself. ctime, which no user can set, moved for every way to change a
file on ext4, xfs and btrfs, and yet it lies in three ways (all tried):
- a store into a page that is mapped, shared and dirty already moves no time stamp; after syncfs(2) the next one does;
- write(2) with O_DIRECT and asynchronous I/O stamp ctime when they begin, and their bytes land seconds later;
- the kernel's clock lags by a tick, and file systems with small inodes keep whole seconds.
So a signature is trusted only if it was old when the file was read, and the reading came after a syncfs.
"""

from __future__ import annotations

from collections import deque

MARGIN_NS = 60 * 10**9
# statfs(2)'s numbers of the file systems on which this was tried, and of their nearest relatives.
_KEEPERS = frozenset(
    [
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
    ]
)


def keeps_times(magic: int) -> bool:
    """Whether ctime moves on every change on file systems of this type (statfs(2)'s f_type); unknown ones do not."""
    return magic in _KEEPERS


def settled(mtime_ns: int, ctime_ns: int, synced_ns: int) -> bool:
    """Whether a file of these times, as long as it has this signature, holds the bytes that were read under it.

    synced_ns: the time, in nanoseconds since 1970, just before the syncfs(2) that came before the reading, on a file
    system for which `keeps_times`. Any other file is hot: only reading it tells.
    """
    return mtime_ns <= synced_ns - MARGIN_NS and ctime_ns <= synced_ns - MARGIN_NS


class Unstepped:
    """The wall clock less the steps forward that it has made lately, for `settled`.

    Whoever sets the clock forward makes each file look older than it is: one that was touched a moment before seems to
    have been left alone for as long as the step. A step is known by a second clock, which nobody sets and which runs at
    the same rate (clock_gettime(2): CLOCK_BOOTTIME is slewed with CLOCK_REALTIME). How long ago it was, only the
    readings tell that lie between; until one of them is old enough the step counts. Not seen are steps in the last
    minute before the first reading, and one back that is made good before the next.
    """

    def __init__(self, wall_ns: int, steady_ns: int) -> None:
        self._seen = deque([(steady_ns, wall_ns - steady_ns)])

    def time_ns(self, wall_ns: int, steady_ns: int) -> int:
        """Nanoseconds since 1970, at most `wall_ns`. Both clocks are read at the same moment."""
        self._seen.append((steady_ns, wall_ns - steady_ns))
        while self._seen[1][0] <= steady_ns - MARGIN_NS:
            self._seen.popleft()
        return steady_ns + min(ahead for _, ahead in self._seen)
