"""Tells apart what limits the rate of a transfer.

Floor 4, pure functions.  With a ``serve-bench`` as target the transfer itself is judged
(:func:`judge_transfer`); else the limits are computed from what was measured otherwise
(:func:`estimate_limits`), and the lowest one is named.
"""

from __future__ import annotations

import math

import attrs

from ..config import TransportConfig
from .commands import command
from .loopback import Baseline
from .results import Finding, Status
from .target import PathFacts
from .text import format_bytes, format_rate, format_seconds
from .transfer import Measures

__all__ = ["estimate_limits", "judge_transfer", "main_limit"]

#: A processor that works for so much of the time has none to spare.
_BUSY = 0.8
_OFTEN_BUSY = 0.6

_LOSS = 0.001

#: Without a server, packets are taken to be as large as those of Ethernet.
_ETHERNET_PAYLOAD = 1452

#: A queue on the way makes round trips so much longer.
_QUEUED_TIMES = 1.5
_QUEUED_SECONDS = 0.003


def main_limit(measures: Measures) -> str:
    """What limits the transfer: the name of one of the findings of :func:`judge_transfer`."""
    peer = measures.peer_processor_seconds
    processor = measures.processor_seconds + measures.processor_wait_seconds
    shares = {
        "limit-credit": measures.credit_share,
        "limit-writer": measures.application_share,
        "limit-congestion": measures.congestion_share,
    }
    largest = max(shares, key=lambda name: shares[name])
    # Where it is not clear, that applies which took the larger share of the time.
    needed = min(_BUSY, max(_OFTEN_BUSY, shares[largest]))
    if processor >= needed * measures.seconds:
        return "limit-processor"
    if peer is not None and peer >= needed * measures.seconds:
        return "limit-receiver"
    if largest == "limit-congestion" and _has_queue(measures):
        return "limit-link"
    return largest


def _has_queue(measures: Measures) -> bool:
    """Whether packets stand in a queue on the way, so that the link is full."""
    least = _QUEUED_TIMES * measures.rtt_min + _QUEUED_SECONDS
    return measures.rtt_loaded >= least


def judge_transfer(measures: Measures, system: str) -> list[Finding]:
    """One finding for the rate, and one for each possible cause; the main one warns."""
    main = main_limit(measures)
    seconds = measures.seconds
    causes = _causes(measures, system)
    findings = [
        Finding(
            name="throughput",
            status=Status.OK,
            found=f"{format_bytes(measures.size)} in {format_seconds(seconds)}: "
            f"{format_rate(measures.rate)}, limited by: {main.removeprefix('limit-')}",
            values={
                "rate_bits_per_second": round(measures.rate),
                "size_bytes": measures.size,
                "seconds": round(seconds, 6),
                "limit": main,
                "rtt_min_seconds": round(measures.rtt_min, 6),
                "rtt_loaded_seconds": round(measures.rtt_loaded, 6),
                "lost_percent": round(100 * measures.loss, 4),
                "path_mtu_bytes": measures.path_mtu,
                "congestion_window_bytes": measures.congestion_window,
            },
        )
    ]
    for cause in sorted(causes, key=lambda each: each.name != main):
        is_main = cause.name == main
        findings.append(
            Finding(
                name=cause.name,
                status=Status.WARN if is_main else Status.OK,
                found=cause.found,
                why=cause.why if is_main else "",
                commands=cause.commands if is_main else (),
                values={"share_percent": round(100 * cause.share, 1)},
            )
        )
    return findings


@attrs.frozen
class _Cause:
    """A possible cause: its name, how much of the time it applies, and the texts."""

    name: str
    share: float
    found: str
    why: str
    commands: tuple[str, ...] = ()


def _causes(measures: Measures, system: str) -> list[_Cause]:
    seconds, peer = measures.seconds, measures.peer_processor_seconds
    trip = max(measures.rtt_min, 1e-6)
    trip_text, loaded = format_seconds(trip), format_seconds(measures.rtt_loaded)
    own, waited = measures.processor_seconds / seconds, measures.processor_wait_seconds / seconds
    cost = measures.processor_seconds * 1e9 / measures.size
    lost = f"{100 * measures.loss:.2g} % of {measures.packets_sent:,} packets lost"
    window = format_bytes(measures.congestion_window)
    allows = format_rate(8 * measures.congestion_window / trip)
    memory = TransportConfig().receive_buffer_size
    queue = format_seconds(max(0.0, measures.rtt_loaded - measures.rtt_min))
    return [
        _Cause(
            "limit-processor",
            own + waited,
            f"this process used {100 * own:.0f} % of one processor, and waited for one in "
            f"{100 * waited:.0f} % of the time",
            (
                f"other programs had the processors in {100 * waited:.0f} % of the time; stop "
                "them, or measure again when they rest"
                if waited > own
                else f"one connection keeps one processor busy: {cost:.1f} s a gigabyte here "
                "(0.8 s in docs/performance.md); larger packets, the compiled core, or more "
                "processes. See --symptom high-cpu"
            ),
            command("busy", system) if waited > own else (),
        ),
        _Cause(
            "limit-receiver",
            0.0 if peer is None else peer / seconds,
            "unknown"
            if peer is None
            else f"the server's process used {100 * peer / seconds:.0f} % of one processor",
            "one connection keeps one processor of the receiver busy, 1.0 s a gigabyte; run more "
            "processes there (run_workers), or more connections",
        ),
        _Cause(
            "limit-congestion",
            measures.congestion_share,
            f"the congestion window ({window}) held data back in "
            f"{100 * measures.congestion_share:.0f} % of the samples; {lost}",
            f"a window of {window} in a round trip of {trip_text} allows {allows}; each loss "
            "takes 30 % of the window (CUBIC). Several connections (pool, striping) share the "
            "loss",
            command("socket-buffers", system) if measures.loss >= _LOSS else (),
        ),
        _Cause(
            "limit-link",
            1.0 if _has_queue(measures) else 0.0,
            f"a round trip takes {trip_text} empty and {loaded} loaded; {lost}",
            f"a queue of {queue} stands on the way, so the slowest link is full at "
            f"{format_rate(measures.rate)}",
        ),
        _Cause(
            "limit-credit",
            measures.credit_share,
            f"data waited for credit of the receiver in {100 * measures.credit_share:.0f} % of "
            "the samples",
            "its program reads slowly, or its receive_buffer_size (or stream_receive_buffer_size) "
            f"is small: {format_bytes(measures.rate * trip / 8)} go in a round trip now, the "
            f"default of {format_bytes(memory)} allows {format_rate(8 * memory / trip)}",
        ),
        _Cause(
            "limit-writer",
            measures.application_share,
            f"nothing waited to be sent in {100 * measures.application_share:.0f} % of the samples",
            "the sending program does not keep up: write 64 KiB to 1 MiB at a time, and do not "
            "wait until each write is acknowledged",
        ),
    ]


def estimate_limits(
    baseline: Baseline | None,
    path: PathFacts | None,
    config: TransportConfig,
    system: str,
    host: str = "HOST",
) -> list[Finding]:
    """The rates that each part allows; the lowest warns.

    Args:
      baseline: of this machine; ``None``: it could not be measured.
      path: to the server; ``None``: there is no server.
      config: of a connection.
      system: for the commands.
      host: the server's, for the commands.
    """
    limits: list[tuple[float, Finding]] = []

    def add(name: str, rate: float, found: str, why: str, commands: tuple[str, ...] = ()) -> None:
        finding = Finding(
            name=name,
            status=Status.OK,
            found=f"{found}: {format_rate(rate)}",
            why=why,
            commands=commands,
            values={"rate_bits_per_second": round(rate)},
        )
        limits.append((rate, finding))

    if baseline is not None:
        # Both ends shared a process there, so each has about twice the rate.
        rate = 2 * 8e9 / baseline.seconds_a_gigabyte
        packet = min(baseline.path_mtu, _ETHERNET_PAYLOAD if path is None else path.path_mtu)
        # (The loopback has large packets; 4.2 us a packet is what those of 1,452 bytes cost.)
        rate = min(rate, 8 * packet / 4.2e-6)
        add(
            "limit-processor",
            rate,
            f"one processor with packets of {packet:,} bytes",
            "one connection keeps one processor busy; larger packets, the compiled core, or more "
            "processes. See --symptom high-cpu",
        )
    if path is not None:
        rtt = max(path.rtt_min, 1e-6)
        window = min(config.stream_send_buffer_size, config.send_buffer_size)
        add(
            "limit-buffer",
            8 * window / rtt,
            f"one stream with {format_bytes(window)} in a round trip of {format_seconds(rtt)}",
            "a long fast path needs twice the bandwidth times the round trip: set "
            "send_buffer_size, receive_buffer_size and their stream_ fields",
        )
        if path.packets_lost >= 2:
            rate = 8 * 1.2 * path.path_mtu / rtt / math.sqrt(path.loss)
            add(
                "limit-loss",
                rate,
                f"{path.packets_lost} of {path.packets_sent} packets lost",
                "each loss takes 30 % of the window (CUBIC); several connections (pool, striping) "
                "share it",
                command("path-mtu", system, host=host),
            )
    limits.sort(key=lambda each: each[0])
    hint = (
        "no transfer was measured; a target that runs phoenix-trio serve-bench shows what "
        "happens, and not what may"
    )
    findings = [Finding(name="throughput", status=Status.OK, found=hint)]
    for index, (_, finding) in enumerate(limits):
        if index == 0:
            findings.append(attrs.evolve(finding, status=Status.WARN))
        else:
            findings.append(attrs.evolve(finding, why="", commands=()))
    return findings
