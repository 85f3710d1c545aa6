"""The OpenAPI 3.1 document, generated from the operations and their message types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from serving.messages import ErrorAnswer
from serving.routes.call import JSON
from serving.routes.operation import Operation

ERROR_EXAMPLE: dict[str, Any] = {
    "error": {
        "code": "invalid",
        "message": "unknown field 'bil_amt', did you mean 'bill_amt'?; fields: status, bill_amt",
        "field": "events.statement[3].bil_amt",
        "request_id": "5f0c9a6e3a4b4b6f8d6c2f2f0f4f3a11",
    }
}
_MEANINGS = {
    400: "The body is not what its Content-Type says.",
    401: "The API key is missing or not valid.",
    403: "The API key may not do this.",
    404: "No such route, or nothing of this name.",
    405: "The route does not take this method.",
    408: "The body did not arrive in time.",
    409: "It clashes with what is there or under way.",
    413: "The body is too large or holds too much.",
    415: "The route does not take this media type, or the body is compressed.",
    422: "A part of the request is wrong; `field` says which.",
    429: "Too many requests; see Retry-After.",
    500: "A fault of the service.",
    503: "Not ready, or the answer did not come in time; see Retry-After.",
}
_SCHEMAS = "#/components/schemas/{name}"


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """The OpenAPI document as plain data."""
    operations = tuple(operations)
    types = {o.answer for o in operations} | {o.request for o in operations} | {ErrorAnswer}
    messages = sorted((t for t in types if isinstance(t, type)), key=lambda t: t.__name__)
    _, components = msgspec.json.schema_components(messages, ref_template=_SCHEMAS)
    components["ErrorAnswer"]["examples"] = [ERROR_EXAMPLE]
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        for name, example in operation.examples.items():
            components[name]["examples"] = [example]
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
                    "content": _content(ErrorAnswer, (JSON,)),
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
                    "schema": {"type": "string"},
                },
                "IdempotencyKey": {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "required": False,
                    "description": "Sent again with the same body, the stored answer comes back; "
                    "with another body it is refused.",
                    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
                },
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "rfm_<id>_<secret>"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {
        "description": operation.summary,
        "headers": _headers(operation.status),
    }
    if isinstance(operation.answer, str):
        success["content"] = {operation.answer: {}}
    else:
        success["content"] = _content(operation.answer, operation.kinds)
    responses = {str(operation.status): success}
    for status in operation.statuses:
        responses[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    out: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": responses,
        "security": [{"bearer": []}, {"header": []}] if operation.scope else [],
    }
    if operation.scope:
        out["description"] = f"Needs an API key with the scope `{operation.scope}`."
    if operation.request is not None:
        content = _content(operation.request, operation.media)
        out["requestBody"] = {"required": True, "content": content}
    return out


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    shared = ["RequestId", *(["IdempotencyKey"] if operation.repeatable else [])]
    out: list[dict[str, Any]] = [{"$ref": f"#/components/parameters/{name}"} for name in shared]
    for name in operation.path_names:
        schema = {"type": "string"}
        out.append({"name": name, "in": "path", "required": True, "schema": schema})
    for parameter in operation.parameters:
        out.append(
            {
                "name": parameter.name,
                "in": parameter.where,
                "required": parameter.required,
                "description": parameter.description,
                "schema": msgspec.json.schema(parameter.kind),
            }
        )
    return out


def _content(message: Any, media: tuple[str, ...]) -> dict[str, Any]:
    """Bodies by media type; only JSON has a described shape."""
    schema = {} if isinstance(message, str) else {"$ref": _SCHEMAS.format(name=message.__name__)}
    return {kind: {"schema": schema} if kind == JSON else {} for kind in media}


def _headers(status: int) -> dict[str, Any]:
    names = ["X-Request-Id"]
    names += ["WWW-Authenticate"] if status == 401 else []
    names += ["Retry-After"] if status in (409, 429, 503) else []
    names += ["Allow"] if status == 405 else []
    return {name: {"schema": {"type": "string"}} for name in names}
