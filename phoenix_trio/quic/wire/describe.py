"""Describes frames for qlog (qlog 0.3, the QUIC event definitions).

Floor 0.  Only traces use it, so it favours one plain table over speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from . import frames
from .errors import TransportError
from .frames import Data

__all__ = ["describe_frames"]

Description: TypeAlias = dict[str, Any]
_Described: TypeAlias = tuple[Description, int]


def describe_frames(plain: Data, ack_delay_exponent: int = 3) -> list[Description]:
    """The frames of a packet's payload, in their order.

    Never raises: when the payload cannot be parsed any further, the last description is of an
    unknown frame.

    Args:
      plain: the payload.
      ack_delay_exponent: the exponent of the sender; it scales the delay of its ACK frames.
    """
    described: list[Description] = []
    at = 0
    while at < len(plain):
        kind = plain[at]
        try:
            if not frames.IS_KNOWN[kind]:
                raise frames.unknown_type(plain, at)
            if kind == frames.ACK or kind == frames.ACK_ECN:
                description, reached = _ack(plain, at, ack_delay_exponent)
            else:
                description, reached = _DESCRIBERS[kind](plain, at)
        except TransportError as error:
            raw_type = kind if frames.IS_KNOWN[kind] else error.frame_type
            described.append(
                {
                    "frame_type": "unknown",
                    "raw_frame_type": raw_type,
                    "raw_length": len(plain) - at,
                }
            )
            break
        described.append(description)
        at = reached
    return described


def _ack(plain: Data, at: int, exponent: int) -> _Described:
    _, delay, ranges, _, at = frames.parse_ack(plain, at)
    return {
        "ack_delay": (delay << exponent) / 1_000_000 * 1000,  # milliseconds
        "acked_ranges": [[start, stop - 1] for start, stop in reversed(ranges)],
        "frame_type": "ack",
    }, at


def _padding(plain: Data, at: int) -> _Described:
    return {"frame_type": "padding"}, frames.parse_padding(plain, at)


def _ping(plain: Data, at: int) -> _Described:
    return {"frame_type": "ping"}, at + 1


def _reset_stream(plain: Data, at: int) -> _Described:
    stream_id, code, final_size, at = frames.parse_reset_stream(plain, at)
    return {
        "error_code": code,
        "final_size": final_size,
        "frame_type": "reset_stream",
        "stream_id": stream_id,
    }, at


def _stop_sending(plain: Data, at: int) -> _Described:
    stream_id, code, at = frames.parse_stop_sending(plain, at)
    return {"error_code": code, "frame_type": "stop_sending", "stream_id": stream_id}, at


def _crypto(plain: Data, at: int) -> _Described:
    offset, begin, end = frames.parse_crypto(plain, at)
    return {"frame_type": "crypto", "length": end - begin, "offset": offset}, end


def _new_token(plain: Data, at: int) -> _Described:
    token, at = frames.parse_new_token(plain, at)
    return {"frame_type": "new_token", "length": len(token), "token": token.hex()}, at


def _stream(plain: Data, at: int) -> _Described:
    stream_id, offset, begin, end, fin = frames.parse_stream(plain, at)
    return {
        "fin": fin == 1,
        "frame_type": "stream",
        "length": end - begin,
        "offset": offset,
        "stream_id": stream_id,
    }, end


def _max_data(plain: Data, at: int) -> _Described:
    limit, at = frames.parse_max_data(plain, at)
    return {"frame_type": "max_data", "maximum": limit}, at


def _max_stream_data(plain: Data, at: int) -> _Described:
    stream_id, limit, at = frames.parse_max_stream_data(plain, at)
    return {"frame_type": "max_stream_data", "maximum": limit, "stream_id": stream_id}, at


def _stream_type(is_unidirectional: bool) -> str:
    return "unidirectional" if is_unidirectional else "bidirectional"


def _max_streams(plain: Data, at: int) -> _Described:
    stream_type = _stream_type(plain[at] == frames.MAX_STREAMS_UNI)
    limit, at = frames.parse_max_streams(plain, at)
    return {"frame_type": "max_streams", "maximum": limit, "stream_type": stream_type}, at


def _data_blocked(plain: Data, at: int) -> _Described:
    limit, at = frames.parse_data_blocked(plain, at)
    return {"frame_type": "data_blocked", "limit": limit}, at


def _stream_data_blocked(plain: Data, at: int) -> _Described:
    stream_id, limit, at = frames.parse_stream_data_blocked(plain, at)
    return {"frame_type": "stream_data_blocked", "limit": limit, "stream_id": stream_id}, at


def _streams_blocked(plain: Data, at: int) -> _Described:
    stream_type = _stream_type(plain[at] == frames.STREAMS_BLOCKED_UNI)
    limit, at = frames.parse_streams_blocked(plain, at)
    return {"frame_type": "streams_blocked", "limit": limit, "stream_type": stream_type}, at


def _new_connection_id(plain: Data, at: int) -> _Described:
    sequence, retire_prior_to, cid, token, at = frames.parse_new_connection_id(plain, at)
    return {
        "connection_id": cid.hex(),
        "frame_type": "new_connection_id",
        "length": len(cid),
        "reset_token": token.hex(),
        "retire_prior_to": retire_prior_to,
        "sequence_number": sequence,
    }, at


def _retire_connection_id(plain: Data, at: int) -> _Described:
    sequence, at = frames.parse_retire_connection_id(plain, at)
    return {"frame_type": "retire_connection_id", "sequence_number": sequence}, at


def _path_challenge(plain: Data, at: int) -> _Described:
    data, at = frames.parse_path_challenge(plain, at)
    return {"data": data.hex(), "frame_type": "path_challenge"}, at


def _path_response(plain: Data, at: int) -> _Described:
    data, at = frames.parse_path_response(plain, at)
    return {"data": data.hex(), "frame_type": "path_response"}, at


def _close(plain: Data, at: int) -> _Described:
    code, frame_type, reason, at = frames.parse_close(plain, at)
    description: Description = {
        "error_code": code,
        "error_space": "application" if frame_type < 0 else "transport",
        "frame_type": "connection_close",
        "raw_error_code": code,
        "reason": reason,
    }
    if frame_type >= 0:
        description["trigger_frame_type"] = frame_type
    return description, at


def _handshake_done(plain: Data, at: int) -> _Described:
    return {"frame_type": "handshake_done"}, frames.parse_handshake_done(plain, at)


def _datagram(plain: Data, at: int) -> _Described:
    begin, end = frames.parse_datagram(plain, at)
    return {"frame_type": "datagram", "length": end - begin}, end


_DESCRIBERS: Final[dict[int, Callable[[Data, int], _Described]]] = {
    frames.PADDING: _padding,
    frames.PING: _ping,
    frames.RESET_STREAM: _reset_stream,
    frames.STOP_SENDING: _stop_sending,
    frames.CRYPTO: _crypto,
    frames.NEW_TOKEN: _new_token,
    **{frames.STREAM + bits: _stream for bits in range(8)},
    frames.MAX_DATA: _max_data,
    frames.MAX_STREAM_DATA: _max_stream_data,
    frames.MAX_STREAMS_BIDI: _max_streams,
    frames.MAX_STREAMS_UNI: _max_streams,
    frames.DATA_BLOCKED: _data_blocked,
    frames.STREAM_DATA_BLOCKED: _stream_data_blocked,
    frames.STREAMS_BLOCKED_BIDI: _streams_blocked,
    frames.STREAMS_BLOCKED_UNI: _streams_blocked,
    frames.NEW_CONNECTION_ID: _new_connection_id,
    frames.RETIRE_CONNECTION_ID: _retire_connection_id,
    frames.PATH_CHALLENGE: _path_challenge,
    frames.PATH_RESPONSE: _path_response,
    frames.TRANSPORT_CLOSE: _close,
    frames.APPLICATION_CLOSE: _close,
    frames.HANDSHAKE_DONE: _handshake_done,
    frames.DATAGRAM: _datagram,
    frames.DATAGRAM | frames.DATAGRAM_LEN: _datagram,
}
