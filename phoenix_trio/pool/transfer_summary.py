"""The summary that a sender gets of a completed striped transfer.  Floor 4, plain data."""

from __future__ import annotations

import attrs

__all__ = ["TransferSummary"]


@attrs.frozen(kw_only=True)
class TransferSummary:
    """A transfer stored by the receiver."""

    transfer_id: bytes
    size: int
    """Bytes in all."""
    sha256: bytes
    """The checksum, the same on both sides."""
    duration: float
    """Seconds from the call to the receiver's confirmation."""
    stripe_size: int
    """Bytes of a stripe."""
    stripes_sent: int
    """Stripes sent, those sent again included."""
    bytes_sent_again: int
    """Bytes of stripes sent again because their connection was lost."""
    connections_lost: int
    connections_replaced: int
    bytes_skipped: int = 0
    """Bytes not sent, because the receiver had them from an earlier attempt."""
