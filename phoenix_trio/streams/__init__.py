"""What travels in a stream (floor 4)."""

from .framing import FrameDecoder, FrameTooLarge, FramingError, encode_frame, encode_varint

__all__ = ["FrameDecoder", "FrameTooLarge", "FramingError", "encode_frame", "encode_varint"]
