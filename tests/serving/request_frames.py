"""A request's rows as the frames an import would have made, for comparison."""

from __future__ import annotations

import numpy as np
import polars as pl

from foundation.history import storage_type
from foundation.row_table import RowTable, Words
from foundation.schema import Field
from serving.requests import ScoringInput


def frames_of(given: ScoringInput) -> dict[str, pl.DataFrame]:
    """Per source entity_id, event_time, known_at and the fields, typed as they are stored."""
    return {
        name: pl.DataFrame(
            [
                pl.Series("entity_id", [given.entity_id] * len(table), dtype=pl.String),
                pl.Series("event_time", event_us).cast(pl.Datetime("us")),
                pl.Series("known_at", known_us).cast(pl.Datetime("us")),
                *_fields(given.schema.sources[name].fields, table),
            ]
        )
        for name, (event_us, known_us, table) in given.tables.items()
    }


def profile_of(given: ScoringInput) -> pl.DataFrame | None:
    """The profile row with entity_id and known_at."""
    if given.profile is None:
        return None
    known_us, table = given.profile
    head = [
        pl.Series("entity_id", [given.entity_id], dtype=pl.String),
        pl.Series("known_at", [known_us], dtype=pl.Int64).cast(pl.Datetime("us")),
    ]
    return pl.DataFrame([*head, *_fields(given.schema.profile_fields, table)])


def samples_of(given: ScoringInput) -> pl.DataFrame:
    """entity_id, as_of and the context."""
    head = [
        pl.Series("entity_id", [given.entity_id], dtype=pl.String),
        pl.Series("as_of", [given.as_of_us], dtype=pl.Int64).cast(pl.Datetime("us")),
    ]
    return pl.DataFrame([*head, *_fields(given.schema.context, given.context)])


def _fields(fields: dict[str, Field], table: RowTable) -> list[pl.Series]:
    return [_series(name, spec.kind, table) for name, spec in fields.items()]


def _series(name: str, kind: str, table: RowTable) -> pl.Series:
    dtype = storage_type(kind)
    column = table.columns.get(name)
    if column is None:
        return pl.Series(name, [None] * len(table), dtype=dtype)
    if isinstance(column, Words):
        words = [(*column.values, None)[code] for code in column.code.tolist()]
        if kind == "boolean":
            return pl.Series(name, [None if w is None else w == "true" for w in words], dtype=dtype)
        return pl.Series(name, words, dtype=dtype)
    if kind == "timestamp":
        whole = [None if np.isnan(v) else int(v) for v in column]
        return pl.Series(name, whole, dtype=pl.Int64).cast(dtype)
    return pl.Series(name, column, nan_to_null=True)
