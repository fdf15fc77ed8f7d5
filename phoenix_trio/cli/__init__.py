"""The ``phoenix-trio`` program (floor 6): one thin file per command.

``transfer`` and ``storage`` do the work of a file transfer; the commands read
options, print, and call them.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the program; its dependencies beyond the library's are the ``cli`` extra."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        sys.stderr.write('phoenix-trio needs more packages: pip install "phoenix-trio[cli]"\n')
        sys.exit(2)
    try:
        from .program import program
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C while modules are loaded
    program(prog_name="phoenix-trio")
