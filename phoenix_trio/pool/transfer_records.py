"""Encodes and decodes the records of a striped transfer.

Floor 4, sans-IO: bytes in, data out.  Knows neither streams nor what the records
mean for a transfer.  ``docs/striped-transfer.md`` has the layouts.

A record is its type as a variable-length integer (RFC 9000 section 16), then a
frame with its payload, so that a receiver can skip records whose types a later version
adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeAlias

import attrs

from ..quic.wire.varint import decode_varint
from ..streams.framing import FramingError, encode_frame, encode_varint

__all__ = [
    "MAX_METADATA_SIZE",
    "MAX_RECORD_SIZE",
    "SMALLEST_STRIPE",
    "SHA256",
    "TRANSFER_ID_SIZE",
    "VERSION",
    "Accepted",
    "Credit",
    "End",
    "Manifest",
    "Received",
    "Record",
    "RecordType",
    "Skipped",
    "Verdict",
    "check_labels",
    "decode_record",
    "encode_record",
    "encode_stripe_header",
    "split_ranges",
]

TRANSFER_ID_SIZE = 16

#: The most bytes of metadata in a manifest.
MAX_METADATA_SIZE = 16 * 1024

#: The most bytes of a record's payload; only a record with full metadata comes near it.
MAX_RECORD_SIZE = 20 * 1024

#: Smaller stripes cost more in bookkeeping than they carry.
SMALLEST_STRIPE = 1024

#: The most ranges in one RECEIVED record: 1024 pairs of at most 8 + 8 bytes.
_RANGES_A_RECORD = 1024

DIGEST_SIZE = 32

#: Checksum kinds.
SHA256 = 1

#: The version of the format.
VERSION = 1
_HAS_SIZE = 1
_CONTINUES = 2
_MAY_RESUME = 4


class RecordType(IntEnum):
    """The first varint of each record."""

    MANIFEST = 0x1
    END = 0x2
    ACCEPTED = 0x3
    CREDIT = 0x4
    RECEIVED = 0x5
    VERDICT = 0x6
    SKIPPED = 0x7


@attrs.frozen(kw_only=True)
class Manifest:
    """TRANSFER, first: describes the data that the sender is about to send."""

    stripe_size: int
    """Bytes of a stripe; the receiver may choose less."""
    window: int
    """The most bytes that the sender would like to have under way."""
    size: int | None = None
    """Bytes in all; ``None``: not known yet."""
    continues: bool = False
    """Whether the receiver must know the transfer already."""
    may_resume: bool = False
    """Whether the receiver may have kept a part of an earlier attempt: it gives credit only
    when it knows how much."""
    checksum: int = SHA256
    version: int = VERSION
    metadata: bytes = b""


@attrs.frozen
class End:
    """TRANSFER, last: how many bytes there are in all, and their checksum."""

    size: int
    digest: bytes


@attrs.frozen
class Accepted:
    """TRANSFER_REPLY, first: the stripe size in effect."""

    stripe_size: int


@attrs.frozen
class Credit:
    """TRANSFER_REPLY: the offset up to which stripes may be sent."""

    limit: int


@attrs.frozen
class Received:
    """TRANSFER_REPLY: the receiver has these bytes; (start, stop) pairs."""

    ranges: tuple[tuple[int, int], ...]


@attrs.frozen
class Verdict:
    """TRANSFER_REPLY, last: how it ended; size and digest as the receiver computed them."""

    code: int
    size: int = 0
    digest: bytes = b""


@attrs.frozen
class Skipped:
    """TRANSFER: the source was read up to this offset; the receiver has the bytes already.

    Tells the receiver that the sender is at work, although no stripe comes.
    """

    stop: int


Record: TypeAlias = Manifest | End | Accepted | Credit | Received | Verdict | Skipped


def check_labels(metadata: object, transfer_id: object) -> None:
    """Check whether a transfer can have these labels.

    Raises:
      TypeError: one of them is not bytes-like.
      ValueError: the metadata are too long, or the ID has a wrong length.
    """
    if not isinstance(metadata, bytes | bytearray | memoryview):
        raise TypeError(f"metadata must be bytes, not {type(metadata).__name__}")
    size = memoryview(metadata).nbytes
    if size > MAX_METADATA_SIZE:
        raise ValueError(f"metadata may have {MAX_METADATA_SIZE} bytes, not {size}")
    if transfer_id is None:
        return
    if not isinstance(transfer_id, bytes | bytearray | memoryview):
        raise TypeError(f"transfer_id must be bytes, not {type(transfer_id).__name__}")
    if memoryview(transfer_id).nbytes != TRANSFER_ID_SIZE:
        raise ValueError(f"transfer_id must have {TRANSFER_ID_SIZE} bytes, as in the error")


def encode_stripe_header(offset: int, length: int) -> bytes:
    """The bytes before the bytes of a stripe on a STRIPES stream."""
    return encode_varint(offset) + encode_varint(length)


def split_ranges(ranges: Iterable[tuple[int, int]]) -> Iterator[Received]:
    """As many RECEIVED records as these ranges need."""
    batch: list[tuple[int, int]] = []
    for pair in ranges:
        batch.append(pair)
        if len(batch) == _RANGES_A_RECORD:
            yield Received(tuple(batch))
            batch = []
    if batch:
        yield Received(tuple(batch))


def encode_record(record: Record) -> bytes:
    """A record, type and length included."""
    kind: RecordType
    parts: list[bytes]
    match record:
        case Manifest():
            kind = RecordType.MANIFEST
            flags = _HAS_SIZE if record.size is not None else 0
            flags |= _CONTINUES if record.continues else 0
            flags |= _MAY_RESUME if record.may_resume else 0
            numbers = [record.version, flags, record.stripe_size, record.checksum, record.window]
            if record.size is not None:
                numbers.append(record.size)
            parts = [encode_varint(number) for number in numbers]
            parts.append(encode_frame(record.metadata))
        case End(size, digest):
            kind = RecordType.END
            parts = [encode_varint(size), digest]
        case Accepted(stripe_size):
            kind = RecordType.ACCEPTED
            parts = [encode_varint(stripe_size)]
        case Credit(limit):
            kind = RecordType.CREDIT
            parts = [encode_varint(limit)]
        case Received(ranges):
            kind = RecordType.RECEIVED
            parts = []
            for start, stop in ranges:
                parts += (encode_varint(start), encode_varint(stop - start))
        case Verdict(code, size, digest):
            kind = RecordType.VERDICT
            parts = [encode_varint(code), encode_varint(size), digest]
        case Skipped(stop):
            kind = RecordType.SKIPPED
            parts = [encode_varint(stop)]
    return encode_varint(kind) + encode_frame(b"".join(parts))


class _Fields:
    """The fields of one payload, from its beginning."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._payload)

    def number(self) -> int:
        try:
            number, self._at = decode_varint(self._payload, self._at)
        except IndexError:
            raise FramingError("a record ends before a number does") from None
        return number

    def take(self, size: int) -> bytes:
        at = self._at
        if at + size > len(self._payload):
            raise FramingError("a record is too short")
        self._at = at + size
        return self._payload[at : at + size]


def decode_record(kind: int, payload: bytes) -> Record | None:
    """A record from its type and payload; ``None``: the type is unknown here.

    Bytes after the fields known here belong to a later version, and are
    ignored.

    Raises:
      FramingError: the payload is too short, or a field is impossible.
    """
    fields = _Fields(payload)
    match kind:
        case RecordType.MANIFEST:
            return _decode_manifest(fields)
        case RecordType.END:
            return End(fields.number(), fields.take(DIGEST_SIZE))
        case RecordType.ACCEPTED:
            stripe_size = fields.number()
            if stripe_size < SMALLEST_STRIPE:
                raise FramingError(f"a stripe size of {stripe_size} bytes is too small")
            return Accepted(stripe_size)
        case RecordType.CREDIT:
            return Credit(fields.number())
        case RecordType.RECEIVED:
            ranges = []
            while not fields.at_end:
                start, length = fields.number(), fields.number()
                ranges.append((start, start + length))
            return Received(tuple(ranges))
        case RecordType.VERDICT:
            code, size = fields.number(), fields.number()
            return Verdict(code, size, b"" if fields.at_end else fields.take(DIGEST_SIZE))
        case RecordType.SKIPPED:
            return Skipped(fields.number())
    return None


def _decode_manifest(fields: _Fields) -> Manifest:
    version = fields.number()
    if version != VERSION:
        # The fields that follow are unknown; a refusal needs no more than the version.
        return Manifest(version=version, stripe_size=SMALLEST_STRIPE, window=SMALLEST_STRIPE)
    flags, stripe_size, checksum, window = (fields.number() for _ in range(4))
    size = fields.number() if flags & _HAS_SIZE else None
    if stripe_size < SMALLEST_STRIPE:
        raise FramingError(f"a stripe size of {stripe_size} bytes is too small")
    length = fields.number()
    if length > MAX_METADATA_SIZE:
        raise FramingError(f"metadata of {length} bytes are too long")
    return Manifest(
        version=version,
        stripe_size=stripe_size,
        window=window,
        size=size,
        continues=bool(flags & _CONTINUES),
        may_resume=bool(flags & _MAY_RESUME),
        checksum=checksum,
        metadata=fields.take(length),
    )
