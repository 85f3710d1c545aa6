"""Idempotency keys and sandbox keys over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.audit import verify_log
from serving.routes.catalogue import OPERATIONS
from serving.tenancy.idempotency import Begun
from serving.tenancy.principal import SCOPES
from serving.tenancy.sandbox import ENTITIES, ERRORS
from tests.serving.fake_package import request_of
from tests.serving.harness import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()


def lines(service: Service) -> int:
    """Decisions in the log."""
    log = service.runtime.audit
    log.append({}, "flush").result(timeout=60)
    text = Path(service.settings.audit_path).read_text(encoding="utf-8").splitlines()
    return sum("score" in json.loads(line) for line in text)


@pytest.mark.parametrize("path", ["/v1/score", "/v1/query", "/v1/score/batch"])
def test_the_stored_answer_comes_back_byte_for_byte(service: Service, path: str) -> None:
    body: Any = request_of(3)
    body = {"requests": [body, {"entity_id": ""}]} if path.endswith("batch") else body
    first = service.call("POST", path, body, idempotency_key="k1", x_request_id="one")
    again = service.call("POST", path, body, idempotency_key="k1", x_request_id="two")
    assert first.status_code == again.status_code == 200
    assert again.content == first.content and again.json()["request_id"] == "one"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotent-replay"] == "true" and again.headers["x-request-id"] == "two"
    assert "idempotent-replay" not in first.headers
    other = service.call("POST", path, body | {"more": 1}, idempotency_key="k1")
    assert other.status_code == 422
    assert other.json()["error"]["field"] == "Idempotency-Key"
    assert service.runtime.front.quotas.used("default")[0] == 1
    text = json.dumps(body, indent=1).encode()
    assert service.call("POST", path, text, idempotency_key="k1").status_code == 422


def test_keys_are_of_a_route_and_a_tenant(service: Service) -> None:
    body = request_of(3)
    answers = [service.call("POST", path, body, idempotency_key="k") for path in
               ("/v1/score", "/v1/query")]  # fmt: skip
    assert [a.status_code for a in answers] == [200, 200]
    assert not any("idempotent-replay" in a.headers for a in answers)
    assert lines(service) == 1


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "a\tb"])
def test_what_is_no_key(service: Service, key: str) -> None:
    answer = service.call("POST", "/v1/score", request_of(1), idempotency_key=key)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "Idempotency-Key"
    assert lines(service) == 0


def test_while_the_first_is_at_work_the_others_wait(tmp_path: Path) -> None:
    service = Service(tmp_path, {"behaviour": "slow 0.4"})

    async def crowd() -> list[httpx.Response]:
        sent = [service.send("POST", "/v1/score", request_of(2), idempotency_key="k")
                for _ in range(5)]  # fmt: skip
        return await asyncio.gather(*sent)

    service.call("GET", "/v1/me")
    answers = service.loop.run_until_complete(crowd())
    assert sorted(a.status_code for a in answers) == [200, 409, 409, 409, 409]
    busy = [a for a in answers if a.status_code == 409]
    assert all(a.headers["retry-after"] == "1" for a in busy)
    [done] = [a for a in answers if a.status_code == 200]
    again = service.call("POST", "/v1/score", request_of(2), idempotency_key="k")
    assert again.content == done.content and lines(service) == 1
    service.close()


def test_refusals_of_the_request_are_kept(service: Service) -> None:
    for body, status in (({"entity_id": ""}, 422), ({"entity_id": "c", "package": "x"}, 404)):
        first = service.call("POST", "/v1/score", body, idempotency_key=f"k{status}")
        again = service.call("POST", "/v1/score", body, idempotency_key=f"k{status}")
        assert first.status_code == status and again.content == first.content
        assert again.headers["idempotent-replay"] == "true"


def test_what_may_pass_is_given_up(service: Service) -> None:
    body = request_of(2)
    service.runtime.audit.failure = "OSError"
    broken = service.call("POST", "/v1/score", body, idempotency_key="k")
    assert broken.status_code >= 500
    service.runtime.audit.failure = ""
    healed = service.call("POST", "/v1/score", body, idempotency_key="k")
    assert healed.status_code == 200 and "idempotent-replay" not in healed.headers
    again = service.call("POST", "/v1/score", body, idempotency_key="k")
    assert again.content == healed.content and lines(service) == 1


def test_a_body_that_is_refused_before_it_is_read_uses_no_key(service: Service) -> None:
    wrong = service.call(
        "POST", "/v1/score", request_of(1), content_type="text/plain", idempotency_key="k"
    )
    assert wrong.status_code == 415
    found = service.runtime.front.idempotency.begin("default", "/v1/score", "k", "d")
    assert isinstance(found, Begun)


@pytest.fixture
def sandbox(service: Service) -> str:
    return service.make_key("trying", SCOPES, sandbox=True)


def test_test_entities(service: Service, sandbox: str) -> None:
    for name, wanted in ENTITIES.items():
        body = {"entity_id": name, "reasons": True}
        found = service.call("POST", "/v1/score", body, key=sandbox).json()
        assert (found["score"], found["points"]) == (wanted.score, wanted.points)
        assert found["decision"]["outcome"] == wanted.outcome and found["flags"][0] == "sandbox"
        assert len(found["reasons"]) == len(wanted.reasons)
        asked = service.call("POST", "/v1/query", {"entity_id": name}, key=sandbox).json()
        assert asked["forecasts"][0]["probability"] == wanted.score
        assert asked["flags"] == found["flags"]
    for name, (status, _, headers) in ERRORS.items():
        for path in ("/v1/score", "/v1/query"):
            answer = service.call("POST", path, {"entity_id": name}, key=sandbox)
            assert answer.status_code == status
            assert answer.headers.get("retry-after") == headers.get("Retry-After")
    answer = service.call("POST", "/v1/score", {"entity_id": "test_aprove"}, key=sandbox)
    assert "did you mean 'test_approve'" in answer.json()["error"]["message"]
    assert service.call("POST", "/v1/query", {"entity_id": "c1"}, key=sandbox).status_code == 422


def test_a_sandbox_batch(service: Service, sandbox: str) -> None:
    rows = [{"entity_id": name} for name in ("test_approve", "c1", "test_error_503")]
    answer = service.call("POST", "/v1/score/batch", {"requests": rows}, key=sandbox).json()
    assert (answer["scored"], answer["failed"]) == (1, 2)
    codes = [row.get("error", {}).get("code") for row in answer["results"]]
    assert codes == [None, "invalid", "unavailable"]


def test_the_sandbox_leaves_no_trace(service: Service, sandbox: str) -> None:
    body = {"entity_id": "test_approve"}
    mine = service.call("POST", "/v1/score", body, key=sandbox, idempotency_key="k")
    real = service.call("POST", "/v1/score", body, idempotency_key="k")
    assert mine.json()["package"]["id"] == "sandbox" and real.json()["package"]["id"] != "sandbox"
    assert "sandbox" not in real.json()["flags"]
    again = service.call("POST", "/v1/score", body, key=sandbox, idempotency_key="k")
    assert again.content == mine.content and again.headers["idempotent-replay"] == "true"
    assert lines(service) == 1 and service.runtime.front.quotas.used("default")[0] == 1
    service.close()
    verify_log(service.settings.audit_path)


def test_a_sandbox_key_changes_nothing(service: Service, sandbox: str) -> None:
    for operation in OPERATIONS:
        if operation.scope and operation.method != "GET" and not operation.rehearsed:
            path = operation.path.replace("{", "").replace("}", "")
            answer = service.call(operation.method, path, {}, key=sandbox)
            assert answer.status_code == 403, operation.path
            assert "sandbox" in answer.json()["error"]["message"]
    assert service.call("GET", "/v1/me", key=sandbox).json()["sandbox"] is True


def test_a_client_that_goes_away_leaves_its_key_free(tmp_path: Path) -> None:
    """Nothing is decided or kept for it; sent again, the request is answered."""
    service = Service(tmp_path, {"behaviour": "slow 0.3"}, threads=1)
    service.call("POST", "/v1/score", request_of(1))
    body = json.dumps(request_of(2)).encode()
    headers = {"authorization": f"Bearer {service.key}", "content-type": "application/json",
               "idempotency-key": "k"}  # fmt: skip
    scope = {
        "type": "http", "method": "POST", "path": "/v1/score", "query_string": b"",
        "root_path": "", "scheme": "http", "server": ("test", 80), "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def left() -> httpx.Response:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        busy = asyncio.ensure_future(service.send("POST", "/v1/score", request_of(3)))
        while service.runtime.deployments.pool.idle:
            await asyncio.sleep(0.001)
        await service.application(scope, receive, send)
        return await busy

    assert service.loop.run_until_complete(left()).status_code == 200
    assert sent == []
    again = service.call("POST", "/v1/score", request_of(2), idempotency_key="k")
    assert again.status_code == 200 and "idempotent-replay" not in again.headers
    assert lines(service) == 3
    text = service.call("GET", "/v1/metrics").text
    assert 'status="499"' in text and 'status="500"' not in text
    service.close()
