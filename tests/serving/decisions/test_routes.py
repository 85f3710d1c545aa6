"""The routes over a real desk: scopes of work, who may, pages, and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.database import Database
from serving.messages import ApiError
from serving.room import Room
from serving.routes.call import Call
from serving.routes.decisions import OPERATIONS
from serving.routes.operation import Operation
from serving.settings import Settings
from serving.tenancy.principal import SCOPES, Principal
from tests.serving.decisions.small_desk import HOLD, TESTS, Small, facts, graph, small


class Api:
    """The operations in an application of their own; the header `who` names a person."""

    def __init__(self, desk: Small) -> None:
        self.desk = desk
        self.runtime = SimpleNamespace(
            settings=Settings(), decisions=desk.desk, room=Room.of(Settings())
        )
        routes = [Route(o.path, self._endpoint(o), methods=[o.method]) for o in OPERATIONS]
        transport = httpx.ASGITransport(Starlette(routes=routes))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")
        self.loop = asyncio.new_event_loop()

    def _endpoint(self, operation: Operation) -> Any:
        async def answer(request: Request) -> Response:
            call = Call("req")
            call.request, call.runtime = request, self.runtime  # type: ignore[assignment]
            tenant = request.headers.get("tenant", "acme")
            person = request.headers.get("who", "")
            call.principal = Principal(tenant, "k1", "test", frozenset(SCOPES), person=person)
            try:
                response = await operation.handler(call)
            except ApiError as exc:
                assert exc.status in operation.statuses, (operation.name, exc.status)
                return JSONResponse({"message": str(exc)}, exc.status)
            assert response.status_code == operation.status or operation.status == 200
            msgspec.json.decode(response.body, type=operation.answer)
            return response

        return answer

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        content = None if body is None else json.dumps(body)
        if body is not None:
            headers["content-type"] = "application/json"
        done = self.loop.run_until_complete(
            self.client.request(method, path, content=content, headers=headers)
        )
        return done.status_code, done.json()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with small(tmp_path, Database(f"sqlite:///{tmp_path}/test.db")) as desk:
        found = Api(desk)
        yield found
        found.loop.run_until_complete(found.client.aclose())
        found.loop.close()


def body(**more: Any) -> dict[str, Any]:
    return {"channel": "cards", "decision": graph(), "tests": TESTS,
            "actions": {"hold": HOLD}} | more  # fmt: skip


def test_lists(api: Api) -> None:
    entry = {"list": "black", "kind": "phone", "value": "138", "reason": "fraud"}
    assert api.call("PUT", "/v1/lists", {"add": [entry]}) == (200, {"added": 1, "removed": 0})
    status, page = api.call("GET", "/v1/lists?list=black&limit=1")
    assert status == 200
    assert page["entries"][0]["added_by"] == "key:k1"
    assert "138" not in {e["hash"] for e in page["entries"]}
    assert api.call("GET", "/v1/lists", tenant="other")[1]["entries"] == []
    assert api.call("PUT", "/v1/lists", {"remove": [entry]}, who="eve")[1]["removed"] == 1
    for wrong, said in (
        ({"add": [entry | {"list": "blak"}]}, "did you mean 'black'"),
        ({"add": [entry | {"expires_at": "soon"}]}, "ISO 8601"),
        ({"ad": []}, "unknown field 'ad', did you mean 'add'"),
    ):
        status, answer = api.call("PUT", "/v1/lists", wrong)
        assert (status, said in answer["message"]) == (422, True)
    for query in ("list=red", "limit=0", "lists=black"):
        assert api.call("GET", f"/v1/lists?{query}")[0] == 422


def test_decision_files(api: Api) -> None:
    status, made = api.call("POST", "/v1/decision-files", body(), who="anna")
    assert (status, made["stage"], made["number"]) == (201, "draft", 1)
    stage = "/v1/decision-files/cards/1/stage"
    assert api.call("POST", stage, {"step": "challenge"})[1]["stage"] == "challenger"
    for who, code in (("", 403), ("anna", 409), ("ben", 200)):
        assert api.call("POST", stage, {"step": "approve"}, who=who)[0] == code
    assert api.call("GET", "/v1/decision-files")[1]["files"][0]["approved_by"] == "ben"
    assert api.call("GET", "/v1/decision-files", tenant="other")[1] == {"files": []}
    assert api.call("POST", stage, {"step": "retire"}, who="ben", tenant="other")[0] == 404
    assert api.call("POST", stage, {"step": "crown"}, who="ben")[0] == 422
    for path in ("cards/2", "cards/x", "card/1"):
        where = f"/v1/decision-files/{path}/stage"
        assert api.call("POST", where, {"step": "retire"}, who="ben")[0] == 404
    decision = graph()
    decision["nodes"][1]["type"] = "functionNode"
    for wrong, said in (
        (body(decision=decision), "functions are not taken"),
        (body(tests=[]), "at least one test case"),
        (body(channel="a b"), "use up to 64 letters"),
        (body(review={"hour": 1}), "unknown key"),
    ):
        status, answer = api.call("POST", "/v1/decision-files", wrong)
        assert (status, said in answer["message"]) == (422, True), answer


def test_decisions_replay_and_cases(api: Api) -> None:
    api.desk.decide("r1", facts(550))
    api.desk.take_in()
    status, found = api.call("GET", "/v1/decisions/r1")
    assert (status, found["outcome"], found["version"]) == (200, "review", "default")
    assert "entity" not in found
    status, again = api.call("POST", "/v1/decisions/r1/replay")
    assert (status, again["reproduced"], again["changes"]) == (200, True, [])
    for method, path in (("GET", "/v1/decisions/r2"), ("POST", "/v1/decisions/r2/replay")):
        assert api.call(method, path)[0] == 404
    assert api.call("GET", "/v1/decisions/r1", tenant="other")[0] == 404
    [case] = api.call("GET", "/v1/cases?state=open&limit=5")[1]["cases"]
    claim, decide = (f"/v1/cases/{case['id']}/{step}" for step in ("claim", "decide"))
    verdict = {"outcome": "approve", "note": "fine"}
    assert api.call("POST", claim)[0] == 403
    assert api.call("POST", decide, verdict, who="eve")[0] == 409
    assert api.call("POST", claim, who="eve", tenant="other")[0] == 404
    assert api.call("POST", claim, who="eve")[1]["claimed_by"] == "eve"
    assert api.call("POST", decide, {"outcome": "maybe"}, who="eve")[0] == 422
    assert api.call("POST", decide, verdict, who="eve")[1]["state"] == "decided"
    for query in ("state=x", "after=x", "page=2"):
        assert api.call("GET", f"/v1/cases?{query}")[0] == 422


def test_roles_are_asked(api: Api) -> None:
    asked: list[tuple[str, str]] = []

    def permit(principal: Principal, action: str, channel: str) -> None:
        asked.append((action, channel))
        raise ApiError(403, "the key's person may not")

    api.desk.decide("r1", facts(550))
    api.desk.take_in()
    [case] = api.call("GET", "/v1/cases")[1]["cases"]
    api.desk.desk.permit = permit
    entry = {"list": "black", "kind": "phone", "value": "138"}
    stage = "/v1/decision-files/cards/1/stage"
    for method, path, sent in (
        ("PUT", "/v1/lists", {"add": [entry]}),
        ("POST", "/v1/decision-files", body()),
        ("POST", stage, {"step": "approve"}),
        ("POST", stage, {"step": "rollback"}),
        ("POST", f"/v1/cases/{case['id']}/claim", None),
        ("POST", f"/v1/cases/{case['id']}/decide", {"outcome": "approve"}),
    ):
        assert api.call(method, path, sent, who="eve")[0] == 403
    assert asked == [("edit_lists", "*"), ("edit_rules", "cards"), ("approve", "cards"),
                     ("rollback", "cards"), ("decide", "cards"), ("decide", "cards")]  # fmt: skip


def test_zero_bytes_are_refused_where_the_database_cannot_keep_them(desks: Small) -> None:
    api = Api(desks)
    kept = desks.desk.database.engine.dialect.name == "sqlite"
    entry = {"list": "black", "kind": "phone", "value": "1", "reason": "a\0b"}
    assert api.call("PUT", "/v1/lists", {"add": [entry]})[0] == (200 if kept else 422)
    assert api.call("GET", "/v1/decisions/a%00")[0] == (404 if kept else 422)
    api.loop.run_until_complete(api.client.aclose())
    api.loop.close()
