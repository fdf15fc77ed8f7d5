"""Whether the protocol core runs compiled.

Floor 0.  This module is compiled with the others, by ``tools/build_backend.py``, or none is.
"""

from __future__ import annotations

from typing import Final

__all__ = ["is_compiled"]

#: Whether this is the compiled core; else its Python files are interpreted.
is_compiled: Final[bool] = not __file__.endswith((".py", ".pyc"))
