"""Decisions of the past: what was asked for at moments whose outcome is known by now.

A schema may declare what is decided on: `context` columns, or a dated profile such as an
application. A source that records such decisions (earlier loans beside the loan applied for)
shares fields with it. At the moment such an event became known its shared fields were what a
decision would have been asked about, so that a rehearsed forecast sees the same columns as the
real one. Nothing else of the event is read; it stays outside the history of its own cut.

Shapes: S cuts, M decisions. Times are int64 microseconds since the epoch, UTC.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from foundation.history import (
    ALWAYS_KNOWN,
    ProfileHistory,
    Timeline,
    build_profile,
    first_not_before,
    storage_type,
)
from foundation.schema import Field, Schema


def decision_sources(schema: Schema) -> tuple[int, ...]:
    """Sources that record decisions: they share two or more fields with what is decided on."""
    asked = {**schema.context, **_dated(schema)}
    return tuple(
        index
        for index, name in enumerate(schema.source_names)
        if len(_shared(asked, schema.sources[name].fields)) >= 2
    )


def decision_cuts(timeline: Timeline) -> tuple[np.ndarray, np.ndarray]:
    """Entity and moment of every recorded decision, [M] int64 each, sorted.

    Cut there, a history ends right before the decision.
    """
    at = _positions(timeline)
    return timeline.entity[at], timeline.known_us[at]


def with_applications(timeline: Timeline, profile: ProfileHistory | None) -> ProfileHistory | None:
    """The profile with a row for every recorded decision, known a microsecond before it.

    Fields that no source of decisions records come from the latest earlier profile row. Where the
    schema has no dated profile, or no source records decisions, the profile comes back as it is.
    """
    schema = timeline.schema
    recorded = _recorded(schema)
    at = _positions(timeline)
    if profile is None or not recorded or not len(at):
        return profile
    rows = _rows(timeline, at, _dated(schema)).with_columns(
        pl.Series("entity_id", timeline.entity_ids[timeline.entity[at]]),
        pl.Series("known_at", timeline.known_us[at] - 1).cast(pl.Datetime("us")),
    )
    known = pl.col("known_at").cast(pl.Int64).fill_null(ALWAYS_KNOWN)
    rows = rows.select("entity_id", "known_at", *recorded)
    others = [name for name in profile.frame.columns if name not in rows.columns]
    every = pl.concat(
        [
            profile.frame.with_columns(pl.lit(False).alias("_decision")),
            rows.with_columns(pl.lit(True).alias("_decision")),
        ],
        how="diagonal_relaxed",
    ).sort("entity_id", known, "_decision", maintain_order=True)
    carried = pl.col(others).forward_fill().over("entity_id")
    every = every.with_columns(pl.when("_decision").then(carried).otherwise(pl.col(others)))
    return build_profile(every.select(profile.frame.columns))


def context_at(timeline: Timeline, entity: np.ndarray, cut_us: np.ndarray) -> pl.DataFrame | None:
    """[S] rows of the schema's context columns, null where a cut is no recorded decision.

    None where the schema has no context.

    Args:
        entity: [S] int64 index into the timeline's entities; cut_us: [S] int64.
    """
    fields = timeline.schema.context
    if not fields:
        return None
    at = _positions(timeline)
    found = np.full(len(entity), -1, dtype=np.int64)
    if len(at):
        bounds = np.searchsorted(at, timeline.offsets)
        known = timeline.known_us[at]
        first = first_not_before(known, bounds[entity], bounds[entity + 1], cut_us)
        inside = first < bounds[entity + 1]
        same = known[np.minimum(first, len(at) - 1)] == cut_us
        found = np.where(inside & same, first, -1)
    rows = _rows(timeline, at, fields)
    picked = pl.Series(np.where(found >= 0, found, np.nan), nan_to_null=True).cast(pl.Int64)
    return rows.select(pl.all().gather(picked))


def _dated(schema: Schema) -> dict[str, Field]:
    """Fields of a dated profile."""
    dated = schema.profile is not None and bool(schema.profile.valid_time)
    return dict(schema.profile_fields) if dated else {}


def _shared(asked: dict[str, Field], fields: dict[str, Field]) -> tuple[str, ...]:
    """Fields of one name and kind."""
    return tuple(n for n, f in fields.items() if n in asked and asked[n].kind == f.kind)


def _recorded(schema: Schema) -> list[str]:
    """Fields of a dated profile that some decision source records."""
    fields = [schema.sources[schema.source_names[k]].fields for k in decision_sources(schema)]
    return [n for n in _dated(schema) if any(n in _shared(_dated(schema), f) for f in fields)]


def _positions(timeline: Timeline) -> np.ndarray:
    """[M] timeline positions of the events that record decisions."""
    return np.flatnonzero(np.isin(timeline.source, decision_sources(timeline.schema)))


def _rows(timeline: Timeline, at: np.ndarray, asked: dict[str, Field]) -> pl.DataFrame:
    """[M] rows of the fields asked about, null where an event's source does not have one."""
    schema = timeline.schema
    parts, order = [], []
    for source in decision_sources(schema):
        mine = np.flatnonzero(timeline.source[at] == source)
        fields = schema.sources[schema.source_names[source]].fields
        names = [n for n in _shared(asked, fields) if n in timeline.frames[source].columns]
        # A source may share nothing with what is asked here: `_kept` then keeps its rows, as nulls.
        frame = timeline.frames[source].select(*names, pl.repeat(True, pl.len()).alias("_kept"))
        parts.append(frame[timeline.row[at[mine]]])
        order.append(mine)
    empty = pl.DataFrame(schema={n: storage_type(f.kind) for n, f in asked.items()})
    rows = pl.concat([empty, *parts], how="diagonal_relaxed")
    back = np.argsort(np.concatenate(order), kind="stable") if order else np.zeros(0, np.int64)
    return rows.select(asked.keys())[back]
