"""The interface between the handshake half of a connection and its owner.

Floor 1: interfaces only.  The owner holds the parts which both packet number spaces use
until the handshake is confirmed, and passes keys and packets on to the established half.
"""

from __future__ import annotations

from typing import Final, Protocol

from ..established.congestion import Control
from ..established.connection_ids import PeerIds
from ..established.parameters import PeerParameters
from ..established.paths import Paths
from ..established.rtt import RoundTrip
from ..path_address import Address

__all__ = ["APPLICATION", "EARLY", "HandshakeHost"]

#: The levels of application data: 0-RTT and 1-RTT packets.
EARLY: Final = 0
APPLICATION: Final = 1


class HandshakeHost(Protocol):
    """The owner of a :class:`~phoenix_trio.quic.handshake.connection.Handshake`.

    Every method may be called from within any method of the handshake, except those which
    only return facts.
    """

    paths: Paths
    """The network paths.  The handshake counts the datagrams which it is given and those
    which it sends (RFC 9000 section 8.1)."""
    peer_ids: PeerIds
    """The peer's connection IDs, for :attr:`paths`."""
    rtt: RoundTrip
    control: Control

    def coalesce(self, now: float, room: int, must_fill: bool) -> bytes:
        """A packet of application data for the rest of a datagram; empty: there is none.

        The owner counts its bytes on the path.

        Args:
          now: the time.
          room: bytes which the packet may have.
          must_fill: whether the datagram has to be full (RFC 9000 section 14.1).  A 1-RTT
            packet, behind which nothing can be put (section 12.2), has all of `room` then.
        """

    def on_peer_cid(self, cid: bytes) -> None:
        """The peer is to be addressed by this connection ID from now on (RFC 9000 section 7.2).

        Called for a Retry packet, and for the first packet of the peer.
        """

    def on_keys(
        self, level: int, for_sending: bool, suite: int, secret: bytes, version: int
    ) -> None:
        """The secret of a level's packets in one direction.

        Args:
          level: :data:`EARLY` or :data:`APPLICATION`.
          for_sending: whether this side sends with it.
          suite: the TLS cipher suite's number.
          secret: from which the keys follow (RFC 9001 section 5.1).
          version: the QUIC version whose labels apply.
        """

    def on_packet(self, level: int, packet: bytes, address: Address, now: float, mark: int) -> None:
        """A packet of a level whose key for receiving was given by :meth:`on_keys`.

        Its bytes were counted on the path.

        Args:
          level: as above.
          packet: as it came, without what was coalesced with it.
          address: where it came from.
          now: when it came: an earlier time, if it has waited for its keys.
          mark: the ECN codepoint of its datagram.
        """

    def on_parameters(self, parameters: PeerParameters, remembered: bool) -> None:
        """The peer's transport parameters, which were checked.

        Args:
          parameters: their values.
          remembered: whether they are those of the earlier connection from which a ticket
            comes, for 0-RTT (RFC 9000 section 7.4.1).
        """

    def on_crypto(self, data: bytes) -> None:
        """TLS has something to say in 1-RTT packets: session tickets."""

    def on_complete(self, alpn: str | None, early_data_accepted: bool, resumed: bool) -> None:
        """TLS is complete (RFC 9001 section 4.1.1); for a server, it is confirmed as well."""

    def on_early_data_refused(self) -> None:
        """Send all 0-RTT data again in 1-RTT packets, and send no more 0-RTT packets.

        Called before :meth:`on_complete`.
        """

    def on_retry(self) -> None:
        """The client starts again: what was sent in 0-RTT packets was not received."""

    def on_probe(self, needs_ping: bool) -> None:
        """A probe of the handshake leaves (RFC 9002 section 6.2.4): repeat application data.

        Called for each datagram.

        Args:
          needs_ping: whether to send a PING where there is no such data, because the peer may
            know this side's address from 1-RTT packets alone.
        """

    def on_received(self, now: float) -> None:
        """A packet of the peer was processed: restart the idle timer (RFC 9000 section 10.1)."""

    def on_eliciting_sent(self, now: float) -> None:
        """An ack-eliciting packet was sent, which restarts the idle timer if it is the first
        since the last call of :meth:`on_received`."""

    def on_fault(self, code: int, frame_type: int, reason: str) -> None:
        """The peer has broken the protocol, or TLS has failed: the connection is to be closed.

        The handshake receives nothing more; ``close`` says goodbye.
        """

    def on_peer_close(self, code: int, frame_type: int, reason: str) -> None:
        """CONNECTION_CLOSE from the peer, of a transport error (RFC 9000 section 19.19)."""
