"""What a cut-off is worth: the profit of approved goods less the loss on approved bads.

The cost matrix has two entries that matter, since a refused applicant costs and earns nothing
(Verbraken, Bravo, Weber and Baesens 2014, European Journal of Operational Research 238, use the
same simplification). With an exposure column both are shares of the amount at stake.

Shapes: S rows, G groups of tied scores (best first), W sets of row weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from finetune.swap_set import Ranking
from foundation.errors import ConfigError, SampleError, listing, nearest
from foundation.strict import Strict, load
from foundation.tables import parse_numbers


class CostMatrix(Strict):
    """Costs of decisions.

    Attributes:
        bad_approved: lost on an approved bad, above zero; a share of exposure where there is one.
        good_approved: earned on an approved good, above zero; likewise.
        exposure: column of the sample file with the amount at stake, or None.
        currency: for people.
    """

    bad_approved: float
    good_approved: float
    exposure: str | None = None
    currency: str = ""

    @property
    def break_even(self) -> float:
        """The probability of bad at which an applicant is worth nothing."""
        return self.good_approved / (self.good_approved + self.bad_approved)


def load_costs(path: str | Path) -> CostMatrix:
    """Read a cost matrix.

    Raises:
        ConfigError: unknown keys, or a figure that is not above zero.
    """
    costs = load(CostMatrix, path)
    for name in ("bad_approved", "good_approved"):
        value = getattr(costs, name)
        if not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{path}: {name} is {value:g}; write an amount above zero")
    return costs


def exposure_of(costs: CostMatrix, original: pl.DataFrame, where: str | Path) -> np.ndarray:
    """[S] the amount at stake of every row, 1 without an exposure column.

    Raises:
        SampleError: the column is missing, or a row holds no amount above or equal to zero.
    """
    if costs.exposure is None:
        return np.ones(len(original))
    if costs.exposure not in original.columns:
        raise SampleError(
            f"{where}: the cost matrix names exposure column '{costs.exposure}', which is missing"
            f"{nearest(costs.exposure, original.columns)}; columns: {listing(original.columns)}"
        )
    amount = parse_numbers(original[costs.exposure])
    bad = amount.is_null() | (amount < 0)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise SampleError(
            f"{where}, column '{costs.exposure}': '{original[costs.exposure][row]}' is no amount "
            "of zero or more; every row needs its exposure"
        )
    return amount.cast(pl.Float64).to_numpy()


def worth(costs: CostMatrix, y: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """[S] what approving each row earns; negative for a bad."""
    return exposure * np.where(y == 1, -costs.bad_approved, costs.good_approved)


@dataclass(frozen=True)
class ValueCurve:
    """Value of approving everybody up to each group of ties, approving nobody first: [W, G + 1]."""

    every: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, ranking: Ranking, gain: np.ndarray, weights: np.ndarray) -> ValueCurve:
        """Curves of rows that earn `gain` [S] under weights [W, S]."""
        zero = np.zeros((len(weights), 1))
        return cls(
            np.hstack([zero, ranking.sums(weights)]),
            np.hstack([zero, ranking.sums(weights * gain)]),
        )

    def best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[W] the best cut (0 approves nobody, k the first k groups), its approval rate, its value
        per applicant. Chosen on the rows it is measured on, hence a little flattering."""
        at = self.value.argmax(axis=1)
        rows = np.arange(len(at))
        total = self.every[:, -1]
        return at, self.every[rows, at] / total, self.value[rows, at] / total

    def per_applicant(self) -> np.ndarray:
        """[W, G + 1] value per applicant."""
        return self.value / self.every[:, -1:]


def value_below(
    score: np.ndarray, gain: np.ndarray, weights: np.ndarray, cut: float
) -> tuple[np.ndarray, np.ndarray]:
    """[W] approval rate and value per applicant of approving scores below `cut`."""
    inside = (score < cut).astype(np.float64)
    total = weights.sum(axis=1)
    return (weights * inside).sum(axis=1) / total, (weights * inside * gain).sum(axis=1) / total
