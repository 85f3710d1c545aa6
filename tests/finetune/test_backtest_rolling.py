"""The rolling origin never learns from what was not known before it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.backtest_origins import (
    DAY_US,
    RollingSettings,
    known_times,
    levels_known,
    origins_of,
    read_origin,
    write_origin,
)
from finetune.backtest_rows import Given
from finetune.samples import check_samples
from finetune.table import Column, FeatureTable
from foundation.errors import SampleError, UserError
from foundation.schema import Schema, schema_from_dict

START = int(dt.datetime(2023, 1, 1, tzinfo=dt.UTC).timestamp() * 1e6)


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 200), st.integers(0, 1)), min_size=8,
             max_size=60),
    st.integers(1, 3),
)  # fmt: skip
def test_no_label_known_at_or_after_the_origin(rows, months: int) -> None:
    as_of = START + np.array([r[0] for r in rows]) * DAY_US
    known = as_of + np.array([r[1] for r in rows]) * DAY_US
    y = np.array([r[2] for r in rows], float)
    settings = RollingSettings(test_months=months, least_bads=1)
    try:
        origins, skipped = origins_of(as_of, known, y, settings)
    except SampleError:
        origins, skipped = [], []
    tested = [r for o in origins for r in o.test]
    assert len(tested) == len(set(tested))
    if origins:
        assert len(tested) + sum(s["n"] for s in skipped) == len(rows)
    for origin in origins:
        assert (known[origin.train] < origin.start_us).all()
        assert (as_of[origin.train] < origin.start_us).all()
        assert (
            (as_of[origin.test] >= origin.start_us) & (as_of[origin.test] < origin.stop_us)
        ).all()
        # Nothing that was known is left out.
        left = np.setdiff1d(np.arange(len(rows)), origin.train)
        assert ((known[left] >= origin.start_us) | (as_of[left] >= origin.start_us)).all()
        moment = np.datetime64(origin.start_us, "us")
        assert str(moment.astype("datetime64[M]")) == origin.name


def test_a_label_known_at_the_very_origin_is_not_known() -> None:
    origin = START + 31 * DAY_US
    as_of = np.array([START, START, START + DAY_US, START + DAY_US, origin])
    known = np.array([origin - 1, origin - 1, origin, origin, origin])
    y = np.array([0, 1, 0, 1, 0.0])
    (found,), _ = origins_of(as_of, known, y, RollingSettings(least_bads=1))
    assert found.train.tolist() == [0, 1]
    assert found.test.tolist() == [4]


def test_origins_the_backbone_has_seen_are_skipped() -> None:
    as_of = START + np.arange(0, 300, 3) * DAY_US
    y = (np.arange(100) % 3 == 0).astype(float)
    settings = RollingSettings(least_bads=2)
    until = START + 150 * DAY_US
    origins, skipped = origins_of(as_of, as_of + DAY_US, y, settings, until)
    assert min(o.start_us for o in origins) > until
    assert any("the backbone knew" in s["reason"] for s in skipped)
    with pytest.raises(SampleError, match="no month can be judged"):
        origins_of(as_of, as_of + DAY_US, y, settings, START + 900 * DAY_US)
    with pytest.raises(UserError, match="write a month"):
        origins_of(as_of, as_of, y, RollingSettings(first="soon"))


@pytest.fixture
def schema() -> Schema:
    return schema_from_dict(
        {"name": "s", "context": {"product": {"kind": "category"}}, "sources": {}}, "test"
    )


def test_the_embargo_stands_in_where_the_file_does_not_say(schema: Schema) -> None:
    table = pl.DataFrame(
        {
            "entity_id": ["a", "b", "c"],
            "as_of": ["2023-01-01", "2023-01-02", "2023-01-03"],
            "label": [0, 1, 0],
            "label_known_at": ["2023-03-01", None, None],
            "product": ["x", "y", "x"],
        }
    )
    samples = check_samples(table, schema, True)
    made = Given(samples, None, None)
    known = known_times(made, 10 * DAY_US)
    assert known.tolist() == [
        START + 59 * DAY_US, START + 11 * DAY_US, START + 12 * DAY_US,
    ]  # fmt: skip
    with pytest.raises(SampleError, match="--embargo-days"):
        known_times(made, None)


def context_table(codes: list[float], levels: tuple[str, ...]) -> FeatureTable:
    columns = (
        Column("context.product", "context", "code", levels, "context.product", "product"),
        Column("n", "aggregate", "number", (), "n", "n"),
    )
    values = np.stack([np.array(codes, np.float32), np.arange(len(codes), dtype=np.float32)], 1)
    return FeatureTable(columns, values)


def test_levels_of_later_samples_leave_no_trace() -> None:
    # Level a stood in the backbone; b, c and d come from the samples, numbered by all of them.
    train = np.array([0, 1, 2, 3])
    one = context_table([0, 2, 2, 1, 3, 3, 3, 1], ("a", "b", "c", "d"))
    other = context_table([0, 1, 1, 2, -1, 0, 0, 0], ("a", "c", "b"))  # other later samples
    (found, tested), (again, _) = (
        levels_known((t, t), {"context.product": 1}, train) for t in (one, other)
    )
    np.testing.assert_array_equal(found.values[train], again.values[train])
    assert found.columns == again.columns
    assert found.columns[0].levels == ("a", "c", "b")
    assert tested.values[4:7, 0].tolist() == [-1, -1, -1]  # d was never seen before the origin
    assert tested.values[7, 0] == 2
    np.testing.assert_array_equal(one.values[:, 0], [0, 2, 2, 1, 3, 3, 3, 1])  # untouched


def test_a_kept_origin_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "origins" / "k.json"
    frame = pl.DataFrame({"row": [1, 2], "score.adapted": [0.1, 0.2]})
    assert read_origin(path) is None
    write_origin(path, {"origin": "2023-01"}, frame)
    record, rows = read_origin(path) or ({}, None)
    assert record == {"origin": "2023-01"}
    assert rows is not None
    assert rows.equals(frame)
    data = path.with_suffix(".parquet").read_bytes()
    path.with_suffix(".parquet").write_bytes(data[:-7])
    assert read_origin(path) is None
    path.with_suffix(".parquet").write_bytes(data)
    path.write_text(path.read_text()[:20])
    assert read_origin(path) is None
