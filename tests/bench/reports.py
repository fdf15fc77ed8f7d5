"""Reports made by hand, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from phoenix_trio_bench.results import Report, Row

OURS = "phoenix_trio"


def make_report(*rows: Row, date: str = "2026-01-02T03:04:05+00:00") -> Report:
    return Report(
        rows=list(rows),
        machine={"processor": "abacus"},
        versions={"python": "3.11"},
        date=date,
        command="phoenix-trio bench",
        commit="abc1234",
    )


def row(
    name: str,
    *runs: float,
    who: str = OURS,
    unit: str = "ms",
    higher_is_better: bool | None = False,
    note: str = "",
    samples: Sequence[float] = (),
) -> Row:
    return Row(
        name=name,
        implementation=who,
        unit=unit,
        runs=list(runs),
        note=note,
        higher_is_better=higher_is_better,
        samples=list(samples),
    )
