"""The OpenAPI document is complete, agrees with itself, and its examples are true."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from foundation.schema import schema_from_dict
from serving import openapi
from serving.api import Application
from serving.messages import CODES, Envelope, ErrorAnswer, ScoreAnswer, ScoreRequest
from serving.requests import RequestReader
from serving.routes.catalogue import OPERATIONS
from serving.routes.scoring import ANSWER_EXAMPLE, REQUEST_EXAMPLE, read_envelope

DOCUMENT = openapi.document(OPERATIONS, "1.2.3")


def test_every_route_is_described() -> None:
    served = {
        (method, route.path)
        for route in Application()._router.routes
        for method in route.methods - {"HEAD"}
    }
    described = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert served == described and DOCUMENT["openapi"] == "3.1.0"


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in _references(value)]
    if isinstance(node, list):
        return [ref for value in node for ref in _references(value)]
    return []


def test_every_reference_resolves() -> None:
    found = set(_references(DOCUMENT))
    assert len(found) > 10
    for reference in found:
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_errors_and_security_of_every_route() -> None:
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            secured = bool(operation["security"])
            assert secured == (not path.startswith("/v1/health"))
            assert ("401" in operation["responses"]) == secured
            success, *errors = sorted(operation["responses"])
            assert success[0] == "2" and set(errors) <= set(map(str, CODES))
    errors = {400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503}
    score = {"200", *map(str, errors)}
    assert set(DOCUMENT["paths"]["/v1/score"]["post"]["responses"]) == score


def test_examples_validate() -> None:
    msgspec.convert(REQUEST_EXAMPLE, ScoreRequest)
    msgspec.convert(ANSWER_EXAMPLE, ScoreAnswer)
    msgspec.convert(openapi.ERROR_EXAMPLE, ErrorAnswer)
    fields = {"status": {"kind": "category"}, "bill_amt": {"kind": "money"}}
    schema = schema_from_dict(
        {
            "sources": {
                "statement": {"fields": fields},
                "payment": {"fields": {"amount": {"kind": "money"}}},
            },
            "profile": {"fields": {"age": {"kind": "number"}}},
            "context": {"amount": {"kind": "money"}, "term": {"kind": "number"}},
        }
    )
    body = msgspec.json.encode(REQUEST_EXAMPLE)
    given = RequestReader(schema).read(read_envelope(body), 1_600_000_000_000_000)
    assert given.used == ANSWER_EXAMPLE["events"]["used"]


def test_the_decoded_request_has_the_members_of_the_described_one() -> None:
    described = {f.name: f.required for f in msgspec.structs.fields(ScoreRequest)}
    decoded = {f.name: f.required for f in msgspec.structs.fields(Envelope)}
    assert described == decoded


@pytest.mark.parametrize("name", ["ScoreRequest", "ScoreAnswer", "PackageDetail", "ErrorAnswer"])
def test_types_are_described(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema["type"] == "object" and schema["description"] and schema["properties"]
    assert not re.search(r"foundation\.|serving\.", str(schema))
