"""Files which are being received, on disk (floor 4).

Knows neither Trio nor the network: everything blocks, and is called in threads.  Used by
striped transfers (``pool/``) and by the ``phoenix-trio`` program (``cli/``).
"""
