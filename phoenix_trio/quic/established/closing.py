"""Answers late packets of a closed connection, with a few hundred bytes of state.

Floor 1, sans-IO, used by the driver.  After CONNECTION_CLOSE was sent or received, RFC 9000
section 10.2 requires late packets to be recognised for three probe timeouts: a closing
connection answers some of them with its CONNECTION_CLOSE, a draining one is silent.  Neither
needs streams or TLS, so the engine is freed when that period begins, and a
:class:`ClosingConnection` takes its place.

CONNECTION_CLOSE is not acknowledged, and a peer that misses it waits for its idle timeout.  So
the closing packet is sent again a few times, about a round trip apart, until the peer closes,
too.

Like the engine, the class has a :class:`~phoenix_trio.quic.faces.DriverFace`; most of its
methods do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import events
from ..path_address import Address
from .runs import Run

if TYPE_CHECKING:
    from ..faces import ApplicationFace, DriverFace

__all__ = ["ClosingConnection", "repeat_times"]

#: Times that the closing packet is sent again without an answer from the peer.  Four copies get
#: through 30 % of random loss in 99 of 100 cases.
REPEATS = 3

#: Seconds between copies: at least enough for a busy peer on the same machine to answer, and at
#: most so many that the last copy leaves within a second.
SHORTEST_REPEAT = 0.01
LONGEST_REPEAT = 1 / 3


def repeat_times(now: float, rtt: float, rtt_variance: float) -> list[float]:
    """The times to send the closing packet again if it leaves now; the next one comes last.

    The interval is a probe timeout without the peer's acknowledgement delay (RFC 9002 section
    6.2.1), since a peer closes at once.
    """
    interval = min(max(rtt + 4 * rtt_variance, SHORTEST_REPEAT), LONGEST_REPEAT)
    return [now + interval * number for number in range(REPEATS, 0, -1)]


class ClosingConnection:
    """A connection in its closing or draining period.

    Args:
      answer: the packet with our CONNECTION_CLOSE; empty: stay silent.
      until: the end of the period; ``None``: there is no period.
      repeats: times to send `answer` again unless the peer answers before, the next one last.
      is_close: tells whether a datagram is the peer's CONNECTION_CLOSE.
      room: bytes that may still be sent to the peer's address, before `answer` has left.
        Infinite if the address is validated; otherwise each byte from the address gives room for
        three (RFC 9000 section 8.1).
    """

    __slots__ = ("_answer", "_answer_due", "_is_close", "_received", "_repeats", "_room",
                 "_until")  # fmt: skip

    came_from_one_address = False
    is_over = True
    is_ending = True
    has_events = False
    has_full_packet = False
    reset_tokens_changed = False

    def __init__(
        self,
        answer: list[Run],
        until: float | None,
        repeats: list[float] | None = None,
        is_close: Callable[[bytes], bool] | None = None,
        room: float = math.inf,
    ) -> None:
        self._answer = answer
        self._room = room
        self._answer_due = False
        self._received = 0
        self._until = until
        self._repeats = repeats or []
        self._is_close = is_close

    @property
    def has_close_to_send(self) -> bool:
        """Whether CONNECTION_CLOSE is sent again because the peer may not have received it."""
        return bool(self._repeats) and self._until is not None

    def repeat_close(self) -> None:
        """Send one more copy now, unless the peer has answered; called when the socket closes."""
        if self.has_close_to_send:
            self._answer_due = True

    @property
    def is_terminated(self) -> bool:
        """Whether the period is over."""
        return self._until is None

    @property
    def end_deadline(self) -> float | None:
        """The end of the period."""
        return self._until

    def receive(self, data: bytes, address: Address, now: float, mark: int = 0) -> None:
        """Answer fewer and fewer of the late packets (RFC 9000 section 10.2.1).

        Once the peer has closed, too, this side drains and answers none.
        """
        if self._is_close is not None and self._is_close(data):
            self._answer, self._is_close, self._answer_due = [], None, False
            self._repeats.clear()
        if self._answer and address == self._answer[0][1]:
            self._room += 3 * len(data)
        self._received += 1
        self._answer_due = self._received & (self._received - 1) == 0

    def receive_run(
        self,
        data: bytes | bytearray,
        start: int,
        size: int,
        address: Address,
        now: float,
        mark: int = 0,
        stop: int | None = None,
    ) -> int:
        """Take one datagram of a run; returns where it ends."""
        end = min(start + size, len(data) if stop is None else stop)
        self.receive(bytes(data[start:end]), address, now, mark)
        return end

    def first_answer(self) -> list[Run]:
        """The closing packet itself; nothing if there is no room for it."""
        size = sum(len(run[0]) for run in self._answer)
        if size > self._room:
            return []
        self._room -= size
        return list(self._answer)

    def transmit(self, now: float, slab: bytearray | None = None) -> list[Run]:
        """The answer, when one is due."""
        if not self._answer_due:
            return []
        self._answer_due = False
        return self.first_answer()

    def next_deadline(self) -> float | None:
        """The time to call :meth:`on_timer`."""
        if self._repeats and self._until is not None:
            return min(self._repeats[-1], self._until)
        return self._until

    def on_timer(self, now: float) -> None:
        """Send a copy if one is due; end the period if its deadline has passed."""
        while self._repeats and now >= self._repeats[-1]:
            self._repeats.pop()
            self._answer_due = True
            if not self._repeats:
                self._is_close = None  # no answer makes a difference any more
        if self._until is not None and now >= self._until:
            self._until = None

    def begin_pass(self) -> None:
        """Do nothing: no data is held back."""

    def has_more_to_send(self, now: float) -> bool:
        """False: there is never more than one answer to send."""
        return False

    def only_acknowledgement_due(self) -> float | None:
        """``None``: a closed connection acknowledges nothing."""
        return None

    def take_events(self) -> list[events.Event]:
        """An empty list: a closed connection has no events."""
        return []

    def take_reset_tokens(self) -> set[bytes]:
        """An empty set: a stateless reset makes no difference now."""
        return set()

    def on_stateless_reset(self, now: float) -> None:
        """Do nothing: the connection is over."""

    def on_handshake_timeout(self) -> None:
        """Do nothing: the connection is over."""

    def on_unreachable(self, address: Address, destination_cid: bytes, number: int) -> bool:
        """Do nothing: the connection is over."""
        return False

    def close_application(self, error_code: int, reason: str) -> None:
        """Do nothing: the connection is closed."""

    def release(self) -> tuple[DriverFace, ApplicationFace] | None:
        """``None``: the memory of the connection was freed before."""
        return None
