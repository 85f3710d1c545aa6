"""Which recipe `auto` ships.

Recipes are compared by pooled out-of-fold log-loss (AUC as tie-break), paired row by row. With few
labels the standard error of a difference is larger than most differences, and whichever recipe is
picked is picked by chance. An average does not depend on the pick: the blend is shipped unless a
recipe is better than it by more than `CLEARLY` standard errors (by chance alone the best of seven
often looks one better). Without a blend the best recipe is shipped, or the one of least variance
among those that are its equals to `EQUAL`. What would be worse than the lender's own GBDT in the
mean gives way to a blend that includes it. With fewer than ten bads only what needs no labels, or
almost none, may be shipped.

Measured against picking the simplest recipe within one standard error of the best (Breiman et al.
1984), which ships a zero-label score wherever labels are few: see docs/LOG.md.

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.metrics import Interval
from finetune.recipes import FEW_BADS, FEW_BADS_RECIPES, VARIANCE_ORDER
from foundation.errors import SampleError

# Mean log-losses closer than this are one and the same.
EQUAL = 0.0005
CLEARLY = 2.0


@dataclass(frozen=True)
class Choice:
    """What is shipped and why.

    Attributes:
        reason: one sentence.
        best: recipe of the lowest log-loss.
        differences: per recipe its paired loss minus that of the best, and the standard error.
        warnings: what a person must know before relying on it.
    """

    name: str
    reason: str
    best: str
    differences: dict[str, tuple[float, float]]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "chosen": self.name,
            "reason": self.reason,
            "best": self.best,
            "warnings": list(self.warnings),
            "differences": {
                n: {"difference": d, "standard_error": e} for n, (d, e) in self.differences.items()
            },
        }


def paired_difference(
    first: np.ndarray, second: np.ndarray, weight: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """Weighted mean of first - second ([S] losses) and its standard error, clustered by group."""
    share = weight / weight.sum()
    gap = first - second
    mean = float(share @ gap)
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, weights=share * (gap - mean))
    clusters = len(sums)
    return mean, float(np.sqrt((sums**2).sum() * clusters / max(clusters - 1, 1)))


def choose(
    losses: Mapping[str, np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    tested: np.ndarray,
    aucs: Mapping[str, Interval],
) -> Choice:
    """Apply the rule.

    Args:
        losses: recipe -> [S] out-of-fold log-loss of each row, of the recipes that ran.
        tested: [S] rows that count.
        aucs: recipe -> out-of-fold AUC with its interval.
    Raises:
        SampleError: no recipe ran that may be shipped.
    """
    bads = int(y.sum())
    names = list(losses)
    if bads < FEW_BADS:
        names = [n for n in names if n in FEW_BADS_RECIPES]
        if not names:
            raise SampleError(
                f"{bads} bads are too few to choose a model by: with fewer than {FEW_BADS} only "
                f"{' and '.join(FEW_BADS_RECIPES)} may be shipped, and this schema has no "
                "forecasts; declare outcomes, bring more labels, or name a recipe yourself"
            )
    if not names:
        raise SampleError("no recipe could be run on these samples")
    w, g = weight[tested], groups[tested]
    mean = {n: float(np.average(losses[n][tested], weights=w)) for n in names}
    best = min(names, key=lambda n: (round(mean[n], 9), -aucs[n].value))
    differences = {
        n: paired_difference(losses[n][tested], losses[best][tested], w, g) for n in names
    }
    few = bads < FEW_BADS
    gap, error = differences.get("blend", (np.inf, 0.0))
    if best == "blend":
        name, reason = best, f"{best} has the lowest log-loss ({mean[best]:.4f})"
    elif gap <= CLEARLY * error:
        name = "blend"
        reason = (
            f"no recipe is clearly better than the blend: {best} leads it by {gap:.4f} log-loss, "
            f"standard error {error:.4f}"
        )
    else:
        room = {n: differences[n][1] if few else EQUAL for n in names}
        name = min((n for n in names if differences[n][0] <= room[n]), key=_variance_rank)
        reason = f"{name} has the lowest log-loss ({mean[name]:.4f})"
        if name != best:
            gap, error = differences[name]
            how = "within one standard error of" if few else "the equal of"
            reason = (
                f"{name} is {how} {best} (+{gap:.4f} log-loss, standard error {error:.4f}) and "
                "varies less"
            )
        elif "blend" in names:
            gap, error = paired_difference(losses["blend"][tested], losses[best][tested], w, g)
            reason += f", {gap:.4f} below the blend, standard error {error:.4f}"
    if "gbdt" in mean and name not in ("gbdt", "blend") and mean[name] > mean["gbdt"]:
        gap = mean[name] - mean["gbdt"]
        shipped = "blend" if "blend" in mean else "gbdt"
        reason = f"{name} is {gap:.4f} log-loss behind gbdt, so {shipped} is shipped instead"
        name = shipped
    return Choice(name, reason, best, differences, _warnings(name, bads, len(y), aucs))


def _variance_rank(name: str) -> int:
    return VARIANCE_ORDER.index(name) if name in VARIANCE_ORDER else len(VARIANCE_ORDER)


def _warnings(name: str, bads: int, rows: int, aucs: Mapping[str, Interval]) -> list[str]:
    if bads >= FEW_BADS:
        return []
    a = aucs[name]
    return [
        f"only {bads} bads in {rows} samples: the AUC of {name} is {a.value:.2f} with a 95 % "
        f"interval from {a.low:.2f} to {a.high:.2f}, {a.high - a.low:.2f} wide; only "
        f"{' and '.join(FEW_BADS_RECIPES)} were considered"
    ]
