"""Other implementations that speak the benchmark's protocols, if they are installed.

They are extra packages of the benchmark, never dependencies of the library.  An
implementation that cannot live in the same environment runs in an interpreter of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

import phoenix_trio

from ..processes import python_module

__all__ = ["NAMES", "PHOENIX", "Implementation", "find_peers"]


@attrs.frozen
class Implementation:
    """One implementation that the benchmark can run."""

    name: str
    version: str
    command: list[str]
    """The command that runs its worker."""
    has_packet_size: bool = True
    """Whether it can be told the UDP payload to keep to."""


PHOENIX = Implementation(
    "phoenix_trio",
    importlib.metadata.version("phoenix-trio"),
    python_module("phoenix_trio_bench.worker"),
)


@attrs.frozen
class _Candidate:
    name: str
    module: str
    package: str
    has_packet_size: bool = True


_CANDIDATES = (
    _Candidate("aioquic (asyncio)", "aioquic_asyncio", "aioquic"),
    _Candidate("qh3 (asyncio)", "qh3_asyncio", "qh3"),
    _Candidate("py-libp2p (QUIC)", "libp2p_quic", "libp2p", has_packet_size=False),
)

NAMES = tuple(candidate.package for candidate in _CANDIDATES)
"""Packages for which another interpreter can be named."""


def find_peers(
    interpreters: Mapping[str, str],
) -> tuple[list[Implementation], list[tuple[str, str]]]:
    """The peers that can be run here, and those that cannot, each with the reason.

    Args:
      interpreters: for some of :data:`NAMES`, the Python with that package.
    """
    found = []
    missing = []
    for candidate in _CANDIDATES:
        elsewhere = interpreters.get(candidate.package)
        if elsewhere is None:
            command = python_module(f"{__name__}.{candidate.module}")
            version = _version_here(candidate.package)
            reason = f"the package {candidate.package} is not installed"
        else:
            launcher = str(Path(__file__).with_name("elsewhere.py"))
            library = str(Path(phoenix_trio.__file__).parent)
            command = [elsewhere, launcher, library, f"{__name__}.{candidate.module}"]
            version = _version_elsewhere(elsewhere, candidate.package)
            reason = f"{elsewhere} has no package {candidate.package}"
        if version is None:
            missing.append((candidate.name, reason))
        else:
            found.append(
                Implementation(candidate.name, version, command, candidate.has_packet_size)
            )
    tls = f"Python {sys.version_info.major}.{sys.version_info.minor}, {ssl.OPENSSL_VERSION}"
    command = python_module(f"{__name__}.tls_tcp")
    found.append(Implementation("TLS over TCP (trio)", tls, command, has_packet_size=False))
    return found, missing


def _version_here(package: str) -> str | None:
    try:
        # (A directory of this name in the path is found as well, without being installed.)
        return importlib.metadata.version(package) if importlib.util.find_spec(package) else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_elsewhere(python: str, package: str) -> str | None:
    """Raises OSError if there is no such interpreter."""
    program = (
        "import importlib.metadata as m, importlib.util as u, json, sys;"
        "p = sys.argv[1];"
        "print(json.dumps(m.version(p) if u.find_spec(p) else None))"
    )
    done = subprocess.run(  # noqa: S603 - the user named it
        [python, "-c", program, package], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode:
        return None
    version: str | None = json.loads(done.stdout)
    return version
