"""Packets with an engine's keys: those which it would send, with any frames, and those it sent.

A part of :mod:`tests.engine_access`.
"""

from __future__ import annotations

from aioquic import tls
from aioquic.quic.crypto import CryptoPair

from phoenix_trio.quic.engine import Engine
from tests.packets import (
    Level,
    Open,
    Packet,
    headers_of,
    long_packet,
    open_packet,
    padded,
    short_packet,
)

EPOCHS = {
    Level.INITIAL: tls.Epoch.INITIAL,
    Level.ZERO_RTT: tls.Epoch.ZERO_RTT,
    Level.HANDSHAKE: tls.Epoch.HANDSHAKE,
    Level.ONE_RTT: tls.Epoch.ONE_RTT,
}


def seal_short(
    engine: Engine,
    *frames: bytes,
    number: int | None = None,
    number_size: int = 2,
    spin: bool = False,
    reserved_bits: int = 0,
    pad: bool = True,
) -> bytes:
    """A 1-RTT packet as the engine would send it, with any frames.

    Args:
      engine: whose keys and connection IDs it has.
      frames: what it holds.
      number: its packet number; ``None``: the engine's next one, which is used up then.
      number_size: bytes of the packet number in the header.
      spin: its spin bit.
      reserved_bits: its two reserved bits, which have to be 0 (RFC 9000 section 17.3.1).
      pad: whether PADDING makes it long enough for header protection.
    """
    keys = _keys(engine, Level.ONE_RTT)
    plain = b"".join(frames)
    return short_packet(
        keys.encrypt_packet,
        padded(plain) if pad else plain,
        _take_number(engine) if number is None else number,
        destination=engine._peer_cid.cid,
        key_phase=keys.key_phase,
        number_size=number_size,
        spin=spin,
        reserved_bits=reserved_bits,
    )


def seal_long(engine: Engine, level: Level, *frames: bytes, number: int | None = None) -> bytes:
    """An Initial, 0-RTT or Handshake packet as the engine would send it; see `seal_short`."""
    assert engine._version is not None
    return long_packet(
        _keys(engine, level).encrypt_packet,
        level,
        padded(b"".join(frames)),
        _take_number(engine) if number is None else number,
        destination=engine._peer_cid.cid,
        source=engine.host_cid,
        version=engine._version,
    )


def seal(engine: Engine, level: Level, *frames: bytes, number: int | None = None) -> bytes:
    """A packet of any level as the engine would send it; see `seal_short`."""
    if level is Level.ONE_RTT:
        return seal_short(engine, *frames, number=number)
    return seal_long(engine, level, *frames, number=number)


def open_sent(engine: Engine, datagram: bytes) -> list[Packet]:
    """The packets of a datagram which the engine has sent, opened.

    With the keys which it has now: those of a level which is over, or of a key phase before
    the present one, are gone.
    """
    return [
        open_packet(_opener(engine, header.level), header, engine._packet_number)
        for header in headers_of(datagram)
    ]


def can_seal(engine: Engine, level: Level) -> bool:
    """Whether the engine has the keys to send packets of this level."""
    keys = engine._cryptos.get(EPOCHS[level])
    return keys is not None and keys.send.is_valid()


def key_phase(engine: Engine) -> int:
    """The key phase in which the engine reads 1-RTT packets (RFC 9001 section 6)."""
    return _keys(engine, Level.ONE_RTT).recv.key_phase


def update_keys_too_early(engine: Engine) -> None:
    """Begin a key update whether or not RFC 9001 section 6.1 allows it."""
    engine.request_key_update()


def _keys(engine: Engine, level: Level) -> CryptoPair:
    return engine._cryptos[EPOCHS[level]]


def _opener(engine: Engine, level: Level) -> Open:
    keys = _keys(engine, level).send

    def opener(data: bytes, number_offset: int, expected: int) -> tuple[bytes, bytes, int]:
        header, plain, number, _ = keys.decrypt_packet(data, number_offset, expected)
        return header, plain, number

    return opener


def _take_number(engine: Engine) -> int:
    number = engine._packet_number
    engine._packet_number += 1
    return number
