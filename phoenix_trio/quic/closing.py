"""Answers for a connection which is over, from a few hundred bytes instead of an engine.

Floor 0, sans-IO.  For the driver.  After CONNECTION_CLOSE was sent or received, RFC 9000
section 10.2 wants late packets to be recognised for three probe timeouts: a closing
connection answers some of them with its CONNECTION_CLOSE, a draining one is silent.
Neither needs keys, streams or TLS, so the engine is freed when that period begins, and
this takes its place.  Most methods have nothing to do: they are there because the driver
treats both alike.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ClosingConnection"]

#: UDP payloads of one size in one piece of memory, their destination, that size, and their
#: ECN codepoint, as the engine gives them to the driver.
_Run = tuple[bytes | memoryview, Any, int, int]


class ClosingConnection:
    """A connection in its closing or draining period.

    Args:
      answer: what carried our CONNECTION_CLOSE; empty: stay silent.
      until: when the period ends; ``None``: there is none.
    """

    __slots__ = ("_answer", "_answer_due", "_received", "_until")

    is_over = True
    is_ending = True
    has_events = False
    has_full_packet = False
    reset_tokens_changed = False

    def __init__(self, answer: list[_Run], until: float | None) -> None:
        self._answer = answer
        self._answer_due = False
        self._received = 0
        self._until = until

    @property
    def is_terminated(self) -> bool:
        """Whether the period is over."""
        return self._until is None

    @property
    def end_deadline(self) -> float | None:
        """When the period ends."""
        return self._until

    def receive(self, data: bytes, address: Any, now: float, mark: int = 0) -> None:
        """RFC 9000 section 10.2.1: answer fewer and fewer of the packets which still come."""
        self._received += 1
        self._answer_due = self._received & (self._received - 1) == 0

    def receive_run(
        self,
        data: bytes | bytearray,
        start: int,
        size: int,
        address: Any,
        now: float,
        mark: int = 0,
        stop: int | None = None,
    ) -> int:
        """Take one datagram of a run; returns where it ends."""
        self.receive(b"", address, now, mark)
        return min(start + size, len(data) if stop is None else stop)

    def transmit(self, now: float, slab: bytearray | None = None) -> list[_Run]:
        """The answer, when one is due."""
        if not self._answer_due:
            return []
        self._answer_due = False
        return list(self._answer)

    def next_deadline(self) -> float | None:
        """When to call :meth:`on_timer`."""
        return self._until

    def on_timer(self, now: float) -> None:
        """The period is over once its deadline has come."""
        if self._until is not None and now >= self._until:
            self._until = None

    def begin_pass(self) -> None:
        """Nothing is held back."""

    def has_more_to_send(self, now: float) -> bool:
        """An answer is all there is."""
        return False

    def only_acknowledgement_due(self) -> float | None:
        """Nothing is acknowledged any more."""
        return None

    def take_events(self) -> list[Any]:
        """Nothing happens any more."""
        return []

    def peer_reset_tokens(self) -> set[bytes]:
        """A stateless reset makes no difference now."""
        return set()

    def on_stateless_reset(self, now: float) -> None:
        """It is over already."""

    def on_handshake_timeout(self) -> None:
        """It is over already."""

    def close_application(self, error_code: int, reason: str) -> None:
        """It is closed already."""
