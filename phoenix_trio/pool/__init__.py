"""Many connections (floor 4): the pool and striped transfers.

Code that works with bare QUIC connections uses these names;
:class:`phoenix_trio.PhoenixTransport` has all of it as methods.
"""

from .config import Backoff, PoolConfig
from .hub import TransferHub, serve_hub
from .lease import Lease
from .pool import ConnectionPool, open_pool
from .receiving import IncomingTransfer
from .retry import Retry
from .statistics import PoolStatistics, TargetStatistics
from .targets import Target, parse_target
from .transfer_errors import (
    ChecksumMismatch,
    TransferAbandoned,
    TransferCode,
    TransferFailed,
    TransferInterrupted,
    TransferRefused,
    TransferUnconfirmed,
)
from .transfer_summary import TransferSummary

__all__ = [
    "Backoff",
    "ChecksumMismatch",
    "ConnectionPool",
    "IncomingTransfer",
    "Lease",
    "PoolConfig",
    "PoolStatistics",
    "Retry",
    "Target",
    "TargetStatistics",
    "TransferAbandoned",
    "TransferCode",
    "TransferFailed",
    "TransferHub",
    "TransferInterrupted",
    "TransferRefused",
    "TransferSummary",
    "TransferUnconfirmed",
    "open_pool",
    "parse_target",
    "serve_hub",
]
