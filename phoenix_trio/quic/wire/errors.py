"""Lists the transport error codes (RFC 9000 section 20.1), and defines the error for them.

Floor 0.  Code that finds a breach of the protocol by the peer raises :class:`TransportError`;
the connection then closes with its code.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "NO_ERROR",
    "INTERNAL_ERROR",
    "CONNECTION_REFUSED",
    "FLOW_CONTROL_ERROR",
    "STREAM_LIMIT_ERROR",
    "STREAM_STATE_ERROR",
    "FINAL_SIZE_ERROR",
    "FRAME_ENCODING_ERROR",
    "TRANSPORT_PARAMETER_ERROR",
    "CONNECTION_ID_LIMIT_ERROR",
    "PROTOCOL_VIOLATION",
    "INVALID_TOKEN",
    "APPLICATION_ERROR",
    "CRYPTO_BUFFER_EXCEEDED",
    "KEY_UPDATE_ERROR",
    "AEAD_LIMIT_REACHED",
    "NO_VIABLE_PATH",
    "VERSION_NEGOTIATION_ERROR",
    "CRYPTO_ERROR",
    "CODE_NAMES",
    "TransportError",
]

NO_ERROR: Final = 0x00
INTERNAL_ERROR: Final = 0x01
CONNECTION_REFUSED: Final = 0x02
FLOW_CONTROL_ERROR: Final = 0x03
STREAM_LIMIT_ERROR: Final = 0x04
STREAM_STATE_ERROR: Final = 0x05
FINAL_SIZE_ERROR: Final = 0x06
FRAME_ENCODING_ERROR: Final = 0x07
TRANSPORT_PARAMETER_ERROR: Final = 0x08
CONNECTION_ID_LIMIT_ERROR: Final = 0x09
PROTOCOL_VIOLATION: Final = 0x0A
INVALID_TOKEN: Final = 0x0B
APPLICATION_ERROR: Final = 0x0C
CRYPTO_BUFFER_EXCEEDED: Final = 0x0D
KEY_UPDATE_ERROR: Final = 0x0E
AEAD_LIMIT_REACHED: Final = 0x0F
NO_VIABLE_PATH: Final = 0x10
VERSION_NEGOTIATION_ERROR: Final = 0x11  # RFC 9368 section 10.2
CRYPTO_ERROR: Final = 0x0100
"""The first of 256 codes: a TLS alert is added to it (RFC 9001 section 4.8)."""

CODE_NAMES: Final = {
    code: name
    for name, code in list(globals().items())
    if name.isupper() and name != "CRYPTO_ERROR" and isinstance(code, int)
}
"""The name of each code, for messages."""


class TransportError(Exception):
    """The peer broke the protocol: the connection is to be closed.

    Attributes:
      code: a transport error code.
      frame_type: the type of the frame at fault; 0 when none is known (RFC 9000 section
        19.19).
      reason: what happened, for people.
    """

    def __init__(self, code: int, frame_type: int, reason: str) -> None:
        super().__init__(f"{reason} (error code 0x{code:x}, frame type 0x{frame_type:x})")
        self.code = code
        self.frame_type = frame_type
        self.reason = reason
