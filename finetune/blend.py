"""The blend: a non-negative weighted average of the recipes' logits.

Weights on the simplex with the least out-of-fold log-loss (stacking, Breiman 1996) and a pull
towards prior shares that fades as labels grow; members clearly worse than the best are left out.
Few labels cannot tell the members apart, so the prior decides: what stands on the forecasts varies
least, the others are there to disagree. The shares were chosen on pool rows of the benchmark sets;
equal shares, steeper and flatter ones are in docs/LOG.md.

Shapes: S samples, M members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from finetune.crossval import repeated_splits
from finetune.fusion import WeightedRecipes
from finetune.recipes import missing_reason
from finetune.table import FeatureTable
from foundation.errors import SampleError

if TYPE_CHECKING:
    from finetune.recipes import FittedRecipe, Recipe

# Prior shares relative to one another; a recipe that is not named counts 1.
PRIOR = {"forecast": 4.0, "fusion": 4.0, "query": 0.5, "probe": 0.5}
PULL = 20.0
LEAST_GBDT = 0.05
CLEARLY_WORSE = 2.0
SEEDS = 2
LEAST_SHARE = 0.02
# A member that reads histories itself costs every score a run of the backbone: it has to earn it.
LEAST_SLOW = 0.2


def row_losses(y: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """[S] log-loss of each row from its logit."""
    return np.logaddexp(0.0, logit) - y * logit


def blend_weights(
    logits: Mapping[str, np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
    repeats: int = 1,
    slow: frozenset[str] = frozenset(),
) -> dict[str, float]:
    """Weights of members from their out-of-fold logits ([S] each); they sum to one.

    Args:
        repeats: how often each sample stands in the rows; the evidence is that of one.
        slow: members that are left out where their share is below `LEAST_SLOW`.

    A member is left out where its paired loss to the best is more than `CLEARLY_WORSE` standard
    errors; `gbdt`, where given, always keeps at least `LEAST_GBDT`.
    """
    given, weight = weight, weight / weight.mean() / repeats
    losses = {name: row_losses(y, z) for name, z in logits.items()}
    best = min(losses, key=lambda n: float(weight @ losses[n]))
    kept = []
    for name, loss in losses.items():
        gap = weight * (loss - losses[best])
        error = gap.std(ddof=1) * np.sqrt(len(gap) * repeats)
        if name == "gbdt" or gap.sum() <= CLEARLY_WORSE * error:
            kept.append(name)
    matrix = np.stack([logits[n] for n in kept], axis=1)
    prior = np.array([PRIOR.get(n, 1.0) for n in kept])
    prior = prior / prior.sum()
    pull = PULL * len(kept)

    def objective(free: np.ndarray) -> tuple[float, np.ndarray]:
        share = softmax(free)
        eta = matrix @ share
        off = share - prior
        value = float(weight @ row_losses(y, eta) + 0.5 * pull * off @ off)
        by_share = matrix.T @ (weight * (expit(eta) - y)) + pull * off
        return value, share * (by_share - share @ by_share)

    share = softmax(minimize(objective, np.log(prior), jac=True, method="L-BFGS-B").x)
    dear = {n for n, s in zip(kept, share, strict=True) if n in slow and s < LEAST_SLOW}
    if 0 < len(dear) < len(kept):
        cheap = {n: logits[n] for n in kept if n not in dear}
        return blend_weights(cheap, y, given, repeats, slow)
    share = np.where(share < LEAST_SHARE, 0.0, share)
    if "gbdt" in kept and share.sum() > share[kept.index("gbdt")]:
        others = np.array(kept) != "gbdt"
        least = max(share[~others][0] / share.sum(), LEAST_GBDT)
        share = np.where(others, share / share[others].sum() * (1 - least), least)
    share = share / share.sum()
    return {n: float(s) for n, s in zip(kept, share, strict=True) if s > 0}


def out_of_fold_blend(
    logits: Mapping[str, np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
    fold: np.ndarray,
    slow: frozenset[str] = frozenset(),
) -> np.ndarray:
    """[S] blended logits of one repeat, each fold's weights learnt on the other folds.

    Args:
        logits: member -> [S] out-of-fold logits, NaN where a row was never tested.
        fold: [S] fold in which a row was tested, -1 where never.
    """
    out = np.full(len(y), np.nan)
    for k in np.unique(fold[fold >= 0]):
        learn, apply = (fold >= 0) & (fold != k), fold == k
        weights = blend_weights(
            {n: z[learn] for n, z in logits.items()}, y[learn], weight[learn], slow=slow
        )
        out[apply] = sum(w * logits[n][apply] for n, w in weights.items())
    return out


@dataclass(frozen=True)
class BlendRecipe:
    """Out-of-fold weighted average of members, each bagged over seeds.

    Attributes:
        members: recipes it may use; those whose columns are absent are left out.
        weights: known weights, as the ladder learns them; without, they are learnt by an inner
            cross-validation.
        fitted: members that have been fitted on the same rows with the same seed.
    """

    members: tuple[Recipe, ...]
    weights: dict[str, float] | None = None
    fitted: dict[str, FittedRecipe] | None = None
    name: str = "blend"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    slow: bool = False

    def with_weights(
        self, weights: Mapping[str, float], fitted: Mapping[str, FittedRecipe] | None = None
    ) -> BlendRecipe:
        """The same blend with its weights fixed, and members that need no second fit."""
        return replace(self, weights=dict(weights), fitted=dict(fitted or {}))

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> WeightedRecipes:
        """Learn weights where they are not given, then fit every member on all rows.

        Raises:
            SampleError: no member can be fitted.
        """
        usable = {m.name: m for m in self.members if not missing_reason(m, table)}
        weights = self.weights or self._learn(usable, table, y, weight, groups, seed)
        fitted, shares = [], []
        for name, share in weights.items():
            if name not in usable:
                raise SampleError(f"blend: member '{name}' has no columns in this table")
            # Only what depends on the seed gains from several; tuned members bag by themselves.
            seeds = SEEDS if name in ("gbdt", "fusion") else 1
            for bag in range(seeds):
                known = (self.fitted or {}).get(name) if bag == 0 else None
                fitted.append(known or usable[name].fit(table, y, weight, groups, seed + bag))
                shares.append(share / seeds)
        return WeightedRecipes(self.name, fitted, shares, {"weights": weights})

    def _learn(
        self,
        usable: Mapping[str, Recipe],
        table: FeatureTable,
        y: np.ndarray,
        weight: np.ndarray,
        groups: np.ndarray,
        seed: int,
    ) -> dict[str, float]:
        logits: dict[str, np.ndarray] = {}
        splits = repeated_splits(y, groups, 5, 1, seed)
        for name, member in usable.items():
            out = np.empty(len(y))
            try:
                for s in splits:
                    part = member.fit(
                        table.take(s.train), y[s.train], weight[s.train], groups[s.train], seed
                    )
                    out[s.test] = part.logit(table.take(s.test))
            except SampleError:
                continue
            logits[name] = out
        if not logits:
            raise SampleError("blend: none of its members can be fitted on these samples")
        slow = frozenset(n for n, m in usable.items() if m.slow)
        return blend_weights(logits, y, weight, slow=slow)
