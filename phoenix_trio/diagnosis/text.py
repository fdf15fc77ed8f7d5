"""Writes numbers with their units for people.

Floor 4, pure functions.
"""

from __future__ import annotations

__all__ = ["format_bytes", "format_rate", "format_seconds"]


def format_bytes(size: float) -> str:
    """A number of bytes, such as ``208 KiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if size < 1000 else f"{size:.0f} GiB"


def format_rate(bits: float) -> str:
    """Bits a second, such as ``2.5 Gbit/s``."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 1000:
            return f"{bits:.3g} {unit}"
        bits /= 1000
    return f"{bits:.3g} Gbit/s" if bits < 1000 else f"{bits:.0f} Gbit/s"


def format_seconds(seconds: float) -> str:
    """A time, such as ``2.5 ms``."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s"
