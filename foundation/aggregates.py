"""Point-in-time aggregates: generated from the schema, fitted once, computed in numpy.

`AggregateSpec.fit` lists what the schema and its history call for, computes it at past cuts of a
sample of entities and keeps the columns that carry information. `AggregateSpec.compute` is the one
code path for a single request and for a file: histories are contiguous ranges (foundation.history)
and every statistic reads its own range only, so a sample's values do not depend on the others.
Values are float32, as every tree is fitted on float32.

Shapes: S samples, F columns, E entities, P profile rows.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import polars as pl

from foundation import strict
from foundation.columns import (
    AggregateColumn,
    ratio_candidates,
    row_candidates,
    source_candidates,
)
from foundation.errors import ArtifactError, DataError
from foundation.history import (
    ALWAYS_KNOWN,
    DAY_US,
    Cut,
    ProfileHistory,
    Timeline,
    cut,
    latest_profile,
)
from foundation.layouts import frequent, source_layout
from foundation.panels import (
    Panel,
    RangeStatistics,
    SourceLayout,
    as_float,
    build_panel,
    level_codes,
)
from foundation.schema import Schema, fingerprint
from foundation.segments import chunks, divide
from foundation.slots import context_slots, profile_slots, row_values, source_values

CHUNK_ROWS = 200_000
TINY, HUGE = np.float32(1e-30), np.float32(3e38)
FIT_ENTITIES = 4_000
FIT_CUT_DAYS = (0, 31, 61, 92, 183, 365)


class AggregateSpec(strict.Strict, dict=True):
    """Which columns are computed, and how.

    Attributes:
        schema: fingerprint of the schema it was fitted for.
        layouts: rows of each source's panel; the last one may stand for all sources together.
        columns: the F columns in order.
    """

    schema: str
    layouts: tuple[SourceLayout, ...] = ()
    columns: tuple[AggregateColumn, ...] = ()

    @classmethod
    def fit(
        cls,
        schema: Schema,
        timeline: Timeline,
        profile: ProfileHistory | None,
        context: pl.DataFrame | None = None,
        until_us: int | None = None,
        max_columns: int = 400,
        seed: int = 0,
    ) -> AggregateSpec:
        """Choose the columns.

        Args:
            context: rows whose context columns give levels; None leaves them to `extend`.
            until_us: only what was known before it is read; None reads everything.
            max_columns: cap on event columns; profile and context columns always stay.
        """
        rng = np.random.default_rng(seed)
        seen = known_part(timeline, until_us, FIT_ENTITIES * 5, rng)
        layouts = tuple(
            source_layout(schema, k, source_values(seen, k))
            for k in range(len(schema.source_names))
        )
        if len(layouts) > 1:
            layouts += (SourceLayout(source=-1, name="any"),)
        windows = tuple(f"{w}d" for w in schema.windows_days)
        rows = _row_columns(schema, profile, context, until_us)
        events = [
            column
            for at, layout in enumerate(layouts)
            for column in source_candidates(schema, at, layout, windows)
        ]
        events += [c for c in ratio_candidates(schema, layouts, windows) if c.block == "aggregate"]
        every = cls(schema=fingerprint(schema), layouts=layouts, columns=tuple(events))
        kept = _informative(every, seen, profile, until_us, rng)
        ranked = sorted(kept, key=lambda j: (events[j].priority, j))[:max_columns]
        columns = (*rows, *(events[j] for j in sorted(ranked)))
        return cls(schema=every.schema, layouts=layouts, columns=columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(c.name for c in self.columns)

    def to_json(self) -> str:
        """Canonical JSON; `from_json` restores it exactly."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "aggregates.json") -> AggregateSpec:
        """Restore.

        Raises:
            ArtifactError: not an aggregate specification.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as exc:
            raise ArtifactError(f"{where}: no aggregate specification: {exc}") from None

    @property
    def fingerprint(self) -> str:
        """Digest of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def extend(
        self, profile_rows: pl.DataFrame | None, context_rows: pl.DataFrame | None
    ) -> AggregateSpec:
        """Append profile and context levels that were unknown at fit; old codes keep."""
        frames = {"profile": profile_rows, "context": context_rows}
        columns = []
        for column in self.columns:
            frame = frames.get(column.block)
            if column.kind == "code" and frame is not None and column.slot in frame.columns:
                text = _as_text(frame[column.slot])
                new = [v for v in frequent(text) if v not in column.levels]
                column = msgspec.structs.replace(column, levels=(*column.levels, *new))
            columns.append(column)
        return msgspec.structs.replace(self, columns=tuple(columns))

    def panels(self, timeline: Timeline) -> tuple[Panel, ...]:
        """The event rows of a timeline, to be shared by several calls of `compute`."""
        return tuple(build_panel(timeline, layout) for layout in self.layouts)

    def compute(
        self,
        timeline: Timeline,
        cut_: Cut,
        profile: ProfileHistory | None,
        entity_ids: pl.Series,
        context: pl.DataFrame | None = None,
        panels: tuple[Panel, ...] | None = None,
    ) -> np.ndarray:
        """The aggregates of S samples.

        Args:
            cut_: histories, from foundation.history.cut.
            entity_ids: [S] strings, for the profile.
            context: [S] rows in sample order, or None.
            panels: from `panels`, when one timeline is asked several times.
        Returns:
            [S, F] float32, NaN missing; -1 a category value unseen at fit. Magnitudes under 1e-30
            become zero, because LightGBM and ONNX Runtime disagree about them.
        Raises:
            DataError: the context has another number of rows than there are samples.
        """
        if context is not None and len(context) != len(cut_):
            raise DataError(f"context has {len(context)} rows for {len(cut_)} samples")
        out = np.full((len(cut_), len(self.columns)), np.nan, dtype=np.float32)
        rows = self._rows(timeline.schema, profile, entity_ids, cut_.as_of_us, context)
        for j, column in enumerate(self.columns):
            if column.block != "aggregate" and column.kind == "number":
                out[:, j] = rows.column(column)
        coded = [j for j, c in enumerate(self.columns) if rows.has(c)]
        columns = [self.columns[j] for j in coded]
        codes, _ = level_codes(
            [rows.values[c.block, c.slot] for c in columns], [c.levels for c in columns]
        )
        if coded:
            out[:, coded] = np.where(codes == -2, np.nan, codes).T
        panels = self.panels(timeline) if panels is None else panels
        with np.errstate(over="ignore", invalid="ignore"):
            for part in chunks(cut_.stop - cut_.start, CHUNK_ROWS):
                self._events(panels, cut_.part(part), rows.part(part), out[part])
        out[np.abs(out) < TINY] = 0.0
        return np.clip(out, -HUGE, HUGE, out=out)

    def _rows(
        self,
        schema: Schema,
        profile: ProfileHistory | None,
        entity_ids: pl.Series,
        as_of_us: np.ndarray,
        context: pl.DataFrame | None,
    ) -> _Rows:
        """Slot values of the latest known profile row and the context row of each sample."""
        values: dict[tuple[str, str], pl.Series] = {}
        if schema.profile_fields and profile is not None and len(profile.frame):
            at = latest_profile(profile, entity_ids, as_of_us)
            frame = profile.frame[np.maximum(at, 0)]
            found = row_values(schema.profile_fields, frame, as_of_us)
            if len(at) and at.min() < 0:
                missing = pl.Series(at < 0)
                found = {k: v.set(missing, None) for k, v in found.items()}
            values |= {("profile", k): v for k, v in found.items()}
        if schema.context and context is not None:
            found = row_values(schema.context, context, as_of_us)
            values |= {("context", k): v for k, v in found.items()}
        return _Rows(values, len(as_of_us))

    @cached_property
    def _plan(self) -> list[tuple[int, str, str, list[int], list[int]]]:
        """Plain event columns by (layout, statistic, window): their places and panel rows."""
        plan: dict[tuple[int, str, str], tuple[list[int], list[int]]] = {}
        for j, c in enumerate(self.columns):
            if c.block == "aggregate" and not c.over:
                places, rows = plan.setdefault((c.layout, c.stat, c.window), ([], []))
                places.append(j)
                rows.append(c.row)
        return [(*key, places, rows) for key, (places, rows) in plan.items()]

    @cached_property
    def _ratios(self) -> list[tuple[int, AggregateColumn]]:
        """Event columns that continue as a ratio, with their places."""
        found = enumerate(self.columns)
        return [(j, c) for j, c in found if c.block == "aggregate" and c.over]

    def _events(self, panels: tuple[Panel, ...], cut_: Cut, rows: _Rows, out: np.ndarray) -> None:
        """Fill the event columns of one chunk of samples."""
        ranges = [
            RangeStatistics(p, *p.ranges(cut_.start, cut_.stop), cut_.as_of_us) for p in panels
        ]
        for layout, stat, window, places, picked in self._plan:
            out[:, places] = statistic(ranges[layout], stat, window)[picked].T
        for j, c in self._ratios:
            value = statistic(ranges[c.layout], c.stat, c.window)[c.row]
            if c.over == "same":
                below = statistic(ranges[c.over_layout], c.stat, c.window)[c.over_row]
                out[:, j] = divide(value, below)
            elif c.over.startswith("under "):
                out[:, j] = divide(rows.number(c.over.removeprefix("under "), c.slot), value)
            else:
                out[:, j] = divide(value, rows.number(c.over, c.slot))


@dataclass(frozen=True)
class _Rows:
    """Profile and context slot values of S samples."""

    values: dict[tuple[str, str], pl.Series]
    size: int

    def part(self, rows: slice) -> _Rows:
        size = rows.stop - rows.start
        return _Rows({k: v[rows] for k, v in self.values.items()}, size)

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

    def has(self, column: AggregateColumn) -> bool:
        """Whether it is a profile or context category with values."""
        return (
            column.block != "aggregate"
            and column.kind == "code"
            and (column.block, column.slot) in self.values
        )


def statistic(ranges: RangeStatistics, stat: str, window: str) -> np.ndarray:
    """[K, S] of one statistic for all rows of a panel that it applies to."""
    r = ranges
    match stat:
        case "count":
            return r.count(window)
        case "count_share":
            return divide(r.count(window), r.count("all"))
        case "count_change":
            now = r.count(window)
            return divide(now, now + r.count(f"{window} before"))
        case "since_event" | "since_first" | "since_hit" | "longest_hit" | "longest" | "distinct":
            return getattr(r, stat)()
        case "last":
            return r.lag(0)
        case "lag1":
            return r.lag(1)
        case "lag2":
            return r.lag(2)
        case "step":
            return r.lag(0) - r.lag(1)
        case "above_mean":
            return r.lag(0) - r.mean("all")
        case "half_trend":
            older = divide(r.sum("all") - r.sum(window), r.present("all") - r.present(window))
            return r.mean(window) - older
        case "mean" | "min" | "max" | "std":
            return getattr(r, stat)(window)
        case "sum":
            return np.where(r.present("all") > 0, r.sum(window), np.nan)
        case "mean_change":
            return r.mean(window) - r.mean("all")
        case "sum_change":
            now = r.sum(window)
            return divide(now, np.abs(now) + np.abs(r.sum(f"{window} before")))
        case "share":
            return divide(r.hits(window), r.count(window))
        case "hits":
            return r.hits(window)
        case "streak":
            return r.lag(0, r.panel.streaks)
        case "code":
            codes = r.lag(0, r.panel.codes)
            return np.where(codes == -2, np.nan, codes)
    raise ArtifactError(f"aggregates: unknown statistic '{stat}'")


def known_part(
    timeline: Timeline, until_us: int | None, entities: int, rng: np.random.Generator
) -> Timeline:
    """The timeline of at most `entities` entities, of events known before `until_us` only."""
    keep = np.ones(len(timeline), dtype=bool) if until_us is None else timeline.known_us < until_us
    if len(timeline.entity_ids) > entities:
        chosen = np.zeros(len(timeline.entity_ids), dtype=bool)
        chosen[rng.choice(len(chosen), entities, replace=False)] = True
        keep &= chosen[timeline.entity]
    if keep.all():
        return timeline
    owner = timeline.entity[keep]
    present = np.unique(owner)
    offsets = np.append(np.searchsorted(owner, present), len(owner)).astype(np.int64)
    return Timeline(
        schema=timeline.schema,
        entity_ids=timeline.entity_ids[present],
        offsets=offsets,
        known_us=timeline.known_us[keep],
        event_us=timeline.event_us[keep],
        source=timeline.source[keep],
        row=timeline.row[keep],
        frames=timeline.frames,
    )


def _informative(
    every: AggregateSpec,
    seen: Timeline,
    profile: ProfileHistory | None,
    until_us: int | None,
    rng: np.random.Generator,
) -> list[int]:
    """Columns that are neither constant nor a copy of an earlier one at past cuts."""
    if not len(seen):
        return []
    end = int(seen.known_us.max()) + 1 if until_us is None else until_us
    size = min(len(seen.entity_ids), FIT_ENTITIES)
    chosen = np.sort(rng.choice(len(seen.entity_ids), size, replace=False))
    ids = pl.concat([seen.entity_ids[chosen]] * len(FIT_CUT_DAYS))
    as_of = np.repeat([end - days * DAY_US for days in FIT_CUT_DAYS], size).astype(np.int64)
    histories = cut(seen, ids, as_of)
    rows = np.flatnonzero(histories.stop > histories.start)
    values = every.compute(seen, histories.part(rows), profile, ids[rows])
    return distinct_columns(values)


def distinct_columns(values: np.ndarray) -> list[int]:
    """Indices of the columns of [S, F] that vary and differ from all earlier ones."""
    kept, seen = [], set()
    for j in range(values.shape[1]):
        column = np.ascontiguousarray(values[:, j]) + np.float32(0)
        column[np.isnan(column)] = np.nan
        if not len(column) or (column == column[0]).all() or np.isnan(column).all():
            continue
        digest = hashlib.blake2b(column.tobytes(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(j)
    return kept


def _row_columns(
    schema: Schema,
    profile: ProfileHistory | None,
    context: pl.DataFrame | None,
    until_us: int | None,
) -> list[AggregateColumn]:
    """Profile and context columns; levels come from rows known before `until_us`."""
    levels: dict[str, tuple[str, ...]] = {}
    if profile is not None and schema.profile_fields:
        known = profile.known_us < (np.iinfo(np.int64).max if until_us is None else until_us)
        frame = profile.frame.filter(pl.Series(known | (profile.known_us == ALWAYS_KNOWN)))
        levels |= _levels("profile", schema.profile_fields, frame)
    if context is not None and schema.context:
        levels |= _levels("context", schema.context, context)
    slots = (*profile_slots(schema), *context_slots(schema))
    rows = list(row_candidates(slots, levels))
    return rows + [c for c in ratio_candidates(schema, (), ()) if c.block != "aggregate"]


def _levels(owner: str, fields: dict, frame: pl.DataFrame) -> dict[str, tuple[str, ...]]:
    values = row_values(fields, frame, np.zeros(len(frame), dtype=np.int64))
    return {
        f"{owner}.{name}": frequent(column)
        for name, column in values.items()
        if column.dtype == pl.String
    }


def _as_text(column: pl.Series) -> pl.Series:
    text = column.cast(pl.String)
    return text.str.to_lowercase() if column.dtype == pl.Boolean else text
