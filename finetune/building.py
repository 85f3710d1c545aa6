"""The feature builder of a backbone, and what the backbone must not have known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.features import FeatureBuilder, open_session
from finetune.file_scoring import check_same_schema, population_of
from finetune.samples import Samples, read_samples
from foundation.checkpoint import Backbone, load_backbone
from foundation.errors import SampleError
from foundation.store import EventStore
from foundation.trees import boosters_to_onnx


@dataclass
class GraphFiles:
    """Graphs a package carries beside its heads."""

    history: Path | None
    incremental: Path | None
    forecasters: Any


def make_builder(
    backbone: Backbone, samples: Samples | None, scratch: Path, packed: bool = False
) -> tuple[FeatureBuilder, GraphFiles]:
    """The feature builder of a backbone; its network and forecasters run as ONNX from here on.

    Args:
        packed: also write the graph that goes on from a customer's kept state, for a package.

    Levels of context columns that no recorded decision has shown are known only now: the plain
    columns take them from the training samples, the network reads them as unknown.
    """
    tokenizer, spec = backbone.tokenizer, backbone.spec
    if backbone.schema.context and samples is not None:
        spec = spec.extend(None, samples.frame.select(list(backbone.schema.context)))
    history = incremental = None
    network_targets: tuple[str, ...] = ()
    based_targets: tuple[str, ...] = ()
    if backbone.model is not None:
        from finetune.history_graph import export_history

        history = scratch / "history.onnx"
        export_history(backbone.model, tokenizer, history)
        if packed and not backbone.model.config.bidirectional:
            from finetune.incremental_graph import export_incremental

            incremental = scratch / "incremental.onnx"
            export_incremental(backbone.model, tokenizer, incremental)
        network_targets = tuple(backbone.model.config.targets)
        based_targets = tuple(backbone.model.config.based)
    forecasters = None
    titles = {
        t: o.title(h)
        for o in backbone.schema.parsed_outcomes()
        for t, h in zip(o.targets, o.horizons, strict=True)
    }
    boosted_targets: tuple[str, ...] = ()
    if backbone.forecasters is not None and backbone.forecasters.names:
        boosted_targets = tuple(backbone.forecasters.names)
        forecasters = boosters_to_onnx(backbone.forecasters.models, len(backbone.spec.columns))
    builder = FeatureBuilder(
        schema=backbone.schema,
        tokenizer=tokenizer,
        spec=spec,
        history=open_session(str(history), threads=2) if history else None,
        forecasters=open_session(forecasters.SerializeToString(), threads=2)
        if forecasters
        else None,
        boosted_targets=boosted_targets,
        network_targets=network_targets,
        based_targets=based_targets,
        titles=titles,
        max_events=backbone.run["config"]["max_events"],
    )
    return builder, GraphFiles(history, incremental, forecasters)


def cross_fitted(backbone: Backbone, entity_ids: pl.Series) -> Callable[[np.ndarray], np.ndarray]:
    """Boosted forecasts of training rows: each by the fold that never saw its entity."""

    def run(aggregates: np.ndarray) -> np.ndarray:
        return backbone.forecasters.predict(aggregates, entity_ids, cross_fitted=True)

    return run


def leak_notes(
    backbone: Backbone, samples: Samples, test: Samples | None, allowed: bool
) -> list[str]:
    """Compare what the backbone knew with when the samples were decided.

    Raises:
        SampleError: the backbone knew events after the earliest test as_of.
    """
    last = backbone.run.get("last_known_us")
    if last is None:
        return []
    notes = []

    def day(moment: int) -> str:
        return str(pl.select(pl.lit(moment).cast(pl.Datetime("us")).dt.date()).item())

    if test is not None and last >= int(test.as_of_us.min()):
        text = (
            f"the backbone knew events up to {day(last)}, the earliest test sample is decided on "
            f"{day(int(test.as_of_us.min()))}"
        )
        if not allowed:
            raise SampleError(
                f"{text}; pretrain with --until {day(int(test.as_of_us.min()))}, or measure anyway "
                "with --allow-leak (the report will say so)"
            )
        notes.append(f"{text}: the test is not point in time")
    if last >= int(samples.as_of_us.min()):
        notes.append(
            f"the backbone knew events up to {day(last)}, after the earliest training sample "
            f"({day(int(samples.as_of_us.min()))}): out-of-fold figures may flatter, trust the test"
        )
    return notes


def embed_samples(
    backbone_dir: Path, store_dir: Path, samples_path: Path, output: Path, progress: Any
) -> tuple[int, int]:
    """Write every feature of a sample file as Parquet.

    Returns:
        rows and feature columns written.
    """
    store = EventStore.open(store_dir)
    backbone = load_backbone(backbone_dir)
    check_same_schema(store, backbone.schema, f"backbone {backbone_dir}")
    samples = read_samples(samples_path, backbone.schema, need_labels=False, keep_duplicates=True)
    with tempfile.TemporaryDirectory() as scratch:
        builder, _ = make_builder(backbone, samples, Path(scratch))
        table = builder.table(population_of(store, backbone.schema, samples), progress=progress)
    features = pl.DataFrame({c.name: table.values[:, i] for i, c in enumerate(table.columns)})
    frame = samples.frame.select("entity_id", "as_of", "label").hstack(features)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.part")
    frame.write_parquet(partial)
    partial.replace(output)
    return len(frame), len(table.columns)
