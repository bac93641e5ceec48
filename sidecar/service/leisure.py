"""What a schedule asks for and nobody waits for: done when nothing else is to be done, and made up for. Pure.

A verification, or a drill, that gives way to a run begins anew afterwards; one that was due while no daemon ran is
taken up by the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)
class Leisure:
    """One kind of such a job.

    owed: since when one has been due that has not come to its end. next: when the next one is. going_on: one is.
    """

    owed: datetime | None = None
    next: datetime | None = None
    going_on: bool = False

    @property
    def due(self) -> datetime | None:
        """What the next daemon has to know. One that kills the daemon must not be made again at every start."""
        return (None if self.going_on else self.owed) or self.next

    def ended(self) -> None:
        """The one that goes on has come to its end, or is not to begin anew."""
        self.owed = None
