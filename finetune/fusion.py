"""Everything at once: the forecasts first, then what the other blocks add to them.

The recipe `forecast` has few free weights and varies little; 300 labels that start from nothing
would spend themselves on finding it again. So a linear head and small trees learn only what is
wrong with it: its cross-fitted logits are where they start and what they shrink to (boosting from
a prior model, Schapire et al. 2002). Without forecasts both learn from the bad rate up.

Shapes: S samples.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.gbdt import SHAPES, fit_trees
from finetune.heads import Head
from finetune.linear import ForecastRecipe, fit_linear, held_out_logits
from finetune.recipes import TABULAR, FittedRecipe
from finetune.ridge import CAUTIOUS
from finetune.table import FeatureTable
from foundation.errors import SampleError

FUSION_BAGS = 2
RATE = 0.05


@dataclass
class WeightedRecipes:
    """A weighted sum of the logits of fitted recipes."""

    name: str
    members: list[FittedRecipe]
    weights: list[float]
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def offset(self) -> float:
        """Weighted offsets of the members."""
        return float(sum(w * m.offset for m, w in zip(self.members, self.weights, strict=True)))

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 logits."""
        total = np.zeros(len(table))
        for member, weight in zip(self.members, self.weights, strict=True):
            total += weight * member.logit(table)
        return total

    def heads(self) -> list[Head]:
        """The heads of the members, weighted."""
        return [
            replace(head, name=f"{self.name}_{i}_{head.name}", weight=head.weight * weight)
            for i, (member, weight) in enumerate(zip(self.members, self.weights, strict=True))
            for head in member.heads()
        ]


@dataclass(frozen=True)
class FusionRecipe:
    """Forecasts, corrected by the mean of a block-balanced linear head and a GBDT."""

    name: str = "fusion"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset({"forecast", "embedding"})
    slow: bool = False
    directions: dict[str, int] = field(default_factory=dict)
    bags: int = FUSION_BAGS

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> WeightedRecipes:
        """Fit the forecasts' weights, then both corrections; one that adds nothing is left out.

        Raises:
            SampleError: one class only, or no column varies.
        """
        signs = self.directions
        if "forecast" not in table.blocks:
            every = table.select(TABULAR | self.reads)
            whole = (every, y, weight, groups, seed)
            linear = fit_linear("linear", *whole, balance=True, directions=signs)
            trees = fit_trees("trees", *whole, SHAPES[:1], self.bags, signs)
            detail = {"linear": linear.detail, "trees": trees.detail}
            return WeightedRecipes(self.name, [linear, trees], [0.5, 0.5], detail)

        first = ForecastRecipe(directions=signs)
        held = held_out_logits(first, table, y, weight, groups, seed)
        members: dict[str, FittedRecipe] = {"forecast": first.fit(table, y, weight, groups, seed)}
        plain, rest = table.select(TABULAR), table.select(TABULAR | {"embedding"})
        taught = (y, weight, groups, seed)
        with suppress(SampleError):
            members["linear"] = fit_linear("linear", rest, *taught, CAUTIOUS, True, signs, held)
        with suppress(SampleError):
            shapes = SHAPES[:1]
            members["trees"] = fit_trees(
                "trees", plain, *taught, shapes, self.bags, signs, held, RATE
            )
        weights = [1.0 if name == "forecast" else 0.5 for name in members]
        detail = {name: m.detail for name, m in members.items()}
        return WeightedRecipes(self.name, list(members.values()), weights, detail)
