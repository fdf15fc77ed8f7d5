"""Reassembles the CRYPTO frames of one encryption level into whole TLS messages.

Floor 0, sans-IO: knows no engine, no TLS and no clock.  Any host can send CRYPTO frames before
the handshake has authenticated the peer, so each step is bounded:

* bytes: data beyond a window of `limit` bytes from the start of the current message is refused,
  and so is a message that announces more (RFC 9000 section 7.5);
* bookkeeping: more than `max_gaps` separate pieces beyond the data in order are refused;
* time: a frame costs the same whatever came before it, apart from a copy of 16 KiB at most.  In
  particular, a message sent byte by byte is not copied for each byte.
"""

from __future__ import annotations

from .reassembly import PieceLimit, ReassemblyBuffer

__all__ = [
    "CRYPTO_BUFFER_EXCEEDED",
    "HANDSHAKE_WINDOW",
    "INITIAL_WINDOW",
    "MAX_GAPS",
    "PROTOCOL_VIOLATION",
    "CryptoReceiver",
    "CryptoStreamError",
]

#: Error codes of RFC 9000 section 20.1.
PROTOCOL_VIOLATION = 0x0A
CRYPTO_BUFFER_EXCEEDED = 0x0D

#: The most bytes held of a level: data out of order and the incomplete message.  RFC 9000
#: section 7.5 requires at least 4096.  Unauthenticated peers can fill the window of Initial
#: packets, and a ClientHello is small, even with post-quantum keys (1.2 to 2 KB) or a large
#: ticket.
INITIAL_WINDOW = 16 * 1024
#: The same for Handshake packets, which carry long certificate chains, and for 1-RTT packets.
HANDSHAKE_WINDOW = 64 * 1024

#: Separate pieces beyond the data in order.  A flight of 64 KiB in packets of 1200 bytes has
#: 28 gaps when every other packet is lost.  Chromium cuts a ClientHello into at most a few
#: dozen frames and shuffles them.
MAX_GAPS = 128

#: Type and length of a TLS handshake message (RFC 8446 section 4).
_MESSAGE_HEADER = 4


class CryptoStreamError(Exception):
    """The peer's CRYPTO frames break a rule, so the connection has to be closed."""

    def __init__(self, error_code: int, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        """The transport error code (RFC 9000 section 20.1)."""


class CryptoReceiver:
    """The received CRYPTO data of one level that is not yet a whole message.

    Args:
      limit: only data within this many bytes from the start of the current message is taken.
      max_gaps: the most separate pieces beyond the data in order.
    """

    __slots__ = ("_ahead", "_base", "_edge", "_is_closed", "_limit", "_max_gaps", "_message",
                 "_pieces")  # fmt: skip

    def __init__(self, limit: int = HANDSHAKE_WINDOW, max_gaps: int = MAX_GAPS) -> None:
        self._limit = limit
        self._max_gaps = max_gaps
        self._base = 0  # the offset at which the current message begins
        self._message = bytearray()  # received bytes of it and of later messages, in order
        self._edge = 0  # everything below this offset has been received
        self._ahead: ReassemblyBuffer | None = None  # data out of order; None: there was none
        self._pieces: PieceLimit | None = None
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the level is over."""
        return self._is_closed

    @property
    def held(self) -> int:
        """Bytes held: at most `limit`."""
        return len(self._message) + (self._pieces.held if self._pieces is not None else 0)

    @property
    def gaps(self) -> int:
        """Separate pieces beyond the data in order: at most `max_gaps`."""
        return len(self._ahead) if self._ahead is not None else 0

    def receive(self, offset: int, data: bytes) -> bool:
        """Take the data of one CRYPTO frame.

        Duplicates and overlaps are fine.  :meth:`next_message` returns messages completed by the
        data.

        Returns:
          Whether any of its bytes is new.

        Raises:
          CryptoStreamError: too much data or too many pieces (CRYPTO_BUFFER_EXCEEDED), or new
            data of a closed level (PROTOCOL_VIOLATION, RFC 9001 section 4.1.3).
        """
        stop = offset + len(data)
        edge = self._edge
        if stop <= edge or not data:
            return False
        if self._is_closed:
            raise CryptoStreamError(
                PROTOCOL_VIOLATION, "CRYPTO data of an encryption level which is over"
            )
        if stop > self._base + self._limit:
            raise CryptoStreamError(
                CRYPTO_BUFFER_EXCEEDED,
                f"CRYPTO data more than {self._limit} bytes beyond what TLS has consumed",
            )
        if offset < edge:
            data = data[edge - offset :]
            offset = edge
        ahead, pieces = self._ahead, self._pieces
        if offset == edge and not ahead:
            self._message += data
            self._edge = stop
            return True
        if ahead is None or pieces is None:
            pieces = self._pieces = PieceLimit()
            ahead = self._ahead = ReassemblyBuffer(pieces)
        before = pieces.held
        ahead.add(offset, data)
        if pieces.held == before:
            return False
        if offset == edge:
            taken = ahead.take(edge)
            self._message += taken
            self._edge = edge + len(taken)
        if len(ahead) > self._max_gaps:
            raise CryptoStreamError(
                CRYPTO_BUFFER_EXCEEDED, f"more than {self._max_gaps} gaps in CRYPTO data"
            )
        return True

    def next_message(self) -> bytes | None:
        """Take the next TLS message out, with its header; ``None``: it is not complete.

        Raises:
          CryptoStreamError: it announces more than `limit` bytes (CRYPTO_BUFFER_EXCEEDED), or
            the level is over and data is left (PROTOCOL_VIOLATION).
        """
        message = self._message
        if self._is_closed:
            if message or self._ahead:
                raise CryptoStreamError(
                    PROTOCOL_VIOLATION, "CRYPTO data is left over at the end of its level"
                )
            return None
        if len(message) < _MESSAGE_HEADER:
            return None
        size = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
        if size > self._limit:
            raise CryptoStreamError(
                CRYPTO_BUFFER_EXCEEDED,
                f"a TLS message of {size} bytes; at most {self._limit} are taken",
            )
        if len(message) < size:
            return None
        whole = bytes(message[:size])
        del message[:size]
        self._base += size
        return whole

    def close(self) -> None:
        """Close the level, since TLS has installed the keys of the next one.

        From now on new data is refused; duplicates of received data stay fine (RFC 9001 section
        4.1.3).
        """
        self._is_closed = True
