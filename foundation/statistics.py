"""Which statistics the event columns ask for, computed for all windows and rows of a panel at once.

Columns of one (layout, statistic) share one call: the statistic of W windows is an array
[W, K, S], from which every column takes its place. One request then costs a few dozen numpy calls
whatever the number of columns.

Shapes: S samples, W windows of one statistic, K rows of a panel, F columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from foundation.columns import AggregateColumn
from foundation.errors import ArtifactError
from foundation.history import SMALL, Cut
from foundation.panels import ALL, HALF, Panel, as_float
from foundation.range_statistics import RangeStatistics
from foundation.row_table import Words
from foundation.segments import divide
from foundation.slots import EventColumn


@dataclass(frozen=True)
class Step:
    """All columns of one statistic of one layout.

    Attributes:
        windows: [W] names.
        places: [n] int64 columns of the output; window, row: [n] int64 what each takes.
    """

    layout: int
    stat: str
    windows: tuple[str, ...]
    places: np.ndarray
    window: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What to compute: event columns in steps, ratios, and profile and context columns.

    Attributes:
        reach: layout -> days back that its columns look at most, None for the whole history.
    """

    steps: tuple[Step, ...]
    ratios: tuple[tuple[int, AggregateColumn], ...]
    numbers: tuple[tuple[int, AggregateColumn], ...]
    codes: tuple[tuple[int, AggregateColumn], ...]
    reach: dict[int, int | None]

    @classmethod
    def of(cls, columns: Sequence[tuple[int, AggregateColumn]]) -> Plan:
        """The plan of some columns with their places in the output."""
        grouped: dict[tuple[int, str], list[tuple[int, AggregateColumn]]] = {}
        ratios: list[tuple[int, AggregateColumn]] = []
        numbers: list[tuple[int, AggregateColumn]] = []
        codes: list[tuple[int, AggregateColumn]] = []
        for j, c in columns:
            if c.block != "aggregate":
                (codes if c.kind == "code" else numbers).append((j, c))
            elif c.over:
                ratios.append((j, c))
            else:
                grouped.setdefault((c.layout, c.stat), []).append((j, c))
        steps = []
        for (layout, stat), found in grouped.items():
            windows = tuple(dict.fromkeys(c.window for _, c in found))
            at = {name: k for k, name in enumerate(windows)}
            table = np.array([(j, at[c.window], c.row) for j, c in found], dtype=np.int64).T
            steps.append(Step(layout, stat, windows, *table))
        reach: dict[int, int | None] = {
            at: None for _, c in ratios for at in (c.layout, c.over_layout)
        }
        for step in steps:
            days = _reach(step)
            known = reach.get(step.layout, 0)
            reach[step.layout] = None if None in (days, known) else max(days or 0, known or 0)
        return cls(tuple(steps), tuple(ratios), tuple(numbers), tuple(codes), reach)


def _reach(step: Step) -> int | None:
    """Days back that a step reads rows of, None for the whole history."""
    if step.stat in ("since_event", "last", "lag1", "lag2", "step", "streak", "code"):
        return 0
    if step.stat not in ("count", "sum", "mean", "min", "max", "std", "hits", "share"):
        return None
    if not all(w.endswith("d") and w[:-1].isdigit() for w in step.windows):
        return None
    return max(int(w[:-1]) for w in step.windows)


@dataclass(frozen=True)
class Rows:
    """Profile and context slot values of S samples."""

    values: dict[tuple[str, str], EventColumn]
    size: int

    def part(self, rows: slice) -> Rows:
        """The same for some of the samples."""
        size = rows.stop - rows.start
        if size == self.size:
            return self
        return Rows({k: v[rows] for k, v in self.values.items()}, size)

    def number(self, owner: str, slot: str) -> np.ndarray:
        """[S] float64, NaN where missing."""
        column = self.values.get((owner, slot))
        return np.full(self.size, np.nan) if column is None else as_float(column)

    def column(self, column: AggregateColumn) -> np.ndarray:
        """[S] float64 of a profile or context number."""
        if column.over == "row":
            a = self.number(column.block, column.slot)
            return divide(a, self.number(column.block, column.stat))
        return self.number(column.block, column.slot)

    def words(self, column: AggregateColumn) -> pl.Series | Words:
        """[S] strings of a profile or context category that has values."""
        found = self.values[column.block, column.slot]
        if isinstance(found, np.ndarray):
            return pl.Series(found).cast(pl.String)
        return found


def fill_events(
    plan: Plan, panels: tuple[Panel, ...], cut: Cut, rows: Rows, out: np.ndarray
) -> None:
    """Fill the event columns of out [S, F] for one chunk of samples."""
    # For few rows finding out what need not be read costs more than reading it.
    far = int((cut.stop - cut.start).sum()) > SMALL
    ranges = [
        RangeStatistics(
            p, *p.ranges(cut.start, cut.stop), cut.as_of_us, plan.reach.get(at, 0) if far else None
        )
        for at, p in enumerate(panels)
    ]
    for step in plan.steps:
        found = statistic(ranges[step.layout], step.stat, step.windows)
        out[:, step.places] = found[step.window, step.row].T
    for j, c in plan.ratios:
        value = statistic(ranges[c.layout], c.stat, (c.window,))[0, c.row]
        if c.over == "same":
            below = statistic(ranges[c.over_layout], c.stat, (c.window,))[0, c.over_row]
            out[:, j] = divide(value, below)
        elif c.over.startswith("under "):
            out[:, j] = divide(rows.number(c.over.removeprefix("under "), c.slot), value)
        else:
            out[:, j] = divide(value, rows.number(c.over, c.slot))


def statistic(ranges: RangeStatistics, stat: str, windows: tuple[str, ...]) -> np.ndarray:
    """[W, K, S] of one statistic for all rows of a panel that it applies to.

    Statistics without a window have W = 1.
    """
    r = ranges
    before = tuple(f"{w} before" for w in windows)
    whole = (ALL,)
    match stat:
        case "count":
            return r.count(windows)
        case "count_share":
            return divide(r.count(windows), r.count(whole))
        case "count_change":
            now = r.count(windows)
            return divide(now, now + r.count(before))
        case "since_event" | "since_first" | "since_hit" | "longest_hit" | "longest" | "distinct":
            return getattr(r, stat)()[None]
        case "last":
            return r.lag(0)[None]
        case "lag1":
            return r.lag(1)[None]
        case "lag2":
            return r.lag(2)[None]
        case "step":
            return (r.lag(0) - r.lag(1))[None]
        case "above_mean":
            return r.lag(0) - r.mean(whole)
        case "half_trend":
            newer = (HALF,)
            older = divide(r.sum(whole) - r.sum(newer), r.present(whole) - r.present(newer))
            return r.mean(newer) - older
        case "mean":
            return r.mean(windows)
        case "min" | "max":
            return r.extreme(windows, stat)
        case "std":
            return r.std(windows)
        case "sum":
            return np.where(r.present(whole) > 0, r.sum(windows), np.nan)
        case "mean_change":
            return r.mean(windows) - r.mean(whole)
        case "sum_change":
            now = r.sum(windows)
            return divide(now, np.abs(now) + np.abs(r.sum(before)))
        case "share":
            return divide(r.hits(windows), r.count(windows))
        case "hits":
            return r.hits(windows)
        case "streak":
            return r.lag(0, r.panel.streaks)[None]
        case "code":
            codes = r.lag(0, r.panel.codes)[None]
            return np.where(codes == -2, np.nan, codes)
    raise ArtifactError(f"aggregates: unknown statistic '{stat}'")
