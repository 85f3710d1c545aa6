"""Point-in-time history: the one place where events meet an as_of.

History at a point T is the events with `known_at < T`, nothing else. A timeline holds every event
of a set of entities in the order in which they became known, so that the history of a sample is a
contiguous range. Training, back-testing, file scoring and the API all cut here.

Shapes: N events, E entities, S samples. Times are int64 microseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import polars as pl

from foundation.row_table import RowTable
from foundation.schema import Schema

ALWAYS_KNOWN = np.iinfo(np.int64).min
DAY_US = 86_400_000_000
# Up to this many rows lists and dictionaries beat the fixed cost of a query; same results.
SMALL = 2048


@dataclass(frozen=True)
class Timeline:
    """All events of some entities, sorted by (entity, known_at, event_time, source, import order).

    Attributes:
        entity_ids: [E] strings, sorted, unique.
        offsets: [E + 1] int64; events of entity e stand at offsets[e]:offsets[e + 1].
        known_us, event_us: [N] int64.
        source: [N] int16, index into schema.source_names.
        row: [N] int64, row of the event in frames[source].
        frames: per source its columns; row order is that of the import.
        arrays: the same where a request brought them (`array_history`); `frames` is empty then.
    """

    schema: Schema
    entity_ids: pl.Series
    offsets: np.ndarray
    known_us: np.ndarray
    event_us: np.ndarray
    source: np.ndarray
    row: np.ndarray
    frames: tuple[pl.DataFrame, ...]
    arrays: tuple[RowTable, ...] | None = None

    def __len__(self) -> int:
        return len(self.known_us)

    @property
    def entity(self) -> np.ndarray:
        """[N] int64: entity index of every event."""
        return np.repeat(np.arange(len(self.entity_ids)), np.diff(self.offsets))

    def positions(self, source: int) -> np.ndarray:
        """Timeline positions of a source's events, in timeline order."""
        if self.only_source == source:
            return np.arange(len(self))
        return np.flatnonzero(self.source == source)

    @cached_property
    def only_source(self) -> int | None:
        """The source of all events, None where there are several or none."""
        first = self.source[0] if len(self) else -1
        return int(first) if len(self) and (self.source == first).all() else None

    @cached_property
    def read_columns(self) -> dict[int, Any]:
        """Slot columns already read, by source; kept for requests, which read them twice."""
        return {}


@dataclass(frozen=True)
class Cut:
    """Histories of S samples: events start[s]:stop[s] of the timeline.

    Attributes:
        entity: [S] int64 index into the timeline's entities, -1 for an entity without events.
        as_of_us: [S] int64; every event of the range has known_us < as_of_us.
    """

    entity: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    as_of_us: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def part(self, rows: np.ndarray | slice) -> Cut:
        """The same histories for some of the samples."""
        return Cut(self.entity[rows], self.start[rows], self.stop[rows], self.as_of_us[rows])


def build_timeline(
    schema: Schema, frames: Mapping[str, pl.DataFrame], grouped: bool = False
) -> Timeline:
    """Merge the sources of a schema into one timeline.

    Args:
        grouped: where one frame alone has rows and those of each entity stand together, entities
            stay in its order instead of being sorted; for those who look entities up by name only.
        frames: per source name a frame with `entity_id` (str), `event_time` and `known_at`
            (Datetime us, UTC or naive UTC) and the source's fields; a missing source is empty.
    """
    tables = []
    for name in schema.source_names:
        frame = frames.get(name)
        tables.append(empty_source(schema, name) if frame is None else frame)
    ids, codes = entity_codes(*(frame["entity_id"] for frame in tables), grouped=grouped)
    if not tables:
        none = np.zeros(0, dtype=np.int64)
        start = np.zeros(1, dtype=np.int64)
        return Timeline(schema, ids, start, none, none, none.astype(np.int16), none, ())
    if sum(map(len, tables)) <= SMALL:
        entity, known, event, source, row = _merged_small(tables, codes)
    else:
        entity, known, event, source, row = _merged(tables, codes)
    offsets = np.searchsorted(entity, np.arange(len(ids) + 1)).astype(np.int64)
    return Timeline(schema, ids, offsets, known, event, source, row, tuple(tables))


def ordered_timeline(
    schema: Schema,
    name: str,
    entity_ids: pl.Series,
    counts: np.ndarray,
    known_us: np.ndarray,
    event_us: np.ndarray,
    fields: pl.DataFrame,
) -> Timeline:
    """A timeline of one source whose rows stand in its order already.

    Args:
        entity_ids: [E] strings, unique; counts: [E] int64 rows of each, one after another.
        known_us, event_us: [N] int64; fields: [N] columns of the source.
    """
    source = schema.source_names.index(name)
    frames = [fields if n == name else empty_source(schema, n) for n in schema.source_names]
    return Timeline(
        schema,
        entity_ids,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        known_us,
        event_us,
        np.full(len(known_us), source, dtype=np.int16),
        np.arange(len(known_us)),
        tuple(frames),
    )


def _merged(tables: list[pl.DataFrame], codes: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Entity, known, event, source and row of all events in timeline order."""
    counts = [len(frame) for frame in tables]
    known, event = (
        joined([frame[name].to_physical().cast(pl.Int64).to_numpy() for frame in tables])
        for name in ("known_at", "event_time")
    )
    entity = joined(codes)
    source = np.repeat(np.arange(len(tables), dtype=np.int16), counts)
    row = joined([np.arange(count) for count in counts])
    order = known_order(entity, known, event)
    columns = (entity, known, event, source, row)
    return columns if order is None else tuple(column[order] for column in columns)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Integers one after another; the part itself where only one has any."""
    some = [part for part in parts if len(part)] or parts[:1]
    return some[0] if len(some) == 1 else np.concatenate(some)


def known_order(entity: np.ndarray, known: np.ndarray, event: np.ndarray) -> np.ndarray | None:
    """Stable order by (entity, known, event); None where the rows stand in it already.

    Entity and known time fit one integer unless times spread over millennia; a stable sort then
    merges sources that are sorted each by itself, as a store returns them, in one pass.
    """
    if not len(known):
        return None
    low, high = int(known.min()), int(known.max())
    if (int(entity.max()) + 1) * (high - low + 1) >= 2**63:
        return np.lexsort((event, known, entity))
    key = entity.astype(np.int64)
    key *= high - low + 1
    key += known
    key -= low
    order = None
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, kind="stable")
        key = key[order]
    later = event if order is None else event[order]
    if ((key[1:] == key[:-1]) & (later[1:] < later[:-1])).any():
        return np.lexsort((event, known, entity))
    return order


def _merged_small(tables: list[pl.DataFrame], codes: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """`_merged` for few events."""
    counts = [len(frame) for frame in tables]
    known, event = (
        np.concatenate([frame[name].cast(pl.Int64).to_numpy() for frame in tables])
        for name in ("known_at", "event_time")
    )
    entity = np.concatenate(codes)
    source = np.repeat(np.arange(len(tables), dtype=np.int16), counts)
    row = np.concatenate([np.arange(count) for count in counts])
    # The sort is stable and the parts stand in order of source and row.
    order = np.lexsort((event, known, entity))
    return tuple(column[order] for column in (entity, known, event, source, row))


def entity_codes(*columns: pl.Series, grouped: bool = False) -> tuple[pl.Series, list[np.ndarray]]:
    """Entity ids as positions in their sorted union.

    Looks up one id per run of equal ids, so that columns sorted by entity cost next to nothing.

    Args:
        columns: id columns without nulls; anything that casts to String.
        grouped: keep the order of a single column whose equal ids stand together.
    Returns:
        ids: [E] strings, sorted, unique, over all columns.
        codes: per column [n] uint32 positions in `ids`.
    """
    if sum(map(len, columns)) <= SMALL:
        return _entity_codes_small(columns)
    runs, lengths = [], []
    for column in columns:
        run = _text(column).rle().struct
        runs.append(run.field("value"))
        lengths.append(run.field("len").to_numpy())
    some = [k for k, run in enumerate(runs) if len(run)]
    if len(some) == 1 and _ascending(runs[some[0]], grouped):
        found = [np.zeros(0, dtype=np.uint32) for _ in runs]
        size = len(runs[some[0]])
        found[some[0]] = np.repeat(np.arange(size, dtype=np.uint32), lengths[some[0]])
        return runs[some[0]].alias("entity_id"), found
    every = pl.concat(runs) if runs else pl.Series([], dtype=pl.String)
    ids = every.unique().sort().alias("entity_id")
    order = pl.Enum(ids)
    codes = [
        np.repeat(run.cast(order).to_physical().cast(pl.UInt32).to_numpy(), length)
        for run, length in zip(runs, lengths, strict=True)
    ]
    return ids, codes


def _ascending(column: pl.Series, any_order: bool) -> bool:
    """Whether strings stand sorted (or in any order) and none twice."""
    return (any_order or column.is_sorted()) and column.n_unique() == len(column)


def _entity_codes_small(columns: Sequence[pl.Series]) -> tuple[pl.Series, list[np.ndarray]]:
    texts = [_text(column).to_list() for column in columns]
    ids = sorted(set().union(*texts))
    place = {entity: code for code, entity in enumerate(ids)}
    codes = [np.array([place[t] for t in text], dtype=np.uint32) for text in texts]
    return pl.Series("entity_id", ids, dtype=pl.String), codes


def _text(column: pl.Series) -> pl.Series:
    return column if column.dtype == pl.String else column.cast(pl.String)


def cut(timeline: Timeline, entity_ids: pl.Series, as_of_us: np.ndarray) -> Cut:
    """The as-of cut: for each sample the range of its entity's events with known_at < as_of.

    Args:
        entity_ids: [S] strings.
        as_of_us: [S] int64.
    """
    return cut_entities(timeline, entity_index(timeline.entity_ids, entity_ids), as_of_us)


def cut_entities(timeline: Timeline, entity: np.ndarray, as_of_us: np.ndarray) -> Cut:
    """`cut` for who knows where the entities stand in the timeline: [S] int64, -1 for absent."""
    as_of_us = np.asarray(as_of_us, dtype=np.int64)
    known = entity >= 0
    safe = np.where(known, entity, 0)
    if len(timeline.entity_ids) == 0:
        zero = np.zeros(len(as_of_us), dtype=np.int64)
        return Cut(entity, zero, zero, as_of_us)
    start = np.where(known, timeline.offsets[safe], 0)
    end = np.where(known, timeline.offsets[safe + 1], 0)
    return Cut(entity, start, first_not_before(timeline.known_us, start, end, as_of_us), as_of_us)


def entity_index(entity_ids: pl.Series, wanted: pl.Series) -> np.ndarray:
    """[S] int64 position of each wanted id among the sorted unique `entity_ids`, -1 if absent."""
    wanted = _text(wanted)
    if len(entity_ids) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    if len(entity_ids) + len(wanted) <= SMALL:
        place = {entity: code for code, entity in enumerate(entity_ids.to_list())}
        return np.array([place.get(w, -1) for w in wanted.to_list()], dtype=np.int64)
    places = entity_ids.alias("id").to_frame().with_row_index("place")
    found = wanted.alias("id").to_frame().join(places, on="id", how="left", maintain_order="left")
    return found["place"].cast(pl.Int64).fill_null(-1).to_numpy()


def first_not_before(
    times: np.ndarray, start: np.ndarray, end: np.ndarray, bound: np.ndarray
) -> np.ndarray:
    """For each range [start, end) of sorted `times` the first position with times >= bound.

    A binary search over all ranges at once; no loop per range.
    """
    if len(start) == 1:
        place = times[start[0] : end[0]].searchsorted(bound[0])
        return start + place
    low, high = start.copy(), end.copy()
    while True:
        open_ = low < high
        if not open_.any():
            return low
        middle = (low + high) // 2
        probe = times[np.minimum(middle, len(times) - 1)]
        before = open_ & (probe < bound)
        low = np.where(before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)


def flatten(cut_: Cut) -> tuple[np.ndarray, np.ndarray]:
    """Histories laid out flat.

    Returns:
        position: [M] int64 timeline positions, sample after sample.
        sample: [M] int64 index of the sample each belongs to.
    """
    lengths = cut_.stop - cut_.start
    sample = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    position = np.arange(int(lengths.sum())) - np.repeat(first - cut_.start, lengths)
    return position, sample


@dataclass(frozen=True)
class ProfileHistory:
    """Profile rows sorted by (entity, known_at); the latest known row is an entity's profile.

    `arrays` holds them where a request brought them; `frame` is empty then.
    """

    entity_ids: pl.Series
    offsets: np.ndarray
    known_us: np.ndarray
    frame: pl.DataFrame
    arrays: RowTable | None = None

    @property
    def rows(self) -> pl.DataFrame | RowTable:
        """The rows, in whichever form they came."""
        return self.frame if self.arrays is None else self.arrays


def build_profile(frame: pl.DataFrame) -> ProfileHistory:
    """Sort profile rows.

    Args:
        frame: `entity_id`, `known_at` (Datetime us; null: known from the beginning), fields.
    """
    if len(frame) <= SMALL:
        return _build_profile_small(frame)
    frame = frame.with_columns(
        pl.col("entity_id").cast(pl.String),
        pl.col("known_at").to_physical().cast(pl.Int64).fill_null(ALWAYS_KNOWN).alias("_known"),
    ).sort("entity_id", "_known", maintain_order=True)
    ids, (code,) = entity_codes(frame["entity_id"])
    offsets = np.searchsorted(code, np.arange(len(ids) + 1)).astype(np.int64)
    return ProfileHistory(ids, offsets, frame["_known"].to_numpy(), frame.drop("_known"))


def _build_profile_small(frame: pl.DataFrame) -> ProfileHistory:
    if frame["entity_id"].dtype != pl.String:
        frame = frame.with_columns(pl.col("entity_id").cast(pl.String))
    ids, (code,) = entity_codes(frame["entity_id"])
    moments = frame["known_at"].cast(pl.Int64).to_list()
    known = np.array([ALWAYS_KNOWN if m is None else m for m in moments], dtype=np.int64)
    order = np.lexsort((known, code))
    if not np.array_equal(order, np.arange(len(order))):
        frame, known, code = frame[order], known[order], code[order]
    offsets = np.searchsorted(code, np.arange(len(ids) + 1)).astype(np.int64)
    return ProfileHistory(ids, offsets, known, frame)


def latest_profile(
    profile: ProfileHistory, entity_ids: pl.Series, as_of_us: np.ndarray
) -> np.ndarray:
    """[S] int64 row of profile.frame that was the latest known at as_of, -1 for none."""
    entity = entity_index(profile.entity_ids, entity_ids)
    known = entity >= 0
    if not len(profile.entity_ids):
        return np.full(len(entity), -1, dtype=np.int64)
    safe = np.where(known, entity, 0)
    start = np.where(known, profile.offsets[safe], 0)
    end = np.where(known, profile.offsets[safe + 1], 0)
    stop = first_not_before(profile.known_us, start, end, np.asarray(as_of_us, dtype=np.int64))
    return np.where(stop > start, stop - 1, -1)


def empty_source(schema: Schema, name: str) -> pl.DataFrame:
    """A frame of no events with the columns of a source."""
    kinds = tuple((field, spec.kind) for field, spec in schema.sources[name].fields.items())
    return _empty_frame(kinds).clone()


@lru_cache(maxsize=256)
def _empty_frame(kinds: tuple[tuple[str, str], ...]) -> pl.DataFrame:
    columns: dict[str, pl.DataType] = {
        "entity_id": pl.String(),
        "event_time": pl.Datetime("us"),
        "known_at": pl.Datetime("us"),
    }
    return pl.DataFrame(schema=columns | {field: storage_type(kind) for field, kind in kinds})


def storage_type(kind: str) -> pl.DataType:
    """How a kind of field is stored: numbers as Float64, booleans, times in us, else strings."""
    if kind in ("number", "money"):
        return pl.Float64()
    if kind == "boolean":
        return pl.Boolean()
    if kind == "timestamp":
        return pl.Datetime("us")
    return pl.String()
