"""What pretraining teaches, each objective with a weight in the configuration (0 switches it off).

* next event: the source (dot product with source embeddings), the time until it in bins, and each
  of its slots (dot product with the slot's code embeddings), from the state before it;
* forecast: the declared outcomes within their horizons at the query times, BCE over matured ones;
* activity: per source and horizon whether any event comes, and log(1 + how many);
* distillation: the boosted forecasters' log-odds, standardised, as a linear function of the state
  at the query times (regression on a teacher's logits, Ba and Caruana 2014);
* masked event: some event vectors are hidden and their tokens predicted from the rest;
* CoLES (Babaev et al. 2022): two sub-histories of one entity are alike, of two entities are not.

Shapes: B batch, L events, K slots, Q queries, D width, E slot width, T targets, A activity
horizons, M chosen positions. `NaN` in a target means not matured and is never learned from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from foundation import strict
from foundation.backbone import INPUTS, BackboneOutput, RiskBackbone, RiskBackboneConfig
from foundation.event_encoder import Tables

TOKENS = ("source", "code", "value", "extra")
LEAST_SPREAD = 1e-3


class ObjectiveConfig(strict.Strict):
    """Weights and settings of the objectives.

    Attributes:
        distillation: has no effect without boosted forecasters to learn from.
        positions: at most so many events per step are predicted token by token, 0 for all.
        mask_share: share of events hidden by the masked-event objective.
        coles_temperature: softmax temperature of the contrastive objective.
        coles_length: shortest sub-history, in events.
    """

    next_event: float = 1.0
    forecast: float = 1.0
    activity: float = 0.25
    distillation: float = 0.0
    masked_event: float = 0.0
    coles: float = 0.0
    positions: int = 0
    mask_share: float = 0.15
    coles_temperature: float = 0.1
    coles_length: int = 2


@dataclass
class TrainingBatch:
    """One step's data.

    Attributes:
        inputs: the backbone's inputs by name.
        length: [B] int64 events per window.
        outcomes: [B, Q, T] float32 in {0, 1, NaN}.
        activity: [B, Q, A, sources] float32 event counts, NaN where the window is not over.
        base: [B, Q, T] float32 log-odds the forecasts are added to, see foundation.residual.
        seed: of whatever the objectives draw at random.
    """

    inputs: dict[str, torch.Tensor]
    length: torch.Tensor
    outcomes: torch.Tensor
    activity: torch.Tensor
    base: torch.Tensor
    seed: int

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device."""
        return TrainingBatch(
            {k: v.to(device) for k, v in self.inputs.items()},
            self.length.to(device),
            self.outcomes.to(device),
            self.activity.to(device),
            self.base.to(device),
            self.seed,
        )


class Objectives(nn.Module):
    """Heads used in pretraining only, and the weighted loss."""

    def __init__(self, config: ObjectiveConfig, sizes: RiskBackboneConfig) -> None:
        super().__init__()
        width, slot_width = sizes.width, sizes.slot_width
        self.config = config
        self.horizons = len(sizes.activity_days)
        self.register_buffer("gap_edges", torch.tensor(sizes.gap_edges_days), persistent=False)
        self.source_head = nn.Linear(width, slot_width)
        self.gap_head = nn.Linear(width, len(sizes.gap_edges_days) + 1)
        self.code_head = nn.Linear(width, slot_width)
        self.activity_head = nn.Linear(width, self.horizons * 2 * slot_width)
        self.activity_bias = nn.Parameter(torch.zeros(self.horizons, 2))
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.taught = [sizes.targets.index(name) for name in sizes.distilled]
        self.register_buffer("base_mean", torch.zeros(len(self.taught)))
        self.register_buffer("base_scale", torch.ones(len(self.taught)))

    def measure_base(self, base: np.ndarray) -> None:
        """Standardise what is distilled by all cuts' log-odds, [S, T]."""
        taught = torch.from_numpy(base[:, self.taught])
        self.base_mean.copy_(taught.mean(0))
        self.base_scale.copy_(taught.std(0).clamp(min=LEAST_SPREAD))

    @torch.no_grad()
    def unscale(self, readout: nn.Linear) -> None:
        """Let the trained readout say log-odds, no longer standardised ones."""
        readout.weight.mul_(self.base_scale[:, None])
        readout.bias.mul_(self.base_scale).add_(self.base_mean)

    def forward(self, model: RiskBackbone, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        """Every active loss by name, and `loss`, their weighted sum."""
        out = model(**batch.inputs)
        c = self.config
        losses: dict[str, torch.Tensor] = {}
        if c.next_event:
            losses["next_event"] = self.next_event(model, out, batch)
        if c.forecast and batch.outcomes.shape[-1]:
            losses["forecast"] = forecast_loss(out.forecasts + batch.base, batch.outcomes)
        if c.activity and self.horizons:
            losses["activity"] = self.activity(out, batch)
        if c.distillation and model.readout is not None:
            losses["distillation"] = self.distillation(model.readout, out, batch)
        if c.masked_event:
            losses["masked_event"] = self.masked_event(model, out.tables, batch)
        if c.coles:
            losses["coles"] = self.coles(model, out.tables, batch)
        zero = out.query.sum() * 0.0
        losses["loss"] = sum((getattr(c, n) * v for n, v in losses.items()), start=zero)
        return losses

    def next_event(
        self, model: RiskBackbone, out: BackboneOutput, batch: TrainingBatch
    ) -> torch.Tensor:
        """Source, gap and tokens of event i + 1 from the state of event i.

        A slot's cross entropy is divided by the log of its number of codes, so that slots count
        alike; sources weigh by how often they occur.
        """
        inputs, length = batch.inputs, batch.length
        steps = torch.arange(out.events.shape[1], device=length.device)
        chosen = self._some((steps < length[:, None] - 1).flatten().nonzero()[:, 0])
        if len(chosen) == 0:
            return out.events.sum() * 0.0
        state = out.events.flatten(0, 1).index_select(0, chosen)
        source = inputs["source"].flatten()[chosen + 1]
        code = inputs["code"].flatten(0, 1)[chosen + 1]
        days = inputs["days"].flatten()
        gap = days[chosen + 1] - days[chosen]
        bins = torch.bucketize(gap, self.gap_edges)
        loss = F.cross_entropy(self.gap_head(state), bins) / math.log(len(self.gap_edges) + 1)
        sources = out.tables.source
        if len(sources) > 1:
            logits = self.source_head(state) @ sources.T
            loss = loss + F.cross_entropy(logits, source) / math.log(len(sources))
        return loss + self._tokens(model, out.tables, state, source, code)

    def _some(self, positions: torch.Tensor) -> torch.Tensor:
        """At most `positions` of them, evenly spread."""
        limit = self.config.positions
        if not limit or len(positions) <= limit:
            return positions
        every = torch.arange(limit, device=positions.device)
        return positions[every * len(positions) // limit]

    def _tokens(
        self,
        model: RiskBackbone,
        tables: Tables,
        state: torch.Tensor,
        source: torch.Tensor,
        code: torch.Tensor,
    ) -> torch.Tensor:
        """Mean scaled cross entropy of every slot of events of known source.

        Args:
            state: [M, D]; source: [M]; code: [M, K].
        """
        layout, table = model.layout, tables.code
        wanted = self.code_head(state)
        total = state.sum() * 0.0
        owner, column = layout["slot_owner"].tolist(), layout["slot_column"].tolist()
        sizes = (layout["slot_stop"] - layout["slot_first"]).tolist()
        for index in sorted({o for o in owner if o >= 0}):
            rows = (source == index).nonzero()[:, 0]
            slots = [s for s, o in enumerate(owner) if o == index]
            if len(rows) == 0:
                continue
            every = len(rows) == len(source)
            mine = wanted if every else wanted.index_select(0, rows)
            seen = code if every else code[rows]
            for s in slots:
                first = int(layout["slot_first"][s])
                codes = layout["slot_codes"][first : first + sizes[s]]
                logits = mine @ table.index_select(0, codes).T
                nats = F.cross_entropy(
                    logits, layout["code_local"][seen[:, column[s]]], reduction="sum"
                )
                total = total + nats / (math.log(sizes[s]) * len(slots))
        return total / len(state)

    def activity(self, out: BackboneOutput, batch: TrainingBatch) -> torch.Tensor:
        """Any event (BCE) and log count (squared error) per source and horizon."""
        counts = batch.activity
        seen = ~counts.isnan()
        counts = counts.nan_to_num(0.0)
        shape = (*counts.shape[:2], self.horizons, 2, -1)
        said = self.activity_head(out.query).view(shape) @ out.tables.source.T
        said = said + self.activity_bias[:, :, None]
        anything = F.binary_cross_entropy_with_logits(
            said[..., 0, :], (counts > 0).to(said.dtype), reduction="none"
        )
        amount = (said[..., 1, :] - torch.log1p(counts)) ** 2
        return ((anything + 0.5 * amount) * seen).sum() / seen.sum().clamp(min=1)

    def distillation(
        self, readout: nn.Linear, out: BackboneOutput, batch: TrainingBatch
    ) -> torch.Tensor:
        """Mean squared error of the boosted forecasters' standardised log-odds."""
        wanted = (batch.base[..., self.taught] - self.base_mean) / self.base_scale
        return F.mse_loss(readout(out.query), wanted)

    def masked_event(
        self, model: RiskBackbone, tables: Tables, batch: TrainingBatch
    ) -> torch.Tensor:
        """Tokens of hidden events from those around (bidirectional) or before (causal)."""
        inputs, length = batch.inputs, batch.length
        events = model.encode_tokens(*(inputs[n] for n in TOKENS), tables=tables)
        steps = torch.arange(events.shape[1], device=length.device)
        lot = torch.rand(events.shape[:2], generator=_generator(batch.seed)).to(length.device)
        hidden = (lot < self.config.mask_share) & (steps < length[:, None])
        if not bool(hidden.any()):
            return events.sum() * 0.0
        events = torch.where(hidden[..., None], self.mask_token.to(events.dtype), events)
        tokens = (inputs[f"query_{n}"] for n in ("code", "value", "extra"))
        queries = model.encode_queries(*tokens, tables=tables)
        states, _ = model.contextualise(
            events, inputs["days"], queries, inputs["query_days"], inputs["query_position"]
        )
        source, code = inputs["source"][hidden], inputs["code"][hidden]
        return self._tokens(model, tables, states[hidden], source, code)

    def coles(self, model: RiskBackbone, tables: Tables, batch: TrainingBatch) -> torch.Tensor:
        """Contrast of the mean states of two random sub-histories per entity (InfoNCE)."""
        usable = (batch.length >= 2 * self.config.coles_length).nonzero()[:, 0]
        if len(usable) < 2:
            return batch.inputs["value"].sum() * 0.0
        generator = _generator(batch.seed)
        first = self._sub_history(model, tables, batch, usable, generator)
        second = self._sub_history(model, tables, batch, usable, generator)
        logits = first @ second.T / self.config.coles_temperature
        same = torch.arange(len(usable), device=logits.device)
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    def _sub_history(
        self,
        model: RiskBackbone,
        tables: Tables,
        batch: TrainingBatch,
        rows: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """[rows, D] unit vectors of one contiguous random part of each window."""
        inputs, length = batch.inputs, batch.length[rows]
        low = torch.full_like(length, self.config.coles_length)
        lot = torch.rand((2, len(rows)), generator=generator).to(length.device)
        size = low + ((length - low + 1) * lot[0]).long().clamp(max=length - low)
        start = ((length - size + 1) * lot[1]).long().clamp(max=length - size)
        steps = torch.arange(int(size.max()), device=length.device)
        at = (start[:, None] + steps).clamp(max=inputs["source"].shape[1] - 1)
        inside = steps < size[:, None]
        part = {n: inputs[n][rows[:, None], at] for n in (*TOKENS, "days")}
        part["days"] = part["days"] - part["days"][:, :1]
        events = model.encode_tokens(*(part[n] for n in TOKENS), tables=tables)
        queries = model.query_token.expand(len(rows), 1, -1)
        states, _ = model.contextualise(
            events, part["days"], queries, part["days"][:, :1], size[:, None]
        )
        pooled = (states * inside[..., None]).sum(1) / size[:, None]
        return F.normalize(pooled, dim=-1)


def forecast_loss(logits: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
    """BCE over matured outcomes; [B, Q, T] each, NaN in `outcomes` is left out."""
    seen = ~outcomes.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, outcomes.nan_to_num(0.0), reduction="none")
    return (loss * seen).sum() / seen.sum().clamp(min=1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def training_batch(arrays: dict[str, np.ndarray], seed: int) -> TrainingBatch:
    """The arrays of `windows.WindowBatches` as tensors."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    return TrainingBatch(
        {name: tensors[name] for name in INPUTS},
        tensors["length"],
        tensors["outcomes"].float(),
        tensors["activity"].float(),
        tensors["base"].float(),
        seed,
    )
