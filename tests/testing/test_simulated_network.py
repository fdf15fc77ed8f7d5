"""The simulated network: each fault alone, determinism, conservation."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from phoenix_trio.testing import Conditions, SimulatedNetwork

A, B = "10.0.0.1", "10.0.0.2"


async def two_sockets(network: SimulatedNetwork, buffer_size: int = 10**9) -> tuple[Any, Any]:
    return (
        await network.host(A).open_socket(None, 1000, buffer_size=buffer_size),
        await network.host(B).open_socket(None, 2000, buffer_size=buffer_size),
    )


async def shoot(network: SimulatedNetwork, count: int, size: int = 100) -> list[tuple[float, int]]:
    """Send numbered datagrams at once; when which of them arrived."""
    here, there = await two_sockets(network)
    for number in range(count):
        here.send(number.to_bytes(4, "big").ljust(size, b"\0"), (B, 2000))
    arrivals: list[tuple[float, int]] = []
    with trio.move_on_after(1000):
        while True:
            await there.wait_readable()
            for data, source in there.receive(count):
                assert source == (A, 1000)
                arrivals.append((trio.current_time(), int.from_bytes(data[:4], "big")))
    here.close()
    there.close()
    return arrivals


async def test_a_perfect_network_keeps_order_and_time(autojump_clock: MockClock) -> None:
    arrivals = await shoot(SimulatedNetwork(delay=0.25), 100)
    assert [number for _, number in arrivals] == list(range(100))
    assert all(at == pytest.approx(0.25) for at, _ in arrivals)


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        ("loss", lambda arrivals: 600 < len(arrivals) < 800),
        ("duplicate", lambda arrivals: 1200 < len(arrivals) < 1400),
        ("reorder", lambda arrivals: arrivals != sorted(arrivals, key=lambda a: a[1])),
    ],
)
async def test_each_fault_does_what_it_says(
    name: str, judge: Callable[[Any], bool], autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(seed=5, delay=0.01, **{name: 0.3})  # type: ignore[arg-type]
    assert judge(await shoot(network, 1000))


async def test_corruption_flips_one_bit(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=5, corrupt=0.5)
    here, there = await two_sockets(network)
    for _ in range(200):
        here.send(bytes(50), (B, 2000))
    received = [data for data, _ in there.receive(1000)]
    flipped = [sum(byte.bit_count() for byte in data) for data in received]
    assert set(flipped) == {0, 1}
    assert sum(flipped) == network.statistics().corrupted
    assert 60 < sum(flipped) < 140


async def test_jitter_lets_later_ones_overtake(autojump_clock: MockClock) -> None:
    arrivals = await shoot(SimulatedNetwork(delay=0.1, jitter=0.1), 200)
    assert [n for _, n in arrivals] != list(range(200))
    assert all(0.1 <= at <= 0.2 for at, _ in arrivals)


async def test_bandwidth_serialises_and_its_queue_is_bounded(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(bandwidth=8000, queue_bytes=5000)  # 1000 bytes a second
    arrivals = await shoot(network, 20, size=1000)
    assert [at for at, _ in arrivals] == [pytest.approx(t) for t in (1, 2, 3, 4, 5)]
    assert network.statistics().queue_full == 15


async def test_datagrams_above_the_mtu_vanish(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(mtu=1200)
    assert not await shoot(network, 3, size=1201)
    assert network.statistics().too_large == 3
    network.set_conditions(mtu=None)
    assert len(await shoot(network, 3, size=60_000)) == 3


async def test_partitions_conditions_of_one_direction_and_taps(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network)
    network.partition(A, B)
    here.send(b"x", (B, 2000))
    assert not there.receive(9)
    network.heal(A, B)
    network.link(A, B).set_conditions(loss=1.0)
    here.send(b"x", (B, 2000))
    there.send(b"y", (A, 1000))
    assert not there.receive(9)
    assert here.receive(9) == [(b"y", (B, 2000))]
    network.link(A, B).set_conditions(loss=0.0)
    network.tap = lambda datagram: None if datagram.data == b"swallow" else [datagram, datagram]
    here.send(b"swallow", (B, 2000))
    here.send(b"double", (B, 2000))
    assert there.receive(9) == [(b"double", (A, 1000))] * 2


async def test_rebinding_moves_the_outside_address(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network)
    network.host(A).rebind()
    here.send(b"x", (B, 2000))
    ((_, source),) = there.receive(9)
    assert source[0] == A
    assert source[1] != 1000
    there.send(b"old", (A, 1000))
    there.send(b"new", source)
    assert here.receive(9) == [(b"new", (B, 2000))]
    network.host(A).rebind("192.0.2.7")
    here.send(b"x", (B, 2000))
    assert there.receive(9)[0][1][0] == "192.0.2.7"
    assert here.address == (A, 1000)


async def test_a_full_receive_buffer_drops_what_comes_on_top(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    here, there = await two_sockets(network, buffer_size=1000)
    for number in range(20):
        here.send(bytes([number]) * 100, (B, 2000))
    received = there.receive(100)
    assert [data[0] for data, _ in received] == list(range(10))
    assert network.statistics().receive_buffer_full == 10


async def test_names_and_errors(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    network.add_name("example.org", A, "2001:db8::1")
    host = network.host(B)
    assert await host.resolve("example.org", 5) == [(A, 5), ("2001:db8::1", 5)]
    assert await host.resolve("::1", 5) == [("::1", 5)]
    with pytest.raises(OSError, match=r"nobody\.example"):
        await host.resolve("nobody.example", 5)
    opened = await host.open_socket(None, 7, buffer_size=10)
    with pytest.raises(OSError, match="in use") as caught:
        await host.open_socket(None, 7, buffer_size=10)
    assert caught.value.errno == errno.EADDRINUSE
    opened.close()
    opened.close()
    await host.open_socket(None, 7, buffer_size=10)
    with pytest.raises(OSError, match="not an address"):
        await host.open_socket(A, 7, buffer_size=10)
    with pytest.raises(ValueError, match="numeric"):
        network.host("example.org")
    assert network.host(A) is network.host(A)


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss", 1.5), ("loss", -1), ("delay", -1), ("jitter", float("inf")), ("bandwidth", 0)]
    + [("mtu", 0), ("queue_bytes", 0), ("corrupt", 2), ("reorder", -0.1), ("duplicate", 3)],
)
def test_impossible_conditions_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Conditions(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=field):
        SimulatedNetwork(**{field: value})  # type: ignore[arg-type]


async def test_closing_wakes_whoever_waits(autojump_clock: MockClock) -> None:
    _here, there = await two_sockets(SimulatedNetwork())
    there.block_sending = True
    async with trio.open_nursery() as nursery:
        for wait in (there.wait_readable, there.wait_writable):

            async def expect(wait: Any = wait) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await wait()

            nursery.start_soon(expect)
        await trio.testing.wait_all_tasks_blocked()
        there.close()


def test_hours_pass_in_a_moment() -> None:
    async def main() -> None:
        network = SimulatedNetwork(delay=1.0)
        here, there = await two_sockets(network)
        for _ in range(5000):
            here.send(b"x", (B, 2000))
            await there.wait_readable()
            assert there.receive(1)
        assert trio.current_time() == pytest.approx(5000)

    started = time.monotonic()
    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert time.monotonic() - started < 30, "not a timing: hours would have been hours"


@given(
    st.integers(0, 2**32),
    st.builds(
        dict,
        loss=st.floats(0, 1),
        duplicate=st.floats(0, 1),
        reorder=st.floats(0, 1),
        jitter=st.floats(0, 1),
        mtu=st.sampled_from([None, 100]),
        bandwidth=st.sampled_from([None, 100_000.0]),
        queue_bytes=st.sampled_from([500, 100_000]),
    ),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([2000, 2001])), max_size=60),
)
def test_no_datagram_is_unaccounted_for_and_a_seed_gives_one_outcome(
    seed: int, conditions: dict[str, Any], datagrams: list[tuple[int, int]]
) -> None:
    async def main() -> tuple[Any, Any]:
        network = SimulatedNetwork(seed, **conditions)
        here, there = await two_sockets(network, buffer_size=2000)
        for size, port in datagrams:
            here.send(bytes(size), (B, port))
        await trio.sleep(0.5)
        received = [len(data) for data, _ in there.receive(20)]
        s = network.statistics()
        gone = s.lost + s.queue_full + s.too_large + s.partitioned + s.no_listener
        gone += s.receive_buffer_full
        assert s.sent + s.duplicated == s.delivered + s.under_way + gone
        assert s.sent == len(datagrams)
        there.close()
        assert network.statistics().under_way == 0
        return received, s

    first = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert first == trio.run(main, clock=MockClock(autojump_threshold=0))
