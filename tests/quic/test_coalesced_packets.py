"""Application data shares datagrams with packets of the handshake (RFC 9000 section 12.2)."""

from __future__ import annotations

import phoenix_trio
from phoenix_trio.quic import events
from tests.engine_access import bytes_sent_on_path, use_connection_id
from tests.engine_packets import open_sent
from tests.packets import Level, Packet, headers_of
from tests.support import EnginePair, Side, client_tls, server_tls

PADDING, STREAM = 0x00, 0x08
FULL = 1200


class Recorded(EnginePair):
    """A pair that records each side's datagrams, with their 1-RTT packets opened."""

    def __init__(self, *, asks_at_once: bool = False, **arguments: object) -> None:
        self.datagrams: list[tuple[bool, bytes]] = []
        self.opened: list[Packet] = []
        self._asks_at_once = asks_at_once
        super().__init__(**arguments)  # type: ignore[arg-type]

    def flush(self, side: Side) -> None:
        if self._asks_at_once:
            self._asks_at_once = False
            self.ask()
        before = len(self.wire)
        super().flush(side)
        for _, _, _, data, _ in self.wire[before:]:
            self.datagrams.append((side is self.client, data))
            if data[0] & 0x80 and levels(data)[-1] is Level.ONE_RTT:
                size = len(list(headers_of(data))[-1].data)
                self.opened += open_sent(side.engine, data[-size:])

    def ask(self, question: bytes = b"question") -> int:
        stream_id = self.client.engine.open_stream(unidirectional=False)
        assert stream_id is not None
        self.client.engine.write(stream_id, question)
        return stream_id

    def sent_by(self, *, client: bool) -> list[bytes]:
        return [data for is_client, data in self.datagrams if is_client is client]

    def step_until_the_client_is_done(self) -> None:
        """The client's last messages have not left yet."""
        while not self.client.of(events.HandshakeCompleted):
            assert self.step()


def levels(datagram: bytes) -> list[Level]:
    return [header.level for header in headers_of(datagram)]


def assert_all_counted(pair: Recorded) -> None:
    """The bytes counted by the paths as sent were really sent (RFC 9000 section 8.1)."""
    for side in pair.sides:
        counted = bytes_sent_on_path(side.engine)
        assert counted == sum(map(len, pair.sent_by(client=side is pair.client)))


def test_the_first_question_leaves_with_the_end_of_the_handshake() -> None:
    pair = Recorded()
    pair.step_until_the_client_is_done()
    stream_id = pair.ask()
    before = len(pair.datagrams)
    pair.flush(pair.client)
    ((_, datagram),) = pair.datagrams[before:]
    assert levels(datagram) == [Level.INITIAL, Level.HANDSHAKE, Level.ONE_RTT]
    # The padding required by its Initial packet is in the packet that reaches to the end.
    assert len(datagram) == FULL
    (packet,) = pair.opened
    assert packet.frames[-1].kind == PADDING
    assert [each.kind & ~7 for each in packet.frames].count(STREAM) == 1
    pair.run(0.011)
    assert pair.server is not None
    assert pair.server.received[stream_id] == b"question"
    assert_all_counted(pair)


def test_padding_alone_is_put_behind_the_packets() -> None:
    """It is not in flight there (RFC 9002 section 2)."""
    pair = Recorded()
    (hello,) = pair.sent_by(client=True)
    assert levels(hello) == [Level.INITIAL]
    assert len(hello) == FULL
    pair.connect()
    assert_all_counted(pair)


def test_a_long_question_begins_in_the_datagram_and_goes_on_behind_it() -> None:
    pair = Recorded()
    pair.step_until_the_client_is_done()
    question = bytes(range(250)) * 20
    stream_id = pair.ask(question)
    before = len(pair.datagrams)
    pair.flush(pair.client)
    sent = [levels(datagram) for _, datagram in pair.datagrams[before:]]
    assert sent[0] == [Level.INITIAL, Level.HANDSHAKE, Level.ONE_RTT]
    assert len(sent) == 1 + 4
    assert {tuple(each) for each in sent[1:]} == {(Level.ONE_RTT,)}
    pair.run(1.0)
    assert pair.server is not None
    assert pair.server.received[stream_id] == question
    assert_all_counted(pair)


def test_a_probe_repeats_the_question_beside_the_handshake() -> None:
    pair = Recorded()
    pair.step_until_the_client_is_done()
    stream_id = pair.ask()
    pair.flush(pair.client)
    pair.wire.clear()
    before = len(pair.sent_by(client=True))
    pair.run(1.0)
    assert pair.server is not None
    assert pair.server.received[stream_id] == b"question"
    assert levels(pair.sent_by(client=True)[before]) == [Level.HANDSHAKE, Level.ONE_RTT]
    assert_all_counted(pair)


def resuming(**arguments: object) -> Recorded:
    tls = {
        "client": client_tls(session_store=phoenix_trio.SessionStore(), early_data=True),
        "server": server_tls(early_data=True),
    }
    EnginePair(**tls).connect()  # type: ignore[arg-type]
    return Recorded(**tls, **arguments)


def test_early_data_leaves_with_the_hello() -> None:
    pair = resuming(asks_at_once=True)
    (hello,) = pair.sent_by(client=True)
    assert levels(hello) == [Level.INITIAL, Level.ZERO_RTT]
    assert len(hello) == FULL
    pair.run(0.011)
    assert pair.server is not None
    assert pair.server.received[0] == b"question"
    assert_all_counted(pair)
    # The server answers in 1-RTT packets before the handshake is over.
    pair.server.engine.write(0, b"answer")
    before = len(pair.sent_by(client=False))
    pair.run(0.011)
    assert pair.client.received[0] == b"answer"
    assert [levels(each) for each in pair.sent_by(client=False)][before:] == [[Level.ONE_RTT]]
    pair.run(1.0)
    assert pair.client.engine.tls_context.early_data_accepted
    assert_all_counted(pair)


def test_an_answer_leaves_with_the_flight_of_the_server() -> None:
    pair = resuming(asks_at_once=True)
    pair.step()
    assert pair.server is not None
    pair.server.engine.write(0, b"answer")
    before = len(pair.datagrams)
    pair.flush(pair.server)
    ((_, datagram),) = pair.datagrams[before:]
    assert levels(datagram) == [Level.INITIAL, Level.HANDSHAKE, Level.ONE_RTT]
    assert len(datagram) == FULL
    assert_all_counted(pair)
    pair.run(0.011)
    assert pair.client.received[0] == b"answer"


def test_all_packets_of_a_datagram_have_the_same_connection_id() -> None:
    """RFC 9000 section 12.2; the server may have given, and retired, connection IDs by then."""
    pair = Recorded()
    pair.step_until_the_client_is_done()
    pair.ask()
    use_connection_id(pair.client.engine, b"another!")
    before = len(pair.datagrams)
    pair.flush(pair.client)
    sent = [levels(datagram) for _, datagram in pair.datagrams[before:]]
    assert sent == [[Level.INITIAL, Level.HANDSHAKE], [Level.ONE_RTT]]
