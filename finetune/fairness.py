"""How a model treats declared groups: bad rate, approval, ranking and calibration of each.

Few rows cannot show that groups are treated alike: an interval that holds "no difference" also
holds differences as large as it is wide. Every figure therefore carries its interval, and each
field a sentence about the smallest group.

Shapes: S rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from finetune.bootstrap import bootstrap_intervals
from finetune.metrics import EPS
from finetune.rates import wilson
from finetune.table import Column, FeatureTable
from foundation.errors import UserError, listing, nearest

LEAST_CLASS = 10  # fewer bads or goods of a group say nothing about its ranking
MOST_GROUPS = 12
PARTS = 4
MISSING, OTHER = "missing", "other"


def group_values(table: FeatureTable, fields: Sequence[str]) -> dict[str, list[str]]:
    """Field -> [S] group of each row, as known at its as_of.

    Categories are groups as they are, the rarest together as `other`; numbers are cut at their
    quartiles.

    Args:
        fields: profile or context fields, by name (`age`) or by column (`profile.age`).
    Raises:
        UserError: no such field, or one that stands in profile and context.
    """
    columns = {c.name: i for i, c in enumerate(table.columns) if c.block in ("profile", "context")}
    out: dict[str, list[str]] = {}
    for field in fields:
        found = [n for n in columns if n == field or n in (f"profile.{field}", f"context.{field}")]
        if len(found) != 1:
            plain = [n.split(".", 1)[-1] for n in columns]
            why = "stands in profile and context; write profile.NAME" if found else "does not exist"
            raise UserError(
                f"--groups {field}: the profile or context field {why}{nearest(field, plain)}; "
                f"fields: {listing(plain)}"
            )
        at = columns[found[0]]
        out[field] = _groups(table.columns[at], table.values[:, at])
    return out


def _groups(column: Column, values: np.ndarray) -> list[str]:
    missing = np.isnan(values)
    names = np.full(len(values), MISSING, dtype=object)
    if column.kind == "code":
        levels = np.array([*column.levels, OTHER], dtype=object)
        names[~missing] = levels[values[~missing].astype(np.int64)]  # -1, never seen, is other
        kinds, counts = np.unique(names.astype(str), return_counts=True)
        if len(kinds) > MOST_GROUPS:
            rare = kinds[np.argsort(-counts, kind="stable")[MOST_GROUPS - 1 :]]
            names[np.isin(names.astype(str), rare)] = OTHER
        return [str(n) for n in names]
    there = values[~missing].astype(np.float64)
    edges = np.unique(np.quantile(there, np.linspace(0, 1, PARTS + 1))) if len(there) else there
    if len(edges) < 2:
        names[~missing] = f"{there[0]:g}" if len(there) else MISSING
        return [str(n) for n in names]
    at = np.clip(np.searchsorted(edges, there, side="right") - 1, 0, len(edges) - 2)
    words = [f"{a:.6g} to {b:.6g}" for a, b in pairwise(edges)]
    names[~missing] = np.array(words, dtype=object)[at]
    return [str(n) for n in names]


def group_numbers(
    y: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray,
    groups: Mapping[str, np.ndarray],
    approve_below: float | None,
    draws: int = 500,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Figures of every group of every field, the largest group first.

    Args:
        y: [S] 0 or 1; score: [S] probability of bad; groups: field -> [S] names.
        approve_below: scores below it are approved; None leaves approval out.
    Returns:
        per field `field`, `rows` and `note`, the sentence about what so few rows cannot show.
        Rates are weighted; their Wilson intervals count rows.
    """
    out = []
    for field, names in groups.items():
        rows = [
            _figures(
                str(name),
                y[names == name],
                score[names == name],
                weight[names == name],
                approve_below,
                draws,
                seed,
            )
            for name in np.unique(names)
        ]
        rows.sort(key=lambda r: (-r["n"], r["group"]))
        most = rows[0]["approval"]
        for row in rows:
            row["approval_ratio"] = row["approval"] / most if most and most > EPS else None
        out.append({"field": field, "rows": rows, "note": _note(rows)})
    return out


def _figures(
    name: str,
    y: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray,
    approve_below: float | None,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    n, bads = len(y), int(y.sum())
    rate, expected = (float(np.average(v, weights=weight)) for v in (y, score))
    low, high = wilson(np.array([rate * n]), np.array([n]))
    out: dict[str, Any] = {
        "group": name,
        "n": n,
        "bads": bads,
        "bad_rate": rate,
        "bad_rate_low": float(low[0]),
        "bad_rate_high": float(high[0]),
        "expected": expected,
        "observed_to_expected": rate / expected if expected > EPS else None,
    }
    out |= dict.fromkeys(
        ("approval", "approval_low", "approval_high", "ks", "ks_low", "ks_high", "auc", "auc_low",
         "auc_high")
    )  # fmt: skip
    if approve_below is not None:
        share = float(np.average(score < approve_below, weights=weight))
        low, high = wilson(np.array([share * n]), np.array([n]))
        out |= {
            "approval": share,
            "approval_low": float(low[0]),
            "approval_high": float(high[0]),
        }
    if min(bads, n - bads) >= LEAST_CLASS:
        found = bootstrap_intervals(y, score, ("ks", "auc"), weight, draws, seed)
        for measure, interval in found.items():
            out |= {
                measure: interval.value,
                f"{measure}_low": interval.low,
                f"{measure}_high": interval.high,
            }
    return out


def _note(rows: list[dict[str, Any]]) -> str:
    """What these rows cannot show, from the group that shows least."""
    least = min(rows, key=lambda r: (min(r["bads"], r["n"] - r["bads"]), r["n"]))
    width = 100 * (least["bad_rate_high"] - least["bad_rate_low"])
    return (
        f"group '{least['group']}' has {least['n']:,} rows and {least['bads']} bads: its bad rate "
        f"is known to within {width:.1f} points; intervals that overlap do not show that groups "
        "are treated alike"
    )
