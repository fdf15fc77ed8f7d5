"""The handshake of a connection: its Initial and Handshake packets, and TLS.

Floor 1, sans-IO: bytes and times in, bytes, secrets and deadlines out.  It is the only
folder that imports aioquic, whose TLS 1.3 it uses.
"""
