"""Whether a stream which a pool keeps can still be used: what `is_readable` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from phoenix_trio import QuicStream
from tests.support import connected_pair, stream_pair


async def end(stream: QuicStream) -> None:
    await stream.send_eof()


async def reset(stream: QuicStream) -> None:
    stream.reset(5)


async def abort(stream: QuicStream) -> None:
    stream.connection.abort(5)


@pytest.mark.parametrize("finish", [end, reset, abort])
async def test_an_idle_stream_is_readable_once_its_peer_has_ended_it(
    finish: Callable[[QuicStream], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await trio.sleep(1)
        assert not ours.is_readable
        assert not ours.receive_stream.is_readable
        await finish(theirs)
        await trio.sleep(1)
        assert ours.is_readable
        assert ours.receive_stream.is_readable


async def test_a_stream_is_readable_while_it_holds_data(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await theirs.send_all(b"two")
        await trio.sleep(1)
        for _ in range(3):
            assert ours.is_readable
            await ours.receive_some(1)
        assert not ours.is_readable


async def test_a_stream_which_was_closed_here_is_readable(autojump_clock: MockClock) -> None:
    async with connected_pair() as (client, server):
        ours, _ = await stream_pair(client, server)
        await ours.aclose()
        assert ours.is_readable
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive_some()
