"""Frames, messages, sequences and batches, as they travel in streams (floor 4).

Code that works with bare QUIC connections uses these names;
:class:`phoenix_trio.PhoenixConnection` has all of it as methods.
"""

from .batching import BatchReceiver, BatchSender, open_batch_sender, open_batching_channel
from .broadcast import Broadcast, BroadcastStatistics, SubscriberSummary
from .framing import FrameDecoder, FrameTooLarge, FramingError, encode_frame, encode_varint
from .generator import SequenceReceiver, send_sequence
from .kinds import StreamKind
from .limits import Limits, PeerLimits, encode_limits, read_limits
from .messages import MessageReceiver, MessageRefused, receive_message, send_message
from .reader import StreamReader

__all__ = [
    "BatchReceiver",
    "BatchSender",
    "Broadcast",
    "BroadcastStatistics",
    "FrameDecoder",
    "FrameTooLarge",
    "FramingError",
    "Limits",
    "MessageReceiver",
    "MessageRefused",
    "PeerLimits",
    "SequenceReceiver",
    "StreamKind",
    "StreamReader",
    "SubscriberSummary",
    "encode_frame",
    "encode_limits",
    "encode_varint",
    "open_batch_sender",
    "open_batching_channel",
    "read_limits",
    "receive_message",
    "send_message",
    "send_sequence",
]
