"""Every exception a connection or stream can raise, and the codes they carry.

Floor 0: plain exceptions, no I/O.  Trio has three kinds of resource error, and so does this
library: :class:`trio.ClosedResourceError` (closed on this side),
:class:`trio.BusyResourceError` (two tasks in one method) and
:class:`trio.BrokenResourceError` (anything the network or the peer did).  The
classes below are all of the last kind, so code that knows only Trio handles
them; code that needs the cause reads the type and its attributes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

import trio

__all__ = [
    "ApplicationErrorCode",
    "CertificateExpired",
    "CertificateNameMismatch",
    "CertificatePinMismatch",
    "CertificateUntrusted",
    "ClientCertificateRequired",
    "CompressionUnsupported",
    "ConnectionBroken",
    "ConnectionClosedByPeer",
    "ConnectionRefused",
    "ConnectionTimedOut",
    "DatagramTooLarge",
    "DatagramsUnsupported",
    "HandshakeFailed",
    "HandshakeTimedOut",
    "MessageRefused",
    "MessageRefusedByPeer",
    "MessageTooLarge",
    "MigrationFailed",
    "MigrationForbidden",
    "NoCommonProtocol",
    "NoConnectionIdLeft",
    "PathNotValidated",
    "ProtocolError",
    "ServerUnreachable",
    "ShuttingDown",
    "StatelessReset",
    "StreamBroken",
    "StreamReset",
    "StreamStopped",
    "StreamTooLarge",
    "VersionNegotiationFailed",
]


class ApplicationErrorCode(IntEnum):
    """Application error codes (RFC 9000 section 20.2) that this library sends by itself.

    They appear in CONNECTION_CLOSE, RESET_STREAM and STOP_SENDING.  A program
    with a protocol of its own passes its own codes to ``aclose``, ``abort``,
    ``reset`` and ``stop_receiving``.
    """

    NO_ERROR = 0x0
    """A clean close; also STOP_SENDING for a receiver that was closed early."""

    CANCELLED = 0x1
    """The task that used the stream or connection left it by an exception or cancellation."""

    HANDLER_CRASHED = 0x2
    """A server's handler raised; the exception's text is never sent."""

    SHUTTING_DOWN = 0x3
    """The endpoint closed while the connection was in use."""

    MESSAGE_TOO_LARGE = 0x4
    """A frame, a message or all of a stream was above the receiver's limit."""

    MALFORMED = 0x5
    """The application layer could not parse the data it received."""

    UNSUPPORTED = 0x6
    """The data received needs a feature, such as a compression, that this side does not have."""

    SOURCE_FAILED = 0x7
    """The source of a sequence raised in the middle; the exception's text is never sent."""

    TOO_SLOW = 0x8
    """A subscriber of a broadcast did not keep up with it."""

    NOT_PROCESSED = 0x1CE5_A7F3
    """The stream, or the whole connection, was not handed to the application, and no further
    stream will be, because the peer is shutting down or has no room.  Sending again on another
    connection is safe.  Drawn at random, so that another protocol's code is not taken for it."""


class ShuttingDown(trio.ClosedResourceError):
    """This side is shutting down, and takes no new work."""


class ConnectionBroken(trio.BrokenResourceError):
    """A connection has ended, other than by a close in good order on this side.

    Attributes:
      error_code: the code of the CONNECTION_CLOSE, or ``None`` if there was none.
      reason: the reason phrase, possibly empty.  Text from the peer is untrusted.
      by_peer: whether the peer ended it.
      is_application: whether `error_code` is an application code (RFC 9000
        section 20.2) rather than a transport code (section 20.1).
      processed: ``False``: the peer's application has seen nothing that the failed call
        sent, so that sending it again is safe; ``None``: that is not known.
    """

    def __init__(
        self,
        message: str,
        *,
        error_code: int | None = None,
        reason: str = "",
        by_peer: bool = False,
        is_application: bool = False,
    ) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.reason = reason
        self.by_peer = by_peer
        self.is_application = is_application
        self.processed: bool | None = None
        if is_application and by_peer and error_code == ApplicationErrorCode.NOT_PROCESSED:
            self.processed = False


class ConnectionClosedByPeer(ConnectionBroken):
    """The peer's application closed the connection; code 0 is the clean close."""

    @property
    def is_clean(self) -> bool:
        """Whether the peer closed with code 0 (:attr:`ApplicationErrorCode.NO_ERROR`)."""
        return self.error_code == ApplicationErrorCode.NO_ERROR


class ConnectionTimedOut(ConnectionBroken):
    """Nothing was heard from the peer for the idle timeout (RFC 9000 section 10.1)."""


class StatelessReset(ConnectionBroken):
    """The peer has lost the connection's state, most often by a restart (RFC 9000 section 10.3)."""


class ProtocolError(ConnectionBroken):
    """One side broke the QUIC protocol, or failed inside its transport (RFC 9000 section 20.1)."""


class MigrationFailed(trio.BrokenResourceError):
    """The connection could not move to another network path (RFC 9000 section 9).

    It stays where it was, and goes on; subclasses say why.
    """


class MigrationForbidden(MigrationFailed):
    """This side is the server, or the server permits no moves (disable_active_migration)."""


class PathNotValidated(MigrationFailed):
    """The server has not answered on the new path (RFC 9000 section 8.2.4)."""


class NoConnectionIdLeft(MigrationFailed):
    """The server has given no connection ID for another path (RFC 9000 section 9.5)."""


class HandshakeFailed(ConnectionBroken):
    """The connection could not be established; subclasses tell the usual causes apart.

    Attributes:
      alert: the TLS alert number (RFC 8446 section 6), or ``None``.
    """

    default_alert: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        *,
        alert: int | None = None,
        error_code: int | None = None,
        reason: str = "",
        by_peer: bool = False,
    ) -> None:
        super().__init__(message, error_code=error_code, reason=reason, by_peer=by_peer)
        self.alert: int | None = self.default_alert if alert is None else alert


class NoCommonProtocol(HandshakeFailed):
    """Client and server offer no ALPN protocol in common (RFC 7301, RFC 9001 section 8.1)."""

    default_alert: ClassVar[int | None] = 120


class CertificateUntrusted(HandshakeFailed):
    """The peer's certificate chain leads to no trusted certification authority.

    Or the application's `verify` function has rejected it; its exception is the ``__cause__``.
    """

    default_alert: ClassVar[int | None] = 48


class CertificateExpired(HandshakeFailed):
    """A certificate in the peer's chain is expired or not valid yet."""

    default_alert: ClassVar[int | None] = 45


class CertificateNameMismatch(HandshakeFailed):
    """The peer's certificate is valid, but not for the name that was dialled."""

    default_alert: ClassVar[int | None] = 42


class CertificatePinMismatch(HandshakeFailed):
    """The peer's certificate is not the one pinned by its SHA-256 fingerprint."""

    default_alert: ClassVar[int | None] = 42


class ClientCertificateRequired(HandshakeFailed):
    """The server requires a client certificate, and none was presented."""

    default_alert: ClassVar[int | None] = 116


class HandshakeTimedOut(HandshakeFailed):
    """No answer, or no complete handshake, in ``TransportConfig.handshake_timeout``."""


class ServerUnreachable(HandshakeFailed):
    """The network reports that nothing arrives at the server, for instance a closed port.

    On Linux the report is an ICMP message, or comes from this host's own routes.  It counts
    only before the server has answered, and only if it is about a datagram sent earlier.

    Attributes:
      errno: the system's number of the error, of the module ``errno``: ``ECONNREFUSED`` if nothing
        listens on the port, ``EHOSTUNREACH`` or ``ENETUNREACH`` if there is no way to the
        host, ``EACCES`` if a firewall on the way forbids it.
    """

    def __init__(self, message: str, *, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class VersionNegotiationFailed(HandshakeFailed):
    """Client and server have no QUIC version in common (RFC 9368)."""


class ConnectionRefused(HandshakeFailed):
    """The server refused the connection, for instance because it is full (RFC 9000 section 20.1).

    The server has answered; if no server listens at all, see :class:`ServerUnreachable`.
    """


class StreamBroken(trio.BrokenResourceError):
    """The peer ended one direction of one stream; the connection goes on.

    Attributes:
      stream_id: the stream's ID.
      error_code: the application error code that the peer sent.
      processed: ``False``: the peer's application has seen nothing of the stream, so that
        sending it again is safe; ``None``: that is not known.
    """

    def __init__(self, message: str, *, stream_id: int, error_code: int) -> None:
        super().__init__(message)
        self.stream_id = stream_id
        self.error_code = error_code
        is_refused = error_code == ApplicationErrorCode.NOT_PROCESSED
        self.processed: bool | None = False if is_refused else None


class StreamReset(StreamBroken):
    """Receiving: the peer reset the stream (RESET_STREAM); unread data is discarded."""


class StreamStopped(StreamBroken):
    """Sending: the peer does not want the rest of this stream (STOP_SENDING)."""


class MessageRefusedByPeer(StreamStopped):
    """Sending: the peer does not take this message, or this item of a sequence or batch.

    The connection, and other messages on it, go on.

    Attributes:
      stream_id: the stream's ID.
      error_code: why, an :class:`ApplicationErrorCode` if the peer uses one.
      size: the size of the message in bytes, before compression.  For a sequence or a batching
        channel it is the size of the largest item sent.
      limit: the largest message that the peer takes, in bytes; ``None``: it did not say.
    """

    def __init__(
        self, message: str, *, stream_id: int, error_code: int, size: int, limit: int | None
    ) -> None:
        super().__init__(message, stream_id=stream_id, error_code=error_code)
        self.size = size
        self.limit = limit


class StreamTooLarge(trio.BrokenResourceError):
    """The peer sent more on a stream than the receiving call takes; the connection goes on.

    The call has discarded the arrived data, and has asked the peer to stop (STOP_SENDING).

    Attributes:
      stream_id: the stream's ID.
      maximum: the limit, in bytes.
      code: the application error code sent to the peer.
    """

    def __init__(self, message: str, *, stream_id: int, maximum: int, code: int) -> None:
        super().__init__(message)
        self.stream_id = stream_id
        self.maximum = maximum
        self.code = code


class MessageRefused(trio.BrokenResourceError):
    """A message could not be taken in; the connection and other messages go on.

    Attributes:
      code: the code sent to the sender, an :class:`ApplicationErrorCode`.
      size: bytes of the message as its sender announced them; ``None``: it did not, or the
        size is not the reason.
      limit: the largest message taken, in bytes; ``None`` if `size` is ``None``.
    """

    def __init__(
        self,
        message: str,
        code: ApplicationErrorCode,
        *,
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.size = size
        self.limit = limit


class MessageTooLarge(ValueError):
    """A message, or an item, is above the limit announced by its receiver, or set on this
    side; it was not sent.

    Attributes:
      size: the size of the message in bytes, before compression.
      limit: the largest message that can be sent, in bytes.
    """

    def __init__(self, size: int, limit: int, *, whose: str = "the peer's limit") -> None:
        super().__init__(
            f"a message of {size} bytes was not sent: {whose} (max_message_size) is {limit} bytes"
        )
        self.size = size
        self.limit = limit


class CompressionUnsupported(RuntimeError):
    """The peer has announced that it cannot unpack this compression; nothing was sent."""


class DatagramTooLarge(ValueError):
    """The datagram is larger than the path or the peer takes; nothing was sent.

    Attributes:
      size: the size of the refused payload in bytes.
      maximum: the largest payload that can be sent at present, in bytes.
    """

    def __init__(self, size: int, maximum: int) -> None:
        super().__init__(
            f"a datagram of {size} bytes was refused: at most {maximum} bytes can be sent now"
        )
        self.size = size
        self.maximum = maximum


class DatagramsUnsupported(RuntimeError):
    """The peer takes no datagrams, or they are switched off here (RFC 9221 section 3)."""
