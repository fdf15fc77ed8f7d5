"""Ends a connection: closed by either side, silently, or by an internal error.

Floor 1, sans-IO: the part of :class:`~phoenix_trio.quic.engine.Engine` for RFC 9000 section 10.
"""

from __future__ import annotations

import logging
from typing import Final

from . import events
from .application_calls import ApplicationCalls
from .established.closing import ClosingConnection, repeat_times
from .established.ecn import NOT_ECT
from .established.goodbye import GoodbyeReader
from .established.memory_budget import MemoryBudget
from .established.runs import Run, group
from .established.transmit import build_close
from .logs import bounded_logger
from .path_address import Address, display_address
from .remains import ConnectionRemains, UnreadData
from .termination import Cause, describe_unreachable, error_for
from .wire import frames
from .wire.errors import INTERNAL_ERROR, NO_ERROR

__all__ = ["ConnectionEnd"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: A CONNECTION_CLOSE has to fit into one packet with its reason: the most bytes of the reason,
#: and of the whole frame.
_MAX_REASON_BYTES: Final = 256
_CLOSE_ROOM: Final = _MAX_REASON_BYTES + 20


def clamp_reason(reason: str) -> str:
    """Shorten a reason phrase to fit into a CONNECTION_CLOSE, on a character boundary."""
    return reason.encode("utf-8", "replace")[:_MAX_REASON_BYTES].decode("utf-8", "ignore")


def _host_and_port(address: Address) -> tuple[str, int]:
    """An address in a form that can be compared: not IPv4-mapped, and without a scope."""
    host, port = display_address(address)[:2]
    return host.partition("%")[0], port


class _End:
    """The cause and the details of a connection's end.

    Args:
      cause: the side, or the event, that ended it.
      code: the error code.
      frame_type: the frame at fault; ``None``: an application has closed.
      reason: the reason phrase.
    """

    __slots__ = ("cause", "code", "frame_type", "reason")

    def __init__(self, cause: Cause, code: int, frame_type: int | None, reason: str) -> None:
        self.cause = cause
        self.code = code
        self.frame_type = frame_type
        self.reason = reason


class ConnectionEnd(ApplicationCalls):
    """The end of a connection: its cause, and the packets that tell the peer."""

    __slots__ = (
        "_close_pending",
        "_closing",
        "_end",
        "_events",
        "_is_client",
        "_is_over",
        "_is_terminated",
        "_owes_goodbye",
        "_until",
        "receive_memory",
    )

    receive_memory: MemoryBudget
    """The endpoint's memory for data not yet read by the application."""

    def __init__(self, is_client: bool) -> None:
        self._is_client = is_client
        self._events: list[events.Event] = []
        self._end: _End | None = None
        self._close_pending = False
        self._closing: ClosingConnection | None = None
        self._is_over = False
        self._is_terminated = False
        self._until: float | None = None  # the end of the closing or draining period
        self._owes_goodbye = False

    @property
    def is_client(self) -> bool:
        """Whether this side has dialled."""
        return self._is_client

    def on_fault(self, code: int, frame_type: int, reason: str) -> None:
        """End the connection after a breach of the protocol by the peer, or a TLS failure."""
        self._begin_end(Cause.LOCAL_PROTOCOL_ERROR, code, frame_type, reason)

    def on_peer_close(self, code: int, frame_type: int, reason: str) -> None:
        """Drain the connection after the peer's CONNECTION_CLOSE (RFC 9000 section 10.2.2)."""
        s = self.state
        if self._is_over:
            return
        self._close_pending = False
        self._is_over = True
        self._until = s.now + 3 * s.recovery.probe_timeout()
        if self._end is None:
            self._end = _End(Cause.PEER, code, None if frame_type < 0 else frame_type, reason)
            self._report_end()
        else:
            self._owes_goodbye = False

    def close_application(self, error_code: int, reason: str) -> None:
        """Close with an application code; buffered stream data is dropped."""
        if self._end is None:
            self._begin_end(Cause.LOCAL, error_code, None, reason)
            if not self.paths.all:
                self._terminate()

    def _begin_end(self, cause: Cause, code: int, frame_type: int | None, reason: str) -> None:
        """Start closing: the next packet carries CONNECTION_CLOSE."""
        if self._end is None and not self._is_over:
            self._end = _End(cause, code, frame_type, clamp_reason(reason))
            self._close_pending = True
            self._report_end()

    def _report_end(self) -> None:
        self.streams.free_buffers()
        end = self._end
        assert end is not None
        self._events.append(
            events.Terminated(
                error_for(
                    end.cause,
                    error_code=end.code,
                    frame_type=end.frame_type,
                    reason=end.reason,
                    handshake_complete=self.state.is_complete,
                    is_client=self._is_client,
                    failure=self.handshake.failure,
                    alpn=self.handshake.alpn,
                )
            )
        )

    def _send_close(self, now: float) -> list[Run]:
        """Send CONNECTION_CLOSE, which answers late packets from now on.

        RFC 9000 sections 10.2.1 and 10.2.3.  Nothing is sent if the peer's address has already
        been sent all bytes that are allowed before its validation (section 8.1).
        """
        end, s = self._end, self.state
        assert end is not None
        self._close_pending = False
        room = self.paths.all[0].room()
        datagrams: list[tuple[bytes, Address]] = []
        if not s.is_confirmed:
            self.handshake.close(end.code, end.frame_type, end.reason)
            datagrams += self.handshake.transmit(now)
        if end.frame_type is None:
            frame = frames.build_application_close(end.code, end.reason, _CLOSE_ROOM)
        else:
            frame = frames.build_transport_close(end.code, end.frame_type, end.reason, _CLOSE_ROOM)
        data = build_close(s, now, frame)
        if data is not None:
            datagrams.append((data, self.paths.all[0].addr))
        runs = group(datagrams) if datagrams else []
        until = now + 3 * s.recovery.probe_timeout()
        repeats: list[float] = []
        reader: GoodbyeReader | None = None
        keys = s.keys
        if (
            end.cause is Cause.LOCAL
            and s.is_complete
            and keys.receive is not None
            and keys.header_receive is not None
        ):
            repeats = repeat_times(now, self.rtt.smoothed or self.rtt.initial, self.rtt.variance)
            reader = GoodbyeReader(
                keys.receive, keys.header_receive, keys.phase, s.received.expected, len(s.local_cid)
            )
        self._is_over = True
        self._until = until
        self._closing = ClosingConnection(runs, until, repeats, reader, room)
        return self._closing.first_answer()

    def _answer_goodbye(self, now: float) -> list[Run]:
        """Confirm the peer's close with one packet before draining (RFC 9000 section 10.2.2)."""
        self._owes_goodbye = False
        path = self.paths.all[0]
        room = path.room()
        data = build_close(
            self.state, now, frames.build_transport_close(NO_ERROR, 0, "", _CLOSE_ROOM)
        )
        if data is None or len(data) > room:
            return []
        return [(data, path.addr, len(data), NOT_ECT)]

    def _close_after(self, error: Exception, now: float) -> list[Run]:
        """Send CONNECTION_CLOSE, if possible, after building packets has failed."""
        if self._end is None:
            self._on_internal_error("building packets", error)
            try:
                return self._send_close(now)
            except Exception as another:  # noqa: BLE001 - as above
                error = another
        logger.error("internal error while closing; the connection is forgotten", exc_info=error)
        self._is_over = True
        self._terminate()
        return []

    def _on_internal_error(self, doing: str, error: Exception) -> None:
        """Log an internal error, and end this connection only."""
        logger.error("internal error while %s; the connection is closed", doing, exc_info=error)
        self._begin_end(
            Cause.LOCAL_PROTOCOL_ERROR, INTERNAL_ERROR, frames.PADDING, "Internal error"
        )

    def on_stateless_reset(self, now: float) -> None:
        """End after a datagram with one of :meth:`take_reset_tokens` (RFC 9000 section 10.3.1)."""
        self._end_silently(Cause.STATELESS_RESET, NO_ERROR, "Stateless reset")

    def on_handshake_timeout(self) -> None:
        """End without a packet, since the handshake has taken too long."""
        self._end_silently(Cause.HANDSHAKE_TIMEOUT, NO_ERROR, "Handshake timeout")

    def on_unreachable(self, address: Address, destination_cid: bytes, number: int) -> bool:
        """Client: take the network's report that a packet of ours did not arrive; it may be forged.

        Args:
          address: the destination of the packet.
          destination_cid: its destination connection ID.
          number: the reason, one of :mod:`errno`.

        Returns whether this ends the connection.  It does if nothing has come from the server
        yet, and such packets were sent to that address.
        """
        paths, handshake = self.paths.all, self.handshake
        if (
            self._end is not None
            or not self._is_client
            or handshake.was_answered
            or not paths
            or _host_and_port(paths[0].addr) != _host_and_port(address)
            or destination_cid != handshake.peer_cid
        ):
            return False
        self._end_silently(Cause.UNREACHABLE, number, describe_unreachable(address, number))
        return True

    def _end_silently(self, cause: Cause, code: int, reason: str) -> None:
        if self._is_terminated:
            return
        if self._end is None:
            self._end = _End(cause, code, frames.PADDING, reason)
            self._report_end()
        self._terminate()

    def _terminate(self) -> None:
        """End the closing period, or the connection if it has none."""
        self._close_pending = False
        self._is_over = self._is_terminated = True
        self._until = None

    @property
    def is_terminated(self) -> bool:
        """Whether the closing period is over, too, so that the connection can be forgotten."""
        return self._is_terminated

    @property
    def is_over(self) -> bool:
        """Whether nothing is sent or taken any more, except for answers to late packets."""
        return self._is_over

    @property
    def is_ending(self) -> bool:
        """Whether the connection has ended, or a CONNECTION_CLOSE waits to be sent."""
        return self._end is not None

    @property
    def has_close_to_send(self) -> bool:
        """Whether CONNECTION_CLOSE has still to be sent to the peer."""
        return self._end is not None

    def repeat_close(self) -> None:
        """Do nothing: CONNECTION_CLOSE was not sent yet, or was sent a moment ago."""

    def release(self) -> tuple[ClosingConnection, ConnectionRemains]:
        """Free all memory of the connection; the engine cannot be used afterwards.

        The halves, streams and packets in flight refer to each other.  Their memory would wait
        for the cyclic garbage collector, and the memory of a server under attack would grow
        until its next run.  So this method cuts the references back.

        Returns the objects that replace it towards the driver and the application.
        """
        self.streams.free_buffers()
        remains = ConnectionRemains(
            config=self.config,
            statistics=self.statistics(
                datagrams_dropped_incoming=0,
                flow_control_stalls=0,
                stream_credit_stalls=0,
                receive_buffer_bytes=0,
            ),
            quic_version=self.quic_version,
            cipher=self.cipher,
            key_exchange=self.key_exchange,
            peer_certificate_chain=self.peer_certificate_chain,
            max_datagram_payload=self.max_datagram_payload,
            unacknowledged=self.streams.unacknowledged(),
            unread=UnreadData(self.streams.receiving.account, self.streams.unread()),
        )
        closing = self._closing or ClosingConnection([], self._until)
        self._terminate()
        self.established.release()
        self.handshake.release()
        # A caller that is just taking events finds no more.
        self._events.clear()
        return closing, remains
