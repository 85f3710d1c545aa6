"""Venn-Abers calibration: what the theory promises, and the order of scores."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.calibration import calibration_from_dict, fit_venn_abers, sigmoid
from finetune.metrics import auc, ks
from finetune.venn_abers import MAX_KNOTS, merged, multiprobabilities, venn_abers_table

CASES = st.lists(
    st.tuples(st.integers(-40, 40).map(lambda v: v / 8), st.booleans()), min_size=2, max_size=40
)


@given(CASES, st.lists(st.floats(-8, 8), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_two_probabilities_enclose_their_merger_and_rise(
    cases: list[tuple[float, bool]], asked: list[float]
) -> None:
    logit = np.array([c[0] for c in cases])
    y = np.array([c[1] for c in cases], dtype=float)
    at = np.sort(np.array([*asked, *logit[:3]]))
    p0, p1 = multiprobabilities(logit, y, np.ones(len(y)), at)
    p = merged(p0, p1)
    np.testing.assert_allclose(p, p1 / (1 - p0 + p1))
    assert (p0 <= p1 + 1e-12).all() and (p0 <= p + 1e-12).all() and (p <= p1 + 1e-12).all()
    assert (p > 0).all() and (p < 1).all()
    assert (np.diff(p) >= -1e-12).all()


def test_against_the_definition() -> None:
    """Isotonic regression of the cases with one more, by hand."""
    logit, y = np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 1.0])
    p0, p1 = multiprobabilities(logit, y, np.ones(3), np.array([0.0, 2.5, 9.0]))
    np.testing.assert_allclose(p0, [0.0, 0.5, 2 / 3])
    np.testing.assert_allclose(p1, [0.5, 1.0, 1.0])


def test_one_of_the_two_is_calibrated() -> None:
    """The mean of p1 over exchangeable cases is at least the bad rate, that of p0 at most."""
    random = np.random.default_rng(0)
    rate, low, high = [], [], []
    for _ in range(150):
        x = random.normal(size=41)
        y = (random.random(41) < sigmoid(3 * x - 1)).astype(float)
        p0, p1 = multiprobabilities(x[:40], y[:40], np.ones(40), x[40:])
        rate.append(y[40])
        low.append(p0[0])
        high.append(p1[0])
    assert np.mean(low) - 0.06 <= np.mean(rate) <= np.mean(high) + 0.06


@given(CASES)
@settings(deadline=None, max_examples=25)
def test_the_table_is_bounded_rises_and_is_restored(cases: list[tuple[float, bool]]) -> None:
    logit = np.array([c[0] for c in cases])
    y = np.array([c[1] for c in cases], dtype=float)
    fitted = fit_venn_abers(logit, y)
    p = fitted.apply(np.linspace(-30, 30, 301))
    assert (p > 0).all() and (p < 1).all() and (np.diff(p) >= -1e-15).all()
    again = calibration_from_dict(fitted.to_dict())
    assert (again.apply(logit) == fitted.apply(logit)).all()


@pytest.mark.parametrize("rows", [60, 300, 1500])
def test_order_is_kept(rows: int) -> None:
    random = np.random.default_rng(rows)
    truth = random.normal(size=rows) - 1.5
    y = (random.random(rows) < sigmoid(truth)).astype(float)
    logit = 2 * truth + random.normal(size=rows)
    fitted = fit_venn_abers(logit, y)
    assert fitted.slope > 0 and len(fitted.logits) <= MAX_KNOTS
    fresh = random.normal(size=2000) * 3
    label = (random.random(2000) < sigmoid(fresh / 2)).astype(float)
    for x, t in ((logit, y), (fresh, label)):
        assert auc(t, fitted.apply(x)) == pytest.approx(auc(t, x), abs=0.002)
        assert ks(t, fitted.apply(x)) == pytest.approx(ks(t, x), abs=0.002)


def test_weights_count() -> None:
    logit = np.array([0.0, 1.0, 2.0, 3.0])
    y = np.array([0.0, 0.0, 1.0, 1.0])
    heavy = venn_abers_table(logit, y, np.array([5.0, 1.0, 1.0, 1.0]))[1]
    even = venn_abers_table(logit, y)[1]
    assert heavy[0] < even[0]


def test_scoring_needs_no_training_library() -> None:
    code = (
        "import sys\n"
        "from finetune.calibration import apply_calibration\n"
        "apply_calibration({'method': 'venn-abers', 'logits': [0, 1], 'probabilities': [.1, .2],"
        " 'slope': 1, 'intercept': 0, 'share': .2}, [0.5])\n"
        "assert not {'sklearn', 'torch', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
