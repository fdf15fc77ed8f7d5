"""The summary that a sender gets of a completed striped transfer.  Floor 4, plain data."""

from __future__ import annotations

import attrs

__all__ = ["TransferSummary"]


@attrs.frozen(kw_only=True)
class TransferSummary:
    """A transfer stored by the receiver.

    Attributes:
      transfer_id: 16 bytes; a repeated call with the same ones continues the transfer.
      size: Bytes in all.
      sha256: The checksum, the same on both sides.
      duration: Seconds from the call to the receiver's confirmation.
      stripe_size: Bytes of a stripe.
      stripes_sent: Stripes sent, those sent again included.
      bytes_sent_again: Bytes of stripes sent again because their connection was lost.
      connections_lost: Connections lost during the transfer.
      connections_replaced: Lost connections in whose place a new one was opened.
      bytes_skipped: Bytes not sent, because the receiver had them from an earlier attempt.
        Default: 0.
    """

    transfer_id: bytes
    size: int
    sha256: bytes
    duration: float
    stripe_size: int
    stripes_sent: int
    bytes_sent_again: int
    connections_lost: int
    connections_replaced: int
    bytes_skipped: int = 0
