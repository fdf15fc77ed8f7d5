"""Recognises the peer's CONNECTION_CLOSE after our own was sent.

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`.  A peer may answer a
CONNECTION_CLOSE with one of its own before it drains (RFC 9000 section 10.2.2); ours
does.  That is how the side which closes learns that the other one knows.  The engine
with its keys is freed when the connection is closed, so this keeps what opens a 1-RTT
packet: one key, for as long as an answer is waited for.
"""

from __future__ import annotations

from aioquic._crypto import CryptoError
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.packet import QuicFrameType, decode_packet_number

__all__ = ["GoodbyeReader", "has_close"]

#: Packets which are looked into at most: late ones come before the answer, and each costs an
#: attempt to open it.
_PACKETS_MAX = 1000

#: Frames which are skipped on the way to a CONNECTION_CLOSE, and ranges of each; our own
#: acknowledgements have a few dozen ranges at most.
_ACKNOWLEDGEMENTS_MAX = 4
_RANGES_MAX = 256

_PADDING_AND_PING = bytes((QuicFrameType.PADDING, QuicFrameType.PING))
_ACK = frozenset({int(QuicFrameType.ACK), int(QuicFrameType.ACK_ECN)})
_CLOSE = frozenset({int(QuicFrameType.TRANSPORT_CLOSE), int(QuicFrameType.APPLICATION_CLOSE)})


class GoodbyeReader:
    """Opens 1-RTT packets of the peer, to see whether it closes the connection, too.

    Args:
      keys: the peer's keys (1-RTT); what is needed of them is copied.
      expected_number: the next packet number which is expected (RFC 9000 appendix A.3).
      id_length: bytes of our connection IDs.
    """

    __slots__ = ("_aead", "_expected", "_header", "_id_length", "_left", "_phase")

    def __init__(self, keys: CryptoContext, expected_number: int, id_length: int) -> None:
        self._aead = keys.aead
        self._header = keys.hp
        self._phase = keys.key_phase
        self._expected = expected_number
        self._id_length = id_length
        self._left = _PACKETS_MAX

    def __call__(self, datagram: bytes) -> bool:
        """Whether a datagram is an authentic packet with a CONNECTION_CLOSE frame."""
        start = 1 + self._id_length
        if not self._left or len(datagram) < start + 20 or datagram[0] & 0x80:
            return False
        self._left -= 1
        if self._aead is None or self._header is None:
            return False
        try:
            header, truncated = self._header.remove(datagram, start)
            if (header[0] >> 2 & 1) != self._phase:
                return False  # the peer updates its keys just now: we do without its answer
            number = decode_packet_number(truncated, 8 * ((header[0] & 3) + 1), self._expected)
            payload = self._aead.decrypt(datagram[len(header) :], header, number)
        except CryptoError:
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
        if kind in _CLOSE:
            return True
        if kind not in _ACK:
            return False
        buf = Buffer(data=payload)
        try:
            _skip_acknowledgement(buf)
        except BufferReadError:
            return False
        payload = payload[buf.tell() :]
    return False


def _skip_acknowledgement(buf: Buffer) -> None:
    """RFC 9000 section 19.3: type, largest, delay, number of ranges, first range, ranges, counts.

    Raises:
      BufferReadError: it is not complete, or has too many ranges.
    """
    with_counts = buf.pull_uint_var() == QuicFrameType.ACK_ECN
    buf.pull_uint_var()
    buf.pull_uint_var()
    ranges = buf.pull_uint_var()
    if ranges > _RANGES_MAX:
        raise BufferReadError
    for _ in range(1 + 2 * ranges + 3 * with_counts):
        buf.pull_uint_var()
