"""Cells which are known to fail, each with whose fault it is and why.

An entry explains a red cell; it turns no cell green.  One which has become good is reported.
"""

from __future__ import annotations

from .peers import Role

_QH3_REBINDING = (
    "theirs: after a change of address its server now and then raises 'packet builder capacity "
    "exhausted' for each packet which it receives"
)

KNOWN: dict[tuple[str, Role, str], str] = {
    ("picoquic", "client", "v2"): (
        "theirs: it acknowledges the ServerHello by which it changes to version 2, but drops the "
        "message, and our server does not send again what was acknowledged"
    ),
    ("chromium", "client", "handshake loss"): (
        "theirs: it gives up a connection of which nothing came for 4 s (its own log says so), "
        "which happens now and then when three in ten datagrams are lost"
    ),
    ("qh3", "server", "rebind port"): _QH3_REBINDING,
    ("qh3", "server", "rebind address"): _QH3_REBINDING,
}
