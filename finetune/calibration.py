"""From scores to probabilities, points and bands.

Shapes: S samples. Calibrations are plain JSON data; `apply` is numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foundation.errors import ArtifactError

ISOTONIC_BADS = 1000
MAX_STEPS = 200
# The share of the straight calibration in a Venn-Abers table, in log-odds: its steps would be ties.
STRAIGHT_SHARE = 0.5
STRAIGHT_PRIOR = 0.3
# Up to so many labels Venn-Abers; measured at 100 to 300, see docs/LOG.md.
VENN_ABERS_LABELS = 400
CLEARLY_TURNED = 4.0


@dataclass(frozen=True)
class Platt:
    """p = sigmoid(slope * logit + intercept); of a calibration the slope is never negative."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, logit: np.ndarray) -> np.ndarray:
        """[S] probabilities of [S] logits."""
        return sigmoid(self.slope * np.asarray(logit, np.float64) + self.intercept)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"method": "platt", "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Isotonic:
    """p interpolated between (logit, probability) knots, both non-decreasing."""

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]

    def apply(self, logit: np.ndarray) -> np.ndarray:
        """[S] probabilities of [S] logits; beyond the knots that of the outermost."""
        return np.interp(np.asarray(logit, np.float64), self.logits, self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "method": "isotonic",
            "logits": list(self.logits),
            "probabilities": list(self.probabilities),
        }


@dataclass(frozen=True)
class VennAbers:
    """Venn-Abers probabilities interpolated in log-odds over knots, tilted by a Platt calibration.

    log-odds = (1 - share) * table(logit) + share * (slope * logit + intercept); a positive slope
    makes it rise strictly, so no two logits share a probability that differ.
    """

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    slope: float
    intercept: float
    share: float = STRAIGHT_SHARE

    def apply(self, logit: np.ndarray) -> np.ndarray:
        """[S] probabilities of [S] logits."""
        logit = np.asarray(logit, np.float64)
        p = np.array(self.probabilities)
        table = np.interp(logit, self.logits, np.log(p) - np.log1p(-p))
        straight = self.slope * logit + self.intercept
        return sigmoid((1 - self.share) * table + self.share * straight)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "method": "venn-abers",
            "logits": list(self.logits),
            "probabilities": list(self.probabilities),
            "slope": self.slope,
            "intercept": self.intercept,
            "share": self.share,
        }


Calibration = Platt | Isotonic | VennAbers


def calibration_from_dict(data: dict[str, Any]) -> Calibration:
    """The calibration written by `to_dict`.

    Raises:
        ArtifactError: unknown method, missing or impossible numbers.
    """
    try:
        if data["method"] == "platt":
            slope, intercept = float(data["slope"]), float(data["intercept"])
            out: Calibration = Platt(slope, intercept)
            sound = bool(np.isfinite([slope, intercept]).all()) and slope >= 0
        elif data["method"] == "isotonic":
            out = Isotonic(
                tuple(map(float, data["logits"])), tuple(map(float, data["probabilities"]))
            )
            x, p = np.array(out.logits), np.array(out.probabilities)
            sound = (
                len(x) == len(p) > 0
                and bool((np.diff(x) > 0).all())
                and bool((np.diff(p) >= 0).all())
                and p[0] >= 0
                and p[-1] <= 1
            )
        elif data["method"] == "venn-abers":
            out = VennAbers(
                tuple(map(float, data["logits"])),
                tuple(map(float, data["probabilities"])),
                float(data["slope"]),
                float(data["intercept"]),
                float(data["share"]),
            )
            x, p = np.array(out.logits), np.array(out.probabilities)
            sound = (
                len(x) == len(p) > 0
                and bool(np.isfinite([*out.logits, out.slope, out.intercept]).all())
                and bool((np.diff(x) > 0).all())
                and bool((np.diff(p) >= 0).all())
                and 0 < p[0] <= p[-1] < 1
                and out.slope >= 0
                and 0 <= out.share <= 1
            )
        else:
            raise ArtifactError(
                f"calibration method '{data['method']}' is none of platt, isotonic, venn-abers"
            )
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtifactError(f"calibration is incomplete or no numbers: {exc}") from None
    if not sound:
        raise ArtifactError("calibration is not a non-decreasing map to probabilities")
    return out


def apply_calibration(data: dict[str, Any], logit: np.ndarray) -> np.ndarray:
    """[S] probabilities of [S] logits under a calibration written by `to_dict`."""
    return calibration_from_dict(data).apply(logit)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow, float64."""
    x = np.asarray(x, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def fit_platt(
    logit: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None = None,
    prior: float = 1.0,
    either_way: bool = False,
) -> Platt:
    """Logistic regression of labels on logits, kept near the identity where labels are few.

    Targets are smoothed as by Platt (1999); a Gaussian prior on the slope of mean 1 and standard
    deviation `prior` (in units of the standardised logit) holds it where bads are few. Newton's
    method; a negative slope becomes zero.

    Args:
        logit: [S] out-of-fold logits. y: [S] labels 0 or 1. weight: [S] or None.
        either_way: a negative slope stays where the labels' likelihood under it is clearly
            higher, by a factor of exp(`CLEARLY_TURNED`), than without any slope.
    """
    weight = np.ones(len(y)) if weight is None else weight / weight.mean()
    logit = np.asarray(logit, np.float64)
    center = float(np.average(logit, weights=weight))
    scale = float(np.sqrt(np.average((logit - center) ** 2, weights=weight)))
    bads, goods = float(weight @ (y == 1)), float(weight @ (y == 0))
    target = np.where(y == 1, (bads + 1) / (bads + 2), 1 / (goods + 2))
    if scale < 1e-12:
        rate = float(np.average(target, weights=weight))
        return Platt(0.0, float(np.log(rate / (1 - rate))))
    z = (logit - center) / scale
    slope = _newton_platt(z, target, weight, scale, prior)
    if slope[1] < 0:
        rate = float(np.average(target, weights=weight))
        flat = Platt(0.0, float(np.log(rate / (1 - rate))))
        eta = slope[0] + slope[1] * z
        loss = weight @ (np.logaddexp(0, eta) - target * eta)
        without = weight @ (np.logaddexp(0, flat.intercept) - target * flat.intercept)
        if not either_way or without - loss < CLEARLY_TURNED:
            return flat
    return Platt(float(slope[1] / scale), float(slope[0] - slope[1] * center / scale))


def _newton_platt(
    z: np.ndarray, target: np.ndarray, weight: np.ndarray, start: float, prior: float
) -> np.ndarray:
    """[intercept, slope] on standardised logits; prior slope `start`."""
    beta = np.array([0.0, start])
    design = np.column_stack([np.ones(len(z)), z])
    pull = np.array([1e-9, 1.0 / prior**2])
    home = np.array([0.0, start])

    def objective(b: np.ndarray) -> float:
        eta = design @ b
        return float(weight @ (np.logaddexp(0, eta) - target * eta) + 0.5 * pull @ (b - home) ** 2)

    value = objective(beta)
    for _ in range(50):
        p = sigmoid(design @ beta)
        gradient = design.T @ (weight * (p - target)) + pull * (beta - home)
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(pull)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (fresh := objective(beta - size * step)) > value and size > 1e-8:
            size /= 2
        beta = beta - size * step
        if value - fresh < 1e-12 * (1 + abs(value)):
            break
        value = fresh
    return beta


def fit_isotonic(logit: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> Isotonic:
    """Pool-adjacent-violators (Barlow 1972), thinned to at most `MAX_STEPS` knots.

    Probabilities are kept off 0 and 1 by half a case in the outermost blocks.
    """
    from sklearn.isotonic import isotonic_regression

    weight = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    x, at = np.unique(np.asarray(logit, np.float64), return_inverse=True)
    mass = np.bincount(at, weights=weight)
    mean = np.bincount(at, weights=weight * y) / mass
    fitted = isotonic_regression(mean, sample_weight=mass)
    floor = 0.5 / float(weight.sum() / weight.mean())
    fitted = np.clip(fitted, floor, 1 - floor)
    change = np.flatnonzero(np.diff(fitted) > 0)
    knots = np.unique(np.concatenate([[0], change, change + 1, [len(x) - 1]]))
    if len(knots) > MAX_STEPS:
        knots = knots[np.unique(np.linspace(0, len(knots) - 1, MAX_STEPS).astype(int))]
    return Isotonic(tuple(x[knots].tolist()), tuple(fitted[knots].tolist()))


def fit_venn_abers(logit: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> VennAbers:
    """See `finetune.venn_abers`; the tilt is the Platt calibration of the same rows."""
    from finetune.venn_abers import venn_abers_table

    straight = fit_platt(logit, y, weight, STRAIGHT_PRIOR)
    x, p = venn_abers_table(logit, y, weight)
    return VennAbers(tuple(x.tolist()), tuple(p.tolist()), straight.slope, straight.intercept)


def fit_calibration(
    logit: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None
) -> Calibration:
    """Isotonic with `ISOTONIC_BADS` bads and as many goods, Venn-Abers with few labels, else Platt.

    Venn-Abers needs two of either label; a score that runs against the labels gets no calibration
    by steps either, but Platt's constant.
    """
    if min(int((y == 1).sum()), int((y == 0).sum())) >= ISOTONIC_BADS:
        return fit_isotonic(logit, y, weight)
    straight = fit_platt(logit, y, weight)
    few = len(y) <= VENN_ABERS_LABELS and min(int((y == 1).sum()), int((y == 0).sum())) >= 2
    if few and straight.slope > 0:
        return fit_venn_abers(logit, y, weight)
    return straight


def points(p: np.ndarray, base: float = 600.0, pdo: float = 20.0, odds: float = 50.0) -> np.ndarray:
    """[S] scorecard points: `base` at good:bad odds of `odds`, `pdo` more when odds double.

    Probabilities are held within 1e-9 of 0 and 1.
    """
    p = np.clip(np.asarray(p, np.float64), 1e-9, 1 - 1e-9)
    return base + pdo / np.log(2.0) * (np.log((1 - p) / p) - np.log(odds))


def bands(p: np.ndarray, thresholds: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """[S] names of decision bands: names[i] where exactly i thresholds are at or below p.

    Raises:
        ArtifactError: thresholds not ascending, or not one name more than thresholds.
    """
    edges = np.asarray(thresholds, np.float64)
    if len(names) != len(edges) + 1 or (np.diff(edges) <= 0).any():
        raise ArtifactError(
            f"{len(edges)} thresholds need to ascend and to have {len(edges) + 1} names, "
            f"found {len(names)}"
        )
    return np.asarray(names, dtype=object)[np.searchsorted(edges, np.asarray(p), side="right")]
