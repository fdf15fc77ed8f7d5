"""Recognises the peer's CONNECTION_CLOSE after our own was sent.

Floor 1, sans-IO.  A peer may answer a CONNECTION_CLOSE with one of its own before it drains (RFC
9000 section 10.2.2); our implementation does.  The answer tells the closing side that the peer
knows of the end.  The connection and its keys are freed when it is closed, so a
:class:`GoodbyeReader` keeps the one key that opens a 1-RTT packet while an answer is awaited.
"""

from __future__ import annotations

from ..wire import frames
from ..wire.errors import TransportError
from ..wire.protection import HeaderKey, NotAuthentic, PacketKey, open_header

__all__ = ["GoodbyeReader", "has_close"]

#: The most packets examined: late ones come before the answer, and each costs an attempt to open
#: it.
_PACKETS_MAX = 1000

#: The most acknowledgements skipped on the way to a CONNECTION_CLOSE.
_ACKNOWLEDGEMENTS_MAX = 4

#: The most bytes of an ACK frame examined; our own ACK frames have at most 64.
_BYTES_MAX = 128

_PADDING_AND_PING = bytes((frames.PADDING, frames.PING))


class GoodbyeReader:
    """Opens 1-RTT packets of the peer, to see whether it closes the connection, too.

    Args:
      key: the peer's present key.
      header_key: the key of its header protection.
      phase: its key phase bit.
      expected: the next expected packet number (RFC 9000 appendix A.3).
      id_length: bytes of our connection IDs.
    """

    __slots__ = ("_expected", "_header_key", "_id_length", "_key", "_left", "_phase")

    def __init__(
        self, key: PacketKey, header_key: HeaderKey, phase: int, expected: int, id_length: int
    ) -> None:
        self._key = key
        self._header_key = header_key
        self._phase = phase
        self._expected = expected
        self._id_length = id_length
        self._left = _PACKETS_MAX

    def __call__(self, datagram: bytes) -> bool:
        """Whether a datagram is an authentic packet with a CONNECTION_CLOSE frame."""
        if not self._left or not datagram or datagram[0] & 0x80:
            return False
        self._left -= 1
        try:
            first, number, header, body_at = open_header(
                datagram,
                0,
                1 + self._id_length,
                len(datagram),
                self._header_key,
                self._expected,
            )
            if first >> 2 & 1 != self._phase:
                return False  # the peer is updating its keys: its answer is lost
            payload = self._key.decrypt(number, header, datagram[body_at:])
        except NotAuthentic:
            return False
        return has_close(payload)


def has_close(payload: bytes) -> bool:
    """Whether the first frames of a packet close the connection.

    Only padding, PING and ACK frames are skipped to find a CONNECTION_CLOSE.  It is not found
    behind other frames, behind an acknowledgement of very many ranges, or behind several
    acknowledgements; so the cost of a packet is bounded.
    """
    for _ in range(_ACKNOWLEDGEMENTS_MAX + 1):
        # (Late packets are mostly probes of the path MTU: 64 KiB of padding.)
        payload = payload.lstrip(_PADDING_AND_PING)
        if not payload:
            return False
        kind = payload[0]
        if kind & 0xFE == frames.TRANSPORT_CLOSE:
            return True
        if kind & 0xFE != frames.ACK:
            return False
        try:
            end = frames.parse_ack(payload[:_BYTES_MAX], 0)[-1]
        except TransportError:
            return False
        payload = payload[end:]
    return False
