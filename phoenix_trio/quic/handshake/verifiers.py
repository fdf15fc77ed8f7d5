"""Asks a function of the application whether to accept a peer, by its certificates.

Floor 0.  For :mod:`~phoenix_trio.quic.handshake.tls`, which takes such functions, and for
handshakes, which call them.  A mistake in one never lets a peer in: what it returns is
checked, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias

from cryptography import x509

__all__ = ["Verifier", "ask_verifier", "check_verifier"]

#: Takes the peer's certificates, its own first, and the name which was dialled (``None`` on a
#: server).  It returns ``None`` to accept the peer, and raises an exception to reject it.
Verifier: TypeAlias = Callable[[list[x509.Certificate], str | None], None]

#: Frames between the place which catches a verifier's exception and the verifier.
_FRAMES_OF_OURS = 2


def check_verifier(verify: object) -> None:
    """Whether it can be one.

    Raises:
      TypeError: it cannot be called, or is asynchronous.
    """
    if not callable(verify):
        raise TypeError(f"verify must be a function, not {verify!r}")
    if inspect.iscoroutinefunction(verify) or inspect.iscoroutinefunction(
        getattr(verify, "__call__", None)  # noqa: B004
    ):
        raise TypeError(
            "verify must not be an async function: it is called in the middle of a handshake, "
            "which waits for no task"
        )


def ask_verifier(
    verify: Verifier, chain: list[x509.Certificate], server_name: str | None
) -> Exception | None:
    """Call the verifier; ``None``: it accepts the peer.

    Returns:
      The exception by which it rejects the peer, with the traceback of the verifier's own
      code.  A result other than ``None`` rejects the peer, too: functions for other libraries
      return ``False`` for that, and a coroutine has decided nothing.
    """
    try:
        _call(verify, chain, server_name)
    except Exception as exc:  # noqa: BLE001
        # Frames of the handshake would keep it in memory for as long as the error is kept.
        traceback = exc.__traceback__
        for _ in range(_FRAMES_OF_OURS):
            traceback = None if traceback is None else traceback.tb_next
        return exc.with_traceback(traceback)
    return None


def _call(verify: Callable[..., object], chain: list[x509.Certificate], name: str | None) -> None:
    result = verify(chain, name)
    if result is None:
        return
    if inspect.iscoroutine(result):
        result.close()  # else Python warns that it was never awaited
    raise TypeError(
        "verify must return None to accept a peer, and raise an exception to reject it; it "
        f"returned {result if isinstance(result, bool) else type(result)!r}"
    )
