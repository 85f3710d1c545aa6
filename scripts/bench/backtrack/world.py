"""A synthetic store for the back-tracking benchmark, made bucket by bucket.

Three sources over 24 months; every event becomes known up to three days after it happened, a few
of them weeks late. Memory stays at one bucket, whatever the number of events.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from foundation import lakehouse
from foundation.aggregates import AggregateSpec
from foundation.columns import AggregateColumn
from foundation.panels import NumberRow, SourceLayout
from foundation.schema import Schema, fingerprint, schema_from_dict
from foundation.store import EventStore

START_US = 1_640_995_200_000_000  # 2022-01-01
SPAN_DAYS = 730
WINDOWS = (30, 90, 180)
# Source -> its share of the events and the number that is aggregated.
SOURCES = {"card": (0.6, "amount"), "login": (0.3, "seconds"), "repayment": (0.1, "paid")}


def world_schema() -> Schema:
    """Three sources, each with a number and a category."""
    return schema_from_dict(
        {
            "name": "backtracking",
            "sources": {
                name: {"fields": {number: {"kind": "number"}, "kind": {"kind": "category"}}}
                for name, (_, number) in SOURCES.items()
            },
            "windows_days": list(WINDOWS),
        }
    )


def world_spec(schema: Schema) -> AggregateSpec:
    """The 39 columns everyone computes: 13 a source, in the order of `column_names`."""
    layouts, columns = [], []
    for at, name in enumerate(schema.source_names):
        number = SOURCES[name][1]
        row = NumberRow(name=number, kind="slot", slot=number, field=number)
        layouts.append(SourceLayout(source=at, name=name, numbers=(row,)))
        for stat in ("count", "sum", "mean", "max"):
            columns += [
                AggregateColumn(
                    name=f"{name} {stat} {w}d", layout=at, stat=stat, window=f"{w}d", group=name
                )
                for w in WINDOWS
            ]
        columns.append(
            AggregateColumn(name=f"{name} since_last", layout=at, stat="since_event", group=name)
        )
    return AggregateSpec(schema=fingerprint(schema), layouts=tuple(layouts), columns=tuple(columns))


def make_store(directory: Path, events: int, entities: int, seed: int = 0) -> EventStore:
    """Make the store unless it is there; events are spread over buckets as entities are."""
    schema = world_schema()
    if (directory / "imports" / "synthetic.json").exists():
        return EventStore.open(directory)
    EventStore.create(directory, schema)
    rng = np.random.default_rng(seed)
    ids = "c" + pl.int_range(entities, eager=True).cast(pl.String).str.zfill(9)
    bucket = lakehouse.buckets_of(ids)
    pins = {name: {"version": 0, "rows": 0} for name in SOURCES}
    for b in range(lakehouse.BUCKETS):
        here = ids.filter(pl.Series(bucket == b))
        for name, (share, number) in SOURCES.items():
            frame = source_frame(here, round(events * share * len(here) / entities), number, rng)
            pin = pins[name]
            version = lakehouse.append(
                directory / "tables" / name, pin["version"], frame, pin["rows"]
            )
            pins[name] = {"version": version, "rows": pin["rows"] + len(frame)}
    record = {"digest": "synthetic", "version": 1, "tables": pins, "summary": []}
    (directory / "imports" / "synthetic.json").write_text(json.dumps(record), encoding="utf-8")
    return EventStore.open(directory)


def source_frame(ids: pl.Series, rows: int, number: str, rng: np.random.Generator) -> pl.DataFrame:
    """Random events of some entities, a fiftieth of them known weeks late."""
    event = START_US + rng.integers(0, SPAN_DAYS * 86_400, rows) * 1_000_000
    delay = rng.integers(0, 3 * 86_400, rows)
    late = rng.random(rows) < 0.02
    delay[late] += rng.integers(7 * 86_400, 60 * 86_400, int(late.sum()))
    kinds = pl.Series([f"kind {k}" for k in range(20)])
    return pl.DataFrame(
        {
            "entity_id": ids[rng.integers(0, len(ids), rows)],
            "event_time": pl.Series(event).cast(pl.Datetime("us")),
            "known_at": pl.Series(event + delay * 1_000_000).cast(pl.Datetime("us")),
            number: np.round(rng.lognormal(3, 1, rows), 2),
            "kind": kinds[rng.integers(0, 20, rows)],
        }
    )


def make_samples(path: Path, entities: int, samples: int, seed: int = 1) -> None:
    """Samples of random entities at random moments of the months 7 to 24."""
    rng = np.random.default_rng(seed)
    entity = pl.Series(rng.integers(0, entities, samples)).cast(pl.String).str.zfill(9)
    as_of = START_US + rng.integers(180 * 86_400, SPAN_DAYS * 86_400, samples) * 1_000_000
    pl.DataFrame(
        {"entity_id": "c" + entity, "as_of": pl.Series(as_of).cast(pl.Datetime("us"))}
    ).write_parquet(path)


def column_names() -> list[str]:
    """Names of the 39 columns."""
    return [c.name for c in world_spec(world_schema()).columns]
