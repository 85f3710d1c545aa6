"""POST /v1/score/batch: many customers in one request, as JSON, NDJSON, Arrow or Parquet.

A row is what `POST /v1/score` takes, whatever the format: in Arrow and Parquet the members are
columns, `events` a struct of lists of structs, `profile` and `context` structs. A row that is at
fault fails alone and costs nothing. The answer comes in the format of the request, one row for
each, in order. A batch that cannot begin (quota, full queue) is refused as a whole; once rows are
decided, those whose turn does not come carry that refusal alone, and so do those that the decision
log does not take: what the log holds is answered and billed, nothing else is.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import polars as pl
from starlette.responses import Response

from foundation.errors import RequestError
from serving.answering import answered, sandbox, target, waits
from serving.audit import Unwritable
from serving.messages import (
    CODES,
    UNWRITTEN,
    ApiError,
    BatchAnswer,
    BatchRequest,
    Envelope,
    ErrorBody,
    RowResult,
    refusal,
)
from serving.models.loaded import Loaded
from serving.routes.call import JSON, Call, answer
from serving.routes.operation import Operation
from serving.routes.scoring import read_envelope
from serving.tabular import ARROW, PARQUET, table_rows

NDJSON = "application/x-ndjson"
MEDIA = (JSON, NDJSON, ARROW, PARQUET)
# Rows a scoring thread takes at a time: other requests get their turn in between.
TOGETHER = 32


class _Rows(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[msgspec.Raw]


_ROWS = msgspec.json.Decoder(_Rows)
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
        lines: dict[int, Future[None]] = {}
        for group in groups:
            await _score(call, group, results, lines)
        await _on_disk(call, results, lines)
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


async def _score(
    call: Call,
    group: list[_Read],
    results: list[RowResult | None],
    lines: dict[int, Future[None]],
) -> None:
    """Score the rows of one release and note what came of each.

    Args:
        lines: gets the line of every decided row.
    Raises:
        ApiError, Unwritable: 429 or 503 where no row of the batch is decided yet.
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
            try:
                given = answered(
                    call, loaded, read.envelope, read.entity, found, read.body, read.row
                )
            except Unwritable as exc:
                if not call.written:
                    raise
                results[read.row] = _refused(call, read.row, exc)
                continue
            lines[read.row] = call.written[-1]
            results[read.row] = RowResult(read.row, given)


async def _on_disk(
    call: Call, results: list[RowResult | None], lines: dict[int, Future[None]]
) -> None:
    """Wait for the lines where the answer waits for them; rows whose line is lost are refused.

    Raises:
        Unwritable: none could be written.
    """
    if not waits(call):
        return
    there: list[Future[None]] = []
    lost: Unwritable | None = None
    for row, line in lines.items():
        try:
            await asyncio.wrap_future(line)
            there.append(line)
        except Unwritable as exc:
            results[row], lost = _refused(call, row, exc), exc
    call.written[:] = there
    if lost is not None and not there:
        raise lost


def _refused(call: Call, row: int, exc: Exception) -> RowResult:
    """What was wrong with a row; a fault of ours says nothing of itself."""
    request_id = call.id_of(row)
    if isinstance(exc, ApiError):
        body = ErrorBody(CODES[exc.status], str(exc), exc.field, request_id)
    elif isinstance(exc, Unwritable):
        body = ErrorBody(CODES[503], UNWRITTEN, "", request_id)
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
        found = table_rows(media, body, limit, most)
    if not found:
        raise ApiError(422, "the batch has no rows", "requests")
    if len(found) > limit:
        raise ApiError(413, f"more than {limit} rows in one batch", "requests")
    return found


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
