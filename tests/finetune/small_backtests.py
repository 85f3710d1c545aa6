"""Scored rows of a small synthetic back-test: six months, two channels, a good and a bad score."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl

from finetune.backtest_rows import FrozenBins, ModelFacts, ScoredRows


def scored_rows(
    n: int = 600, seed: int = 0, noise: tuple[float, float] = (0.7, 1.4), repeats: bool = False
) -> ScoredRows:
    """Rows of `n` synthetic applicants; the two scores see risk through noise of two sizes."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(-1.5, 1.2, n)
    label = (rng.random(n) < 1 / (1 + np.exp(-risk))).astype(int)
    subject, old = (1 / (1 + np.exp(-(risk + rng.normal(0, s, n)))) for s in noise)
    day = np.sort(rng.integers(0, 181, n))
    as_of = pl.Series([dt.datetime(2024, 1, 1) + dt.timedelta(days=int(d)) for d in day])
    frame = pl.DataFrame(
        {
            "row": np.arange(1, n + 1),
            "entity_id": [f"c{i // 2 if repeats else i}" for i in range(n)],
            "as_of": as_of.cast(pl.Datetime("us")),
            "label": pl.Series(label, dtype=pl.Int8),
            "weight": np.ones(n),
            "channel": rng.choice(["app", "shop"], n),
            "exposure": rng.integers(1, 9, n) * 100.0,
            "score.package": subject,
            "score.incumbent": np.round(old, 2),
        }
    ).with_columns(
        month=pl.col("as_of").dt.strftime("%Y-%m"),
        origin=pl.lit(None, pl.String),
        seen=pl.lit(None, pl.Boolean),
    )
    models = [
        ModelFacts("package", "package p-1 (gbdt)", True),
        ModelFacts("incumbent", "incumbent package p-0", True),
    ]
    frozen = FrozenBins.of(1 / (1 + np.exp(-rng.normal(-1.5, 1.4, 300))))
    return ScoredRows(frame, models, {"development": frozen})
