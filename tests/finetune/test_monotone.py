"""Directions of columns: no model that reads a column turns against what was declared."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.fusion import FusionRecipe
from finetune.gbdt import GbdtRecipe
from finetune.linear import ForecastRecipe, LinearRecipe
from finetune.modelling import column_directions
from finetune.query import QueryRecipe
from finetune.recipes import Recipe
from finetune.scorecard import ScorecardRecipe, directed
from finetune.table import FeatureTable
from foundation.errors import SampleError, UserError
from serving.ladder_options import read_directions
from tests.finetune.small_tables import settings, small_table


def response(recipe: Recipe, table: FeatureTable, y: np.ndarray, column: str) -> np.ndarray:
    """[K, S] logits of the rows with one column moved over its range."""
    fitted = recipe.fit(table, y, *settings(len(y)), 0)
    at = table.index(column)
    grid = np.unique(np.quantile(table.values[:, at], np.linspace(0, 1, 25)))
    out = []
    for value in grid:
        moved = table.values.copy()
        moved[:, at] = value
        out.append(fitted.logit(FeatureTable(table.columns, moved)))
    return np.stack(out)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("kind", "column", "said"),
    [
        (LinearRecipe, "a0", 1),
        (GbdtRecipe, "a0", 1),
        (ScorecardRecipe, "a0", 1),
        (ForecastRecipe, "late_0", 1),
        (FusionRecipe, "a0", -1),  # beside the forecasts, which know it already
        (FusionRecipe, "late_0", 1),
    ],
)
def test_logits_move_one_way_with_and_against_the_data(
    kind: type[Recipe], column: str, said: int, sign: int
) -> None:
    """The data say `said` of the column; a declared direction wins over them."""
    table, y = small_table(260, seed=9)
    recipe = kind(directions={column: sign})  # type: ignore[call-arg]
    moved = response(recipe, table, y, column)
    assert (np.diff(sign * moved, axis=0) >= -1e-6).all()
    if sign == -said:
        free = response(kind(), table, y, column)  # type: ignore[call-arg]
        assert said * (free[-1] - free[0]).mean() > 0.05


def test_query_leaves_good_signs_out() -> None:
    table, _ = small_table(60)
    names = list(table.block("forecast").names)
    one = QueryRecipe(directions={names[0]: -1}).unlabelled(table)
    assert set(one.head.columns) == set(names[1:])
    with pytest.raises(SampleError, match="good sign"):
        QueryRecipe(directions=dict.fromkeys(names, -1)).unlabelled(table)


def test_directions_are_checked_and_read() -> None:
    table, _ = small_table(60)
    every = column_directions({"forecast": 1, "late_1": -1, "a0": 1}, table)
    assert every == {"late_0": 1, "late_1": -1, "late_2": 1, "a0": 1}
    with pytest.raises(UserError, match="did you mean 'late_0'"):
        column_directions({"late0": 1}, table)
    with pytest.raises(UserError, match="has no order"):
        column_directions({"job": 1}, table)
    assert read_directions(["a=b=+", "c=-"]) == {"a=b": 1, "c": -1}
    for wrong in (["a"], ["a=1"], ["=+"]):
        with pytest.raises(UserError, match="COLUMN"):
            read_directions(wrong)
    with pytest.raises(UserError, match="keep one"):
        read_directions(["a=+", "a=-"])


def test_steps_of_a_scorecard_are_put_in_order() -> None:
    woe = np.array([0.1, 0.3, 0.2, 0.5, -9.0])
    assert directed(woe, 1).tolist() == [0.1, 0.3, 0.3, 0.5, -9.0]
    assert directed(woe, -1).tolist() == [0.1, 0.1, 0.1, 0.1, -9.0]
    assert (directed(woe, 0) == woe).all()
