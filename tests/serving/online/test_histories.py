"""A stored history scores as the same events in the request would."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from foundation.schema import schema_from_dict
from serving.messages import ApiError
from serving.online.bounds import Bound
from serving.requests import ScoringInput
from tests.serving.fake_package import SCHEMA, Package
from tests.serving.online.small_store import Small, statement
from tests.serving.request_frames import frames_of

DEVICE = "device id"
fields = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["0", "1", " 2 ", 3, True, None]),
        "bill_amt": st.sampled_from([None, 0, -0.0, 12.5, 99]),
        "paid": st.sampled_from([True, False, None, "yes"]),
        "due": st.sampled_from(["2020-01-01", None]),
    },
)
logins = st.fixed_dictionaries(
    {}, optional={DEVICE: st.sampled_from(["D1", "D2", 3]), "note": st.sampled_from(["a", "b"])}
)
# Every event has a moment of its own: equal ones are the next test's.
histories = st.lists(
    st.tuples(st.integers(0, 230), st.booleans(), fields, logins),
    max_size=20,
    unique_by=lambda event: event[0],
)


CUSTOMERS = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    small = Small(tmp_path_factory.mktemp("shared"))
    yield small
    small.store.close()


def events_of(rows: list[tuple[int, bool, dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    out: dict[str, list[dict[str, Any]]] = {}
    for day, is_statement, about, login in rows:
        name, more = ("statement", about) if is_statement else ("login", login)
        out.setdefault(name, []).append(statement(day, **more))
    return out


def same(one: ScoringInput, other: ScoringInput) -> None:
    assert (one.used, one.ignored, one.as_of_us) == (other.used, other.ignored, other.as_of_us)
    first, second = frames_of(one), frames_of(other)
    assert first.keys() == second.keys()
    for name, frame in first.items():
        assert_frame_equal(frame.sort("event_time"), second[name].sort("event_time"))
    package = Package({}, schema_from_dict(SCHEMA))
    scores = [package.score_population(given.population())[0].score for given in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-12)


@settings(max_examples=25)
@given(rows=histories, seed=st.integers(0, 99), data=st.data())
def test_any_order_and_grouping_is_all_at_once(
    shared: Small, rows: list, seed: int, data: st.DataObject
) -> None:
    entity = f"any{next(CUSTOMERS)}"
    more = {"context": {"amount": 5}, "profile": {"age": 40}, "entity_id": entity}
    whole = shared.read("inline", events=events_of(rows), **more)
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    while shuffled:
        size = data.draw(st.integers(1, len(shuffled)))
        shared.post(events_of(shuffled[:size]), entity=entity)
        if data.draw(st.booleans()):
            shared.post(events_of(shuffled[:size]), entity=entity)
        shuffled = shuffled[size:]
    same(shared.read("stored", **more), whole)
    part = data.draw(st.integers(0, len(rows)))
    same(shared.read("both", events=events_of(rows[part:]), **more), whole)


@settings(max_examples=15)
@given(rows=histories, cut=st.integers(0, 25), data=st.data())
def test_stored_and_given_events_join(
    shared: Small, rows: list, cut: int, data: st.DataObject
) -> None:
    entity = f"join{next(CUSTOMERS)}"
    stored, given = rows[:cut], rows[data.draw(st.integers(0, cut)) :]
    if stored:
        shared.post(events_of(stored), entity=entity)
    joined = shared.read("both", entity_id=entity, events=events_of(given))
    same(joined, shared.read("inline", entity_id=entity, events=events_of(rows)))


def test_equal_events_count_as_often_as_where_there_are_more(tmp_path: Path) -> None:
    small = Small(tmp_path)
    one = statement(1, bill_amt=5)
    small.post({"statement": [one, one]})
    assert small.read("both", events={"statement": [one]}).used == 2
    assert small.read("both", events={"statement": [one] * 3}).used == 3
    assert small.read("both", events={"statement": [statement(1, bill_amt=6)]}).used == 3
    assert small.read("both", events={"login": [statement(1)]}).used == 3


def test_the_order_of_equal_moments_is_that_of_arrival(tmp_path: Path) -> None:
    small = Small(tmp_path)
    for amount in (3, 1, 2):
        small.post({"statement": [statement(1, bill_amt=amount)]})
    given = small.read("both", events={"statement": [statement(1, bill_amt=0)]})
    assert given.tables["statement"][2].columns["bill_amt"].tolist() == [3, 1, 2, 0]


def test_identifiers_stay_equal_between_stored_and_given(tmp_path: Path) -> None:
    small, other = Small(tmp_path), Small(tmp_path)
    small.post({"login": [statement(1, **{DEVICE: "D1"})]})
    given = other.read("both", events={"login": [statement(2, **{DEVICE: "D1"})]})
    column: Any = given.tables["login"][2].columns[DEVICE]
    assert column.code.tolist() == [0, 0] and len(column.values) == 1
    assert "D1" not in column.values[0]
    assert "sharing_unknown" in given.flags
    elsewhere: Any = small.read(
        "inline", tenant="other", events={"login": [statement(2, **{DEVICE: "D1"})]}
    )
    assert elsewhere.tables["login"][2].columns[DEVICE].values != column.values


def test_nothing_known_later_changes_anything(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.post({"statement": [statement(day, bill_amt=day) for day in range(20)]})
    package = Package({}, schema_from_dict(SCHEMA))
    before = small.read()
    score = package.score_population(before.population())[0].score
    small.post(
        {
            "statement": [
                statement(3, bill_amt=77, known_at="2020-09-01T00:00:00Z"),
                {"event_time": "2020-09-01T00:00:00Z", "bill_amt": 1e6},
            ],
            # Known a day after it happened: on the very moment of as_of.
            "login": [{"event_time": "2020-08-31T00:00:00Z", DEVICE: "D9"}],
        }
    )
    after = small.read()
    assert (after.used, after.ignored) == (20, 3)
    assert "later_events_ignored" in after.flags
    assert package.score_population(after.population())[0].score == score
    assert after.history is not None and before.history is not None
    assert after.history.events == 20
    assert after.history.age_seconds == before.history.age_seconds
    later = small.read(as_of="2020-09-01T00:00:00.000001Z")
    assert later.used == 23


def test_a_past_version_can_be_read_again(tmp_path: Path) -> None:
    small = Small(tmp_path)
    first = small.post({"statement": [statement(1), statement(2)]})
    small.post({"statement": [statement(3)]})
    small.post({"login": [statement(1)]})
    assert small.read().used == 4
    past = small.read(version=first.version)
    assert past.used == 2 and past.history is not None
    assert past.history.version == first.version


def test_age_and_fallbacks(tmp_path: Path) -> None:
    small = Small(tmp_path)
    missing = small.read()
    assert missing.flags == ("no_stored_history",)
    assert missing.history is not None
    assert (missing.history.events, missing.history.age_seconds, missing.history.version) == (
        0, None, None,
    )  # fmt: skip
    posted = small.post({"statement": [{"event_time": "2020-08-22T00:00:00Z"}]})
    fresh = small.read()
    assert fresh.flags == () and fresh.history is not None
    assert (fresh.history.age_seconds, fresh.history.version) == (864_000.0, posted.version)
    small.bounds.set("acme", "cards", Bound(863_999.0), "k1")
    assert small.read().flags == ("stale_history",)
    assert small.read(as_of="2020-08-31T23:59:59Z").flags == ()
    small.bounds.set("acme", "cards", Bound(863_999.0, "without"), "k1")
    left = small.read("both", events={"statement": [statement(1)]})
    assert left.flags == ("stale_history", "stored_history_left_out")
    assert left.used == 1 and left.history is not None and left.history.events == 0
    small.bounds.set("acme", "cards", Bound(863_999.0, "refuse"), "k1")
    with pytest.raises(ApiError, match=r"10\.0 days before as_of; the channel takes") as stale:
        small.read()
    assert (stale.value.status, stale.value.field) == (409, "history")
    with pytest.raises(ApiError, match="nothing known before as_of is stored"):
        small.read(as_of="2020-01-01T00:00:00Z")
    assert small.read("inline").history is None, "who brings a history is not asked for one"
    other = Small(tmp_path, bound=Bound(fallback="refuse"))
    assert other.bounds.of("acme", "cards").max_age_seconds == 863_999.0
    assert other.bounds.of("acme", "loans") == Bound(fallback="refuse")


def test_events_beside_a_stored_history_must_be_meant(tmp_path: Path) -> None:
    small = Small(tmp_path)
    with pytest.raises(ApiError, match="both") as wrong:
        small.read("stored", events={"statement": []})
    assert wrong.value.status == 422
    assert small.read("stored", events={"statement": None}).used == 0
    with pytest.raises(ApiError):
        small.read("neither")


def test_read_only_blocks_survive_scoring(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.post({"statement": [statement(day, bill_amt=day) for day in range(9)]})
    first = small.read()
    Package({}, schema_from_dict(SCHEMA)).score_population(first.population())
    again = small.read()
    assert again.tables["statement"][0] is first.tables["statement"][0], "decoded once"
    np.testing.assert_array_equal(again.tables["statement"][2].columns["bill_amt"], np.arange(9.0))
