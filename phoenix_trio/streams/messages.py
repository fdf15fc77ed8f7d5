"""Sends and receives one message on a unidirectional stream of its own.

Floor 4.  Messages are independent: the loss of one does not hold up the others on the
way.  A stream each is expensive for many small messages; see :mod:`.batching`.

After the kind comes a header: the codec (0: none; 1: zstd) and the size of the message
before compression, as varints.  The message's bytes follow, to the end of the stream.  So a
receiver can refuse a message that is too large as soon as it has the header.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeAlias, final

import trio

from ..errors import (
    ApplicationErrorCode,
    CompressionUnsupported,
    MessageRefused,
    MessageTooLarge,
    StreamStopped,
    StreamTooLarge,
)
from ..quic.connection import QuicConnection, ReceiveStream
from ..quic.receive_buffer import ReceiveBuffer
from ..quic.stream_errors import too_large_code
from .framing import FramingError, encode_varint
from .kinds import StreamKind
from .limits import PeerLimits, refused_by_peer
from .reader import StreamReader

__all__ = [
    "PLAIN",
    "Buffer",
    "Decode",
    "Encode",
    "MessageReceiver",
    "MessageRefused",
    "as_view",
    "check_compression",
    "known_codecs",
    "receive_message",
    "send_message",
]

Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: Convert an application's value to bytes and back, like ``msgspec.msgpack.encode``.
Encode: TypeAlias = Callable[[Any], Buffer]
Decode: TypeAlias = Callable[[bytes], Any]

#: The codec of an uncompressed message.
PLAIN = 0
_ZSTD = 1

#: Messages below this are sent as they are: compressing them gains nothing.
_WORTH_COMPRESSING = 64

#: Messages below this are copied behind their header, and sent with it in one call.
_WORTH_A_WRITE = 16 * 1024

#: Messages from this size on are compressed and unpacked in a thread, so that no other task
#: waits for it.  JSON of this size takes 0.9 ms and 0.25 ms, the way to a thread and back
#: 0.1 ms.
_IN_THREAD = 256 * 1024

#: The window a sender of zstd may ask its receiver to have, as a power of two (RFC 8878
#: section 3.1.1.1.2 recommends 8 MiB).
_WINDOW_LOG = 23


def known_codecs() -> list[int]:
    """The codecs that this side can unpack."""
    return [PLAIN, _ZSTD] if find_spec("zstandard") is not None else [PLAIN]


def as_view(value: Any, encode: Encode | None, what: str = "a message") -> memoryview:
    """The bytes of a value.

    Raises:
      TypeError: they are not bytes-like; the text says what to do.
      And whatever `encode` raises.
    """
    data = value if encode is None else encode(value)
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise not_bytes(data, encode, what) from None


def not_bytes(data: object, encode: Encode | None, what: str) -> TypeError:
    """The error for a value that is not bytes-like."""
    kind = type(data).__name__
    if encode is not None:
        return TypeError(f"encode= must return bytes, not {kind}")
    if isinstance(data, memoryview):
        return TypeError(f"{what} must be contiguous in memory: pass bytes(...) of it")
    if isinstance(data, str):
        return TypeError(f"{what} must be bytes, not str: pass text.encode(), or encode=str.encode")
    return TypeError(
        f"{what} must be bytes, not {kind}: pass encode=, a function which makes bytes of it,"
        " for instance encode=msgspec.msgpack.encode"
    )


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "compression needs zstandard: pip install 'phoenix-trio[zstd]'", name=error.name
        ) from error
    return zstandard


async def _run(size: int, work: Callable[..., bytes], *arguments: Any) -> bytes:
    """Run in a thread if `size` is large.  A checkpoint only then.

    Cancellation: possible until there is a free thread; after that the work is waited for.
    """
    if size < _IN_THREAD:
        return work(*arguments)
    return await trio.to_thread.run_sync(work, *arguments)


def _compress(zstandard: Any, data: memoryview) -> bytes:
    packed: bytes = zstandard.ZstdCompressor().compress(data)
    return packed


def _unpack(zstandard: Any, packed: bytes, size: int) -> bytes:
    """Unpack at most one byte more than `size`, whatever the frame itself says."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    try:
        with decompressor.stream_reader(packed, read_across_frames=False) as unpacked:
            data: bytes = unpacked.read(size + 1)
    except zstandard.ZstdError as error:
        raise FramingError(f"what was compressed cannot be read: {error}") from error
    return data


def check_compression(compress: str | None) -> None:
    """Check whether this side can compress so.

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
    limits: PeerLimits | None = None,
) -> None:
    """Send one message, and wait until the peer's transport has acknowledged all of it.

    Args:
      data: bytes-like, or any value that `encode` takes.
      encode: makes bytes of it.
      compress: ``"zstd"`` (RFC 8878); the receiver needs to have it as well; 256 KiB or more
        are compressed in a thread.  ``None``: no compression.
      limits: the peer's limits, as far as they are known.  If the peer announces them, this
        also waits for the announcement (once a connection, and usually for no time), so that
        a message forbidden by the announced limits never counts as sent.

    Cancellation: the message arrives whole or not at all.

    Raises:
      TypeError: it is not bytes-like, and there is no `encode`.
      ValueError: no such compression.
      ModuleNotFoundError: its package is missing here.
      MessageTooLarge: the message exceeds the limit announced by the peer; nothing was sent.
      CompressionUnsupported: the peer has announced that it lacks this compression.
      MessageRefusedByPeer: the receiver refuses it: ``MESSAGE_TOO_LARGE``, ``UNSUPPORTED``
        (the compression) or ``MALFORMED``.  A receiver that announces nothing, or takes
        less than it announced, can refuse only before its transport has all of the message:
        if the message is small, or read late, this call has returned by then.
      trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended.
      And whatever `encode` raises.
    """
    check_compression(compress)
    payload = as_view(data, encode)
    size, codec = len(payload), PLAIN
    if compress is not None and size >= _WORTH_COMPRESSING:
        codec = _ZSTD
    if limits is not None:
        try:
            _check_limits(limits, size, codec)
        except (MessageTooLarge, CompressionUnsupported):
            await trio.lowlevel.checkpoint()
            raise
    if codec == _ZSTD:
        payload = memoryview(await _run(size, _compress, _zstandard(), payload))
    header = encode_varint(StreamKind.MESSAGE) + encode_varint(codec) + encode_varint(size)
    stream = await connection.open_send_stream()
    try:
        if limits is not None:
            _check_limits(limits, size, codec)  # The limits may have arrived meanwhile.
        if len(payload) < _WORTH_A_WRITE:
            await stream.send_all(header + payload, end=True)
        else:
            await stream.send_all(header)
            await stream.send_all(payload, end=True)
        await stream.wait_acked()
        if limits is not None:
            await limits.confirm(size, codec, stream_id=stream.id)
    except StreamStopped as error:
        stream.reset()
        limit = None if limits is None else limits.max_message_size
        raise refused_by_peer(stream.id, error.error_code, size=size, limit=limit) from error
    except BaseException:
        stream.reset()  # even if it was ended already
        raise


def _check_limits(limits: PeerLimits, size: int, codec: int) -> None:
    limits.check_size(size)
    if codec == _ZSTD:
        limits.check_codec(codec, "zstd")


@final
class MessageReceiver:
    """One message on a stream whose kind was read already.

    Args:
      reader: over that stream; belongs to this object from now on.
      max_size: the largest message, in bytes, after decompression.
    """

    def __init__(self, reader: StreamReader, *, max_size: int) -> None:
        self._reader = reader
        self.max_size = max_size
        """The largest message; it may be changed between calls."""
        self._codec: int | None = None
        self._size: int | None = None
        self._refusal: MessageRefused | None = None
        # Joins small pieces, so that a message in many pieces costs its bytes, not an object each.
        self._received = ReceiveBuffer()

    def __repr__(self) -> str:
        return f"<MessageReceiver over {self.stream!r} (at most {self.max_size} bytes)>"

    @property
    def stream(self) -> trio.abc.ReceiveStream:
        """The stream below."""
        return self._reader.stream

    @property
    def is_refused(self) -> bool:
        """Whether the message was refused."""
        return self._refusal is not None

    async def receive_header(self) -> None:
        """Read the header, and refuse the message at once if the header says enough for that.

        Takes nothing behind the header out of the stream.  Without effect the second time.

        Cancellation, errors: those of :meth:`receive`.
        """
        await trio.lowlevel.checkpoint()
        self._check_not_refused()
        try:
            if self._codec is None:
                self._codec = await self._read_number()
            if self._codec not in (PLAIN, _ZSTD):
                raise self._refuse(
                    f"codec {self._codec} is not known", ApplicationErrorCode.UNSUPPORTED
                )
            if self._size is None:
                self._size = await self._read_number()
        except FramingError as error:
            raise self._malformed(error) from error
        self._check_size()
        if self._codec == _ZSTD:
            self._check_zstandard()

    async def receive(self) -> bytes:
        """Receive the message; the stream is at its end afterwards.

        Cancellation: nothing is lost; the next call goes on.

        Raises:
          MessageRefused: it is too large, malformed, or compressed in a way unknown to this
            side; the sender was told.
          StreamReset: the sender has given it up.
          trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended.
        """
        # (Checked again in case the limit has changed since.)
        if self._size is None or self._size > self.max_size or self._refusal is not None:
            await self.receive_header()
        assert self._size is not None
        try:
            if self._codec == _ZSTD:
                return await self._read_zstd(self._size)
            data = await self._read_all(self._size)
            if len(data) != self._size:
                raise FramingError(f"{self._size} bytes were announced, {len(data)} came")
        except FramingError as error:
            raise self._malformed(error) from error
        return data

    def _check_not_refused(self) -> None:
        refusal = self._refusal
        if refusal is not None:
            raise MessageRefused(
                str(refusal), refusal.code, size=refusal.size, limit=refusal.limit
            ) from refusal.__cause__

    def _check_size(self) -> None:
        size, limit = self._size, self.max_size
        assert size is not None
        if size <= limit:
            return
        code = ApplicationErrorCode.MESSAGE_TOO_LARGE
        what = f"it has {size} bytes, more than {limit}"
        raise self._refuse(what, code, told=too_large_code(limit), size=size, limit=limit)

    def _check_zstandard(self) -> Any:
        try:
            return _zstandard()
        except ModuleNotFoundError as error:
            raise self._refuse(
                "it is compressed with zstd, and zstandard is not installed",
                ApplicationErrorCode.UNSUPPORTED,
            ) from error

    def _malformed(self, error: FramingError) -> MessageRefused:
        return self._refuse(str(error), ApplicationErrorCode.MALFORMED)

    def _refuse(
        self,
        what: str,
        code: ApplicationErrorCode,
        *,
        told: int | None = None,
        size: int | None = None,
        limit: int | None = None,
    ) -> MessageRefused:
        self._received.clear()
        if isinstance(self.stream, ReceiveStream):
            self.stream.stop_receiving(code if told is None else told)
        self._refusal = MessageRefused(
            f"a message was refused: {what}", code, size=size, limit=limit
        )
        return self._refusal

    async def _read_number(self) -> int:
        number = self._reader.take_varint()
        if number is None:
            number = await self._reader.read_varint(read_ahead=0)
        if number is None:
            raise FramingError("it ended within its header")
        return number

    async def _read_all(self, limit: int) -> bytes:
        """Read everything to the end of the stream: at most `limit` bytes."""
        received, stream = self._received, self.stream
        if isinstance(stream, ReceiveStream):
            self._reader.give_back(stream)
            try:
                data = await stream.receive_all(limit, code=ApplicationErrorCode.MALFORMED)
            except StreamTooLarge as error:
                raise FramingError(f"more than the {limit} bytes came which it may have") from error
            received.append(data)
            return received.join()
        while piece := await self._reader.read_some():
            received.append(piece)
            if received.size > limit:
                raise FramingError(f"more than the {limit} bytes came which it may have")
        return received.join()

    async def _read_zstd(self, size: int) -> bytes:
        zstandard = self._check_zstandard()
        # Compressed data is hardly larger than its original (zstd's own bound).
        packed = await self._read_all(size + size // 128 + 1024)
        # (In a thread if the announced size is large: a bomb itself is small.)
        data = await _run(size, _unpack, zstandard, packed, size)
        if len(data) != size:
            raise FramingError(f"{size} bytes were announced, and the content has another size")
        return data


async def receive_message(
    reader: StreamReader, *, max_size: int, decode: Decode | None = None
) -> Any:
    """Receive the message on a stream whose kind was read; the stream is at its end afterwards.

    Args:
      reader: belongs to this call.
      max_size: the largest message, in bytes, after decompression.
      decode: makes a value of its bytes.

    Cancellation: the bytes read are lost; :class:`MessageReceiver` keeps them.

    Raises:
      Whatever :meth:`MessageReceiver.receive` and `decode` raise.
    """
    data = await MessageReceiver(reader, max_size=max_size).receive()
    return data if decode is None else decode(data)
