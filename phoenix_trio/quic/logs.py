"""Keeps what peers do from filling the logs.

Floor 0, sans-IO.  For the engine and the driver.  A fault of a peer is reported by the
exception which the application gets, and logged at debug level only.  A fault of ours
is logged as an error; where a peer can provoke it again and again, a filter drops all
but a few of the records.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from .rate_limit import RateLimit

__all__ = ["BoundedRecords", "PeerFaults"]

#: Records a second, and at once, of one place in the code.
RECORDS_PER_SECOND = 1.0
RECORDS_AT_ONCE = 100


class BoundedRecords(logging.Filter):
    """Lets a burst of warnings and errors of each place in the code through, then few a second.

    The first record which passes after others were dropped says how many.
    """

    def __init__(self) -> None:
        super().__init__()
        self._limits: dict[tuple[str, int], RateLimit] = {}
        self._dropped: dict[tuple[str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if record.levelno < logging.WARNING:
            return True
        place = record.pathname, record.lineno
        limit = self._limits.get(place)
        if limit is None:
            limit = self._limits[place] = RateLimit(RECORDS_PER_SECOND, RECORDS_AT_ONCE)
        if not limit.allows(record.created):
            self._dropped[place] = self._dropped.get(place, 0) + 1
            return False
        dropped = self._dropped.pop(place, 0)
        if dropped:
            record.msg = f"{record.msg} (and {dropped} more like this, not logged)"
        return True


# (A logger's filter sees the records of that logger only.)  The first reports errors of
# handlers, which a peer may provoke as well.
for name in ("phoenix_trio", "phoenix_trio.quic"):
    logging.getLogger(name).addFilter(BoundedRecords())


class PeerFaults(logging.LoggerAdapter[logging.Logger]):
    """In the place of aioquic's logger for one connection: nothing above debug level.

    aioquic writes a warning for each protocol error of a peer, which thus decides how much
    is logged.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        """Name the connection by its original destination connection ID."""
        assert self.extra is not None
        return f"[{self.extra['id']}] {msg}", kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log at debug level, whatever `level` says."""
        # (Asked first and at the logger itself: a handshake has twenty records.)
        if self.logger.isEnabledFor(logging.DEBUG):
            super().log(min(level, logging.DEBUG), msg, *args, **kwargs)

    def debug(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log at debug level."""
        if self.logger.isEnabledFor(logging.DEBUG):
            super().debug(msg, *args, **kwargs)
