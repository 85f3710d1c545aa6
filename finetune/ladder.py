"""The ladder: every recipe on the same folds, and which one to ship.

Each recipe is fitted on the training side of identical repeated folds and judged on what it was
not fitted on; slow recipes see the first repeat only, and so does a blend with one among its
members. Log-loss, AUC and KS are those of the pooled out-of-fold scores of one repeat, averaged
over the repeats (averaging the scores first would credit a recipe with bagging it does not do).
Comparisons are paired by row, errors clustered by entity. The folds of a recipe are fitted side by
side; no figure depends on how many at a time.

Shapes: S samples, R repeats, D bootstrap draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from finetune.blend import BlendRecipe, blend_weights, out_of_fold_blend, row_losses
from finetune.bootstrap import Measure, bootstrap_draws, interval_ends
from finetune.calibration import sigmoid
from finetune.choice import Choice, choose
from finetune.crossval import Split, repeated_splits
from finetune.metrics import Interval, auc, ks
from finetune.recipes import COST_ORDER, FittedRecipe, Recipe, missing_reason
from finetune.side_by_side import one_core_each, side_by_side, usable_cores
from finetune.table import FeatureTable
from foundation.errors import SampleError

DRAWS = 500
# A slow recipe under a budget is first tried on one in so many rows, to know what a fit will cost.
TRIAL = 8
# Fits on all rows that follow the folds: for the test and the package, and inside the blend.
LATER_FITS = 2
# One at a time: optbinning sets filters of warnings, which all threads share, and holds the
# interpreter lock nearly all along.
ALONE = frozenset({"scorecard"})
Progress = Callable[[str, int, int], None]


@dataclass
class RecipeResult:
    """How one recipe did.

    Attributes:
        status: `ok` or `skipped`; `reason` says why it was skipped.
        logits: [R, S] out-of-fold logits, NaN where a row was never tested.
        row_loss: [S] mean log-loss of each row over the repeats, NaN where never tested.
        log_loss, auc, ks: with bootstrap intervals; None where skipped.
        seconds: time from the first fit to the last, on the wall.
    """

    name: str
    status: str
    reason: str = ""
    logits: np.ndarray | None = None
    row_loss: np.ndarray | None = None
    log_loss: Interval | None = None
    auc: Interval | None = None
    ks: Interval | None = None
    seconds: float = 0.0

    @property
    def logit(self) -> np.ndarray:
        """[S] out-of-fold logit, mean over the repeats; for calibration and pictures."""
        if self.logits is None:
            raise SampleError(f"recipe '{self.name}' was skipped: {self.reason}")
        return np.asarray(np.mean(self.logits, axis=0))


@dataclass
class LadderResult:
    """The whole ladder.

    Attributes:
        results: in the order of the recipes given.
        blend_weights: weights of the shipped blend, learnt on all out-of-fold scores.
        tested: [S] rows that stood on a test side.
    """

    results: list[RecipeResult]
    y: np.ndarray
    weight: np.ndarray
    groups: np.ndarray
    splits: list[Split]
    tested: np.ndarray
    blend_weights: dict[str, float] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)

    def __getitem__(self, name: str) -> RecipeResult:
        return next(r for r in self.results if r.name == name)

    def ok(self) -> dict[str, RecipeResult]:
        """Results of the recipes that ran."""
        return {r.name: r for r in self.results if r.status == "ok"}

    def choose(self) -> Choice:
        """What `auto` ships; see `finetune.choice`."""
        losses = {n: _loss_of(r) for n, r in self.ok().items()}
        return choose(losses, self.y, self.weight, self.groups, self.tested, self._aucs())

    def _aucs(self) -> dict[str, Interval]:
        return {n: r.auc for n, r in self.ok().items() if r.auc is not None}

    def fit(
        self,
        name: str,
        table: FeatureTable,
        seed: int,
        fitted: Mapping[str, FittedRecipe] | None = None,
    ) -> FittedRecipe:
        """Fit a recipe on all rows as the ladder judged it: the blend with the weights it learnt.

        Args:
            fitted: recipes already fitted here with this seed; the blend takes them over.
        Raises:
            SampleError: the recipe was skipped; says why.
        """
        recipe = self.recipes.get(name)
        if recipe is None:
            raise SampleError(f"recipe '{name}' is not on this ladder: {', '.join(self.recipes)}")
        if self[name].status != "ok":
            raise SampleError(f"recipe '{name}' was skipped: {self[name].reason}")
        if isinstance(recipe, BlendRecipe):
            recipe = recipe.with_weights(self.blend_weights, fitted)
        with one_core_each():
            return recipe.fit(table, self.y, self.weight, self.groups, seed)

    def fit_all(
        self, table: FeatureTable, seed: int, workers: int | None = None
    ) -> dict[str, FittedRecipe]:
        """Every recipe that ran, fitted on all rows; the blend takes the others over.

        Args:
            workers: fits at a time; by default what the cores allow.
        """
        ran = self.ok()
        plain = [n for n in ran if not isinstance(self.recipes[n], BlendRecipe)]
        # The dear ones first, so that none is left to run alone at the end.
        names = sorted(plain, key=lambda n: _cost(self.recipes[n]), reverse=True)
        taught = (table, self.y, self.weight, self.groups, seed)
        tasks = [partial(self.recipes[n].fit, *taught) for n in names]
        with one_core_each(), closing(side_by_side(tasks, workers or usable_cores())) as fits:
            fitted = dict(zip(names, fits, strict=True))
        for name in ran:
            if name not in fitted:
                fitted[name] = self.fit(name, table, seed, fitted)
        return {name: fitted[name] for name in ran}

    def rows(self) -> list[dict[str, Any]]:
        """The table as plain data."""
        return [_plain(r) for r in self.results]


def run_ladder(
    table: FeatureTable,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    recipes: Sequence[Recipe],
    seed: int = 0,
    repeats: int = 3,
    folds: int = 5,
    budget_minutes: float | None = None,
    progress: Progress | None = None,
    splits: list[Split] | None = None,
    now: Callable[[], float] = time.monotonic,
    workers: int | None = None,
) -> LadderResult:
    """Judge every recipe on identical folds.

    Args:
        y, weight, groups: [S] labels 0 or 1, positive weights, equal numbers for one entity.
        budget_minutes: recipes run in order of cost; those that do not fit into what is left of it,
            with the fits on all rows that follow, are skipped.
        progress: called with the recipe's name, folds done and folds in all.
        splits: other folds than random ones, such as `crossval.forward_splits`.
        now: seconds of a clock that never goes back.
        workers: folds fitted at a time; by default what the cores allow.
    Raises:
        SampleError: fewer than two entities of a class.
    """
    y = np.asarray(y, dtype=np.float64)
    weight = np.asarray(weight, dtype=np.float64)
    splits = splits or repeated_splits(y, groups, folds, repeats, seed)
    fold_of = _fold_of(splits, len(y))
    clock = _Clock(budget_minutes, now)
    found: dict[str, RecipeResult] = {}
    # The dear ones run last, so that a budget costs them and not the others; the blend at the end.
    plain = [r for r in recipes if not isinstance(r, BlendRecipe)]
    count = workers or usable_cores()
    with one_core_each():
        for recipe in sorted(plain, key=_cost):
            found[recipe.name] = _run(
                recipe, table, y, weight, groups, splits, seed, clock, progress, count
            )
    weights: dict[str, float] = {}
    for recipe in recipes:
        if isinstance(recipe, BlendRecipe):
            members = {
                m.name: r
                for m in recipe.members
                if (r := found.get(m.name)) is not None and r.status == "ok"
            }
            slow = frozenset(m.name for m in recipe.members if m.slow and m.name in members)
            found[recipe.name], weights = _run_blend(
                recipe.name, members, y, weight, fold_of, slow, clock
            )
    tested = np.asarray((fold_of >= 0).all(axis=0))
    for result in found.values():
        if result.status == "ok":
            _measure(result, y, weight, tested, seed)
    ordered = [found[r.name] for r in recipes]
    return LadderResult(
        ordered, y, weight, groups, splits, tested, weights, {r.name: r for r in recipes}
    )


@dataclass
class _Clock:
    """What is left of a time budget; `reserved` seconds are spoken for by fits to come."""

    minutes: float | None
    now: Callable[[], float]
    reserved: float = 0.0

    def __post_init__(self) -> None:
        self.start = self.now()

    def left(self) -> float:
        if self.minutes is None:
            return float("inf")
        return self.minutes * 60 - (self.now() - self.start) - self.reserved


def _cost(recipe: Recipe) -> tuple[bool, int]:
    known = recipe.name in COST_ORDER
    return recipe.slow, COST_ORDER.index(recipe.name) if known else len(COST_ORDER)


def _fold_of(splits: Sequence[Split], rows: int) -> np.ndarray:
    """[R, S] fold in which a row is tested, -1 where in none."""
    out = np.full((max(s.repeat for s in splits) + 1, rows), -1, dtype=np.int64)
    for split in splits:
        out[split.repeat, split.test] = split.fold
    return out


def _run(
    recipe: Recipe,
    table: FeatureTable,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    splits: Sequence[Split],
    seed: int,
    clock: _Clock,
    progress: Progress | None,
    workers: int,
) -> RecipeResult:
    reason = missing_reason(recipe, table)
    if reason:
        return RecipeResult(recipe.name, "skipped", reason)
    if clock.left() <= 0:
        return RecipeResult(recipe.name, "skipped", f"the budget of {clock.minutes} min is spent")
    if recipe.slow:
        # One repeat of the same folds: pairs with every other recipe's mean loss row by row.
        splits = [s for s in splits if s.repeat == 0]
    workers = 1 if recipe.name in ALONE else min(workers, len(splits))
    logits = np.full((max(s.repeat for s in splits) + 1, len(y)), np.nan)
    if recipe.slow and clock.minutes is not None:
        each = _trial(recipe, table, y, weight, groups, splits[0].train, seed, clock)
        need = each * (len(splits) / workers + LATER_FITS)
        if need > clock.left():
            return _too_dear(recipe.name, need, clock)

    def judged(split: Split) -> tuple[np.ndarray, float]:
        """Logits of the test side, and the seconds it took."""
        began = clock.now()
        rows = split.train
        if y[rows].min() == y[rows].max():
            raise SampleError("a fold's training side has one class")
        fitted = recipe.fit(
            table.take(rows), y[rows], weight[rows], groups[rows], seed + split.repeat
        )
        return fitted.logit(table.take(split.test)), clock.now() - began

    began, taken = clock.now(), 0.0
    if progress:
        progress(recipe.name, 0, len(splits))
    tasks = [partial(judged, split) for split in splits]
    with closing(side_by_side(tasks, workers)) as folds:
        try:
            for done, (logit, seconds) in enumerate(folds, start=1):
                split = splits[done - 1]
                logits[split.repeat, split.test] = logit
                taken += seconds
                if progress:
                    progress(recipe.name, done, len(splits))
                need = taken / done * ((len(splits) - done) / workers + LATER_FITS)
                if need > clock.left():
                    return _too_dear(recipe.name, need, clock)
        except SampleError as exc:
            return RecipeResult(recipe.name, "skipped", str(exc))
    clock.reserved += taken / len(splits) * LATER_FITS
    return RecipeResult(recipe.name, "ok", logits=logits, seconds=clock.now() - began)


def _too_dear(name: str, seconds: float, clock: _Clock) -> RecipeResult:
    left = max(clock.left(), 0) / 60
    return RecipeResult(
        name,
        "skipped",
        f"needs about {seconds / 60:.1f} min more, {left:.1f} min of the budget are left",
    )


def _trial(
    recipe: Recipe,
    table: FeatureTable,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    train: np.ndarray,
    seed: int,
    clock: _Clock,
) -> float:
    """Seconds a fit will take at least, from a fit on one in `TRIAL` of the rows of each class."""
    part = np.concatenate([train[y[train] == label][::TRIAL] for label in (0, 1)])
    extra = [train[y[train] == label][1 : 1 + TRIAL : 4] for label in (0, 1)]
    part = np.unique(np.concatenate([part, *extra]))
    began = clock.now()
    try:
        recipe.fit(table.take(part), y[part], weight[part], groups[part], seed)
    except SampleError:
        return 0.0
    return (clock.now() - began) * len(train) / len(part)


def _run_blend(
    name: str,
    members: dict[str, RecipeResult],
    y: np.ndarray,
    weight: np.ndarray,
    fold_of: np.ndarray,
    slow: frozenset[str],
    clock: _Clock,
) -> tuple[RecipeResult, dict[str, float]]:
    """Blend out-of-fold logits; the weights to ship are learnt on all of them."""
    if len(members) < 2:
        return RecipeResult(name, "skipped", "fewer than two recipes to blend"), {}
    if (fold_of.max(axis=1) < 1).all():
        return RecipeResult(name, "skipped", "one fold leaves none to learn weights on"), {}
    began = clock.now()
    # Members judged on one repeat can be blended there alone.
    repeats = min(len(_logits_of(r)) for r in members.values())
    fold_of = fold_of[:repeats]
    every = {n: _logits_of(r)[:repeats] for n, r in members.items()}
    logits = np.stack(
        [
            out_of_fold_blend({n: z[i] for n, z in every.items()}, y, weight, fold, slow)
            for i, fold in enumerate(fold_of)
        ]
    )
    seen = (fold_of >= 0).ravel()
    weights = blend_weights(
        {n: z.ravel()[seen] for n, z in every.items()},
        np.tile(y, repeats)[seen],
        np.tile(weight, repeats)[seen],
        repeats,
        slow,
    )
    seconds = clock.now() - began
    return RecipeResult(name, "ok", logits=logits, seconds=seconds), weights


def _logits_of(result: RecipeResult) -> np.ndarray:
    assert result.logits is not None
    return result.logits


def _loss_of(result: RecipeResult) -> np.ndarray:
    assert result.row_loss is not None
    return result.row_loss


def _measure(
    result: RecipeResult, y: np.ndarray, weight: np.ndarray, tested: np.ndarray, seed: int
) -> None:
    """Fill in losses, figures and intervals: means over the repeats, of draws too."""
    logits = _logits_of(result)[:, tested]
    y, weight = y[tested], weight[tested]
    row_loss = np.full(len(tested), np.nan)
    row_loss[tested] = row_losses(y, logits).mean(axis=0)
    result.row_loss = row_loss
    measures: tuple[Measure, ...] = ("auc", "ks", "log_loss")
    drawn = [bootstrap_draws(y, sigmoid(z), measures, weight, DRAWS, seed) for z in logits]
    values = {
        "auc": np.mean([auc(y, z, weight) for z in logits]),
        "ks": np.mean([ks(y, z, weight) for z in logits]),
        "log_loss": np.average(row_loss[tested], weights=weight),
    }
    for measure in measures:
        mean, value = np.mean([d[measure] for d in drawn], axis=0), float(values[measure])
        setattr(result, measure, Interval(value, *interval_ends(mean, value, measure)))


def _plain(result: RecipeResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "recipe": result.name,
        "status": result.status,
        "reason": result.reason,
        "seconds": round(result.seconds, 3),
    }
    for measure in ("log_loss", "auc", "ks"):
        interval = getattr(result, measure)
        row[f"cv_{measure}"] = None if interval is None else interval.value
        row[f"cv_{measure}_low"] = None if interval is None else interval.low
        row[f"cv_{measure}_high"] = None if interval is None else interval.high
    return row
