"""Lone exceptions leave nurseries unwrapped."""

from __future__ import annotations

import pytest
import trio

from phoenix_trio.quic.groups import unwrap_lone


async def test_a_lone_exception_leaves_as_itself_with_its_context() -> None:
    with pytest.raises(ValueError, match="lone") as caught:
        with unwrap_lone():
            async with trio.open_nursery():
                try:
                    raise KeyError("first")
                except KeyError:
                    raise ValueError("lone")  # noqa: B904
    assert isinstance(caught.value.__context__, KeyError)


async def test_a_lone_exception_beside_cancelled_siblings_is_still_lone() -> None:
    with pytest.raises(ValueError, match="lone"):
        with unwrap_lone():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)
                raise ValueError("lone")


async def test_several_exceptions_stay_a_group() -> None:
    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        with unwrap_lone():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, ValueError())
                nursery.start_soon(fail, KeyError())
    assert len(caught.value.exceptions) == 2


async def test_cancellation_passes_through() -> None:
    with trio.CancelScope() as scope:
        with unwrap_lone():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught
