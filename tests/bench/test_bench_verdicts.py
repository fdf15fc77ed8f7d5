"""A ratio is stated only where the runs bear it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from phoenix_trio_bench import report
from phoenix_trio_bench.results import Report
from phoenix_trio_bench.verdicts import (
    LEVEL,
    NOISY,
    format_ratio,
    is_noisy,
    judge,
    middle_half,
    ratio_to_ours,
    summary,
)
from tests.bench.reports import make_report, row

STEADY = (10.0, 10.1, 9.9, 10.2, 10.0)


def verdict(ours: tuple[float, ...], theirs: tuple[float, ...]) -> str:
    peer = row("a", *theirs, who="other")
    found = judge(make_report(row("a", *ours), peer), peer)
    assert found is not None
    return found.text


@pytest.mark.parametrize(("higher_is_better", "ratio"), [(False, 2.0), (True, 0.5), (None, None)])
def test_a_ratio_above_one_means_that_we_are_ahead(
    higher_is_better: bool | None, ratio: float | None
) -> None:
    ours = row("a", 10, higher_is_better=higher_is_better)
    theirs = row("a", 20, who="other", higher_is_better=higher_is_better)
    both = make_report(ours, theirs)
    assert ratio_to_ours(both, theirs) == ratio
    assert ratio_to_ours(both, ours) is None


@pytest.mark.parametrize("nothing", [0.0, -3.0])
def test_a_figure_that_is_not_above_zero_has_no_ratio(nothing: float) -> None:
    theirs = row("a", 20, who="other")
    assert judge(make_report(row("a", nothing), theirs), theirs) is None
    theirs = row("a", nothing, who="other")
    assert judge(make_report(row("a", 20), theirs), theirs) is None


def test_runs_that_lie_apart_give_a_ratio() -> None:
    assert verdict(STEADY, (20, 21, 19, 22, 18)) == "2x"
    assert verdict((20, 21, 19, 22, 18), STEADY) == "0.5x"


def test_runs_that_overlap_give_no_verdict() -> None:
    assert verdict((8, 10, 12, 14, 16), (9, 11, 13, 15, 17)) == NOISY
    assert verdict((1, 9), (8, 20)) == NOISY


def test_steady_runs_that_overlap_are_level() -> None:
    assert verdict(STEADY, (10.0, 10.1, 10.2, 9.9, 10.3)) == LEVEL


def test_one_outlier_of_five_does_not_matter() -> None:
    assert verdict((*STEADY[:4], 90.0), (20, 21, 19, 22, 1)) == "2x"


def test_a_difference_smaller_than_the_spread_of_one_side_gives_no_verdict() -> None:
    # Apart by a hair, but our own runs differ by more than the two medians.
    assert verdict((5, 9.9, 9.9), (10, 10.1, 10.2)) == NOISY
    assert verdict((5, 9.9, 9.9), (40, 41, 42)) == "4.1x"


def test_a_single_run_bears_only_a_large_difference() -> None:
    assert verdict((10,), (13,)) == NOISY
    assert verdict((10,), (10,)) == NOISY
    assert verdict((10,), (34,)) == "3.4x"


def test_the_middle_half_is_the_quartiles_of_four_runs_or_more() -> None:
    assert middle_half([5, 1, 2, 4, 3]) == (2, 4)
    assert middle_half([3, 1, 2]) == (1, 3)


def test_a_row_is_noisy_by_itself_if_its_middle_half_is_wide() -> None:
    assert is_noisy(row("a", 10, 20, 10, 20))
    assert not is_noisy(row("a", 10, 11, 10, 11, 90))
    assert not is_noisy(row("a", 10))


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.456, "0.46x"), (1.04, "1.04x"), (9.96, "10x"), (99.7, "100x"), (227, "227x")],
)
def test_a_ratio_has_two_digits_and_three_next_to_one(ratio: float, text: str) -> None:
    assert format_ratio(ratio) == text


def many() -> Report:
    return make_report(
        row("won", *STEADY),
        row("won", 30, 31, 32, who="far"),
        row("won", 20, 21, 22, who="near"),
        row("won: rate", 5, unit="Mbit/s", higher_is_better=True),
        row("won: rate", 1, who="far", unit="Mbit/s", higher_is_better=True),
        row("lost", *STEADY),
        row("lost", 5, 5, 5, who="near"),
        row("lost", 50, 50, 50, who="far"),
        row("unclear", 8, 10, 12),
        row("unclear", 9, 11, 13, who="far"),
        row("same", *STEADY),
        row("same", *STEADY, who="far"),
        row("alone", 4),
    )


def test_the_summary_counts_rows_against_the_best_peer_of_each() -> None:
    assert summary(many()) == (
        "Against the best peer of each row, phoenix_trio is ahead in 1 of 4 rows and behind in 1; "
        "1 is level; 1 is too noisy for a verdict; best: won, 2.1 times better than near; "
        "worst: lost, 2 times worse than near. Ahead of far in 2 of 4 rows, of near in 1 of 2 rows."
    )


def test_with_one_peer_its_rows_are_counted_once() -> None:
    report = make_report(row("won", *STEADY), row("won", 30, 31, 32, who="far"))
    assert summary(report) == (
        "Against the best peer of each row, phoenix_trio is ahead in 1 of 1 rows and behind in 0; "
        "best: won, 3.1 times better than far."
    )


def test_the_summary_without_peers_says_so() -> None:
    text = summary(make_report(row("calm", 10, 10, 11), row("wild", 10, 20, 30), row("once", 1)))
    assert text == (
        "3 rows of phoenix_trio, without a peer to compare with; the steadiest is calm (its runs "
        "differ by a factor of 1.10), the least steady wild (3.00)."
    )
    alone = "1 row of phoenix_trio, without a peer to compare with."
    assert summary(make_report(row("once", 1))) == alone
    assert summary(make_report(row("none"))) == "No row of phoenix_trio was measured."


def test_terminal_and_markdown_say_noisy_instead_of_a_ratio() -> None:
    console = Console(file=io.StringIO(), width=200)
    report.print_report(many(), console)
    assert isinstance(console.file, io.StringIO)
    for text in (console.file.getvalue(), report.markdown(many())):
        assert f"11 ({NOISY})" in text
        assert f"10 ({LEVEL})" in text
        assert "21 (2.1x)" in text
        assert summary(many()) in text.replace("\n", "")
        assert f'"{NOISY}": ' in text
