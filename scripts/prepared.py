"""Turn a prepared benchmark set into a working folder the riskfm commands take.

    python scripts/prepared.py uci -o DIR [--n 300] [--draw 0]

reads `$RISKFM_DATA/prepared/NAME` (default `../shared/data`) and writes schema.yaml, a link-free
copy of every event table and of the profile, pool.csv, samples.csv (n labels of draw k:
`default_rng(100 + k).choice`) and test.csv, then prints the commands that follow. The schema is
`configs/schemas/NAME.yaml`, else NAME/schema.yaml, else one drafted from what may be learnt from.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from foundation.errors import DataError, SampleError, SchemaError, UserError, listing, nearest
from foundation.infer import infer_schema, schema_yaml
from foundation.schema import Schema, load_schema

ROOT = Path(__file__).resolve().parents[1]
FIRST_SEED = 100
MIN_BADS = 10
# What a prepared folder holds beside event tables and the profile.
NO_TABLES = ("pool", "test", "unlabelled", "splits")


@dataclass(frozen=True)
class WorkingFolder:
    """What `prepare_set` wrote; `until` is the earliest as_of of any sample."""

    folder: Path
    schema: Path
    samples: Path
    pool: Path
    test: Path
    until: str
    n_labels: int
    n_bad: int
    has_events: bool


def main() -> int:
    """Parse arguments, write the folder, print what to run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="uci, loans, cards, journey, german, ...")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--n", type=int, default=300, help="labels to draw (default 300)")
    parser.add_argument("--draw", type=int, default=0, help="which draw, 0 to 19 (default 0)")
    parser.add_argument("--stratified", action="store_true", help="keep the pool's bad rate")
    parser.add_argument("--data", type=Path, help="instead of $RISKFM_DATA")
    given = parser.parse_args()
    root = given.data or Path(os.environ.get("RISKFM_DATA", ROOT.parent / "shared" / "data"))
    try:
        made = prepare_set(
            root / "prepared", given.name, given.output, given.n, given.draw, given.stratified
        )
    except UserError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print(f"wrote {made.folder}: {made.n_labels} labels, {made.n_bad} bad, draw {given.draw}")
    print(commands(made))
    return 0


def prepare_set(
    prepared: Path, name: str, out: Path, n: int = 300, draw: int = 0, stratified: bool = False
) -> WorkingFolder:
    """Write the working folder of one set.

    Args:
        prepared: folder of the prepared sets.
        n, draw: labels drawn from the pool, and which of the repeatable draws.
    Raises:
        DataError: no such set, or a table is missing.
        SchemaError: there is no schema and none can be drafted.
        SampleError: the pool holds fewer than n labels, or the draw fewer than ten bads.
    """
    source = prepared / name
    if not (source / "meta.json").is_file():
        sets = sorted(p.parent.name for p in prepared.glob("*/meta.json"))
        there = f"sets: {listing(sets)}" if sets else "set RISKFM_DATA to the data folder"
        raise DataError(f"{source}: no such prepared set{nearest(name, sets)}; {there}")
    config = schema_file(source)
    out.mkdir(parents=True, exist_ok=True)
    if config is None:
        (out / "schema.yaml").write_text(draft(source), encoding="utf-8")
        config = out / "schema.yaml"
    else:
        shutil.copyfile(config, out / "schema.yaml")
    schema = load_schema(config)
    for file in tables(schema, json.loads((source / "meta.json").read_text(encoding="utf-8"))):
        if not (source / file).is_file():
            raise DataError(f"{source / file}: no such table, but '{config.name}' names it")
        shutil.copyfile(source / file, out / file)

    pool, test = (pl.read_parquet(source / f"{part}.parquet") for part in ("pool", "test"))
    samples = draw_labels(pool, n, draw, stratified)
    for part, rows in (("pool", pool), ("test", test), ("samples", samples)):
        rows.write_csv(out / f"{part}.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    earliest = min(pool["as_of"].min(), test["as_of"].min())  # type: ignore[type-var]
    return WorkingFolder(
        folder=out,
        schema=out / "schema.yaml",
        samples=out / "samples.csv",
        pool=out / "pool.csv",
        test=out / "test.csv",
        until=f"{earliest:%Y-%m-%dT%H:%M:%S}",
        n_labels=len(samples),
        n_bad=int(samples["label"].sum()),
        has_events=bool(schema.sources),
    )


def schema_file(source: Path) -> Path | None:
    """The schema written for a prepared set: the repository's, else the folder's own."""
    for file in (ROOT / "configs" / "schemas" / f"{source.name}.yaml", source / "schema.yaml"):
        if file.is_file():
            return file
    return None


def draft(source: Path) -> str:
    """A schema drafted for a prepared set, from what its benchmark may learn from.

    Rows of test entities and events at or after the earliest as_of of the test are not looked at.

    Returns:
        YAML, with what a person should look at as comments.
    Raises:
        SchemaError: nothing there is an event or profile table.
    """
    test = pl.read_parquet(source / "test.parquet")
    hidden = test["entity_id"].cast(pl.String).unique().implode()
    until = test["as_of"].cast(pl.Datetime("us")).min()
    with tempfile.TemporaryDirectory() as made:
        files = []
        for table in sorted(source.glob("*.parquet")):
            if table.stem in NO_TABLES:
                continue
            rows = pl.read_parquet(table)
            if "entity_id" in rows.columns:
                rows = rows.filter(~pl.col("entity_id").cast(pl.String).is_in(hidden))
            if "event_time" in rows.columns:
                rows = rows.filter(pl.col("event_time").cast(pl.Datetime("us")) < until)
            files.append(Path(made) / table.name)
            rows.write_parquet(files[-1])
        if not files:
            raise SchemaError(f"{source}: no event or profile table")
        schema, notes = infer_schema(files, entity="entity_id", name=source.name)
        return schema_yaml(schema, notes, made)


def tables(schema: Schema, meta: dict) -> list[str]:
    """File names of a set: the schema's paths, with meta.json's names where it gives none."""
    files = [s.path or meta["sources"][n]["file"] for n, s in schema.sources.items()]
    if schema.profile is not None:
        files.append(schema.profile.path or meta["profile"]["file"])
    return files


def draw_labels(pool: pl.DataFrame, n: int, draw: int, stratified: bool) -> pl.DataFrame:
    """n rows of the pool without replacement; the same n and draw give the same rows.

    Raises:
        SampleError: too few labels, or fewer than ten bads among them.
    """
    if not 1 <= n <= len(pool):
        raise SampleError(f"cannot draw {n} labels: the pool holds {len(pool)}")
    rng = np.random.default_rng(FIRST_SEED + draw)
    if stratified:
        bad = pool["label"].to_numpy() == 1
        n_bad = round(n * bad.mean())
        rows = np.concatenate(
            [
                rng.choice(np.flatnonzero(bad), n_bad, replace=False),
                rng.choice(np.flatnonzero(~bad), n - n_bad, replace=False),
            ]
        )
        rows = rng.permutation(rows)
    else:
        rows = rng.choice(len(pool), n, replace=False)
    drawn = pool[rows]
    if int(drawn["label"].sum()) < MIN_BADS:
        raise SampleError(
            f"draw {draw} of {n} labels holds {drawn['label'].sum()} bads; "
            f"the benchmark asks for at least {MIN_BADS}: draw more labels"
        )
    return drawn


def commands(made: WorkingFolder) -> str:
    """The riskfm commands that take this folder from tables to a tested package."""
    d = made.folder
    config = "configs/pretrain/nano.yaml"
    return "\n".join(
        [
            f"riskfm events import --schema {made.schema} --store {d}/store",
            f"riskfm pretrain --config {config} --store {d}/store -o {d}/backbone "
            f"--until {made.until} --exclude-entities {made.test}",
            f"riskfm adapt --backbone {d}/backbone --store {d}/store --samples {made.samples} "
            f"--test {made.test} -o {d}/model",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
