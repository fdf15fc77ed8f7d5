"""Handles the application packet number space of a connection: 0-RTT and 1-RTT packets.

Floor 1, sans-IO: takes bytes and times, gives bytes, events and deadlines.  It knows no Trio, no
socket, no clock and no TLS; the handshake half gives it secrets and the peer's transport
parameters.
"""
