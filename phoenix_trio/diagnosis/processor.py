"""Tells apart what processor time is spent for.

Floor 4, pure functions; :func:`read_interpreter` reads the state of this process alone.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping

import attrs

from .ciphers import CipherRates
from .commands import command
from .loopback import Baseline, Offloads
from .results import Finding, Status, Value
from .text import format_seconds

__all__ = ["Interpreter", "judge_processor", "read_interpreter"]

#: The processor time of both ends, as ``docs/howto/doctor.md`` says: a full handshake, and an
#: exchange on a stream of its own.
_HANDSHAKE_SECONDS = 0.0047
_EXCHANGE_SECONDS = 0.0003


@attrs.frozen(kw_only=True)
class Interpreter:
    """What slows Python down in this process."""

    is_traced: bool
    """A debugger, a profiler or a coverage measurement sees each line or call."""
    is_debug_build: bool
    is_development_mode: bool
    """``python -X dev``."""
    logs: tuple[str, ...]
    """Environment variables that make connections log."""


def read_interpreter(environment: Mapping[str, str] = os.environ) -> Interpreter:
    """The state of this process."""
    return Interpreter(
        is_traced=sys.gettrace() is not None or sys.getprofile() is not None,
        is_debug_build=bool(sysconfig.get_config_var("Py_DEBUG")),
        is_development_mode=sys.flags.dev_mode,
        logs=tuple(name for name in ("SSLKEYLOGFILE",) if environment.get(name)),
    )


def judge_processor(
    *,
    baseline: Baseline,
    offloads: Offloads,
    ciphers: CipherRates,
    interpreter: Interpreter,
    compiled: bool,
    packet: int,
    device: str,
    system: str,
) -> list[Finding]:
    """One finding for each part of the work.

    Args:
      baseline, offloads, ciphers: as measured here.
      interpreter: the state of this process.
      compiled: whether the core is.
      packet: the UDP payload of the path, in bytes.
      device: an interface, for the commands.
      system: for the commands.
    """
    findings = [
        _check_interpreter(interpreter),
        _check_packets(packet, offloads, device, system),
        _check_cipher_share(ciphers, packet),
        _check_cost(
            "cpu-handshake",
            "a handshake of both ends",
            baseline.handshake_processor_seconds,
            _HANDSHAKE_SECONDS,
            "two signatures, two key exchanges and a key schedule in Python; a pool saves all "
            "of it, resumption the certificates",
        ),
        _check_cost(
            "cpu-exchange",
            "a request of 64 bytes and its answer",
            baseline.exchange_processor_seconds,
            _EXCHANGE_SECONDS,
            "each call is a checkpoint of 2 to 4 us; connection.request is the client's whole "
            "exchange, and batches carry hundreds of thousands of messages a second",
        ),
    ]
    if not compiled:
        findings.append(
            Finding(
                name="cpu-core",
                status=Status.WARN,
                found="the core is not compiled",
                why="compiled, a small packet costs 8.8 us and not 23.9, one of 1,452 bytes 4.8 "
                "and not 7.3",
                commands=command("compile", system),
                values={"is_compiled": False},
            )
        )
    return findings


def _check_interpreter(interpreter: Interpreter) -> Finding:
    reasons = [
        text
        for text, applies in (
            ("a tracer, profiler or coverage measurement runs", interpreter.is_traced),
            ("this Python is a debug build", interpreter.is_debug_build),
            ("Python runs in its development mode (-X dev)", interpreter.is_development_mode),
            (f"{' and '.join(interpreter.logs)} makes connections log", bool(interpreter.logs)),
        )
        if applies
    ]
    values: dict[str, Value] = {
        "is_traced": interpreter.is_traced,
        "is_debug_build": interpreter.is_debug_build,
        "is_development_mode": interpreter.is_development_mode,
        "logs": list(interpreter.logs),
    }
    if not reasons:
        return Finding(
            name="cpu-interpreter",
            status=Status.OK,
            found="nothing in this process slows Python down",
            values=values,
        )
    return Finding(
        name="cpu-interpreter",
        status=Status.WARN,
        found="; ".join(reasons),
        why="a trace function that does nothing makes a small exchange take 3.6 times, a "
        "transfer 2.7 times as long; run the program without it",
        values=values,
    )


def _check_packets(packet: int, offloads: Offloads, device: str, system: str) -> Finding:
    packets = 1e9 / packet
    found = f"a gigabyte takes {packets:,.0f} packets of {packet:,} bytes"
    values = {
        "packet_bytes": packet,
        "gso": offloads.sent_in_one_call,
        "gro": offloads.received_in_one_call,
    }
    if not (offloads.sent_in_one_call and offloads.received_in_one_call):
        each = offloads.single_seconds / 16
        return Finding(
            name="cpu-packets",
            status=Status.WARN,
            found=f"{found}, each with a system call of its own",
            why=f"a system call takes {format_seconds(each)}: {packets * each:.2g} s a gigabyte, "
            f"where runs take {packets * offloads.run_seconds / 16:.2g} s",
            commands=command("offloads", system, device=device),
            values=values,
        )
    if packet < 8000:
        return Finding(
            name="cpu-packets",
            status=Status.WARN,
            found=found,
            why=f"4.2 us a packet is {packets * 4.2e-6:.1f} s of processor time each way; jumbo "
            "frames take a sixth of the packets where the whole path carries 9,000 bytes",
            commands=command("mtu", system, device=device, mtu=9000),
            values=values,
        )
    return Finding(name="cpu-packets", status=Status.OK, found=found, values=values)


def _check_cipher_share(ciphers: CipherRates, packet: int) -> Finding:
    seconds = ciphers.aes * 1e9 / 1452
    found = f"the cipher takes about {seconds:.2g} s a gigabyte with packets of 1,452 bytes"
    values = {"seconds_per_gigabyte": round(seconds, 3)}
    if seconds < 2:
        return Finding(name="cpu-cipher", status=Status.OK, found=found, values=values)
    return Finding(
        name="cpu-cipher",
        status=Status.WARN,
        found=found,
        why="it is 0.5 s with instructions for AES, and 4.2 s without; see the check aes",
        values=values,
    )


def _check_cost(name: str, what: str, seconds: float, reference: float, why: str) -> Finding:
    found = f"{what} takes {format_seconds(seconds)} of processor time"
    values = {"seconds": round(seconds, 9), "reference_seconds": reference}
    if seconds <= 2.5 * reference:
        return Finding(name=name, status=Status.OK, found=found, values=values)
    return Finding(
        name=name,
        status=Status.WARN,
        found=found,
        why=f"it is {format_seconds(reference)} on the machine of the documentation: {why}",
        values=values,
    )
