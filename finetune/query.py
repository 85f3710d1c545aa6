"""A model without labels: what the forecasts say.

The score is the logit of a mean of the probabilities of declared forecasts, or of a named, weighted
few, each in units of its own spread over the rows at hand: a frequent outcome says no more than a
rare one. Labels, where there are any, only calibrate it (slope never negative); they never change
the order. Measured against the mean of logits, which tells low chances apart that are all low: see
docs/LOG.md.

Shapes: S samples, T forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from finetune.calibration import fit_platt
from finetune.heads import LinearHead, chance_term
from finetune.recipes import FittedLinear
from finetune.table import FeatureTable
from foundation.errors import SampleError, listing, nearest


@dataclass(frozen=True)
class QueryRecipe:
    """Logit of a weighted mean of forecasts.

    Attributes:
        weights: forecast column -> positive weight of its spread; None takes all forecasts equally.
        directions: column -> 1 or -1; without weights, forecasts of good things (-1) stay out.
    """

    weights: dict[str, float] | None = None
    name: str = "query"
    needs: frozenset[str] = frozenset({"forecast"})
    reads: frozenset[str] = frozenset({"forecast"})
    slow: bool = False
    directions: dict[str, int] = field(default_factory=dict)

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedLinear:
        """Calibrate the query on labels; see `unlabelled` for the query itself."""
        fitted = self.unlabelled(table)
        platt = fit_platt(fitted.logit(table), y, weight)
        head = fitted.head.scaled(platt.slope, platt.intercept)
        return FittedLinear(self.name, head, fitted.detail | {"slope": platt.slope})

    def unlabelled(self, table: FeatureTable) -> FittedLinear:
        """The query without any label: missing forecasts count as their mean over the table.

        Raises:
            SampleError: an unknown forecast is named, or a weight is not positive.
        """
        forecasts = table.block("forecast")
        bad = [n for n in forecasts.names if self.directions.get(n, 1) > 0]
        weights = self.weights or dict.fromkeys(bad, 1.0)
        if not weights:
            raise SampleError("every forecast is declared a good sign: no query is left")
        for name, value in weights.items():
            if name not in forecasts.names:
                raise SampleError(
                    f"query names the unknown forecast '{name}'{nearest(name, forecasts.names)}; "
                    f"forecasts: {listing(forecasts.names)}"
                )
            if not value > 0:
                raise SampleError(f"query gives '{name}' the weight {value}; it must be positive")
        term = chance_term(forecasts, weights)
        return FittedLinear(self.name, LinearHead((term,)), {"weights": weights})
