"""Judges a figure of ours against a peer's: better, worse, level, or too noisy to say.

A ratio of medians is stated only if the runs bear it.  Two conditions decide: the middle
halves of both sides' runs lie apart, and the ratio is larger than each middle half is wide.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import attrs

from .peers import PHOENIX
from .results import Report, Row

__all__ = [
    "LEVEL",
    "NOISY",
    "RULE",
    "Verdict",
    "format_ratio",
    "is_noisy",
    "judge",
    "middle_half",
    "ratio_to_ours",
    "summary",
]

NOISY = "noisy: no verdict"
LEVEL = "level"

#: The rule, for the lines below a table.
RULE = (
    f'"{NOISY}": the middle halves of both sides\' runs overlap, or one of them is wider than '
    f'the difference; "{LEVEL}": they overlap and are narrow.'
)

#: A single run does not show its noise; it counts as this factor either way.
_UNKNOWN = 1.2

#: A middle half is narrow if its ends differ by this factor at most.
_NARROW = 1.1

#: The runs of one side are noisy by themselves if the ends of their middle half differ by more.
_WIDE = 1.5

#: Rows that show the measurement of another row in another unit.
_TWIN = ": rate"


@attrs.frozen
class Verdict:
    """The outcome for one row against one peer."""

    text: str
    """As a table shows it: a ratio, :data:`LEVEL` or :data:`NOISY`."""
    ratio: float | None
    """How many times better phoenix_trio is; ``None``: level, or too noisy."""


def ratio_to_ours(report: Report, row: Row) -> float | None:
    """How many times better our median is than this row's: above 1 is ahead.

    ``None``: there is nothing to compare, or a median is not above 0.
    """
    ours = report.find(row.name, PHOENIX.name)
    if ours is None or row is ours or row.higher_is_better is None:
        return None
    if ours.median is None or row.median is None or ours.median <= 0 or row.median <= 0:
        return None
    return ours.median / row.median if row.higher_is_better else row.median / ours.median


def format_ratio(ratio: float) -> str:
    """A ratio with two digits, three next to 1, or as many as its whole part has."""
    if 0.995 <= ratio < 1.095:
        return f"{ratio:.2f}x"
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.2g}x"


def middle_half(runs: Sequence[float]) -> tuple[float, float]:
    """The quartiles of the runs: half of them lie between.

    The smallest and the largest of two or three runs; an assumed range for a single run.
    """
    if len(runs) >= 4:
        first, _, third = statistics.quantiles(runs, n=4, method="inclusive")
        return first, third
    if len(runs) == 1:
        return runs[0] / _UNKNOWN, runs[0] * _UNKNOWN
    return min(runs), max(runs)


def _width(half: tuple[float, float]) -> float:
    """The quotient of the ends."""
    low, high = half
    return high / low if low > 0 else float("inf")


def is_noisy(row: Row) -> bool:
    """Whether the runs of this row differ so much that its median says little."""
    return len(row.runs) > 1 and _width(middle_half(row.runs)) > _WIDE


def judge(report: Report, row: Row) -> Verdict | None:
    """The verdict about our figure against this row of a peer; ``None``: nothing to compare."""
    ratio = ratio_to_ours(report, row)
    ours = report.find(row.name, PHOENIX.name)
    if ratio is None or ours is None:
        return None
    halves = (middle_half(ours.runs), middle_half(row.runs))
    widest = max(_width(half) for half in halves)
    (low, high), (their_low, their_high) = halves
    overlap = low <= their_high and their_low <= high
    if overlap and widest <= _NARROW:
        return Verdict(LEVEL, None)
    if overlap or max(ratio, 1 / ratio) < widest:
        return Verdict(NOISY, None)
    return Verdict(format_ratio(ratio), ratio)


def summary(report: Report) -> str:
    """How many rows we lead: against the best peer of each row, and against each peer."""
    names = [name for name in report.names if _TWIN not in name]
    ahead: list[tuple[float, str, str]] = []
    behind: list[tuple[float, str, str]] = []
    level = noisy = 0
    for name in names:
        rivals = [
            (ratio, row)
            for row in report.rows
            if row.name == name and (ratio := ratio_to_ours(report, row)) is not None
        ]
        if not rivals:
            continue
        _, rival = min(rivals, key=lambda each: each[0])
        verdict = judge(report, rival)
        assert verdict is not None
        if verdict.ratio is None:
            level += verdict.text == LEVEL
            noisy += verdict.text == NOISY
        else:
            side = ahead if verdict.ratio > 1 else behind
            side.append((verdict.ratio, name, rival.implementation))
    total = len(ahead) + len(behind) + level + noisy
    if not total:
        return _summary_alone(report, names)
    text = (
        f"Against the best peer of each row, {PHOENIX.name} is ahead in {len(ahead)} of {total} "
        f"rows and behind in {len(behind)}"
    )
    if level:
        text += f"; {level} {'is' if level == 1 else 'are'} level"
    if noisy:
        text += f"; {noisy} {'is' if noisy == 1 else 'are'} too noisy for a verdict"
    decided = sorted(ahead + behind)
    if decided:
        text += f"; best: {_against(*decided[-1])}"
    if len(decided) > 1:
        text += f"; worst: {_against(*decided[0])}"
    return f"{text}.{_peer_by_peer(report, names)}"


def _peer_by_peer(report: Report, names: list[str]) -> str:
    """A sentence that counts the rows in which we lead each peer; empty for a single peer."""
    counts: dict[str, tuple[int, int]] = {}
    for row in report.rows:
        verdict = judge(report, row) if row.name in names else None
        if verdict is not None:
            ahead, total = counts.get(row.implementation, (0, 0))
            is_ahead = verdict.ratio is not None and verdict.ratio > 1
            counts[row.implementation] = ahead + is_ahead, total + 1
    if len(counts) < 2:
        return ""
    parts = [f"of {peer} in {ahead} of {total} rows" for peer, (ahead, total) in counts.items()]
    return f" Ahead {', '.join(parts)}."


def _against(ratio: float, name: str, peer: str) -> str:
    if ratio > 1:
        return f"{name}, {format_ratio(ratio)[:-1]} times better than {peer}"
    return f"{name}, {format_ratio(1 / ratio)[:-1]} times worse than {peer}"


def _summary_alone(report: Report, names: list[str]) -> str:
    """The sentence if no peer took part: the steadiest and the least steady row."""
    own = [
        (_width(middle_half(row.runs)), name)
        for name in names
        if (row := report.find(name, PHOENIX.name)) is not None and row.runs
    ]
    if not own:
        if report.timelines and not report.rows:
            return f"Transfers of {PHOENIX.name} over time, and no rows."
        return f"No row of {PHOENIX.name} was measured."
    rows = "1 row" if len(own) == 1 else f"{len(own)} rows"
    text = f"{rows} of {PHOENIX.name}, without a peer to compare with"
    spread = sorted(each for each in own if len(_runs(report, each[1])) > 1)
    if len(spread) > 1:
        (least, best), (most, worst) = spread[0], spread[-1]
        text += (
            f"; the steadiest is {best} (its runs differ by a factor of {least:.2f}), "
            f"the least steady {worst} ({most:.2f})"
        )
    return text + "."


def _runs(report: Report, name: str) -> list[float]:
    row = report.find(name, PHOENIX.name)
    return [] if row is None else row.runs
