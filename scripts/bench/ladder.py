"""The ladder on a prepared set: every recipe's test AUC and KS over draws of n labels.

Reads a store and a backbone made with `riskfm events import` and `riskfm pretrain --until ...
--exclude-entities test.csv`; draws n labels from the pool as the benchmark does
(`default_rng(100 + k).choice(pool, n, replace=False)`), runs the ladder and `auto` on each draw and
measures on the whole test file. Features are built once; forecasts of pool rows are cross-fitted.

    python scripts/bench/ladder.py uci --data $RISKFM_DATA/prepared --work WORK --draws 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from finetune.building import cross_fitted, make_builder
from finetune.file_scoring import population_of
from finetune.ladder import run_ladder
from finetune.metrics import auc, ks
from finetune.modelling import AdaptSettings, ladder_recipes
from finetune.samples import check_samples
from finetune.table import FeatureTable
from foundation.checkpoint import load_backbone
from foundation.schema import Schema
from foundation.store import EventStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True, help="the prepared sets")
    parser.add_argument("--work", type=Path, required=True, help="holds store/ and backbone/")
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--recipes", default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--drop", default="", help="blocks to leave out, or identifiers")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments, frozenset(filter(None, arguments.drop.split(","))))
    print(table_text(rows))
    if arguments.output:
        pl.DataFrame(rows).write_parquet(arguments.output)


def measure(arguments: argparse.Namespace, drop: frozenset[str] = frozenset()) -> list[dict]:
    """One row per draw and recipe, without the columns of the blocks in `drop`."""
    folder = arguments.data / arguments.name
    pool, test = (pl.read_parquet(folder / f"{part}.parquet") for part in ("pool", "test"))
    draws = [
        np.random.default_rng(100 + k).choice(len(pool), arguments.n, replace=False)
        for k in range(arguments.draws)
    ]
    used = np.unique(np.concatenate(draws))
    store = EventStore.open(arguments.work / "store")
    backbone = load_backbone(arguments.backbone or arguments.work / "backbone")
    schema = backbone.schema
    pool_samples = check_samples(pool[used], schema, True, True)
    test_samples = check_samples(test, schema, True, True)
    settings = AdaptSettings(recipes=tuple(filter(None, arguments.recipes.split(","))))
    recipes = ladder_recipes(settings, backbone)
    tuned = any(r.slow for r in recipes)
    with tempfile.TemporaryDirectory() as scratch:
        builder, _ = make_builder(backbone, pool_samples, Path(scratch))
        train = population_of(store, schema, pool_samples)
        run = cross_fitted(backbone, train.entity_ids) if builder.boosted_targets else None
        table = builder.table(train, boosted=run, keep_histories=tuned)
        held = builder.table(population_of(store, schema, test_samples), keep_histories=tuned)
    table, held = (without(t, schema, drop) for t in (table, held))
    rows: list[dict] = []
    for k, draw in enumerate(draws):
        at = np.searchsorted(used, draw)
        rows += _one_draw(
            k,
            table.take(at),
            pool_samples.take(at),
            held,
            test_samples.y,
            recipes,
            arguments.repeats,
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def without(table: FeatureTable, schema: Schema, drop: frozenset[str]) -> FeatureTable:
    """The table without the columns of some blocks, and of identifiers where `drop` says so."""
    table = table.select(table.blocks - drop)
    if "identifiers" not in drop:
        return table
    starts = identifier_starts(schema)
    kept = [c.name for c in table.columns if not c.name.startswith(starts)]
    return FeatureTable(
        tuple(c for c in table.columns if c.name in kept), table.matrix(kept), table.histories
    )


def identifier_starts(schema: Schema) -> tuple[str, ...]:
    """How the names of columns begin that are made of identifiers."""
    return tuple(
        f"{source}.{field}."
        for source, spec in schema.sources.items()
        for field, kind in spec.fields.items()
        if kind.kind == "identifier"
    )


def _one_draw(
    k: int,
    table: FeatureTable,
    samples,
    held: FeatureTable,
    y: np.ndarray,
    recipes: list,
    repeats: int,
) -> list[dict]:
    ladder = run_ladder(
        table, samples.y, samples.weight, samples.groups, recipes, seed=k, repeats=repeats
    )
    chosen = ladder.choose().name
    out = []
    for name, result in ladder.ok().items():
        score = ladder.fit(name, table, k).logit(held)
        row = {
            "draw": k,
            "recipe": name,
            "cv_log_loss": result.log_loss.value,
            "auc": auc(y, score),
            "ks": ks(y, score),
            "seconds": result.seconds,
        }
        out.append(row)
        if name == chosen:
            out.append({**row, "recipe": "auto"})
    forecasts = held.block("forecast")
    if len(forecasts.columns):
        for prefix, title in (("", "boosted"), ("network.", "network")):
            picked = [
                i
                for i, c in enumerate(forecasts.columns)
                if c.name.startswith("network.") == bool(prefix)
            ]
            if picked:
                p = np.clip(forecasts.values[:, picked].astype(np.float64), 1e-4, 1 - 1e-4)
                score = np.log(p / (1 - p)).mean(axis=1)
                out.append(
                    {
                        "draw": k,
                        "recipe": f"zero labels, {title}",
                        "cv_log_loss": None,
                        "auc": auc(y, score),
                        "ks": ks(y, score),
                        "seconds": 0.0,
                    }
                )
    out.append({**next(r for r in out if r["recipe"] == "auto"), "recipe": f"auto chose {chosen}"})
    return out


def table_text(rows: list[dict]) -> str:
    """Mean and spread over the draws."""
    frame = (
        pl.DataFrame(rows)
        .group_by("recipe", maintain_order=True)
        .agg(
            pl.len().alias("draws"),
            pl.col("auc").mean(),
            pl.col("ks").mean(),
            pl.col("ks").std().alias("ks_sd"),
            pl.col("seconds").mean(),
        )
    )
    lines = [f"{'recipe':<26}{'draws':>6}{'AUC':>8}{'KS':>8}{'KS sd':>8}{'s':>7}"]
    for row in frame.iter_rows(named=True):
        spread = row["ks_sd"] if row["ks_sd"] is not None else float("nan")
        lines.append(
            f"{row['recipe']:<26}{row['draws']:>6}{row['auc']:>8.3f}{row['ks']:>8.3f}"
            f"{spread:>8.3f}{row['seconds']:>7.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
