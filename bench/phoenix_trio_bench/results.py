"""The results of a run: rows with their spread, the machine, the versions; to JSON and back."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from .over_time import Timeline

__all__ = [
    "PERCENTILES",
    "SAMPLES",
    "Report",
    "Row",
    "describe_machine",
    "describe_versions",
    "new_report",
    "thin",
]

#: The most samples of one row.
SAMPLES = 1000

PERCENTILES = (50, 90, 99)


def thin(samples: Sequence[float], limit: int = SAMPLES) -> list[float]:
    """At most `limit` of the samples (2 or more), sorted, with four digits.

    They are evenly spaced among the sorted ones, so that percentiles stay as they were; the
    smallest and the largest are always among them.
    """
    ordered = sorted(float(f"{sample:.4g}") for sample in samples)
    if len(ordered) <= limit:
        return ordered
    return [ordered[round(rank * (len(ordered) - 1) / (limit - 1))] for rank in range(limit)]


@attrs.frozen(kw_only=True)
class Row:
    """One figure of one implementation, over several runs."""

    name: str
    """The name of the figure; the same for all implementations."""
    implementation: str
    unit: str
    runs: list[float] = attrs.field(factory=list)
    note: str = ""
    """Why there are no runs, or a remark about them."""
    higher_is_better: bool | None = False
    """``None``: neither, it is only good to know."""
    samples: list[float] = attrs.field(factory=list)
    """Single operations of all runs, sorted, at most :data:`SAMPLES`; empty where a run is
    one figure.  Unit as the runs'."""

    @property
    def median(self) -> float | None:
        """``None``: nothing was measured."""
        return statistics.median(self.runs) if self.runs else None

    @property
    def minimum(self) -> float | None:
        """The smallest run."""
        return min(self.runs, default=None)

    @property
    def maximum(self) -> float | None:
        """The largest run."""
        return max(self.runs, default=None)

    def percentile(self, percent: float) -> float | None:
        """The smallest sample that so many per cent of the samples do not exceed."""
        if not self.samples:
            return None
        rank = math.ceil(percent / 100 * len(self.samples))
        return sorted(self.samples)[max(rank, 1) - 1]

    def to_json(self) -> dict[str, Any]:
        """As the JSON file has it."""
        content = {
            "name": self.name,
            "implementation": self.implementation,
            "unit": self.unit,
            "median": self.median,
            "min": self.minimum,
            "max": self.maximum,
            "runs": self.runs,
            "note": self.note,
            "higher_is_better": self.higher_is_better,
        }
        if self.samples:
            content |= {f"p{percent}": self.percentile(percent) for percent in PERCENTILES}
            content["samples"] = self.samples
        return content


@attrs.frozen(kw_only=True)
class Report:
    """All rows of one run of the program, and where and when it was."""

    rows: list[Row]
    machine: dict[str, str]
    versions: dict[str, str]
    date: str
    command: str
    commit: str | None = None
    timelines: list[Timeline] = attrs.field(factory=list)
    """Transfers over time, each a run of its own."""

    def find(self, name: str, implementation: str) -> Row | None:
        """The row, if it was measured."""
        for row in self.rows:
            if row.name == name and row.implementation == implementation:
                return row
        return None

    @property
    def implementations(self) -> list[str]:
        """In the order in which they appear."""
        return list(dict.fromkeys(row.implementation for row in self.rows))

    @property
    def names(self) -> list[str]:
        """The names of the rows, in order."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def save(self, path: str) -> None:
        """Write the JSON file."""
        content = {
            "date": self.date,
            "command": self.command,
            "commit": self.commit,
            "machine": self.machine,
            "versions": self.versions,
            "rows": [row.to_json() for row in self.rows],
            "timelines": [timeline.to_json() for timeline in self.timelines],
        }
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str) -> Report:
        """Read a JSON file written by :meth:`save`, also by an earlier version.

        Raises:
          OSError: it cannot be read.
          ValueError: it is not such a file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [
                Row(
                    name=row["name"],
                    implementation=row["implementation"],
                    unit=row["unit"],
                    runs=row["runs"],
                    note=row.get("note", ""),
                    higher_is_better=row.get("higher_is_better", False),
                    samples=row.get("samples", []),
                )
                for row in content["rows"]
            ]
            return cls(
                rows=rows,
                machine=content["machine"],
                versions=content["versions"],
                date=content["date"],
                command=content["command"],
                commit=content.get("commit"),
                timelines=[Timeline.from_json(each) for each in content.get("timelines", [])],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no report of this program: {error!r}") from error


def describe_machine() -> dict[str, str]:
    """The properties of the machine that affect the figures."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def describe_versions() -> dict[str, str]:
    """The versions of the software below phoenix_trio."""
    packages = ("phoenix-trio", "trio", "aioquic", "cryptography")
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def current_commit() -> str | None:
    """The commit of the checkout this runs in; ``None``: no checkout, or there is no git."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def new_report(
    rows: list[Row], peers: Mapping[str, str], timelines: Sequence[Timeline] = ()
) -> Report:
    """A report with the present time.

    Args:
      rows: the measured rows.
      peers: the names of the other implementations, and their versions.
      timelines: transfers over time.
    """
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return Report(
        rows=rows,
        machine=describe_machine(),
        versions={**describe_versions(), **peers},
        date=now.isoformat(),
        command=" ".join(["phoenix-trio", *sys.argv[1:]]),
        commit=current_commit(),
        timelines=list(timelines),
    )
