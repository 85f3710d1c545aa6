"""The label book: what enters it, what is set aside, what holds at the end of a day."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import SampleError
from foundation.schema import schema_from_dict
from serving.label_book import (
    KEY,
    empty_rows,
    known_labels,
    read_rows,
    take_decided,
    take_labels,
)

SCHEMA = schema_from_dict({"name": "t", "context": {"asked": {"kind": "money"}}}, "t")
DAY = dt.date(2024, 3, 10)
NOON = dt.datetime(2024, 3, 10, 12)
EARLY = dt.datetime(2024, 1, 2)


def rows(*given: tuple[str, int | None, dt.datetime | None]) -> pl.DataFrame:
    """Entity, label and when it became known; all decided on 2024-01-02."""
    frame = pl.DataFrame(
        {
            "entity_id": [g[0] for g in given],
            "as_of": pl.Series([EARLY] * len(given), dtype=pl.Datetime("us")),
            "label": pl.Series([g[1] for g in given], dtype=pl.Int8),
            "label_known_at": pl.Series([g[2] for g in given], dtype=pl.Datetime("us")),
            "row": list(range(1, len(given) + 1)),
        }
    )
    return pl.concat([empty_rows(SCHEMA), frame], how="diagonal_relaxed").with_columns(
        weight=pl.lit(1.0)
    )


def held(*days: pl.DataFrame) -> dict[str, int]:
    book = known_labels(days, SCHEMA)
    return dict(zip(book["entity_id"], book["label"], strict=True))


def test_new_late_corrected_outdated_repeated() -> None:
    first, facts = take_labels(
        rows(("a", 0, NOON), ("b", 1, dt.datetime(2024, 3, 1)), ("c", 0, NOON), ("d", None, None)),
        empty_rows(SCHEMA),
        DAY,
    )
    assert (facts["new"], facts["late"], facts["unlabelled"], facts["taken"]) == (3, 1, 1, 3)
    later = dt.datetime(2024, 3, 11, 9)
    second, facts = take_labels(
        rows(("a", 1, later), ("b", 0, EARLY), ("c", 0, later), ("e", 1, None)),
        known_labels([first], SCHEMA),
        DAY + dt.timedelta(days=1),
    )
    kinds = {k: facts[k] for k in ("new", "corrected", "outdated", "repeated")}
    assert kinds == {"new": 1, "corrected": 1, "outdated": 1, "repeated": 1}
    assert held(first) == {"a": 0, "b": 1, "c": 0}
    assert held(first, second) == {"a": 1, "b": 1, "c": 0, "e": 1}
    assert len(first) + len(second) == 6  # nothing is overwritten


def test_two_labels_at_one_time_are_named_and_not_taken() -> None:
    taken, facts = take_labels(
        rows(("a", 0, NOON), ("b", 1, NOON), ("a", 1, NOON), ("b", 1, NOON)),
        empty_rows(SCHEMA),
        DAY,
    )
    assert facts["conflicts"] == [[1, 3]]
    assert taken["entity_id"].to_list() == ["b"]


def test_what_lies_after_the_day_is_not_taken() -> None:
    midnight = dt.datetime(2024, 3, 11)
    just = midnight - dt.timedelta(microseconds=1)
    taken, facts = take_labels(
        rows(("a", 0, midnight), ("b", 1, just), ("c", 1, None)), empty_rows(SCHEMA), DAY
    )
    assert facts["future"] == 1
    assert taken["label_known_at"].to_list() == [just, just]
    decided = rows(("a", None, None), ("a", None, None)).with_columns(as_of=pl.lit(midnight))
    fresh, facts = take_decided(decided, empty_rows(SCHEMA), DAY)
    assert (len(fresh), facts["future"]) == (0, 2)


MOMENTS = st.integers(0, 9).map(lambda h: dt.datetime(2024, 3, 9, h))
ROW = st.tuples(st.sampled_from("abc"), st.integers(0, 1), MOMENTS)


@given(st.lists(st.lists(ROW, max_size=5), min_size=1, max_size=3), st.randoms())
def test_a_book_does_not_depend_on_row_order_and_says_what_was_known_last(
    files: list[list[tuple[str, int, dt.datetime]]], random: Any
) -> None:
    days: list[pl.DataFrame] = []
    mixed: list[pl.DataFrame] = []
    for n, file in enumerate(files):
        date = DAY + dt.timedelta(days=n)
        other = list(file)
        random.shuffle(other)
        for kept, given_rows in ((days, file), (mixed, other)):
            taken, _ = take_labels(rows(*given_rows), known_labels(kept, SCHEMA), date)
            _, twice = take_labels(rows(*given_rows), known_labels([*kept, taken], SCHEMA), date)
            assert twice["new"] == 0
            assert twice["corrected"] == 0
            kept.append(taken)
    assert held(*days) == held(*mixed)
    book = known_labels(days, SCHEMA)
    assert book.select(KEY).is_unique().all()
    every = pl.concat(days)
    last = every.group_by("entity_id").agg(pl.col("label_known_at").max())
    joined = book.join(last, on="entity_id", suffix="_last")
    assert (joined["label_known_at"] == joined["label_known_at_last"]).all()


def test_a_file_of_several_channels(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(
        "entity_id,as_of,label,channel,asked\n"
        "a,2024-01-02,0,app,10\nb,2024-01-02,1,shop,20\nc,2024-01-02,1,app,30\n"
    )
    found = read_rows(file, SCHEMA, "app")
    assert found["entity_id"].to_list() == ["a", "c"]
    assert found["row"].to_list() == [1, 3]
    assert found["asked"].to_list() == [10.0, 30.0]
    assert len(read_rows(file, SCHEMA, "")) == 3
    assert len(read_rows(tmp_path / "none.csv", SCHEMA, "app")) == 0
    plain = tmp_path / "plain.csv"
    plain.write_text("entity_id,as_of,label,asked\na,2024-01-02,0,1\n")
    with pytest.raises(SampleError, match="column 'channel' is missing"):
        read_rows(plain, SCHEMA, "app")
    file.write_text("entity_id,as_of,label,asked\na,2024-01-02,7,1\n")
    with pytest.raises(SampleError, match="row 1, column 'label'"):
        read_rows(file, SCHEMA, "")
