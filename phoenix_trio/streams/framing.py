"""Encodes and decodes length-prefixed frames.

Floor 4, sans-IO.  A frame is its length as a QUIC variable-length integer
(RFC 9000 section 16), then so many bytes.  The decoder takes input split in any
way, holds at most one frame, and refuses a frame above its limit before it
buffers any of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..quic.wire.varint import VARINT_MAX, decode_varint, encode_varint

__all__ = [
    "VARINT_MAX",
    "FrameDecoder",
    "FrameTooLarge",
    "FramingError",
    "encode_frame",
    "encode_varint",
]


class FramingError(ValueError):
    """The input is not a sequence of whole frames."""


class FrameTooLarge(FramingError):
    """A frame is larger than the receiver takes; none of it was buffered.

    Attributes:
      size: the announced size in bytes.
      limit: the largest size taken.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a frame of {size} bytes is above the limit of {limit}")
        self.size = size
        self.limit = limit


def encode_frame(payload: bytes) -> bytes:
    """One frame: the length of `payload`, then `payload`."""
    return encode_varint(len(payload)) + payload


class FrameDecoder:
    """Takes bytes, gives frames.

    Args:
      max_frame_size: the largest payload taken, in bytes.

    After :exc:`FrameTooLarge` the decoder stays unusable: only by taking this frame in
    could it find the beginning of the next one.
    """

    def __init__(self, max_frame_size: int) -> None:
        if not 0 <= max_frame_size <= VARINT_MAX:
            raise ValueError(f"max_frame_size must be between 0 and 2**62 - 1: {max_frame_size}")
        self._limit = max_frame_size
        self._buffer = bytearray()
        self._needed: int | None = None
        self._failure: FrameTooLarge | None = None

    def __repr__(self) -> str:
        return f"<FrameDecoder of frames of at most {self._limit} bytes ({len(self._buffer)} held)>"

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take more input.

        Raises:
          FrameTooLarge: as soon as the length of such a frame is known.
        """
        if self._failure is not None:
            raise self._failure
        self._buffer += data
        self._read_length()

    def _read_length(self) -> None:
        if self._needed is not None:
            return
        buffer = self._buffer
        try:
            size, length = decode_varint(buffer, 0)
        except IndexError:
            return  # The length is not whole yet.
        if size > self._limit:
            buffer.clear()
            self._failure = FrameTooLarge(size, self._limit)
            raise self._failure
        del buffer[:length]
        self._needed = size

    def next_frame(self) -> bytes | None:
        """The next whole frame, or ``None`` until more was fed.

        Raises:
          FrameTooLarge: the frame after the last one is above the limit.
        """
        if self._failure is not None:
            raise self._failure
        self._read_length()
        if self._needed is None or len(self._buffer) < self._needed:
            return None
        frame = bytes(memoryview(self._buffer)[: self._needed])
        del self._buffer[: self._needed]
        self._needed = None
        return frame

    def __iter__(self) -> Iterator[bytes]:
        while (frame := self.next_frame()) is not None:
            yield frame

    def end(self) -> None:
        """The input has ended.

        Raises:
          FramingError: it ended in the middle of a frame.
        """
        if self._needed is not None or self._buffer:
            raise FramingError("the input ended in the middle of a frame")
