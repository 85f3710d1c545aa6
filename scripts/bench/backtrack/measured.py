"""One measured step of the back-tracking benchmark, in a process of its own.

    python -m scripts.bench.backtrack.measured STEP WORLD [--threads N] [...]

STEP is `world` (make the store and the samples), `index` (make the store's index), `riskfm` with
that index, `riskfm-without`, a formulation of `opponents`, or `check` (compare what they wrote).
Prints one JSON object: seconds of the work without imports, and the peak resident memory of the
process.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Run a step and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step")
    parser.add_argument("world", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--events", type=int)
    parser.add_argument("--entities", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    work = prepare(given)
    began = time.perf_counter()
    found = work() or {}
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(), **found}))


def prepare(given: argparse.Namespace) -> Callable[[], dict[str, Any] | None]:
    """The work of a step with everything imported."""
    out = given.world / f"{given.step.replace(',', '').replace(' ', '_')}.parquet"
    if given.step == "world":
        from scripts.bench.backtrack import world

        def make() -> None:
            given.world.mkdir(parents=True, exist_ok=True)
            world.make_store(given.world / "store", given.events, given.entities)
            world.make_samples(given.world / "samples.parquet", given.entities, given.samples)

        return make
    if given.step == "index":
        from foundation.indexing import drop_index, make_index

        drop_index(given.world / "store")
        return lambda: {"mib": make_index(given.world / "store").size / 2**20}
    if given.step.startswith("riskfm"):
        return ours(given)
    if given.step == "check":
        return lambda: check(given.world)
    import duckdb  # noqa: F401
    import polars  # noqa: F401

    from scripts.bench.backtrack.opponents import FORMULATIONS

    run = FORMULATIONS[given.step]
    return lambda: run(given.world, out, given.threads)


def ours(given: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """`riskfm backtrack` with the columns of the benchmark given."""
    from finetune.backtracking import BacktrackInputs, run_backtrack
    from foundation.allocator import keep_freed_memory
    from foundation.buckets import BucketReader
    from scripts.bench.backtrack.world import world_schema, world_spec

    keep_freed_memory()  # as the command does
    out = given.world / given.step
    shutil.rmtree(out, ignore_errors=True)
    if given.step == "riskfm-without":
        BucketReader.index = None  # type: ignore[assignment]
    spec = given.world / "aggregates.json"
    spec.write_text(world_spec(world_schema()).to_json(), encoding="utf-8")
    inputs = BacktrackInputs(
        given.world / "store",
        given.world / "samples.parquet",
        aggregates=spec,
        limit=given.limit,
    )

    def run() -> dict[str, Any]:
        counts = run_backtrack(inputs, out, given.threads)["counts"]
        return {"events_used": counts["events_used"]}

    return run


def check(world: Path) -> dict[str, Any]:
    """Compare every opponent's table with ours; float32 against float64."""
    import numpy as np
    import polars as pl

    from finetune.backtracking import read_features
    from scripts.bench.backtrack.world import column_names

    own = read_features(world / "riskfm").select("row", *column_names()).sort("row").collect()
    plain = read_features(world / "riskfm-without").sort("row").collect()
    same = plain.equals(read_features(world / "riskfm").sort("row").collect())
    differing = [] if same else ["riskfm with and without its index"]
    for path in sorted(world.glob("*_*.parquet")):
        other = pl.read_parquet(path).sort("row")
        if not own["row"].cast(pl.Int64).equals(other["row"].cast(pl.Int64).alias("row")):
            differing.append(f"{path.stem}: rows")
        for name in column_names():
            a, b = (f[name].cast(pl.Float64).fill_nan(None) for f in (own, other))
            if " count " in name or " sum " in name:  # of nothing: zero
                a, b = a.fill_null(0), b.fill_null(0)
            x, y = a.fill_null(np.inf).to_numpy(), b.fill_null(np.inf).to_numpy()
            if not np.allclose(x, y, rtol=1e-5, atol=1e-4):
                differing.append(f"{path.stem}: {name}")
    return {"differing": differing, "columns": len(column_names())}


def peak_mib() -> float:
    """Peak resident memory of this process alone."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
