"""Sends and receives the unreliable datagrams of a connection (RFC 9221).

Floor 3.  These calls are part of :class:`~phoenix_trio.quic.connection.QuicConnection`, which
documents the whole.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import trio

from ..errors import DatagramsUnsupported, DatagramTooLarge
from .connection_state import ConnectionState
from .datagram_options import expiry, tag_number
from .misuse import bytes_needed
from .until_closed import UntilClosed

__all__ = ["DatagramCalls"]


class DatagramCalls(ConnectionState):
    """Sends and receives the datagrams of a connection."""

    @property
    def max_datagram_size(self) -> int | None:
        """The largest datagram that can be sent at present, in bytes; ``None``: none at all.

        It can change during the connection, with the path's MTU.
        """
        return self._engine.max_datagram_payload if self._is_ready else None

    def _check_datagram(self, data: bytes | bytearray | memoryview) -> bytes:
        if self._is_closing:
            raise self._ended_error()
        maximum = self._engine.max_datagram_payload
        if maximum is None:
            raise DatagramsUnsupported(
                "datagrams (RFC 9221) are switched off on this side or by the peer, or the peer's"
                " limit (max_datagram_frame_size) does not hold even an empty one"
            )
        payload = data if type(data) is bytes else _as_bytes(data)
        if len(payload) > maximum:
            raise DatagramTooLarge(len(payload), maximum)
        return payload

    async def send_datagram(
        self,
        data: bytes | bytearray | memoryview,
        *,
        expires_after: float = math.inf,
        priority: int = 0,
        tag: int | None = None,
    ) -> None:
        """Send an unreliable datagram (RFC 9221), waiting while the queue is full.

        It may be lost or arrive out of order, but never in part.  The queue holds
        ``TransportConfig.datagram_queue_length`` datagrams.  :meth:`statistics` counts lost
        datagrams (``datagrams_lost``) and expired ones (``datagrams_expired``).

        Args:
          data: the payload.
          expires_after: seconds from now, more than 0, until the datagram is dropped if it has
            not left yet, here or in the queue.
          priority: -128 to 127; higher ones leave first.
          tag: 0 to 2**62 - 1; :meth:`lost_datagrams` gives it if the datagram is lost.

        Cancellation: the datagram was not sent.

        Raises:
          DatagramTooLarge: larger than :attr:`max_datagram_size`.
          DatagramsUnsupported: the peer takes no datagrams, not even empty ones.
          TypeError: `data` is not bytes-like.
          ValueError: `expires_after`, `priority` or `tag` is out of range.
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        expires_at = expiry(expires_after, priority)
        number = tag_number(tag)
        await trio.lowlevel.checkpoint()
        payload = self._check_datagram(data)
        while not self._has_datagram_room():
            self._engine.want_datagram_room()
            with trio.CancelScope(deadline=expires_at):
                await self._wait_for_progress(self._send_lot, self._has_datagram_room)
            payload = self._check_datagram(payload)
            if trio.current_time() >= expires_at:
                self._engine.expire_datagram(number)
                self._touch()
                return
        self._engine.send_datagram(payload, priority, expires_at, trio.current_time(), number)
        self._touch()

    def _has_datagram_room(self) -> bool:
        return self._engine.has_datagram_room(trio.current_time())

    def send_datagram_nowait(
        self,
        data: bytes | bytearray | memoryview,
        *,
        expires_after: float = math.inf,
        priority: int = 0,
        tag: int | None = None,
    ) -> None:
        """Send an unreliable datagram; if the queue is full, one is dropped instead of waiting.

        The oldest one of the lowest priority is dropped, or this one if its priority is lower
        still.  Drops are counted in :meth:`statistics`.  Arguments and errors are those of
        :meth:`send_datagram`.
        """
        expires_at = expiry(expires_after, priority)
        number = tag_number(tag)
        payload = self._check_datagram(data)
        self._engine.send_datagram(payload, priority, expires_at, trio.current_time(), number)
        self._touch()

    async def receive_datagram(self) -> bytes:
        """The next datagram from the peer.

        At most ``datagram_queue_length`` datagrams are kept; when more arrive unread, the oldest
        are dropped and counted.  Datagrams that arrived before the end of the connection can
        still be received.

        Cancellation: no datagram is lost.

        Raises:
          trio.ClosedResourceError: the connection was closed here.
          ConnectionBroken: the connection ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._datagrams:
            if self._is_closing:
                raise self._ended_error()
            await self._wait(self._datagram_lot)
        return self._datagrams.popleft()

    def lost_datagrams(self) -> AsyncIterator[int]:
        """Iterate over the tags of datagrams that will not arrive, as far as is known here.

        ::

            async for sensor in connection.lost_datagrams():
                await connection.send_datagram(newest[sensor], tag=sensor)

        Only datagrams sent with a `tag` are reported, each at most once: when its packet is
        declared lost (RFC 9002 section 6), when it expires, when it is dropped from the queue, and
        when a server refuses it as early data.  A packet that was only late has arrived after all
        (RFC 9221 section 5.2), so a receiver must be ready for copies.  A loss is noticed a round
        trip after sending at the earliest, and later where few packets follow.  Nothing is said
        of datagrams that are under way when the connection ends.

        The newest 16,384 tags are kept until they are taken.  Each is given to one task.  The
        iteration ends when the connection is closed in good order; any other end raises
        :class:`ConnectionBroken`.

        Cancellation: no tag is lost.
        """
        return UntilClosed(self._lost_datagram)

    async def _lost_datagram(self) -> int:
        await trio.lowlevel.checkpoint()
        while not self._lost_tags:
            if self._is_closing:
                raise self._ended_error()
            await self._wait(self._lost_lot)
        tag: int = self._lost_tags.popleft()
        return tag


def _as_bytes(data: bytes | bytearray | memoryview) -> bytes:
    try:
        return bytes(memoryview(data))  # (bytes(5) would be five zeros)
    except TypeError:
        raise bytes_needed(data, "a datagram") from None
