"""Keeps peers from filling the logs.

Floor 0, sans-IO.  A fault of a peer is reported by the exception for the application, and logged
at debug level only.  A fault of this side is logged as an error.  If a peer can provoke it again
and again, a filter drops all but a few of the records.
"""

from __future__ import annotations

import logging

from .rate_limit import RateLimit

__all__ = ["BoundedRecords", "bounded_logger"]

#: Records a second, and at once, of one place in the code.
RECORDS_PER_SECOND = 1.0
RECORDS_AT_ONCE = 100


class BoundedRecords(logging.Filter):
    """Passes a burst of warnings and errors from each place in the code, then few a second.

    The first record after dropped ones tells their number.
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


def bounded_logger(name: str) -> logging.Logger:
    """The logger of this name; its records are bounded.

    A logger's filter applies to the records of that logger alone, not to the loggers below it.
    """
    logger = logging.getLogger(name)
    if not any(isinstance(each, BoundedRecords) for each in logger.filters):
        logger.addFilter(BoundedRecords())
    return logger
