"""What packages of one backbone share: schema, tokenizer, aggregates, graphs and columns.

Two packages stand on one ground where everything that decides how features are made is equal, to
the byte. It is made from verified files alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.features import FLOAT32, INT8, FeatureBuilder
from finetune.golden import Proofs
from finetune.incremental import IncrementalEncoder
from finetune.sessions import Sessions, read_verified
from foundation.aggregates import AggregateSpec
from foundation.errors import ArtifactError, listing
from foundation.schema import fingerprint, schema_from_dict
from foundation.tokenizer import Tokenizer

# What of a manifest decides how features are made.
MEMBERS = (
    "schema",
    "schema_fingerprint",
    "tokenizer_fingerprint",
    "boosted_targets",
    "network_targets",
    "based_targets",
    "forecast_titles",
    "max_events",
    "columns",
)

GRAPHS = ("history", "incremental", "forecasters")


@dataclass(eq=False)
class Ground:
    """What packages share that stand on one backbone and read the same columns.

    Attributes:
        builder: never used itself; every package has a copy.
        columns: the columns as a manifest lists them. names: each name by itself.
        inputs: aggregates the boosted forecasters split on; None where their graph hides it.
        encoder: goes on from a customer's kept state; None where the backbone cannot.
        proofs: what golden rows of the packages so far have proved of it.
    """

    builder: FeatureBuilder
    columns: list[dict[str, Any]]
    names: dict[str, str]
    inputs: frozenset[str] | None
    encoder: IncrementalEncoder | None
    proofs: Proofs = field(default_factory=Proofs)


def shared_ground(path: Path, manifest: dict[str, Any], sessions: Sessions) -> Ground:
    """What the package shares, made or found.

    Raises:
        ArtifactError: an altered file, a fingerprint that does not fit, or 8-bit products that
            this processor does not add exactly.
    """
    files, precision = manifest["files"], manifest.get("precision", FLOAT32)
    _require_precision(precision, path)
    graphs = {kind: manifest["graphs"].get(kind) for kind in GRAPHS}
    names = ["tokenizer.json", "aggregates.json", *(file for file in graphs.values() if file)]
    # Asked for by every package: a graph in use stays open.
    opened = {
        kind: sessions.open(path / file, files[file]) if file else None
        for kind, file in graphs.items()
    }

    def text(name: str) -> str:
        return read_verified(path / name, files[name]).decode("utf-8")

    def make() -> Ground:
        schema = schema_from_dict(manifest["schema"], f"{path}: schema")
        tokenizer = Tokenizer.from_json(text("tokenizer.json"))
        spec = AggregateSpec.from_json(text("aggregates.json"))
        _require(fingerprint(schema) == manifest["schema_fingerprint"], path, "schema")
        _require(tokenizer.fingerprint == manifest["tokenizer_fingerprint"], path, "tokenizer")
        builder = FeatureBuilder(
            schema=schema,
            tokenizer=tokenizer,
            spec=spec,
            history=opened["history"],
            forecasters=opened["forecasters"],
            boosted_targets=tuple(manifest["boosted_targets"]),
            network_targets=tuple(manifest["network_targets"]),
            based_targets=tuple(manifest["based_targets"]),
            titles=manifest["forecast_titles"],
            max_events=manifest["max_events"],
            precision=precision,
        )
        columns = manifest["columns"]
        names = {c["name"]: c["name"] for c in columns}
        encoder, file = None, graphs["incremental"]
        if opened["incremental"] is not None:
            encoder = IncrementalEncoder(opened["incremental"], files[file], builder.max_events)
        return Ground(builder, columns, names, forecaster_inputs(builder), encoder)

    said = {name: manifest[name] for name in MEMBERS} | {
        "files": {name: files[name] for name in names},
        "precision": precision,
    }
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return sessions.ground(key, make)


def forecaster_inputs(builder: FeatureBuilder) -> frozenset[str] | None:
    """Names of the aggregates the boosted forecasters split on; None where the graph hides it."""
    if builder.forecasters is None:
        return frozenset()
    listed = builder.forecasters.get_modelmeta().custom_metadata_map.get("features")
    if listed is None:
        return None
    names = builder.spec.names
    return frozenset(names[int(i)] for i in listed.split())


def _require_precision(precision: str, path: Path) -> None:
    if precision not in (FLOAT32, INT8):
        raise ArtifactError(
            f"{path}: precision '{precision}' is not known here; known: {listing([FLOAT32, INT8])}"
        )
    if precision == INT8:
        from finetune.quantized import require_exact

        require_exact(f"{path}: an int8 package")


def _require(holds: bool, path: Path, what: str) -> None:
    if not holds:
        raise ArtifactError(f"{path}: the {what} has another fingerprint than the manifest says")
