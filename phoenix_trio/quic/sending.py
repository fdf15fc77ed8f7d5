"""Sends the packets of connections through one socket.

Floor 2.  Packets are built and given to the socket without waiting: a cancelled ``await send``
would lose packets already counted in flight.  Packets that a full socket does not take are kept,
and nothing else is built before they have left.

A write marks its connection dirty.  One task, :meth:`Sender.run`, flushes all dirty connections
together, a few passes of the scheduler later, so that related frames share packets.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

import trio

from .datagram_socket import RunSender
from .established.runs import Run
from .established.transmit import BUILD_BYTES
from .route import Route

__all__ = ["Sender"]

#: Builds of a connection in one pass, before the other connections have theirs.
BUILDS_PER_CONNECTION = 4

#: Passes of the scheduler for which small packets wait while applications go on writing, besides
#: the first, and seconds.  Tasks woken by one packet answer in different passes: with 100
#: requests at a time, answers in one packet instead of several save a fifth of the processor
#: time.  The time bounds the delay when passes are long.
PASSES_TO_COALESCE = 15
SECONDS_TO_COALESCE = 0.001

#: Of these, passes without a write during which to wait for a task that has written and still
#: runs.  Between an answer and the end of its stream there are two.
QUIET_PASSES = 2

#: With more dirty connections, waiting longer gains nothing.
ENOUGH_DIRTY_ROUTES = 16

_thread = threading.local()


def _slab() -> bytearray:
    """A buffer to build packets in, shared by all endpoints of a thread.

    Its packets are sent, or copied, before any other task can run.
    """
    slab: bytearray | None = getattr(_thread, "slab", None)
    if slab is None:
        slab = _thread.slab = bytearray(BUILD_BYTES)
    return slab


class Sender:
    """Builds the packets of connections and gives them to a socket.

    Args:
      socket: takes the packets.
      on_transmitted: called after a connection has sent: it may have events, and its deadline
        has changed.
      on_blocked: called when a connection has to wait for the socket.
    """

    __slots__ = ("_flush_lot", "_on_blocked", "_on_transmitted", "_socket", "dirty", "error",
                 "is_quiet", "sending", "unsent")  # fmt: skip

    def __init__(
        self,
        socket: RunSender,
        *,
        on_transmitted: Callable[[Route, float], None],
        on_blocked: Callable[[Route, float], None],
    ) -> None:
        self._socket = socket
        self._on_transmitted = on_transmitted
        self._on_blocked = on_blocked
        self._flush_lot = trio.lowlevel.ParkingLot()
        self.dirty: dict[Route, None] = {}
        """Connections that may have something to send, or events to deliver."""
        self.unsent: deque[Run] = deque()
        """Packets that the socket did not take yet."""
        self.sending: Route | None = None
        """The connection whose packets were built last."""
        self.is_quiet: bool = False
        """Whether no connection was marked dirty since this was set."""
        self.error: OSError | None = None
        """The error of the socket in another task; :meth:`run` raises it."""

    def use(self, socket: RunSender) -> None:
        """Give the packets to `socket` from now on."""
        self._socket = socket

    # ------------------------------------------------------------------ in any task

    def flush(self, now: float, routes: Iterable[Route]) -> None:
        """Send one bounded run of packets of each of these connections.

        A connection with more to send becomes dirty again.
        """
        unsent = self.unsent
        while unsent:
            data, address, size, mark = unsent[0]
            taken = self._socket.send_run(data, address, size, mark)
            if taken < len(data):
                unsent[0] = (data[taken:], address, size, mark)
                break
            unsent.popleft()
        for route in routes:
            if unsent:
                self.dirty[route] = None
                self._on_blocked(route, now)
                continue
            self.transmit(route, now)
            self._on_transmitted(route, now)
            if route.engine.has_more_to_send(now):
                self.dirty[route] = None  # its turn comes again after the others'

    def flush_dirty(self, now: float, *, passes: int) -> None:
        """Flush dirty connections until none is left, at most `passes` times."""
        for _ in range(passes):
            dirty, self.dirty = self.dirty, {}
            self.flush(now, dirty)
            if self.unsent or not self.dirty:
                break

    def transmit(self, route: Route, now: float) -> None:
        """Send one bounded run of packets of a connection, without telling the driver."""
        route.writers.clear()
        self.sending = route
        engine, slab = route.engine, _slab()
        engine.begin_pass()
        for _ in range(BUILDS_PER_CONNECTION):
            runs = engine.transmit(now, slab)
            for run in runs:
                self._send(run)
            if not runs or self.unsent or not engine.has_more_to_send(now):
                break

    def _send(self, run: Run) -> None:
        data, address, size, mark = run
        taken = 0 if self.unsent else self._socket.send_run(data, address, size, mark)
        if taken < len(data):
            # Already counted in flight: kept, and nothing else is built before.
            self.unsent.append((bytes(data[taken:]), address, size, mark))

    # ------------------------------------------------------------------ the task

    def wake(self) -> None:
        """Wake the task: there is something to flush."""
        if self._flush_lot:
            self._flush_lot.unpark_all()

    async def run(self) -> None:
        """Flush dirty connections, and packets not yet taken by the socket, until cancelled.

        Raises:
          OSError: the socket failed, here or in :attr:`error`.
        """
        while True:
            if self.unsent:
                await self._socket.wait_writable()
            elif self.dirty:
                await trio.lowlevel.checkpoint()
            else:
                await self._flush_lot.park()
                await self._coalesce()
            if self.error is not None:
                raise self.error
            dirty, self.dirty = self.dirty, {}
            self.flush(trio.current_time(), dirty)

    async def _coalesce(self) -> None:
        """Let applications write for a few passes before their packets are built.

        Related frames should leave together: the answer, then, after an attempt to read more,
        the end of the stream.  So should frames of other streams at the same time, because a
        packet costs far more than a frame.  A task that has written and does not wait yet
        probably writes again: between its writes are calls that write nothing, and each takes a
        pass.  The wait is short, and a full packet ends it.
        """
        if not self.dirty:
            return  # (All was sent when its writers came to rest.)
        until = trio.current_time() + SECONDS_TO_COALESCE
        quiet_passes = 0
        await trio.lowlevel.checkpoint()
        for _ in range(PASSES_TO_COALESCE):
            if not self.dirty:
                break
            self.is_quiet = True
            await trio.lowlevel.checkpoint()
            if self.is_quiet:
                quiet_passes += 1
                if quiet_passes > QUIET_PASSES or not any(route.writers for route in self.dirty):
                    break
            if len(self.dirty) > ENOUGH_DIRTY_ROUTES or trio.current_time() > until:
                break
            if any(route.engine.has_full_packet for route in self.dirty):
                break
