"""Encodes and decodes ledgers: the written ranges of a part, and their checksums.

Floor 4, pure: no files.  A ledger is a header and records of one size, only ever appended
to; ``docs/striped-transfer.md`` has the layout.  Each record states that one range of the
part was written, and has the CRC-32 of its bytes, so that the bytes on the disk can be checked
after a kill or a power cut.  Records follow each other without a gap, since a part is written
in order.

No part of a ledger is trusted before it was checked: it may be torn, damaged, of another
transfer, or written by another program.
"""

from __future__ import annotations

import struct
import zlib

import attrs

__all__ = [
    "HEADER_SIZE",
    "IDENTITY_SIZE",
    "MAX_LEDGER_SIZE",
    "RECORD_SIZE",
    "Header",
    "LedgerRefused",
    "Span",
    "decode_ledger",
    "encode_header",
    "encode_record",
    "least_span",
    "next_stop",
]

_MAGIC = b"PHXLEDG1"
_UNKNOWN = 2**64 - 1
_HEADER = struct.Struct(">8sQ32s")
_RECORD = struct.Struct(">QQI")
_CRC = struct.Struct(">I")

HEADER_SIZE = _HEADER.size + _CRC.size
RECORD_SIZE = _RECORD.size + _CRC.size

#: Bytes of the digest that identifies the transfer of a ledger.
IDENTITY_SIZE = 32

#: Larger ledgers are neither read nor written: 37,000 records.  As spans grow with the
#: part (:func:`least_span`), a part of 2**62 bytes has 24,000.
MAX_LEDGER_SIZE = 1024 * 1024

_MEBIBYTE = 1024 * 1024


class LedgerRefused(ValueError):
    """These bytes are no ledger of this transfer; the text says why."""


@attrs.frozen
class Header:
    """The facts that both attempts of a transfer share."""

    size: int | None
    """Bytes in all, if the sender has announced that."""
    identity: bytes
    """32 bytes, equal for attempts of the same transfer only."""


@attrs.frozen
class Span:
    """A range of a part, and the CRC-32 of its bytes."""

    start: int
    stop: int
    crc: int


def least_span(start: int) -> int:
    """The fewest bytes that a record beginning at `start` should cover.

    A mebibyte, or a thousandth of the bytes before it if that is more, so that ledgers stay small.
    """
    return max(_MEBIBYTE, start // 1024)


def next_stop(start: int) -> int:
    """Where a record beginning at `start` should end: at a whole mebibyte.

    Stripes of any usual size end there, too, so that another stripe size costs nothing when
    a part is continued.
    """
    stop = start + least_span(start) + _MEBIBYTE - 1
    return stop - stop % _MEBIBYTE


def encode_header(header: Header) -> bytes:
    """The first bytes of a ledger."""
    size = _UNKNOWN if header.size is None else header.size
    fields = _HEADER.pack(_MAGIC, size, header.identity)
    return fields + _CRC.pack(zlib.crc32(fields))


def encode_record(header: bytes, span: Span) -> bytes:
    """A record for a ledger that begins with these bytes.

    The record's own CRC covers the header, too, so a record left from another ledger
    does not count.
    """
    fields = _RECORD.pack(span.start, span.stop - span.start, span.crc)
    return fields + _CRC.pack(zlib.crc32(fields, zlib.crc32(header)))


def decode_ledger(data: bytes, header: Header) -> list[Span]:
    """The spans of a ledger, in order, from the beginning of the part on.

    A tail without a valid record was torn, and is left out.

    Raises:
      LedgerRefused: it is not a ledger, is of another transfer, or is damaged in the middle.
    """
    if len(data) > MAX_LEDGER_SIZE:
        raise LedgerRefused(f"it has more than {MAX_LEDGER_SIZE} bytes")
    beginning = encode_header(header)
    if not data.startswith(beginning):
        raise LedgerRefused(_why(data, header))
    spans: list[Span] = []
    torn = False
    for at in range(HEADER_SIZE, len(data) - RECORD_SIZE + 1, RECORD_SIZE):
        start, length, crc = _RECORD.unpack_from(data, at)
        span = Span(start, start + length, crc)
        if data[at : at + RECORD_SIZE] != encode_record(beginning, span):
            torn = True
            continue
        if torn:
            raise LedgerRefused("it is damaged in the middle")
        if not length or start != (spans[-1].stop if spans else 0):
            raise LedgerRefused(f"its ranges do not follow each other at byte {start}")
        if header.size is not None and span.stop > header.size:
            raise LedgerRefused(f"it has ranges up to byte {span.stop} of {header.size}")
        spans.append(span)
    return spans


def _why(data: bytes, header: Header) -> str:
    """The fault in the header of a ledger."""
    if len(data) < HEADER_SIZE:
        return f"it has only {len(data)} bytes"
    magic, size, _identity = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return "it is no ledger of this version"
    if data[_HEADER.size : HEADER_SIZE] != _CRC.pack(zlib.crc32(data[: _HEADER.size])):
        return "its header is damaged"
    found = None if size == _UNKNOWN else size
    if found != header.size:
        return f"it is of a transfer of {found} bytes, not {header.size}"
    return "it is of another transfer"
