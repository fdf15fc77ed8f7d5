"""Option types and options that several commands have."""

from __future__ import annotations

import re
from typing import Any

import click

from ..config import TransportConfig

__all__ = [
    "SIZE",
    "TARGET",
    "Target",
    "format_rate",
    "format_size",
    "transport_config",
    "transport_options",
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class _Size(click.ParamType[int]):
    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is not a size such as 500000, 64KiB or 1.5GB", param, context)
        return int(float(found[1]) * _UNITS[found[2] or ""])


class Target(click.ParamType[tuple[str, int]]):
    """``HOST`` or ``HOST:PORT``.

    Args:
      default_port: the port if none is given.
    """

    name = "host:port"

    def __init__(self, default_port: int) -> None:
        self._default_port = default_port

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d+))?", str(value).strip())
        if found is None or not 1 <= int(found[3] or self._default_port) <= 65535:
            self.fail(
                f"{value!r} is not HOST:PORT (IPv6 addresses go in brackets: [::1]:4433)",
                param,
                context,
            )
        return found[1] or found[2], int(found[3] or self._default_port)


SIZE = _Size()
TARGET = Target(4433)


def transport_options(command: Any) -> Any:
    """Options that become a :class:`TransportConfig`."""
    command = click.option(
        "--max-udp-payload-size",
        type=click.IntRange(1200, 65507),
        metavar="BYTES",
        help="Never send larger packets.  [default: what the path is found to carry]",
    )(command)
    return click.option(
        "--idle-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Give a silent connection up after so long.",
    )(command)


def transport_config(max_udp_payload_size: int | None, idle_timeout: float) -> TransportConfig:
    """The configuration described by the options of :func:`transport_options`."""
    return TransportConfig(
        max_udp_payload_size=max_udp_payload_size,
        max_idle_timeout=idle_timeout,
        keep_alive=idle_timeout / 3,
    )


def format_rate(bits: float) -> str:
    """A number of bits a second for people."""
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if bits < 999.5 or unit == "Gbit/s":
            return f"{bits:.0f} {unit}" if bits >= 9.95 else f"{bits:.1f} {unit}"
        bits /= 1000
    raise AssertionError("not reached")


def format_size(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("not reached")
