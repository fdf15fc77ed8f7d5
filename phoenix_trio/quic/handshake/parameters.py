"""Transport parameters: what this side announces, and what the peer's say.

Floor 1, sans-IO (RFC 9000 sections 7.3, 7.4 and 18).  Malformed ones, and values which
no peer may announce, end the connection.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from typing import Final

from ...config import SMALLEST_UDP_PAYLOAD
from ..established.parameters import PeerParameters, PreferredAddress
from ..wire import frames
from ..wire.errors import (
    TRANSPORT_PARAMETER_ERROR,
    VERSION_NEGOTIATION_ERROR,
    TransportError,
)
from ..wire.varint import decode_varint, encode_varint

__all__ = ["HandshakeParameters", "LocalParameters", "check_parameters", "parse_parameters"]

#: RFC 9000 section 18.2.
_ORIGINAL_DESTINATION_CID: Final = 0x00
_MAX_IDLE_TIMEOUT: Final = 0x01
_STATELESS_RESET_TOKEN: Final = 0x02
_MAX_UDP_PAYLOAD_SIZE: Final = 0x03
_MAX_DATA: Final = 0x04
_MAX_STREAM_DATA_BIDI_LOCAL: Final = 0x05
_MAX_STREAM_DATA_BIDI_REMOTE: Final = 0x06
_MAX_STREAM_DATA_UNI: Final = 0x07
_MAX_STREAMS_BIDI: Final = 0x08
_MAX_STREAMS_UNI: Final = 0x09
_ACK_DELAY_EXPONENT: Final = 0x0A
_MAX_ACK_DELAY: Final = 0x0B
_DISABLE_ACTIVE_MIGRATION: Final = 0x0C
_PREFERRED_ADDRESS: Final = 0x0D
_ACTIVE_CONNECTION_ID_LIMIT: Final = 0x0E
_INITIAL_SOURCE_CID: Final = 0x0F
_RETRY_SOURCE_CID: Final = 0x10
#: RFC 9368 section 3.
_VERSION_INFORMATION: Final = 0x11
#: RFC 9221 section 3.
_MAX_DATAGRAM_FRAME_SIZE: Final = 0x20

_INTEGERS: Final = frozenset(
    (
        _MAX_IDLE_TIMEOUT,
        _MAX_UDP_PAYLOAD_SIZE,
        _MAX_DATA,
        _MAX_STREAM_DATA_BIDI_LOCAL,
        _MAX_STREAM_DATA_BIDI_REMOTE,
        _MAX_STREAM_DATA_UNI,
        _MAX_STREAMS_BIDI,
        _MAX_STREAMS_UNI,
        _ACK_DELAY_EXPONENT,
        _MAX_ACK_DELAY,
        _ACTIVE_CONNECTION_ID_LIMIT,
        _MAX_DATAGRAM_FRAME_SIZE,
    )
)

#: Announced by this side besides its configuration.
ACK_DELAY_EXPONENT: Final = 3
_OWN_MAX_ACK_DELAY: Final = 25  # milliseconds
_OWN_CONNECTION_ID_LIMIT: Final = 8

#: Seconds that stand for no idle timeout: 31 years.
_ENDLESS: Final = 1e9


class LocalParameters:
    """The transport parameters that this side announces.

    Args:
      idle_timeout: in seconds; infinite: there is none.
      max_data: bytes of credit of the connection.
      max_stream_data: bytes of credit of each stream.
      max_streams_bidi: bidirectional streams which the peer may open.
      max_streams_uni: unidirectional streams which the peer may open.
      max_datagram_frame_size: bytes of a DATAGRAM frame; 0: none is taken.
      max_udp_payload_size: bytes of a UDP payload.
    """

    __slots__ = (
        "idle_timeout",
        "max_data",
        "max_datagram_frame_size",
        "max_stream_data",
        "max_streams_bidi",
        "max_streams_uni",
        "max_udp_payload_size",
    )

    def __init__(
        self,
        *,
        idle_timeout: float,
        max_data: int,
        max_stream_data: int,
        max_streams_bidi: int,
        max_streams_uni: int,
        max_datagram_frame_size: int,
        max_udp_payload_size: int = 65_527,
    ) -> None:
        self.idle_timeout: float = idle_timeout
        self.max_data: int = max_data
        self.max_stream_data: int = max_stream_data
        self.max_streams_bidi: int = max_streams_bidi
        self.max_streams_uni: int = max_streams_uni
        self.max_datagram_frame_size: int = max_datagram_frame_size
        self.max_udp_payload_size: int = max_udp_payload_size

    def build(
        self,
        *,
        source_cid: bytes,
        version: int,
        versions: Sequence[int],
        original_destination_cid: bytes | None = None,
        retry_source_cid: bytes | None = None,
        reset_token: bytes | None = None,
        preferred_address: bytes | None = None,
    ) -> bytes:
        """The content of the TLS extension.

        Args:
          source_cid: of this side's first packet (RFC 9000 section 7.3).
          version: the QUIC version in use.
          versions: the available ones, in the order of preference.
          original_destination_cid: server: of the client's first packet.
          retry_source_cid: server: of its Retry packet, if there was one.
          reset_token: server: of `source_cid`.
          preferred_address: server: the content of this parameter, if there is one.
        """
        # In whole milliseconds; 0 says that there is no idle timeout.
        endless = self.idle_timeout >= _ENDLESS
        parts: list[bytes] = []
        for kind, number in (
            (_MAX_IDLE_TIMEOUT, 0 if endless else max(1, int(self.idle_timeout * 1000))),
            (_MAX_UDP_PAYLOAD_SIZE, self.max_udp_payload_size),
            (_MAX_DATA, self.max_data),
            (_MAX_STREAM_DATA_BIDI_LOCAL, self.max_stream_data),
            (_MAX_STREAM_DATA_BIDI_REMOTE, self.max_stream_data),
            (_MAX_STREAM_DATA_UNI, self.max_stream_data),
            (_MAX_STREAMS_BIDI, self.max_streams_bidi),
            (_MAX_STREAMS_UNI, self.max_streams_uni),
            (_ACK_DELAY_EXPONENT, ACK_DELAY_EXPONENT),
            (_MAX_ACK_DELAY, _OWN_MAX_ACK_DELAY),
            (_ACTIVE_CONNECTION_ID_LIMIT, _OWN_CONNECTION_ID_LIMIT),
            (_MAX_DATAGRAM_FRAME_SIZE, self.max_datagram_frame_size),
        ):
            value = encode_varint(number)
            parts.append(bytes((kind, len(value))) + value)
        information = b"".join([each.to_bytes(4, "big") for each in (version, *versions)])
        for kind, content in (
            (_INITIAL_SOURCE_CID, source_cid),
            (_VERSION_INFORMATION, information),
            (_ORIGINAL_DESTINATION_CID, original_destination_cid),
            (_RETRY_SOURCE_CID, retry_source_cid),
            (_STATELESS_RESET_TOKEN, reset_token),
            (_PREFERRED_ADDRESS, preferred_address),
        ):
            if content is not None:
                parts.append(bytes((kind, len(content))) + content)
        return b"".join(parts)


class HandshakeParameters:
    """The peer's parameters, with those which only the handshake needs."""

    __slots__ = (
        "available_versions",
        "chosen_version",
        "initial_source_cid",
        "original_destination_cid",
        "peer",
        "retry_source_cid",
    )

    def __init__(self) -> None:
        self.peer: PeerParameters = PeerParameters()
        self.initial_source_cid: bytes | None = None
        self.original_destination_cid: bytes | None = None
        self.retry_source_cid: bytes | None = None
        self.chosen_version: int = 0
        """From the version information; 0: there is none."""
        self.available_versions: tuple[int, ...] = ()


def _error(reason: str, code: int = TRANSPORT_PARAMETER_ERROR) -> TransportError:
    return TransportError(code, frames.CRYPTO, reason)


def parse_parameters(data: bytes, *, of_server: bool) -> HandshakeParameters:
    """Parse the content of the TLS extension, and check each value by itself.

    Args:
      data: what the peer has sent.
      of_server: whether the peer is the server.

    Raises:
      TransportError: TRANSPORT_PARAMETER_ERROR.
    """
    result = HandshakeParameters()
    seen: set[int] = set()
    at, size = 0, len(data)
    try:
        while at < size:
            kind, length = data[at], data[at + 1]
            if kind < 0x40 and length < 0x40:
                at += 2  # (as nearly all are)
            else:
                kind, at = decode_varint(data, at)
                length, at = decode_varint(data, at)
            end = at + length
            if end > size:
                raise IndexError("cut short")
            if kind in seen:
                raise _error("A transport parameter comes twice")
            seen.add(kind)
            if kind in _INTEGERS:
                number, at = decode_varint(data, at)
                if at != end:
                    raise _error("Could not parse QUIC transport parameters")
                _take_number(result.peer, kind, number)
            else:
                _take_content(result, kind, data[at:end], of_server)
            at = end
    except IndexError:
        raise _error("Could not parse QUIC transport parameters") from None
    return result


def _take_number(peer: PeerParameters, kind: int, number: int) -> None:
    if kind == _MAX_IDLE_TIMEOUT:
        # 0 means that there is none.
        peer.max_idle_timeout = number / 1000 if number else math.inf
    elif kind == _MAX_UDP_PAYLOAD_SIZE:
        if number < SMALLEST_UDP_PAYLOAD:
            raise _error(f"max_udp_payload_size must be >= {SMALLEST_UDP_PAYLOAD}")
        peer.max_udp_payload_size = number
    elif kind == _MAX_DATA:
        peer.max_data = number
    elif kind == _MAX_STREAM_DATA_BIDI_LOCAL:
        peer.max_stream_data_bidi_local = number
    elif kind == _MAX_STREAM_DATA_BIDI_REMOTE:
        peer.max_stream_data_bidi_remote = number
    elif kind == _MAX_STREAM_DATA_UNI:
        peer.max_stream_data_uni = number
    elif kind in (_MAX_STREAMS_BIDI, _MAX_STREAMS_UNI):
        if number > frames.STREAMS_MAX:
            raise _error("initial_max_streams cannot exceed 2^60")
        if kind == _MAX_STREAMS_BIDI:
            peer.max_streams_bidi = number
        else:
            peer.max_streams_uni = number
    elif kind == _ACK_DELAY_EXPONENT:
        if number > 20:
            raise _error("ack_delay_exponent must be <= 20")
        peer.ack_delay_exponent = number
    elif kind == _MAX_ACK_DELAY:
        if number >= 1 << 14:
            raise _error("max_ack_delay must be < 2^14")
        peer.max_ack_delay = number / 1000
    elif kind == _ACTIVE_CONNECTION_ID_LIMIT:
        if number < 2:
            raise _error("active_connection_id_limit must be no less than 2")
        peer.active_connection_id_limit = number
    else:
        peer.max_datagram_frame_size = number


def _take_content(result: HandshakeParameters, kind: int, content: bytes, of_server: bool) -> None:
    if kind == _INITIAL_SOURCE_CID:
        result.initial_source_cid = content
    elif kind == _VERSION_INFORMATION:
        _take_versions(result, content, of_server)
    elif kind == _DISABLE_ACTIVE_MIGRATION:
        if content:
            raise _error("Could not parse QUIC transport parameters")
        result.peer.disable_active_migration = True
    elif kind in _OF_SERVERS:
        if not of_server:
            raise _error(f"{_OF_SERVERS[kind]} is not allowed for clients")
        if kind == _ORIGINAL_DESTINATION_CID:
            result.original_destination_cid = content
        elif kind == _RETRY_SOURCE_CID:
            result.retry_source_cid = content
        elif kind == _STATELESS_RESET_TOKEN:
            if len(content) != frames.TOKEN_SIZE:
                raise _error("stateless_reset_token must have 16 bytes")
            result.peer.stateless_reset_token = content
        else:
            result.peer.preferred_address = _preferred_address(content)


#: RFC 9000 section 18.2: a client must not send these.
_OF_SERVERS: Final = {
    _ORIGINAL_DESTINATION_CID: "original_destination_connection_id",
    _RETRY_SOURCE_CID: "retry_source_connection_id",
    _STATELESS_RESET_TOKEN: "stateless_reset_token",
    _PREFERRED_ADDRESS: "preferred_address",
}


def _take_versions(result: HandshakeParameters, content: bytes, of_server: bool) -> None:
    """RFC 9368 sections 3 and 4."""
    if not content or len(content) % 4:
        raise _error("Could not parse the version information")
    chosen, *available = (
        int.from_bytes(content[at : at + 4], "big") for at in range(0, len(content), 4)
    )
    if not chosen or 0 in available:
        raise _error("The version information must not contain version 0")
    if not of_server and chosen not in available:
        raise _error("The chosen version is not among the available versions")
    result.chosen_version = chosen
    result.available_versions = result.peer.available_versions = tuple(available)


def _preferred_address(content: bytes) -> PreferredAddress:
    """RFC 9000 section 18.2, figure 22."""
    cid_at = 4 + 2 + 16 + 2 + 1
    if len(content) < cid_at:
        raise IndexError("cut short")
    cid_length = content[cid_at - 1]
    if not 1 <= cid_length <= frames.CONNECTION_ID_MAX:
        raise _error("The connection ID of the preferred address has a wrong length")
    token_at = cid_at + cid_length
    if len(content) != token_at + frames.TOKEN_SIZE:
        raise _error("Could not parse the preferred address")
    ipv4 = ipv6 = None
    if content[:4] != bytes(4):
        ipv4 = str(ipaddress.IPv4Address(content[:4])), int.from_bytes(content[4:6], "big")
    if content[6:22] != bytes(16):
        ipv6 = str(ipaddress.IPv6Address(content[6:22])), int.from_bytes(content[22:24], "big")
    return PreferredAddress(ipv4, ipv6, content[cid_at:token_at], content[token_at:])


def check_parameters(
    parameters: HandshakeParameters,
    *,
    is_client: bool,
    peer_source_cid: bytes,
    original_destination_cid: bytes,
    retry_source_cid: bytes | None,
    version: int,
) -> None:
    """Check the peer's parameters against its packets (RFC 9000 section 7.3).

    Args:
      parameters: the peer's.
      is_client: whether this side is the client.
      peer_source_cid: the source connection ID of the peer's first packet.
      original_destination_cid: client: to which it has sent its first packet.
      retry_source_cid: client: of the Retry packet, if there was one.
      version: of the packet in which the parameters came.

    Raises:
      TransportError: one of them is not what it has to be.
    """
    if parameters.initial_source_cid != peer_source_cid:
        raise _error("initial_source_connection_id does not match")
    if is_client:
        if parameters.original_destination_cid != original_destination_cid:
            raise _error("original_destination_connection_id does not match")
        if parameters.retry_source_cid != retry_source_cid:
            raise _error("retry_source_connection_id does not match")
        if parameters.peer.preferred_address is not None and not peer_source_cid:
            raise _error("preferred_address is not allowed with a zero-length connection ID")
    if parameters.chosen_version and parameters.chosen_version != version:
        raise _error("The chosen version is not the version in use", VERSION_NEGOTIATION_ERROR)
