"""Forecasts of the network on top of the boosted ones: it learns what those miss.

The log-odds of an outcome are those of its boosted forecaster, cross-fitted by entity, plus the
network's. Gradient-boosted trees on aggregates are hard to beat with a few thousand histories; a
network that starts from them cannot be far below, and what its states hold is what they lack. Every
target then gets a share of the network's part, 0 to 1: the least that forecasts as well as the best
one, to one standard error; it is multiplied into the weights of the forecast head. (A boosting step
across model families; compare Friedman 2001, "Greedy function approximation", on shrinkage, and
Breiman et al. 1984 on the rule of one standard error.)

It is chosen on entities held out, and in the last part of the history, whose outcomes the network's
forecasts were not trained on: what a network adds can be this history's calendar, which held-out
entities share and the months to come do not. What cannot be proved there is not added.

Shapes: S cuts, T targets, B windows, Q queries, K shares. Margins are log-odds.
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
from foundation.objectives import TrainingBatch

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
    """Shrink the network's part of every based target to the share it has earned.

    Args:
        batches: of held-out entities, with late outcomes; without any a share is 0.
        based: targets whose margins are in the batches.

    Returns:
        target -> share.
    """
    model.eval()
    shares = dict.fromkeys(based, 0.0)
    if batches:
        shares |= _proved(model, batches, based)
    head = model.forecast_head
    for name, share in shares.items():
        t = model.config.targets.index(name)
        head.weight[t] *= share
        head.bias[t] *= share
    return shares


def _proved(
    model: RiskBackbone, batches: Sequence[TrainingBatch], based: Sequence[str]
) -> dict[str, float]:
    """Shares of the targets whose outcomes the batches know."""
    said = [model(**b.inputs).forecasts.flatten(0, 1) for b in batches]
    own = torch.cat(said).double()
    base = torch.cat([b.base.flatten(0, 1) for b in batches]).double()
    truth = torch.cat([b.outcomes.flatten(0, 1) for b in batches]).double()
    sizes = [b.outcomes.shape[:2] for b in batches]
    window = np.repeat(np.arange(sum(w for w, _ in sizes)), [q for w, q in sizes for _ in range(w)])
    shares = {}
    for name in based:
        t = model.config.targets.index(name)
        seen = truth[:, t].isfinite()
        if not bool(seen.any()):
            continue
        rows = [part[seen, t].numpy() for part in (base, own, truth)]
        shares[name] = _earned_share(rows[0], rows[1], rows[2], window[seen.numpy()])
    return shares


def _earned_share(
    base: np.ndarray, own: np.ndarray, truth: np.ndarray, window: np.ndarray
) -> float:
    """The least share within one standard error of the best, errors clustered by window.

    Args:
        base, own: [S] margins; truth: [S] 0 or 1; window: [S] which rows belong together.
    """
    eta = base + np.array(SHARES)[:, None] * own
    losses = np.logaddexp(0.0, eta) - truth * eta
    gaps = losses - losses[losses.mean(axis=1).argmin()]
    _, place = np.unique(window, return_inverse=True)
    spread = np.array([np.bincount(place, weights=gap - gap.mean()) for gap in gaps])
    near = gaps.sum(axis=1) <= np.sqrt((spread**2).sum(axis=1))
    return SHARES[int(near.argmax())]
