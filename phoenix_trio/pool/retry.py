"""Decides which failed calls are made again, and makes them.

Floor 4.  Knows what errors say about a call, and nothing of connections.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from ..errors import (
    ApplicationErrorCode,
    ConnectionBroken,
    ConnectionRefused,
    HandshakeFailed,
    HandshakeTimedOut,
    ServerUnreachable,
    StreamBroken,
)
from ..validators import integer
from .config import Backoff

__all__ = ["Retry"]

T = TypeVar("T")

#: Stream codes that a peer sends by itself when it goes: nothing is wrong with the call.
_PASSING_CODES = (ApplicationErrorCode.CANCELLED, ApplicationErrorCode.SHUTTING_DOWN)

#: Handshake failures that may not occur the next time.  Others, such as an untrusted
#: certificate, will.
_PASSING_HANDSHAKES = (ConnectionRefused, HandshakeTimedOut, ServerUnreachable)


@attrs.frozen(kw_only=True)
class Retry:
    """Which failed calls are made again, how often, and after what pauses.

    A call is made again where its error says that the peer's application has seen nothing of
    it (``processed`` is ``False``), and where no connection could be had because the server
    refused it or did not answer.  Where that is not known, it is made again only if
    `idempotent` says that this does no harm.

    Args:
      attempts: The most times that a call is made, the first time included.
        Default: 6 (1 to 1,000,000).

        6: with the default pauses that takes 0.8 to 1.6 seconds, in which a client has moved
        from a server that shuts down to another one.
      backoff: The pause before each further attempt.
        Default: Backoff(initial=0.05, maximum=2.0).

        50 ms, and twice as long each time: another connection is most often there at once.
      idempotent: Whether the call may be made again although the peer may have acted on it.
        Default: False.

        False: the library cannot know what a call does.

    Raises:
      TypeError: a field has the wrong type; the text names the field.
      ValueError: a field is out of range.
    """

    attempts: int = attrs.field(default=6, validator=integer(1, 1_000_000))
    backoff: Backoff = attrs.field(
        default=Backoff(initial=0.05, maximum=2.0), validator=attrs.validators.instance_of(Backoff)
    )
    idempotent: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    def allows(self, error: BaseException) -> bool:
        """Whether a call that raised `error` may be made again."""
        if isinstance(error, HandshakeFailed):
            return isinstance(error, _PASSING_HANDSHAKES) and (
                error.processed is False or self.idempotent
            )
        if isinstance(error, (ConnectionBroken, StreamBroken)) and error.processed is False:
            return True
        if not self.idempotent:
            return False
        if isinstance(error, StreamBroken):
            return error.error_code in _PASSING_CODES
        return isinstance(error, ConnectionBroken)

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call until it succeeds, or may not be made again; returns what it returns.

        Args:
          call: leases a connection and uses it, each time anew: the one on which it has
            failed takes no more.

        Cancellation: as that of `call`, and of a pause between calls.

        Raises:
          Whatever the last call raises.
        """
        source = random.Random()  # noqa: S311 - jitter, no secret
        failures = 0
        while True:
            try:
                return await call()
            except (ConnectionBroken, StreamBroken) as error:
                failures += 1
                if failures >= self.attempts or not self.allows(error):
                    raise
            await trio.sleep(self.backoff.delay(failures, source))
