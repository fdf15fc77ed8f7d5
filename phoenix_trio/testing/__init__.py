"""A network in memory, with faults and a seed, for tests of programs that use QUIC.

Floor 3.  ``phoenix_trio.testing`` is public, and documented for users' own tests.
"""

from .conditions import Conditions, Datagram, NetworkStatistics
from .host import SimulatedHost
from .link import SimulatedLink
from .network import SimulatedNetwork
from .udp_socket import SimulatedSocket

__all__ = [
    "Conditions",
    "Datagram",
    "NetworkStatistics",
    "SimulatedHost",
    "SimulatedLink",
    "SimulatedNetwork",
    "SimulatedSocket",
]
