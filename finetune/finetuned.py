"""Recipes that learn through the backbone: soft prompts and LoRA.

Both correct the recipe `forecast`, where there are forecasts, as `fusion` does: its cross-fitted
logits are where they start. They begin with a linear probe of the query state (linear probing then
fine-tuning, Kumar et al. 2022) and go on by gradient; how many epochs is decided on held-out
entities of the training rows, and zero epochs, the probe itself, is always among the choices.

* `prompt`: learned tokens stand after the history and before the query (prompt tuning, Lester et
  al. 2021). Events never see them, so that one encoded history serves every channel, and a
  frozen history is encoded once, not once per epoch.
* `lora`: low-rank updates of every matrix of the blocks (Hu et al. 2022, by `peft`).

Either leaves the backbone as it is and makes a small adapter: prompt or updates, and the readout.

Shapes: B batch, L events, D width, M prompt tokens, S samples.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F

from finetune.crossval import assign_folds
from finetune.fusion import WeightedRecipes
from finetune.heads import Head
from finetune.linear import ForecastRecipe, held_out_logits
from finetune.recipes import FittedRecipe
from finetune.ridge import CAUTIOUS, STRENGTHS, fit_ridge
from finetune.side_by_side import stop_if_asked
from finetune.table import FeatureTable
from finetune.tuning_batches import (
    Batch,
    Part,
    batches,
    event_index,
    frozen_keys,
    keep_keys,
    parts_of,
)
from foundation.attention import query_mask
from foundation.backbone import RiskBackbone
from foundation.errors import SampleError

LORA_MODULES = ["qkv", "attention_out", "mlp_in", "mlp_out"]
# Torch has one source of chance for all threads: starts are drawn one at a time.
_SEEDED = threading.Lock()


@dataclass(frozen=True)
class FineTuneSettings:
    """How long and how strongly.

    Attributes:
        epochs: at most; how many is chosen on held-out entities.
        patience: epochs without a better held-out loss after which the search stops.
        tokens: prompt tokens M. rank: of LoRA.
    """

    epochs: int = 10
    patience: int = 2
    batch_size: int = 32
    learning_rate: float = 2e-3
    head_learning_rate: float = 5e-4
    weight_decay: float = 0.05
    tokens: int = 4
    rank: int = 4


class TunedBackbone(nn.Module):
    """Backbone, optional prompt and a linear head on the query state."""

    def __init__(self, backbone: RiskBackbone, tokens: int, scale: torch.Tensor) -> None:
        super().__init__()
        width = backbone.config.width
        self.backbone = backbone
        self.prompt = nn.Parameter(torch.zeros(tokens, width)) if tokens else None
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """[B] logits of a batch with one query each."""
        return self.head(self.state(**inputs))

    def state(self, **inputs: torch.Tensor) -> torch.Tensor:
        """[B, D] state of each history's query."""
        model = self.backbone
        events = model.encode_tokens(
            inputs["source"], inputs["code"], inputs["value"], inputs["extra"]
        )
        angles = model.rotary(event_index(inputs["days"]), inputs["days"])
        queries, query_angles, seen = self.queries(inputs, events.shape[1])
        *blocks, last = model.blocks
        for block in blocks:
            events, keys = block.read(events, angles)
            queries = block.look(queries, keys, query_angles, seen)
        queries = last.look(queries, last.keys(events, angles), query_angles, seen)
        return model.final_norm(queries)[:, -1]

    def queries(self, inputs: Batch, length: int) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Prompt and query tokens [B, M + 1, D], their angles and what they may see."""
        model = self.backbone
        query = model.encode_queries(
            inputs["query_code"], inputs["query_value"], inputs["query_extra"]
        )
        position, days = inputs["query_position"], inputs["query_days"]
        if self.prompt is not None:
            prompt = self.prompt[None].expand(query.shape[0], -1, -1)
            query = torch.cat([prompt, query], dim=1)
            count = self.prompt.shape[0] + 1
            position, days = position.expand(-1, count), days.expand(-1, count)
        angles = model.rotary(position.to(days.dtype), days)
        return query, angles, query_mask(position, length, chained=True)

    def head(self, state: torch.Tensor) -> torch.Tensor:
        """[B] logits of states [B, D]."""
        return (state * self.scale * self.weight).sum(-1) + self.bias


@dataclass
class FittedTuned:
    """A tuned backbone; reads raw histories.

    Attributes:
        model: with what was learnt folded in.
        base: the backbone it was tuned from.
        adapter: what was learnt, by the names of `finetune.tuned_graph`.
    """

    name: str
    model: TunedBackbone
    base: RiskBackbone
    adapter: dict[str, np.ndarray]
    detail: dict[str, Any] = field(default_factory=dict)
    offset: float = 0.0

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 logits."""
        return _logit(self.model, table)

    def heads(self) -> list[Head]:
        """The graph that tuned channels of the backbone share, and the adapter: proved together.

        Raises:
            ParityError: they differ from the tuned model.
        """
        from finetune.tuned_graph import prove_shared, shared_graph

        graph = shared_graph(self.base, self.adapter)
        prove_shared(graph, self.adapter, self.model)
        return [Head(self.name, (), graph, adapter=self.adapter)]


@dataclass(frozen=True)
class TunedRecipe:
    """`prompt` or `lora` on a backbone, which itself is left as it is."""

    name: str
    backbone: RiskBackbone
    settings: FineTuneSettings = FineTuneSettings()
    needs: frozenset[str] = frozenset({"history"})
    reads: frozenset[str] = frozenset({"history"})
    slow: bool = True
    seeds: int = 1
    directions: dict[str, int] = field(default_factory=dict)

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedTuned | WeightedRecipes:
        """The mean of `seeds` fits; each is a graph that every score then runs."""
        taught = (y, weight, groups)
        first: list[FittedRecipe] = []
        start = np.zeros(len(y))
        if "forecast" in table.blocks:
            forecast = ForecastRecipe(directions=self.directions)
            with suppress(SampleError):
                start = held_out_logits(forecast, table, *taught, seed)
                first = [forecast.fit(table, *taught, seed)]
        fits = [
            self._fit(table, *taught, start, seed + 1000 * i) for i in range(self.seeds)
        ]  # fmt: skip
        if not first and self.seeds == 1:
            return fits[0]
        share = [1.0] * len(first) + [1.0 / self.seeds] * self.seeds
        detail = {"fits": [f.detail for f in fits]}
        return WeightedRecipes(self.name, [*first, *fits], share, detail)

    def _fit(
        self,
        table: FeatureTable,
        y: np.ndarray,
        weight: np.ndarray,
        groups: np.ndarray,
        start: np.ndarray,
        seed: int,
    ) -> FittedTuned:
        """Probe, choose the number of epochs on held-out entities, tune on all rows."""
        fold = assign_folds(y, groups, 4, 1, seed)[0]
        kept, held = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
        parts = list(parts_of(table))
        model, state = self._start(parts, len(table), seed)
        rehearsal = copy.deepcopy(model)
        _probe(rehearsal, state[kept], y[kept], weight[kept], groups[kept], start[kept], seed)
        losses = [_loss(rehearsal, parts, y, weight, start, held)]
        for epoch in self._train(rehearsal, parts, y, weight, start, kept, seed):
            losses.append(_loss(rehearsal, parts, y, weight, start, held))
            if epoch + 1 - int(np.argmin(losses)) >= self.settings.patience:
                break
        epochs = int(np.argmin(losses))
        _probe(model, state, y, weight, groups, start, seed)
        every = np.arange(len(table))
        steps = self._train(model, parts, y, weight, start, every, seed)
        for _ in itertools.islice(steps, epochs):
            pass
        detail = {"epochs": epochs, "held_out_log_loss": [round(v, 4) for v in losses]}
        adapter = _adapter(model)
        return FittedTuned(self.name, _merged(model), self.backbone, adapter, detail)

    def _start(
        self, parts: Sequence[Part], samples: int, seed: int
    ) -> tuple[TunedBackbone, np.ndarray]:
        """A copy of the backbone with fresh prompt or adapters, and the states [S, D] it gives.

        Keys of the histories are kept with the parts where they stay as they are. Fresh adapters
        change nothing: the states are those of the backbone.
        """
        backbone = copy.deepcopy(self.backbone).eval().requires_grad_(False)
        tokens = self.settings.tokens if self.name == "prompt" else 0
        model = TunedBackbone(backbone, tokens, torch.ones(backbone.config.width))
        if model.prompt is not None:
            with _SEEDED, torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                nn.init.normal_(model.prompt, std=0.02)
            keep_keys(backbone, parts)
        state = _states(model, parts, samples)
        if self.name == "lora":
            adapter = LoraConfig(
                r=self.settings.rank,
                lora_alpha=2 * self.settings.rank,
                target_modules=LORA_MODULES,
            )
            with _SEEDED, torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                inject_adapter_in_model(adapter, backbone)
        return model, state

    def _train(
        self,
        model: TunedBackbone,
        parts: Sequence[Part],
        y: np.ndarray,
        weight: np.ndarray,
        start: np.ndarray,
        rows: np.ndarray,
        seed: int,
    ) -> Iterator[int]:
        """Train on some rows epoch by epoch, yielding after each."""
        own = [model.weight, model.bias]
        deep = [
            p
            for n, p in model.named_parameters()
            if p.requires_grad and n not in ("weight", "bias")
        ]
        s = self.settings
        optimizer = torch.optim.AdamW(
            [{"params": own, "lr": s.head_learning_rate}, {"params": deep, "lr": s.learning_rate}],
            weight_decay=s.weight_decay,
        )
        steps = batches(parts, rows, s.batch_size)
        target = torch.from_numpy(y.astype(np.float32))
        before = torch.from_numpy(start.astype(np.float32))
        scale = torch.from_numpy((weight / weight[rows].mean()).astype(np.float32))
        rng = np.random.default_rng(seed)
        for epoch in range(s.epochs):
            for i in rng.permutation(len(steps)):
                stop_if_asked()
                optimizer.zero_grad(set_to_none=True)
                count = sum(len(places) for _, places in steps[i])
                for whole, places in steps[i]:
                    part = whole.take(places)
                    losses = F.binary_cross_entropy_with_logits(
                        before[part.rows] + _run(model, part),
                        target[part.rows],
                        scale[part.rows],
                        reduction="sum",
                    )
                    (losses / count).backward()
                torch.nn.utils.clip_grad_norm_([*own, *deep], 1.0)
                optimizer.step()
            yield epoch


def _probe(
    model: TunedBackbone,
    state: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    start: np.ndarray,
    seed: int,
) -> None:
    """Set the head of a model to what a linear probe of states [S, D] adds to logits [S]."""
    scale = 1 / np.maximum(state.std(axis=0), 1e-6)
    folds = assign_folds(y, groups, 5, 2, seed)
    strengths = CAUTIOUS if start.any() else STRENGTHS
    z = (state * scale).astype(np.float64)
    probe = fit_ridge(z, y, weight, folds, strengths, offset=start)
    with torch.no_grad():
        model.scale.copy_(torch.from_numpy(scale.astype(np.float32)))
        model.weight.copy_(torch.from_numpy(probe.weights.astype(np.float32)))
        model.bias.fill_(probe.intercept)


def _state(model: TunedBackbone, part: Part) -> torch.Tensor:
    """[B, D] query states; histories that do not change are encoded once, if they may be kept."""
    if model.prompt is None:
        return model.state(**part.batch)
    keys = part.keys or frozen_keys(model.backbone, part.batch)
    queries, angles, seen = model.queries(part.batch, part.batch["days"].shape[1])
    for block, each in zip(model.backbone.blocks, keys, strict=True):
        queries = block.look(queries, each, angles, seen)
    return model.backbone.final_norm(queries)[:, -1]


def _run(model: TunedBackbone, part: Part) -> torch.Tensor:
    """[B] logits with gradients into what is tuned."""
    return model.head(_state(model, part))


def _states(model: TunedBackbone, parts: Sequence[Part], samples: int) -> np.ndarray:
    """[S, D] query states before tuning, prompt included."""
    out = np.empty((samples, model.backbone.config.width))
    with torch.no_grad():
        for part in parts:
            stop_if_asked()
            out[part.rows] = _state(model, part).double().numpy()
    return out


def _logit(model: TunedBackbone, table: FeatureTable) -> np.ndarray:
    """[S] float64 logits."""
    out = np.empty(len(table))
    with torch.no_grad():
        for part in parts_of(table):
            stop_if_asked()
            out[part.rows] = model(**part.batch).double().numpy()
    return out


def _loss(
    model: TunedBackbone,
    parts: Sequence[Part],
    y: np.ndarray,
    weight: np.ndarray,
    start: np.ndarray,
    rows: np.ndarray,
) -> float:
    """Weighted log-loss of a model on some rows, on top of logits [S]."""
    logit = start.copy()
    with torch.no_grad():
        for whole, places in itertools.chain(*batches(parts, rows, len(rows))):
            stop_if_asked()
            part = whole.take(places)
            logit[part.rows] += _run(model, part).double().numpy()
    losses = np.logaddexp(0, np.where(y == 1, -logit, logit))[rows]
    return float(np.average(losses, weights=weight[rows]))


def _adapter(model: TunedBackbone) -> dict[str, np.ndarray]:
    """What a model has learnt beside its backbone, by the names of `finetune.tuned_graph`."""
    from peft.tuners.lora import LoraLayer

    from finetune.tuned_graph import DOWN, UP

    with torch.no_grad():
        tensors = {"readout": model.scale * model.weight, "bias": model.bias.reshape(1)}
        if model.prompt is not None:
            tensors["prompt"] = model.prompt
        for name, layer in model.backbone.named_modules():
            if isinstance(layer, LoraLayer):
                (update,) = layer.active_adapters
                up = layer.lora_B[update].weight * layer.scaling[update]
                tensors |= {name + DOWN: layer.lora_A[update].weight.T, name + UP: up.T}
        return {name: np.array(tensor.numpy(), order="C") for name, tensor in tensors.items()}


def _merged(model: TunedBackbone) -> TunedBackbone:
    """Fold LoRA updates into the matrices, so that the tuned model is a plain one."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge(safe_merge=True)
                setattr(parent, name, child.get_base_layer())
    return model.requires_grad_(False).eval()
