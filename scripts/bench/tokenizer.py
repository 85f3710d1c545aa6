"""Measure the tokenizer: `python scripts/bench/tokenizer.py [--events 2000000]`.

Prints events per second of encoding a synthetic timeline of one source with ten mixed fields, the
same for a plain dictionary encoding of the columns in polars, and the milliseconds of encoding one
request of 256 events over three sources.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from foundation.history import build_timeline, cut
from foundation.schema import Schema, schema_from_dict
from foundation.tokenizer import Tokenizer

KINDS = {
    "merchant": "category",
    "channel": "category",
    "status": "category",
    "country": "category",
    "card_present": "boolean",
    "amount": "money",
    "balance": "money",
    "fee": "money",
    "installments": "number",
    "due": "timestamp",
}
YEAR_US = 365 * 86_400_000_000


def columns(events: int, entities: int, rng: np.random.Generator) -> pl.DataFrame:
    """Events with ten mixed fields, a tenth of the amounts missing, half of the fees zero."""

    def words(count: int, prefix: str) -> pl.Series:
        values = pl.Series([f"{prefix}{i}" for i in range(count)])
        return values[np.minimum(rng.geometric(4 / count, events) - 1, count - 1)]

    at = pl.Series(rng.integers(0, 3 * YEAR_US, events) + 1_600_000_000_000_000)
    amount = pl.Series(np.round(rng.lognormal(3, 1.5, events), 2))
    return pl.DataFrame(
        {
            "entity_id": words(entities, "c") if entities > 1 else pl.Series(["c"] * events),
            "event_time": at.cast(pl.Datetime("us")),
            "known_at": (at + 3_600_000_000).cast(pl.Datetime("us")),
            "merchant": words(800, "shop "),
            "channel": words(5, "channel "),
            "status": words(9, ""),
            "country": words(60, "country "),
            "card_present": pl.Series(rng.random(events) < 0.6),
            "amount": pl.select(
                pl.when(pl.Series(rng.random(events) > 0.1)).then(amount)
            ).to_series(),
            "balance": np.round(rng.normal(500, 2000, events), 2),
            "fee": np.where(
                rng.random(events) < 0.5, 0.0, np.round(rng.lognormal(0, 1, events), 1)
            ),
            "installments": rng.integers(0, 12, events).astype(np.float64),
            "due": (at + rng.integers(0, 40, events) * 86_400_000_000).cast(pl.Datetime("us")),
        }
    )


def schema(sources: int, time_zone: str) -> Schema:
    """So many sources with the same ten fields."""
    fields = {name: {"kind": kind} for name, kind in KINDS.items()}
    return schema_from_dict(
        {
            "time_zone": time_zone,
            "sources": {f"source{i}": {"fields": fields} for i in range(sources)},
        }
    )


def best(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def dictionary_encoding(path: Path) -> pl.DataFrame:
    """What a reader would do at least: scan the columns, categories to dictionary codes."""
    texts = [name for name, kind in KINDS.items() if kind == "category"]
    return (
        pl.scan_parquet(path)
        .select(list(KINDS))
        .with_columns(pl.col(texts).cast(pl.Categorical).to_physical())
        .collect()
    )


def figure(
    what: str, value: float, unit: str, on: str, bar: float | None = None, better: str = "lower"
) -> None:
    """Print one figure as `run_all` reads it."""
    row: dict[str, object] = {"what": what, "value": value, "unit": unit, "on": on}
    print(json.dumps(row | ({"bar": bar, "better": better} if bar else {})), flush=True)


def measure_store(events: int, time_zone: str, times: int) -> None:
    """Offline speed over a timeline of `events`, about 100 an entity."""
    rng = np.random.default_rng(0)
    frame = columns(events, max(events // 100, 1), rng)
    timeline = build_timeline(schema(1, time_zone), {"source0": frame})
    began = time.perf_counter()
    tokenizer = Tokenizer.fit(timeline.schema, timeline)
    fit = time.perf_counter() - began
    seconds = best(lambda: tokenizer.encode_events(timeline), times)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        frame.write_parquet(path)
        plain = best(lambda: dictionary_encoding(path), times)
    on = f"n={events:,} events, {len(KINDS)} fields, {time_zone}"
    figure("tokenizer fit", round(fit, 2), "s", on)
    figure("tokenizer encode", round(seconds, 2), "s", on)
    figure("tokenizer encode rate", round(events / seconds), "events/s", on, 1_000_000, "higher")
    figure("parquet scan and dictionary encoding in polars", round(plain, 2), "s", on)


def measure_request(time_zone: str, times: int) -> None:
    """Online speed: 256 events of one entity over three sources of ten fields."""
    rng = np.random.default_rng(1)
    declared = schema(3, time_zone)
    many = {name: columns(20_000, 200, rng) for name in declared.source_names}
    tokenizer = Tokenizer.fit(declared, build_timeline(declared, many))
    sizes = zip(declared.source_names, (86, 85, 85), strict=True)
    request = build_timeline(declared, {n: columns(size, 1, rng) for n, size in sizes})
    as_of = np.array([request.known_us.max() + 1])
    history = cut(request, request.entity_ids, as_of)
    tokenizer.encode_events(request)  # builds the tables
    run = [best(lambda: tokenizer.encode_events(request), 1) for _ in range(times)]
    query = [best(lambda: tokenizer.encode_query(history, request), 1) for _ in range(times)]
    on = f"{len(request)} events, 3 sources of {len(KINDS)} fields, {times} requests"
    figure("tokenizer request p50", round(float(np.median(run)) * 1e3, 2), "ms", on, 2.0)
    figure("tokenizer query p50", round(float(np.median(query)) * 1e3, 2), "ms", on)


def main() -> None:
    """Measure and print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--time-zone", default="Asia/Shanghai")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    measure_store(options.events, options.time_zone, options.times)
    measure_request(options.time_zone, 100 * options.times)


if __name__ == "__main__":
    main()
