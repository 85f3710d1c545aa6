"""Do the network's forecasts reach the boosted ones? Judged without one label, nor a test set.

Both learn from three quarters of the pool's entities and from what was known before T, which lies
one horizon before the pool's first as_of. Then they forecast the held-out quarter: at T, or, where
the schema records decisions, at every decision from T on. By the pool's first as_of it is known
what came true. Choices about pretraining are made here.

    python scripts/bench/forecasts.py loans --data $RISKFM_DATA/prepared --store WORK/store \\
        --config configs/pretrain/nano.yaml --set objectives.activity=0 --set steps=300
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml

from finetune.metrics import auc
from foundation.batching import history_batches
from foundation.checkpoint import Backbone, load_backbone
from foundation.decisions import context_at, decision_cuts, with_applications
from foundation.history import cut
from foundation.pretrain_config import load_pretrain_config
from foundation.pretraining import pretrain
from foundation.store import EventStore
from foundation.targets import outcome_targets, target_names


def main() -> None:
    """Parse arguments, pretrain, measure, print one line of JSON per target and a mean."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True, help="the prepared sets")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain/nano.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-entities", type=int, default=20_000)
    given = parser.parse_args()
    for seed in range(given.seeds):
        for row in measure(given, seed):
            print(json.dumps(row), flush=True)


def measure(given: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """One row per target, and their mean."""
    store = EventStore.open(given.store)
    pool = pl.read_parquet(given.data / given.name / "pool.parquet")
    end = pool["as_of"].min()
    assert isinstance(end, dt.datetime)
    outcomes = store.schema.parsed_outcomes()
    horizon = max(h for o in outcomes for h in o.horizons)
    begin = end - dt.timedelta(days=horizon)
    ids = pool["entity_id"].unique().sort()
    if len(ids) > given.max_entities:
        ids = ids.sample(given.max_entities, seed=0).sort()
    held = pl.Series([zlib.crc32(i.encode() + b"|quarter") % 4 == 0 for i in ids])
    with tempfile.TemporaryDirectory() as folder:
        config = changed(given.config, given.set, seed, Path(folder))
        started = time.monotonic()
        run = pretrain(config, given.store, Path(folder) / "bb", begin, ids.filter(~held))
        seconds = time.monotonic() - started
        backbone = load_backbone(run.path)
        rows = judged(backbone, store, ids.filter(held), begin, end)
    network = run.facts["network"]
    means = {
        k: float(np.mean([r[k] for r in rows])) for k in rows[0] if k.endswith(("_auc", "_loss"))
    }
    held_out = network["validation"][-1]["loss"] if network["validation"] else None
    last = {"set": given.name, "target": "mean", "seed": seed, "rows": rows[0]["rows"], **means}
    return [*rows, {**last, "seconds": round(seconds), "held_out_loss": held_out}]


def changed(path: Path, changes: list[str], seed: int, folder: Path) -> Any:
    """The configuration with `a.b=value` applied."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["seed"] = seed
    for change in changes:
        key, _, text = change.partition("=")
        at, *rest = data, *key.split(".")
        for part in rest[:-1]:
            at = at.setdefault(part, {})
        at[rest[-1]] = yaml.safe_load(text)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return load_pretrain_config(file)


def judged(
    backbone: Backbone, store: EventStore, ids: pl.Series, begin: dt.datetime, end: dt.datetime
) -> list[dict[str, Any]]:
    """AUC and log-loss of both kinds of forecast and of their mean log-odds, per target."""
    timeline = store.timeline(entities=ids, until_us=microseconds(end))
    profile = store.profile_history(entities=ids, until_us=microseconds(end))
    profile = with_applications(timeline, profile)
    entity, cut_us = decision_cuts(timeline)
    late = cut_us >= microseconds(begin)
    entity, cut_us = entity[late], cut_us[late]
    if not len(entity):
        entity = np.arange(len(timeline.entity_ids))
        cut_us = np.full(len(entity), microseconds(begin))
    at = cut(timeline, timeline.entity_ids[entity], cut_us)
    some = at.stop > at.start
    entity, cut_us, at = entity[some], cut_us[some], at.part(some)
    who = timeline.entity_ids[entity]
    context = context_at(timeline, entity, cut_us)
    outcomes = store.schema.parsed_outcomes()
    y = outcome_targets(timeline, outcomes, entity, cut_us, microseconds(end), exposed=True)
    events = backbone.tokenizer.encode_events(timeline)
    queries = backbone.tokenizer.encode_query(at, timeline, profile, context, who)
    logits = network_logits(backbone, events, at, queries)
    x = backbone.spec.compute(timeline, at, profile, who, context)
    margins = backbone.forecasters.margins(x)
    rows = []
    names = target_names(outcomes)
    for t, name in enumerate(backbone.model.config.targets):
        truth = y[:, names.index(name)]
        known = ~np.isnan(truth)
        if name not in backbone.forecasters.names or not 0 < truth[known].sum() < known.sum():
            continue
        boosted = margins[known, backbone.forecasters.names.index(name)]
        network, truth = logits[known, t], truth[known]
        if name in backbone.model.config.based:
            network = network + boosted
        row: dict[str, Any] = {"set": store.schema.name, "target": name, "rows": int(known.sum())}
        row["share"] = float(truth.mean())
        for kind, score in (
            ("boosted", boosted),
            ("network", network),
            ("both", (boosted + network) / 2),
        ):
            row[f"{kind}_auc"] = auc(truth, score)
            row[f"{kind}_loss"] = float(np.mean(np.logaddexp(0, score) - truth * score))
        rows.append(row)
    return rows


def network_logits(backbone: Backbone, events: Any, at: Any, queries: Any) -> np.ndarray:
    """[S, T] logits of the network's forecasts."""
    model = backbone.model.eval()
    out = np.empty((len(at), len(model.config.targets)))
    longest = backbone.run["config"]["max_events"]
    with torch.no_grad():
        for rows, batch in history_batches(events, at, queries, 64, longest):
            feed = {k: torch.from_numpy(v) for k, v in batch.arrays().items()}
            out[rows] = model(**feed).forecasts[:, 0].numpy()
    return out


def microseconds(moment: dt.datetime) -> int:
    """Naive UTC as microseconds since the epoch."""
    return int((moment - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1))


if __name__ == "__main__":
    main()
