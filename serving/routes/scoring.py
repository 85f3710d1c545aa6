"""POST /v1/score and /v1/query: one customer, history in the request."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from foundation.errors import listing, nearest
from serving.answering import (
    answered,
    flags_of,
    on_disk,
    package_ref,
    queried,
    sandbox,
    spent,
    target,
)
from serving.messages import (
    ApiError,
    Envelope,
    EventCounts,
    ForecastAnswer,
    QueryAnswer,
    QueryEnvelope,
    QueryRequest,
    ScoreAnswer,
    ScoreRequest,
)
from serving.models.loaded import Loaded, Scored
from serving.routes.call import Call, answer, decode
from serving.routes.operation import Operation
from serving.tenancy.metering import SANDBOX

REQUEST_EXAMPLE: dict[str, Any] = {
    "entity_id": "c1",
    "as_of": "2017-09-01T00:00:00Z",
    "events": {
        "statement": [
            {"event_time": "2017-07-01T00:00:00Z", "status": "0", "bill_amt": 120.5},
            {"event_time": "2017-08-01T00:00:00Z", "status": "1", "bill_amt": 260.0},
        ],
        "payment": {"event_time": ["2017-07-20", "2017-08-25"], "amount": [40.0, None]},
    },
    "profile": {"age": 34},
    "context": {"amount": 1500, "term": 12},
    "reasons": True,
}
ANSWER_EXAMPLE: dict[str, Any] = {
    "request_id": "5f0c9a6e3a4b4b6f8d6c2f2f0f4f3a11",
    "package": {
        "id": "demo-1f0c2a9b",
        "name": "demo",
        "channel": "default",
        "digest": "1f0c2a9b",
        "release": "bank/default/3",
        "backbone": "9c11d2e0",
    },
    "entity_id": "c1",
    "as_of": "2017-09-01T00:00:00Z",
    "score": 0.184,
    "points": 571,
    "band": "review",
    "decision": {
        "outcome": "review",
        "reasons": ["score near the limit"],
        "rules": ["limit.near"],
        "actions": [],
        "version": "2b6f0d1c",
    },
    "reasons": [
        {"name": "statement.status", "title": "status", "value": "1", "effect": 0.62},
    ],
    "forecasts": {"late within 30 days": 0.41},
    "events": {"used": 4, "ignored": 0},
    "flags": [],
}
_ENVELOPE = msgspec.json.Decoder(Envelope)
_MEMBERS = tuple(member.name for member in msgspec.structs.fields(Envelope))
_QUERY = msgspec.json.Decoder(QueryEnvelope)
_QUERY_MEMBERS = tuple(member.name for member in msgspec.structs.fields(QueryEnvelope))


async def score(call: Call) -> Response:
    """Score one customer, decide, and write the decision down."""
    runtime = call.runtime
    runtime.deployments.pool.require_room(call.tenant)
    body = await call.body()
    envelope = read_envelope(body)
    found = sandbox(call, envelope)
    if found is None:
        loaded, entity = target(call, envelope)
        call.package = loaded.id
        with spent(call, loaded):
            runtime.metrics.waiting(loaded.id, loaded.waiting + 1)
            try:
                with runtime.tracing.span("model", package=loaded.id, channel=loaded.channel):
                    scored = await scored_by(call, loaded, envelope)
            finally:
                runtime.metrics.waiting(loaded.id, loaded.waiting)
            with runtime.tracing.span("decision", release=loaded.release):
                found = answered(call, loaded, envelope, entity, scored, body)
            await on_disk(call)
    return answer(found)


async def query(call: Call) -> Response:
    """Forecasts of one customer, without a decision; billed as a score is."""
    call.runtime.deployments.pool.require_room(call.tenant)
    asked: QueryEnvelope = decode(_QUERY, await call.body(), _QUERY_MEMBERS)
    envelope = stripped(asked.envelope())
    fixed = sandbox(call, envelope)
    if fixed is not None:
        return answer(_rehearsed(fixed, asked.forecasts))
    loaded, _ = target(call, envelope)
    call.package = loaded.id
    with spent(call, loaded):
        scored = await scored_by(call, loaded, envelope)
        titles = loaded.manifest.get("forecast_titles", {})
        names = chosen(asked.forecasts, scored.row.forecasts)
        queried(call, loaded, envelope, scored)
        await on_disk(call)
    return answer(
        QueryAnswer(
            request_id=call.request_id,
            package=package_ref(loaded),
            entity_id=envelope.entity_id,
            as_of=scored.request.as_of,
            forecasts=[
                ForecastAnswer(name, str(titles.get(name, name)), float(scored.row.forecasts[name]))
                for name in names
            ],
            events=EventCounts(scored.request.used, scored.request.ignored),
            flags=flags_of(loaded, scored),
            history=scored.request.history,
        )
    )


def _rehearsed(fixed: ScoreAnswer, wanted: list[str] | None) -> QueryAnswer:
    """Forecasts of a test entity."""
    names = chosen(wanted, {SANDBOX: fixed.score})
    return QueryAnswer(
        request_id=fixed.request_id,
        package=fixed.package,
        entity_id=fixed.entity_id,
        as_of=fixed.as_of,
        forecasts=[ForecastAnswer(name, name, fixed.score) for name in names],
        events=fixed.events,
        flags=fixed.flags,
    )


async def scored_by(call: Call, loaded: Loaded, envelope: Envelope) -> Scored:
    """A score; where it has to wait, it is given up when its client goes away.

    Raises:
        as `Loaded.score`, and ClientDisconnect.
    """
    if loaded.pool.idle:
        return await loaded.score(envelope)
    return await call.while_there(loaded.score(envelope))


def chosen(wanted: list[str] | None, there: dict[str, float]) -> list[str]:
    """Names of the forecasts asked for; all of them where none is named.

    Raises:
        ApiError: 422 for a forecast the package does not make.
    """
    for name in wanted or ():
        if name not in there:
            raise ApiError(
                422,
                f"no forecast '{name[:80]}'{nearest(name, there)}; forecasts: {listing(there)}",
                "forecasts",
            )
    return list(wanted) if wanted else list(there)


def read_envelope(body: bytes) -> Envelope:
    """Decode the outer part of a request.

    Raises:
        ApiError: 400 for anything but JSON, 422 for a wrong member.
    """
    return stripped(decode(_ENVELOPE, body, _MEMBERS))


def stripped(envelope: Envelope) -> Envelope:
    """The request with its entity id without outer blanks.

    Raises:
        ApiError: 422 where nothing is left.
    """
    entity = envelope.entity_id.strip()
    if not entity:
        raise ApiError(422, "the entity id is empty", "entity_id")
    return msgspec.structs.replace(envelope, entity_id=entity)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/score",
        name="score",
        scope="score",
        summary="Score one customer from the history in the request, and decide.",
        answer=ScoreAnswer,
        handler=score,
        request=ScoreRequest,
        errors=(404,),
        examples={"ScoreRequest": REQUEST_EXAMPLE, "ScoreAnswer": ANSWER_EXAMPLE},
        repeatable=True,
        rehearsed=True,
    ),
    Operation(
        method="POST",
        path="/v1/query",
        name="query",
        scope="score",
        summary="Forecasts of one customer by the outcomes of the schema, without a decision.",
        answer=QueryAnswer,
        handler=query,
        request=QueryRequest,
        errors=(404,),
        repeatable=True,
        rehearsed=True,
    ),
)
