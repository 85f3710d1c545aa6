"""Events as sequence models of other libraries read them: four Parquet files, no library needed.

    pretrain.parquet          user_id, at, source, one column per source and field
    pretrain_profile.parquet  user_id, as_of, profile fields
    samples.parquet, samples_profile.parquet  the same of the benchmark's samples

Pretraining reads what `Reading` allows: events known before `until`, without the test's entities.
A sample is a user of its own, `s` and its row, with the events known before its as_of.

Shapes: S samples, N events.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from foundation.history import Timeline, cut, latest_profile
from foundation.selection import chosen_entities
from scripts.bench.fewlabels.sets import BenchSet

# Most recent events of a sample, and of an entity in pretraining.
SAMPLE_EVENTS, PRETRAIN_EVENTS = 512, 2_000
DAY_US = 86_400_000_000


def write_sequences(bench: BenchSet, track: str, folder: Path) -> None:
    """Write the four files of a set and track.

    Args:
        folder: an empty folder.
    """
    reading, store = bench.reading(track), bench.store()
    members = chosen_entities(store, None, reading.excludes)
    timeline = store.timeline(entities=members, until_us=reading.until_us)
    ids = timeline.entity_ids
    users = pl.Series("user_id", [f"e{i}" for i in range(len(ids))], dtype=pl.String)
    start, stop = timeline.offsets[:-1], timeline.offsets[1:]
    events = _events(timeline, users, start, stop, PRETRAIN_EVENTS)
    events.write_parquet(folder / "pretrain.parquet")
    until = np.full(len(ids), reading.until_us)
    frame = _profiles(bench, ids, users, until, reading.until_us)
    frame.write_parquet(folder / "pretrain_profile.parquet")

    ids = bench.samples["entity_id"]
    users = pl.Series("user_id", [f"s{i}" for i in range(len(ids))], dtype=pl.String)
    timeline = store.timeline(entities=ids.unique())
    part = cut(timeline, ids, bench.as_of_us)
    events = _events(timeline, users, part.start, part.stop, SAMPLE_EVENTS)
    events.write_parquet(folder / "samples.parquet")
    frame = _profiles(bench, ids, users, bench.as_of_us, None)
    frame.write_parquet(folder / "samples_profile.parquet")


def _events(
    timeline: Timeline, users: pl.Series, start: np.ndarray, stop: np.ndarray, most: int
) -> pl.DataFrame:
    """Events start:stop of each user, by user and time; of more than `most` the last ones."""
    start = np.maximum(start, stop - most)
    lengths = stop - start
    first = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(users)), lengths)
    at = np.repeat(start - first, lengths) + np.arange(lengths.sum())
    parts = []
    for i, (name, source) in enumerate(timeline.schema.sources.items()):
        mine = np.flatnonzero(timeline.source[at] == i)
        frame = timeline.frames[i].select(list(source.fields))[timeline.row[at[mine]]]
        times = timeline.event_us[at[mine]]
        columns = [
            pl.Series("_owner", owner[mine]),
            pl.Series("_place", mine),
            pl.Series("at", times),
            pl.Series("source", [name], dtype=pl.String).new_from_index(0, len(mine)),
            *_readable(frame, times, f"{name}."),
        ]
        parts.append(pl.DataFrame(columns))
    out = pl.concat(parts, how="diagonal").sort("_owner", "at", "_place")
    return out.select(users[out["_owner"]].alias("user_id"), pl.exclude("_owner", "_place"))


def _profiles(
    bench: BenchSet, ids: pl.Series, users: pl.Series, as_of_us: np.ndarray, until_us: int | None
) -> pl.DataFrame:
    """[S] the latest profile each user had at its as_of; null where it had none."""
    columns = [users, pl.Series("as_of", as_of_us)]
    if bench.schema.profile_fields:
        history = bench.store().profile_history(entities=ids.unique(), until_us=until_us)
        rows = latest_profile(history, ids, as_of_us)
        frame = history.frame.select(list(bench.schema.profile_fields))
        picked = pl.DataFrame({"_at": rows}).join(
            frame.with_row_index("_at").cast({"_at": pl.Int64}),
            on="_at",
            how="left",
            maintain_order="left",
        )
        columns += _readable(picked.drop("_at"), as_of_us, "")
    return pl.DataFrame(columns)


def _readable(frame: pl.DataFrame, times: np.ndarray, prefix: str) -> list[pl.Series]:
    """Numbers as Float64, dates as days from `times`, everything else as text."""
    out = []
    for column in frame.iter_columns():
        if column.dtype.is_temporal():
            days = (column.cast(pl.Datetime("us")).to_physical() - pl.Series(times)) / DAY_US
            made = days.cast(pl.Float64)
        elif column.dtype.is_numeric():
            made = column.cast(pl.Float64)
        else:
            made = column.cast(pl.String)
        out.append(made.alias(f"{prefix}{column.name}"))
    return out
