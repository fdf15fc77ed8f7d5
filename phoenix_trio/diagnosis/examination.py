"""Runs all checks in their order: the machine, a target, a symptom.

Floor 4.  Quick checks run at the same time; checks that measure run one after the other, since
they would share the processor.  Nothing is changed.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

import attrs
import trio

from ..config import TransportConfig
from ..errors import HandshakeFailed
from ..quic.connection import QuicConnection
from ..quic.datagram_socket import Network
from ..quic.endpoint import open_connection
from ..quic.wire.compiled import is_compiled
from .ciphers import CipherRates, check_ciphers, measure_ciphers
from .latency import LoopDelay, judge_latency, measure_loop_delay
from .loopback import (
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
from .machine import check_ipv6, check_socket_buffers, check_sockets, judge_machine
from .processor import judge_processor, read_interpreter
from .results import Finding, Group, Report, Status
from .running import in_parallel, run_check
from .system import Machine, has_message_calls, package_version, read_machine
from .target import BENCH_ALPN, Examination, PathFacts, TargetServer, examine_target
from .throughput import estimate_limits, judge_transfer
from .transfer import Measures, measure_transfer

__all__ = ["SYMPTOMS", "examine"]

SYMPTOMS: Final = ("low-throughput", "high-cpu", "high-latency")

_QUICK_SECONDS = 3.0
_MEASURING_SECONDS = 10.0

_ETHERNET_PAYLOAD = 1452


@attrs.define
class _Measured:
    """Results of the machine's checks that those of a symptom need; ``None``: it failed."""

    machine: Machine | None = None
    offloads: Offloads | None = None
    ciphers: CipherRates | None = None
    baseline: Baseline | None = None

    @property
    def device(self) -> str:
        """The name of an interface, for commands."""
        interfaces = () if self.machine is None else self.machine.interfaces
        return next((each.name for each in interfaces if not each.is_loopback), "DEVICE")


async def examine(
    target: TargetServer | None = None,
    symptom: str | None = None,
    *,
    network: Network | None = None,
    system: str = sys.platform,
) -> Report:
    """Look at this machine, and at a server if one is given.

    Takes two seconds without a target, and some seconds more with one.

    Args:
      target: the server.
      symptom: one of ``SYMPTOMS``, whose causes are to be told apart.
      network: for the target; ``None``: the real UDP.
      system: for the commands, as ``sys.platform``.

    Cancellation: nothing stays behind.

    Raises:
      ValueError: there is no such symptom.
    """
    if symptom is not None and symptom not in SYMPTOMS:
        raise ValueError(f"symptom must be one of {', '.join(SYMPTOMS)}, not {symptom!r}")
    measured = _Measured()
    can_send = has_message_calls()
    groups: dict[Group, tuple[Finding, ...]] = {
        "machine": tuple(await _examine_machine(measured, system, can_send=can_send))
    }
    examination = None
    if target is not None and can_send:
        examination = await examine_target(target, system, network)
        groups["target"] = tuple(examination.findings)
    if symptom is not None and can_send:
        groups["symptom"] = tuple(
            await _examine_symptom(symptom, measured, examination, network, system)
        )
    return Report(
        version=package_version("phoenix-trio"),
        system=system,
        target=None if target is None else target.where,
        symptom=symptom,
        groups=groups,
    )


# ------------------------------------------------------------------ the machine


async def _examine_machine(measured: _Measured, system: str, *, can_send: bool) -> list[Finding]:
    async def facts() -> list[Finding]:
        machine = measured.machine = await trio.to_thread.run_sync(read_machine)
        return judge_machine(attrs.evolve(machine, system=system), compiled=is_compiled)

    found = await run_check(("machine", facts), _QUICK_SECONDS)
    if not can_send:
        return [*found, check_sockets(has_message_calls=False, system=system)]
    machine = measured.machine

    async def buffers() -> list[Finding]:
        wanted = TransportConfig().socket_buffer_size
        receive, send = await granted_buffers(wanted)
        limits = {
            "net.core.rmem_max": machine.receive_buffer_limit if machine else None,
            "net.core.wmem_max": machine.send_buffer_limit if machine else None,
        }
        return [
            check_socket_buffers(
                wanted=wanted, receive=receive, send=send, limits=limits, system=system
            )
        ]

    async def ipv6() -> list[Finding]:
        try:
            works = await goes_over("::1")
        except OSError:
            works = False  # (there is no socket for it: this is what is looked for)
        return [
            check_ipv6(
                works=works,
                has_dual_stack=machine is not None and machine.has_dual_stack,
                disabled=machine.ipv6_disabled if machine is not None else None,
                system=system,
            )
        ]

    async def offloads() -> list[Finding]:
        found = measured.offloads = await measure_offloads()
        return [check_offloads(found, measured.device, system), check_ecn(found)]

    async def ciphers() -> list[Finding]:
        rates = measured.ciphers = await trio.to_thread.run_sync(measure_ciphers)
        return [check_ciphers(rates, machine.has_aes if machine is not None else None)]

    async def loopback() -> list[Finding]:
        baseline = measured.baseline = await measure_baseline()
        return [check_baseline(baseline)]

    found += await in_parallel([("socket-buffers", buffers), ("ipv6", ipv6)], _QUICK_SECONDS)
    found += await run_check(("offloads", offloads), _QUICK_SECONDS)
    found += await run_check(("aes", ciphers), _QUICK_SECONDS)
    found += await run_check(("loopback", loopback), _MEASURING_SECONDS)
    return found


# ------------------------------------------------------------------ symptoms


async def _examine_symptom(
    symptom: str,
    measured: _Measured,
    examination: Examination | None,
    network: Network | None,
    system: str,
) -> list[Finding]:
    path = None if examination is None else examination.path
    findings: list[Finding] = []
    measures: Measures | None = None
    delay: LoopDelay | None = None
    if symptom == "high-latency":
        delay = await measure_loop_delay()
    if symptom != "high-cpu" and path is not None and path.alpn == BENCH_ALPN:
        assert examination is not None
        results: list[Measures] = []
        findings += await run_check(
            ("throughput", partial(_transfer, examination, network, results)), _MEASURING_SECONDS
        )
        measures = results[0] if results else None
    if symptom == "low-throughput":
        if measures is not None:
            return findings + judge_transfer(measures, system)
        config = TransportConfig()
        host = "HOST" if examination is None else examination.target.host
        return findings + estimate_limits(measured.baseline, path, config, system, host)
    if delay is not None:
        return findings + judge_latency(path, measures, delay, system)
    return findings + _judge_processor(measured, path, system)


def _judge_processor(measured: _Measured, path: PathFacts | None, system: str) -> list[Finding]:
    baseline, offloads, ciphers = measured.baseline, measured.offloads, measured.ciphers
    if baseline is None or offloads is None or ciphers is None:
        return [
            Finding(
                name="high-cpu",
                status=Status.UNKNOWN,
                found="could not check: a measurement of this machine has failed, see above",
            )
        ]
    return judge_processor(
        baseline=baseline,
        offloads=offloads,
        ciphers=ciphers,
        interpreter=read_interpreter(),
        compiled=is_compiled,
        packet=_ETHERNET_PAYLOAD if path is None else path.path_mtu,
        device=measured.device,
        system=system,
    )


async def _transfer(
    examination: Examination, network: Network | None, results: list[Measures]
) -> list[Finding]:
    """Move data to a ``serve-bench``; random bytes, so the certificate does not matter."""
    target = examination.target
    assert examination.address is not None
    try:
        async with open_connection(
            str(examination.address[0]),
            target.port,
            tls=target.accepting(),
            alpn=(BENCH_ALPN,),
            config=TransportConfig(handshake_timeout=5.0, close_linger=0.2),
            network=network,
        ) as connection:
            await _settle(connection)
            results.append(await measure_transfer(connection))
    except HandshakeFailed as error:
        return [
            Finding(name="throughput", status=Status.UNKNOWN, found=f"could not check: {error}")
        ]
    return []


async def _settle(connection: QuicConnection) -> None:
    """Let the search of the path MTU come to its end."""
    await connection.wait_confirmed()
    with trio.move_on_after(1.0):
        for _ in range(20):
            await connection.ping()
