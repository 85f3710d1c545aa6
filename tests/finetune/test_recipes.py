"""Recipes: they learn, they are reproducible, they look at training rows alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from finetune.blend import LEAST_GBDT, BlendRecipe, blend_weights, out_of_fold_blend
from finetune.fusion import FusionRecipe
from finetune.gbdt import GbdtRecipe
from finetune.heads import chance_term
from finetune.linear import ForecastRecipe, LinearRecipe, ProbeRecipe
from finetune.metrics import auc
from finetune.query import QueryRecipe
from finetune.recipes import LADDER_ORDER, VARIANCE_ORDER, missing_reason, standard_recipes
from finetune.ridge import STRENGTHS, average_ridge, fit_ridge
from finetune.scorecard import SMOOTHINGS, ScorecardRecipe, _held_out_losses
from finetune.table import Column, FeatureTable
from foundation.errors import SampleError
from tests.finetune.small_tables import settings, small_table

PLAIN = [
    QueryRecipe(),
    ScorecardRecipe(),
    LinearRecipe(),
    GbdtRecipe(),
    ForecastRecipe(),
    ProbeRecipe(),
    ProbeRecipe(name="probe from a readout", readout={"e0": -0.8, "e2": 0.5}),
    FusionRecipe(),
]


@pytest.mark.parametrize("recipe", PLAIN, ids=lambda r: r.name)
def test_every_recipe_learns_and_is_reproducible(recipe) -> None:  # type: ignore[no-untyped-def]
    table, y = small_table(200, seed=1)
    fresh, truth = small_table(1500, seed=2)
    fitted = recipe.fit(table, y, *settings(200), 3)
    logit = fitted.logit(fresh)
    assert auc(truth, logit) > 0.68
    assert (recipe.fit(table, y, *settings(200), 3).logit(fresh) == logit).all()
    p = 1 / (1 + np.exp(-logit))
    assert p.mean() == pytest.approx(truth.mean(), abs=0.08)


@pytest.mark.parametrize("recipe", PLAIN, ids=lambda r: r.name)
def test_a_fit_reads_no_row_but_its_own(recipe) -> None:  # type: ignore[no-untyped-def]
    """Other rows of the table may change in any way; nothing that was learnt may."""
    table, y = small_table(160, seed=1)
    rows = np.arange(120)
    first = recipe.fit(table.take(rows), y[rows], *settings(120), 0).logit(table.take(rows))
    changed = FeatureTable(table.columns, table.values.copy())
    changed.values[120:] = 1e9
    second = recipe.fit(changed.take(rows), y[rows], *settings(120), 0).logit(table.take(rows))
    assert (first == second).all()


def test_recipes_read_only_their_blocks() -> None:
    table, y = small_table(120, seed=1)
    reads = {"forecast": {"forecast"}, "probe": {"embedding"}, "query": {"forecast"}}
    for recipe in (LinearRecipe(), ForecastRecipe(), ProbeRecipe(), QueryRecipe()):
        fitted = recipe.fit(table, y, *settings(120), 0)
        blocks = {table.columns[table.index(c)].block for h in fitted.heads() for c in h.columns}
        assert blocks <= reads.get(recipe.name, {"aggregate", "profile", "context"})


def test_fusion_stays_with_the_forecasts_where_the_rest_is_noise() -> None:
    table, y = small_table(300, seed=4)
    rest = [i for i, c in enumerate(table.columns) if c.block != "forecast"]
    noise = FeatureTable(table.columns, table.values.copy())
    noise.values[:, rest] = np.random.default_rng(0).normal(size=(300, len(rest)))
    fused = FusionRecipe().fit(noise, y, *settings(300), 0)
    alone = ForecastRecipe().fit(noise, y, *settings(300), 0)
    # Corrections may wiggle; they may not turn the forecasts' order over.
    assert np.corrcoef(fused.logit(noise), alone.logit(noise))[0, 1] > 0.97
    told = FusionRecipe().fit(table, y, *settings(300), 0)
    fresh, truth = small_table(2000, seed=5)
    assert auc(truth, told.logit(fresh)) > auc(truth, alone.logit(fresh)) + 0.005


def test_fusion_without_forecasts_learns_from_the_bad_rate_up() -> None:
    table, y = small_table(300, seed=4, forecasts=0)
    fresh, truth = small_table(2000, seed=5, forecasts=0)
    fitted = FusionRecipe().fit(table, y, *settings(300), 0)
    assert fitted.weights == [0.5, 0.5] and auc(truth, fitted.logit(fresh)) > 0.7


def test_missing_blocks_are_told() -> None:
    table, _ = small_table(20)
    plain = table.select(("profile",))
    assert missing_reason(LinearRecipe(), plain) == ""
    assert "forecast" in missing_reason(ForecastRecipe(), plain)
    assert missing_reason(FusionRecipe(), plain)
    assert "columns it reads" in missing_reason(LinearRecipe(), table.block("embedding"))


def test_names_are_in_both_orders() -> None:
    names = [r.name for r in standard_recipes()]
    assert names == [n for n in LADDER_ORDER if n in names]
    assert set(LADDER_ORDER) == set(VARIANCE_ORDER)


def test_ridge_equals_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for rows, width in ((60, 90), (200, 12)):
        z = random.normal(size=(rows, width))
        y = (random.random(rows) < 1 / (1 + np.exp(-z[:, 0] + 0.5))).astype(float)
        weight = random.random(rows) + 0.5
        weight /= weight.mean()
        ours = fit_ridge(z, y, weight, np.zeros((1, rows), int), (0.1,))
        theirs = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(z, y, weight)
        np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-4)
        assert ours.intercept == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_inner_losses_equal_fits_of_each_fold() -> None:
    random = np.random.default_rng(1)
    z = random.normal(size=(120, 20))
    y = (random.random(120) < 1 / (1 + np.exp(-z[:, 0]))).astype(float)
    folds = np.arange(120)[None] % 4
    once = np.zeros((1, 90), int)
    ours = fit_ridge(z, y, np.ones(120), folds, (0.01, 0.1)).losses
    for strength in ours:
        loss = 0.0
        for k in range(4):
            train, test = folds[0] != k, folds[0] == k
            part = fit_ridge(z[train], y[train], np.ones(90), once, (strength,))
            eta = part.intercept + z[test] @ part.weights
            loss += (np.logaddexp(0, eta) - y[test] * eta).sum()
        assert ours[strength] == pytest.approx(loss / 120, abs=1e-3)


def test_monotone_forecasts_keep_their_sign() -> None:
    table, y = small_table(80, seed=4, forecasts=6)
    table.values[:, table.index("late_0")] = 1 - table.values[:, table.index("late_0")]
    fitted = ForecastRecipe(monotone=True).fit(table, y, *settings(80), 0)
    assert min(t.weight for t in fitted.head.terms) >= 0
    loose = ForecastRecipe().fit(table, y, *settings(80), 0)
    assert min(t.weight for t in loose.head.terms) < 0


def test_query_needs_no_label_and_labels_never_turn_it() -> None:
    table, y = small_table(200, seed=5)
    plain = QueryRecipe().unlabelled(table).logit(table)
    p = table.block("forecast").values.astype(float)
    mean = (p / p.std(axis=0)).sum(axis=1) / (1 / p.std(axis=0)).sum()
    np.testing.assert_allclose(plain, np.log(mean / (1 - mean)), atol=1e-3)
    fitted = QueryRecipe().fit(table, y, *settings(200), 0).logit(table)
    assert np.corrcoef(plain, fitted)[0, 1] == pytest.approx(1.0)
    turned = QueryRecipe().fit(table, 1 - y, *settings(200), 0)
    assert np.ptp(turned.logit(table)) < 1e-6
    table.values[:5, table.index("late_1")] = np.nan
    assert np.isfinite(QueryRecipe().unlabelled(table).logit(table)).all()


def test_few_labels_leave_forecasts_what_the_query_says() -> None:
    fresh, _ = small_table(1000, seed=7)
    shifts = []
    for rows in (40, 4000):
        table, y = small_table(rows, seed=6)
        # One forecast is worth nothing: labels have to find that out.
        table.values[:, table.index("late_2")] = np.random.default_rng(0).random(rows)
        query = QueryRecipe().fit(table, y, *settings(rows), 0).logit(fresh)
        fitted = ForecastRecipe().fit(table, y, *settings(rows), 0).logit(fresh)
        shifts.append(1 - np.corrcoef(query, fitted)[0, 1])
    assert shifts[0] < 0.02 < shifts[1]


def test_forecasts_turn_round_only_where_labels_clearly_say_so() -> None:
    table, y = small_table(200, seed=5)
    said = QueryRecipe().unlabelled(table).logit(table)
    turned = ForecastRecipe().fit(table, 1 - y, *settings(200), 0).logit(table)
    assert np.corrcoef(said, turned)[0, 1] < -0.9
    kept = ForecastRecipe(monotone=True).fit(table, 1 - y, *settings(200), 0).logit(table)
    assert np.ptp(kept) < 0.1
    chance = np.random.default_rng(3).permutation(y)
    unsure = ForecastRecipe().fit(table, chance, *settings(200), 0).logit(table)
    assert np.ptp(unsure) < np.ptp(turned) / 3


def test_what_never_varies_has_no_say_in_the_query() -> None:
    table, _ = small_table(60, seed=1)
    names = dict.fromkeys(("late_0", "late_1", "late_2"), 1.0)
    table.values[:, table.index("late_1")] = 0.9
    assert chance_term(table, names).shares[1] == 0
    for name in names:
        table.values[:, table.index(name)] = 0.9
    assert chance_term(table, names).shares == pytest.approx((1 / 3,) * 3)
    table.values[:, table.index("late_0")] = np.nan
    assert chance_term(table, names).usual[0] == 0.5


def test_an_average_of_ridges_lies_between_them() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(90, 5))
    y = (random.random(90) < 1 / (1 + np.exp(-z[:, 0]))).astype(float)
    folds, once = np.arange(90)[None] % 5, np.zeros((1, 90), int)
    found = average_ridge(z, y, np.ones(90), folds)
    each = [fit_ridge(z, y, np.ones(90), once, (c,)) for c in STRENGTHS]
    sizes = [np.linalg.norm(r.weights) for r in each]
    assert min(sizes) < np.linalg.norm(found.weights) < max(sizes)
    # By hand: every strength by its held-out likelihood.
    losses = np.array([found.losses[c] for c in STRENGTHS])
    share = np.exp(-90 * (losses - losses.min()))
    share[share / share.sum() < 0.01] = 0
    expected = (share / share.sum()) @ np.stack([r.weights for r in each])
    np.testing.assert_allclose(found.weights, expected, atol=1e-6)


def test_query_names_unknown_forecasts() -> None:
    table, _ = small_table(50)
    weighted = QueryRecipe({"late_0": 2.0, "late_2": 1.0}).unlabelled(table)
    (term,) = weighted.head.terms
    spread = [table.values[:, table.index(n)].std(dtype=float) for n in ("late_0", "late_2")]
    shares = np.array([2.0, 1.0]) / spread
    assert term.columns == ("late_0", "late_2")
    np.testing.assert_allclose(term.shares, shares / shares.sum(), rtol=1e-5)
    with pytest.raises(SampleError, match="did you mean 'late_0'"):
        QueryRecipe({"late0": 1.0}).unlabelled(table)
    with pytest.raises(SampleError, match="positive"):
        QueryRecipe({"late_0": -1.0}).unlabelled(table)


def test_one_class_or_nothing_varying_is_a_sample_error() -> None:
    table, y = small_table(60)
    for recipe in (LinearRecipe(), ScorecardRecipe(), GbdtRecipe()):
        with pytest.raises(SampleError, match="at least two entities"):
            recipe.fit(table, np.zeros(60), *settings(60), 0)
        with pytest.raises(SampleError, match="column"):
            recipe.fit(table.select(("constant",)), y, *settings(60), 0)


def test_scorecard_bins_are_few_and_monotone() -> None:
    table, y = small_table(250, seed=6)
    detail = ScorecardRecipe().fit(table, y, *settings(250), 0).detail
    assert 1 <= len(detail["bins"]) <= 20
    for bins in detail["bins"]:
        if bins["edges"]:
            steps = np.diff(bins["woe"][:-1])
            assert (steps >= -0.15).all() or (steps <= 0.15).all()


def test_scorecard_smooths_more_where_bins_hold_few_bads() -> None:
    chosen = {
        rows: [
            ScorecardRecipe()
            .fit(*small_table(rows, seed=s), *settings(rows), 0)
            .detail["smoothing"]
            for s in range(4)
        ]
        for rows in (60, 2000)
    }
    assert set(chosen[60]) | set(chosen[2000]) <= {*SMOOTHINGS}
    assert np.mean(chosen[60]) > np.mean(chosen[2000])


def test_a_scorecard_without_a_column_in_a_fold_is_charged_for_the_bad_rate() -> None:
    """Not for nothing: a smoothing that finds no column must not look free."""
    table, y = small_table(60)
    plain = table.select(("age", "constant"))
    folds = np.arange(60) % 5
    losses = _held_out_losses(plain, y, np.ones(60), folds, 1e9)
    rate = np.array([y[folds != k].mean() for k in folds])
    wanted = -(y * np.log(rate) + (1 - y) * np.log1p(-rate)).sum()
    assert losses == {c: pytest.approx(wanted, rel=1e-3) for c in losses}


def test_with_few_labels_the_probe_says_what_its_readout_says() -> None:
    """The state was taught the risk without labels; thirty of them need not find it again."""
    rng = np.random.default_rng(0)
    columns = tuple(Column(f"state.query.{i}", "embedding") for i in range(40))
    x = rng.normal(size=(2030, 40)).astype(np.float32)
    taught = {f"state.query.{i}": 0.3 for i in range(12)}
    y = (rng.random(2030) < 1 / (1 + np.exp(1.0 - 0.4 * x[:, :12].sum(1)))).astype(float)
    table, few, rest = FeatureTable(columns, x), np.arange(30), np.arange(30, 2030)
    found = {
        name: auc(y[rest], recipe.fit(table.take(few), y[few], *settings(30), 0).logit(table)[rest])
        for name, recipe in (("plain", ProbeRecipe()), ("taught", ProbeRecipe(readout=taught)))
    }
    best = auc(y[rest], x[rest, :12].sum(1))
    assert found["taught"] > best - 0.03 > found["plain"]
    # Where labels clearly say that what was taught points the other way, so does the probe.
    upside_down = ProbeRecipe(readout={c: -w for c, w in taught.items()})
    many = np.arange(400)
    fitted = upside_down.fit(table.take(many), y[many], *settings(400), 0)
    assert auc(y[400:], fitted.logit(table)[400:]) > best - 0.03
    assert {t.column for t in fitted.head.terms} == set(table.names)


def test_blend_weights_prefer_what_is_better_and_keep_gbdt() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=3000)
    y = (random.random(3000) < 1 / (1 + np.exp(-truth))).astype(float)
    logits = {"good": truth, "noise": random.normal(size=3000), "gbdt": truth * 0 + 0.1}
    weights = blend_weights(logits, y, np.ones(3000))
    assert sum(weights.values()) == pytest.approx(1.0) and min(weights.values()) >= 0
    assert "noise" not in weights and weights["good"] > 0.5
    assert weights["gbdt"] >= LEAST_GBDT - 1e-9
    few = blend_weights({k: v[:30] for k, v in logits.items() if k != "noise"}, y[:30], np.ones(30))
    assert 0.5 < few["good"] < 0.85  # thirty rows leave half of the hedge


def test_blend_out_of_fold_ignores_the_fold_it_scores() -> None:
    random = np.random.default_rng(0)
    y = (random.random(200) < 0.3).astype(float)
    logits = {"a": random.normal(size=200) + y, "b": random.normal(size=200)}
    fold = np.arange(200) % 4
    first = out_of_fold_blend(logits, y, np.ones(200), fold)
    flipped = np.where(fold == 2, 1 - y, y)
    second = out_of_fold_blend(logits, flipped, np.ones(200), fold)
    assert (first[fold == 2] == second[fold == 2]).all()
    assert (first[fold != 2] != second[fold != 2]).any()


def test_blend_learns_its_own_weights() -> None:
    table, y = small_table(150, seed=7)
    members = (QueryRecipe(), LinearRecipe(), ForecastRecipe())
    fitted = BlendRecipe(members).fit(table, y, *settings(150), 0)
    assert sum(fitted.weights) == pytest.approx(1.0)
    fresh, truth = small_table(800, seed=8)
    assert auc(truth, fitted.logit(fresh)) > 0.75
    with pytest.raises(SampleError, match="forecast"):
        BlendRecipe(members, {"forecast": 1.0}).fit(
            table.select(("aggregate",)), y, *settings(150), 0
        )
