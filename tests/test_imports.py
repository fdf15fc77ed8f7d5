"""Imports run downwards, and sans-IO code imports nothing that waits, sends or reads clocks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import phoenix_trio

PACKAGE = Path(phoenix_trio.__path__[0])

#: Trio, sockets and clocks.
IO = {"trio", "socket", "select", "time", "asyncio", "threading"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports: their full names within the package."""
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            found.add(name)
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def imports_of(folder: str) -> set[str]:
    found: set[str] = set()
    for path in sorted((PACKAGE / folder).glob("*.py")):
        found |= imports(path)
    assert len(found) > 20, "the folder is there"
    return found


def below(found: set[str], *packages: str) -> set[str]:
    """The modules in `found` that belong to one of the packages."""
    return {
        name
        for name in found
        if any(name == package or name.startswith(f"{package}.") for package in packages)
    }


#: From the module ``socket``: only names that convert addresses to bytes and back.
PURE = {"socket", "socket.AF_INET", "socket.AF_INET6", "socket.inet_ntop", "socket.inet_pton"}


@pytest.mark.parametrize("folder", ["quic/wire", "quic/established", "quic/handshake"])
def test_sans_io_code_knows_no_trio_no_socket_and_no_clock(folder: str) -> None:
    assert not below(imports_of(folder) - PURE, *IO)
    for path in (PACKAGE / folder).glob("*.py"):
        assert "\nimport socket" not in path.read_text(encoding="utf-8")


def test_the_wire_knows_nothing_above_it() -> None:
    found = below(imports_of("quic/wire"), "phoenix_trio")
    assert found == below(found, "phoenix_trio.quic.wire")


def test_the_established_half_does_not_know_the_handshake() -> None:
    found = imports_of("quic/established")
    assert not below(found, "aioquic", "phoenix_trio.quic.handshake", "phoenix_trio.quic.engine")


def test_only_the_handshake_imports_aioquic() -> None:
    importing = {
        path.relative_to(PACKAGE / "quic").as_posix()
        for path in PACKAGE.rglob("*.py")
        if below(imports(path), "aioquic")
    }
    outside = {name for name in importing if not name.startswith("handshake/")}
    assert not outside


def test_the_storage_knows_neither_trio_nor_the_network() -> None:
    found = imports_of("storage")
    assert not below(found, "trio", "socket")
    own = below(found, "phoenix_trio")
    assert own == below(own, "phoenix_trio.storage")


def test_the_diagnosis_knows_neither_the_program_nor_the_upper_floors() -> None:
    found = imports_of("diagnosis")
    assert not below(found, "click", "rich")
    own = below(found, "phoenix_trio")
    floors = (
        "phoenix_trio.quic",
        "phoenix_trio.config",
        "phoenix_trio.errors",
        "phoenix_trio.metrics",
    )
    assert own == below(own, "phoenix_trio.diagnosis", *floors)


def test_only_the_program_uses_the_diagnosis() -> None:
    using = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if below(imports(path), "phoenix_trio.diagnosis")
    }
    assert using == {"cli", "diagnosis"}
