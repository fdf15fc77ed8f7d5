"""Shows a running transfer: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click
import trio
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..storage.names import printable
from .options import format_size

__all__ = ["Display", "NoDisplay", "show_progress"]

_PLAIN_INTERVAL = 2.0

#: Bars of finished files that stay on the terminal.
_FINISHED_SHOWN = 20


class Display(Protocol):
    """Shows progress."""

    def begin(self, name: str, size: int | None) -> int:
        """A file begins; returns its number."""

    def update(self, number: int, position: int) -> None:
        """So many of its bytes are done."""

    def finish(self, number: int) -> None:
        """The file has ended, successfully or not."""

    def say(self, text: str, *, err: bool = False) -> None:
        """Print a line without disturbing what is shown; text in it cannot command a terminal."""


class NoDisplay:
    """Shows no progress."""

    def begin(self, name: str, size: int | None) -> int:
        return 0

    def update(self, number: int, position: int) -> None:
        pass

    def finish(self, number: int) -> None:
        pass

    def say(self, text: str, *, err: bool = False) -> None:
        click.echo(printable(text), err=err)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._finished: deque[int] = deque()

    def begin(self, name: str, size: int | None) -> int:
        return int(self._bars.add_task(printable(name), total=size))

    def update(self, number: int, position: int) -> None:
        self._bars.update(number, completed=position)  # type: ignore[arg-type] # rich's NewType

    def finish(self, number: int) -> None:
        self._bars.stop_task(number)  # type: ignore[arg-type] # rich's NewType
        self._finished.append(number)
        if len(self._finished) > _FINISHED_SHOWN:
            oldest = self._finished.popleft()
            self._bars.remove_task(oldest)  # type: ignore[arg-type] # rich's NewType

    def say(self, text: str, *, err: bool = False) -> None:
        if err or sys.stdout.isatty():
            # Above the bars, which are drawn again below it.
            self._bars.console.out(printable(text), highlight=False)
        else:
            click.echo(printable(text))  # (to a file or a pipe)


class _Lines(NoDisplay):
    def __init__(self) -> None:
        self._files: dict[int, tuple[str, int | None]] = {}
        self._shown_at: dict[int, float] = {}
        self._numbers = itertools.count()

    def begin(self, name: str, size: int | None) -> int:
        number = next(self._numbers)
        self._files[number] = (printable(name), size)
        self._shown_at[number] = trio.current_time()
        return number

    def update(self, number: int, position: int) -> None:
        now = trio.current_time()
        if now - self._shown_at[number] >= _PLAIN_INTERVAL:
            self._shown_at[number] = now
            name, size = self._files[number]
            share = f" of {format_size(size)} ({100 * position // size} %)" if size else ""
            click.echo(f"{name}: {format_size(position)}{share}", err=True)

    def finish(self, number: int) -> None:
        self._files.pop(number, None)
        self._shown_at.pop(number, None)


@contextmanager
def show_progress() -> Iterator[Display]:
    """Show progress on standard error for the length of the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with Progress(
        # (Names come from strangers: no markup, no escape sequences.)
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        # Lines come through say(); standard output may be a file.
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bars:
        yield _Bars(bars)
