"""Gradient boosting for few labels: small trees, strong shrinkage, bagged over seeds.

LightGBM on numbers as they are and codes one level a column. Shape and length are chosen by inner
cross-validation on the log-loss after every round. Inputs are float32 and thresholds are rounded
to float32 in the exported graph, so that no leaf flips between here and there.

Shapes: S samples, m inputs of the trees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.crossval import assign_folds
from finetune.heads import Head
from finetune.linear import RARE_COUNT, RARE_SHARE
from finetune.recipes import TABULAR
from finetune.ridge import prior_logit
from finetune.table import FeatureTable
from finetune.tree_heads import TreeInputs, mean_of_trees
from foundation.errors import SampleError

MAX_ROUNDS = 120
RATE = 0.1
BAGS = 3
THREADS = 2
# Shapes tried, from stumpy to deeper; the deepest only where there are rows to fill it.
SHAPES: tuple[dict[str, Any], ...] = (
    {"num_leaves": 3, "min_data_in_leaf": 10, "lambda_l2": 10.0, "feature_fraction": 0.2},
    {"num_leaves": 6, "min_data_in_leaf": 15, "lambda_l2": 20.0, "feature_fraction": 0.2},
    {"num_leaves": 15, "min_data_in_leaf": 30, "lambda_l2": 20.0, "feature_fraction": 0.5},
)
DEEP_ROWS = 800


@dataclass
class FittedGbdt:
    """Boosters whose mean raw score is the logit; each starts at the prior `base`."""

    name: str
    inputs: TreeInputs
    boosters: list[Any]
    base: float
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def offset(self) -> float:
        """The prior lives in the head."""
        return 0.0

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 logits."""
        x = self.inputs.matrix(table.matrix(self.inputs.columns)).astype(np.float64)
        raw = [b.predict(x, raw_score=True, num_threads=1) for b in self.boosters]
        return self.base + np.mean(raw, axis=0)

    def heads(self) -> list[Head]:
        """One graph: one-hot codes, tree ensembles, their mean."""
        model = mean_of_trees(self.inputs, self.boosters, self.base, self.name)
        return [Head(self.name, self.inputs.columns, model)]


def tree_inputs(table: FeatureTable) -> TreeInputs:
    """What trees see of a table, from training rows alone: varying numbers, frequent levels."""
    names, codes = [], []
    values = table.values
    enough = max(RARE_COUNT, RARE_SHARE * len(table))
    for i, column in enumerate(table.columns):
        x = values[:, i]
        if column.kind == "number":
            seen = x[~np.isnan(x)]
            if len(seen) >= RARE_COUNT and (len(seen) < len(x) or seen.min() < seen.max()):
                names.append(column.name)
            continue
        levels, counts = np.unique(x[~np.isnan(x)], return_counts=True)
        keep = levels[(counts >= enough) & (counts < len(x))]
        codes += [(column.name, float(level)) for level in keep]
    return TreeInputs(tuple(names), tuple(codes))


def fit_trees(
    name: str,
    table: FeatureTable,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    seed: int,
    shapes: Sequence[dict[str, Any]] = SHAPES,
    bags: int = BAGS,
    directions: Mapping[str, int] | None = None,
    start: np.ndarray | None = None,
    rate: float = RATE,
) -> FittedGbdt:
    """Choose shape and rounds by inner cross-validation, then bag over seeds.

    Classes are not reweighted: log-loss learns a rare class as it is, and weights would have to be
    calibrated away again.

    Args:
        directions: number column -> 1 where the logit may only rise with it, -1 only fall.
        start: [S] logits to add to, which stand beside what is returned; the prior without.
        rate: shrinkage of each round.

    Raises:
        SampleError: one class only, no column varies, or nothing can be added to `start`.
    """
    import lightgbm as lgb

    inputs = tree_inputs(table)
    if not inputs.width:
        raise SampleError("no column varies over the training rows")
    x = inputs.matrix(table.matrix(inputs.columns)).astype(np.float64)
    weight = weight / weight.mean()
    base = prior_logit(y, weight) if start is None else 0.0
    begin = np.full(len(y), base) if start is None else start
    common = {
        "objective": "binary",
        "learning_rate": rate,
        "max_bin": 63,
        "verbosity": -1,
        "num_threads": THREADS if x.size > 2_000_000 else 1,
        "deterministic": True,
        "force_row_wise": True,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "feature_pre_filter": False,
        "boost_from_average": False,
        "min_data_in_bin": 3,
    }
    signs = directions or {}
    if any(signs.get(n) for n in inputs.numbers):
        common["monotone_constraints"] = [signs.get(n, 0) for n in inputs.numbers] + [0] * len(
            inputs.codes
        )
    data = lgb.Dataset(
        x,
        label=y,
        weight=weight,
        init_score=begin,
        params=common,
        free_raw_data=False,
    ).construct()
    tried = [s for s in shapes if s["num_leaves"] < 10 or len(y) >= DEEP_ROWS]
    folds = assign_folds(y, groups, 4, 1, seed)[0]
    best, rounds, loss = tried[0], 0, np.inf
    for shape in tried:
        losses = _losses_by_round(data, common | shape | {"seed": seed}, folds, weight)
        at = int(np.argmin(losses))
        if losses[at] < loss:
            best, rounds, loss = shape, at + 1, float(losses[at])
    if start is not None and loss >= np.average(
        np.logaddexp(0.0, start) - y * start, weights=weight
    ):
        raise SampleError("no tree adds to what it starts from")
    boosters = [
        lgb.train(common | best | {"seed": seed + 1000 * (b + 1)}, data, num_boost_round=rounds)
        for b in range(bags)
    ]
    detail = {**best, "rounds": rounds, "inner_log_loss": loss, "bags": bags}
    return FittedGbdt(name, inputs, boosters, base, detail)


def _losses_by_round(
    data: Any, params: dict[str, Any], folds: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """[MAX_ROUNDS] held-out log-loss after each round, over all folds."""
    import lightgbm as lgb

    total = np.zeros(MAX_ROUNDS)
    for k in np.unique(folds):
        test = np.flatnonzero(folds == k)
        train = data.subset(np.flatnonzero(folds != k))
        held = data.subset(test)
        record: dict[str, Any] = {}
        lgb.train(
            params,
            train,
            num_boost_round=MAX_ROUNDS,
            valid_sets=[held],
            valid_names=["held"],
            callbacks=[lgb.record_evaluation(record)],
        )
        losses = np.array(record["held"]["binary_logloss"])
        # A booster that finds no further split stops early; its last loss stands.
        losses = np.pad(losses, (0, MAX_ROUNDS - len(losses)), mode="edge")
        total += losses * weight[test].sum()
    return total / weight.sum()


@dataclass(frozen=True)
class GbdtRecipe:
    """What a lender would do without us: LightGBM on aggregates, profile and context."""

    name: str = "gbdt"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = TABULAR
    slow: bool = False
    directions: dict[str, int] = field(default_factory=dict)
    bags: int = BAGS

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedGbdt:
        """See `fit_trees`."""
        return fit_trees(
            self.name,
            table.select(TABULAR),
            y,
            weight,
            groups,
            seed,
            bags=self.bags,
            directions=self.directions,
        )
