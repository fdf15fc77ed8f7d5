"""Checks the files that a command will write."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["check_files"]


def check_files(*files: str | None) -> None:
    """Check the directories now, so that minutes of measuring are not lost at the end.

    Raises:
      click.UsageError: a directory does not exist.
    """
    for file in files:
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise click.UsageError(f"there is no directory for {file!r}")
