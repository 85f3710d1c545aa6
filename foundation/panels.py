"""The rows of one event source as the aggregates read them, and the statistics of their ranges.

A panel holds, for every event of a source in timeline order, its numbers, its category codes and
what looks backward along the entity (gap to the previous event, running streaks, first
occurrences). Because every derived row looks backward only, one panel serves all cuts.

Shapes: n events of the source, Kn numbers, Kg flags, Kc categories, S samples, M flat rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

import numpy as np
import polars as pl

from foundation import strict
from foundation.history import DAY_US, SMALL, Timeline
from foundation.segments import Segments, divide, flat_rows
from foundation.slots import EventColumn, Words, source_columns

# Values whose streaks are found in one pass: few calls for a request, little memory for a store.
SEQUENCE_VALUES = 65_536
ALL = "all"
HALF = "recent half"


class NumberRow(strict.Strict):
    """A number per event.

    Attributes:
        kind: `slot` a number slot; `order` a category whose values are integers; `ratio`
            slot / other; `ratio_previous` slot / other of the previous event; `gap` days since
            the previous event of the source.
    """

    name: str
    kind: str
    slot: str = ""
    other: str = ""
    field: str = ""
    title: str = ""


class FlagRow(strict.Strict):
    """A yes or no per event: a category equals `value`, or number row `number` is at least
    (`above`: more than) `bound`."""

    name: str
    slot: str = ""
    value: str = ""
    number: int = -1
    above: bool = False
    bound: float = 0.0
    field: str = ""
    title: str = ""


class CategoryRow(strict.Strict):
    """A category per event with the values it may take, most frequent first."""

    slot: str
    levels: tuple[str, ...] = ()
    field: str = ""
    title: str = ""


class SourceLayout(strict.Strict):
    """Which rows the panel of a source has; source -1 stands for all events together."""

    source: int
    name: str
    numbers: tuple[NumberRow, ...] = ()
    flags: tuple[FlagRow, ...] = ()
    categories: tuple[CategoryRow, ...] = ()


@dataclass(frozen=True)
class Panel:
    """The rows of one source.

    Attributes:
        positions: [n] int64 timeline positions, None for all events of the timeline.
        event_us: [n] int64.
        numbers: [Kn, n] float64, NaN missing.
        codes: [Kc, n] int32 index into the levels, -1 other, -2 missing.
        streaks: [Kc, n] float64 length of the run of equal values that ends at the event.
        firsts: [Kc, n] float64, 1 where the entity shows the value for the first time.
    """

    layout: SourceLayout
    positions: np.ndarray | None
    event_us: np.ndarray
    numbers: np.ndarray
    codes: np.ndarray
    streaks: np.ndarray
    firsts: np.ndarray

    def ranges(self, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Timeline ranges as ranges of the panel's rows."""
        if self.positions is None:
            return start, stop
        return (np.searchsorted(self.positions, start), np.searchsorted(self.positions, stop))


def build_panel(timeline: Timeline, layout: SourceLayout) -> Panel:
    """Read a source's events once."""
    if layout.source < 0:
        none = np.zeros((0, len(timeline)))
        return Panel(layout, None, timeline.event_us, none, none.astype(np.int32), none, none)
    positions = timeline.positions(layout.source)
    event_us = timeline.event_us[positions]
    values = source_columns(timeline, layout.source)
    if len(timeline.entity_ids) == 1:
        entity = np.zeros(len(positions), dtype=np.int64)
    else:
        entity = np.searchsorted(timeline.offsets, positions, side="right") - 1
    opening = np.ones(len(positions), dtype=bool)
    opening[1:] = entity[1:] != entity[:-1]
    numbers = np.full((len(layout.numbers), len(positions)), np.nan)
    for k, row in enumerate(layout.numbers):
        numbers[k] = _number(row, values, event_us, opening)
    shape = (len(layout.categories), len(positions))
    columns = [cast("pl.Series | Words", values[c.slot]) for c in layout.categories]
    codes, raw = level_codes(columns, [c.levels for c in layout.categories])
    streaks, firsts = np.empty(shape), np.empty(shape)
    step = max(1, SEQUENCE_VALUES // max(1, len(positions)))
    for k in range(0, len(columns), step):
        part = slice(k, k + step)
        streaks[part], firsts[part] = _sequences(raw[part], entity, opening)
    return Panel(layout, positions, event_us, numbers, codes.reshape(shape), streaks, firsts)


def level_codes(
    columns: Sequence[pl.Series | Words], levels: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of several string columns of n rows in one query.

    Returns:
        level: [K, n] int32 index into the column's levels, -1 for another value, -2 missing.
        value: [K, n] int64 equal where the values are equal, within this call; -1 missing.
    """
    size = len(columns[0]) if columns else 0
    if not columns:
        return np.zeros((0, size), dtype=np.int32), np.zeros((0, size), dtype=np.int64)
    if size <= SMALL:
        return _level_codes_small(columns, levels)
    series = [c.series if isinstance(c, Words) else c for c in columns]
    frame = pl.DataFrame([c.alias(str(k)) for k, c in enumerate(series)])
    level = [pl.col(str(k)).cast(_enum(v), strict=False) for k, v in enumerate(levels)]
    value = [pl.col(str(k)).cast(pl.Categorical).alias(f"{k}v") for k in range(len(columns))]
    found = (
        frame.select(*(e.to_physical().cast(pl.Int64).fill_null(-1) for e in [*level, *value]))
        .to_numpy()
        .T
    )
    low, high = found[: len(columns)], found[len(columns) :]
    return np.where(high < 0, -2, low).astype(np.int32), high


def _level_codes_small(
    columns: Sequence[pl.Series | Words], levels: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """`level_codes` by dictionaries."""
    level = np.empty((len(columns), len(columns[0])), dtype=np.int32)
    value = np.empty(level.shape, dtype=np.int64)
    for k, column in enumerate(columns):
        places, words = _places(levels[k]), Words.of(column)
        # Code -1, missing, takes the last place.
        table = [*(places.get(v, -1) for v in words.values), -2]
        value[k], level[k] = words.code, np.array(table, dtype=np.int32)[words.code]
    return level, value


@lru_cache(maxsize=4096)
def _places(levels: tuple[str, ...]) -> dict[str | None, int]:
    return {v: k for k, v in enumerate(levels)}


@lru_cache(maxsize=4096)
def _enum(levels: tuple[str, ...]) -> pl.Enum:
    return pl.Enum(levels)


def as_float(column: EventColumn) -> np.ndarray:
    """[n] float64, NaN where missing or infinite; strings parse as numbers where they can."""
    floats = column.series if isinstance(column, Words) else column
    if isinstance(floats, pl.Series):
        floats = floats.cast(pl.Float64, strict=False).to_numpy()
    return np.where(np.isfinite(floats), floats, np.nan)


def _previous(values: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """The value of the entity's previous event, NaN at its first."""
    out = np.full(len(values), np.nan)
    out[1:] = values[:-1]
    out[opening] = np.nan
    return out


def _number(
    row: NumberRow, values: dict[str, EventColumn], event_us: np.ndarray, opening: np.ndarray
) -> np.ndarray:
    if row.kind == "gap":
        days = event_us / DAY_US
        return np.maximum(days - _previous(days, opening), 0.0)
    numerator = as_float(values[row.slot])
    if row.kind in ("slot", "order"):
        return numerator
    below = as_float(values[row.other])
    if row.kind == "ratio_previous":
        below = _previous(below, opening)
    return divide(numerator, below)


def _sequences(
    codes: np.ndarray, entity: np.ndarray, opening: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Running streak lengths and first occurrences, [K, n] each, per entity, backward only.

    Args:
        codes: [K, n] int64 values, -1 missing.
    """
    if not codes.size:
        return np.zeros(codes.shape), np.zeros(codes.shape)
    at = np.arange(codes.shape[1])
    change = np.repeat(opening[None], len(codes), axis=0)
    change[:, 1:] |= codes[:, 1:] != codes[:, :-1]
    begin = np.maximum.accumulate(np.where(change, at, 0), axis=1)
    streak = at - begin + 1.0
    owner = entity + (int(entity[-1]) + 1) * np.arange(len(codes))[:, None]
    group = (owner * (codes.max() + 2) + codes + 1).ravel()
    # Events stand in order of entities; a stable sort therefore leaves the earliest in front.
    order = np.argsort(group, kind="stable")
    ranked = group[order]
    first = np.zeros(codes.shape)
    first.ravel()[order[np.flatnonzero(np.diff(ranked, prepend=ranked[0] - 1))]] = 1.0
    first[codes < 0] = 0.0
    return streak, first


class RangeStatistics:
    """Statistics of S ranges of a panel, computed on demand and kept.

    Windows: `all`, `recent half` (the newer half of the events), `30d`, `30d before` (the 30 days
    before the last 30 days). Days count back from as_of by event time.

    Args:
        start, stop: [S] ranges of panel rows.
        as_of_us: [S] int64.
    """

    def __init__(
        self, panel: Panel, start: np.ndarray, stop: np.ndarray, as_of_us: np.ndarray
    ) -> None:
        self.panel = panel
        self.start, self.stop = start, stop
        self.row, owner, self.segments = flat_rows(start, stop)
        self.age = (as_of_us[owner] - panel.event_us[self.row]) / DAY_US
        self.newer = (self.row - start[owner]) * 2 >= (stop - start)[owner]
        self._windows: dict[str, tuple[Segments, np.ndarray | None]] = {}
        self._sums: dict[str, np.ndarray] = {}
        self._extremes: dict[str, np.ndarray] = {}
        self._means: dict[tuple[str, ...], np.ndarray] = {}

    @cached_property
    def numbers(self) -> np.ndarray:
        """[Kn, M] float64."""
        return self._take(self.panel.numbers)

    @cached_property
    def flags(self) -> np.ndarray:
        """[Kg, M] bool."""
        layout = self.panel.layout
        codes = self._take(self.panel.codes)
        index = {c.slot: k for k, c in enumerate(layout.categories)}
        out = np.empty((len(layout.flags), len(self.row)), dtype=bool)
        for k, flag in enumerate(layout.flags):
            if flag.slot:
                at = index[flag.slot]
                np.equal(codes[at], _places(layout.categories[at].levels)[flag.value], out=out[k])
            elif flag.above:
                np.greater(self.numbers[flag.number], flag.bound, out=out[k])
            else:
                np.greater_equal(self.numbers[flag.number], flag.bound, out=out[k])
        return out

    @cached_property
    def stack(self) -> np.ndarray:
        """[3 Kn + Kg, M] float64: numbers, their squares, their presence, flags."""
        present = ~np.isnan(self.numbers)
        filled = np.where(present, self.numbers, 0.0)
        return np.concatenate([filled, filled * filled, present, self.flags], dtype=np.float64)

    @cached_property
    def ends(self) -> np.ndarray:
        """[2 Kn, M] float64: numbers and their negatives, infinite where missing."""
        both = np.concatenate([self.numbers, -self.numbers])
        both[np.isnan(both)] = np.inf
        return both

    def window(self, name: str) -> tuple[Segments, np.ndarray | None]:
        """Segments of a window and the boolean [M] that keeps its rows (None keeps all)."""
        if name not in self._windows:
            keep = None if name == ALL else self.newer if name == HALF else self._between(name)
            if keep is None or (len(keep) and keep.all()):
                self._windows[name] = (self.segments, None)
            else:
                self._windows[name] = (self.segments.select(keep), keep)
        return self._windows[name]

    def _between(self, name: str) -> np.ndarray:
        days = int(name.split("d")[0])
        if name.endswith("before"):
            return (self.age > days) & (self.age <= 2 * days)
        return (self.age >= 0) & (self.age <= days)

    def count(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, 1, S] events."""
        counts = [self.window(w)[0].counts for w in windows]
        return np.array(counts, dtype=np.float64).reshape(len(windows), 1, -1)

    def _sum(self, windows: tuple[str, ...], first: int, last: int | None) -> np.ndarray:
        """[W, last - first, S] sums of rows of `stack`."""
        for name in windows:
            if name not in self._sums:
                segments, keep = self.window(name)
                stack = self.stack if keep is None else np.compress(keep, self.stack, axis=1)
                self._sums[name] = segments.sum(stack)
        return np.array([self._sums[w][first:last] for w in windows])

    def present(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S] events with a value."""
        size = len(self.panel.numbers)
        return self._sum(windows, 2 * size, 3 * size)

    def sum(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S]; zero without events."""
        return self._sum(windows, 0, len(self.panel.numbers))

    def mean(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S]; NaN without a value."""
        if windows not in self._means:
            self._means[windows] = divide(self.sum(windows), self.present(windows))
        return self._means[windows]

    def std(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S] population standard deviation; NaN without a value."""
        size = len(self.panel.numbers)
        square = divide(self._sum(windows, size, 2 * size), self.present(windows))
        variance = square - self.mean(windows) ** 2
        return np.sqrt(np.where(variance < 1e-12 * square, 0.0, variance))

    def extreme(self, windows: tuple[str, ...], side: str) -> np.ndarray:
        """[W, Kn, S] smallest (`min`) or largest (`max`) value; NaN without a value."""
        size = len(self.panel.numbers)
        for name in windows:
            if name not in self._extremes:
                segments, keep = self.window(name)
                ends = self.ends if keep is None else np.compress(keep, self.ends, axis=1)
                found = segments.min(ends)
                np.negative(found[size:], out=found[size:])
                self._extremes[name] = _finite(found)
        part = slice(None, size) if side == "min" else slice(size, None)
        return np.array([self._extremes[w][part] for w in windows])

    def hits(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kg, S] events where the flag is set."""
        return self._sum(windows, 3 * len(self.panel.numbers), None)

    def lag(self, steps: int, table: np.ndarray | None = None) -> np.ndarray:
        """[K, S] values of the event `steps` before the last; NaN where there is none."""
        table = self.panel.numbers if table is None else table
        at = self.stop - 1 - steps
        inside = at >= self.start
        out = np.full((table.shape[0], len(at)), np.nan)
        out[:, inside] = table[:, at[inside]]
        return out

    def since_event(self) -> np.ndarray:
        """[1, S] days since the latest event."""
        return _finite(self.segments.min(self.age[None]))

    def since_first(self) -> np.ndarray:
        """[1, S] days since the earliest event."""
        return _finite(self.segments.max(self.age[None]))

    def since_hit(self) -> np.ndarray:
        """[Kg, S] days since the flag was last set; NaN where never."""
        return _finite(self.segments.min(np.where(self.flags, self.age, np.inf)))

    def longest(self) -> np.ndarray:
        """[Kc, S] longest streak of any value."""
        return _finite(self.segments.max(self._take(self.panel.streaks)))

    def longest_hit(self) -> np.ndarray:
        """[Kg, S] longest streak of the flag's category value; NaN for flags of numbers."""
        layout = self.panel.layout
        index = {c.slot: k for k, c in enumerate(layout.categories)}
        at = np.array([index.get(f.slot, 0) for f in layout.flags], dtype=np.int64)
        if not len(layout.categories):
            return np.full((len(layout.flags), len(self.segments)), np.nan)
        streaks = self._take(self.panel.streaks)[at]
        return _finite(self.segments.max(np.where(self.flags, streaks, 0.0)))

    def distinct(self) -> np.ndarray:
        """[Kc, S] different values seen."""
        return self.segments.sum(self._take(self.panel.firsts))

    def _take(self, table: np.ndarray) -> np.ndarray:
        if len(self.start) == 1:
            return table[:, self.start[0] : self.stop[0]]
        return np.take(table, self.row, axis=1)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
