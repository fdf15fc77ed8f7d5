"""Keeps the transport parameters of the peer for the established connection.

Floor 1, data only.  The handshake half parses and checks the parameters (RFC 9000 section 18.2)
and stores them here.  An absent parameter has the RFC's default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["PeerParameters", "PreferredAddress"]

#: RFC 9000 section 18.2: the value of an absent parameter.
_DEFAULT_ACK_DELAY_EXPONENT = 3
_DEFAULT_MAX_ACK_DELAY = 0.025
_DEFAULT_MAX_UDP_PAYLOAD = 65_527
_DEFAULT_CONNECTION_ID_LIMIT = 2


class PreferredAddress:
    """The address that a server wants its client to use (RFC 9000 section 9.6).

    Args:
      ipv4: host and port; ``None``: no address of this family.
      ipv6: the same.
      connection_id: for that address, with sequence number 1.
      reset_token: the stateless reset token of that connection ID.
    """

    __slots__ = ("connection_id", "ipv4", "ipv6", "reset_token")

    def __init__(
        self,
        ipv4: tuple[str, int] | None,
        ipv6: tuple[str, int] | None,
        connection_id: bytes,
        reset_token: bytes,
    ) -> None:
        self.ipv4: tuple[str, int] | None = ipv4
        self.ipv6: tuple[str, int] | None = ipv6
        self.connection_id: bytes = connection_id
        self.reset_token: bytes = reset_token


class PeerParameters:
    """The values, in the units of the code: seconds and bytes."""

    __slots__ = (
        "ack_delay_exponent",
        "active_connection_id_limit",
        "available_versions",
        "disable_active_migration",
        "max_ack_delay",
        "max_data",
        "max_datagram_frame_size",
        "max_idle_timeout",
        "max_stream_data_bidi_local",
        "max_stream_data_bidi_remote",
        "max_stream_data_uni",
        "max_streams_bidi",
        "max_streams_uni",
        "max_udp_payload_size",
        "preferred_address",
        "stateless_reset_token",
    )

    def __init__(self) -> None:
        self.ack_delay_exponent: int = _DEFAULT_ACK_DELAY_EXPONENT
        """The exponent of ACK delays: a received delay shifted left by this is in microseconds."""
        self.active_connection_id_limit: int = _DEFAULT_CONNECTION_ID_LIMIT
        """The most connection IDs that the peer keeps for us at a time."""
        self.available_versions: Sequence[int] = ()
        """QUIC versions, from the version information (RFC 9368); empty: not said."""
        self.disable_active_migration: bool = False
        """Whether the peer's address is not to be sent to from another one of ours, except for
        its preferred address."""
        self.max_ack_delay: float = _DEFAULT_MAX_ACK_DELAY
        """The most seconds by which the peer delays acknowledgements."""
        self.max_data: int = 0
        self.max_datagram_frame_size: int = 0
        """Bytes of a DATAGRAM frame, header included (RFC 9221 section 3); 0: none is accepted."""
        self.max_idle_timeout: float = math.inf
        """Seconds; infinite: the peer has no idle timeout."""
        self.max_stream_data_bidi_local: int = 0
        """For bidirectional streams opened by the peer."""
        self.max_stream_data_bidi_remote: int = 0
        """For bidirectional streams opened by this side."""
        self.max_stream_data_uni: int = 0
        self.max_streams_bidi: int = 0
        self.max_streams_uni: int = 0
        self.max_udp_payload_size: int = _DEFAULT_MAX_UDP_PAYLOAD
        self.preferred_address: PreferredAddress | None = None
        self.stateless_reset_token: bytes = b""
        """Of the server's first connection ID; empty: none."""
