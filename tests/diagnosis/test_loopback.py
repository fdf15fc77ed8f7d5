"""What sockets and the library do over loopback: real sockets."""

from __future__ import annotations

import sys

import attrs
import pytest

from phoenix_trio.diagnosis.loopback import (
    Baseline,
    Offloads,
    check_baseline,
    check_ecn,
    check_offloads,
    goes_over,
    granted_buffers,
    measure_baseline,
    measure_offloads,
)
from phoenix_trio.diagnosis.results import Status

GOOD = Offloads(
    sent_in_one_call=True,
    received_in_one_call=True,
    mark_arrived=True,
    run_seconds=7e-6,
    single_seconds=64e-6,
)

BASELINE = Baseline(
    size=16_000_000,
    seconds=0.05,
    processor_seconds=0.03,
    handshake_processor_seconds=0.005,
    exchange_processor_seconds=0.0003,
    path_mtu=65507,
    packets_lost=0,
)


async def test_offloads_are_found_by_sending() -> None:
    found = await measure_offloads()
    assert found.run_seconds > 0
    assert found.single_seconds > 0
    if sys.platform == "linux":
        assert found.mark_arrived


async def test_a_system_without_runs_is_found_by_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("can_gso", "enable_gro", "enable_ecn"):
        monkeypatch.setattr(f"phoenix_trio.quic.socket_options.{name}", lambda raw: False)
    found = await measure_offloads()
    assert not found.sent_in_one_call
    assert not found.received_in_one_call
    assert not found.mark_arrived


def test_missing_offloads_are_named_with_their_cost() -> None:
    assert check_offloads(GOOD, "eth0", "linux").status is Status.OK
    bad = attrs.evolve(GOOD, sent_in_one_call=False)
    found = check_offloads(bad, "eth0", "linux")
    assert found.status is Status.WARN
    assert "system call of 4 us" in found.why
    assert found.commands == ("ethtool -K eth0 tx-udp-segmentation on",)
    assert "only Linux" in check_offloads(bad, "en0", "darwin").why


def test_lost_marks_are_named() -> None:
    assert check_ecn(GOOD).status is Status.OK
    assert check_ecn(attrs.evolve(GOOD, mark_arrived=False)).status is Status.WARN


async def test_datagrams_go_over_loopback() -> None:
    assert await goes_over("127.0.0.1")
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        await goes_over("192.0.2.1")


async def test_granted_buffers_are_those_of_a_socket() -> None:
    receive, send = await granted_buffers(64 * 1024)
    assert receive >= 64 * 1024
    assert send >= 64 * 1024


async def test_a_transfer_with_itself_is_measured() -> None:
    found = await measure_baseline(1024 * 1024, exchanges=5)
    assert found.rate > 0
    assert found.processor_seconds > 0
    assert found.path_mtu >= 1200


def test_a_slow_machine_is_compared_with_that_of_the_documentation() -> None:
    assert check_baseline(BASELINE).status is Status.OK
    slow = check_baseline(attrs.evolve(BASELINE, processor_seconds=0.16))
    assert slow.status is Status.WARN
    assert "10.0 s of processor time a gigabyte" in slow.found
    assert "800 Mbit/s" in slow.why
