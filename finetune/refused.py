"""The refused applicants of an adaptation: who they are, and the second model learnt with them.

Shapes: S labelled samples, R refused samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.blend import BlendRecipe
from finetune.bootstrap import bootstrap_difference, bootstrap_intervals
from finetune.calibration import apply_calibration
from finetune.evaluation import DRAWS, TestResult
from finetune.modelling import AdaptSettings, Model, Say, decision_bands
from finetune.reject_inference import (
    Inference,
    Refused,
    Training,
    fit_inferred_calibration,
    infer_rejects,
    inference_record,
)
from finetune.samples import Samples, read_samples
from finetune.table import FeatureTable
from foundation.errors import SampleError, UserError
from foundation.schema import Schema


def check_reject_settings(settings: AdaptSettings, path: str | Path | None) -> None:
    """Refuse, before anything is trained, what cannot be inferred.

    Raises:
        UserError: refused rows without a method, an unknown method, or a recipe that is tuned
            through the backbone.
    """
    if settings.rejects is None:
        if path is not None:
            raise UserError(
                f"{path}: refused applicants are used by reject inference alone; add "
                "--reject-inference fuzzy or parcelling, or leave --rejects out"
            )
        return
    settings.rejects.check()
    if settings.recipe in ("prompt", "lora", "query"):
        raise UserError(
            f"reject inference cannot be made with recipe '{settings.recipe}', which does not "
            "learn from feature columns; name another with --recipe"
        )


def read_refused(path: str | Path | None, samples: Samples, schema: Schema) -> Samples:
    """The refused: of their own file, or set aside from the labelled one.

    Raises:
        SampleError: there are none, or a refused decision also stands among the labelled ones.
    """
    if path is None:
        if samples.refused is None:
            raise SampleError(
                "reject inference needs refused applicants: give --rejects FILE with entity_id "
                "and as_of, or a column 'approved' in the samples with refused rows left unlabelled"
            )
        return samples.refused
    refused = read_samples(path, schema, need_labels=False)
    key = ["entity_id", "as_of"]
    both = refused.frame.join(samples.frame.select(key).unique(), on=key, how="semi")
    if len(both):
        first = both.row(0, named=True)
        raise SampleError(
            f"{path}, row {first['row']}: entity '{first['entity_id']}' at {first['as_of']} also "
            "stands among the labelled samples; a decision is either labelled or refused"
        )
    if refused.label is not None:
        refused.notes.append(f"{path}: labels of refused applicants are not used")
    return refused


def shared_groups(samples: Samples, refused: Samples) -> tuple[np.ndarray, np.ndarray]:
    """[S] and [R] numbers of entities, one numbering for both."""
    every = pl.concat([samples.entity_ids, refused.entity_ids]).rank("dense").cast(pl.Int64)
    codes = every.to_numpy() - 1
    return codes[: len(samples)], codes[len(samples) :]


def second_model(
    settings: AdaptSettings,
    model: Model,
    samples: Samples,
    table: FeatureTable,
    refused: Samples,
    refused_table: FeatureTable,
    test: TestResult | None,
    reporter: Say,
) -> tuple[Model | None, dict[str, Any]]:
    """The chosen recipe learnt with the refused, and how it compares with the plain model.

    Returns:
        the model, or None where the chosen recipe cannot use the refused; and a record which then
        holds `skipped`, one sentence.
    """
    assert settings.rejects is not None
    if model.ladder is None:
        return None, {"skipped": "reject inference was not made: there are no labels to infer from"}
    recipe = model.ladder.recipes[model.chosen]
    weights: dict[str, float] = {}
    if isinstance(recipe, BlendRecipe):
        # Rows that enter twice have feature columns and no histories.
        plain = {m.name for m in recipe.members if "history" not in m.needs}
        weights = {n: w for n, w in model.ladder.blend_weights.items() if n in plain}
    only_tuned = isinstance(recipe, BlendRecipe) and not weights
    if "history" in recipe.needs or model.chosen == "query" or only_tuned:
        return None, {
            "skipped": f"reject inference was not made: {model.chosen} was chosen, which does not "
            "learn from feature columns; name another recipe with --recipe"
        }
    if isinstance(recipe, BlendRecipe):
        total = sum(weights.values())
        recipe = recipe.with_weights({n: w / total for n, w in weights.items()})
    groups, refused_groups = shared_groups(samples, refused)
    training = Training(table, samples.y, samples.weight, groups)
    first = [s for s in model.ladder.splits if s.repeat == 0]
    with reporter.bar("reject inference") as bar:
        inference = infer_rejects(
            recipe,
            training,
            Refused(refused_table, refused.weight, refused_groups),
            first,
            settings.rejects,
            settings.seed,
            progress=bar,
        )
    second = _model(model, inference, training)
    record = inference_record(inference, training)
    if test is not None:
        record |= _on_test(model, second, test)
    return second, record


def _model(plain: Model, inference: Inference, training: Training) -> Model:
    """The second model in the form a package is made from."""
    calibration = fit_inferred_calibration(inference, training)
    score = apply_calibration(calibration, np.nan_to_num(inference.logit))
    method, factor = inference.settings.method, inference.settings.factor
    return replace(
        plain,
        why=f"{plain.chosen} learnt with {len(inference.refused_bad):,} refused applicants by "
        f"{method} reject inference (factor {factor:g}), beside the plain model",
        fitted=inference.inferred,
        logit=inference.logit,
        score=score,
        calibration=calibration,
        bands=decision_bands(score),
    )


def _on_test(plain: Model, second: Model, test: TestResult) -> dict[str, Any]:
    """Both models on the test file: intervals and paired differences, inferred - plain."""
    weight = test.samples.weight
    score = apply_calibration(second.calibration, second.fitted.logit(test.table))
    both = {"plain": test.scores[plain.chosen], "inferred": score}
    figures: dict[str, Any] = {}
    for name, values in both.items():
        found = bootstrap_intervals(test.y, values, ("auc", "ks"), weight, draws=DRAWS, seed=0)
        figures[name] = {
            m: {"value": i.value, "low": i.low, "high": i.high} for m, i in found.items()
        }
    gaps: dict[str, Any] = {}
    for m in ("auc", "ks"):
        c = bootstrap_difference(
            test.y, both["inferred"], both["plain"], m, weight, draws=DRAWS, seed=0
        )
        gaps[m] = {"value": c.difference, "low": c.low, "high": c.high}
    return {"test": figures, "test_difference": gaps}
