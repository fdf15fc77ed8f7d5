"""The errors and codes with which striped transfers fail.

Floor 4: plain exceptions, no I/O.  All are :class:`trio.BrokenResourceError`s, so
code that knows only Trio handles them; the type and its attributes say more.
"""

from __future__ import annotations

from enum import IntEnum

import trio

__all__ = [
    "ChecksumMismatch",
    "TransferAbandoned",
    "TransferCode",
    "TransferFailed",
    "TransferInterrupted",
    "TransferRefused",
    "TransferUnconfirmed",
]


class TransferCode(IntEnum):
    """Why a transfer ended, as it travels: in verdicts, RESET_STREAM and STOP_SENDING.

    Where :class:`~phoenix_trio.ApplicationErrorCode` has the same meaning, the number
    is the same.
    """

    VERIFIED = 0x0
    """All bytes arrived, their checksum is right, and the receiving program has confirmed that it
    has stored them (verdicts only)."""

    CANCELLED = 0x1
    """The application left the transfer, by an exception, a cancellation or on purpose."""

    SHUTTING_DOWN = 0x3
    """The receiver takes no transfers any more."""

    MALFORMED = 0x5
    """The other side broke the format: a torn record, a misplaced stripe, two different sizes."""

    CHECKSUM_MISMATCH = 0x40
    """All bytes arrived, but their checksum differs from the sender's."""

    TOO_MANY_TRANSFERS = 0x41
    """The receiver has as many transfers under way as it takes, in all or from one peer."""

    TOO_LARGE = 0x42
    """There are more bytes than the receiver takes."""

    UNSUPPORTED = 0x43
    """The receiver does not know the checksum or the version of the format."""

    UNKNOWN_TRANSFER = 0x44
    """The receiver does not know this transfer, or not any more."""

    CONFLICT = 0x45
    """A repeated manifest differs from the first one."""

    BEYOND_CREDIT = 0x46
    """A stripe was sent for which the receiver had given no credit."""

    STALLED = 0x47
    """The sender had credit and has sent almost nothing for the receiver's timeout."""

    NOT_STORED = 0x48
    """The receiving program failed before it had stored the transfer."""


def describe(code: int) -> str:
    """A code as people read it."""
    try:
        return TransferCode(code).name.lower().replace("_", " ")
    except ValueError:
        return f"code 0x{code:x}"


class TransferFailed(trio.BrokenResourceError):
    """A striped transfer did not come to a good end; subclasses say why.

    Attributes:
      transfer_id: the transfer's 16 bytes.
      bytes_acknowledged: how many bytes the receiver has acknowledged, or had when the
        transfer failed.
    """

    def __init__(self, message: str, *, transfer_id: bytes, bytes_acknowledged: int = 0) -> None:
        super().__init__(message)
        self.transfer_id = transfer_id
        self.bytes_acknowledged = bytes_acknowledged


class TransferInterrupted(TransferFailed):
    """All connections were lost, or the receiver was started anew.

    Sending: the transfer can go on over new connections; pass `transfer_id` and the same
    data.  The bytes that the receiver has kept are not sent again.  Receiving: the sender
    did not come back in time.
    """


class TransferUnconfirmed(TransferInterrupted):
    """Sending: everything was sent, and it is unknown whether the receiver has stored it.

    The connections were lost after the last byte was sent and before the receiver's program
    had confirmed the transfer.  The same call with `transfer_id` finds out: the receiver
    confirms a transfer stored a short time ago, and takes anything else once more.
    """


class TransferRefused(TransferFailed):
    """Sending: the receiver has said that it does not store the transfer.

    Attributes:
      code: why; a :class:`TransferCode`, or a number of the receiver's application.
    """

    def __init__(
        self, message: str, *, transfer_id: bytes, code: int, bytes_acknowledged: int = 0
    ) -> None:
        super().__init__(message, transfer_id=transfer_id, bytes_acknowledged=bytes_acknowledged)
        self.code = code


class TransferAbandoned(TransferFailed):
    """Receiving: the sender has given the transfer up, broken the format, or stalled.

    Attributes:
      code: why; a :class:`TransferCode`, or a number of the sender's application.
    """

    def __init__(
        self, message: str, *, transfer_id: bytes, code: int, bytes_acknowledged: int = 0
    ) -> None:
        super().__init__(message, transfer_id=transfer_id, bytes_acknowledged=bytes_acknowledged)
        self.code = code


class ChecksumMismatch(TransferFailed):
    """All bytes arrived, but they differ from the bytes sent; raised on both sides."""
