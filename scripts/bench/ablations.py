"""What each part of pretraining and each block of columns is worth, in one table.

Every variant of the objectives pretrains a backbone of its own; `probe`, `forecast` and `fusion`
then learn n labels of the pool, on the same draws. Blocks of columns are left out of `gbdt` and
`fusion` with the whole backbone. Judged by log-loss across the folds of the labels (lower is
better) and, for the reader, by KS on the test set. A variant that is there already is not run
again.

    python scripts/bench/ablations.py uci loans --data $RISKFM_DATA/prepared --work WORK --draws 5

WORK/SET/store holds the events; `--config` names the pretraining that the variants change. The
table is written anew after every variant, so that a run that is stopped loses nothing. Blocks of
columns alone, on features that few_labels.py has kept (no pretraining; several folders are joined):

    python scripts/bench/ablations.py uci --data $RISKFM_DATA/prepared --work WORK \\
        --features FEW_LABELS/sets/SET-DIGEST/backbone-TRACK-DIGEST-features
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent))
from forecasts import changed
from ladder import Tables, build, identifier_starts, judged, kept_tables, without

from finetune.modelling import AdaptSettings, ladder_recipes
from finetune.recipes import missing_reason, standard_recipes
from foundation.checkpoint import Backbone, load_backbone
from foundation.pretraining import pretrain
from foundation.store import EventStore

OFF = dict.fromkeys(("next_event", "forecast", "activity", "masked_event", "coles"), 0.0)
OBJECTIVES: dict[str, dict[str, float]] = {
    "no pretraining": {},
    "next event only": {"next_event": 1.0},
    "forecasting only": {"forecast": 1.0, "activity": 0.25},
    "masked only": {"masked_event": 1.0},
    "contrastive only": {"coles": 1.0},
    "all": {
        "next_event": 0.5, "forecast": 1.0, "activity": 0.25, "masked_event": 0.5, "coles": 0.2
    },
}  # fmt: skip
LEARNERS = "probe,forecast,fusion"
BLOCKS = ("identifiers", "profile", "aggregate", "forecast", "embedding")


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="the prepared sets")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain/nano.yaml"))
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--variants", default="", help="only these, such as 'as configured,all'")
    parser.add_argument("--features", type=Path, nargs="+", help="blocks alone, of kept features")
    parser.add_argument("-o", "--output", type=Path, help="Markdown, printed as well")
    given = parser.parse_args()
    if given.features and len(given.sets) != 1:
        parser.error("--features are those of one set")
    rows: list[dict[str, Any]] = []
    for name in given.sets:
        for found in of_set(name, given):
            rows += found
            if given.output:
                given.output.write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows))


def of_set(name: str, given: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Rows of one variant after the other: recipe, cv log-loss, AUC and KS of every draw."""
    wanted = set(filter(None, given.variants.split(",")))
    asked: list[tuple[str, str, frozenset[str], str]] = []
    if not given.features:
        asked += [(v, LEARNERS, frozenset(), v) for v in ("as configured", *OBJECTIVES)]
    asked.append(("all columns", "gbdt,fusion", frozenset(), "as configured"))
    for block in BLOCKS:
        if block != "identifiers" or has_identifiers(name, given):
            # Trees read neither: their rows would be those of all columns.
            recipes = "fusion" if block in ("forecast", "embedding") else "gbdt,fusion"
            asked.append((f"without {block}", recipes, frozenset({block}), "as configured"))
    for variant, recipes, drop, backbone in asked:
        if not wanted or variant in wanted:
            yield kept(name, variant, recipes, drop, backbone, given)


def has_identifiers(name: str, given: argparse.Namespace) -> bool:
    """Whether a set's events name devices, counterparties or the like."""
    return bool(identifier_starts(EventStore.open(given.work / name / "store").schema))


def kept(
    name: str,
    variant: str,
    recipes: str,
    drop: frozenset[str],
    backbone: str,
    given: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The rows of a variant, measured now unless they lie in the work directory."""
    folder = given.work / name / ("ablations-kept" if given.features else "ablations")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{variant.replace(' ', '-')}.{given.n}.{given.draws}.{given.repeats}.json"
    if not file.exists():
        print(f"-- {name}: {variant}", file=sys.stderr, flush=True)
        tables, model = features(name, backbone, given)
        if drop - {"identifiers"} - tables.table.blocks:
            return []
        settings = AdaptSettings(recipes=tuple(recipes.split(",")))
        ladder = (
            ladder_recipes(settings, model)
            if model is not None
            else [r for r in standard_recipes() if r.name in settings.recipes]
        )
        left = without(tables.table, tables.schema, drop)
        ladder = [r for r in ladder if not missing_reason(r, left)]
        found = judged(tables, ladder, given.repeats, drop) if ladder else []
        rows = [r for r in found if r["recipe"] in settings.recipes]
        file.write_text(json.dumps(rows), encoding="utf-8")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [{"set": name, "variant": variant, **row} for row in rows]


_LAST: dict[tuple[str, str], tuple[Tables, Backbone | None]] = {}


def features(name: str, backbone: str, given: argparse.Namespace) -> tuple[Tables, Backbone | None]:
    """Features of a variant's backbone, kept for one variant: those of all blocks share them."""
    key = (name, backbone)
    if key not in _LAST:
        _LAST.clear()
        asked = argparse.Namespace(
            name=name, data=given.data, work=given.work / name, n=given.n, draws=given.draws
        )
        if given.features:
            schema = EventStore.open(asked.work / "store").schema
            _LAST[key] = kept_tables(asked, given.features, schema), None
        else:
            model = load_backbone(pretrained(name, backbone, given))
            _LAST[key] = build(asked, model), model
    return _LAST[key]


def pretrained(name: str, variant: str, given: argparse.Namespace) -> Path:
    """The backbone of a variant, pretrained once, without the test's entities."""
    out = given.work / name / "ablations" / f"backbone-{variant.replace(' ', '-')}"
    if out.exists():
        return out
    changes = []
    if variant in OBJECTIVES:
        weights = OFF | OBJECTIVES[variant]
        changes = [f"objectives.{key}={value}" for key, value in weights.items()]
    if variant == "no pretraining":
        changes += ["steps=1", "optimizer.lr=0", "optimizer.muon_lr=0"]
    config = changed(given.config, changes, 0, given.work / name / "ablations")
    pool, test = (pl.read_parquet(given.data / name / f"{p}.parquet") for p in ("pool", "test"))
    until = pool["as_of"].min()
    assert isinstance(until, dt.datetime)
    store = given.work / name / "store"
    pretrain(config, store, out, until, exclude_entities=test["entity_id"].unique(), resume=True)
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean over the draws of cross-validated log-loss and test KS."""
    if not rows:
        return "nothing was measured"
    frame = (
        pl.DataFrame(rows)
        .group_by("set", "variant", "recipe", maintain_order=True)
        .agg(pl.len().alias("draws"), pl.col("cv_log_loss", "auc", "ks").mean())
    )
    lines = [
        "| set | variant | recipe | draws | cv log-loss | test AUC | test KS |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['set']} | {r['variant']} | {r['recipe']} | {r['draws']} | {r['cv_log_loss']:.4f} "
        f"| {r['auc']:.3f} | {r['ks']:.3f} |"
        for r in frame.iter_rows(named=True)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
