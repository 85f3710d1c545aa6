"""Three bads in a hundred: probabilities hold without weights, and weights do not undo them."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.calibration import fit_calibration
from finetune.ladder import run_ladder
from finetune.metrics import auc
from finetune.recipes import standard_recipes
from finetune.table import FeatureTable
from tests.finetune.small_tables import settings, small_table


def rare(rows: int, seed: int) -> tuple[FeatureTable, np.ndarray]:
    """About 3 % bads."""
    table, y = small_table(12 * rows, seed=seed)
    random = np.random.default_rng(seed)
    keep = np.flatnonzero((y == 0) | (random.random(len(y)) < 0.072))[:rows]
    return table.take(keep), y[keep]


def test_every_recipe_keeps_the_rate_of_a_rare_label() -> None:
    table, y = rare(700, seed=1)
    fresh, truth = rare(3000, seed=2)
    assert 0.02 < y.mean() < 0.045
    ladder = run_ladder(table, y, *settings(700), standard_recipes(), repeats=1)
    for name, result in ladder.ok().items():
        logit = ladder.fit(name, table, 0).logit(fresh)
        p = fit_calibration(result.logit, y).apply(logit)
        assert p.mean() == pytest.approx(truth.mean(), abs=0.012), name
        assert auc(truth, logit) > 0.65, name
        high = p > np.quantile(p, 0.9)
        assert p[high].mean() == pytest.approx(truth[high].mean(), abs=0.08), name
    assert set(ladder.ok()) == {r.name for r in standard_recipes()}


def test_weights_that_balance_classes_are_what_the_probability_then_means() -> None:
    """Rows say what they stand for: balanced weights give a balanced rate, in every place."""
    table, y = rare(500, seed=3)
    weight = np.where(y == 1, (1 - y.mean()) / y.mean(), 1.0)
    recipes = [r for r in standard_recipes() if r.name in ("linear", "forecast")]
    ladder = run_ladder(table, y, weight, np.arange(500), recipes, repeats=1)
    p = fit_calibration(ladder["linear"].logit, y, weight).apply(ladder["linear"].logit)
    assert np.average(p, weights=weight) == pytest.approx(0.5, abs=0.05)
