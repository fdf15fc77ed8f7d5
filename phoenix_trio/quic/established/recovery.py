"""Detects lost 0-RTT and 1-RTT packets, and times probes for them (RFC 9002).

Floor 1, sans-IO: takes acknowledgements and times, gives losses, a window and a deadline.  Work
is done only for newly acknowledged packets, and consecutive packets of one stream are
acknowledged as one range.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import islice
from typing import Final

from ..wire import frames
from ..wire.errors import PROTOCOL_VIOLATION, TransportError
from .congestion import NO_THRESHOLD, Control
from .pacer import Pacer
from .rtt import RoundTrip
from .sent_packet import NO_OWNER, DataSender, FrameOwner, SentPacket
from .skipped_numbers import SkippedNumbers

__all__ = [
    "MAX_UNACKNOWLEDGED_PACKETS",
    "PACKET_THRESHOLD",
    "PROBES",
    "Recovery",
    "never_sent",
]

#: Datagrams for each probe timeout (RFC 9002 section 6.2.4 permits two).
PROBES: Final = 2

#: Nothing more is sent while so many packets are unacknowledged.  Two bytes of each packet
#: number are sent, which is unambiguous for at most 32,767 packets in flight (RFC 9000 section
#: 17.1).  The limit is half of that, less a run and some reordering.
MAX_UNACKNOWLEDGED_PACKETS: Final = 16_000

_NEVER: Final = math.inf
PACKET_THRESHOLD: Final = 3  # RFC 9002 section 6.1.1
_PERSISTENT_CONGESTION_THRESHOLD: Final = 3  # RFC 9002 section 7.6.1

#: Packets that are not ack-eliciting: after so many, one asks for an acknowledgement; after so
#: many, the older ones are forgotten.
_UNACKNOWLEDGED_ACKS: Final = 32
_FORGOTTEN_ACKS: Final = 2048


class Recovery:
    """The sending side of the application packet number space.

    Args:
      rtt: the path's round trip, shared with the handshake.  It includes the times of arrival
        known to the driver, and the stalls of this side.
      control: the congestion controller, shared with the handshake.
      pacer: gets the rate from here, and the packets from the packet builder.

    Attributes:
      owner: notified of frames other than STREAM.
      sent: packets neither acknowledged nor lost, by number, ascending.  The numbers of a run
        share one record.
      next_number: the number that follows the last one sent.
      largest_acknowledged: the largest number acknowledged by the peer; -1: none.
      eliciting_in_flight: ack-eliciting packets in flight.
      loss_time: when a packet will be lost by time; infinite: none will.
      pto_count: probe timeouts since the last acknowledgement.
      last_eliciting_sent: when an ack-eliciting packet was last sent.
      peer_max_ack_delay: the largest delay that the peer promises, in seconds.
      longest_backoff: seconds up to which the interval between probes doubles.
      is_confirmed: whether the handshake is; before, there are no probe timeouts here.
      skipped: numbers that no packet uses (RFC 9000 section 21.4).
      path_since: packets sent before tell nothing about the path's delay.
      packets_acknowledged, packets_lost, probe_timeouts: counts so far.
      datagrams_lost: datagrams lost so far, by priority.
      newly_acknowledged: packets first acknowledged by the last ACK frame, ascending.
      newest_sent_time: when the last of them was sent.
      ack_was_newest: whether the last ACK frame raised `largest_acknowledged`.
    """

    __slots__ = (
        "_lost_size",
        "ack_was_newest",
        "control",
        "datagrams_lost",
        "eliciting_in_flight",
        "is_confirmed",
        "largest_acknowledged",
        "last_eliciting_sent",
        "longest_backoff",
        "loss_time",
        "newest_sent_time",
        "newly_acknowledged",
        "next_number",
        "owner",
        "pacer",
        "packets_acknowledged",
        "packets_lost",
        "path_since",
        "peer_max_ack_delay",
        "probe_timeouts",
        "pto_count",
        "rtt",
        "sent",
        "skipped",
    )

    def __init__(self, rtt: RoundTrip, control: Control, pacer: Pacer) -> None:
        self.rtt: RoundTrip = rtt
        self.control: Control = control
        self.pacer: Pacer = pacer
        self.owner: FrameOwner = NO_OWNER
        self.sent: dict[int, SentPacket] = {}
        self.next_number: int = 0
        self.largest_acknowledged: int = -1
        self.eliciting_in_flight: int = 0
        self.loss_time: float = _NEVER
        self.pto_count: int = 0
        self.last_eliciting_sent: float = 0.0
        self.peer_max_ack_delay: float = 0.025  # RFC 9000 section 18.2
        self.longest_backoff: float = _NEVER
        self.is_confirmed: bool = False
        self.skipped: SkippedNumbers = SkippedNumbers()
        self.path_since: float = -_NEVER
        self.packets_acknowledged: int = 0
        self.packets_lost: int = 0
        self.datagrams_lost: dict[int, int] = {}
        self.probe_timeouts: int = 0
        self.newly_acknowledged: list[int] = []
        self.newest_sent_time: float = 0.0
        self.ack_was_newest: bool = False
        # The size of the largest packet lost since one as large has arrived; 0: none was.
        self._lost_size: int = 0

    # ------------------------------------------------------------------ sending

    def take_number(self) -> int:
        """The number for the next packet or run, which ends before ``skipped.next``.

        Sometimes a number is left out (RFC 9000 section 21.4).
        """
        number = self.next_number
        if number >= self.skipped.next:
            number = self.next_number = self.skipped.skip(number)
        return number

    def on_sent(self, packet: SentPacket) -> None:
        """Record a packet, or a run of packets, as sent."""
        number, count = packet.number, packet.count
        if count == 1:
            self.sent[number] = packet
        else:
            self.sent.update(dict.fromkeys(range(number, number + count), packet))
        self.next_number = number + count
        if packet.eliciting:
            self.eliciting_in_flight += count
            self.last_eliciting_sent = packet.time
        if packet.in_flight:
            self.control.on_sent(count * packet.size, packet.time)

    def room(self) -> int:
        """Bytes that congestion control permits to send now; 0 or less: none."""
        if len(self.sent) >= MAX_UNACKNOWLEDGED_PACKETS:
            return 0
        return self.control.congestion_window - self.control.bytes_in_flight

    @property
    def congestion_window(self) -> int:
        """The controller's window, in bytes; closed while too many packets are unacknowledged."""
        window = self.control.congestion_window
        if len(self.sent) >= MAX_UNACKNOWLEDGED_PACKETS:
            return min(window, self.control.bytes_in_flight)
        return window

    def wants_acknowledgement(self) -> bool:
        """Whether a packet with nothing but an acknowledgement should carry a PING as well.

        Acknowledgements are not acknowledged by themselves.  Without PINGs, a side that only
        receives would remember all packets that it ever sent, and could not send anything else
        after :data:`MAX_UNACKNOWLEDGED_PACKETS` of them (RFC 9000 section 13.2.4).
        """
        sent = self.sent
        if len(sent) >= _FORGOTTEN_ACKS:
            # The peer does not acknowledge PINGs either.  Packets not in flight need no repair
            # if they are lost.
            for number in list(islice(sent, _FORGOTTEN_ACKS // 2)):
                if not sent[number].in_flight:
                    self.eliciting_in_flight -= sent.pop(number).eliciting
        return len(sent) >= _UNACKNOWLEDGED_ACKS and not self.eliciting_in_flight

    # ------------------------------------------------------------------ acknowledgements

    def on_ack(self, ranges: list[tuple[int, int]], delay: float, now: float) -> None:
        """Take an ACK frame (RFC 9002 appendix A.7).

        Args:
          ranges: the ranges of packet numbers, half-open, the newest first.
          delay: the delay of the frame, in seconds, as reported by the peer.
          now: the time.

        Raises:
          TransportError: it acknowledges a packet never sent (RFC 9000 section 13.1).
        """
        largest = ranges[0][1] - 1
        if largest >= self.next_number:
            raise never_sent()
        skipped = self.skipped
        newest = skipped.newest
        for start, stop in ranges:
            if start <= newest and skipped.includes(start, stop):
                raise never_sent()  # RFC 9000 section 21.4
        self.ack_was_newest = largest > self.largest_acknowledged
        if self.ack_was_newest:
            self.largest_acknowledged = largest
        sent = self.sent
        numbers = self.newly_acknowledged = _newly_acknowledged(sent, ranges)
        if not numbers:
            return
        owner = self.owner
        eliciting = size = largest_size = 0
        acknowledges = -1
        # Consecutive STREAM frames of one stream are reported as one.
        sender: DataSender | None = None
        start = stop = 0
        fin = False
        index, total = 0, len(numbers)
        while True:
            number = numbers[index]
            packet = sent.pop(number)
            count = 1
            begin, end = packet.start, packet.stop
            if packet.count > 1:
                # The following packets of the run count, too, if no number is missing among them.
                count = min(total - index, packet.number + packet.count - number)
                if numbers[index + count - 1] == number + count - 1:
                    for each in range(number + 1, number + count):
                        del sent[each]
                else:
                    count = 1
                begin += (number - packet.number) * packet.capacity
                end = begin + count * packet.capacity
            index += count
            if packet.in_flight:
                size += count * packet.size
                if packet.size > largest_size:
                    largest_size = packet.size
            if packet.eliciting:
                eliciting += count
            if packet.sender is not None:
                if packet.sender is not sender or begin != stop:
                    if sender is not None:
                        sender.on_acknowledged(start, stop, fin)
                    sender, start, fin = packet.sender, begin, False
                stop = end
                if packet.fin:
                    fin = True
                if packet.streams is not None:
                    for other, other_start, other_stop, other_fin in packet.streams:
                        other.on_acknowledged(other_start, other_stop, other_fin)
            if packet.control is not None:
                owner.on_frames_acknowledged(packet.control)
            if packet.acknowledges > acknowledges:
                acknowledges = packet.acknowledges
            if index == total:
                break
        if sender is not None:
            sender.on_acknowledged(start, stop, fin)
        if acknowledges >= 0:
            owner.on_ack_acknowledged(acknowledges)
        self.packets_acknowledged += total
        self.eliciting_in_flight -= eliciting
        sent_time = self.newest_sent_time = packet.time
        rtt, control = self.rtt, self.control
        # No probe timeout is shorter than this (RFC 9002 section 6.2.1).
        ordinary = rtt.smoothed + self.peer_max_ack_delay if rtt.has_sample else 0.0
        horizon = now
        if now - rtt.arrivals.earliest > ordinary:
            horizon = rtt.horizon(sent_time, now, self.probe_timeout())
        if size:
            if self._lost_size:
                owner.on_size_acknowledged(largest_size)
                if largest_size >= self._lost_size:
                    self._lost_size = 0
            control.on_acknowledged(size, sent_time, horizon)
        if eliciting and largest == number + count - 1 and sent_time >= self.path_since:
            sample = now - sent_time
            if sample > ordinary:
                sample, delay = self._late_sample(sent_time, delay, now)
            if sample >= 0:
                rtt.sample(sample, delay, now, self.peer_max_ack_delay, self.is_confirmed)
                control.on_rtt(sample, now)
                self.pacer.update_rate(control.congestion_window, rtt.smoothed)
        self.loss_time = _NEVER
        self.pto_count = 0
        for oldest in sent:
            if oldest <= self.largest_acknowledged:
                self.detect_lost(now, horizon)
            break

    def _late_sample(self, sent_time: float, delay: float, now: float) -> tuple[float, float]:
        """The round-trip sample of the newest packet acknowledged, perhaps a probe timeout old.

        Returns the sample, negative if there is none, and the delay to subtract.
        """
        patience = self.probe_timeout()
        due = self.last_eliciting_sent + patience * (1 << self.pto_count)
        believed = self.rtt.believed(sent_time, now, due, patience)
        # (A part of it includes the peer's delay.)
        return believed, delay if believed >= now - sent_time else 0.0

    # ------------------------------------------------------------------ losses

    def detect_lost(self, now: float, as_of: float) -> None:
        """Declare packets lost (RFC 9002 section 6.1); losses by time are judged as of `as_of`."""
        largest = self.largest_acknowledged
        threshold = self.skipped.before(largest, PACKET_THRESHOLD)
        delay = self.rtt.loss_delay()
        lost: list[int] = []
        self.loss_time = _NEVER
        for number, packet in self.sent.items():
            if number > largest:
                break
            loss_time = packet.time + delay
            if number <= threshold or loss_time <= as_of:
                lost.append(number)
            elif loss_time < self.loss_time:
                self.loss_time = loss_time
        if lost:
            self.declare_lost(lost, True, now)

    def declare_lost(self, numbers: list[int], congestion: bool, now: float) -> None:
        """Forget packets, and report their frames as lost.

        Args:
          numbers: their numbers, ascending.
          congestion: whether the loss is a sign of congestion.
          now: the time.
        """
        is_persistent = congestion and self._in_persistent_congestion(numbers)
        sent, owner = self.sent, self.owner
        size = largest_size = eliciting = 0
        latest = -_NEVER
        sender: DataSender | None = None
        start = stop = 0
        fin = False
        for number in numbers:
            packet = sent.pop(number)
            if packet.in_flight:
                size += packet.size
                largest_size = max(largest_size, packet.size)
                latest = max(latest, packet.time)
            eliciting += packet.eliciting
            if packet.datagrams is not None:
                self._count_lost(packet.datagrams)
                if packet.tags is not None:
                    owner.on_datagrams_lost(packet.tags)
            if packet.sender is not None:
                begin, end = _stream_range(packet, number)
                if packet.sender is not sender or begin != stop:
                    if sender is not None:
                        sender.on_lost(start, stop, fin)
                    sender, start, fin = packet.sender, begin, False
                stop = end
                fin = fin or packet.fin
                if packet.streams is not None:
                    for other, other_start, other_stop, other_fin in packet.streams:
                        other.on_lost(other_start, other_stop, other_fin)
            if packet.control is not None:
                owner.on_frames_lost(packet.control)
        if sender is not None:
            sender.on_lost(start, stop, fin)
        self.eliciting_in_flight -= eliciting
        self.packets_lost += len(numbers)
        if size:
            control = self.control
            if congestion:
                control.on_lost(size, latest, now)
                if is_persistent:
                    control.on_persistent_congestion()
                self.pacer.update_rate(control.congestion_window, self.rtt.smoothed)
            else:
                control.on_expired(size)
        if largest_size > self._lost_size:
            self._lost_size = largest_size
        owner.on_packets_lost(numbers, largest_size)

    def _count_lost(self, priorities: list[int]) -> None:
        lost = self.datagrams_lost
        for priority in priorities:
            lost[priority] = lost.get(priority, 0) + 1

    def declare_early_data_lost(self, now: float) -> None:
        """Resend 0-RTT data refused by the server at once (RFC 9001 section 4.6.2)."""
        refused = [number for number, packet in self.sent.items() if packet.is_zero_rtt]
        if refused:
            self.declare_lost(refused, False, now)

    def declare_all_lost(self, now: float) -> None:
        """Declare all 0-RTT packets lost after a Retry (RFC 9000 section 17.2.5.3)."""
        if self.sent:
            self.declare_lost(list(self.sent), False, now)
        self.loss_time = _NEVER
        self.pto_count = 0

    def _in_persistent_congestion(self, numbers: list[int]) -> bool:
        """Whether the losses are persistent congestion; a number left out ends no period.

        RFC 9002 section 7.6.2.
        """
        rtt = self.rtt
        if not rtt.has_sample:
            return False
        duration = self.probe_timeout() * _PERSISTENT_CONGESTION_THRESHOLD
        previous = -1
        began = _NEVER
        for number in numbers:
            if self.skipped.before(number, 1) != previous:
                began = _NEVER  # a packet in between may have been acknowledged
            previous = number
            packet = self.sent[number]
            if packet.eliciting and packet.time > rtt.first_sample_at:
                if began == _NEVER:
                    began = packet.time
                elif packet.time - began > duration:
                    return True
        return False

    # ------------------------------------------------------------------ timer

    def probe_timeout(self) -> float:
        """The probe timeout, in seconds, without backoff (RFC 9002 section 6.2.1)."""
        return self.rtt.probe_timeout(self.peer_max_ack_delay)

    def deadline(self, can_probe: bool = True) -> float:
        """The time to call :meth:`on_timeout`; infinite: never.

        Args:
          can_probe: whether the anti-amplification limit leaves room for a probe; without room
            there is no probe timeout (RFC 9002 section 6.2.2.1).
        """
        if self.loss_time != _NEVER:
            return self.loss_time
        if not (self.eliciting_in_flight and self.is_confirmed and can_probe):
            return _NEVER
        return self.last_eliciting_sent + self.probe_timeout() * (1 << self.pto_count)

    def on_timeout(self, now: float, can_probe: bool = True) -> bool:
        """Act if the :meth:`deadline` has come; whether to send :data:`PROBES` probes.

        Each probe carries the content of one of the oldest packets that have to be repeated (RFC
        9002 section 6.2.4).  These packets count as lost, but not as a sign of congestion.
        """
        due = self.deadline(can_probe)
        if now < due or due == _NEVER:
            return False
        patience = self.probe_timeout()
        stalls = self.rtt.stalls
        if stalls.on_timer(due, now, self.rtt.arrivals.earliest, patience):
            self.control.exclude(*stalls.last)
        if self.loss_time != _NEVER:
            self.detect_lost(now, now)
            return False
        self.probe_timeouts += 1
        if patience * (2 << self.pto_count) <= self.longest_backoff:
            self.pto_count += 1
        oldest = self._to_repeat(PROBES)
        if not oldest:
            oldest = [number for number, packet in self.sent.items() if packet.eliciting][:1]
        self.declare_lost(oldest, False, now)
        return True

    def _to_repeat(self, count: int) -> list[int]:
        """The oldest packets with content that has to be repeated, at most `count`."""
        found: list[int] = []
        for number, packet in self.sent.items():
            if packet.eliciting and _has_to_be_repeated(packet):
                found.append(number)
                if len(found) == count:
                    break
        return found

    def repeat_oldest(self) -> bool:
        """Queue the content of the oldest packet that has to be repeated; whether there is one.

        For probes without other content, and for those before the handshake is confirmed (RFC
        9002 section 6.2.4).  The packet is not forgotten, so an acknowledgement of either copy
        counts.
        """
        for number in self._to_repeat(1):
            packet = self.sent[number]
            if packet.sender is not None:
                start, stop = _stream_range(packet, number)
                packet.sender.repeat(start, stop, packet.fin)
            if packet.streams is not None:
                for sender, start, stop, fin in packet.streams:
                    sender.repeat(start, stop, fin)
            if packet.control is not None:
                self.owner.on_frames_lost(
                    [frame for frame in packet.control if frame[0] != frames.PING]
                )
            return True
        return False

    # ------------------------------------------------------------------ life

    def confirm(self) -> None:
        """Begin probe timeouts and skipped numbers, since the handshake is confirmed."""
        self.is_confirmed = True
        self.skipped.begin(self.next_number)

    def begin_path(self, now: float) -> None:
        """Start another path: older packets tell nothing about its delay (RFC 9000 section 9.4)."""
        self.path_since = now
        self.pto_count = 0
        self.rtt.begin_path()

    def metrics(self, with_rtt: bool) -> dict[str, float]:
        """The data of qlog's event ``recovery:metrics_updated``; times in milliseconds."""
        control, rtt = self.control, self.rtt
        data: dict[str, float] = {
            "cwnd": control.congestion_window,
            "bytes_in_flight": control.bytes_in_flight,
        }
        if control.ssthresh != NO_THRESHOLD:
            data["ssthresh"] = control.ssthresh
        if with_rtt:
            data["latest_rtt"] = rtt.latest * 1000
            data["min_rtt"] = rtt.minimum * 1000
            data["smoothed_rtt"] = rtt.smoothed * 1000
            data["rtt_variance"] = rtt.variance * 1000
        return data

    def release(self) -> None:
        """Cut the references to packets, streams and the owner; the connection is over."""
        self.sent.clear()
        self.owner = NO_OWNER


def _newly_acknowledged(sent: dict[int, SentPacket], ranges: list[tuple[int, int]]) -> list[int]:
    """The numbers in `sent` (ascending) covered by the ranges (descending), ascending."""
    # The peer chooses how many ranges and frames it sends.  So visit only the packets covered,
    # and none if all ranges lie below the unacknowledged packets.
    start, stop = ranges[0]
    for first in sent:
        if first >= stop:
            return []
        if len(ranges) == 1 and first == stop - 1:
            return [first]
        numbers = list(islice(sent, stop - first))
        if len(ranges) == 1:
            if start <= first and numbers[-1] < stop:
                return numbers
            return numbers[bisect_left(numbers, start) : bisect_left(numbers, stop)]
        found: list[int] = []
        for start, stop in reversed(ranges):
            if stop > first:
                found += numbers[bisect_left(numbers, start) : bisect_left(numbers, stop)]
        return found
    return []


def _has_to_be_repeated(packet: SentPacket) -> bool:
    """Whether it has more than PINGs and DATAGRAMs; probes of the path MTU are not in flight."""
    if packet.sender is not None:
        return True
    kinds = [kind for kind, _, _ in packet.control or () if kind != frames.PING]
    return packet.in_flight and bool(kinds)


def never_sent() -> TransportError:
    """The error for an acknowledgement of a packet never sent (RFC 9000 section 13.1)."""
    return TransportError(
        PROTOCOL_VIOLATION, frames.ACK, "Acknowledged a packet which was never sent"
    )


def _stream_range(packet: SentPacket, number: int) -> tuple[int, int]:
    """The bytes in the first STREAM frame of one packet, possibly in a run."""
    if packet.count == 1:
        return packet.start, packet.stop
    start = packet.start + (number - packet.number) * packet.capacity
    return start, start + packet.capacity
