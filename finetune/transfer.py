"""Recipe `transfer`: start from the tenant's other channels and move away as labels allow.

logit = a + mean source logit + sum_k d_k (source logit k) + beta . z, with z the forecasts, or the
forecasts and the backbone's state. The intercept a is free, for bad rates differ; d and beta are
shrunk to zero, so that few labels leave the sources as they are (a prior of weight one on their
mean, hierarchical shrinkage toward the tenant) and many leave nothing of it. How strongly, and
which z, is decided by inner cross-validation.

Shapes: S samples, K sources, p inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.channels import Source
from finetune.crossval import assign_folds
from finetune.heads import Head, LinearHead
from finetune.linear import Inputs, balanced_blocks, input_signs
from finetune.ridge import STRENGTHS, Ridge, fit_ridge
from finetune.table import FeatureTable

# How much cheaper than an input of z a change of a source's weight is, in standard deviations.
SOURCE_SCALE = 4.0
# The weakest is the sources alone.
CHOICES = (1e-7, *STRENGTHS)
READS: tuple[tuple[str, ...], ...] = ((), ("forecast",), ("forecast", "embedding"))
# The inner evidence a larger z has to bring, in log-loss of all rows together.
WORTH = 0.5


@dataclass
class FittedTransfer:
    """Weights of the sources and a linear head beside them."""

    name: str
    sources: tuple[Source, ...]
    weights: list[float]
    head: LinearHead | None
    intercept: float
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def offset(self) -> float:
        """Constants of the sources; that of the linear head lives in it."""
        constant = sum(s.scaled(w)[1] for s, w in zip(self.sources, self.weights, strict=True))
        return float(constant + self.intercept)

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 logits."""
        total = np.full(len(table), self.intercept)
        for source, weight in zip(self.sources, self.weights, strict=True):
            total += weight * source.logit(table)
        return total if self.head is None else total + self.head.logit(table)

    def heads(self) -> list[Head]:
        """The sources' own graphs, weighted, and the linear one."""
        out = [
            head
            for source, weight in zip(self.sources, self.weights, strict=True)
            for head in source.scaled(weight)[0]
        ]
        return out if self.head is None else [*out, self.head.head(self.name)]


@dataclass(frozen=True)
class TransferRecipe:
    """A start from other channels' models."""

    sources: tuple[Source, ...]
    name: str = "transfer"
    reads: frozenset[str] = frozenset()
    directions: dict[str, int] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """Raw histories where a source reads them."""
        return frozenset({"history"} if self.slow else ())

    @property
    def slow(self) -> bool:
        """Whether a source is a fine-tuned model."""
        return any(s.reads_histories for s in self.sources)

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedTransfer:
        """Choose what to read beside the sources and how strongly; see the module.

        Raises:
            SampleError: one class only.
        """
        known = np.stack([s.logit(table) for s in self.sources], axis=1)
        start = known.mean(axis=1)
        spread = np.maximum(known.std(axis=0), 1e-6)
        moves = SOURCE_SCALE * (known - known.mean(axis=0)) / spread
        folds = assign_folds(y, groups, 5, 2 if len(y) < 1000 else 1, seed)
        best: tuple[float, Ridge, Inputs, np.ndarray, tuple[str, ...]] | None = None
        for blocks in _choices(table):
            inputs = Inputs.fit(table.select(blocks), weight) if blocks else Inputs()
            signs = input_signs(inputs.inputs, self.directions)
            factors = balanced_blocks(inputs.inputs) * np.where(signs < 0, -1.0, 1.0)
            z = np.hstack([moves, inputs.matrix(table) * factors])
            signed = np.append(np.zeros(len(self.sources), bool), signs != 0)
            ridge = fit_ridge(z, y, weight, folds, CHOICES, signed, start)
            loss = min(ridge.losses.values()) * len(y)
            if best is None or loss < best[0] - WORTH:
                best = (loss, ridge, inputs, factors, blocks)
        assert best is not None
        _, ridge, inputs, factors, blocks = best
        count = len(self.sources)
        steps = SOURCE_SCALE * ridge.weights[:count] / spread
        weights = 1.0 / count + steps
        intercept = ridge.intercept - float(steps @ known.mean(axis=0))
        head = inputs.head(ridge.weights[count:] * factors, 0.0) if inputs.inputs else None
        detail = {
            "sources": {
                str(s.label["package"]): float(w)
                for s, w in zip(self.sources, weights, strict=True)
            },
            "reads": list(blocks),
            "c": ridge.strength,
            "inner_log_loss": ridge.losses,
        }
        return FittedTransfer(
            self.name, self.sources, [float(w) for w in weights], head, intercept, detail
        )


def _choices(table: FeatureTable) -> Sequence[tuple[str, ...]]:
    """What may be read beside the sources, the least first."""
    found = [tuple(b for b in blocks if b in table.blocks) for blocks in READS]
    return list(dict.fromkeys(found))
