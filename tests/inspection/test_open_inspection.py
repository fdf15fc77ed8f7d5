"""A running transport and its viewers: the polite, the slow and the hostile ones."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import PhoenixConnection, PhoenixTransport, open_inspection
from phoenix_trio.inspection import open_viewer, peer_user, server, snapshot
from tests.test_transport import TARGET, two_transports


async def receive(connection: PhoenixConnection) -> None:
    async for _ in connection.messages():
        pass


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "own" / "a.sock")


@asynccontextmanager
async def inspected(place: str) -> AsyncIterator[PhoenixTransport]:
    """A client's transport that can be looked at, with a server to talk to."""
    async with two_transports(receive) as (client, _):
        async with open_inspection(client, path=place) as path:
            assert path == place
            yield client


async def test_a_viewer_sees_transport_connections_and_pool(
    place: str, autojump_clock: MockClock
) -> None:
    async with inspected(place) as client, open_viewer(place) as viewer:
        nothing = await viewer.look()
        assert nothing.process == os.getpid()
        assert nothing.transports[0].name == "client"
        assert nothing.transports[0].connections == ()
        async with client.connect(TARGET) as connection:
            stream = await connection.quic.open_send_stream()
            await connection.send_data(bytes(100_000))
            found = await viewer.look()
            (transport,) = found.transports
            (link,) = transport.connections
            assert link.peer == TARGET
            assert link.is_dialled
            assert link.state == "open"
            assert link.streams >= 1
            assert link.bytes_sent > 100_000
            assert link.rtt == pytest.approx(0.02, abs=0.02)
            assert transport.total_bytes_sent >= 100_000
            assert transport.latency == link.rtt
            assert transport.pool.leases == 1
            assert [each.target for each in transport.pool.targets] == [TARGET]
            stream.close()
            again = await viewer.look()
            assert again.time >= found.time + server.SHORTEST_INTERVAL
            assert again.transports[0].connections[0].id == link.id


async def test_the_socket_is_gone_after_the_block(place: str, autojump_clock: MockClock) -> None:
    async with inspected(place), open_viewer(place) as viewer:
        pass
    assert not os.path.exists(place)
    with pytest.raises(trio.ClosedResourceError):
        await viewer.look()
    with pytest.raises(FileNotFoundError):
        async with open_viewer(place):
            pass


async def test_a_viewer_hears_of_the_end_of_the_inspection(
    place: str, autojump_clock: MockClock
) -> None:
    async with AsyncExitStack() as stack:
        async with inspected(place):
            viewer = await stack.enter_async_context(open_viewer(place))
            await viewer.look()
        with pytest.raises(trio.BrokenResourceError):
            await viewer.look()


async def test_an_error_in_the_block_leaves_alone(place: str, autojump_clock: MockClock) -> None:
    async with two_transports(receive) as (client, _):
        with pytest.raises(KeyError):
            async with open_inspection(client, path=place):
                raise KeyError
    assert not os.path.exists(place)


async def ask(stream: trio.SocketStream, request: bytes) -> bytes:
    await stream.send_all(request)
    answer = bytearray()
    while not answer.endswith(b"\n"):
        chunk = await stream.receive_some()
        if not chunk:
            break
        answer += chunk
    return bytes(answer)


@pytest.mark.parametrize(
    "garbage",
    [b"\n", b"{}\n", b"[1]\n", b"\x00\xff\n", b"[" * 1000 + b"\n", b"9" * 1000 + b"\n"]
    + [b"x" * 100_000, b'{"want": "keys"}\n', b'{"want": "snapshot"' + b" " * 2000 + b"}\n"],
)
async def test_garbage_ends_the_viewer_that_sent_it_and_no_other(
    place: str, garbage: bytes, autojump_clock: MockClock
) -> None:
    async with inspected(place), open_viewer(place) as other:
        hostile = await trio.open_unix_socket(place)
        async with hostile:
            try:
                answer = await ask(hostile, garbage)
                assert b"error" in answer
                assert await hostile.receive_some() == b""
            except trio.BrokenResourceError:
                pass  # closed while it was still sending
        assert (await other.look()).transports


async def test_requests_in_one_piece_and_in_pieces_are_answered_in_turn(
    place: str, autojump_clock: MockClock
) -> None:
    async with inspected(place):
        stream = await trio.open_unix_socket(place)
        async with stream:
            first = json.loads(await ask(stream, b'{"want": "snapshot"}\n{"want": '))
            second = json.loads(await ask(stream, b'"snapshot"}\n'))
            assert second["time"] >= first["time"] + server.SHORTEST_INTERVAL


async def test_viewers_share_a_snapshot(
    place: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    take = snapshot.Observer.take

    async def count(self: snapshot.Observer) -> phoenix_trio.inspection.Snapshot:
        nonlocal taken
        taken += 1
        return await take(self)

    monkeypatch.setattr(snapshot.Observer, "take", count)
    async with inspected(place), AsyncExitStack() as stack:
        viewers = [await stack.enter_async_context(open_viewer(place)) for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for viewer in viewers:
                nursery.start_soon(viewer.look)
        assert taken == 1


async def test_a_viewer_that_does_not_read_is_left_and_delays_no_other(
    place: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (An answer larger than a socket's buffers.)
    monkeypatch.setattr(server, "encode_snapshot", lambda snapshot: b" " * 4_000_000 + b"\n")
    async with inspected(place):
        slow = await trio.open_unix_socket(place)
        async with slow:
            await slow.send_all(b'{"want": "snapshot"}\n' * 20)
            await trio.sleep(1)
            before = trio.current_time()
            other = await trio.open_unix_socket(place)
            async with other:
                assert len(await ask(other, b'{"want": "snapshot"}\n')) == 4_000_001
            assert trio.current_time() < before + 1
            await trio.sleep(server.SLOW_SECONDS)
            size = 0
            with pytest.raises(trio.BrokenResourceError):
                while chunk := await slow.receive_some():
                    size += len(chunk)
                raise trio.BrokenResourceError
            assert size < 4_000_001


async def test_a_silent_viewer_is_left(place: str, autojump_clock: MockClock) -> None:
    async with inspected(place):
        silent = await trio.open_unix_socket(place)
        async with silent:
            before = trio.current_time()
            assert await silent.receive_some() == b""
            assert trio.current_time() - before == pytest.approx(server.IDLE_SECONDS)


async def test_more_viewers_than_the_limit_are_told_so(
    place: str, autojump_clock: MockClock
) -> None:
    async with inspected(place), AsyncExitStack() as stack:
        viewers = [
            await stack.enter_async_context(open_viewer(place)) for _ in range(server.MOST_VIEWERS)
        ]
        await viewers[-1].look()
        async with open_viewer(place) as late:
            with pytest.raises(trio.BrokenResourceError, match="viewers are served already"):
                await late.look()
        await stack.aclose()
        await trio.sleep(1)
        async with open_viewer(place) as later:
            await later.look()


async def test_another_user_gets_no_answer(
    place: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inspected(place):
        monkeypatch.setattr(server, "user_of_peer", lambda socket: os.geteuid() + 1)
        async with open_viewer(place) as viewer:
            with pytest.raises(trio.BrokenResourceError):
                await viewer.look()


async def test_a_socket_of_another_user_is_not_believed(
    place: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inspected(place):
        real = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: real + 1)
        monkeypatch.setattr(phoenix_trio.inspection.viewer, "user_of_peer", lambda socket: real + 2)
        with pytest.raises(PermissionError, match="belongs to another user"):
            async with open_viewer(place):
                pass


async def test_the_kernel_names_the_user_at_the_other_end() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, trio.socket.from_stdlib_socket(other) as asked:
        assert peer_user.user_of_peer(asked) == os.geteuid()
    assert peer_user.is_same_user_or_root(0)
    assert not peer_user.is_same_user_or_root(os.geteuid() + 1)


async def test_a_busy_or_full_system_only_delays_viewers(
    place: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([OSError(24, "Too many open files")])

    class Failing:
        def __init__(self, inner: trio.socket.SocketType) -> None:
            self._inner = inner

        async def accept(self) -> object:
            for failure in failures:
                raise failure
            return await self._inner.accept()

    make = trio.socket.from_stdlib_socket
    monkeypatch.setattr(trio.socket, "from_stdlib_socket", lambda inner: Failing(make(inner)))
    async with inspected(place):
        monkeypatch.undo()
        before = trio.current_time()
        async with open_viewer(place) as viewer:
            assert (await viewer.look()).transports
        assert trio.current_time() - before >= 1


async def test_of_many_connections_those_that_move_most_are_shown(
    place: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_CONNECTIONS", 1)
    async with inspected(place) as client, open_viewer(place) as viewer:
        async with (
            client.connect(TARGET, exclusive=True) as one,
            client.connect(TARGET, exclusive=True) as other,
        ):
            await one.send_data(bytes(50_000))
            await viewer.look()
            await other.send_data(bytes(20_000))
            (found,) = (await viewer.look()).transports
            assert found.connections_left_out == 1
            sent = other.quic.statistics().bytes_sent
            assert [each.bytes_sent for each in found.connections] == [sent]


async def test_a_snapshot_has_no_secrets(place: str, autojump_clock: MockClock) -> None:
    async with inspected(place) as client, open_viewer(place) as viewer:
        async with client.connect(TARGET) as connection:
            await connection.send_data(b"confidential")
            text = json.dumps(attrs.asdict(await viewer.look()))
            assert "confidential" not in text
            assert set(text.split('"')) & {"peer", "cid", "key", "token"} == {"peer"}


async def test_an_inspection_needs_a_transport() -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        async with open_inspection():
            pass
