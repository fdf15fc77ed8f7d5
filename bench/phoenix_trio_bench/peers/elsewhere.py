"""Runs a worker under an interpreter that has another package, but not phoenix_trio.

``python elsewhere.py LIBRARY MODULE ARGUMENTS...``, as a file.  LIBRARY is the directory of
phoenix_trio.  The module is found where this file lies.  Nothing else of our environment is
found: neither its packages, which may not suit that interpreter, nor the dependencies of
phoenix_trio.
"""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path


def main() -> None:
    """Run the module."""
    here = Path(__file__).resolve().parent
    # Python has put this directory first; its files are not modules to import by themselves.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    library, module = sys.argv[1:3]
    # Packages without their own ``__init__``, which would import modules missing here.
    for name, directory in (
        ("phoenix_trio", library),
        ("phoenix_trio_bench", str(here.parent)),
        ("phoenix_trio_bench.peers", str(here)),
    ):
        package = types.ModuleType(name)
        package.__path__ = [directory]
        sys.modules[name] = package
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
