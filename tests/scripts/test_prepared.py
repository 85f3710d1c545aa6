"""Working folders made of a prepared set, on a small made one."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.errors import DataError, SampleError, SchemaError
from foundation.schema import load_schema
from scripts.prepared import commands, draft, draw_labels, prepare_set
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


def test_schema_of_the_folder_and_drafted_schema(root: Path) -> None:
    (root / "configs" / "schemas" / "tiny.yaml").unlink()
    folder = root / "prepared" / "tiny"
    (folder / "schema.yaml").write_text(SCHEMA.replace("name: tiny", "name: own"))
    made = prepare_set(root / "prepared", "tiny", root / "own", n=36)
    assert load_schema(made.schema).name == "own"
    (folder / "schema.yaml").unlink()
    made = prepare_set(root / "prepared", "tiny", root / "drafted", n=36)
    schema = load_schema(made.schema)
    assert schema.name == "tiny" and list(schema.sources) == ["bill"]
    assert (made.folder / "bill.parquet").is_file() and (made.folder / "profile.parquet").is_file()
    for table in ("bill", "profile"):
        (folder / f"{table}.parquet").unlink()
    with pytest.raises(SchemaError, match="no event or profile table"):
        prepare_set(root / "prepared", "tiny", root / "none", n=36)


def test_a_draft_reads_nothing_of_the_test(root: Path) -> None:
    folder = root / "prepared" / "tiny"
    amounts = pl.Series("amount", np.linspace(1.5, 900.0, 60).round(2))
    bills = pl.read_parquet(folder / "bill.parquet").with_columns(amounts)
    bills.write_parquet(folder / "bill.parquet")
    before = draft(folder)
    assert "amount: {kind: money" in before
    tested = pl.read_parquet(folder / "test.parquet")
    late = pl.col("event_time") >= tested["as_of"].min()
    hidden = pl.col("entity_id").is_in(tested["entity_id"].implode()) | late
    for rows, same in ((hidden, True), (~hidden, False)):
        amount = pl.when(rows).then(7.0).otherwise("amount").alias("amount")
        bills.with_columns(amount).write_parquet(folder / "bill.parquet")
        assert (draft(folder) == before) is same


@pytest.mark.parametrize("name", ["uci", "loans", "journey", "german"])
def test_real_sets(name: str, prepared: Path, tmp_path: Path) -> None:
    made = prepare_set(prepared, name, tmp_path, n=300)
    assert made.n_labels == 300
    assert made.has_events == (name != "german")
