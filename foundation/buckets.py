"""A store read bucket by bucket, in pieces of bounded size.

A bucket holds the entities of one hash value. A piece is some neighbouring entities of a bucket, so
few that their events stay near a limit, or several small buckets together: how much is held at once
does not grow with the store. Pieces depend on the store's version and on the entities asked for, on
nothing else.

Shapes: E entities asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from foundation import lakehouse
from foundation.event_index import EventIndex, Wanted, indexed
from foundation.history import (
    Timeline,
    build_timeline,
    empty_source,
    entity_index,
    ordered_timeline,
)
from foundation.slots import SHARED_SUFFIX
from foundation.store import EventStore


@dataclass(frozen=True)
class Piece:
    """Entities that are read together.

    Attributes:
        buckets: those they lie in; more than one only where the piece holds all of each.
        number: counts the pieces of the first bucket from 0.
        entity_ids: [E] strings, sorted, unique.
    """

    buckets: tuple[int, ...]
    number: int
    entity_ids: pl.Series

    @property
    def name(self) -> str:
        """Sorts as pieces do, such as `03-0001`."""
        return f"{self.buckets[0]:02d}-{self.number:04d}"

    @cached_property
    def wanted(self) -> Wanted:
        """The entities as an index looks them up, made once for all sources."""
        return Wanted(self.entity_ids)


@dataclass(frozen=True)
class PieceTimeline:
    """The events of one source and piece.

    Attributes:
        timeline: of F entities, in an order of its own.
        place: [E] int64: where each entity of the piece stands in it, -1 where it has no event.
        held: [F] int64 events the store holds of each, read or not.
    """

    timeline: Timeline
    place: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class BucketReader:
    """The event tables of a store at its version, opened once."""

    store: EventStore

    @cached_property
    def files(self) -> dict[str, dict[int, tuple[list[str], int]]]:
        """Source -> bucket -> its files and their rows."""
        out = {}
        for name in self.store.schema.source_names:
            listed = self.store.files(name).group_by("bucket").agg("file", pl.col("rows").sum())
            out[name] = {bucket: (files, rows) for bucket, files, rows in listed.iter_rows()}
        return out

    def held(self, bucket: int) -> int:
        """Rows in the files of a bucket, over all sources."""
        return sum(tables[bucket][1] for tables in self.files.values() if bucket in tables)

    def groups(self, buckets: Sequence[int], samples: Sequence[int], limit: int) -> list[range]:
        """Neighbouring buckets that make a piece together; each such piece costs as much to begin.

        Args:
            buckets: those with entities asked for. samples: rows asked for of each.
            limit: rows (and samples) of a group; a bucket with more is a group by itself.
        Returns:
            places in `buckets`.
        """
        out, load = [range(0, 0)], 0
        for k, (bucket, asked) in enumerate(zip(buckets, samples, strict=True)):
            more = max(self.held(bucket), asked)
            if load + more > limit and len(out[-1]):
                out.append(range(k, k))
                load = 0
            out[-1] = range(out[-1].start, k + 1)
            load += more
        return out

    def pieces(
        self, bucket: int, entity_ids: pl.Series, samples: np.ndarray, limit: int
    ) -> list[Piece]:
        """Cut entities of a bucket into pieces.

        Args:
            entity_ids: [E] strings of this bucket, sorted, unique.
            samples: [E] int64 rows asked for of each.
            limit: events (and samples) of a piece; an entity with more is a piece by itself.
        """
        if self.held(bucket) <= limit and samples.sum() <= limit:
            return [Piece((bucket,), 0, entity_ids)]
        load = np.maximum(self.count(bucket, entity_ids), samples)
        before = np.cumsum(load) - load
        first = np.flatnonzero(np.diff(before // limit, prepend=-1))
        ends = [*first[1:].tolist(), len(entity_ids)]
        return [
            Piece((bucket,), k, entity_ids[a:b])
            for k, (a, b) in enumerate(zip(first.tolist(), ends, strict=True))
        ]

    def count(self, bucket: int, entity_ids: pl.Series) -> np.ndarray:
        """[E] int64 events of entities of a bucket, over all sources."""
        out = np.zeros(len(entity_ids), dtype=np.int64)
        for name in self.files:
            piece = Piece((bucket,), 0, entity_ids)
            index, held = self._index_of(name), self._held(name, piece)
            counted = index.count(name, held[0], entity_ids) if index and held else None
            if counted is not None:
                out += counted
                continue
            rows = self._scan(name, piece, ["entity_id"])
            if rows is not None:
                found = rows.group_by("entity_id").len().collect(engine="streaming")
                out[entity_index(entity_ids, found["entity_id"])] += found["len"].to_numpy()
        return out

    def timeline(
        self, name: str, piece: Piece, fields: Collection[str], before_us: np.ndarray
    ) -> PieceTimeline:
        """A source's events of a piece as a timeline of their own, from the index if there is one.

        Args:
            fields: only these declared fields.
            before_us: [E] int64: events of each entity that become known later may be left out.
        """
        ids = piece.entity_ids
        place = np.full(len(ids), -1, dtype=np.int64)
        index, held = self._index_of(name), self._held(name, piece)
        if index is not None and held:
            columns = self._columns(name, fields)
            rows = index.rows(name, held, piece.wanted, before_us, columns)
            if rows is not None:
                place[rows.entity] = np.arange(len(rows.entity))
                timeline = ordered_timeline(
                    self.store.schema, name, ids[rows.entity], rows.counts, rows.known_us,
                    rows.event_us, rows.fields,
                )  # fmt: skip
                return PieceTimeline(timeline, place, rows.held)
        frames = {name: self.frame(name, piece, fields)}
        timeline = build_timeline(self.store.schema, frames, grouped=True)
        place[entity_index(ids, timeline.entity_ids)] = np.arange(len(timeline.entity_ids))
        return PieceTimeline(timeline, place, np.diff(timeline.offsets))

    @cached_property
    def index(self) -> EventIndex | None:
        """The store's index, where it is kept indexed."""
        return EventIndex(self.store.directory) if indexed(self.store.directory) else None

    def frame(self, name: str, piece: Piece, fields: Collection[str] | None = None) -> pl.DataFrame:
        """A source's events of a piece, as `history.build_timeline` takes them.

        The rows of an entity stand together, sorted; of several buckets one follows the other.

        Args:
            fields: only these declared fields; None reads all.
        """
        columns = ["entity_id", "event_time", "known_at", *self._columns(name, fields)]
        rows = self._scan(name, piece, columns)
        if rows is None:
            return empty_source(self.store.schema, name)
        frame = rows.with_columns(
            pl.col(pl.Datetime("us", "UTC")).dt.replace_time_zone(None)
        ).collect()
        if lakehouse.ROW in frame.columns:
            frame = lakehouse.in_order(frame, "known_at", "event_time")
        return frame

    def _columns(self, name: str, fields: Collection[str] | None) -> list[str]:
        """Columns of a table for declared fields: they and what is kept beside them."""
        columns = []
        for field, spec in self.store.schema.sources[name].fields.items():
            if fields is None or field in fields:
                columns += [field, *([field + SHARED_SUFFIX] if spec.kind == "identifier" else [])]
        return columns

    def _index_of(self, name: str) -> EventIndex | None:
        """The index of a table; None also where its files hold rows of later versions."""
        return self.index if self.store.below(name) is None else None

    def _held(self, name: str, piece: Piece) -> list[list[str]]:
        """The files of each bucket of a piece that has any."""
        return [self.files[name][b][0] for b in piece.buckets if b in self.files[name]]

    def _scan(self, name: str, piece: Piece, columns: list[str]) -> pl.LazyFrame | None:
        """Rows of a piece in file order; with the number of the row where files must be merged."""
        held = self._held(name, piece)
        if not held:
            return None
        files = [file for one in held for file in one]
        # A bucket in one file is in order, and an entity lies in one bucket.
        if any(len(one) > 1 for one in held) and len(columns) > 1:
            columns = [*columns, lakehouse.ROW]
        ids = piece.entity_ids
        rows = pl.scan_parquet(files, hive_partitioning=False, glob=False)
        below = self.store.below(name)
        if below is not None:
            rows = rows.filter(pl.col(lakehouse.ROW) < below)
        return rows.filter(
            pl.col("entity_id").is_between(pl.lit(ids[0]), pl.lit(ids[-1])),
            pl.col("entity_id").is_in(ids.implode()),
        ).select(columns)
