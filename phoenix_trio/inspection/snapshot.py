"""Takes a snapshot of transports, in steps that do not hold the event loop up.

Floor 5.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Sequence
from typing import TypeAlias, final
from weakref import WeakKeyDictionary

import attrs
import trio

from ..metrics import ConnectionStatistics
from ..pool.statistics import PoolStatistics
from ..quic.path_address import display_address
from ..transport import PhoenixTransport
from ..transport_connection import PhoenixConnection
from .format import (
    MOST_CONNECTIONS,
    MOST_TARGETS,
    MOST_TEXT,
    ConnectionView,
    PoolView,
    Snapshot,
    TargetView,
    TransportView,
)

__all__ = ["Observer"]

#: Connections looked at in one step.
_STEP = 50


@attrs.define(eq=False)
class _Known:
    id: int
    bytes_moved: int = 0


_Weighed: TypeAlias = tuple[int, PhoenixConnection, _Known, ConnectionStatistics]


@final
class Observer:
    """Takes the snapshots of one inspection.

    It remembers a number for each connection, and how many bytes that had moved.  Nothing here
    keeps a connection alive.

    Args:
      transports: those it looks at.
    """

    def __init__(self, transports: Sequence[PhoenixTransport]) -> None:
        self._transports = transports
        self._known: WeakKeyDictionary[PhoenixConnection, _Known] = WeakKeyDictionary()
        self._numbers = itertools.count(1)

    async def take(self) -> Snapshot:
        """A new snapshot.  Its parts may differ by the time of a few passes of the scheduler."""
        await trio.lowlevel.checkpoint()
        views = [await self._look_at(transport) for transport in self._transports]
        return Snapshot(process=os.getpid(), time=trio.current_time(), transports=tuple(views))

    async def _look_at(self, transport: PhoenixTransport) -> TransportView:
        stats = transport.stats()
        pool = _view_pool(transport.pool_statistics())
        found: list[_Weighed] = []
        connections = transport.connections
        for at in range(0, len(connections), _STEP):
            found += [self._weigh(each) for each in connections[at : at + _STEP]]
            await trio.lowlevel.checkpoint()
        shown = []
        for each in heapq.nlargest(MOST_CONNECTIONS, found, key=lambda weighed: weighed[0]):
            shown.append(_view(*each[1:]))
            if not len(shown) % _STEP:
                await trio.lowlevel.checkpoint()
        return TransportView(
            name=stats.name[:MOST_TEXT],
            latency=None if stats.latency_ms is None else stats.latency_ms / 1e3,
            active_connections=stats.active_connections,
            connections_opened=stats.connections_opened,
            total_bytes_sent=stats.total_bytes_sent,
            total_bytes_received=stats.total_bytes_received,
            operations=stats.operations,
            packets_lost=stats.packets_lost,
            incoming_transfers=stats.incoming_transfers,
            outgoing_transfers=stats.outgoing_transfers,
            handlers_cancelled=stats.handlers_cancelled,
            pool=pool,
            connections=tuple(shown),
            connections_left_out=len(found) - len(shown),
        )

    def _weigh(self, connection: PhoenixConnection) -> _Weighed:
        """The bytes that a connection has moved since the last snapshot, and what a view needs."""
        known = self._known.get(connection)
        if known is None:
            known = self._known[connection] = _Known(next(self._numbers))
        facts = connection.quic.statistics()
        moved = facts.bytes_sent + facts.bytes_received
        since, known.bytes_moved = known.bytes_moved, moved
        return moved - since, connection, known, facts


def _view(
    connection: PhoenixConnection, known: _Known, facts: ConnectionStatistics
) -> ConnectionView:
    quic = connection.quic
    host, port = display_address(quic.peer_address)[:2]
    state = "draining" if connection.is_draining else "open"
    return ConnectionView(
        id=known.id,
        peer=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        is_dialled=quic._is_client,
        state="closing" if quic._is_closing else state,
        rtt=facts.rtt_smoothed,
        congestion_window=facts.congestion_window,
        bytes_in_flight=facts.bytes_in_flight,
        path_mtu=facts.path_mtu,
        bytes_sent=facts.bytes_sent,
        bytes_received=facts.bytes_received,
        packets_sent=facts.packets_sent,
        packets_lost=facts.packets_lost,
        streams=len(quic._senders.keys() | quic._receivers.keys()),
    )


def _view_pool(pool: PoolStatistics) -> PoolView:
    busiest = heapq.nlargest(
        MOST_TARGETS,
        pool.targets.items(),
        key=lambda each: (each[1].leases + each[1].waiting, each[1].connections),
    )
    return PoolView(
        connections=pool.connections,
        idle=pool.idle,
        dialling=pool.dialling,
        closing=pool.closing,
        leases=pool.leases,
        waiting=pool.waiting,
        evicted_idle=pool.evicted_idle,
        lost=pool.lost,
        health_failures=pool.health_failures,
        targets=tuple(
            TargetView(
                target=name[:MOST_TEXT],
                connections=each.connections,
                idle=each.idle,
                dialling=each.dialling,
                leases=each.leases,
                waiting=each.waiting,
                dial_failures=each.dial_failures,
            )
            for name, each in busiest
        ),
        targets_left_out=len(pool.targets) - len(busiest),
    )
