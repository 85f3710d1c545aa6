"""Tuning through the backbone: parts of batches, and the same result on any number of threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import finetune.tuning_batches as tuning_batches
from finetune.finetuned import FineTuneSettings, TunedRecipe, _run, _state
from finetune.ladder import run_ladder
from finetune.side_by_side import side_by_side
from finetune.table import Column, FeatureTable
from finetune.tuning_batches import batches, keep_keys, parts_of
from foundation.backbone import RiskBackbone
from foundation.batching import history_batch
from tests.finetune.small_packages import lender, tuned

SHORT = FineTuneSettings(epochs=1)
Made = tuple[RiskBackbone, FeatureTable, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A backbone, a table with histories of many lengths, labels."""
    bank = lender(Path(tmp_path_factory.mktemp("lender")))
    table = bank.builder.table(bank.population, keep_histories=True)
    y = (np.random.default_rng(3).random(len(table)) < 0.4).astype(np.float64)
    return bank.backbone, table, y


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts, although there are few events."""
    monkeypatch.setattr(tuning_batches, "TOKENS", 200)


@given(data=st.data())
def test_parts_hold_every_sample_once_and_little_padding(made: Made, data: st.DataObject) -> None:
    _, table, _ = made
    rows = np.array(data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=60)))
    tokens = data.draw(st.integers(1, 300))
    before, tuning_batches.TOKENS = tuning_batches.TOKENS, tokens
    try:
        parts = list(parts_of(table.take(rows)))
    finally:
        tuning_batches.TOKENS = before
    assert sorted(np.concatenate([p.rows for p in parts])) == list(range(len(rows)))
    for part in parts:
        assert len(part.rows) == 1 or part.batch["days"].numel() <= tokens
    wanted = np.unique(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1)))
    cut = batches(parts, wanted, 4)
    found = [[part.rows[at] for part, at in batch] for batch in cut]
    assert sorted(np.concatenate([r for batch in found for r in batch])) == wanted.tolist()
    sizes = [sum(map(len, batch)) for batch in found]
    assert all(size == 4 for size in sizes[:-1]) and 1 <= sizes[-1] <= 4


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", ["prompt", "lora"])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(made: Made, kind: str) -> None:
    """Logits and gradients, with kept keys and without."""
    backbone, table, y = made
    model = TunedRecipe(kind, backbone)._start(list(parts_of(table)), len(table), 5)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name != "bias":
                parameter.normal_(std=0.2)
    weights = [p for p in model.parameters() if p.requires_grad]
    target = torch.from_numpy(y.astype(np.float32))
    h = table.histories
    arrays = history_batch(h.events, h.cut, h.queries, h.max_events).arrays()
    logit = model(**{k: torch.from_numpy(v) for k, v in arrays.items()})
    wanted = torch.autograd.grad(F.binary_cross_entropy_with_logits(logit, target), weights)
    for kept in (False, True):
        parts = list(parts_of(table))
        if kept and kind == "prompt":
            keep_keys(model.backbone, parts)
            assert all(p.keys is not None for p in parts)
        model.zero_grad()
        (batch,) = batches(parts, np.arange(len(y)), len(y))
        assert len(batch) > 1
        for part, places in batch:
            found = _run(model, part.take(places))
            torch.testing.assert_close(found, logit[part.rows], atol=1e-5, rtol=1e-5)
            loss = F.binary_cross_entropy_with_logits(found, target[part.rows], reduction="sum")
            (loss / len(y)).backward()
        for parameter, grad in zip(weights, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("small_parts")
def test_keys_beyond_the_limit_are_made_anew(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, table, _ = made
    model = tuned(backbone, "prompt", 1).model
    parts = list(parts_of(table))
    monkeypatch.setattr(tuning_batches, "KEPT_BYTES", 1 << 17)
    keep_keys(model.backbone, parts)
    assert parts[0].keys is not None and parts[-1].keys is None
    with torch.no_grad():
        for part in parts:
            again = _state(model, replace(part, keys=None))
            assert torch.equal(_state(model, part), again)
            torch.testing.assert_close(model.state(**part.batch), again)


@pytest.mark.parametrize("kind", ["prompt", "lora"])
def test_folds_side_by_side_give_what_they_give_alone(made: Made, kind: str) -> None:
    """Starts are drawn from torch's one source of chance: threads must not mix them up."""
    backbone, table, y = made
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    recipe = TunedRecipe(kind, backbone, SHORT)
    rows = len(table)
    state = torch.random.get_rng_state()
    found = [
        run_ladder(
            table, y, np.ones(rows), np.arange(rows), [recipe], repeats=1, folds=3, workers=w
        )[kind]
        for w in (1, 3, 3)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    assert found[0].status == "ok"
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].logits, other.logits)
    assert all(torch.equal(p, before[n]) for n, p in backbone.named_parameters())


@pytest.mark.parametrize("kind", ["prompt", "lora"])
def test_tuning_corrects_what_the_forecasts_say(made: Made, kind: str) -> None:
    backbone, table, _ = made
    rows, random = len(table), np.random.default_rng(5)
    risk = random.normal(size=rows)
    y = (random.random(rows) < 1 / (1 + np.exp(-2 * risk))).astype(np.float64)
    chance = (1 / (1 + np.exp(-risk))).astype(np.float32)
    rest = [i for i, c in enumerate(table.columns) if c.block != "forecast"]
    columns = (Column("late", "forecast"), *(table.columns[i] for i in rest))
    values = np.column_stack([chance, table.values[:, rest]])
    told = FeatureTable(columns, values, table.histories)
    taught = (y, np.ones(rows), np.arange(rows), 0)
    fitted = TunedRecipe(kind, backbone, SHORT).fit(told, *taught)
    first, tuned_part = fitted.members
    # Labels hang on the forecast alone: tuning has next to nothing to add.
    np.testing.assert_allclose(
        fitted.logit(told), first.logit(told) + tuned_part.logit(told), atol=1e-9
    )
    assert np.corrcoef(fitted.logit(told), risk)[0, 1] > 0.9
    assert [bool(h.columns) for h in fitted.heads()] == [True, False]
    blind = TunedRecipe(kind, backbone, SHORT).fit(table.select({"aggregate"}), *taught)
    assert blind.name == kind and not hasattr(blind, "members")


def test_fits_that_nobody_waits_for_end(made: Made) -> None:
    backbone, table, y = made
    long = TunedRecipe("lora", backbone, FineTuneSettings(epochs=100_000, patience=100_000))
    rows = len(table)

    def fit() -> object:
        return long.fit(table, y, np.ones(rows), np.arange(rows), 0)

    found = side_by_side([lambda: None, fit, fit], 2)
    next(found)
    found.close()  # returns: the fits of a hundred thousand epochs were left
