"""``phoenix-trio plot``: a qlog trace as one HTML page."""

from __future__ import annotations

import os

import click

from .failures import failures_in_one_line, say
from .plotting import Reader, tell, write_page

__all__ = ["plot"]


@click.command()
@click.argument("qlog", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where the page goes.  [default: QLOG with the ending .html]",
)
@failures_in_one_line
def plot(qlog: str, output: str | None) -> None:
    """Draw a qlog trace of a connection as one HTML page.

    Charts show the congestion window and bytes in flight, round-trip times, packets and losses,
    and the data of streams; marks show the end of the handshake, larger packets, migrations,
    key updates and the close.  The page needs no network and has no scripts.

    Traces come from TransportConfig(qlog_dir=...), from aioquic, and from others that write
    qlog 0.3 or later.  Of a damaged file, all events up to the damage are drawn.

    \b
    Example:
        phoenix-trio plot traces/0230e8ef055db39b-client.sqlog
    """
    if output is None:
        output = os.path.splitext(qlog)[0] + ".html"
    if os.path.exists(output) and os.path.samefile(output, qlog):
        raise ValueError("the page would replace the trace: give another --output")
    with open(qlog, encoding="utf-8", errors="replace", newline="") as file:
        reader = Reader(file)
        story = tell(reader)
    page = write_page(
        story,
        name=os.path.basename(qlog),
        title=reader.title,
        vantage=reader.vantage,
        remarks=reader.remarks,
    )
    with open(output, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)
    for remark in reader.remarks:
        say(f"phoenix-trio: {remark}", err=True)
    say(f"{story.events:,} events are drawn in {output}")
