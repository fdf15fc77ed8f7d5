"""``phoenix-trio bench`` and ``serve-bench``: measure this machine, or the way to another."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console

from phoenix_trio import ClientTLS
from phoenix_trio.cli.failures import failures_in_one_line
from phoenix_trio.cli.options import Target

from .. import page, peers, report, results, workloads
from ..processes import Remote
from ..server import development_tls, serve_bench
from .files import check_files

__all__ = ["bench", "serve_bench_command"]

#: The port of ``serve-bench``.
_PORT = 4434

#: Between these lines the tables in docs/performance.md are replaced.
_BEGIN = "<!-- tables: begin, written by phoenix-trio bench --markdown -->\n"
_END = "<!-- tables: end -->\n"


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rows and runs; ends within 40 seconds.")
@click.option(
    "--runs", type=click.IntRange(1, 100), default=None, help="Runs of each row.  [default: 5]"
)
@click.option(
    "--only",
    multiple=True,
    default=("*",),
    metavar="PATTERN",
    help="Rows to measure, as 'echoes*'; may be given several times.",
)
@click.option("--with-1gb", "with_gigabyte", is_flag=True, help="Transfers of 1 GB as well.")
@click.option("--peers", "with_peers", is_flag=True, help="The installed peers, in turns with us.")
@click.option(
    "--peer-python",
    "peer_pythons",
    multiple=True,
    metavar="PEER=PYTHON",
    help=f"The interpreter which has a peer's package ({', '.join(peers.NAMES)}).",
)
@click.option(
    "--connect",
    "server",
    type=Target(_PORT),
    default=None,
    metavar="HOST[:PORT]",
    help=f'A "phoenix-trio serve-bench" elsewhere.  [default port: {_PORT}]',
)
@click.option(
    "--pin",
    default=None,
    metavar="FINGERPRINT",
    help="Which that server printed.  [default: its certificate is not checked]",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Save all figures.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False), help="Save a page of charts.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False),
    help="Write the table into this file, between its marks if it has them.",
)
@click.option(
    "--compare",
    "old_file",
    type=click.Path(dir_okay=False, exists=True),
    help="Show what changed since the figures saved in this file.",
)
@failures_in_one_line
def bench(
    *,
    quick: bool,
    runs: int | None,
    only: tuple[str, ...],
    with_gigabyte: bool,
    with_peers: bool,
    peer_pythons: tuple[str, ...],
    server: tuple[str, int] | None,
    pin: str | None,
    json_file: str | None,
    html_file: str | None,
    markdown_file: str | None,
    old_file: str | None,
) -> None:
    """Measure this machine, or the way to another one.

    Starts a server process and a client process and has them move random data,
    which the receiver checks.  Every time ends when the other application has
    answered.  Figures are medians over several runs, after one to warm up.

    \b
    Examples:
        phoenix-trio bench --quick
        phoenix-trio bench --peers --json today.json --html today.html
        phoenix-trio bench --peers --peer-python libp2p=p2p/bin/python
        phoenix-trio bench --compare yesterday.json
        phoenix-trio bench --connect there:4434 --pin ab:cd:...
    """
    if server is None and pin is not None:
        raise click.UsageError("--pin needs --connect")
    if server is not None and with_peers:
        raise click.UsageError("--peers needs the peers' servers on this machine")
    if peer_pythons and not with_peers:
        raise click.UsageError("--peer-python needs --peers")
    interpreters = _parse_interpreters(peer_pythons)
    _check_pin(pin)
    check_files(json_file, html_file, markdown_file)
    old = results.Report.load(old_file) if old_file else None
    console = _console()
    found: list[peers.Implementation] = []
    if with_peers:
        found, missing = peers.find_peers(interpreters)
        for name, reason in missing:
            console.print(f"left out: {name} ({reason})")
    if server is not None and pin is None:
        console.print("without --pin, the server's certificate is not checked")
    plan = workloads.Plan(
        quick=quick,
        runs=runs or (3 if quick else 5),
        only=only,
        with_gigabyte=with_gigabyte,
        peers=tuple(found),
        remote=None if server is None else Remote(*server, pin or ""),
        records=bool(json_file or html_file),
    )
    with console.status("starting") as status:
        rows = workloads.run(plan, status.update)
        timelines = workloads.record(plan, status.update) if plan.records else []
    if not rows and not timelines:
        hint = "" if plan.records else " (transfers over time need --html or --json)"
        raise click.UsageError(f"no row is called {' or '.join(map(repr, only))}{hint}")
    new = results.new_report(rows, {peer.name: peer.version for peer in found}, timelines)
    report.print_report(new, console)
    if old is not None:
        report.compare(old, new, console)
    if json_file is not None:
        new.save(json_file)
    if html_file is not None:
        page.save_page(new, html_file)
    if markdown_file is not None:
        _write_markdown(new, Path(markdown_file))
    failed = [row for row in rows if row.note.startswith("failed")]
    if any(row.implementation == peers.PHOENIX.name for row in failed):
        click.echo("phoenix-trio: some rows failed; the lines below the table say why", err=True)
        sys.exit(1)


def _check_pin(pin: str | None) -> None:
    if pin is not None:
        try:
            ClientTLS(pinned_sha256=pin)
        except ValueError as error:
            raise click.UsageError(f"--pin: {error}") from error


def _parse_interpreters(options: tuple[str, ...]) -> dict[str, str]:
    interpreters = {}
    for option in options:
        name, _, path = option.partition("=")
        if name not in peers.NAMES or not path:
            raise click.UsageError(
                f"--peer-python takes PEER=PYTHON, with one of {', '.join(peers.NAMES)},"
                f" not {option!r}"
            )
        interpreters[name] = path
    return interpreters


def _console() -> Console:
    console = Console()
    # A file has no width to which the table must keep.
    return console if console.is_terminal else Console(width=200)


def _write_markdown(new: results.Report, path: Path) -> None:
    table = _BEGIN + "\n" + report.markdown(new) + "\n" + _END
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if _BEGIN in text and _END in text:
        before, rest = text.split(_BEGIN, 1)
        text = before + table + rest.split(_END, 1)[1]
    else:
        text = table
    path.write_text(text, encoding="utf-8")


@click.command("serve-bench")
@click.option("--host", default=None, help="Local address.  [default: all]")
@click.option("--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True)
@click.option(
    "--max-udp-payload-size", type=click.IntRange(1200, 65507), default=None, help="In bytes."
)
@failures_in_one_line
def serve_bench_command(host: str | None, port: int, max_udp_payload_size: int | None) -> None:
    """Serve "phoenix-trio bench --connect" on other machines, until interrupted."""
    tls, pin = development_tls()
    serve = partial(serve_bench, host=host, port=port, udp_payload=max_udp_payload_size, tls=tls)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(serve)
            click.echo(f"measure with: phoenix-trio bench --connect HOST:{bound} --pin {pin}")
            sys.stdout.flush()

    trio.run(main)
