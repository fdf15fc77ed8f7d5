"""From the settings of a client or a server to those of one handshake.

Floor 1, sans-IO.  Made for each connection, so it costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TextIO

from aioquic import tls
from aioquic.tls import SessionTicket

from ..connection_id_format import CONNECTION_ID_LENGTH, random_connection_id
from ..path_address import Address
from ..preferred_address import PreferredAddresses
from ..shared_keys import SharedKeys
from ..wire.protection import VERSION_1
from ..wire.qlog import TraceLogger
from .admission import SUPPORTED_VERSIONS, Admit
from .identities import Identity
from .initial_protection import InitialKeys
from .sealed_tickets import open_ticket, seal_ticket
from .server_names import normalize_server_name
from .session_tickets import ticket_version
from .tls import ClientTLS, ServerTLS
from .tls_context import PhoenixTLSContext, Policy, adopt, client_policy, server_policy

__all__ = ["HandshakeSettings", "MAX_EARLY_DATA", "client_settings", "server_settings"]

#: RFC 9001 section 4.6.1: the only value which a ticket for 0-RTT may have.
MAX_EARLY_DATA: Final = 0xFFFF_FFFF


class HandshakeSettings:
    """The values which are known before a handshake begins.

    Args:
      policy: how the peer's certificate is judged.
      alpn: application protocols, the preferred one first.
      key_log: takes the secrets in the format of NSS; ``None``: nothing does.
      trace_logger: takes qlog events; ``None``: nothing does.
      is_client: whether this side is the client.
    """

    __slots__ = (
        "alpn",
        "cid_length",
        "destination_cid",
        "find_ticket",
        "first_version",
        "identity",
        "initial_keys",
        "is_client",
        "is_validated",
        "keep_ticket",
        "keep_token",
        "key_log",
        "make_connection_id",
        "make_token",
        "original_destination_cid",
        "policy",
        "preferred",
        "preferred_cid",
        "reset_token",
        "retry_source_cid",
        "seal_ticket",
        "server_name",
        "ticket",
        "token",
        "trace_logger",
        "versions",
    )

    def __init__(
        self,
        *,
        policy: Policy,
        alpn: Sequence[str],
        key_log: TextIO | None,
        trace_logger: TraceLogger | None,
        is_client: bool,
    ) -> None:
        self.is_client: bool = is_client
        self.policy: Policy = policy
        self.alpn: list[str] = list(alpn)
        self.key_log: TextIO | None = key_log
        self.trace_logger: TraceLogger | None = trace_logger
        self.versions: Sequence[int] = SUPPORTED_VERSIONS
        """QUIC versions, the preferred one first."""
        self.first_version: int = 0
        """Client: of its first packets; 0: the preferred one.  A server which knows a preferred
        version goes over to it without another round trip (RFC 9368 section 2.3)."""
        self.cid_length: int = CONNECTION_ID_LENGTH
        self.make_connection_id: Callable[[], bytes] = random_connection_id
        """Makes this side's connection IDs, of `cid_length` bytes."""

        # Clients.
        self.server_name: str | None = None
        self.ticket: SessionTicket | None = None
        """Resumes a session."""
        self.token: bytes = b""
        """Proves this side's address, from an earlier connection; empty: there is none."""
        self.keep_token: Callable[[bytes], None] | None = None
        """Takes a token for a later connection; ``None``: it is of no use."""

        # Servers.
        self.identity: Identity | None = None
        self.find_ticket: Callable[[bytes], SessionTicket | None] | None = None
        self.seal_ticket: Callable[[SessionTicket], bytes] | None = None
        """Makes what the client is given of a session; ``None``: a random label."""
        self.destination_cid: bytes = b""
        """Of the packet which was admitted."""
        self.original_destination_cid: bytes = b""
        self.retry_source_cid: bytes | None = None
        self.initial_keys: InitialKeys | None = None
        """The client's, if they were derived to see that its packet is authentic."""
        self.reset_token: Callable[[bytes], bytes] | None = None
        """Derives the stateless reset token of a connection ID."""
        self.is_validated: bool = False
        """Whether the client has proved its address before."""
        self.make_token: Callable[[Address, float], bytes] | None = None
        """Makes a token for the client's later connections; ``None``: it is given none."""
        self.preferred: PreferredAddresses | None = None
        """The addresses to which the client is asked to move; ``None``: to none."""
        self.preferred_cid: bytes = b""
        """The connection ID for them, with sequence number 1."""

        # Both.
        self.keep_ticket: Callable[[SessionTicket], None] | None = None
        """Takes new tickets; ``None``: they are of no use."""

    def make_context(self) -> tls.Context:
        """The state of TLS; :meth:`adopt` follows once its callbacks are set."""
        context = tls.Context(
            is_client=self.is_client,
            alpn_protocols=self.alpn,
            max_early_data=None if self.is_client else MAX_EARLY_DATA,
            server_name=self.server_name,
        )
        if self.identity is not None:
            context.certificate = self.identity.certificate
            context.certificate_chain = list(self.identity.chain)
            context.certificate_private_key = self.identity.private_key
        return context

    def adopt(self, context: tls.Context) -> PhoenixTLSContext:
        """Put the context under the policy."""
        identity = self.identity
        return adopt(
            context, self.policy, b"" if identity is None else identity.certificate_message
        )


def client_settings(
    *,
    client_tls: ClientTLS,
    host: str,
    port: int,
    alpn: Sequence[str],
    key_log: TextIO | None = None,
    trace_logger: TraceLogger | None = None,
    preferred_version: int = VERSION_1,
) -> HandshakeSettings:
    """For dialling `host`, to resume a session if the store has a ticket for it.

    Raises:
      ValueError: `host` is neither a DNS name nor an IP address.
    """
    server_name = client_tls.server_name or normalize_server_name(host)
    settings = HandshakeSettings(
        is_client=True,
        policy=client_policy(client_tls, server_name),
        alpn=alpn,
        key_log=key_log,
        trace_logger=trace_logger,
    )
    settings.server_name = server_name
    others = [version for version in SUPPORTED_VERSIONS if version != preferred_version]
    settings.versions = (preferred_version, *others)
    if preferred_version != VERSION_1:
        settings.first_version = VERSION_1  # all servers know it
    store = client_tls.session_store
    if store is not None:
        names = tuple(alpn)
        ticket = store.take(server_name, port, names)
        if ticket is not None and not client_tls.early_data:
            ticket = replace(ticket, max_early_data_size=None)  # resumption without 0-RTT
        settings.ticket = ticket
        if ticket is not None:
            # RFC 9369 section 5: tickets are of use with the version which they came by alone.
            settings.first_version = ticket_version(ticket)

        def keep_ticket(new: SessionTicket) -> None:
            store.put(server_name, port, names, new)

        def keep_token(new: bytes) -> None:
            store.put_token(server_name, port, new)

        settings.keep_ticket = keep_ticket
        settings.keep_token = keep_token
        settings.token = store.take_token(server_name, port)
    return settings


def server_settings(
    *,
    server_tls: ServerTLS,
    alpn: Sequence[str],
    admit: Admit,
    reset_token: Callable[[bytes], bytes],
    make_connection_id: Callable[[], bytes] = random_connection_id,
    preferred: PreferredAddresses | None = None,
    key_log: TextIO | None = None,
    trace_logger: TraceLogger | None = None,
    keys: SharedKeys | None = None,
) -> HandshakeSettings:
    """For a client which was admitted, with the server's identity as it is now.

    Sessions are resumed of other servers, too, which have the same `keys`.
    """
    identity = server_tls.identity
    settings = HandshakeSettings(
        is_client=False,
        policy=server_policy(identity, server_tls),
        alpn=alpn,
        key_log=key_log,
        trace_logger=trace_logger,
    )
    settings.identity = identity
    tickets = server_tls.tickets
    settings.keep_ticket = tickets.add
    if keys is None:
        settings.find_ticket = tickets.take
    else:
        # (With early data the first time, and without it from then on.)
        settings.find_ticket = lambda label: tickets.take(label) or open_ticket(keys, label)
        settings.seal_ticket = partial(seal_ticket, keys)
    settings.destination_cid = admit.destination_cid
    settings.original_destination_cid = admit.original_destination_cid
    settings.retry_source_cid = admit.retry_source_cid
    settings.initial_keys = admit.initial_keys
    settings.is_validated = admit.is_validated
    settings.make_token = admit.make_token
    settings.reset_token = reset_token
    settings.make_connection_id = make_connection_id
    if preferred is not None:
        settings.preferred = preferred
        settings.preferred_cid = make_connection_id()
    return settings
