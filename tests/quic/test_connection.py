"""Connections: closing, aborting, limits, datagrams, liveness, over the simulated network."""

from __future__ import annotations

import random

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode, TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.engine_access import engine_of, queued_datagrams, stream_ids
from tests.support import connected_pair, stream_pair


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    result = bytearray()
    async for chunk in stream:
        result += chunk
    return bytes(result)


# ------------------------------------------------------------------ closing


@pytest.mark.parametrize("loss", [0.0, 0.1])
async def test_aclose_right_after_send_all_delivers_everything(
    loss: float, autojump_clock: MockClock
) -> None:
    data = random.Random(1).randbytes(5_000_000)
    network = SimulatedNetwork(seed=7, delay=0.01, loss=0.0)
    received = bytearray()
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        network.set_conditions(loss=loss)

        async def receive() -> None:
            with pytest.raises(phoenix_trio.ConnectionBroken) as caught:
                while True:
                    received.extend(await theirs.receive_some())
            if isinstance(caught.value, phoenix_trio.ConnectionClosedByPeer):
                assert caught.value.is_clean
            else:
                # The CONNECTION_CLOSE was lost, so the peer finds out by and by.
                assert loss
                assert isinstance(caught.value, phoenix_trio.ConnectionTimedOut)

        async def send() -> None:
            await ours.send_all(data)
            await client.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
    assert bytes(received) == data


async def test_aclose_waits_for_a_reset_and_no_longer(autojump_clock: MockClock) -> None:
    """Found by the stateful test: an acknowledged RESET_STREAM did not wake the waiting task."""
    async with connected_pair(client_config=TransportConfig(keep_alive=5.0)) as (client, server):
        ours, _ = await stream_pair(client, server)
        ours.reset()
        with trio.fail_after(1):
            await client.aclose()
        assert server.close_reason is None or server.is_closed


async def test_what_arrived_before_the_close_can_be_read_after_it(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"a" * 100_000)
        await ours.send_eof()
        other = await client.open_stream()
        await other.send_all(b"unaccepted")
        await client.send_datagram(b"unread")
        await client.aclose(5, "done")
        await server.wait_closed()
        assert isinstance(server.close_reason, phoenix_trio.ConnectionClosedByPeer)
        assert server.close_reason.error_code == 5
        assert server.close_reason.reason == "done"
        assert await read_all(theirs) == b"a" * 100_000
        assert await server.receive_datagram() == b"unread"
        late = await server.accept_stream()
        assert await late.receive_some() == b"unaccepted"
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await late.receive_some()
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await server.accept_stream()
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            await server.receive_datagram()


async def test_abort_does_not_wait_and_tells_the_peer_why(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(bytes(1_000_000))
        started = trio.current_time()
        client.abort(42, "no more")
        assert trio.current_time() == started
        assert client.is_closed
        assert client.close_reason is None
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer, match="no more") as caught:
            while True:
                await theirs.receive_some()
        assert caught.value.error_code == 42
        assert caught.value.is_application
        assert caught.value.by_peer
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await client.open_stream()
        await client.aclose()  # idempotent


async def test_errors_of_a_broken_connection_are_sticky_and_fresh(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        server.abort(1)
        await client.wait_closed()
        seen = []
        for _ in range(3):
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer) as caught:
                await ours.receive_some()
            seen.append(caught.value)
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
                await ours.send_all(b"x")
        assert len({id(error) for error in seen}) == 3
        assert theirs.id == ours.id


async def test_every_pending_call_raises_when_the_peer_aborts(autojump_clock: MockClock) -> None:
    config = TransportConfig(
        stream_send_buffer_size=4096, max_bidirectional_streams=1, datagram_queue_length=1
    )
    async with connected_pair(config=config) as (client, server):
        ours, _ = await stream_pair(client, server)
        failures: list[str] = []

        async def expect(name: str, call: object) -> None:
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
                await call  # type: ignore[misc]
            failures.append(name)

        async with trio.open_nursery() as nursery:
            for name, call in {
                "receive_some": ours.receive_some(),
                "send_all": ours.send_all(bytes(10_000_000)),
                "accept_stream": client.accept_stream(),
                "accept_receive_stream": client.accept_receive_stream(),
                "open_stream": client.open_stream(),
                "receive_datagram": client.receive_datagram(),
            }.items():
                nursery.start_soon(expect, name, call)
            await trio.sleep(1)
            server.abort(9)
        assert len(failures) == 6
        await client.wait_closed()


async def test_the_idle_timeout_is_an_error_of_its_own(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    config = TransportConfig(max_idle_timeout=5.0)
    async with connected_pair(network, config=config) as (client, server):
        ours, _theirs = await stream_pair(client, server)
        started = trio.current_time()
        network.partition("10.0.0.1", "10.0.0.2")
        with pytest.raises(phoenix_trio.ConnectionTimedOut, match="idle timeout"):
            await ours.receive_some()
        assert 4.9 <= trio.current_time() - started <= 5.5
        assert isinstance(client.close_reason, phoenix_trio.ConnectionTimedOut)


async def test_keep_alive_keeps_an_idle_connection_open(autojump_clock: MockClock) -> None:
    config = TransportConfig(max_idle_timeout=5.0)
    kept = attrs.evolve(config, keep_alive=2.0)
    async with connected_pair(client_config=kept, server_config=config) as (client, server):
        await trio.sleep(1000)
        assert not client.is_closed
        assert not server.is_closed
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"still here")
        assert await theirs.receive_some() == b"still here"


async def test_a_timeout_of_either_side_counts_and_infinity_means_none(
    autojump_clock: MockClock,
) -> None:
    endless = TransportConfig(max_idle_timeout=float("inf"))
    async with connected_pair(config=endless) as (client, server):
        await trio.sleep(100_000)
        assert not client.is_closed
        ours, theirs = await stream_pair(client, server)
        await theirs.send_all(b"y")
        assert await ours.receive_some() == b"y"


# ------------------------------------------------------------------ streams


async def test_a_stream_left_by_an_exception_is_reset_in_both_directions(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        with pytest.raises(ValueError, match="oops"):
            async with ours:
                await ours.send_all(b"part")
                raise ValueError("oops")
        with pytest.raises(phoenix_trio.StreamReset) as reset:
            while True:
                assert await theirs.receive_some()
        assert reset.value.error_code == ApplicationErrorCode.CANCELLED
        assert reset.value.stream_id == ours.id
        with pytest.raises(phoenix_trio.StreamStopped) as stopped:
            while True:
                await theirs.send_all(b"x")
                await trio.sleep(0.01)
        assert stopped.value.error_code == ApplicationErrorCode.CANCELLED


async def test_a_stream_left_by_cancellation_is_reset(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        with trio.move_on_after(1):
            async with ours:
                await ours.send_all(bytes(50_000_000))
        with pytest.raises(phoenix_trio.StreamReset):
            while True:
                assert await theirs.receive_some(), "a part must not look like the whole"


async def test_a_cancelled_aclose_does_not_pretend_that_all_was_sent(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        with trio.move_on_after(1):
            try:
                await ours.send_all(bytes(50_000_000))
            finally:
                await ours.aclose()
        with pytest.raises(phoenix_trio.StreamReset):
            while True:
                assert await theirs.receive_some()


async def test_a_stream_closed_normally_delivers_what_was_sent(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        async with ours:
            await ours.send_all(b"z" * 300_000)
        assert await read_all(theirs) == b"z" * 300_000


async def test_wait_acked_returns_when_the_peer_has_everything(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.05)
    async with connected_pair(network) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"q" * 10_000)
        started = trio.current_time()
        await ours.wait_acked()
        assert trio.current_time() - started >= 0.1
        await ours.send_eof()
        await ours.wait_acked()
        assert await read_all(theirs) == b"q" * 10_000
        theirs.reset(3)
        with pytest.raises(trio.ClosedResourceError):
            await theirs.wait_acked()


async def test_reset_and_stop_carry_their_codes(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        ours.reset(1234)
        with pytest.raises(phoenix_trio.StreamReset, match="0x4d2") as caught:
            await theirs.receive_some()
        assert caught.value.error_code == 1234
        ours.stop_receiving(777)
        with pytest.raises(phoenix_trio.StreamStopped) as stopped:
            while True:
                await theirs.send_all(b"x")
                await trio.sleep(0.01)
        assert stopped.value.error_code == 777
        with pytest.raises(ValueError, match=r"2\*\*62"):
            ours.reset(2**62)
        with pytest.raises(TypeError):
            ours.reset("1")  # type: ignore[arg-type]


async def test_opening_a_stream_waits_for_the_peers_permission(autojump_clock: MockClock) -> None:
    config = TransportConfig(max_bidirectional_streams=2)
    async with connected_pair(server_config=config) as (client, server):
        first, first_there = await stream_pair(client, server)
        await stream_pair(client, server)
        opened: list[phoenix_trio.QuicStream] = []

        async def open_third() -> None:
            opened.append(await client.open_stream())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_third)
            await trio.sleep(1)
            assert not opened
            await first.aclose()
            await trio.sleep(1)
            assert not opened, "the server's application still holds the stream"
            await first_there.aclose()
        assert opened[0].id == 8
        assert client.statistics().stream_credit_stalls == 1


async def test_streams_nobody_accepts_stay_bounded(autojump_clock: MockClock) -> None:
    """A peer that opens and ends streams must not fill the queue without end."""
    config = TransportConfig(max_unidirectional_streams=10)
    async with connected_pair(server_config=config) as (client, server):
        with trio.move_on_after(10):
            while True:
                async with await client.open_send_stream() as stream:
                    await stream.send_all(b"x")
        assert len(server._incoming_one_way) == 10
        for _ in range(10):
            async with await server.accept_receive_stream() as receiver:
                assert await read_all(receiver) == b"x"
        async with await client.open_send_stream() as stream:
            await stream.send_all(b"again")
        async with await server.accept_receive_stream() as receiver:
            assert await read_all(receiver) == b"again"


async def test_streams_which_were_never_closed_but_ended_give_their_place_back(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(max_bidirectional_streams=5)
    async with connected_pair(config=config) as (client, server):

        async def echo() -> None:
            async for stream in server.incoming_streams():
                await stream.send_all(await read_all(stream))
                await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            for number in range(50):
                stream = await client.open_stream()
                await stream.send_all(b"%d" % number)
                await stream.send_eof()
                assert await read_all(stream) == b"%d" % number
            await trio.sleep(1)
            assert not client._senders
            assert not server._receivers
            assert not stream_ids(engine_of(client))
            assert not stream_ids(engine_of(server))
            await client.aclose()


async def test_using_a_stream_opens_the_lower_numbered_ones_in_order(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        streams = [await client.open_stream() for _ in range(3)]
        await streams[2].send_all(b"third")
        accepted = [await server.accept_stream() for _ in range(3)]
        assert [s.id for s in accepted] == [0, 4, 8]
        assert await accepted[2].receive_some() == b"third"


async def test_leaving_the_loop_over_incoming_streams_loses_none(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        for _ in range(3):
            await (await client.open_stream()).send_all(b"x")
        await trio.sleep(1)
        seen = []
        async for stream in server.incoming_streams():
            seen.append(stream.id)
            break
        async for stream in server.incoming_streams():
            seen.append(stream.id)
            if len(seen) == 3:
                break
        assert seen == [0, 4, 8]


async def test_the_loop_over_incoming_streams_ends_when_the_peer_closes_cleanly(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        await client.aclose()
        assert [s async for s in server.incoming_streams()] == []
        assert [s async for s in client.incoming_streams()] == []
    async with connected_pair() as (client, server):
        await client.aclose(3)
        with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
            async for _ in server.incoming_streams():
                pass


# ------------------------------------------------------------------ datagrams


async def test_datagrams_arrive_whole(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        largest = client.max_datagram_size
        assert largest is not None
        assert largest > 1100
        await client.send_datagram(b"d" * largest)
        await client.send_datagram(b"")
        client.send_datagram_nowait(bytearray(b"e"))
        assert await server.receive_datagram() == b"d" * largest
        assert await server.receive_datagram() == b""
        assert await server.receive_datagram() == b"e"


async def test_an_oversized_datagram_is_refused_and_blocks_nothing(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        with pytest.raises(phoenix_trio.DatagramTooLarge) as caught:
            await client.send_datagram(bytes(5000))
        assert caught.value.maximum == client.max_datagram_size
        assert caught.value.size == 5000
        with pytest.raises(phoenix_trio.DatagramTooLarge):
            client.send_datagram_nowait(bytes(caught.value.maximum + 1))
        await client.send_datagram(b"fits")
        assert await server.receive_datagram() == b"fits"


async def test_datagrams_can_be_switched_off(autojump_clock: MockClock) -> None:
    off = TransportConfig(enable_datagrams=False)
    async with connected_pair(server_config=off) as (client, server):
        assert client.max_datagram_size is None
        with pytest.raises(phoenix_trio.DatagramsUnsupported):
            await client.send_datagram(b"x")
        with pytest.raises(phoenix_trio.DatagramsUnsupported):
            server.send_datagram_nowait(b"x")


async def test_unread_datagrams_are_bounded_and_the_oldest_go_first(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(datagram_queue_length=10)
    async with connected_pair(config=config) as (client, server):
        for number in range(50):
            await client.send_datagram(b"%d" % number)
        await trio.sleep(1)
        assert server.statistics().datagrams_dropped_incoming == 40
        assert [await server.receive_datagram() for _ in range(10)] == [
            b"%d" % number for number in range(40, 50)
        ]


async def test_sending_datagrams_waits_or_drops_when_the_queue_is_full(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    config = TransportConfig(datagram_queue_length=10)
    async with connected_pair(network, client_config=config) as (client, server):
        with trio.CancelScope():
            for number in range(1000):
                client.send_datagram_nowait(b"%04d" % number)
        assert client.statistics().datagrams_dropped_outgoing == 990
        await trio.sleep(1)
        assert await server.receive_datagram() == b"0990"
        network.partition("10.0.0.1", "10.0.0.2")
        with trio.move_on_after(2) as scope:
            while True:
                await client.send_datagram(bytes(1000))
        assert scope.cancelled_caught, "with nothing acknowledged, sending has to wait"
        assert queued_datagrams(engine_of(client)) == 10


# ------------------------------------------------------------------ liveness


async def test_ping_measures_the_round_trip(autojump_clock: MockClock) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.1)) as (client, _):
        assert 0.2 <= await client.ping() < 0.25


async def test_keys_can_be_updated_again_and_again_by_both_sides(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        for number in range(5):
            await client.update_keys()
            await ours.send_all(b"%d" % number)
            assert await theirs.receive_some() == b"%d" % number
            await server.update_keys()
            await theirs.send_all(b"%d" % number)
            assert await ours.receive_some() == b"%d" % number
        assert client.statistics().key_updates == 5


async def test_statistics_count_what_happened(autojump_clock: MockClock) -> None:
    async with connected_pair(SimulatedNetwork(delay=0.01)) as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(bytes(200_000))
        await ours.wait_acked()
        statistics = client.statistics()
        assert statistics.stream_bytes_sent == 200_001
        assert statistics.stream_bytes_acknowledged == 200_001
        assert statistics.send_buffer_bytes == 0
        assert statistics.streams_opened == 1
        assert statistics.packets_sent >= 200_000 / 1452
        assert statistics.packets_lost == 0
        assert statistics.rtt_min == pytest.approx(0.02, abs=0.003)
        there = server.statistics()
        assert there.stream_bytes_received == 200_001
        assert there.receive_buffer_bytes == 200_000
        assert there.stream_bytes_read == 1
        assert there.streams_accepted == 1
        while theirs.receive_stream._buffer:
            await theirs.receive_some()
        assert server.statistics().stream_bytes_read == 200_001
        assert statistics is not client.statistics()


async def test_lost_packets_are_counted(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=3, delay=0.01)
    async with connected_pair(network) as (client, server):
        ours, _ = await stream_pair(client, server)
        network.set_conditions(loss=0.05)
        await ours.send_all(bytes(500_000))
        await ours.wait_acked()
        assert client.statistics().packets_lost > 5


# ------------------------------------------------------------------ misuse


async def test_instances_come_from_factories(autojump_clock: MockClock) -> None:
    for kind in (
        phoenix_trio.QuicConnection,
        phoenix_trio.QuicStream,
        phoenix_trio.SendStream,
        phoenix_trio.ReceiveStream,
        phoenix_trio.QuicListener,
        phoenix_trio.StreamListener,
        phoenix_trio.Endpoint,
    ):
        with pytest.raises(TypeError, match="no public constructor"):
            kind()  # type: ignore[call-arg]


async def test_a_second_task_in_the_same_method_is_told_so(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, _theirs = await stream_pair(client, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await ours.receive_some()
            nursery.cancel_scope.cancel()


async def test_a_closed_connection_reports_the_close_reason_as_text(
    autojump_clock: MockClock,
) -> None:
    async with connected_pair() as (client, server):
        await server.aclose(7, "x" * 5000)
        await client.wait_closed()
        assert isinstance(client.close_reason, phoenix_trio.ConnectionClosedByPeer)
        assert client.close_reason.reason == "x" * 256
        assert "0x7" in str(client.close_reason)


async def test_who_waits_for_a_stop_hears_of_it(autojump_clock: MockClock) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        with trio.testing.assert_checkpoints(), trio.move_on_after(1) as scope:
            await client.wait_stopped()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(phoenix_trio.StreamStopped) as caught:
                    await client.wait_stopped()
                assert caught.value.error_code == 42

            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            server.stop_receiving(42)


@pytest.mark.parametrize("how", ["send_eof", "reset", "abort", "abort there"])
async def test_who_waits_for_a_stop_hears_of_every_other_end(
    how: str, autojump_clock: MockClock
) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                expected = (
                    phoenix_trio.ConnectionClosedByPeer
                    if how == "abort there"
                    else trio.ClosedResourceError
                )
                with pytest.raises(expected):
                    await client.send_stream.wait_stopped()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            if how == "send_eof":
                await client.send_eof()
            elif how == "reset":
                client.reset()
            elif how == "abort":
                client.connection.abort()
            else:
                server.connection.abort(7)


async def test_the_goodbye_acknowledges_what_was_received(autojump_clock: MockClock) -> None:
    async with connected_pair() as pair:
        client, server = await stream_pair(*pair)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await client.send_all(b"x" * 500)
                await client.wait_acked()  # by the very packet that ends the connection

            nursery.start_soon(send)
            await server.receive_some()
            server.connection.abort(0)
        assert client.connection.statistics().stream_bytes_acknowledged >= 500
