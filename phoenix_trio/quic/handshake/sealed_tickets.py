"""Session tickets which hold their session, sealed: any server with the same keys can resume it.

Floor 0, sans-IO.  For :mod:`~phoenix_trio.quic.handshake.settings` (RFC 5077 section 4, RFC 8446
section 4.6.1).  The bytes of a ticket:

========  =====  =============================================
offset    bytes  content
========  =====  =============================================
0         12     nonce, at random
12        20     sealed with AES-256-GCM: when it was issued, in seconds since 1970 (8); seconds
                 for which it holds (4); cipher suite of TLS (2); QUIC version (4); lengths of
                 the two fields that follow (1 each)
32        a      the resumption secret, 32 or 48 bytes
32+a      b      the ALPN protocol
32+a+b    16     authentication tag
========  =====  =============================================

An opened ticket never allows early data (0-RTT).  Servers do not tell each other which
tickets were used, so each could take the same early data once.  Only the server that has issued a
ticket remembers it, and takes early data with it, once
(:class:`~phoenix_trio.quic.handshake.session_tickets.ServerTicketStore`).
"""

from __future__ import annotations

import datetime as dt
import struct
from typing import Final

from aioquic.tls import CipherSuite, ExtensionType, SessionTicket

from ..shared_keys import NONCE_LENGTH, TAG_LENGTH, SharedKeys
from .session_tickets import ticket_version, with_version

__all__ = ["open_ticket", "seal_ticket"]

_HEAD: Final = struct.Struct("!QIHIBB")
_SMALLEST: Final = NONCE_LENGTH + _HEAD.size + TAG_LENGTH
_LARGEST: Final = _SMALLEST + 2 * 255

#: Separates tickets from all else that is sealed with the same secret.
_PURPOSE: Final = b"phoenix_trio session ticket 1"

#: By how much the clocks of servers that share keys may differ.
_CLOCK_TOLERANCE: Final = dt.timedelta(seconds=60)


def seal_ticket(keys: SharedKeys, ticket: SessionTicket) -> bytes:
    """The bytes of a ticket for this session."""
    alpn = dict(ticket.other_extensions).get(ExtensionType.ALPN, b"")
    issued = int(ticket.not_valid_before.timestamp())
    head = _HEAD.pack(
        issued,
        max(int(ticket.not_valid_after.timestamp()) - issued, 0),
        ticket.cipher_suite,
        ticket_version(ticket),
        len(ticket.resumption_secret),
        len(alpn),
    )
    return keys.seal(_PURPOSE, head + ticket.resumption_secret + alpn)


def open_ticket(keys: SharedKeys, label: bytes) -> SessionTicket | None:
    """The session in a ticket, without early data; ``None``: it was not sealed with these keys.

    Args:
      keys: those of this server.
      label: what the client has sent; any bytes at all.
    """
    if not _SMALLEST <= len(label) <= _LARGEST:
        return None
    content = keys.open(_PURPOSE, label)
    if content is None:
        return None
    # Authentic from here on, so it has the shape which `seal_ticket` gave it.
    issued, lifetime, cipher_suite, version, secret_size, alpn_size = _HEAD.unpack_from(content)
    secret_end = _HEAD.size + secret_size
    not_before = dt.datetime.fromtimestamp(issued, dt.UTC)
    ticket = SessionTicket(
        age_add=0,
        cipher_suite=CipherSuite(cipher_suite),
        not_valid_before=not_before - _CLOCK_TOLERANCE,
        not_valid_after=not_before + dt.timedelta(seconds=lifetime),
        resumption_secret=content[_HEAD.size : secret_end],
        server_name="",
        ticket=label,
        other_extensions=[(int(ExtensionType.ALPN), content[secret_end : secret_end + alpn_size])],
    )
    return with_version(ticket, version) if ticket.is_valid else None
