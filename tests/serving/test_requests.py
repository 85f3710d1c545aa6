"""Requests become the frames an import would have made, point in time and typed."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.schema import schema_from_dict
from foundation.tables import parse_times
from serving.messages import ApiError
from serving.requests import RequestReader, ScoringInput
from serving.routes.scoring import read_envelope
from serving.times import Clock
from tests.serving.fake_package import SCHEMA, Package, request_of
from tests.serving.request_frames import frames_of, profile_of, samples_of

NOW = 1_600_000_000_000_000  # 2020-09-13T12:26:40Z
READER = RequestReader(schema_from_dict(SCHEMA), max_events=300)


def read(body: dict, reader: RequestReader = READER) -> ScoringInput:
    return reader.read(read_envelope(json.dumps(body).encode()), NOW)


def statement(**fields: object) -> dict:
    return {
        "entity_id": "c1",
        "as_of": "2020-09-01T00:00:00Z",
        "events": {"statement": [{"event_time": "2020-01-01T00:00:00Z"} | fields]},
    }


def test_types_codes_and_missing_values() -> None:
    body = {
        "entity_id": " c1 ",
        "events": {
            "statement": [
                {"event_time": "2020-01-01", "status": 1, "bill_amt": 12, "paid": "Yes"},
                {
                    "event_time": "2020-01-02T00:00:00Z",
                    "status": 1.0,
                    "paid": 0,
                    "due": "2020-02-01T00:00:00+00:00",
                },
                {"event_time": "2020-01-03T00:00:00Z", "status": " 1 ", "bill_amt": None},
                {"event_time": "2020-01-04T00:00:00Z", "status": 1.5, "paid": True},
                {"event_time": "2020-01-05T00:00:00Z", "status": True, "paid": ""},
                {"event_time": "2020-01-06T00:00:00Z", "status": ""},
            ]
        },
    }
    frame = frames_of(read(body))["statement"]
    assert frame["entity_id"].unique().to_list() == ["c1"]
    assert frame["status"].to_list() == ["1", "1", "1", "1.5", "true", None]
    assert frame["bill_amt"].to_list() == [12.0, None, None, None, None, None]
    assert frame["paid"].to_list() == [True, False, None, True, None, None]
    assert frame["due"].to_list()[:2] == [None, dt.datetime(2020, 2, 1)]
    assert frame["event_time"][0] == dt.datetime(2019, 12, 31, 16)  # midnight in Shanghai
    assert frame.schema["event_time"] == pl.Datetime("us") == frame.schema["known_at"]


def test_delay_profile_context_and_empty_request() -> None:
    given_ = read(
        {
            "entity_id": "c1",
            "as_of": "2020-09-01T08:00:00",
            "events": {
                "login": [
                    {"event_time": "2020-08-30T00:00:00", "device id": "D-17"},
                    {
                        "event_time": "2020-08-30T00:00:00",
                        "device id": 17,
                        "known_at": "2020-08-31T23:59:59.999999",
                    },
                    {"event_time": "2020-08-30T00:00:00", "known_at": "2020-09-01T00:00:00"},
                ]
            },
            "profile": {"age": 30, "class": "a", "known_at": "2020-01-01T00:00:00Z"},
            "context": {"term": 12},
        }
    )
    login = frames_of(given_)["login"]
    assert login["known_at"].to_list()[0] == dt.datetime(2020, 8, 31)  # a day after the event
    assert (given_.used, given_.ignored) == (2, 1)
    assert given_.flags == ("sharing_unknown", "later_events_ignored")
    assert given_.as_of == "2020-09-01T00:00:00Z"  # naive: Shanghai
    profile = profile_of(given_)
    assert profile is not None
    assert profile.row(0) == ("c1", dt.datetime(2020, 1, 1), 30.0, "a")
    assert samples_of(given_).row(0) == ("c1", dt.datetime(2020, 9, 1), None, 12.0)
    empty = read({"entity_id": "c1", "events": {"login": [], "statement": None}})
    assert empty.tables == {} and empty.profile is None
    assert empty.as_of_us == NOW


def test_identifiers_are_hidden_but_stay_equal() -> None:
    events = [{"event_time": "2020-01-01", "device id": d} for d in ("D-17", " D-17", 17, "17", "")]
    frame = frames_of(read({"entity_id": "c1", "events": {"login": events}}))["login"]
    hidden = frame["device id"].to_list()
    assert hidden[0] == hidden[1] != hidden[2] == hidden[3] and hidden[4] is None
    assert hidden[2] != "17" and len(hidden[0]) == 32


def test_rows_and_columns_are_the_same() -> None:
    body = request_of(50, seed=3)
    rows = body["events"]["statement"]
    columns = body | {"events": {"statement": {k: [r[k] for r in rows] for k in rows[0]}}}
    assert frames_of(read(body))["statement"].equals(frames_of(read(columns))["statement"])


BAD = [
    (statement(bil_amt=1), 422, "events.statement[0].bil_amt", "did you mean 'bill_amt'"),
    (statement(bill_amt="12"), 422, "events.statement[0].bill_amt", "expected float, found str"),
    (statement(bill_amt="NaN"), 422, "events.statement[0].bill_amt", "expected float"),
    (statement(bill_amt=True), 422, "events.statement[0].bill_amt", "found bool"),
    (statement(status=[1]), 422, "events.statement[0].status", "found array"),
    (statement(paid="perhaps"), 422, "events.statement[0].paid", "true or false"),
    (statement(paid=2), 422, "events.statement[0].paid", "true or false"),
    (statement(due="soon"), 422, "events.statement[0].due", "ISO 8601"),
    (statement(due=5), 422, "events.statement[0].due", "expected str"),
    (statement(event_time="2020-13-01"), 422, "events.statement[0].event_time", "ISO 8601"),
    (statement(event_time="2020-W10-1"), 422, "events.statement[0].event_time", "ISO 8601"),
    (statement(event_time="20200101"), 422, "events.statement[0].event_time", "ISO 8601"),
    (statement(event_time=1577836800), 422, "events.statement[0].event_time", "expected str"),
    (statement(event_time=None), 422, "events.statement[0].event_time", "found null"),
    (statement(event_time="2020-09-20T00:00:00Z"), 422, "events.statement[0].event_time", "future"),
    (statement(event_time="1969-12-30"), 422, "events.statement[0].event_time", "1970"),
    (statement(known_at="2019-12-31"), 422, "events.statement[0].known_at", "before event_time"),
    (
        {"entity_id": "c", "events": {"statement": [{"status": "1"}]}},
        422,
        "events.statement[0].event_time",
        "required",
    ),
    (
        {"entity_id": "c", "events": {"statement": {"event_time": ["2020-01-01"], "status": []}}},
        422,
        "events.statement.status",
        "0 values beside 1",
    ),
    (
        {"entity_id": "c", "events": {"statement": {"event_time": ["2020-01-01", "x"]}}},
        422,
        "events.statement.event_time[1]",
        "ISO 8601",
    ),
    (
        {
            "entity_id": "c",
            "events": {"statement": {"event_time": ["2020-01-01"], "bill_amt": ["1"]}},
        },
        422,
        "events.statement.bill_amt[0]",
        "expected float",
    ),
    (
        {"entity_id": "c", "events": {"statement": {"status": []}}},
        422,
        "events.statement.event_time",
        "required",
    ),
    ({"entity_id": "c", "events": {"statement": "none"}}, 422, "events.statement", "list"),
    ({"entity_id": "c", "events": {"statement": [[]]}}, 422, "events.statement[0]", "array"),
    ({"entity_id": "c", "events": {"statment": []}}, 422, "events.statment", "mean 'statement'"),
    ({"entity_id": "c", "events": []}, 422, "events", "expected object"),
    (
        {"entity_id": "c", "events": {"login": [{"event_time": "2020-01-01"}] * 301}},
        413,
        "events",
        "more than 300",
    ),
    ({"entity_id": "c", "profile": {"aeg": 3}}, 422, "profile.aeg", "did you mean 'age'"),
    ({"entity_id": "c", "profile": {"age": "3"}}, 422, "profile.age", "expected float"),
    ({"entity_id": "c", "profile": {"known_at": "x"}}, 422, "profile.known_at", "ISO 8601"),
    ({"entity_id": "c", "profile": []}, 422, "profile", "expected object"),
    ({"entity_id": "c", "context": {"amuont": 1}}, 422, "context.amuont", "mean 'amount'"),
    ({"entity_id": "c", "context": {"amount": {}}}, 422, "context.amount", "found object"),
    ({"entity_id": "c", "as_of": "yesterday"}, 422, "as_of", "ISO 8601"),
    ({"entity_id": "c", "as_of": 3}, 422, "as_of", "expected str"),
    ({"entity_id": ""}, 422, "entity_id", "length >= 1"),
    ({"entity_id": "  "}, 422, "entity_id", "empty"),
    ({"entity_id": "x" * 257}, 422, "entity_id", "length <= 256"),
    ({"entity_id": 7}, 422, "entity_id", "expected str"),
    ({}, 422, "entity_id", "required"),
    ({"entity_id": "c", "reason": True}, 422, "reason", "did you mean 'reasons'"),
    ({"entity_id": "c", "reasons": "yes"}, 422, "reasons", "expected bool"),
]


@pytest.mark.parametrize(("body", "status", "field", "words"), BAD)
def test_bad_requests_name_the_field(body: dict, status: int, field: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(body)
    assert (caught.value.status, caught.value.field) == (status, field)
    assert words in str(caught.value)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_numbers_are_finite(number: str) -> None:
    body = json.dumps(statement(bill_amt=4.5)).replace("4.5", number).encode()
    with pytest.raises(ApiError) as caught:
        READER.read(read_envelope(body), NOW)
    assert caught.value.field == "events.statement[0].bill_amt"
    assert caught.value.status == 422


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"nul",
        b'{"entity_id": NaN}',
        b'{"entity_id": "\xff"}',
        b"[" * 100_000,
        b'{"entity_id": "c", "events": {"statement": [{"event_time": NaN}]}}',
        b'{"entity_id": "c", "profile": {"age": Infinity}}',
    ],
)
def test_what_is_no_json_is_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        READER.read(read_envelope(body), NOW)
    assert caught.value.status in (400, 422)
    assert caught.value.status == 400 or body.startswith(b"[")


def test_events_known_at_as_of_or_later_change_nothing() -> None:
    package = Package({}, schema_from_dict(SCHEMA))
    body = request_of(60, seed=1) | {"as_of": "2018-02-15T00:00:00Z"}
    rows = body["events"]["statement"]
    known = [
        r
        for r in rows
        if dt.datetime.fromisoformat(r["event_time"]).timestamp()
        < dt.datetime(2018, 2, 15, tzinfo=dt.UTC).timestamp()
    ]
    changed = [
        r if r in known else r | {"bill_amt": 1e9, "status": "9", "paid": True} for r in rows
    ]
    at = [r | {"event_time": "2018-02-15T00:00:00Z"} for r in rows[:3]]
    scores = set()
    for history in (rows, known, changed, known + at):
        given_ = read(body | {"events": {"statement": history}})
        assert (given_.used, given_.ignored) == (len(known), len(history) - len(known))
        rows_ = package.score_population(given_.population())
        scores.add(rows_[0].score)
    assert 0 < len(known) < len(rows) and len(scores) == 1


ZONES = ("UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
MOMENTS = st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2037, 12, 31))


@settings(deadline=None, max_examples=25)
@given(
    moments=st.lists(MOMENTS, min_size=2, max_size=20),
    zone=st.sampled_from(ZONES),
    suffix=st.sampled_from(["", "Z", "+05:30", "-03:00"]),
    unit=st.sampled_from(["minutes", "seconds", "milliseconds", "microseconds"]),
)
def test_times_are_read_as_at_import(
    moments: list[dt.datetime], zone: str, suffix: str, unit: str
) -> None:
    texts = [m.isoformat(timespec=unit) + suffix for m in moments]
    clock = CLOCKS[zone]
    together = clock.read(texts, str)
    alone = [int(clock.read([text], str)[0]) for text in texts]
    imported = parse_times(pl.Series("t", texts), zone, "test").to_physical()
    assert together.tolist() == alone == imported.to_list()


@pytest.mark.parametrize("zone", ZONES)
def test_hours_that_clocks_repeat_or_skip_are_read_as_at_import(zone: str) -> None:
    days = ["2021-03-14", "2021-03-28", "2021-11-07", "2021-10-31", "2021-04-04", "2021-10-03"]
    texts = [f"{day}T{h:02d}:{m:02d}:00" for day in days for h in range(5) for m in (0, 15, 30, 45)]
    together = CLOCKS[zone].read(texts, str)
    alone = np.concatenate([CLOCKS[zone].read([text], str) for text in texts])
    imported = parse_times(pl.Series("t", texts), zone, "test").to_physical().to_numpy()
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, imported)


CLOCKS = {zone: Clock(zone) for zone in ZONES}


@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(
        st.sampled_from(
            [
                "2020-01-01",
                "2020-1-01T",
                "2020-02-30",
                "2020-01-0a",
                "2020-01-01T10:00:00+99:00",
                "2020-01-01T10:00:00+1a:00",
                "2020-01-01T25:00:00Z",
                "2020-01-01x10:00:00Z",
                "NaT",
                "2020-01-01T10:00:0\u0661Z",
                "today",
                "2020-01-01T10:00:00\x00",
                "9999-12-31T23:59:59Z",
            ]
        ),
        min_size=2,
        max_size=4,
    )
)
def test_odd_times_fare_alike_alone_and_together(texts: list[str]) -> None:
    def outcome(part: list[str]) -> list[int] | str:
        try:
            return CLOCKS["Asia/Shanghai"].read(part, str).tolist()
        except ApiError as exc:
            return exc.field

    alone = [outcome([text]) for text in texts]
    wrong = [str(i) for i, found in enumerate(alone) if isinstance(found, str)]
    expected = wrong[0] if wrong else [found[0] for found in alone]
    assert outcome(texts) == expected
