"""What only the tests of the batched path reach into: a part of tests.engine_access.

It compares two ways through one engine; where there is one way only, these tests and this
module have no object any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic.quic.connection import QuicConnectionState

from phoenix_trio.quic import small_packet
from phoenix_trio.quic.engine import Engine
from phoenix_trio.quic.stream_state import TrackedSender

_ONE_RTT = tls.Epoch.ONE_RTT

Undo = Callable[[], None]


def fallbacks(engine: Engine) -> Counter[str]:
    """How often, and why, packets took aioquic's way."""
    return engine._fast.fallbacks


def bulk_packets(engine: Engine) -> int:
    """How many packets were built in runs."""
    return engine._fast.packets_sent


def has_bulk_turn(engine: Engine, stream_id: int) -> bool:
    """Whether the next packets of this stream would be built in a run."""
    return engine._fast.next_turn(engine._records[stream_id]) is not None


def begin_ending(engine: Engine) -> Undo:
    """Let the connection be in another state than established, until it is undone."""
    engine._state = QuicConnectionState.FIRSTFLIGHT
    return lambda: setattr(engine, "_state", QuicConnectionState.CONNECTED)


def doubt_path(engine: Engine) -> Undo:
    """Let the path in use not be validated, until it is undone."""
    path = engine._network_paths[0]
    path.is_validated = False
    path.bytes_received = 10**6
    path.local_challenge_sent = True
    return lambda: setattr(path, "is_validated", True)


def doubt_handshake(engine: Engine) -> Undo:
    """Let the handshake not be confirmed, until it is undone."""
    engine._handshake_confirmed = False
    return lambda: setattr(engine, "_handshake_confirmed", True)


def use_chacha20(engine: Engine) -> None:
    """Change the cipher of 1-RTT packets; both sides derive the same keys from their secrets."""
    pair = engine._cryptos[_ONE_RTT]
    for context in (pair.send, pair.recv):
        assert context.secret is not None
        assert engine._version is not None
        context.setup(
            cipher_suite=tls.CipherSuite.CHACHA20_POLY1305_SHA256,
            secret=context.secret[:32],
            version=engine._version,
        )


def have_early_keys(engine: Engine) -> Callable[[], bool]:
    """Let 0-RTT keys be there still; returns a function which says whether they are."""
    early, known = engine._cryptos[tls.Epoch.ZERO_RTT].recv, engine._cryptos[_ONE_RTT].recv
    assert known.cipher_suite is not None
    assert known.secret is not None
    assert engine._version is not None
    early.setup(cipher_suite=known.cipher_suite, secret=known.secret, version=engine._version)
    return early.is_valid


def write_a_trace(engine: Engine) -> None:
    """Let the engine write a qlog trace, which goes nowhere."""

    class Trace:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments, **options: {}

    engine._quic_logger = Trace()  # type: ignore[assignment]


def take_frames(engine: Engine, plain: bytes, now: float) -> bool:
    """Read the frames of a packet; whether it has to be acknowledged."""
    engine._now = now
    return small_packet.take_frames(engine, plain, now)


def stream_sender(engine: Engine, stream_id: int) -> TrackedSender:
    """What sends a stream."""
    return engine._records[stream_id].sender


def permit_stream(engine: Engine, size: int) -> None:
    """Let the peer permit a one-way stream of so many bytes, before any handshake."""
    engine._remote_max_stream_data_uni = engine._remote_max_data = size
    engine._remote_max_streams_uni = 1
