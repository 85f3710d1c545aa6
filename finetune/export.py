"""Writing a package: everything a score needs, proved against the model it was made from.

The package is written beside its final place, loaded as a stranger would load it, compared with
the expected scores of its golden rows alone and in batches, and only then moved into place.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl

from finetune.adapters import SUFFIX, read_adapter, write_adapter
from finetune.features import FLOAT32, Population
from finetune.golden import frame_record
from finetune.heads import Head
from finetune.joined_heads import join_heads, single_head
from finetune.package import (
    FORMAT,
    TOLERANCE,
    Package,
    manifest_digest,
    population_times,
    read_columns,
)
from finetune.table import Column
from foundation.aggregates import AggregateSpec
from foundation.errors import ParityError
from foundation.history import ALWAYS_KNOWN
from foundation.schema import Schema, fingerprint, schema_to_dict
from foundation.tokenizer import Tokenizer

GOLDEN_ROWS = 16
GOLDEN_EVENTS = 512


@dataclass
class PackageParts:
    """What goes into a package.

    Attributes:
        history: path of the backbone's ONNX graph, or None.
        incremental: path of the graph that goes on from a kept state, or None.
        forecasters: the boosted forecasters' graph, or None.
        columns: every column of the feature table, in its order.
        reference: [F] development reference of every column, for reasons.
        calibration, points, bands: see `finetune.calibration` and `Package.band`.
        lineage: store version, fingerprints, seeds, code version.
        score_quantiles: 101 quantiles of the development sample's scores, for PSI.
        created_at: moment written into the manifest; None is now.
        precision: of history and incremental graph. graph_parity: how far they are from torch, see
            `finetune.building.GraphFiles`. Both are written into the manifest of other than
            float32 packages alone.
        labels: about the labels, beside rows and as_of; see `finetune.channels.label_record`.
    """

    name: str
    channel: str
    recipe: str
    why: str
    schema: Schema
    tokenizer: Tokenizer
    spec: AggregateSpec
    columns: tuple[Column, ...]
    heads: list[Head]
    offset: float
    calibration: dict[str, Any]
    points: dict[str, float]
    bands: list[dict[str, Any]]
    reference: np.ndarray
    max_events: int
    history: Path | None = None
    incremental: Path | None = None
    precision: str = FLOAT32
    graph_parity: dict[str, dict[str, float]] = field(default_factory=dict)
    forecasters: onnx.ModelProto | None = None
    boosted_targets: tuple[str, ...] = ()
    network_targets: tuple[str, ...] = ()
    based_targets: tuple[str, ...] = ()
    titles: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    score_quantiles: list[float] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    created_at: dt.datetime | None = None


@dataclass(frozen=True)
class Parity:
    """How closely the written package reproduces the model.

    Attributes:
        rows: golden rows compared.
        alone, batch: largest absolute difference of scores, one by one and together.
    """

    rows: int
    alone: float
    batch: float


def write_package(
    path: Path, parts: PackageParts, population: Population, expected: np.ndarray
) -> tuple[Package, Parity]:
    """Write, prove and place a package.

    Args:
        path: final directory; replaced as a whole.
        population: rows to take golden rows from.
        expected: [S] their scores by the model in memory.
    Raises:
        ParityError: the written package scores a golden row differently by more than 1e-5.
    """
    rows = golden_choice(population, expected)
    partial = path.with_name(f".{path.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    manifest = _write_files(partial, parts, population, rows, expected)
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    package = Package.load(partial)
    parity = prove(package, population, rows, expected)
    # The old package stands until the new one is proved, and is moved aside, not emptied in place.
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.replace(old)
    partial.replace(path)
    shutil.rmtree(old, ignore_errors=True)
    return package, parity


def prove(
    package: Package, population: Population, rows: np.ndarray, expected: np.ndarray
) -> Parity:
    """Score rows of a population alone and together and compare with the model's scores.

    Raises:
        ParityError: a difference above 1e-5.
    """
    part = take(population, rows)
    together = np.array([r.score for r in package.score_population(part)])
    single = np.array(
        [
            package.score_population(take(population, rows[i : i + 1]))[0].score
            for i in range(min(6, len(rows)))
        ]
    )
    batch = float(np.max(np.abs(together - expected[rows]), initial=0.0))
    alone = float(np.max(np.abs(single - expected[rows[: len(single)]]), initial=0.0))
    if not max(batch, alone) <= TOLERANCE:
        raise ParityError(
            f"the exported package differs from the model by {max(batch, alone):.2g} on "
            f"{len(rows)} golden rows, allowed {TOLERANCE:g}"
        )
    return Parity(len(rows), alone, batch)


def golden_choice(population: Population, expected: np.ndarray) -> np.ndarray:
    """Rows spread evenly over the scores, with short histories preferred to very long ones."""
    from foundation.history import cut

    cut_ = cut(population.timeline, population.entity_ids, population.as_of_us)
    length = cut_.stop - cut_.start
    usable = np.flatnonzero(length <= max(GOLDEN_EVENTS, int(length.min(initial=0))))
    order = usable[np.argsort(expected[usable], kind="stable")]
    picks = np.unique(np.linspace(0, len(order) - 1, min(GOLDEN_ROWS, len(order))).astype(int))
    chosen = set(order[picks].tolist())
    thin = usable[length[usable] == 0]
    if len(thin):
        chosen.add(int(thin[0]))
    return np.array(sorted(chosen), dtype=np.int64)


def take(population: Population, rows: np.ndarray) -> Population:
    """Some rows of a population on the same timeline."""
    return Population(
        timeline=population.timeline,
        profile=population.profile,
        entity_ids=population.entity_ids[rows],
        as_of_us=population.as_of_us[rows],
        context=None if population.context is None else population.context[rows],
    )


def golden_record(
    schema: Schema, population: Population, rows: np.ndarray, expected: np.ndarray
) -> dict[str, Any]:
    """Golden rows as plain data; entity ids are replaced, each row carries its own history."""
    names = [f"golden-{i:02d}" for i in range(len(rows))]
    wanted = pl.DataFrame(
        {
            "entity_id": population.entity_ids[rows],
            "_name": names,
            "_as_of": pl.Series(population.as_of_us[rows]).cast(pl.Datetime("us")),
        }
    )
    events = {}
    for source, frame in zip(schema.source_names, population.timeline.frames, strict=True):
        events[source] = frame_record(_renamed(frame, wanted))
    profile = {}
    if population.profile is not None:
        history = population.profile
        stamped = history.frame.with_columns(
            pl.when(pl.Series(history.known_us) > ALWAYS_KNOWN)
            .then(pl.col("known_at"))
            .otherwise(None)
            .alias("known_at")
        )
        profile = frame_record(_renamed(stamped, wanted))
    samples = pl.DataFrame({"entity_id": names, "as_of": wanted["_as_of"]})
    if isinstance(population.context, pl.DataFrame):
        samples = samples.hstack(population.context[rows])
    return {
        "events": events,
        "profile": profile,
        "samples": frame_record(samples),
        "scores": [float(v) for v in expected[rows]],
    }


def _renamed(frame: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """Rows of the wanted entities known before their as_of, under their golden names."""
    joined = frame.with_row_index("_row").join(wanted, on="entity_id", how="inner")
    known = (pl.col("known_at") < pl.col("_as_of")) | pl.col("known_at").is_null()
    kept = joined.filter(known).sort("_name", "_row")
    return kept.with_columns(pl.col("_name").alias("entity_id")).select(frame.columns)


def _write_files(
    path: Path, parts: PackageParts, population: Population, rows: np.ndarray, expected: np.ndarray
) -> dict[str, Any]:
    """Write every file but the manifest; return the manifest."""
    (path / "tokenizer.json").write_text(parts.tokenizer.to_json(), encoding="utf-8")
    (path / "aggregates.json").write_text(parts.spec.to_json(), encoding="utf-8")
    record = golden_record(parts.schema, population, rows, expected)
    (path / "golden.json").write_text(json.dumps(record), encoding="utf-8")
    graphs: dict[str, str] = {}
    if parts.history is not None:
        shutil.copyfile(parts.history, path / "history.onnx")
        graphs["history"] = "history.onnx"
    if parts.incremental is not None:
        shutil.copyfile(parts.incremental, path / "incremental.onnx")
        graphs["incremental"] = "incremental.onnx"
    if parts.forecasters is not None:
        (path / "forecasters.onnx").write_bytes(parts.forecasters.SerializeToString())
        graphs["forecasters"] = "forecasters.onnx"
    columns = [
        {"name": c.name, "block": c.block, "kind": c.kind, "group": c.group, "title": c.title}
        for c in parts.columns
    ]
    heads = _write_heads(path, parts.heads, columns, graphs)
    files = {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(path.rglob("*"))
        if f.is_file()
    }
    moments = population_times(population)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": parts.name,
        "channel": parts.channel,
        "recipe": parts.recipe,
        "why": parts.why,
        "created_at": (parts.created_at or dt.datetime.now(dt.UTC)).isoformat(timespec="seconds"),
        "label": {
            "rows": len(expected),
            "as_of_first": min(moments),
            "as_of_last": max(moments),
            **parts.labels,
        },
        "schema": schema_to_dict(parts.schema),
        "schema_fingerprint": fingerprint(parts.schema),
        "tokenizer_fingerprint": parts.tokenizer.fingerprint,
        "graphs": graphs,
        "max_events": parts.max_events,
        "boosted_targets": list(parts.boosted_targets),
        "network_targets": list(parts.network_targets),
        "based_targets": list(parts.based_targets),
        "forecast_titles": parts.titles,
        "columns": columns,
        "heads": heads,
        "offset": float(parts.offset),
        "calibration": parts.calibration,
        "points": parts.points,
        "bands": parts.bands,
        "reference": [None if np.isnan(v) else float(v) for v in parts.reference],
        "score_quantiles": parts.score_quantiles,
        "metrics": parts.metrics,
        "files": files,
        **parts.lineage,
    }
    if parts.precision != FLOAT32:
        manifest |= {"precision": parts.precision, "graph_parity": parts.graph_parity}
    digest = manifest_digest(manifest)
    return {"id": f"{parts.name}-{digest[:8]}", "digest": digest, **manifest}


def _write_heads(
    path: Path, heads: list[Head], columns: list[dict[str, Any]], graphs: dict[str, str]
) -> list[dict[str, Any]]:
    """Write the heads: one graph of those that read columns, graph and adapter of each tuned one.

    Args:
        graphs: kind -> file; gets `heads`.
    Returns:
        what the manifest says of each: name, columns, weight, and of a tuned one its files.
    """
    named = [replace(head, name=f"{i:02d}_{head.name}") for i, head in enumerate(heads)]
    records: list[dict[str, Any]] = [
        {"name": h.name, "columns": list(h.columns), "weight": float(h.weight)} for h in named
    ]
    columnar = [head for head in named if head.columns]
    if columnar:
        read = read_columns({"heads": records, "columns": columns})
        graphs["heads"] = "heads.onnx"
        (path / "heads.onnx").write_bytes(join_heads(columnar, read).SerializeToString())
    written: dict[bytes, str] = {}
    for head, record in zip(named, records, strict=True):
        if head.adapter is None:
            continue
        graph = head.model.SerializeToString()
        record["graph"] = written.setdefault(graph, f"tuned_{len(written)}.onnx")
        record["adapter"] = f"adapters/{head.name}{SUFFIX}"
        (path / "adapters").mkdir(exist_ok=True)
        (path / record["graph"]).write_bytes(graph)
        write_adapter(path / record["adapter"], head.adapter)
    return records


def read_heads(path: str | Path, manifest: dict[str, Any]) -> list[Head]:
    """The heads of a package as they were before it was written, under their names in it."""
    path = Path(path)
    joined = None
    if "heads" in manifest["graphs"]:
        joined = onnx.load_model_from_string((path / manifest["graphs"]["heads"]).read_bytes())
    out = []
    for head in manifest["heads"]:
        name, columns = head["name"], tuple(head["columns"])
        if columns:
            assert joined is not None
            model, adapter = single_head(joined, name, len(columns)), None
        else:
            model = onnx.load_model_from_string((path / head["graph"]).read_bytes())
            adapter = read_adapter(path / head["adapter"])
        out.append(Head(name, columns, model, head["weight"], adapter))
    return out
