"""Ends the servers of a transport, one by one or together, within a grace period.

Floor 5.  For :class:`~phoenix_trio.PhoenixTransport`, which ends its pool and hub itself.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from .errors import ShuttingDown
from .quic.listener import QuicListener
from .quic.server import Server

__all__ = ["Ending"]


class Ending:
    """The servers of one transport; ends them one by one, or all together."""

    def __init__(self) -> None:
        self._servers: dict[Server, None] = {}
        self._cancelled_before = 0
        self._deadline = math.inf
        self._scope = trio.CancelScope()  # of the steps after the servers' end
        self._has_begun = False
        self._done = trio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether the transport is shutting down, or has been shut down."""
        return self._has_begun

    @property
    def handlers_cancelled(self) -> int:
        """Handlers so far that had not finished at the end of a grace period."""
        return self._cancelled_before + sum(each.handlers_cancelled for each in self._servers)

    async def serve(self, server: Server, task_status: trio.TaskStatus[list[QuicListener]]) -> None:
        """Run `server`; it ends with the transport at the latest."""
        if self._has_begun:
            raise ShuttingDown("this transport is shutting down, and serves no more")
        self._servers[server] = None
        try:
            await server.run(task_status=task_status)
        finally:
            del self._servers[server]
            self._cancelled_before += server.handlers_cancelled

    def check_caller(self) -> None:
        """Check that :meth:`run` would not wait for the running task.

        Raises:
          RuntimeError: it would.
        """
        task = trio.lowlevel.current_task()
        if any(server.runs(task) for server in self._servers):
            raise RuntimeError(
                "a handler cannot shut down its own server, which waits for it;"
                " let a task outside of serve() do so"
            )

    async def run(self, grace: float, finish: Callable[[], Awaitable[object]]) -> None:
        """Stop all servers, wait for their handlers, then `finish`; all of it within `grace`.

        The first call does the work; further ones wait for it.  The earliest deadline counts.

        Cancellation: as if `grace` were over.
        """
        is_first, self._has_begun = not self._has_begun, True
        self._shorten(trio.current_time() + grace)
        try:
            await trio.lowlevel.checkpoint()
            if not is_first:
                await self._done.wait()
                return
            await self._wait_for_servers()
            with self._scope:
                await finish()
        except BaseException:
            self._shorten(trio.current_time())
            if is_first:
                # As at the end of a nursery: wait for the cancelled handlers.
                with trio.CancelScope(shield=True) as scope:
                    await self._wait_for_servers()
                    scope.cancel()
                    await finish()
            raise
        finally:
            if is_first:
                self._done.set()

    def _shorten(self, deadline: float) -> None:
        self._deadline = self._scope.deadline = min(self._deadline, deadline)
        for server in self._servers:
            server.stop(self._deadline)

    async def _wait_for_servers(self) -> None:
        for server in list(self._servers):
            await server.ended.wait()

    async def end_servers(self, *, at_once: bool) -> None:
        """End the servers because their block ends, each within its own grace period.

        Args:
          at_once: without a grace period.

        Cancellation: the same as `at_once`.
        """
        servers = list(self._servers)
        now = trio.current_time()
        try:
            for server in servers:
                server.stop(now if at_once else now + server.grace_period)
            await self._wait_for_servers()
        finally:
            for server in servers:
                server.stop(trio.current_time())
            with trio.CancelScope(shield=True):
                await self._wait_for_servers()
