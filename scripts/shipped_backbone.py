"""Make the backbone that comes with riskfm again.

    python scripts/shipped_backbone.py -o DIR [--work DIR] [--data DIR]

reads `$RISKFM_DATA/prepared/uci` (default `../shared/data`), pool customers only, simulates a
lending world that ends on the same day, puts both into one store, pretrains
`configs/pretrain/shipped.yaml` on it, and writes what is shipped: the network without its
forecasts, which belong to these lenders' outcomes, and a card. Then it prints how to look at it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import yaml

from foundation.carried import carry
from foundation.checkpoint import (
    AGGREGATES,
    CARD,
    RUN,
    SCHEMA,
    TOKENIZER,
    WEIGHTS,
    Backbone,
    load_backbone,
    save_weights,
    write_json,
)
from foundation.errors import DataError, InternalError, UserError
from foundation.pretraining import load_pretrain_config, run_pretraining
from foundation.schema import load_schema, schema_to_dict
from foundation.simulation import WorldSize
from foundation.simulation_files import write_world
from foundation.simulation_scenario import load_scenario
from foundation.store import import_events

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "pretrain" / "shipped.yaml"
MEASURED = ROOT / "docs" / "benchmarks" / "shipped_backbone.md"
UNTIL = dt.date(2005, 10, 1)
MONTHS = 24
CUSTOMERS = 2000
STATED = "stated_at"


@dataclass(frozen=True)
class Lender:
    """One lender's tables and what they mean.

    Attributes:
        schema: plain data of a schema. tables: source to events.
        profile: with a column `stated_at`. rows: events in all.
    """

    name: str
    schema: dict[str, Any]
    tables: dict[str, pl.DataFrame]
    profile: pl.DataFrame


def main() -> int:
    """Parse arguments, make it, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the directory to make")
    parser.add_argument("--work", type=Path, help="keep store and pretraining here")
    parser.add_argument("--data", type=Path, help="instead of $RISKFM_DATA")
    given = parser.parse_args()
    root = given.data or Path(os.environ.get("RISKFM_DATA", ROOT.parent / "shared" / "data"))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            made = make(root / "prepared", given.work or Path(scratch), given.output, print)
    except UserError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print(f"wrote {made}: {made / CARD} says what it saw")
    return 0


def make(prepared: Path, work: Path, out: Path, say: Callable[[str], None]) -> Path:
    """Tables to shipped backbone.

    Raises:
        DataError: the UCI set is not there. ArtifactError: `out` or the work's backbone exists.
    """
    work.mkdir(parents=True, exist_ok=True)
    lenders = [uci(prepared / "uci"), world(work / "world")]
    schema = write_lenders(lenders, work / "lenders")
    for line in import_events(schema, work / "store").lines():
        say(line)
    config = load_pretrain_config(CONFIG)
    run = run_pretraining(config, work / "store", work / "backbone", str(UNTIL), say=say)
    say(run.summary())
    return ship(load_backbone(run.path), lenders, out)


def uci(source: Path) -> Lender:
    """Pool customers of the UCI set; the benchmark's test customers are never read."""
    if not (source / "statement.parquet").is_file():
        raise DataError(f"{source}: no prepared UCI set; set RISKFM_DATA to the data folder")
    pool = pl.read_parquet(source / "pool.parquet")["entity_id"].unique()
    mine = pl.col("entity_id").is_in(pool.implode())
    statements = pl.read_parquet(source / "statement.parquet").filter(mine)
    first = statements["event_time"].min()
    profile = pl.read_parquet(source / "profile.parquet").filter(mine)
    stated = pl.lit(first).dt.offset_by("-1mo").cast(pl.Datetime("us")).alias(STATED)
    schema = schema_to_dict(load_schema(ROOT / "configs" / "schemas" / "uci.yaml"))
    return Lender("uci", schema, {"statement": statements}, profile.with_columns(stated))


def world(folder: Path) -> Lender:
    """A simulated lending world that ends on `UNTIL`."""
    shutil.rmtree(folder, ignore_errors=True)
    scenario = load_scenario(ROOT / "configs" / "simulation" / "lending.yaml")
    begin = dt.date(UNTIL.year - MONTHS // 12, UNTIL.month, UNTIL.day)
    scenario = msgspec.structs.replace(scenario, start=begin)
    write_world(scenario, WorldSize(CUSTOMERS, MONTHS, seed=0), folder)
    schema = load_schema(folder / "schema.yaml")
    tables = {name: pl.read_parquet(folder / s.path) for name, s in schema.sources.items()}
    if schema.profile is None:
        raise InternalError("the simulated world has no profile")
    profile = pl.read_parquet(folder / schema.profile.path)
    profile = profile.rename({schema.profile.valid_time: STATED})
    return Lender("synthetic", schema_to_dict(schema), tables, profile)


def write_lenders(lenders: list[Lender], folder: Path) -> Path:
    """One schema and one set of tables of several lenders; ids carry the lender's name.

    Of outcomes of one name the later lender's stands.

    Returns:
        the schema file.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    schema: dict[str, Any] = {"name": "shipped", "sources": {}, "context": {}, "outcomes": {}}
    schema["windows_days"] = [31]  # aggregates are learned anew on every store
    fields: dict[str, Any] = {}
    profiles = []
    for lender in lenders:
        prefix = pl.format("{}:{}", pl.lit(lender.name), pl.col("entity_id").cast(pl.String))
        for name, frame in lender.tables.items():
            path = f"{name}.parquet"
            frame.with_columns(prefix.alias("entity_id")).write_parquet(folder / path)
            schema["sources"][name] = lender.schema["sources"][name] | {"path": path}
        described = lender.schema["profile"]["fields"]
        fields = described | fields
        words = [pl.col(n).cast(pl.String) for n, f in described.items() if f["kind"] == "category"]
        profiles.append(lender.profile.with_columns(prefix.alias("entity_id"), *words))
        for part in ("context", "outcomes"):
            schema[part] |= lender.schema.get(part, {})
    pl.concat(profiles, how="diagonal_relaxed").write_parquet(folder / "profile.parquet")
    schema["profile"] = {
        "path": "profile.parquet",
        "valid_time": STATED,
        "fields": fields,
        "authorization": {"by": "both lenders, as said in the card", "use": "pretraining"},
    }
    path = folder / "schema.yaml"
    path.write_text(yaml.safe_dump(schema, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def ship(trained: Backbone, lenders: list[Lender], out: Path) -> Path:
    """Write the directory that is shipped: no forecasts, no logs, a card.

    Raises:
        DataError: `out` exists.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; remove it first")
    if trained.model is None:
        raise InternalError("pretraining made no network")
    model = carry(trained.model, trained.tokenizer, trained.schema)
    out.mkdir(parents=True)
    save_weights(model, out)
    for name in (TOKENIZER, AGGREGATES, SCHEMA):
        shutil.copyfile(trained.path / name, out / name)
    weights = sum(p.numel() for p in model.parameters())
    digest = hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()
    network = trained.run["network"] | {"parameters": weights, "shares": {}}
    run = trained.run | {"network": network, "weights_sha256": digest}
    (out / CARD).write_text(card(run, trained, lenders), encoding="utf-8")
    write_json(out / RUN, run)
    return out


def card(run: dict[str, Any], trained: Backbone, lenders: list[Lender]) -> str:
    """The card: what it is, saw, may be used for, and how it was measured."""
    network, config = run["network"], run["config"]
    counts = {x.name: sum(map(len, x.tables.values())) for x in lenders}
    people = {x.name: x.profile["entity_id"].n_unique() for x in lenders}
    losses = ", ".join(f"{k} {v:.3f}" for k, v in network["validation"][-1].items() if k != "step")
    learned = ", ".join(trained.model.config.targets) if trained.model else ""
    text = CARD_TEXT.format(
        name=config["name"], weights=f"{network['parameters']:,}", digest=run["weights_sha256"],
        until=run["until"][:10], steps=network["steps"], losses=losses, learned=learned,
        uci_events=f"{counts['uci']:,}", uci_people=f"{people['uci']:,}",
        made_events=f"{counts['synthetic']:,}", made_people=f"{people['synthetic']:,}",
        tokenizer=run["tokenizer_fingerprint"], schema=run["schema_fingerprint"],
        torch=run["versions"]["torch"], code=run["code"], months=MONTHS,
    )  # fmt: skip
    return text + measured(run["weights_sha256"])


def measured(digest: str) -> str:
    """The measurements, if they are of these weights."""
    if MEASURED.is_file():
        text = MEASURED.read_text(encoding="utf-8")
        if digest[:16] in text:
            return text[text.index("## Measured") :]
    return "## Measured\n\nNothing yet with these weights.\n"


CARD_TEXT = """# Backbone {name}

The backbone that `riskfm adapt` uses when none is named. A network of {weights} weights that turns
a customer's history into a state; it has no forecasts of its own.

- weights: {weights} in float32, `model.safetensors`, SHA-256 `{digest}`
- tokenizer {tokenizer}, schema {schema}
- {steps} steps on a CPU, torch {torch}, code {code}; held-out losses at the end: {losses}

## What it saw

Histories without labels, known before {until}:

| data | customers | events | licence |
|---|---|---|---|
| Default of Credit Card Clients, Taiwan 2005 | {uci_people} | {uci_events} | CC BY 4.0 |
| SYNTHETIC lending world, {months} months | {made_people} | {made_events} | Apache-2.0 |

The first are monthly statements of cards; the second, made by `riskfm simulate`, has app events,
applications, bills, bureau queries and repayments.

Attribution: Yeh, I-Cheng (2009). Default of Credit Card Clients. UCI Machine Learning Repository,
https://doi.org/10.24432/C55S3H, CC BY 4.0. Changed: brought to one row per month; the 10,000
customers of the benchmark's test split and every label (default in October 2005) were left out.
In the synthetic world stands no person. What it learned to forecast (and then lost, because those
outcomes are not yours): {learned}.

The weights are under Apache-2.0, as the rest of riskfm.

## What it is good for, and what not

- A start within a minute on tables it never saw: `riskfm backbone prepare` learns the vocabularies,
  bins, aggregates and boosted forecasters of your store, which is where the strength lies, and
  carries this network over unchanged. It reads fields by kind, role and hashed name, so give every
  field a role (`riskfm schema map`).
- Its states on a schema it never saw were no better than those of random weights where we looked
  (below): expect nothing of the recipes `probe`, `prompt` and `lora` before you pretrain.
- A first set of weights for `riskfm pretrain --init shipped`; whether that helps was not measured.
- Not a credit model: it knows no outcome of yours and gives no score without your labels.
- Not evidence: two small sources, one of them invented. Pretrain on your own histories as soon as
  you can, and judge both on your own test.
- Age, sex, education and marriage were among what it read, and it has not been tested for fairness;
  leave such fields out of your schema where you may not use them.

## How it was made

```bash
python scripts/shipped_backbone.py -o foundation/pretrained/{name}
```

with `configs/pretrain/shipped.yaml` and `RISKFM_DATA` set; on another machine or torch the last
digits differ.

"""


if __name__ == "__main__":
    sys.exit(main())
