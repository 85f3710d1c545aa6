"""Back-tracking against DuckDB and polars: the same features from the same files.

    python scripts/bench/backtracking.py [--events 10000000] [--samples 10000] [--work DIR]
    python scripts/bench/backtracking.py --events 100000000 --samples 100000      # full size

Synthetic events of 24 months and three sources, made bucket by bucket into a store: 39 columns,
per source counts, sums, means and largest values over 30, 90 and 180 days and the days since the
last event, as known before as_of. Every contender reads the store's Parquet files in a process of
its own with two threads; the best of its formulations counts, and all results are compared. riskfm
runs with the store's index (`riskfm events index`), which is made once and timed by itself, and
without. The clock runs without imports. Memory: peak of the process, and its growth when events
double with the limit of events held at once unchanged. Needs the extra `bench` (duckdb).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPPONENTS = {
    "DuckDB": ("duckdb range join", "duckdb asof and range"),
    "polars": ("polars join, streaming", "polars join, in memory", "polars join_where"),
}
SPEED_BAR, MEMORY_BAR_GIB, GROWTH_BAR = 2.0, 4.0, 1.15
# Of how many events the speed is asked: of few, what each piece costs to begin outweighs the rest.
FULL_EVENTS = 100_000_000


def main() -> int:
    """Measure and print figures and a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--entities", type=int, help="default: a two-hundredth of the events")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=2, help="runs each, the fastest counts")
    parser.add_argument("--work", type=Path, help="keep the store here; default: a temporary one")
    parser.add_argument("--no-growth", action="store_true", help="do not measure half the events")
    given = parser.parse_args()
    if importlib.util.find_spec("duckdb") is None:
        print("duckdb is not installed; pip install 'riskfm[bench]' brings it")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        return compare(given, given.work or Path(scratch))


def compare(given: argparse.Namespace, work: Path) -> int:
    """All contenders on one world; 1 when their results differ."""
    entities = given.entities or max(given.events // 200, 16)
    world = work / f"{given.events}-{entities}-{given.samples}"
    size = {"events": given.events, "entities": entities, "samples": given.samples}
    step("world", world, given.threads, **size)
    index = step("index", world, given.threads)
    contenders = {"riskfm": "riskfm", "riskfm-without": "riskfm-without"}
    contenders |= {what: name for name, formulations in OPPONENTS.items() for what in formulations}
    # By turns: the pace of a shared machine changes within minutes.
    turns = [{what: step(what, world, given.threads) for what in contenders}
             for _ in range(given.times)]  # fmt: skip
    rows = [
        min((turn[what] for turn in turns), key=lambda run: run["seconds"])
        | {"what": what, "of": name}
        for what, name in contenders.items()
    ]
    differing = step("check", world, given.threads)["differing"]
    on = f"{given.samples:,} samples, {given.events:,} events, {entities:,} entities"
    on += f", {given.threads} threads"
    for row in rows:
        print(f"{row['what']:<24} {row['seconds']:8.2f} s {row['peak_mib']:8.0f} MiB")
    own = rows[0]
    figure("backtracking", own["seconds"], "s", on)
    for name in OPPONENTS:
        fastest = min((r for r in rows if r.get("of") == name), key=lambda r: r["seconds"])
        figure(f"backtracking by {name}: {fastest['what']}", fastest["seconds"], "s", on)
        figure(f"peak memory of {name}", fastest["peak_mib"] / 1024, "GiB", on)
    better = min(r["seconds"] for r in rows[2:])
    bar = SPEED_BAR if given.events >= FULL_EVENTS else None
    figure("times as fast as the better", better / own["seconds"], "x", on, bar, "higher")
    figure("backtracking without the index", rows[1]["seconds"], "s", on)
    figure("the same without the index", better / rows[1]["seconds"], "x", on)
    figure("making the index, once", index["seconds"], "s", on)
    figure("size of the index", index["mib"] / 1024, "GiB", on)
    figure("peak memory", own["peak_mib"] / 1024, "GiB", on, MEMORY_BAR_GIB, "lower")
    if not given.no_growth:
        growth(given, work, world, entities)
    for name in differing:
        print(f"DIFFERENT: {name}")
    return int(bool(differing))


def growth(given: argparse.Namespace, work: Path, world: Path, entities: int) -> None:
    """Peak memory with half the events (and entities) against all of them."""
    half = work / f"{given.events // 2}-{entities // 2}-{given.samples}"
    size = {"events": given.events // 2, "entities": entities // 2, "samples": given.samples}
    step("world", half, given.threads, **size)
    step("index", half, given.threads)
    limit = max(given.events // 400, 1_000)
    peaks = [step("riskfm", w, given.threads, limit=limit)["peak_mib"] for w in (half, world)]
    on = f"{given.events // 2:,} to {given.events:,} events, at most {limit:,} held by a worker"
    figure("growth of memory, events doubled", peaks[1] / peaks[0], "x", on, GROWTH_BAR, "lower")


def step(what: str, world: Path, threads: int, **more: int) -> dict[str, Any]:
    """Run one step in a process of its own."""
    command = [sys.executable, "-m", "scripts.bench.backtrack.measured", what, str(world)]
    command += ["--threads", str(threads)]
    command += [word for key, value in more.items() for word in (f"--{key}", str(value))]
    environment = os.environ | {"POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def figure(
    what: str, value: float, unit: str, on: str, bar: float | None = None, better: str = "lower"
) -> None:
    """Print one figure as `run_all` reads it."""
    row: dict[str, object] = {"what": what, "value": round(value, 3), "unit": unit, "on": on}
    print(json.dumps(row | ({"bar": bar, "better": better} if bar else {})), flush=True)


if __name__ == "__main__":
    sys.exit(main())
