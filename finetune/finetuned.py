"""Recipes that learn through the backbone: soft prompts and LoRA.

Both start from a linear probe of the query state (linear probing then fine-tuning, Kumar et al.
2022) and go on by gradient; how many epochs is decided on held-out entities of the training rows,
and zero epochs, the probe itself, is always among the choices.

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
from collections.abc import Iterator
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
from finetune.ridge import fit_ridge
from finetune.table import FeatureTable
from foundation.attention import query_mask
from foundation.backbone import RiskBackbone
from foundation.batching import history_batches

Batch = dict[str, torch.Tensor]
LORA_MODULES = ["qkv", "attention_out", "mlp_in", "mlp_out"]


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
        angles = model.rotary(_index(inputs["days"]), inputs["days"])
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

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedTuned | WeightedRecipes:
        """The mean of `seeds` fits; each is a graph that every score then runs."""
        if self.seeds == 1:
            return self._fit(table, y, weight, groups, seed)
        fits = [self._fit(table, y, weight, groups, seed + 1000 * i) for i in range(self.seeds)]
        share = [1.0 / self.seeds] * self.seeds
        return WeightedRecipes(self.name, [*fits], share, {"fits": [f.detail for f in fits]})

    def _fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedTuned:
        """Probe, choose the number of epochs on held-out entities, tune on all rows."""
        fold = assign_folds(y, groups, 4, 1, seed)[0]
        kept, held = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
        rehearsal = self._start(table.take(kept), y[kept], weight[kept], groups[kept], seed)
        losses = [_loss(rehearsal, table.take(held), y[held], weight[held])]
        for epoch in self._train(rehearsal, table.take(kept), y[kept], weight[kept], seed):
            losses.append(_loss(rehearsal, table.take(held), y[held], weight[held]))
            if epoch + 1 - int(np.argmin(losses)) >= self.settings.patience:
                break
        epochs = int(np.argmin(losses))
        model = self._start(table, y, weight, groups, seed)
        for _ in itertools.islice(self._train(model, table, y, weight, seed), epochs):
            pass
        detail = {"epochs": epochs, "held_out_log_loss": [round(v, 4) for v in losses]}
        adapter = _adapter(model)
        return FittedTuned(self.name, _merged(model), self.backbone, adapter, detail)

    def _start(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> TunedBackbone:
        """A copy of the backbone with fresh prompt or adapters and a probed head."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = copy.deepcopy(self.backbone).eval().requires_grad_(False)
            model = TunedBackbone(
                backbone,
                self.settings.tokens if self.name == "prompt" else 0,
                torch.ones(backbone.config.width),
            )
            if self.name == "lora":
                adapter = LoraConfig(
                    r=self.settings.rank,
                    lora_alpha=2 * self.settings.rank,
                    target_modules=LORA_MODULES,
                )
                inject_adapter_in_model(adapter, backbone)
            else:
                assert model.prompt is not None
                nn.init.normal_(model.prompt, std=0.02)
        state = _states(model, table)
        scale = 1 / np.maximum(state.std(axis=0), 1e-6)
        folds = assign_folds(y, groups, 5, 2, seed)
        probe = fit_ridge((state * scale).astype(np.float64), y, weight, folds)
        with torch.no_grad():
            model.scale.copy_(torch.from_numpy(scale.astype(np.float32)))
            model.weight.copy_(torch.from_numpy(probe.weights.astype(np.float32)))
            model.bias.fill_(probe.intercept)
        return model

    def _train(
        self,
        model: TunedBackbone,
        table: FeatureTable,
        y: np.ndarray,
        weight: np.ndarray,
        seed: int,
    ) -> Iterator[int]:
        """Train epoch by epoch, yielding after each."""
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
        batches = [
            (torch.from_numpy(rows), _frozen(model, batch))
            for rows, batch in _batches(table, s.batch_size)
        ]
        target = torch.from_numpy(y.astype(np.float32))
        scale = torch.from_numpy((weight / weight.mean()).astype(np.float32))
        rng = np.random.default_rng(seed)
        for epoch in range(s.epochs):
            for i in rng.permutation(len(batches)):
                rows, batch = batches[i]
                optimizer.zero_grad(set_to_none=True)
                logit = _run(model, batch)
                loss = F.binary_cross_entropy_with_logits(logit, target[rows], scale[rows])
                loss.backward()
                torch.nn.utils.clip_grad_norm_([*own, *deep], 1.0)
                optimizer.step()
            yield epoch


def _frozen(model: TunedBackbone, batch: Batch) -> Any:
    """For prompts: keys and values of the histories, encoded once; else the batch itself."""
    if model.prompt is None:
        return batch
    backbone = model.backbone
    with torch.no_grad():
        events = backbone.encode_tokens(
            batch["source"], batch["code"], batch["value"], batch["extra"]
        )
        angles = backbone.rotary(_index(batch["days"]), batch["days"])
        keys = []
        *blocks, last = backbone.blocks
        for block in blocks:
            events, each = block.read(events, angles)
            keys.append(each)
        keys.append(last.keys(events, angles))
    return batch, keys


def _run(model: TunedBackbone, batch: Any) -> torch.Tensor:
    """[B] logits with gradients into what is tuned."""
    if model.prompt is None:
        return model(**batch)
    inputs, keys = batch
    queries, angles, seen = model.queries(inputs, inputs["days"].shape[1])
    for block, each in zip(model.backbone.blocks, keys, strict=True):
        queries = block.look(queries, each, angles, seen)
    return model.head(model.backbone.final_norm(queries)[:, -1])


def _states(model: TunedBackbone, table: FeatureTable) -> np.ndarray:
    """[S, D] query states before tuning, prompt included."""
    out = np.empty((len(table), model.backbone.config.width))
    with torch.no_grad():
        for rows, batch in _batches(table, 64):
            out[rows] = model.state(**batch).double().numpy()
    return out


def _logit(model: TunedBackbone, table: FeatureTable) -> np.ndarray:
    """[S] float64 logits."""
    out = np.empty(len(table))
    with torch.no_grad():
        for rows, batch in _batches(table, 64):
            out[rows] = model(**batch).double().numpy()
    return out


def _loss(model: TunedBackbone, table: FeatureTable, y: np.ndarray, weight: np.ndarray) -> float:
    """Weighted log-loss of a model on rows."""
    logit = _logit(model, table)
    losses = np.logaddexp(0, np.where(y == 1, -logit, logit))
    return float(np.average(losses, weights=weight))


def _batches(table: FeatureTable, size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    histories = table.histories
    for rows, batch in history_batches(
        histories.events, histories.cut, histories.queries, size, histories.max_events
    ):
        yield rows, {k: torch.from_numpy(v) for k, v in batch.arrays().items()}


def _index(days: torch.Tensor) -> torch.Tensor:
    """[B, L] float32 event index."""
    return torch.arange(days.shape[1], dtype=days.dtype).expand_as(days)


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
