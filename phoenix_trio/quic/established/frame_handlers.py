"""Handles the frames of authenticated 1-RTT and 0-RTT packets (RFC 9000 section 19).

Floor 1, sans-IO.
"""

from __future__ import annotations

from typing import Final

from .. import events
from ..wire import frames
from ..wire.errors import CRYPTO_ERROR, PROTOCOL_VIOLATION, TransportError
from ..wire.frames import (
    ACK,
    CRYPTO,
    DATA_BLOCKED,
    DATAGRAM,
    HANDSHAKE_DONE,
    IS_ALLOWED_IN_0RTT,
    MAX_DATA,
    MAX_STREAM_DATA,
    MAX_STREAMS_BIDI,
    MAX_STREAMS_UNI,
    NEW_CONNECTION_ID,
    NEW_TOKEN,
    PADDING,
    PATH_CHALLENGE,
    PATH_RESPONSE,
    PING,
    RESET_STREAM,
    RETIRE_CONNECTION_ID,
    STOP_SENDING,
    STREAM,
    STREAM_DATA_BLOCKED,
    STREAMS_BLOCKED_BIDI,
    STREAMS_BLOCKED_UNI,
    TRANSPORT_CLOSE,
    parse_ack,
    parse_stream,
)
from .crypto_stream import CryptoStreamError
from .state import PeerClose, State

__all__ = ["ELICITING", "NON_PROBING", "take_frames"]

#: The properties of a packet that :func:`take_frames` returns.
ELICITING: Final = 1
NON_PROBING: Final = 2

_BOTH: Final = 3

#: TLS (RFC 8446): the type of a NewSessionTicket, and the alert for an unexpected message.
_NEW_SESSION_TICKET: Final = 4
_UNEXPECTED_MESSAGE: Final = 10

#: The largest DATAGRAM frame that this side takes (RFC 9221 section 3), header included.
_DATAGRAM_LIMIT: Final = 65_535


def take_frames(s: State, plain: bytes, now: float, is_early: bool = False) -> int:
    """Handle all frames of a packet.

    Args:
      s: the connection.
      plain: the payload.
      now: the time.
      is_early: whether it is a 0-RTT packet, where some frames are forbidden.

    Returns :data:`ELICITING` if the packet is to be acknowledged, with :data:`NON_PROBING` if it
    has a non-probing frame (RFC 9000 section 9.1).

    Raises:
      TransportError: the peer broke the protocol.
    """
    at = 0
    length = len(plain)
    if not length:
        raise TransportError(PROTOCOL_VIOLATION, PADDING, "Packet contains no frames")
    flags = 0
    streams = s.streams
    while at < length:
        kind = plain[at]
        if is_early and not (kind < 0x40 and IS_ALLOWED_IN_0RTT[kind]):
            if kind >= 0x40 or not frames.IS_KNOWN[kind]:
                raise frames.unknown_type(plain, at)
            raise TransportError(PROTOCOL_VIOLATION, kind, "Unexpected frame type")
        if kind & 0xF8 == STREAM:
            stream_id, offset, begin, at, fin = parse_stream(plain, at)
            try:
                streams.take_stream(plain, stream_id, offset, begin, at, fin)
            except TransportError as error:
                error.frame_type = kind  # Which of the eight types it was (section 19.8).
                raise
            flags = _BOTH
        elif kind & 0xFE == ACK:
            at = _take_ack(s, plain, at, now)
            flags |= NON_PROBING
        elif kind == PADDING:
            at = frames.parse_padding(plain, at)
        elif kind == PING:
            at = frames.parse_ping(plain, at)
            flags = _BOTH
        elif kind == MAX_DATA:
            limit, at = frames.parse_max_data(plain, at)
            streams.take_max_data(limit)
            flags = _BOTH
        elif kind == MAX_STREAM_DATA:
            stream_id, limit, at = frames.parse_max_stream_data(plain, at)
            streams.take_max_stream_data(stream_id, limit)
            flags = _BOTH
        elif kind & 0xFE == MAX_STREAMS_BIDI:
            limit, at = frames.parse_max_streams(plain, at)
            streams.take_max_streams(limit, kind == MAX_STREAMS_UNI)
            flags = _BOTH
        elif kind & 0xFE == DATAGRAM:
            at = _take_datagram(s, plain, at)
            flags = _BOTH
        else:
            at, more = _take_other(s, plain, at, kind)
            flags |= more
            if s.peer_close is not None:
                return flags
    return flags


def _take_ack(s: State, plain: bytes, at: int, now: float) -> int:
    """Take an ACK frame (RFC 9000 section 19.3); returns where it ends."""
    _, delay, ranges, counts, at = parse_ack(plain, at)
    recovery = s.recovery
    recovery.on_ack(ranges, (delay << s.ack_delay_exponent) / 1_000_000, now)
    if s.ecn.on_acknowledged(
        recovery.newly_acknowledged, counts, is_newest=recovery.ack_was_newest
    ):
        # RFC 9002 section 7.1: treated as a loss of the newest packet acknowledged by the frame.
        s.control.on_congestion(now=now, sent_time=recovery.newest_sent_time)
    if s.trace is not None and recovery.newly_acknowledged:
        s.trace.log_event(
            category="recovery",
            event="metrics_updated",
            data=recovery.metrics(with_rtt=s.rtt.has_sample),
        )
    return at


def _take_datagram(s: State, plain: bytes, at: int) -> int:
    """Take a DATAGRAM frame (RFC 9221 section 4); returns where it ends."""
    begin, end = frames.parse_datagram(plain, at)
    if not s.config.enable_datagrams or end - at > _DATAGRAM_LIMIT:
        raise TransportError(PROTOCOL_VIOLATION, plain[at], "Unexpected DATAGRAM frame")
    s.datagrams_received += 1
    s.events.append(events.DatagramReceived(plain[begin:end]))
    return end


def _take_other(s: State, plain: bytes, at: int, kind: int) -> tuple[int, int]:
    """Take a rare frame; returns where it ends, and the flags of its packet."""
    flags = _BOTH
    streams = s.streams
    if kind == RESET_STREAM:
        stream_id, code, final_size, at = frames.parse_reset_stream(plain, at)
        streams.take_reset(stream_id, code, final_size)
    elif kind == STOP_SENDING:
        stream_id, code, at = frames.parse_stop_sending(plain, at)
        streams.take_stop_sending(stream_id, code)
    elif kind == DATA_BLOCKED:
        _, at = frames.parse_data_blocked(plain, at)
    elif kind == STREAM_DATA_BLOCKED:
        stream_id, _, at = frames.parse_stream_data_blocked(plain, at)
        streams.take_stream_data_blocked(stream_id)
    elif kind & 0xFE == STREAMS_BLOCKED_BIDI:
        limit, at = frames.parse_streams_blocked(plain, at)
        streams.take_streams_blocked(limit, kind == STREAMS_BLOCKED_UNI)
    elif kind == CRYPTO:
        at = _take_crypto(s, plain, at)
    elif kind == NEW_CONNECTION_ID:
        number, retire, cid, token, at = frames.parse_new_connection_id(plain, at)
        for reserved in s.peer_ids.take(number, retire, cid, token):
            for path in s.paths.all:
                if path.reserved_id == reserved:
                    path.reserved_id = -1
        s.paths.has_frames = True  # (Probes of other paths may have waited for it.)
        flags = ELICITING
    elif kind == RETIRE_CONNECTION_ID:
        number, at = frames.parse_retire_connection_id(plain, at)
        s.local_ids.retire(number, s.arrival_cid, s.now)
    elif kind == PATH_CHALLENGE:
        data, at = frames.parse_path_challenge(plain, at)
        assert s.arrival_path is not None
        s.arrival_path.take_challenge(data)
        s.paths.has_frames = True
        flags = ELICITING
    elif kind == PATH_RESPONSE:
        data, at = frames.parse_path_response(plain, at)
        s.paths.take_response(data, s.peer_ids)
        flags = ELICITING
    elif kind == HANDSHAKE_DONE:
        at = frames.parse_handshake_done(plain, at)
        if not s.is_client:
            raise TransportError(PROTOCOL_VIOLATION, kind, "Clients must not send HANDSHAKE_DONE")
        if s.on_handshake_done is not None:
            s.on_handshake_done()
    elif kind == NEW_TOKEN:
        token, at = frames.parse_new_token(plain, at)
        if not s.is_client:
            raise TransportError(PROTOCOL_VIOLATION, kind, "Clients must not send NEW_TOKEN")
        if s.on_token is not None:
            s.on_token(token)
    elif kind & 0xFE == TRANSPORT_CLOSE:
        code, frame_type, reason, at = frames.parse_close(plain, at)
        s.peer_close = PeerClose(code, frame_type, reason)
        flags = NON_PROBING  # RFC 9000 section 13.2.1
    else:
        raise frames.unknown_type(plain, at)
    return at, flags


def _take_crypto(s: State, plain: bytes, at: int) -> int:
    """Take a CRYPTO frame (RFC 9000 section 19.6), a session ticket; returns where it ends."""
    offset, begin, end = frames.parse_crypto(plain, at)
    if begin == end:
        return end
    if not s.is_client:
        # A client sends no message after its handshake (RFC 9001 sections 4.4 and 6).
        raise TransportError(
            CRYPTO_ERROR + _UNEXPECTED_MESSAGE,
            CRYPTO,
            "CRYPTO data from a client after the handshake",
        )
    receiver = s.crypto_receive
    try:
        if receiver.receive(offset, plain[begin:end]):
            message = receiver.next_message()
            while message is not None:
                # A client need not use tickets (RFC 8446 section 4.6.1).
                if s.on_ticket is not None and (
                    message[0] != _NEW_SESSION_TICKET or s.ticket_limit.allows(s.now)
                ):
                    s.on_ticket(message)
                message = receiver.next_message()
    except CryptoStreamError as error:
        raise TransportError(error.error_code, CRYPTO, str(error)) from None
    return end
