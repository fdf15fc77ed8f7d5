"""Waits for several connections at once, or for one connection without other leases.

Floor 4: the pool's Trio half, like :mod:`~phoenix_trio.pool.pool`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ..quic.connection import QuicConnection
from .accounts import Demand, Entry, Pooled

if TYPE_CHECKING:
    from .pool import ConnectionPool

__all__ = ["collect", "collect_idle"]


async def collect(
    pool: ConnectionPool,
    entry: Entry,
    demand: Demand,
    count: int,
    ticket: int,
    besides: Collection[QuicConnection],
) -> list[Pooled]:
    """Find `count` connections, each with room for one more lease."""
    config = pool._config
    while True:
        pool._check_open()
        usable = entry.usable
        found = [
            each
            for each in usable
            if each.leases < config.seats and each.quic not in besides and each.is_open_to(ticket)
        ]
        demand.count = min(count + len(usable) - len(found), config.per_target)
        if len(found) >= count:
            # Connections that do not yield to other targets first.
            found.sort(key=lambda each: (each.yields_to is not None, each.leases, each.id))
            return found[:count]
        await pool._wait_for_more(entry)


async def collect_idle(pool: ConnectionPool, entry: Entry, demand: Demand, ticket: int) -> Pooled:
    """A connection without any lease.

    If all open connections are leased, another one is dialled.  If no further connection is
    permitted, the one with the fewest leases takes no later leases, and the call waits for it.
    """
    config = pool._config
    kept: Pooled | None = None
    try:
        while True:
            pool._check_open()
            usable = entry.usable
            for each in usable:
                if not each.leases and each.is_open_to(ticket):
                    return each
            demand.count = min(1 + len(usable), config.per_target)
            is_full = len(entry.connections) >= config.per_target or (
                len(pool._pooled) >= config.max_connections
            )
            if is_full and (kept is None or not kept.is_usable):
                candidates = [each for each in usable if each.closed_from is None]
                kept = min(candidates, key=lambda each: (each.leases, each.id), default=None)
                if kept is not None:
                    kept.closed_from = ticket
            await pool._wait_for_more(entry)
    finally:
        if kept is not None:
            kept.closed_from = None
