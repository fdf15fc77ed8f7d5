"""Transfers over simulated links: in memory, and with a relay process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.cli.program import program
from phoenix_trio_bench.processes import Process, python_module
from phoenix_trio_bench.relay import Direction
from phoenix_trio_bench.simulate import Link, simulate, simulate_relayed
from tests.support import examples

MEGABIT = 1e6


def without_clock(outcome: object) -> dict[str, object]:
    values = attrs.asdict(outcome)  # type: ignore[call-overload]
    del values["real_seconds"]
    return dict(values)


def test_another_seed_gives_another_transfer() -> None:
    link = Link(rtt=0.03, loss=0.02, bandwidth=20 * MEGABIT, seed=5)
    first = simulate(link, 400_000, connections=2)
    assert sum(first.by_second) == first.size == 400_000
    assert first.packets_lost > 0
    other = simulate(attrs.evolve(link, seed=6), 400_000, connections=2)
    assert without_clock(other) != without_clock(first)


def test_a_transfer_takes_at_least_what_the_link_needs() -> None:
    outcome = simulate(Link(rtt=0.1, bandwidth=10 * MEGABIT), 2_400_000)
    assert outcome.seconds > 2_400_000 * 8 / 10e6
    assert outcome.rate < 10e6
    assert outcome.share_in_second(0, 10e6) is None
    assert outcome.share_in_second(99, 10e6) is None
    shares = [outcome.share_in_second(second, 10e6) for second in (1, 2)]
    assert all(share is not None and 0 < share <= 1.01 for share in shares)


def test_within_five_seconds_nearly_all_of_a_long_link_is_used() -> None:
    # The goal: 100 Mbit/s, 100 ms.  Half of it here, with a queue of twice its product.
    link = Link(rtt=0.1, bandwidth=50 * MEGABIT, queue_bytes=1_250_000)
    outcome = simulate(link, 35_000_000)
    share = outcome.share_in_second(5, 50 * MEGABIT)
    assert share is not None
    assert share > 0.9


def test_several_connections_suffer_less_from_loss_than_one() -> None:
    link = Link(rtt=0.05, loss=0.01)
    one, ten = (simulate(link, 4_000_000, connections=count) for count in (1, 10))
    assert ten.rate > 3 * one.rate


def test_a_transfer_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        simulate(Link(), 0)
    with pytest.raises(ValueError, match="at least one"):
        simulate_relayed(Link(), 10, connections=0)


@examples(100)
@given(
    sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=60),
    bandwidth=st.one_of(st.none(), st.floats(1e4, 1e9)),
    queue=st.integers(1500, 20_000),
)
def test_a_direction_keeps_the_order_and_its_bandwidth(
    sizes: list[int], bandwidth: float | None, queue: int
) -> None:
    direction = Direction(delay=0.01, loss=0.0, bandwidth=bandwidth, queue_bytes=queue, seed=0)
    now = 5.0
    last = passed = 0.0
    for size in sizes:
        arrival = direction.arrival(size, now)
        if arrival is None:
            continue
        passed += size
        assert arrival >= max(last, now + 0.01)
        last = arrival
        if bandwidth is not None:
            assert arrival >= now + 0.01 + passed * 8 / bandwidth * 0.999
            # No datagram waits longer than a full queue and the datagram itself take.
            assert arrival - 0.01 - now <= (queue + size) * 8 / bandwidth * 1.001
    if bandwidth is None:
        assert passed == sum(sizes)


def test_a_direction_loses_about_as_much_as_it_should() -> None:
    direction = Direction(delay=0.0, loss=0.1, bandwidth=None, queue_bytes=1, seed=3)
    lost = sum(direction.arrival(100, 0.0) is None for _ in range(10_000))
    assert 800 < lost < 1200


def test_a_relay_delays_and_loses_for_real() -> None:
    link = Link(rtt=0.04, loss=0.01, bandwidth=40 * MEGABIT, seed=1)
    outcome = simulate_relayed(link, 1_000_000)
    assert outcome.seconds > 1_000_000 * 8 / 40e6
    assert outcome.packets_lost > 0
    assert sum(outcome.by_second) == 1_000_000


async def test_a_relay_ends_with_its_standard_input() -> None:
    relay = Process([*python_module("phoenix_trio_bench.relay"), "--server-port", "9"])
    port = await trio.to_thread.run_sync(relay.read, 20.0)
    assert 1024 <= port["port"] <= 65535
    await trio.to_thread.run_sync(relay.end, 10.0)
    with pytest.raises(ProcessLookupError):
        os.kill(relay.pid, 0)
    assert relay._process.returncode == 0


def test_the_command_prints_a_row_for_each_number_of_connections(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    arguments = "simulate --size 0.5 --rtt 20 --bandwidth 20 --connections 1 --connections 3"
    result = CliRunner().invoke(program, [*arguments.split(), "--json", str(path)])
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    assert [row["connections"] for row in content["rows"]] == [1, 3]
    assert all(row["size"] == 500_000 for row in content["rows"])
    assert content["link"]["rtt"] == 0.02
    assert "of the link" in result.output
