"""Metrics against scikit-learn, brute force and each other."""

from __future__ import annotations

import time
from math import erf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from finetune import metrics
from finetune.bootstrap import bootstrap_difference, bootstrap_draws, bootstrap_intervals, delong
from foundation.errors import SampleError

TAILS = (0.025, 0.975)

SCORED = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(1, 4)), min_size=4, max_size=40
).filter(lambda rows: {r[0] for r in rows} == {0, 1})


def arrays(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, score, weight = (np.array(c, dtype=float) for c in zip(*rows, strict=True))
    return y, score / 7 + 0.05, weight


def sample(rows: int, seed: int, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(rows) < 0.25).astype(float)
    return y, random.normal(size=rows) + shift * y


@given(SCORED)
def test_ranking_measures_equal_scikit_learn_with_ties_and_weights(rows) -> None:  # type: ignore[no-untyped-def]
    y, score, weight = arrays(rows)
    expected = reference.roc_auc_score(y, score, sample_weight=weight)
    assert metrics.auc(y, score, weight) == pytest.approx(expected)
    assert metrics.gini(y, score, weight) == pytest.approx(2 * expected - 1)
    fpr, tpr, _ = reference.roc_curve(y, score, sample_weight=weight, drop_intermediate=False)
    assert metrics.ks(y, score, weight) == pytest.approx(np.abs(tpr - fpr).max())
    ours = metrics.roc_curve(y, score, weight)
    np.testing.assert_allclose(ours[0], fpr)
    np.testing.assert_allclose(ours[1], tpr)
    curve = metrics.ks_curve(y, score, weight)
    assert np.abs(curve["bad"] - curve["good"]).max() == pytest.approx(metrics.ks(y, score, weight))


@given(SCORED)
def test_weights_count_like_repeated_rows(rows) -> None:  # type: ignore[no-untyped-def]
    y, p, weight = arrays(rows)
    times = weight.astype(int)
    many_y, many_p = np.repeat(y, times), np.repeat(p, times)
    for measure in (metrics.auc, metrics.ks, metrics.log_loss, metrics.brier):
        assert measure(y, p, weight) == pytest.approx(measure(many_y, many_p))
    assert metrics.approval_rate_at_bad_rate(y, p, 0.3, weight) == pytest.approx(
        metrics.approval_rate_at_bad_rate(many_y, many_p, 0.3)
    )


def test_losses_equal_scikit_learn() -> None:
    y, score = sample(300, 0)
    p = 1 / (1 + np.exp(-score))
    assert metrics.log_loss(y, p) == pytest.approx(reference.log_loss(y, p))
    assert metrics.brier(y, p) == pytest.approx(reference.brier_score_loss(y, p))
    assert np.isfinite(metrics.log_loss(np.array([0.0, 1.0]), np.array([1.0, 0.0])))


def test_one_class_is_refused() -> None:
    for call in (metrics.auc, metrics.ks, bootstrap_draws):
        with pytest.raises(SampleError, match="both labels"):
            call(np.ones(5), np.arange(5.0))
    with pytest.raises(SampleError, match="two bads"):
        delong(np.array([1, 0, 0]), np.arange(3), np.arange(3))


def test_ece_is_small_for_a_calibrated_score_and_large_for_a_shifted_one() -> None:
    random = np.random.default_rng(0)
    p = random.random(20_000)
    y = (random.random(20_000) < p).astype(float)
    assert metrics.ece(y, p) < 0.015
    assert metrics.ece(y, np.clip(p + 0.2, 0, 1)) > 0.1
    assert metrics.calibration_curve(y, p)["count"].sum() == 20_000


def test_psi_keeps_the_reference_bins() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=5000)
    edges = metrics.frozen_bins(base)
    assert metrics.psi(base, base) == pytest.approx(0.0)
    assert metrics.psi(base, random.normal(size=5000)) < 0.02
    shifted = base + 1.0
    assert metrics.psi(base, shifted) > 0.5
    assert metrics.psi(base, shifted, edges) == pytest.approx(metrics.psi(base, shifted))
    missing = np.where(random.random(5000) < 0.3, np.nan, base)
    assert metrics.psi(base, missing) > 0.5


def test_lift_table_adds_up() -> None:
    y, score = sample(1003, 1)
    table = metrics.lift_table(y, score)
    assert [row["band"] for row in table] == list(range(1, 11))
    assert sum(row["rows"] for row in table) == 1003
    assert sum(row["bads"] for row in table) == y.sum()
    assert table[-1]["captured"] == pytest.approx(1.0)
    assert table[0]["lift"] > 1.5 > table[-1]["lift"]


def test_approval_rate_by_hand() -> None:
    y = np.array([0, 0, 1, 0, 1.0])
    score = np.array([1, 2, 3, 4, 5.0])
    assert metrics.approval_rate_at_bad_rate(y, score, 0.0) == pytest.approx(0.4)
    assert metrics.approval_rate_at_bad_rate(y, score, 0.25) == pytest.approx(0.8)
    assert metrics.approval_rate_at_bad_rate(y, -score, 0.1) == 0.0


def test_bootstrap_draws_equal_measures_of_drawn_rows() -> None:
    """The vectorised sums against resampling row by row with the same generator."""
    y, score = sample(60, 2)
    score = np.round(score, 1)
    p = 1 / (1 + np.exp(-score))
    drawn = bootstrap_draws(y, p, ("auc", "ks", "gini", "log_loss", "brier"), draws=20, seed=7)
    random = np.random.default_rng(7)
    bads, goods = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    bad_picks = random.integers(0, len(bads), (20, len(bads)))
    good_picks = random.integers(0, len(goods), (20, len(goods)))
    for d in range(20):
        rows = np.concatenate([bads[bad_picks[d]], goods[good_picks[d]]])
        for name in drawn:
            expected = getattr(metrics, name)(y[rows], p[rows])
            assert drawn[name][d] == pytest.approx(expected), name


def test_intervals_hold_the_value_and_are_reproducible() -> None:
    y, score = sample(400, 3)
    first = bootstrap_intervals(y, score, seed=1)
    assert first == bootstrap_intervals(y, score, seed=1)
    assert first != bootstrap_intervals(y, score, seed=2)
    assert first["auc"].low < first["auc"].value < first["auc"].high
    wide = bootstrap_intervals(y[:80], score[:80], seed=1)["auc"]
    assert wide.high - wide.low > first["auc"].high - first["auc"].low


def test_intervals_of_ks_cover_the_truth_more_often_than_plain_percentiles() -> None:
    truth = erf(1 / (2 * sqrt(2)))  # of two normals one standard deviation apart
    rng = np.random.default_rng(1)
    y = np.repeat([1.0, 0.0], [60, 240])
    held = plain = 0
    for seed in range(200):
        score = 1 / (1 + np.exp(-rng.normal(size=300) - y))
        found = bootstrap_intervals(y, score, ("ks",), draws=200, seed=seed)["ks"]
        low, high = np.quantile(bootstrap_draws(y, score, ("ks",), None, 200, seed)["ks"], TAILS)
        assert 0 <= found.low <= found.value <= found.high
        held += found.low <= truth <= found.high
        plain += low <= truth <= high
    assert held >= 0.85 * 200 > plain


def test_paired_differences_agree_and_see_a_better_score() -> None:
    y, score = sample(800, 4)
    worse = score + np.random.default_rng(1).normal(size=800)
    by_draws = bootstrap_difference(y, score, worse, "auc")
    by_delong = delong(y, score, worse)
    assert by_draws.difference == pytest.approx(by_delong.difference)
    assert by_draws.standard_error == pytest.approx(by_delong.standard_error, rel=0.15)
    assert by_delong.p_value < 0.01 and by_draws.low > 0
    same = delong(y, score, score)
    assert same.difference == 0 and same.p_value == 1.0
    monotone = delong(y, score, np.exp(score))
    assert monotone.difference == pytest.approx(0.0, abs=1e-12)


def test_delong_variance_of_one_auc_by_definition() -> None:
    y, first = sample(120, 5)
    second = np.random.default_rng(9).normal(size=120)
    bad, good = np.flatnonzero(y == 1), np.flatnonzero(y == 0)

    def placements(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wins = (score[bad][:, None] > score[good]) + 0.5 * (score[bad][:, None] == score[good])
        return wins.mean(axis=1), wins.mean(axis=0)

    a, b = placements(first), placements(second)
    variance = np.var(a[0] - b[0], ddof=1) / len(bad) + np.var(a[1] - b[1], ddof=1) / len(good)
    assert delong(y, first, second).standard_error == pytest.approx(np.sqrt(variance))


def test_draws_are_quick() -> None:
    """1000 draws of 10,000 rows take 1.5 s of processor time; a tenth of it here."""
    y, score = sample(10_000, 6)
    began = time.process_time()
    bootstrap_intervals(y, score, draws=100)
    assert time.process_time() - began < 1.0
