"""Streams use of their connection only the members of StreamHost."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import phoenix_trio.quic
from phoenix_trio import StreamTooLarge
from phoenix_trio.quic.receiving_part import ReceivingPart
from phoenix_trio.quic.sending_part import SendingPart
from phoenix_trio.quic.stream import BidirectionalStream
from phoenix_trio.quic.waiter import Lot
from tests.support import examples

FOLDER = Path(phoenix_trio.quic.__file__).parent


class Host:
    """A host without an engine: data sent on a stream arrives on the same stream."""

    def __init__(self, room: int) -> None:
        self._is_closing = False
        self._ended = False
        self._is_driven_by_waiters = False
        self.room = room
        self.sent = bytearray()
        self.consumed = 0
        self.log: list[str] = []
        self.stream: BidirectionalStream[Host, SendingPart[Host], ReceivingPart[Host]]
        self.stream = BidirectionalStream._create(
            SendingPart._create(self, 0), ReceivingPart._create(self, 0)
        )

    def _ended_error(self, stream_id: int | None = None) -> BaseException:
        return trio.BrokenResourceError("the host is gone")

    def _send_room(self, stream_id: int, wanted: int = 1, /) -> int:
        return self.room - len(self.sent)

    def _has_send_room(self, stream_id: int, /) -> bool:
        return not self.sent

    def _write(self, stream_id: int, data: bytes | bytearray | memoryview, /) -> None:
        self.sent += data
        assert len(self.sent) <= self.room

    def _write_end(self, stream_id: int, data: bytes | bytearray | memoryview, /) -> None:
        self._write(stream_id, data)
        self.log.append("end")

    def _flush_end(self) -> None:
        assert "end" in self.log

    def _written(self, stream_id: int, /) -> int:
        return len(self.sent)

    def _is_acknowledged(self, stream_id: int, offset: int, /, *, with_fin: bool) -> bool:
        return not self.sent

    def _reset_sending(self, stream_id: int, code: int) -> None:
        self.log.append(f"reset {code}")

    def _note_stall(self) -> None:
        self.log.append("stall")

    def _consumed(self, stream_id: int, count: int) -> None:
        assert count > 0
        self.consumed += count
        self.log.append(f"consumed {count}")

    def _stop_receiving(self, stream_id: int, code: int) -> None:
        self.log.append(f"stop {code}")

    def _let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> None:
        self.log.append("let go of sending" if sending else "let go of receiving")

    def _rest(self) -> None:
        pass

    async def _wait(self, lot: Lot) -> None:
        await lot.park()

    async def _wait_for_room(self, stream_id: int, lot: trio.lowlevel.ParkingLot) -> None:
        self.arrive()
        await trio.lowlevel.checkpoint()

    async def _wait_for_progress(
        self, lot: trio.lowlevel.ParkingLot, is_due: Callable[[], bool]
    ) -> None:
        self.arrive()
        await trio.lowlevel.checkpoint()

    def arrive(self, at_end: bool = False) -> None:
        data, self.sent = self.sent, bytearray()
        self.stream.receive_stream._on_data(data, at_end)


@pytest.mark.parametrize("module", ["stream", "sending_part", "receiving_part", "stream_host"])
def test_the_modules_of_streams_import_nothing_of_the_connection(module: str) -> None:
    """Not even for types."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names.update(f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    above = {"connection", "connection_state", "driver", "engine", "endpoint", "listener"}
    assert not {name for name in names if set(name.split(".")) & above}
    assert "TYPE_CHECKING" not in (FOLDER / f"{module}.py").read_text(encoding="utf-8")


async def test_streams_work_with_any_host() -> None:
    host = Host(room=10)
    stream = host.stream
    assert stream.connection is host
    await stream.send_all(b"0123456789abcdef")
    assert await stream.receive_some() == b"0123456789"
    assert host.log == ["stall", "consumed 10"]
    await stream.wait_acked()
    assert await stream.receive_some() == b"abcdef"
    await stream.send_eof()
    host.arrive(at_end=True)
    assert await stream.receive_some() == b""
    stream.close()
    assert host.log[2:] == ["consumed 6", "end", "let go of sending", "let go of receiving"]


async def test_streams_raise_the_hosts_error() -> None:
    host = Host(room=10)
    stream = host.stream
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError, match="the host is gone"):
                await stream.receive_some()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        host._ended = host._is_closing = True
        stream.receive_stream._waiter.unpark_all()
    with pytest.raises(trio.BrokenResourceError, match="the host is gone"):
        await stream.send_all(b"x")


arrivals = st.lists(st.integers(1, 5000), max_size=4)
calls = st.one_of(
    st.tuples(st.just("some"), st.integers(1, 6000), arrivals),
    st.tuples(st.just("put back"), st.integers(1, 6000), arrivals),
    st.tuples(st.just("all"), st.integers(0, 20_000), arrivals),
)


@examples(100)
@given(program=st.lists(calls, max_size=12), end=st.booleans())
def test_whatever_is_cancelled_every_byte_is_returned_once_and_credited_once(
    program: list[tuple[str, int, list[int]]], end: bool
) -> None:
    """Each call is cancelled after some more data has arrived, unless it returns before."""

    async def main() -> None:
        host = Host(room=0)
        receiver = host.stream.receive_stream
        arrived, returned = bytearray(), bytearray()
        most = 0  # the most that calls of receive_all may hold credited

        refused = False
        lent = 0  # the most that was put back; it stays credited

        async def call(kind: str, limit: int) -> None:
            nonlocal refused, lent
            if kind != "all":
                data = await receiver.receive_some(limit)
                if kind == "some":
                    returned.extend(data)
                else:
                    receiver._put_back(data)
                    lent = max(lent, len(data))
                return
            try:
                returned.extend(await receiver.receive_all(limit))
            except StreamTooLarge:
                refused = True
                assert len(arrived) - len(returned) > limit
                assert host.log[-2:] == ["stop 4", "let go of receiving"]

        def arrive(size: int, at_end: bool = False) -> None:
            data = bytes((len(arrived) + i) % 251 for i in range(size))
            arrived.extend(data)
            receiver._on_data(data, at_end)

        async def check() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert arrived.startswith(returned)
            assert len(returned) <= host.consumed <= len(returned) + most + lent
            assert receiver._buffer.size == (0 if refused else len(arrived) - len(returned))

        for kind, limit, sizes in program:
            if kind == "all":
                most = max(most, limit)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call, kind, limit)
                    for size in sizes:
                        await check()
                        arrive(size)
                    await check()
                    scope.cancel()
            await check()
            if refused:
                return
        if end:
            arrive(1, at_end=True)
            returned.extend(await receiver.receive_all(len(arrived)))
            assert returned == arrived
            assert host.consumed == len(arrived)
            assert host.log[-1] == "let go of receiving"

    trio.run(main)
