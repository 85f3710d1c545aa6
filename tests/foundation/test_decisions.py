"""What was asked for at moments whose outcome is known by now."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from foundation.decisions import context_at, decision_cuts, decision_sources, with_applications
from foundation.history import build_profile, build_timeline, cut, latest_profile
from foundation.schema import schema_from_dict
from foundation.tokenizer import Tokenizer
from foundation.windows import draw_cuts

DAY = 86_400_000_000
FIELDS = {
    "amount": {"kind": "money", "currency": "EUR"},
    "term": {"kind": "number"},
    "purpose": {"kind": "category"},
    "settled": {"kind": "boolean"},
}
ASKED = {k: FIELDS[k] for k in ("amount", "term", "purpose")}


def schema(profile: bool, context: bool):
    parts = {
        "name": "lender",
        "sources": {
            "bill": {"path": "b.csv", "fields": {"amount": {"kind": "money", "currency": "EUR"}}},
            "loan": {"path": "l.csv", "fields": FIELDS},
        },
    }
    if profile:
        fields = ASKED | {"age": {"kind": "number"}}
        parts["profile"] = {"path": "p.csv", "valid_time": "at", "fields": fields}
    if context:
        parts["context"] = ASKED
    return schema_from_dict(parts, "test")


def day(number: float) -> dt.datetime:
    return dt.datetime(2024, 1, 1) + dt.timedelta(days=number)


def timeline(schema, last_amount: float = 300.0, settled: bool = True):
    loans = pl.DataFrame(
        {
            "entity_id": ["a", "a", "b"],
            "event_time": [day(1), day(10), day(5)],
            "known_at": [day(1), day(10), day(5)],
            "amount": [100.0, last_amount, 500.0],
            "term": [30.0, 60.0, 15.0],
            "purpose": ["car", "home", None],
            "settled": [settled, settled, False],
        }
    )
    bills = pl.DataFrame(
        {
            "entity_id": ["a", "b", "c"],
            "event_time": [day(2), day(1), day(3)],
            "known_at": [day(2), day(1), day(3)],
            "amount": [1.0, 2.0, 3.0],
        }
    )
    return build_timeline(schema, {"loan": loans, "bill": bills})


def moments(*days: float) -> np.ndarray:
    return np.array([int(d * DAY) for d in days]) + 1_704_067_200_000_000


def test_only_a_source_with_two_shared_fields_records_decisions() -> None:
    assert decision_sources(schema(True, False)) == (1,)
    assert decision_sources(schema(False, True)) == (1,)
    assert decision_sources(schema(False, False)) == ()


def test_decisions_are_the_loans() -> None:
    entity, cut_us = decision_cuts(timeline(schema(False, True)))
    assert entity.tolist() == [0, 0, 1]
    assert cut_us.tolist() == moments(1, 10, 5).tolist()


def test_context_stands_only_at_the_decision_itself() -> None:
    tl = timeline(schema(False, True))
    rows = context_at(tl, np.array([0, 0, 0, 1, 2]), moments(10, 9, 11, 5, 5))
    assert rows is not None and rows.columns == ["amount", "purpose", "term"]
    assert rows["amount"].to_list() == [300.0, None, None, 500.0, None]
    assert rows["purpose"].to_list() == ["home", None, None, None, None]
    assert context_at(timeline(schema(True, False)), np.array([0]), moments(10)) is None


def test_an_application_is_known_right_before_its_decision() -> None:
    tl = timeline(schema(True, False))
    given = pl.DataFrame(
        {
            "entity_id": ["a", "a"],
            "known_at": [day(4), day(20)],
            "amount": [1.0, 2.0],
            "term": [1.0, 2.0],
            "purpose": ["x", "y"],
            "age": [40.0, 41.0],
        }
    )
    profile = with_applications(tl, build_profile(given))
    assert profile is not None
    ids = pl.Series(["a"] * 5 + ["b"])
    at = latest_profile(profile, ids, moments(1, 9, 10, 15, 21, 5))
    rows = profile.frame[at]
    assert rows["amount"].to_list() == [100.0, 1.0, 300.0, 300.0, 2.0, 500.0]
    assert rows["age"].to_list() == [None, 40.0, 40.0, 40.0, 41.0, None]


@pytest.mark.parametrize("parts", [(False, False), (False, True)])
def test_without_a_dated_profile_nothing_is_added(parts: tuple[bool, bool]) -> None:
    assert with_applications(timeline(schema(*parts)), None) is None


def test_later_decisions_and_outcomes_change_nothing_before() -> None:
    """Nothing but the fields asked about is read, and nothing of later decisions."""
    asked = schema(True, True)
    one, other = timeline(asked), timeline(asked, last_amount=9e9, settled=False)
    before = (np.array([0, 0, 1]), moments(1, 9, 5))
    assert context_at(one, *before).equals(context_at(other, *before))
    empty = build_profile(
        pl.DataFrame(
            schema={"entity_id": pl.String, "known_at": pl.Datetime("us"), "age": pl.Float64}
            | {"amount": pl.Float64, "term": pl.Float64, "purpose": pl.String}
        )
    )
    ids = pl.Series(["a", "a", "b"])
    found = []
    for tl in (one, other):
        profile = with_applications(tl, empty)
        rows = latest_profile(profile, ids, before[1])
        found.append(profile.frame[rows])
    assert found[0].equals(found[1])


def test_the_network_is_asked_what_was_decided_on() -> None:
    asked = schema(False, True)
    tl = timeline(asked)
    rows = context_at(tl, *decision_cuts(tl))
    tokenizer = Tokenizer.fit(asked, tl, None, rows, min_count=1)
    at = cut(tl, pl.Series(["a", "b"]), moments(10, 5))
    context = context_at(tl, at.entity, at.as_of_us)
    queries = tokenizer.encode_query(at, tl, None, context)
    blank = tokenizer.encode_query(at, tl, None, None)
    assert (queries.code != blank.code).any(axis=1).all()
    assert at.stop.tolist() == [2, 4]  # the loan asked for is not in its own history


def test_cuts_stand_at_decisions_where_there_are_any() -> None:
    tl = timeline(schema(False, True))
    until = int(moments(40)[0])
    entity, cut_us = draw_cuts(tl, until, 6, 0, DAY, decision_cuts(tl))
    at = {e: set(cut_us[entity == e].tolist()) for e in range(3)}
    assert int(moments(10)[0]) in at[0] and int(moments(5)[0]) in at[1]
    # a loan that is the first event has no history before it
    assert int(moments(1)[0]) not in at[0]
    plain = draw_cuts(tl, until, 6, 0, DAY)
    assert (cut_us[entity == 2] == plain[1][plain[0] == 2]).all()


def test_a_source_that_shares_nothing_with_the_dated_profile_adds_nothing() -> None:
    """The loans share fields with the context alone; the profile has its own."""
    parts = {
        "name": "lender",
        "sources": {"loan": {"path": "l.csv", "fields": FIELDS}},
        "profile": {"path": "p.csv", "valid_time": "at", "fields": {"age": {"kind": "number"}}},
        "context": ASKED,
    }
    asked = schema_from_dict(parts, "test")
    tl = timeline(asked)
    given = pl.DataFrame({"entity_id": ["a"], "known_at": [day(4)], "age": [40.0]})
    before = build_profile(given)
    after = with_applications(tl, before)
    assert after is not None
    assert after.frame.equals(before.frame)
    rows = context_at(tl, *decision_cuts(tl))
    assert rows is not None
    assert rows["amount"].to_list() == [100.0, 300.0, 500.0]
