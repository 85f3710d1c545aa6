"""Choosing and fitting the model of a channel: ladder, choice, calibration, decision bands.

Shapes: S samples.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.blend import BlendRecipe
from finetune.calibration import Platt, apply_calibration, fit_calibration
from finetune.channels import Source
from finetune.fairness import group_values
from finetune.features import FLOAT32, INT8, state_readout
from finetune.ladder import LadderResult, run_ladder
from finetune.query import QueryRecipe
from finetune.recipes import LADDER_ORDER, FittedRecipe, Recipe, standard_recipes
from finetune.reject_inference import RejectSettings
from finetune.samples import Samples
from finetune.table import FeatureTable
from foundation.checkpoint import Backbone
from foundation.errors import SampleError, UserError, listing, nearest

# Recipes that learn through the backbone.
TUNED = ("prompt", "lora")
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
        sources: packages of other channels that the recipe `transfer` starts from.
        seeds: over how many seeds gbdt, fusion, prompt and lora are averaged; None leaves each its
            own number (trees several, tuned backbones one).
        groups: profile or context fields by which the report looks at fairness.
        monotone: column, or `forecast` for all forecasts -> 1 where more is worse, -1 better.
        created_at: moment written into package and report; None is now. With it the same inputs
            give the same bytes.
        store_version: read the store as it stood after so many imports; None is the latest.
        precision: of the backbone's graphs, `float32` or `int8`: in the features that recipes learn
            from and in the package. `prompt` and `lora` have float32 graphs of their own and stay
            out of an `int8` ladder, see `TUNED`.
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
    sources: tuple[Path, ...] = ()
    seeds: int | None = None
    groups: tuple[str, ...] = ()
    monotone: dict[str, int] = field(default_factory=dict)
    created_at: dt.datetime | None = None
    store_version: int | None = None
    precision: str = FLOAT32


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
    valid = list(LADDER_ORDER)
    for name in ([settings.recipe] if settings.recipe != "auto" else []) + [*settings.recipes]:
        if name == "transfer" and not settings.sources:
            raise UserError(
                "recipe 'transfer' starts from other channels; name their packages with --from"
            )
        if name not in valid:
            raise UserError(
                f"unknown recipe '{name}'{nearest(name, valid)}; recipes: {listing(valid)}"
            )
    check_precision(settings)
    if settings.seeds is not None and settings.seeds < 1:
        raise UserError(f"--seeds {settings.seeds}: average over one seed or more")


def check_precision(settings: AdaptSettings) -> None:
    """Refuse an unknown precision, and one that a recipe asked for by name does not have.

    Raises:
        UserError: either.
    """
    known = [FLOAT32, INT8]
    if settings.precision not in known:
        raise UserError(
            f"unknown precision '{settings.precision}'{nearest(settings.precision, known)}; "
            f"known: {listing(known)}"
        )
    for name in (settings.recipe, *settings.recipes):
        if settings.precision != FLOAT32 and name in TUNED:
            raise UserError(
                f"recipe '{name}' scores with a graph of its own, which is float32 only; use "
                f"--precision float32, or leave '{name}' out"
            )


def ladder_recipes(
    settings: AdaptSettings,
    backbone: Backbone,
    sources: Sequence[Source] = (),
    directions: Mapping[str, int] | None = None,
) -> list[Recipe]:
    """The recipes to compare, in ladder order; the blend may use every other one."""
    signs = dict(directions or {})
    *every, _ = standard_recipes(
        directions=signs, seeds=settings.seeds, readout=state_readout(backbone.model)
    )
    if backbone.model is not None and settings.precision == FLOAT32:
        from finetune.finetuned import TunedRecipe

        every += [
            TunedRecipe(name, backbone.model, seeds=settings.seeds or 1, directions=signs)
            for name in TUNED
        ]
    if sources:
        from finetune.transfer import TransferRecipe

        every.append(TransferRecipe(tuple(sources), directions=signs))
    every.append(BlendRecipe(tuple(every)))
    if settings.recipes:
        wanted = {*settings.recipes, *([settings.recipe] if settings.recipe != "auto" else [])}
        every = [r for r in every if r.name in wanted]
    return every


def column_directions(monotone: Mapping[str, int], table: FeatureTable) -> dict[str, int]:
    """Directions by column; `forecast` stands for every forecast not named itself.

    Raises:
        UserError: no such column, or one that has no order.
    """
    numbers = [c.name for c in table.columns if c.kind == "number" and c.block != "embedding"]
    out: dict[str, int] = {}
    for name, sign in monotone.items():
        if name == "forecast":
            out |= {c.name: sign for c in table.columns if c.block == "forecast"}
        elif name not in numbers:
            why = "has no order" if name in table.names else "is not in the feature table"
            raise UserError(
                f"--monotone {name}: the column {why}{nearest(name, numbers)}; columns: "
                f"{listing(numbers)}, or forecast for all forecasts"
            )
    return out | {n: s for n, s in monotone.items() if n != "forecast"}


def make_model(
    settings: AdaptSettings,
    backbone: Backbone,
    samples: Samples,
    table: FeatureTable,
    reporter: Say,
    sources: Sequence[Source] = (),
) -> Model:
    """Compare, choose, fit on all rows and calibrate."""
    directions = column_directions(settings.monotone, table)
    group_values(table, settings.groups)  # refuses a misspelt field before anything is trained
    if samples.label is None or len(set(samples.label.drop_nulls().to_list())) < 2:
        return _unlabelled(table, directions)
    y, weight, groups = samples.y, samples.weight, samples.groups
    with reporter.bar("recipes") as bar:
        ladder = run_ladder(
            table,
            y,
            weight,
            groups,
            ladder_recipes(settings, backbone, sources, directions),
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
    fitted = ladder.fit_all(table, settings.seed)
    calibrations = {}
    for name, result in ladder.ok().items():
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


def _unlabelled(table: FeatureTable, directions: dict[str, int]) -> Model:
    """The query recipe without any label."""
    fitted = QueryRecipe(directions=directions).unlabelled(table)
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
