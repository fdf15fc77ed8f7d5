"""A peer must not decide how much is logged."""

from __future__ import annotations

import logging

import pytest

from phoenix_trio.quic import connection_end, driver, server
from phoenix_trio.quic.logs import RECORDS_AT_ONCE, BoundedRecords, bounded_logger


@pytest.mark.parametrize("module", [connection_end, driver, server])
def test_errors_which_peers_may_provoke_are_bounded(module: object) -> None:
    logger: logging.Logger = module.logger  # type: ignore[attr-defined]
    assert len([each for each in logger.filters if isinstance(each, BoundedRecords)]) == 1


def test_a_logger_is_bounded_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = bounded_logger("phoenix_trio.test_logs")
    assert bounded_logger("phoenix_trio.test_logs") is logger
    assert len(logger.filters) == 1
    for number in range(RECORDS_AT_ONCE + 20):
        logger.error("fault %d", number)
    assert RECORDS_AT_ONCE <= len(caplog.records) < RECORDS_AT_ONCE + 20
