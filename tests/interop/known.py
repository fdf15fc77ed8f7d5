"""Lists the cells that are known to fail, each with the side at fault and the reason.

An entry explains a failed cell, but does not make it pass.  If an explained cell passes, that
is reported.
"""

from __future__ import annotations

from .peers import Role

KNOWN: dict[tuple[str, Role, str], str] = {
    ("picoquic", "client", "v2"): (
        "theirs: it acknowledges the ServerHello by which it changes to version 2, but drops the "
        "message, and our server does not send again what was acknowledged"
    ),
    ("quiche", "server", "amplification limit"): (
        "theirs: it does not count the zeros which fill up the datagram by which it acknowledges "
        "the first half of a large hello"
    ),
    ("chromium", "client", "handshake loss"): (
        "theirs: it gives up a connection of which nothing came for 4 s (its own log says so), "
        "which happens now and then when three in ten datagrams are lost"
    ),
    ("chromium", "client", "handshake corruption"): (
        "probably theirs, as with loss: it gives up after 5 s in which most of the handshake's "
        "datagrams were corrupted (seed 3541903960; seven other seeds were good)"
    ),
}

#: For a peer with a fault of its own: the text that its program writes to standard error when
#: the fault ends it, and the reason to give.  It may occur in any case, so such a cell is tried
#: again.
FAULTS: dict[tuple[str, Role], tuple[str, str]] = {
    ("qh3", "server"): (
        "packet builder capacity exhausted",
        "theirs: now and then its server raises this for each packet which it receives",
    ),
}
