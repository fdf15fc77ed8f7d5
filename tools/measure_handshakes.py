"""Measures handshakes and a first question while many datagrams are lost.

Runs in memory and in virtual time, so the figures are the same on each machine.  Each seed is a
handshake of its own, with 25 ms one way.  Prints quantiles in seconds after the beginning.

    python tools/measure_handshakes.py [--seeds 400] [--loss 0.2 0.4]
"""

from __future__ import annotations

import argparse
import sys
from math import inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.quic.test_handshakes_under_loss import EVENTS, LossyPair


def measure(loss: float, seeds: int) -> None:
    """Print the distribution of each event, and the number of datagrams of a handshake."""
    times: dict[str, list[float]] = {event: [] for event in EVENTS}
    datagrams = 0
    for seed in range(seeds):
        pair = LossyPair(seed, loss)
        measured = pair.exchange()
        for event, found in times.items():
            found.append(measured.get(event, inf))
        datagrams += pair.datagrams
    print(f"{loss:.0%} loss, {seeds} seeds, {datagrams / seeds:.1f} datagrams each")
    for event, found in times.items():
        found.sort()
        p50, p90, p99 = (found[int(part * seeds)] for part in (0.5, 0.9, 0.99))
        print(f"  {event:20} p50 {p50:5.2f}  p90 {p90:5.2f}  p99 {p99:5.2f}  max {found[-1]:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--loss", type=float, nargs="+", default=[0.2, 0.4])
    arguments = parser.parse_args()
    for loss in arguments.loss:
        measure(loss, arguments.seeds)


if __name__ == "__main__":
    main()
