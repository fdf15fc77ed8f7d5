"""The chart and the short tables are those of the tables in docs/performance.md."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "tools/make_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # attrs looks there for annotations
    spec.loader.exec_module(module)
    return module


def test_chart_and_short_tables_agree_with_the_tables_of_performance(tool: ModuleType) -> None:
    assert tool.stale_files() == [], "run tools/make_figures.py"


def test_another_figure_in_the_tables_makes_all_three_stale(
    tool: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/comparison.md", "docs/chart.svg", "docs/performance.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    page = tmp_path / "docs" / "performance.md"
    old = tool.read_tables(page.read_text())[tool.BULK].cells[tool.OURS]
    text = page.read_text()
    start = text.index(f"| {tool.BULK} |")
    page.write_text(text[:start] + text[start:].replace(old, "1,234", 1))
    assert tool.stale_files(tmp_path) == ["docs/chart.svg", "README.md", "docs/comparison.md"]


def test_the_chart_is_small_and_well_formed() -> None:
    chart = ROOT / "docs" / "chart.svg"
    assert chart.stat().st_size < 20_000
    picture = ET.parse(chart).getroot()
    assert picture.get("viewBox") is not None
    assert "prefers-color-scheme:dark" in chart.read_text()
