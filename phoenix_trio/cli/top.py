"""``phoenix-trio top``: a live view of the transports of a running application."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import attrs
import click
import trio
from rich.console import Console
from rich.live import Live

from ..inspection import Snapshot, Viewer, find_applications, open_viewer
from ..storage.names import printable
from .failures import failures_in_one_line
from .top_view import SORTS, Look, render

__all__ = ["find_socket", "looks", "top"]

#: The width of tables for files and pipes: all columns with room for IPv6 addresses.
_PLAIN_WIDTH = 140

#: Seconds after which an application that does not answer is given up.
_ANSWER_SECONDS = 10.0


@click.command()
@click.argument("application", required=False)
@click.option("--once", is_flag=True, help="Print the figures of one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between looks.",
)
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="throughput",
    show_default=True,
    help="The order of connections.",
)
@failures_in_one_line
def top(application: str | None, once: bool, as_json: bool, interval: float, sort: str) -> None:
    """Watch the transports of a running application of yours.

    The application has to permit it: "async with phoenix_trio.open_inspection(phoenix)".
    APPLICATION is the path of its socket, or its name or process ID as far as needed to
    tell it from others; where only one runs, it can be left out.

    Rates are those of the network between two looks: repeated data, headers and datagrams
    count.  Ctrl-C ends the view.

    \b
    Examples:
        phoenix-trio top
        phoenix-trio top mover --sort loss
        phoenix-trio top --once --json | jq .transports[0].connections
    """
    path = find_socket(application)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    if not (once or as_json or console.is_terminal):
        raise click.UsageError("standard output is no terminal: use --once or --json")
    trio.run(_watch, path, console, once, as_json, interval, sort)


async def _watch(
    path: str, console: Console, once: bool, as_json: bool, interval: float, sort: str
) -> None:
    async with open_viewer(path) as viewer, aclosing(looks(viewer, interval)) as found:
        if once:
            await anext(found)  # (Its rates are not known yet.)
            look = await anext(found)
            if as_json:
                _print_json(look)
            else:
                console.print(render(look, sort, width=console.width))
        elif as_json:
            async for look in found:
                _print_json(look)
        else:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                async for look in found:
                    view = render(look, sort, rows=console.height, width=console.width)
                    live.update(view, refresh=True)


async def looks(viewer: Viewer, interval: float) -> AsyncGenerator[Look, None]:
    """A look each `interval` seconds; each but the first knows the rates since the one before.

    Raises:
      trio.BrokenResourceError: the application has ended, does not answer, or cannot be
        understood.
    """
    earlier: Snapshot | None = None
    at = trio.current_time()
    while True:
        with trio.move_on_after(_ANSWER_SECONDS) as waiting:
            now = await viewer.look()
        if waiting.cancelled_caught:
            raise trio.BrokenResourceError(
                f"the application has not answered for {_ANSWER_SECONDS:.0f} seconds"
            )
        yield Look.between(earlier, now)
        earlier = now
        # (A slow application is asked less often, not faster afterwards.)
        at = max(at + interval, trio.current_time())
        await trio.sleep_until(at)


def find_socket(application: str | None) -> str:
    """The inspection socket that is meant.

    Raises:
      OSError, ValueError: there is none, or more than one.
    """
    if application is not None and os.sep in application:
        return application
    running = find_applications()
    if application is None:
        found = running
    else:
        found = {
            name: path
            for name, path in running.items()
            if name.startswith(application) or name.rpartition("-")[2] == application
        }
        exact = [name for name in found if name.rpartition("-")[0] == application]
        if len(exact) == 1:
            return found[exact[0]]
    if not found:
        wanted = "can be inspected" if application is None else f"is called {application!r}"
        raise ValueError(
            f"no application of yours {wanted}; one that uses a path of its own for its socket "
            "is found by that path"
        )
    if len(found) > 1:
        names = ", ".join(sorted(printable(name) for name in found))
        raise ValueError(f"which application is it? There are {names}")
    (path,) = found.values()
    return path


def _print_json(look: Look) -> None:
    record = attrs.asdict(look.snapshot)
    for transport in record["transports"]:
        for connection in transport["connections"]:
            rates = look.rates.get(connection["id"])
            connection["send_rate"] = None if rates is None else rates.sending
            connection["receive_rate"] = None if rates is None else rates.receiving
    click.echo(json.dumps(record))
