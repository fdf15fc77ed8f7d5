"""The tools of the hostile tests do what they say."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.hostile.conftest import Figure
from tests.hostile.world import World, sealed_initial


async def test_a_forged_initial_is_authenticated_by_the_server(
    autojump_clock: MockClock, figure: Figure
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        crypto_frame = b"\x06\x00\x04abcd"  # not a ClientHello
        answers = await world.say(sealed_initial(crypto_frame, destination_cid=b"12345678"))
        assert answers, "the server has read the frame, and closes"
        figure("bytes of the answer", sum(map(len, answers)), "B")
        nursery.cancel_scope.cancel()
