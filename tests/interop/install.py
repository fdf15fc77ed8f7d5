"""Installs the other QUIC stacks, each by itself under build/interop, and lists them.

Nothing of it enters the project's own environment.  Debian's packages (ngtcp2, Chromium,
node) are installed by ``.ci/run``; here they are only looked for.  Needs nothing but the
standard library: ``python3 tests/interop/install.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "interop"
_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/usr/bin"
_TIMEOUT = 400


@dataclass(frozen=True)
class Installed:
    """One stack on this machine: its version and programs, or why it is missing."""

    version: str = ""
    programs: dict[str, str] = field(default_factory=dict)
    missing: str | None = None


def find_all(names: list[str] | None = None, *, install: bool) -> dict[str, Installed]:
    """Every stack by name; with `install`, missing ones are fetched first."""
    HOME.mkdir(parents=True, exist_ok=True)
    return {
        name: find(install) for name, find in _FINDERS.items() if names is None or name in names
    }


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["failed"]
        raise OSError(lines[-1][:200])
    return result.stdout


def _python_package(name: str, *, interpreter: str, install: bool) -> Installed:
    home = HOME / name
    python = home / "bin" / "python"
    question = f"import importlib.metadata as m; print(m.version({name!r}))"
    try:
        if install and not _works(python, question):
            shutil.rmtree(home, ignore_errors=True)
            _run(interpreter, "-m", "venv", home)
            _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", name)
        if not python.exists():
            return Installed(missing="not installed (python -m tests.interop --install)")
        return Installed(_run(python, "-c", question).strip(), {"python": str(python)})
    except (OSError, subprocess.TimeoutExpired) as error:
        return Installed(missing=f"pip could not install it: {error}")


def _works(python: Path, question: str) -> bool:
    try:
        _run(python, "-c", question)
    except OSError:
        return False
    return True


def _newer_python() -> str | None:
    """Python 3.12 or later, on the path or among pyenv's versions."""
    if sys.version_info >= (3, 12):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python3.{minor}", path=_SEARCH) for minor in (12, 13, 14)]
    candidates += [str(path) for path in sorted(pyenv.glob("3.1[234]*/bin/python"))]
    for candidate in filter(None, candidates):
        if _works(Path(candidate), "import sys, venv; assert sys.version_info >= (3, 12)"):
            return candidate
    return None


def _aioquic(install: bool) -> Installed:
    return _python_package("aioquic", interpreter=sys.executable, install=install)


def _qh3(install: bool) -> Installed:
    return _python_package("qh3", interpreter=sys.executable, install=install)


def _picoquic(install: bool) -> Installed:
    interpreter = _newer_python()
    if interpreter is None:
        return Installed(missing="aiopquic needs Python 3.12 or later, and none was found")
    return _python_package("aiopquic", interpreter=interpreter, install=install)


def _curl(install: bool) -> Installed:
    return _python_package("curl_cffi", interpreter=sys.executable, install=install)


def _libp2p(install: bool) -> Installed:
    return _python_package("libp2p", interpreter=sys.executable, install=install)


def _quiche(install: bool) -> Installed:
    node, npm = shutil.which("node", path=_SEARCH), shutil.which("npm", path=_SEARCH)
    if node is None:
        return Installed(missing="node is not installed")
    home = HOME / "quiche"
    manifest = home / "node_modules" / "@matrixai" / "quic" / "package.json"
    if install and not manifest.exists():
        if npm is None:
            return Installed(missing="npm is not installed")
        home.mkdir(exist_ok=True)
        try:
            _run(
                *(npm, "install", "--no-audit", "--no-fund", "--prefix", home, "@matrixai/quic"),
                cwd=home,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Installed(missing=f"npm could not install @matrixai/quic: {error}")
    if not manifest.exists():
        return Installed(missing="not installed (python -m tests.interop --install)")
    found = re.search(r'"version": "([^"]+)"', manifest.read_text())
    version = found[1] if found else "?"
    return Installed(f"@matrixai/quic {version}", {"node": node, "home": str(home)})


def _ngtcp2(install: bool) -> Installed:
    client, server = (
        shutil.which(f"gtls{role}", path=_SEARCH) or shutil.which(f"ngtcp2-{role}", path=_SEARCH)
        for role in ("client", "server")
    )
    if client is None or server is None:
        return Installed(missing="Debian's ngtcp2-client and ngtcp2-server are not installed")
    return Installed(_debian_version("ngtcp2-client"), {"client": client, "server": server})


def _chromium(install: bool) -> Installed:
    program = shutil.which("chromium", path=_SEARCH)
    if program is None:
        return Installed(missing="Debian's chromium is not installed")
    return Installed(_debian_version("chromium"), {"chromium": program})


def _debian_version(package: str) -> str:
    try:
        return _run("dpkg-query", "-W", "-f=${Version}", package).strip()
    except OSError:
        return "?"


_FINDERS = {
    "aioquic": _aioquic,
    "qh3": _qh3,
    "picoquic": _picoquic,
    "quiche": _quiche,
    "ngtcp2": _ngtcp2,
    "curl": _curl,
    "chromium": _chromium,
    "libp2p": _libp2p,  # for test_libp2p.py; no column of the matrix
}


if __name__ == "__main__":
    for peer, found in find_all(install=True).items():
        print(f"{peer}: {f'ABSENT, {found.missing}' if found.missing else found.version}")
