"""The network's forecasts stand on the boosted ones and never hide them without need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.aggregates import AggregateSpec
from foundation.boosted import BoostSettings, Forecasters, fit_forecasters
from foundation.history import DAY_US, Timeline, cut
from foundation.objectives import TrainingBatch
from foundation.pretrain_config import PretrainConfig
from foundation.pretraining import build_model, prepare, split_in_time, unseen_extra
from foundation.residual import boosted_margins, settle
from foundation.targets import target_names
from foundation.tokenizer import Tokenizer
from tests.foundation.small_lender import UNTIL_US, small_lender
from tests.foundation.test_objectives import TINY

CONFIG = PretrainConfig(
    model=TINY, steps=1, batch_events=400, max_events=16, validation_share=0.5, cuts=6
)
SETTINGS = BoostSettings(folds=2, rounds=10, min_leaf=5, min_class=5, threads=1)


@pytest.fixture(scope="module")
def lender() -> tuple[Timeline, AggregateSpec, Forecasters]:
    schema, timeline, *_ = small_lender(60)
    spec = AggregateSpec.fit(schema, timeline, None, until_us=UNTIL_US)
    forecasters = fit_forecasters(schema, timeline, None, spec, UNTIL_US, 0, SETTINGS)
    assert forecasters.names
    return timeline, spec, forecasters


def test_margins_are_those_of_the_fold_that_never_saw_the_entity(lender: tuple) -> None:
    timeline, spec, forecasters = lender
    entity = np.repeat(np.arange(10), 2)
    cut_us = np.tile([UNTIL_US - 40 * DAY_US, UNTIL_US - 10 * DAY_US], 10)
    targets = target_names(timeline.schema.parsed_outcomes())
    found = boosted_margins(forecasters, spec, timeline, None, entity, cut_us, targets)
    ids = timeline.entity_ids[entity]
    x = spec.compute(timeline, cut(timeline, ids, cut_us), None, ids)
    wanted = forecasters.margins(x, ids, cross_fitted=True)
    for t, name in enumerate(targets):
        column = wanted[:, forecasters.names.index(name)] if name in forecasters.names else 0.0
        np.testing.assert_allclose(found[:, t], column, atol=1e-6)
    none = boosted_margins(None, spec, timeline, None, entity, cut_us, targets)
    assert none.shape == found.shape and not none.any()


def batches(base: np.ndarray, truth: np.ndarray, like: TrainingBatch) -> list[TrainingBatch]:
    inputs = {k: v[:1].expand(len(base), *v.shape[1:]) for k, v in like.inputs.items()}
    return [
        TrainingBatch(
            inputs,
            like.length[:1].expand(len(base)),
            torch.from_numpy(truth).float(),
            like.activity[:1].expand(len(base), *like.activity.shape[1:]),
            torch.from_numpy(base).float(),
            0,
        )
    ]


def test_a_part_that_misleads_is_shrunk_to_nothing_and_one_that_helps_is_kept(
    lender: tuple,
) -> None:
    timeline = lender[0]
    tokenizer = Tokenizer.fit(timeline.schema, timeline, None)
    model = build_model(CONFIG, timeline.schema, tokenizer)
    like = prepare(CONFIG, timeline, None, tokenizer, UNTIL_US).make(0)
    targets = model.config.targets
    queries = like.outcomes.shape[1]
    rng = np.random.default_rng(0)
    with torch.no_grad():  # the network says +2 for every target, whatever it reads
        model.forecast_head.weight.zero_()
        model.forecast_head.bias.fill_(2.0)
    shape = (200, queries, len(targets))
    base = np.full(shape, -1.0)
    rate = np.full(shape, 1 / (1 + np.exp(1.0)))  # the base is right
    rate[..., 0] = 1 / (1 + np.exp(-1.0))  # but for the first target it lacks +2
    truth = (rng.random(shape) < rate).astype(np.float64)
    truth[..., -1] = np.nan  # never matured
    shares = settle(model, batches(base, truth, like), targets)
    assert shares[targets[0]] >= 0.9
    assert all(shares[name] == 0.0 for name in targets[1:-1])
    assert shares[targets[-1]] == 0.0  # nothing shows that it helps
    bias = model.forecast_head.bias.detach()
    assert float(bias[0]) == pytest.approx(2.0 * shares[targets[0]])
    assert not bias[1:].any()


def test_what_nothing_was_held_out_for_is_not_added(lender: tuple) -> None:
    timeline = lender[0]
    tokenizer = Tokenizer.fit(timeline.schema, timeline, None)
    model = build_model(CONFIG, timeline.schema, tokenizer)
    with torch.no_grad():
        model.forecast_head.weight.fill_(1.0)
    based = model.config.targets[:1]
    assert settle(model, [], based) == {based[0]: 0.0}
    assert not model.forecast_head.weight[0].any() and model.forecast_head.weight[1:].all()


def test_the_share_is_proved_on_late_outcomes_that_training_never_read(lender: tuple) -> None:
    timeline, spec, forecasters = lender
    tokenizer = Tokenizer.fit(timeline.schema, timeline, None)
    targets = target_names(timeline.schema.parsed_outcomes())

    def margins(entity: np.ndarray, cut_us: np.ndarray) -> np.ndarray:
        return boosted_margins(forecasters, spec, timeline, None, entity, cut_us, targets)

    plain = prepare(CONFIG, timeline, None, tokenizer, UNTIL_US)
    data = prepare(CONFIG, timeline, None, tokenizer, UNTIL_US, margins)
    assert plain.settling == [] and data.settling
    known, learned = (b.make(0).outcomes.isfinite() for b in (plain, data))
    assert learned.any() and (known & ~learned).any() and not (learned & ~known).any()


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_no_outcome_that_is_learned_was_open_when_the_proof_begins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cut_us, horizon = rng.integers(0, 1000, 50), np.array([10, 300, 5])
    truth = rng.integers(0, 2, (50, 3)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    truth[:, 2] = np.nan
    early, late = split_in_time(truth, cut_us, horizon)
    for t in range(2):
        learned, proved = np.isfinite(early[:, t]), np.isfinite(late[:, t])
        assert proved.any()
        assert (cut_us[learned] + horizon[t] <= cut_us[proved].min()).all()
        np.testing.assert_array_equal(early[learned, t], truth[learned, t])
    assert np.isnan(early[:, 2]).all() and np.isnan(late[:, 2]).all()


def test_histories_that_begin_together_do_not_learn_from_their_length(lender: tuple) -> None:
    timeline = lender[0]
    first = timeline.known_us[timeline.offsets[:-1]]
    entity = np.arange(len(first))
    early, late = np.full(len(first), first.max() + DAY_US), first + (UNTIL_US - first) * 2
    assert "log_since_first" in unseen_extra(timeline, UNTIL_US, entity, early)
    assert "log_since_first" not in unseen_extra(timeline, UNTIL_US, entity, late)
