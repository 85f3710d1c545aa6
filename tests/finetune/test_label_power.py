"""What labels can show: the formulas against simulation and against the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from finetune.bootstrap import bootstrap_intervals
from finetune.label_power import (
    _both_below,
    auc_difference_error,
    auc_of_ks,
    auc_standard_error,
    ks_difference_error,
    ks_of_auc,
    ks_standard_error,
    label_power,
    power_record,
    power_sentence,
    power_table,
    table_lines,
)
from finetune.metrics import auc, ks
from finetune.samples import effective_counts
from foundation.errors import SampleError


def binormal(bads: int, goods: int, area: float, rho: float, seed: int):
    """Labels and two scores of one AUC, correlated by rho inside the classes."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.ones(bads), np.zeros(goods)])
    z = rng.standard_normal(len(y))
    other = rho * z + np.sqrt(1 - rho**2) * rng.standard_normal(len(y))
    shift = np.sqrt(2) * ndtri(area) * y
    return y, z + shift, other + shift


def test_bivariate_integral_is_that_of_scipy():
    for h, rho in ((0.3, 0.5), (1.1, 0.2), (-0.4, 0.9), (0.7, 0.0)):
        wanted = multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([h, h])
        assert _both_below(h, rho) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("bads", "goods", "area"), [(21, 279, 0.7), (64, 236, 0.75)])
def test_auc_errors_match_simulation(bads: int, goods: int, area: float):
    pairs = [binormal(bads, goods, area, 0.8, seed) for seed in range(1200)]
    found = np.array([[auc(y, a), auc(y, b)] for y, a, b in pairs])
    assert found.mean() == pytest.approx(area, abs=0.004)
    assert auc_standard_error(area, bads, goods) == pytest.approx(found.std(), rel=0.06)
    gap = (found[:, 0] - found[:, 1]).std()
    assert auc_difference_error(area, bads, goods, 0.8) == pytest.approx(gap, rel=0.07)


def test_ks_matches_simulation_by_other_code():
    power = label_power(300, 64, auc=0.75, correlation=0.8)
    pairs = [binormal(64, 236, 0.75, 0.8, seed) for seed in range(1000)]
    found = np.array([[ks(y, a), ks(y, b)] for y, a, b in pairs])
    assert power.ks_half == pytest.approx(1.96 * found.std(), rel=0.06)
    assert power.ks + power.ks_excess == pytest.approx(found.mean(), abs=0.006)
    assert power.ks_detectable == pytest.approx(
        2.8016 * (found[:, 0] - found[:, 1]).std(), rel=0.08
    )


def test_half_widths_are_those_of_the_bootstrap_in_the_mean():
    power = label_power(300, 64, auc=0.75)
    widths = []
    for seed in range(60):
        y, score, _ = binormal(64, 236, 0.75, 0.8, seed)
        found = bootstrap_intervals(y, score, ("auc", "ks"), draws=200, seed=seed)
        widths.append([(found[m].high - found[m].low) / 2 for m in ("auc", "ks")])
    mean = np.mean(widths, axis=0)
    assert power.auc_half == pytest.approx(mean[0], rel=0.1)
    assert power.ks_half == pytest.approx(mean[1], rel=0.15)


def test_eighty_per_cent_power_is_kept():
    """Two models that differ by what is called detectable are told apart in 4 of 5 samples."""
    power = label_power(300, 64, auc=0.75, correlation=0.8)
    error = auc_difference_error(0.75, 64, 236, 0.8)
    better = np.sqrt(2) * (ndtri(0.75 + power.auc_detectable) - ndtri(0.75))
    found = 0
    for seed in range(600):
        y, first, second = binormal(64, 236, 0.75, 0.8, seed)
        found += auc(y, first + better * y) - auc(y, second) > 1.96 * error
    assert 0.75 < found / 600 < 0.88


def test_many_rows_use_the_limit_and_meet_the_simulation():
    simulated, limit = label_power(20_000, 1_400), label_power(20_001, 1_400)
    assert limit.ks_half == pytest.approx(simulated.ks_half, rel=0.12)
    assert limit.ks_detectable == pytest.approx(simulated.ks_detectable, rel=0.2)
    assert limit.ks_excess == 0 < simulated.ks_excess < 0.01


@given(
    bads=st.integers(2, 200),
    goods=st.integers(2, 400),
    area=st.floats(0.51, 0.97),
    rho=st.floats(0, 0.99),
)
@limits(deadline=None, max_examples=25)
def test_more_labels_never_hurt(bads: int, goods: int, area: float, rho: float):
    assert auc_of_ks(ks_of_auc(area)) == pytest.approx(area, abs=1e-9)
    value = ks_of_auc(area)
    for error in (
        lambda b, g: auc_standard_error(area, b, g),
        lambda b, g: auc_difference_error(area, b, g, rho),
        lambda b, g: ks_standard_error(value, b, g),
        lambda b, g: ks_difference_error(value, b, g, rho),
    ):
        assert 0 < error(2 * bads, 2 * goods) < error(bads, goods)
    # alike models are told apart more easily than unlike ones
    assert auc_difference_error(area, bads, goods, 0.99) <= auc_difference_error(
        area, bads, goods, 0.5
    )


def test_same_numbers_same_answer_and_words():
    first, second = power_table(300, 64), power_table(300, 64)
    assert first == second
    assert [p.labels for p in first] == [300, 600, 1500]
    assert first[0].ks_half > first[1].ks_half > first[2].ks_half
    text = power_sentence(first[0], "on the test file")
    assert text.startswith("300 labels with 64 bads (bad rate 21.3 %): KS .37 ± .1")
    assert "cannot be told apart" in text
    assert len(table_lines(first)) == 4


@pytest.mark.parametrize(
    ("labels", "bads", "options", "message"),
    [
        (300, 1, {}, "1 of them bad"),
        (300, 299, {}, "at least 2 of each"),
        (10, 20, {}, "-10 good"),
        (300, 30, {"auc": 0.5}, "between 0.5 and 1"),
        (300, 30, {"auc": float("nan")}, "between 0.5 and 1"),
        (300, 30, {"correlation": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_what_shows_nothing_is_refused(labels, bads, options, message):
    with pytest.raises(SampleError, match=message):
        label_power(labels, bads, **options)


def test_weighted_rows_count_for_what_they_are_worth():
    y = np.array([1.0] * 40 + [0.0] * 160)
    assert effective_counts(y, np.full(200, 7.0)) == (200, 40)
    weight = np.where(np.arange(200) % 2, 3.0, 1.0)
    assert effective_counts(y, weight) == (160, 32)
    record = power_record(y, weight)
    assert record is not None and record["training"]["labels"] == 160
    assert "after weighting" in record["sentences"][0]


def test_record_of_an_adaptation():
    y = np.array([1.0] * 40 + [0.0] * 160)
    record = power_record(y, np.ones(200), (y[20:], np.ones(180)))
    assert record is not None
    assert len(record["sentences"]) == 2 and "on the test file" in record["sentences"][1]
    assert record["test"]["bads"] == 20
    assert [p["labels"] for p in record["more"]] == [200, 400, 1000]
    assert power_record(y[39:], np.ones(161)) is None
    lone = power_record(y, np.ones(200), (y[39:], np.ones(161)))
    assert lone is not None and lone["test"] is None
