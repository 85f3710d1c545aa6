"""The contenders of the back-tracking benchmark compute the same features."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import polars as pl
import pytest

from foundation.buckets import BucketReader
from scripts.bench.backtrack import measured, opponents, world


def test_every_formulation_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb")
    world.make_store(tmp_path / "store", 20_000, 150)
    world.make_samples(tmp_path / "samples.parquet", 160, 300)
    # The run without an index takes it from the class; afterwards it is there again.
    monkeypatch.setattr(BucketReader, "index", BucketReader.__dict__["index"])
    for step in ("index", "riskfm", "riskfm-without"):
        measured.prepare(Namespace(step=step, world=tmp_path, limit=500, threads=2))()
    for name, run in opponents.FORMULATIONS.items():
        run(tmp_path, tmp_path / f"{name.replace(',', '').replace(' ', '_')}.parquet", 1)
    assert measured.check(tmp_path) == {"differing": [], "columns": 39}
    path = tmp_path / "duckdb_range_join.parquet"
    wrong = pl.read_parquet(path).with_columns(pl.col("card sum 30d") + 1)
    wrong.write_parquet(path)
    assert measured.check(tmp_path)["differing"] == ["duckdb_range_join: card sum 30d"]
