"""A training step on several cores: every core takes a part of the batch, gradients are averaged.

The tensors of a small model are too small to be split inside an operation: two threads inside each
were barely faster than one, two halves of the batch on a thread each twice as fast. Autograd and
the kernels let go of the interpreter lock. The order of the sums is fixed, so that a run is
reproducible for a given number of shards.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

from foundation.backbone import RiskBackbone
from foundation.objectives import Objectives, TrainingBatch

Losses = dict[str, torch.Tensor]
Grads = list[torch.Tensor | None]


class Shards:
    """Computes the losses of a batch in parts.

    Args:
        count: threads, and parts of a batch, at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(
            count, thread_name_prefix="shard", initializer=torch.set_num_threads, initargs=(1,)
        )

    def losses(self, objectives: Objectives, model: RiskBackbone, batch: TrainingBatch) -> Losses:
        """As `objectives(model, batch)`; only `loss` carries a gradient.

        A loss is the mean of those of the parts, weighted by their rows. What is a mean over
        something else than rows, such as matured outcomes, differs from the whole batch's a
        little.
        """
        weights = [p for p in objectives.parameters() if p.requires_grad]
        weights += [p for p in model.parameters() if p.requires_grad]
        parts = split(batch, self.count)

        def one(part: TrainingBatch) -> tuple[Losses, Grads]:
            losses = objectives(model, part)
            grads = torch.autograd.grad(losses["loss"], weights, allow_unused=True)
            return {k: v.detach() for k, v in losses.items()}, list(grads)

        def run() -> tuple[Losses, Grads]:
            found = list(self._pool.map(one, parts))
            shares = [len(part.length) / len(batch.length) for part in parts]
            losses = {
                name: sum((s * f[0][name] for s, f in zip(shares, found, strict=True)), start=zero)
                for name in found[0][0]
            }
            return losses, [_mean(shares, [f[1][i] for f in found]) for i in range(len(weights))]

        zero = torch.zeros(())
        said: Losses = {}
        said["loss"] = _Known.apply(run, said, *weights)
        return said

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()


class _Known(torch.autograd.Function):
    """A loss whose gradients are computed together with it."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[], tuple[Losses, Grads]], said: Losses, *weights: torch.Tensor
    ) -> torch.Tensor:
        with torch.enable_grad():
            losses, ctx.grads = run()
        said.update(losses)
        return losses["loss"].clone()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        return (None, None, *(None if g is None else g * outer[0] for g in ctx.grads))


def split(batch: TrainingBatch, count: int) -> list[TrainingBatch]:
    """At most `count` parts of the rows, as even as they come, each with a seed of its own."""
    rows = len(batch.length)
    count = max(1, min(count, rows))
    edges = [rows * i // count for i in range(count + 1)]
    return [
        TrainingBatch(
            {k: v[a:b] for k, v in batch.inputs.items()},
            batch.length[a:b],
            batch.outcomes[a:b],
            batch.activity[a:b],
            batch.base[a:b],
            batch.seed * count + i,
        )
        for i, (a, b) in enumerate(pairwise(edges))
    ]


def _mean(shares: list[float], grads: Grads) -> torch.Tensor | None:
    """The weighted sum of the gradients of one weight, None where no part had one."""
    total: torch.Tensor | None = None
    for share, grad in zip(shares, grads, strict=True):
        if grad is not None:
            total = grad * share if total is None else total.add_(grad, alpha=share)
    return total
