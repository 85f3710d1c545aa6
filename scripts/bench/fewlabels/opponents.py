"""The opponents: what a careful team without a pretrained model fits on a few hundred labels.

Each learner chooses its settings by cross-validation inside the labels it is given and returns a
function from a feature table to scores; nothing else of the benchmark reaches it.

Shapes: S samples, F columns, m inputs of the trees.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import lightgbm as lgb
import numpy as np
from scipy.special import ndtri, softmax

from finetune.crossval import assign_folds
from finetune.gbdt import tree_inputs
from finetune.linear import Inputs
from finetune.ridge import LEAST_SHARE, Ridge, fit_ridge, prior_logit
from finetune.scorecard import shortlist, woe_of
from finetune.table import FeatureTable

Score = Callable[[FeatureTable], np.ndarray]
Learner = Callable[[FeatureTable, np.ndarray, int], tuple[Score, dict[str, Any]]]

STRENGTHS = tuple(float(c) for c in np.logspace(-4.5, 1, 12))
BAGS = 3
MIN_TREES, MAX_TREES = 30, 300
# Shape, leaf size and L2 of LightGBM; columns are few per tree, as aggregates repeat each other.
LGB_SHAPES: tuple[dict[str, Any], ...] = (
    {"num_leaves": 3, "min_data_in_leaf": 10, "lambda_l2": 10.0, "feature_fraction": 0.2},
    {"num_leaves": 5, "min_data_in_leaf": 15, "lambda_l2": 20.0, "feature_fraction": 0.2},
    {"num_leaves": 8, "min_data_in_leaf": 20, "lambda_l2": 20.0, "feature_fraction": 0.5},
    {"num_leaves": 15, "min_data_in_leaf": 30, "lambda_l2": 30.0, "feature_fraction": 0.3},
)
LGB_FIXED: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "max_bin": 63,
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "feature_pre_filter": False,
    "boost_from_average": False,
    "min_data_in_bin": 3,
}
CAT_SHAPES: tuple[dict[str, Any], ...] = (
    {"depth": 2, "l2_leaf_reg": 10.0, "rsm": 0.2},
    {"depth": 4, "l2_leaf_reg": 20.0, "rsm": 0.2},
)
CAT_FIXED: dict[str, Any] = {
    "loss_function": "Logloss",
    "learning_rate": 0.05,
    "border_count": 32,
    "bootstrap_type": "Bernoulli",
    "subsample": 0.7,
    "thread_count": 1,
    "verbose": False,
    "allow_writing_files": False,
}
MANY_ROWS = 5_000
SCORECARD_BINS = (3, 6, 12)
SCORECARD_COLUMNS = (5, 10, 20)
# Cases at the mean bad rate added to every bin: a bin of a hundred labels holds a few bads.
SCORECARD_SMOOTHING = 20.0


def lightgbm(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """Small trees, strong L2; shape and number of trees by 4-fold log-loss, bagged over seeds."""
    inputs = tree_inputs(table)
    x = inputs.matrix(table.matrix(inputs.columns)).astype(np.float64)
    base = prior_logit(y, np.ones(len(y)))
    data = lgb.Dataset(
        x, label=y, init_score=np.full(len(y), base), params=LGB_FIXED, free_raw_data=False
    ).construct()
    folds = assign_folds(y, np.arange(len(y)), 4, 1, seed)[0]
    best: tuple[float, int, dict[str, Any]] = (np.inf, MIN_TREES, LGB_SHAPES[0])
    for shape in LGB_SHAPES:
        if shape["min_data_in_leaf"] * 6 > len(y):
            continue
        total = np.zeros(MAX_TREES)
        for k in np.unique(folds):
            test = np.flatnonzero(folds == k)
            record: dict[str, Any] = {}
            lgb.train(
                LGB_FIXED | shape | {"seed": seed},
                data.subset(np.flatnonzero(folds != k)),
                num_boost_round=MAX_TREES,
                valid_sets=[data.subset(test)],
                valid_names=["held"],
                callbacks=[
                    lgb.record_evaluation(record),
                    lgb.early_stopping(60, verbose=False),
                ],
            )
            total += _padded(record["held"]["binary_logloss"]) * len(test)
        best = min(best, _best_round(total / len(y), shape), key=lambda b: b[0])
    loss, rounds, shape = best
    boosters = [
        lgb.train(LGB_FIXED | shape | {"seed": seed + 1000 * (b + 1)}, data, rounds)
        for b in range(BAGS)
    ]

    def score(held: FeatureTable) -> np.ndarray:
        z = inputs.matrix(held.matrix(inputs.columns)).astype(np.float64)
        return np.mean([b.predict(z, raw_score=True, num_threads=1) for b in boosters], axis=0)

    return score, {**shape, "trees": rounds, "inner_log_loss": loss}


def catboost(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """Oblivious trees; depth and number of trees by 4-fold log-loss, bagged over seeds."""
    from catboost import CatBoostClassifier, Pool

    inputs = tree_inputs(table)
    x = inputs.matrix(table.matrix(inputs.columns))
    folds = assign_folds(y, np.arange(len(y)), 4, 1, seed)[0]
    best: tuple[float, int, dict[str, Any]] = (np.inf, MAX_TREES, CAT_SHAPES[-1])
    for shape in CAT_SHAPES if len(y) < MANY_ROWS else ():
        total = np.zeros(MAX_TREES)
        for k in np.unique(folds):
            train, test = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
            model = CatBoostClassifier(iterations=MAX_TREES, random_seed=seed, **CAT_FIXED, **shape)
            model.fit(
                Pool(x[train], y[train]),
                eval_set=Pool(x[test], y[test]),
                early_stopping_rounds=60,
                use_best_model=False,
            )
            total += _padded(model.get_evals_result()["validation"]["Logloss"]) * len(test)
        best = min(best, _best_round(total / len(y), shape), key=lambda b: b[0])
    loss, rounds, shape = best
    bags = BAGS if len(y) < MANY_ROWS else 1
    models = []
    for b in range(bags):
        one = CatBoostClassifier(
            iterations=rounds, random_seed=seed + 1000 * (b + 1), **CAT_FIXED, **shape
        )
        models.append(one.fit(Pool(x, y)))

    def score(held: FeatureTable) -> np.ndarray:
        z = Pool(inputs.matrix(held.matrix(inputs.columns)))
        raw = [m.predict(z, prediction_type="RawFormulaVal", thread_count=1) for m in models]
        return np.mean(raw, axis=0)

    return score, {**shape, "trees": rounds, "inner_log_loss": loss}


def ridge_logistic(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """Ridge logistic regression: inputs standardised or as normal scores, whichever loses less."""
    weight = np.ones(len(y))
    folds = assign_folds(y, np.arange(len(y)), 5, 2 if len(y) < 1000 else 1, seed)
    found = []
    for name, prepare in (("standard", _standard(table, weight)), ("normal", _normal(table))):
        ridge = fit_ridge(prepare(table), y, weight, folds, STRENGTHS)
        found.append((min(ridge.losses.values()), name, prepare, ridge))
    loss, name, prepare, ridge = min(found, key=lambda f: f[0])

    def score(held: FeatureTable) -> np.ndarray:
        return ridge.intercept + prepare(held) @ ridge.weights

    return score, {"inputs": name, "c": ridge.strength, "inner_log_loss": loss}


def scorecard(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """At most 20 columns in coarse bins by weight of evidence, as an average of scorecards.

    Numbers of bins, counts of columns and ridge strengths are weighted by what cross-validation
    says of them, proportional to exp(-S * held-out log-loss) (pseudo-BMA, Yao et al. 2018): one
    scorecard, the best, is best by chance on a hundred labels. Columns, bins and WOE are found anew
    in every inner fold.
    """
    weight = np.ones(len(y))
    folds = assign_folds(y, np.arange(len(y)), 5, 2 if len(y) < 1000 else 1, seed)
    choices = list(product(SCORECARD_BINS, SCORECARD_COLUMNS, STRENGTHS))
    losses = dict.fromkeys(choices, 0.0)
    for fold in folds:
        for k in np.unique(fold):
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            part, held = table.take(train), table.take(test)
            woe = {bins: _woe(part, y[train], bins) for bins in SCORECARD_BINS}
            seen = {bins: (w(part), w(held)) for bins, w in woe.items()}
            for bins, most, c in choices:
                ridge = _at_strength(seen[bins][0][:, :most], y[train], weight[train], c)
                eta = ridge.intercept + seen[bins][1][:, :most] @ ridge.weights
                losses[bins, most, c] += float((np.logaddexp(0, eta) - y[test] * eta).sum())
    mean = np.array([losses[choice] for choice in choices]) / len(folds)
    share = softmax(-mean)
    share = np.where(share < LEAST_SHARE * share.max(), 0.0, share)
    share /= share.sum()
    woe = {bins: _woe(table, y, bins) for bins in SCORECARD_BINS}
    seen = {bins: w(table) for bins, w in woe.items()}
    cards = [
        (part, bins, most, _at_strength(seen[bins][:, :most], y, weight, c))
        for part, (bins, most, c) in zip(share, choices, strict=True)
        if part
    ]

    def score(held: FeatureTable) -> np.ndarray:
        z = {bins: w(held) for bins, w in woe.items()}
        parts = [p * (r.intercept + z[b][:, :most] @ r.weights) for p, b, most, r in cards]
        return np.sum(parts, axis=0)

    best = int(np.argmin(mean))
    bins, most, c = choices[best]
    return score, {"bins": bins, "columns": most, "c": c, "inner_log_loss": mean[best] / len(y)}


def forecast_ridge(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """Ridge logistic regression on the log-odds of boosted forecasts."""
    weight = np.ones(len(y))
    prepare = _standard(table, weight)
    folds = assign_folds(y, np.arange(len(y)), 5, 4 if len(y) < 1000 else 1, seed)
    ridge = fit_ridge(prepare(table), y, weight, folds, STRENGTHS)

    def score(held: FeatureTable) -> np.ndarray:
        return ridge.intercept + prepare(held) @ ridge.weights

    return score, {"c": ridge.strength, "inner_log_loss": min(ridge.losses.values())}


def untuned(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """LightGBM as it comes, on the profile and the latest value of every event field."""
    names = [c.name for c in table.columns if c.block != "aggregate" or c.name.endswith(" last")]
    params = {
        "objective": "binary",
        "verbosity": -1,
        "num_threads": 1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
    }
    booster = lgb.train(params, lgb.Dataset(table.matrix(names).astype(np.float64), label=y))

    def score(held: FeatureTable) -> np.ndarray:
        x = held.matrix(names).astype(np.float64)
        return booster.predict(x, raw_score=True, num_threads=1)

    return score, {"columns": len(names)}


def _padded(losses: list[float]) -> np.ndarray:
    """[MAX_TREES] losses; where boosting stopped early the last one stands."""
    return np.pad(np.asarray(losses), (0, MAX_TREES - len(losses)), mode="edge")


def _best_round(losses: np.ndarray, shape: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
    at = MIN_TREES - 1 + int(np.argmin(losses[MIN_TREES - 1 :]))
    return float(losses[at]), at + 1, shape


def _standard(table: FeatureTable, weight: np.ndarray) -> Score:
    """Standardised inputs, signed logarithms where they help, levels and missingness as 0/1."""
    return Inputs.fit(table, weight).matrix


def _normal(table: FeatureTable) -> Score:
    """Numbers as normal scores of their training ranks; levels and missingness as 0/1."""
    kinds = np.array([c.kind for c in table.columns])
    numbers = np.flatnonzero(kinds == "number")
    sorted_values = [np.sort(v[~np.isnan(v)]) for v in table.values[:, numbers].T]
    keep = [i for i, v in enumerate(sorted_values) if len(v) >= 5 and v[0] < v[-1]]
    numbers = numbers[keep]
    sorted_values = [sorted_values[i] for i in keep]
    inputs = Inputs.fit(table, np.ones(len(table)))
    rest = Inputs([i for i in inputs.inputs if i.kind != "number"])

    def matrix(held: FeatureTable) -> np.ndarray:
        out = np.zeros((len(held), len(numbers)))
        for j, (column, values) in enumerate(zip(numbers, sorted_values, strict=True)):
            x = held.values[:, column]
            left = np.searchsorted(values, x, side="left")
            right = np.searchsorted(values, x, side="right")
            rank = (left + right + 1) / 2 / (len(values) + 1)
            z = ndtri(np.clip(rank, 0.001, 0.999))
            out[:, j] = np.where(np.isnan(x), 0.0, np.clip(z, -3.0, 3.0))
        return np.hstack([out, rest.matrix(held)])

    return matrix


def _at_strength(z: np.ndarray, y: np.ndarray, weight: np.ndarray, c: float) -> Ridge:
    return fit_ridge(z, y, weight, np.zeros((1, 1), dtype=np.int64), (c,))


def _woe(table: FeatureTable, y: np.ndarray, bins: int) -> Score:
    """Weight of evidence of at most 20 columns, best information value first."""
    weight = np.ones(len(y))
    listed = shortlist(table, y, weight, coarse_bins=bins, smoothing=SCORECARD_SMOOTHING)
    rows = [
        woe_of(
            b.assign(table.values[:, table.index(b.column)]),
            y,
            weight,
            b.count,
            SCORECARD_SMOOTHING,
        )
        for b in listed
    ]

    def matrix(held: FeatureTable) -> np.ndarray:
        if not listed:
            return np.zeros((len(held), 0))
        parts = [
            woe[b.assign(held.values[:, held.index(b.column)])]
            for b, woe in zip(listed, rows, strict=True)
        ]
        return np.stack(parts, axis=1)

    return matrix


PLAIN: dict[str, Learner] = {
    "lr": ridge_logistic,
    "scorecard": scorecard,
    "lgb": lightgbm,
    "cat": catboost,
    "untuned": untuned,
}
FORECAST: dict[str, Learner] = {"forecast_lr": forecast_ridge}
