"""Runs a worker under an interpreter which has another package, but not phoenix_trio.

``python elsewhere.py LIBRARY MODULE ARGUMENTS...``, as a file.  LIBRARY is the directory of
phoenix_trio.  The module is found where this file lies, and nothing else of our environment
is: neither its packages, which may not suit that interpreter, nor what phoenix_trio itself
needs.
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
    # Packages without their own beginnings, which would import what is not there.
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
