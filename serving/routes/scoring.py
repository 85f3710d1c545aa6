"""POST /v1/score: one customer, history in the request."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.responses import Response

from serving.messages import (
    ApiError,
    Envelope,
    EventCounts,
    PackageRef,
    ReasonAnswer,
    ScoreAnswer,
    ScoreRequest,
)
from serving.routes.call import Call, answer, decode
from serving.routes.operation import Operation
from serving.scorer import Loaded

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
    },
    "entity_id": "c1",
    "as_of": "2017-09-01T00:00:00Z",
    "score": 0.184,
    "points": 571,
    "band": "review",
    "reasons": [
        {"name": "statement.status", "title": "status", "value": "1", "effect": 0.62},
    ],
    "forecasts": {"late within 30 days": 0.41},
    "events": {"used": 4, "ignored": 0},
    "flags": [],
}
_ENVELOPE = msgspec.json.Decoder(Envelope)
_MEMBERS = tuple(member.name for member in msgspec.structs.fields(Envelope))


async def score(call: Call) -> Response:
    """Score one customer and write the decision down."""
    runtime = call.runtime
    envelope = read_envelope(await call.body())
    loaded = runtime.packages().pick(envelope.package)
    call.package = loaded.id
    runtime.metrics.waiting(loaded.id, loaded.waiting + 1)
    try:
        scored = await loaded.score(envelope)
    finally:
        runtime.metrics.waiting(loaded.id, loaded.waiting)
    row, given = scored.row, scored.request
    written = runtime.audit.append(
        {
            "tenant": call.tenant,
            "key_id": call.principal.key_id,
            "request_id": call.request_id,
            "route": call.route,
            "package": loaded.id,
            "digest": str(loaded.package.manifest["digest"]),
            "as_of": given.as_of,
            "score": float(row.score),
            "points": int(row.points),
            "band": row.band,
        },
        envelope.entity_id,
    )
    if runtime.settings.audit_durable:
        await asyncio.wrap_future(written)
    runtime.metrics.scored(loaded.id, row.score, scored.seconds)
    return answer(
        ScoreAnswer(
            request_id=call.request_id,
            package=package_ref(loaded),
            entity_id=envelope.entity_id,
            as_of=given.as_of,
            score=float(row.score),
            points=int(row.points),
            band=row.band,
            reasons=[ReasonAnswer(r.name, r.title, r.value, float(r.effect)) for r in row.reasons],
            forecasts={name: float(value) for name, value in row.forecasts.items()},
            events=EventCounts(given.used, given.ignored),
            flags=list(dict.fromkeys((*row.flags, *given.flags))),
        )
    )


def read_envelope(body: bytes) -> Envelope:
    """Decode the outer part of a request.

    Raises:
        ApiError: 400 for anything but JSON, 422 for a wrong member.
    """
    envelope: Envelope = decode(_ENVELOPE, body, _MEMBERS)
    entity = envelope.entity_id.strip()
    if not entity:
        raise ApiError(422, "the entity id is empty", "entity_id")
    return msgspec.structs.replace(envelope, entity_id=entity)


def package_ref(loaded: Loaded) -> PackageRef:
    """Which package answered."""
    manifest = loaded.package.manifest
    return PackageRef(
        loaded.id,
        str(manifest.get("name", "")),
        str(manifest.get("channel", "")),
        str(manifest["digest"]),
    )


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/score",
        name="score",
        scope="score",
        summary="Score one customer from the history in the request.",
        answer=ScoreAnswer,
        handler=score,
        request=ScoreRequest,
        errors=(404,),
        examples={"ScoreRequest": REQUEST_EXAMPLE, "ScoreAnswer": ANSWER_EXAMPLE},
    ),
)
