"""Bins of one variable as rows of a table: counts, bad rates, weight of evidence, later shares.

Shapes: S samples, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finetune.report_evaluation import wilson
from finetune.scorecard import Bins
from finetune.table import Column
from finetune.variable_measures import weight_of_evidence

TOP_LEVELS = 5
BIN_COLUMNS: dict[str, Any] = {
    "variable": pl.String, "binning": pl.String, "bin": pl.Int64, "label": pl.String,
    "low": pl.Float64, "high": pl.Float64, "n": pl.Float64, "share": pl.Float64,
    "bads": pl.Float64, "bad_rate": pl.Float64, "bad_rate_low": pl.Float64,
    "bad_rate_high": pl.Float64, "woe": pl.Float64, "iv_part": pl.Float64,
    "share_test": pl.Float64, "bad_rate_test": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """Values of one variable with their labels: x, weight [S]; y [S] or None."""

    x: np.ndarray
    y: np.ndarray | None
    weight: np.ndarray

    def masses(self, bins: Bins) -> tuple[np.ndarray, np.ndarray | None]:
        """[B] weight in every bin, and that of the bads."""
        at = bins.assign(self.x)
        every = np.bincount(at, self.weight, minlength=bins.count)
        if self.y is None:
            return every, None
        return every, np.bincount(at, self.weight * self.y, minlength=bins.count)


def bin_rows(
    column: Column, bins: Bins, binning: str, development: Judged, test: Judged | None
) -> list[dict[str, Any]]:
    """One line for each bin in use, with the columns of `BIN_COLUMNS`.

    Args:
        binning: `quantile` or `optimal`.
        test: later rows, counted in the same bins.
    """
    every, bad = development.masses(bins)
    assert bad is not None
    woe, parts = (v[0] for v in weight_of_evidence(bad[None], (every - bad)[None]))
    low, high = wilson(bad, np.maximum(every, 1e-12))
    later, later_bad = test.masses(bins) if test is not None else (None, None)
    out = []
    for i in range(bins.count):
        row: dict[str, Any] = dict.fromkeys(BIN_COLUMNS)
        if every[i] > 0:
            row |= {"bad_rate": bad[i] / every[i], "bad_rate_low": low[i], "bad_rate_high": high[i]}
        if later is not None:
            row["share_test"] = later[i] / later.sum()
            if later_bad is not None and later[i] > 0:
                row["bad_rate_test"] = later_bad[i] / later[i]
        if every[i] > 0 or row["share_test"]:
            row |= {
                "variable": column.name, "binning": binning, "bin": i,
                "label": bin_label(column, bins, i), "n": every[i],
                "share": every[i] / every.sum(), "bads": bad[i], "woe": woe[i],
                "iv_part": parts[i], **_bounds(bins, i),
            }  # fmt: skip
            out.append(row)
    return out


def top_levels(column: Column, x: np.ndarray) -> str:
    """The most frequent levels with their shares of the filled rows."""
    seen, count = np.unique(x[~np.isnan(x)], return_counts=True)
    best = np.argsort(-count, kind="stable")[:TOP_LEVELS]
    total = max(int(count.sum()), 1)
    return ", ".join(
        f"{_level(column, float(seen[i]))} {100 * count[i] / total:.0f} %" for i in best
    )


def bin_label(column: Column, bins: Bins, i: int) -> str:
    """Words of one bin: a range, some levels, or missing."""
    if i == bins.count - 1:
        return "missing"
    if bins.groups:
        if i == bins.count - 2:
            return "all others"
        return ", ".join(dict.fromkeys(_level(column, c) for c in bins.groups[i]))
    if not bins.edges:
        return "any value"
    if i == 0:
        return f"< {_short(bins.edges[0])}"
    if i == len(bins.edges):
        return f"≥ {_short(bins.edges[-1])}"
    return f"{_short(bins.edges[i - 1])} – {_short(bins.edges[i])}"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _level(column: Column, code: float) -> str:
    at = int(code)
    return column.levels[at] if 0 <= at < len(column.levels) else "other"


def _bounds(bins: Bins, i: int) -> dict[str, float | None]:
    if bins.groups or i == bins.count - 1:
        return {"low": None, "high": None}
    return {
        "low": bins.edges[i - 1] if i > 0 else None,
        "high": bins.edges[i] if i < len(bins.edges) else None,
    }
