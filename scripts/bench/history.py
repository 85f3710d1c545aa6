"""Cutting histories: 100,000 samples over ten million events.

    python scripts/bench/history.py [--events 10000000] [--entities 200000] [--samples 100000]

Builds the timeline from frames as a store gives them (sorted by entity and known_at) and from
frames in random order, and cuts. Prints seconds; the bar is 10 s for both steps together.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import polars as pl

from foundation.history import build_timeline, cut
from foundation.schema import Schema, schema_from_dict

BAR_SECONDS = 10.0
SPAN_US = 700 * 86_400_000_000
START_US = 1_600_000_000_000_000


def make_frame(events: int, entities: int) -> pl.DataFrame:
    """Random events, sorted as a store sorts them."""
    rng = np.random.default_rng(0)
    known = START_US + rng.integers(0, SPAN_US, events)
    entity = pl.Series(rng.integers(0, entities, events))
    return pl.DataFrame(
        {
            "entity_id": "c" + entity.cast(pl.String).str.zfill(8),
            "event_time": pl.Series(known).cast(pl.Datetime("us")),
            "known_at": pl.Series(known).cast(pl.Datetime("us")),
            "amount": rng.random(events),
        }
    ).sort("entity_id", "known_at", "event_time")


def measure(schema: Schema, frame: pl.DataFrame, samples: int, label: str) -> float:
    """Seconds for timeline and cut, printed."""
    rng = np.random.default_rng(1)
    begin = time.perf_counter()
    timeline = build_timeline(schema, {"pay": frame})
    built = time.perf_counter() - begin
    ids = timeline.entity_ids.sample(samples, with_replacement=True, seed=0)
    as_of = START_US + rng.integers(0, SPAN_US, samples)
    begin = time.perf_counter()
    made = cut(timeline, ids, as_of)
    done = time.perf_counter() - begin
    print(
        f"{label}: timeline of {len(timeline):,} events {built:.2f} s, cut of {samples:,} samples "
        f"{done:.2f} s ({int((made.stop - made.start).sum()):,} events in histories)"
    )
    return built + done


def main() -> None:
    """Measure and compare with the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--entities", type=int, default=200_000)
    parser.add_argument("--samples", type=int, default=100_000)
    given = parser.parse_args()
    schema = schema_from_dict({"sources": {"pay": {"fields": {"amount": {"kind": "money"}}}}})
    frame = make_frame(given.events, given.entities)
    total = measure(schema, frame, given.samples, "sorted as in the store")
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=0)
    measure(schema, shuffled, given.samples, "random order")
    print(
        f"history cut: {total:.2f} s, bar {BAR_SECONDS:.0f} s: "
        f"{'met' if total <= BAR_SECONDS else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
