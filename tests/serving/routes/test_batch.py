"""POST /v1/score/batch: a bad row fails alone, and four formats say the same."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import polars as pl
import pytest

from serving.audit import verify_log
from serving.messages import BatchAnswer, RowResult
from serving.routes.batch import MEDIA, NDJSON
from serving.routes.call import JSON
from serving.tabular import ARROW, PARQUET
from serving.tenancy.metering import read_usage
from serving.tenancy.tenants import Quota, TenantLimits, add_tenant, limit_tenant
from tests.serving.fake_package import request_of
from tests.serving.harness import Service

PATH = "/v1/score/batch"
LATE = {"statement": [{"event_time": "2120-01-01T00:00:00Z", "status": "1"}]}
BACK = {"statement": [{"event_time": "2020-01-02", "known_at": "2020-01-01", "status": "1"}]}
# What every format can carry -> field at fault and code.
POISON: list[tuple[dict[str, Any], str, str]] = [
    ({"entity_id": ""}, "entity_id", "invalid"),
    ({"entity_id": "  "}, "entity_id", "invalid"),
    ({"entity_id": "c" * 257}, "entity_id", "invalid"),
    ({"as_of": "yesterday"}, "as_of", "invalid"),
    ({"package": "fake-9999"}, "package", "not_found"),
    ({"channel": "nowhere"}, "channel", "not_found"),
    ({"events": LATE}, "events.statement[0].event_time", "invalid"),
    ({"events": BACK}, "events.statement[0].known_at", "invalid"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("batch"))
    yield made
    made.close()


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)


def stream(table: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    table.write_ipc_stream(out)
    return out.getvalue()


def parquet(table: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    table.write_parquet(out)
    return out.getvalue()


WRITE: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    JSON: lambda rows: json.dumps({"requests": rows}).encode(),
    NDJSON: lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    ARROW: lambda rows: stream(frame(rows)),
    PARQUET: lambda rows: parquet(frame(rows)),
}


def flat(answer: httpx.Response) -> list[dict[str, Any]]:
    """The rows of an answer of any format, with what all formats tell; request ids by place."""
    assert answer.status_code == 200, answer.text
    media = answer.headers["content-type"].partition(";")[0]
    if media in (ARROW, PARQUET):
        read = pl.read_ipc_stream if media == ARROW else pl.read_parquet
        rows = read(io.BytesIO(answer.content)).to_dicts()
        place = answer.headers["x-request-id"]
        assert [row.pop("request_id") for row in rows] == [f"{place}.{n}" for n in range(len(rows))]
        return [{k: v for k, v in row.items() if v is not None} for row in rows]
    if media == JSON:
        found = msgspec.json.decode(answer.content, type=BatchAnswer).results
    else:
        lines = answer.content.splitlines()
        found = [msgspec.json.decode(line, type=RowResult) for line in lines]
    out = []
    for row in found:
        if row.error is not None:
            assert row.answer is None
            error = row.error
            out.append({"row": row.row, "error": error.message, "field": error.field,
                        "code": error.code})  # fmt: skip
            continue
        assert row.answer is not None
        a = row.answer
        out.append({
            "row": row.row, "entity_id": a.entity_id, "as_of": a.as_of, "score": a.score,
            "points": a.points, "band": a.band, "outcome": a.decision.outcome,
            "package": a.package.id, "release": a.package.release, "flags": a.flags,
        })  # fmt: skip
    return out


def send(service: Service, media: str, body: bytes, **headers: str) -> httpx.Response:
    return service.call("POST", PATH, body, content_type=media, **headers)


def poisoned(count: int) -> tuple[list[dict[str, Any]], dict[int, tuple[str, str]]]:
    """Good rows with every kind of poison among them, and where it is."""
    rows = [request_of(3 + n % 4, n % 40) | {"package": None, "channel": None}
            for n in range(count)]  # fmt: skip
    where: dict[int, tuple[str, str]] = {}
    for kind, (change, field, code) in enumerate(POISON):
        for place in range(kind * 7, count, 97):
            rows[place] = rows[place] | change
            where[place] = (field, code)
    return rows, where


def test_poison_among_a_thousand_rows_fails_alone_in_every_format(service: Service) -> None:
    rows, where = poisoned(1000)
    found = {media: flat(send(service, media, WRITE[media](rows))) for media in MEDIA}
    first = found[JSON]
    assert [row["row"] for row in first] == list(range(1000))
    failed = {row["row"]: (row["field"], row["code"]) for row in first if "error" in row}
    assert failed == where and len(where) > 50
    for media in MEDIA:
        assert found[media] == first, media
    alone = {n: service.score(rows[n]).json()["score"] for n in range(1, 1000, 111)
             if n not in where}  # fmt: skip
    assert {n: first[n]["score"] for n in alone} == alone


def test_only_answers_are_logged_and_billed(tmp_path: Path) -> None:
    service = Service(tmp_path)
    rows, where = poisoned(120)
    answer = send(service, JSON, WRITE[JSON](rows)).json()
    assert (answer["scored"], answer["failed"]) == (120 - len(where), len(where))
    quotas = service.runtime.front.quotas
    assert quotas.used("default", "default") == (120 - len(where),) * 2
    service.close()
    assert verify_log(service.settings.audit_path).lines == 120 - len(where)
    today = dt.datetime.now(dt.UTC).date()
    days = (str(today - dt.timedelta(1)), str(today + dt.timedelta(1)))
    used = read_usage(service.database, "default", *days)
    assert sum(row.units for row in used) == 120 - len(where)


GOOD = b'{"entity_id":"c1"}'
ODD_LINES = [
    (b"{", "bad_request", ""),
    (b"nonsense", "bad_request", ""),
    (b"[1]", "invalid", ""),
    (b"null", "invalid", ""),
    (b'{"entity_id":"\xff\xfe"}', "bad_request", ""),
    (b'{"entity_id":7}', "invalid", "entity_id"),
    (b'{"entity_id":"c","extra":1}', "invalid", "extra"),
    (b'{"entity_id":"c","context":{"amount":NaN}}', "bad_request", ""),
    (b'{"entity_id":"c","context":{"amount":1e999}}', "invalid", "context.amount"),
    (b'{"entity_id":"c","context":{"amount":"x"}}', "invalid", "context.amount"),
    (b'{"entity_id":"c","events":{"statement":3}}', "invalid", "events.statement"),
    (b'{"entity_id":"c","profile":' + b"[" * 3000 + b"]" * 3000 + b"}", None, None),
]


@pytest.mark.parametrize(("line", "code", "field"), ODD_LINES)
def test_odd_lines_fail_alone(
    service: Service, line: bytes, code: str | None, field: str | None
) -> None:
    first, odd, last = flat(send(service, NDJSON, b"\n".join((GOOD, line, b"", GOOD))))
    assert "score" in first and "score" in last and first["score"] == last["score"]
    assert odd["row"] == 1 and odd["code"] in (code, *(("bad_request", "invalid") * (code is None)))
    assert field is None or odd["field"] == field


@pytest.mark.parametrize("media", [ARROW, PARQUET])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_of_tables_are_finite(service: Service, media: str, bad: float) -> None:
    rows = [request_of(3, n) for n in range(4)]
    for row in rows:
        row["context"]["term"] = 12.0
    rows[1]["events"]["statement"][2]["bill_amt"] = bad
    rows[2]["context"]["amount"] = bad
    rows[3]["context"]["amount"] = None
    found = flat(send(service, media, WRITE[media](rows)))
    fields = [row.get("field") for row in found]
    assert fields == [None, "events.statement.bill_amt", "context.amount", None]
    assert "not finite" in found[1]["error"]


def test_tables_with_types_json_has_not(service: Service) -> None:
    time = dt.datetime(2020, 3, 1, 10, tzinfo=dt.UTC)
    struct = {"event_time": pl.Datetime("us", "Asia/Shanghai"), "status": pl.Categorical(),
              "bill_amt": pl.Decimal(12, 2), "due": pl.Date(), "paid": pl.Boolean()}  # fmt: skip
    event = {"event_time": time, "status": "1", "bill_amt": "99.50", "due": time.date(),
             "paid": True}  # fmt: skip
    table = pl.DataFrame({"entity_id": ["c1", "c2"], "as_of": [dt.date(2020, 9, 1)] * 2})
    events = pl.Series("statement", [[event], None], dtype=pl.List(pl.Struct(
        struct | {"bill_amt": pl.String(), "status": pl.String()}
    ))).cast(pl.List(pl.Struct(struct)))  # fmt: skip
    table = table.with_columns(events=pl.struct(events))
    plain = {"event_time": "2020-03-01T18:00:00+08:00", "status": "1", "bill_amt": 99.5,
             "due": "2020-03-01", "paid": True}  # fmt: skip
    said = [{"entity_id": "c1", "as_of": "2020-09-01", "events": {"statement": [plain]}},
            {"entity_id": "c2", "as_of": "2020-09-01"}]  # fmt: skip
    wanted = flat(send(service, JSON, WRITE[JSON](said)))
    assert [row["flags"] for row in wanted] == [[], ["thin_file"]]
    assert flat(send(service, ARROW, stream(table))) == wanted
    assert flat(send(service, PARQUET, parquet(table))) == wanted


ARRAYS = pl.DataFrame({"entity_id": ["c"], "context": [{"amount": 1.0}], "extra": [[1.0]]})
WHOLE: list[tuple[str, bytes, int, str]] = [
    (JSON, b"{", 400, ""),
    (JSON, b"[]", 422, ""),
    (JSON, b"{}", 422, "requests"),
    (JSON, b'{"requests":[]}', 422, "requests"),
    (JSON, b'{"requests":{}}', 422, "requests"),
    (JSON, b'{"requests":[{"entity_id":"c"}],"more":1}', 422, "more"),
    (JSON, b'{"requests":[NaN]}', 400, ""),
    (JSON, b'{"requests":' + b"[" * 100_000, 400, ""),
    (NDJSON, b"\n \n\r\n", 422, "requests"),
    (ARROW, b"junk", 400, ""),
    (PARQUET, b"junk", 400, ""),
    (PARQUET, b"PAR1" + b"\0" * 64 + b"PAR1", 400, ""),
    (ARROW, stream(frame([{"entity_id": "c"}]))[:-120], 400, ""),
    (PARQUET, parquet(frame([{"entity_id": "c"}]))[:-12], 400, ""),
    (ARROW, stream(pl.DataFrame({"entity_id": [b"\xff\xfe"]})), 400, ""),
    (ARROW, stream(pl.DataFrame({"entity_id": []})), 422, "requests"),
    (PARQUET, parquet(pl.DataFrame({"entity_id": []})), 422, "requests"),
    ("text/csv", b"entity_id\nc\n", 415, ""),
]


@pytest.mark.parametrize(("media", "body", "status", "field"), WHOLE)
def test_what_is_no_batch_is_refused_as_a_whole(
    service: Service, media: str, body: bytes, status: int, field: str
) -> None:
    answer = send(service, media, body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), answer.text


@pytest.mark.parametrize("media", [ARROW, PARQUET])
def test_odd_columns_fail_their_rows(service: Service, media: str) -> None:
    write = stream if media == ARROW else parquet
    [row] = flat(send(service, media, write(ARRAYS)))
    assert (row["code"], row["field"]) == ("invalid", "extra")
    [row] = flat(send(service, media, write(pl.DataFrame({"name": ["c"]}))))
    assert row["code"] == "invalid"
    [row] = flat(send(service, media, write(pl.DataFrame({"entity_id": [7]}))))
    assert (row["code"], row["field"]) == ("invalid", "entity_id")


def test_sizes_are_bounded(tmp_path: Path) -> None:
    service = Service(tmp_path, max_batch_rows=3, max_batch_bytes=4096, max_events=5)
    rows = [{"entity_id": f"c{n}"} for n in range(4)]
    for media in MEDIA:
        assert send(service, media, WRITE[media](rows)).status_code == 413
        assert len(flat(send(service, media, WRITE[media](rows[:3])))) == 3
    assert send(service, NDJSON, b" " * 5000).status_code == 413
    rows[1] = request_of(6)
    found = flat(send(service, JSON, WRITE[JSON](rows[:3])))
    assert [row.get("code") for row in found] == [None, "too_large", None]
    service.close()


def test_a_quota_is_spent_for_the_whole_batch_or_not_at_all(tmp_path: Path) -> None:
    service = Service(tmp_path)
    add_tenant(service.database, "default")
    limit_tenant(service.database, "default", TenantLimits(quota=Quota(day=8)))
    service.runtime.front.keys.refresh()
    rows = [{"entity_id": f"c{n}"} for n in range(6)]
    rows[2] = {"entity_id": ""}
    assert send(service, JSON, WRITE[JSON](rows)).json()["scored"] == 5
    refused = send(service, JSON, WRITE[JSON](rows))
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert service.runtime.front.quotas.used("default", "default")[0] == 5
    service.close()
    assert verify_log(service.settings.audit_path).lines == 5


def test_a_batch_that_cannot_begin_is_refused(tmp_path: Path) -> None:
    service = Service(tmp_path, {"behaviour": "slow 0.3"}, queue=1, timeout_seconds=5)

    async def crowd() -> list[httpx.Response]:
        body = WRITE[JSON]([{"entity_id": "c"}, {"entity_id": "d"}])
        return await asyncio.gather(*(service.send("POST", PATH, body) for _ in range(3)))

    service.call("GET", "/v1/packages")
    answers = service.loop.run_until_complete(crowd())
    assert sorted(a.status_code for a in answers) == [200, 429, 429]
    assert service.runtime.front.quotas.used("default", "default")[0] == 2
    service.close()


def test_faults_of_ours_are_500_in_their_rows(tmp_path: Path) -> None:
    service = Service(tmp_path, {"behaviour": "broken"})
    answer = send(service, JSON, WRITE[JSON]([request_of(2), request_of(3, 1)]))
    assert (answer.json()["scored"], answer.json()["failed"]) == (0, 2)
    for row in answer.json()["results"]:
        assert row["error"]["code"] == "internal" and "4711" not in answer.text
    assert service.runtime.front.quotas.used("default", "default")[0] == 0
    service.close()


def test_reasons_are_given_to_those_who_ask(service: Service) -> None:
    rows = [request_of(3, n) | {"reasons": n % 2 == 0} for n in range(5)]
    found = send(service, JSON, WRITE[JSON](rows), x_request_id="batch-1").json()["results"]
    assert [len(row["answer"]["reasons"]) for row in found] == [1, 0, 1, 0, 1]
    assert [row["answer"]["request_id"] for row in found] == [f"batch-1.{n}" for n in range(5)]


def test_a_batch_is_decided_once_under_an_idempotency_key(service: Service) -> None:
    body = WRITE[JSON]([request_of(3, n) for n in range(3)] + [{"entity_id": ""}])
    first = send(service, JSON, body, idempotency_key="batch-a")
    again = send(service, JSON, body, idempotency_key="batch-a")
    assert again.content == first.content and again.headers["idempotent-replay"] == "true"
    table = WRITE[PARQUET]([request_of(3, n) for n in range(3)])
    other = send(service, PARQUET, table, idempotency_key="batch-a")
    assert other.status_code == 422
    first = send(service, PARQUET, table, idempotency_key="batch-b")
    again = send(service, PARQUET, table, idempotency_key="batch-b")
    assert again.content == first.content and again.headers["content-type"] == PARQUET


def refused_as_bomb(service: Service, media: str, body: bytes) -> None:
    """Some kilobytes that unpack to more than the mebibyte this service takes."""
    assert len(body) < 20_000
    answer = send(service, media, body)
    assert answer.status_code == 413
    message = answer.json()["error"]["message"]
    assert message == "the table unpacks to more than 1048576 bytes"


def test_tables_that_unpack_to_too_much_are_refused_before(tmp_path: Path) -> None:
    service = Service(tmp_path, max_batch_bytes=1 << 20)
    many = pl.DataFrame({"entity_id": ["c"], "events": [{"statement": {"paid": [True] * 400_000}}]})
    long = pl.DataFrame({"entity_id": ["c" * (2 << 20)]})
    repeated = pl.DataFrame(
        {"entity_id": [f"c{n}" for n in range(90)], "as_of": ["x" * 300_000] * 90}
    )
    for table in (many, long, repeated):
        refused_as_bomb(service, PARQUET, parquet(table))
    assert send(service, PARQUET, parquet(frame([request_of(3)]))).status_code == 200
    service.close()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_streams_are_refused_before_they_are_unpacked(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, max_batch_bytes=1 << 20)

    def packed(table: pl.DataFrame) -> bytes:
        out = io.BytesIO()
        table.write_ipc_stream(out, compression=compression)  # type: ignore[arg-type]
        return out.getvalue()

    good = send(service, ARROW, packed(frame([request_of(3)])))
    assert good.status_code == 200 and flat(good)[0]["entity_id"] == "c0"
    many = pl.DataFrame({"entity_id": ["c"], "events": [{"statement": {"paid": [True] * 400_000}}]})
    long = pl.DataFrame({"entity_id": ["c" * (2 << 20)]})
    monkeypatch.setattr(pl, "read_ipc_stream", None)  # nobody unpacks
    for table in (many, long):
        refused_as_bomb(service, ARROW, packed(table))
    service.close()


@pytest.mark.parametrize("media", [ARROW, PARQUET])
def test_what_a_row_repeats_is_counted_before_it_is_written(
    tmp_path: Path, media: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound as a table; as text the same words would stand there 2,000 times."""
    service = Service(tmp_path, max_batch_bytes=1 << 20)
    long = "x" * 100_000
    events = pl.Series([[{"status": long}] * 2000])
    name = pl.Series([[{long: 1}] * 2000])
    for column in (events, name):
        table = pl.DataFrame({"entity_id": ["c"]})
        table = table.with_columns(events=pl.struct(column.alias("statement")))
        status = pl.col("events").struct.field("statement").explode().struct.unnest().first()
        if column is events:  # each text of the list refers to the one that is stored
            one = table.select(status)["status"]
            shared = one.gather([0] * 2000).to_frame("status").to_struct("e").implode()
            table = table.with_columns(events=pl.struct(shared.alias("statement")))
        body = stream(table) if media == ARROW else parquet(table)
        assert len(body) < 1 << 20
        monkeypatch.setattr(pl.DataFrame, "write_ndjson", None)  # nobody writes it
        answer = send(service, media, body)
        assert answer.status_code == 413, answer.text
        monkeypatch.undo()
    service.close()
