"""The state learns to say what the boosted forecasters say, up to the present."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from foundation.carried import carry
from foundation.decisions import decision_cuts
from foundation.history import Timeline
from foundation.objectives import ObjectiveConfig, Objectives
from foundation.pretrain_config import PretrainConfig
from foundation.pretraining import PRESENT_CUTS, Prepared, build_model, prepare, present_cuts
from foundation.targets import outcome_targets, target_names
from foundation.tokenizer import Tokenizer
from tests.foundation.small_lender import UNTIL_US, small_lender
from tests.foundation.test_objectives import OFF, TINY

CONFIG = PretrainConfig(
    model=TINY,
    objectives=ObjectiveConfig(**(OFF | {"distillation": 1.0})),
    steps=1,
    batch_events=200,
    max_events=16,
    cuts=6,
    validation_share=0.0,
)
TAUGHT = ["late_31d", "quiet_62d"]


@pytest.fixture(scope="module")
def lender() -> tuple[Timeline, Tokenizer]:
    schema, timeline, profile = small_lender(24)
    return timeline, Tokenizer.fit(schema, timeline, profile)


def prepared(lender: tuple[Timeline, Tokenizer], config: PretrainConfig = CONFIG) -> Prepared:
    """Its forecasters say how many events came before, and the opposite, around odd means."""
    timeline, tokenizer = lender
    profile = small_lender(24)[2]
    targets = target_names(timeline.schema.parsed_outcomes())

    def margins(entity: np.ndarray, cut_us: np.ndarray) -> np.ndarray:
        known = [
            (timeline.known_us[timeline.entity == e] < t).sum()
            for e, t in zip(entity, cut_us, strict=True)
        ]
        said = np.log1p(np.array(known, np.float32))
        by_name = {TAUGHT[0]: 2 * said - 9, TAUGHT[1]: -said}
        return np.stack([by_name.get(t, np.zeros_like(said)) for t in targets], axis=1)

    return prepare(config, timeline, profile, tokenizer, UNTIL_US, margins)


def test_a_trained_readout_says_the_log_odds(lender: tuple[Timeline, Tokenizer]) -> None:
    timeline, tokenizer = lender
    data = prepared(lender)
    model = build_model(CONFIG, timeline.schema, tokenizer, distilled=TAUGHT)
    assert model.readout is not None
    objectives = Objectives(CONFIG.objectives, model.config)
    objectives.measure_base(data.base)
    batch = data.make(0)
    weights = [*model.parameters(), *objectives.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(60):
        found = objectives(model, batch)
        assert set(found) == {"distillation", "loss"}
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(found["loss"].detach().item())
    assert losses[-1] < 0.2 * losses[0]
    objectives.unscale(model.readout)
    with torch.no_grad():
        said = model.readout(model(**batch.inputs).query)
    wanted = batch.base[..., [model.config.targets.index(name) for name in TAUGHT]]
    error = (said - wanted).pow(2).mean((0, 1)) / wanted.var((0, 1))
    assert (error < 0.2).all()


def test_present_cuts_reach_until_and_teach_no_outcome(
    lender: tuple[Timeline, Tokenizer],
) -> None:
    timeline, _ = lender
    entity, cut_us = present_cuts(timeline, UNTIL_US, 0, decision_cuts(timeline))
    assert (cut_us[::PRESENT_CUTS] == UNTIL_US).all() and (cut_us <= UNTIL_US).all()
    assert (cut_us > timeline.known_us[timeline.offsets[entity]]).all()
    data = prepared(lender)
    plain = prepared(lender, msgspec.structs.replace(CONFIG, objectives=ObjectiveConfig()))
    assert len(data.base) == len(plain.base) + len(entity)
    outcomes = timeline.schema.parsed_outcomes()
    at_until = slice(None, None, PRESENT_CUTS)
    open_ = outcome_targets(timeline, outcomes, entity[at_until], cut_us[at_until], UNTIL_US)
    assert open_.shape == (24, 3) and np.isnan(open_).all()


def test_a_network_carried_elsewhere_leaves_its_readout_behind(
    lender: tuple[Timeline, Tokenizer],
) -> None:
    timeline, tokenizer = lender
    model = build_model(CONFIG, timeline.schema, tokenizer, distilled=TAUGHT)
    moved = carry(model, tokenizer, timeline.schema)
    assert moved.readout is None and moved.config.distilled == []
    assert model.readout is not None and model.config.distilled == TAUGHT
