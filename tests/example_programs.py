"""The example programs as modules, as they find each other when run from their directory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

EXAMPLES = Path(__file__).parent.parent / "examples"


@contextmanager
def example_programs(*names: str) -> Iterator[SimpleNamespace]:
    """Import these programs of `examples/`, for the length of the block."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in names:
            sys.modules.pop(name, None)
