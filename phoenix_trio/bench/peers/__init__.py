"""Other implementations which speak the benchmark's protocols, where they are installed.

They are extra packages of the benchmark, never dependencies of the library.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import ssl
import sys

import attrs

__all__ = ["PHOENIX", "Implementation", "available", "missing"]


@attrs.frozen
class Implementation:
    """One implementation which the benchmark can run."""

    name: str
    module: str
    """Of its worker, for ``python -m``."""
    version: str
    has_packet_size: bool = True
    """Whether it can be told the UDP payload to keep to."""


PHOENIX = Implementation(
    "phoenix_trio", "phoenix_trio.bench.worker", importlib.metadata.version("phoenix-trio")
)

_CANDIDATES = (
    ("aioquic (asyncio)", "aioquic_asyncio", "aioquic", True),
    ("qh3 (asyncio)", "qh3_asyncio", "qh3", True),
)


def available() -> list[Implementation]:
    """The peers which can be run here."""
    found = [
        Implementation(name, f"{__name__}.{module}", importlib.metadata.version(package), sized)
        for name, module, package, sized in _CANDIDATES
        if importlib.util.find_spec(package) is not None
    ]
    tls = f"Python {sys.version_info.major}.{sys.version_info.minor}, {ssl.OPENSSL_VERSION}"
    found.append(
        Implementation("TLS over TCP (trio)", f"{__name__}.tls_tcp", tls, has_packet_size=False)
    )
    return found


def missing() -> list[tuple[str, str]]:
    """The peers which cannot, each with the reason."""
    return [
        (name, f"the package {package} is not installed")
        for name, _, package, _ in _CANDIDATES
        if importlib.util.find_spec(package) is None
    ]
