"""Tells the user of a command what happens: in lines for people, in JSON, or only the problems.

Floor 6.  Results go to standard output, everything else to standard error; with JSON, all
events go to standard output, an object a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import click

from .progress import Display, NoDisplay, show_progress

__all__ = ["Format", "Report", "output_options", "show_report"]

Format = Literal["lines", "json", "quiet"]


class Report:
    """Reports events.

    Args:
      display: shows progress, and lines without disturbing it.
      form: lines for people, JSON, or problems alone.
    """

    def __init__(self, display: Display, form: Format = "lines") -> None:
        self.display = display
        self._format = form

    def result(self, text: str, event: str, **facts: object) -> None:
        """Something has succeeded."""
        self._tell(text, event, facts, is_error=False)

    def note(self, text: str, event: str, **facts: object) -> None:
        """Something worth knowing that may still end well."""
        self._tell(text, event, facts, is_error=True)

    def problem(self, text: str, event: str, **facts: object) -> None:
        """Something has failed."""
        self._tell(text, event, facts, is_error=True, is_problem=True)

    def _tell(
        self,
        text: str,
        event: str,
        facts: dict[str, object],
        *,
        is_error: bool,
        is_problem: bool = False,
    ) -> None:
        if self._format == "json":
            # (ASCII alone: what a peer has said cannot command a terminal.)
            click.echo(json.dumps({"event": event, **facts}))
            sys.stdout.flush()
        elif text and (self._format == "lines" or is_problem):
            self.display.say(text, err=is_error)


@contextmanager
def show_report(form: Format = "lines") -> Iterator[Report]:
    """Report for the length of the block, with progress where people read it."""
    if form != "lines":
        yield Report(NoDisplay(), form)
        return
    with show_progress() as display:
        yield Report(display)


def output_options(command: Any) -> Any:
    """The options ``--json`` and ``--quiet``, as one argument `output`."""

    def choose(context: click.Context, parameter: click.Parameter, value: str | None) -> Format:
        chosen: Format = "lines"
        if value in ("json", "quiet"):
            chosen = "json" if value == "json" else "quiet"
        return chosen

    flags: tuple[tuple[str, str, str], ...] = (
        ("--quiet", "quiet", "Say nothing unless something fails."),
        ("--json", "json", "Report events as JSON, an object a line, the last one the total."),
    )
    option: Callable[..., Any] = click.option
    for flag, value, text in flags:
        command = option(flag, "output", flag_value=value, callback=choose, help=text)(command)
    return command
