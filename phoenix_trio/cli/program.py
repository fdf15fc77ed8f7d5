"""The group of commands, and what they share: how errors reach the user."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

import click
import trio

from .. import __version__
from ..errors import ConnectionBroken
from .transfer import TransferError

__all__ = ["failures_in_one_line", "program"]

P = ParamSpec("P")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="phoenix-trio")
def program() -> None:
    """Move files over QUIC, and see what QUIC over Trio can do.

    \b
    Try it on this machine alone:
        phoenix-trio demo

    \b
    Between two machines:
        there$ phoenix-trio receive incoming/
        here$  phoenix-trio send there:4433 big.iso --pin ab:cd:...

    The receiver prints the whole line to type on the other machine.
    """


def failures_in_one_line(function: Callable[P, None]) -> Callable[P, None]:
    """Tell the user of an expected failure in one line (exit status 1); ``--debug`` shows all."""

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
            click.echo(f"phoenix-trio: {e}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("phoenix-trio: interrupted", err=True)
            sys.exit(130)

    return command


def _add_commands() -> None:
    # Each command's file imports this one for the group's conventions.
    from . import certificate, demo, receive, send

    commands: list[Any] = [receive.receive, send.send, certificate.certificate, demo.demo]
    for command in commands:
        program.add_command(command)


_add_commands()
