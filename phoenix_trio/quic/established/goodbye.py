"""Recognises the peer's CONNECTION_CLOSE after our own was sent.

Floor 1, sans-IO.  A peer may answer a CONNECTION_CLOSE with one of its own before it
drains (RFC 9000 section 10.2.2); ours does.  That is how the side which closes learns
that the other one knows.  The connection with its keys is freed when it is closed, so
this keeps the one key that opens a 1-RTT packet, for as long as an answer is waited for.
"""

from __future__ import annotations

from ..wire import frames
from ..wire.errors import TransportError
from ..wire.protection import HeaderKey, NotAuthentic, PacketKey, open_header

__all__ = ["GoodbyeReader", "has_close"]

#: Packets which are looked into at most: late ones come before the answer, and each costs an
#: attempt to open it.
_PACKETS_MAX = 1000

#: Frames which are skipped on the way to a CONNECTION_CLOSE.
_ACKNOWLEDGEMENTS_MAX = 4

#: Bytes of such a frame which are looked at; our own acknowledgements have 64 at most.
_BYTES_MAX = 128

_PADDING_AND_PING = bytes((frames.PADDING, frames.PING))


class GoodbyeReader:
    """Opens 1-RTT packets of the peer, to see whether it closes the connection, too.

    Args:
      key: the peer's present key.
      header_key: the one which protects its headers.
      phase: its key phase bit.
      expected: the next packet number which is expected (RFC 9000 appendix A.3).
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
                return False  # the peer updates its keys just now: we do without its answer
            payload = self._key.decrypt(number, header, datagram[body_at:])
        except NotAuthentic:
            return False
        return has_close(payload)


def has_close(payload: bytes) -> bool:
    """Whether a packet closes the connection, as far as its first frames say.

    A CONNECTION_CLOSE comes after padding, PING and ACK at most; behind other frames it is
    not looked for.  Nor is it behind an acknowledgement of very many ranges, or behind
    several: what a packet costs is bounded.
    """
    for _ in range(_ACKNOWLEDGEMENTS_MAX + 1):
        # (The late packets are probes of the path MTU as a rule: 64 KiB of padding.)
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
