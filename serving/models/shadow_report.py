"""How a release in shadow compares with the champion, on the requests both scored.

No labels are needed: the comparison says how differently the two would decide, not which is right.

Shapes: S pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.metrics import psi
from foundation.errors import UserError
from serving.models.shadow_store import ShadowPairs


def compare(pairs: ShadowPairs) -> dict[str, Any]:
    """The comparison as plain data.

    Returns:
        n, since, until, champions, means, mean difference (shadow minus champion) with its 95 %
        interval, correlation (Pearson, on log-odds) and rank correlation (Spearman; both None
        where a score is constant), psi of the shadow's scores against the champion's deciles
        (None below 100 pairs), share of equal bands, a table of bands, and who is swapped where
        both approve the same share: the share whose band is the champion's best.
    Raises:
        UserError: fewer than two pairs.
    """
    champion, shadow = pairs.champion, pairs.shadow
    count = len(champion)
    if count < 2:
        raise UserError(
            f"{pairs.release} has {count} scores in shadow; a comparison needs two or more"
        )
    difference = shadow - champion
    error = 1.96 * float(difference.std(ddof=1)) / np.sqrt(count)
    mean = float(difference.mean())
    names = sorted(
        {*pairs.champion_band, *pairs.shadow_band},
        key=lambda band: _place(band, pairs),
    )
    return {
        "release": pairs.release,
        "champions": list(pairs.champions),
        "n": count,
        "since": pairs.since,
        "until": pairs.until,
        "champion_mean": float(champion.mean()),
        "shadow_mean": float(shadow.mean()),
        "mean_difference": mean,
        "mean_difference_interval": [mean - error, mean + error],
        "correlation": _correlation(_logit(champion), _logit(shadow)),
        "rank_correlation": _correlation(_ranks(champion), _ranks(shadow)),
        "psi": psi(champion, shadow) if count >= 100 else None,
        "band_agreement": float((pairs.champion_band == pairs.shadow_band).mean()),
        "bands": {
            first: {
                second: int(((pairs.champion_band == first) & (pairs.shadow_band == second)).sum())
                for second in names
            }
            for first in names
        },
        "swap": _swap(pairs, names[0]),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The comparison for a terminal."""
    low, high = found["mean_difference_interval"]
    swap = found["swap"]
    on = f"n {found['n']}, {found['since'][:10]} to {found['until'][:10]}"
    rows = [
        ("mean score", f"{found['champion_mean']:.4f} champion, {found['shadow_mean']:.4f} shadow"),
        (
            "mean difference",
            f"{found['mean_difference']:+.4f}, 95 % from {low:+.4f} to {high:+.4f}",
        ),
        ("correlation", f"{_shown(found['correlation'])} of log-odds"),
        ("rank correlation", _shown(found["rank_correlation"])),
        ("PSI", _shown(found["psi"]) if found["psi"] is not None else "needs 100 pairs"),
        ("same band", f"{found['band_agreement']:.1%}"),
        (
            "swapped",
            f"{swap['swapped_out']:.1%} out and as many in, where both approve "
            f"{swap['approved']:.1%} ({swap['band']})",
        ),
    ]
    out = [f"{found['release']} in shadow of {', '.join(found['champions'])}: {on}"]
    out += [f"  {name:<17}{text}" for name, text in rows]
    names = list(found["bands"])
    width = max(8, *(len(name) for name in names)) + 2
    out.append("  bands, champion down, shadow across")
    out.append("  " + "".join(f"{name:>{width}}" for name in ("", *names)))
    for first, row in found["bands"].items():
        out.append("  " + "".join(f"{v:>{width}}" for v in (first, *row.values())))
    return out


def _swap(pairs: ShadowPairs, best: str) -> dict[str, Any]:
    """Who changes sides where the shadow approves as large a share as the champion does."""
    approved = pairs.champion_band == best
    keep = int(approved.sum())
    order = np.argsort(pairs.shadow, kind="stable")
    chosen = np.zeros(len(approved), bool)
    chosen[order[:keep]] = True
    return {
        "band": best,
        "approved": keep / len(approved),
        "swapped_out": float((approved & ~chosen).mean()),
        "swapped_in": float((chosen & ~approved).mean()),
    }


def _place(band: str, pairs: ShadowPairs) -> tuple[float, str]:
    """Bands in the order of the scores in them."""
    scores = np.concatenate(
        [pairs.champion[pairs.champion_band == band], pairs.shadow[pairs.shadow_band == band]]
    )
    return float(scores.mean()), band


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(p / (1 - p)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """[S] mean ranks, ties share theirs."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[at])


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    if first.std() < 1e-12 or second.std() < 1e-12:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _shown(value: float | None) -> str:
    return "not defined: a score is constant" if value is None else f"{value:.4f}"
