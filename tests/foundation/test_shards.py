"""A step in parts is the mean of its parts, whatever the order in which threads finish."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundation.objectives import ObjectiveConfig, Objectives, TrainingBatch
from foundation.pretrain_config import PretrainConfig, shards_of
from foundation.pretraining import build_model, prepare
from foundation.shards import Shards, split
from foundation.tokenizer import Tokenizer
from tests.foundation.small_lender import UNTIL_US, small_lender
from tests.foundation.test_objectives import TINY

CONFIG = PretrainConfig(
    model=TINY,
    objectives=ObjectiveConfig(next_event=1.0, forecast=1.0, activity=0.5, coles=0.5),
    steps=2,
    batch_events=200,
    max_events=16,
    validation_share=0.0,
)


@pytest.fixture(scope="module")
def parts() -> tuple:
    schema, timeline, *_ = small_lender(24)
    tokenizer = Tokenizer.fit(schema, timeline, None)
    make = prepare(CONFIG, timeline, None, tokenizer, UNTIL_US).make
    model = build_model(CONFIG, schema, tokenizer)
    return model, Objectives(CONFIG.objectives, model.config), make(0)


def gradients(model, objectives, run) -> dict[str, torch.Tensor]:
    model.zero_grad(), objectives.zero_grad()
    run()["loss"].backward()
    return {
        f"{i}.{n}": p.grad.clone()
        for i, m in enumerate((model, objectives))
        for n, p in m.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("count", [1, 2, 3])
def test_losses_and_gradients_are_those_of_the_parts(parts: tuple, count: int) -> None:
    model, objectives, batch = parts
    shards = Shards(count)
    found = gradients(model, objectives, lambda: shards.losses(objectives, model, batch))
    again = gradients(model, objectives, lambda: shards.losses(objectives, model, batch))
    shards.close()
    assert all(torch.equal(found[n], again[n]) for n in found)

    def one_after_another() -> dict[str, torch.Tensor]:
        each = split(batch, count)
        share = [len(p.length) / len(batch.length) for p in each]
        total = sum(s * objectives(model, p)["loss"] for s, p in zip(share, each, strict=True))
        return {"loss": total}

    wanted = gradients(model, objectives, one_after_another)
    assert set(found) == set(wanted)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-4)


def test_parts_hold_every_row_once(parts: tuple) -> None:
    batch: TrainingBatch = parts[2]
    for count in (1, 2, 5, 1000):
        each = split(batch, count)
        assert len(each) == min(count, len(batch.length))
        assert torch.equal(torch.cat([p.length for p in each]), batch.length)
        assert np.ptp([len(p.length) for p in each]) <= 1
        assert len({p.seed for p in each}) == len(each)


def test_dropout_and_mixed_precision_keep_the_batch_whole() -> None:
    config = PretrainConfig(model=TINY, threads=2)
    if torch.accelerator.is_available():
        assert shards_of(config) == 1
        return
    assert shards_of(config) == 2
    assert shards_of(PretrainConfig(model=TINY, threads=2, precision="bf16-mixed")) == 1
