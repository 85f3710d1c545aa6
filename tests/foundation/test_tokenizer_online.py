"""One request encodes to the bytes that the same entity has in the whole store."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from foundation import calendar_features, slots, vocabulary
from foundation.aggregates import AggregateSpec
from foundation.errors import InternalError
from foundation.history import DAY_US, Timeline, build_profile, build_timeline, cut
from foundation.schema import schema_from_dict
from foundation.tokenizer import EVENT_EXTRA, QUERY_EXTRA, Tokenizer
from tests.foundation.as_arrays import profile_of, table_of, timeline_of

FIELDS = {
    "kind": {"kind": "category"},
    "flag": {"kind": "boolean"},
    "sum": {"kind": "money", "role": "amount"},
    "free": {"kind": "text"},
    "phone": {"kind": "identifier", "sharing": True},
    "due": {"kind": "timestamp"},
}
SCHEMA = schema_from_dict(
    {
        "time_zone": "America/New_York",
        "sources": {
            "a": {"fields": FIELDS},
            "b": {"fields": FIELDS | {"more": {"kind": "number"}}, "time_zone": "Asia/Kolkata"},
            "empty": {"fields": {"kind": {"kind": "category"}}},
        },
        "profile": {"fields": {"city": {"kind": "category"}, "since": {"kind": "timestamp"}}},
        "context": {"amount": {"kind": "money"}, "product": {"kind": "category"}},
    }
)
WORDS = ["a", "A", " a", "", "ä", "ä", "北京", "Pay 12", "pay 7", "\u0000", "😀", "null"]
NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.5, 1e-320, 1e308, -1e308, np.inf, -np.inf, np.nan, 1e15 + 0.5]


def random_frame(rng: np.random.Generator, events: int, entities: int) -> pl.DataFrame:
    """Few moments (so that ties abound), few values, nulls in every field."""
    # Multiples of six hours, some of them before 1970.
    at = rng.integers(-4, 60, events) * (DAY_US // 4)
    known = at + rng.integers(0, 3, events) * DAY_US

    def with_nulls(values: pl.Series) -> pl.Series:
        keep = pl.Series(rng.random(events) < rng.choice([0.5, 0.9, 1.0]))
        return pl.select(pl.when(keep).then(values)).to_series()

    def words() -> pl.Series:
        return pl.Series(
            rng.choice(np.array(WORDS, dtype=object), events).tolist(), dtype=pl.String
        )

    numbers = np.where(
        rng.random(events) < 0.4, rng.choice(NUMBERS, events), rng.normal(size=events)
    )
    return pl.DataFrame(
        {
            "entity_id": pl.Series(
                [f"e{i}" for i in rng.integers(0, entities, events)], dtype=pl.String
            ),
            "event_time": pl.Series(at).cast(pl.Datetime("us")),
            "known_at": pl.Series(known).cast(pl.Datetime("us")),
            "kind": with_nulls(words()),
            "flag": with_nulls(pl.Series(rng.random(events) < 0.5)),
            "sum": with_nulls(pl.Series(numbers)),
            "free": with_nulls(words()),
            "phone": with_nulls(words()),
            "phone__shared_with": with_nulls(pl.Series(rng.integers(0, 4, events).astype(float))),
            "due": with_nulls(
                pl.Series(at + rng.integers(-(10**13), 10**13, events)).cast(pl.Datetime("us"))
            ),
            "more": with_nulls(pl.Series(rng.integers(0, 5, events))),
        }
    )


def random_world(seed: int, events: int) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    return {
        "a": random_frame(rng, events, 6).drop("more"),
        "b": random_frame(rng, int(rng.integers(0, events + 1)), 6),
    }


def same_bytes(one: object, two: object, rows_one, rows_two) -> None:
    for name, column in vars(one).items():
        other = getattr(two, name)
        assert column.dtype == other.dtype
        assert column[rows_one].tobytes() == other[rows_two].tobytes(), name


@given(seed=st.integers(0, 10**6), events=st.integers(1, 120), large=st.booleans())
def test_a_request_encodes_as_the_store_does(seed: int, events: int, large: bool) -> None:
    learned = build_timeline(SCHEMA, random_world(seed + 1, 80))
    world = random_world(seed, events)
    whole = build_timeline(SCHEMA, world)
    rng = np.random.default_rng(seed)
    rows_of_profile = pl.DataFrame(
        {
            "entity_id": ["e0", "e0", "e1", "e9"],
            "known_at": (pl.Series([None, 5, 3, 1]) * DAY_US).cast(pl.Datetime("us")),
            "city": ["x", "y", None, "x"],
            "since": (pl.Series([1, 2, None, 4]) * DAY_US).cast(pl.Datetime("us")),
        }
    )
    profile = build_profile(rows_of_profile)
    spec = AggregateSpec.fit(SCHEMA, learned, profile, max_columns=80)
    tokenizer = Tokenizer.from_json(Tokenizer.fit(SCHEMA, learned, profile).to_json())
    ids = pl.Series([*(f"e{i}" for i in range(6)), "e9", "e0", "nobody"])
    as_of = rng.integers(-2, 20, len(ids)) * DAY_US
    context = pl.DataFrame({"amount": rng.normal(size=len(ids)), "product": ["p", None, "q"] * 3})
    with pytest.MonkeyPatch.context() as patch:
        if large:  # the ways that are taken for many rows
            patch.setattr(vocabulary, "_SMALL", 0)
            patch.setattr(slots, "_SMALL", 0)
            patch.setattr(vocabulary, "_BLOCK", 7)
        offline = tokenizer.encode_events(whole)
        cuts = cut(whole, ids, as_of)
        queries = tokenizer.encode_query(cuts, whole, profile, context, ids)
    for sample in rng.choice(len(ids), 2, replace=False):
        entity = ids[int(sample)]
        own = {k: v.filter(pl.col("entity_id") == entity) for k, v in world.items()}
        before = pl.col("known_at").cast(pl.Int64) < int(as_of[sample])
        for frames in (own, {k: v.filter(before) for k, v in own.items()}):
            alone = build_timeline(SCHEMA, frames)
            online = tokenizer.encode_events(alone)
            if frames is own:
                rows = np.flatnonzero(whole.entity == cuts.entity[sample])
            else:
                rows = np.arange(cuts.start[sample], cuts.stop[sample])
            assert len(rows) == len(alone)
            same_bytes(offline, online, rows, slice(None))
            mine = cut(alone, ids[int(sample) : int(sample) + 1], as_of[sample : sample + 1])
            query = tokenizer.encode_query(
                mine, alone, profile, context[sample : sample + 1], ids[sample : sample + 1]
            )
            same_bytes(queries, query, slice(sample, sample + 1), slice(None))
            arrays = timeline_of(SCHEMA, entity, frames)
            same_bytes(online, tokenizer.encode_events(arrays), slice(None), slice(None))
            for name in ("known_us", "event_us", "source", "row", "offsets"):
                assert getattr(arrays, name).tolist() == getattr(alone, name).tolist(), name
            row = table_of(context[sample : sample + 1], SCHEMA.context)
            one = profile_of(SCHEMA, entity, rows_of_profile.unique("entity_id", keep="last"))
            whole_row = build_profile(rows_of_profile.unique("entity_id", keep="last"))
            asked, given_context = ids[sample : sample + 1], context[sample : sample + 1]
            same_bytes(
                tokenizer.encode_query(mine, alone, whole_row, given_context, asked),
                tokenizer.encode_query(mine, arrays, one, row, asked),
                slice(None),
                slice(None),
            )
            spec_values = [
                spec.compute(t, mine, p, asked, c)
                for t, p, c in ((alone, whole_row, given_context), (arrays, one, row))
            ]
            assert spec_values[0].tobytes() == spec_values[1].tobytes()


def one_source(
    at_hours: list[float], zone: str = "UTC", known: list[float] | None = None
) -> Timeline:
    schema = schema_from_dict(
        {"time_zone": zone, "sources": {"s": {"fields": {}}, "t": {"fields": {}}}}
    )
    hours = pl.Series(at_hours) * 3_600_000_000
    shown = hours if known is None else pl.Series(known) * 3_600_000_000
    frame = pl.DataFrame(
        {
            "entity_id": ["x"] * len(at_hours),
            "event_time": hours.cast(pl.Int64).cast(pl.Datetime("us")),
            "known_at": shown.cast(pl.Int64).cast(pl.Datetime("us")),
        }
    )
    return build_timeline(schema, {"s": frame[::2], "t": frame[1::2]})


def test_gaps_look_back_in_known_order() -> None:
    timeline = one_source([10.0, 34.0, 58.0, 20.0], known=[10.0, 34.0, 58.0, 90.0])
    events = Tokenizer.fit(timeline.schema, timeline).encode_events(timeline)
    year = np.log1p(365 * 86_400)
    day, two = np.log1p(86_400) / year, np.log1p(2 * 86_400) / year
    extra = dict(zip(EVENT_EXTRA, events.extra.T, strict=True))
    np.testing.assert_allclose(extra["log_gap"], [0, day, day, 0], rtol=1e-6)
    np.testing.assert_allclose(extra["log_gap_of_source"], [0, 0, two, 0], rtol=1e-6)
    assert extra["first_event"].tolist() == [1, 0, 0, 0]
    assert extra["first_of_source"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(events.days, [0, 1, 2, 10 / 24], rtol=1e-6)
    assert events.code.shape == (4, 0)


@pytest.mark.parametrize(
    "zone", ["UTC", "Asia/Shanghai", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
)
def test_the_calendar_is_that_of_the_zone(zone: str) -> None:
    rng = np.random.default_rng(3)
    at = rng.integers(-(10**9), 3 * 10**9, 400) * 1_000_000
    found = calendar_features.calendar(at, zone)
    for moment, row in zip(at.tolist(), found, strict=True):
        local = dt.datetime.fromtimestamp(moment // 1_000_000, zoneinfo.ZoneInfo(zone))
        wheels = (
            (local.hour, 24),
            (local.weekday(), 7),
            (local.day - 1, 31),
            (local.month - 1, 12),
        )
        turn = [2 * np.pi * step / steps for step, steps in wheels]
        wanted = np.stack([np.sin(turn), np.cos(turn)], axis=1).ravel()
        np.testing.assert_allclose(row, wanted, atol=1e-6)


def test_queries_say_how_thin_a_history_is() -> None:
    timeline = one_source([10.0, 34.0, 58.0, 82.0, 106.0, 130.0])
    tokenizer = Tokenizer.fit(timeline.schema, timeline)
    hour = 3_600_000_000
    cuts = cut(timeline, pl.Series(["x", "x", "x", "y"]), np.array([154, 10, 35, 154]) * hour)
    queries = tokenizer.encode_query(cuts, timeline)
    extra = dict(zip(QUERY_EXTRA, queries.extra.T, strict=True))
    assert extra["no_events"].tolist() == [0, 1, 0, 1]
    assert extra["few_events"].tolist() == [0, 1, 1, 1]
    np.testing.assert_allclose(queries.days, [6, 0, 25 / 24, 0], rtol=1e-6)
    year = np.log1p(365 * 86_400)
    np.testing.assert_allclose(extra["log_since_last"][:1], np.log1p(86_400) / year, rtol=1e-6)
    assert queries.code.shape == (4, 0)


def test_a_profile_is_found_without_any_event() -> None:
    world = build_timeline(SCHEMA, random_world(1, 50))
    profile = build_profile(
        pl.DataFrame(
            {
                "entity_id": ["new", "e1"],
                "known_at": pl.Series([1, 2]).cast(pl.Datetime("us")),
                "city": ["x", "x"],
                "since": pl.Series([0, 0]).cast(pl.Datetime("us")),
            }
        )
    )
    tokenizer = Tokenizer.fit(SCHEMA, world, profile)
    ids = pl.Series(["new", "new", "e1", "e2"])
    as_of = np.array([DAY_US, 1, DAY_US, DAY_US])
    cuts = cut(world, ids, as_of)
    query = tokenizer.encode_query(cuts, world, profile, None, ids)
    city = next(s for s in tokenizer.slots if s.key == "profile.city").ids()
    assert query.code[:, 0].tolist() == [city[2], city[0], city[2], city[0]]
    missing = [s.ids()[0] for s in tokenizer.slots if s.owner == "context"]
    assert (query.code[:, 2:] == missing).all()
    with pytest.raises(InternalError, match="entity_ids"):
        tokenizer.encode_query(cuts, world, profile)
    with pytest.raises(InternalError, match="context has 1 rows for 4 samples"):
        tokenizer.encode_query(cuts, world, profile, pl.DataFrame({"amount": [1.0]}), ids)


def test_a_schema_without_events_encodes_profile_and_context() -> None:
    schema = schema_from_dict(
        {"profile": {"fields": {"age": {"kind": "number"}}}, "context": {"sum": {"kind": "money"}}}
    )
    timeline = build_timeline(schema, {})
    profile = build_profile(
        pl.DataFrame(
            {
                "entity_id": [f"p{i}" for i in range(40)],
                "known_at": pl.Series([None] * 40, dtype=pl.Datetime("us")),
                "age": np.arange(40.0),
            }
        )
    )
    context = pl.DataFrame({"sum": np.arange(40.0) * 10})
    tokenizer = Tokenizer.fit(schema, timeline, profile, context)
    cuts = cut(timeline, profile.entity_ids, np.zeros(40, dtype=np.int64))
    query = tokenizer.encode_query(cuts, timeline, profile, context, profile.entity_ids)
    assert query.code.shape == (40, 2) and (query.code > 0).all()
    assert (np.diff(query.value[:, 1]) > 0).all()
    assert len(tokenizer.encode_events(timeline)) == 0 and tokenizer.width == 0
