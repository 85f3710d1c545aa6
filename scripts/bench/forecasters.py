"""Measure the forecasters and aggregates on prepared sets: `forecasters.py DATA_DIR SET...`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from foundation.history import build_profile, build_timeline, cut
from foundation.schema import schema_from_dict

ROOT = Path(__file__).resolve().parents[2]

OUTCOMES = {
    "uci": {
        "late": "statement.status in ('1','2','3','4','5','6','7','8','9') within 31d",
        "two_months_late": "statement.status in ('2','3','4','5','6','7','8','9') within 31d",
        "pays_little": "sum(statement.pay_amt) < 0.02 * last(statement.bill_amt) within 31d",
    },
    "loans": {
        "late": "loan_repaid.event_time > firstduedate within 60d",
        "late3": "loan_repaid.event_time > firstduedate + 3d within 60d",
    },
    "cards": {
        "late30": "monthly_status.status in ('1','2','3','4','5') within 31d, 183d",
        "late60": "monthly_status.status in ('2','3','4','5') within 183d",
    },
    "journey": {
        "spend_halved": "sum(basket.sales_value) <= 0.5 * last within 56d",
        "spend_down_30": "sum(basket.sales_value) <= 0.7 * last within 56d",
        "silence": "silence within 28d",
    },
    "bpic": {}, "german": {},
}
WINDOWS = {"bpic": [1]}


def draft(name: str, data: Path) -> dict:
    """A schema from a prepared set's meta.json."""
    meta = json.loads((data / name / "meta.json").read_text())
    sources = {
        s: {"fields": {f: {"kind": k} for f, k in spec["fields"].items()}}
        for s, spec in meta["sources"].items()
    }
    ratios = []
    for a, b, c, d in meta.get("ratios", []):
        ratios.append([f"{a}.{b}", f"{c.removeprefix('last:')}.{d}"])
    windows = WINDOWS.get(name) or meta.get("windows_days") or [30]
    profile = {"fields": {f: {"kind": k} for f, k in meta["profile"]["fields"].items()}}
    if meta["profile"]["time_field"]:
        profile["valid_time"] = meta["profile"]["time_field"]
    return {"name": name, "sources": sources, "profile": profile, "ratios": ratios,
            "windows_days": windows, "outcomes": OUTCOMES[name]}


def load(name: str, data: Path):
    """Schema, frames, profile, pool and test of a prepared set."""
    schema = schema_from_dict(draft(name, data))
    frames = {}
    for source in schema.sources:
        frame = pl.read_parquet(data / name / f"{source}.parquet")
        frames[source] = frame.filter(pl.col("event_time").is_not_null()).with_columns(
            pl.col("event_time").alias("known_at")
        )
    profile = pl.read_parquet(data / name / "profile.parquet")
    valid = schema.profile.valid_time
    known = pl.col(valid) if valid else pl.lit(None, dtype=pl.Datetime("us"))
    profile = build_profile(profile.with_columns(known.alias("known_at")))
    pool = pl.read_parquet(data / name / "pool.parquet")
    test = pl.read_parquet(data / name / "test.parquet")
    return schema, frames, profile, pool, test


def us(series: pl.Series) -> np.ndarray:
    """Datetime to int64 microseconds."""
    return series.cast(pl.Datetime("us")).to_physical().to_numpy()


def ks(y: np.ndarray, s: np.ndarray) -> float:
    """Largest distance of the two score distributions; ties share a step."""
    order = np.argsort(s, kind="stable")
    y, s = y[order], s[order]
    last = np.append(s[1:] != s[:-1], True)
    good = np.cumsum(1 - y)[last] / (1 - y).sum()
    bad = np.cumsum(y)[last] / y.sum()
    return float(np.abs(good - bad).max())
