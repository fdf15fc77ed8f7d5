"""Incoming datagrams: bounded in number and in bytes, the oldest dropped first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.quic.established.datagram_queue import DatagramQueue
from phoenix_trio.quic.established.memory_budget import MemoryBudget

MINIMUM = 16 * 1024
LIMIT = 1024 * 1024


def test_too_many_datagrams_push_the_oldest_out() -> None:
    queue = DatagramQueue(3, MemoryBudget(LIMIT, MINIMUM))
    for number in range(5):
        queue.append(b"%d" % number)
    assert [queue.popleft() for _ in range(3)] == [b"2", b"3", b"4"]
    assert queue.dropped == 2
    assert not len(queue)


def test_large_datagrams_share_the_memory_of_the_endpoint() -> None:
    budget = MemoryBudget(LIMIT, MINIMUM)
    queues = [DatagramQueue(256, budget) for _ in range(100)]
    accounts = [budget.open() for _ in queues]  # of their connections
    for _ in range(50):
        for queue in queues:
            queue.append(bytes(60_000))
    assert sum(queue.size for queue in queues) <= LIMIT + 100 * 60_000
    assert budget.used <= LIMIT
    assert all(len(queue) for queue in queues), "the newest always has room"
    for queue in queues:
        while len(queue):
            queue.popleft()
    assert budget.used == 0
    del accounts


@given(st.lists(st.one_of(st.none(), st.integers(0, 70_000)), max_size=80))
def test_what_is_left_comes_out_in_order_and_memory_is_given_back(
    operations: list[int | None],
) -> None:
    budget = MemoryBudget(LIMIT, MINIMUM)
    account = budget.open()
    queue = DatagramQueue(20, budget)
    model: list[bytes] = []
    number = 0
    for size in operations:
        if size is not None:
            number += 1
            data = number.to_bytes(2, "big") + bytes(size)
            queue.append(data)
            model.append(data)
            del model[: len(model) - len(queue)]
        elif model:
            assert queue.popleft() == model.pop(0)
        assert len(queue) == len(model) <= 20
        assert queue.size == sum(map(len, model))
        assert budget.used <= LIMIT
        assert len(queue) <= 1 or queue.size <= budget.used + MINIMUM
    while len(queue):
        queue.popleft()
    assert budget.used == 0
    account.close()
