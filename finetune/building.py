"""The feature builder of a backbone, and what the backbone must not have known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from finetune.features import FLOAT32, INT8, FeatureBuilder, open_session
from finetune.file_scoring import check_same_schema, population_of
from finetune.samples import Samples, read_samples
from foundation.checkpoint import Backbone, load_backbone
from foundation.errors import SampleError, UserError
from foundation.store import EventStore
from foundation.tokenizer import Tokenizer
from foundation.trees import boosters_to_onnx

if TYPE_CHECKING:
    from foundation.backbone import RiskBackbone


@dataclass
class GraphFiles:
    """Graphs a package carries beside its heads.

    Attributes:
        precision: of history and incremental graph.
        parity: precision -> graph -> largest difference to torch over the probes, and what was
            allowed, as `tolerance`.
    """

    history: Path | None = None
    incremental: Path | None = None
    forecasters: Any = None
    precision: str = FLOAT32
    parity: dict[str, dict[str, float]] = field(default_factory=dict)


def make_builder(
    backbone: Backbone,
    samples: Samples | None,
    scratch: Path,
    packed: bool = False,
    precision: str = FLOAT32,
) -> tuple[FeatureBuilder, GraphFiles]:
    """The feature builder of a backbone; its network and forecasters run as ONNX from here on.

    Args:
        packed: also write the graph that goes on from a customer's kept state, for a package.
        precision: of both graphs. What is learned on the features is learned on states of the
            graph that is packed.

    Levels of context columns that no recorded decision has shown are known only now: the plain
    columns take them from the training samples, the network reads them as unknown.

    Raises:
        UserError: `int8` for a backbone without a network.
        ArtifactError: `int8` for a bidirectional one, or on a processor that is not exact.
    """
    tokenizer, spec = backbone.tokenizer, backbone.spec
    if backbone.schema.context and samples is not None:
        spec = spec.extend(None, samples.frame.select(list(backbone.schema.context)))
    graphs = GraphFiles(precision=precision)
    if precision == INT8:
        _require_int8(backbone)
    network_targets: tuple[str, ...] = ()
    based_targets: tuple[str, ...] = ()
    if backbone.model is not None:
        for each in dict.fromkeys((FLOAT32, precision)):
            _export(backbone.model, tokenizer, scratch, graphs, each, packed)
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
        history=open_session(str(graphs.history), threads=2) if graphs.history else None,
        forecasters=open_session(forecasters.SerializeToString(), threads=2)
        if forecasters
        else None,
        boosted_targets=boosted_targets,
        network_targets=network_targets,
        based_targets=based_targets,
        titles=titles,
        max_events=backbone.run["config"]["max_events"],
        precision=precision,
    )
    graphs.forecasters = forecasters
    return builder, graphs


def _require_int8(backbone: Backbone) -> None:
    from finetune.quantized import require_exact

    if backbone.model is None:
        raise UserError(
            f"--precision int8: backbone {backbone.path} has no network, so there is nothing to "
            "round; leave the option out"
        )
    require_exact("--precision int8")


def _export(
    model: RiskBackbone,
    tokenizer: Tokenizer,
    scratch: Path,
    graphs: GraphFiles,
    precision: str,
    packed: bool,
) -> None:
    """Write the network's graphs and note paths and parity; those of `int8` come second, and the
    float32 ones then only show that nothing but rounding differs."""
    from finetune.graph_writer import plain_products
    from finetune.history_graph import TOLERANCE, export_history
    from finetune.incremental_graph import export_incremental
    from finetune.quantized import TOLERANCE as ROUNDED
    from finetune.quantized import export_quantised, int8_products

    rounded = precision == INT8
    allowed = ROUNDED if rounded else TOLERANCE
    graphs.history = scratch / f"history_{precision}.onnx"
    export = export_quantised if rounded else export_history
    parity = {"history": export(model, tokenizer, graphs.history, allowed)}
    if packed and not model.config.bidirectional:
        graphs.incremental = scratch / f"incremental_{precision}.onnx"
        products = int8_products if rounded else plain_products
        parity["incremental"] = export_incremental(
            model, tokenizer, graphs.incremental, products, allowed
        )
    graphs.parity[precision] = parity | {"tolerance": allowed}


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
