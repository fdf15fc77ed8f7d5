"""A receiver that acknowledges packets not received is found out (RFC 9000 section 21.4)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.engine import Engine
from phoenix_trio.quic.established.skipped_numbers import FIRST_PERIOD
from tests.engine_access import (
    believe_max_data,
    fill_pacer,
    next_packet_number,
    set_congestion_window,
    skipped_numbers,
)
from tests.engine_packets import seal_short
from tests.hostile.conftest import Figure
from tests.packets import ack_frame
from tests.support import EnginePair, Side, ending, hand_over

#: The attacker's slow link delivers one packet of so many.
LINK = 4


def seeded(seed: int) -> Callable[[int], int]:
    return random.Random(seed).randrange


class Download:
    """A client behind a slow link asks a server for much data."""

    def __init__(self, skips: Callable[[int], int] | None, size: int = 8_000_000) -> None:
        config = TransportConfig(
            receive_buffer_size=2 * size,
            stream_receive_buffer_size=2 * size,
            send_buffer_size=2 * size,
            stream_send_buffer_size=2 * size,
        )
        self.pair = EnginePair(client_config=config, server_config=config, skips=skips).connect()
        self.pair.run(1.0)
        assert self.pair.server is not None
        self.server: Side = self.pair.server
        self.begun = next_packet_number(self.server.engine)
        stream_id = self.server.engine.open_stream(unidirectional=True)
        assert stream_id is not None
        # (The engine of the client has granted no more than its first window.)
        believe_max_data(self.server.engine, 2 * size, stream_id)
        self.server.engine.write(stream_id, bytes(size))

    @property
    def sent(self) -> int:
        """Packets sent by the server for the download."""
        return next_packet_number(self.server.engine) - self.begun

    def acknowledge(self, rounds: int, choose: Callable[[int], list[tuple[int, int]]]) -> None:
        """In each millisecond, acknowledge the ranges that `choose` returns.

        The argument of `choose` is the newest packet number.  Nothing really arrives.
        """
        pair, server = self.pair, self.server
        for _ in range(rounds):
            pair.flush(server)
            pair.wire.clear()
            pair.now += 0.001
            deadline = server.engine.next_deadline()
            if deadline is not None and deadline <= pair.now:
                server.engine.on_timer(pair.now)
            for first, last in choose(next_packet_number(server.engine) - 1):
                packet = seal_short(pair.client.engine, ack_frame(last, last - first))
                hand_over(pair, pair.client, server, packet)
            if server.of(events.Terminated):
                return


def everything(newest: int) -> list[tuple[int, int]]:
    return [(0, newest)]


def test_an_attacker_which_acknowledges_everything_sent_is_closed_soon(figure: Figure) -> None:
    unchecked = Download(skips=None)
    unchecked.acknowledge(100, everything)
    assert unchecked.sent > 4000, "without skipped numbers the whole download leaves at once"
    figure("sent in 100 ms without skipped numbers", unchecked.sent, "packets")
    most = 0
    for seed in range(20):
        download = Download(skips=seeded(seed))
        download.acknowledge(100, everything)
        assert "never sent" in str(ending(download.server))
        most = max(most, download.sent)
    # The window may have doubled once beyond the first skipped number.
    assert most <= 4 * FIRST_PERIOD + 64
    figure("sent until the connection is closed, the most of 20", most, "packets")


@pytest.mark.parametrize("beyond", [5, 20])
def test_an_attacker_which_guesses_a_little_beyond_what_it_received_is_closed(
    beyond: int, figure: Figure
) -> None:
    """It acknowledges each packet that its link delivers, and `beyond` numbers on both sides."""
    sent = []
    for seed in range(10):
        generator = random.Random(seed)
        download = Download(skips=seeded(seed))
        acknowledged = 0

        def around(newest: int, generator: random.Random = generator) -> list[tuple[int, int]]:
            nonlocal acknowledged
            arrived = [n for n in range(acknowledged, newest + 1) if not generator.randrange(LINK)]
            acknowledged = newest + 1
            return [(max(0, n - beyond), min(n + beyond, newest)) for n in arrived]

        download.acknowledge(300, around)
        assert "never sent" in str(ending(download.server))
        sent.append(download.sent)
    median = sorted(sent)[len(sent) // 2]
    assert median < 8 * FIRST_PERIOD
    figure(f"sent until the connection is closed, {beyond} beyond, median", median, "packets")


def test_an_attacker_cannot_tell_a_run_which_holds_no_skipped_number() -> None:
    """Bulk data leaves in runs; a number may be left out at any place in them."""
    places = set()
    for seed in range(60):
        download = Download(skips=seeded(seed), size=2_000_000)
        engine = download.server.engine
        first = next_packet_number(engine)
        set_congestion_window(engine, 10**9)
        for _ in range(4):
            fill_pacer(engine)
            engine.transmit(download.pair.now)
        places |= {number - first for number in range(first, first + 64) if skips(engine, number)}
    assert len(places) > 20, sorted(places)


def skips(engine: Engine, number: int) -> bool:
    return skipped_numbers(engine).includes(number, number + 1)
