"""Clients and attackers act at random; when all are gone, nothing of them is left.

A server has few places and short timeouts.  Honest clients end in every way, and attackers of
several kinds act in a random order over a bad network.  At the end each counter of the endpoint
is back at zero.
"""

from __future__ import annotations

import math
import random
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.driver import SocketDriver
from phoenix_trio.quic.timers import STALE_TIMERS
from tests.engine_access import engine_of
from tests.engine_packets import seal_short
from tests.hostile.conftest import Figure
from tests.hostile.frames import random_payload
from tests.hostile.test_admission import Attacker, corrupted
from tests.hostile.world import STRANGER, World
from tests.packets import sealed_initial
from tests.support import ALPN, PORT, SERVER, client_tls, examples

#: Seconds; how long the last connection of an attacker may live.
PATIENCE = 2.0


class Crash(Exception):
    pass


async def moody(connection: phoenix_trio.QuicConnection) -> None:
    """Treat each stream as its first byte says."""
    async for stream in connection.incoming_streams():
        mood = await stream.receive_some(1)
        if mood == b"C":
            raise Crash
        if mood == b"L":
            return
        if mood == b"A":
            connection.abort(3)
        elif mood == b"R":
            stream.reset(1)
        elif mood == b"S":
            await stream.send_all(bytes(200_000))
        elif mood != b"X":  # (left unread)
            async with stream:
                await stream.send_all(mood)
                async for chunk in stream:
                    await stream.send_all(chunk)


def forget(error: Exception) -> None:
    """Drop an error; a log would keep the traceback, and with it the handler's unread data."""


class Lives:
    """One world, and the actions in it."""

    def __init__(self, world: World, nursery: trio.Nursery, generator: random.Random) -> None:
        self.world = world
        self.nursery = nursery
        self.random = generator
        self.attacker = Attacker()
        self.failing = Attacker(alpn=("something/else",))
        self.recorded: list[bytes] = []
        self.sessions = phoenix_trio.SessionStore()
        self.endpoint: phoenix_trio.Endpoint | None = None
        world.network.tap = self.record

    def record(self, datagram: Any) -> Any:
        if datagram.destination[0] == SERVER and datagram.source[0] != STRANGER:
            self.recorded.append(datagram.data)
            del self.recorded[:-50]
        return datagram

    # -------------------------------------------------------------- honest clients

    def client(self, mood: bytes, ending: str, early: bool) -> None:
        self.nursery.start_soon(self.live, mood, ending, early)

    async def live(self, mood: bytes, ending: str, early: bool) -> None:
        address = f"10.2.{self.random.randrange(3)}.{self.random.randrange(1, 250)}"
        host = self.world.network.host(address)
        arguments = {"session_store": self.sessions, "early_data": True} if early else {}
        config = TransportConfig(max_idle_timeout=PATIENCE)
        try:
            with trio.move_on_after(4 * PATIENCE):
                connecting = self.random.choice(
                    [
                        partial(phoenix_trio.open_connection, network=host),
                        self.endpoint.connect,
                    ]
                )
                async with connecting(
                    SERVER, PORT, tls=client_tls(**arguments), alpn=ALPN, config=config
                ) as connection:
                    stream = await connection.open_stream()
                    await stream.send_all(mood + bytes(self.random.randrange(30_000)))
                    await connection.send_datagram(b"hello")
                    if ending == "rebind":
                        host.rebind(self.random.choice([None, "10.3.0.1"]))
                    elif ending == "rogue":
                        self.misbehave(connection)
                    elif ending == "partition":
                        self.world.network.partition(address, SERVER)
                    await stream.send_eof()
                    if ending == "abort":
                        connection.abort(9)
                    elif ending == "read":
                        while await stream.receive_some(5000):
                            pass
                    else:
                        await trio.sleep(self.random.random())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except OSError as error:
            if "in use" not in str(error) and "reach" not in str(error):
                raise

    def misbehave(self, connection: Any) -> None:
        """Send random frames, with this connection's keys."""
        engine = engine_of(connection)
        for _ in range(self.random.randrange(1, 8)):
            payload = random_payload(self.random, closes=True)
            packet = seal_short(engine, payload)
            connection._driver.socket.send_run(packet, (SERVER, PORT))

    # -------------------------------------------------------------- strangers

    def say(self, data: bytes) -> None:
        self.world.stranger.send(data, (SERVER, PORT))

    def hello(self) -> None:
        self.say(self.attacker.initial())

    def failing_hello(self) -> None:
        self.say(self.failing.initial())

    def noise(self) -> None:
        self.say(corrupted(self.attacker.initial()))
        self.say(self.random.randbytes(self.random.randrange(1, 1400)))

    def answer_retries(self) -> None:
        answers = [data for data, _ in self.world.stranger.receive(1000)]
        with suppress(ValueError):  # corrupted on the way
            for data in self.attacker.answers_to([each for each in answers if each[0] & 0x80]):
                self.say(data)

    def holes(self) -> None:
        cid = self.random.randbytes(8)
        for number in range(self.random.randrange(1, 4)):
            offset = self.random.randrange(2, 3000)
            frames = b"".join(
                b"\x06" + (0x4000 | at).to_bytes(2, "big") + b"\x01x"
                for at in range(offset, offset + 300, 2)
            )
            self.say(sealed_initial(frames, destination_cid=cid, packet_number=number))

    def any_frames(self) -> None:
        cid = self.random.randbytes(self.random.choice([8, 8, 20]))
        for number in range(self.random.randrange(1, 4)):
            frames = random_payload(self.random, closes=True)[:1000]
            self.say(sealed_initial(frames, destination_cid=cid, packet_number=number))

    def early_junk(self) -> None:
        """Send an Initial, and behind it packets of 0-RTT and Handshake type that wait for keys."""
        cid = self.random.randbytes(8)
        self.say(sealed_initial(b"\x01", destination_cid=cid))
        for first in (0xD1, 0xE1, 0xD1):
            head = bytes((first,)) + b"\0\0\0\x01\x08" + cid + b"\x00" + b"\x44\x00"
            self.say(head + self.random.randbytes(0x400))

    def replay(self) -> None:
        for data in self.random.choices(self.recorded, k=10) if self.recorded else ():
            self.say(data)

    def same_id_again(self) -> None:
        self.say(self.attacker.initial(destination_cid=b"theSame!"))

    # -------------------------------------------------------------- the network

    def weather(self, loss: float, duplicate: float, corrupt: float) -> None:
        self.world.network.set_conditions(
            loss=loss, duplicate=duplicate, corrupt=corrupt, reorder=loss, jitter=0.001
        )


STRANGERS = ("hello", "failing_hello", "noise", "answer_retries", "holes", "any_frames",
             "early_junk", "replay", "same_id_again")  # fmt: skip

steps = st.one_of(
    st.tuples(
        st.just("client"),
        st.sampled_from([b"e", b"C", b"A", b"R", b"S", b"L", b"X"]),
        st.sampled_from(["read", "leave", "abort", "rebind", "rogue", "partition"]),
        st.booleans(),
    ),
    st.tuples(st.sampled_from(STRANGERS)),
    st.tuples(st.just("pause"), st.sampled_from([0.0, 0.003, 0.05, 1.0, 3.0])),
    st.tuples(st.just("weather"), st.sampled_from([0.0, 0.1, 0.3]),
              st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.1])),
)  # fmt: skip


def left_over(driver: SocketDriver) -> dict[str, Any]:
    """The counts and objects still held by an endpoint, except zero and empty ones."""
    places, memory, budget = driver._admission.places, driver.memory, driver._budget
    next_deadline = driver._timers.next_deadline()
    found = {
        "connections": places.connections,
        "handshakes": places.handshakes,
        "unvalidated": places.unvalidated,
        "addresses": len(places),
        "receive memory": memory.receive.used,
        "send memory": memory.send.used,
        "receive accounts": memory.receive.connections,
        "send accounts": memory.send.connections,
        "routes": len(driver._routes),
        "connection IDs": len(driver._table.by_connection_id),
        "retired": len(driver._table.retired),
        "reset tokens": len(driver._table.by_reset_key),
        "dirty": len(driver._sender.dirty),
        "unsent": len(driver._sender.unsent),
        "held": budget._held_bytes + len(budget._held),
        "timers": max(0, len(driver._timers) - STALE_TIMERS),
        "timer": 0.0 if next_deadline == math.inf else next_deadline,
    }
    return {name: value for name, value in found.items() if value != 0}


async def dialling(world: World, task_status: trio.TaskStatus[phoenix_trio.Endpoint]) -> None:
    async with phoenix_trio.Endpoint.open(network=world.network.host("10.2.9.9")) as endpoint:
        task_status.started(endpoint)
        await trio.sleep_forever()


async def live_through(program: list[tuple[Any, ...]], retry: str, number: int) -> dict[str, Any]:
    config = {
        "retry": retry,
        "retry_threshold": 3,
        "max_connections": 12,
        "max_handshakes": 8,
        "accept_backlog": 2,
        "handshake_timeout": PATIENCE,
        "max_idle_timeout": PATIENCE,
    }
    result: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        world = await World(nursery, handler=moody, on_error=forget, **config).start()
        endpoint = await nursery.start(dialling, world)
        driver = world.listener._driver
        turn, turns = driver._turn, 0

        def count() -> bool:
            nonlocal turns
            turns += 1
            assert turns < 100_000, "the driver never sleeps"
            return turn()

        driver._turn = count  # type: ignore[method-assign]
        async with trio.open_nursery() as clients:
            lives = Lives(world, clients, random.Random(number))
            lives.endpoint = endpoint
            for name, *arguments in program:
                if name == "pause":
                    await trio.sleep(arguments[0])
                else:
                    getattr(lives, name)(*arguments)
                    assert (
                        min(
                            driver._admission.places.connections,
                            driver._admission.places.handshakes,
                            driver._admission.places.unvalidated,
                            driver.memory.receive.used,
                            driver.memory.send.used,
                        )
                        >= 0
                    )
        lives.weather(0.0, 0.0, 0.0)
        await trio.sleep(60)
        await world.check_alive()
        await trio.sleep(60)
        lives.say(b"\x40")  # (a turn, for checks done in passing)
        await trio.sleep(1)
        result = left_over(driver) | left_over(endpoint._driver)
        statistics = driver.statistics()
        result_turns = turns
        nursery.cancel_scope.cancel()
    figures["accepted"] += statistics.connections_accepted
    figures["failed"] += statistics.handshakes_failed
    figures["refused"] += statistics.connections_refused
    figures["retries"] += statistics.retries_sent
    figures["turns"] = max(figures["turns"], result_turns)
    return result


figures = {"accepted": 0, "failed": 0, "refused": 0, "retries": 0, "turns": 0}


def test_nothing_is_left_of_random_lives(figure: Figure) -> None:
    figures.update(dict.fromkeys(figures, 0))

    @given(
        st.lists(steps, min_size=10, max_size=60),
        st.sampled_from(["under-load", "never", "always"]),
        st.integers(0, 1 << 30),
    )
    @examples(25)
    # A connection ID retired in the last turn of an endpoint.
    @example(
        [
            ("client", b"e", "read", False),
            ("weather", 0.3, 0.0, 0.0),
            ("hello",),
            ("pause", 0.05),
            ("hello",),
            ("hello",),
            ("early_junk",),
            ("client", b"e", "read", False),
            ("client", b"e", "read", False),
            ("replay",),
        ],
        "always",
        2221,
    )
    def check(program: list[tuple[Any, ...]], retry: str, number: int) -> None:
        left = trio.run(
            partial(live_through, program, retry, number), clock=MockClock(autojump_threshold=0)
        )
        assert not left, left

    check()
    for what, value in figures.items():
        figure(what, value, "turns of a driver at most" if what == "turns" else "connections")


async def test_superseded_timers_do_not_pile_up(autojump_clock: MockClock) -> None:
    """While another connection is silent, whose timer is due before all idle timeouts."""
    config = TransportConfig(max_idle_timeout=600.0)
    async with trio.open_nursery() as nursery:
        world = await World(nursery, max_idle_timeout=600.0).start()
        dial = partial(
            phoenix_trio.open_connection, SERVER, PORT, tls=client_tls(), alpn=ALPN, config=config
        )
        async with dial(network=world.network.host("10.2.0.1")):
            await trio.sleep(5)
            async with dial(network=world.network.host("10.2.0.2")) as connection:
                for _ in range(1000):
                    await connection.send_datagram(b"a packet which is acknowledged in time")
                    await trio.sleep(0.1)
                timers = world.listener._driver._timers
                assert len(timers) <= STALE_TIMERS + 10
        nursery.cancel_scope.cancel()
