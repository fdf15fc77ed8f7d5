"""Computes the largest payload of a DATAGRAM frame for a peer's limit (RFC 9221).

Floor 0, pure.  A peer's ``max_datagram_frame_size`` counts the whole frame: its type, its length
field and its payload (section 3).  A longer frame must not be sent.

Frames are always sent with their length (type 0x31), since they share packets with other frames;
the length has its shortest encoding.  A frame without length (0x30) may only stand at the end of
a packet.  It would carry a few more bytes, which do not matter with the limits announced by
peers: 65,535 is recommended (section 3).
"""

from __future__ import annotations

from typing import Final

__all__ = ["largest_payload"]

_TYPE: Final = 1

#: Sizes of a variable-length integer, and the largest value of each (RFC 9000 section 16).
_LENGTHS: Final = ((1, (1 << 6) - 1), (2, (1 << 14) - 1), (4, (1 << 30) - 1), (8, (1 << 62) - 1))


def largest_payload(frame_limit: int | None) -> int | None:
    """The largest payload in a frame of at most `frame_limit` bytes.

    ``None``: not even an empty payload fits.  This is the case with a limit of 0, or without a
    limit: the peer takes no datagrams.
    """
    room = (frame_limit or 0) - _TYPE
    fitting = [min(room - size, largest) for size, largest in _LENGTHS if size <= room]
    return max(fitting, default=None)
