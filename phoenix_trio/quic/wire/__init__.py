"""Builds, parses and protects the packets of QUIC without the state of a connection.

Floor 0, sans-IO.  :mod:`~phoenix_trio.quic.wire.frames` builds and parses every frame, and
:mod:`~phoenix_trio.quic.wire.protection` protects every packet.
"""
