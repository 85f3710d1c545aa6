"""Forecasts of the network on top of the boosted ones: it learns what those miss.

The log-odds of an outcome are those of its boosted forecaster, cross-fitted by entity, plus the
network's. Gradient-boosted trees on aggregates are hard to beat with a few thousand histories; a
network that starts from them cannot be far below, and what its states hold is what they lack. On
held-out entities every target then gets the share of the network's part, 0 to 1, that forecasts
best; it is multiplied into the weights of the forecast head. (A boosting step across model
families; compare Friedman 2001, "Greedy function approximation", on shrinkage.)

Shapes: S cuts, T targets, B windows, Q queries. Margins are log-odds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from foundation.aggregates import AggregateSpec
from foundation.backbone import RiskBackbone
from foundation.boosted import Forecasters
from foundation.decisions import context_at
from foundation.history import ProfileHistory, Timeline, cut
from foundation.objectives import TrainingBatch, forecast_loss

CHUNK = 40_000
SHARES = tuple(k / 10 for k in range(11))


def boosted_margins(
    forecasters: Forecasters | None,
    spec: AggregateSpec,
    timeline: Timeline,
    profile: ProfileHistory | None,
    entity: np.ndarray,
    cut_us: np.ndarray,
    targets: Sequence[str],
) -> np.ndarray:
    """[S, T] float32 margins at cuts, each by the fold that never saw its entity.

    Zero for targets without a forecaster.

    Args:
        entity: [S] int64 index into the timeline's entities; cut_us: [S] int64.
    """
    out = np.zeros((len(entity), len(targets)), dtype=np.float32)
    if forecasters is None or not forecasters.names:
        return out
    ids, panels = timeline.entity_ids[entity], spec.panels(timeline)
    at = [list(targets).index(name) for name in forecasters.names]
    for begin in range(0, len(entity), CHUNK):
        part = slice(begin, begin + CHUNK)
        x = spec.compute(
            timeline,
            cut(timeline, ids[part], cut_us[part]),
            profile,
            ids[part],
            context_at(timeline, entity[part], cut_us[part]),
            panels,
        )
        out[part, at] = forecasters.margins(x, ids[part], cross_fitted=True)
    return out


@torch.no_grad()
def settle(
    model: RiskBackbone, batches: Sequence[TrainingBatch], based: Sequence[str]
) -> dict[str, float]:
    """Shrink the network's part of every based target to the share that forecasts best.

    Args:
        batches: of held-out entities; without any, or without matured outcomes, shares stay 1.
        based: targets whose margins are in the batches.

    Returns:
        target -> share.
    """
    if not batches:
        return {}
    model.eval()
    said = [model(**b.inputs).forecasts.flatten(0, 1) for b in batches]
    own = torch.cat(said)
    base = torch.cat([b.base.flatten(0, 1) for b in batches])
    truth = torch.cat([b.outcomes.flatten(0, 1) for b in batches])
    shares = {}
    head = model.forecast_head
    for name in based:
        t = model.config.targets.index(name)
        if not bool(truth[:, t].isfinite().any()):
            continue
        losses = [float(forecast_loss(base[:, t] + s * own[:, t], truth[:, t])) for s in SHARES]
        shares[name] = SHARES[int(np.argmin(losses))]
        head.weight[t] *= shares[name]
        head.bias[t] *= shares[name]
    return shares
