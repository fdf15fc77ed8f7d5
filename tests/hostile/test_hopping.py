"""A client hops between addresses: each gets at most three times its bytes, and timers end.

Sans-IO: the attacker has a real client's keys, sends any packets from any address, also during
the handshake, and reads the answers to all of them.  After each step, the bytes to every
unvalidated address are counted (RFC 9000 section 8.1), and no timer may stay due.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phoenix_trio
from phoenix_trio.quic.engine import Engine
from tests.engine_access import is_handshake_complete, own_connection_id, validated_addresses
from tests.engine_packets import seal
from tests.hostile.conftest import Figure
from tests.hostile.frames import random_payload
from tests.hostile.test_handshake import long_certificate
from tests.packets import Level, sealed_initial
from tests.support import PORT, SERVER, EnginePair, examples, take_apart

LIMIT = 3

Address = tuple[str, int]


class Hopper:
    """A server, and an attacker at several addresses with a client's engine."""

    def __init__(self, generator: random.Random, **arguments: Any) -> None:
        self.random = generator
        self.addresses = [(f"10.9.0.{n}", 4000) for n in range(generator.choice((1, 2, 3, 12)))]
        self.pair = EnginePair(**arguments)
        self.server: Engine | None = None
        self.sent: Counter[Address] = Counter()
        self.received: Counter[Address] = Counter()
        self.proved: set[Address] = set()
        self.largest = 0.0
        self.answers: list[bytes] = []
        self.ready = self.own_datagrams()
        first = self.ready[0]
        self.destination = first[6 : 6 + first[5]]
        self.packet_number = 1000

    def own_datagrams(self) -> list[bytes]:
        """The datagrams that the client's engine wants to send."""
        pair = self.pair
        pair.flush(pair.client)
        datagrams = [item[3] for item in pair.wire]
        pair.wire.clear()
        return datagrams

    def somewhere(self) -> Address:
        return self.random.choice(self.addresses)

    def say(self, data: bytes, address: Address) -> None:
        """Deliver the attacker's datagram, and let the server react."""
        if self.server is None:
            if data[0] & 0xF0 != 0xC0:
                return
            self.server = self.pair._make_server(data).engine
        self.received[address] += len(data)
        self.server.receive_run(data, 0, len(data), address, self.pair.now)
        self.settle()

    def settle(self) -> None:
        """Let the server send, and run its timers until none is due."""
        server, now = self.server, self.pair.now
        if server is None:
            return
        self.flush(server)
        for _ in range(100):
            deadline = server.next_deadline()
            if deadline is None or deadline > now:
                break
            server.on_timer(now)
            self.flush(server)
        else:
            raise AssertionError("a timer stays due")
        server.take_events()

    def flush(self, server: Engine) -> None:
        now = self.pair.now
        for _ in range(100):
            server.begin_pass()
            runs = server.transmit(now)
            for data, address, _, _ in runs:
                self.sent[address] += len(data)
                # (A proof stays valid, even when the server has forgotten the path.)
                self.proved |= validated_addresses(server)
                if address not in self.proved:
                    ratio = self.sent[address] / max(1, self.received[address])
                    self.largest = max(self.largest, ratio)
            self.answers += take_apart(runs)
            if not runs and not server.has_more_to_send(now):
                return
        raise AssertionError("the server never stops sending")

    # -------------------------------------------------------------- the attacker's actions

    def pass_on(self) -> None:
        """Send a datagram of the real client from any address."""
        self.ready += self.own_datagrams()
        if self.ready:
            first = self.random.random() < 0.5
            self.say(self.ready.pop(0), self.addresses[0] if first else self.somewhere())

    def invent(self) -> None:
        """Send any frames with any keys."""
        engine = self.pair.client.engine
        level = self.random.choice((Level.HANDSHAKE, Level.ONE_RTT, Level.ONE_RTT))
        payload = self.random.choice(
            (
                b"\x01".ljust(self.random.choice((4, 300)), b"\0"),
                b"".join(b"\x1a" + bytes((n,)) * 8 for n in range(self.random.randrange(1, 40))),
                random_payload(self.random),
            )
        )
        with suppress(KeyError, AssertionError):  # without these keys
            self.say(seal(engine, level, payload), self.somewhere())

    def invent_initial(self) -> None:
        self.packet_number += 1
        payload = self.random.choice(
            (b"\x01", b"\x06\x40\x40\x01x" * 9, random_payload(self.random))
        )
        initial = sealed_initial(
            payload[:1000],
            destination_cid=self.destination,
            source_cid=own_connection_id(self.pair.client.engine),
            packet_number=self.packet_number,
        )
        self.say(initial, self.somewhere())

    def early_noise(self) -> None:
        """Send packets that seem to wait for keys."""
        cid = self.destination
        head = bytes((self.random.choice((0xD1, 0xE1)),)) + b"\0\0\0\x01\x08" + cid + b"\0\x44\0"
        self.say(head + self.random.randbytes(0x400), self.somewhere())

    def read(self) -> None:
        """Give the client's engine the next answer, whatever its destination."""
        if self.answers:
            self.pair.client.engine.receive(self.answers.pop(0), (SERVER, PORT), self.pair.now)

    def wait(self) -> None:
        self.pair.now += self.random.choice((0.001, 0.03, 0.3, 2.0))
        client = self.pair.client.engine
        deadline = client.next_deadline()
        if deadline is not None and deadline <= self.pair.now:
            client.on_timer(self.pair.now)
        self.settle()


DEEDS = (Hopper.pass_on,) * 4 + (Hopper.read,) * 4 + (
    Hopper.invent,
    Hopper.invent_initial,
    Hopper.early_noise,
    Hopper.wait,
)  # fmt: skip


@pytest.mark.parametrize("certificate", ["short", "long"])
def test_any_hops_before_and_after_the_handshake_amplify_at_most_three_times(
    certificate: str, figure: Figure
) -> None:
    arguments: dict[str, phoenix_trio.ServerTLS] = {}
    if certificate == "long":
        arguments["server"] = long_certificate()
    figures = {"handshakes completed": 0, "closed": 0, "amplification": 0.0}

    @given(st.integers(0, 1 << 40))
    @examples(100)
    def check(seed: int) -> None:
        hopper = Hopper(random.Random(seed), **arguments)
        for _ in range(120):
            hopper.random.choice(DEEDS)(hopper)
            if hopper.server is not None and hopper.server.is_over:
                figures["closed"] += 1
                break
        assert hopper.largest <= LIMIT
        figures["amplification"] = max(figures["amplification"], hopper.largest)
        if hopper.server is not None:
            figures["handshakes completed"] += is_handshake_complete(hopper.server)

    check()
    for what, value in figures.items():
        figure(what, value, "")
