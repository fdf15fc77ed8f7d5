"""A lease on a connection which speaks ``phoenix/1``, for the length of a block.

Floor 5.  What :meth:`PhoenixTransport.connect` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import final

import trio

from .errors import ShuttingDown
from .pool.lease import Lease
from .quic.connection import QuicConnection
from .transport_connection import PhoenixConnection

__all__ = ["PhoenixLease"]


@final
class PhoenixLease(AbstractAsyncContextManager[PhoenixConnection]):
    """A lease of the pool, and the application's face of the connection.

    Args:
      lease: entered together with this.
      connections: the transport's, by their QUIC connection.
      is_closed: whether the transport gives out no more leases.
    """

    __slots__ = ("_connections", "_is_closed", "_lease")

    def __init__(
        self,
        lease: Lease,
        connections: Mapping[QuicConnection, PhoenixConnection],
        is_closed: Callable[[], bool],
    ) -> None:
        self._lease = lease
        self._connections = connections
        self._is_closed = is_closed

    def __repr__(self) -> str:
        return f"<Phoenix{repr(self._lease)[1:]}"

    async def __aenter__(self) -> PhoenixConnection:
        if self._is_closed():
            await trio.lowlevel.checkpoint()
            raise ShuttingDown("this transport was closed")
        while True:
            quic = await self._lease.__aenter__()
            connection = self._connections.get(quic)
            if connection is not None:
                return connection
            # It was granted, and then lost, before this task had its turn.
            await self._lease.__aexit__(None, None, None)
            self._lease = self._lease.again()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._lease.__aexit__(exc_type, exc_value, traceback)
