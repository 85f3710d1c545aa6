"""What fields become: days after a date, behaviour with an identifier, missing values."""

from __future__ import annotations

import datetime as dt

import polars as pl

from foundation.history import build_timeline
from foundation.schema import schema_from_dict
from foundation.slots import context_slots, profile_slots, row_values, source_slots, source_values

DAY = dt.datetime(2024, 1, 1)
SCHEMA = schema_from_dict(
    {
        "sources": {
            "pay": {
                "fields": {
                    "amount": {"kind": "money", "role": "amount"},
                    "due": {"kind": "timestamp"},
                    "device": {"kind": "identifier", "sharing": True, "role": "device"},
                    "online": {"kind": "boolean"},
                    "memo": {"kind": "text"},
                }
            }
        },
        "profile": {"fields": {"born": {"kind": "timestamp"}, "phone": {"kind": "identifier"}}},
        "context": {"term": {"kind": "number"}},
    }
)


def frame(days: list[int], devices: list[str | None], **more: list) -> pl.DataFrame:
    times = [DAY + dt.timedelta(days=d) for d in days]
    columns = {
        "entity_id": ["a"] * len(days),
        "event_time": times,
        "known_at": times,
        "amount": [1.0] * len(days),
        "due": [DAY] * len(days),
        "device": devices,
        "device__shared_with": [0] * len(days),
        "online": [True] * len(days),
        "memo": ["Hi"] * len(days),
    }
    return pl.DataFrame(columns | more)


def test_slot_names_and_kinds() -> None:
    slots = {s.name: s.kind for s in source_slots(SCHEMA, "pay")}
    assert slots == {
        "amount": "number",
        "due.days": "number",
        "device.times_seen": "number",
        "device.days_since_seen": "number",
        "device.shared_with": "number",
        "online": "category",
        "memo": "text",
    }
    assert [s.key for s in profile_slots(SCHEMA)] == ["profile.born.days"]
    assert [s.key for s in context_slots(SCHEMA)] == ["context.term"]


def test_identifier_becomes_behaviour_and_its_value_is_gone() -> None:
    timeline = build_timeline(SCHEMA, {"pay": frame([0, 1, 4, 5], ["x", "y", "x", None])})
    values = source_values(timeline, 0)
    assert values["device.times_seen"].to_list() == [0, 0, 1, None]
    assert values["device.days_since_seen"].to_list() == [None, None, 4.0, None]
    assert values["device.shared_with"].to_list() == [0, 0, 0, 0]
    assert not any(
        column.dtype == pl.String and column.is_in(["x", "y"]).any() for column in values.values()
    )


def test_identifier_of_another_entity_does_not_count() -> None:
    events = frame([0, 1], ["x", "x"], entity_id=["a", "b"])
    values = source_values(build_timeline(SCHEMA, {"pay": events}), 0)
    assert values["device.times_seen"].to_list() == [0, 0]


def test_timestamp_counts_days_to_the_event() -> None:
    timeline = build_timeline(SCHEMA, {"pay": frame([3, -2], ["x", "x"])})
    assert source_values(timeline, 0)["due.days"].to_list() == [-2.0, 3.0]


def test_rows_count_days_to_the_moment_of_scoring() -> None:
    rows = pl.DataFrame({"born": [DAY, None]})
    at = pl.Series([DAY + dt.timedelta(days=10)] * 2).dt.epoch("us").to_numpy()
    fields = SCHEMA.profile_fields
    assert row_values(fields, rows, at)["born.days"].to_list() == [10.0, None]


def test_absent_columns_are_missing_values() -> None:
    events = frame([0], ["x"]).drop("amount", "device__shared_with")
    values = source_values(build_timeline(SCHEMA, {"pay": events}), 0)
    assert values["amount"].to_list() == [None]
    assert values["device.shared_with"].to_list() == [None]
