"""Requests and tables of the scoring benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from foundation.schema import load_schema
from scripts.bench.scoring import make_requests, write_synthetic


def test_requests_follow_the_schema(tmp_path: Path) -> None:
    write_synthetic(tmp_path, entities=6, events=5, rng=np.random.default_rng(1))
    schema = load_schema(tmp_path / "schema.yaml")
    purchases = pl.read_parquet(tmp_path / "purchase.parquet")
    assert len(purchases) == 30
    fields = schema.sources["purchase"].fields
    assert set(fields) <= set(purchases.columns)
    assert pl.read_csv(tmp_path / "samples.csv").columns == ["entity_id", "as_of", "label"]

    bodies = [json.loads(body) for body in make_requests(schema, 256, 3, reasons=False)]
    assert len({body["entity_id"] for body in bodies}) == 3
    for body in bodies:
        events = body["events"]["purchase"]
        assert len(events) == 256
        assert set(events[0]) == {"event_time", *fields}
        assert max(e["event_time"] for e in events) < body["as_of"]
        assert set(body["profile"]) == {"age", "region"}
