"""The pages: whole, small, complete in themselves, readable; names are only text."""

from __future__ import annotations

import html
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from phoenix_trio.cli.program import program
from phoenix_trio_bench import charts, page, svg
from phoenix_trio_bench.over_time import LIMIT, Moment, Timeline
from phoenix_trio_bench.results import SAMPLES, Report, Row
from phoenix_trio_bench.rows import SIZED, list_workloads
from phoenix_trio_bench.verdicts import LEVEL, NOISY, summary
from tests.bench.reports import OURS, make_report, row

PEERS = ("aioquic (asyncio)", "qh3 (asyncio)", "py-libp2p (QUIC)", "TLS over TCP (trio)")

#: Elements without an end.
VOID = {"meta"}


class Elements(HTMLParser):
    """Collects elements and text; fails on an element that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    elements.close()
    assert not elements.open
    return elements


def saved(report: Report, tmp_path: Path) -> str:
    path = tmp_path / "page.html"
    page.save_page(report, str(path))
    return path.read_text(encoding="utf-8")


def timeline(name: str = "a transfer", count: int = 50) -> Timeline:
    moments = [
        Moment(
            number / 100, number * 10_000, 0.05 + number % 7 / 1000, 30_000 + number, number // 9
        )
        for number in range(count)
    ]
    return Timeline(name=name, moments=moments, bandwidth=1e7)


def everything() -> Report:
    """As large a report as a run can give."""
    source = random.Random(5)
    rows = []
    for suffix in ("", ", 1452-byte packets", ", 1200-byte packets"):
        for workload in list_workloads(quick=False, with_gigabyte=True):
            for figure in workload.figures:
                for who in (OURS, *PEERS):
                    middle = source.uniform(1, 9000)
                    rows.append(
                        Row(
                            name=figure.name + suffix,
                            implementation=who,
                            unit=figure.unit,
                            runs=[source.uniform(0.9, 1.1) * middle for _ in range(5)],
                            note="slow: one run, without one to warm up",
                            higher_is_better=figure.higher_is_better,
                            samples=[source.lognormvariate(5, 1) for _ in range(SAMPLES)]
                            if figure.unit == "us"
                            else [],
                        )
                    )
    report = make_report(*rows)
    report.timelines.extend(timeline(f"transfer {number}", LIMIT) for number in range(3))
    return report


def test_the_largest_page_is_small_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    report = everything()
    text = saved(report, tmp_path)
    assert len(text.encode()) < 500_000
    elements = parse(text)
    assert {tag for tag, _ in elements.seen}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "use", "image", "base", "a"}
    )
    for _, attributes in elements.seen:
        assert attributes.keys().isdisjoint({"src", "href", "xlink:href", "srcset", "data"})
        assert not any(name.startswith("on") for name in attributes)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_page_has_every_row_and_implementation_and_the_summary(tmp_path: Path) -> None:
    report = everything()
    text = html.unescape(saved(report, tmp_path))
    for name in report.names:
        assert f"<th colspan='3'>{name} " in text
    for who in report.implementations:
        assert text.count(f"<td>{who}</td>") == len(report.names)
    assert summary(report) in text
    for each in report.timelines:
        assert each.name in text
    assert "abacus" in text
    assert "abc1234" in text


def test_sections_hold_the_rows_of_their_kind() -> None:
    names = [
        figure.name
        for workload in list_workloads(quick=False, with_gigabyte=True)
        for figure in workload.figures
    ]
    others = [name for name in names if page._section(name) == page._OTHER]
    assert others == ["UDP payload of a full packet"]
    for name in names:
        if any(name.startswith(each.rstrip("*")) for each in SIZED):
            assert page._section(f"{name}, 1200-byte packets") == "1200-byte packets"


def test_names_are_only_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    report = make_report(
        row(evil, 10, 11, 12, unit=evil, note=evil),
        row(evil, 20, who=evil, unit=evil),
        row("b" + evil, 1, samples=[1, 2, 3]),
        row("b" + evil, 1, who=evil, samples=[1, 2, 3]),
        row("c", who=evil, note=f"failed: {evil}"),
        row("c", 5),
        date=evil,
    )
    report.timelines.extend([timeline(evil), Timeline(name=evil, note=evil)])
    text = saved(report, tmp_path)
    assert "<script" not in text
    elements = parse(text)
    assert any(evil in words for words in elements.words)


def test_a_page_without_figures_is_still_a_page(tmp_path: Path) -> None:
    parse(saved(make_report(), tmp_path))
    text = saved(make_report(row("a", note="failed: it burst"), row("b", 0, 0)), tmp_path)
    assert "failed: it burst" in text
    parse(text)
    only = make_report()
    only.timelines.append(timeline())
    text = saved(only, tmp_path)
    parse(text)
    assert "over time, and no rows." in text
    assert "medians" not in text


def card(text: str, title: str) -> str:
    found = re.search(f"<figure><figcaption>{re.escape(title)} .*?</figure>", text)
    assert found, title
    return found[0]


def test_a_card_shows_each_peer_with_its_figure_and_verdict(tmp_path: Path) -> None:
    text = saved(
        make_report(
            row("a", 10, 10.1, 10.2),
            row("a", 30, 31, 32, who="far (trio)"),
            row("a", 9, 10, 20, who="wild"),
            row("a", 10, 10.1, 10.1, who="equal"),
            row("a", who="silent", note="failed: it burst"),
        ),
        tmp_path,
    )
    words = parse(card(text, "a")).words
    for label, figure, verdict in (
        ("far", "31", "3.1x"),
        ("wild", "10", NOISY),
        ("equal", "10.1", LEVEL),
    ):
        rest = words[words.index(label) :]
        assert rest[rest.index(figure) + 1] == verdict
    assert "failed: silent" in words


def test_a_card_of_single_operations_shows_their_percentiles(tmp_path: Path) -> None:
    samples = [float(number) for number in range(1, 101)]
    text = saved(
        make_report(
            row("a", 50, samples=samples), row("a", 500, who="b", samples=[9 * x for x in samples])
        ),
        tmp_path,
    )
    drawn = card(text, "a")
    assert "p50 50 \N{MIDDLE DOT} p90 90 \N{MIDDLE DOT} p99 99 \N{MIDDLE DOT} n 100" in drawn
    assert "p50 450 \N{MIDDLE DOT} p90 810 \N{MIDDLE DOT} p99 891 \N{MIDDLE DOT} n 100" in drawn


def test_a_row_whose_samples_are_missing_for_one_side_is_drawn_as_bars(tmp_path: Path) -> None:
    text = saved(make_report(row("a", 50, samples=[50]), row("a", 90, who="b")), tmp_path)
    assert "p50" not in card(text, "a")
    assert "<rect" in card(text, "a")


def test_rows_that_no_peer_has_share_a_chart_too(tmp_path: Path) -> None:
    text = saved(
        make_report(
            row("memory, client", 5, unit="KiB"),
            row("memory, client", who="b", note="left out: no time"),
            row("memory, server", 9, unit="KiB"),
            row("memory, server", who="b", note="left out: no time"),
            row("memory, both", who="b", unit="KiB"),
            row("memory, theirs", 5, who="b", unit="KiB"),
        ),
        tmp_path,
    )
    assert text.count("<figure>") == 2
    words = parse(card(text, "KiB")).words
    assert {"memory, client", "memory, server"} <= set(words)
    assert "lower is better, phoenix_trio alone" in words
    assert "<rect" in card(text, "memory, theirs")


def test_without_peers_rows_of_one_unit_share_a_chart(tmp_path: Path) -> None:
    text = saved(
        make_report(
            row("echoes a second, 1 at a time", 5, unit="1/s", higher_is_better=True),
            row("echoes a second, 16 at a time", 9, unit="1/s", higher_is_better=True),
        ),
        tmp_path,
    )
    assert text.count("<figure>") == 1
    words = parse(card(text, "a second")).words
    assert {"echoes a second, 1 at a time", "echoes a second, 16 at a time"} <= set(words)


def test_only_the_better_of_time_and_rate_of_a_transfer_is_drawn() -> None:
    names = ["transfer 1 KB", "transfer 1 KB: rate", "transfer 10 MB", "transfer 10 MB: rate"]
    assert [name for name in names if not page._is_twin(name, names)] == [
        "transfer 1 KB",
        "transfer 10 MB: rate",
    ]
    sized = [f"{name}, 1200-byte packets" for name in names]
    assert [name for name in sized if not page._is_twin(name, sized)] == [sized[0], sized[3]]
    assert not page._is_twin("transfer 10 MB", ["transfer 10 MB"])
    writes = ["transfer 100 MB, 64 KB writes", "transfer 100 MB, 64 KB writes: rate"]
    assert [name for name in writes if not page._is_twin(name, writes)] == writes[1:]


@pytest.mark.parametrize(
    "values", [[1e-9, 5e9], [3.0, 3.0], [0.0, 0.0], [-5.0, 0.0, 7.0], [1.0] * 30 + [1e12]]
)
def test_strange_samples_are_drawn_without_an_error(values: list[float]) -> None:
    rows = [row("a", *values, samples=sorted(values))]
    drawn = charts.distributions(make_report(*rows), rows)
    for number in re.findall(r' (?:x|cx|y|cy)="([^"]*)"', drawn):
        assert 0 <= float(number) <= 400
    assert "nan" not in drawn


def test_a_timeline_stays_inside_its_drawing() -> None:
    drawn = charts.over_time(timeline(count=LIMIT))
    width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', drawn)[0])
    places = re.findall(r"[ML]([\d.-]+) ([\d.-]+)", drawn)
    assert len(places) > LIMIT
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in places)
    assert f"{(LIMIT - 1) // 9} packets lost" in drawn
    assert "link 10" in drawn


def test_rates_of_a_timeline_add_up_to_its_bytes() -> None:
    moments = [
        Moment(0.0, 0, None, 1, 0),
        Moment(0.5, 100, None, 1, 0),
        Moment(2.0, 1000, None, 1, 0),
    ]
    moments += [Moment(2.0, 1500, None, 1, 0), Moment(4.0, 9000, None, 1, 0)]
    steps = charts._rates(moments)
    total = sum(
        (after[0] - before[0]) * before[1]
        for before, after in zip(steps[::2], steps[1::2], strict=True)
    )
    assert total * 1e6 / 8 == pytest.approx(9000)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 100, [0, 50, 100]), (0, 3.4, [0, 2]), (180, 900, [200, 500]), (7, 7, [7])],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    found = svg.logarithmic_ticks(low, high) if low > 100 else svg.linear_ticks(low, high, 3)
    assert found == pytest.approx(ticks)


def test_a_label_too_long_for_its_place_shows_itself_under_the_pointer() -> None:
    assert svg.label(1, 2, "x" * 10, length=5) == (
        f'<text x="1" y="2"><title>{"x" * 10}</title>xxxx\N{HORIZONTAL ELLIPSIS}</text>'
    )
    assert "<title>" not in svg.label(1, 2, "short", length=5)


def test_simulate_writes_a_page_over_time(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    arguments = "simulate --size 0.3 --rtt 20 --bandwidth 20 --connections 1 --connections 2"
    result = CliRunner().invoke(program, [*arguments.split(), "--html", str(path)])
    assert result.exit_code == 0, result.output
    text = path.read_text()
    elements = parse(text)
    assert [tag for tag, _ in elements.seen].count("svg") == 2
    assert any("round trip 20 ms, 20 Mbit/s" in words for words in elements.words)
    assert any(words.startswith("2 connections together") for words in elements.words)


def test_simulate_notices_a_file_which_cannot_be_written_before_it_begins(tmp_path: Path) -> None:
    for option in ("--json", "--html"):
        nowhere = str(tmp_path / "nowhere" / "file")
        result = CliRunner().invoke(program, ["simulate", "--size", "9000", option, nowhere])
        assert result.exit_code == 2
        assert "nowhere" in result.output
