"""Working folders made of a prepared set, on a small made one."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.errors import DataError, SampleError
from scripts.prepared import commands, draw_labels, prepare_set
from tests.scripts.prepared_set import use_root, write_prepared

SCHEMA = """\
name: tiny
sources:
  bill:
    path: bill.parquet
    fields: {amount: {kind: money, currency: EUR}}
profile:
  path: profile.parquet
  fields: {age: {kind: number}}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one schema and a prepared set of 60 entities."""
    use_root(monkeypatch, tmp_path)
    ids = [f"e{i:02d}" for i in range(60)]
    times = [dt.datetime(2020, 1, 1) + dt.timedelta(days=i) for i in range(60)]
    bills = pl.DataFrame({"entity_id": ids, "event_time": times, "amount": 1.0})
    ages = pl.DataFrame({"entity_id": ids, "age": 30})
    labels = [int(i % 3 == 0) for i in range(60)]
    rows = pl.DataFrame({"entity_id": ids, "as_of": times, "label": labels})
    write_prepared(tmp_path, "tiny", SCHEMA, {"bill": bills}, ages, rows[:40], rows[40:])
    return tmp_path


def test_working_folder(root: Path) -> None:
    made = prepare_set(root / "prepared", "tiny", root / "out", n=36, draw=2)
    assert sorted(p.name for p in made.folder.iterdir()) == [
        "bill.parquet", "pool.csv", "profile.parquet", "samples.csv", "schema.yaml", "test.csv",
    ]  # fmt: skip
    samples, pool = pl.read_csv(made.samples), pl.read_csv(made.pool)
    rows = np.random.default_rng(102).choice(40, 36, replace=False)
    assert samples["entity_id"].to_list() == pool[rows]["entity_id"].to_list()
    assert samples.columns == ["entity_id", "as_of", "label"]
    assert made.n_bad == samples["label"].sum()
    assert made.until == "2020-01-01T00:00:00"
    assert f"--until {made.until} --exclude-entities {made.test}" in commands(made)


def test_stratified_draw_keeps_the_bad_rate() -> None:
    pool = pl.DataFrame({"label": [1] * 40 + [0] * 160})
    assert draw_labels(pool, 100, 0, stratified=True)["label"].sum() == 20


def test_faults_are_named(root: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'tiny'"):
        prepare_set(root / "prepared", "tinny", root / "out")
    with pytest.raises(DataError, match="set RISKFM_DATA"):
        prepare_set(root / "nowhere", "tiny", root / "out")
    with pytest.raises(SampleError, match="the pool holds 40"):
        prepare_set(root / "prepared", "tiny", root / "out", n=41)
    with pytest.raises(SampleError, match="at least 10"):
        prepare_set(root / "prepared", "tiny", root / "out", n=12)
    (root / "prepared" / "tiny" / "bill.parquet").unlink()
    with pytest.raises(DataError, match=r"bill\.parquet: no such table"):
        prepare_set(root / "prepared", "tiny", root / "out", n=36)


@pytest.mark.parametrize("name", ["uci", "loans", "journey", "german"])
def test_real_sets(name: str, prepared: Path, tmp_path: Path) -> None:
    made = prepare_set(prepared, name, tmp_path, n=300)
    assert made.n_labels == 300
    assert made.has_events == (name != "german")
