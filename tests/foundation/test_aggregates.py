"""Aggregates: right values, no leak, the same bits alone and in a batch."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import history, panels
from foundation.aggregates import AggregateSpec
from foundation.errors import ArtifactError, DataError
from foundation.history import DAY_US, build_profile, build_timeline, cut
from foundation.schema import schema_from_dict

START = dt.datetime(2024, 1, 1)
SCHEMA = schema_from_dict(
    {
        "sources": {
            "bill": {
                "delay": "1d",
                "fields": {
                    "status": {"kind": "category"},
                    "shop": {"kind": "category"},
                    "amount": {"kind": "money"},
                    "paid": {"kind": "money"},
                    "due": {"kind": "timestamp"},
                    "device": {"kind": "identifier", "sharing": True},
                },
            },
            "call": {"fields": {"topic": {"kind": "text"}}},
        },
        "profile": {"fields": {"limit": {"kind": "money"}, "job": {"kind": "category"}}},
        "context": {"ask": {"kind": "money"}, "way": {"kind": "category"}},
        "outcomes": {"late": "bill.status in ('3') within 30d"},
        "windows_days": [20, 60],
        "ratios": [
            ["bill.paid", "bill.amount"],
            ["bill.amount", "profile.limit"],
            ["context.ask", "bill.amount"],
            ["context.ask", "context.ask"],
        ],
    }
)


def make_frames(seed: int, entities: int = 12, size: int = 160) -> dict[str, pl.DataFrame]:
    """Random bills and calls; some values are missing, some events arrive late."""
    rng = np.random.default_rng(seed)

    def base(n: int, delay: float) -> dict[str, object]:
        day = rng.integers(0, 200, n)
        late = np.where(rng.random(n) < 0.2, rng.integers(0, 40, n), delay)
        event = [START + dt.timedelta(days=int(d)) for d in day]
        known = [e + dt.timedelta(days=float(x)) for e, x in zip(event, late, strict=True)]
        return {
            "entity_id": [f"e{k:02d}" for k in rng.integers(0, entities, n)],
            "event_time": event,
            "known_at": known,
        }

    def holes(values: list, share: float = 0.1) -> list:
        return [None if rng.random() < share else v for v in values]

    bill = base(size, 1.0)
    bill |= {
        "status": holes([str(v) for v in rng.integers(-1, 4, size)]),
        "shop": holes([f"s{v}" for v in rng.geometric(0.3, size)]),
        "amount": holes(np.round(rng.normal(50, 40, size), 2).tolist()),
        "paid": holes(np.round(rng.exponential(30, size), 2).tolist()),
        "due": [
            e + dt.timedelta(days=int(k))
            for e, k in zip(bill["event_time"], rng.integers(-9, 9, size), strict=True)
        ],
        "device": [f"d{v}" for v in rng.integers(0, 4, size)],
    }
    call = base(size // 4, 0.0) | {"topic": ["asks", "moves"] * (size // 8)}
    times = [pl.col(c).cast(pl.Datetime("us")) for c in ("event_time", "known_at")]
    return {
        "bill": pl.DataFrame(bill).with_columns(*times, pl.col("due").cast(pl.Datetime("us"))),
        "call": pl.DataFrame(call).with_columns(*times),
    }


def make_profile(entities: int = 12):
    ids = [f"e{k:02d}" for k in range(entities - 2)]
    frame = pl.DataFrame(
        {
            "entity_id": ids,
            "limit": [100.0 * k for k in range(len(ids))],
            "job": ["clerk", "cook"] * (len(ids) // 2),
        }
    )
    return build_profile(frame.with_columns(known_at=pl.lit(None, dtype=pl.Datetime("us"))))


def make_samples(seed: int, size: int = 30) -> tuple[pl.Series, np.ndarray, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    ids = pl.Series([f"e{k:02d}" for k in rng.integers(0, 14, size)])
    origin = int(pl.Series([START]).to_physical()[0])
    as_of = origin + rng.integers(0, 220, size) * DAY_US
    context = pl.DataFrame({"ask": rng.normal(size=size), "way": ["web", "shop"] * (size // 2)})
    return ids, as_of, context


FRAMES, PROFILE = make_frames(0), make_profile()
TIMELINE = build_timeline(SCHEMA, FRAMES)
IDS, AS_OF, CONTEXT = make_samples(1)
SPEC = AggregateSpec.fit(SCHEMA, TIMELINE, PROFILE, CONTEXT, max_columns=1000)


def values(spec=SPEC, timeline=TIMELINE, ids=IDS, as_of=AS_OF, context=CONTEXT):
    return spec.compute(timeline, cut(timeline, ids, as_of), PROFILE, ids, context)


def test_columns_are_named_grouped_and_worded():
    assert len(set(SPEC.names)) == len(SPEC.names) > 150
    assert {
        "bill.status last",
        "bill.amount sum 20d",
        "bill.status level mean all",
        "profile.limit",
        "context.way",
        "bill.due.days last",
    } <= set(SPEC.names)
    by_name = {c.name: c for c in SPEC.columns}
    assert by_name["bill.status last"].kind == "code"
    assert by_name["bill.amount sum 20d"].group == "bill.amount"
    assert by_name["bill.amount sum 20d"].title == "sum of amount in the last 20 days"
    assert all(c.title and c.group for c in SPEC.columns)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
def test_values_equal_a_slow_reading_of_the_rows(seed: int):
    ids, as_of, context = make_samples(seed, 6)
    x = values(ids=ids, as_of=as_of, context=context)
    at = {name: j for j, name in enumerate(SPEC.names)}
    bills = FRAMES["bill"].with_row_index()
    for s in range(6):
        moment = pl.Series([int(as_of[s])]).cast(pl.Datetime("us"))[0]
        own = bills.filter((pl.col("entity_id") == ids[s]) & (pl.col("known_at") < moment))
        own = own.sort("known_at", "event_time", "index")
        recent = own.filter(
            (pl.col("event_time") >= moment - dt.timedelta(days=20))
            & (pl.col("event_time") <= moment)
        )
        assert x[s, at["bill count all"]] == len(own)
        assert x[s, at["bill count 20d"]] == len(recent)
        if not len(own):
            assert np.isnan(x[s, at["bill.amount last"]])
            continue
        last = own["amount"][-1]
        same(x[s, at["bill.amount last"]], last)
        same(x[s, at["bill.amount mean 20d"]], recent["amount"].mean())
        same(x[s, at["bill.paid max all"]], own["paid"].max())
        same(x[s, at["bill.paid min 20d"]], recent["paid"].min())
        same(x[s, at["bill.amount std all"]], own["amount"].std(ddof=0))
        levels = own["status"].cast(pl.Float64)
        same(x[s, at["bill.status level max all"]], levels.max())
        same(x[s, at["bill.status=3 hits all"]], (own["status"] == "3").sum())
        same(x[s, at["bill.status distinct"]], own["status"].drop_nulls().n_unique())
        ratio = own.select(pl.when(pl.col("amount") != 0).then(pl.col("paid") / pl.col("amount")))
        same(x[s, at["bill.paid/amount mean all"]], ratio.to_series().mean())
        runs = own["status"].rle_id()
        same(x[s, at["bill.status streak"]], (runs == runs[-1]).sum())
        same(x[s, at["context.ask"]], context["ask"][s])


def same(found: float, expected: float | None) -> None:
    if expected is None or (isinstance(expected, float) and np.isnan(expected)):
        assert np.isnan(found)
    else:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_a_sample_alone_has_the_bits_it_has_in_a_batch(seed: int):
    ids, as_of, context = make_samples(seed, 10)
    batch = values(ids=ids, as_of=as_of, context=context)
    order = np.random.default_rng(seed).permutation(10)
    shuffled = values(ids=ids[order], as_of=as_of[order], context=context[order])
    assert shuffled.tobytes() == batch[order].tobytes()
    for s in range(3):
        part = values(ids=ids[s : s + 1], as_of=as_of[s : s + 1], context=context[s : s + 1])
        assert part[0].tobytes() == batch[s].tobytes()


def test_one_entity_inline_equals_the_file():
    batch = values()
    for s in (0, 7, 19):
        own = {k: f.filter(pl.col("entity_id") == IDS[s]) for k, f in FRAMES.items()}
        single = build_timeline(SCHEMA, own)
        part = values(
            timeline=single, ids=IDS[s : s + 1], as_of=AS_OF[s : s + 1], context=CONTEXT[s : s + 1]
        )
        assert part[0].tobytes() == batch[s].tobytes()


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**31))
def test_few_rows_take_another_path_to_the_same_bytes(seed: int):
    frames = make_frames(seed)
    ids, as_of, context = make_samples(seed, 8)
    few = values(timeline=build_timeline(SCHEMA, frames), ids=ids, as_of=as_of, context=context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "SMALL", -1)
        patch.setattr(panels, "SMALL", -1)
        patch.setattr(panels, "SEQUENCE_VALUES", 1)
        timeline = build_timeline(SCHEMA, frames)
        many = values(timeline=timeline, ids=ids, as_of=as_of, context=context)
    assert few.tobytes() == many.tobytes()


@settings(deadline=None, max_examples=15)
@given(st.sets(st.integers(0, len(SPEC.columns) - 1)))
def test_asking_for_some_columns_changes_none_of_them(wanted: set[int]):
    only = frozenset(SPEC.names[j] for j in wanted)
    part = SPEC.compute(TIMELINE, cut(TIMELINE, IDS, AS_OF), PROFILE, IDS, CONTEXT, only=only)
    at = sorted(wanted)
    assert part[:, at].tobytes() == values()[:, at].tobytes()
    assert np.isnan(np.delete(part, at, axis=1)).all()


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**31), st.integers(20, 190))
def test_events_known_later_change_no_byte(seed: int, day: int):
    moment = START + dt.timedelta(days=day)
    until = int(pl.Series([moment]).to_physical()[0])
    other = make_frames(seed)
    mixed = {
        k: pl.concat(
            [f.filter(pl.col("known_at") < moment), other[k].filter(pl.col("known_at") >= moment)]
        )
        for k, f in FRAMES.items()
    }
    changed = build_timeline(SCHEMA, mixed)
    as_of = np.minimum(AS_OF, until)
    assert values(timeline=changed, as_of=as_of).tobytes() == values(as_of=as_of).tobytes()
    fits = [AggregateSpec.fit(SCHEMA, t, PROFILE, None, until) for t in (TIMELINE, changed)]
    assert fits[0].to_json() == fits[1].to_json()


def test_unseen_levels_missing_rows_and_extension():
    context = CONTEXT.with_columns(way=pl.lit("phone"))
    j = SPEC.names.index("context.way")
    assert (values(context=context)[:, j] == -1).all()
    wider = SPEC.extend(None, context)
    assert (values(spec=wider, context=context)[:, j] == 2).all()
    assert (values(spec=wider)[:, j] == values()[:, j]).all()
    without = values(context=None)
    assert np.isnan(without[:, j]).all()
    nobody = values(ids=pl.Series(["stranger"]), as_of=AS_OF[:1], context=CONTEXT[:1])[0]
    assert nobody[SPEC.names.index("bill count all")] == 0
    assert np.isnan(nobody[SPEC.names.index("profile.limit")])


def test_constant_and_copied_columns_are_left_out_and_the_cap_holds():
    frames = {k: f.clone() for k, f in FRAMES.items()}
    frames["bill"] = frames["bill"].with_columns(paid=pl.col("amount"), shop=pl.lit("one"))
    spec = AggregateSpec.fit(SCHEMA, build_timeline(SCHEMA, frames), PROFILE, None)
    assert not [n for n in spec.names if n.startswith("bill.paid mean")]
    assert "bill.shop distinct" not in spec.names
    capped = AggregateSpec.fit(SCHEMA, TIMELINE, PROFILE, None, max_columns=25)
    assert sum(c.block == "aggregate" for c in capped.columns) == 25
    assert "bill.amount last" in capped.names


def test_a_plain_table_without_sources():
    schema = schema_from_dict(
        {"profile": {"fields": {"limit": {"kind": "money"}, "job": {"kind": "category"}}}}
    )
    timeline = build_timeline(schema, {})
    spec = AggregateSpec.fit(schema, timeline, PROFILE, None)
    ids = pl.Series(["e01", "e09", "nobody"])
    x = spec.compute(timeline, cut(timeline, ids, AS_OF[:3]), PROFILE, ids)
    assert spec.names == ("profile.job", "profile.limit")
    assert x[0].tolist() == [1.0, 100.0] and np.isnan(x[2]).all()


def test_json_round_trip_and_damage():
    again = AggregateSpec.from_json(SPEC.to_json())
    assert again == SPEC and again.fingerprint == SPEC.fingerprint
    assert values(spec=again).tobytes() == values().tobytes()
    with pytest.raises(ArtifactError, match="aggregate specification"):
        AggregateSpec.from_json("{")
    with pytest.raises(DataError, match="30 samples"):
        values(context=CONTEXT[:3])
