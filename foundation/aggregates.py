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
from foundation.panels import Panel, SourceLayout, build_panel, level_codes
from foundation.row_table import RowTable, Words
from foundation.schema import Schema, fingerprint
from foundation.segments import chunks
from foundation.slots import (
    EventColumn,
    context_slots,
    profile_slots,
    row_columns,
    row_values,
    source_values,
)
from foundation.statistics import Plan, Rows, fill_events

CHUNK_ROWS = 500_000
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
        context: pl.DataFrame | RowTable | None = None,
        panels: tuple[Panel, ...] | None = None,
        only: frozenset[str] | None = None,
    ) -> np.ndarray:
        """The aggregates of S samples.

        Args:
            cut_: histories, from foundation.history.cut.
            entity_ids: [S] strings, for the profile.
            context: [S] rows in sample order, or None.
            panels: from `panels`, when one timeline is asked several times.
            only: names of the columns that will be read; the others stay NaN and cost nothing.
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
        plan = self._plan(only)
        for j, column in plan.numbers:
            out[:, j] = rows.column(column)
        coded = [(j, c) for j, c in plan.codes if (c.block, c.slot) in rows.values]
        if coded:
            codes, _ = level_codes([rows.words(c) for _, c in coded], [c.levels for _, c in coded])
            out[:, [j for j, _ in coded]] = np.where(codes == -2, np.nan, codes).T
        panels = self.panels(timeline) if panels is None else panels
        with np.errstate(over="ignore", invalid="ignore"):
            for part in chunks(cut_.stop - cut_.start, CHUNK_ROWS):
                fill_events(plan, panels, cut_.part(part), rows.part(part), out[part])
        out[np.abs(out) < TINY] = 0.0
        return np.clip(out, -HUGE, HUGE, out=out)

    def _rows(
        self,
        schema: Schema,
        profile: ProfileHistory | None,
        entity_ids: pl.Series,
        as_of_us: np.ndarray,
        context: pl.DataFrame | RowTable | None,
    ) -> Rows:
        """Slot values of the latest known profile row and the context row of each sample."""
        values: dict[tuple[str, str], EventColumn] = {}
        if schema.profile_fields and profile is not None and len(profile.rows):
            at = latest_profile(profile, entity_ids, as_of_us)
            whole = len(at) == len(profile.rows) == 1  # gathering costs more than all the rest
            frame = profile.rows if whole else profile.rows[np.maximum(at, 0)]
            found = row_columns(schema.profile_fields, frame, as_of_us)
            if len(at) and at.min() < 0:
                found = {k: _blank(v, at < 0) for k, v in found.items()}
            values |= {("profile", k): v for k, v in found.items()}
        if schema.context and context is not None:
            found = row_columns(schema.context, context, as_of_us)
            values |= {("context", k): v for k, v in found.items()}
        return Rows(values, len(as_of_us))

    @cached_property
    def _plans(self) -> dict[frozenset[str] | None, Plan]:
        return {}

    def _plan(self, only: frozenset[str] | None) -> Plan:
        if only not in self._plans:
            wanted = [(j, c) for j, c in enumerate(self.columns) if only is None or c.name in only]
            self._plans[only] = Plan.of(wanted)
        return self._plans[only]


def _blank(column: EventColumn, where: np.ndarray) -> EventColumn:
    """The column without the values at a boolean [S]."""
    if isinstance(column, Words):
        return Words(np.where(where, -1, column.code), column.values)
    if isinstance(column, pl.Series):
        return column.set(pl.Series(where), None)
    return np.where(where, np.nan, column)


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
