"""Tells apart where the time goes before an answer comes.

Floor 4.  The event loop's delay is measured by sleeping: a task that wanted to run at a time
runs later by what other tasks, other threads and other processes take.
"""

from __future__ import annotations

import statistics

import attrs
import trio

from .commands import command
from .results import Finding, Status
from .target import PathFacts
from .text import format_seconds
from .transfer import Measures

__all__ = ["LoopDelay", "check_loop_delay", "judge_latency", "measure_loop_delay"]

_SLEEP = 0.002

#: A delay that a user does not notice, and that the acknowledgement of a packet may have
#: (RFC 9000 section 18.2: 25 ms).
_NOTICEABLE = 0.005
_SMALLEST_CAUSE = 0.001


@attrs.frozen(kw_only=True)
class LoopDelay:
    """By how many seconds tasks ran late."""

    median: float
    largest: float
    samples: int


async def measure_loop_delay(samples: int = 100) -> LoopDelay:
    """Sleep again and again.  Takes 2 ms a sample and more."""
    late: list[float] = []
    for _ in range(samples):
        due = trio.current_time() + _SLEEP
        await trio.sleep_until(due)
        late.append(max(0.0, trio.current_time() - due))
    return LoopDelay(median=statistics.median(late), largest=max(late), samples=samples)


def check_loop_delay(delay: LoopDelay, system: str) -> Finding:
    """Whether tasks run when they should."""
    found = (
        f"tasks run {format_seconds(delay.median)} late in the median, "
        f"{format_seconds(delay.largest)} at the most ({delay.samples} samples)"
    )
    values = {
        "median_seconds": round(delay.median, 6),
        "largest_seconds": round(delay.largest, 6),
    }
    if delay.median < _NOTICEABLE and delay.largest < 4 * _NOTICEABLE:
        return Finding(name="loop-delay", status=Status.OK, found=found, values=values)
    return Finding(
        name="loop-delay",
        status=Status.WARN,
        found=found,
        why=f"each packet waits so long at this end; {format_seconds(_NOTICEABLE)} is what users "
        "of calls notice. Here nothing but this check ran: other processes take the processor",
        commands=command("busy", system),
        values=values,
    )


def judge_latency(
    path: PathFacts | None, measures: Measures | None, delay: LoopDelay, system: str
) -> list[Finding]:
    """One finding for each cause: way, queue, loss, handshake, event loop.

    Args:
      path: to the server; ``None``: there is no server.
      measures: of a transfer to it; ``None``: it does not serve the benchmark.
      delay: of this machine's event loop.
      system: for the commands.
    """
    findings = [check_loop_delay(delay, system)]
    if path is None:
        return findings
    findings += [_check_way(path), _check_queue(path, measures, system), _check_repeats(path)]
    trips = path.handshake_seconds / max(path.rtt_min, 1e-6)
    findings.append(
        Finding(
            name="latency-connect",
            status=Status.OK,
            found=f"a new connection takes {format_seconds(path.handshake_seconds)}, "
            f"{trips:.1f} round trips; a pooled one takes none",
            values={"seconds": round(path.handshake_seconds, 6), "round_trips": round(trips, 2)},
        )
    )
    return findings


def _check_way(path: PathFacts) -> Finding:
    values = {"seconds": round(path.rtt_min, 6)}
    found = f"the smallest round trip is {format_seconds(path.rtt_min)}"
    if path.rtt_min < 0.1:
        return Finding(name="latency-way", status=Status.OK, found=found, values=values)
    return Finding(
        name="latency-way",
        status=Status.WARN,
        found=found,
        why=f"light in a fibre goes {path.rtt_min * 100_000:,.0f} km and back in that time; only a "
        "server nearer by, or fewer round trips (pool, early data, one request for several), "
        "help",
        values=values,
    )


def _check_queue(path: PathFacts, measures: Measures | None, system: str) -> Finding:
    if measures is None:
        waiting = max(0.0, path.ping_median - path.rtt_min)
        found = f"{format_seconds(waiting)} in the median of the pings, without load"
        limit = 0.03  # (with the delay of acknowledgements: RFC 9000 section 18.2)
    else:
        waiting = max(0.0, measures.rtt_loaded - measures.rtt_min)
        found = f"{format_seconds(waiting)} in the median of the pings during a transfer"
        limit = max(0.02, measures.rtt_min)
    values = {"seconds": round(waiting, 6), "under_load": measures is not None}
    if waiting < limit:
        return Finding(name="latency-queue", status=Status.OK, found=found, values=values)
    return Finding(
        name="latency-queue",
        status=Status.WARN,
        found=found,
        why=f"packets stand {format_seconds(waiting)} in a queue behind other data, where the way "
        f"takes {format_seconds(path.rtt_min)}; a queue that keeps itself short, or marks "
        "packets (ECN), ends that",
        commands=command("queue", system),
        values=values,
    )


def _check_repeats(path: PathFacts) -> Finding:
    found = f"{path.packets_lost} of {path.packets_sent} packets lost"
    again = 1.125 * path.rtt_smoothed
    values = {"lost_percent": round(100 * path.loss, 3), "repeat_seconds": round(again, 6)}
    if path.packets_lost < 2 or again * path.loss < _SMALLEST_CAUSE / 10:
        return Finding(name="latency-loss", status=Status.OK, found=found, values=values)
    return Finding(
        name="latency-loss",
        status=Status.WARN,
        found=found,
        why=f"what is in a lost packet comes {format_seconds(again + path.rtt_min)} later at "
        "least, and all that follows on its stream waits for it; use a stream each for what is "
        "independent",
        values=values,
    )
