"""The commands of the package phoenix-trio-bench; without it, commands that say how to get it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

__all__ = ["benchmark_commands"]

_NAMES = ("bench", "serve-bench", "simulate")


def benchmark_commands() -> Iterable[click.Command]:
    """``bench``, ``serve-bench`` and ``simulate``."""
    try:
        from phoenix_trio_bench.cli import COMMANDS
    except ModuleNotFoundError as error:
        if error.name != "phoenix_trio_bench":
            raise
        return [_missing(name) for name in _NAMES]
    return COMMANDS


def _missing(name: str) -> click.Command:
    def say_what_to_install() -> None:
        click.echo(
            f"phoenix-trio: {name} needs the package phoenix-trio-bench: "
            "pip install ./bench in a clone of phoenix_trio",
            err=True,
        )
        sys.exit(2)

    return click.Command(
        name,
        callback=say_what_to_install,
        short_help="(needs the package phoenix-trio-bench)",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
