"""Encodes and decodes variable-length integers (RFC 9000 section 16).

Floor 0.  The two most significant bits of the first byte give the length: 1, 2, 4 or 8 bytes.
The encoder always uses the shortest length; the decoder accepts any.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["VARINT_MAX", "decode_varint", "encode_varint", "varint_size"]

VARINT_MAX: Final = (1 << 62) - 1
"""The largest value of a variable-length integer."""

_BYTES: Final = tuple(bytes((value,)) for value in range(64))
_unpack_4: Final = struct.Struct(">I").unpack_from
_unpack_8: Final = struct.Struct(">Q").unpack_from


def encode_varint(value: int) -> bytes:
    """`value` in as few bytes as possible.

    Raises:
      ValueError: `value` is negative or above 2**62 - 1.
    """
    if value < 0x40:
        if value < 0:
            raise ValueError(f"a variable-length integer is between 0 and 2**62 - 1, not {value}")
        return _BYTES[value]
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    if value > VARINT_MAX:
        raise ValueError(f"a variable-length integer is between 0 and 2**62 - 1, not {value}")
    return (value | 3 << 62).to_bytes(8, "big")


def decode_varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The integer that begins at `at`, and the position behind it.

    Raises:
      IndexError: `data` ends inside the integer.
    """
    first = data[at]
    if first < 0x40:
        return first, at + 1
    if first < 0x80:
        return (first & 0x3F) << 8 | data[at + 1], at + 2
    try:
        if first < 0xC0:
            return _unpack_4(data, at)[0] & 0x3FFF_FFFF, at + 4
        return _unpack_8(data, at)[0] & VARINT_MAX, at + 8
    except struct.error:
        raise IndexError("the integer is cut short") from None


def varint_size(value: int) -> int:
    """How many bytes :func:`encode_varint` takes for `value`; it must be in range."""
    if value < 0x40:
        return 1
    if value < 0x4000:
        return 2
    return 4 if value < 0x4000_0000 else 8
