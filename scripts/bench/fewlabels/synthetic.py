"""What pragmatiq's simulator wrote, as prepared sets: `synthetic_default` and `synthetic_churn`.

pragmatiq 1.1.0 (`pragmatiq synth generate`) writes events.parquet (user_id, ts, source and a map of
fields), profiles.parquet (attributes, and the dated steps of a customer) and labels/TASK.parquet
(user_id, eval_ts, label). Its labels look only at what follows eval_ts, which is one moment for all
users; a prepared set holds the events before it and nothing else.

Transactions become two sources by the direction of the money, as their amounts bear no sign; the
customer's steps (account opened, premium upgrade, ...) become a source of their own. Columns stay
as they are: the schema says which are read.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from foundation.errors import DataError, listing
from foundation.schema import load_schema
from scripts.bench.fewlabels.sets import ROOT, SYNTHETIC
from scripts.prepared import MIN_BADS

MADE_FOR = "1.1.0"
RECEIVED = ("credit_transfer", "p2p_in", "refund")
TRANSACTION = (
    "amount", "currency", "txn_type", "channel", "country", "mcc", "merchant", "counterparty",
)  # fmt: skip
NUMBERS = ("amount", "price", "quantity")
MILESTONE = "milestone"


@dataclass(frozen=True)
class Events:
    """A source of a prepared set: rows of one of pragmatiq's sources, and the fields of its map."""

    source: str
    fields: tuple[str, ...]
    received: bool | None = None


SOURCES: dict[str, Events] = {
    "money_in": Events("transaction", TRANSACTION, received=True),
    "money_out": Events("transaction", TRANSACTION, received=False),
    "app": Events(
        "app", ("screen", "action", "device_id", "os", "app_version", "geo_country")
    ),
    "trading": Events(
        "trading", ("instrument", "side", "order_type", "quantity", "price", "venue")
    ),
    "communication": Events(
        "communication", ("comm_event", "campaign_id", "channel", "template")
    ),
}  # fmt: skip
ATTRIBUTES = (
    "age_band", "country", "occupation", "income_band", "kyc_tier", "marital", "housing",
    "device_count",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One of pragmatiq's label tables."""

    table: str
    title: str
    label: str
    who: str


TASKS: dict[str, Task] = dict(
    zip(
        SYNTHETIC,
        (
            Task(
                "default_12m",
                "Synthetic: pragmatiq's simulator, default within 12 months",
                "1 = insolvent in the 12 months after as_of: the simulated balance stays below the "
                "overdraft limit for 14 days; 0.5 % of labels are flipped at random",
                "3 or more transactions in the 90 days before as_of, and not yet insolvent",
            ),
            Task(
                "churn_6m",
                "Synthetic: pragmatiq's simulator, churn within 6 months",
                "1 = leaves in the 6 months after as_of: the simulated customer reaches a state "
                "without any activity; 0.5 % of labels are flipped at random",
                "has an event before as_of, and has not left",
            ),
        ),
        strict=True,
    )
)


def prepare_synthetic(
    simulated: Path, prepared: Path, names: Sequence[str] = SYNTHETIC, users: int | None = None
) -> list[Path]:
    """Write the prepared folders of some tasks.

    Args:
        simulated: folder that `pragmatiq synth generate` wrote.
        prepared: folder of the prepared sets; a set of the same name is replaced.
        users: only the first so many, in order of their ids; each is simulated by itself, so they
            are a random part.
    Raises:
        DataError: the folder is not one of pragmatiq's, or holds what it should not.
    """
    manifest = _manifest(simulated)
    ids = pl.read_parquet(simulated / "profiles.parquet", columns=["user_id"])["user_id"]
    if users is not None and not 1 <= users <= len(ids):
        raise DataError(f"cannot take {users} users: {simulated} holds {len(ids)}")
    kept = ids.unique().sort().head(users or len(ids))
    out = []
    for name in names:
        making = prepared / f"{name}.part"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        _write_set(simulated, making, name, kept, manifest)
        shutil.rmtree(prepared / name, ignore_errors=True)
        os.replace(making, prepared / name)
        out.append(prepared / name)
    return out


def _manifest(simulated: Path) -> dict[str, Any]:
    """The simulator's own record.

    Raises:
        DataError: a file of pragmatiq's is not there.
    """
    tables = [f"labels/{task.table}.parquet" for task in TASKS.values()]
    for file in ("events.parquet", "profiles.parquet", "manifest.json", *tables):
        if not (simulated / file).is_file():
            raise DataError(
                f"{simulated / file}: not there; pragmatiq's simulator writes the folder: "
                f"pip install pragmatiq=={MADE_FOR}, then "
                f"pragmatiq synth generate --n-users 8000 --seed 11 --out {simulated}"
            )
    return dict(json.loads((simulated / "manifest.json").read_text(encoding="utf-8")))


def _write_set(
    simulated: Path, folder: Path, name: str, kept: pl.Series, manifest: dict[str, Any]
) -> None:
    task = TASKS[name]
    pool, test, as_of = split_labels(simulated / "labels" / f"{task.table}.parquet", kept)
    files: dict[str, pl.DataFrame] = {}
    rows: dict[str, int] = {}
    for source, events in SOURCES.items():
        path = folder / f"{source}.parquet"
        events_before(simulated / "events.parquet", events, kept[-1], as_of).sink_parquet(path)
        rows[source] = _check_filled(path, events, simulated)
    profiles = pl.read_parquet(simulated / "profiles.parquet").filter(
        pl.col("user_id").is_in(kept.implode())
    )
    files[MILESTONE] = milestones_before(profiles, as_of)
    rows[MILESTONE] = len(files[MILESTONE])
    files["profile"] = (
        profiles.select(
            pl.col("user_id").alias("entity_id"),
            *(pl.col("attributes").map.get(name).alias(name) for name in ATTRIBUTES),
        )
        .sort("entity_id")
        .cast({"device_count": pl.Int64})
    )
    labelled = pl.concat([pool, test])["entity_id"]
    others = kept.filter(~kept.is_in(labelled.implode()))
    files |= {
        "pool": pool,
        "test": test,
        "unlabelled": pl.DataFrame({"entity_id": others}).with_columns(as_of=pl.lit(as_of)),
    }
    for part, frame in files.items():
        frame.write_parquet(folder / f"{part}.parquet")
    meta = _meta(name, task, files, rows, as_of, manifest)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def split_labels(table: Path, kept: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame, dt.datetime]:
    """Labelled users, half of them pool and half test, and the one moment they are judged at.

    Raises:
        DataError: not one eval_ts, or no label of the kept users.
    """
    frame = pl.read_parquet(table).filter(pl.col("user_id").is_in(kept.implode()))
    moments = frame["eval_ts"].unique().sort()
    if len(moments) != 1:
        raise DataError(
            f"{table}: expected one eval_ts for all users, found {len(moments)}: "
            f"{listing(moments.to_list(), 5)}"
        )
    rows = frame.select(
        pl.col("user_id").alias("entity_id"),
        pl.col("eval_ts").alias("as_of"),
        pl.col("label").cast(pl.Int64),
    ).sort("entity_id")
    in_pool = pl.Series(np.random.default_rng(0).random(len(rows)) < 0.5)
    return rows.filter(in_pool), rows.filter(~in_pool), moments[0]


def events_before(table: Path, events: Events, last: str, as_of: dt.datetime) -> pl.LazyFrame:
    """Events of a source before as_of, of users up to `last`: entity_id, event_time, fields."""
    frame = pl.scan_parquet(table).filter(
        pl.col("source") == events.source,
        pl.col("ts") < as_of,
        # A range, so that row groups of later users are not read: the file goes by user.
        pl.col("user_id") <= last,
    )
    field = {name: pl.col("fields").map.get(name) for name in events.fields}
    if events.received is not None:
        received = field["txn_type"].is_in(RECEIVED)
        frame = frame.filter(received if events.received else ~received)
    return frame.select(
        pl.col("user_id").alias("entity_id"),
        pl.col("ts").alias("event_time"),
        *(
            value.cast(pl.Float64 if name in NUMBERS else pl.String).alias(name)
            for name, value in field.items()
        ),
    )


def milestones_before(profiles: pl.DataFrame, as_of: dt.datetime) -> pl.DataFrame:
    """The dated steps of each customer before as_of: entity_id, event_time, step."""
    steps = profiles.select("user_id", "lifelong").explode("lifelong").unnest("lifelong")
    return (
        steps.filter(pl.col("ts") < as_of)
        .select(
            pl.col("user_id").alias("entity_id"),
            pl.col("ts").alias("event_time"),
            pl.col("key").alias("step"),
        )
        .sort("entity_id", "event_time")
    )


def _check_filled(path: Path, events: Events, simulated: Path) -> int:
    """Rows of a written source.

    Raises:
        DataError: a field that no event has: another version of pragmatiq wrote it.
    """
    counts = pl.scan_parquet(path).select(pl.len().alias("_rows"), pl.col(events.fields).count())
    found = counts.collect().row(0, named=True)
    rows = int(found.pop("_rows"))
    empty = [name for name, count in found.items() if rows and not count and name != "counterparty"]
    if empty:
        raise DataError(
            f"{simulated / 'events.parquet'}: no '{events.source}' event has the fields "
            f"{listing(empty)}; this reads what pragmatiq {MADE_FOR} writes"
        )
    return rows


def _meta(
    name: str,
    task: Task,
    files: dict[str, pl.DataFrame],
    rows: dict[str, int],
    as_of: dt.datetime,
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """meta.json as the other prepared sets have it."""
    schema = load_schema(ROOT / "configs" / "schemas" / f"{name}.yaml")
    pool, test = files["pool"], files["test"]
    rate = float(pool["label"].mean() or 0.0)  # type: ignore[arg-type]
    need = "no bads" if not rate else f"{MIN_BADS} bads need {math.ceil(MIN_BADS / rate)} labels"
    world = manifest["config"]
    kept, simulated = len(files["profile"]), int(manifest["n_users"])
    return {
        "name": name,
        "title": task.title + (f", {kept:,} of {simulated:,} users" if kept < simulated else ""),
        "synthetic": True,
        "simulator": {
            "name": "pragmatiq",
            "version": manifest["pragmatiq_version"],
            "n_users": simulated,
            "n_users_kept": kept,
            "seed": world["seed"],
            "months": world["months"],
        },
        "label": task.label,
        "labelled": task.who,
        "split_rule": "by user: np.random.default_rng(0).random < .5 over sorted labelled users "
        "is pool",
        "as_of": f"{as_of:%Y-%m-%d} for all",
        "profile_note": "undated: the simulator draws the attributes once, before any event",
        "outcomes": [
            {"name": outcome, "declared": text} for outcome, text in schema.outcomes.items()
        ],
        "windows_days": list(schema.windows_days),
        "dropped": {
            "transfers.parquet": "the ledger of transfers is in the transactions, but for the "
            "rings of its money-laundering task",
        },
        "notes": [
            "transactions are money_in and money_out, as amounts bear no sign",
            f"at the pool's bad rate 300 labels hold {300 * rate:.0f} bads; {need}",
            "unlabelled: users without a label, by what happened before as_of",
        ],
        "history_until": "as_of",
        "n_pool": len(pool),
        "n_test": len(test),
        "n_unlabelled": len(files["unlabelled"]),
        "bad_rate_pool": round(rate, 4),
        "bad_rate_test": round(float(test["label"].mean() or 0.0), 4),  # type: ignore[arg-type]
        "n_bad_pool": int(pool["label"].sum()),
        "n_bad_test": int(test["label"].sum()),
        "sources": {
            source: {"file": f"{source}.parquet", "time_field": "event_time", "rows": count}
            for source, count in rows.items()
        },
        "profile": {
            "file": "profile.parquet", "time_field": None, "rows": len(files["profile"]),
        },
    }  # fmt: skip
