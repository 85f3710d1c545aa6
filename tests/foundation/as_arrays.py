"""Frames as the arrays in which a request arrives."""

from __future__ import annotations

import numpy as np
import polars as pl

from foundation.array_history import joined_profile, joined_timeline
from foundation.history import ProfileHistory, Timeline
from foundation.row_table import RowTable, Words
from foundation.schema import Field, Schema


def table_of(frame: pl.DataFrame, fields: dict[str, Field]) -> RowTable:
    """The fields of a frame, and what the store stamped on identifiers."""
    columns: dict[str, Words | np.ndarray] = {}
    for column in frame.get_columns():
        spec = fields.get(column.name.removesuffix("__shared_with"))
        if spec is None:
            continue
        if column.name.endswith("__shared_with") or spec.kind in ("number", "money"):
            columns[column.name] = column.cast(pl.Float64).to_numpy()
        elif spec.kind == "timestamp":
            columns[column.name] = column.cast(pl.Int64).to_numpy().astype(np.float64)
        else:
            texts = column.cast(pl.String)
            if spec.kind == "boolean" and column.dtype != pl.Boolean:
                texts = texts.str.to_lowercase()
            columns[column.name] = Words.read(texts.to_list())
    return RowTable(columns, len(frame))


def timeline_of(schema: Schema, entity: str, frames: dict[str, pl.DataFrame]) -> Timeline:
    """Frames of one entity as its timeline."""
    tables = {
        name: [
            (
                0,
                frame["event_time"].cast(pl.Int64).to_numpy(),
                frame["known_at"].cast(pl.Int64).to_numpy(),
                table_of(frame, schema.sources[name].fields),
            )
        ]
        for name, frame in frames.items()
    }
    some = any(len(frame) for frame in frames.values())
    ids = pl.Series("entity_id", [entity] if some else [], dtype=pl.String)
    return joined_timeline(schema, ids, tables)


def profile_of(schema: Schema, entity: str, frame: pl.DataFrame) -> ProfileHistory | None:
    """The only profile row of an entity, None where there is none."""
    own = frame.filter(pl.col("entity_id") == entity)
    if own.is_empty():
        return None
    known = own["known_at"].cast(pl.Int64)[0]
    row = (0, known, table_of(own, schema.profile_fields))
    return joined_profile(pl.Series("entity_id", [entity]), [row])
