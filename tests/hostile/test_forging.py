"""The tools of the hostile tests work as documented."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.hostile.conftest import Figure
from tests.hostile.world import World
from tests.packets import crypto_frame, sealed_initial


async def test_a_forged_initial_is_authenticated_by_the_server(
    autojump_clock: MockClock, figure: Figure
) -> None:
    async with trio.open_nursery() as nursery:
        world = await World(nursery).start()
        no_hello = crypto_frame(0, b"abcd")
        answers = await world.say(sealed_initial(no_hello, destination_cid=b"12345678"))
        assert answers, "the server has read the frame, and closes"
        figure("bytes of the answer", sum(map(len, answers)), "B")
        nursery.cancel_scope.cancel()
