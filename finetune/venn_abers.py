"""Venn-Abers calibration of few labels: isotonic regression that knows how little it saw.

Every score is calibrated twice, as if it were one more case of label 0 and of label 1. The two
probabilities p0 <= p1 are those of an inductive Venn-Abers predictor (Vovk and Petej 2014), one of
them perfectly calibrated whatever the scores are, and p1 / (1 - p0 + p1) is their minimax merger
for log-loss. Calibration scores must not come from models that saw their labels: out-of-fold ones.

The map is a step function and would make ties. A share of the straight (Platt) calibration is
mixed in, in log-odds, so that it rises strictly and no order is lost.

Shapes: S calibration scores, U distinct ones, G = 2 U + 1 places at and between them.
"""

from __future__ import annotations

import numpy as np

MAX_KNOTS = 200


def merged(p0: np.ndarray, p1: np.ndarray) -> np.ndarray:
    """One probability from the two, minimax for log-loss: p1 / (1 - p0 + p1)."""
    return p1 / (1.0 - p0 + p1)


def multiprobabilities(
    logit: np.ndarray, y: np.ndarray, weight: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[G] p0 and p1 of new scores `at` [G], given [S] calibration scores, labels and weights.

    A new score weighs as much as the mean calibration score.
    """
    from sklearn.isotonic import isotonic_regression

    x, place = np.unique(logit, return_inverse=True)
    weight = weight / weight.mean()
    mass = np.bincount(place, weights=weight)
    bad = np.bincount(place, weights=weight * y)
    left = np.searchsorted(x, at, side="left")
    known = (left < len(x)) & (x[np.minimum(left, len(x) - 1)] == at)
    out = np.empty((2, len(at)))
    for g, (i, same) in enumerate(zip(left.tolist(), known.tolist(), strict=True)):
        if same:
            m, b = mass.copy(), bad.copy()
            m[i] += 1.0
        else:
            m, b = np.insert(mass, i, 1.0), np.insert(bad, i, 0.0)
        out[0, g] = isotonic_regression(b / m, sample_weight=m)[i]
        b[i] += 1.0
        out[1, g] = isotonic_regression(b / m, sample_weight=m)[i]
    return out[0], out[1]


def venn_abers_table(
    logit: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Knots of the merged probability over the score: ascending places, rising probabilities.

    Args:
        logit: [S] out-of-fold logits. y: [S] labels 0 or 1. weight: [S] positive, or None.
    Returns:
        [G] places at, between and just beyond the scores, and [G] probabilities inside (0, 1), at
        most `MAX_KNOTS` each.
    """
    logit = np.asarray(logit, np.float64)
    weight = np.ones(len(logit)) if weight is None else np.asarray(weight, np.float64)
    x = np.unique(logit)
    if len(x) > MAX_KNOTS // 2:
        # Neighbours share a place: nothing is lost that a table of this size could show.
        middle = np.quantile(x, (np.arange(MAX_KNOTS // 2) + 0.5) / (MAX_KNOTS // 2))
        logit = middle[np.abs(logit[:, None] - middle[None]).argmin(axis=1)]
        x = np.unique(logit)
    between = (x[1:] + x[:-1]) / 2
    places = np.sort(np.concatenate([x, between[(between > x[:-1]) & (between < x[1:])]]))
    p0, p1 = multiprobabilities(logit, np.asarray(y, np.float64), weight, places)
    # Rounding alone can make a step of 1e-17 downwards.
    return places, np.maximum.accumulate(merged(p0, p1))
