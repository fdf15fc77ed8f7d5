"""Turns snapshots into rates and tables for the terminal.

Floor 6.  Text from the application is printed with control characters escaped, and without
markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..inspection import ConnectionView, PoolView, Snapshot, TransportView
from ..storage.names import printable
from .options import format_size

__all__ = ["SORTS", "Look", "Rates", "render"]

#: Columns of a terminal that has room for the whole table.
_WIDE = 100

#: Lines of a transport besides connections and targets: totals, headers, remarks, space.
_OTHER_LINES = 8

_MOST_TARGETS_SHOWN = 8

#: The pool of a transport that only serves.
_UNUSED = PoolView(
    connections=0,
    idle=0,
    dialling=0,
    closing=0,
    leases=0,
    waiting=0,
    evicted_idle=0,
    lost=0,
    health_failures=0,
    targets=(),
    targets_left_out=0,
)


@attrs.frozen
class Rates:
    """Bits a second of one connection on the network."""

    sending: float
    receiving: float


_NONE = Rates(0.0, 0.0)


@attrs.frozen
class Look:
    """A snapshot, and the rates since the one before; those of new connections are missing."""

    snapshot: Snapshot
    rates: Mapping[int, Rates]
    delivered: tuple[Rates | None, ...]
    """The stream data of each transport, delivered to the peers and read here."""

    @classmethod
    def between(cls, earlier: Snapshot | None, now: Snapshot) -> Look:
        """The look at `now`, with what has happened since `earlier`."""
        if earlier is None or now.time <= earlier.time or earlier.process != now.process:
            return cls(now, {}, (None,) * len(now.transports))
        seconds = now.time - earlier.time
        before = {link.id: link for each in earlier.transports for link in each.connections}
        rates = {
            link.id: Rates(
                _rate(before[link.id].bytes_sent, link.bytes_sent, seconds),
                _rate(before[link.id].bytes_received, link.bytes_received, seconds),
            )
            for each in now.transports
            for link in each.connections
            if link.id in before
        }
        delivered = tuple(
            Rates(
                _rate(a.total_bytes_sent, b.total_bytes_sent, seconds),
                _rate(a.total_bytes_received, b.total_bytes_received, seconds),
            )
            for a, b in zip(earlier.transports, now.transports, strict=False)
        )
        missing = len(now.transports) - len(delivered)
        return cls(now, rates, (*delivered, *(None,) * missing))


def _rate(before: int, after: int, seconds: float) -> float:
    return max(0.0, 8 * (after - before) / seconds)


#: The orders of connections, the first one first.
SORTS: dict[str, Callable[[ConnectionView, Rates], Any]] = {
    "throughput": lambda link, rates: -(rates.sending + rates.receiving),
    "send": lambda link, rates: -rates.sending,
    "receive": lambda link, rates: -rates.receiving,
    "rtt": lambda link, rates: -(link.rtt or 0.0),
    "loss": lambda link, rates: -link.loss,
    "flight": lambda link, rates: -link.bytes_in_flight,
    "streams": lambda link, rates: -link.streams,
    "peer": lambda link, rates: link.peer,
}


def render(look: Look, sort: str, *, rows: int | None = None, width: int = 140) -> RenderableType:
    """The whole view.

    Args:
      look: what to show.
      sort: a key of :data:`SORTS`.
      rows: lines of the terminal; ``None``: show all connections.
      width: columns of the terminal; a narrow one gets fewer columns of the table.
    """
    snapshot = look.snapshot
    parts: list[RenderableType] = []
    for transport, delivered in zip(snapshot.transports, look.delivered, strict=True):
        links = targets = None
        if rows is not None:
            room = max(2, rows // len(snapshot.transports) - _OTHER_LINES)
            targets = min(len(transport.pool.targets), _MOST_TARGETS_SHOWN, max(1, room // 4))
            links = room - targets
        if parts:
            parts.append(Text())
        parts.append(_totals(transport, delivered, snapshot.process))
        parts.append(_connections(transport, look, sort, links, width < _WIDE))
        if transport.pool.targets:
            parts.append(_targets(transport.pool, targets))
    return Group(*parts)


def _peer(link: ConnectionView, rates: Rates | None) -> Text:
    return Text(f"{'to' if link.is_dialled else 'from'} {printable(link.peer)}")


def _loss(link: ConnectionView, rates: Rates | None) -> Text:
    return Text(f"{100 * link.loss:.2f} %", style="red" if link.loss > 0.01 else "")


#: Names of columns, and what stands there.  A narrow terminal shows the first and the last five.
_COLUMNS: tuple[tuple[str, Callable[[ConnectionView, Rates | None], RenderableType]], ...] = (
    ("connection", _peer),
    ("state", lambda link, rates: Text(printable(link.state))),
    ("streams", lambda link, rates: str(link.streams)),
    ("cwnd", lambda link, rates: format_size(link.congestion_window)),
    ("in flight", lambda link, rates: format_size(link.bytes_in_flight)),
    ("RTT", lambda link, rates: _seconds(link.rtt)),
    ("loss", _loss),
    ("sending", lambda link, rates: _sending(rates)),
    ("receiving", lambda link, rates: _receiving(rates)),
)


def _totals(view: TransportView, delivered: Rates | None, process: int) -> Text:
    text = Text(printable(view.name), style="bold")
    text.append(f"  process {process}", style="not bold dim")
    for name, value in (
        ("connections", f"{view.active_connections} of {view.connections_opened} so far"),
        ("RTT", _seconds(view.latency)),
        ("lost packets", f"{view.packets_lost:,}"),
        ("operations", f"{view.operations:,}"),
        ("transfers", f"{view.incoming_transfers} in, {view.outgoing_transfers} out"),
    ):
        text.append(f"  {name} {value}", style="not bold")
    text.append("\nacknowledged by peers ", style="not bold")
    text.append(f"{format_size(view.total_bytes_sent)}")
    text.append(f" ({_sending(delivered)})  read here ", style="not bold")
    text.append(f"{format_size(view.total_bytes_received)}")
    text.append(f" ({_receiving(delivered)})", style="not bold")
    if view.handlers_cancelled:
        text.append(f"  handlers cancelled {view.handlers_cancelled}", style="not bold red")
    pool = view.pool
    if pool != _UNUSED:
        text.append(
            f"\npool: {pool.connections} connections, {pool.idle} idle, {pool.dialling} dialling, "
            f"{pool.closing} closing; {pool.leases} leases, {pool.waiting} waiting; "
            f"{pool.evicted_idle} closed when idle, {pool.lost} lost, "
            f"{pool.health_failures} failed health checks",
            style="not bold",
        )
    return text


def _connections(
    view: TransportView, look: Look, sort: str, limit: int | None, is_narrow: bool
) -> RenderableType:
    columns = _COLUMNS[:1] + _COLUMNS[-5:] if is_narrow else _COLUMNS
    table = _table(*(name for name, _ in columns))
    key = SORTS[sort]
    order = sorted(view.connections, key=lambda link: key(link, look.rates.get(link.id, _NONE)))
    for link in order[:limit]:
        rates = look.rates.get(link.id)
        table.add_row(*(show(link, rates) for _, show in columns))
    hidden = max(0, len(order) - len(order[:limit])) + view.connections_left_out
    if not hidden:
        return table
    return Group(table, Text(f"and {hidden} more connections", style="dim"))


def _targets(pool: PoolView, limit: int | None) -> RenderableType:
    table = _table("target", "connections", "idle", "dialling", "leases", "waiting", "failed dials")
    for each in pool.targets[:limit]:
        table.add_row(
            Text(printable(each.target)),
            *map(str, (each.connections, each.idle, each.dialling, each.leases)),
            *map(str, (each.waiting, each.dial_failures)),
        )
    hidden = len(pool.targets) - len(pool.targets[:limit]) + pool.targets_left_out
    return Group(table, Text(f"and {hidden} more targets", style="dim")) if hidden else table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column(first, overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.1f} ms" if value < 10 else f"{value:.3g} s"


def _sending(rates: Rates | None) -> str:
    return "-" if rates is None else _bits(rates.sending)


def _receiving(rates: Rates | None) -> str:
    return "-" if rates is None else _bits(rates.receiving)


def _bits(value: float) -> str:
    """A rate for people; those of the network are in powers of ten."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bit/s" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} Gbit/s"
