"""What happened after a cut: declared outcomes as 0/1 targets, and the choice of earlier cuts.

Unlabelled history holds its own outcomes. A target asks about the window [cut, cut + horizon) by
event time, answered from events known before `until`; what it compares with (the window before the
cut, a last value) uses only what was known before the cut.

Shapes: S cuts, T targets (outcomes times horizons), n events of one source, M flat rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from foundation.history import DAY_US, Timeline, first_not_before
from foundation.outcomes import Outcome
from foundation.panels import as_float
from foundation.segments import flat_rows
from foundation.slots import source_values

SLACK = 0.1
_COMPARE = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "=": np.equal,
    "!=": np.not_equal,
}


@dataclass(frozen=True)
class _Events:
    """Events of one source (or all) known before `until`, sorted by (entity, event time).

    Attributes:
        offsets: [E + 1] int64.
        event_us, known_us: [n] int64.
        order: [n] int64 index of each event among the source's events in timeline order.
    """

    offsets: np.ndarray
    event_us: np.ndarray
    known_us: np.ndarray
    order: np.ndarray

    def window(
        self, entity: np.ndarray, start_us: np.ndarray, stop_us: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """[S] ranges of the events with start <= event time < stop."""
        known = entity >= 0
        safe = np.where(known, entity, 0)
        if not len(self.event_us):
            zero = np.zeros(len(entity), dtype=np.int64)
            return zero, zero
        begin = np.where(known, self.offsets[safe], 0)
        end = np.where(known, self.offsets[safe + 1], 0)
        low = first_not_before(self.event_us, begin, end, start_us)
        return low, first_not_before(self.event_us, low, end, stop_us)


def target_names(outcomes: tuple[Outcome, ...]) -> tuple[str, ...]:
    """Names of the T targets in order."""
    return tuple(name for outcome in outcomes for name in outcome.targets)


def outcome_targets(
    timeline: Timeline,
    outcomes: tuple[Outcome, ...],
    entity: np.ndarray,
    cut_us: np.ndarray,
    until_us: int,
    exposed: bool = False,
) -> np.ndarray:
    """Whether each outcome came true after each cut.

    Args:
        entity: [S] int64 timeline entity, -1 for none.
        cut_us: [S] int64.
        until_us: events known at or after it do not exist.
        exposed: ask about an event's value or lateness only where the window holds an event of
            its source at all: whether it was late, given that there was something to be late
            with. Otherwise no event counts as 0.
    Returns:
        [S, T] float32, 1 or 0; NaN where the window has not matured (it may end up to a tenth of
        the horizon after `until`), where an outcome against the last window finds no event in it,
        or one against a last value finds none.
    """
    entity = np.asarray(entity, dtype=np.int64)
    cut_us = np.asarray(cut_us, dtype=np.int64)
    reader = _Reader(timeline, until_us)
    y = []
    for outcome in outcomes:
        for days in outcome.horizons:
            horizon = np.int64(days * DAY_US)
            ripe = cut_us + horizon <= until_us + int(SLACK * horizon)
            value = _answer(reader, outcome, entity, cut_us, horizon, exposed)
            y.append(np.where(ripe, value, np.nan))
    if not y:
        return np.zeros((len(cut_us), 0), np.float32)
    return np.stack(y, axis=1).astype(np.float32)


class _Reader:
    """Sorted events and field values per source, read once."""

    def __init__(self, timeline: Timeline, until_us: int) -> None:
        self.timeline, self.until_us = timeline, until_us
        self._events: dict[str, _Events] = {}
        self._values: dict[str, dict[str, pl.Series]] = {}

    def events(self, source: str) -> _Events:
        """Events of a source; empty name: of all sources."""
        if source not in self._events:
            t = self.timeline
            every = np.arange(len(t))
            at = t.positions(t.schema.source_names.index(source)) if source else every
            known = np.flatnonzero(t.known_us[at] < self.until_us)
            entity = t.entity[at[known]]
            event = t.event_us[at[known]]
            order = known[np.lexsort((known, event, entity))]
            offsets = np.searchsorted(t.entity[at[order]], np.arange(len(t.entity_ids) + 1))
            self._events[source] = _Events(
                offsets.astype(np.int64), t.event_us[at[order]], t.known_us[at[order]], order
            )
        return self._events[source]

    def values(self, source: str, field: str) -> pl.Series:
        """Slot values in the source's timeline order."""
        if source not in self._values:
            index = self.timeline.schema.source_names.index(source)
            self._values[source] = source_values(self.timeline, index)
        return self._values[source][field]


def _answer(
    reader: _Reader,
    outcome: Outcome,
    entity: np.ndarray,
    cut_us: np.ndarray,
    horizon: np.int64,
    exposed: bool,
) -> np.ndarray:
    """[S] float64 of 0, 1 or NaN (undefined), whatever its maturity."""
    events = reader.events(outcome.source)
    start, stop = events.window(entity, cut_us, cut_us + horizon)
    if outcome.kind == "silence":
        return (stop == start).astype(np.float64)
    if outcome.kind in ("value", "compare", "late"):
        row, _, segments = flat_rows(start, stop)
        hit = _hits(reader, outcome)[events.order[row]]
        value = (segments.sum(hit[None].astype(np.float64))[0] > 0).astype(np.float64)
        return np.where(stop > start, value, np.nan) if exposed else value
    total = _total(reader, outcome, start, stop)
    bound = np.full(len(cut_us), outcome.bound)
    if outcome.versus == "window":
        bound = outcome.bound * _last_window(reader, outcome, entity, cut_us, horizon)
    elif outcome.versus == "last":
        bound = outcome.bound * _last_value(reader, outcome.versus_field, entity, cut_us)
    return np.where(np.isnan(bound), np.nan, _COMPARE[outcome.op](total, bound))


def _hits(reader: _Reader, outcome: Outcome) -> np.ndarray:
    """[n] bool: whether each event of the source, in timeline order, meets the condition."""
    if outcome.kind == "late":
        days = as_float(reader.values(outcome.source, f"{outcome.date_field}.days"))
        return days > outcome.slack_days
    column = reader.values(outcome.source, outcome.field)
    if outcome.kind == "compare":
        numbers = as_float(column)
        return _COMPARE[outcome.op](numbers, outcome.bound) & ~np.isnan(numbers)
    if column.dtype == pl.String:
        return column.is_in(list(outcome.values)).fill_null(False).to_numpy()
    wanted = as_float(pl.Series(outcome.values, dtype=pl.String))
    return np.isin(as_float(column), wanted[~np.isnan(wanted)])


def _total(
    reader: _Reader,
    outcome: Outcome,
    start: np.ndarray,
    stop: np.ndarray,
    known_before: np.ndarray | None = None,
) -> np.ndarray:
    """[S] count or sum over ranges of events, of those known before `known_before` ([S])."""
    events = reader.events(outcome.source)
    row, owner, segments = flat_rows(start, stop)
    if outcome.kind == "count":
        weight = np.ones(len(row))
    else:
        numbers = as_float(reader.values(outcome.source, outcome.field))[events.order[row]]
        weight = np.where(np.isnan(numbers), 0.0, numbers)
    if known_before is not None:
        weight = np.where(events.known_us[row] < known_before[owner], weight, 0.0)
    return segments.sum(weight[None])[0]


def _last_window(
    reader: _Reader, outcome: Outcome, entity: np.ndarray, cut_us: np.ndarray, horizon: np.int64
) -> np.ndarray:
    """[S] the same count or sum over [cut - horizon, cut); NaN without a known event there."""
    events = reader.events(outcome.source)
    start, stop = events.window(entity, cut_us - horizon, cut_us)
    row, owner, segments = flat_rows(start, stop)
    known = (events.known_us[row] < cut_us[owner])[None].astype(np.float64)
    some = segments.sum(known)[0] > 0
    return np.where(some, _total(reader, outcome, start, stop, cut_us), np.nan)


def _last_value(reader: _Reader, key: str, entity: np.ndarray, cut_us: np.ndarray) -> np.ndarray:
    """[S] the value of a source's last event (timeline order) known before the cut."""
    source, _, field = key.partition(".")
    t = reader.timeline
    at = t.positions(t.schema.source_names.index(source))
    values = as_float(reader.values(source, field))
    offsets = np.searchsorted(at, t.offsets)
    known = entity >= 0
    safe = np.where(known, entity, 0)
    if not len(at):
        return np.full(len(cut_us), np.nan)
    begin = np.where(known, offsets[safe], 0)
    end = np.where(known, offsets[safe + 1], 0)
    stop = first_not_before(t.known_us[at], begin, end, cut_us)
    return np.where(stop > begin, values[np.maximum(stop - 1, 0)], np.nan)


def past_cuts(
    timeline: Timeline,
    until_us: int,
    horizons_days: tuple[int, ...],
    rng: np.random.Generator,
    per_entity: int = 12,
    anchored: float = 0.0,
    anchors: tuple[int, ...] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Earlier moments at which to rehearse the forecast.

    Two kinds are mixed. Grid cuts stand whole calendar months before `until`, so that they see
    the same phase of billing cycles as `until` itself. Anchored cuts stand just before an event
    of the entity became known, as decisions do that are triggered by an event. Every cut has
    history; a grid cut lies at least the shortest horizon after the entity's first event.

    Args:
        horizons_days: a cut is kept when its shortest horizon has matured by `until`.
        per_entity: cuts per entity at most, drawn without replacement.
        anchored: share of anchored cuts, 0 to 1.
        anchors: sources whose events anchor, by index; empty for all.
    Returns:
        entity [S] int64, cut_us [S] int64, sorted by entity and time; each cut has history.
    """
    if not len(timeline):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    shortest = min(horizons_days) * DAY_US
    latest = until_us + int(SLACK * shortest) - shortest
    earliest = timeline.known_us[timeline.offsets[:-1]] + shortest
    share = round(per_entity * anchored)
    size = len(timeline.entity_ids)
    moments = months_before(until_us, latest, int(earliest.min()) - 1)
    entity, cut_us = np.repeat(np.arange(size), len(moments)), np.tile(moments, size)
    grid = _draw(entity, cut_us, earliest, latest, per_entity - share, rng)
    begun = timeline.known_us[timeline.offsets[:-1]] + 1
    some = np.isin(timeline.source, anchors) if anchors else np.ones(len(timeline), dtype=bool)
    events = _draw(timeline.entity[some], timeline.known_us[some], begun, latest, share, rng)
    pairs = np.unique(np.concatenate([grid, events], axis=1), axis=1)
    return pairs[0], pairs[1]


def months_before(until_us: int, latest: int, earliest: int) -> np.ndarray:
    """[m] int64 moments whole calendar months before `until`, within (earliest, latest]."""
    count = max(0, int((until_us - earliest) // (28 * DAY_US))) + 2
    until = pl.Series([until_us]).cast(pl.Datetime("us"))
    steps = pl.DataFrame({"k": np.arange(count)}).select(
        pl.lit(until[0]).dt.offset_by(pl.format("-{}mo", "k")).cast(pl.Int64)
    )
    moments = np.unique(steps.to_series().to_numpy())
    return moments[(moments <= latest) & (moments > earliest)]


def _draw(
    entity: np.ndarray,
    cut_us: np.ndarray,
    earliest: np.ndarray,
    latest: int,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[2, S] at most `count` random pairs of each entity, earliest[entity] <= cut <= latest."""
    usable = (cut_us >= earliest[entity]) & (cut_us <= latest)
    entity, cut_us = entity[usable], cut_us[usable]
    order = np.lexsort((rng.random(len(entity)), entity))
    entity, cut_us = entity[order], cut_us[order]
    starts = np.searchsorted(entity, np.arange(len(earliest)))
    keep = np.arange(len(entity)) - starts[entity] < count
    return np.stack([entity[keep], cut_us[keep]]).astype(np.int64)
