"""Reads records from a stream of a striped transfer, and refuses such streams: both ends.

Floor 4.  Knows streams and records, and nothing of what they mean for a transfer.
"""

from __future__ import annotations

import trio

from ..quic.connection import ReceiveStream
from ..streams.framing import FramingError, encode_varint
from ..streams.kinds import StreamKind
from ..streams.reader import StreamReader
from .transfer_records import MAX_RECORD_SIZE, Record, decode_record

__all__ = ["LINE_ERRORS", "first_bytes", "read_record", "refuse"]

#: Errors that end a stream without saying anything about the transfer: its connection is gone,
#: or is being closed here.
LINE_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


def first_bytes(kind: StreamKind, transfer_id: bytes) -> bytes:
    """The first bytes of every stream of a transfer."""
    return encode_varint(kind) + transfer_id


async def read_record(reader: StreamReader) -> Record | None:
    """The next record of a known type; ``None`` at the end of the stream.

    Raises:
      FramingError: a record is torn, too large or impossible.
      Whatever ``receive_some`` raises.
    """
    while True:
        kind = await reader.read_varint()
        if kind is None:
            return None
        payload = await reader.read_frame(MAX_RECORD_SIZE)
        if payload is None:
            raise FramingError("the stream ended in the middle of a record")
        record = decode_record(kind, payload)
        if record is not None:
            return record


def refuse(reader: StreamReader, code: int) -> None:
    """Read no more of this stream, and tell the peer why (STOP_SENDING)."""
    stream = reader.stream
    assert isinstance(stream, ReceiveStream), "transfers use the streams of a QuicConnection"
    stream.stop_receiving(code)
