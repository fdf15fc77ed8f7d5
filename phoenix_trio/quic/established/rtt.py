"""Estimates the round-trip time of a path from acknowledgements (RFC 9002 section 5).

Floor 1, sans-IO.  One estimate serves all packet number spaces of a connection: the handshake
takes the first samples, application data the others.
"""

from __future__ import annotations

import math

from .stalls import ON_TIME, Arrivals, StallFilter

__all__ = ["GRANULARITY", "RoundTrip"]

#: The smallest credible round-trip time, in seconds (RFC 9002 section 6.1.2).
GRANULARITY = 0.001


class RoundTrip:
    """The estimate of the path in use.

    Args:
      initial: the round-trip time assumed before the first sample, in seconds.

    Attributes:
      initial: as above.
      has_sample: whether there was a sample on this path; without one, the next four are 0,
        and the minimum is infinite.
      latest: the newest sample, without the peer's delay.
      smoothed: RFC 9002 section 5.3.
      variance: RFC 9002 section 5.3.
      minimum: the smallest sample.
      first_sample_at: when the first sample was taken.
      arrivals: the driver's knowledge of when packets have arrived.
      stalls: the last stall of this side, as noticed in either packet number space.
    """

    __slots__ = (
        "arrivals",
        "first_sample_at",
        "has_sample",
        "initial",
        "latest",
        "minimum",
        "smoothed",
        "stalls",
        "variance",
    )

    def __init__(self, initial: float) -> None:
        self.initial: float = initial
        self.has_sample: bool = False
        self.latest: float = 0.0
        self.smoothed: float = 0.0
        self.variance: float = 0.0
        self.minimum: float = math.inf
        self.first_sample_at: float = 0.0
        self.arrivals: Arrivals = ON_TIME
        self.stalls: StallFilter = StallFilter()

    def begin_path(self) -> None:
        """Start another path, whose delay is unknown (RFC 9000 section 9.4)."""
        self.has_sample = False
        self.latest = self.smoothed = self.variance = 0.0
        self.minimum = math.inf

    def sample(
        self, rtt: float, ack_delay: float, now: float, max_ack_delay: float, confirmed: bool
    ) -> None:
        """Take a sample (RFC 9002 section 5.3).

        Args:
          rtt: seconds between a packet and its acknowledgement.  Negative samples are ignored:
            the packet was acknowledged earlier, and the acknowledgement waited for its keys.
          ack_delay: seconds by which the peer delayed the acknowledgement, as it reports.
          now: the time.
          max_ack_delay: the largest delay promised by the peer.
          confirmed: whether the handshake is confirmed; only then the promise counts.
        """
        if rtt < 0:
            return
        latest = rtt
        if latest < GRANULARITY:
            latest = GRANULARITY
        if latest < self.minimum:
            self.minimum = latest
        if confirmed and ack_delay > max_ack_delay:
            ack_delay = max_ack_delay
        if latest >= self.minimum + ack_delay:
            latest -= ack_delay
        self.latest = latest
        if self.has_sample:
            difference = latest - self.smoothed
            self.smoothed += difference / 8
            if difference < 0:
                difference = -difference
            self.variance += (difference - self.variance) / 4
        else:
            self.first_sample_at = now
            self.has_sample = True
            self.variance = rtt / 2
            self.smoothed = rtt

    def probe_timeout(self, max_ack_delay: float) -> float:
        """The probe timeout without backoff, in seconds (RFC 9002 section 6.2.1).

        Args:
          max_ack_delay: the peer's promise; 0.0 for Initial and Handshake packets.
        """
        if not self.has_sample:
            return 2 * self.initial
        return self.smoothed + max(4 * self.variance, GRANULARITY) + max_ack_delay

    def loss_delay(self) -> float:
        """Seconds after which a packet is lost, once a later one is acknowledged.

        RFC 9002 section 6.1.2.
        """
        if not self.has_sample:
            return 9 / 8 * self.initial
        return 9 / 8 * max(self.latest, self.smoothed)

    def believed(self, sent_time: float, now: float, due: float, patience: float) -> float:
        """Seconds of round trip proved by an acknowledgement; -1.0: it proves nothing.

        The time of a stall of this process does not count as the path's delay.

        Args:
          sent_time: when the newest packet acknowledged was sent.
          now: the time.
          due: when the probe timer was due.
          patience: the probe timeout, without backoff.
        """
        if now - sent_time <= patience:
            return now - sent_time
        proved = self.stalls.sample(sent_time, now, self.arrivals.earliest, due, patience)
        return -1.0 if proved is None else proved

    def horizon(self, sent_time: float, now: float, patience: float) -> float:
        """The earliest arrival of an acknowledgement, read now, of a packet sent at `sent_time`.

        Losses by time are judged as of then (RFC 9002 section 6.1.2).  An acknowledgement that
        disproves them may still wait in the socket; the timer runs after it is read, and looks
        again.
        """
        earliest = self.arrivals.earliest
        if sent_time > earliest:
            earliest = sent_time
        return earliest if now - earliest > patience else now
