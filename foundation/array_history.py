"""Histories that came as arrays, as requests bring them: the same timelines without data frames.

Shapes: n events of a source, E entities. Times are int64 microseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from foundation.history import ALWAYS_KNOWN, ProfileHistory, Timeline
from foundation.row_table import RowTable
from foundation.schema import Schema

_NONE = np.zeros(0, dtype=np.int64)
_NO_ROWS = pl.DataFrame()


def single_timeline(
    schema: Schema,
    entity_id: str,
    tables: Mapping[str, tuple[np.ndarray, np.ndarray, RowTable]],
) -> Timeline:
    """The timeline of one entity whose events came as arrays; equal to `build_timeline`'s.

    Args:
        tables: per source name event_us and known_us, [n] int64, and the fields; a missing source
            is empty.
    """
    nothing = (_NONE, _NONE, RowTable({}, 0))
    found = [tables.get(name, nothing) for name in schema.source_names]
    event = _joined([table[0] for table in found]) if found else _NONE
    known = _joined([table[1] for table in found]) if found else _NONE
    counts = [len(table[0]) for table in found]
    source = np.repeat(np.arange(len(found), dtype=np.int16), counts)
    row = _joined([np.arange(count) for count in counts]) if found else _NONE
    if (known[1:] < known[:-1]).any() or (
        (known[1:] == known[:-1]) & (event[1:] < event[:-1])
    ).any():
        # The sort is stable and the parts stand in order of source and row.
        order = np.lexsort((event, known))
        event, known, source, row = event[order], known[order], source[order], row[order]
    ids = pl.Series("entity_id", [entity_id] if len(known) else [], dtype=pl.String)
    offsets = np.array([0, len(known)] if len(known) else [0], dtype=np.int64)
    arrays = tuple(table[2] for table in found)
    return Timeline(schema, ids, offsets, known, event, source, row, (), arrays)


def joined_timeline(
    schema: Schema,
    entity_ids: pl.Series,
    tables: Mapping[str, Sequence[tuple[int, np.ndarray, np.ndarray, RowTable]]],
) -> Timeline:
    """The timeline of several entities whose events came as arrays.

    Args:
        entity_ids: [E] strings, sorted, unique.
        tables: per source name a list of entity index, event_us and known_us ([n] int64), fields.
    """
    entity, event, known, arrays = [], [], [], []
    for name in schema.source_names:
        parts = tables.get(name, ())
        entity.append(np.repeat([part[0] for part in parts], [len(part[3]) for part in parts]))
        event.append(_joined([part[1] for part in parts] or [_NONE]))
        known.append(_joined([part[2] for part in parts] or [_NONE]))
        arrays.append(RowTable.joined([part[3] for part in parts]) if parts else RowTable({}, 0))
    counts = [len(part) for part in event]
    columns = (
        np.concatenate([_NONE, *entity]).astype(np.int64),
        np.concatenate([_NONE, *known]),
        np.concatenate([_NONE, *event]),
        np.repeat(np.arange(len(arrays), dtype=np.int16), counts),
        np.concatenate([_NONE, *map(np.arange, counts)]),
    )
    order = np.lexsort((columns[2], columns[1], columns[0]))
    owner, known_us, event_us, source, row = (column[order] for column in columns)
    offsets = np.searchsorted(owner, np.arange(len(entity_ids) + 1)).astype(np.int64)
    return Timeline(schema, entity_ids, offsets, known_us, event_us, source, row, (), tuple(arrays))


def single_profile(entity_id: str, known_us: int | None, row: RowTable) -> ProfileHistory:
    """The profile of one entity that has one row; `known_us` None: known from the beginning."""
    ids = pl.Series("entity_id", [entity_id], dtype=pl.String)
    known = ALWAYS_KNOWN if known_us is None else known_us
    moments = np.array([known], dtype=np.int64)
    offsets = np.array([0, 1], dtype=np.int64)
    return ProfileHistory(ids, offsets, moments, _NO_ROWS, row)


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


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Integers one after another; the part itself where only one has any."""
    some = [part for part in parts if len(part)] or [_NONE]
    return some[0] if len(some) == 1 else np.concatenate(some)
