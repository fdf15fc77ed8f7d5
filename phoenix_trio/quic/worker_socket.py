"""A UDP socket of one of several processes that share a port.

Floor 1.  It goes wherever a socket can be handed in (:mod:`~phoenix_trio.quic.given_socket`), and
carries the way to the other processes with it.
"""

from __future__ import annotations

import socket
from typing import Self, final

from .relay import Relay

__all__ = ["WorkerSocket"]


@final
class WorkerSocket(socket.socket):
    """A bound UDP socket, with the relay of its process.

    Args:
      bound: is taken over, and is detached afterwards.
      relay: passes on what belongs to other processes.
    """

    def __init__(self, bound: socket.socket, relay: Relay) -> None:
        family, kind, protocol = bound.family, bound.type, bound.proto
        super().__init__(family, kind, protocol, fileno=bound.detach())
        self.relay = relay
        """Shared with the duplicates of this socket."""

    def dup(self) -> Self:
        """The same socket once more; one of the two is to be used at a time."""
        return type(self)(socket.socket(fileno=socket.dup(self.fileno())), self.relay)
