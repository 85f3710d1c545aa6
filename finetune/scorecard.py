"""The scorecard: at most twenty columns in optimally merged bins, weight of evidence, strong ridge.

Columns are shortlisted by information value (IV) over coarse quantile bins, those that repeat a
better one left out; optbinning merges the bins of what remains, monotone in the bad rate
(Navas-Palencia 2020). WOE is the smoothed log ratio of a bin's share of bads to its share of
goods. The strength of the regression is chosen with columns, bins and WOE found anew inside every
inner fold, so that their own optimism is paid for. All of it looks at training rows alone.

Shapes: S samples, F columns, b bins of a column, the last one missing values.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from finetune.crossval import assign_folds
from finetune.heads import BinTerm, CodeTerm, LinearHead, Term
from finetune.recipes import TABULAR, FittedLinear
from finetune.ridge import fit_ridge
from finetune.table import FeatureTable
from foundation.errors import SampleError

MOST_COLUMNS = 20
CANDIDATES = 60
COARSE_BINS = 6
LEAST_IV = 0.02
ALIKE = 0.9
# Cases at the mean bad rate added to every bin: a bin of a hundred labels holds a few bads.
SMOOTHINGS = (2.0, 20.0)
SMOOTHING = SMOOTHINGS[0]
TRENDS = {0: "auto_asc_desc", 1: "ascending", -1: "descending"}
STRENGTHS = tuple(float(c) for c in np.logspace(-4, 1, 11))


@dataclass
class Bins:
    """How one column falls into bins.

    Attributes:
        edges: float32 lower bounds of the second bin and up, for numbers.
        groups: codes of each bin, for codes.
    """

    column: str
    title: str
    edges: tuple[float, ...] = ()
    groups: tuple[tuple[float, ...], ...] = ()
    iv: float = 0.0
    woe: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """b: bins and one for missing values; codes have one more for unseen codes."""
        return (len(self.groups) + 1 if self.groups else len(self.edges) + 1) + 1

    def assign(self, x: np.ndarray) -> np.ndarray:
        """[S] bin of each float32 value, count - 1 where missing."""
        if self.groups:
            at = np.full(len(x), self.count - 2)
            for i, codes in enumerate(self.groups):
                at[np.isin(x, np.asarray(codes, np.float32))] = i
        else:
            at = np.searchsorted(np.asarray(self.edges, np.float32), x, side="right")
        return np.where(np.isnan(x), self.count - 1, at)

    def term(self, weight: float) -> Term:
        """The scorecard's part for this column."""
        values = [weight * w for w in self.woe]
        if self.groups:
            codes = [(c, values[i]) for i, group in enumerate(self.groups) for c in group]
            return CodeTerm(
                self.column,
                tuple(c for c, _ in codes),
                tuple(v for _, v in codes),
                other=values[-2],
                missing=values[-1],
            )
        return BinTerm(self.column, self.edges, tuple(values[:-1]), missing=values[-1])


def woe_of(
    at: np.ndarray, y: np.ndarray, weight: np.ndarray, bins: int, smoothing: float = SMOOTHING
) -> np.ndarray:
    """[b] weight of evidence, positive where bads are frequent; 0 for empty bins.

    `smoothing` cases at the mean bad rate are added to every bin.
    """
    bad = np.bincount(at, weights=weight * y, minlength=bins)
    every = np.bincount(at, weights=weight, minlength=bins)
    rate = bad.sum() / every.sum()
    smooth_bad = bad + smoothing * rate
    smooth_good = every - bad + smoothing * (1 - rate)
    return np.log(smooth_bad / smooth_good) - np.log(rate / (1 - rate))


def directed(woe: np.ndarray, direction: int) -> np.ndarray:
    """[b] WOE whose bins, but for the last of missing values, only rise (1) or fall (-1).

    Smoothing can turn two bins of unequal size around; the one behind then takes over.
    """
    if not direction:
        return woe
    steps = direction * np.maximum.accumulate(direction * woe[:-1])
    return np.append(steps, woe[-1])


def information_value(
    at: np.ndarray, y: np.ndarray, weight: np.ndarray, bins: int, smoothing: float = SMOOTHING
) -> float:
    """IV of a binned column with the smoothed WOE."""
    bad = np.bincount(at, weights=weight * y, minlength=bins) / (weight @ y)
    good = np.bincount(at, weights=weight * (1 - y), minlength=bins) / (weight @ (1 - y))
    return float((bad - good) @ woe_of(at, y, weight, bins, smoothing))


def shortlist(
    table: FeatureTable,
    y: np.ndarray,
    weight: np.ndarray,
    most: int = MOST_COLUMNS,
    coarse_bins: int = COARSE_BINS,
    smoothing: float = SMOOTHING,
) -> list[Bins]:
    """Coarsely binned columns by falling IV, without those that repeat a better one.

    A column repeats another where the correlation of their WOE exceeds `ALIKE`.
    """
    coarse = []
    for i, column in enumerate(table.columns):
        x = table.values[:, i]
        seen = x[~np.isnan(x)]
        if len(seen) < 10:
            continue
        if column.kind == "code":
            levels = np.unique(seen)
            bins = Bins(column.name, column.title, groups=tuple((float(v),) for v in levels))
        else:
            edges = np.unique(
                np.quantile(seen, np.linspace(0, 1, coarse_bins + 1)[1:-1], method="higher")
            )
            edges = edges[edges > seen.min()]
            bins = Bins(column.name, column.title, edges=tuple(map(float, edges)))
        at = bins.assign(x)
        bins.iv = information_value(at, y, weight, bins.count, smoothing)
        if bins.iv >= LEAST_IV:
            coarse.append((bins.iv, i, bins, woe_of(at, y, weight, bins.count, smoothing)[at]))
    coarse.sort(key=lambda c: (-c[0], c[1]))
    kept: list[Bins] = []
    traces: list[np.ndarray] = []
    for _, _, bins, trace in coarse[: CANDIDATES * 3]:
        trace = trace - trace.mean()
        size = np.linalg.norm(trace)
        if size < 1e-9:
            continue
        trace = trace / size
        if traces and np.abs(np.stack(traces) @ trace).max() > ALIKE:
            continue
        kept.append(bins)
        traces.append(trace)
        if len(kept) == most:
            break
    return kept


def optimal_bins(
    bins: Bins, x: np.ndarray, y: np.ndarray, weight: np.ndarray, direction: int = 0
) -> Bins | None:
    """The column in optbinning's bins; None where no split is worth making.

    Args:
        direction: 1 where the bad rate of a number may only rise, -1 only fall.

    Raises:
        SampleError: optbinning ends without a solution.
    """
    optimal_binning = _optbinning()
    seen = ~np.isnan(x)
    if not seen.any():
        return None
    kind = "categorical" if bins.groups else "numerical"
    # A code's order means nothing, a number's bad rate is kept monotone.
    trend = None if bins.groups else TRENDS[direction]
    binning = optimal_binning(
        dtype=kind,
        max_n_prebins=8,
        min_prebin_size=0.05,
        min_bin_size=0.05,
        max_n_bins=6,
        monotonic_trend=trend,
        time_limit=5,
    )
    with warnings.catch_warnings():
        # optbinning 1.0 passes arguments that scikit-learn 1.9 has renamed.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(sklearn|optbinning)")
        binning.fit(x[seen].astype(np.float64), y[seen].astype(int), sample_weight=weight[seen])
    if binning.status not in ("OPTIMAL", "FEASIBLE"):
        raise SampleError(f"binning of column '{bins.column}' ended with {binning.status}")
    splits = binning.splits
    if kind == "categorical":
        groups = tuple(tuple(float(c) for c in group) for group in splits)
        out = Bins(bins.column, bins.title, groups=groups) if len(groups) > 1 else None
    else:
        edges = tuple(float(e) for e in np.unique(np.asarray(splits, dtype=np.float32)))
        out = Bins(bins.column, bins.title, edges=edges) if edges else None
    if out is None and not seen.all():
        out = Bins(bins.column, bins.title, edges=(), groups=())
    return out


@cache
def _optbinning() -> Any:
    """The class; importing it must not report on solvers of cvxpy, none of which is used."""
    logger = logging.getLogger("__cvxpy__")

    def quiet(record: logging.LogRecord) -> bool:
        return "importing solver" not in record.getMessage()

    logger.addFilter(quiet)
    from optbinning import OptimalBinning

    return OptimalBinning


def _held_out_losses(
    table: FeatureTable, y: np.ndarray, weight: np.ndarray, folds: np.ndarray, smoothing: float
) -> dict[float, float]:
    """Log-loss per strength; columns, bins and WOE are found on each fold's training side.

    Finding columns on all rows first would hide the optimism of that choice: with 400 columns and
    300 rows it chose strengths a hundred times too weak. Bins stay coarse here, for speed.
    """
    losses = dict.fromkeys(STRENGTHS, 0.0)
    once = np.zeros((1, 1), dtype=np.int64)
    for k in np.unique(folds):
        train, test = folds != k, folds == k
        listed = shortlist(
            table.take(np.flatnonzero(train)), y[train], weight[train], smoothing=smoothing
        )
        columns = [np.zeros(len(y))]
        for bins in listed:
            at = bins.assign(table.values[:, table.index(bins.column)])
            woe = woe_of(at[train], y[train], weight[train], bins.count, smoothing)
            columns.append(woe[at])
        z = np.stack(columns, axis=1)
        for strength in STRENGTHS:
            ridge = fit_ridge(z[train], y[train], weight[train], once, (strength,))
            eta = ridge.intercept + z[test] @ ridge.weights
            losses[strength] += float(weight[test] @ (np.logaddexp(0, eta) - y[test] * eta))
    return losses


@dataclass(frozen=True)
class ScorecardRecipe:
    """WOE-binned regularised logistic regression on aggregates, profile and context."""

    name: str = "scorecard"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = TABULAR
    slow: bool = False
    directions: dict[str, int] = field(default_factory=dict)

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedLinear:
        """Choose smoothing and strength by held-out log-loss, shortlist, bin, fit.

        Raises:
            SampleError: one class only, or no column with an IV of at least `LEAST_IV`.
        """
        folds = assign_folds(y, groups, 5, 1, seed)
        weight = weight / weight.mean()
        table = table.select(TABULAR)
        losses = {
            (smoothing, strength): loss
            for smoothing in SMOOTHINGS
            for strength, loss in _held_out_losses(table, y, weight, folds[0], smoothing).items()
        }
        smoothing, strength = min(losses, key=lambda choice: losses[choice])
        listed = shortlist(table, y, weight, smoothing=smoothing)
        signs = self.directions
        binned = [
            optimal_bins(
                b, table.values[:, table.index(b.column)], y, weight, signs.get(b.column, 0)
            )
            for b in listed
        ]
        bins = [b for b in binned if b is not None]
        if not bins:
            raise SampleError(f"no column has an information value of {LEAST_IV} or more")
        assigned = np.stack(
            [b.assign(table.values[:, table.index(b.column)]) for b in bins], axis=1
        )
        for j, b in enumerate(bins):
            woe = woe_of(assigned[:, j], y, weight, b.count, smoothing)
            b.woe = directed(woe, 0 if b.groups else signs.get(b.column, 0)).tolist()
            b.iv = information_value(assigned[:, j], y, weight, b.count, smoothing)
        z = np.stack([np.asarray(b.woe)[assigned[:, j]] for j, b in enumerate(bins)], axis=1)
        signed = np.array([not b.groups and b.column in signs for b in bins])
        ridge = fit_ridge(z, y, weight, folds[:1], (strength,), signed)
        head = LinearHead(
            tuple(b.term(float(w)) for b, w in zip(bins, ridge.weights, strict=True)),
            ridge.intercept,
        )
        detail = {"c": strength, "smoothing": smoothing, "bins": _described(bins, ridge.weights)}
        return FittedLinear(self.name, head, detail)


def _described(bins: list[Bins], weights: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "column": b.column,
            "title": b.title,
            "iv": b.iv,
            "edges": list(b.edges),
            "groups": [list(g) for g in b.groups],
            "woe": b.woe,
            "coefficient": float(w),
        }
        for b, w in zip(bins, weights, strict=True)
    ]
