"""Two tenants with data in everything: no route shows either what is the other's.

The test of a single route: what a tenant is answered about a thing of the other is what it is
answered about a thing that does not exist.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from serving.audit import verify_log
from serving.models.deployments import Deployments
from serving.routes.catalogue import OPERATIONS
from serving.routes.operation import Operation
from serving.tenancy.tenants import add_tenant
from tests.serving.decisions.small_desk import HOLD, TESTS, graph
from tests.serving.fake_package import Package, request_of
from tests.serving.harness import Service
from tests.serving.models.fake_workspace import FakeWorkspace

TENANTS = ("alpha", "zwei")
# A name as long as alpha's that nobody has, and as far from whatever hints are made of.
NOBODY = "nihil"
UNKNOWN = "node-0000000000000000.9"
BANDS = [
    {"name": "approve", "below": 0.5},
    {"name": "decline", "below": 0.9},
    {"name": "never", "below": 1.01},
]


class World:
    """A service with two tenants, each with a channel, a rule file, lists, decisions and cases."""

    def __init__(self, folder: Any) -> None:
        workspace = FakeWorkspace(folder / "ws")
        self.service = Service(folder / "service")
        runtime = self.service.runtime
        runtime.front.people.add("olga", "operator", "*", "root")
        self.keys: dict[str, str] = {}
        self.cases: dict[str, str] = {}
        for tenant in TENANTS:
            add_tenant(self.service.database, tenant)
            workspace.package(f"{tenant}pack", bands=BANDS)
            workspace.crown(f"{tenant}/{tenant}chan", 1, f"{tenant}pack")
            runtime.front.people.add(f"{tenant}boss", "admin", tenant, "olga")
            person = f"{tenant}boss"
            self.keys[tenant] = self.service.make_key(person, tenant=tenant, person=person)
        named = runtime.deployments
        runtime.deployments = Deployments(workspace.settings(), Package.load)
        runtime.decisions.permit = lambda *_: None
        self.close_also = [named]
        for number, tenant in enumerate(TENANTS):
            self._fill(tenant, number)
        runtime.audit.append({}, "flush").result(timeout=60)
        runtime.decisions.projection.run()
        runtime.front.meter.advance()
        for tenant in TENANTS:
            page = self.ask(tenant, "GET", "/v1/cases").json()["cases"]
            assert page
            self.cases[tenant] = page[0]["id"]

    def _fill(self, tenant: str, number: int) -> None:
        for n in range(12):
            body = request_of(2, n + 100 * number) | {"entity_id": f"{tenant}-{n}"}
            headers = {"x_request_id": f"{tenant}-req-{n}", "idempotency_key": f"key-{n}"}
            assert self.ask(tenant, "POST", "/v1/score", body, **headers).status_code == 200
        entry = {"list": "black", "kind": "entity", "value": f"{tenant}-0",
                 "reason": f"{tenant}why"}  # fmt: skip
        assert self.ask(tenant, "PUT", "/v1/lists", {"add": [entry]}).status_code == 200
        file = {"channel": f"{tenant}chan", "decision": graph(), "tests": TESTS,
                "actions": {"hold": HOLD}}  # fmt: skip
        assert self.ask(tenant, "POST", "/v1/decision-files", file).status_code == 201

    def ask(
        self, tenant: str, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        return self.service.call(method, path, body, key=self.keys[tenant], **headers)

    def close(self) -> None:
        self.service.runtime.deployments.close()
        for each in self.close_also:
            each.close()
        self.service.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("isolation"))
    yield made
    made.close()


def paths(operation: Operation, world: World, owner: str) -> list[str]:
    """The operation's path with every kind of id of a tenant in each of its parts."""
    number = "1" if "{number}" in operation.path else ""
    case = world.cases.get(owner, UNKNOWN)
    ids = [f"{owner}chan", f"{owner}pack-0001", f"{owner}-req-0", f"{owner}-0", case, owner]
    if not operation.path_names:
        return [operation.path]
    found = []
    for name in ids:
        path = operation.path.replace("{number}", number).replace("{tenant}", owner)
        found.append(re.sub("{[^}]+}", name, path))
    return found


def bodies(operation: Operation, owner: str) -> list[Any]:
    """Bodies that name things of a tenant."""
    request = operation.request
    if not isinstance(request, type):
        return [None]
    names = {field.encode_name for field in msgspec.structs.fields(request)}
    if operation.name == "score_batch":
        return [{"requests": [{"entity_id": "c", "channel": f"{owner}chan"},
                              {"entity_id": "c", "package": f"{owner}pack-0001"}]}]  # fmt: skip
    given = {
        "entity_id": "c", "channel": f"{owner}chan", "package": f"{owner}pack-0001",
        "outcome": "approve", "step": "challenge", "events": {}, "decision": {}, "tests": [],
        "remove": [{"list": "black", "kind": "entity", "value": f"{owner}-0"}],
    }  # fmt: skip
    some = {name: value for name, value in given.items() if name in names}
    return [some, {name: value for name, value in some.items() if name != "package"}]


def queries(operation: Operation, owner: str) -> list[str]:
    """Query strings that name things of a tenant."""
    named = {"channel": f"{owner}chan", "claimed_by": f"{owner}boss"}
    known = {parameter.name for parameter in operation.parameters}
    return ["", *(f"?{name}={value}" for name, value in named.items() if name in known)]


def said(answer: httpx.Response, owner: str, case: str) -> tuple[int, str]:
    """Status and body; names of the owner read as anybody's."""
    return answer.status_code, answer.text.replace(owner, "NAME").replace(case, "CASE")


SEEN = [o for o in OPERATIONS if o.scope and o.name not in ("metrics", "openapi")]


@pytest.mark.parametrize("operation", SEEN, ids=lambda o: f"{o.method} {o.path}")
def test_a_thing_of_the_other_is_as_one_that_is_not(world: World, operation: Operation) -> None:
    headers = {"x_request_id": "same"}
    alphas = world.cases["alpha"]
    theirs = zip(paths(operation, world, "alpha"), paths(operation, world, NOBODY), strict=True)
    for path, other in theirs:
        more = zip(queries(operation, "alpha"), queries(operation, NOBODY), strict=True)
        for query, twin in more:
            sent = zip(bodies(operation, "alpha"), bodies(operation, NOBODY), strict=True)
            for body, double in sent:
                about = world.ask("zwei", operation.method, path + query, body, **headers)
                nothing = world.ask("zwei", operation.method, other + twin, double, **headers)
                assert about.status_code < 500, about.text
                seen, unseen = said(about, "alpha", alphas), said(nothing, NOBODY, UNKNOWN)
                assert seen == unseen, (path, query, body)
                if about.status_code < 400:
                    assert "alpha" not in about.text or operation.path_names, about.text
                assert alphas not in about.text or alphas in path


def test_what_one_has_the_other_has_not(world: World) -> None:
    for path in ("packages", "channels", "releases", "lists", "cases", "decision-files", "audit",
                 "usage", "me"):  # fmt: skip
        shown = {tenant: world.ask(tenant, "GET", f"/v1/{path}").text for tenant in TENANTS}
        assert "alpha" in shown["alpha"] and "zwei" in shown["zwei"]
        assert "zwei" not in shown["alpha"] and "alpha" not in shown["zwei"]
    cursor = world.ask("alpha", "GET", "/v1/audit?limit=2").json()["next"]
    page = world.ask("zwei", "GET", f"/v1/audit?cursor={cursor}").text
    assert "alpha" not in page and "zwei-req-0" in page
    replay = world.ask("alpha", "POST", "/v1/decisions/alpha-req-1/replay")
    assert replay.status_code in (200, 409)
    assert world.ask("zwei", "POST", "/v1/decisions/alpha-req-1/replay").status_code == 404


def test_thousands_of_mixed_requests_cross_nothing(world: World) -> None:
    """Same customers, request ids and idempotency keys in both tenants, interleaved."""
    draw = random.Random(7)
    wanted = {
        (tenant, n): world.ask(tenant, "POST", "/v1/score", _body(tenant, n)).json()["score"]
        for tenant in TENANTS
        for n in range(20)
    }
    assert all(wanted["alpha", n] != wanted["zwei", n] for n in range(20))
    plain = ["/v1/packages", "/v1/channels", "/v1/releases", "/v1/cases", "/v1/lists", "/v1/usage",
             "/v1/decision-files", "/v1/me"]  # fmt: skip

    async def one(tenant: str, what: int, n: int) -> None:
        other = TENANTS[1 - TENANTS.index(tenant)]
        path, headers = "/v1/score", {"x_request_id": f"mixed-{n}"}
        if what < 12:
            if what < 4:
                headers["idempotency_key"] = f"mixed-{n}"
            answer = await world.service.send(
                "POST", path, _body(tenant, n), world.keys[tenant], **headers
            )
            found = answer.json()
            if answer.status_code == 409:
                # The tenant's own twin of this request is still at work.
                assert what < 4 and other not in answer.text
                return
            assert answer.status_code == 200, answer.text
            assert found["score"] == wanted[tenant, n]
            assert found["package"]["release"] == f"{tenant}/{tenant}chan/1"
        elif what < 14:
            rows = {"requests": [_body(tenant, (n + k) % 20) for k in range(4)]}
            answer = await world.service.send("POST", f"{path}/batch", rows, world.keys[tenant])
            scores = [row["answer"]["score"] for row in answer.json()["results"]]
            assert scores == [wanted[tenant, (n + k) % 20] for k in range(4)]
        else:
            answer = await world.service.send(
                "GET", plain[n % len(plain)], key=world.keys[tenant], **headers
            )
            assert answer.status_code == 200
        assert other not in answer.text

    async def every() -> None:
        for _ in range(60):
            await asyncio.gather(
                *(one(draw.choice(TENANTS), draw.randrange(18), draw.randrange(20))
                  for _ in range(25))
            )  # fmt: skip

    world.service.loop.run_until_complete(every())
    world.service.runtime.audit.append({}, "flush").result(timeout=60)
    world.service.runtime.front.meter.advance()
    text = Path(world.service.settings.audit_path).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        if line.get("tenant") in TENANTS and "event" not in line:
            assert line["channel"] == f"{line['tenant']}chan"
            assert line["package"] == f"{line['tenant']}pack-0001"
    assert verify_log(world.service.settings.audit_path).lines == len(lines)


def _body(tenant: str, n: int) -> dict[str, Any]:
    """The same customer in both tenants, with another amount."""
    context = {"amount": 1000.0 + 37 * n + 50 * TENANTS.index(tenant)}
    return request_of(2, n) | {"entity_id": f"shared-{n}", "context": context}
