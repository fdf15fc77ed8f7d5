"""What does a sender know of a striped transfer when it is over?  Floor 4, plain data."""

from __future__ import annotations

import attrs

__all__ = ["TransferSummary"]


@attrs.frozen(kw_only=True)
class TransferSummary:
    """A transfer which the receiver has stored."""

    transfer_id: bytes
    size: int
    """Bytes in all."""
    sha256: bytes
    """The checksum, which both sides have found."""
    duration: float
    """Seconds from the call to the receiver's confirmation."""
    stripe_size: int
    """Bytes of a stripe."""
    stripes_sent: int
    """Stripes sent, those sent again included."""
    bytes_sent_again: int
    """Bytes of stripes which were sent again, as their connection was lost."""
    connections_lost: int
    connections_replaced: int
    bytes_skipped: int = 0
    """Bytes which were not sent, as the receiver had them of an earlier attempt."""
