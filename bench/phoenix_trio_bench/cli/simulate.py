"""``phoenix-trio simulate``: measure transfers over a simulated link."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.table import Table

from phoenix_trio import TransportConfig
from phoenix_trio.cli.failures import failures_in_one_line

from .. import page
from ..over_time import Timeline
from ..simulate import Link, Outcome, simulate, simulate_relayed
from .files import check_files

__all__ = ["simulate_command"]


@click.command("simulate")
@click.option("--size", type=click.FloatRange(0.001, 10_000), default=20, help="Megabytes.")
@click.option("--rtt", type=click.FloatRange(0, 10_000), default=50, help="Milliseconds.")
@click.option("--loss", type=click.FloatRange(0, 50), default=0, help="Per cent, each way.")
@click.option(
    "--bandwidth", type=click.FloatRange(0.01), default=None, help="Mbit/s.  [default: no limit]"
)
@click.option("--queue", type=click.IntRange(2, 1_000_000), default=256, help="KiB.")
@click.option(
    "--connections",
    type=click.IntRange(1, 100),
    multiple=True,
    default=(1,),
    help="Side by side, each with an equal share; may be repeated, for a row each.",
)
@click.option(
    "--congestion", type=click.Choice(["cubic", "reno"]), default="cubic", show_default=True
)
@click.option("--relay", is_flag=True, help="Real sockets and a relay process; real time.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the losses.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Save the figures.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False),
    help="Save a page with throughput, round-trip time and window over time.",
)
@failures_in_one_line
def simulate_command(
    *,
    size: float,
    rtt: float,
    loss: float,
    bandwidth: float | None,
    queue: int,
    connections: tuple[int, ...],
    congestion: str,
    relay: bool,
    seed: int,
    json_file: str | None,
    html_file: str | None,
) -> None:
    """Send random data over a link with this round trip, loss and bandwidth.

    In memory and in virtual time, in which processors cost nothing; or, with --relay,
    over real sockets.  The receiver checks the data, and the time ends when its answer
    has come back.

    \b
    Examples:
        phoenix-trio simulate --rtt 100 --bandwidth 100 --queue 1250 --size 100
        phoenix-trio simulate --rtt 50 --loss 1 --connections 1 --connections 10
        phoenix-trio simulate --rtt 20 --bandwidth 50 --relay
        phoenix-trio simulate --rtt 80 --bandwidth 50 --html page.html
    """
    check_files(json_file, html_file)
    link = Link(
        rtt=rtt / 1e3,
        loss=loss / 100,
        bandwidth=None if bandwidth is None else bandwidth * 1e6,
        queue_bytes=queue * 1024,
        seed=seed,
    )
    config = TransportConfig(congestion_control="reno" if congestion == "reno" else "cubic")
    work = partial(simulate_relayed if relay else simulate, link, round(size * 1e6), config=config)
    record = html_file is not None or json_file is not None
    outcomes = [(count, work(connections=count, record=record)) for count in connections]
    _print(link, outcomes)
    if json_file is not None:
        content = {
            "link": attrs.asdict(link),
            "kind": "relay" if relay else "virtual time",
            "rows": [
                {"connections": count, "rate": outcome.rate, **attrs.asdict(outcome)}
                for count, outcome in outcomes
            ],
        }
        Path(json_file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if html_file is not None:
        kind = "over real sockets and a relay" if relay else "in virtual time"
        lead = f"{size:g} MB, {kind}; {link.describe()}; {congestion}, seed {seed}."
        timelines = [_timeline(link, count, outcome) for count, outcome in outcomes]
        page.save_timelines("phoenix_trio: simulated transfers", lead, timelines, html_file)


def _timeline(link: Link, count: int, outcome: Outcome) -> Timeline:
    name = "1 connection" if count == 1 else f"{count} connections together"
    return Timeline(
        name=f"{name}: {outcome.seconds:.3g} s, {outcome.rate / 1e6:.3g} Mbit/s",
        moments=outcome.moments,
        bandwidth=link.bandwidth,
    )


def _print(link: Link, outcomes: list[tuple[int, Outcome]]) -> None:
    table = Table("connections", "s", "Mbit/s", "packets", "lost", "wall clock, s")
    if link.bandwidth is not None:
        table.add_column("of the link")
        table.add_column("of it in seconds 1 to 5")
    for count, outcome in outcomes:
        cells = [
            str(count),
            f"{outcome.seconds:.3f}",
            f"{outcome.rate / 1e6:.1f}",
            f"{outcome.packets_sent:,}",
            f"{outcome.packets_lost:,}",
            f"{outcome.real_seconds:.1f}",
        ]
        if link.bandwidth is not None:
            cells.append(f"{outcome.rate / link.bandwidth:.0%}")
            shares = [outcome.share_in_second(second, link.bandwidth) for second in range(1, 6)]
            cells.append(" ".join("-" if share is None else f"{share:.0%}" for share in shares))
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
