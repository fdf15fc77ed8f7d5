"""Leases one connection of the pool for the length of a block.

Floor 4.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, final

import trio

from ..quic.connection import QuicConnection
from .accounts import Pooled
from .targets import Target

if TYPE_CHECKING:
    from .pool import ConnectionPool

__all__ = ["Lease"]


@final
class Lease(AbstractAsyncContextManager[QuicConnection]):
    """A connection of the pool for the length of a block.  From :meth:`ConnectionPool.lease`.

    Can be entered once.
    """

    __slots__ = ("_exclusive", "_is_over", "_pool", "_pooled", "_target")

    def __init__(self, pool: ConnectionPool, target: Target, *, exclusive: bool = False) -> None:
        self._pool = pool
        self._target = target
        self._exclusive = exclusive
        self._pooled: Pooled | None = None
        self._is_over = False

    def __repr__(self) -> str:
        kind = "exclusive lease" if self._exclusive else "lease"
        state = "handed back" if self._is_over else "held" if self._pooled else "not entered"
        return f"<Lease: {kind} of a connection to {self._target} ({state})>"

    def again(self) -> Lease:
        """Another lease of the same pool, target and kind."""
        return Lease(self._pool, self._target, exclusive=self._exclusive)

    async def __aenter__(self) -> QuicConnection:
        if self._pooled is not None:
            raise RuntimeError("a lease can be entered once; ask the pool for another one")
        if self._exclusive:
            self._pooled = await self._pool._acquire_alone(self._target)
        else:
            self._pooled = await self._pool._acquire(self._target)
        return self._pooled.quic

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._pooled is not None
        self._is_over = True
        if self._exclusive:
            self._pooled.closed_from = None
        self._pool._release(self._pooled)
        # A checkpoint even if the block raised; the block's exception is not replaced.
        if exc_type is None:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
