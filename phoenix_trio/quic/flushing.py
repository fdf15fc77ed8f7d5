"""Decides when what applications have written leaves: soon, at once, or without a driver.

Floor 2.  A part of :class:`~phoenix_trio.quic.driver.SocketDriver`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import trio

from .hand_over import HandOver
from .logs import bounded_logger
from .route import Route
from .sending import Sender

__all__ = ["Flushing"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: Flushes in a row while no task drives.  Two: what the first holds back because more may be
#: written (:meth:`Engine.begin_pass`) would wait for a driver that may not come.
FLUSHES_WITHOUT_DRIVER = 2

#: Flushes of the last packets before the socket closes, at most.
LAST_FLUSHES = 100


class Flushing(ABC):
    """Flushes the connections of one socket."""

    _hand_over: HandOver
    _is_closed: bool
    _sender: Sender

    @abstractmethod
    def close_if_unused(self) -> None:
        """Close now if nothing needs the socket."""

    @abstractmethod
    def _end_or_schedule(self, route: Route, now: float) -> None:
        """Free a connection that is over, else set its timer."""

    @abstractmethod
    def _fail(self, error: BaseException) -> None:
        """End all connections, because the socket has failed."""

    def flush_soon(self, route: Route) -> None:
        """Send what the connection has to say, and deliver its events.

        That is done a few passes of the scheduler later, for all connections together; at
        once if no task drives.
        """
        if self._is_closed:
            return
        sender = self._sender
        sender.is_quiet = False
        if not self._hand_over.is_running:
            sender.dirty[route] = None
            self._flush_without_driver()
            self.close_if_unused()
            return
        if route not in sender.dirty:
            if not sender.dirty:
                sender.wake()
            sender.dirty[route] = None

    def flush_at_once(self, route: Route) -> None:
        """Send what the running task has written, unless other tasks are writing as well.

        What cannot be sent at once is sent soon.
        """
        sender = self._sender
        if route in sender.dirty:
            self.flush_if_writers_idle(route)
        elif self._is_closed or sender.unsent or not self._hand_over.is_running:
            self.flush_soon(route)
        else:
            sender.is_quiet = False
            sender.dirty[route] = None
            self.flush_if_writers_idle(route)
            if route in sender.dirty:
                sender.wake()

    def _flush_without_driver(self) -> None:
        """Flush at once, in the running task."""
        try:
            self._sender.flush_dirty(trio.current_time(), passes=FLUSHES_WITHOUT_DRIVER)
        except OSError as error:
            self._fail(error)

    def flush_if_writers_idle(self, route: Route) -> None:
        """Note that the running task writes no more on this connection for now.

        Once that is true of all tasks that have written, waiting for more gains nothing, so
        packets leave at once.  No events are delivered here: the task is about to wait for
        one, and would miss it.
        """
        writers = route.writers
        writers.discard(trio.lowlevel.current_task())
        sender = self._sender
        if writers or route not in sender.dirty or sender.unsent or not self._hand_over.is_running:
            return
        now = trio.current_time()
        try:
            sender.transmit(route, now)
        except OSError as error:
            sender.error = error  # raised in the task that drives
            return
        engine = route.engine
        if engine.has_events or engine.is_ending or engine.has_more_to_send(now):
            return  # it stays dirty, so the sender's task goes on with it
        del sender.dirty[route]
        self._end_or_schedule(route, now)

    def flush_now(self) -> None:
        """Send what can be sent without waiting: the last packets before the socket closes."""
        if not self._is_closed:
            try:
                self._sender.flush_dirty(trio.current_time(), passes=LAST_FLUSHES)
            except OSError:
                logger.exception("the last packets could not be sent")
