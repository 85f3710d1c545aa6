"""The client: typed answers over a real socket, safe repetition, errors that tell no secret."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ConfigError, RequestError
from serving.audit import verify_log
from serving.client import ApiFailure, Client, Unreachable
from serving.client_transport import Transport
from serving.decisions.messages import EntryGiven
from serving.messages import ScoreAnswer
from serving.routes.catalogue import OPERATIONS
from tests.contracts.test_import_rule import loaded_by, roots
from tests.serving.fake_package import request_of
from tests.serving.harness import Service
from tests.serving.real_socket import listening

KEY = "rfm_000000000000_verysecret"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("client"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with listening(service.application) as found:
        yield found


@pytest.fixture
def client(service: Service, url: str) -> Iterator[Client]:
    with Client(url, service.key) as made:
        yield made


def test_it_needs_the_standard_library_and_msgspec() -> None:
    loaded = roots(loaded_by(("serving.client",)))
    assert not loaded & {"polars", "numpy", "starlette", "sqlalchemy", "httpx", "onnxruntime"}
    # msgspec reads typing_extensions where it is installed.
    ours = {"foundation", "finetune", "serving", "msgspec", "typing_extensions"}
    others = loaded - ours - sys.stdlib_module_names
    assert not {name for name in others if not name.startswith("_")}


def test_a_score_and_what_belongs_to_it(client: Client, service: Service) -> None:
    body = request_of(5)
    found = client.score(**body, reasons=True, request_id="case-7")
    assert isinstance(found, ScoreAnswer) and found.request_id == "case-7"
    assert found.package.id == "fake-0001" and found.events.used == 5 and found.reasons
    moment = dt.datetime(2020, 9, 1, tzinfo=dt.UTC)
    assert client.score(**body | {"as_of": moment}).score == found.score
    asked = client.query(**body, forecasts=["late within 30 days"])
    assert asked.forecasts[0].probability == pytest.approx(found.score / 2)
    assert client.packages().default == "fake-0001"
    assert "statement" in client.package("fake-0001").sources
    assert [c.channel for c in client.channels().channels] == ["default"]
    assert client.channel("default").live and client.releases().releases
    assert client.me().tenant == "default"
    service.runtime.decisions.projection.run()
    service.runtime.front.meter.advance()
    assert client.decision("case-7").score == pytest.approx(found.score)
    assert client.replay("case-7").decision.request_id == "case-7"
    assert client.usage().total["score"] >= 3
    assert "case-7" in {row.request_id for row in client.audit()}
    assert list(client.cases(state="open")) == []
    entry = EntryGiven(list="black", kind="entity", value="c99")
    assert client.change_lists(add=[entry]).added == 1
    assert [e.list for e in client.list_entries()] == ["black"]


def test_pages_are_followed(client: Client, service: Service) -> None:
    entries = [EntryGiven(list="grey", kind="entity", value=f"g{n}") for n in range(130)]
    client.change_lists(add=entries)
    assert len(list(client.list_entries("grey"))) == 130
    for _ in range(105):
        client.score("many")
    service.runtime.audit.append({}, "flush").result(timeout=60)
    service.runtime.front.meter.advance()
    every = [row.request_id for row in client.audit()]
    assert len(every) == len(set(every)) > 104


def test_many_with_errors_as_values(client: Client) -> None:
    rows: list[dict[str, Any]] = [request_of(2, n) for n in range(11)]
    rows[3] = {"entity_id": ""}
    rows[4] = {"entity_id": "c", "context": {"amount": float("nan")}}
    rows[7] = rows[7] | {"package": "other"}
    found = list(client.score_many(iter(rows), chunk=4))
    assert [one.row for one in found] == list(range(11))
    errors = {one.row: (one.error.code, one.error.field) for one in found if one.error}
    assert errors == {3: ("invalid", "entity_id"), 4: ("invalid", ""), 7: ("not_found", "package")}
    assert found[9].answer is not None
    assert found[9].answer.score == client.score(**rows[9]).score
    assert list(client.score_many([])) == []


def test_refusals_are_exceptions(client: Client, url: str) -> None:
    with pytest.raises(ApiFailure) as found:
        client.score("c", context={"amont": 1})
    failure = found.value
    assert (failure.status, failure.code, failure.field) == (422, "invalid", "context.amont")
    assert failure.request_id in str(failure) and "did you mean 'amount'" in str(failure)
    with pytest.raises(ApiFailure) as found:
        client.package("a/../b?c")
    assert found.value.status == 404
    with pytest.raises(RequestError, match="finite"):
        client.score("c", context={"amount": float("inf")})
    with pytest.raises(RequestError, match="JSON"):
        client.score("c", context={"amount": object()})
    with Client(url, KEY) as stranger, pytest.raises(ApiFailure) as found:
        stranger.me()
    assert found.value.status == 401
    assert "verysecret" not in str(found.value) + repr(found.value) + repr(stranger)


def test_one_key_one_decision(client: Client, service: Service) -> None:
    service.runtime.audit.append({}, "flush").result(timeout=60)
    before = verify_log(service.settings.audit_path).lines
    first = client.score("once", idempotency_key="loan-1")
    assert client.score("once", idempotency_key="loan-1") == first
    with pytest.raises(ApiFailure) as found:
        client.score("twice", idempotency_key="loan-1")
    assert found.value.field == "Idempotency-Key"
    service.runtime.audit.append({}, "flush").result(timeout=60)
    assert verify_log(service.settings.audit_path).lines == before + 2


def test_threads_share_a_client(client: Client) -> None:
    rows = [request_of(3, n) for n in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: client.score(**row), rows))
    assert [answer.entity_id for answer in found] == [row["entity_id"] for row in rows]


# A server that answers by a script.

OK = (
    200,
    {},
    b'{"tenant":"t","key_id":"k","name":"n","person":"","scopes":[],"sandbox":false,'
    b'"rate":{},"quota":{"day_used":0,"day":null,"month_used":0,"month":null},"channels":{}}',
)
BUSY = (503, {"Retry-After": "2"}, b'{"error":{"code":"unavailable","message":"busy","field":"",'
        b'"request_id":"r"}}')  # fmt: skip
Step = tuple[int, dict[str, str], bytes] | None


class Script:
    """Answers given in turn; None drops the connection."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.seen: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.connections: set[Any] = set()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                self.rfile.read(length)
                script.seen.append({k.lower(): v for k, v in self.headers.items()})
                script.asked.append(f"{self.command} {self.path}")
                script.connections.add(self.client_address)
                step = script.steps.pop(0)
                if step is None:
                    self.close_connection = True
                    return
                status, headers, body = step
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/behind"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    yield made
    made.close()


Make = Callable[..., tuple[Client, list[float]]]


@pytest.fixture
def scripted(script: Script) -> Iterator[Make]:
    opened: list[Client] = []

    def make(**more: Any) -> tuple[Client, list[float]]:
        waits: list[float] = []
        transport = Transport(script.url, KEY, 5.0, sleep=waits.append, jitter=lambda: 0.5, **more)
        opened.append(Client("", "", transport=transport))
        return opened[-1], waits

    yield make
    for client in opened:
        client.close()


def test_reads_are_repeated_and_wait_as_told(script: Script, scripted: Make) -> None:
    client, waits = scripted()
    script.steps = [BUSY, (429, {}, b"<html>"), None, OK]
    assert client.me().tenant == "t"
    assert waits == pytest.approx([2.05, 0.1, 0.2])
    assert len({seen["x-request-id"] for seen in script.seen}) == 1
    script.steps = [OK, OK]
    client.me()
    client.me()
    assert len(script.connections) <= 3


def test_the_number_of_repetitions_is_bounded(script: Script, scripted: Make) -> None:
    client, waits = scripted(retries=2)
    script.steps = [BUSY] * 3
    with pytest.raises(ApiFailure) as found:
        client.me()
    assert (found.value.status, found.value.retry_after, len(waits)) == (503, 2.0, 2)
    script.steps = [None] * 3
    with pytest.raises(Unreachable) as lost:
        client.me()
    assert "RemoteDisconnected" in str(lost.value) and "verysecret" not in repr(lost.value)
    script.steps = [(429, {"Retry-After": "7200"}, b"{}")]
    with pytest.raises(ApiFailure) as found:
        client.me()
    assert found.value.retry_after == 7200 and len(waits) == 4


def test_scores_are_repeated_under_one_idempotency_key(script: Script, scripted: Make) -> None:
    client, waits = scripted()
    at_work = (409, {"Retry-After": "1"}, b"{}")
    script.steps = [None, at_work, (503, {}, b""), (422, {}, BUSY[2])]
    with pytest.raises(ApiFailure) as found:
        client.score("c")
    assert found.value.status == 422 and len(waits) == 3
    assert len({seen["idempotency-key"] for seen in script.seen}) == 1
    script.steps = [(409, {}, b"{}")]
    with pytest.raises(ApiFailure):
        client.score("c")
    assert len(script.seen) == 5


def test_deliveries(script: Script, scripted: Make, tmp_path: Path) -> None:
    client, _ = scripted()
    job: dict[str, Any] = {
        "id": "j1", "channel": "cards", "state": "done", "step": "", "done": 0, "total": 0,
        "note": "", "attempt": 1, "seconds": 1.5, "created_at": "", "ended_at": None,
        "error": "", "release": "", "new": True, "makers": [], "gates": [], "log": [],
        "links": {},
    }  # fmt: skip
    found = client.deliveries
    whole = (200, {}, json.dumps(job).encode())
    script.steps = [whole, whole, whole, whole, (200, {}, b"<html>"),
                    (200, {}, b'{"samples":[]}'), (200, {}, b'{"jobs":[]}')]  # fmt: skip
    assert found.start("cards", "cards@1", "cards-test@1").new
    assert found.job("j1").state == "done"
    assert [found.cancel("j1").id, found.retry("j1").id] == ["j1", "j1"]
    assert found.report("j1") == b"<html>"
    assert (found.samples().samples, found.jobs("cards").jobs) == ([], [])
    path = tmp_path / "rows.csv"
    path.write_text("entity_id,as_of,label\n")
    script.steps = [(422, {}, BUSY[2])]
    with pytest.raises(ApiFailure):
        found.hand_in(path, "cards", test=True, window=90)
    assert script.seen[-1]["content-type"] == "text/csv"
    known = {re.sub("{[^}]+}", "j1", f"{o.method} {o.path}") for o in OPERATIONS}
    asked = [text.replace("/behind", "").partition("?")[0] for text in script.asked]
    assert set(asked) <= known and len(set(asked)) == 8
    assert script.asked[-1].endswith("?channel=cards&test=true&window=90")
    with pytest.raises(RequestError, match="csv"):
        found.hand_in(tmp_path / "rows.xls", "cards")


def test_other_changes_are_sent_once(script: Script, scripted: Make) -> None:
    client, waits = scripted()
    for step in (BUSY, None):
        script.steps = [step]
        with pytest.raises((ApiFailure, Unreachable)):
            client.claim("case-1")
    assert waits == [] and len(script.seen) == 2


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"tenant":1}'])
def test_answers_of_somebody_else(script: Script, scripted: Make, body: bytes) -> None:
    client, _ = scripted()
    script.steps = [(200, {}, body)]
    with pytest.raises(ApiFailure, match="no Me"):
        client.me()


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("ftp://host", KEY, "expected a URL"),
        ("https://user:pass@host", KEY, "expected a URL"),
        ("http://scoring.example.com", KEY, "unencrypted"),
        ("http://localhost:99999", KEY, "cannot be read"),
        ("https://host", "", "API key"),
        ("https://host", "rfm_a\r\nX: 1", "API key"),
    ],
)
def test_what_cannot_be_used(url: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        Client(url, key)
    assert "pass" not in str(found.value) and (not key or key not in str(found.value))


def test_ids_that_no_header_carries(client: Client) -> None:
    for wrong in ({"request_id": "a b"}, {"request_id": "x" * 65}, {"idempotency_key": "a\r\nb"}):
        with pytest.raises(ConfigError):
            client.score("c", **wrong)
