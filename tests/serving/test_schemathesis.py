"""Generated requests against the whole OpenAPI document: what it says is what is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
)
from starlette.types import Receive, Scope, Send

from serving import openapi
from serving.routes.batch import ARROW, NDJSON, PARQUET
from serving.routes.catalogue import OPERATIONS
from tests.serving.harness import Service

PACKAGE: dict[str, Any] = {
    "schema": {
        "sources": {
            "statement": {
                "fields": {"status": {"kind": "category"}, "bill_amt": {"kind": "money"}}
            },
            "payment": {"fields": {"amount": {"kind": "money"}}},
        },
        "profile": {"fields": {"age": {"kind": "number"}}},
        "context": {"amount": {"kind": "money"}, "term": {"kind": "number"}},
    }
}


# What a field may say depends on the package and on what is there: only handlers can know.
ALWAYS = (positive_data_acceptance,)
# A bad row fails alone, within an answer of 200.
ALONE = dict.fromkeys(("POST /v1/score/batch", "POST /v1/events/batch"), (negative_data_rejection,))
serving: list[Service] = []


@schemathesis.serializer(NDJSON, ARROW, PARQUET)
def as_bytes(_: Any, value: Any) -> bytes:
    """A generated body of a format that the document does not describe."""
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over a package that reads what the document's examples give."""
    made = Service(tmp_path_factory.mktemp("generated"), PACKAGE)
    serving.append(made)
    yield made
    serving.remove(made)
    made.close()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of the module's service, which is not there while tests are collected."""
    await serving[0].application(scope, receive, send)


schema = schemathesis.openapi.from_dict(openapi.document(OPERATIONS, "1.2.3"))
schema.config.update(base_url="http://test")
schema.app = application


@schema.parametrize()
@hypothesis.settings(max_examples=8)
def test_generated(case: Any, service: Service) -> None:
    excluded = [*ALWAYS, *ALONE.get(case.operation.label, ())]
    headers = {"Authorization": f"Bearer {service.key}"}
    case.call_and_validate(headers=headers, excluded_checks=excluded)
