"""Announces the limits of one side of ``phoenix/1.1``, and keeps those of the peer.

Floor 4.  Each side opens a stream of kind LIMITS as its first unidirectional stream.  After
the kind come pairs of varints, a setting and its value, to the end of the stream; unknown
settings are skipped.  So a sender refuses by itself a message that its peer would refuse,
and knows for certain that its peer did not refuse the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import trio

from ..errors import (
    ApplicationErrorCode,
    CompressionUnsupported,
    MessageRefusedByPeer,
    MessageTooLarge,
)
from ..quic.connection import QuicConnection
from ..quic.stream_errors import split_code
from ..quic.wire.varint import decode_varint
from .framing import FramingError, encode_varint
from .kinds import StreamKind
from .reader import StreamReader

__all__ = [
    "ANNOUNCING_PROTOCOL",
    "Limits",
    "PeerLimits",
    "encode_limits",
    "read_limits",
    "refused_by_peer",
]

#: With this protocol (ALPN) both sides announce their limits; with others they may.
ANNOUNCING_PROTOCOL = "phoenix/1.1"

_MAX_MESSAGE_SIZE = 0x1
_CODECS = 0x2

#: The most bytes of an announcement that are read: 16 settings of the longest form.
_LONGEST = 256


@attrs.frozen
class Limits:
    """The limits that a peer has announced; ``None``: it did not say.

    Args:
      max_message_size: The largest message, or item of a sequence, in bytes, before compression.
        Default: None.
      codecs: A set of bits: bit `n` for codec `n` of a message's header.  Default: None.
    """

    max_message_size: int | None = None
    codecs: int | None = None


def encode_limits(max_message_size: int, codecs: Iterable[int]) -> bytes:
    """The whole stream that announces this side's limits."""
    bits = sum(1 << codec for codec in set(codecs))
    numbers = (StreamKind.LIMITS, _MAX_MESSAGE_SIZE, max_message_size, _CODECS, bits)
    return b"".join(map(encode_varint, numbers))


async def read_limits(reader: StreamReader) -> Limits:
    """Read an announcement to the end of its stream, past the kind.

    Raises:
      FramingError: it has more than 256 bytes, is torn, or has a setting twice.
      Whatever ``receive_some`` raises.
    """
    data = bytearray()
    while piece := await reader.read_some(_LONGEST + 1):
        data += piece
        if len(data) > _LONGEST:
            raise FramingError(f"the limits of a peer have more than {_LONGEST} bytes")
    settings: dict[int, int] = {}
    position = 0
    try:
        while position < len(data):
            setting, position = decode_varint(data, position)
            value, position = decode_varint(data, position)
            if setting in settings:
                raise FramingError(f"limit 0x{setting:x} is announced twice")
            settings[setting] = value
    except IndexError:
        raise FramingError("the limits of a peer end within a number") from None
    return Limits(settings.get(_MAX_MESSAGE_SIZE), settings.get(_CODECS))


class PeerLimits:
    """The limits of a peer, as far as they are known.

    Args:
      connection: the one to the peer.
      is_awaited: whether the peer announces them.  Otherwise they count as settled and unknown.
    """

    def __init__(self, connection: QuicConnection, *, is_awaited: bool) -> None:
        self._connection = connection
        self._limits = Limits()
        self._has_ended = False
        self._settled = trio.Event()
        if not is_awaited:
            self._settled.set()

    def __repr__(self) -> str:
        known = self._limits if self.is_settled else "not announced yet"
        return f"<PeerLimits of {self._connection!r} ({known})>"

    @property
    def is_settled(self) -> bool:
        """Whether no announcement is awaited any more."""
        return self._settled.is_set()

    @property
    def max_message_size(self) -> int | None:
        """The largest message that the peer takes, in bytes; ``None``: it has not said so yet."""
        return self._limits.max_message_size

    def settle(self, limits: Limits) -> None:
        """The peer has announced its limits."""
        self._limits = limits
        self._settled.set()

    def end(self) -> None:
        """The connection has ended: no announcement arrives any more."""
        if not self._settled.is_set():
            self._has_ended = True
            self._settled.set()

    def check_size(self, size: int) -> None:
        """Check whether a message may be sent, as far as the peer's limit is known.

        Raises:
          MessageTooLarge: it may not.
        """
        limit = self._limits.max_message_size
        if limit is not None and size > limit:
            raise MessageTooLarge(size, limit)

    def check_codec(self, codec: int, name: str) -> None:
        """Check in the same way whether a compression may be used.

        Raises:
          CompressionUnsupported: the peer does not have it.
        """
        if not self._supports_codec(codec):
            raise CompressionUnsupported(
                f"the peer cannot unpack {name}: send without compress=, or install it there"
                " (pip install 'phoenix-trio[zstd]')"
            )

    def _supports_codec(self, codec: int) -> bool:
        codecs = self._limits.codecs
        return codecs is None or bool(codecs >> codec & 1)

    async def wait_settled(self) -> None:
        """Wait until the peer has announced its limits; at once if it does not.

        Raises:
          trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended,
            before.
        """
        await self._settled.wait()
        if self._has_ended:
            await self._connection.wait_closed()
            await self._connection.ping()  # raises the reason why the connection has ended

    async def confirm(self, size: int, codec: int, *, stream_id: int) -> None:
        """Wait until it is certain that the peer has not refused a message its transport has.

        Only at the beginning of a connection is there something to wait for.  A checkpoint
        only then.

        Raises:
          MessageRefusedByPeer: the limits that have arrived since then forbid it.
          trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended,
            before they arrived.
        """
        if not self._settled.is_set() or self._has_ended:
            await self.wait_settled()
        limit = self.max_message_size
        if limit is not None and size > limit:
            code = ApplicationErrorCode.MESSAGE_TOO_LARGE
        elif not self._supports_codec(codec):
            code = ApplicationErrorCode.UNSUPPORTED
        else:
            return
        raise refused_by_peer(stream_id, code, size=size, limit=limit)


def refused_by_peer(
    stream_id: int, code: int, *, size: int, limit: int | None = None, what: str = "a message"
) -> MessageRefusedByPeer:
    """The error that a sender raises when its peer has refused.

    Args:
      stream_id: the stream's ID.
      code: as the peer sent it; it may carry a limit, which counts then.
      size: bytes of the message, or of the largest item.
      limit: the peer's limit, if it is known otherwise.
      what: the name of the refused thing.
    """
    plain, told = split_code(code)
    limit = limit if told is None else told
    try:
        name = ApplicationErrorCode(plain).name
    except ValueError:
        name = "code"
    why = f"{name} (0x{plain:x})"
    if plain == ApplicationErrorCode.MESSAGE_TOO_LARGE and limit is not None:
        why += f", its limit (max_message_size) is {limit} bytes"
    return MessageRefusedByPeer(
        f"the peer refused {what} of {size} bytes: {why}",
        stream_id=stream_id,
        error_code=plain,
        size=size,
        limit=limit,
    )
