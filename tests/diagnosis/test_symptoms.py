"""The causes of a symptom are told apart: by figures made up here, and over simulated links."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.diagnosis import target as target_module
from phoenix_trio.diagnosis import transfer
from phoenix_trio.diagnosis.ciphers import CipherRates
from phoenix_trio.diagnosis.examination import _examine_symptom, _Measured
from phoenix_trio.diagnosis.latency import (
    LoopDelay,
    check_loop_delay,
    judge_latency,
    measure_loop_delay,
)
from phoenix_trio.diagnosis.loopback import Baseline, Offloads
from phoenix_trio.diagnosis.processor import Interpreter, judge_processor, read_interpreter
from phoenix_trio.diagnosis.results import Finding, Status
from phoenix_trio.diagnosis.target import TargetServer, examine_target
from phoenix_trio.diagnosis.throughput import estimate_limits, judge_transfer, main_limit
from phoenix_trio.diagnosis.transfer import Measures, Sample, measure_transfer
from phoenix_trio.testing import SimulatedNetwork
from phoenix_trio_bench import protocol
from phoenix_trio_bench.server import _Server
from tests.diagnosis.facts import PATH
from tests.support import CLIENT, PORT, SERVER, client_tls, server_tls

KIB = 1024

Handler = Callable[[phoenix_trio.QuicConnection], Awaitable[object]]

MEASURES = Measures(
    size=10_000_000,
    seconds=1.0,
    processor_seconds=0.1,
    peer_processor_seconds=0.1,
    congestion_share=1.0,
    credit_share=0.0,
    application_share=0.0,
    congestion_window=1_000_000,
    rtt_min=0.1,
    rtt_loaded=0.1,
    packets_sent=7000,
    packets_lost=0,
    path_mtu=1452,
)

BASELINE = Baseline(
    size=16_000_000,
    seconds=0.05,
    processor_seconds=0.0288,
    handshake_processor_seconds=0.005,
    exchange_processor_seconds=0.0003,
    path_mtu=65507,
    packets_lost=0,
)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def warnings(findings: list[Finding]) -> set[str]:
    return {finding.name for finding in findings if finding.status is not Status.OK}


def idle(measures: Measures) -> Measures:
    """The same without the processor's work, which takes no virtual time."""
    return attrs.evolve(
        measures, processor_seconds=0.0, processor_wait_seconds=0.0, peer_processor_seconds=None
    )


# ------------------------------------------------------------------ low-throughput


def test_the_words_of_the_benchmark_server_are_the_same() -> None:
    assert target_module.BENCH_ALPN == protocol.ALPN
    assert transfer.TRANSFER == protocol.TRANSFER
    assert len(protocol.ACKNOWLEDGED) + protocol.TRAILER_SIZE == transfer.ANSWER_SIZE


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"processor_seconds": 0.9}, "limit-processor"),
        ({"processor_seconds": 0.5, "processor_wait_seconds": 0.4}, "limit-processor"),
        (
            {"processor_wait_seconds": 0.6, "congestion_share": 0.5, "credit_share": 0.5},
            "limit-processor",
        ),
        ({"processor_wait_seconds": 0.6}, "limit-congestion"),
        ({"peer_processor_seconds": 0.9}, "limit-receiver"),
        ({"peer_processor_seconds": None}, "limit-congestion"),
        ({}, "limit-congestion"),
        ({"rtt_loaded": 0.3}, "limit-link"),
        ({"congestion_share": 0.3, "credit_share": 0.7}, "limit-credit"),
        ({"congestion_share": 0.3, "application_share": 0.7}, "limit-writer"),
    ],
)
def test_the_main_cause_warns_and_the_others_do_not(changes: dict[str, Any], limit: str) -> None:
    measures = attrs.evolve(MEASURES, **changes)
    assert main_limit(measures) == limit
    found = judge_transfer(measures, "linux")
    assert warnings(found) == {limit}
    assert found[0].name == "throughput"
    assert found[0].values["limit"] == limit
    assert found[1].name == limit
    assert any(character.isdigit() for character in found[1].why)


def test_a_sample_says_what_holds_data_back() -> None:
    assert Sample(in_flight=0, congestion_window=100, waiting=0).held_back_by == "application"
    assert Sample(in_flight=90, congestion_window=100, waiting=9).held_back_by == "congestion"
    assert Sample(in_flight=10, congestion_window=100, waiting=9).held_back_by == "credit"


@asynccontextmanager
async def bench(
    network: SimulatedNetwork,
    config: phoenix_trio.TransportConfig | None = None,
    handler: Handler | None = None,
) -> AsyncIterator[phoenix_trio.QuicConnection]:
    serve = partial(
        phoenix_trio.serve,
        handler or _Server().handle,
        PORT,
        tls=server_tls(),
        alpn=(protocol.ALPN,),
        config=config,
        network=network.host(SERVER),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        async with phoenix_trio.open_connection(
            SERVER,
            PORT,
            tls=client_tls(),
            alpn=(protocol.ALPN,),
            network=network.host(CLIENT),
        ) as connection:
            for _ in range(10):
                await connection.ping()
            yield connection
        nursery.cancel_scope.cancel()


async def test_a_full_link_is_found_as_the_cause(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.02, bandwidth=8_000_000, queue_bytes=128 * KIB)
    async with bench(network) as connection:
        measures = idle(await measure_transfer(connection, 2_000_000, 10.0))
    assert main_limit(measures) == "limit-link"
    assert measures.rate == pytest.approx(8_000_000, rel=0.2)
    assert measures.rtt_loaded > 0.08


async def test_a_small_window_of_the_receiver_is_found_as_the_cause(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)
    small = phoenix_trio.TransportConfig(
        receive_buffer_size=64 * KIB,
        stream_receive_buffer_size=64 * KIB,
        minimum_connection_memory=16 * KIB,
        max_bidirectional_streams=10,
    )
    async with bench(network, small) as connection:
        measures = idle(await measure_transfer(connection, 2_000_000, 10.0))
    assert main_limit(measures) == "limit-credit"
    found = by_name(judge_transfer(measures, "linux"))
    assert "receive_buffer_size" in found["limit-credit"].why


async def test_loss_is_found_as_the_cause(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=3, delay=0.02, loss=0.02)
    async with bench(network) as connection:
        measures = idle(await measure_transfer(connection, 1_500_000, 20.0))
    assert main_limit(measures) == "limit-congestion"
    assert measures.loss > 0.005
    found = by_name(judge_transfer(measures, "linux"))
    assert found["limit-congestion"].commands


async def test_a_transfer_ends_when_its_time_is_over(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.02, bandwidth=8_000_000)
    async with bench(network) as connection:
        start = trio.current_time()
        measures = await measure_transfer(connection, 1 << 24, 1.0)
        assert trio.current_time() - start < 1.1
    assert 100_000 < measures.size < 2_000_000
    assert measures.peer_processor_seconds is None


async def test_a_server_that_answers_something_else_is_an_error(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02)

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        async for stream in connection.incoming_streams():
            async with stream:
                await stream.receive_all(1 << 20)
                await stream.send_all(b"\x06" + bytes(40), end=True)

    async with bench(network, handler=handler) as connection:
        with pytest.raises(ValueError, match="other bytes than were sent"):
            await measure_transfer(connection, 100_000, 1.0)


def test_without_a_benchmark_server_the_lowest_limit_is_computed() -> None:
    config = phoenix_trio.TransportConfig()
    alone = estimate_limits(BASELINE, None, config, "linux")
    assert [each.name for each in alone] == ["throughput", "limit-processor"]
    assert alone[1].values["rate_bits_per_second"] == pytest.approx(2.77e9, rel=0.01)
    far = attrs.evolve(PATH, rtt_min=0.2)
    assert warnings(estimate_limits(BASELINE, far, config, "linux")) == {"limit-buffer"}
    lossy = attrs.evolve(PATH, packets_lost=5)
    assert warnings(estimate_limits(BASELINE, lossy, config, "linux")) == {"limit-loss"}
    near = attrs.evolve(PATH, rtt_min=0.0005)
    assert warnings(estimate_limits(BASELINE, near, config, "linux")) == {"limit-processor"}
    assert estimate_limits(None, None, config, "linux")[0].name == "throughput"


async def test_a_symptom_uses_the_transfer_if_the_server_takes_it(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.02, bandwidth=1_000_000, queue_bytes=32 * KIB)
    client = network.host(CLIENT)
    measured = _Measured(baseline=BASELINE)
    async with bench(network):
        examination = await examine_target(
            TargetServer(host=SERVER, port=PORT, alpn=(protocol.ALPN,)), "linux", client
        )
        run = partial(_examine_symptom, measured=measured, network=client, system="linux")
        for symptom, name in (("low-throughput", "throughput"), ("high-latency", "latency-queue")):
            found = by_name(await run(symptom, examination=examination))
            assert name in found
            assert found[name].values, "it was measured"
        assert found["latency-queue"].values["under_load"] is True
        unmeasured = await run("high-cpu", examination=examination)
        assert [each.status for each in unmeasured] == [Status.UNKNOWN]
    async with bench(network):
        network.partition(CLIENT, SERVER)
        lost = await run("low-throughput", examination=examination)
        assert lost[0].status is Status.UNKNOWN
        assert lost[0].found.startswith("could not check: ")
        network.heal(CLIENT, SERVER)


# ------------------------------------------------------------------ high-latency

PUNCTUAL = LoopDelay(median=0.0001, largest=0.001, samples=100)


async def test_the_delay_of_the_event_loop_is_measured() -> None:
    found = await measure_loop_delay(5)
    assert found.samples == 5
    assert 0 <= found.median <= found.largest


@pytest.mark.parametrize(
    ("path", "measures", "delay", "cause"),
    [
        ({}, None, {}, set()),
        ({"rtt_min": 0.15, "rtt_smoothed": 0.15, "pings": (0.15,)}, None, {}, {"latency-way"}),
        ({"pings": (0.2,) * 9}, None, {}, {"latency-queue"}),
        ({}, {"rtt_min": 0.02, "rtt_loaded": 0.2}, {}, {"latency-queue"}),
        ({}, {"rtt_min": 0.02, "rtt_loaded": 0.03}, {}, set()),
        ({"packets_lost": 3}, None, {}, {"latency-loss"}),
        ({}, None, {"median": 0.02, "largest": 0.1}, {"loop-delay"}),
    ],
)
def test_causes_of_latency_are_told_apart(
    path: dict[str, Any], measures: dict[str, Any] | None, delay: dict[str, Any], cause: set[str]
) -> None:
    found = judge_latency(
        attrs.evolve(PATH, **path),
        None if measures is None else attrs.evolve(MEASURES, **measures),
        attrs.evolve(PUNCTUAL, **delay),
        "linux",
    )
    assert warnings(found) == cause
    assert {each.name for each in found} == {
        "loop-delay",
        "latency-way",
        "latency-queue",
        "latency-loss",
        "latency-connect",
    }


def test_latency_without_a_server_is_that_of_the_event_loop() -> None:
    assert judge_latency(None, None, PUNCTUAL, "linux") == [check_loop_delay(PUNCTUAL, "linux")]


# ------------------------------------------------------------------ high-cpu

OFFLOADS = Offloads(
    sent_in_one_call=True,
    received_in_one_call=True,
    mark_arrived=True,
    run_seconds=7e-6,
    single_seconds=64e-6,
)
INTERPRETER = Interpreter(is_traced=False, is_debug_build=False, is_development_mode=False, logs=())


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, set()),
        ({"compiled": False}, {"cpu-core"}),
        ({"packet": 1452}, {"cpu-packets"}),
        ({"offloads": attrs.evolve(OFFLOADS, sent_in_one_call=False)}, {"cpu-packets"}),
        ({"ciphers": CipherRates(6.2e-6, 2e-6)}, {"cpu-cipher"}),
        ({"interpreter": attrs.evolve(INTERPRETER, is_traced=True)}, {"cpu-interpreter"}),
        ({"interpreter": attrs.evolve(INTERPRETER, logs=("X",))}, {"cpu-interpreter"}),
        (
            {"baseline": attrs.evolve(BASELINE, exchange_processor_seconds=0.002)},
            {"cpu-exchange"},
        ),
        (
            {"baseline": attrs.evolve(BASELINE, handshake_processor_seconds=0.05)},
            {"cpu-handshake"},
        ),
    ],
)
def test_causes_of_processor_time_are_told_apart(changes: dict[str, Any], cause: set[str]) -> None:
    arguments: dict[str, Any] = {
        "baseline": BASELINE,
        "offloads": OFFLOADS,
        "ciphers": CipherRates(0.8e-6, 1.3e-6),
        "interpreter": INTERPRETER,
        "compiled": True,
        "packet": 65507,
        "device": "eth0",
        "system": "linux",
    }
    found = judge_processor(**{**arguments, **changes})
    assert warnings(found) == cause
    for each in found:
        assert each.status is Status.OK or any(c.isdigit() for c in each.why)


def test_the_state_of_the_interpreter_is_read() -> None:
    assert read_interpreter({"SSLKEYLOGFILE": "keys"}).logs == ("SSLKEYLOGFILE",)
    assert read_interpreter({}).logs == ()
