"""Cells which are known to fail, each with whose fault it is and why.

An entry explains a red cell; it turns no cell green.  One which has become good is reported.
"""

from __future__ import annotations

from .peers import Role

KNOWN: dict[tuple[str, Role, str], str] = {
    ("picoquic", "client", "v2"): (
        "theirs: it acknowledges the ServerHello by which it changes to version 2, but drops the "
        "message, and our server does not send again what was acknowledged"
    ),
    ("chromium", "client", "handshake loss"): (
        "theirs: it gives up a connection of which nothing came for 4 s (its own log says so), "
        "which happens now and then when three in ten datagrams are lost"
    ),
}

#: What a peer's own program writes to its standard error when a fault of its own ends it, and
#: the reason to give.  It may come in any case, so such a cell is tried again.
FAULTS: dict[tuple[str, Role], tuple[str, str]] = {
    ("qh3", "server"): (
        "packet builder capacity exhausted",
        "theirs: now and then its server raises this for each packet which it receives",
    ),
}
