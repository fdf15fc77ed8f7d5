"""The commands that this package adds to the program ``phoenix-trio``."""

from __future__ import annotations

from . import bench, simulate

__all__ = ["COMMANDS"]

COMMANDS = (bench.bench, bench.serve_bench_command, simulate.simulate_command)
