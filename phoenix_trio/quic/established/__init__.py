"""The application packet number space of a connection: its 0-RTT and 1-RTT packets.

Floor 1, sans-IO: bytes and times in, bytes, events and deadlines out.  It knows
no Trio, no socket, no clock and no TLS; the handshake half gives it secrets and the
peer's transport parameters.
"""
