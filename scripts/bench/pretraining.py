"""How fast a pretraining configuration trains: events per second of whole steps.

    python scripts/bench/pretraining.py [configs/pretrain/nano.yaml] [--seconds 20]

Reads synthetic purchases (ten fields, 120 events per entity), so that no data set is needed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from foundation.allocator import keep_freed_memory  # noqa: E402
from foundation.history import DAY_US, Timeline, build_timeline  # noqa: E402
from foundation.objectives import Objectives  # noqa: E402
from foundation.pretrain_config import load_pretrain_config, shards_of  # noqa: E402
from foundation.pretraining import build_model, prepare  # noqa: E402
from foundation.schema import Schema, schema_from_dict  # noqa: E402
from foundation.shards import Shards  # noqa: E402
from foundation.tokenizer import Tokenizer  # noqa: E402
from foundation.training import PretrainingModule, Steps, make_optimizer  # noqa: E402

START = dt.datetime(2020, 1, 1)
DAYS = 720
BAR = 20_000


def synthetic(entities: int, events: int) -> tuple[Schema, Timeline, int]:
    """Purchases with five categories and five numbers over two years, and the moment after."""
    names = {f"c{i}": "category" for i in range(5)} | {f"n{i}": "number" for i in range(5)}
    schema = schema_from_dict(
        {
            "name": "bench",
            "sources": {"buy": {"fields": {n: {"kind": k} for n, k in names.items()}}},
            "outcomes": {
                "games": "buy.c0 in ('v1', 'v2') within 30d, 90d",
                "quiet": "silence within 30d",
            },
        }
    )
    rng = np.random.default_rng(0)
    count = entities * events
    moment = pl.Series(rng.integers(0, DAYS * 86_400, count) * 1_000_000)
    times = (moment + int(START.replace(tzinfo=dt.UTC).timestamp()) * 1_000_000).cast(
        pl.Datetime("us")
    )
    columns = {
        "entity_id": pl.Series(np.repeat(np.arange(entities), events)).cast(pl.String),
        "event_time": times,
        "known_at": times,
    }
    for name, kind in names.items():
        drawn = rng.gamma(2.0, 30.0, count)
        columns[name] = (
            pl.Series(drawn)
            if kind == "number"
            else pl.Series(drawn.astype(int) % 20)
            .cast(pl.String)
            .map_elements("v{}".format, return_dtype=pl.String)
        )
    timeline = build_timeline(schema, {"buy": pl.DataFrame(columns)})
    return schema, timeline, int(timeline.known_us.max()) + DAY_US


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs/pretrain/nano.yaml"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=0, help="0 takes the configuration's")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    config = load_pretrain_config(arguments.config)
    torch.set_num_threads(arguments.threads or config.threads)
    schema, timeline, until_us = synthetic(1000, 120)
    tokenizer = Tokenizer.fit(schema, timeline)
    begun = time.perf_counter()
    make = prepare(config, timeline, None, tokenizer, until_us).make
    prepared = time.perf_counter() - begun
    model = build_model(config, schema, tokenizer)
    module = PretrainingModule(
        model, Objectives(config.objectives, model.config), config.optimizer, 1000, config.seed
    )
    optimizer = make_optimizer(module, config.optimizer)
    shards = Shards(shards_of(config)) if shards_of(config) > 1 else None
    if shards is not None:
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium" if config.products == "bfloat16" else "highest")
    precision = torch.bfloat16 if config.precision.startswith("bf16") else None
    events, steps, used, begun = 0, 0, 0.0, time.perf_counter()
    for batch in Steps(make, 0, 100_000):
        if steps > 2 and time.perf_counter() - begun > arguments.seconds:
            break
        if steps == 2:  # the first steps allocate
            events, begun, used = 0, time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            if shards is not None:
                loss = shards.losses(module.objectives, model, batch)["loss"]
            else:
                loss = module.objectives(model, batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip)
        optimizer.step()
        events, steps = events + int(batch.length.sum()), steps + 1
    elapsed, processor = time.perf_counter() - begun, time.process_time() - used
    weights = sum(p.numel() for p in model.parameters())
    row = {"what": f"pretraining {config.name}", "value": round(events / elapsed)}
    row |= {
        "unit": "events/s",
        "on": f"{len(timeline):,} events, ten fields, {config.threads} threads",
    }
    if config.name == "nano":
        row |= {"bar": BAR, "better": "higher"}
    print(json.dumps(row))
    print(
        f"{config.name}: {weights:,} weights, {config.threads} threads, {steps} steps: "
        f"{events / elapsed:,.0f} events/s ({events / processor:,.0f} per CPU second); "
        f"preparing {len(timeline):,} events took {prepared:.1f} s"
    )


if __name__ == "__main__":
    main()
