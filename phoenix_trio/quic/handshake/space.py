"""One packet number space of the handshake: its keys, packets and CRYPTO data.

Floor 1, sans-IO, data mostly.
"""

from __future__ import annotations

import math
from typing import Final

from ..established.crypto import CryptoSender
from ..established.crypto_stream import HANDSHAKE_WINDOW, INITIAL_WINDOW, CryptoReceiver
from ..established.received import ReceivedPackets
from ..wire.protection import HeaderKey, PacketKey
from .packets import HANDSHAKE, INITIAL

__all__ = ["HandshakePacket", "Keys", "Space"]

#: What of a level's CRYPTO data is held at most.
_WINDOWS: Final = {INITIAL: INITIAL_WINDOW, HANDSHAKE: HANDSHAKE_WINDOW}


class Keys:
    """The keys of one direction of a level."""

    __slots__ = ("header", "packet")

    def __init__(self, packet: PacketKey, header: HeaderKey) -> None:
        self.packet: PacketKey = packet
        self.header: HeaderKey = header


class HandshakePacket:
    """A sent Initial or Handshake packet.

    Args:
      number: its packet number.
      time: when it was sent.
    """

    __slots__ = ("acknowledges", "frames", "is_eliciting", "is_in_flight", "number", "size", "time")

    def __init__(self, number: int, time: float) -> None:
        self.number: int = number
        self.time: float = time
        self.size: int = 0
        self.is_eliciting: bool = False
        self.is_in_flight: bool = False
        """Whether it counts in the congestion window."""
        self.acknowledges: int = -1
        """The largest number in its ACK frame; -1: it has none."""
        self.frames: list[tuple[int, int, int]] = []
        """Its CRYPTO frames: type, where the data begins and ends."""


class Space:
    """A packet number space.

    Args:
      kind: the type of its packets, :data:`~.packets.INITIAL` or :data:`~.packets.HANDSHAKE`.
    """

    __slots__ = (
        "crypto",
        "eliciting_in_flight",
        "is_discarded",
        "kind",
        "largest_acknowledged",
        "loss_time",
        "next_number",
        "receive_keys",
        "received",
        "receiver",
        "send_keys",
        "sent",
    )

    def __init__(self, kind: int) -> None:
        self.kind: int = kind
        self.send_keys: Keys | None = None
        self.receive_keys: Keys | None = None
        self.is_discarded: bool = False
        self.crypto: CryptoSender = CryptoSender()
        self.receiver: CryptoReceiver = CryptoReceiver(_WINDOWS[kind])
        self.received: ReceivedPackets = ReceivedPackets()
        self.next_number: int = 0
        """Of the next packet to send."""
        self.sent: dict[int, HandshakePacket] = {}
        """Those whose arrival is not known, ascending."""
        self.eliciting_in_flight: int = 0
        self.largest_acknowledged: int = -1
        self.loss_time: float = math.inf

    def has_work(self) -> bool:
        """Whether there is anything to send."""
        return self.send_keys is not None and (
            self.received.ack_at < math.inf or self.crypto.has_pending
        )

    def discard(self) -> None:
        """Nothing of this space is sent or read any more (RFC 9001 section 4.9)."""
        self.is_discarded = True
        self.send_keys = self.receive_keys = None
        self.sent.clear()
        self.eliciting_in_flight = 0
        self.loss_time = math.inf
        self.received.ack_at = math.inf
        # Long handshakes leave kilobytes behind.
        self.crypto = CryptoSender()
        self.receiver.close()
