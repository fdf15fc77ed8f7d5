"""Records packets in flight, and defines the interface that reports their fate.

Floor 1, sans-IO.  One record describes a single packet, or a run of equal ones: packets with
data of one stream, built together, with consecutive numbers.
"""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["NO_OWNER", "DataSender", "FrameOwner", "SentPacket"]


class DataSender(Protocol):
    """The sending part of a stream, as seen by recovery.

    Each call is about the bytes from `start` to `stop`, and with `fin` about the stream's end.
    """

    def on_acknowledged(self, start: int, stop: int, fin: bool) -> None:
        """The peer has the bytes."""

    def on_lost(self, start: int, stop: int, fin: bool) -> None:
        """The bytes are lost and have to be sent again."""

    def repeat(self, start: int, stop: int, fin: bool) -> None:
        """The bytes have to be sent once more by a probe, though they may not be lost."""


class FrameOwner(Protocol):
    """Takes recovery's reports for the connection; STREAM frames are reported to their streams.

    A list of frames is the `control` list of a sent packet.
    """

    def on_frames_acknowledged(self, frames: list[tuple[int, int, int]]) -> None:
        """A packet with these frames was acknowledged."""

    def on_frames_lost(self, frames: list[tuple[int, int, int]]) -> None:
        """A packet with these frames is lost."""

    def on_datagrams_lost(self, tags: list[int]) -> None:
        """A packet with these datagrams is lost."""

    def on_ack_acknowledged(self, largest: int) -> None:
        """A packet was acknowledged whose ACK frame covers packets up to `largest`."""

    def on_size_acknowledged(self, size: int) -> None:
        """Packets in flight of up to `size` bytes were acknowledged.

        Called only after losses, until a packet as large as the lost ones has arrived, because
        only then the path MTU is in doubt.
        """

    def on_packets_lost(self, numbers: list[int], size: int) -> None:
        """These packets are lost; those of them in flight had up to `size` bytes, or 0."""


class _NoOwner:
    """Replaces the connection after its end."""

    def on_frames_acknowledged(self, frames: list[tuple[int, int, int]]) -> None:
        pass

    def on_frames_lost(self, frames: list[tuple[int, int, int]]) -> None:
        pass

    def on_datagrams_lost(self, tags: list[int]) -> None:
        pass

    def on_ack_acknowledged(self, largest: int) -> None:
        pass

    def on_size_acknowledged(self, size: int) -> None:
        pass

    def on_packets_lost(self, numbers: list[int], size: int) -> None:
        pass


NO_OWNER: Final[FrameOwner] = _NoOwner()


class SentPacket:
    """One packet, or a run of equal ones, of the application packet number space.

    The packet builder makes it with its number and time, sets what applies, and hands it to
    :meth:`~phoenix_trio.quic.established.recovery.Recovery.on_sent`.

    Attributes:
      number: the packet number, of a run that of its first packet.
      count: the number of packets; more than one only in a run.
      time: when it was sent, in seconds.
      size: bytes of each packet, as a UDP payload.
      eliciting: whether it has to be acknowledged (RFC 9002 section 2).
      in_flight: whether it counts against the congestion window.
      is_zero_rtt: whether it is a 0-RTT packet, which a server may refuse.
      acknowledges: the largest packet number in its ACK frame; -1: it has none.
      sender: the stream of its first STREAM frame.  That frame carries the bytes from `start`
        to `stop`, and with `fin` the end of the stream.
      capacity: bytes of the stream in each packet of a run.  Packet ``n`` of a run carries
        ``capacity`` bytes from ``start + (n - number) * capacity``; no packet of a run
        carries an end, further frames, or an acknowledgement.
      streams: further STREAM frames: sender, start, stop, fin.
      datagrams: the priorities of its DATAGRAM frames, whose losses are counted.
      tags: of those datagrams whose losses are reported.
      control: other frames that are reported to the owner: frame type and two numbers.
    """

    __slots__ = (
        "acknowledges",
        "capacity",
        "control",
        "count",
        "datagrams",
        "eliciting",
        "fin",
        "in_flight",
        "is_zero_rtt",
        "number",
        "sender",
        "size",
        "start",
        "stop",
        "streams",
        "tags",
        "time",
    )

    def __init__(self, number: int, time: float) -> None:
        self.number: int = number
        self.count: int = 1
        self.time: float = time
        self.size: int = 0
        self.eliciting: bool = False
        self.in_flight: bool = False
        self.is_zero_rtt: bool = False
        self.acknowledges: int = -1
        self.sender: DataSender | None = None
        self.start: int = 0
        self.stop: int = 0
        self.fin: bool = False
        self.capacity: int = 0
        self.streams: list[tuple[DataSender, int, int, bool]] | None = None
        self.datagrams: list[int] | None = None
        self.tags: list[int] | None = None
        self.control: list[tuple[int, int, int]] | None = None
