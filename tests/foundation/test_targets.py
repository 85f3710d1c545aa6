"""Outcome targets against a slow reading of the rows; earlier cuts."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.history import DAY_US, build_timeline
from foundation.outcomes import Outcome
from foundation.schema import schema_from_dict
from foundation.targets import months_before, outcome_targets, past_cuts, target_names

ORIGIN = int(pl.Series([dt.datetime(2024, 1, 1)]).to_physical()[0])
SCHEMA = schema_from_dict(
    {
        "sources": {
            "pay": {
                "fields": {
                    "state": {"kind": "category"},
                    "amount": {"kind": "money"},
                    "due": {"kind": "timestamp"},
                    "auto": {"kind": "boolean"},
                }
            },
            "visit": {"fields": {}},
        },
        "outcomes": {
            "bad": "pay.state in ('late', 'lost') within 7d, 30d",
            "manual": "pay.auto in ('false') within 30d",
            "big": "pay.amount > 60 within 14d",
            "small": "pay.amount <= 10 within 14d",
            "overdue": "pay.event_time > due + 3d within 30d",
            "total": "sum(pay.amount) >= 100 within 30d",
            "halved": "sum(pay.amount) <= 0.5 * last within 20d",
            "rare": "count(pay) < 1 * last within 20d",
            "little": "sum(pay.amount) < 0.9 * last(pay.amount) within 10d",
            "gone": "silence within 14d",
            "no_visit": "silence(visit) within 30d",
        },
    }
)
OPERATORS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def make_frames(seed: int, size: int = 90) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng(seed)

    def base(n: int) -> pl.DataFrame:
        event = ORIGIN + rng.integers(0, 120 * 24, n) * (DAY_US // 24)
        late = rng.choice([0, 0, 1, 15], n) * DAY_US
        return pl.DataFrame(
            {
                "entity_id": [f"e{k}" for k in rng.integers(0, 6, n)],
                "event_time": event,
                "known_at": event + late,
            }
        ).with_columns(pl.col("event_time", "known_at").cast(pl.Datetime("us")))

    amount = np.where(rng.random(size) < 0.1, np.nan, np.round(rng.normal(40, 30, size)))
    pay = base(size).with_columns(
        state=pl.Series(rng.choice(["fine", "late", "lost", None], size).tolist(), dtype=pl.String),
        amount=pl.Series(amount).fill_nan(None),
        due=pl.col("event_time")
        - pl.Series(rng.integers(-9, 9, size) * DAY_US).cast(pl.Duration("us")),
        auto=pl.Series((rng.random(size) < 0.5).tolist()),
    )
    return {"pay": pay, "visit": base(size // 3)}


def slow(frames, outcome: Outcome, days: int, who: str, at: int, until: int, exposed: bool):
    """One target, read row by row; None where undefined."""
    span = days * DAY_US
    if at + span > until + span // 10:
        return None
    rows = []
    for name, frame in frames.items():
        for order, r in enumerate(frame.iter_rows(named=True)):
            if r["entity_id"] == who and outcome.source in ("", name):
                r |= {
                    k: (r[k] - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)
                    for k in ("event_time", "known_at", "due")
                    if r.get(k) is not None
                }
                rows.append(r | {"order": order})
    ahead = [r for r in rows if at <= r["event_time"] < at + span and r["known_at"] < until]
    if outcome.kind == "silence":
        return float(not ahead)
    if outcome.kind in ("value", "compare", "late"):
        if exposed and not ahead:
            return None
        return float(any(hit(outcome, r) for r in ahead))
    before = [r for r in rows if r["known_at"] < at]
    bound = outcome.bound
    if outcome.versus == "window":
        window = [r for r in before if at - span <= r["event_time"] < at]
        if not window:
            return None
        bound *= weigh(outcome, window)
    elif outcome.versus == "last":
        before.sort(key=lambda r: (r["known_at"], r["event_time"], r["order"]))
        if not before or before[-1]["amount"] is None:
            return None
        bound *= before[-1]["amount"]
    return float(OPERATORS[outcome.op](weigh(outcome, ahead), bound))


def hit(outcome: Outcome, row: dict) -> bool:
    if outcome.kind == "late":
        return (row["event_time"] - row["due"]) / DAY_US > outcome.slack_days
    value = row[outcome.field]
    if value is None:
        return False
    if outcome.kind == "value":
        return str(value).lower() in outcome.values
    return OPERATORS[outcome.op](value, outcome.bound)


def weigh(outcome: Outcome, rows: list[dict]) -> float:
    return float(len(rows)) if outcome.kind == "count" else sum(r["amount"] or 0.0 for r in rows)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.booleans())
def test_targets_equal_a_slow_reading(seed: int, exposed: bool):
    frames = make_frames(seed)
    timeline = build_timeline(SCHEMA, frames)
    rng = np.random.default_rng(seed)
    entity = rng.integers(0, len(timeline.entity_ids), 6)
    at = ORIGIN + rng.integers(0, 110 * 24, 6) * (DAY_US // 24)
    until = ORIGIN + 100 * DAY_US
    outcomes = SCHEMA.parsed_outcomes()
    y = outcome_targets(timeline, outcomes, entity, at, until, exposed)
    assert y.dtype == np.float32 and y.shape == (6, len(target_names(outcomes)))
    j = 0
    for outcome in outcomes:
        for days in outcome.horizons:
            for s in range(6):
                who = timeline.entity_ids[int(entity[s])]
                expected = slow(frames, outcome, days, who, int(at[s]), until, exposed)
                found = None if np.isnan(y[s, j]) else float(y[s, j])
                assert found == expected, (outcome.name, days, s)
            j += 1


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**31))
def test_events_known_at_or_after_until_change_nothing(seed: int):
    frames, other = make_frames(1), make_frames(seed)
    until = ORIGIN + 70 * DAY_US
    moment = pl.Series([until]).cast(pl.Datetime("us"))[0]
    mixed = {
        k: pl.concat(
            [f.filter(pl.col("known_at") < moment), other[k].filter(pl.col("known_at") >= moment)]
        )
        for k, f in frames.items()
    }
    a, b = build_timeline(SCHEMA, frames), build_timeline(SCHEMA, mixed)
    if a.entity_ids.to_list() != b.entity_ids.to_list():
        return
    entity = np.arange(len(a.entity_ids))
    at = np.full(len(entity), ORIGIN + 40 * DAY_US)
    outcomes = SCHEMA.parsed_outcomes()
    x, y = (outcome_targets(t, outcomes, entity, at, until) for t in (a, b))
    assert x.tobytes() == y.tobytes()


def test_an_entity_without_events():
    timeline = build_timeline(SCHEMA, make_frames(2))
    until, at = ORIGIN + 100 * DAY_US, np.array([ORIGIN + 30 * DAY_US])
    y = outcome_targets(timeline, SCHEMA.parsed_outcomes(), np.array([-1]), at, until)[0]
    found = dict(zip(target_names(SCHEMA.parsed_outcomes()), y.tolist(), strict=True))
    assert found["gone_14d"] == 1 and found["bad_30d"] == 0 and np.isnan(found["halved_20d"])


@pytest.mark.parametrize("anchored", [0.0, 0.5, 1.0])
def test_past_cuts_have_history_and_matured_windows(anchored: float):
    timeline = build_timeline(SCHEMA, make_frames(3, 300))
    until = ORIGIN + 110 * DAY_US
    entity, at = past_cuts(timeline, until, (7, 30), np.random.default_rng(0), 4, anchored)
    again = past_cuts(timeline, until, (7, 30), np.random.default_rng(0), 4, anchored)
    assert len(entity) and (again[0] == entity).all() and (again[1] == at).all()
    first = timeline.known_us[timeline.offsets[:-1]][entity]
    assert (at > first).all()
    assert (at <= until - 7 * DAY_US + 0.7 * DAY_US).all()
    assert np.unique(entity, return_counts=True)[1].max() <= 4
    if anchored == 0.0:
        assert (at >= first + 7 * DAY_US).all()
        assert np.isin(at, months_before(until, until, ORIGIN)).all()
    if anchored == 1.0:
        assert all(
            (timeline.known_us[timeline.offsets[e] : timeline.offsets[e + 1]] == t).any()
            for e, t in zip(entity, at, strict=True)
        )


def test_months_before_keeps_the_phase():
    until = int(pl.Series([dt.datetime(2024, 3, 31)]).to_physical()[0])
    found = pl.Series(months_before(until, until - DAY_US, ORIGIN)).cast(pl.Datetime("us"))
    assert found.to_list() == [dt.datetime(2024, 1, 31), dt.datetime(2024, 2, 29)]


def test_no_events_at_all():
    timeline = build_timeline(SCHEMA, {})
    entity, at = past_cuts(timeline, ORIGIN, (7,), np.random.default_rng(0))
    assert len(entity) == len(at) == 0
