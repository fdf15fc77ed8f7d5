"""For tests of programs which use QUIC: a network in memory, with faults and a seed.

Floor 3.  ``phoenix_trio.testing`` is public, and documented for users' own tests.
"""

from .network import (
    Conditions,
    Datagram,
    NetworkStatistics,
    SimulatedHost,
    SimulatedLink,
    SimulatedNetwork,
    SimulatedSocket,
)

__all__ = [
    "Conditions",
    "Datagram",
    "NetworkStatistics",
    "SimulatedHost",
    "SimulatedLink",
    "SimulatedNetwork",
    "SimulatedSocket",
]
