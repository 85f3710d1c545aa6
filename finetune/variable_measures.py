"""Single variables measured all at once: bins, IV, AUC, KS, PSI, rank correlation.

Bins are found on development rows and never moved. What chance alone reaches stands beside IV and
PSI: with few labels a variable that says nothing has an IV well above zero.

Shapes: S samples, F variables, B bins of the widest variable, the last one in use missing values.
Labels: 1 bad, 0 good. Values are float32, NaN missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from finetune.scorecard import Bins
from finetune.table import Column

LEAST_BINS, MOST_BINS = 4, 10
BADS_PER_BIN = 10
OWN_LEVELS = 9
SMOOTHING = 0.5
SHARE_FLOOR = 1e-4
ALIKE = 0.8
CORRELATED_ROWS = 20_000
CHANCE = 0.95
LEAST_OF_A_CLASS = 5 - 1e-6
_Z = 1.959964
_CELLS = 4_000_000


def bins_for(bads: float) -> int:
    """How many quantile bins so many bads can fill: ten bads each, four to ten bins."""
    return int(min(MOST_BINS, max(LEAST_BINS, bads // BADS_PER_BIN)))


def quantile_bins(column: Column, values: np.ndarray, bins: int) -> Bins:
    """Bins of one variable: quantiles of a number, the frequent levels of a code.

    Args:
        values: [S] float32 of the development rows alone.
    """
    seen = values[~np.isnan(values)]
    if column.kind == "code":
        level, count = np.unique(seen, return_counts=True)
        kept = np.sort(level[np.argsort(-count, kind="stable")[:OWN_LEVELS]])
        return Bins(column.name, column.title, groups=tuple((float(v),) for v in kept))
    if not len(seen):
        return Bins(column.name, column.title)
    edges = np.unique(np.quantile(seen, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    edges = edges[edges > seen.min()]
    return Bins(column.name, column.title, edges=tuple(map(float, edges)))


def assigned(bins: Sequence[Bins], values: np.ndarray, width: int) -> np.ndarray:
    """[S, F] int16 bin of every value; missing values stand in bin width - 1 of each variable."""
    out = np.empty(values.shape, np.int16)
    for f, each in enumerate(bins):
        at = each.assign(values[:, f])
        out[:, f] = np.where(at == each.count - 1, width - 1, at)
    return out


def bin_weights(at: np.ndarray, weight: np.ndarray, width: int) -> np.ndarray:
    """[F, width] weight in every bin.

    Args:
        at: [S, F] bins; weight: [S].
    """
    rows, columns = at.shape
    out = np.empty((columns, width))
    for part in _parts(rows, columns):
        index = at[:, part].astype(np.int64) + width * np.arange(part.stop - part.start)
        spread = np.broadcast_to(weight[:, None], index.shape).ravel()
        mass = np.bincount(index.ravel(), spread, minlength=width * (part.stop - part.start))
        out[part] = mass.reshape(-1, width)
    return out


def weight_of_evidence(bad: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """WOE and the part of IV of every bin (Siddiqi 2006, Credit Risk Scorecards, section 6).

    A half is added to the bads and goods of every bin in use, so that none is infinite.

    Args:
        bad, good: [F, B] weights.
    Returns:
        [F, B] log of the share of bads over the share of goods, 0 for empty bins, and its product
        with the difference of the shares.
    """
    used = bad + good > 0
    add = SMOOTHING * used
    total = add.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        b = (bad + add) / (bad.sum(axis=1, keepdims=True) + total)
        g = (good + add) / (good.sum(axis=1, keepdims=True) + total)
        woe = np.where(used, np.log(b / g), 0.0)
    return woe, np.where(used, (b - g) * woe, 0.0)


def chance_of(used_bins: np.ndarray, first: float, second: float) -> np.ndarray:
    """[F] what IV (bads, goods) or PSI (two samples) of a meaningless variable reach 1 in 20 times.

    Both are, for equal distributions, (1/first + 1/second) times a chi-squared of bins - 1.
    """
    return (1 / first + 1 / second) * chi2.ppf(CHANCE, np.maximum(used_bins - 1, 1))


def stability(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """[F] PSI of bin weights [F, B] against those of development, over the same frozen bins."""
    e, a = (
        np.maximum(w / np.maximum(w.sum(axis=1, keepdims=True), 1e-12), SHARE_FLOOR)
        for w in (expected, actual)
    )
    return ((a - e) * np.log(a / e)).sum(axis=1)


@dataclass(frozen=True)
class Ranking:
    """How well each variable alone ranks the label; rows with a missing value are left out.

    Attributes:
        auc, error: [F] area under the ROC curve of "higher is worse" and its standard error
            (Hanley and McNeil 1982, Radiology 143); NaN with fewer than five bads or goods.
        ks: [F].
        bads, goods: [F] rows with a value, weighted ones for what they are worth (Kish 1965).
    """

    auc: np.ndarray
    error: np.ndarray
    ks: np.ndarray
    bads: np.ndarray
    goods: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """[F] lower end of the 95 % interval of AUC."""
        return np.clip(self.auc - _Z * self.error, 0, 1)

    @property
    def high(self) -> np.ndarray:
        """[F] upper end."""
        return np.clip(self.auc + _Z * self.error, 0, 1)


def ranking(values: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Ranking:
    """AUC with its error, and KS, of every variable; ties count half.

    Args:
        values: [S, F]; y, weight: [S].
    """
    parts = [_ranked(values[:, p], y, weight) for p in _parts(*values.shape)]
    return Ranking(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _ranked(values: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    order = np.argsort(values, axis=0, kind="stable")  # missing values last
    x = np.take_along_axis(values, order, axis=0)
    w = np.where(np.isnan(x), 0.0, weight[order])
    b = w * y[order]
    bad, good = np.cumsum(b, axis=0), np.cumsum(w - b, axis=0)
    all_bad, all_good = bad[-1], good[-1]
    ends = np.ones(x.shape, bool)
    ends[:-1] = x[:-1] != x[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(ends, np.abs(bad / all_bad - good / all_good), 0.0)
        # Goods below the ties of a row: what had been summed before its run of equal values.
        before = np.zeros_like(good)
        before[1:] = np.where(ends[:-1], good[:-1], 0.0)
        before = np.maximum.accumulate(before, axis=0)
        upto = np.minimum.accumulate(np.where(ends, good, np.inf)[::-1], axis=0)[::-1]
        auc = (b * (before + upto) / 2).sum(axis=0) / (all_bad * all_good)
        bads = all_bad**2 / (b * w).sum(axis=0)
        goods = all_good**2 / ((w - b) * w).sum(axis=0)
        q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
        variance = auc * (1 - auc) + (bads - 1) * (q1 - auc**2) + (goods - 1) * (q2 - auc**2)
        error = np.sqrt(np.maximum(variance, 0) / (bads * goods))
    few = ~((bads >= LEAST_OF_A_CLASS) & (goods >= LEAST_OF_A_CLASS))
    figures = (np.where(few, np.nan, a) for a in (auc, error, gap.max(axis=0)))
    return (*figures, np.nan_to_num(bads), np.nan_to_num(goods))


def rank_correlation(values: np.ndarray) -> np.ndarray:
    """[F, F] Spearman correlations; missing values stand in the middle, constants correlate by 0.

    More than 20,000 rows are thinned to evenly spaced ones.
    """
    from scipy.stats import rankdata

    if len(values) > CORRELATED_ROWS:
        values = values[np.linspace(0, len(values) - 1, CORRELATED_ROWS).astype(int)]
    z = np.zeros(values.shape)
    for f in range(values.shape[1]):
        there = ~np.isnan(values[:, f])
        rank = rankdata(values[there, f])
        z[there, f] = rank - rank.mean() if len(rank) else 0.0
    size = np.linalg.norm(z, axis=0)
    z /= np.where(size > 1e-9, size, np.inf)
    return z.T @ z


def clusters(correlation: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """[F] the variable that speaks for each: the strongest with |correlation| above 0.8 to it.

    From the strongest down, every variable that none speaks for yet takes those like itself.

    Args:
        strength: [F], IV.
    """
    leader = np.full(len(strength), -1)
    alike = np.abs(correlation) > ALIKE
    for f in np.argsort(-strength, kind="stable"):
        if leader[f] < 0:
            leader[alike[f] & (leader < 0)] = f
            leader[f] = f
    return leader


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Runs of columns small enough to be worked on at once."""
    step = max(1, _CELLS // max(rows, 1))
    for begin in range(0, columns, step):
        yield slice(begin, min(begin + step, columns))
