"""A stalled process: its sleep is not a round trip, and does not make a live peer seem dead."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.driver import SocketDriver
from phoenix_trio.quic.established.congestion import CubicControl
from phoenix_trio.quic.established.idle import longest_backoff
from phoenix_trio.quic.established.stalls import LONGEST_ROUND_TRIP, Arrivals, StallFilter
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    authority_pem,
    client_tls,
    connected_pair,
    examples,
    server_tls,
    stream_pair,
)

CLIENT_PROGRAM = Path(__file__).with_name("stalled_client.py")
PATIENCE = 0.1


# ------------------------------------------------------------------ the rule itself


def test_a_sample_within_the_probe_timeout_is_taken_as_it_is() -> None:
    assert StallFilter().sample(1.0, 1.0625, -math.inf, 1.1, PATIENCE) == 0.0625


def test_a_longer_sample_counts_if_the_socket_was_looked_at_meanwhile() -> None:
    assert StallFilter().sample(0.0, 0.5, 0.45, 0.7, PATIENCE) == 0.5


def test_an_acknowledgement_read_late_proves_nothing() -> None:
    assert StallFilter().sample(0.0, 600.0, 0.01, 0.1, PATIENCE) is None


def test_what_was_waited_for_while_awake_is_proved() -> None:
    """The packet was sent at 0, and not acknowledged at 0.4, when the stall began."""
    assert StallFilter().sample(0.0, 600.0, 0.4, 0.5, PATIENCE) == pytest.approx(0.4)


def test_a_timer_which_has_backed_off_proves_only_what_was_seen() -> None:
    stalls = StallFilter()
    assert stalls.sample(0.0, 1.0, 0.3, 1.5, PATIENCE) == pytest.approx(0.3)
    assert stalls.last == (-math.inf, -math.inf), "that was no stall"


def test_a_stall_is_left_out_of_packets_which_are_acknowledged_after_it() -> None:
    stalls = StallFilter()
    assert stalls.on_timer(0.1, 600.0, 0.05, PATIENCE)
    assert stalls.sample(0.0, 600.02, 600.0, 600.2, PATIENCE) is None
    assert stalls.sample(0.0, 600.30, 600.29, 600.4, PATIENCE) == pytest.approx(0.35)
    assert stalls.sample(600.0, 600.3, 600.29, 600.4, PATIENCE) == pytest.approx(0.3)


def test_a_timer_run_on_time_is_no_stall() -> None:
    assert not StallFilter().on_timer(0.1, 0.15, 0.0, PATIENCE)


def test_a_sample_is_bounded() -> None:
    assert StallFilter().sample(0.0, 900.0, 899.99, 950.0, PATIENCE) == LONGEST_ROUND_TRIP


@examples(100)
@given(
    sent=st.floats(0, 100),
    waits=st.lists(st.floats(0, 50), min_size=3, max_size=3),
    patience=st.floats(0.001, 5),
)
@example(sent=0.0, waits=[1.0, 0.0010000000000000002, 0.0], patience=0.001)
def test_no_sample_exceeds_the_time_which_was_waited_awake(
    sent: float, waits: list[float], patience: float
) -> None:
    awake, stall, more = waits
    stalls = StallFilter()
    began = sent + awake
    ended = began + stall
    stalls.on_timer(began, ended, began, patience)
    now = ended + more
    sample = stalls.sample(sent, now, now, now + patience, patience)
    # (The filter sees times of the clock, whose difference can be a little less than `stall`.)
    seen = ended - began
    stood_still = seen if seen > patience else 0.0
    if sample is not None and sample > patience:
        assert sample <= now - sent - stood_still + 1e-6


def test_the_socket_was_last_empty_when_reading_began() -> None:
    arrivals = Arrivals(1000)
    arrivals.on_read(5.0, 100, drained=True)
    assert arrivals.earliest == 5.0
    assert not arrivals.is_behind(600.0, drained=True)
    assert arrivals.is_behind(600.0, drained=False)
    assert not arrivals.is_behind(5.05, drained=False)


def test_a_backlog_is_over_when_a_whole_buffer_was_read() -> None:
    arrivals = Arrivals(1000)
    arrivals.on_read(5.0, 0, drained=True)
    for step in range(3):
        arrivals.on_read(600.0 + step, 400, drained=False)
        assert arrivals.earliest == (5.0 if step < 2 else 600.0)
    arrivals.on_read(603.0, 400, drained=False)
    assert arrivals.earliest == 600.0
    arrivals.on_read(604.0, 10, drained=True)
    assert arrivals.earliest == 604.0


def test_probes_back_off_to_a_quarter_of_the_idle_timeout() -> None:
    assert longest_backoff(30.0) == 7.5
    assert longest_backoff(math.inf) == 60.0


def test_a_stall_is_no_time_in_which_the_window_grows() -> None:
    control = CubicControl(max_datagram_size=1200)
    control.congestion_window = 120_000
    control.on_congestion(now=1.0, sent_time=0.5)
    control._start_epoch(1.0)
    control.exclude(1.5, 601.5)
    assert control._epoch == 601.0
    control.exclude(0.0, 0.5)
    assert control._epoch == 601.0


# ------------------------------------------------------------------ one side asleep, simulated


@contextmanager
def asleep(driver: SocketDriver) -> Iterator[None]:
    """Inside the block, a driver neither reads nor runs timers, like a stopped process."""
    woken = trio.Event()
    driver_any, socket_any = driver, driver.socket

    async def wait_until_woken() -> None:
        await woken.wait()

    def no_turn() -> bool:
        return False

    def no_deadline() -> float:
        return math.inf

    vars(driver_any).update(_turn=no_turn)
    vars(driver._timers).update(next_deadline=no_deadline)
    vars(socket_any).update(wait_readable=wait_until_woken)
    driver._timers.set_alarm()
    try:
        yield
    finally:
        del vars(driver_any)["_turn"]
        del vars(driver._timers)["next_deadline"]
        del vars(socket_any)["wait_readable"]
        driver._timers.set_alarm()
        woken.set()


async def test_a_peer_gone_during_a_long_stall_is_noticed_after_the_idle_timeout(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network, server_config=TransportConfig(keep_alive=5.0)) as (
        client,
        server,
    ):
        ours, _ = await stream_pair(client, server)
        await ours.send_all(b"in flight")
        await trio.sleep(0.001)
        with asleep(client._driver):
            await trio.sleep(600)
            network.partition(CLIENT, SERVER)
        woken = trio.current_time()
        await trio.sleep(0.5)
        assert server.is_closed
        assert not client.is_closed, "the server's last packets were in the socket"
        await client.wait_closed()
        assert trio.current_time() - woken <= 31


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_loss_after_a_stall_is_repaired_as_fast_as_before(
    who: str, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        if who == "server":
            client, server, ours, theirs = server, client, theirs, ours
        await trio.sleep(1)
        await ours.send_all(b"in flight")
        await trio.sleep(0.001)
        with asleep(client._driver):
            await trio.sleep(6)
        assert await theirs.receive_some() == b"in flight"
        await trio.sleep(1)
        rtt = client.statistics().rtt_smoothed
        assert rtt is not None
        assert rtt < 0.1
        network.set_conditions(loss=1.0)
        await ours.send_all(b"lost")
        await trio.sleep(0.001)
        network.set_conditions(loss=0.0)
        since = trio.current_time()
        assert await theirs.receive_some() == b"lost"
        assert trio.current_time() - since < 0.5


async def test_a_stall_in_the_handshake_is_no_round_trip(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with (
        phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as there,
        phoenix_trio.Endpoint.open(None, network=network.host(CLIENT)) as here,
    ):
        listener = there.listen(tls=server_tls(), alpn=ALPN)
        accepted: list[phoenix_trio.QuicConnection] = []

        async def accept() -> None:
            accepted.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)

            async def stall() -> None:
                await trio.sleep(0.005)
                with asleep(here._driver):
                    await trio.sleep(6)

            nursery.start_soon(stall)
            async with here.connect(SERVER, PORT, tls=client_tls(), alpn=ALPN) as connection:
                assert trio.current_time() > 5
                await trio.sleep(1)
                rtt = connection.statistics().rtt_smoothed
                assert rtt is not None
                assert rtt < 0.2


async def test_what_waits_in_the_socket_keeps_a_connection_alive_behind_a_flood(
    autojump_clock: MockClock,
) -> None:
    """More packets wait than one turn reads; the connection's own are the last of them."""
    network = SimulatedNetwork(delay=0.01)
    config = TransportConfig(max_idle_timeout=5.0)
    async with connected_pair(
        network, client_config=config, server_config=TransportConfig(keep_alive=2.0)
    ) as (client, server):
        await trio.sleep(0.5)
        stranger = await network.host("10.0.0.9").open_socket(None, 0, buffer_size=1000)
        address = client._driver.socket.address
        with asleep(client._driver):
            for size in range(100, 1100):
                stranger.send(bytes(size), (CLIENT, address[1]))
            await trio.sleep(5.5)
            assert not server.is_closed
        await trio.sleep(20)
        assert not client.is_closed
        assert not server.is_closed


async def test_timers_are_run_although_the_socket_is_never_empty(autojump_clock: MockClock) -> None:
    """A flood that never ends must not keep a dead connection for ever."""
    network = SimulatedNetwork(delay=0.01)
    config = TransportConfig(max_idle_timeout=5.0, socket_buffer_size=100_000)
    async with connected_pair(network, client_config=config) as (client, _):
        stranger = await network.host("10.0.0.9").open_socket(None, 0, buffer_size=1000)
        address = client._driver.socket.address
        network.partition(CLIENT, SERVER)
        turn = client._driver._turn

        def flooded_turn() -> bool:
            for size in range(1000, 1050):
                stranger.send(bytes(size), (CLIENT, address[1]))
            autojump_clock.jump(0.001)
            return turn()

        vars(client._driver)["_turn"] = flooded_turn
        try:
            with trio.fail_after(20):
                await client.wait_closed()
        finally:
            del vars(client._driver)["_turn"]
        assert trio.current_time() < 7


# ------------------------------------------------------------------ the loop itself blocked


async def test_a_loop_blocked_again_and_again_keeps_its_round_trips(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.01)) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        for _ in range(100):
            await ours.send_all(b"x")
            await trio.sleep(0.003)
            autojump_clock.jump(0.2)  # some task computes
            assert await theirs.receive_some() == b"x"
            await trio.sleep(0.1)
        statistics = client.statistics()
        assert statistics.rtt_smoothed is not None
        assert statistics.rtt_smoothed < 0.06
        assert statistics.packets_lost <= 100, "at most one probe each time"


async def test_a_path_which_becomes_slow_is_noticed_by_a_loop_which_is_always_late(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        network.set_conditions(delay=0.5)

        async def read() -> None:
            while True:
                await theirs.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(100):
                await ours.send_all(b"x")
                await trio.sleep(0.01)
                autojump_clock.jump(0.15)
            nursery.cancel_scope.cancel()
        rtt = client.statistics().rtt_smoothed
        assert rtt is not None
        assert rtt > 0.6


async def test_a_path_which_becomes_slow_is_noticed_soon(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        network.set_conditions(delay=0.5)
        for _ in range(5):
            await ours.send_all(b"x")
            assert await theirs.receive_some() == b"x"
            await trio.sleep(1)
        probes = client.statistics().probe_timeouts
        rtt = client.statistics().rtt_smoothed
        assert rtt is not None
        assert rtt > 0.3
        for _ in range(10):
            await ours.send_all(b"x")
            assert await theirs.receive_some() == b"x"
            await trio.sleep(1)
        assert client.statistics().probe_timeouts == probes, "probes come too early no more"


async def test_a_path_which_was_cut_for_long_is_tried_again_before_the_end(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.25)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(2)
        network.partition(CLIENT, SERVER)
        await ours.send_all(b"patience")
        await trio.sleep(18)
        network.heal(CLIENT, SERVER)
        since = trio.current_time()
        assert await theirs.receive_some() == b"patience"
        assert trio.current_time() - since < 8


async def test_acknowledgements_in_disorder_behind_a_stall_are_no_loss(
    autojump_clock: MockClock,
) -> None:
    """The acknowledgement of the missing packet waits behind the one that shows a gap."""
    network = SimulatedNetwork(delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        held: list[Datagram] = []

        def hold_first(datagram: Datagram) -> Datagram | list[Datagram] | None:
            if datagram.source[0] == CLIENT and len(held) < 1:
                held.append(datagram)
                return None
            return datagram

        network.tap = hold_first
        await ours.send_all(b"one")
        await trio.sleep(0.001)
        await ours.send_all(b"two")
        await trio.sleep(0.001)
        network.tap = lambda datagram: [*held, datagram] if datagram.source[0] == CLIENT else None
        with asleep(client._driver):
            # The server acknowledges the second, then the first.
            network.tap = None
            await trio.sleep(0.1)
            network._transfer(held[0])
            await trio.sleep(6)
        before = client.statistics().packets_lost
        await trio.sleep(1)
        assert client.statistics().packets_lost == before
        assert await theirs.receive_some() == b"onetwo"


# ------------------------------------------------------------------ a real process, stopped


@asynccontextmanager
async def client_process(directory: Path, *, blocked: float) -> AsyncIterator[trio.Process]:
    """A process that exchanges messages with a server in this one."""
    (directory / "authority.pem").write_bytes(authority_pem())

    async def echo(connection: phoenix_trio.QuicConnection) -> None:
        async for stream in connection.incoming_streams():
            async for chunk in stream:
                await stream.send_all(chunk)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            lambda task_status: phoenix_trio.serve(
                echo, 0, host="127.0.0.1", tls=server_tls(), task_status=task_status
            )
        )
        arguments = [str(directory / "authority.pem"), str(listener.port), str(blocked)]
        process = await trio.lowlevel.open_process(
            [sys.executable, str(CLIENT_PROGRAM), *arguments], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            with trio.fail_after(30):
                assert await process.stdout.receive_some(), "it runs"
                yield process
        finally:
            process.kill()
            await process.wait()
            await process.stdout.aclose()
        nursery.cancel_scope.cancel()


async def test_a_stopped_process_does_not_take_its_sleep_for_the_round_trip(
    tmp_path: Path,
) -> None:
    async with client_process(tmp_path, blocked=0.0) as process:
        for _ in range(3):
            process.send_signal(signal.SIGSTOP)
            await trio.sleep(1)
            process.send_signal(signal.SIGCONT)
            await trio.sleep(0.3)
        assert process.stdout is not None
        lines = await process.stdout.receive_some(100_000)
        assert float(lines.split()[-1]) < 0.5


async def test_a_process_whose_loop_is_blocked_does_not_take_that_for_the_round_trip(
    tmp_path: Path,
) -> None:
    async with client_process(tmp_path, blocked=0.3) as process:
        await trio.sleep(1.5)
        assert process.stdout is not None
        lines = await process.stdout.receive_some(100_000)
        assert float(lines.split()[-1]) < 0.2
