"""Shows a running transport to its own user: a Unix socket here, ``phoenix-trio top`` there.

Floor 5.  :func:`open_inspection` is for the application, :func:`open_viewer` for programs
that look at it.
"""

from .format import ConnectionView, PoolView, Snapshot, TargetView, TransportView
from .places import find_applications
from .server import open_inspection
from .viewer import Viewer, open_viewer

__all__ = [
    "ConnectionView",
    "PoolView",
    "Snapshot",
    "TargetView",
    "TransportView",
    "Viewer",
    "find_applications",
    "open_inspection",
    "open_viewer",
]
