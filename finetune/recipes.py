"""What a recipe is, and the ladder of those there are.

A recipe learns from a feature table and labels; what it learnt answers logits in numpy and gives
itself up as ONNX heads. total logit = offset + sum(weight * head logit).

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from finetune.heads import Head, LinearHead
from finetune.table import FeatureTable

LADDER_ORDER = (
    "query",
    "scorecard",
    "linear",
    "gbdt",
    "forecast",
    "probe",
    "fusion",
    "prompt",
    "lora",
    "transfer",
    "blend",
)
# Lowest variance first: among recipes that cannot be told apart the earliest is shipped.
VARIANCE_ORDER = (
    "blend",
    "query",
    "forecast",
    "scorecard",
    "linear",
    "probe",
    "gbdt",
    "fusion",
    "prompt",
    "lora",
    "transfer",
)
# Cheapest first: a budget pays for them in this order.
COST_ORDER = (
    "query",
    "forecast",
    "probe",
    "linear",
    "transfer",
    "gbdt",
    "scorecard",
    "fusion",
    "prompt",
    "lora",
)
FEW_BADS = 10
FEW_BADS_RECIPES = ("query", "forecast")
TABULAR = frozenset({"aggregate", "profile", "context"})


class FittedRecipe(Protocol):
    """What a recipe learnt."""

    detail: dict[str, Any]
    """What was chosen, plain data for the report."""

    @property
    def offset(self) -> float:
        """Added once to the weighted sum of head logits."""
        ...

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 logits of label 1."""
        ...

    def heads(self) -> list[Head]:
        """The same as ONNX graphs."""
        ...


class Recipe(Protocol):
    """A way of adapting.

    Attributes:
        name: one of `LADDER_ORDER`.
        needs: blocks that must all be there; `history` for raw histories.
        reads: blocks it can use, at least one of which must be there.
        slow: run last, and left out first when time is short.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def reads(self) -> frozenset[str]: ...

    @property
    def slow(self) -> bool: ...

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedRecipe:
        """Learn from [S] labels 0 or 1, positive weights and entity groups.

        Raises:
            SampleError: the rows cannot teach this recipe; the ladder shows it as skipped.
        """
        ...


@dataclass
class FittedLinear:
    """A fitted recipe that is one linear head."""

    name: str
    head: LinearHead
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def offset(self) -> float:
        """Zero: the intercept lives in the head."""
        return 0.0

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 logits."""
        return self.head.logit(table)

    def heads(self) -> list[Head]:
        """One linear graph."""
        return [self.head.head(self.name)]


def missing_reason(recipe: Recipe, table: FeatureTable) -> str:
    """Why a recipe cannot read this table, or the empty string."""
    absent = recipe.needs - table.blocks
    if absent:
        return f"no {' and no '.join(sorted(absent))} columns"
    if recipe.reads and not recipe.reads & table.blocks:
        return f"none of the columns it reads: {', '.join(sorted(recipe.reads))}"
    return ""


def standard_recipes(
    query: dict[str, float] | None = None,
    monotone: bool = False,
    directions: Mapping[str, int] | None = None,
    seeds: int | None = None,
    readout: Mapping[str, float] | None = None,
) -> list[Recipe]:
    """The recipes that need no gradient on the backbone, in ladder order.

    Args:
        query: forecast columns and their weights for the recipe `query`; all, equally, without.
        monotone: the recipe `forecast` keeps its weights non-negative.
        directions: column -> 1 where more of it is worse, -1 where better; recipes that read the
            column keep to it.
        seeds: over how many trees are bagged; each recipe's own number without.
        readout: what the recipe `probe` starts from, see `finetune.features.state_readout`.
    """
    # Imported here, as each of these modules reads the protocol above.
    from finetune.blend import BlendRecipe
    from finetune.fusion import FUSION_BAGS, FusionRecipe
    from finetune.gbdt import BAGS, GbdtRecipe
    from finetune.linear import ForecastRecipe, LinearRecipe, ProbeRecipe
    from finetune.query import QueryRecipe
    from finetune.scorecard import ScorecardRecipe

    signs = dict(directions or {})
    members: list[Recipe] = [
        QueryRecipe(query, directions=signs),
        ScorecardRecipe(directions=signs),
        LinearRecipe(directions=signs),
        GbdtRecipe(directions=signs, bags=seeds or BAGS),
        ForecastRecipe(monotone=monotone, directions=signs),
        ProbeRecipe(readout=dict(readout or {})),
        FusionRecipe(directions=signs, bags=seeds or FUSION_BAGS),
    ]
    return [*members, BlendRecipe(tuple(members))]
