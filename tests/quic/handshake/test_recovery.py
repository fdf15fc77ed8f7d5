"""Loss detection of handshake packets, by itself."""

from __future__ import annotations

import math

import pytest

from phoenix_trio.quic.established.congestion import make_control
from phoenix_trio.quic.established.rtt import RoundTrip
from phoenix_trio.quic.established.stalls import Arrivals
from phoenix_trio.quic.handshake.packets import HANDSHAKE, INITIAL
from phoenix_trio.quic.handshake.recovery import HandshakeRecovery
from phoenix_trio.quic.handshake.space import HandshakePacket, Space
from phoenix_trio.quic.wire.errors import PROTOCOL_VIOLATION, TransportError


class Bench:
    """A recovery with two spaces, which sends packets of 100 bytes of data."""

    def __init__(self, *, is_client: bool = False) -> None:
        self.rtt = RoundTrip(0.1)
        self.control = make_control("cubic", 1200)
        self.recovery = HandshakeRecovery(is_client, self.rtt, self.control)
        self.initial, self.handshake = Space(INITIAL), Space(HANDSHAKE)
        self.recovery.spaces = (self.initial, self.handshake)

    def send(self, space: Space, now: float, *, data: int = 100) -> HandshakePacket:
        packet = HandshakePacket(space.next_number, now)
        space.next_number += 1
        packet.size = 150
        if data:
            space.crypto.write(bytes(data))
            space.crypto.fill([], 1000, packet.frames)
            packet.is_eliciting = packet.is_in_flight = True
        self.recovery.on_sent(space, packet)
        return packet

    def ack(self, space: Space, now: float, *numbers: int, delay: float = 0.0) -> None:
        ranges = [(number, number + 1) for number in sorted(numbers, reverse=True)]
        self.recovery.on_ack(space, ranges, delay, now)


def test_an_acknowledgement_is_a_sample() -> None:
    bench = Bench()
    bench.send(bench.initial, 1.0)
    assert bench.control.bytes_in_flight == 150
    bench.ack(bench.initial, 1.05, 0)
    assert bench.rtt.smoothed == pytest.approx(0.05)
    assert bench.control.bytes_in_flight == 0
    assert bench.recovery.packets_acknowledged == 1
    assert bench.recovery.probe_time() == math.inf


def test_packets_with_acknowledgements_alone_are_not_remembered() -> None:
    """A stranger makes us send one for each packet, and acknowledges none."""
    bench = Bench()
    for number in range(100):
        bench.send(bench.initial, number / 100, data=0)
    assert bench.initial.sent == {}
    assert bench.recovery.probe_time() == math.inf
    bench.ack(bench.initial, 1.0, 99)
    assert not bench.rtt.has_sample


def test_what_was_never_sent_is_not_acknowledged() -> None:
    bench = Bench()
    bench.send(bench.initial, 0.0)
    with pytest.raises(TransportError) as info:
        bench.ack(bench.initial, 0.1, 1)
    assert info.value.code == PROTOCOL_VIOLATION


def test_each_space_has_numbers_of_its_own() -> None:
    """RFC 9000 section 12.3: later packets of another space are no sign of loss."""
    bench = Bench()
    bench.send(bench.initial, 0.0)
    for _ in range(5):
        bench.send(bench.handshake, 0.0)
    bench.send(bench.initial, 0.0)
    bench.ack(bench.initial, 0.1, 1)
    assert bench.recovery.packets_lost == 0
    assert bench.initial.loss_time == pytest.approx(9 / 8 * 0.1)


def test_three_later_packets_are_a_sign_of_loss() -> None:
    bench = Bench()
    for _ in range(4):
        bench.send(bench.handshake, 0.0)
    assert not bench.handshake.crypto.has_pending
    bench.ack(bench.handshake, 0.1, 3)
    assert bench.recovery.packets_lost == 1
    assert bench.handshake.crypto.has_pending
    parts: list[bytes] = []
    frames: list[tuple[int, int, int]] = []
    bench.handshake.crypto.fill(parts, 1000, frames)
    assert frames == [(6, 0, 100)]
    assert bench.control.bytes_in_flight == 2 * 150


def test_time_is_a_sign_of_loss() -> None:
    bench = Bench()
    bench.send(bench.handshake, 0.0)
    bench.send(bench.handshake, 0.0)
    bench.ack(bench.handshake, 0.1, 1)
    deadline = bench.recovery.deadline(True)
    assert deadline == pytest.approx(9 / 8 * 0.1)
    assert not bench.recovery.on_timeout(deadline + 1e-6)
    assert bench.recovery.packets_lost == 1
    assert bench.recovery.probe_timeouts == 0


def test_a_probe_repeats_data_and_forgets_nothing() -> None:
    """RFC 9002 section 6.2: an acknowledgement of either copy counts."""
    bench = Bench()
    bench.send(bench.initial, 0.0)
    assert bench.recovery.deadline(True) == pytest.approx(0.2)
    assert bench.recovery.deadline(False) == math.inf
    assert bench.recovery.on_timeout(0.2)
    assert bench.recovery.repeat() == 100
    assert bench.control.bytes_in_flight == 0
    copy = HandshakePacket(1, 0.2)
    bench.initial.next_number = 2
    bench.initial.crypto.fill([], 1000, copy.frames)
    copy.size, copy.is_eliciting, copy.is_in_flight = 150, True, True
    bench.recovery.on_sent(bench.initial, copy)
    assert bench.recovery.packets_lost == 0
    bench.ack(bench.initial, 0.3, 0)
    assert not bench.initial.crypto.has_pending
    assert bench.recovery.repeat() == 0, "all of it has arrived"


def test_several_copies_count_once() -> None:
    bench = Bench()
    bench.send(bench.initial, 0.0, data=300)
    for number in (1, 2):
        bench.recovery.repeat()
        copy = HandshakePacket(number, 0.1)
        bench.initial.next_number = number + 1
        bench.initial.crypto.fill([], 1000, copy.frames)
        copy.is_eliciting = copy.is_in_flight = True
        bench.recovery.on_sent(bench.initial, copy)
    assert bench.recovery.repeat() == 300


def test_probes_back_off_up_to_two_seconds() -> None:
    bench = Bench()
    bench.send(bench.initial, 0.0)
    periods = []
    for _ in range(6):
        periods.append(bench.recovery.probe_time())
        bench.recovery.on_timeout(periods[-1])
    assert periods == pytest.approx([0.2, 0.4, 0.8, 1.6, 1.6, 1.6])


def test_a_client_sends_until_the_server_knows_its_address() -> None:
    """RFC 9002 section 6.2.2.1."""
    bench = Bench(is_client=True)
    bench.send(bench.initial, 0.0)
    bench.recovery.on_timeout(0.2)
    bench.ack(bench.initial, 0.25, 0)
    assert bench.recovery.pto_count == 1, "the server may be blocked still"
    assert bench.recovery.probe_time() < math.inf
    bench.recovery.peer_knows_address = True
    assert bench.recovery.probe_time() == math.inf


def test_discarding_a_space_frees_the_window() -> None:
    bench = Bench()
    bench.send(bench.initial, 0.0)
    bench.send(bench.handshake, 0.0)
    bench.recovery.discard(bench.initial)
    assert bench.control.bytes_in_flight == 150
    assert bench.initial.send_keys is bench.initial.receive_keys is None
    assert bench.recovery.probe_time() < math.inf
    bench.recovery.discard(bench.handshake)
    assert bench.control.bytes_in_flight == 0
    assert bench.recovery.probe_time() == math.inf


def test_a_restart_sends_everything_again_without_congestion() -> None:
    bench = Bench(is_client=True)
    window = bench.control.congestion_window
    bench.send(bench.initial, 0.0)
    bench.recovery.on_timeout(0.2)
    bench.recovery.restart(bench.initial)
    assert bench.initial.crypto.has_pending
    assert (bench.control.bytes_in_flight, bench.control.congestion_window) == (0, window)
    assert bench.recovery.packets_lost == bench.recovery.pto_count == 0


def test_a_stall_of_this_side_is_no_round_trip() -> None:
    bench = Bench()
    arrivals = Arrivals(1 << 20)
    bench.rtt.arrivals = arrivals
    arrivals.on_read(0.0, 0, drained=True)
    bench.send(bench.initial, 0.0)
    bench.ack(bench.initial, 0.1, 0)
    assert bench.rtt.smoothed == pytest.approx(0.1)
    bench.send(bench.initial, 1.0)
    # The process stands still for a minute.
    arrivals.earliest = 1.0
    bench.recovery.on_timeout(61.0)
    bench.ack(bench.initial, 61.0, 1)
    assert bench.rtt.smoothed < 1.0


def test_an_acknowledgement_which_waited_for_its_keys_is_no_sample() -> None:
    bench = Bench()
    bench.send(bench.handshake, 5.0)
    bench.ack(bench.handshake, 4.9, 0)
    assert not bench.rtt.has_sample
    assert bench.recovery.packets_acknowledged == 1
