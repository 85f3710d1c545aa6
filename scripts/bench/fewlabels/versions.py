"""What makes an opponent's cell stale: its settings and the code it runs through."""

from __future__ import annotations

from functools import cache
from typing import Any

from finetune import crossval, gbdt, linear, ridge, scorecard, tree_heads
from scripts.bench.fewlabels import opponents
from scripts.bench.fewlabels.cells import code_digest, digest_of

_INPUTS = (linear.Inputs, linear._number_inputs, linear._moments, linear._level_inputs)
_INPUT_SETTINGS = (linear.CLIP, linear.RARE_SHARE, linear.RARE_COUNT)
_RIDGE = (ridge, crossval.assign_folds)
_TREES = (
    gbdt.tree_inputs,
    tree_heads.TreeInputs,
    ridge.prior_logit,
    crossval.assign_folds,
    opponents._padded,
    opponents._best_round,
)
_COUNTS = (opponents.BAGS, opponents.MIN_TREES, opponents.MAX_TREES)
_CODE: dict[str, tuple[Any, ...]] = {
    "lr": (
        opponents.ridge_logistic,
        opponents._standard,
        opponents._normal,
        *_INPUTS,
        *_RIDGE,
    ),
    "scorecard": (
        opponents.scorecard,
        opponents._woe,
        opponents._at_strength,
        scorecard.shortlist,
        scorecard.woe_of,
        scorecard.information_value,
        scorecard.Bins.assign,
        *_RIDGE,
    ),
    "lgb": (opponents.lightgbm, *_TREES),
    "cat": (opponents.catboost, *_TREES),
    "untuned": (opponents.untuned,),
    "forecast_lr": (opponents.forecast_ridge, opponents._standard, *_INPUTS, *_RIDGE),
}
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "lr": (opponents.STRENGTHS, *_INPUT_SETTINGS),
    "scorecard": (
        opponents.STRENGTHS,
        opponents.SCORECARD_BINS,
        opponents.SCORECARD_COLUMNS,
        opponents.SCORECARD_SMOOTHING,
        ridge.LEAST_SHARE,
        scorecard.CANDIDATES,
        scorecard.LEAST_IV,
        scorecard.ALIKE,
    ),
    "lgb": (opponents.LGB_FIXED, opponents.LGB_SHAPES, *_COUNTS, *_INPUT_SETTINGS[1:]),
    "cat": (
        opponents.CAT_FIXED,
        opponents.CAT_SHAPES,
        opponents.MANY_ROWS,
        *_COUNTS,
        *_INPUT_SETTINGS[1:],
    ),
    "untuned": (),
    "forecast_lr": (opponents.STRENGTHS, *_INPUT_SETTINGS),
}


@cache
def opponent_version(learner: str) -> str:
    """Digest of an opponent's settings and code."""
    return digest_of(learner, code_digest(_CODE[learner]), _SETTINGS[learner])
