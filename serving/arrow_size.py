"""How large the columns of an Arrow stream get, read from its metadata before anything is unpacked.

Each record batch says how many values and which buffers it has; a compressed buffer (LZ4, Zstd)
begins with the length it unpacks to. A reader makes room for what these say, so these are added up.
The metadata are FlatBuffers, of which this reads the few members that it needs.
https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# A value takes so much once it is in memory or text, however few bits or bytes stand for it.
PER_VALUE = 8
_GOES_ON = 0xFFFFFFFF
# Members by their numbers: of Message, DictionaryBatch, RecordBatch; kinds of messages.
_KIND, _HEADER, _BODY = 1, 2, 3
_DATA = 1
_NODES, _BUFFERS, _COMPRESSION = 1, 2, 3
_DICTIONARY, _BATCH = 2, 3
_PAIR = 16  # nodes are (length, nulls), buffers (offset, length), both of int64
_LENGTH = 8
_PLAIN = -1


def unpacked_bytes(data: bytes) -> int:
    """Bytes that the columns of an Arrow stream take in memory, at least about.

    Raises:
        ValueError: no Arrow stream, or a damaged one.
    """
    try:
        return sum(_batch(data, *batch) for batch in _batches(data))
    except (struct.error, IndexError) as exc:
        raise ValueError("a damaged Arrow stream") from exc


def _batches(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each record batch and dictionary: where its table is, where its body begins and ends."""
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size == _GOES_ON:
            (size,) = struct.unpack_from("<I", data, at)
            at += 4
        if size == 0:
            return
        message = _there(data, at)
        body = at + size
        kind = _member(data, message, _KIND)
        length = _member(data, message, _BODY)
        (count,) = struct.unpack_from("<q", data, length) if length else (0,)
        at = body + count
        if count < 0 or at > len(data):
            raise ValueError("a message of an Arrow stream ends behind it")
        found = data[kind] if kind else 0
        if found in (_DICTIONARY, _BATCH):
            table = _inside(data, message, _HEADER)
            yield _inside(data, table, _DATA) if found == _DICTIONARY else table, body, at


def _batch(data: bytes, table: int, begin: int, end: int) -> int:
    """What a record batch unpacks to."""
    values = 0
    for length, _ in _pairs(data, table, _NODES):
        if length < 0:
            raise ValueError("a column of negative length")
        values += length
    total, packed = 0, bool(_member(data, table, _COMPRESSION))
    for offset, length in _pairs(data, table, _BUFFERS):
        at = begin + offset
        if offset < 0 or length < 0 or at + length > end:
            raise ValueError("a buffer lies outside of its message")
        if packed and length >= _LENGTH:
            (said,) = struct.unpack_from("<q", data, at)
            if said < _PLAIN:
                raise ValueError("a buffer of negative length")
            length = max(length, said)
        total += length
    return max(total, PER_VALUE * values)


def _pairs(data: bytes, table: int, number: int) -> list[tuple[int, int]]:
    """A vector of pairs of int64; a table without it has none."""
    member = _member(data, table, number)
    if not member:
        return []
    at = _there(data, member)
    (count,) = struct.unpack_from("<I", data, at)
    begin = at + 4
    if begin + _PAIR * count > len(data):
        raise ValueError("a list of an Arrow stream ends behind it")
    return list(struct.iter_unpack("<qq", memoryview(data)[begin : begin + _PAIR * count]))


def _inside(data: bytes, table: int, number: int) -> int:
    """The table that is a member of another."""
    member = _member(data, table, number)
    if not member:
        raise ValueError("a message of an Arrow stream without its table")
    return _there(data, member)


def _member(data: bytes, table: int, number: int) -> int:
    """Where a member of a table stands; 0 where the table leaves it out."""
    (back,) = struct.unpack_from("<i", data, table)
    listed = table - back
    if listed < 0:
        raise ValueError("a table of an Arrow stream begins before it")
    (size,) = struct.unpack_from("<H", data, listed)
    place = 4 + 2 * number
    if place + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", data, listed + place)
    return table + offset if offset else 0


def _there(data: bytes, at: int) -> int:
    """Where an offset points to."""
    (offset,) = struct.unpack_from("<I", data, at)
    return int(at + offset)
