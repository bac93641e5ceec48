"""Watching a run: a moving line on a terminal, one line for each step without one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from sidecar.cli.words import printable


class Watcher(AbstractContextManager["Watcher"], Protocol):
    """Shows a run while it goes on; leaving the block clears what must not stay."""

    def progress(self, progress: dict[str, Any]) -> None:
        """A `progress` line of the daemon."""

    def say(self, text: str) -> None:
        """A sentence that stays."""


class Lines:
    """One plain line for each step."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last: tuple[Any, Any] | None = None

    def progress(self, progress: dict[str, Any]) -> None:
        """A line when the step is another one."""
        step = progress["phase"], progress["volume"]
        if step != self._last:
            self._last = step
            self.say(" ".join(filter(None, step)))

    def say(self, text: str) -> None:
        """A line."""
        self._write(printable(text))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Silent(Lines):
    """Nothing at all."""

    def __init__(self) -> None:
        super().__init__(lambda _text: None)


class Display:
    """A moving line on a terminal: step, volume, bytes, rate."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._display.add_task("waiting for the daemon", total=None)
        self._step: tuple[Any, Any] | None = None

    def progress(self, progress: dict[str, Any]) -> None:
        """Move the line; a new step begins its own bar and rate."""
        step = progress["phase"], progress["volume"]
        total = progress["total_bytes"] or None
        if step != self._step:
            self._step = step
            description = printable(" ".join(filter(None, step)))
            self._display.reset(self._task, description=description, total=total)
        self._display.update(self._task, completed=progress["done_bytes"], total=total)

    def say(self, text: str) -> None:
        """A line above the moving one."""
        self._console.print(Text(printable(text)))

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()
