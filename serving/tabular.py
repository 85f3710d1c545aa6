"""Rows of an Arrow or Parquet table as JSON objects, within bounds at every step.

Some kilobytes may unpack to any size, and a table may say once what its rows repeat: so what it
unpacks to is read from its metadata, and what it takes as text is added up, before either is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import polars as pl

from serving import arrow_size, parquet_size
from serving.messages import ApiError

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
# Rows that become text at a time.
TOGETHER = 32
# A table as JSON repeats every name in every row.
JSON_LARGER = 8
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


def table_rows(media: str, body: bytes, limit: int, most: int) -> list[bytes | ApiError]:
    """Rows of a table as JSON; nulls of the row's own members are left out.

    Args:
        limit: rows. most: bytes of the table once it is unpacked.
    Returns:
        per row its JSON object, or what is wrong with it before it can be read as JSON.
    Raises:
        ApiError: 400 for what is not of the format, 413 for too many rows or a table that unpacks
            to too much.
    """
    read: Callable[[io.BytesIO], pl.LazyFrame] = _arrow if media == ARROW else _parquet
    size = arrow_size if media == ARROW else parquet_size
    too_large = ApiError(413, f"the table unpacks to more than {most} bytes", "requests")
    try:
        if size.unpacked_bytes(body) > most:
            raise too_large
        lazy = read(io.BytesIO(body))
        count = int(lazy.select(pl.len()).collect().item())
        if count > limit:
            raise ApiError(413, f"more than {limit} rows in one batch", "requests")
        frame = lazy.collect()
        faults = _not_finite(frame)
        if _text_bytes(frame) > JSON_LARGER * most:
            raise too_large
        text = io.BytesIO()
        for part in frame.select(_plain(frame)).iter_slices(TOGETHER):
            part.write_ndjson(text)
            if text.tell() > JSON_LARGER * most:
                raise too_large
    except (pl.exceptions.PolarsError, OSError, ValueError, pl.exceptions.PanicException):
        raise ApiError(400, f"the body is no readable {media.rpartition('.')[2]}") from None
    rows: list[bytes | ApiError] = []
    for line in text.getvalue().splitlines():
        members = _MEMBERS.decode(line)
        rows.append(_ENCODER.encode({k: v for k, v in members.items() if bytes(v) != b"null"}))
    for row, path in faults.items():
        rows[row] = ApiError(422, "the number is not finite; a missing one is null", path)
    return rows


def _arrow(body: io.BytesIO) -> pl.LazyFrame:
    return pl.read_ipc_stream(body).lazy()


def _parquet(body: io.BytesIO) -> pl.LazyFrame:
    return pl.scan_parquet(body)


def _text_bytes(frame: pl.DataFrame) -> int:
    """Bytes that texts and names take in the rows' JSON, at least: what stands in the table once
    may stand there for every value."""
    total = 0
    for name, dtype in frame.schema.items():
        for part in _texts(dtype, pl.col(name)):
            total += int(frame.select(part.sum().cast(pl.Int64)).item() or 0)
        total += len(name) * len(frame)
    return total


def _texts(dtype: Any, column: pl.Expr) -> Iterator[pl.Expr]:
    """Sizes of what a column holds, as expressions to be summed."""
    if isinstance(dtype, pl.Struct):
        names = sum(len(field.name) for field in dtype.fields)
        yield column.len().cast(pl.Int64) * names
        for field in dtype.fields:
            yield from _texts(field.dtype, column.struct.field(field.name))
    elif isinstance(dtype, pl.List | pl.Array):
        yield from _texts(dtype.inner, column.explode())
    elif dtype == pl.String:
        yield column.str.len_bytes().cast(pl.Int64)
    elif isinstance(dtype, pl.Categorical | pl.Enum):
        yield column.cast(pl.String).str.len_bytes().cast(pl.Int64)
    elif dtype == pl.Binary:
        yield column.bin.size().cast(pl.Int64)


def _not_finite(frame: pl.DataFrame) -> dict[int, str]:
    """Rows that hold a NaN or an infinity, which JSON would turn into null, and one place of it."""
    found: dict[int, str] = {}
    for name, dtype in frame.schema.items():
        for path, test in _numbers(name, dtype):
            good = frame.select(test(pl.col(name)).fill_null(True)).to_series()
            found |= dict.fromkeys((~good).arg_true().to_list(), path)
    return found


def _numbers(path: str, dtype: Any) -> Iterator[tuple[str, Callable[[pl.Expr], pl.Expr]]]:
    """Places of a column that hold fractions, each with the test whether all are finite."""
    if isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            for inside, test in _numbers(f"{path}.{field.name}", field.dtype):
                yield inside, partial(_in_field, test, field.name)
    elif isinstance(dtype, pl.List):
        for inside, test in _numbers(path, dtype.inner):
            yield inside, partial(_in_list, test)
    elif isinstance(dtype, pl.Array):
        for inside, test in _numbers(path, dtype.inner):
            yield inside, partial(_in_array, dtype, test)
    elif dtype.is_float():
        yield path, pl.Expr.is_finite


def _in_field(test: Callable[[pl.Expr], pl.Expr], name: str, column: pl.Expr) -> pl.Expr:
    return test(column.struct.field(name))


def _in_list(test: Callable[[pl.Expr], pl.Expr], column: pl.Expr) -> pl.Expr:
    return column.list.eval(test(pl.element())).list.all()


def _in_array(dtype: pl.Array, test: Callable[[pl.Expr], pl.Expr], column: pl.Expr) -> pl.Expr:
    return _in_list(test, column.cast(pl.List(dtype.inner)))


def _plain(frame: pl.DataFrame) -> list[pl.Expr]:
    """Columns as JSON has them: moments as ISO 8601 texts, whatever they are nested in."""
    return [pl.col(name).cast(_as_json(dtype)) for name, dtype in frame.schema.items()]


def _as_json(dtype: Any) -> Any:
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _as_json(field.dtype) for field in dtype.fields})
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_as_json(dtype.inner))
    if dtype.is_temporal() or dtype == pl.Binary or isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    return pl.Float64() if dtype.is_decimal() else dtype
