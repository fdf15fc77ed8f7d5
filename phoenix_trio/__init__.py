"""QUIC for Trio: connections and streams owned by nurseries.

The public face: names only.  Start with :func:`open_connection` and
:func:`serve`; see the documentation for a tutorial.
"""

from .config import TransportConfig
from .errors import (
    ApplicationErrorCode,
    CertificateExpired,
    CertificateNameMismatch,
    CertificatePinMismatch,
    CertificateUntrusted,
    ClientCertificateRequired,
    ConnectionBroken,
    ConnectionClosedByPeer,
    ConnectionRefused,
    ConnectionTimedOut,
    DatagramsUnsupported,
    DatagramTooLarge,
    HandshakeFailed,
    HandshakeTimedOut,
    NoCommonProtocol,
    ProtocolError,
    StatelessReset,
    StreamBroken,
    StreamReset,
    StreamStopped,
    StreamTooLarge,
    VersionNegotiationFailed,
)
from .metrics import (
    ConnectionMetrics,
    ConnectionStatistics,
    EndpointStatistics,
    TransportStatistics,
)
from .pool import (
    Backoff,
    ChecksumMismatch,
    ConnectionPool,
    IncomingTransfer,
    PoolConfig,
    PoolStatistics,
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
    MessageRefused,
    SequenceReceiver,
    open_batching_channel,
)
from .transport import PhoenixTransport, open_phoenix
from .transport_connection import PhoenixConnection

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
    "NoCommonProtocol",
    "ProtocolError",
    "QuicConnection",
    "QuicListener",
    "QuicStream",
    "ReceiveStream",
    "SendStream",
    "ServerTLS",
    "SessionStore",
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
    "MessageRefused",
    "SequenceReceiver",
    "open_batching_channel",
    "PhoenixTransport",
    "open_phoenix",
    "PhoenixConnection",
]
