"""Lists the private names of aioquic that phoenix_trio depends on, as ``Class.name``.

The list is derived from the source of both.  ``tests/quic/aioquic_names.txt`` holds
the list for the version of aioquic in use; a test fails when the two differ, so a name
that moves in aioquic is noticed, and so is a new dependency of ours.  After reading
what has changed:

    python tools/list_aioquic_names.py > tests/quic/aioquic_names.txt
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import aioquic
import aioquic.quic
import aioquic.quic.congestion

import phoenix_trio
import phoenix_trio.quic

_PRIVATE = re.compile(r"_[A-Za-z]\w*\Z")


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        yield importlib.import_module(found.name)


def _mangled(owner: str, name: str) -> str:
    """What a name with two underscores is called outside of its class."""
    if name.startswith("__") and not name.endswith("__"):
        return f"_{owner.lstrip('_')}{name}"
    return name


def _defined(tree: ast.ClassDef) -> set[str]:
    """The attributes that a class gives itself and its instances."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {_mangled(tree.name, name) for name in names}


def names_in_aioquic() -> dict[str, set[str]]:
    """The attributes of each class of aioquic's."""
    packages = (aioquic, aioquic.quic, aioquic.quic.congestion)
    return {
        node.name: _defined(node)
        for package in packages
        for path in Path(package.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def private_names_touched() -> set[str]:
    """Private attributes, also where a string names them, in modules that know aioquic."""
    names: set[str] = set()
    for path in sorted(Path(phoenix_trio.__path__[0], "quic").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "aioquic" not in source and "engine" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and _PRIVATE.match(node.attr):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and _PRIVATE.match(str(node.value)):
                names.add(str(node.value))
    return names


def overrides() -> set[str]:
    """``Class.name`` for each method of aioquic's that a class of ours replaces."""
    found: set[str] = set()
    for module in _modules(phoenix_trio.quic):
        for kind in vars(module).values():
            if not inspect.isclass(kind) or kind.__module__ != module.__name__:
                continue
            for base in kind.__mro__[1:]:
                if base.__module__.partition(".")[0] == "aioquic":
                    common = vars(kind).keys() & vars(base).keys()
                    found |= {
                        f"{base.__name__}.{n}" for n in common if not n.startswith(("__", "_abc_"))
                    }
    return found


def dependencies() -> list[str]:
    """All of them, sorted."""
    touched = private_names_touched()
    private = {
        f"{owner}.{name}" for owner, names in names_in_aioquic().items() for name in names & touched
    }
    return sorted(private | overrides())


if __name__ == "__main__":
    print("\n".join(dependencies()))
