"""The facts of a good path, for checks of judgements alone."""

from __future__ import annotations

from phoenix_trio.diagnosis.target import PathFacts

PATH = PathFacts(
    handshake_seconds=0.05,
    alpn="test/1",
    version=1,
    cipher="TLS_AES_256_GCM_SHA384",
    pings=(0.02,) * 40,
    rtt_min=0.02,
    rtt_smoothed=0.021,
    packets_sent=50,
    packets_lost=0,
    path_mtu=1452,
    ecn_validated=True,
    idle_timeout=30.0,
    streams=100,
)
