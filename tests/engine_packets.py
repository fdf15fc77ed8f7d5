"""Packets with an engine's keys: seals any frames as the engine would, and opens its packets.

A part of :mod:`tests.engine_access`.
"""

from __future__ import annotations

from phoenix_trio.quic.engine import Engine
from phoenix_trio.quic.wire.protection import HeaderKey, PacketKey, decode_packet_number
from tests.packets import (
    Level,
    Open,
    Packet,
    Seal,
    headers_of,
    long_packet,
    open_packet,
    padded,
    short_packet,
)


def seal_short(
    engine: Engine,
    *frames: bytes,
    number: int | None = None,
    number_size: int = 2,
    spin: bool = False,
    reserved_bits: int = 0,
    fixed_bit: bool = True,
    pad: bool = True,
) -> bytes:
    """A 1-RTT packet as the engine would send it, with any frames.

    Args:
      engine: the packet has its keys and connection IDs.
      frames: the packet's frames.
      number: its packet number; ``None``: the engine's next one, which is used up then.
      number_size: bytes of the packet number in the header.
      spin: its spin bit.
      reserved_bits: its two reserved bits, valid only as 0 (RFC 9000 section 17.3.1).
      fixed_bit: its fixed bit, valid only if set.
      pad: whether PADDING makes it long enough for header protection.
    """
    plain = b"".join(frames)
    if engine.state.keys.update_pending:
        engine.state.keys.begin_update()
    return short_packet(
        _sealer(engine, Level.ONE_RTT),
        padded(plain) if pad else plain,
        _take_number(engine, Level.ONE_RTT) if number is None else number,
        destination=engine.peer_ids.current.cid,
        key_phase=engine.state.keys.phase,
        number_size=number_size,
        spin=spin,
        reserved_bits=reserved_bits,
        fixed_bit=fixed_bit,
    )


def seal_long(engine: Engine, level: Level, *frames: bytes, number: int | None = None) -> bytes:
    """An Initial, 0-RTT or Handshake packet as the engine would send it; see `seal_short`."""
    return long_packet(
        _sealer(engine, level),
        level,
        padded(b"".join(frames)),
        _take_number(engine, level) if number is None else number,
        destination=engine.peer_ids.current.cid,
        source=engine.handshake.host_cid,
        version=engine.handshake.version,
    )


def seal(engine: Engine, level: Level, *frames: bytes, number: int | None = None) -> bytes:
    """A packet of any level as the engine would send it; see `seal_short`."""
    if level is Level.ONE_RTT:
        return seal_short(engine, *frames, number=number)
    return seal_long(engine, level, *frames, number=number)


def open_sent(engine: Engine, datagram: bytes) -> list[Packet]:
    """Open the packets of a datagram sent by the engine.

    Uses the keys that the engine has now: those of a finished level, or of a key phase before
    the present one, are gone.
    """
    return [
        open_packet(_opener(engine, header.level), header, _next_number(engine, header.level))
        for header in headers_of(datagram)
    ]


def can_seal(engine: Engine, level: Level) -> bool:
    """Whether the engine has the keys to send packets of this level."""
    return _sending_keys(engine, level) is not None


def key_phase(engine: Engine) -> int:
    """The key phase in which the engine reads 1-RTT packets (RFC 9001 section 6)."""
    return engine.state.keys.phase


def update_keys_too_early(engine: Engine) -> None:
    """Begin a key update whether or not RFC 9001 section 6.1 allows it."""
    engine.update_keys()


def _sending_keys(engine: Engine, level: Level) -> tuple[PacketKey, HeaderKey] | None:
    """The keys with which the engine seals packets of a level; ``None``: it has none."""
    key: PacketKey | None
    header: HeaderKey | None
    if level is Level.ONE_RTT:
        key, header = engine.state.keys.send, engine.state.keys.header_send
    elif level is Level.ZERO_RTT:
        key, header = engine.state.zero_rtt_key, engine.state.zero_rtt_header
    else:
        state = engine.handshake._state
        keys = (state.initial if level is Level.INITIAL else state.handshake).send_keys
        key, header = (None, None) if keys is None else (keys.packet, keys.header)
    return None if key is None or header is None else (key, header)


def _keys(engine: Engine, level: Level) -> tuple[PacketKey, HeaderKey]:
    keys = _sending_keys(engine, level)
    assert keys is not None, "the engine has no such keys"
    return keys


def _sealer(engine: Engine, level: Level) -> Seal:
    key, header_key = _keys(engine, level)

    def seal(header: bytes, frames: bytes, number: int) -> bytes:
        size = (header[0] & 3) + 1
        body = key.encrypt(number, header, frames)
        mask = header_key.mask(body[4 - size : 20 - size].ljust(16, b"\0"))
        first = header[0] ^ mask[0] & (0x0F if header[0] & 0x80 else 0x1F)
        hidden = bytes(a ^ b for a, b in zip(header[-size:], mask[1:], strict=False))
        return bytes((first,)) + header[1:-size] + hidden + body

    return seal


def _opener(engine: Engine, level: Level) -> Open:
    key, header_key = _keys(engine, level)

    def opener(data: bytes, number_offset: int, expected: int) -> tuple[bytes, bytes, int]:
        mask = header_key.mask(data[number_offset + 4 : number_offset + 20])
        first = data[0] ^ mask[0] & (0x0F if data[0] & 0x80 else 0x1F)
        size = (first & 3) + 1
        body_at = number_offset + size
        shown = bytes(a ^ b for a, b in zip(data[number_offset:body_at], mask[1:], strict=False))
        number = decode_packet_number(int.from_bytes(shown, "big"), 8 * size, expected)
        header = bytes((first,)) + data[1:number_offset] + shown
        return header, key.decrypt(number, header, data[body_at:]), number

    return opener


def _next_number(engine: Engine, level: Level) -> int:
    if level in (Level.ONE_RTT, Level.ZERO_RTT):
        return engine.state.recovery.next_number
    state = engine.handshake._state
    return (state.initial if level is Level.INITIAL else state.handshake).next_number


def _take_number(engine: Engine, level: Level) -> int:
    number = _next_number(engine, level)
    if level in (Level.ONE_RTT, Level.ZERO_RTT):
        engine.state.recovery.next_number += 1
    elif level is Level.INITIAL:
        engine.handshake._state.initial.next_number += 1
    else:
        engine.handshake._state.handshake.next_number += 1
    return number
