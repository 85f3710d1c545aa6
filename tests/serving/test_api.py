"""The API over ASGI: scores, errors of one shape, keys on every route, limits, concurrency."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.audit import verify_log
from serving.messages import CODES
from serving.routes.catalogue import OPERATIONS
from tests.serving.fake_package import request_of
from tests.serving.harness import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("service"))
    yield made
    made.close()


def failure(answer: httpx.Response, status: int) -> dict[str, str]:
    """The error of an answer, its shape checked."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"code", "message", "field", "request_id"}
    assert error["code"] == CODES[status]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text and ".py" not in answer.text
    return error


def test_a_score_with_reasons(service: Service) -> None:
    answer = service.call(
        "POST", "/v1/score", request_of(20) | {"reasons": True}, x_request_id="mine-1"
    )
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["request_id"] == "mine-1" and body["entity_id"] == "c0"
    assert body["package"]["id"] == "fake-0001"
    assert 0 <= body["score"] <= 1 and body["points"] == round(600 - 100 * body["score"])
    assert body["reasons"] == [
        {"name": "context.amount", "title": "amount", "value": "1000.0", "effect": 0.25}
    ]
    assert body["events"] == {"used": 20, "ignored": 0}
    assert service.score(request_of(20)).json()["reasons"] == []


def test_flags_of_package_and_request_come_together(service: Service) -> None:
    events = {"login": [{"event_time": "2020-09-01T00:00:00Z", "device id": "D-1"}]}
    body = {"entity_id": "c1", "as_of": "2020-09-01T00:00:00Z", "events": events}
    answer = service.score(body)
    assert answer.json()["flags"] == ["thin_file", "sharing_unknown", "later_events_ignored"]
    assert "D-1" not in answer.text


def test_strange_request_ids_are_replaced(service: Service) -> None:
    for given in ("a b", "x" * 65, "line\tbreak"):
        answer = service.call("GET", "/v1/health/live", x_request_id=given)
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 32


BAD: list[tuple[str, str, Any, dict[str, str], int, str]] = [
    ("POST", "/v1/score", b"{", {}, 400, ""),
    ("POST", "/v1/score", b"", {}, 400, ""),
    (
        "POST",
        "/v1/score",
        {"entity_id": "c", "events": {"statement": [{}]}},
        {},
        422,
        "events.statement[0].event_time",
    ),
    (
        "POST",
        "/v1/score",
        b'{"entity_id":"c","context":{"amount":1e999}}',
        {},
        422,
        "context.amount",
    ),
    ("POST", "/v1/score", b'{"entity_id":"c","context":{"amount":NaN}}', {}, 400, ""),
    ("POST", "/v1/score", {"entity_id": "c", "package": "fake-0002"}, {}, 404, "package"),
    ("POST", "/v1/score", {"entity_id": "c"}, {"content_type": "text/plain"}, 415, ""),
    ("POST", "/v1/score", {"entity_id": "c"}, {"content_encoding": "gzip"}, 415, ""),
    ("GET", "/v1/score", None, {}, 405, ""),
    ("PUT", "/v1/packages", None, {}, 405, ""),
    ("GET", "/v1/packages/other", None, {}, 404, "package"),
    ("GET", "/v1/nothing", None, {}, 404, ""),
    ("GET", "/v1/score/", None, {}, 404, ""),
    ("GET", "/", None, {}, 404, ""),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "field"), BAD)
def test_bad_requests(
    service: Service,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    field: str,
) -> None:
    answer = service.call(method, path, body, **headers)
    assert failure(answer, status)["field"] == field
    if status == 405:
        assert answer.headers["allow"]


SCOPE_OF = {(o.method, re.sub("{[^}]+}", "fake-0001", o.path)): o.scope for o in OPERATIONS}
PROTECTED = [route for route, scope in SCOPE_OF.items() if scope]


@pytest.mark.parametrize(("method", "path"), [*PROTECTED, ("GET", "/v1/nothing"), ("GET", "/")])
def test_every_route_wants_a_valid_key(service: Service, method: str, path: str) -> None:
    revoked = service.make_key("left")
    before = service.call(method, path, key=revoked)
    # Some steps are taken by people, with a personal key.
    assert before.status_code != 401
    assert before.status_code != 403 or "person" in before.json()["error"]["message"]
    service.revoke(revoked)
    wrong = service.key[:-6] + ("AAAAAA" if service.key[-6:] != "AAAAAA" else "BBBBBB")
    for key in (None, wrong, revoked, "rfm_", "nonsense", "rfm_" + "0" * 12 + "_" + "a" * 43):
        answer = service.call(method, path, key=key)
        failure(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert key is None or key not in answer.text
    basic = service.call(method, path, authorization="Basic " + service.key)
    failure(basic, 401)
    assert service.call(method, path, key=None, x_api_key=service.key).status_code != 401


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_a_key_needs_the_scope(service: Service, method: str, path: str) -> None:
    scope = SCOPE_OF[method, path]
    other = service.make_key("narrow", ["read" if scope == "score" else "score"])
    assert scope in failure(service.call(method, path, key=other), 403)["message"]


def test_health_is_open_and_says_when_ready(service: Service) -> None:
    assert service.call("GET", "/v1/health/live", key=None).json()["status"] == "live"
    answer = service.call("GET", "/v1/health/ready", key=None)
    assert answer.json() == {"status": "ready", "packages": 1}
    runtime, service.application.runtime = service.application.runtime, None
    try:
        waiting = service.call("GET", "/v1/health/ready", key=None)
        assert failure(waiting, 503) and waiting.headers["retry-after"]
        failure(service.score(request_of(1)), 503)
    finally:
        service.application.runtime = runtime


def test_packages_describe_what_a_request_may_hold(service: Service) -> None:
    listed = service.call("GET", "/v1/packages").json()
    assert listed["default"] == "fake-0001"
    assert [p["id"] for p in listed["packages"]] == ["fake-0001"]
    detail = service.call("GET", "/v1/packages/fake-0001").json()
    assert detail["sources"]["login"] == {
        "fields": {"device id": "identifier", "note": "text"},
        "time_zone": "UTC",
        "delay": "1d",
    }
    assert detail["context"]["fields"] == {"amount": "money", "term": "number"}
    assert detail["bands"][0]["name"] == "approve" and detail["default"] is True


def test_the_same_row_scores_the_same_alone_and_among_others(service: Service) -> None:
    bodies = [request_of(10 + seed, seed) for seed in range(12)]
    alone = [service.score(body).json()["score"] for body in bodies]

    async def together() -> list[httpx.Response]:
        return await asyncio.gather(
            *(service.send("POST", "/v1/score", body) for _ in range(3) for body in bodies)
        )

    answers = service.loop.run_until_complete(together())
    assert [a.json()["score"] for a in answers] == alone * 3
    assert [a.json()["entity_id"] for a in answers[:12]] == [b["entity_id"] for b in bodies]
    assert len(set(alone)) == len(alone)


def test_metrics_have_bounded_labels(service: Service) -> None:
    for path in ("/v1/secret-path", "/v1/packages/secret-id"):
        service.call("GET", path)
    service.call("POST", "/v1/score", {"entity_id": "c", "package": "secret-package"})
    service.score(request_of(3))
    text = service.call("GET", "/v1/metrics").text
    assert "secret" not in text
    assert 'riskfm_requests_total{package="fake-0001",route="/v1/score",status="200"}' in text
    assert 'route="unmatched",status="404"' in text
    assert 'riskfm_model_seconds_count{package="fake-0001"}' in text
    assert 'riskfm_waiting{package="fake-0001"} 0.0' in text


def test_decisions_are_logged_without_the_entity(service: Service) -> None:
    answer = service.score(request_of(5, seed=7)).json()
    service.runtime.audit.append({}, "flush").result(timeout=60)
    lines = Path(service.settings.audit_path).read_text().splitlines()
    line = next(x for x in map(json.loads, lines) if x.get("request_id") == answer["request_id"])
    assert line["score"] == answer["score"] and line["band"] == answer["band"]
    assert line["key_id"] == service.key.split("_")[1] and line["package"] == "fake-0001"
    assert line["entity"] == service.runtime.audit.hide("c7") and '"c7"' not in json.dumps(line)
    assert verify_log(service.settings.audit_path).lines == len(lines)


def test_limits_of_body_and_events(tmp_path: Path) -> None:
    service = Service(tmp_path, max_body_bytes=4096, max_events=20, audit_durable=True)
    assert service.score(request_of(20)).status_code == 200
    assert failure(service.score(request_of(21)), 413)["field"] == "events"
    failure(service.score(request_of(60)), 413)

    async def chunks() -> Any:
        for _ in range(10):
            yield b" " * 1024

    async def streamed() -> httpx.Response:
        headers = {"authorization": f"Bearer {service.key}", "content-type": "application/json"}
        return await service.client.post("/v1/score", content=chunks(), headers=headers)

    failure(service.loop.run_until_complete(streamed()), 413)
    service.close()


@pytest.mark.parametrize("behaviour", ["broken", "nan"])
def test_faults_of_ours_are_500_and_say_nothing(
    tmp_path: Path, behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(tmp_path, {"behaviour": behaviour})
    with caplog.at_level(logging.INFO):
        error = failure(service.score(request_of(2)), 500)
    assert error["request_id"] in caplog.text and "4711" not in caplog.text
    assert "4711" not in error["message"] and "nan" not in error["message"]
    service.close()
    assert verify_log(service.settings.audit_path).lines == 0


def test_a_full_queue_is_429_and_a_late_score_503(tmp_path: Path) -> None:
    service = Service(tmp_path, {"behaviour": "slow 1.5"}, queue=2, timeout_seconds=2.5)

    async def crowd() -> list[httpx.Response]:
        return await asyncio.gather(
            *(service.send("POST", "/v1/score", request_of(2)) for _ in range(6))
        )

    service.call("GET", "/v1/packages")  # the key is known from here on
    begin = time.monotonic()
    answers = service.loop.run_until_complete(crowd())
    statuses = sorted(a.status_code for a in answers)
    assert statuses == [200, 429, 429, 429, 429, 503]
    assert all(a.headers["retry-after"] == "1" for a in answers if a.status_code != 200)
    assert time.monotonic() - begin < 30
    service.loop.run_until_complete(asyncio.sleep(0.6))
    assert service.score(request_of(2)).status_code == 200
    service.loop.run_until_complete(asyncio.sleep(0.01))
    assert service.runtime.deployments.pick("default").waiting == 0
    service.close()


def test_no_score_is_given_that_cannot_be_logged(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.runtime.audit.failure = "OSError"
    answer = service.score(request_of(2))
    assert failure(answer, 503) and answer.headers["retry-after"]
    service.close()
