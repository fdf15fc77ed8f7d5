"""Reports errors to the user of a command: one line, no traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

import click
import trio

from ..errors import ConnectionBroken
from ..storage.names import printable
from .transfer import TransferError

__all__ = ["failures_in_one_line", "say"]

P = ParamSpec("P")


def say(text: str, *, err: bool = False) -> None:
    """Print a line; text from a peer in it cannot command the terminal."""
    click.echo(printable(text), err=err)


def failures_in_one_line(function: Callable[P, None]) -> Callable[P, None]:
    """Report an expected failure to the user in one line (exit status 1); ``--debug`` shows all."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = kwargs.pop("debug")
        try:
            function(*args, **kwargs)
        except (
            OSError,
            ValueError,
            TransferError,
            ConnectionBroken,
            trio.BrokenResourceError,
        ) as e:
            if debug:
                raise
            say(f"phoenix-trio: {e}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("phoenix-trio: interrupted", err=True)
            sys.exit(130)

    return command
