"""Measures of single variables against their definitions."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from finetune.metrics import auc, ks, psi_of_shares
from finetune.table import Column
from finetune.variable_measures import (
    assigned,
    bin_weights,
    chance_of,
    clusters,
    quantile_bins,
    rank_correlation,
    ranking,
    stability,
    weight_of_evidence,
)

FEW = settings(max_examples=15, phases=(Phase.explicit, Phase.generate))
SEEDS = st.integers(0, 2**31)


def world(seed: int, rows: int = 120, columns: int = 4):
    """Values with ties and gaps, labels, weights of mean one."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 9, (rows, columns)).astype(np.float32)
    x[:, 1] = rng.normal(size=rows)
    x[rng.random(x.shape) < 0.15] = np.nan
    y = (rng.random(rows) < 0.4).astype(float)
    y[:10], y[10:20] = 1, 0
    x[:20] = rng.integers(0, 9, (20, columns))
    weight = rng.choice([0.5, 1.0, 2.0], rows)
    return x, y, weight / weight.mean()


def binned(x: np.ndarray, bins: int = 5):
    kinds = [Column(f"v{f}", "aggregate") for f in range(x.shape[1])]
    kinds[-1] = Column("code", "profile", kind="code", levels=tuple("abcdefghi"))
    found = [quantile_bins(c, x[:, f], bins) for f, c in enumerate(kinds)]
    width = max(b.count for b in found)
    return found, width, assigned(found, x, width)


@FEW
@given(SEEDS)
def test_iv_and_woe_by_definition(seed: int) -> None:
    x, y, weight = world(seed)
    found, width, at = binned(x)
    bad = bin_weights(at, weight * y, width)
    good = bin_weights(at, weight * (1 - y), width)
    woe, parts = weight_of_evidence(bad, good)
    for f, bins in enumerate(found):
        groups: dict[int, list[int]] = {}
        for s in range(len(x)):
            place = bins.assign(x[s : s + 1, f])[0]
            groups.setdefault(width - 1 if place == bins.count - 1 else int(place), []).append(s)
        k = len(groups)
        bads, goods = sum(weight * y) + 0.5 * k, sum(weight * (1 - y)) + 0.5 * k
        total = 0.0
        for b, rows in groups.items():
            p = (sum(weight[s] * y[s] for s in rows) + 0.5) / bads
            q = (sum(weight[s] * (1 - y[s]) for s in rows) + 0.5) / goods
            assert math.isclose(woe[f, b], math.log(p / q), abs_tol=1e-9)
            total += (p - q) * math.log(p / q)
        assert math.isclose(parts[f].sum(), total, abs_tol=1e-9)


@FEW
@given(SEEDS, SEEDS)
def test_psi_by_definition_and_as_the_score_has_it(one: int, other: int) -> None:
    x, _, weight = world(one)
    found, width, at = binned(x)
    later, _, later_weight = world(other, rows=90)
    expected = bin_weights(at, weight, width)
    actual = bin_weights(assigned(found, later, width), later_weight, width)
    psi = stability(expected, actual)
    for f in range(x.shape[1]):
        e, a = expected[f] / expected[f].sum(), actual[f] / actual[f].sum()
        total = 0.0
        for p, q in zip(e, a, strict=True):
            p, q = max(p, 1e-4), max(q, 1e-4)
            total += (q - p) * math.log(q / p)
        assert math.isclose(psi[f], total, abs_tol=1e-9)
        assert math.isclose(psi[f], psi_of_shares(e, a), abs_tol=1e-9)
    assert np.allclose(stability(expected, 3 * expected), 0)


@FEW
@given(SEEDS)
def test_auc_and_ks_as_the_plain_measures_have_them(seed: int) -> None:
    x, y, weight = world(seed)
    found = ranking(x, y, weight)
    for f in range(x.shape[1]):
        there = ~np.isnan(x[:, f])
        args = (y[there], x[there, f].astype(float), weight[there])
        assert math.isclose(found.auc[f], auc(*args), abs_tol=1e-9)
        assert math.isclose(found.ks[f], ks(*args), abs_tol=1e-9)
        assert found.low[f] < found.auc[f] < found.high[f]


def test_the_interval_of_auc_covers_the_truth() -> None:
    # bads N(1, 1), goods N(0, 1): the true AUC is Phi(1 / sqrt 2)
    rng = np.random.default_rng(0)
    y = np.repeat([1.0, 0.0], [60, 240])
    x = (rng.normal(size=(300, 400)) + y[:, None]).astype(np.float32)
    found = ranking(x, y, np.ones(300))
    truth = 0.5 * (1 + math.erf(0.5))
    assert 0.92 <= ((found.low <= truth) & (truth <= found.high)).mean() <= 0.98


def test_chance_is_exceeded_once_in_twenty_times() -> None:
    rng = np.random.default_rng(1)
    y = np.repeat([1.0, 0.0], [63, 237])
    x = rng.normal(size=(300, 600)).astype(np.float32)
    kinds = [Column(f"v{f}", "aggregate") for f in range(600)]
    found = [quantile_bins(c, x[:, f], 6) for f, c in enumerate(kinds)]
    width = found[0].count
    at = assigned(found, x, width)
    bad, good = bin_weights(at, y, width), bin_weights(at, 1 - y, width)
    iv = weight_of_evidence(bad, good)[1].sum(axis=1)
    assert 0.02 <= (iv > chance_of(((bad + good) > 0).sum(axis=1), 63, 237)).mean() <= 0.09
    later = rng.normal(size=(500, 600)).astype(np.float32)
    psi = stability(bad + good, bin_weights(assigned(found, later, width), np.ones(500), width))
    assert 0.02 <= (psi > chance_of(np.full(600, 6), 300, 500)).mean() <= 0.09


def test_too_few_of_a_class_give_no_ranking() -> None:
    x = np.full((40, 1), np.nan, np.float32)
    x[:12, 0] = np.arange(12)
    y = np.zeros(40)
    y[[0, 1, 2, 3, 20, 21]] = 1  # four bads have a value
    found = ranking(x, y, np.ones(40))
    assert np.isnan(found.auc[0]) and np.isnan(found.ks[0]) and found.bads[0] == 4


def test_rank_correlation_and_groups() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=400)
    x = np.stack([a, np.exp(a), -a + 0.3 * rng.normal(size=400), rng.normal(size=400),
                  np.ones(400)], axis=1).astype(np.float32)  # fmt: skip
    found = rank_correlation(x)
    assert math.isclose(found[0, 2], spearmanr(x[:, 0], x[:, 2]).statistic, abs_tol=1e-9)
    assert math.isclose(found[0, 1], 1.0) and found[4, 0] == 0.0
    x[:50, :3] = np.nan  # missing together: still the same
    assert math.isclose(rank_correlation(x)[0, 1], 1.0)
    leader = clusters(found, np.array([0.1, 0.3, 0.2, 0.05, 0.0]))
    assert leader.tolist() == [1, 1, 1, 3, 4]


def test_chains_do_not_make_groups() -> None:
    # 0-1 and 1-2 are alike, 0-2 are not: the strongest takes its own likes alone
    correlation = np.array([[1, 0.85, 0.6], [0.85, 1, 0.85], [0.6, 0.85, 1]])
    assert clusters(correlation, np.array([3.0, 2.0, 1.0])).tolist() == [0, 0, 2]
    assert clusters(correlation, np.array([1.0, 2.0, 1.0])).tolist() == [1, 1, 1]
