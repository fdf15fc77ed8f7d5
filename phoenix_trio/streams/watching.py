"""Notices that the peer wants no more, even while there is nothing to send.

Floor 4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ..quic.connection import SendStream
from ..quic.groups import unwrap_lone

__all__ = ["while_open"]

T = TypeVar("T")


async def while_open(stream: SendStream, work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`, and cancel it as soon as nothing can be sent on `stream` any more.

    Raises:
      StreamStopped: the peer does not want more.
      ConnectionBroken: the connection ended.
      trio.ClosedResourceError: the stream or the connection was closed here.
      And whatever `work` raises.
    """
    result: list[T] = []
    with unwrap_lone():
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                try:
                    await stream.wait_stopped()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            result.append(await work())
            nursery.cancel_scope.cancel()
    if not result:
        await stream.wait_stopped()  # raises the reason at once
    return result[0]
