"""The benchmark's figures: saved, compared, drawn; each the right way round."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from phoenix_trio_bench import peers, report
from phoenix_trio_bench.cli import bench as command
from phoenix_trio_bench.over_time import Moment, Timeline
from phoenix_trio_bench.results import Report, describe_machine, new_report, thin
from tests.bench.reports import OURS, make_report, row


def printed(*arguments: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    if len(arguments) == 2:
        report.compare(*arguments, console)
    else:
        report.print_report(arguments[0], console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    old = make_report(
        row("a", 3, 1, 2),
        row("b", 5.5, who="other", higher_is_better=True, note="slow"),
        row("c", unit="bytes", higher_is_better=None),
        row("d", 2, samples=[1, 2, 3]),
    )
    old.timelines.append(Timeline(name="e", moments=[Moment(0.1, 2, 0.3, 4, 5)]))
    old.save(str(tmp_path / "report.json"))
    assert Report.load(str(tmp_path / "report.json")) == old
    content = json.loads((tmp_path / "report.json").read_text())
    assert {key: content["rows"][3][key] for key in ("p50", "p90", "p99")} == {
        "p50": 2,
        "p90": 3,
        "p99": 3,
    }
    assert "p50" not in content["rows"][0]
    assert {key: content["rows"][0][key] for key in ("median", "min", "max", "runs")} == {
        "median": 2,
        "min": 1,
        "max": 3,
        "runs": [3, 1, 2],
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 5}', '{"rows": [{"name": "a"}]}'])
def test_a_file_which_is_no_report_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no report"):
        Report.load(str(path))


def test_a_file_of_before_there_were_samples_can_still_be_compared(tmp_path: Path) -> None:
    before = {"name": "a", "implementation": OURS, "unit": "ms", "median": 10, "min": 10}
    content = {
        "date": "2025-01-01",
        "command": "phoenix-trio bench",
        "commit": None,
        "machine": {},
        "versions": {},
        "rows": [before | {"max": 10, "runs": [10], "note": "", "higher_is_better": False}],
    }
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = Report.load(str(tmp_path / "old.json"))
    assert old.timelines == old.rows[0].samples == []
    assert "2.00x" in printed(old, make_report(row("a", 5, samples=[4, 5, 6])))


def test_samples_are_thinned_so_that_percentiles_stay() -> None:
    many = [float(number) for number in range(5000, 0, -1)]
    kept = thin(many, 200)
    assert len(kept) == 200
    assert (kept[0], kept[-1]) == (1, 5000)
    thinned = row("a", samples=kept)
    for percent in (50, 90, 99):
        assert thinned.percentile(percent) == pytest.approx(percent * 50, rel=0.01)
    assert thin([3, 1, 2.00004]) == [1, 2, 3]
    assert thin([]) == []


def test_a_percentile_is_a_sample() -> None:
    assert row("a", samples=[1, 2, 3, 4]).percentile(50) == 2
    assert row("a", samples=[1, 2, 3, 4]).percentile(51) == 3
    assert row("a", samples=[7]).percentile(99) == 7
    assert row("a", 5).percentile(99) is None


def test_a_new_report_says_where_and_with_what() -> None:
    new = new_report([], {"other": "1.2"})
    assert new.machine == describe_machine()
    assert {"python", "aioquic", "trio", "cryptography", "other"} <= set(new.versions)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", new.date)


def test_a_comparison_marks_only_what_is_beyond_the_spread() -> None:
    before = make_report(row("apart", 10, 11), row("noisy", 10, 20), date="2025-01-01")
    after = make_report(row("apart", 5, 5.5), row("noisy", 12, 15), row("new", 1))
    lines = {line.split()[1]: line for line in printed(before, after).splitlines() if "ms" in line}
    assert set(lines) == {"apart", "noisy"}
    assert "2.00x" in lines["apart"]
    assert "yes" in lines["apart"]
    assert "yes" not in lines["noisy"]


def test_a_single_run_has_no_spread_to_be_beyond() -> None:
    before = make_report(row("single", 10), row("first", 10), row("second", 10, 11))
    after = make_report(row("single", 5), row("first", 5, 5.5), row("second", 5))
    assert "2.00x" in printed(before, after)
    assert "yes" not in printed(before, after)


def test_the_table_says_why_a_figure_is_missing() -> None:
    text = printed(
        make_report(row("a", 10), row("a", who="other", note="failed: it burst"), row("a", who="x"))
    )
    assert "other: failed: it burst: a" in text
    assert "abacus" in text
    assert "abc1234" in text


def test_markdown_goes_between_its_marks_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{command._BEGIN}old\n{command._END}after\n")
    for value in (10, 12345):
        command._write_markdown(make_report(row("row one", value)), path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("row one") == 1
    assert "12,345" in text


def test_markdown_needs_no_marks_in_a_new_file(tmp_path: Path) -> None:
    command._write_markdown(make_report(row("row one", 1)), tmp_path / "new.md")
    assert "| row one | ms | 1 |" in (tmp_path / "new.md").read_text()


def test_a_peer_which_is_not_installed_is_named_with_its_reason() -> None:
    found, missing = peers.find_peers({"qh3": "/bin/false"})
    assert {peer.name for peer in found} >= {"aioquic (asyncio)", "TLS over TCP (trio)"}
    assert ("qh3 (asyncio)", "/bin/false has no package qh3") in missing
    names = [peer.name for peer in found] + [name for name, _ in missing]
    assert len(names) == len(set(names)) == len(peers._CANDIDATES) + 1
