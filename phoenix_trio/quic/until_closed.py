"""Iterates over what a call returns, until the connection is closed in good order.

Floor 0.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from ..errors import ConnectionClosedByPeer

__all__ = ["UntilClosed"]

T = TypeVar("T")


class UntilClosed(Generic[T]):
    """An iterator rather than an async generator, so that a loop can be left at any point.

    Args:
      accept: returns the next value; the iteration ends when it raises
        :exc:`trio.ClosedResourceError`, or a clean :class:`ConnectionClosedByPeer`.
    """

    def __init__(self, accept: Callable[[], Awaitable[T]]) -> None:
        self._accept = accept

    def __aiter__(self) -> UntilClosed[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._accept()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None
        except ConnectionClosedByPeer as error:
            if error.is_clean:
                raise StopAsyncIteration from None
            raise
