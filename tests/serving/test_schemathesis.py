"""Generated requests against the whole OpenAPI document: what it says is what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import Phase
from schemathesis.checks import load_all_checks

from serving import openapi
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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over a package that reads what the document's examples give."""
    made = Service(tmp_path_factory.mktemp("generated"), PACKAGE)
    yield made
    made.close()


schema = schemathesis.openapi.from_dict(openapi.document(OPERATIONS, "1.2.3"))


@schema.parametrize()
@hypothesis.settings(max_examples=12)
def test_generated(case: Any, service: Service) -> None:
    case.call_and_validate(
        app=service.application, headers={"Authorization": f"Bearer {service.key}"}
    )
