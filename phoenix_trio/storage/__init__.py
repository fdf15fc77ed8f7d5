"""Stores incoming files on disk (floor 4).

Knows neither Trio nor the network: all calls block, and run in threads.  Used by
striped transfers (``pool/``) and by the ``phoenix-trio`` program (``cli/``).
"""
