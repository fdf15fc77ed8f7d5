"""Makes an engine from the settings of a client or a server.

Floor 1, sans-IO.  For the endpoint, when it dials or admits a client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from ..config import TransportConfig
from .connection_id_format import random_connection_id
from .engine import Engine
from .established.memory_budget import EndpointMemory
from .handshake.admission import Admit
from .handshake.settings import client_settings, server_settings
from .handshake.tls import ClientTLS, ServerTLS
from .preferred_address import PreferredAddresses
from .shared_keys import SharedKeys
from .wire.protection import VERSION_1, VERSION_2
from .wire.qlog import TraceLogger

__all__ = ["make_client_engine", "make_server_engine"]


def make_client_engine(
    *,
    config: TransportConfig,
    client_tls: ClientTLS,
    host: str,
    port: int,
    alpn: tuple[str, ...],
    reset_token: Callable[[bytes], bytes],
    key_log: TextIO | None,
    trace_logger: TraceLogger | None,
    memory: EndpointMemory | None = None,
) -> Engine:
    """An engine that will dial `host`; it resumes a session if the store has a ticket for it."""
    settings = client_settings(
        client_tls=client_tls,
        host=host,
        port=port,
        alpn=alpn,
        key_log=key_log,
        trace_logger=trace_logger,
        preferred_version=VERSION_2 if config.preferred_version == 2 else VERSION_1,
    )
    return Engine(config=config, memory=memory, settings=settings, reset_token=reset_token)


def make_server_engine(
    *,
    config: TransportConfig,
    server_tls: ServerTLS,
    alpn: tuple[str, ...],
    admit: Admit,
    reset_token: Callable[[bytes], bytes],
    key_log: TextIO | None,
    trace_logger: TraceLogger | None,
    memory: EndpointMemory | None = None,
    make_connection_id: Callable[[], bytes] = random_connection_id,
    keys: SharedKeys | None = None,
    preferred: PreferredAddresses | None = None,
) -> Engine:
    """An engine for an admitted client, with the server's present identity."""
    settings = server_settings(
        server_tls=server_tls,
        alpn=alpn,
        admit=admit,
        reset_token=reset_token,
        make_connection_id=make_connection_id,
        keys=keys,
        preferred=preferred,
        key_log=key_log,
        trace_logger=trace_logger,
    )
    return Engine(config=config, memory=memory, settings=settings, reset_token=reset_token)
