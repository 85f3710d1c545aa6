"""A prepared set as the benchmark reads it: samples, splits, draws, stores of the two tracks.

Track H (historical outcomes): what happened before the earliest test as_of is free to read, of all
entities but those of the test. Track S (strict): nothing at or after a pool entity's own as_of is
read. Where no pool entity has an event in between, the tracks are one.

Shapes: S samples (pool and test together), E entities.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from foundation.errors import DataError, SampleError
from foundation.schema import Schema, load_schema
from foundation.selection import chosen_entities
from foundation.store import EventStore, import_events
from scripts.prepared import MIN_BADS, draw_labels, prepare_set, schema_file, tables

ROOT = Path(__file__).resolve().parents[3]
SETS = ("uci", "loans", "cards", "bpic", "journey", "german")
# Of pragmatiq's simulator: measured when they are named, and in no mean.
SYNTHETIC = ("synthetic_default", "synthetic_churn")
SIZES = (100, 200, 300, 500, 1000)
# A split drawn anew for every draw varies by itself, so more of its pool may be drawn.
SHARE, SHARE_OF_REPEATS = 1 / 3, 2 / 3
RULES = ("stratified", "plain")


@dataclass(frozen=True)
class Split:
    """Rows of the samples that labels may be drawn from, and those that are scored."""

    pool: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Reading:
    """Events that may be learnt from: known before `until_us`, of all entities but `excluded`."""

    until_us: int
    excluded: pl.Series

    @property
    def excludes(self) -> pl.Series | None:
        """The excluded entities, None where there are none."""
        return self.excluded if len(self.excluded) else None


@dataclass(frozen=True)
class BenchSet:
    """One set, ready to be measured.

    Attributes:
        folder: working folder with schema, tables and stores.
        samples: [S] entity_id, as_of, label.
        splits: one, or one per draw.
        digest: of the set's files and schema.
        strict_differs: whether the two tracks read different events.
    """

    name: str
    folder: Path
    schema: Schema
    meta: dict[str, Any]
    samples: pl.DataFrame
    splits: tuple[Split, ...]
    digest: str
    strict_differs: bool

    def split(self, draw: int) -> Split:
        """The split of a draw."""
        return self.splits[draw % len(self.splits)]

    @cached_property
    def y(self) -> np.ndarray:
        """[S] float64 labels."""
        return self.samples["label"].to_numpy().astype(np.float64)

    @cached_property
    def as_of_us(self) -> np.ndarray:
        """[S] int64 microseconds, UTC."""
        return self.samples["as_of"].cast(pl.Datetime("us")).to_physical().to_numpy()

    @property
    def tests(self) -> np.ndarray:
        """Rows that are tested in every draw; none where the split changes with the draw."""
        return self.splits[0].test if len(self.splits) == 1 else np.zeros(0, np.int64)

    @property
    def until_us(self) -> int:
        """The earliest as_of of any evaluated sample."""
        rows = np.unique(np.concatenate([s.test for s in self.splits]))
        return int(self.as_of_us[rows].min())

    @property
    def synthetic(self) -> bool:
        """Whether a simulator made it."""
        return bool(self.meta.get("synthetic", False))

    @property
    def time_split(self) -> bool:
        """Whether every test sample is decided after the pool's earliest and after most of it."""
        split = self.splits[0]
        early, late = self.as_of_us[split.pool], self.as_of_us[split.test]
        return bool(early.max() < late.min())

    @property
    def tracks(self) -> tuple[str, ...]:
        """The tracks that differ; S alone stands for both where they do not."""
        return ("H", "S") if self.strict_differs else ("S",)

    def track(self, wanted: str) -> str:
        """The track's name in the cache."""
        return wanted if self.strict_differs else "S"

    @property
    def test_entities(self) -> pl.Series:
        """Entities that nothing may be learnt from; empty where the splits take turns."""
        return self.samples["entity_id"][self.tests].unique().sort()

    def sizes(self, wanted: tuple[int, ...]) -> list[int]:
        """The label counts that the pool allows."""
        share = SHARE if len(self.splits) == 1 else SHARE_OF_REPEATS
        return [n for n in wanted if n <= share * len(self.splits[0].pool)]

    def draw(self, n: int, k: int, rule: str = "stratified") -> np.ndarray:
        """Rows of n labels of draw k, as `scripts/prepared.py` draws them.

        Raises:
            SampleError: fewer than ten bads: the cell is left out.
        """
        pool = self.split(k).pool
        frame = self.samples[pool].with_columns(pl.Series("at", pool))
        return draw_labels(frame, n, k, rule == "stratified")["at"].to_numpy()

    def possible(self, n: int, k: int, rule: str) -> bool:
        """Whether the draw has enough bads."""
        try:
            self.draw(n, k, rule)
        except SampleError:
            return False
        return True

    def store(self) -> EventStore:
        """All events of the set; imported on first use."""
        store = self.folder / "store"
        if not (store / "schema.yaml").is_file():
            making = store.with_name("store.part")
            shutil.rmtree(making, ignore_errors=True)
            import_events(self.folder / "files" / "schema.yaml", making)
            os.replace(making, store)
        return EventStore.open(store)

    def reading(self, track: str) -> Reading:
        """What may be learnt from on a track.

        Strictly there are two ways of hiding what follows a pool entity's as_of: to stop at the
        earliest as_of of all, or to leave pool entities out; the one that leaves more events is
        taken. Cutting each entity at its own as_of would not do: what was cut off would look like
        silence to whatever learns to forecast.
        """
        outside = self.test_entities
        if track == "H" or not self.strict_differs:
            return Reading(self.until_us, outside)
        pool = self.samples["entity_id"][self.splits[0].pool].unique()
        earlier = Reading(int(self.as_of_us.min()), outside)
        fewer = Reading(self.until_us, pl.concat([outside, pool]).unique().sort())
        return max(earlier, fewer, key=self._events_of)

    def _events_of(self, reading: Reading) -> int:
        if self.store().entity_ids().is_in(reading.excluded.implode()).all():
            return 0
        members = chosen_entities(self.store(), None, reading.excludes)
        return len(self.store().timeline(entities=members, until_us=reading.until_us))

    def _time_column(self, file: str) -> str | None:
        for source in self.schema.sources.values():
            if source.path == file:
                return source.event_time
        return (self.schema.profile.valid_time or None) if self.schema.profile else None

    def _after_as_of(self, frame: pl.DataFrame, time: str) -> pl.Series:
        """[N] rows of pool entities at or after the entity's last pool as_of."""
        pool = self.samples[self.splits[0].pool]
        ends = pool.group_by("entity_id").agg(pl.col("as_of").min().alias("end"))
        at = frame.select("entity_id", time).join(ends, "entity_id", "left", maintain_order="left")
        return (at[time] >= at["end"]).fill_null(False)


def open_set(name: str, data: Path, work: Path) -> BenchSet:
    """Read a prepared set and lay out its working folder.

    Args:
        data: folder of the prepared sets. work: the benchmark's working folder.
    Raises:
        DataError: no such set.
    """
    source = data / name
    if not (source / "meta.json").is_file():
        where = (
            "scripts/synthetic.py writes it from pragmatiq's simulator"
            if name in SYNTHETIC
            else "set RISKFM_DATA to the data folder"
        )
        raise DataError(f"{source}: no such prepared set; {where}")
    config = schema_file(source)
    digest = _digest([*source.iterdir(), *([config] if config else [])])
    folder = work / "sets" / f"{name}-{digest[:8]}"
    files = folder / "files"
    if not files.is_dir():
        making = files.with_name("files.part")
        shutil.rmtree(making, ignore_errors=True)
        labels = pl.read_parquet(source / "pool.parquet")["label"]
        prepare_set(data, name, making, n=_enough_labels(labels), stratified=True)
        os.replace(making, files)
    schema = load_schema(files / "schema.yaml")
    meta = json.loads((source / "meta.json").read_text(encoding="utf-8"))
    pool, test = (pl.read_parquet(source / f"{part}.parquet") for part in ("pool", "test"))
    samples = pl.concat([pool, test], how="vertical_relaxed").select("entity_id", "as_of", "label")
    split = Split(np.arange(len(pool)), np.arange(len(pool), len(samples)))
    splits: tuple[Split, ...] = (split,)
    if (source / "splits.parquet").is_file():
        splits = _repeated_splits(pl.read_parquet(source / "splits.parquet"), samples)
    made = BenchSet(name, folder, schema, meta, samples, splits, digest, False)
    return BenchSet(
        name, folder, schema, meta, samples, splits, digest, _tracks_differ(made, files)
    )


def _enough_labels(labels: pl.Series, least: int = 300) -> int:
    """300, or as many as hold ten bads where bads are rare; all of a pool that has fewer."""
    share = labels.sum() / len(labels)
    return min(len(labels), max(least, math.ceil((MIN_BADS + 0.5) / max(share, 1e-9))))


def _tracks_differ(bench: BenchSet, files: Path) -> bool:
    for name in tables(bench.schema, bench.meta):
        time = bench._time_column(name)
        if time is None or len(bench.splits) > 1:
            continue
        if bench._after_as_of(pl.read_parquet(files / name), time).any():
            return True
    return False


def _repeated_splits(table: pl.DataFrame, samples: pl.DataFrame) -> tuple[Split, ...]:
    """Splits of a table `repeat, entity_id, is_test`."""
    at = samples.with_row_index("at").select("entity_id", "at")
    joined = table.join(at, "entity_id", "left", maintain_order="left")
    out = []
    for number in sorted(table["repeat"].unique().to_list()):
        one = joined.filter(pl.col("repeat") == number)
        sides = [one.filter(pl.col("is_test") == side)["at"].to_numpy() for side in (False, True)]
        out.append(Split(*(side.astype(np.int64) for side in sides)))
    return tuple(out)


def _digest(files: list[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(set(files), key=lambda file: (file.suffix == ".yaml", file)):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
