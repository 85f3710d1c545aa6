"""Numbers of a day from scored rows, and the sentences where a bound is crossed."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.metrics import frozen_bins, ks, psi
from serving.bounds import crossed, outside, unjudged
from serving.daily_settings import Bounds
from serving.monitoring import against, drift, labelled, realised
from serving.scored_rows import Scored

MANIFEST = {
    "recipe": "linear",
    "metrics": {"recipes": {"linear": {"cv_ks": 0.5, "cv_ks_low": 0.42, "cv_ks_high": 0.58}}},
}
START = dt.datetime(2024, 6, 1)


def made(n: int = 400, shift: float = 0.0, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scored rows of 30 days and their labels; scores are true probabilities less `shift`."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.0, 1.3, n)
    label = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int)
    as_of = pl.Series([START + dt.timedelta(days=int(d)) for d in rng.integers(0, 30, n)])
    key = {
        "entity_id": [f"c{i:04d}" for i in range(n)],
        "as_of": as_of.cast(pl.Datetime("us")),
        "channel": pl.Series([None] * n, dtype=pl.String),
    }
    rows = pl.DataFrame(key).with_columns(
        date=pl.col("as_of").dt.strftime("%Y-%m-%d"),
        score=1 / (1 + np.exp(-(logit - shift))),
        thin=pl.lit(False),
    )
    labels = pl.DataFrame(key).with_columns(
        label=pl.Series(label, dtype=pl.Int8),
        label_known_at=pl.col("as_of") + dt.timedelta(days=60),
        weight=pl.lit(1.0),
    )
    return rows, labels


def reference(score: np.ndarray) -> dict[str, Any]:
    """Frozen bins of some scores, and one input of four bins."""
    edges = frozen_bins(score)
    shares = np.append(np.histogram(score, np.r_[-np.inf, edges, np.inf])[0] / len(score), 0.0)
    return {
        "n": len(score),
        "score": {"edges": edges.tolist(), "shares": shares.tolist(), "n": len(score)},
        "inputs": [
            {"name": "x", "title": "x", "block": "aggregate", "edges": [1.0, 2.0, 3.0],
             "shares": [0.25, 0.25, 0.25, 0.25, 0.0], "levels": []}
        ],
        "thin": 0.0,
        "tokens": {"s.f": [1, 100]},
    }  # fmt: skip


def counts(n: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"date": ["2024-06-02"] * len(n), "column": ["x"] * len(n), "bin": range(len(n)), "n": n}
    )


def tokens(unknown: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"date": ["2024-06-02"], "slot": ["s.f"], "unknown": [unknown], "total": [100]}
    )


def numbers(rows: pl.DataFrame, labels: pl.DataFrame, n: list[int], unknown: int) -> dict[str, Any]:
    development = made(seed=9)[0]["score"].to_numpy()
    scored = Scored(rows, counts(n), tokens(unknown))
    found = labelled(rows, labels, labels.select("entity_id", "as_of").clear(), START)
    return {
        "champion": {"release": "acme/cards/1"},
        "drift": drift(scored, reference(development), dt.date(2024, 6, 1), dt.date(2024, 6, 30)),
        "realised": realised(found, MANIFEST, 0),
        "forecasts": [],
    }


def test_a_quiet_month_crosses_nothing() -> None:
    rows, labels = made()
    found = numbers(rows, labels, [100, 101, 99, 100], 1)
    development = made(seed=9)[0]["score"].to_numpy()
    assert found["drift"]["score"]["psi"] == pytest.approx(psi(development, rows["score"]))
    y = labels["label"].to_numpy().astype(float)
    assert found["realised"]["ks"]["value"] == pytest.approx(ks(y, rows["score"].to_numpy()))
    assert crossed(found, Bounds()) == []
    assert unjudged(found, Bounds()) == []


def test_planted_trouble_crosses_its_bound() -> None:
    rows, labels = made(shift=2.0)
    found = numbers(rows, labels, [10, 20, 30, 340], 30)
    bounds = {a["bound"]: a["sentence"] for a in crossed(found, Bounds())}
    assert set(bounds) == {"psi", "input_psi", "unknown", "calibration"}
    assert "'3 or more' grew from 25.0 % to 85.0 %" in bounds["input_psi"]
    assert "30.0 % of the values read are unknown to the model, 1.0 %" in bounds["unknown"]
    guessed = labels.with_columns(
        label=pl.Series(np.random.default_rng(1).permutation(labels["label"].to_numpy()))
    )
    found = numbers(made()[0], guessed, [100] * 4, 1)
    (alert,) = crossed(found, Bounds())
    assert alert["bound"] == "ks_drop"
    assert alert["number"] == found["realised"]["drop"]["low"] > 0.1


def test_few_rows_are_shown_and_not_judged() -> None:
    rows, labels = made(n=30, shift=3.0)
    found = numbers(rows, labels, [0, 0, 0, 30], 99)
    found["realised"]["bads"] = 3
    assert crossed(found, Bounds()) == []
    assert len(unjudged(found, Bounds())) == 2
    nobody = {"champion": None, "drift": None, "realised": None, "forecasts": []}
    assert crossed(nobody, Bounds()) == []
    assert "no champion" in unjudged(nobody, Bounds())[0]


def test_rows_that_were_learned_from_do_not_count() -> None:
    rows, labels = made()
    learned = labels[:150].select("entity_id", "as_of")
    found = labelled(rows, labels, learned, START)
    assert len(found) == 250
    assert not set(found["entity_id"]) & set(learned["entity_id"])
    late = labelled(rows, labels, learned.clear(), START + dt.timedelta(days=75))
    assert (late["as_of"] >= START + dt.timedelta(days=15)).all()


def test_a_challenger_is_compared_on_the_rows_both_may_be_judged_on() -> None:
    rows, labels = made()
    none = labels.select("entity_id", "as_of").clear()
    better = labelled(rows, labels, none, START)
    noise = np.random.default_rng(2).normal(0, 0.3, len(rows))
    worse = labelled(rows.with_columns(score=pl.col("score") + noise), labels, none, START)[50:]
    found = against(worse, better)
    assert found is not None
    assert found["n"] == len(worse)
    assert found["auc"]["low"] > 0
    same = against(better, better)
    assert same is not None
    assert same["ks"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert against(better[:0], better) is None


@given(st.floats(0.01, 0.9), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(1.01, 10.0))
def test_outside_means_the_whole_interval(
    expected: float, first: float, second: float, bound: float
) -> None:
    low, high = sorted((first, second))
    inside = any(expected / bound <= v <= bound * expected for v in np.linspace(low, high, 50))
    if outside(low, high, expected, bound):
        assert not inside
    assert not outside(0.0, 1.0, min(expected, 1 / bound), bound) or bound * expected > 1
