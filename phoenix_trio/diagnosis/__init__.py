"""Looks at a machine and at a server, and says what is below par (floor 4).

Knows nothing of the program: ``phoenix-trio doctor`` prints what :func:`examine` returns.
"""

from .examination import SYMPTOMS, examine
from .results import Finding, Report, Status
from .target import OFFERED_ALPN, TargetServer

__all__ = ["OFFERED_ALPN", "SYMPTOMS", "Finding", "Report", "Status", "TargetServer", "examine"]
