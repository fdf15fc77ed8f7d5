"""The worker of stock aioquic, by its asyncio API."""

from __future__ import annotations

import sys

from ._asyncio_worker import main

if __name__ == "__main__":
    main("aioquic", sys.argv[1:])
