"""Reject inference: what a model might learn from applicants who were refused and have no label.

A model learnt on approved customers alone has not seen those a lender turned away. Both methods
guess how the refused would have turned out from the plain model's own scores, and fit the same
recipe again on approved and refused together:

* `fuzzy`: every refused row enters twice, as bad with weight p and as good with weight 1 - p
  (fuzzy augmentation; Siddiqi, Credit Risk Scorecards, 2006, chapter 6).
* `parcelling`: refused rows fall into score bands of the approved; each band's share of bads is
  dealt out to its refused rows at random from a seed (the same chapter).

In both, `factor` multiplies the odds of bad: how much worse a refused applicant is than an approved
one of the same score. At 1 refusal is taken to say nothing beyond the score. No figure on approved
customers can tell which factor is right (Hand and Henley 1993, IMA J. Mathematics Applied in
Business and Industry 5), so the result is shown beside the plain model and never replaces it.

Scores that guess are honest: bands and calibration come from inner out-of-fold scores of the same
training rows, and labelled rows alone judge either model.

Shapes: S labelled samples, R refused samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.blend import row_losses
from finetune.bootstrap import bootstrap_difference, bootstrap_intervals
from finetune.calibration import fit_platt, sigmoid
from finetune.choice import paired_difference
from finetune.crossval import Split, assign_folds
from finetune.metrics import Comparison, Interval
from finetune.recipes import FittedRecipe, Recipe
from finetune.table import FeatureTable
from foundation.errors import SampleError, UserError, listing, nearest

METHODS = ("fuzzy", "parcelling")
BANDS = 5
INNER_FOLDS = 3
DRAWS = 500
EDGE = 1e-4


@dataclass(frozen=True)
class RejectSettings:
    """How to infer.

    Attributes:
        method: `fuzzy` or `parcelling`.
        factor: odds of bad of a refused applicant against an approved one of the same score.
    """

    method: str
    factor: float = 1.0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: unknown method, or a factor that is no number from 0.1 to 100.
        """
        if self.method not in METHODS:
            raise UserError(
                f"unknown reject inference '{self.method}'{nearest(self.method, METHODS)}; "
                f"methods: {listing(METHODS)}"
            )
        if not 0.1 <= self.factor <= 100:
            raise UserError(
                f"a reject factor of {self.factor:g} cannot be meant: give the odds of bad of a "
                "refused applicant against an approved one of the same score, such as 2"
            )


@dataclass(frozen=True)
class Training:
    """Labelled rows: features, labels 0 or 1, positive weights, entity groups, all [S]."""

    table: FeatureTable
    y: np.ndarray
    weight: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> Training:
        """Some of the rows."""
        return Training(self.table.take(rows), self.y[rows], self.weight[rows], self.groups[rows])


@dataclass(frozen=True)
class Refused:
    """Refused rows without labels: features, positive weights, entity groups, all [R].

    Groups are numbered with those of the labelled rows: one entity, one number.
    """

    table: FeatureTable
    weight: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> Refused:
        """Some of the rows."""
        return Refused(self.table.take(rows), self.weight[rows], self.groups[rows])


@dataclass
class Inference:
    """One recipe with and without the refused.

    Attributes:
        plain, inferred: fitted on the labelled rows, and on all of them.
        plain_logit, logit: [S] out-of-fold logits of labelled rows, one repeat; NaN where never
            tested.
        refused_bad: [R] share of bad given to every refused row (0 or 1 with parcelling).
        refused_plain, refused_logit: [R] logits of the refused by either model.
    """

    settings: RejectSettings
    recipe: str
    plain: FittedRecipe
    inferred: FittedRecipe
    plain_logit: np.ndarray
    logit: np.ndarray
    refused_bad: np.ndarray
    refused_weight: np.ndarray
    refused_plain: np.ndarray
    refused_logit: np.ndarray

    @property
    def bad_rate(self) -> float:
        """Weighted bad rate inferred for the refused."""
        return float(np.average(self.refused_bad, weights=self.refused_weight))


def infer_rejects(
    recipe: Recipe,
    training: Training,
    refused: Refused,
    splits: Sequence[Split],
    settings: RejectSettings,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Inference:
    """Fit a recipe with and without refused rows, and judge both on the same labelled folds.

    Args:
        splits: of one repeat; every row of a test side is scored by models that never saw it, nor
            a refused row of its entity.
        progress: called with folds done and folds in all.
    Raises:
        SampleError: the recipe reads raw histories, the two tables differ in columns, or there is
            no refused row.
        UserError: see `RejectSettings.check`.
    """
    settings.check()
    if "history" in recipe.needs:
        raise SampleError(
            f"reject inference cannot be made with recipe '{recipe.name}', which learns through "
            "the backbone; name another with --recipe"
        )
    if not len(refused.table):
        raise SampleError("reject inference needs refused rows; there are none")
    if refused.table.names != training.table.names:
        raise SampleError("refused and labelled rows have different columns")
    plain_logit = np.full(len(training.y), np.nan)
    logit = plain_logit.copy()
    for done, split in enumerate(splits):
        if progress:
            progress(done, len(splits) + 1)
        part, held = training.take(split.train), training.table.take(split.test)
        apart = ~np.isin(refused.groups, training.groups[split.test])
        others = refused.take(np.flatnonzero(apart))
        plain, inferred, _ = _fit_both(recipe, part, others, settings, seed)
        plain_logit[split.test], logit[split.test] = plain.logit(held), inferred.logit(held)
    plain, inferred, bad = _fit_both(recipe, training, refused, settings, seed)
    return Inference(
        settings,
        recipe.name,
        plain,
        inferred,
        plain_logit,
        logit,
        bad,
        refused.weight,
        plain.logit(refused.table),
        inferred.logit(refused.table),
    )


def _fit_both(
    recipe: Recipe, training: Training, refused: Refused, settings: RejectSettings, seed: int
) -> tuple[FittedRecipe, FittedRecipe, np.ndarray]:
    """The plain fit, the fit with the refused, and the [R] share of bad they were given."""
    t = training
    plain = recipe.fit(t.table, t.y, t.weight, t.groups, seed)
    honest = _inner_logits(recipe, t, seed)
    score = plain.logit(refused.table)
    bad = inferred_bads(honest, t.y, t.weight, score, refused.weight, settings, seed)
    inferred = recipe.fit(*augmented(t, refused, bad), seed)
    return plain, inferred, bad


def _inner_logits(recipe: Recipe, training: Training, seed: int) -> np.ndarray:
    """[S] logits of the training rows by models that did not see their entity."""
    t = training
    fold = assign_folds(t.y, t.groups, INNER_FOLDS, 1, seed)[0]
    out = np.empty(len(t.y))
    for k in np.unique(fold):
        part = t.take(np.flatnonzero(fold != k))
        test = np.flatnonzero(fold == k)
        fitted = recipe.fit(part.table, part.y, part.weight, part.groups, seed)
        out[test] = fitted.logit(t.table.take(test))
    return out


def inferred_bads(
    logit: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    refused_logit: np.ndarray,
    refused_weight: np.ndarray,
    settings: RejectSettings,
    seed: int = 0,
) -> np.ndarray:
    """[R] share of bad of every refused row: a probability (fuzzy) or 0 and 1 (parcelling).

    Args:
        logit, y, weight: [S] honest logits, labels and weights of labelled rows.
        refused_logit, refused_weight: [R].
    """
    if settings.method == "fuzzy":
        p = fit_platt(logit, y, weight).apply(refused_logit)
        return _worse(p, settings.factor)
    edges = np.unique(np.quantile(logit, np.linspace(0, 1, BANDS + 1)[1:-1]))
    at = np.searchsorted(edges, logit, side="right")
    rate = float(np.average(y, weights=weight))
    mass = np.bincount(at, weights=weight, minlength=len(edges) + 1)
    bads = np.bincount(at, weights=weight * y, minlength=len(edges) + 1)
    # Two rows of the average keep a band without bads from promising none.
    usual = 2 * float(weight.mean())
    share = _worse((bads + usual * rate) / (mass + usual), settings.factor)
    band = np.searchsorted(edges, refused_logit, side="right")
    order = np.random.default_rng(seed).permutation(len(band))
    out = np.zeros(len(band))
    for b in np.unique(band):
        rows = order[band[order] == b]
        # As many of the shuffled rows as bring the weight nearest to the band's share.
        middle = np.cumsum(refused_weight[rows]) - refused_weight[rows] / 2
        out[rows] = middle < share[b] * refused_weight[rows].sum()
    return out


def _worse(p: np.ndarray, factor: float) -> np.ndarray:
    """Probabilities whose odds are multiplied; kept off 0 and 1."""
    p = np.clip(p, EDGE, 1 - EDGE)
    return factor * p / (1 - p + factor * p)


def augmented(
    training: Training, refused: Refused, bad: np.ndarray
) -> tuple[FeatureTable, np.ndarray, np.ndarray, np.ndarray]:
    """Table, labels, weights and groups of labelled and refused rows together.

    A refused row of share p strictly between 0 and 1 enters twice; its weights sum to its own and
    it keeps its entity, so that no fold parts its two halves.
    """
    t = training
    as_bad, as_good = np.flatnonzero(bad > 0), np.flatnonzero(bad < 1)
    rows = np.concatenate([as_bad, as_good])
    values = np.concatenate([t.table.values, refused.table.values[rows]])
    table = FeatureTable(t.table.columns, values)
    y = np.concatenate([t.y, np.ones(len(as_bad)), np.zeros(len(as_good))])
    share = np.concatenate([bad[as_bad], 1 - bad[as_good]])
    weight = np.concatenate([t.weight, refused.weight[rows] * share])
    return table, y, weight, np.concatenate([t.groups, refused.groups[rows]])


def cross_validated(
    inference: Inference, training: Training
) -> tuple[dict[str, dict[str, Interval]], dict[str, Comparison]]:
    """AUC and KS of both models on labelled rows, and the paired differences, inferred - plain."""
    seen = ~np.isnan(inference.logit)
    y, weight = training.y[seen], training.weight[seen]
    both = {"plain": inference.plain_logit[seen], "inferred": inference.logit[seen]}
    figures = {
        name: bootstrap_intervals(y, sigmoid(z), ("auc", "ks", "log_loss"), weight, DRAWS)
        for name, z in both.items()
    }
    gaps = {
        m: bootstrap_difference(y, both["inferred"], both["plain"], m, weight, DRAWS)
        for m in ("auc", "ks")
    }
    losses = [row_losses(y, z) for z in (both["inferred"], both["plain"])]
    gap, error = paired_difference(losses[0], losses[1], weight, training.groups[seen])
    gaps["log_loss"] = Comparison(gap, gap - 1.96 * error, gap + 1.96 * error, error, float("nan"))
    return figures, gaps


def inference_record(inference: Inference, training: Training) -> dict[str, Any]:
    """What `metrics.json` and the report say of it, plain data."""
    figures, gaps = cross_validated(inference, training)
    rate = float(np.average(training.y, weights=training.weight))
    refused, labelled = len(inference.refused_bad), len(training.y)
    return {
        "method": inference.settings.method,
        "factor": inference.settings.factor,
        "recipe": inference.recipe,
        "labelled": labelled,
        "labelled_bads": int(training.y.sum()),
        "labelled_bad_rate": rate,
        "refused": refused,
        "refused_bad_rate": inference.bad_rate,
        "ratio_of_bad_rates": inference.bad_rate / rate,
        "same_order_on_refused": _rank_correlation(
            inference.refused_plain, inference.refused_logit
        ),
        "cv": {name: {m: _interval(i) for m, i in each.items()} for name, each in figures.items()},
        "cv_difference": {m: _comparison(c) for m, c in gaps.items()},
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _comparison(c: Comparison) -> dict[str, float]:
    return {"value": c.difference, "low": c.low, "high": c.high}


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rho; None where either is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(first), rankdata(second)
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def fit_inferred_calibration(inference: Inference, training: Training) -> dict[str, Any]:
    """Calibration of the inferred model on labelled rows, which alone have true labels."""
    seen = ~np.isnan(inference.logit)
    return fit_platt(inference.logit[seen], training.y[seen], training.weight[seen]).to_dict()


def inference_lines(record: dict[str, Any]) -> list[str]:
    """The comparison for a terminal."""
    r, gap = record, record["cv_difference"]
    lines = [
        f"reject inference ({r['method']}, factor {r['factor']:g}) with recipe {r['recipe']}: "
        f"{r['refused']:,} refused, inferred bad rate {100 * r['refused_bad_rate']:.1f} % against "
        f"{100 * r['labelled_bad_rate']:.1f} % of {r['labelled']:,} labelled"
    ]
    for name, title in (("plain", "without the refused"), ("inferred", "with the refused")):
        auc, ks = r["cv"][name]["auc"], r["cv"][name]["ks"]
        lines.append(
            f"  {title:<20} AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})  "
            f"KS {ks['value']:.3f} ({ks['low']:.3f} to {ks['high']:.3f})"
        )
    auc = gap["auc"]
    lines.append(
        f"  difference of AUC {auc['value']:+.3f} ({auc['low']:+.3f} to {auc['high']:+.3f}), out "
        "of fold on labelled customers: it cannot say whether the inference is right for the "
        "refused"
    )
    return lines
