"""Hostile tests measure their attack: the figures are printed when the run ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_FIGURES = pytest.StashKey[list[str]]()

Figure = Callable[[str, float, str], None]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """``figure(what, value, unit)`` notes a measured figure for the end of the run.

    A figure in seconds is for people: a test compares it only with another figure of the same
    run, or with a bound far above it.
    """
    lines = request.config.stash.setdefault(_FIGURES, [])

    def note(what: str, value: float, unit: str) -> None:
        lines.append(f"{request.node.name}: {what}: {value:,.4g} {unit}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(_FIGURES, [])
    if lines:
        terminalreporter.section("hostile figures")
        for line in lines:
            terminalreporter.write_line(line)
