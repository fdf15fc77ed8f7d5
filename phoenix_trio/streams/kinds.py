"""The first varint of each unidirectional stream of ``phoenix/1``: the kind of its content.

Floor 4, data only.  Bidirectional streams belong to the application and carry no
such mark; ``docs/specification.md`` has the byte layouts.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["StreamKind"]


class StreamKind(IntEnum):
    """The kind of content that a unidirectional stream of ``phoenix/1`` carries.

    An unknown kind is refused with STOP_SENDING and
    :attr:`~phoenix_trio.ApplicationErrorCode.MALFORMED`; the connection goes on.
    """

    MESSAGE = 0x1
    """One message: a header, then its bytes to the end of the stream."""

    SEQUENCE = 0x2
    """The items of a generator, one frame each."""

    TRANSFER = 0x3
    """The manifest and the end of a striped transfer."""

    STRIPES = 0x4
    """Stripes of a transfer, each with its offset."""

    TRANSFER_REPLY = 0x5
    """A receiver's answers about a transfer: credit, stripes received, the verdict."""

    DRAIN = 0x6
    """The sender of this stream wants no further streams on the connection, or takes none."""

    LIMITS = 0x7
    """The limits of this stream's sender; see :mod:`.limits`."""
