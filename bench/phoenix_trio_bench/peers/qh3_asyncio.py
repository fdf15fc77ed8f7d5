"""The worker of stock qh3, by its asyncio API."""

from __future__ import annotations

import sys

from ._asyncio_worker import main

if __name__ == "__main__":
    main("qh3", sys.argv[1:])
