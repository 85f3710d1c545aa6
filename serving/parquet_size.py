"""How large the columns of a Parquet file get, read from its metadata before anything is unpacked.

A file of some kilobytes can hold a column of billions of equal values. Its footer says so, and so
do the headers of its pages, which are what a reader goes by: both are read here, and the larger
word counts. Both are Thrift structs in the compact protocol, of which this reads what Parquet uses.
https://parquet.apache.org/docs/file-format/metadata/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAGIC = b"PAR1"
# A value takes so much once it is in memory, however many of them a run-length code stands for.
PER_VALUE = 8
_FOOTER = 8 << 20
_DEEP = 32
# Members by their numbers: of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, PageHeader.
_ROW_GROUPS, _COLUMNS, _COLUMN = 4, 1, 3
_VALUES, _UNPACKED, _PACKED, _DATA_AT, _DICTIONARY_AT = 5, 6, 7, 9, 11
_PAGE_UNPACKED, _PAGE_PACKED, _PAGES = 2, 3, (5, 7, 8)


def unpacked_bytes(data: bytes) -> int:
    """Bytes that the columns of a Parquet file take in memory, at least about.

    Raises:
        ValueError: no Parquet file, or a damaged one.
    """
    size = int.from_bytes(data[-8:-4], "little")
    begin = len(data) - 8 - size
    if len(data) < 12 or data[-4:] != MAGIC or begin < 4 or size > _FOOTER:
        raise ValueError("no Parquet file")
    try:
        footer, _ = _struct(data, begin, 0)
        total = 0
        for group in footer.get(_ROW_GROUPS, ()):
            for chunk in group.get(_COLUMNS, ()):
                column = chunk[_COLUMN]
                said = max(int(column[_UNPACKED]), PER_VALUE * int(column[_VALUES]))
                total += max(said, sum(_pages(data, column)))
    except (KeyError, IndexError, TypeError, AttributeError) as exc:
        raise ValueError("a damaged Parquet file") from exc
    return total


def _pages(data: bytes, column: dict[int, Any]) -> Iterator[int]:
    """What the header of each page of a column says."""
    starts = [column[_DATA_AT], column.get(_DICTIONARY_AT) or column[_DATA_AT]]
    at = min(starts)
    end = at + column[_PACKED]
    if not 0 <= at <= end <= len(data):
        raise ValueError("a column lies outside of the file")
    while at < end:
        header, at = _struct(data, at, 0)
        values = sum(int(header[kind].get(1, 0)) for kind in _PAGES if kind in header)
        packed = int(header[_PAGE_PACKED])
        if packed < 0 or values < 0:
            raise ValueError("a page of negative size")
        yield max(int(header[_PAGE_UNPACKED]), PER_VALUE * values)
        at += packed


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """A struct as its members by number, and where it ends."""
    if depth > _DEEP:
        raise ValueError("structs too deep in each other")
    members: dict[int, Any] = {}
    number = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return members, at
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, at = _zigzag(data, at)
        if kind in (1, 2):
            members[number] = kind == 1
        else:
            members[number], at = _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):  # inside of lists a truth value takes a byte as well
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return None, at + size
    if kind in (9, 10):
        head = data[at]
        size, at = (head >> 4, at + 1) if head >> 4 < 15 else _varint(data, at + 1)
        found = []
        for _ in range(size):
            value, at = _value(data, at, head & 15, depth + 1)
            found.append(value)
        return found, at
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise ValueError("a kind of value that Parquet does not use")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        part = data[at]
        at += 1
        value |= (part & 127) << shift
        if part < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number too long")
