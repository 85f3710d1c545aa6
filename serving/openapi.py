"""The OpenAPI 3.1 document, generated from the routes and the message types."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.messages import (
    CODES,
    ErrorAnswer,
    Health,
    PackageDetail,
    PackageList,
    ScoreAnswer,
    ScoreRequest,
)

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
ERROR_EXAMPLE: dict[str, Any] = {
    "error": {
        "code": "invalid",
        "message": "unknown field 'bil_amt', did you mean 'bill_amt'?; fields: status, bill_amt",
        "field": "events.statement[3].bil_amt",
        "request_id": "5f0c9a6e3a4b4b6f8d6c2f2f0f4f3a11",
    }
}
_MEANINGS = {
    400: "The body is not JSON.",
    401: "The API key is missing or not valid.",
    403: "The API key lacks the scope of this route.",
    404: "No such route or package.",
    405: "The route does not take this method.",
    413: "The body is too large or holds too many events.",
    415: "The body is not application/json without compression.",
    422: "A part of the request is wrong; `field` says which.",
    429: "Too many requests are waiting; see Retry-After.",
    500: "A fault of the service.",
    503: "Not ready, or the answer did not come in time; see Retry-After.",
}
_TYPES = (ScoreRequest, ScoreAnswer, PackageList, PackageDetail, Health, ErrorAnswer)
_READ = (401, 403, 405, 500)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One route: what the application mounts and the document describes.

    Attributes:
        scope: what the API key must allow; empty: open to everyone.
        answer: message type of a 200, or a media type.
        errors: statuses it may answer beside 200.
    """

    method: str
    path: str
    name: str
    scope: str
    summary: str
    answer: Any
    errors: tuple[int, ...]


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/score",
        name="score",
        scope="score",
        summary="Score one customer from the history in the request.",
        answer=ScoreAnswer,
        errors=tuple(CODES),
    ),
    Operation(
        method="GET",
        path="/v1/packages",
        name="packages",
        scope="read",
        summary="The packages this service answers with.",
        answer=PackageList,
        errors=_READ,
    ),
    Operation(
        method="GET",
        path="/v1/packages/{id}",
        name="package",
        scope="read",
        summary="One package: the fields it reads, its bands and its measured quality.",
        answer=PackageDetail,
        errors=(*_READ, 404),
    ),
    Operation(
        method="GET",
        path="/v1/health/live",
        name="live",
        scope="",
        summary="The process answers.",
        answer=Health,
        errors=(405,),
    ),
    Operation(
        method="GET",
        path="/v1/health/ready",
        name="ready",
        scope="",
        summary="Packages are loaded and verified; 503 until then.",
        answer=Health,
        errors=(405, 503),
    ),
    Operation(
        method="GET",
        path="/v1/metrics",
        name="metrics",
        scope="read",
        summary="Prometheus metrics.",
        answer="text/plain",
        errors=_READ,
    ),
    Operation(
        method="GET",
        path="/v1/openapi.json",
        name="openapi",
        scope="read",
        summary="This document.",
        answer="application/json",
        errors=_READ,
    ),
)


def document(version: str) -> dict[str, Any]:
    """The OpenAPI document as plain data."""
    _, components = msgspec.json.schema_components(
        _TYPES, ref_template="#/components/schemas/{name}"
    )
    components["ScoreRequest"]["examples"] = [REQUEST_EXAMPLE]
    components["ScoreAnswer"]["examples"] = [ANSWER_EXAMPLE]
    components["ErrorAnswer"]["examples"] = [ERROR_EXAMPLE]
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "riskfm scoring",
            "version": version,
            "description": "Scores of a pretrained risk foundation model, adapted per channel. "
            "Every route but the two health routes needs an API key.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                f"Error{status}": {
                    "description": meaning,
                    "headers": _headers(status),
                    "content": _content("ErrorAnswer"),
                }
                for status, meaning in _MEANINGS.items()
            },
            "parameters": {
                "RequestId": {
                    "name": "X-Request-Id",
                    "in": "header",
                    "required": False,
                    "description": "1 to 64 letters, digits, '.', '_' or '-', returned in the "
                    "answer; anything else is replaced.",
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
                }
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "rfm_<id>_<secret>"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        content: dict[str, Any] = {operation.answer: {}}
    else:
        content = _content(operation.answer.__name__)
    responses: dict[str, Any] = {
        "200": {"description": operation.summary, "headers": _headers(200), "content": content}
    }
    for status in operation.errors:
        responses[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    parameters: list[dict[str, Any]] = [{"$ref": "#/components/parameters/RequestId"}]
    if "{id}" in operation.path:
        parameters.append(
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        )
    out: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
        "security": [{"bearer": []}, {"header": []}] if operation.scope else [],
    }
    if operation.scope:
        out["description"] = f"Needs an API key with the scope `{operation.scope}`."
    if operation.method == "POST":
        out["requestBody"] = {"required": True, "content": _content("ScoreRequest")}
    return out


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _headers(status: int) -> dict[str, Any]:
    names = ["X-Request-Id"]
    names += ["WWW-Authenticate"] if status == 401 else []
    names += ["Retry-After"] if status in (429, 503) else []
    names += ["Allow"] if status == 405 else []
    return {name: {"schema": {"type": "string"}} for name in names}
