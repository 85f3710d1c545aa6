"""Calibration: probabilities that hold, order that stays, JSON that restores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.calibration import (
    Isotonic,
    Platt,
    VennAbers,
    apply_calibration,
    bands,
    calibration_from_dict,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    points,
    sigmoid,
)
from finetune.metrics import ece
from foundation.errors import ArtifactError


def sample(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are twice too sharp and off by one, and labels."""
    random = np.random.default_rng(seed)
    true = random.normal(size=rows) - 1
    return 2 * true + 1, (random.random(rows) < sigmoid(true)).astype(float)


def test_platt_finds_the_truth() -> None:
    logit, y = sample(50_000)
    platt = fit_platt(logit, y)
    assert platt.slope == pytest.approx(0.5, abs=0.03)
    assert platt.intercept == pytest.approx(-0.5, abs=0.05)
    assert ece(y, platt.apply(logit)) < 0.01 < ece(y, sigmoid(logit))


def test_weights_count_like_repeated_rows() -> None:
    logit, y = sample(400)
    times = np.random.default_rng(1).integers(1, 4, 400)
    weighted = fit_platt(logit, y, times * 100.0)
    assert weighted == fit_platt(logit, y, times * 1.0)
    repeated = fit_platt(np.repeat(logit, times), np.repeat(y, times))
    assert weighted.slope == pytest.approx(repeated.slope, abs=0.05)


def test_slope_is_never_negative() -> None:
    logit, y = sample(500)
    reverse = fit_platt(-logit, y)
    assert reverse.slope == 0.0
    assert reverse.apply(logit).mean() == pytest.approx(y.mean(), abs=0.01)
    constant = fit_platt(np.full(500, 3.0), y)
    assert constant.slope == 0.0 and np.isfinite(constant.intercept)


def test_few_labels_stay_near_the_score() -> None:
    """Perfectly separated labels must not sharpen a score without bound."""
    platt = fit_platt(np.array([-1, -0.5, 0.5, 1.0]), np.array([0, 0, 1, 1.0]))
    assert 0.3 < platt.slope < 3.0


def test_isotonic_is_used_with_many_bads_and_rises() -> None:
    logit, y = sample(6000)
    assert isinstance(fit_calibration(logit, y), Isotonic)
    assert isinstance(fit_calibration(logit[:500], y[:500]), Platt)
    assert isinstance(fit_calibration(logit[:400], y[:400]), VennAbers)
    assert isinstance(fit_calibration(-logit[:400], y[:400]), Platt)
    p = fit_isotonic(logit, y).apply(np.linspace(-20, 20, 500))
    assert (np.diff(p) >= 0).all() and p[0] > 0 and p[-1] < 1
    assert ece(y, fit_isotonic(logit, y).apply(logit)) < 0.02


@pytest.mark.parametrize("rows", [300, 6000])
def test_json_restores_every_byte(rows: int) -> None:
    logit, y = sample(rows)
    fitted = fit_calibration(logit, y)
    text = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    assert (calibration_from_dict(text).apply(logit) == fitted.apply(logit)).all()
    assert (apply_calibration(text, logit) == fitted.apply(logit)).all()


VENN = {
    "method": "venn-abers",
    "logits": [0.0, 1.0],
    "probabilities": [0.1, 0.2],
    "slope": 1.0,
    "intercept": 0.0,
    "share": 0.2,
}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"method": "venn"},
        {"method": "platt", "slope": -1, "intercept": 0},
        {"method": "platt", "slope": float("nan"), "intercept": 0},
        {"method": "platt", "slope": "x", "intercept": 0},
        {"method": "venn-abers", "logits": [0], "probabilities": [0.5]},
        {**VENN, "probabilities": [0.2, 0.1]},
        {**VENN, "probabilities": [0.0, 0.1]},
        {**VENN, "slope": -1.0},
        {**VENN, "share": 2.0},
        {**VENN, "intercept": float("inf")},
        {"method": "isotonic", "logits": [0, 1], "probabilities": [0.5, 0.2]},
        {"method": "isotonic", "logits": [1, 1], "probabilities": [0.1, 0.2]},
        {"method": "isotonic", "logits": [], "probabilities": []},
    ],
)
def test_a_damaged_calibration_is_refused(data: dict) -> None:
    with pytest.raises(ArtifactError, match="calibration"):
        calibration_from_dict(data)


@given(st.lists(st.floats(-700, 700), min_size=2, max_size=30))
def test_sigmoid_is_finite_and_rises(values: list[float]) -> None:
    p = sigmoid(np.sort(np.array(values)))
    assert ((p >= 0) & (p <= 1)).all() and (np.diff(p) >= 0).all()


def test_points_double_the_odds() -> None:
    odds = np.array([50.0, 100.0, 25.0])
    np.testing.assert_allclose(points(1 / (1 + odds)), [600, 620, 580])
    np.testing.assert_allclose(points(1 / (1 + odds), base=500, pdo=50, odds=25), [550, 600, 500])
    assert np.isfinite(points(np.array([0.0, 1.0]))).all()


def test_bands_take_the_lower_edge() -> None:
    p = np.array([0.05, 0.1, 0.29, 0.3, 0.9])
    assert list(bands(p, (0.1, 0.3), ("approve", "review", "refuse"))) == [
        "approve",
        "review",
        "review",
        "refuse",
        "refuse",
    ]
    with pytest.raises(ArtifactError, match="thresholds"):
        bands(p, (0.3, 0.1), ("a", "b", "c"))
    with pytest.raises(ArtifactError, match="names"):
        bands(p, (0.1,), ("a",))
