"""Tells whether the protocol core runs compiled.

Floor 0.  ``tools/build_backend.py`` compiles this module together with the others, or none.
"""

from __future__ import annotations

from typing import Final

__all__ = ["is_compiled"]

#: True for the compiled core, false when Python interprets its files.
is_compiled: Final[bool] = not __file__.endswith((".py", ".pyc"))
