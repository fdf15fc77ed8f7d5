"""The policies of a handshake: demands on the peer's certificate, and this side's own.

Floor 1, data.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs
from OpenSSL import crypto

from .identities import Identity, ServerIdentity
from .server_names import normalize_server_name
from .tls import DEFAULT_GROUPS, KNOWN_GROUPS, ClientTLS, ServerTLS
from .verdicts import Verdicts
from .verifiers import Verifier

__all__ = ["ClientPolicy", "Policy", "ServerPolicy", "client_policy", "server_policy"]


@attrs.frozen(kw_only=True, eq=False)
class ServerPolicy:
    """What a server demands of its clients."""

    client_store: crypto.X509Store | None = None
    """The authorities of client certificates."""
    verify: Verifier | None = None
    """Decides about client certificates instead.  Without either, none are asked for."""
    early_data: bool = False
    groups: tuple[str, ...] = KNOWN_GROUPS
    """For key exchange, the preferred one first."""
    verdicts: Verdicts | None = None
    """About chains which `client_store` has verified; ``None``: they are not remembered."""


@attrs.frozen(kw_only=True, eq=False)
class ClientPolicy:
    """What a client demands of its server, and what it shows."""

    server_name: str
    store: crypto.X509Store | None = None
    """``None`` only with a pin, `verify` or `accept_any`."""
    pinned_sha256: bytes | None = None
    verify: Verifier | None = None
    """Decides about the server's certificates instead."""
    accept_any: bool = False
    identity: Identity | None = None
    groups: tuple[str, ...] = DEFAULT_GROUPS
    """For key exchange, the preferred one first."""
    verdicts: Verdicts | None = None
    """About chains which `store` has verified; ``None``: they are not remembered."""

    def __attrs_post_init__(self) -> None:
        if (
            self.store is None
            and self.pinned_sha256 is None
            and self.verify is None
            and not self.accept_any
        ):
            raise ValueError("store is needed, as there is neither a pin, verify nor accept_any")


Policy: TypeAlias = ClientPolicy | ServerPolicy


def server_policy(identity: ServerIdentity, server_tls: ServerTLS) -> ServerPolicy:
    """The policy for one connection of a server, with its identity at this moment."""
    return ServerPolicy(
        client_store=identity.client_store,
        verify=server_tls.verify,
        early_data=server_tls.early_data,
        groups=server_tls.groups,
        verdicts=identity.verdicts if server_tls.verify is None else None,
    )


def client_policy(client_tls: ClientTLS, server_name: str) -> ClientPolicy:
    """The policy for dialling `server_name`.

    Raises:
      ValueError: `server_name` is neither a DNS name nor an IP address.
    """
    return ClientPolicy(
        server_name=normalize_server_name(server_name),
        store=client_tls.store,
        pinned_sha256=client_tls.pinned_sha256,
        verify=client_tls.verify,
        accept_any=client_tls.accepts_any_certificate,
        identity=client_tls.identity,
        groups=client_tls.groups,
        verdicts=client_tls.verdicts if client_tls.verify is None else None,
    )
