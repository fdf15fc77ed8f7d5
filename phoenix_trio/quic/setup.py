"""From our settings to an engine: what aioquic is told about TLS, versions, logs and tickets.

Floor 1, sans-IO.  For the endpoint, when it dials or admits a client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TextIO

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.logger import QuicLogger
from aioquic.tls import SessionTicket

from ..config import TransportConfig
from .admission import CONNECTION_ID_LENGTH, SUPPORTED_VERSIONS, Admit
from .engine import Engine
from .memory_budget import EndpointMemory
from .tls import ClientTLS, ServerTLS, normalize_server_name
from .tls_context import client_policy, server_policy

__all__ = ["check_alpn", "make_client_engine", "make_server_engine"]


def check_alpn(alpn: Sequence[str]) -> tuple[str, ...]:
    """ALPN protocol names as RFC 7301 allows them: 1 to 255 bytes each, at least one.

    Raises:
      TypeError: a single string, or something that is not a string in the list.
      ValueError: an empty list or name, or a name which is too long or not ASCII.
    """
    if isinstance(alpn, (str, bytes)):
        raise TypeError(f'alpn must be a sequence of names, such as ("{alpn!s}",)')
    names = tuple(alpn)
    if not names:
        raise ValueError("alpn must name at least one protocol: QUIC requires ALPN")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"alpn must hold strings, not {name!r}")
        if not name.isascii() or not 1 <= len(name) <= 255:
            raise ValueError(f"alpn: {name!r} must have 1 to 255 ASCII characters")
    return names


def _configuration(
    *,
    is_client: bool,
    alpn: tuple[str, ...],
    key_log: TextIO | None,
    trace_logger: QuicLogger | None,
) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=list(alpn),
        connection_id_length=CONNECTION_ID_LENGTH,
        supported_versions=list(SUPPORTED_VERSIONS),
        secrets_log_file=key_log,
        quic_logger=trace_logger,
    )


def make_client_engine(
    *,
    config: TransportConfig,
    client_tls: ClientTLS,
    host: str,
    port: int,
    alpn: tuple[str, ...],
    reset_token: Callable[[bytes], bytes],
    key_log: TextIO | None,
    trace_logger: QuicLogger | None,
    memory: EndpointMemory | None = None,
) -> Engine:
    """An engine which will dial `host`, resuming a session if the store has a ticket for it."""
    server_name = client_tls.server_name or normalize_server_name(host)
    configuration = _configuration(
        is_client=True, alpn=alpn, key_log=key_log, trace_logger=trace_logger
    )
    configuration.server_name = server_name
    store = client_tls.session_store
    ticket_handler: Callable[[SessionTicket], None] | None = None
    if store is not None:
        ticket = store.take(server_name, port, alpn)
        if ticket is not None:
            if not client_tls.early_data:
                ticket = replace(ticket, max_early_data_size=None)  # resumption without 0-RTT
            configuration.session_ticket = ticket

        def ticket_handler(new: SessionTicket) -> None:
            store.put(server_name, port, alpn, new)

    return Engine(
        config=config,
        memory=memory,
        configuration=configuration,
        policy=client_policy(client_tls, server_name),
        reset_token=reset_token,
        session_ticket_handler=ticket_handler,
    )


def make_server_engine(
    *,
    config: TransportConfig,
    server_tls: ServerTLS,
    alpn: tuple[str, ...],
    admit: Admit,
    reset_token: Callable[[bytes], bytes],
    key_log: TextIO | None,
    trace_logger: QuicLogger | None,
    memory: EndpointMemory | None = None,
) -> Engine:
    """An engine for an admitted client, with the server's identity as it is now."""
    identity = server_tls.identity
    configuration = _configuration(
        is_client=False, alpn=alpn, key_log=key_log, trace_logger=trace_logger
    )
    configuration.certificate = identity.certificate
    configuration.certificate_chain = list(identity.chain)
    configuration.private_key = identity.private_key
    return Engine(
        config=config,
        memory=memory,
        configuration=configuration,
        policy=server_policy(identity, server_tls),
        reset_token=reset_token,
        original_destination_connection_id=admit.original_destination_cid,
        retry_source_connection_id=admit.retry_source_cid,
        initial_keys=admit.initial_keys,
        session_ticket_fetcher=server_tls.tickets.take,
        session_ticket_handler=server_tls.tickets.add,
    )
