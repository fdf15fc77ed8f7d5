"""The result of a check, and of a whole examination: plain data, and its JSON form.

Floor 4, data only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal

import attrs

__all__ = ["FORMAT", "Finding", "Group", "Report", "Status", "Value", "count_statuses"]

#: The number of the JSON form.  It changes when a key is removed or gets another meaning.
FORMAT = 1

Group = Literal["machine", "target", "symptom"]

#: A measured value.  The unit is the end of its name: ``_bytes``, ``_seconds``, ``_percent``.
Value = str | int | float | bool | list[str] | list[int] | None


class Status(Enum):
    """The result of a check in one word."""

    OK = "ok"
    """Nothing to improve."""
    WARN = "warn"
    """It works, below par."""
    FAIL = "fail"
    """It does not work, or stops working soon."""
    UNKNOWN = "unknown"
    """It could not be checked; `found` has the reason."""


@attrs.frozen(kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    """Which check, in lower case with hyphens; stable."""
    status: Status
    found: str
    """The finding, with units."""
    why: str = ""
    """Why it matters, with a number."""
    commands: tuple[str, ...] = ()
    """What to type on this system to improve it."""
    values: Mapping[str, Value] = attrs.field(factory=dict, hash=False)
    """The measured values; each name ends in its unit."""

    def as_dict(self, group: Group) -> dict[str, Any]:
        """The JSON form."""
        return {
            "group": group,
            "name": self.name,
            "status": self.status.value,
            "found": self.found,
            "why": self.why,
            "commands": list(self.commands),
            "values": dict(self.values),
        }


def count_statuses(findings: Iterable[Finding]) -> dict[Status, int]:
    """How many findings have each status."""
    counts = dict.fromkeys(Status, 0)
    for finding in findings:
        counts[finding.status] += 1
    return counts


@attrs.frozen(kw_only=True)
class Report:
    """The result of an examination."""

    version: str
    """Of phoenix_trio."""
    system: str
    """As ``sys.platform``."""
    target: str | None = None
    symptom: str | None = None
    groups: Mapping[Group, tuple[Finding, ...]] = attrs.field(hash=False)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all groups, in their order."""
        return tuple(finding for group in self.groups.values() for finding in group)

    @property
    def status(self) -> Status:
        """``FAIL`` if any check failed, else ``WARN`` if any warns, else ``OK``."""
        counts = count_statuses(self.findings)
        if counts[Status.FAIL]:
            return Status.FAIL
        return Status.WARN if counts[Status.WARN] else Status.OK

    def exit_status(self, *, strict: bool = False) -> int:
        """0, or 1 if a check failed; with `strict`, 1 unless every check is fine."""
        counts = count_statuses(self.findings)
        if counts[Status.FAIL] or (strict and counts[Status.WARN] + counts[Status.UNKNOWN]):
            return 1
        return 0

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "version": self.version,
            "system": self.system,
            "target": self.target,
            "symptom": self.symptom,
            "status": self.status.value,
            "checks": [
                finding.as_dict(group)
                for group, findings in self.groups.items()
                for finding in findings
            ],
        }
