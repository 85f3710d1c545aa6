"""What a declared field becomes for the tokenizer and the aggregates.

Every field turns into one or more slots: a column of categories or of numbers per event.

* category, boolean, text: the value itself (text is normalised and hashed by the tokenizer);
* number, money: the value;
* timestamp: days from the field to the event (positive: the event came later);
* identifier: never its value, only behaviour of this entity with it so far: how often it was seen
  before, days since it was last seen, and, where the schema asks for `sharing`, by how many other
  entities (as the store stamped it).

All of it looks backward only, in the order in which events became known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from foundation.history import DAY_US, Timeline
from foundation.row_table import RowTable, Words
from foundation.schema import Field, Schema

SHARED_SUFFIX = "__shared_with"


SlotColumn = pl.Series | np.ndarray
EventColumn = SlotColumn | Words
# Up to this many values a dictionary beats an Enum, whose fixed cost is 100 us.
_SMALL = 4096
_INDEX = np.arange(_SMALL)


@dataclass(frozen=True)
class Slot:
    """One token column.

    Attributes:
        owner: source name, `profile` or `context`.
        name: unique within the owner, such as `status` or `device.times_seen`.
        field: declared field it comes from.
        kind: `category`, `text` or `number` as the tokenizer sees it.
        role: the field's role, for schema transfer.
        title: words for people.
    """

    owner: str
    name: str
    field: str
    kind: str
    role: str
    title: str

    @property
    def key(self) -> str:
        """Unique over the schema: `owner.name`."""
        return f"{self.owner}.{self.name}"


def slots_of(owner: str, fields: dict[str, Field]) -> tuple[Slot, ...]:
    """Slots of a table in declared order."""
    out: list[Slot] = []
    for name, field in fields.items():
        if field.kind in ("category", "boolean"):
            out.append(Slot(owner, name, name, "category", field.role, _words(name)))
        elif field.kind == "text":
            out.append(Slot(owner, name, name, "text", field.role, _words(name)))
        elif field.kind in ("number", "money"):
            out.append(Slot(owner, name, name, "number", field.role, _words(name)))
        elif field.kind == "timestamp":
            title = f"days after {_words(name)}"
            out.append(Slot(owner, f"{name}.days", name, "number", "date", title))
        elif owner not in ("profile", "context"):
            out += [
                Slot(
                    owner,
                    f"{name}.times_seen",
                    name,
                    "number",
                    "count",
                    f"times {_words(name)} was seen before",
                ),
                Slot(
                    owner,
                    f"{name}.days_since_seen",
                    name,
                    "number",
                    "duration",
                    f"days since {_words(name)} was last seen",
                ),
            ]
            if field.sharing:
                title = f"others sharing {_words(name)}"
                out.append(Slot(owner, f"{name}.shared_with", name, "number", "count", title))
    return tuple(out)


def source_slots(schema: Schema, source: str) -> tuple[Slot, ...]:
    """Slots of an event source."""
    return slots_of(source, schema.sources[source].fields)


def profile_slots(schema: Schema) -> tuple[Slot, ...]:
    """Slots of the profile."""
    return slots_of("profile", schema.profile_fields)


def context_slots(schema: Schema) -> tuple[Slot, ...]:
    """Slots of the context columns."""
    return slots_of("context", schema.context)


def source_columns(timeline: Timeline, source: int) -> dict[str, EventColumn]:
    """Slot columns of one source's events, in timeline order.

    The fast form of `source_values`: one request costs microseconds a column.

    Returns:
        slot name -> for categories and text a String Series (null where missing; `Words` in a
        small timeline), for numbers a float64 array (NaN where missing), each of length
        len(timeline.positions(source)).
    """
    small = len(timeline) <= _SMALL
    if small and source in timeline.read_columns:
        return timeline.read_columns[source]
    name = timeline.schema.source_names[source]
    only = timeline.only_source == source
    positions = slice(None) if only else timeline.positions(source)
    columns = _read(timeline, source, timeline.row[positions])
    event_us = timeline.event_us[positions]
    out: dict[str, EventColumn] = {}
    for field, spec in timeline.schema.sources[name].fields.items():
        if spec.kind == "identifier":
            entity, known_us = timeline.entity[positions], timeline.known_us[positions]
            out |= _identifier(field, columns, entity, known_us)
        else:
            out |= _plain(field, spec, columns, event_us)
    if not small:
        return dict(out)
    words: dict[str, EventColumn] = {
        k: Words.of(v) if isinstance(v, pl.Series) else v for k, v in out.items()
    }
    timeline.read_columns[source] = words
    return words


def row_columns(
    fields: dict[str, Field], frame: pl.DataFrame | RowTable, at_us: np.ndarray
) -> dict[str, EventColumn]:
    """Slot columns of profile or context rows; timestamps count days up to `at_us` ([S])."""
    columns = _columns_of(frame)
    out: dict[str, EventColumn] = {}
    for field, spec in fields.items():
        if spec.kind != "identifier":
            out |= _plain(field, spec, columns, at_us)
    return out


def source_values(timeline: Timeline, source: int) -> dict[str, pl.Series]:
    """Slot values of one source's events, in timeline order.

    Returns:
        slot name -> Series of length len(timeline.positions(source)): String for categories and
        text, Float64 for numbers; null where missing.
    """
    return {k: _series(v) for k, v in source_columns(timeline, source).items()}


def row_values(
    fields: dict[str, Field], frame: pl.DataFrame, at_us: np.ndarray
) -> dict[str, pl.Series]:
    """`row_columns` as Series, null where missing."""
    return {k: _series(v) for k, v in row_columns(fields, frame, at_us).items()}


def _series(column: EventColumn) -> pl.Series:
    if isinstance(column, Words):
        return column.series
    return column if isinstance(column, pl.Series) else pl.Series(column, nan_to_null=True)


def _columns_of(frame: pl.DataFrame | RowTable) -> Mapping[str, EventColumn]:
    if isinstance(frame, RowTable):
        return frame.columns
    return {c.name: c for c in frame.get_columns()}


def _read(timeline: Timeline, source: int, rows: np.ndarray) -> Mapping[str, EventColumn]:
    """The fields of a source's frame at some rows; untouched where these are all rows in order."""
    if timeline.arrays is not None:
        table = timeline.arrays[source]
        in_order = len(rows) == len(table) and np.array_equal(rows, _INDEX[: len(rows)])
        return table.columns if in_order else table[rows].columns
    frame = timeline.frames[source]
    fields = timeline.schema.sources[timeline.schema.source_names[source]].fields
    wanted = {*fields, *(field + SHARED_SUFFIX for field in fields)}
    index = _INDEX[: len(rows)] if len(rows) <= _SMALL else np.arange(len(rows))
    if len(rows) != len(frame) or not np.array_equal(rows, index):
        if len(rows) > _SMALL:  # making a frame of the fields alone pays from here on
            frame = frame.select([c for c in frame.columns if c in wanted or c == "known_at"])
        frame = frame[rows]
    return {c.name: c for c in frame.get_columns() if c.name in wanted}


def _text(column: EventColumn) -> pl.Series | Words:
    if isinstance(column, Words):
        return column
    column = column if isinstance(column, pl.Series) else pl.Series(column)
    return column if column.dtype == pl.String else column.cast(pl.String)


def _float(column: EventColumn) -> np.ndarray:
    """[n] float64, NaN where missing."""
    if isinstance(column, np.ndarray):
        return column
    column = column.series if isinstance(column, Words) else column
    return (column if column.dtype == pl.Float64 else column.cast(pl.Float64)).to_numpy()


def _moment(column: EventColumn) -> np.ndarray:
    """[n] float64 microseconds since the epoch, NaN where missing; exact up to the year 2255."""
    if isinstance(column, np.ndarray):
        return column
    column = column.series if isinstance(column, Words) else column
    return column.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy().astype(np.float64)


def _plain(
    field: str, spec: Field, columns: Mapping[str, EventColumn], at_us: np.ndarray
) -> dict[str, EventColumn]:
    name = f"{field}.days" if spec.kind == "timestamp" else field
    column = columns.get(field)
    if column is None:
        if spec.kind in ("category", "boolean", "text"):
            return {name: pl.Series([None], dtype=pl.String).new_from_index(0, len(at_us))}
        return {name: np.full(len(at_us), np.nan)}
    if spec.kind in ("category", "text"):
        return {name: _text(column)}
    if spec.kind == "boolean":
        words = _text(column)
        if isinstance(words, pl.Series) and words is column:
            words = words.str.to_lowercase()
        return {name: words}
    if spec.kind in ("number", "money"):
        return {name: _float(column)}
    # Both sides as float64: a null elsewhere must not change the result.
    return {name: (np.asarray(at_us).astype(np.float64) - _moment(column)) / DAY_US}


def _identifier(
    field: str, columns: Mapping[str, EventColumn], entity: np.ndarray, known_us: np.ndarray
) -> dict[str, EventColumn]:
    """Behaviour of an entity with an identifier, up to and without the event itself."""
    count = len(entity)
    if field not in columns:
        unseen = ("times_seen", "days_since_seen", "shared_with")
        return {f"{field}.{part}": np.full(count, np.nan) for part in unseen}
    code = _factorised(_text(columns[field]))
    group = entity * (int(code.max(initial=0)) + 2) + code + 1
    order = np.argsort(group, kind="stable")
    first = np.ones(count, dtype=bool)
    first[1:] = group[order[1:]] != group[order[:-1]]
    begin = np.maximum.accumulate(np.where(first, np.arange(count), 0))
    times, gap = np.empty(count), np.full(count, np.nan)
    times[order] = np.arange(count) - begin
    later = order[~first]
    gap[later] = (known_us[later] - known_us[order[np.flatnonzero(~first) - 1]]) / DAY_US
    times[code < 0] = np.nan
    gap[code < 0] = np.nan
    shared = field + SHARED_SUFFIX
    others = np.full(count, np.nan)
    if shared in columns:
        others = _float(columns[shared])
    return {
        f"{field}.times_seen": times,
        f"{field}.days_since_seen": gap,
        f"{field}.shared_with": others,
    }


def _factorised(values: pl.Series | Words) -> np.ndarray:
    """[n] int64: equal strings share a number, null is -1."""
    if isinstance(values, Words) or len(values) <= _SMALL:
        return Words.of(values).code
    enum = values.cast(pl.Enum(values.drop_nulls().unique()))
    return enum.to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


def _words(name: str) -> str:
    return name.replace("_", " ").lower()
