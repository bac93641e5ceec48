"""What the event log proves about a pause that was ours, and what it does not."""

from __future__ import annotations

import pytest

from sidecar.engine.evidence import disturbance
from sidecar.engine.port import ContainerEvent
from sidecar.model import Quiesce

MILLISECOND = 1_000_000


def log(*actions: str, at: tuple[int, ...] = ()) -> list[ContainerEvent]:
    """Events of the container `db`; at: milliseconds on the engine's clock."""
    times = [1_800_000_000_000_000_000 + each * MILLISECOND for each in at] or [0] * len(actions)
    return [ContainerEvent(action, "db", "db", at=time) for action, time in zip(actions, times, strict=True)]


def test_one_pause_and_one_unpause_are_ours() -> None:
    assert disturbance(log("pause", "unpause"), "db", Quiesce.PAUSE, held=0.1) == []


def test_an_echo_of_our_own_short_pause_disturbs_nothing() -> None:
    """As the engine shows it: our request came 9 ms after the answer to the pause, the echo 3 ms after the thaw."""
    events = log("pause", "unpause", "pause", "unpause", at=(0, 14, 18, 19))
    assert disturbance(events, "db", Quiesce.PAUSE, held=0.009) == []


@pytest.mark.parametrize("theirs", [1, 5, 89])
def test_an_unpause_before_we_asked_for_one_is_someone_elses_though_it_was_paused_again(theirs: int) -> None:
    events = log("pause", "unpause", "pause", "unpause", at=(0, theirs, theirs + 20, 130))
    assert disturbance(events, "db", Quiesce.PAUSE, held=0.09) == ["pause", "unpause", "pause", "unpause"]


def test_without_times_a_second_unpause_leaves_open_whose_the_first_was() -> None:
    assert disturbance(log("pause", "unpause", "pause", "unpause"), "db", Quiesce.PAUSE, held=0.0)


def test_anything_between_our_pause_and_the_unpause_disturbs_however_long_that_took() -> None:
    events = log("pause", "extract-to-dir", "unpause", "pause", "unpause", at=(0, 5, 100, 103, 104))
    assert disturbance(events, "db", Quiesce.PAUSE, held=0.01)


def test_a_pause_that_the_log_does_not_show_is_no_pause() -> None:
    assert disturbance([], "db", Quiesce.PAUSE, held=0.0) == ["none"]
