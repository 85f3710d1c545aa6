"""Approval at constant bad rate, swap sets and cut-off values against brute force."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import metrics
from finetune.bootstrap import bootstrap_draws, resamples
from finetune.costs import CostMatrix, ValueCurve, exposure_of, load_costs, value_below, worth
from finetune.report_evaluation import bad_rate_at
from finetune.swap_set import Curve, Ranking, swap_cells, swap_record
from foundation.errors import ConfigError, SampleError


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of both kinds, scores with ties, whole weights."""
    n = draw(st.integers(4, 14))
    y = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), float)
    y[:2] = 0, 1
    score = np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), float)
    weight = np.array(draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)), float)
    return y, score, weight


def slow_approved(score: np.ndarray, weight: np.ndarray, share: Fraction) -> list[Fraction]:
    """Fraction of each row that is approved, group of equal scores by group."""
    left = share * Fraction(int(weight.sum()))
    out = [Fraction(0)] * len(score)
    for value in sorted(set(score.tolist())):
        rows = [i for i in range(len(score)) if score[i] == value]
        mass = sum(int(weight[i]) for i in rows)
        part = min(Fraction(1), max(Fraction(0), left / mass))
        for i in rows:
            out[i] = part
        left -= part * mass
    return out


@given(scored(), st.integers(1, 19))
def test_bad_rate_at_a_share(case, twentieths: int) -> None:
    y, score, weight = case
    share = Fraction(twentieths, 20)
    parts = slow_approved(score, weight, share)
    bads = sum(p * int(w) for p, w, label in zip(parts, weight, y, strict=True) if label)
    curve = Curve.of(Ranking.of(score), y, weight[None])
    found = curve.bad_rate_at(np.array([float(share)]))[0]
    assert found == pytest.approx(float(bads / (share * int(weight.sum()))))
    assert found == pytest.approx(bad_rate_at(y, score, np.array([float(share)]), weight)[0])


@given(scored(), st.floats(0, 1))
def test_largest_approval_at_a_bad_rate(case, allowed: float) -> None:
    y, score, weight = case
    curve = Curve.of(Ranking.of(score), y, weight[None])
    found = float(curve.approval_at(np.array([allowed]))[0])
    grid = np.linspace(0.001, 1, 2000)
    rates = Curve.of(Ranking.of(score), y, np.repeat(weight[None], len(grid), 0)).bad_rate_at(grid)
    fits = grid[rates <= allowed + 1e-9]
    best = fits.max() if len(fits) else 0.0
    assert best - 1e-6 <= found <= best + 0.001
    # Whole groups only can never approve more.
    assert metrics.approval_rate_at_bad_rate(y, score, allowed, weight) <= found + 1e-9


@given(scored(), st.integers(1, 19), st.integers(1, 19), st.randoms(use_true_random=False))
def test_swap_cells(case, first: int, second: int, random) -> None:
    y, score, weight = case
    other = np.array(random.sample(range(len(y)), len(y)), float)
    a = slow_approved(score, weight, Fraction(first, 20))
    b = slow_approved(other, weight, Fraction(second, 20))
    want = dict.fromkeys(("both", "swapped_in", "swapped_out", "neither"), Fraction(0))
    bads = dict(want)
    for i in range(len(y)):
        cells = {
            "both": a[i] * b[i],
            "swapped_in": a[i] * (1 - b[i]),
            "swapped_out": (1 - a[i]) * b[i],
            "neither": (1 - a[i]) * (1 - b[i]),
        }
        for cell, part in cells.items():
            want[cell] += part * int(weight[i])
            bads[cell] += part * int(weight[i]) * int(y[i])
    w = weight[None]
    found = []
    for values, share in ((score, first), (other, second)):
        ranking = Ranking.of(values)
        part = Curve.of(ranking, y, w).fractions(np.array([share / 20]))
        found.append(part[:, ranking.group])
    cells = swap_cells(y, w, *found)
    for cell in want:
        assert cells[cell][0][0] == pytest.approx(float(want[cell]), abs=1e-9)
        assert cells[cell][1][0] == pytest.approx(float(bads[cell]), abs=1e-9)
    if first == second:  # as many in as out
        assert cells["swapped_in"][0][0] == pytest.approx(cells["swapped_out"][0][0])
    record = swap_record(cells)
    assert sum(record[c]["share"] for c in want) == pytest.approx(1)


@given(scored())
def test_curve_measures(case) -> None:
    y, score, weight = case
    curve = Curve.of(Ranking.of(score), y, weight[None])
    assert curve.ks()[0] == pytest.approx(metrics.ks(y, score, weight))
    assert curve.auc()[0] == pytest.approx(metrics.auc(y, score, weight))


def test_draws_are_those_of_the_other_intervals() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(80) < 0.3).astype(float)
    score = rng.random(80).round(1)
    ranking = Ranking.of(score)
    parts = [Curve.of(ranking, y, c) for c in resamples(y, 120, 3)]
    want = bootstrap_draws(y, score, ("ks", "auc"), draws=120, seed=3)
    np.testing.assert_allclose(np.concatenate([c.ks() for c in parts]), want["ks"])
    np.testing.assert_allclose(np.concatenate([c.auc() for c in parts]), want["auc"])


def test_customers_are_drawn_whole() -> None:
    y = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 0.0])
    groups = np.array([0, 0, 1, 1, 2, 3, 3, 4, 5, 5])
    for counts in resamples(y, 50, 1, groups):
        for group in np.unique(groups):
            inside = counts[:, groups == group]
            assert (inside == inside[:, :1]).all()
        assert (counts[:, groups == 0].sum(1) + counts[:, groups == 2].sum(1) > 0).all()
    alone = np.arange(10)
    one, other = next(resamples(y, 20, 1)), next(resamples(y, 20, 1, alone))
    np.testing.assert_array_equal(one, other)


@given(scored(), st.integers(1, 30), st.integers(1, 30))
def test_best_cut_off(case, cost: int, profit: int) -> None:
    y, score, weight = case
    costs = CostMatrix(bad_approved=cost, good_approved=profit)
    exposure = 1 + np.arange(len(y)) % 3
    gain = worth(costs, y, exposure.astype(float))
    values = {}
    for cut in [-1.0, *sorted(set(score.tolist()))]:
        total = 0.0
        for i in range(len(y)):
            if score[i] <= cut:
                total += weight[i] * exposure[i] * (-cost if y[i] else profit)
        values[cut] = total / weight.sum()
    curve = ValueCurve.of(Ranking.of(score), gain, weight[None])
    np.testing.assert_allclose(curve.per_applicant()[0], list(values.values()), atol=1e-12)
    _, approval, best = curve.best()
    assert best[0] == pytest.approx(max(values.values()))
    cut = next(c for c, v in values.items() if v == pytest.approx(best[0]))
    assert approval[0] <= weight[score <= cut].sum() / weight.sum() + 1e-9
    share, value = value_below(score, gain, weight[None], 3.0)
    inside = score < 3
    assert share[0] == pytest.approx(weight[inside].sum() / weight.sum())
    assert value[0] == pytest.approx((weight * gain)[inside].sum() / weight.sum())


def test_cost_matrix_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text("bad_approved: 0.6\ngood_approved: 0.1\nexposure: amount\n")
    costs = load_costs(path)
    assert costs.break_even == pytest.approx(1 / 7)
    frame = pl.DataFrame({"amount": ["10", "x"], "other": [1, 2]})
    with pytest.raises(SampleError, match="'x' is no amount"):
        exposure_of(costs, frame, "samples.csv")
    with pytest.raises(SampleError, match="'amount', which is missing"):
        exposure_of(costs, frame.select("other"), "samples.csv")
    path.write_text("bad_approved: -1\ngood_approved: 0.1\n")
    with pytest.raises(ConfigError, match="above zero"):
        load_costs(path)
    path.write_text("bad_aproved: 1\ngood_approved: 0.1\n")
    with pytest.raises(ConfigError, match="did you mean 'bad_approved'"):
        load_costs(path)
