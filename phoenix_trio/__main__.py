"""``python -m phoenix_trio``: the same as ``phoenix-trio``."""

from .cli import main

main()
