"""The features of one piece of a back-tracking job, and what was read to make them.

Aggregates that look at one source each are computed source by source, so that only one source is
held; everything else on the merged timeline of the piece. Both go through the one as-of cut and
the one code of aggregates, tokens and graphs.

Shapes: S samples of the piece, F feature columns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np
import polars as pl
from msgspec.structs import replace

from finetune.features import FeatureBuilder, Population
from foundation.aggregates import AggregateSpec
from foundation.buckets import BucketReader, Piece
from foundation.history import (
    ALWAYS_KNOWN,
    Cut,
    ProfileHistory,
    Timeline,
    build_timeline,
    cut,
    cut_entities,
    entity_index,
    latest_profile,
)
from foundation.slots import source_slots

AGGREGATES = ("aggregate", "profile", "context")
# What the command line calls the blocks, and the blocks of columns they stand for.
BLOCKS = {"aggregates": AGGREGATES, "forecasts": ("forecast",), "embeddings": ("embedding",)}
# Columns before the features: where a row comes from, and the proof that nothing later was read.
LEADING = ("row", "entity_id", "as_of", "label", "history_events", "latest_known_at")


@dataclass(frozen=True)
class Counts:
    """What a piece read.

    Attributes:
        samples: rows; thin_samples: those of them without an event before as_of.
        entities: different entities.
        events: events the store holds of these entities, each once.
        events_used: events with known_at < as_of, summed over samples.
        events_excluded: events of the sample's entity with known_at >= as_of, summed over samples.
        profile_rows: profile rows of these entities; of them every sample reads at most one.
        smallest_margin_us: least time between the latest row read and as_of; None without rows.
    """

    samples: int = 0
    thin_samples: int = 0
    entities: int = 0
    events: int = 0
    events_used: int = 0
    events_excluded: int = 0
    profile_rows: int = 0
    smallest_margin_us: int | None = None

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        a, b = asdict(self), asdict(other)
        margins = [m for m in (a.pop("smallest_margin_us"), b.pop("smallest_margin_us")) if m]
        return Counts(**{k: a[k] + b[k] for k in a}, smallest_margin_us=min(margins, default=None))


@dataclass
class Seen:
    """What the samples of a piece may see, gathered source by source."""

    used: np.ndarray
    held: np.ndarray
    latest_us: np.ndarray
    events: int = 0

    @classmethod
    def nothing(cls, size: int) -> Seen:
        """Before the first source."""
        zero = np.zeros(size, dtype=np.int64)
        return cls(zero, zero.copy(), np.full(size, ALWAYS_KNOWN))

    def add(self, timeline: Timeline, found: Cut, held: np.ndarray) -> None:
        """Count a timeline; every event of it stands in no other.

        Args:
            held: [E] events of its entities, also of those that are not in it.
        """
        self.events += int(held.sum())
        self.used += found.stop - found.start
        some = found.entity >= 0
        entity = np.where(some, found.entity, 0)
        if len(timeline.entity_ids):
            self.held += np.where(some, held[entity], 0)
        if len(timeline):
            last = timeline.known_us[np.maximum(found.stop - 1, 0)]
            last = np.where(found.stop > found.start, last, ALWAYS_KNOWN)
            np.maximum(self.latest_us, last, out=self.latest_us)


@dataclass(frozen=True)
class PieceFeatures:
    """How the features of a piece are made.

    Attributes:
        builder: None where only aggregates are asked for and there is no backbone.
        blocks: names of column blocks that are written.
    """

    reader: BucketReader
    spec: AggregateSpec
    builder: FeatureBuilder | None
    blocks: frozenset[str]

    @cached_property
    def plain(self) -> bool:
        """Whether only aggregates are made."""
        return self.builder is None or not self.blocks & {"forecast", "embedding"}

    @cached_property
    def by_source(self) -> dict[str, tuple[AggregateSpec, np.ndarray]] | None:
        """Source -> columns to be computed from it alone, and their places.

        Profile and context columns stand under the empty name. None where sources must be merged.
        """
        if not self.plain:
            return None
        names = self.reader.store.schema.source_names
        places: dict[int, list[int]] = {-1: [], **{k: [] for k in range(len(names))}}
        for j, column in enumerate(self.spec.columns):
            if column.block != "aggregate":
                places[-1].append(j)
                continue
            layouts = [column.layout] + [column.over_layout] * (column.over == "same")
            of = {self.spec.layouts[at].source for at in layouts}
            if len(of) > 1 or min(of) < 0 or column.over not in ("", "same"):
                return None
            places[of.pop()].append(j)
        out = {}
        for source, at in places.items():
            alone_layouts = tuple(la for la in self.spec.layouts if la.source == source >= 0)
            columns = [self.spec.columns[j] for j in at]
            if source >= 0:
                columns = [replace(c, layout=0, over_layout=0 if c.over else -1) for c in columns]
            alone = AggregateSpec(
                schema=self.spec.schema, layouts=alone_layouts, columns=tuple(columns)
            )
            out["" if source < 0 else names[source]] = (alone, np.array(at, dtype=np.int64))
        return out

    @cached_property
    def fields(self) -> dict[str, set[str]]:
        """Source -> declared fields that the aggregates read."""
        schema = self.reader.store.schema
        out: dict[str, set[str]] = {}
        for layout in self.spec.layouts:
            if layout.source >= 0:
                of = {s.name: s.field for s in source_slots(schema, layout.name)}
                slots = [n for row in layout.numbers for n in (row.slot, row.other)]
                slots += [row.slot for row in layout.categories]
                out[layout.name] = {of[slot] for slot in slots if slot}
        return out

    def make(self, piece: Piece, samples: pl.DataFrame) -> tuple[pl.DataFrame, Counts]:
        """Features of the samples of a piece.

        Args:
            samples: [S] `row`, `entity_id`, `as_of`, `label` and context columns, sorted by row.
        Returns:
            the columns `LEADING` and the features (Float32), and what was read.
        """
        store = self.reader.store
        profile = None
        if store.schema.profile is not None:
            profile = store.profile_history(entities=piece.entity_ids)
        as_of_us = samples["as_of"].to_physical().cast(pl.Int64).to_numpy()
        seen = Seen.nothing(len(samples))
        if self.by_source is None:
            names, values = self._merged(piece, samples, as_of_us, profile, seen)
        else:
            values = self._source_by_source(piece, samples, as_of_us, profile, seen)
            names = self.spec.names
        if profile is not None:
            at = latest_profile(profile, samples["entity_id"], as_of_us)
            known = profile.known_us[np.maximum(at, 0)] if len(profile.frame) else at
            np.maximum(seen.latest_us, np.where(at >= 0, known, ALWAYS_KNOWN), out=seen.latest_us)
        dated = seen.latest_us > ALWAYS_KNOWN
        latest = pl.Series("latest_known_at", seen.latest_us).cast(pl.Datetime("us"))
        leading = samples.select("row", "entity_id", "as_of", "label").with_columns(
            pl.Series("history_events", seen.used),
            latest.set(pl.Series(~dated), None),
        )
        margin = (as_of_us - seen.latest_us)[dated]
        counts = Counts(
            samples=len(samples),
            thin_samples=int((seen.used == 0).sum()),
            entities=len(piece.entity_ids),
            events=seen.events,
            events_used=int(seen.used.sum()),
            events_excluded=int((seen.held - seen.used).sum()),
            profile_rows=0 if profile is None else len(profile.frame),
            smallest_margin_us=int(margin.min()) if len(margin) else None,
        )
        features = pl.DataFrame([pl.Series(n, v) for n, v in zip(names, values.T, strict=True)])
        return leading.hstack(features), counts

    def _source_by_source(
        self,
        piece: Piece,
        samples: pl.DataFrame,
        as_of_us: np.ndarray,
        profile: ProfileHistory | None,
        seen: Seen,
    ) -> np.ndarray:
        schema, ids = self.reader.store.schema, samples["entity_id"]
        out = np.full((len(samples), len(self.spec.columns)), np.nan, dtype=np.float32)
        context = samples if schema.context else None
        entity = entity_index(piece.entity_ids, ids)
        before_us = np.full(len(piece.entity_ids), ALWAYS_KNOWN)
        np.maximum.at(before_us, entity, as_of_us)
        for name, (spec, places) in (self.by_source or {}).items():
            if name:
                read = self.reader.timeline(name, piece, self.fields.get(name, ()), before_us)
                timeline = read.timeline
                found = cut_entities(timeline, read.place[entity], as_of_us)
                seen.add(timeline, found, read.held)
            else:
                timeline = build_timeline(schema, {})
                found = cut(timeline, ids, as_of_us)
            if len(places):
                out[:, places] = spec.compute(timeline, found, profile, ids, context)
        return out

    def _merged(
        self,
        piece: Piece,
        samples: pl.DataFrame,
        as_of_us: np.ndarray,
        profile: ProfileHistory | None,
        seen: Seen,
    ) -> tuple[tuple[str, ...], np.ndarray]:
        schema, ids = self.reader.store.schema, samples["entity_id"]
        frames = {
            name: self.reader.frame(name, piece, self.fields.get(name, ()) if self.plain else None)
            for name in schema.source_names
        }
        timeline = build_timeline(schema, frames)
        found = cut(timeline, ids, as_of_us)
        seen.add(timeline, found, np.diff(timeline.offsets))
        context = samples.select(list(schema.context)) if schema.context else None
        if self.plain or self.builder is None:
            return self.spec.names, self.spec.compute(timeline, found, profile, ids, context)
        population = Population(timeline, profile, ids, as_of_us, context)
        table = self.builder.table(population, self.blocks)
        keep = [j for j, c in enumerate(table.columns) if c.block in self.blocks]
        return tuple(table.columns[j].name for j in keep), table.values[:, keep]


def counts_from(data: dict[str, int | None]) -> Counts:
    """Counts as they were written."""
    return Counts(**{f.name: data[f.name] for f in fields(Counts)})  # type: ignore[arg-type]
