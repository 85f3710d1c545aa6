"""A package of arithmetic with the interface of `finetune.package`, for tests of the service.

Its score depends on the history before as_of, the profile and the context, so that a mixed-up,
leaked or dropped row changes it.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.features import Population
from foundation.errors import ArtifactError
from foundation.history import build_profile, build_timeline, cut
from foundation.row_table import RowTable, Words
from foundation.schema import Schema, schema_from_dict
from foundation.slots import source_columns

SCHEMA: dict[str, Any] = {
    "name": "fake",
    "time_zone": "Asia/Shanghai",
    "sources": {
        "statement": {
            "fields": {
                "status": {"kind": "category"},
                "bill_amt": {"kind": "money"},
                "paid": {"kind": "boolean"},
                "due": {"kind": "timestamp"},
            }
        },
        "login": {
            "time_zone": "UTC",
            "delay": "1d",
            "fields": {
                "device id": {"kind": "identifier", "sharing": True},
                "note": {"kind": "text"},
            },
        },
    },
    "profile": {"fields": {"age": {"kind": "number"}, "class": {"kind": "category"}}},
    "context": {"amount": {"kind": "money"}, "term": {"kind": "number"}},
}


@dataclass(frozen=True)
class Reason:
    name: str
    title: str
    value: str
    effect: float


@dataclass(frozen=True)
class ScoreRow:
    entity_id: str
    as_of: str
    score: float
    points: int
    band: str
    reasons: tuple[Reason, ...]
    forecasts: dict[str, float]
    flags: tuple[str, ...]


class Package:
    """Scores by a formula; `behaviour` makes it slow, broken or not finite.

    Attributes:
        gate: where there is one, scores wait until it opens.
    """

    own_bytes = 1024
    encoder = None

    def __init__(self, manifest: dict[str, Any], schema: Schema, behaviour: str = "") -> None:
        self.manifest = manifest
        self.schema = schema
        self.behaviour = behaviour
        self.scored = 0
        self.gate: threading.Event | None = None

    @classmethod
    def load(
        cls, path: str | Path, verify: bool = True, threads: int = 1, sessions: Any = None
    ) -> Package:
        manifest = json.loads((Path(path) / "manifest.json").read_text())
        if manifest.get("damaged"):
            raise ArtifactError(f"{path}: the digest does not match")
        return cls(manifest, schema_from_dict(manifest["schema"]), manifest.get("behaviour", ""))

    def score(
        self,
        frames: Mapping[str, pl.DataFrame],
        profile: pl.DataFrame | None,
        samples: pl.DataFrame,
        reasons: bool = False,
    ) -> list[ScoreRow]:
        samples = samples.with_columns(pl.col("as_of").cast(pl.Datetime("us")))
        return self.score_population(
            Population(
                build_timeline(self.schema, frames),
                None if profile is None else build_profile(profile),
                samples["entity_id"],
                samples["as_of"].cast(pl.Int64).to_numpy(),
                samples,
            ),
            reasons,
        )

    def score_population(self, population: Population, reasons: bool = False) -> list[ScoreRow]:
        self.scored += 1
        if self.gate is not None:
            assert self.gate.wait(60)
        after_warm_up = self.scored > 1
        if after_warm_up and self.behaviour.startswith("slow"):
            time.sleep(float(self.behaviour.split()[1]))
        if after_warm_up and self.behaviour == "broken":
            raise ValueError("secret value 4711 in a message")
        timeline = population.timeline
        histories = cut(timeline, population.entity_ids, population.as_of_us)
        amounts = _numbers(population.context, "amount", len(population))
        ages = _ages(population)
        rows = []
        for index, entity in enumerate(population.entity_ids.to_list()):
            span = slice(histories.start[index], histories.stop[index])
            total = amounts[index] / 100 + ages.get(entity, 0.0)
            for source in range(len(self.schema.source_names)):
                place = timeline.positions(source)
                inside = (place >= span.start) & (place < span.stop)
                for name, column in source_columns(timeline, source).items():
                    if isinstance(column, Words):
                        kinds = len(set(column.code[inside].tolist()) - {-1})
                        total += kinds * (1 + len(name))
                    else:
                        total += float(np.nansum(np.asarray(column)[inside])) % 1000
            score = 1 / (1 + math.exp(-(total % 7 - 3.5)))
            if after_warm_up and self.behaviour == "nan":
                score = float("nan")
            why = (Reason("context.amount", "amount", str(amounts[index]), 0.25),)
            rows.append(
                ScoreRow(
                    entity_id=entity,
                    as_of="",
                    score=score,
                    points=round(600 - 100 * score),
                    band="approve" if score < 0.5 else "decline",
                    reasons=why if reasons else (),
                    forecasts={"late within 30 days": score / 2},
                    flags=("thin_file",) if span.start == span.stop else (),
                )
            )
        return rows


def _ages(population: Population) -> dict[str, float]:
    """The last age of every customer that has a profile."""
    profile = population.profile
    if profile is None:
        return {}
    ages = _numbers(profile.rows, "age", int(profile.offsets[-1]))
    spans = zip(profile.entity_ids, profile.offsets, profile.offsets[1:], strict=False)
    return {entity: ages[stop - 1] for entity, start, stop in spans if stop > start}


def _numbers(table: pl.DataFrame | RowTable | None, name: str, count: int) -> list[float]:
    """A column of numbers, zero where missing."""
    column = None
    if isinstance(table, RowTable):
        column = table.columns.get(name)
    elif table is not None:
        column = table[name].cast(pl.Float64).to_numpy()
    found = np.full(count, np.nan) if column is None else np.asarray(column, dtype=np.float64)
    return np.nan_to_num(found).tolist()


def write_package(directory: Path, name: str = "fake", **more: Any) -> Path:
    """A directory that `Package.load` reads."""
    path = directory / name
    path.mkdir(parents=True)
    manifest = {
        "id": f"{name}-0001",
        "digest": f"digest-of-{name}",
        "name": name,
        "channel": "default",
        "recipe": "blend",
        "created_at": "2026-01-01T00:00:00Z",
        "label": {"rows": 10},
        "points": {"base": 600, "pdo": 20, "odds": 50.0},
        "metrics": {"auc": 0.7},
        "bands": [{"name": "approve", "below": 0.5}, {"name": "decline", "below": 1.01}],
        "schema": SCHEMA,
    } | more
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def request_of(events: int, seed: int = 0) -> dict[str, Any]:
    """A request with `events` statements, as a lender's system would send it."""
    rng = np.random.default_rng(seed)
    day = np.arange(events)
    return {
        "entity_id": f"c{seed}",
        "as_of": "2020-09-01T00:00:00Z",
        "events": {
            "statement": [
                {
                    "event_time": f"{2018 + int(d) // 360}-{1 + int(d) % 360 // 30:02d}-"
                    f"{1 + int(d) % 28:02d}T10:00:00+08:00",
                    "status": str(rng.integers(0, 9)),
                    "bill_amt": round(float(rng.normal(100, 30)), 2),
                    "paid": bool(rng.integers(0, 2)),
                    "due": "2020-01-01",
                }
                for d in day
            ]
        },
        "profile": {"age": 30 + seed, "class": "b"},
        "context": {"amount": 1000 + 37 * seed, "term": 12},
    }
