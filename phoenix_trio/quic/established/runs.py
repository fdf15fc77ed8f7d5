"""Groups datagrams into runs, as the kernel takes them.

Floor 1, sans-IO.
"""

from __future__ import annotations

from typing import TypeAlias

from ...config import MAX_RUN_BYTES, MAX_RUN_SEGMENTS
from ..path_address import Address
from .ecn import NOT_ECT

__all__ = ["Run", "group", "kernel_run"]

#: UDP payloads of one size in one piece of memory (the last may be shorter), their destination
#: (with the local address to send from, if there is a choice), that size, and their ECN
#: codepoint.
Run: TypeAlias = tuple[bytes | memoryview, Address, int, int]


def kernel_run(size: int) -> int:
    """The number of datagrams of `size` bytes that the kernel takes in one run."""
    return max(1, min(MAX_RUN_SEGMENTS, MAX_RUN_BYTES // size))


def group(datagrams: list[tuple[bytes, Address]], mark: int = NOT_ECT) -> list[Run]:
    """Join datagrams of one size and for one address into runs."""
    if len(datagrams) == 1:
        data, address = datagrams[0]
        return [(data, address, len(data), mark)]
    runs: list[Run] = []
    index = 0
    count = len(datagrams)
    while index < count:
        data, address = datagrams[index]
        size = len(data)
        last = index + 1
        longest = index + kernel_run(size)
        while last < count and last < longest and datagrams[last][1] == address:
            following = len(datagrams[last][0])
            if following > size:
                break
            last += 1
            if following < size:
                break
        if last - index > 1:
            data = b"".join([each for each, _ in datagrams[index:last]])
        runs.append((data, address, size, mark))
        index = last
    return runs
