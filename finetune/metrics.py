"""Measures of a score, weighted, with intervals and paired comparisons.

Labels: 1 bad, 0 good. A higher score means a worse customer. `score` may be any monotone score;
`p` must be a probability.

Shapes: S samples, G groups of tied scores, D bootstrap draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.errors import SampleError

EPS = 1e-12


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap percentile interval."""

    value: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """A paired difference, first minus second.

    Attributes:
        p_value: two-sided.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float


def _weights(y: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    return np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)


def _both_classes(y: np.ndarray) -> np.ndarray:
    y = np.asarray(y, np.float64)
    if not len(y) or y.min() == y.max():
        raise SampleError("a ranking measure needs both labels, 0 and 1")
    return y


def _tied(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight of bads and of goods per group of tied scores, ascending, and the scores: [G]."""
    values, at = np.unique(np.asarray(score, np.float64), return_inverse=True)
    bad = np.bincount(at, weights=weight * y, minlength=len(values))
    good = np.bincount(at, weights=weight * (1 - y), minlength=len(values))
    return bad, good, values


def auc(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve; ties count half.

    Raises:
        SampleError: one class only.
    """
    y = _both_classes(y)
    bad, good, _ = _tied(y, score, _weights(y, weight))
    below = np.cumsum(good) - good
    return float((bad * (below + 0.5 * good)).sum() / (bad.sum() * good.sum()))


def gini(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """2 AUC - 1."""
    return 2.0 * auc(y, score, weight) - 1.0


def ks(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Largest distance between the score distributions of goods and bads.

    Raises:
        SampleError: one class only.
    """
    y = _both_classes(y)
    bad, good, _ = _tied(y, score, _weights(y, weight))
    return float(np.abs(np.cumsum(bad) / bad.sum() - np.cumsum(good) / good.sum()).max())


def log_loss(y: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean negative log-likelihood."""
    return float(np.average(log_losses(y, p), weights=_weights(y, weight)))


def log_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """[S] negative log-likelihood of each row; p is kept off 0 and 1 by 1e-12."""
    p = np.clip(np.asarray(p, np.float64), EPS, 1 - EPS)
    return -np.where(np.asarray(y) == 1, np.log(p), np.log1p(-p))


def brier(y: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean squared error of the probability (Brier 1950)."""
    return float(np.average((np.asarray(p) - np.asarray(y)) ** 2, weights=_weights(y, weight)))


def ece(y: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None, bins: int = 10) -> float:
    """Expected calibration error over equally filled bins (Naeini et al. 2015)."""
    curve = calibration_curve(y, p, weight, bins)
    return float(
        (curve["weight"] * np.abs(curve["observed"] - curve["predicted"])).sum()
        / curve["weight"].sum()
    )


def calibration_curve(
    y: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None, bins: int = 10
) -> dict[str, np.ndarray]:
    """Mean predicted and observed rate in equally filled bins; ties stay together.

    Returns:
        predicted, observed, weight, count: one entry per bin that holds rows.
    """
    y, p, w = np.asarray(y, np.float64), np.asarray(p, np.float64), _weights(y, weight)
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    at = np.searchsorted(edges, p, side="right")
    mass = np.bincount(at, weights=w, minlength=len(edges) + 1)
    keep = mass > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(at, weights=w * values, minlength=len(mass))[keep] / mass[keep]

    count = np.bincount(at, minlength=len(mass))[keep]
    return {"predicted": mean(p), "observed": mean(y), "weight": mass[keep], "count": count}


def frozen_bins(score: np.ndarray, bins: int = 10) -> np.ndarray:
    """Inner quantile edges of a development score, to be kept and passed to `psi`."""
    finite = np.asarray(score, np.float64)
    finite = finite[np.isfinite(finite)]
    return np.unique(np.quantile(finite, np.linspace(0, 1, bins + 1)[1:-1]))


def bin_shares(
    score: np.ndarray, edges: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
    """[len(edges) + 2] share of each bin, the last one that of missing scores."""
    score = np.asarray(score, np.float64)
    at = np.searchsorted(edges, score, side="right")
    at = np.where(np.isnan(score), len(edges) + 1, at)
    mass = np.bincount(at, weights=_weights(score, weight), minlength=len(edges) + 2)
    return mass / mass.sum()


def psi_of_shares(expected: np.ndarray, actual: np.ndarray, floor: float = 1e-4) -> float:
    """Population stability index of two share vectors over the same frozen bins."""
    e = np.maximum(np.asarray(expected, np.float64), floor)
    a = np.maximum(np.asarray(actual, np.float64), floor)
    return float(((a - e) * np.log(a / e)).sum())


def psi(
    reference: np.ndarray, current: np.ndarray, edges: np.ndarray | None = None, bins: int = 10
) -> float:
    """Population stability index of two samples of scores.

    Bins are the deciles of the reference, never of the current sample; pass the edges kept from
    development where the reference itself is not at hand any more.
    """
    edges = frozen_bins(reference, bins) if edges is None else edges
    return psi_of_shares(bin_shares(reference, edges), bin_shares(current, edges))


def roc_curve(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[G + 1] false positive rate, true positive rate and threshold, highest score first."""
    y = _both_classes(y)
    bad, good, values = _tied(y, score, _weights(y, weight))
    return (
        np.concatenate([[0.0], np.cumsum(good[::-1]) / good.sum()]),
        np.concatenate([[0.0], np.cumsum(bad[::-1]) / bad.sum()]),
        np.concatenate([[np.inf], values[::-1]]),
    )


def ks_curve(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """[G] cumulative shares of all, of bads and of goods by ascending score."""
    y = _both_classes(y)
    bad, good, values = _tied(y, score, _weights(y, weight))
    every = bad + good
    return {
        "score": values,
        "population": np.cumsum(every) / every.sum(),
        "bad": np.cumsum(bad) / bad.sum(),
        "good": np.cumsum(good) / good.sum(),
    }


def lift_table(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, bins: int = 10
) -> list[dict[str, float]]:
    """Equally filled score bands, worst first: rows, bads, bad rate, lift, captured share."""
    y = np.asarray(y, np.float64)
    w = _weights(y, weight)
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")
    middle = np.cumsum(w[order]) - 0.5 * w[order]
    band = np.minimum((middle / w.sum() * bins).astype(int), bins - 1)
    overall = float(w @ y / w.sum())
    out: list[dict[str, float]] = []
    captured = 0.0
    for b in range(bins):
        rows = order[band == b]
        if not len(rows):
            continue
        mass, bads = float(w[rows].sum()), float(w[rows] @ y[rows])
        captured += bads
        out.append(
            {
                "band": b + 1,
                "rows": len(rows),
                "weight": mass,
                "bads": bads,
                "bad_rate": bads / mass,
                "lift": bads / mass / max(overall, EPS),
                "captured": captured / max(float(w @ y), EPS),
                "score_min": float(np.min(score[rows])),
                "score_max": float(np.max(score[rows])),
            }
        )
    return out


def approval_rate_at_bad_rate(
    y: np.ndarray, score: np.ndarray, bad_rate: float, weight: np.ndarray | None = None
) -> float:
    """Largest share that can be approved, best scores first, with at most `bad_rate` bads."""
    y = np.asarray(y, np.float64)
    bad, good, _ = _tied(y, score, _weights(y, weight))
    approved = np.cumsum(bad + good)
    fits = np.cumsum(bad) <= bad_rate * approved + EPS
    return float(approved[fits].max() / approved[-1]) if fits.any() else 0.0
