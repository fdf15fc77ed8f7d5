"""Makes the exception that users see when a connection ends.

Floor 0, sans-IO.  All causes are in one table, so that each has exactly one type, and every text
says what happened, which side did it, and what to do.
"""

from __future__ import annotations

import errno
import os
from enum import Enum, auto

from ..errors import (
    ConnectionClosedByPeer,
    ConnectionTimedOut,
    HandshakeFailed,
    HandshakeTimedOut,
    ProtocolError,
    ServerUnreachable,
    StatelessReset,
    VersionNegotiationFailed,
)
from .handshake.tls_context import handshake_error
from .path_address import Address, display_address
from .stream_errors import describe_code
from .wire.errors import CODE_NAMES, CONNECTION_REFUSED, NO_ERROR

__all__ = ["Cause", "describe_unreachable", "error_for"]


class Cause(Enum):
    """The side, or the event, that ended a connection."""

    LOCAL = auto()
    """This side's application."""
    LOCAL_PROTOCOL_ERROR = auto()
    """This side's transport or TLS found a fault."""
    PEER = auto()
    """A CONNECTION_CLOSE from the peer."""
    IDLE_TIMEOUT = auto()
    STATELESS_RESET = auto()
    HANDSHAKE_TIMEOUT = auto()
    UNREACHABLE = auto()
    """The network reports that packets do not arrive at the server."""


def describe_unreachable(address: Address, number: int) -> str:
    """The text of :exc:`~phoenix_trio.ServerUnreachable` for an address and an :mod:`errno`."""
    host, port = display_address(address)[:2]
    if number == errno.ECONNREFUSED:
        return f"connection refused: nothing listens on {host} port {port}/udp"
    return f"{host} port {port}/udp cannot be reached: {os.strerror(number)}"


def _name(error_code: int) -> str:
    name = CODE_NAMES.get(error_code)
    return f"{name} (0x{error_code:x})" if name else f"0x{error_code:x}"


def error_for(
    cause: Cause,
    *,
    error_code: int,
    frame_type: int | None,
    reason: str,
    handshake_complete: bool,
    is_client: bool,
    failure: Exception | None,
    alpn: str | None = None,
) -> Exception | None:
    """The exception for the end of a connection; ``None`` when the application closed it here.

    Args:
      cause: the side, or the event, that ended it.
      error_code: the code of the CONNECTION_CLOSE, sent or received; the system's error number
        for ``UNREACHABLE``.
      frame_type: ``None`` marks an application close (RFC 9000 section 19.19).
      reason: the reason phrase; from the peer it is untrusted text.
      handshake_complete: whether TLS was complete on this side.
      is_client: which side this is.
      failure: the error of the TLS layer, if it has failed.
      alpn: the connection's protocol, if it is known; it says what application codes mean.
    """
    peer = "the server" if is_client else "the client"
    quoted = f": {reason!r}" if reason else ""
    if cause is Cause.LOCAL:
        return None
    if cause is Cause.IDLE_TIMEOUT:
        if handshake_complete:
            return ConnectionTimedOut(f"nothing was heard from {peer} for the idle timeout")
        return HandshakeTimedOut(
            f"the handshake got no (complete) answer from {peer} within the idle timeout;"
            " is the address right, and UDP let through?"
        )
    if cause is Cause.STATELESS_RESET:
        return StatelessReset(
            f"{peer} does not know this connection any more (stateless reset);"
            " most likely it was restarted",
            by_peer=True,
        )
    if cause is Cause.HANDSHAKE_TIMEOUT:
        if is_client:
            return HandshakeTimedOut(
                "the handshake got no (complete) answer from the server within handshake_timeout;"
                " is the address right, and UDP let through?"
            )
        return HandshakeTimedOut(f"{peer} did not complete the handshake in time")
    if cause is Cause.UNREACHABLE:
        return ServerUnreachable(reason, errno=error_code)
    by_peer = cause is Cause.PEER
    is_application = frame_type is None
    if is_application:
        return ConnectionClosedByPeer(
            f"{peer} closed the connection with application code"
            f" {describe_code(error_code, alpn)}{quoted}",
            error_code=error_code,
            reason=reason,
            by_peer=True,
            is_application=True,
        )
    if 0x100 <= error_code <= 0x1FF or (
        not handshake_complete and error_code == CONNECTION_REFUSED
    ):
        return handshake_error(
            error_code=error_code, reason=reason, by_peer=by_peer, failure=failure
        )
    who = f"{peer} reported" if by_peer else "this side found"
    text = f"{who} a QUIC error: {_name(error_code)}{quoted}"
    if not handshake_complete:
        kind = (
            VersionNegotiationFailed
            if "common protocol version" in reason and not by_peer
            else HandshakeFailed
        )
        return kind(
            f"the handshake failed: {text}", error_code=error_code, reason=reason, by_peer=by_peer
        )
    if by_peer and error_code == NO_ERROR:
        # A transport-level NO_ERROR is a clean close without an application code.
        return ConnectionClosedByPeer(
            f"{peer} closed the connection without an error",
            error_code=0,
            reason=reason,
            by_peer=True,
        )
    return ProtocolError(text, error_code=error_code, reason=reason, by_peer=by_peer)
