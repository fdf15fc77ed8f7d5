"""Lists the types of frames (RFC 9000 section 19, RFC 9221), and the properties of each type.

Floor 0.  The numbers are plain integers, since they are compared for every frame.
"""

from __future__ import annotations

from typing import Final

PADDING: Final = 0x00
PING: Final = 0x01
ACK: Final = 0x02
ACK_ECN: Final = 0x03
RESET_STREAM: Final = 0x04
STOP_SENDING: Final = 0x05
CRYPTO: Final = 0x06
NEW_TOKEN: Final = 0x07
STREAM: Final = 0x08
STREAM_FIN: Final = 0x01
STREAM_LEN: Final = 0x02
STREAM_OFF: Final = 0x04
MAX_DATA: Final = 0x10
MAX_STREAM_DATA: Final = 0x11
MAX_STREAMS_BIDI: Final = 0x12
MAX_STREAMS_UNI: Final = 0x13
DATA_BLOCKED: Final = 0x14
STREAM_DATA_BLOCKED: Final = 0x15
STREAMS_BLOCKED_BIDI: Final = 0x16
STREAMS_BLOCKED_UNI: Final = 0x17
NEW_CONNECTION_ID: Final = 0x18
RETIRE_CONNECTION_ID: Final = 0x19
PATH_CHALLENGE: Final = 0x1A
PATH_RESPONSE: Final = 0x1B
TRANSPORT_CLOSE: Final = 0x1C
APPLICATION_CLOSE: Final = 0x1D
HANDSHAKE_DONE: Final = 0x1E
DATAGRAM: Final = 0x30
DATAGRAM_LEN: Final = 0x01

STREAMS_MAX: Final = 1 << 60
"""The largest number of streams of one kind (RFC 9000 section 4.6)."""

CONNECTION_ID_MAX: Final = 20
"""Bytes of the longest connection ID (RFC 9000 section 17.2)."""

TOKEN_SIZE: Final = 16
"""Bytes of a stateless reset token (RFC 9000 section 10.3)."""

PATH_DATA_SIZE: Final = 8
"""Bytes in PATH_CHALLENGE and PATH_RESPONSE (RFC 9000 section 19.17)."""

_STREAMS: Final = tuple(range(STREAM, STREAM + 8))
_DATAGRAMS: Final = (DATAGRAM, DATAGRAM | DATAGRAM_LEN)


def _table(*types: int) -> bytes:
    """1 at each of the types, 0 everywhere else."""
    return bytes(number in types for number in range(256))


#: The tables are indexed by the byte of the type, and give 0 or 1.
IS_KNOWN: Final = _table(*range(HANDSHAKE_DONE + 1), *_DATAGRAMS)

#: RFC 9000 section 13.2.1.
IS_ACK_ELICITING: Final = bytes(
    number not in (PADDING, ACK, ACK_ECN, TRANSPORT_CLOSE, APPLICATION_CLOSE) and is_known
    for number, is_known in enumerate(IS_KNOWN)
)

#: RFC 9000 section 12.4, table 3, and section 12.5.
IS_ALLOWED_IN_0RTT: Final = _table(
    *(PADDING, PING, RESET_STREAM, STOP_SENDING, *_STREAMS, MAX_DATA, MAX_STREAM_DATA),
    *(MAX_STREAMS_BIDI, MAX_STREAMS_UNI, DATA_BLOCKED, STREAM_DATA_BLOCKED),
    *(STREAMS_BLOCKED_BIDI, STREAMS_BLOCKED_UNI, NEW_CONNECTION_ID, RETIRE_CONNECTION_ID),
    *(PATH_CHALLENGE, TRANSPORT_CLOSE, APPLICATION_CLOSE, *_DATAGRAMS),
)

#: RFC 9000 section 9.1.
IS_PROBING: Final = _table(PADDING, NEW_CONNECTION_ID, PATH_CHALLENGE, PATH_RESPONSE)
