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

__all__ = ["INTERRUPTED", "failures_in_one_line", "say"]

P = ParamSpec("P")

#: The exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it.
INTERRUPTED = 130

_EXPECTED = (OSError, ValueError, TransferError, ConnectionBroken, trio.BrokenResourceError)


def say(text: str, *, err: bool = False) -> None:
    """Print a line; text from a peer in it cannot command the terminal."""
    click.echo(printable(text), err=err)


def failures_in_one_line(function: Callable[P, None]) -> Callable[P, None]:
    """Report an expected failure to the user in one line (exit status 1); ``--debug`` shows all.

    Ctrl-C ends the command with one line and the exit status 130, also where nurseries have put
    the ``KeyboardInterrupt`` into groups.
    """

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = kwargs.pop("debug")
        try:
            function(*args, **kwargs)
        except (KeyboardInterrupt, Exception, BaseExceptionGroup) as error:
            causes = _causes(error)
            # Work that Ctrl-C has ended may fail beside it; that is no news.
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                click.echo("phoenix-trio: interrupted", err=True)
                sys.exit(INTERRUPTED)
            if debug or not all(isinstance(cause, _EXPECTED) for cause in causes):
                raise
            for cause in causes:
                say(f"phoenix-trio: {cause}", err=True)
            sys.exit(1)

    return command


def _causes(error: BaseException) -> list[BaseException]:
    """The exceptions of a group, and of groups in it; or the only one."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for each in error.exceptions for cause in _causes(each)]
    return [error]
