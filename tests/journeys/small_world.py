"""A small lending world, imported, pretrained and adapted once per session.

Synthetic: monthly statements of 260 customers whose hidden risk drives lateness and amounts, a
profile, and a context column. Two sources, an identifier, a timestamp field.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

UNTIL = dt.datetime(2021, 1, 1)
CUSTOMERS = 260


@dataclass(frozen=True)
class World:
    """Paths of everything the journeys need."""

    root: Path
    schema: Path
    store: Path
    backbone: Path
    samples: Path
    test: Path
    config: Path


def statements(rng: np.random.Generator, risk: np.ndarray) -> pl.DataFrame:
    rows = []
    for i, r in enumerate(risk):
        if i % 37 == 5:  # thin files: no event at all
            continue
        months = pl.datetime_range(
            dt.datetime(2019, 7, 28), dt.datetime(2021, 3, 28), "1mo", eager=True
        )
        late = rng.random(len(months)) < r
        amount = np.exp(rng.normal(5 + r, 0.5, len(months)))
        rows.append(
            pl.DataFrame(
                {
                    "entity_id": [f"c{i:04d}"] * len(months),
                    "event_time": months,
                    "status": np.where(late, "late", "ok"),
                    "amount": amount,
                    "due": months - pl.Series(np.where(late, 9, -1)) * dt.timedelta(days=1),
                }
            )
        )
    return pl.concat(rows)


def logins(rng: np.random.Generator, risk: np.ndarray) -> pl.DataFrame:
    entity = np.repeat(np.arange(len(risk)), 6)
    entity = entity[entity % 37 != 5]
    days = rng.integers(0, 540, len(entity))
    times = pl.Series(days).cast(pl.Int64) * 86_400_000_000 + 1_561_939_200_000_000
    return pl.DataFrame(
        {
            "entity_id": [f"c{i:04d}" for i in entity],
            "event_time": times.cast(pl.Datetime("us")),
            "device": [f"d{v}" for v in rng.integers(0, 90, len(entity))],
            "successful": rng.random(len(entity)) < 0.9,
        }
    )


SCHEMA = {
    "name": "small_world",
    "time_zone": "UTC",
    "sources": {
        "statement": {
            "path": "statement.parquet",
            "fields": {
                "status": {"kind": "category", "role": "status"},
                "amount": {"kind": "money", "role": "amount", "currency": "EUR"},
                "due": {"kind": "timestamp"},
            },
        },
        "login": {
            "path": "login.csv",
            "fields": {"device": {"kind": "identifier"}, "successful": {"kind": "boolean"}},
        },
    },
    "profile": {
        "path": "profile.parquet",
        "fields": {"income": {"kind": "money"}, "region": {"kind": "category"}},
    },
    "context": {"requested": {"kind": "money"}},
    "outcomes": {
        "late": "statement.status in ('late') within 31d",
        "late_payment": "statement.event_time > due + 3d within 62d",
    },
    "windows_days": [31, 93, 186],
}

PRETRAIN = {
    "name": "tiny",
    "model": {
        "width": 32, "layers": 1, "heads": 2, "hidden": 32, "fusion_hidden": 32,
        "slot_width": 16, "hash_rows": 256, "name_rows": 64,
    },
    "steps": 12,
    "batch_events": 512,
    "max_events": 64,
    "queries": 2,
    "cuts": 6,
    "validation_batches": 1,
    "validate_every": 6,
    "checkpoint_every": 6,
    "boost": {"folds": 2, "rounds": 20, "per_entity": 6},
    "threads": 1,
}  # fmt: skip


def write_world(root: Path) -> World:
    """Raw files, schema, samples; nothing imported yet."""
    rng = np.random.default_rng(3)
    risk = rng.beta(1.2, 4.0, CUSTOMERS)
    ids = [f"c{i:04d}" for i in range(CUSTOMERS)]
    statements(rng, risk).write_parquet(root / "statement.parquet")
    logins(rng, risk).write_csv(root / "login.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    pl.DataFrame(
        {
            "entity_id": ids,
            "income": np.exp(rng.normal(8 - risk, 0.4)),
            "region": rng.choice(["north", "south", "west"], CUSTOMERS),
        }
    ).write_parquet(root / "profile.parquet")
    label = (rng.random(CUSTOMERS) < np.clip(1.6 * risk, 0, 1)).astype(int)
    samples = pl.DataFrame(
        {
            "entity_id": ids,
            "as_of": [UNTIL] * CUSTOMERS,
            "label": label,
            "requested": np.exp(rng.normal(6, 0.6, CUSTOMERS)).round(2),
        }
    )
    samples[:150].write_csv(root / "samples.csv")
    samples[150:].write_csv(root / "test.csv")
    (root / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False), encoding="utf-8")
    (root / "tiny.yaml").write_text(yaml.safe_dump(PRETRAIN, sort_keys=False), encoding="utf-8")
    return World(
        root=root, schema=root / "schema.yaml", store=root / "store", backbone=root / "backbone",
        samples=root / "samples.csv", test=root / "test.csv", config=root / "tiny.yaml",
    )  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world with its store and a pretrained backbone."""
    from foundation.pretraining import load_pretrain_config, run_pretraining
    from foundation.store import import_events

    made = write_world(tmp_path_factory.mktemp("world"))
    import_events(made.schema, made.store)
    run_pretraining(
        load_pretrain_config(made.config), made.store, made.backbone, until="2021-01-01",
        exclude_entities=made.test,
    )  # fmt: skip
    return made


@pytest.fixture(scope="session")
def adapted(world: World) -> Path:
    """A model adapted with a few fast recipes."""
    from finetune.adaptation import run_adaptation
    from finetune.modelling import AdaptSettings
    from serving.progress import Reporter

    output = world.root / "model"
    settings = AdaptSettings(
        recipes=("query", "linear", "gbdt", "forecast", "probe", "blend"), repeats=1, folds=4
    )
    run_adaptation(
        world.backbone, world.store, world.samples, output, settings, world.test, Reporter(True)
    )
    return output
