"""Reads a byte stream by parts: a varint, so many bytes, a frame, or any bytes available.

Floor 4.  Over any :class:`trio.abc.ReceiveStream`.  Bytes received and not yet asked for
are kept, so a cancelled call loses nothing.
"""

from __future__ import annotations

import trio

from ..quic.connection import ReceiveStream
from .framing import FrameTooLarge, FramingError

__all__ = ["StreamReader"]


class StreamReader:
    """Reads the parts of a stream.

    Args:
      stream: no other task may read it meanwhile.

    All methods raise whatever ``stream.receive_some`` raises.  One task at a time.
    """

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self.stream = stream
        """The stream below."""
        self._buffer = bytearray()
        self._at_end = False

    def __repr__(self) -> str:
        return f"<StreamReader over {self.stream!r} ({len(self._buffer)} bytes received ahead)>"

    def give_back(self, stream: ReceiveStream) -> None:
        """Put the bytes received from `stream`, the one below, and not asked for back into it."""
        stream._put_back(bytes(self._buffer))
        self._buffer.clear()

    async def _more(self, max_bytes: int | None = None) -> bool:
        """Receive once; False at the end."""
        if self._at_end:
            await trio.lowlevel.checkpoint()
            return False
        data = await self.stream.receive_some(max_bytes)
        if not data:
            self._at_end = True
            return False
        self._buffer += data
        return True

    async def _fill(self, size: int, read_ahead: int | None = None) -> bool:
        """Wait until `size` bytes are here; False if the stream ended before the first of them.

        Not a checkpoint if they are here already: the caller begins with :meth:`_begin`.
        """
        buffer = self._buffer
        while len(buffer) < size:
            missing = size - len(buffer)
            if not await self._more(None if read_ahead is None else max(missing, read_ahead)):
                if buffer:
                    raise FramingError("the stream ended in the middle of a field")
                return False
        return True

    async def _begin(self) -> None:
        """Pass a checkpoint, unless the call has to receive, which also is one."""
        if self._buffer:
            await trio.lowlevel.checkpoint()

    async def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
          FramingError: the stream ended before their end.
        """
        if self._buffer or not size:
            await trio.lowlevel.checkpoint()
        if not await self._fill(size):
            raise FramingError("the stream ended before a field")
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    async def read_varint(self, *, read_ahead: int | None = None) -> int | None:
        """A variable-length integer (RFC 9000 section 16); ``None`` at the end of the stream.

        Args:
          read_ahead: how many bytes may be received at once, if the integer is not there yet;
            ``None`` lets the stream choose.  0: the bytes after the integer stay in the
            stream, so the peer gets no credit for them, and the stream counts as open.

        Raises:
          FramingError: the stream ended in the middle of it.
        """
        await self._begin()
        if not await self._fill(1, read_ahead):
            return None
        await self._fill(1 << (self._buffer[0] >> 6), read_ahead)
        return self.take_varint()

    def take_varint(self) -> int | None:
        """A variable-length integer received already; ``None``: not all of it is here."""
        buffer = self._buffer
        if not buffer:
            return None
        length = 1 << (buffer[0] >> 6)
        if len(buffer) < length:
            return None
        value = int.from_bytes(buffer[:length], "big") & ((1 << (8 * length - 2)) - 1)
        del buffer[:length]
        return value

    async def read_frame(self, max_frame_size: int) -> bytes | None:
        """One length-prefixed frame; ``None`` at the end of the stream.

        Cancellation: nothing is lost; the frame is read by the next call.

        Raises:
          FrameTooLarge: its length is above `max_frame_size`; none of it was waited for.
          FramingError: the stream ended in the middle of it.
        """
        await self._begin()
        if not await self._fill(1):
            return None
        # The length stays in the buffer until the frame is whole.
        prefix = 1 << (self._buffer[0] >> 6)
        await self._fill(prefix)
        size = int.from_bytes(self._buffer[:prefix], "big") & ((1 << (8 * prefix - 2)) - 1)
        if size > max_frame_size:
            raise FrameTooLarge(size, max_frame_size)
        await self._fill(prefix + size)
        frame = bytes(memoryview(self._buffer)[prefix : prefix + size])
        del self._buffer[: prefix + size]
        return frame

    async def read_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """At least one byte, or ``b""`` at the end of the stream.

        Raises:
          ValueError: `max_bytes` is below 1.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        if not self._buffer:
            if self._at_end:
                await trio.lowlevel.checkpoint()
                return b""
            return await self.stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        size = len(self._buffer) if max_bytes is None else min(max_bytes, len(self._buffer))
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data
