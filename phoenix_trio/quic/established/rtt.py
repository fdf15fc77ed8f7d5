"""The round-trip time of a path, as its acknowledgements show it (RFC 9002 section 5).

Floor 1, sans-IO.  One estimate serves all packet number spaces of a connection: the handshake
takes the first samples, application data the others.
"""

from __future__ import annotations

import math

from .stalls import ON_TIME, Arrivals, StallFilter

__all__ = ["GRANULARITY", "RoundTrip"]

#: The smallest round-trip time which is believed, in seconds (RFC 9002 section 6.1.2).
GRANULARITY = 0.001


class RoundTrip:
    """The estimate of the path in use.

    Args:
      initial: the round-trip time which is assumed before the first sample, in seconds.

    Attributes:
      initial: as above.
      has_sample: whether there was a sample on this path; without one, the next four are 0,
        and the minimum is infinite.
      latest: the newest sample, without the peer's delay.
      smoothed: RFC 9002 section 5.3.
      variance: RFC 9002 section 5.3.
      minimum: the smallest sample.
      first_sample_at: when the first sample was taken.
      arrivals: what the driver knows of when packets have arrived.
      stalls: since when this side stood still, as both packet number spaces have noticed.
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
        """Another path: nothing is known of its delay (RFC 9000 section 9.4)."""
        self.has_sample = False
        self.latest = self.smoothed = self.variance = 0.0
        self.minimum = math.inf

    def sample(
        self, rtt: float, ack_delay: float, now: float, max_ack_delay: float, confirmed: bool
    ) -> None:
        """Take a sample (RFC 9002 section 5.3).

        Args:
          rtt: seconds between a packet and its acknowledgement.  Negative ones are ignored:
            the packet was acknowledged earlier, and the acknowledgement waited for its keys.
          ack_delay: seconds by which the peer says that it delayed the acknowledgement.
          now: the time.
          max_ack_delay: what the peer has promised as its largest delay.
          confirmed: whether the handshake is confirmed, from when on the promise counts.
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
        """Seconds of round trip which an acknowledgement proves; -1.0: it proves nothing.

        A process which stood still must not take its own sleep for the path's delay.

        Args:
          sent_time: when the newest packet which it acknowledges was sent.
          now: the time.
          due: when the probe timer was due.
          patience: the probe timeout, without backoff.
        """
        if now - sent_time <= patience:
            return now - sent_time
        proved = self.stalls.sample(sent_time, now, self.arrivals.earliest, due, patience)
        return -1.0 if proved is None else proved

    def horizon(self, sent_time: float, now: float, patience: float) -> float:
        """When an acknowledgement of a packet of `sent_time`, which is read now, came at least.

        Losses by time are judged as of then (RFC 9002 section 6.1.2): what shows that there
        are none may wait in the socket, and the timer, which comes after it, looks again.
        """
        earliest = self.arrivals.earliest
        if sent_time > earliest:
            earliest = sent_time
        return earliest if now - earliest > patience else now
