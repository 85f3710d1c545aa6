"""Bad definition: rules, cohorts, vintages, maturity and roll rates, against counting by hand."""

from __future__ import annotations

import datetime as dt
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from finetune.bad_definition import (
    BadRule,
    bucket_names,
    given_rule,
    read_states,
    subjects_since_as_of,
    subjects_since_booking,
)
from finetune.vintage_report import VintageSettings, run_vintages, vintage_lines
from finetune.vintages import (
    directions,
    maturity,
    roll_rates,
    turning_state,
    vintages,
    window_maturity,
)
from foundation.errors import DataError, SampleError, UserError
from foundation.schema import Schema, schema_from_dict
from foundation.store import import_events

SCHEMA_DATA = {
    "name": "book",
    "sources": {
        "state": {
            "path": "state.parquet",
            "fields": {
                "status": {"kind": "category", "role": "status"},
                "days_late": {"kind": "number", "role": "duration"},
                "due": {"kind": "timestamp"},
                "note": {"kind": "text"},
            },
        }
    },
    "outcomes": {
        "late60": "state.status in ('2', '3') within 183d",
        "over": "state.days_late > 59 within 183d",
        "overdue": "state.event_time > due + 30d within 92d",
        "many": "count(state) > 3 within 92d",
    },
}
SCHEMA: Schema = schema_from_dict(SCHEMA_DATA)
RULE = BadRule("state", "status", values=("2", "3"))


def book(codes: dict[str, tuple[str, str]]) -> pl.DataFrame:
    """Month-end statuses: entity -> (first month, one letter a month; '.' for no event)."""
    rows = []
    for entity, (start, letters) in codes.items():
        first = dt.datetime.strptime(start, "%Y-%m")
        for k, letter in enumerate(letters):
            if letter == ".":
                continue
            year, month = divmod(first.month + k, 12)
            at = dt.datetime(first.year + year, month + 1, 1) - dt.timedelta(days=1)
            late = {"0": 0.0, "1": 35.0, "2": 70.0, "3": 95.0}.get(letter, 0.0)
            rows.append((entity, at, letter, late, at - dt.timedelta(days=late)))
    names = ["entity_id", "event_time", "status", "days_late", "due"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        pl.col("event_time", "due").cast(pl.Datetime("us")),
        pl.lit("x").alias("note"),
    )
    return frame.with_columns(pl.col("event_time").alias("known_at"))


def random_book(seed: int, customers: int = 400) -> pl.DataFrame:
    """Customers booked over a year and followed to the end of 2020; hazard falls with age."""
    rng = np.random.default_rng(seed)
    codes = {}
    for i in range(customers):
        start = int(rng.integers(0, 12))
        length = 24 - start
        text, level = "", 0
        for k in range(length):
            step = rng.random()
            level = min(level + 1, 3) if step < 0.25 * np.exp(-k / 4) else max(level - 1, 0)
            text += str(level)
        codes[f"c{i:03d}"] = (f"{2019 + start // 12}-{start % 12 + 1:02d}", text)
    return book(codes)


def us(text: str) -> int:
    return int(pl.Series([text]).str.to_datetime(time_unit="us").to_physical()[0])


def test_vintages_by_hand():
    frame = book(
        {
            "a": ("2020-01", "00200"),
            "b": ("2020-01", "00000"),
            "c": ("2020-01", "0003"),
            "d": ("2020-03", "020"),
            "e": ("2020-03", "0.."),
        }
    )
    states = read_states(frame, SCHEMA, RULE)
    assert states.names == ("0", "2", "3") and states.horizon == dt.datetime(2020, 6, 1)
    subjects = subjects_since_booking(states)
    by = {e: (int(m), int(f)) for e, m, f in zip(
        subjects.entity_id, subjects.months, subjects.first_bad, strict=True)}  # fmt: skip
    assert by == {"a": (5, 3), "b": (5, 0), "c": (5, 4), "d": (3, 2), "e": (3, 0)}
    table = vintages(subjects)
    first = table.filter(pl.col("cohort") == "2020-01")
    assert first["bads"].to_list() == [0, 0, 1, 2, 2] and first["n"].unique().to_list() == [3]
    assert table.filter(pl.col("cohort") == "2020-03")["bads"].to_list() == [0, 1, 1]
    assert (table["low"] <= table["share"] + 1e-12).all() and (
        table["share"] <= table["high"] + 1e-12
    ).all()


def test_months_that_have_not_ended_are_not_counted():
    frame = book({"a": ("2020-01", "0002"), "b": ("2020-01", "2000")})
    states = read_states(frame, SCHEMA, RULE, us("2020-04-15 00:00:00"))
    subjects = subjects_since_booking(states)
    assert subjects.months.tolist() == [3, 3] and subjects.first_bad.tolist() == [0, 1]


def test_events_known_late_close_their_month_late():
    frame = book({f"c{i}": ("2020-01", "0200") for i in range(5)})
    slow = frame.with_columns(pl.col("known_at") + pl.duration(days=10))
    states = read_states(slow, SCHEMA, RULE, us("2020-05-05 00:00:00"))
    assert states.horizon == dt.datetime(2020, 4, 25)
    assert subjects_since_booking(states).months.tolist() == [3] * 5


def test_since_as_of_counts_from_day_to_day():
    frame = book({"a": ("2020-01", "200302"), "b": ("2020-01", "000000")})
    states = read_states(frame, SCHEMA, RULE)
    samples = pl.DataFrame(
        {
            "entity_id": ["a", "b", "a"],
            "as_of": pl.Series(["2020-02-01", "2020-02-01", "2020-05-01"]).str.to_datetime(
                time_unit="us"
            ),
        }
    )
    subjects = subjects_since_as_of(states, samples, SCHEMA)
    assert subjects.months.tolist() == [5, 5, 2]
    assert subjects.first_bad.tolist() == [3, 0, 2]  # January's bad was before as_of


@pytest.mark.parametrize(
    "rule",
    [
        BadRule("state", "days_late", bound=60.0),
        BadRule("state", "days_late", op=">", bound=59.0),
        BadRule("state", "due", bound=60.0),
        given_rule(SCHEMA, outcome="late60"),
        given_rule(SCHEMA, outcome="over"),
    ],
    ids=lambda r: r.text,
)
def test_status_days_late_due_date_and_outcome_agree(rule: BadRule):
    frame = random_book(1, 120)
    wanted = subjects_since_booking(read_states(frame, SCHEMA, RULE))
    found = subjects_since_booking(read_states(frame, SCHEMA, rule))
    assert found.first_bad.tolist() == wanted.first_bad.tolist()


def test_overdue_outcome_reads_days_after_the_date():
    frame = book({"a": ("2020-01", "01"), "b": ("2020-01", "00")})
    states = read_states(frame, SCHEMA, given_rule(SCHEMA, outcome="overdue"))
    assert states.names == bucket_names((1.0, 30.0, 60.0, 90.0))
    assert states.frame["bad"].to_list() == [False, True, False, False]


def test_roll_rates_by_hand():
    frame = book({"a": ("2020-01", "0120"), "b": ("2020-01", "0102"), "c": ("2020-01", "00.0")})
    rates = roll_rates(read_states(frame, SCHEMA, RULE))
    found = {(r["from"], r["to"]): (r["n"], r["n_from"]) for r in rates.to_dicts() if r["n"]}
    assert found == {
        ("0", "0"): (1, 5), ("0", "1"): (2, 5), ("0", "2"): (1, 5), ("0", "no event"): (1, 5),
        ("1", "2"): (1, 2), ("1", "0"): (1, 2), ("2", "0"): (1, 1),
    }  # fmt: skip
    moved = directions(rates, ("0", "1", "2"))
    assert moved["worse"].to_list() == [0.75, 0.5, 0.0]
    assert turning_state(moved) is None


def test_turning_state_is_the_mildest_with_more_worse_than_better():
    table = pl.DataFrame(
        {
            "state": ["0", "1", "2", "3"],
            "n": [9, 9, 9, 9],
            "worse": [0.1, 0.3, 0.6, 0.0],
            "same": [0.9, 0.2, 0.1, 0.9],
            "better": [0.0, 0.5, 0.3, 0.1],
        }
    )
    assert turning_state(table) == "2"


@given(seed=st.integers(0, 10_000))
@limits(deadline=None, max_examples=8)
def test_what_holds_of_any_book(seed: int):
    frame = random_book(seed, 150)
    states = read_states(frame, SCHEMA, RULE)
    subjects = subjects_since_booking(states)
    table = vintages(subjects)
    steps = table.group_by("cohort").agg((pl.col("share").diff().drop_nulls() >= 0).all())
    assert steps["share"].all()
    rates = roll_rates(states)
    sums = rates.group_by("from").agg(pl.col("share").sum())
    assert np.allclose(sums["share"].to_numpy(), 1)
    # rows in any order give the same
    mixed = read_states(frame.sample(fraction=1.0, shuffle=True, seed=1), SCHEMA, RULE)
    assert roll_rates(mixed).equals(rates)
    if (subjects.first_bad > 0).sum() >= 10:
        curve = maturity(subjects)
        share = curve.frame["share"].to_numpy()
        assert (np.diff(share) >= -1e-12).all() and share[0] >= 0 and share[-1] <= 1
        assert 1 <= curve.low <= curve.high <= curve.final_month
        assert curve.frame["of_final"][curve.month - 1] >= 0.9 - 1e-9
        assert curve.month == 1 or curve.frame["of_final"][curve.month - 2] < 0.9


def test_maturity_without_censoring_is_the_plain_share():
    frame = random_book(5, 2000).filter(pl.col("entity_id").is_in(_booked_first(5)))
    subjects = subjects_since_booking(read_states(frame, SCHEMA, RULE))
    assert len(set(subjects.months.tolist())) == 1
    curve = maturity(subjects)
    table = vintages(subjects)
    assert np.allclose(curve.frame["share"].to_numpy(), table["share"].to_numpy())
    assert curve.frame["low"][5] <= curve.frame["share"][5] <= curve.frame["high"][5]


def _booked_first(seed: int) -> list[str]:
    frame = random_book(seed, 2000)
    start = frame.group_by("entity_id").agg(pl.col("event_time").min())
    first = start["event_time"].mode()[0]
    return start.filter(pl.col("event_time") == first)["entity_id"].to_list()


def test_young_cohorts_bias_the_naive_share_but_not_the_curve():
    """Kaplan-Meier finds the share of a book followed to the end, from one half cut short."""
    full = random_book(11, 1500)
    end = us("2020-04-01 00:00:00")
    whole = maturity(subjects_since_booking(read_states(full, SCHEMA, RULE)))
    short = maturity(subjects_since_booking(read_states(full, SCHEMA, RULE, end)))
    at = 9
    assert short.frame["share"][at - 1] == pytest.approx(whole.frame["share"][at - 1], abs=0.03)


def test_windows_of_new_and_of_seasoned_customers():
    frame = random_book(3, 600)
    curve = maturity(subjects_since_booking(read_states(frame, SCHEMA, RULE)))
    as_of = pl.Series(["2020-06-01"] * 3 + ["2020-07-01"]).str.to_datetime(time_unit="us")
    label = pl.Series([1, 0, None, 0], dtype=pl.Int8)
    age, months = np.array([0, 0, 0, 0]), np.array([curve.month] * 3 + [curve.month - 1])
    rows = window_maturity(as_of, label, age, months, curve)
    assert rows["mature"].to_list() == [True, False]
    assert rows["bad_rate"].to_list() == [0.5, 0.0] and rows["n"].to_list() == [3, 1]
    old = window_maturity(as_of, label, age + 99, months, curve)
    assert old["shown"].null_count() == 2 and old["mature"].null_count() == 2


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of 400 customers, and samples decided on 2020-07-01."""
    root = tmp_path_factory.mktemp("book")
    random_book(7).drop("known_at").write_parquet(root / "state.parquet")
    (root / "schema.yaml").write_text(yaml.safe_dump(SCHEMA_DATA), encoding="utf-8")
    import_events(root / "schema.yaml", root / "store")
    pl.DataFrame(
        {
            "entity_id": [f"c{i:03d}" for i in range(100)],
            "as_of": ["2020-07-01"] * 100,
            "label": [int(i % 9 == 0) for i in range(100)],
        }
    ).write_csv(root / "samples.csv")
    return root, root / "store"


class _Closed(HTMLParser):
    """Addresses a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]


def test_page_and_tables(stored, tmp_path: Path):
    root, store = stored
    numbers = run_vintages(
        store, RULE, tmp_path / "out", VintageSettings(window_months=6), root / "samples.csv"
    )
    assert json.loads((tmp_path / "out" / "vintages.json").read_text()) == numbers
    for name in ("vintages", "maturity", "roll_rates", "windows"):
        table = pl.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert len(table) == len(pl.read_csv(tmp_path / "out" / f"{name}.csv")) > 0
    page = (tmp_path / "out" / "vintages.html").read_text(encoding="utf-8")
    closed = _Closed()
    closed.feed(page)
    assert closed.loads == [] and "Content-Security-Policy" in page and "账龄分析" in page
    text = "\n".join(vintage_lines(numbers))
    assert "maturity: by month" in text and "window 2020-07: n = 100" in text
    assert not list((tmp_path / "out").glob(".*"))


def test_hints_know_nothing_at_or_after_as_of(stored, tmp_path: Path):
    """Leak test: events known from the earliest as_of on, absurd as they are, move nothing."""
    root, store = stored
    before = run_vintages(store, RULE, tmp_path / "a", None, root / "samples.csv")
    later = pl.DataFrame(
        {
            "entity_id": [f"c{i:03d}" for i in range(400)],
            "event_time": [dt.datetime(2020, 7, 1)] * 400,
            "status": ["3"] * 400,
            "days_late": [900.0] * 400,
            "due": [dt.datetime(2018, 1, 1)] * 400,
            "note": ["x"] * 400,
        }
    )
    copy = tmp_path / "store"
    base = root / "state.parquet"
    later.write_parquet(tmp_path / "later.parquet")
    import_events(root / "schema.yaml", copy, {"state": base})
    import_events(root / "schema.yaml", copy, {"state": tmp_path / "later.parquet"})
    after = run_vintages(copy, RULE, tmp_path / "b", None, root / "samples.csv")
    changing = ("created_at", "store_version")
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }
    assert before["until"] == "2020-07-01"
    asked = run_vintages(
        copy, RULE, tmp_path / "c", VintageSettings(until="2020-08-01"), root / "samples.csv"
    )
    assert asked["maturity"]["bads"] > after["maturity"]["bads"]
    assert any("because --until asks for it" in n for n in asked["notes"])


def test_as_of_cohorts_need_an_end(stored, tmp_path: Path):
    root, store = stored
    with pytest.raises(UserError, match="--until DATE"):
        run_vintages(store, RULE, tmp_path, VintageSettings(since="as-of"), root / "samples.csv")
    found = run_vintages(
        store, RULE, tmp_path, VintageSettings(since="as-of", until="2021-01-01"),
        root / "samples.csv",
    )  # fmt: skip
    assert found["windows"] == [] or found["windows"][0]["months"] == 6
    assert {r["cohort"] for r in found["vintages"]} == {"2020-07"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"field": "stauts", "bad": ("2",)}, "did you mean 'status'"),
        ({"source": "stat", "field": "status", "bad": ("2",)}, "did you mean 'state'"),
        ({"field": "status"}, "--bad 2,3,4,5"),
        ({"field": "days_late"}, "--bad-from 60"),
        ({"field": "days_late", "bad_from": 60.0, "edges": (30.0, 10.0)}, "must ascend"),
        ({"field": "note", "bad": ("x",)}, "kind text"),
        ({"outcome": "lat60"}, "did you mean 'late60'"),
        ({"outcome": "many"}, "is about a count over a window"),
        ({"outcome": "late60", "field": "status"}, "not both"),
        ({}, "say what is bad"),
    ],
)
def test_rules_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        given_rule(SCHEMA, **given)


def test_values_that_never_occur():
    frame = book({"a": ("2020-01", "0120")})
    with pytest.raises(UserError, match=r"never 9.*values in that time: 0, 1, 2"):
        read_states(frame, SCHEMA, BadRule("state", "status", values=("9",)))
    with pytest.raises(UserError, match="leaves out 2"):
        read_states(frame, SCHEMA, BadRule("state", "status", values=("1",), order=("0", "1")))


def test_too_little_data():
    states = read_states(book({"a": ("2020-01", "02")}), SCHEMA, RULE)
    with pytest.raises(DataError, match="too few for a maturity curve"):
        maturity(subjects_since_booking(states))
    with pytest.raises(DataError, match="no event with 'status'"):
        read_states(book({"a": ("2020-01", "02")}), SCHEMA, RULE, us("2019-01-01 00:00:00"))
    with pytest.raises(DataError, match="two whole months"):
        roll_rates(read_states(book({"a": ("2020-01", "2")}), SCHEMA, RULE))
    subjects = subjects_since_booking(read_states(random_book(2, 80), SCHEMA, RULE))
    with pytest.raises(SampleError, match="between 0 and 1"):
        maturity(subjects, share=1.5)
