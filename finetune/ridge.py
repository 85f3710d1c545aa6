"""Ridge logistic regression with its strength chosen by cross-validation.

Minimises sum_i w_i log(1 + exp(-s_i eta_i)) + |beta|^2 / (2 C), intercept unpenalised, weights
scaled to mean one, so C means what it means in scikit-learn.

The whole grid of strengths over all folds is solved at once: rows are rotated so that their Gram
matrix is diagonal, the curvature bound W <= 1/4 (Boehning and Lindsay 1988) then is a diagonal
preconditioner for every fold and strength, and steps are accelerated (Nesterov 1983, restarts
after O'Donoghue and Candes 2015). The final fit is Newton's method.

Shapes: S rows, p inputs, r rotated inputs (at most min(S - 1, p)), J problems solved at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

# Stop when no fitted logit direction moves by more; off by < 1e-4 log-loss near the best C.
TOLERANCE = 1e-2
STRENGTHS = tuple(float(c) for c in np.logspace(-4, 1, 11))
# What corrects a model that is there already may be next to nothing, and is never as free.
CAUTIOUS = (1e-6, 1e-5, *STRENGTHS[:8])
# An average of regressions leaves out those of less weight.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Ridge:
    """A fitted regression: eta = intercept + z @ weights.

    Attributes:
        weights: [p] float64.
        strength: the C it was fitted with.
        losses: mean held-out log-loss per strength tried; empty without a choice.
    """

    intercept: float
    weights: np.ndarray
    strength: float
    losses: dict[float, float]


def fit_ridge(
    z: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    folds: np.ndarray,
    strengths: tuple[float, ...] = STRENGTHS,
    monotone: bool | np.ndarray = False,
    offset: np.ndarray | None = None,
) -> Ridge:
    """Choose C by held-out log-loss and fit on all rows.

    Args:
        z: [S, p] float64 inputs on comparable scales.
        y: [S] 0 or 1, both present.
        weight: [S] positive.
        folds: [R, S] fold of each row in R repeats; all zero where one C is given.
        monotone: weights are kept non-negative; all, or those that [p] bool marks.
        offset: [S] logits that stand beside the regression with weight one: what it shrinks to.
    """
    weight = weight / weight.mean()
    offset = np.zeros(len(y)) if offset is None else offset
    signed = np.broadcast_to(np.asarray(monotone, bool), z.shape[1:])
    middle = np.average(z, axis=0, weights=weight)
    z = z - middle
    losses: dict[float, float] = {}
    best = strengths[0]
    if signed.any():
        if len(strengths) > 1:
            losses = _monotone_losses(z, y, weight, folds, strengths, signed, offset)
            best = min(losses, key=lambda c: losses[c])
        beta = _fit_monotone(z, y, weight, best, signed, offset)
    else:
        rotated, back = _rotate(z)
        if len(strengths) > 1:
            losses = _held_out_losses(rotated, y, weight, folds, strengths, offset)
            best = min(losses, key=lambda c: losses[c])
        beta = _newton(rotated, y, weight, best, offset)
        beta = np.concatenate([beta[:1], back @ beta[1:]])
    return Ridge(float(beta[0] - middle @ beta[1:]), beta[1:], best, losses)


def average_ridge(
    z: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    folds: np.ndarray,
    strengths: tuple[float, ...] = STRENGTHS,
    monotone: bool | np.ndarray = False,
    offset: np.ndarray | None = None,
) -> Ridge:
    """The mean of the regressions of all strengths, each as far as held-out rows speak for it.

    Weights are proportional to exp(-S * held-out log-loss) (pseudo-BMA, Yao et al. 2018): with few
    labels the best strength is best by chance. Arguments as of `fit_ridge`; `strength` is the best.
    """
    chosen = fit_ridge(z, y, weight, folds, strengths, monotone, offset)
    if not chosen.losses:
        return chosen
    share = softmax(-len(y) * np.array([chosen.losses[c] for c in strengths]))
    share = np.where(share < LEAST_SHARE, 0.0, share)
    intercept, weights = 0.0, np.zeros(z.shape[1])
    once = np.zeros((1, len(y)), dtype=np.int64)
    for strength, part in zip(strengths, share / share.sum(), strict=True):
        if part:
            fitted = fit_ridge(z, y, weight, once, (strength,), monotone, offset)
            intercept += part * fitted.intercept
            weights += part * fitted.weights
    return Ridge(float(intercept), weights, chosen.strength, chosen.losses)


def prior_logit(y: np.ndarray, weight: np.ndarray) -> float:
    """Logit of the weighted bad rate, kept away from 0 and 1 by half a case."""
    bad = float(weight @ y) + 0.5
    return float(np.log(bad / (weight.sum() + 1.0 - bad)))


def _rotate(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a basis in which z'z is diagonal: ([S, r], [p, r] back to weights)."""
    rows, width = z.shape
    if width == 0:
        return z, np.zeros((0, 0))
    gram = z @ z.T if rows < width else z.T @ z
    values, vectors = np.linalg.eigh(gram)
    keep = values > max(values[-1], 1e-30) * 1e-10
    values, vectors = values[keep], vectors[:, keep]
    if rows < width:
        return vectors * np.sqrt(values), z.T @ (vectors / np.sqrt(values))
    return z @ vectors, vectors


def _with_ones(a: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(a)), a])


def _held_out_losses(
    a: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    folds: np.ndarray,
    strengths: tuple[float, ...],
    offset: np.ndarray,
) -> dict[float, float]:
    """Mean held-out log-loss per strength, all folds and strengths in one solve."""
    design = _with_ones(a)
    labels = [(r, k) for r in range(len(folds)) for k in np.unique(folds[r])]
    held = np.stack([folds[r] == k for r, k in labels], axis=1)
    train = np.repeat(np.where(held, 0.0, weight[:, None]), len(strengths), axis=1)
    penalty = np.tile([1.0 / c for c in strengths], len(labels))
    beta = _accelerated(design, y, train, penalty, offset)
    eta = offset[:, None] + design @ beta
    loss = np.logaddexp(0.0, eta) - y[:, None] * eta
    test = np.repeat(np.where(held, weight[:, None], 0.0), len(strengths), axis=1)
    total = (loss * test).sum(axis=0).reshape(len(labels), -1).sum(axis=0) / test[
        :, :: len(strengths)
    ].sum()
    return {c: float(v) for c, v in zip(strengths, total, strict=True)}


def _accelerated(
    design: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    penalty: np.ndarray,
    offset: np.ndarray,
    steps: int = 150,
) -> np.ndarray:
    """[r + 1, J] solutions of J problems with row weights [S, J] and penalties [J]."""
    # The bound must cover every problem: full Gram times the largest row weight.
    curvature = (design**2).sum(axis=0)[:, None] * (0.25 * train.max())
    penalties = np.vstack([np.zeros_like(penalty), np.tile(penalty, (design.shape[1] - 1, 1))])
    step = 1.0 / (curvature + penalties)
    beta = np.zeros((design.shape[1], train.shape[1]))
    bad = (train * y[:, None]).sum(axis=0) + 0.5
    beta[0] = np.log(bad / (train.sum(axis=0) + 1.0 - bad)) - offset.mean()
    look, momentum = beta.copy(), np.ones(train.shape[1])
    for _ in range(steps):
        residual = (expit(offset[:, None] + design @ look) - y[:, None]) * train
        gradient = design.T @ residual + penalties * look
        fresh = look - step * gradient
        move = fresh - beta
        restart = (gradient * move).sum(axis=0) > 0
        grown = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        rate = np.where(restart, 0.0, (momentum - 1.0) / grown)
        look = fresh + rate * move
        momentum = np.where(restart, 1.0, grown)
        beta = fresh
        if np.abs(move * np.sqrt(curvature)).max() < TOLERANCE * np.sqrt(len(y)):
            break
    return beta


def _newton(
    a: np.ndarray, y: np.ndarray, weight: np.ndarray, strength: float, offset: np.ndarray
) -> np.ndarray:
    """[r + 1] exact solution, Newton with halving."""
    design = _with_ones(a)
    penalty = np.full(design.shape[1], 1.0 / strength)
    penalty[0] = 1e-9
    beta = np.zeros(design.shape[1])
    beta[0] = prior_logit(y, weight) - offset.mean()

    def objective(b: np.ndarray) -> float:
        eta = offset + design @ b
        return float(weight @ (np.logaddexp(0.0, eta) - y * eta) + 0.5 * penalty @ b**2)

    value = objective(beta)
    for _ in range(50):
        p = expit(offset + design @ beta)
        gradient = design.T @ (weight * (p - y)) + penalty * beta
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        direction = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (fresh := objective(beta - size * direction)) > value and size > 1e-6:
            size /= 2.0
        beta = beta - size * direction
        if value - fresh < 1e-10 * (1.0 + abs(value)):
            break
        value = fresh
    return beta


def _fit_monotone(
    z: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    strength: float,
    signed: np.ndarray,
    offset: np.ndarray,
) -> np.ndarray:
    """[p + 1] solution with the weights that `signed` ([p] bool) marks non-negative."""
    design = _with_ones(z)
    penalty = np.full(design.shape[1], 1.0 / strength)
    penalty[0] = 0.0

    def objective(b: np.ndarray) -> tuple[float, np.ndarray]:
        eta = offset + design @ b
        value = weight @ (np.logaddexp(0.0, eta) - y * eta) + 0.5 * penalty @ b**2
        return float(value), design.T @ (weight * (expit(eta) - y)) + penalty * b

    start = np.zeros(design.shape[1])
    start[0] = prior_logit(y, weight) - offset.mean()
    bounds = [(None, None)] + [(0.0 if s else None, None) for s in signed]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x


def _monotone_losses(
    z: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    folds: np.ndarray,
    strengths: tuple[float, ...],
    signed: np.ndarray,
    offset: np.ndarray,
) -> dict[float, float]:
    losses = dict.fromkeys(strengths, 0.0)
    total = 0.0
    for fold in folds:
        for k in np.unique(fold):
            test = fold == k
            total += weight[test].sum()
            for strength in strengths:
                beta = _fit_monotone(
                    z[~test], y[~test], weight[~test], strength, signed, offset[~test]
                )
                eta = offset[test] + beta[0] + z[test] @ beta[1:]
                loss = np.logaddexp(0.0, eta) - y[test] * eta
                losses[strength] += float(weight[test] @ loss)
    return {c: v / total for c, v in losses.items()}
