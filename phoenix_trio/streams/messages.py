"""How does one message travel?  On a unidirectional stream of its own.

Floor 4.  Messages are independent: one which is lost and sent again holds no other up
on the way.  For many small ones a stream each is dear; see :mod:`.batching`.

After the kind comes a header: the codec as a varint (0: none; 1: zstd, then the size
of the message as a varint), then the message to the end of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, final

import trio

from ..errors import ApplicationErrorCode, StreamTooLarge
from ..quic.connection import QuicConnection, ReceiveStream
from ..quic.receive_buffer import ReceiveBuffer
from .framing import FramingError, encode_varint
from .kinds import StreamKind
from .reader import StreamReader

__all__ = [
    "Buffer",
    "Decode",
    "Encode",
    "MessageReceiver",
    "MessageRefused",
    "check_compression",
    "receive_message",
    "send_message",
]

Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: From an application's value to bytes, and back, as ``msgspec.msgpack.encode``.
Encode: TypeAlias = Callable[[Any], Buffer]
Decode: TypeAlias = Callable[[bytes], Any]

_PLAIN = 0
_ZSTD = 1

#: Messages below this are sent as they are: compressing them gains nothing.
_WORTH_COMPRESSING = 64

#: Messages below this are copied behind their header, and sent with it in one call.
_WORTH_A_WRITE = 16 * 1024

#: Messages from this size on are compressed and unpacked in a thread, so that nobody else
#: waits for it.  JSON of this size takes 0.9 ms and 0.25 ms, the way to a thread and back
#: 0.1 ms.
_IN_THREAD = 256 * 1024

#: The window a sender of zstd may ask its receiver to have, as a power of two (RFC 8878
#: section 3.1.1.1.2 recommends 8 MiB).
_WINDOW_LOG = 23


class MessageRefused(trio.BrokenResourceError):
    """A message could not be taken in; the connection and other messages go on.

    Attributes:
      code: what the sender was told, an :class:`ApplicationErrorCode`.
    """

    def __init__(self, message: str, code: ApplicationErrorCode) -> None:
        super().__init__(message)
        self.code = code


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "compression needs zstandard: pip install 'phoenix-trio[zstd]'", name=error.name
        ) from error
    return zstandard


async def _run(size: int, work: Callable[..., bytes], *arguments: Any) -> bytes:
    """In a thread if it is much.  A checkpoint only then.

    Cancellation: until there is a free thread; afterwards it is waited for, and counts.
    """
    if size < _IN_THREAD:
        return work(*arguments)
    return await trio.to_thread.run_sync(work, *arguments)


def _compress(zstandard: Any, data: memoryview) -> bytes:
    packed: bytes = zstandard.ZstdCompressor().compress(data)
    return packed


def _unpack(zstandard: Any, packed: bytes, size: int) -> bytes:
    """At most one byte more than `size`, whatever the frame itself says."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    try:
        with decompressor.stream_reader(packed, read_across_frames=False) as unpacked:
            data: bytes = unpacked.read(size + 1)
    except zstandard.ZstdError as error:
        raise FramingError(f"what was compressed cannot be read: {error}") from error
    return data


def check_compression(compress: str | None) -> None:
    """Whether this side can compress so.

    Raises:
      ValueError: no such compression.
      ModuleNotFoundError: its package is missing.
    """
    if compress not in (None, "zstd"):
        raise ValueError(f'compress must be None or "zstd", not {compress!r}')
    if compress is not None:
        _zstandard()


async def send_message(
    connection: QuicConnection,
    data: Any,
    *,
    encode: Encode | None = None,
    compress: str | None = None,
) -> None:
    """Send one message, and wait until the peer's transport has acknowledged all of it.

    Args:
      data: bytes-like, or whatever `encode` takes.
      encode: makes bytes of it.
      compress: ``"zstd"`` (RFC 8878), which the receiver needs to have as well; 256 KiB
        or more are compressed in a thread.  ``None``: as it is.

    Cancellation: the message arrives whole or not at all.

    Raises:
      TypeError: it is not bytes-like, and there is no `encode`.
      ValueError: no such compression.
      ModuleNotFoundError: its package is missing here.
      StreamStopped: the receiver refuses it: ``MESSAGE_TOO_LARGE``, ``UNSUPPORTED``
        (the compression) or ``MALFORMED``.  Only if it does so before its transport has
        all of it: of a message which is small, or read late, this call has returned.
      trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended.
      And what `encode` raises.
    """
    check_compression(compress)
    payload = memoryview(data if encode is None else encode(data)).cast("B")
    header = encode_varint(StreamKind.MESSAGE)
    if compress is not None and len(payload) >= _WORTH_COMPRESSING:
        header += encode_varint(_ZSTD) + encode_varint(len(payload))
        packed = await _run(len(payload), _compress, _zstandard(), payload)
        payload = memoryview(packed)
    else:
        header += encode_varint(_PLAIN)
    stream = await connection.open_send_stream()
    try:
        if len(payload) < _WORTH_A_WRITE:
            await stream.send_all(header + payload, end=True)
        else:
            await stream.send_all(header)
            await stream.send_all(payload, end=True)
        await stream.wait_acked()
    except BaseException:
        stream.reset()  # although it may have been ended already
        raise


@final
class MessageReceiver:
    """One message on a stream whose kind was read.

    Args:
      reader: over that stream; belongs to this object from now on.
      max_size: the largest message, in bytes, after decompression.
    """

    def __init__(self, reader: StreamReader, *, max_size: int) -> None:
        self._reader = reader
        self.max_size = max_size
        """The largest message; it may be changed between calls."""
        self._codec: int | None = None
        self._announced: int | None = None
        # Joins small pieces: a message which trickles in costs its bytes, not an object each.
        self._received = ReceiveBuffer()

    def __repr__(self) -> str:
        return f"<MessageReceiver over {self.stream!r} (at most {self.max_size} bytes)>"

    @property
    def stream(self) -> trio.abc.ReceiveStream:
        """The stream below."""
        return self._reader.stream

    async def receive(self) -> bytes:
        """The message; the stream is at its end afterwards.

        Cancellation: nothing is lost; the next call goes on.

        Raises:
          MessageRefused: it is too large, malformed, or compressed in a way which this
            side does not know; the sender was told.
          StreamReset: the sender has given it up.
          trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended.
        """
        try:
            if self._codec is None:
                self._codec = await self._read_number()
            if self._codec == _PLAIN:
                return await self._read_all(self.max_size)
            if self._codec == _ZSTD:
                return await self._read_zstd()
        except FramingError as error:
            raise self._refuse(str(error), ApplicationErrorCode.MALFORMED) from error
        raise self._refuse(f"codec {self._codec} is not known", ApplicationErrorCode.UNSUPPORTED)

    def _refuse(self, what: str, code: ApplicationErrorCode) -> MessageRefused:
        self._received.clear()
        if isinstance(self.stream, ReceiveStream):
            self.stream.stop_receiving(code)
        return MessageRefused(f"a message was refused: {what}", code)

    def _too_large(self, what: str) -> MessageRefused:
        return self._refuse(what, ApplicationErrorCode.MESSAGE_TOO_LARGE)

    async def _read_number(self) -> int:
        number = await self._reader.read_varint(read_ahead=0)
        if number is None:
            raise FramingError("it ended within its header")
        return number

    async def _read_all(self, limit: int) -> bytes:
        """Everything to the end of the stream."""
        received, stream = self._received, self.stream
        if isinstance(stream, ReceiveStream):
            self._reader.give_back(stream)
            try:
                received.append(await stream.receive_all(limit))
            except StreamTooLarge as error:
                raise self._too_large(f"it has more than {limit} bytes") from error
            return received.join()
        while piece := await self._reader.read_some():
            received.append(piece)
            if received.size > limit:
                raise self._too_large(f"it has more than {limit} bytes")
        return received.join()

    async def _read_zstd(self) -> bytes:
        try:
            zstandard = _zstandard()
        except ModuleNotFoundError as error:
            raise self._refuse(
                "it is compressed with zstd, and zstandard is not installed",
                ApplicationErrorCode.UNSUPPORTED,
            ) from error
        if self._announced is None:
            self._announced = await self._read_number()
        size = self._announced
        if size > self.max_size:
            raise self._too_large(f"it has {size} bytes, more than {self.max_size}")
        # What is compressed is hardly larger than what it came from (zstd's own bound).
        packed = await self._read_all(size + size // 128 + 1024)
        # (By the announced size, since a bomb is small itself.)
        data = await _run(size, _unpack, zstandard, packed, size)
        if len(data) != size:
            raise FramingError(f"{size} bytes were announced, and the content has another size")
        return data


async def receive_message(
    reader: StreamReader, *, max_size: int, decode: Decode | None = None
) -> Any:
    """The message on a stream whose kind was read; the stream is at its end afterwards.

    Args:
      reader: belongs to this call.
      max_size: the largest message, in bytes, after decompression.
      decode: makes a value of its bytes.

    Cancellation: what was read is lost; :class:`MessageReceiver` keeps it.

    Raises:
      What :meth:`MessageReceiver.receive` raises, and what `decode` raises.
    """
    data = await MessageReceiver(reader, max_size=max_size).receive()
    return data if decode is None else decode(data)
