"""The rows of one event source as the aggregates read them.

A panel holds, for every event of a source in timeline order, its numbers, its category codes and
what looks backward along the entity (gap to the previous event, running streaks, first
occurrences). Because every derived row looks backward only, one panel serves all cuts.

Shapes: n events of the source, Kn numbers, Kg flags, Kc categories, S samples.
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
from foundation.segments import divide
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
        positions: [n] int64 timeline positions, None where the rows are all events of the timeline.
        event_us, known_us: [n] int64; known_us ascends inside an entity.
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
    known_us: np.ndarray

    def ranges(self, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Timeline ranges as ranges of the panel's rows."""
        if self.positions is None:
            return start, stop
        return (np.searchsorted(self.positions, start), np.searchsorted(self.positions, stop))

    @cached_property
    def soonest_us(self) -> int:
        """The shortest time from an event to its becoming known; negative where known before."""
        return int((self.known_us - self.event_us).min(initial=0))

    @cached_property
    def complete(self) -> bool:
        """Whether every event has every number."""
        return not np.isnan(self.numbers).any()

    @cached_property
    def present_before(self) -> np.ndarray:
        """[Kn, n + 1] int64: events with a value among the first n rows."""
        out = np.zeros((len(self.numbers), self.numbers.shape[1] + 1), dtype=np.int64)
        np.cumsum(~np.isnan(self.numbers), axis=1, out=out[:, 1:])
        return out


def build_panel(timeline: Timeline, layout: SourceLayout) -> Panel:
    """Read a source's events once."""
    if layout.source < 0:
        none = np.zeros((0, len(timeline)))
        codes = none.astype(np.int32)
        known_us = timeline.known_us
        return Panel(layout, None, timeline.event_us, none, codes, none, none, known_us)
    values = source_columns(timeline, layout.source)
    positions, event_us, known_us = None, timeline.event_us, timeline.known_us
    if timeline.only_source != layout.source:
        positions = timeline.positions(layout.source)
        event_us, known_us = event_us[positions], known_us[positions]
    opening = _opening(timeline, positions)
    numbers = np.empty((len(layout.numbers), len(event_us)))
    for k, row in enumerate(layout.numbers):
        numbers[k] = _number(row, values, event_us, opening)
    shape = (len(layout.categories), len(event_us))
    columns = [cast("pl.Series | Words", values[c.slot]) for c in layout.categories]
    codes, raw = level_codes(columns, [c.levels for c in layout.categories])
    streaks, firsts = np.empty(shape), np.empty(shape)
    entity = np.cumsum(opening) - 1 if columns else opening
    step = max(1, SEQUENCE_VALUES // max(1, len(event_us)))
    for k in range(0, len(columns), step):
        part = slice(k, k + step)
        streaks[part], firsts[part] = _sequences(raw[part], entity, opening)
    codes = codes.reshape(shape)
    return Panel(layout, positions, event_us, numbers, codes, streaks, firsts, known_us)


def _opening(timeline: Timeline, positions: np.ndarray | None) -> np.ndarray:
    """[n] bool: the first event of its entity among those at `positions` (None: all)."""
    first = timeline.offsets[:-1]
    if positions is None:
        out = np.zeros(len(timeline), dtype=bool)
    else:
        out = np.zeros(len(positions), dtype=bool)
        first = np.searchsorted(positions, first)
    out[first[first < len(out)]] = True  # the last entities may have no event
    return out


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
        places, words = places_of(levels[k]), Words.of(column)
        # Code -1, missing, takes the last place.
        table = [*(places.get(v, -1) for v in words.values), -2]
        value[k], level[k] = words.code, np.array(table, dtype=np.int32)[words.code]
    return level, value


@lru_cache(maxsize=4096)
def places_of(levels: tuple[str, ...]) -> dict[str | None, int]:
    return {v: k for k, v in enumerate(levels)}


@lru_cache(maxsize=4096)
def _enum(levels: tuple[str, ...]) -> pl.Enum:
    return pl.Enum(levels)


def as_float(column: EventColumn) -> np.ndarray:
    """[n] float64, NaN where missing or infinite; strings parse as numbers where they can."""
    if isinstance(column, Words):
        return _floats_of(column.values)[column.code]
    floats = column
    if isinstance(floats, pl.Series):
        floats = floats.cast(pl.Float64, strict=False).to_numpy()
    finite = np.isfinite(floats)
    return floats if finite.all() else np.where(finite, floats, np.nan)


@lru_cache(maxsize=1024)
def _floats_of(values: tuple[str, ...]) -> np.ndarray:
    """Strings as finite numbers, NaN for what is none; one NaN more at the end."""
    floats = pl.Series([*values, None], dtype=pl.String).cast(pl.Float64, strict=False).to_numpy()
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
