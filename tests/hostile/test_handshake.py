"""Handshakes under heavy loss, first packets without a hello, and packets before their keys."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from statistics import mean

import pytest
import trio
import trustme
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.quic.handshake.early_packets import MAX_BYTES, MAX_PACKETS
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import (
    ack_eliciting_in_flight,
    crypto_packets_in_flight,
    crypto_to_send,
    early_bytes,
    has_path,
    is_path_validated,
    own_connection_id,
    probe_timeout,
    probe_timeouts_in_a_row,
    received_ranges,
    remembered_packets,
    sample_rtt,
    statistics,
    time_out_handshake_probe,
    unsent_bytes,
)
from tests.engine_packets import seal_long
from tests.packets import Level, crypto_frame, sealed_initial
from tests.support import (
    CLIENT,
    PORT,
    SERVER,
    EnginePair,
    Side,
    authority,
    client_tls,
    connected_pair,
    server_tls,
    take_apart,
)

from .conftest import Figure
from .world import World, first_initial


def kinds(datagram: bytes) -> list[QuicPacketType]:
    """The types of the packets in a datagram of the handshake."""
    found = []
    buf = Buffer(data=datagram)
    while not buf.eof():
        start = buf.tell()
        try:
            header = pull_quic_header(buf, host_cid_length=8)
        except ValueError:
            break  # padding behind the last packet
        found.append(header.packet_type)
        buf.seek(start + header.packet_length)
    return found


@cache
def long_certificate() -> phoenix_trio.ServerTLS:
    """A certificate that makes the server's flight three datagrams long."""
    names = [f"number-{number}.servers.example.org" for number in range(50)]
    issued = authority().issue_cert("localhost", SERVER, *names, key_type=trustme.KeyType.ECDSA)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return phoenix_trio.ServerTLS(chain, issued.private_key_pem.bytes())


# ------------------------------------------------------------------ a first packet without a hello


@pytest.mark.parametrize(
    "frames",
    [b"\x01", b"\0" * 50, b"\x06\x05\x03abc", b"\x06\x00\x00"],
    ids=["PING", "PADDING", "CRYPTO with an offset", "empty CRYPTO"],
)
async def test_a_server_waits_for_the_hello_of_a_client_whose_first_packet_has_none(
    frames: bytes, autojump_clock: MockClock
) -> None:
    """RFC 9000 section 17.2.2.  The hello follows on the same connection."""
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        pair = EnginePair()
        hello = bytes(pair.wire[0][3])
        size = hello[5]
        destination, source = hello[6 : 6 + size], hello[7 + size : 7 + size + hello[6 + size]]
        answers = await world.say(
            sealed_initial(frames, destination_cid=destination, source_cid=source, packet_number=0)
        )
        assert [kinds(each) for each in answers] in ([], [[QuicPacketType.INITIAL]])
        assert sum(map(len, answers)) <= 1200
        assert world.listener.statistics().handshakes == 1
        assert world.listener.statistics().connections == 1
        if b"abc" in frames:
            nursery.cancel_scope.cancel()
            return  # (no part of this client's hello)
        answers = await world.say(
            sealed_initial(
                crypto_frame(0, crypto_to_send(pair.client.engine, Level.INITIAL)),
                destination_cid=destination,
                source_cid=source,
                packet_number=1,
            )
        )
        assert kinds(answers[0])[:2] == [QuicPacketType.INITIAL, QuicPacketType.HANDSHAKE]
        nursery.cancel_scope.cancel()


#: The beginning of a hello with post-quantum keys, which takes two datagrams.
HALF_A_HELLO = crypto_frame(0, b"\x01\0\x06\xb0\x03\x03" + bytes(1000))


@pytest.mark.parametrize("frames", [b"\x01", HALF_A_HELLO], ids=["PING", "half a hello"])
async def test_first_packets_without_a_hello_hold_their_places_for_the_handshake_timeout_only(
    frames: bytes, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(
            nursery, handshake_timeout=3.0, max_handshakes=40, retry="never", retry_threshold=1
        ).start()
        sent = received = 0
        for number in range(60):
            packet = sealed_initial(frames, destination_cid=b"%08d" % number)
            sent += len(packet)
            received += sum(map(len, await world.say(packet)))
        assert world.listener.statistics().handshakes <= 40
        assert received <= 3 * sent
        await trio.sleep(5)
        received += sum(len(data) for data, _ in world.stranger.receive(1000))
        assert received <= 3 * sent
        assert world.listener.statistics().handshakes == 0
        assert world.listener.statistics().connections == 0
        await world.check_alive()
        nursery.cancel_scope.cancel()


def test_a_flood_of_initials_leaves_no_record_of_each_acknowledgement() -> None:
    hello = first_initial()
    destination = hello[6 : 6 + hello[5]]
    server = EnginePair()._make_server(hello)
    for number in range(1000):
        packet = sealed_initial(b"\x01", destination_cid=destination, packet_number=number)
        server.engine.receive(packet, (CLIENT, 5000), 0.0)
        assert len(take_apart(server.engine.transmit(0.0))) == 1
    assert len(remembered_packets(server.engine, Level.INITIAL)) <= 64


# ------------------------------------------------------------------ packets before their keys


def test_handshake_packets_before_their_keys_are_read_once_the_keys_come() -> None:
    """RFC 9001 section 5.7: a late ServerHello costs no further flight."""
    pair = EnginePair(server=long_certificate())
    late: list[bytes] = []

    def drop(destination: Side, data: bytes) -> bool:
        if destination is pair.client and QuicPacketType.INITIAL in kinds(data):
            late.append(data)
            return True
        return False

    pair.drop = drop
    pair.run(0.05)
    assert not pair.client.of(events.HandshakeCompleted)
    held = early_bytes(pair.client.engine)
    assert held is not None
    assert held > 0, "the part of the flight which is in datagrams of its own"
    assert pair.server is not None
    # Only the packet with the ServerHello comes; the packets coalesced with it are lost.
    data = late[0]
    buf = Buffer(data=data)
    header = pull_quic_header(buf, host_cid_length=8)
    pair.drop = lambda destination, data: destination is pair.server
    before = pair.now
    pair.client.engine.receive(data[: header.packet_length], pair.server.address, pair.now)
    pair.client.gather(pair.now)
    assert early_bytes(pair.client.engine) == 0
    acknowledged = received_ranges(pair.client.engine, Level.HANDSHAKE)
    assert sum(map(len, acknowledged)) >= 2, "what waited was read"
    assert pair.now == before


def test_crypto_data_behind_the_frame_which_ends_the_handshake_is_passed_over() -> None:
    """qh3 repeats its Finished message in one packet, in several frames (RFC 9000 section 13.3)."""
    pair = EnginePair()
    pair.drop = lambda destination, data: destination is not pair.client and len(data) < 1200
    client = pair.client.engine
    while not (finished := crypto_to_send(client, Level.HANDSHAKE)):
        pair.step()
        pair.flush(pair.client)
    datagram = seal_long(client, Level.HANDSHAKE, 3 * crypto_frame(0, finished), number=50)
    assert pair.server is not None
    pair.server.engine.receive(datagram, pair.client.address, pair.now)
    pair.server.gather(pair.now)
    assert pair.server.of(events.HandshakeCompleted)
    assert not pair.server.of(events.Terminated)


def test_one_rtt_packets_before_the_end_of_the_handshake_are_read_after_it() -> None:
    """RFC 9001 section 5.7, with a round-trip time that excludes their wait."""
    pair = EnginePair()
    finished: list[bytes] = []

    def drop(destination: Side, data: bytes) -> bool:
        if destination is pair.server and QuicPacketType.HANDSHAKE in kinds(data):
            finished.append(data)
            return True
        return False

    pair.drop = drop
    while not pair.client.of(events.HandshakeCompleted):
        pair.step()
    client = pair.client.engine
    pair.flush(pair.client)
    stream_id = client.open_stream(unidirectional=True)
    assert stream_id is not None
    client.write(stream_id, b"before you could read it", end_stream=True)
    while not finished:
        pair.step()
    pair.run(0.03)
    assert pair.server is not None
    held = early_bytes(pair.server.engine)
    assert held is not None
    assert 0 < held <= MAX_BYTES
    data = finished[0]
    pair.server.engine.receive(data, pair.client.address, pair.now)
    pair.server.gather(pair.now)
    assert pair.server.of(events.HandshakeCompleted)
    assert pair.server.received[stream_id] == b"before you could read it"
    assert early_bytes(pair.server.engine) is None


def test_forged_early_packets_fill_a_small_room_and_stop_no_handshake() -> None:
    pair = EnginePair()
    own = own_connection_id(pair.client.engine)
    generator = random.Random(1)
    for number in range(2000):
        if number % 2:
            body = generator.randbytes(1100)
            head = b"\xe0\x00\x00\x00\x01" + bytes((len(own),)) + own + b"\x08" + bytes(8)
            packet = head + (len(body) | 0x4000).to_bytes(2, "big") + body
        else:
            packet = b"\x40" + own + generator.randbytes(1100)
        pair.client.engine.receive(packet, (SERVER, PORT), pair.now)
    held = early_bytes(pair.client.engine)
    assert held is not None
    assert 0 < held <= 2 * min(MAX_BYTES, 1200 * MAX_PACKETS)
    pair.connect()
    assert early_bytes(pair.client.engine) is None


# ------------------------------------------------------------------ probes


def probes_of(side: Side, after: float) -> list[bytes]:
    """The packets of an engine for its next probe timeout after `after`."""
    deadline = side.engine.next_deadline()
    assert deadline is not None
    assert deadline > after
    side.engine.on_timer(deadline)
    return take_apart(side.engine.transmit(deadline))


def test_a_probe_timeout_of_the_handshake_sends_the_hello_twice() -> None:
    """RFC 9002 section 6.2.4."""
    pair = EnginePair()
    probes = probes_of(pair.client, 0.0)
    assert [kinds(each) for each in probes] == [[QuicPacketType.INITIAL]] * 2
    assert [len(each) for each in probes] == [1200, 1200]
    client = pair.client.engine
    assert crypto_packets_in_flight(client, Level.INITIAL) == 3, "none of them is forgotten"
    assert statistics(client).bytes_in_flight <= 3 * 1200


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_acknowledgement_of_any_copy_of_the_hello_counts(which: int) -> None:
    pair = EnginePair()
    hello = pair.wire[0][3]
    copies = [hello, *probes_of(pair.client, 0.0)]
    pair.now = 1.0
    pair.wire.clear()
    pair.server = pair._make_server(hello)
    pair.server.engine.receive(copies[which], pair.client.address, pair.now)
    pair.connect()
    assert not remembered_packets(pair.client.engine, Level.INITIAL)
    assert statistics(pair.client.engine).bytes_in_flight < 1200


def test_probes_come_again_within_two_seconds_until_the_handshake_is_confirmed() -> None:
    pair = EnginePair()
    times = [0.0]
    count = 0
    while times[-1] < 25.0:
        deadline = pair.client.engine.next_deadline()
        assert deadline is not None
        pair.client.engine.on_timer(deadline)
        count += len(take_apart(pair.client.engine.transmit(deadline)))
        times.append(deadline)
    waits = [b - a for a, b in pairwise(times)]
    assert max(waits) <= 2.0
    assert waits[1] > 1.5 * waits[0], "it does back off"
    assert count <= 2 * len(waits)


def test_the_cap_never_cuts_the_probe_period_of_a_long_path_short() -> None:
    pair = EnginePair()
    engine = pair.client.engine
    sample_rtt(engine, 3.0)
    for _ in range(3):
        time_out_handshake_probe(engine)
    assert probe_timeouts_in_a_row(engine) == 0
    assert probe_timeout(engine) > 3.0


def test_a_client_with_nothing_in_flight_probes_so_that_the_server_may_send() -> None:
    """RFC 9002 section 6.2.2.1: its hello is acknowledged, the answer is lost."""
    pair = EnginePair()
    hello = pair.wire[0][3]
    size = hello[5]
    original, own = hello[6 : 6 + size], hello[7 + size : 7 + size + hello[6 + size]]
    acknowledgement = sealed_initial(
        b"\x02\x00\x00\x00\x00", destination_cid=own, key_cid=original, by_server=True
    )
    pair.client.engine.receive(acknowledgement, (SERVER, PORT), 0.01)
    assert not ack_eliciting_in_flight(pair.client.engine, Level.INITIAL)
    take_apart(pair.client.engine.transmit(0.01))
    probes = probes_of(pair.client, 0.01)
    assert [kinds(each) for each in probes] == [[QuicPacketType.INITIAL]] * 2
    assert [len(each) for each in probes] == [1200, 1200], "each lets the server send 3600 bytes"


def test_probes_of_a_server_stay_within_three_times_what_came(figure: Figure) -> None:
    """RFC 9000 section 8.1, for a client that has sent its hello and then nothing."""
    hello = first_initial()
    server = EnginePair()._make_server(hello)
    server.engine.receive(hello, (CLIENT, 5000), 0.0)
    sent = sum(map(len, take_apart(server.engine.transmit(0.0))))
    for _ in range(50):
        deadline = server.engine.next_deadline()
        if deadline is None or deadline > 25.0:
            break
        server.engine.on_timer(deadline)
        datagrams = take_apart(server.engine.transmit(deadline))
        sent += sum(map(len, datagrams))
        for each in datagrams:
            if QuicPacketType.INITIAL in kinds(each):
                assert len(each) >= 1200, "RFC 9000 section 14.1"
    figure("amplification", sent / len(hello), "times")
    assert sent <= 3 * len(hello)


def test_a_hello_which_comes_twice_does_not_amplify() -> None:
    hello = first_initial()
    server = EnginePair()._make_server(hello)
    received = sent = 0
    for _ in range(20):
        server.engine.receive(hello, (CLIENT, 5000), 0.0)
        received += len(hello)
        sent += sum(map(len, take_apart(server.engine.transmit(0.0))))
        assert sent <= 3 * received
    assert sent <= 8000, "no repetition for each copy"


# ------------------------------------------------------------------ heavy loss


def handshake_seconds(
    seed: int, loss: float, identity: phoenix_trio.ServerTLS | None
) -> tuple[float, float, int, int]:
    """Virtual seconds until the client's handshake is complete, and the server's; bytes sent."""
    generator = random.Random(seed)
    config = TransportConfig(max_idle_timeout=120.0)
    pair = EnginePair(client_config=config, server_config=config, server=identity)
    pair.drop = lambda destination, data: generator.random() < loss
    client = server = 0.0
    while not server:
        if not pair.step():
            raise AssertionError(f"seed {seed}: the handshake has come to rest")
        assert pair.now < 100, f"seed {seed}"
        server_engine = None if pair.server is None else pair.server.engine
        if server_engine and has_path(server_engine) and not is_path_validated(server_engine):
            # RFC 9000 section 8.1
            facts = statistics(server_engine)
            assert facts.bytes_sent <= 3 * facts.bytes_received, f"seed {seed}"
        if not client and pair.client.of(events.HandshakeCompleted):
            client = pair.now
        if pair.server is not None and pair.server.of(events.HandshakeCompleted):
            server = pair.now
    assert pair.server is not None
    sent = [statistics(side.engine).bytes_sent for side in pair.sides]
    return client, server, sent[0], sent[1]


@pytest.mark.parametrize("flight", ["short", "long"])
def test_handshakes_come_through_heavy_loss_soon(flight: str, figure: Figure) -> None:
    """30 % of the datagrams of each side are lost; the round trip takes 20 ms."""
    identity = long_certificate() if flight == "long" else None
    results = [handshake_seconds(seed, 0.3, identity) for seed in range(150)]
    for name, times in (
        ("client", [each[0] for each in results]),
        ("server", [each[1] for each in results]),
    ):
        times.sort()
        for share in (50, 90, 99):
            figure(f"{name}: {share} % within", times[len(times) * share // 100 - 1], "s")
        figure(f"{name}: the slowest", times[-1], "s")
        assert times[len(times) // 2] < 1.0
        assert times[len(times) * 9 // 10] < 2.5
        assert times[-1] < 12.0
    figure("bytes sent by the client", mean(each[2] for each in results), "B")
    figure("bytes sent by the server", mean(each[3] for each in results), "B")


@pytest.mark.parametrize("seed", range(8))
async def test_a_request_is_answered_over_a_network_with_heavy_loss(
    seed: int, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(seed=seed, delay=0.02, loss=0.3)
    with trio.fail_after(60):
        async with connected_pair(network) as (client, server):
            stream = await client.open_stream()
            await stream.send_all(b"question")
            await stream.send_eof()
            theirs = await server.accept_stream()
            assert await theirs.receive_some() == b"question"
            await theirs.send_all(b"answer")
            assert await stream.receive_some() == b"answer"


@pytest.mark.parametrize("early_data", [False, True], ids=["1-RTT", "0-RTT"])
@pytest.mark.parametrize("seed", range(10))
def test_data_is_whole_after_a_handshake_with_loss_and_reordering(
    early_data: bool, seed: int
) -> None:
    """Probes carry copies of it, and packets wait for their keys."""
    generator = random.Random(seed)
    store = phoenix_trio.SessionStore()
    ours = client_tls(session_store=store, early_data=True)
    theirs = server_tls(early_data=True)
    if early_data:
        pair = EnginePair(client=ours, server=theirs).connect()
        pair.run(1.0)
    pair = EnginePair(client=ours, server=theirs)
    pair.jitter = lambda: generator.random() * 0.03
    pair.drop = lambda destination, data: generator.random() < 0.25
    client = pair.client.engine
    assert client.can_send_early_data == early_data
    wanted: list[tuple[Side, int, bytes]] = []

    def send(source: Side, target: Side) -> None:
        stream_id = source.engine.open_stream(unidirectional=True)
        assert stream_id is not None
        data = generator.randbytes(generator.choice([0, 100, 1200, 5000]))
        source.engine.write(stream_id, data, end_stream=True)
        wanted.append((target, stream_id, data))

    early_streams = 2 if early_data else 0
    opened = [client.open_stream(unidirectional=True) for _ in range(early_streams)]
    contents = [generator.randbytes(3000) for _ in opened]
    for stream_id, data in zip(opened, contents, strict=True):
        assert stream_id is not None
        client.write(stream_id, data, end_stream=True)
    done: set[int] = set()
    for _ in range(20_000):
        for number, side in enumerate(pair.sides):
            if number not in done and side.of(events.HandshakeCompleted):
                done.add(number)
                assert pair.server is not None
                for _ in range(3):
                    send(side, pair.sides[1 - number])
        if pair.now > 60.0 or not pair.step():
            break
    assert pair.server is not None
    assert done == {0, 1}, f"seed {seed}"
    wanted += [
        (pair.server, i, data) for i, data in zip(opened, contents, strict=True) if i is not None
    ]
    for target, stream_id, data in wanted:
        assert target.received.get(stream_id, b"") == data, f"seed {seed}"
    for side in pair.sides:
        assert not side.of(events.Terminated) or pair.now >= 30
        assert not side.engine.has_unacknowledged_streams, f"seed {seed}"
        assert statistics(side.engine).send_buffer_bytes == unsent_bytes(side.engine) == 0


async def test_a_retry_leaves_nothing_in_flight(autojump_clock: MockClock) -> None:
    """Packets sent before the Retry do not count in the congestion window any more."""
    async with connected_pair(server_config=TransportConfig(retry="always")) as (client, _):
        await trio.sleep(2.0)
        statistics = client.statistics()
        assert statistics.bytes_in_flight == 0
