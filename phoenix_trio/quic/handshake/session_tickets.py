"""Session tickets in memory: those which a server has issued, and those of a client.

Floor 0.  For :mod:`~phoenix_trio.quic.handshake.tls`.  Tickets resume sessions (RFC 8446
section 2.2).  A client keeps its tokens with them, which prove its address to a server to which
it comes back (RFC 9000 section 8.1.3).
"""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Generic, TypeAlias, TypeVar, final

import attrs
from aioquic.tls import SessionTicket

from ..wire.protection import VERSION_1

__all__ = [
    "ServerTicketStore",
    "SessionStore",
    "TrustScopedSessions",
    "ticket_version",
    "with_version",
]

#: RFC 8446 section 4.6.1: no ticket may be kept for longer, whatever the server says.
_LONGEST_TICKET_LIFETIME = dt.timedelta(days=7)

#: Bytes of a ticket at most.  It travels in the ClientHello, which must not outgrow the 16 KiB
#: of a handshake flight.
_LARGEST_TICKET = 4096

#: Bytes of a token at most.  It travels in every Initial packet of a connection.
_LARGEST_TOKEN = 512


#: Under this number, which no TLS extension has, a ticket keeps its QUIC version.
_VERSION: Final = 0x1_0000


def with_version(ticket: SessionTicket, version: int) -> SessionTicket:
    """The ticket of a connection with this QUIC version."""
    kept = [*ticket.other_extensions, (_VERSION, version.to_bytes(4, "big"))]
    return replace(ticket, other_extensions=kept)


def ticket_version(ticket: SessionTicket) -> int:
    """The QUIC version to which a ticket belongs: it must not resume another one (RFC 9369
    section 5)."""
    for kind, content in ticket.other_extensions:
        if kind == _VERSION:
            return int.from_bytes(content, "big")
    return VERSION_1


@final
class ServerTicketStore:
    """The session tickets a server has issued, each good for one resumption.

    A ticket is taken out when it comes back, so no second ClientHello can
    resume with it, which protects against replayed 0-RTT data (RFC 8446 section
    8.1) within one process: the store is not shared with other processes, nor kept
    over a restart.  The oldest goes when
    the store is full, and its client makes a full handshake.

    With shared keys, a ticket holds its session as well
    (:mod:`~phoenix_trio.quic.handshake.sealed_tickets`).  It resumes that at every
    server with the keys, but without early data where it is not in the store.

    Args:
      max_tickets: how many tickets are kept, at least 1.
    """

    def __init__(self, max_tickets: int = 8192) -> None:
        if max_tickets < 1:
            raise ValueError(f"max_tickets must be at least 1, not {max_tickets}")
        self._max_tickets = max_tickets
        self._tickets: OrderedDict[bytes, SessionTicket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    def __repr__(self) -> str:
        return f"<ServerTicketStore with {len(self)} of {self._max_tickets} tickets>"

    def add(self, ticket: SessionTicket) -> None:
        """Remember a ticket which was issued just now."""
        self._tickets[ticket.ticket] = ticket
        self._tickets.move_to_end(ticket.ticket)
        while len(self._tickets) > self._max_tickets:
            self._tickets.popitem(last=False)

    def take(self, label: bytes) -> SessionTicket | None:
        """The ticket with this label, which is forgotten; ``None``: unknown, used or expired."""
        ticket = self._tickets.pop(label, None)
        return ticket if ticket is not None and ticket.is_valid else None

    def clear(self) -> None:
        """Forget all tickets: every client makes a full handshake next time.

        With shared keys, clients resume their sessions without early data.
        """
        self._tickets.clear()


_SessionKey: TypeAlias = tuple[bytes, str, int, tuple[str, ...]]
_TokenKey: TypeAlias = tuple[bytes, str, int]

K = TypeVar("K")
V = TypeVar("V")


class _NewestOfEach(Generic[K, V]):
    """The newest few values of each key, and so many in all.

    Args:
      each: how many are kept of one key.
      maximum: how many are kept in all; further ones take the places of the oldest of the
        key which was used least recently.
    """

    def __init__(self, each: int, maximum: int) -> None:
        self._each = each
        self._maximum = maximum
        # Of each key the oldest first; keys in the order of their last use.
        self._values: OrderedDict[K, list[V]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, key: K, value: V) -> None:
        """Add the newest value of a key."""
        values = self._values.setdefault(key, [])
        self._values.move_to_end(key)
        values.append(value)
        self._count += 1
        if len(values) > self._each:
            del values[0]
            self._count -= 1
        while self._count > self._maximum:
            oldest_key, oldest = next(iter(self._values.items()))
            del oldest[0]
            self._count -= 1
            if not oldest:
                del self._values[oldest_key]

    def take(self, key: K) -> V | None:
        """Remove and return the newest value of a key; ``None``: there is none."""
        values = self._values.get(key)
        if values is None:
            return None
        self._values.move_to_end(key)
        value = values.pop()
        self._count -= 1
        if not values:
            del self._values[key]
        return value

    def clear(self) -> None:
        """Forget all values."""
        self._values.clear()
        self._count = 0


@final
class SessionStore:
    """A client's session tickets, in memory: they make the next handshake shorter.

    A resumed handshake shows no certificate: the ticket stands for the
    verification of the first one.  So tickets are found only by a
    :class:`ClientTLS` with the same trust settings as the one which earned
    them, also if several share a store.  Each ticket is used once (RFC 8446
    appendix C.4: a second use would let observers link the connections).
    The ticket which was used least recently goes when the store is full.

    It keeps the newest few tokens of each server as well (RFC 9000 section 8.1.3), as many in
    all as tickets.  With one, a server which is under load lets the client in without another
    round trip.  A token is used once, and by clients of equal trust alone, too: it shows that
    they are one.

    Args:
      max_tickets: how many tickets are kept, at least 1.
    """

    #: Several connections at once need a ticket each; more would only be old ones.
    TICKETS_PER_SERVER: Final = 4

    #: The same for tokens.
    TOKENS_PER_SERVER: Final = 4

    def __init__(self, max_tickets: int = 256) -> None:
        if max_tickets < 1:
            raise ValueError(f"max_tickets must be at least 1, not {max_tickets}")
        self._max_tickets = max_tickets
        self._tickets: _NewestOfEach[_SessionKey, SessionTicket] = _NewestOfEach(
            self.TICKETS_PER_SERVER, max_tickets
        )
        self._tokens: _NewestOfEach[_TokenKey, bytes] = _NewestOfEach(
            self.TOKENS_PER_SERVER, max_tickets
        )

    def __len__(self) -> int:
        return len(self._tickets)

    def __repr__(self) -> str:
        return f"<SessionStore with {len(self)} of {self._max_tickets} tickets>"

    def put(
        self,
        server: str,
        port: int,
        alpn: Sequence[str],
        ticket: SessionTicket,
        *,
        scope: bytes = b"",
    ) -> None:
        """Remember a ticket; one which is expired or larger than 4096 bytes is not kept.

        Args:
          server: the name which was verified.
          port: the server's port.
          alpn: the protocols which were offered.
          ticket: what the server sent.
          scope: stands for the trust settings under which it was earned.
        """
        if len(ticket.ticket) > _LARGEST_TICKET or not ticket.is_valid:
            return
        latest = ticket.not_valid_before + _LONGEST_TICKET_LIFETIME
        if ticket.not_valid_after > latest:
            ticket = replace(ticket, not_valid_after=latest)
        self._tickets.put((scope, server, port, tuple(alpn)), ticket)

    def take(
        self, server: str, port: int, alpn: Sequence[str], *, scope: bytes = b""
    ) -> SessionTicket | None:
        """The newest valid ticket for this server, which is removed; ``None``: there is none."""
        key = (scope, server, port, tuple(alpn))
        while (ticket := self._tickets.take(key)) is not None:
            if ticket.is_valid:
                return ticket
        return None

    def put_token(self, server: str, port: int, token: bytes, *, scope: bytes = b"") -> None:
        """Remember a token of a server; one which is larger than 512 bytes is not kept.

        Args: as for :meth:`put`.
        """
        if not 0 < len(token) <= _LARGEST_TOKEN:
            return
        self._tokens.put((scope, server, port), token)

    def take_token(self, server: str, port: int, *, scope: bytes = b"") -> bytes:
        """The newest token of this server, which is removed; empty: there is none."""
        return self._tokens.take((scope, server, port)) or b""

    def clear(self) -> None:
        """Forget all tickets and tokens."""
        self._tickets.clear()
        self._tokens.clear()


@attrs.frozen(eq=False)
class TrustScopedSessions:
    """A :class:`SessionStore` as one :class:`ClientTLS` sees it: only tickets of equal trust."""

    store: SessionStore
    scope: bytes = attrs.field(repr=False)

    def put(self, server: str, port: int, alpn: Sequence[str], ticket: SessionTicket) -> None:
        """As :meth:`SessionStore.put`."""
        self.store.put(server, port, alpn, ticket, scope=self.scope)

    def take(self, server: str, port: int, alpn: Sequence[str]) -> SessionTicket | None:
        """As :meth:`SessionStore.take`."""
        return self.store.take(server, port, alpn, scope=self.scope)

    def put_token(self, server: str, port: int, token: bytes) -> None:
        """As :meth:`SessionStore.put_token`."""
        self.store.put_token(server, port, token, scope=self.scope)

    def take_token(self, server: str, port: int) -> bytes:
        """As :meth:`SessionStore.take_token`."""
        return self.store.take_token(server, port, scope=self.scope)
