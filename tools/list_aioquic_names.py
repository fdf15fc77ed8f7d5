"""Lists the private names of aioquic that phoenix_trio depends on, as ``Class.name``.

The list is derived from the source of both.  ``tests/quic/aioquic_names.txt`` holds the list for
the version of aioquic in use.  A test fails when the two differ, so it notices a name that moves
in aioquic, and a new dependency of ours.  After reading the changes:

    python tools/list_aioquic_names.py > tests/quic/aioquic_names.txt

Only modules that import aioquic, and those of ``quic/handshake``, are examined.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import phoenix_trio

_PRIVATE = re.compile(r"_[A-Za-z]\w*\Z")
_PACKAGE = Path(phoenix_trio.__path__[0])


def _imports(tree: ast.AST) -> set[str]:
    """The modules of aioquic that a module imports, or imports names from."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.partition(".")[0] == "aioquic"}


@cache
def modules_of_ours() -> dict[str, ast.Module]:
    """Our modules in which names of aioquic may be used."""
    found: dict[str, ast.Module] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        relative = path.relative_to(_PACKAGE.parent).with_suffix("")
        if "aioquic" not in text and "handshake" not in relative.parts:
            continue
        tree = ast.parse(text)
        if _imports(tree) or "handshake" in relative.parts:
            found[".".join(relative.parts).removesuffix(".__init__")] = tree
    return found


def modules_of_aioquic() -> list[ModuleType]:
    """The modules of aioquic that ours import."""
    found: list[ModuleType] = []
    for name in sorted(set().union(*map(_imports, modules_of_ours().values()))):
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError:
            pass  # it is a class or a function
    return [each for each in found if not hasattr(each, "__path__")]


def _mangled(owner: str, name: str) -> str:
    """The name outside of its class of a name with two underscores."""
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
    """The attributes of each class of aioquic, in the modules that ours import."""
    return {
        node.name: _defined(node)
        for module in modules_of_aioquic()
        if (source := module.__file__) is not None and source.endswith(".py")
        for node in ast.walk(ast.parse(Path(source).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def _bases_in_aioquic(kind: type) -> list[type]:
    return [base for base in kind.__mro__[1:] if base.__module__.partition(".")[0] == "aioquic"]


def _classes(name: str) -> Iterator[type]:
    for kind in vars(importlib.import_module(name)).values():
        if inspect.isclass(kind) and kind.__module__ == name:
            yield kind


def private_names_touched() -> set[str]:
    """Private attributes that our modules use, also those named by a string.

    Attributes of `self` count as ours if it is not an object of aioquic.
    """
    names: set[str] = set()
    for module, tree in modules_of_ours().items():
        ours = {kind.__name__ for kind in _classes(module) if not _bases_in_aioquic(kind)}
        own = {
            id(node)
            for owner in ast.walk(tree)
            if isinstance(owner, ast.ClassDef) and owner.name in ours
            for node in ast.walk(owner)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _PRIVATE.match(node.attr):
                if id(node) not in own:
                    names.add(node.attr)
            elif isinstance(node, ast.Constant) and _PRIVATE.match(str(node.value)):
                names.add(str(node.value))
    return names


def overrides() -> set[str]:
    """``Class.name`` for each method of aioquic that a class of ours replaces."""
    return {
        f"{base.__name__}.{name}"
        for module in modules_of_ours()
        for kind in _classes(module)
        for base in _bases_in_aioquic(kind)
        for name in vars(kind).keys() & vars(base).keys()
        if not name.startswith(("__", "_abc_"))
    }


def dependencies() -> list[str]:
    """All dependencies, sorted."""
    touched = private_names_touched()
    private = {
        f"{owner}.{name}" for owner, names in names_in_aioquic().items() for name in names & touched
    }
    return sorted(private | overrides())


if __name__ == "__main__":
    print("\n".join(dependencies()))
