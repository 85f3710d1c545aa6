"""Choosing and fitting the model of a channel: ladder, choice, calibration, decision bands.

Shapes: S samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from finetune.calibration import Platt, apply_calibration, fit_calibration
from finetune.ladder import LadderResult, run_ladder
from finetune.query import QueryRecipe
from finetune.recipes import LADDER_ORDER, FittedRecipe, Recipe, standard_recipes
from finetune.reject_inference import RejectSettings
from finetune.samples import Samples
from finetune.table import FeatureTable
from foundation.checkpoint import Backbone
from foundation.errors import SampleError, UserError, listing, nearest

BANDS = (("approve", 0.60), ("review", 0.85))


class Say(Protocol):
    """What reports progress; see `serving.progress.Reporter`."""

    def say(self, text: str) -> None:
        """One line."""

    def bar(self, title: str) -> Any:
        """A context manager giving a callable (done, total)."""


@dataclass(frozen=True)
class AdaptSettings:
    """How to adapt.

    Attributes:
        recipe: `auto`, or the one recipe to ship.
        recipes: with `auto`, the only recipes to compare; empty for all.
        budget_minutes: recipes that do not fit into it are skipped, slow ones first.
        allow_leak: measure although the backbone knew events after a test sample's as_of.
        folds, repeats: of the cross-validation.
        rejects: also fit the chosen recipe with refused applicants, beside the plain model.
    """

    recipe: str = "auto"
    recipes: tuple[str, ...] = ()
    channel: str = "default"
    seed: int = 0
    budget_minutes: float | None = None
    allow_leak: bool = False
    folds: int = 5
    repeats: int = 3
    rejects: RejectSettings | None = None


@dataclass
class Model:
    """The shipped model before packaging, and the ladder it was chosen from."""

    ladder: LadderResult | None
    chosen: str
    why: str
    fitted: FittedRecipe
    others: dict[str, FittedRecipe]
    calibrations: dict[str, dict[str, Any]]
    logit: np.ndarray
    score: np.ndarray
    calibration: dict[str, Any]
    bands: list[dict[str, Any]]
    warnings: list[str]


def check_names(settings: AdaptSettings) -> None:
    valid = [n for n in LADDER_ORDER if n != "transfer"]
    for name in ([settings.recipe] if settings.recipe != "auto" else []) + [*settings.recipes]:
        if name not in valid:
            raise UserError(
                f"unknown recipe '{name}'{nearest(name, valid)}; recipes: {listing(valid)}"
            )


def ladder_recipes(settings: AdaptSettings, backbone: Backbone) -> list[Recipe]:
    """The recipes to compare, in ladder order."""
    every: list[Recipe] = standard_recipes()
    if backbone.model is not None:
        from finetune.finetuned import TunedRecipe

        tuned = [TunedRecipe("prompt", backbone.model), TunedRecipe("lora", backbone.model)]
        every = [*every[:-1], *tuned, every[-1]]
    if settings.recipes:
        wanted = {*settings.recipes, *([settings.recipe] if settings.recipe != "auto" else [])}
        every = [r for r in every if r.name in wanted]
    return every


def make_model(
    settings: AdaptSettings,
    backbone: Backbone,
    samples: Samples,
    table: FeatureTable,
    reporter: Say,
) -> Model:
    """Compare, choose, fit on all rows and calibrate."""
    if samples.label is None or len(set(samples.label.drop_nulls().to_list())) < 2:
        return _unlabelled(table)
    y, weight, groups = samples.y, samples.weight, samples.groups
    with reporter.bar("recipes") as bar:
        ladder = run_ladder(
            table,
            y,
            weight,
            groups,
            ladder_recipes(settings, backbone),
            seed=settings.seed,
            repeats=settings.repeats,
            folds=settings.folds,
            budget_minutes=settings.budget_minutes,
            progress=lambda name, done, total: bar(done, total, name),
        )
    warnings: list[str] = []
    if settings.recipe == "auto":
        choice = ladder.choose()
        chosen, why = choice.name, choice.reason
        warnings = choice.warnings
    else:
        chosen, why = settings.recipe, "asked for by name"
        if ladder[chosen].status != "ok":
            raise SampleError(f"recipe '{chosen}' cannot be used: {ladder[chosen].reason}")
    fitted, calibrations = {}, {}
    for name, result in ladder.ok().items():
        fitted[name] = ladder.fit(name, table, settings.seed)
        rows = ladder.tested
        calibration = fit_calibration(result.logit[rows], y[rows], weight[rows])
        calibrations[name] = calibration.to_dict()
    logit = ladder[chosen].logit
    score = apply_calibration(calibrations[chosen], logit)
    return Model(
        ladder,
        chosen,
        why,
        fitted[chosen],
        fitted,
        calibrations,
        logit,
        score,
        calibrations[chosen],
        decision_bands(score),
        warnings,
    )


def _unlabelled(table: FeatureTable) -> Model:
    """The query recipe without any label."""
    fitted = QueryRecipe().unlabelled(table)
    calibration = Platt(1.0, 0.0).to_dict()
    logit = fitted.logit(table)
    score = apply_calibration(calibration, logit)
    warning = "no labels: the score is the mean forecast and is not calibrated to this label"
    return Model(
        None,
        "query",
        "no labels were given",
        fitted,
        {"query": fitted},
        {"query": calibration},
        logit,
        score,
        calibration,
        decision_bands(score),
        [warning],
    )


def decision_bands(score: np.ndarray) -> list[dict[str, Any]]:
    """Bands by shares of the development sample: best 60 % approve, next 25 % review."""
    out: list[dict[str, Any]] = []
    floor = 0.0
    for name, share in BANDS:
        floor = max(float(np.quantile(score, share)), floor + 1e-9)
        out.append({"name": name, "below": floor})
    return [*out, {"name": "refuse", "below": 1.0 + 1e-9}]
