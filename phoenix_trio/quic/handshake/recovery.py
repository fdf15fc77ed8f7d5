"""Loss detection for Initial and Handshake packets (RFC 9002), until the handshake is confirmed.

Floor 1, sans-IO.  The round-trip estimate and congestion control are those of the whole
connection; application data has its own loss detection.  A probe timeout is no sign of
loss (section 6.2): the packets whose frames a probe repeats stay known, so that an
acknowledgement of any copy counts.
"""

from __future__ import annotations

import math
from typing import Final

from ..established.congestion import Control
from ..established.recovery import PACKET_THRESHOLD, never_sent
from ..established.rtt import RoundTrip
from .space import HandshakePacket, Space

__all__ = ["HandshakeRecovery"]

#: Seconds beyond which the probe period does not double before the handshake is confirmed,
#: unless the round trip alone makes it longer.  RFC 9002 section 6.2.1 doubles without end,
#: so after five losses in a row a path with a loss now and then looks dead for 20 s.  Two
#: datagrams in two seconds congest nothing.
MAX_PROBE_PERIOD: Final = 2.0

#: RFC 9000 section 18.2, until the peer's parameters are known.
_DEFAULT_MAX_ACK_DELAY: Final = 0.025


class HandshakeRecovery:
    """The packets sent in both packet number spaces of the handshake.

    Args:
      is_client: which side this is.
      rtt: the round-trip estimate.
      control: congestion control.
    """

    __slots__ = (
        "_control",
        "_rtt",
        "is_confirmed",
        "last_eliciting_sent",
        "max_ack_delay",
        "packets_acknowledged",
        "packets_lost",
        "peer_knows_address",
        "probe_timeouts",
        "pto_count",
        "spaces",
    )

    def __init__(self, is_client: bool, rtt: RoundTrip, control: Control) -> None:
        self._rtt = rtt
        self._control = control
        self.spaces: tuple[Space, ...] = ()
        self.is_confirmed: bool = False
        self.peer_knows_address: bool = not is_client
        """Whether the peer has validated this side's address, so that nothing has to be sent
        only to prove it (RFC 9002 section 6.2.2.1)."""
        self.max_ack_delay: float = _DEFAULT_MAX_ACK_DELAY
        """The peer's."""
        self.pto_count: int = 0
        self.last_eliciting_sent: float = 0.0
        self.packets_acknowledged: int = 0
        self.packets_lost: int = 0
        self.probe_timeouts: int = 0

    # -- packets

    def on_sent(self, space: Space, packet: HandshakePacket) -> None:
        """A packet leaves."""
        if not packet.is_in_flight:
            return  # It carries acknowledgements alone: nothing depends on its arrival.
        space.sent[packet.number] = packet
        if packet.is_eliciting:
            space.eliciting_in_flight += 1
            self.last_eliciting_sent = packet.time
        self._control.on_sent(packet.size, packet.time)

    def on_ack(
        self, space: Space, ranges: list[tuple[int, int]], ack_delay: float, now: float
    ) -> None:
        """An ACK frame.

        Args:
          space: in whose packet it came.
          ranges: of packet numbers, start and stop, the newest first.
          ack_delay: seconds by which the peer has delayed it.
          now: the time.

        Raises:
          TransportError: it acknowledges a packet never sent (RFC 9000 section 13.1).
        """
        largest = ranges[0][1] - 1
        if largest >= space.next_number:
            raise never_sent()
        if largest > space.largest_acknowledged:
            space.largest_acknowledged = largest
        acknowledged = _covered(space.sent, ranges)
        if not acknowledged:
            return
        eliciting = size = 0
        for packet in acknowledged:
            del space.sent[packet.number]
            if packet.is_in_flight:
                size += packet.size
            if packet.is_eliciting:
                eliciting += 1
            for _, start, stop in packet.frames:
                space.crypto.on_acknowledged(start, stop)
            if packet.acknowledges >= 0:
                space.received.on_ack_acknowledged(packet.acknowledges)
        self.packets_acknowledged += len(acknowledged)
        space.eliciting_in_flight -= eliciting
        newest = acknowledged[-1]
        horizon = self._rtt.horizon(newest.time, now, self._patience())
        if size:
            self._control.on_acknowledged(size, newest.time, horizon)
        if newest.number == largest and eliciting:
            self._sample(newest.time, ack_delay, now)
        self._detect_lost(space, now, horizon)
        if self.peer_knows_address:
            self.pto_count = 0

    def _sample(self, sent_time: float, ack_delay: float, now: float) -> None:
        patience = self._patience()
        due = self.last_eliciting_sent + patience * (1 << self.pto_count)
        sample = now - sent_time
        believed = self._rtt.believed(sent_time, now, due, patience)
        if believed < 0:
            return
        if believed < sample:
            ack_delay = 0.0  # (It is a part of the round trip, the peer's delay included.)
        self._rtt.sample(believed, ack_delay, now, self.max_ack_delay, False)
        self._control.on_rtt(believed, now)

    def _detect_lost(self, space: Space, now: float, as_of: float) -> None:
        """RFC 9002 section 6.1; by time, only what was lost at `as_of`."""
        space.loss_time = math.inf
        delay = self._rtt.loss_delay()
        largest = space.largest_acknowledged
        lost = []
        for number, packet in space.sent.items():
            if number > largest:
                break
            if number <= largest - PACKET_THRESHOLD or packet.time <= as_of - delay:
                lost.append(packet)
            else:
                space.loss_time = min(space.loss_time, packet.time + delay)
        if not lost:
            return
        size = self._forget(space, lost)
        self.packets_lost += len(lost)
        if size:
            self._control.on_lost(size, max(packet.time for packet in lost), now)

    def _forget(self, space: Space, packets: list[HandshakePacket]) -> int:
        """Send what is in the packets again; returns how many bytes of them were in flight."""
        size = 0
        for packet in packets:
            del space.sent[packet.number]
            if packet.is_in_flight:
                size += packet.size
            if packet.is_eliciting:
                space.eliciting_in_flight -= 1
            for _, start, stop in packet.frames:
                space.crypto.on_lost(start, stop)
        return size

    def restart(self, space: Space) -> None:
        """The peer has not kept what was sent (RFC 9002 section 6.3): send all of it again."""
        self._control.on_expired(self._forget(space, list(space.sent.values())))
        space.loss_time = math.inf
        self.pto_count = 0

    def discard(self, space: Space) -> None:
        """The keys of the space are discarded (RFC 9002 section 6.4)."""
        self._control.on_expired(
            sum(packet.size for packet in space.sent.values() if packet.is_in_flight)
        )
        space.discard()
        self.pto_count = 0

    def repeat(self) -> int:
        """Queue all CRYPTO data again that is neither acknowledged nor lost.

        Its packets leave the congestion window, which the copies enter in their place.

        Returns the bytes of queued data; several copies of the same count once.
        """
        size = expired = 0
        for space in self.spaces:
            first_copies: dict[int, int] = {}
            for packet in space.sent.values():
                for _, start, stop in packet.frames:
                    space.crypto.on_lost(start, stop)
                    first_copies.setdefault(start, stop)
                if packet.frames and packet.is_in_flight:
                    packet.is_in_flight = False
                    expired += packet.size
            if space.crypto.has_pending:  # (else all of it has arrived, by another copy)
                size += sum(stop - start for start, stop in first_copies.items())
        self._control.on_expired(expired)
        return size

    # -- timers

    def probe_timeout(self) -> float:
        """The probe timeout of handshake packets, without backoff (RFC 9002 section 6.2.1)."""
        return self._rtt.probe_timeout(0.0)

    def _patience(self) -> float:
        """The longest usual silence, in seconds."""
        return self._rtt.probe_timeout(self.max_ack_delay)

    def loss_time(self) -> float:
        """When packets are lost unless they are acknowledged before; infinite: none is."""
        return min([space.loss_time for space in self.spaces], default=math.inf)

    def probe_time(self) -> float:
        """When a probe is due; infinite: never.

        A client which may not be known to the server sends even if nothing is in flight: the
        server may not be allowed to (RFC 9002 section 6.2.2.1).
        """
        if self.is_confirmed or not self.spaces:
            return math.inf
        if self.peer_knows_address and not any(space.eliciting_in_flight for space in self.spaces):
            return math.inf
        return self.last_eliciting_sent + self.probe_timeout() * (1 << self.pto_count)

    def deadline(self, can_probe: bool) -> float:
        """When to call :meth:`on_timeout`; infinite: never.

        Args:
          can_probe: whether the anti-amplification limit has room for a probe (RFC 9002
            section 6.2.2.1).
        """
        loss_time = self.loss_time()
        if loss_time < math.inf or not can_probe:
            return loss_time
        return self.probe_time()

    def on_timeout(self, now: float) -> bool:
        """The deadline has come; whether a probe is to be sent."""
        loss_time = self.loss_time()
        due = loss_time if loss_time < math.inf else self.probe_time()
        stalls = self._rtt.stalls
        if stalls.on_timer(due, now, self._rtt.arrivals.earliest, self._patience()):
            self._control.exclude(*stalls.last)
        if loss_time < math.inf:
            for space in self.spaces:
                if space.loss_time <= now:
                    self._detect_lost(space, now, now)
            return False
        self.probe_timeouts += 1
        if self.probe_timeout() * (2 << self.pto_count) <= MAX_PROBE_PERIOD:
            self.pto_count += 1
        return True


def _covered(
    sent: dict[int, HandshakePacket], ranges: list[tuple[int, int]]
) -> list[HandshakePacket]:
    """The packets sent, ascending, whose numbers are in the ranges."""
    found: list[HandshakePacket] = []
    for first in sent:
        for start, stop in reversed(ranges):
            if stop > first:
                found += [packet for number, packet in sent.items() if start <= number < stop]
        break
    return found
