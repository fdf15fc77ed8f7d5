"""The compiled core: which one runs, which modules are compiled, and how the build decides."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import phoenix_trio

ROOT = Path(__file__).resolve().parent.parent


def patterns() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    listed: list[str] = wheel["hooks"]["custom"]["modules"]
    return listed


def compiled_modules() -> list[Path]:
    found = [path for pattern in patterns() for path in ROOT.glob(pattern)]
    return sorted(path for path in found if path.name != "__init__.py")


def test_each_pattern_names_modules() -> None:
    for pattern in patterns():
        assert list(ROOT.glob(pattern)), pattern


def test_all_modules_of_the_core_are_compiled_or_none_is() -> None:
    if os.environ.get("PHOENIX_TRIO_COMPILE") == "1":
        assert phoenix_trio.is_compiled
    for path in compiled_modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        assert spec.origin.endswith(".py") is not phoenix_trio.is_compiled, name


def test_the_program_says_which_core_runs() -> None:
    command = [sys.executable, "-c", "from phoenix_trio.cli import main; main()", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    kind = "compiled" if phoenix_trio.is_compiled else "pure Python"
    assert shown == f"phoenix-trio {phoenix_trio.__version__} ({kind})\n"


def test_a_class_with_a_length_says_itself_whether_it_is_true() -> None:
    """mypyc takes an optional object as true unless its class has ``__bool__``."""
    checked = 0
    for path in compiled_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                if "__len__" in methods:
                    checked += 1
                    assert "__bool__" in methods, f"{path.name}: {node.name}"
    assert checked


# ------------------------------------------------------------------ the build


class Application:
    """Stands for hatchling's application object."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("backend", ROOT / "tools/build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("PHOENIX_TRIO_COMPILE", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "has_compiler", lambda: True)
    # As if mypyc were not installed, so that nothing is compiled here.
    monkeypatch.setitem(sys.modules, "mypyc.build", None)
    return module


def build(backend: ModuleType, version: str = "standard") -> tuple[dict[str, Any], list[str]]:
    """Run the hook; return the files it wants in the wheel, and its warnings."""
    application = Application()
    hook = backend.CompiledCore(
        str(ROOT), {"modules": patterns()}, None, None, str(ROOT), "wheel", application
    )
    data: dict[str, Any] = {"force_include": {}}
    hook.initialize(version, data)
    hook.finalize(version, data, "")
    return data, application.warnings


def test_without_a_compiler_nothing_is_required(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("mypy" in each for each in backend.get_requires_for_build_wheel())
    monkeypatch.setattr(backend, "has_compiler", lambda: False)
    assert backend.get_requires_for_build_wheel() == []
    assert build(backend) == ({"force_include": {}}, [])


def test_zero_keeps_the_wheel_pure(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOENIX_TRIO_COMPILE", "0")
    assert backend.get_requires_for_build_wheel() == []
    assert build(backend) == ({"force_include": {}}, [])


def test_one_requires_that_it_is_compiled(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOENIX_TRIO_COMPILE", "1")
    monkeypatch.setattr(backend, "has_compiler", lambda: False)
    assert any("mypy" in each for each in backend.get_requires_for_build_wheel())
    with pytest.raises(SystemExit, match=r"=1, but mypyc\.build is not installed"):
        build(backend)


def test_a_wheel_which_cannot_be_compiled_is_pure_and_says_so(backend: ModuleType) -> None:
    data, warnings = build(backend)
    assert data == {"force_include": {}}
    assert warnings == ["The wheel is pure Python: mypyc.build is not installed"]


def test_an_editable_installation_is_not_compiled(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(backend, "editable") == ({"force_include": {}}, [])
    monkeypatch.setenv("PHOENIX_TRIO_COMPILE", "1")
    with pytest.raises(SystemExit, match="editable"):
        build(backend, "editable")


def test_another_setting_is_refused(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOENIX_TRIO_COMPILE", "yes")
    with pytest.raises(SystemExit, match="must be 0 or 1, not 'yes'"):
        build(backend)
