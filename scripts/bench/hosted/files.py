"""Scoring a file of customers of every length, against loops that pad in the file's order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from scripts.bench.hosted.world import World

Figure = Callable[..., None]
BAR = 3.0
TOGETHER = 32
LONG = ("source", "code", "value", "extra", "days")


def run(world: World, figure: Figure) -> None:
    """Processor time of this process, so that the ratio holds on a busy machine."""
    import onnxruntime as ort

    from finetune.package import Package
    from scripts.bench.scoring import AS_OF

    package = Package.load(world.package("probe"))
    frame, lengths = histories(world)
    samples = frame.select("entity_id").unique(maintain_order=True)
    samples = samples.with_columns(as_of=pl.lit(AS_OF).cast(pl.Datetime("us")))
    profile = pl.read_parquet(world.work / world.size / "profile.parquet")
    profile = profile.with_columns(known_at=pl.lit(None, pl.Datetime("us")))
    runs: list[tuple[Any, Any, dict[str, np.ndarray], list[np.ndarray], float]] = []
    plain = ort.InferenceSession.run

    def noted(session: Any, outputs: Any, feed: dict[str, Any], *more: Any) -> Any:
        begin = time.process_time()
        found = plain(session, outputs, feed, *more)
        if "source" in feed:
            runs.append((session, outputs, dict(feed), found, time.process_time() - begin))
        return found

    package.score({"purchase": frame}, profile, samples[:2])
    ort.InferenceSession.run = noted
    try:
        begin = time.process_time()
        package.score({"purchase": frame}, profile, samples)
        whole = time.process_time() - begin
    finally:
        ort.InferenceSession.run = plain
    graph = sum(run[4] for run in runs)
    session, outputs = runs[0][:2]
    order = np.random.default_rng(0).permutation(len(samples))
    longest = max(run[2]["source"].shape[1] for run in runs)
    feeds = {
        name: np.concatenate([_padded(name, run[2][name], longest) for run in runs])[order]
        for name in runs[0][2]
    }
    expected = np.concatenate([run[3][0] for run in runs])[order]
    on = (
        f"probe, {len(samples)} customers, 1 to {int(lengths.max())} events, "
        f"median {int(np.median(lengths))}"
    )
    figure("by length: whole", len(samples) / whole, "customers/s of processor time", on)
    for what, to_file in (("batch", False), ("file", True)):
        begin = time.process_time()
        worst = 0.0
        for start in range(0, len(samples), TOGETHER):
            part = {name: value[start : start + TOGETHER] for name, value in feeds.items()}
            if not to_file:
                most = int(part["query_position"].max())
                part |= {name: part[name][:, : max(most, 1)] for name in LONG}
            found = session.run(outputs, part)[0]
            worst = max(worst, float(np.abs(found - expected[start : start + TOGETHER]).max()))
        naive = time.process_time() - begin
        padded = f"{on}; padded to the longest of the {what}"
        figure("padded loop over by length: graph", naive / graph, "x", padded, BAR, "higher")
        figure("padded loop over by length: whole", (whole - graph + naive) / whole, "x", padded)
        figure("largest difference of an output", worst, "", padded)


def histories(world: World) -> tuple[pl.DataFrame, np.ndarray]:
    """Purchases of customers whose number of events is spread as in real files; [S] lengths."""
    frame = pl.read_parquet(world.work / world.size / "purchase.parquet").sort(
        "entity_id", "event_time"
    )
    count = frame["entity_id"].n_unique()
    rng = np.random.default_rng(3)
    lengths = np.clip(rng.lognormal(3.2, 1.1, count).astype(int), 1, 300)
    wanted = pl.DataFrame({"entity_id": frame["entity_id"].unique().sort(), "wanted": lengths})
    number = pl.int_range(pl.len()).over("entity_id")
    frame = frame.join(wanted, on="entity_id").filter(number < pl.col("wanted"))
    frame = frame.with_columns(pl.col("event_time").cast(pl.Datetime("us")))
    return frame.drop("wanted").with_columns(known_at=pl.col("event_time")), lengths


def _padded(name: str, value: np.ndarray, length: int) -> np.ndarray:
    """Rows padded at the end of their histories."""
    if name not in LONG:
        return value
    pad = [(0, 0), (0, length - value.shape[1]), *[(0, 0)] * (value.ndim - 2)]
    return np.pad(value, pad)
