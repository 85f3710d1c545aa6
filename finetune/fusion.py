"""Everything at once: a linear head and trees on all blocks, half and half.

Shapes: S samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.gbdt import SHAPES, fit_trees
from finetune.heads import Head
from finetune.linear import fit_linear
from finetune.recipes import TABULAR, FittedRecipe
from finetune.table import FeatureTable

FUSION_BAGS = 2


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
            Head(f"{self.name}_{i}_{head.name}", head.columns, head.model, head.weight * weight)
            for i, (member, weight) in enumerate(zip(self.members, self.weights, strict=True))
            for head in member.heads()
        ]


@dataclass(frozen=True)
class FusionRecipe:
    """Mean of a block-balanced linear head and a GBDT on forecasts, embedding and plain columns."""

    name: str = "fusion"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset({"forecast", "embedding"})
    slow: bool = False
    directions: dict[str, int] = field(default_factory=dict)
    bags: int = FUSION_BAGS

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> WeightedRecipes:
        """Fit both parts on all blocks.

        Raises:
            SampleError: one class only, or no column varies.
        """
        every = table.select(TABULAR | self.reads)
        signs = self.directions
        linear = fit_linear(
            "linear", every, y, weight, groups, seed, balance=True, directions=signs
        )
        trees = fit_trees(
            "trees",
            every,
            y,
            weight,
            groups,
            seed,
            shapes=SHAPES[:1],
            bags=self.bags,
            directions=signs,
        )
        detail = {"linear": linear.detail, "trees": trees.detail}
        return WeightedRecipes(self.name, [linear, trees], [0.5, 0.5], detail)
