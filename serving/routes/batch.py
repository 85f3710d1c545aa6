"""POST /v1/score/batch: many customers in one request, as JSON, NDJSON, Arrow or Parquet.

A row is what `POST /v1/score` takes, whatever the format: in Arrow and Parquet the members are
columns, `events` a struct of lists of structs, `profile` and `context` structs. A row that is at
fault fails alone and costs nothing. The answer comes in the format of the request, one row for
each, in order. A batch that cannot begin (quota, full queue) is refused as a whole; once rows are
decided, those whose turn does not come carry that refusal alone.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import polars as pl
from starlette.responses import Response

from foundation.errors import RequestError
from serving.answering import answered, on_disk, sandbox, target
from serving.messages import (
    CODES,
    ApiError,
    BatchAnswer,
    BatchRequest,
    Envelope,
    ErrorBody,
    RowResult,
    refusal,
)
from serving.models.loaded import Loaded
from serving.parquet_size import unpacked_bytes
from serving.routes.call import JSON, Call, answer
from serving.routes.operation import Operation
from serving.routes.scoring import read_envelope

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
MEDIA = (JSON, NDJSON, ARROW, PARQUET)
# Rows a scoring thread takes at a time: other requests get their turn in between.
TOGETHER = 32
# A table as JSON repeats every name in every row.
JSON_LARGER = 8


class _Rows(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[msgspec.Raw]


_ROWS = msgspec.json.Decoder(_Rows)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True)
class _Read:
    """A row that names whom to score by what."""

    row: int
    body: bytes
    envelope: Envelope
    entity: str
    loaded: Loaded


async def batch(call: Call) -> Response:
    """Score every row that can be scored."""
    settings = call.runtime.settings
    body = await call.body(settings.max_batch_bytes, MEDIA)
    bodies = await asyncio.to_thread(
        _bodies, call.media_type, body, settings.max_batch_rows, settings.max_batch_bytes
    )
    results: list[RowResult | None] = [None] * len(bodies)
    groups = await asyncio.to_thread(_grouped, call, bodies, results)
    with _spent(call, groups, results):
        for group in groups:
            await _score(call, group, results)
    await on_disk(call)
    every = [result for result in results if result is not None]
    failed = sum(result.error is not None for result in every)
    found = BatchAnswer(call.request_id, len(every) - failed, failed, every)
    return await asyncio.to_thread(_response, call.media_type, found)


def _grouped(
    call: Call, bodies: Sequence[bytes | ApiError], results: list[RowResult | None]
) -> list[list[_Read]]:
    """Rows by the release that answers them; what needs none gets its result at once."""
    groups: dict[tuple[int, bool], list[_Read]] = {}
    for row, body in enumerate(bodies):
        try:
            if isinstance(body, ApiError):
                raise body
            envelope = read_envelope(body)
            fixed = sandbox(call, envelope, row)
            if fixed is not None:
                results[row] = RowResult(row, fixed)
                continue
            loaded, entity = target(call, envelope)
        except RequestError as exc:
            results[row] = _refused(call, row, exc)
            continue
        read = _Read(row, body, envelope, entity, loaded)
        groups.setdefault((id(loaded), envelope.reasons), []).append(read)
    return list(groups.values())


@contextmanager
def _spent(
    call: Call, groups: list[list[_Read]], results: list[RowResult | None]
) -> Iterator[None]:
    """Count every row against the tenant's quotas before the first is scored; those that got no
    score are taken back.

    Raises:
        ApiError: 429 where a quota does not reach for the whole batch.
    """
    quotas, taken = call.runtime.front.quotas, []
    try:
        for group in groups:
            call.headers |= quotas.spend(call.tenant, group[0].loaded.channel, len(group))
            taken.append(group)
        yield
    finally:
        for group in taken:
            given = sum(_answered(results[read.row]) for read in group)
            quotas.refund(call.tenant, group[0].loaded.channel, len(group) - given)


def _answered(result: RowResult | None) -> bool:
    return result is not None and result.answer is not None


async def _score(call: Call, group: list[_Read], results: list[RowResult | None]) -> None:
    """Score the rows of one release and note what came of each.

    Raises:
        ApiError: 429 or 503 where no row of the batch is decided yet.
    """
    loaded = group[0].loaded
    call.package = loaded.id
    for begin in range(0, len(group), TOGETHER):
        part = group[begin : begin + TOGETHER]
        try:
            scored = await loaded.score_many([read.envelope for read in part])
        except ApiError as exc:
            if not call.written:
                raise
            if exc.shed:
                call.runtime.metrics.shed(exc.shed)
            scored = [exc] * len(part)
        for read, found in zip(part, scored, strict=True):
            if isinstance(found, Exception):
                results[read.row] = _refused(call, read.row, found)
                continue
            given = answered(call, loaded, read.envelope, read.entity, found, read.body, read.row)
            results[read.row] = RowResult(read.row, given)


def _refused(call: Call, row: int, exc: Exception) -> RowResult:
    """What was wrong with a row; a fault of ours says nothing of itself."""
    request_id = call.id_of(row)
    if isinstance(exc, ApiError):
        body = ErrorBody(CODES[exc.status], str(exc), exc.field, request_id)
    elif isinstance(exc, RequestError):
        body = ErrorBody(CODES[422], str(exc), exc.field, request_id)
    else:
        body = ErrorBody(CODES[500], "an internal fault", "", request_id)
    return RowResult(row, None, body)


def _bodies(media: str, body: bytes, limit: int, most: int) -> Sequence[bytes | ApiError]:
    """Rows as JSON objects, or what is wrong with one before it can be read as JSON.

    Args:
        limit: rows. most: bytes of a table once it is unpacked.
    Raises:
        ApiError: 400 for what is not of the format, 413 for too many rows or a table that unpacks
            to too much, 422 for none or for columns that no row has.
    """
    if media == JSON:
        try:
            rows: Sequence[Any] = _ROWS.decode(body).requests
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise refusal(exc, "", ("requests",)) from None
        found: Sequence[bytes | ApiError] = [bytes(row) for row in rows]
    elif media == NDJSON:
        found = [line for line in body.splitlines() if line.strip()]
    else:
        found = _tabular(media, body, limit, most)
    if not found:
        raise ApiError(422, "the batch has no rows", "requests")
    if len(found) > limit:
        raise ApiError(413, f"more than {limit} rows in one batch", "requests")
    return found


def _tabular(media: str, body: bytes, limit: int, most: int) -> list[bytes | ApiError]:
    """Rows of a table as JSON; nulls of the row's own members are left out."""
    read: Callable[[io.BytesIO], pl.LazyFrame] = _arrow if media == ARROW else _parquet
    too_large = ApiError(413, f"the table unpacks to more than {most} bytes", "requests")
    try:
        if media == PARQUET and unpacked_bytes(body) > most:
            raise too_large
        lazy = read(io.BytesIO(body))
        count = int(lazy.select(pl.len()).collect().item())
        if count > limit:
            raise ApiError(413, f"more than {limit} rows in one batch", "requests")
        frame = lazy.collect()
        faults = _not_finite(frame)
        text = io.BytesIO()
        # Values that stand in the table once may stand in many rows of the text.
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


def _response(media: str, found: BatchAnswer) -> Response:
    """The answer in the format of the request."""
    if media == JSON:
        return answer(found)
    if media == NDJSON:
        lines = b"".join(_ENCODER.encode(result) + b"\n" for result in found.results)
        return Response(lines, media_type=NDJSON)
    out = io.BytesIO()
    frame = pl.DataFrame([_flat(result) for result in found.results], schema=_TABLE)
    if media == ARROW:
        frame.write_ipc_stream(out)
    else:
        frame.write_parquet(out)
    return Response(out.getvalue(), media_type=media)


_TABLE = {
    "row": pl.Int64(), "entity_id": pl.String(), "as_of": pl.String(), "score": pl.Float64(),
    "points": pl.Int64(), "band": pl.String(), "outcome": pl.String(), "package": pl.String(),
    "release": pl.String(), "flags": pl.List(pl.String()), "request_id": pl.String(),
    "error": pl.String(), "field": pl.String(), "code": pl.String(),
}  # fmt: skip


def _flat(result: RowResult) -> dict[str, Any]:
    if result.error is not None:
        error = result.error
        return {
            "row": result.row, "error": error.message, "field": error.field, "code": error.code,
            "request_id": error.request_id,
        }  # fmt: skip
    found = result.answer
    assert found is not None
    return {
        "row": result.row, "entity_id": found.entity_id, "as_of": found.as_of,
        "score": found.score, "points": found.points, "band": found.band,
        "outcome": found.decision.outcome, "package": found.package.id,
        "release": found.package.release, "flags": found.flags, "request_id": found.request_id,
    }  # fmt: skip


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/score/batch",
        name="score_batch",
        scope="score",
        summary="Score many customers; a row that is at fault fails alone.",
        answer=BatchAnswer,
        handler=batch,
        request=BatchRequest,
        media=MEDIA,
        kinds=MEDIA,
        errors=(404,),
        repeatable=True,
        rehearsed=True,
        largest="max_batch_bytes",
    ),
)
