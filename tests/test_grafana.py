"""The Grafana dashboard asks for what the exporter gives, and for all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry, Metric
from trio.testing import MockClock

from phoenix_trio.prometheus import PhoenixCollector
from tests.test_transport import TARGET, two_transports

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "docs/grafana/phoenix_trio.json").read_text()
)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: dict[str, dict[str, Any]] = {v["name"]: v for v in DASHBOARD["templating"]["list"]}

#: Labels that Prometheus adds to each series of a scrape.
ADDED = {"instance", "job"}

#: Variables of Grafana itself.
BUILT_IN = {"__rate_interval", "__all"}

_SERIES = re.compile(r"(phoenix_trio_\w+)(?:\{([^}]*)\})?(\[[^\]]+\])?")


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def series(expression: str) -> Iterator[tuple[str, set[str], bool]]:
    """The series of an expression: name, labels, and whether it is a range."""
    for name, matchers, window in _SERIES.findall(expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)), bool(window)


async def scrape() -> list[Metric]:
    """All that a transport with an open connection exports."""
    async with two_transports() as (client, _):
        registry = CollectorRegistry()
        registry.register(PhoenixCollector(client))
        async with client.connect(TARGET):
            await trio.sleep(1)
            return list(registry.collect())


async def test_each_series_and_label_is_exported(autojump_clock: MockClock) -> None:
    exported = {
        sample.name: (set(sample.labels), family.type)
        for family in await scrape()
        for sample in family.samples
    }
    asked = [each for expression in expressions() for each in series(expression)]
    assert len(asked) > 20
    for name, labels, is_range in asked:
        assert name in exported, name
        own_labels, kind = exported[name]
        assert labels <= own_labels | ADDED, name
        assert is_range == (kind == "counter"), f"{name}: counters alone need a rate"
    for variable in ("instance", "transport"):
        query = VARIABLES[variable]["query"]["query"]
        ((name, labels, _),) = series(query)
        label = re.fullmatch(r"label_values\(.*, (\w+)\)", query)
        assert label is not None
        assert {label[1], *labels} <= exported[name][0] | ADDED
    for panel in PANELS:
        for target in panel.get("targets", []):
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= {"instance", "transport"}


async def test_each_exported_family_has_a_panel(autojump_clock: MockClock) -> None:
    shown = {name for expression in expressions() for name, _, _ in series(expression)}
    for family in await scrape():
        names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
        assert names, family.name
        assert names <= shown, f"{family.name} is on no panel"


@pytest.mark.parametrize("expression", expressions())
def test_expressions_are_well_formed(expression: str) -> None:
    assert expression.count("(") == expression.count(")")
    rest = _SERIES.sub("series", expression)
    call = r"(?:8 \* )?(?:\w+\()*series\)*"
    assert re.fullmatch(call, rest), rest
    assert set(re.findall(r"([a-z]+)\(", rest)) <= {"sum", "max", "rate", "increase"}
    assert set(re.findall(r"\$(\w+)", expression)) <= VARIABLES.keys() | BUILT_IN


def test_panels_have_numbers_and_places_of_their_own() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered
        assert panel["type"] == "row" or panel["description"]


def test_the_dashboard_works_with_any_prometheus() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD.get("id") is None, "Grafana gives the number when it is imported"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for each in [*PANELS, *(t for p in PANELS for t in p.get("targets", []))]:
        if each.get("type") != "row":
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
