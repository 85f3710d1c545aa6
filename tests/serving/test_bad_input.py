"""Bad input on every route: a clear 4xx of one shape, the field at fault, and nothing echoed.

The cases are generated from the operations, so that a new route is tested the day it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest

from serving.messages import CODES
from serving.routes.call import JSON
from serving.routes.catalogue import OPERATIONS
from serving.routes.operation import Operation
from serving.tenancy import tables
from serving.tenancy.principal import SCOPES
from serving.tenancy.tenants import add_tenant, resume_tenant, suspend_tenant
from tests.serving.fake_package import request_of
from tests.serving.harness import Service

# Stands in values, never in names: no answer may repeat it.
MARK = "zq4711zq"
BATCHES = ("requests", "posts")
TAKES = [o for o in OPERATIONS if isinstance(o.request, type)]
UPLOADS = [o for o in OPERATIONS if o.request is not None and not isinstance(o.request, type)]
CLOSED = [o for o in OPERATIONS if o.scope]
PARTED = [o for o in OPERATIONS if o.path_names]


def label(value: Any) -> str | None:
    return f"{value.method} {value.path}" if isinstance(value, Operation) else None


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose key is an admin's own, so that steps of people are reached too."""
    made = Service(tmp_path_factory.mktemp("bad"))
    made.runtime.front.people.add("anna", "admin", "default", "root")
    made.key = made.make_key("anna", person="anna")
    yield made
    made.close()


def refused(answer: httpx.Response, *statuses: int) -> dict[str, str]:
    """The error of an answer, its shape and its silence checked."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"code", "message", "field", "request_id"}
    assert error["code"] == CODES[answer.status_code] and error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert MARK not in answer.text and "Traceback" not in answer.text
    return error


def place(operation: Operation, value: str = "1") -> str:
    """The operation's path with a value for each of its parts."""
    return re.sub("{[^}]+}", quote(value, safe=""), operation.path)


def minimal(operation: Operation) -> dict[str, Any]:
    """The least a body of the operation must hold, by its type."""
    schema = msgspec.json.schema(operation.request)["$defs"][operation.request.__name__]
    kinds = {"string": "c", "array": [], "object": {}, "number": 1, "integer": 1, "boolean": True}
    return {
        name: kinds.get(schema["properties"][name].get("type", "object"))
        for name in schema.get("required", ())
    }


def members(operation: Operation) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(operation.request)]


NO_JSON = {
    "half": b"{",
    "words": MARK.encode(),
    "nan": b'{"%s":NaN}',
    "infinity": b'{"%s":-Infinity}',
    "bad utf-8": b'{"\xff\xfe":1}',
    "two": b"{} {}",
    "deep": b'{"%s":' + b"[" * 200_000,
    "nul": b"\0",
    "utf-16": "{}".encode("utf-16"),
}


@pytest.mark.parametrize("operation", TAKES, ids=label)
def test_what_is_no_json(service: Service, operation: Operation) -> None:
    name = members(operation)[0].encode()
    for kind, body in NO_JSON.items():
        answer = service.call(operation.method, place(operation), body.replace(b"%s", name))
        refused(answer, 400, 422)
        # What is wrong first decides: `two` may lack a member before it has a second value.
        assert answer.status_code == 400 or kind in ("bad utf-8", "deep", "two"), answer.text


@pytest.mark.parametrize("operation", TAKES, ids=label)
def test_what_is_no_object(service: Service, operation: Operation) -> None:
    for body in ([], 3, MARK, None, True, [{}]):
        refused(service.call(operation.method, place(operation), json.dumps(body).encode()), 422)
    answer = service.call(operation.method, place(operation), minimal(operation) | {"zzz": MARK})
    error = refused(answer, 422)
    assert error["field"] == "zzz" and "unknown field 'zzz'" in error["message"]


@pytest.mark.parametrize("operation", TAKES, ids=label)
def test_members_of_the_wrong_type(service: Service, operation: Operation) -> None:
    required = minimal(operation)
    for name in members(operation):
        for wrong in ([[MARK]], {"%": {"inner": [MARK]}}, b"1e999", b"9" * 400):
            if isinstance(wrong, bytes):
                rest = {k: v for k, v in required.items() if k != name}
                body = json.dumps(rest).encode()[:-1] + b"," * bool(rest)
                body += b'"%s":%s}' % (name.encode(), wrong)
            else:
                body = json.dumps(required | {name: wrong}).encode()
            answer = service.call(operation.method, place(operation), body)
            if answer.status_code == 200:
                # Rows of a batch fail alone; objects of anything are objects of anything.
                assert name in BATCHES, (name, wrong, answer.text)
                errors = [row["error"] for row in answer.json()["results"]]
                assert errors and MARK not in json.dumps([e["message"] for e in errors])
                continue
            field = answer.json()["error"]["field"]
            statuses = (422,) if field.startswith(name) else (404, 409, 422)
            assert answer.status_code in statuses, (name, wrong, answer.text)
            assert MARK not in answer.json()["error"]["message"]


@pytest.mark.parametrize("operation", TAKES + UPLOADS, ids=label)
def test_media_types_and_sizes(service: Service, operation: Operation) -> None:
    path, method = place(operation), operation.method
    body = json.dumps(minimal(operation) if operation in TAKES else {}).encode()
    for media in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "", MARK):
        # An upload says in its query what it is of, which is read first.
        allowed = (415,) if operation in TAKES else (415, 422)
        error = refused(service.call(method, path, body, content_type=media), *allowed)
        assert error["code"] == "invalid" or operation.media[0] in error["message"]
    packed = {"content_encoding": "gzip", "content_type": operation.media[0]}
    refused(service.call(method, path, body, **packed), *allowed)
    if operation in TAKES:
        refused(service.call(method, path, b"", content_type=JSON), 400)
        large = b" " * (service.settings.max_body_bytes + 1)
        if operation.largest == "max_body_bytes":
            refused(service.call(method, path, large), 413)


@pytest.mark.parametrize("operation", CLOSED, ids=label)
def test_query_parameters(service: Service, operation: Operation) -> None:
    method, path = operation.method, place(operation)
    error = refused(service.call(method, f"{path}?zzz={MARK}"), 422)
    assert error["field"] == "zzz"
    refused(service.call(method, f"{path}?{'y' * 5000}=1"), 422)
    for parameter in operation.parameters:
        if parameter.where != "query":
            continue
        name = parameter.name
        twice = service.call(method, f"{path}?{name}=1&{name}=2", **_media(operation))
        refused(twice, 400, 404, 409, 415, 422)
        for value in ("", "-1", "1e999", "NaN", "%00", "%ff", "%F0%9F%92%A3", "x" * 4000, MARK):
            answer = service.call(method, f"{path}?{name}={value}", **_media(operation))
            assert answer.status_code in (operation.status, *operation.statuses)
            if answer.status_code >= 400:
                refused(answer, *range(400, 500))
    for name in ("limit",):
        if name in {parameter.name for parameter in operation.parameters}:
            for value in ("0", "-1", "1.5", "1e3", "99999999999999999999", "٣", "x"):
                error = refused(service.call(method, f"{path}?{name}={value}"), 422)
                assert error["field"] == name


def _media(operation: Operation) -> dict[str, str]:
    return {} if operation.request is None else {"content_type": operation.media[0]}


NAMES = ("unknown-1", MARK, "a b", "..", "../x", "x" * 3000, "\0", "\x7f", "é💣", "%2e%2e", "-1",
         "9" * 30, "' OR 1=1 --", "{id}")  # fmt: skip


@pytest.mark.parametrize("operation", PARTED, ids=label)
def test_names_nobody_has(service: Service, operation: Operation) -> None:
    body = minimal(operation) if operation in TAKES else None
    for name in NAMES:
        path = place(operation, name)
        answer = service.call(operation.method, path, body, **_media(operation))
        # What is stored of a customer nobody knows is nothing; a bound may be asked for anything.
        if answer.status_code != operation.status:
            refused(answer, 400, 403, 404, 409, 422)
    raw = service.call(operation.method, re.sub("{[^}]+}", "%ff%fe", operation.path), body)
    assert raw.status_code < 500


@pytest.mark.parametrize("path", sorted({o.path for o in OPERATIONS}))
def test_other_methods(service: Service, path: str) -> None:
    known = {o.method for o in OPERATIONS if o.path == path}
    known |= {"HEAD"} if "GET" in known else set()
    where = re.sub("{[^}]+}", "1", path)
    for method in {"GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUX"} - known:
        answer = service.call(method, where)
        refused(answer, 405)
        assert set(re.split(", *", answer.headers["allow"])) == known


def test_keys_that_are_not_good_any_more(service: Service) -> None:
    gone = service.make_key("gone")
    with service.database.transaction() as connection:
        mine = tables.keys.c.name == "gone"
        past = {"expires": "2020-01-01T00:00:00+00:00"}
        connection.execute(tables.keys.update().where(mine).values(**past))
        tables.changed(connection)
    revoked = service.make_key("revoked")
    service.revoke(revoked)
    add_tenant(service.database, "asleep")
    sleeping = service.make_key("sleeping", tenant="asleep")
    suspend_tenant(service.database, "asleep")
    service.runtime.front.keys.refresh()
    for operation in CLOSED:
        for key in (gone, revoked):
            error = refused(service.call(operation.method, place(operation), key=key), 401)
            assert key.split("_", 2)[2] not in json.dumps(error)
        refused(service.call(operation.method, place(operation), key=sleeping), 401, 403)
    resume_tenant(service.database, "asleep")
    service.runtime.front.keys.refresh()
    assert service.call("GET", "/v1/me", key=sleeping).status_code == 200


@pytest.mark.parametrize("operation", CLOSED, ids=label)
def test_every_other_scope_together_is_not_enough(service: Service, operation: Operation) -> None:
    name = f"all but {operation.scope}"
    key = _KEYS.get((id(service), name))
    if key is None:
        others = [scope for scope in SCOPES if scope != operation.scope]
        key = _KEYS[id(service), name] = service.make_key(name, others)
    error = refused(service.call(operation.method, place(operation), key=key), 403)
    assert operation.scope in error["message"]


_KEYS: dict[tuple[int, str], str] = {}

SCORED: list[tuple[dict[str, Any], int, str]] = [
    ({"as_of": "9999-12-31T23:59:59Z"}, 422, "as_of"),
    ({"as_of": "9999-12-31T23:59:59-23:00"}, 422, "as_of"),
    ({"as_of": "2120-01-01"}, 422, "as_of"),
    ({"as_of": "1969-12-31T23:59:59Z"}, 422, "as_of"),
    ({"as_of": "0001-01-01"}, 422, "as_of"),
    ({"as_of": "10000-01-01"}, 422, "as_of"),
    ({"as_of": MARK}, 422, "as_of"),
    ({"as_of": ""}, 422, "as_of"),
    ({"as_of": 1_600_000_000}, 422, "as_of"),
    ({"entity_id": " \t"}, 422, "entity_id"),
    ({"entity_id": "x" * 257}, 422, "entity_id"),
    ({"channel": MARK}, 404, "channel"),
    ({"package": MARK}, 404, "package"),
    ({"package": "fake-0001", "channel": MARK}, 422, "package"),
    ({"reasons": "yes"}, 422, "reasons"),
    ({"events": {"statment": []}}, 422, "events.statment"),
    ({"events": {"statement": [{"event_time": "2120-01-01"}]}}, 422,
     "events.statement[0].event_time"),
    ({"events": {"statement": [{"event_time": "1969-01-01"}]}}, 422,
     "events.statement[0].event_time"),
    ({"events": {"statement": {"event_time": ["2020-01-01"], "status": []}}}, 422,
     "events.statement.status"),
    ({"events": {"statement": [{"event_time": "2020-01-02", "known_at": "2020-01-01"}]}}, 422,
     "events.statement[0].known_at"),
    ({"events": {"statement": [{"event_time": "2020-01-01", "bill_amt": MARK}]}}, 422,
     "events.statement[0].bill_amt"),
    ({"events": {"statement": [{"event_time": "2020-01-01", "paid": MARK}]}}, 422,
     "events.statement[0].paid"),
    ({"events": {"statement": [{"event_time": "2020-01-01", "due": MARK}]}}, 422,
     "events.statement[0].due"),
    ({"events": {"login": [{"event_time": "2020-01-01", "note": MARK * 600}]}}, 422,
     "events.login[0].note"),
    ({"events": {"statement": [[MARK]]}}, 422, "events.statement[0]"),
    ({"profile": {"age": MARK}}, 422, "profile.age"),
    ({"profile": {"known_at": MARK}}, 422, "profile.known_at"),
    ({"context": {"amount": [MARK]}}, 422, "context.amount"),
    ({"context": {"amont": MARK}}, 422, "context.amont"),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/score", "/v1/query"])
@pytest.mark.parametrize(("change", "status", "field"), SCORED)
def test_time_travel_and_other_wrong_values(
    service: Service, path: str, change: dict[str, Any], status: int, field: str
) -> None:
    if path == "/v1/query" and "reasons" in change:
        field = "reasons"
    body = {"entity_id": "c", "as_of": "2020-09-01"} | change
    assert refused(service.call("POST", path, body), status)["field"] == field


def test_huge_histories(tmp_path: Path) -> None:
    service = Service(tmp_path, max_events=1000)
    for path in ("/v1/score", "/v1/query"):
        assert service.call("POST", path, request_of(1000)).status_code == 200
        answer = service.call("POST", path, request_of(1001))
        assert refused(answer, 413)["field"] == "events"
    service.close()
