"""Every objective can be learned, and no target looks where it must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.history import DAY_US, Timeline
from foundation.objectives import ObjectiveConfig, Objectives, TrainingBatch, forecast_loss
from foundation.pretrain_config import PretrainConfig, SizeConfig
from foundation.pretraining import build_model, prepare
from foundation.targets import SLACK
from foundation.tokenizer import Tokenizer
from foundation.windows import WindowSampler, activity_counts, build_pool, draw_cuts
from tests.foundation.small_lender import UNTIL_US, small_lender

TINY = SizeConfig(
    width=32,
    layers=2,
    heads=4,
    hidden=32,
    fusion_hidden=16,
    slot_width=16,
    hash_rows=64,
    name_rows=32,
)
OFF = {"next_event": 0.0, "forecast": 0.0, "activity": 0.0, "masked_event": 0.0, "coles": 0.0}


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return small_lender(24)[1]


def config_of(name: str) -> PretrainConfig:
    objectives = ObjectiveConfig(**(OFF | {name: 1.0}))
    return PretrainConfig(
        model=TINY,
        objectives=objectives,
        steps=1,
        batch_events=200,
        max_events=16,
        validation_share=0.0,
    )


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("next_event", 0.6),
        ("forecast", 0.3),
        ("activity", 0.3),
        ("masked_event", 0.85),
        ("coles", 0.5),
    ],
)
def test_overfits_a_tiny_set(name: str, share: float) -> None:
    """From its first value the loss falls to `share` of it on one repeated batch."""
    schema, timeline, profile = small_lender(24)
    tokenizer = Tokenizer.fit(schema, timeline, profile)
    config = config_of(name)
    make = prepare(config, timeline, profile, tokenizer, UNTIL_US).make
    model = build_model(config, schema, tokenizer)
    objectives = Objectives(config.objectives, model.config)
    batch = make(0)
    weights = [*model.parameters(), *objectives.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(40):
        found = objectives(model, batch)
        assert set(found) == {name, "loss"}
        optimizer.zero_grad()
        found["loss"].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(found["loss"].detach().item())
    assert losses[-1] < share * losses[0]


def test_immature_outcomes_teach_nothing() -> None:
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    outcomes = torch.tensor([[[1.0, float("nan")], [float("nan"), 0.0]]])
    forecast_loss(logits, outcomes).backward()
    taught = (logits.grad != 0).tolist()
    assert taught == [[[True, False], [False, True]]]


def test_nothing_matured_is_no_loss() -> None:
    logits = torch.ones(1, 1, 2, requires_grad=True)
    loss = forecast_loss(logits, torch.full((1, 1, 2), float("nan")))
    assert loss.detach().item() == 0.0


def test_next_event_reads_no_state_of_the_event_it_predicts() -> None:
    """The gradient of the last prediction reaches no event after the one it stands on."""
    schema, timeline, profile = small_lender(24)
    tokenizer = Tokenizer.fit(schema, timeline, profile)
    config = config_of("next_event")
    make = prepare(config, timeline, profile, tokenizer, UNTIL_US).make
    model = build_model(config, schema, tokenizer)
    batch: TrainingBatch = make(0)
    batch.inputs["extra"].requires_grad_(True)
    state = model(**batch.inputs).events[:, 3].sum()
    (gradient,) = torch.autograd.grad(state, batch.inputs["extra"])
    assert bool((gradient[:, 4:] == 0).all())
    assert bool((gradient[:, 3] != 0).any())


@given(st.integers(0, 10_000))
def test_activity_is_what_a_loop_counts(timeline: Timeline, seed: int) -> None:
    rng = np.random.default_rng(seed)
    entity = np.sort(rng.integers(0, len(timeline.entity_ids), 6))
    cut_us = UNTIL_US - rng.integers(0, 300 * DAY_US, 6)
    found = activity_counts(timeline, entity, cut_us, (10, 45), UNTIL_US)
    for i, (e, t) in enumerate(zip(entity, cut_us, strict=True)):
        mine = timeline.entity == e
        for a, days in enumerate((10, 45)):
            end = t + days * DAY_US
            inside = mine & (timeline.known_us >= t) & (timeline.known_us < end)
            counts = [int((inside & (timeline.source == s)).sum()) for s in range(2)]
            if end > UNTIL_US + SLACK * days * DAY_US:
                assert np.isnan(found[i, a]).all()
            else:
                assert found[i, a].tolist() == counts


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5))
def test_windows_hold_their_queries(
    timeline: Timeline, seed: int, max_events: int, queries: int
) -> None:
    entity, cut_us = draw_cuts(timeline, UNTIL_US, 7, seed, 28 * DAY_US)
    assert (cut_us <= UNTIL_US).all()
    empty = np.zeros((len(entity), 0))
    pool = build_pool(timeline, entity, cut_us, empty, np.zeros((len(entity), 1, 2)))
    before = timeline.known_us[pool.position - 1]
    assert (before < cut_us).all()
    after = np.minimum(pool.position, len(timeline) - 1)
    same = pool.position < timeline.offsets[entity + 1]
    assert (timeline.known_us[after][same] >= cut_us[same]).all()
    everyone = np.arange(len(timeline.entity_ids))
    sampler = WindowSampler(timeline, pool, everyone, 9, max_events, queries, seed)
    plan = sampler.plan(seed % 50)
    assert ((plan.stop - plan.start) <= max_events).all()
    position = pool.position[plan.cuts]
    assert plan.fresh[:, 0].all()
    assert (position > plan.start[:, None]).all()
    assert (position <= plan.stop[:, None]).all()
    again = WindowSampler(timeline, pool, everyone, 9, max_events, queries, seed)
    again.plan(3)
    assert np.array_equal(again.plan(seed % 50).cuts, plan.cuts)


def test_an_epoch_meets_every_entity(timeline: Timeline) -> None:
    entity, cut_us = draw_cuts(timeline, UNTIL_US, 3, 0, DAY_US)
    empty = np.zeros((len(entity), 0))
    pool = build_pool(timeline, entity, cut_us, empty, np.zeros((len(entity), 1, 2)))
    sampler = WindowSampler(timeline, pool, np.arange(len(timeline.entity_ids)), 5, 8, 2, 0)
    met = [pool.entity[sampler.plan(k).cuts[:, 0]] for k in range(sampler.steps_per_epoch)]
    assert set(np.concatenate(met)) == set(range(len(timeline.entity_ids)))
