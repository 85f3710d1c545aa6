"""/v1/me, /v1/usage and /v1/audit show the caller's tenant and nobody else's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from serving.messages import ApiError
from serving.routes.call import Call
from serving.routes.tenancy import OPERATIONS
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import open_secrets
from serving.safety.vault import Vault
from serving.tenancy.front import Front
from serving.tenancy.principal import Principal
from serving.tenancy.tenants import Quota, TenantLimits, add_tenant
from tests.serving.tenancy.small_hosting import caller, open_hosting, open_log

HANDLERS = {operation.name: operation.handler for operation in OPERATIONS}
ADMIN = Principal("acme", "k9", "boss", frozenset(("read", "admin")))


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    database = open_hosting(tmp_path / "riskfm.db")
    rules = TenantLimits(rate=1, burst=10, quota=Quota(day=100), channels={"cards": Quota(month=9)})
    add_tenant(database, "acme", rules)
    log = open_log(tmp_path)
    for number in range(7):
        tenant = "acme" if number < 5 else "beta"
        log.append({"tenant": tenant, "channel": "cards", "route": "/v1/score"}, f"e{number}")
    log.close()
    secrets = open_secrets(tmp_path / "master.key", "development")
    front = Front(database, vault=Vault(secrets), hide=EntityHasher(secrets).hash, log=log.path)
    front.meter.advance()
    yield front
    front.close()


def ask(front: Front, name: str, query: str = "", who: Principal | None = None) -> Any:
    """The decoded answer of a route."""
    call = Call("request-1")
    call.request = Request({"type": "http", "query_string": query.encode(), "headers": []})
    call.runtime = SimpleNamespace(front=front)
    call.principal = who or caller()
    return json.loads(asyncio.run(HANDLERS[name](call)).body)


def test_me(front: Front) -> None:
    front.rates.admit(caller())
    front.quotas.spend("acme", "cards", 2)
    front.quotas.spend("beta", "cards", 4)
    found = ask(front, "me")
    assert (found["tenant"], found["key_id"], found["scopes"]) == ("acme", "k1", ["read", "score"])
    assert found["rate"] == {"limit": 10, "remaining": 9, "reset": 1}
    assert found["quota"] == {"day_used": 2, "day": 100, "month_used": 2, "month": None}
    assert found["channels"]["cards"]["month"] == 9 and found["channels"]["cards"]["day_used"] == 2
    assert ask(front, "me", who=caller("beta"))["rate"] == {}


def test_usage(front: Front) -> None:
    found = ask(front, "usage")
    assert found["total"] == {"score": 5} and [r["units"] for r in found["rows"]] == [5]
    assert ask(front, "usage", who=caller("beta"))["total"] == {"score": 2}
    assert ask(front, "usage", who=caller("none"))["rows"] == []
    assert ask(front, "usage", "channel=loans")["rows"] == []
    assert ask(front, "usage", "from=2020-01-01&until=2020-02-01")["rows"] == []


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("from=yesterday", "from"),
        ("from=2027-02-30", "from"),
        ("from=2027-02-01&until=2027-01-01", "until"),
        ("until=20270101", "until"),
        ("tenant=beta", "tenant"),
        ("channel=a&channel=b", "channel"),
    ],
)
def test_wrong_usage_queries(front: Front, query: str, where: str) -> None:
    with pytest.raises(ApiError) as found:
        ask(front, "usage", query)
    assert (found.value.status, found.value.field) == (422, where)


def test_audit_page_by_page(front: Front) -> None:
    rows, cursor = [], ""
    while True:
        page = ask(front, "audit", f"limit=2{cursor}", ADMIN)
        rows += page["decisions"]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    later = ask(front, "audit", f"from={rows[3]['time']}", ADMIN)["decisions"]
    assert [row["seq"] for row in later] == [4, 5]
    other = Principal("beta", "k", "n", frozenset(("admin",)))
    assert [row["seq"] for row in ask(front, "audit", who=other)["decisions"]] == [6, 7]
    # A cursor of one tenant shows another nothing but its own.
    page = ask(front, "audit", f"cursor={cursor.removeprefix('&cursor=')}", other)
    assert [row["seq"] for row in page["decisions"]] == [6, 7]


def test_audit_takes_an_admin_or_an_auditor(front: Front) -> None:
    with pytest.raises(ApiError, match="lacks the scope 'admin'") as found:
        ask(front, "audit")
    assert found.value.status == 403
    front.people.add("anna", "admin", "acme", "root")
    front.people.add("aude", "auditor", "acme", "anna")
    front.people.add("vic", "viewer", "acme", "anna")
    assert len(ask(front, "audit", who=caller(person="aude"))["decisions"]) == 5
    with pytest.raises(ApiError, match="may not see audit"):
        ask(front, "audit", who=caller(person="vic"))
    with pytest.raises(ApiError, match="may not see audit"):
        ask(front, "audit", who=caller("beta", person="aude"))


@pytest.mark.parametrize(
    "query",
    [
        "from=noon", "limit=0", "limit=1001", "limit=-1", "cursor=x", "cursor=W10=",
        "cursor=WyJhIiwiYiIsLTFd", "cursor=%C3%A4", "until=9999-12-31T23:59:59-23:00",
    ],
)  # fmt: skip
def test_wrong_audit_queries(front: Front, query: str) -> None:
    with pytest.raises(ApiError) as found:
        ask(front, "audit", query, ADMIN)
    assert found.value.status == 422


def test_the_background_counts_and_closing_writes_down(tmp_path: Path, front: Front) -> None:
    log = open_log(tmp_path)
    log.append({"tenant": "acme", "route": "/v1/score"}, "e")
    log.close()
    front.quotas.spend("acme", "cards", 3)
    front.close()
    assert ask(front, "usage")["total"] == {"score": 6}
    assert open_hosting(tmp_path / "riskfm.db") is not None
    assert type(front.quotas)(front.database, front.keys.limits).used("acme") == (3, 3)
