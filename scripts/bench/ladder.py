"""The ladder on a prepared set: every recipe's test AUC and KS over draws of n labels.

Reads a store and a backbone made with `riskfm events import` and `riskfm pretrain --until ...
--exclude-entities test.csv`; draws n labels from the pool as the benchmark does
(`default_rng(100 + k).choice(pool, n, replace=False)`), runs the ladder and `auto` on each draw and
measures on the whole test file. Features are built once; forecasts of pool rows are cross-fitted.
With `--precision both` it does so on float32 and on int8 states and says what int8 loses.

    python scripts/bench/ladder.py uci --data $RISKFM_DATA/prepared --work WORK --draws 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from finetune.building import cross_fitted, make_builder
from finetune.features import FLOAT32, INT8
from finetune.file_scoring import population_of
from finetune.ladder import run_ladder
from finetune.metrics import auc, ks
from finetune.modelling import AdaptSettings, ladder_recipes
from finetune.recipes import Recipe
from finetune.samples import Samples, check_samples
from finetune.table import Column, FeatureTable
from foundation.checkpoint import Backbone, load_backbone
from foundation.errors import DataError
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
    parser.add_argument("--precision", choices=(FLOAT32, INT8, "both"), default=FLOAT32)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    drop = frozenset(filter(None, arguments.drop.split(",")))
    both = arguments.precision == "both"
    found = {
        kind: measure(arguments, drop, kind)
        for kind in ((FLOAT32, INT8) if both else (arguments.precision,))
    }
    for kind, rows in found.items():
        print(f"{kind}\n{table_text(rows)}")
    if both:
        print(lost_text(found[FLOAT32], found[INT8]))
    rows = [{**row, "precision": kind} for kind, rows in found.items() for row in rows]
    if arguments.output:
        pl.DataFrame(rows).write_parquet(arguments.output)


@dataclass
class Tables:
    """Features of every row that is drawn or tested.

    Attributes:
        draws: rows of the pool, one array per draw. used: rows of the pool that `table` holds.
        samples: what is known of those. held: features of the test. y: labels of the test.
    """

    draws: list[np.ndarray]
    used: np.ndarray
    samples: Samples
    table: FeatureTable
    held: FeatureTable
    y: np.ndarray
    schema: Schema


def measure(
    arguments: argparse.Namespace, drop: frozenset[str] = frozenset(), precision: str = FLOAT32
) -> list[dict]:
    """One row per draw and recipe, without the columns of the blocks in `drop`."""
    backbone = load_backbone(arguments.backbone or arguments.work / "backbone")
    named = tuple(filter(None, arguments.recipes.split(",")))
    recipes = ladder_recipes(AdaptSettings(recipes=named, precision=precision), backbone)
    tables = build(arguments, backbone, any(r.slow for r in recipes), precision)
    return judged(tables, recipes, arguments.repeats, drop)


def build(
    arguments: argparse.Namespace,
    backbone: Backbone,
    tuned: bool = False,
    precision: str = FLOAT32,
) -> Tables:
    """Features of a backbone; forecasts of pool rows are cross-fitted.

    Args:
        tuned: keep histories, for the recipes that read them.
        precision: of the backbone's graph.
    """
    folder, schema = arguments.data / arguments.name, backbone.schema
    pool, test = (pl.read_parquet(folder / f"{part}.parquet") for part in ("pool", "test"))
    draws, used = drawn(len(pool), arguments.n, arguments.draws)
    store = EventStore.open(arguments.work / "store")
    samples = check_samples(pool[used], schema, True, True)
    tests = check_samples(test, schema, True, True)
    with tempfile.TemporaryDirectory() as scratch:
        builder, _ = make_builder(backbone, samples, Path(scratch), precision=precision)
        train = population_of(store, schema, samples)
        run = cross_fitted(backbone, train.entity_ids) if builder.boosted_targets else None
        table = builder.table(train, boosted=run, keep_histories=tuned)
        held = builder.table(population_of(store, schema, tests), keep_histories=tuned)
    return Tables(draws, used, samples, table, held, tests.y, schema)


def kept_tables(arguments: argparse.Namespace, folders: Sequence[Path], schema: Schema) -> Tables:
    """Features that the few-label benchmark has kept, of pool and test rows in this order.

    Args:
        folders: of columns.json and values.npy, side by side.
    Raises:
        DataError: a folder holds another number of rows.
    """
    folder = arguments.data / arguments.name
    pool, test = (pl.read_parquet(folder / f"{part}.parquet") for part in ("pool", "test"))
    draws, used = drawn(len(pool), arguments.n, arguments.draws)
    columns: list[Column] = []
    values = []
    for files in folders:
        listed = json.loads((files / "columns.json").read_text(encoding="utf-8"))
        columns += [
            Column(c, "forecast")
            if isinstance(c, str)
            else Column(**{**c, "levels": tuple(c["levels"])})
            for c in listed
        ]
        values.append(np.load(files / "values.npy").astype(np.float32))
        if len(values[-1]) != len(pool) + len(test):
            raise DataError(
                f"{files}: {len(values[-1])} rows, expected the {len(pool)} of the pool and the "
                f"{len(test)} of the test"
            )
    whole = FeatureTable(tuple(columns), np.hstack(values))
    samples = check_samples(pool[used], schema, True, True)
    held = whole.take(np.arange(len(pool), len(whole)))
    y = test["label"].to_numpy().astype(np.float64)
    return Tables(draws, used, samples, whole.take(used), held, y, schema)


def drawn(pool: int, n: int, draws: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows of every draw, and the rows that any of them holds, ascending."""
    out = [np.random.default_rng(100 + k).choice(pool, n, replace=False) for k in range(draws)]
    return out, np.unique(np.concatenate(out))


def judged(
    tables: Tables, recipes: list[Recipe], repeats: int, drop: frozenset[str] = frozenset()
) -> list[dict]:
    """One row per draw and recipe, without the columns of the blocks in `drop`."""
    table, held = (without(t, tables.schema, drop) for t in (tables.table, tables.held))
    rows: list[dict] = []
    for k, draw in enumerate(tables.draws):
        at = np.searchsorted(tables.used, draw)
        taught = tables.samples.take(at)
        rows += _one_draw(k, table.take(at), taught, held, tables.y, recipes, repeats)
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
    samples: Samples,
    held: FeatureTable,
    y: np.ndarray,
    recipes: list[Recipe],
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


def lost_text(exact: list[dict], rounded: list[dict]) -> str:
    """What int8 loses against float32, means over the draws both have of a recipe."""
    keys = ["draw", "recipe"]
    frame = (
        pl.DataFrame(exact)
        .join(pl.DataFrame(rounded), on=keys, suffix="_int8", maintain_order="left")
        .filter(~pl.col("recipe").str.starts_with("auto chose"))
        .group_by("recipe", maintain_order=True)
        .agg(
            (pl.col("auc") - pl.col("auc_int8")).mean().alias("auc"),
            (pl.col("ks") - pl.col("ks_int8")).mean().alias("ks"),
            (pl.col("ks") - pl.col("ks_int8")).abs().max().alias("most"),
        )
    )
    lines = [f"lost by int8{'':<14}{'AUC':>9}{'KS':>9}{'KS, a draw at most':>20}"]
    lines += [
        f"{row['recipe']:<26}{row['auc']:>9.4f}{row['ks']:>9.4f}{row['most']:>20.4f}"
        for row in frame.iter_rows(named=True)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
