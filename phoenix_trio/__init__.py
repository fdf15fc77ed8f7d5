"""QUIC for Trio: connections and streams owned by nurseries.

The public face: names only.  Start with :func:`open_connection` and
:func:`serve`; see the documentation for a tutorial.
"""

from typing import TYPE_CHECKING

from .config import TransportConfig
from .errors import (
    ApplicationErrorCode,
    CertificateExpired,
    CertificateNameMismatch,
    CertificatePinMismatch,
    CertificateUntrusted,
    ClientCertificateRequired,
    CompressionUnsupported,
    ConnectionBroken,
    ConnectionClosedByPeer,
    ConnectionRefused,
    ConnectionTimedOut,
    DatagramsUnsupported,
    DatagramTooLarge,
    HandshakeFailed,
    HandshakeTimedOut,
    MessageRefusedByPeer,
    MessageTooLarge,
    MigrationFailed,
    MigrationForbidden,
    NoCommonProtocol,
    NoConnectionIdLeft,
    PathNotValidated,
    ProtocolError,
    ServerUnreachable,
    ShuttingDown,
    StatelessReset,
    StreamBroken,
    StreamReset,
    StreamStopped,
    StreamTooLarge,
    VersionNegotiationFailed,
)
from .inspection import open_inspection
from .metrics import (
    ConnectionMetrics,
    ConnectionStatistics,
    EndpointStatistics,
    PathStatistics,
    TransportStatistics,
)
from .pool import (
    Backoff,
    ChecksumMismatch,
    ConnectionPool,
    IncomingTransfer,
    PoolConfig,
    PoolStatistics,
    Retry,
    TargetStatistics,
    TransferAbandoned,
    TransferCode,
    TransferFailed,
    TransferInterrupted,
    TransferRefused,
    TransferSummary,
    TransferUnconfirmed,
    open_pool,
)
from .quic.connection import QuicConnection, QuicStream, ReceiveStream, SendStream
from .quic.endpoint import DEFAULT_ALPN, Endpoint, open_connection
from .quic.handshake.tls import ClientTLS, ServerTLS, SessionStore
from .quic.listener import QuicListener, StreamListener
from .quic.serving import open_listener, open_stream_listener, serve
from .quic.wire.compiled import is_compiled
from .storage.parts import PartLimits
from .streams import (
    BatchReceiver,
    BatchSender,
    Broadcast,
    BroadcastStatistics,
    MessageRefused,
    SequenceReceiver,
    SubscriberSummary,
    open_batching_channel,
)
from .transport import PhoenixTransport, open_phoenix
from .transport_connection import PhoenixConnection
from .worker import Worker
from .workers import WorkersFailed, run_workers

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Say how to get the parts that are not loaded by themselves."""
        if name in ("opentelemetry", "prometheus"):
            raise AttributeError(
                f"phoenix_trio.{name} is loaded on request: write import phoenix_trio.{name}"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "DEFAULT_ALPN",
    "ApplicationErrorCode",
    "CertificateExpired",
    "CertificateNameMismatch",
    "CertificatePinMismatch",
    "CertificateUntrusted",
    "ClientCertificateRequired",
    "ClientTLS",
    "CompressionUnsupported",
    "ConnectionBroken",
    "ConnectionClosedByPeer",
    "ConnectionRefused",
    "ConnectionStatistics",
    "ConnectionTimedOut",
    "DatagramTooLarge",
    "DatagramsUnsupported",
    "Endpoint",
    "EndpointStatistics",
    "HandshakeFailed",
    "HandshakeTimedOut",
    "MessageRefusedByPeer",
    "MessageTooLarge",
    "MigrationFailed",
    "MigrationForbidden",
    "NoCommonProtocol",
    "NoConnectionIdLeft",
    "PathNotValidated",
    "PathStatistics",
    "ProtocolError",
    "QuicConnection",
    "QuicListener",
    "QuicStream",
    "ReceiveStream",
    "SendStream",
    "ServerTLS",
    "ServerUnreachable",
    "SessionStore",
    "ShuttingDown",
    "StatelessReset",
    "StreamBroken",
    "StreamListener",
    "StreamReset",
    "StreamStopped",
    "StreamTooLarge",
    "TransportConfig",
    "VersionNegotiationFailed",
    "__version__",
    "is_compiled",
    "open_connection",
    "open_listener",
    "open_stream_listener",
    "serve",
    "ConnectionMetrics",
    "TransportStatistics",
    "Backoff",
    "ChecksumMismatch",
    "ConnectionPool",
    "IncomingTransfer",
    "PoolConfig",
    "PoolStatistics",
    "Retry",
    "TargetStatistics",
    "TransferAbandoned",
    "TransferCode",
    "TransferFailed",
    "TransferInterrupted",
    "TransferRefused",
    "TransferSummary",
    "TransferUnconfirmed",
    "PartLimits",
    "open_pool",
    "BatchReceiver",
    "BatchSender",
    "Broadcast",
    "BroadcastStatistics",
    "MessageRefused",
    "SequenceReceiver",
    "SubscriberSummary",
    "open_batching_channel",
    "PhoenixTransport",
    "open_phoenix",
    "open_inspection",
    "PhoenixConnection",
    "Worker",
    "WorkersFailed",
    "run_workers",
]
