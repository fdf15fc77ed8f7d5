"""Reports errors to the user of a command: one line, no traceback."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import ParamSpec

import click
import trio

from ..errors import ConnectionBroken
from ..storage.names import printable
from .transfer import TransferError

__all__ = ["INTERRUPTED", "failures_in_one_line", "in_options", "say"]

P = ParamSpec("P")

#: The exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it.
INTERRUPTED = 130

_EXPECTED = (OSError, ValueError, TransferError, ConnectionBroken, trio.BrokenResourceError)


def say(text: str, *, err: bool = False) -> None:
    """Print a line; text from a peer in it cannot command the terminal."""
    click.echo(printable(text), err=err)


#: The library's names of what the program has options for.
_OPTIONS = {
    "client_ca": "--client-ca",
    "private_key": "--key",
    "pinned_sha256": "--pin",
    "server_name": "--server-name",
    "ca": "--ca",
    "certificate": "--certificate",
}
#: An unusual word anywhere, an everyday one only where an error names it as an argument.
_ARGUMENT = re.compile(
    r"(?<![\w'/.\"-])(client_ca|private_key|pinned_sha256|server_name)(?![\w'/.\"-])"
    r"|(?:(?<=^)|(?<=\] )|(?<=belong to ))(ca|certificate)(?=: )"
)
_PHRASES = {
    "pass its authority as ca,": "trust its authority with --ca, or exactly it with --pin,",
    "compare the alpn arguments of both sides": "is a phoenix-trio receive there?",
    "within handshake_timeout": "in time",
}


def in_options(text: str) -> str:
    """The text of an error of the library, in the words of the program's options."""
    for words, ours in _PHRASES.items():
        text = text.replace(words, ours)
    text = _ARGUMENT.sub(lambda found: _OPTIONS[found[0]], text)
    return re.sub(r"^\[Errno \d+\] ", "", text)


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
                say(f"phoenix-trio: {in_options(str(cause))}", err=True)
            sys.exit(1)

    return command


def _causes(error: BaseException) -> list[BaseException]:
    """The exceptions of a group, and of groups in it; or the only one."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for each in error.exceptions for cause in _causes(each)]
    return [error]
