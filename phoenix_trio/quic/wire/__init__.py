"""The wire image of QUIC: pure functions and small classes, which know no connection.

Floor 0, sans-IO.  Every frame is built and parsed in :mod:`~phoenix_trio.quic.wire.frames`,
every packet is protected in :mod:`~phoenix_trio.quic.wire.protection`.
"""
