"""Histories that came as arrays, as requests bring them: the same timelines without data frames.

Shapes: n events of a source, E entities. Times are int64 microseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from foundation.history import ALWAYS_KNOWN, ProfileHistory, Timeline, joined, known_order
from foundation.row_table import RowTable
from foundation.schema import Schema

_NONE = np.zeros(0, dtype=np.int64)
_NO_ROWS = pl.DataFrame()


def joined_timeline(
    schema: Schema,
    entity_ids: pl.Series,
    tables: Mapping[str, Sequence[tuple[int, np.ndarray, np.ndarray, RowTable]]],
) -> Timeline:
    """The timeline of entities whose events came as arrays.

    Args:
        entity_ids: [E] strings, sorted, unique; some may have no event.
        tables: per source name a list of entity index, event_us and known_us ([n] int64), fields;
            a missing source is empty.
    """
    entity, event, known, arrays = [_NONE], [_NONE], [_NONE], []
    for name in schema.source_names:
        parts = tables.get(name, ())
        entity += [np.full(len(part[3]), part[0], dtype=np.int64) for part in parts]
        event += [part[1] for part in parts]
        known += [part[2] for part in parts]
        arrays.append(RowTable.joined([part[3] for part in parts]) if parts else RowTable({}, 0))
    counts = [len(table) for table in arrays]
    columns = (
        joined(entity),
        joined(known),
        joined(event),
        np.repeat(np.arange(len(arrays), dtype=np.int16), counts),
        joined([_NONE, *map(np.arange, counts)]),
    )
    order = known_order(*columns[:3])
    if order is not None:
        columns = tuple(column[order] for column in columns)
    owner, known_us, event_us, source, row = columns
    offsets = np.searchsorted(owner, np.arange(len(entity_ids) + 1)).astype(np.int64)
    return Timeline(schema, entity_ids, offsets, known_us, event_us, source, row, (), tuple(arrays))


def joined_profile(
    entity_ids: pl.Series, rows: Sequence[tuple[int, int | None, RowTable]]
) -> ProfileHistory | None:
    """The profiles of several entities with at most one row each, in the order of their index.

    Args:
        entity_ids: [E] strings, sorted, unique.
        rows: entity index, known_us (None: known from the beginning) and the row.
    """
    if not rows:
        return None
    index = np.array([row[0] for row in rows], dtype=np.int64)
    known = [ALWAYS_KNOWN if row[1] is None else row[1] for row in rows]
    offsets = np.searchsorted(index, np.arange(len(entity_ids) + 1)).astype(np.int64)
    table = RowTable.joined([row[2] for row in rows])
    return ProfileHistory(entity_ids, offsets, np.array(known, dtype=np.int64), _NO_ROWS, table)
