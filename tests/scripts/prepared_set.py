"""A small prepared set with its schema, where the benchmark looks for them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scripts import prepared
from scripts.bench.fewlabels import sets


def write_prepared(
    root: Path,
    name: str,
    schema: str,
    events: Mapping[str, pl.DataFrame],
    profile: pl.DataFrame,
    pool: pl.DataFrame,
    test: pl.DataFrame,
) -> Path:
    """Write `configs/schemas/NAME.yaml` and `prepared/NAME/` under root; gives the latter."""
    config = root / "configs" / "schemas" / f"{name}.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(schema)
    folder = root / "prepared" / name
    folder.mkdir(parents=True)
    for part, frame in {**events, "profile": profile, "pool": pool, "test": test}.items():
        frame.write_parquet(folder / f"{part}.parquet")
    meta = {
        "title": name.capitalize(),
        "label": "1 = bad",
        "sources": {source: {"file": f"{source}.parquet"} for source in events},
        "profile": {"file": "profile.parquet"},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def labelled(
    ids: list[str], labels: np.ndarray, n_pool: int, pool_end: dt.datetime, test_end: dt.datetime
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pool and test: the first n_pool entities are decided at `pool_end`, the others later."""
    as_of = [pool_end] * n_pool + [test_end] * (len(ids) - n_pool)
    rows = pl.DataFrame({"entity_id": ids, "as_of": as_of, "label": labels})
    return rows[:n_pool], rows[n_pool:]


def use_root(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let the scripts find their schemas under `root`."""
    for module in (prepared, sets):
        monkeypatch.setattr(module, "ROOT", root)
