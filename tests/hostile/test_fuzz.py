"""Packets of an authenticated peer with any content: one connection pays, with a QUIC error.

The peer has all the keys, so packet protection stops nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode, SessionStore, TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.engine import Engine
from phoenix_trio.streams import (
    FramingError,
    MessageRefused,
    SequenceReceiver,
    StreamKind,
    StreamReader,
    encode_frame,
    encode_varint,
    open_batching_channel,
    receive_message,
)
from tests.engine_access import (
    connection_id_in_use,
    crypto_held,
    held_behind_gaps,
    spare_connection_ids,
    stream_ids,
)
from tests.engine_packets import can_seal, seal, seal_short
from tests.hostile.frames import random_payload
from tests.packets import Level
from tests.support import EnginePair, Side, client_tls, connected_pair, examples, server_tls

seeds = given(seed=st.integers(0, 2**32))

#: More than the bytes of all packets in a test.
FEW_BYTES = 32 * 1024


def check_end(side: Side) -> bool:
    """Whether the connection has ended; if so, by a QUIC error that is not our failure."""
    ends = side.of(events.Terminated)
    for end in ends:
        assert isinstance(end.error, phoenix_trio.ConnectionBroken), end
        assert "INTERNAL_ERROR" not in str(end.error), end.error
    return bool(ends)


def check_held(engine: Engine) -> None:
    """Check that the engine's memory for the peer is in proportion to the bytes received."""
    assert len(stream_ids(engine)) <= 250
    assert len(engine.connection_ids) <= 16
    assert len(spare_connection_ids(engine)) <= 8
    assert crypto_held(engine) < FEW_BYTES
    assert held_behind_gaps(engine)[1] < FEW_BYTES


def deliver(pair: EnginePair, side: Side, *packets: bytes) -> None:
    """Hand packets from the other side over, at once."""
    other = pair.server if side is pair.client else pair.client
    assert other is not None
    for packet in packets:
        side.engine.receive(packet, other.address, pair.now)
    side.gather(pair.now)


def inject(pair: EnginePair, side: Side, packets: Iterable[bytes], seconds: float) -> None:
    """Hand forged packets over until one ends the connection, then let time pass."""
    for packet in packets:
        deliver(pair, side, packet)
        pair.flush(side)
        check_held(side.engine)
        if check_end(side):
            break
    pair.drop = lambda destination, data: False
    pair.run(seconds)
    check_end(side)


#: Packet numbers above any that the honest side will use meanwhile.
NUMBERS = range(1000, 1010)


@seeds
@examples(200)
def test_any_frames_in_1rtt_packets(seed: int) -> None:
    generator = random.Random(seed)
    pair = EnginePair(server_config=TransportConfig(max_idle_timeout=10.0)).connect()
    assert pair.server is not None
    peer = pair.client.engine
    packets = (seal_short(peer, random_payload(generator)) for _ in range(20))
    inject(pair, pair.server, packets, 60.0)


@seeds
@examples(60)
def test_any_frames_from_a_server_in_1rtt_packets(seed: int) -> None:
    generator = random.Random(seed)
    pair = EnginePair().connect()
    assert pair.server is not None
    peer = pair.server.engine
    packets = (seal_short(peer, random_payload(generator)) for _ in range(20))
    inject(pair, pair.client, packets, 60.0)


def in_handshake() -> EnginePair:
    """The client has its Handshake keys, and the server waits for its Finished."""
    pair = EnginePair()
    while not can_seal(pair.client.engine, Level.HANDSHAKE):
        pair.step()
    return pair


@seeds
@examples(100)
@pytest.mark.parametrize("level", [Level.INITIAL, Level.HANDSHAKE])
def test_any_frames_in_packets_of_the_handshake(level: Level, seed: int) -> None:
    generator = random.Random(seed)
    pair = in_handshake()
    assert pair.server is not None
    peer = pair.client.engine
    packets = (seal(peer, level, random_payload(generator), number=number) for number in NUMBERS)
    inject(pair, pair.server, packets, 40.0)


@seeds
@examples(60)
def test_any_frames_from_a_server_in_packets_of_the_handshake(seed: int) -> None:
    generator = random.Random(seed)
    pair = in_handshake()
    assert pair.server is not None
    peer = pair.server.engine

    def packets() -> Iterator[bytes]:
        for number in NUMBERS:
            level = generator.choice((Level.INITIAL, Level.HANDSHAKE))
            if can_seal(peer, level):
                yield seal(peer, level, random_payload(generator), number=number)

    inject(pair, pair.client, packets(), 40.0)


@seeds
@examples(40)
def test_any_frames_in_0rtt_packets(seed: int) -> None:
    generator = random.Random(seed)
    tls_client = client_tls(session_store=SessionStore(), early_data=True)
    tls_server = server_tls(early_data=True)
    first = EnginePair(client=tls_client, server=tls_server).connect()
    first.client.engine.close_application(0, "")
    first.run(1.0)
    pair = EnginePair(client=tls_client, server=tls_server)
    peer = pair.client.engine
    assert can_seal(peer, Level.ZERO_RTT), "a ticket was there"
    # The server's reply takes a while; the client's early data is forged meanwhile.
    pair.drop = lambda destination, data: destination is pair.client
    while pair.server is None:
        pair.step()
    packets = (
        seal(peer, Level.ZERO_RTT, random_payload(generator), number=number) for number in NUMBERS
    )
    inject(pair, pair.server, packets, 40.0)


@seeds
@examples(100)
def test_any_bytes_behind_a_long_header(seed: int) -> None:
    """Not authentic: nothing happens, and the handshake goes on."""
    generator = random.Random(seed)
    pair = in_handshake()
    server = pair.server
    assert server is not None
    _, cid = connection_id_in_use(pair.client.engine)
    for _ in range(20):
        first = generator.choice((0xC0, 0xD0, 0xE0, 0xF0, 0x80)) | generator.randrange(16)
        version = generator.choice((1, 1, 1, 0x6B3343CF, 0, 0x1A2A3A4A, 2**32 - 1))
        packet = bytes((first,)) + version.to_bytes(4, "big")
        packet += bytes((len(cid),)) + cid + bytes((generator.choice((0, 8, 20, 21, 255)),))
        packet += generator.randbytes(generator.choice((0, 1, 30, 100, 1200)))
        deliver(pair, server, packet)
        deliver(pair, pair.client, packet)
    assert not server.of(events.Terminated)
    pair.run(5.0)
    assert server.of(events.HandshakeCompleted)
    assert pair.client.of(events.HandshakeCompleted)


# ------------------------------------------------------------------ our own formats


def mutated(generator: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((0, 1, 1, 2, 5))):
        at = generator.randrange(len(changed) + 1)
        kind = generator.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] = generator.randrange(256)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = generator.randbytes(generator.choice((1, 2, 8, 40)))
        else:
            changed[at : at + 1] = encode_varint(generator.choice((0, 63, 64, 1 << 40)))
        if not changed:
            break
    return bytes(changed)


def compressed(size: int) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    packed: bytes = zstandard.ZstdCompressor().compress(bytes(size))
    return encode_varint(1) + encode_varint(size) + packed


MESSAGE = encode_varint(StreamKind.MESSAGE)
SEQUENCE = encode_varint(StreamKind.SEQUENCE)


def samples(generator: random.Random) -> tuple[bytes, bytes]:
    """A stream of bytes for `messages` or a sequence, and one for a batching channel."""
    items = [generator.randbytes(generator.choice((0, 1, 50, 300))) for _ in range(4)]
    one_way = generator.choice(
        [
            MESSAGE + b"\0" + items[0],
            MESSAGE + compressed(generator.choice((0, 100, 30_000))),
            SEQUENCE + b"".join(map(encode_frame, items)),
        ]
    )
    batches = b"".join(encode_frame(b"".join(map(encode_frame, items))) for _ in range(3))
    return mutated(generator, one_way), mutated(generator, batches)


REFUSALS = {
    ApplicationErrorCode.MESSAGE_TOO_LARGE,
    ApplicationErrorCode.MALFORMED,
    ApplicationErrorCode.UNSUPPORTED,
}


async def read_one_way(stream: phoenix_trio.ReceiveStream, limit: int) -> int:
    """The largest item of a stream that a program reading messages and sequences gets."""
    largest = 0
    try:
        async with stream:
            reader = StreamReader(stream)
            kind = await reader.read_varint()
            if kind == StreamKind.MESSAGE:
                largest = len(await receive_message(reader, max_size=limit))
            elif kind == StreamKind.SEQUENCE:
                async with SequenceReceiver(reader, max_item_size=limit) as items:
                    async for item in items:
                        largest = max(largest, len(item))
    except MessageRefused as error:
        if error.code not in REFUSALS:
            raise
    except FramingError:
        pass  # The kind itself was cut off.
    return largest


@pytest.mark.parametrize("seed", range(20))
async def test_any_bytes_on_streams_of_messages_and_batches(
    seed: int, autojump_clock: MockClock
) -> None:
    """A reader gets messages within its limit, or one documented error; the rest goes on."""
    generator = random.Random(seed)
    limit = 10_000
    async with connected_pair() as (client, server):
        for _ in range(15):
            one_way, batches = samples(generator)
            async with await client.open_send_stream() as stream:
                await stream.send_all(one_way)
            with trio.move_on_after(5):
                assert await read_one_way(await server.accept_receive_stream(), limit) <= limit
            ours = await client.open_stream()
            await ours.send_all(batches)
            await ours.send_eof()
            theirs = await server.accept_stream()
            with trio.move_on_after(5):
                try:
                    async with open_batching_channel(theirs, max_message_size=1000) as (_, receive):
                        async for message in receive:
                            assert len(message) <= 1000
                except MessageRefused as error:
                    if error.code not in REFUSALS:
                        raise
            await ours.aclose()
        assert not client.is_closed
        assert not server.is_closed
        async with await client.open_stream() as stream:
            await stream.send_all(b"still here")
            accepted = await server.accept_stream()
            assert await accepted.receive_some() == b"still here"
