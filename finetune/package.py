"""The exported model: a directory that scores by itself, without torch and without pickle.

Loading verifies every file's digest, the fingerprints and the golden rows before anything may be
scored. Rows get the same score alone, in a batch, offline and online.

Shapes: S samples, F columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl

from finetune.calibration import apply_calibration, points
from finetune.features import (
    FeatureBuilder,
    Histories,
    Population,
    Progress,
    open_session,
    run_tuned,
)
from finetune.history_reasons import field_effects, field_reasons
from finetune.reasons import Reason, group_effects, top_reasons
from finetune.table import FeatureTable
from foundation.aggregates import AggregateSpec
from foundation.errors import ArtifactError, ParityError
from foundation.history import build_profile, build_timeline
from foundation.schema import Schema, fingerprint, schema_from_dict
from foundation.tokenizer import Tokenizer

FORMAT = 2
TOLERANCE = 1e-5


@dataclass(frozen=True)
class ScoreRow:
    """One answer.

    Attributes:
        as_of: ISO time, UTC.
        score: calibrated probability of label 1.
        points: score on the points scale; more is better.
        band: decision band, such as `approve`.
        forecasts: forecast name -> probability.
        flags: such as `thin_file`.
    """

    entity_id: str
    as_of: str
    score: float
    points: int
    band: str
    reasons: tuple[Reason, ...]
    forecasts: dict[str, float]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """One graph of the model: reads `columns`, weighs in with `weight`.

    A head without columns reads the history itself (fine-tuned recipes).
    """

    session: ort.InferenceSession
    columns: tuple[str, ...]
    weight: float


class Package:
    """A verified package, ready to score.

    Attributes:
        manifest: the package's description; see `finetune.export`.
        schema: the schema it reads.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        builder: FeatureBuilder,
        heads: list[Head],
        reference: np.ndarray,
        golden: dict[str, Any],
    ) -> None:
        self.manifest = manifest
        self.builder = builder
        self.schema: Schema = builder.schema
        self.heads = heads
        self.reference = reference
        self.golden = golden
        self.used = frozenset(c for head in heads for c in head.columns)
        blocks = {c["block"] for c in manifest["columns"] if c["name"] in self.used}
        self.blocks = frozenset(blocks | {"forecast"})
        self.needs_history = any(not head.columns for head in heads)
        # The answer lists the boosted forecasts. Those of the network join them only where its
        # graph has to run: where a head reads it, or where there are no others.
        self.network = not builder.boosted_targets or any(
            c["name"] in self.used
            and (c["block"] == "embedding" or c["name"].startswith("network."))
            for c in manifest["columns"]
        )
        # Everything a head or the boosted forecasters read; the rest is not computed.
        read = forecaster_inputs(builder)
        self.only = None if read is None else self.used | read
        self._places: tuple[Any, list[np.ndarray], list[int]] = ((), [], [])

    @classmethod
    def load(cls, path: str | Path, verify: bool = True, threads: int = 1) -> Package:
        """Open a package directory.

        Raises:
            ArtifactError: missing or altered files, another format, golden rows that do not
                reproduce.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if verify:
            verify_files(path, manifest)
        schema = schema_from_dict(manifest["schema"], f"{path}: schema")
        tokenizer = Tokenizer.from_json((path / "tokenizer.json").read_text(encoding="utf-8"))
        spec = AggregateSpec.from_json((path / "aggregates.json").read_text(encoding="utf-8"))
        _require(fingerprint(schema) == manifest["schema_fingerprint"], path, "schema")
        _require(tokenizer.fingerprint == manifest["tokenizer_fingerprint"], path, "tokenizer")
        builder = FeatureBuilder(
            schema=schema,
            tokenizer=tokenizer,
            spec=spec,
            history=_session(path, manifest["graphs"].get("history"), threads),
            forecasters=_session(path, manifest["graphs"].get("forecasters"), threads),
            boosted_targets=tuple(manifest["boosted_targets"]),
            network_targets=tuple(manifest["network_targets"]),
            based_targets=tuple(manifest["based_targets"]),
            titles=manifest["forecast_titles"],
            max_events=manifest["max_events"],
        )
        heads = []
        for head in manifest["heads"]:
            session = open_session(str(path / head["file"]), threads)
            heads.append(Head(session, tuple(head["columns"]), head["weight"]))
        golden = json.loads((path / "golden.json").read_text(encoding="utf-8"))
        reference = np.array(
            [np.nan if v is None else v for v in manifest["reference"]], dtype=np.float32
        )
        package = cls(manifest, builder, heads, reference, golden)
        if verify:
            package.check_golden()
        return package

    @property
    def id(self) -> str:
        """Name and short digest, such as `demo-1f0c2a9b`."""
        return str(self.manifest["id"])

    def score(
        self,
        frames: Mapping[str, pl.DataFrame],
        profile: pl.DataFrame | None,
        samples: pl.DataFrame,
        reasons: bool = False,
    ) -> list[ScoreRow]:
        """Score samples on the history given.

        Args:
            frames: per source `entity_id`, `event_time`, `known_at` (Datetime us, UTC) and fields.
            profile: `entity_id`, `known_at` (nullable) and fields.
            samples: `entity_id`, `as_of` (Datetime us, UTC) and context columns.
        """
        context = samples if self.schema.context else None
        population = Population(
            timeline=build_timeline(self.schema, frames),
            profile=None if profile is None or profile.is_empty() else build_profile(profile),
            entity_ids=samples["entity_id"].cast(pl.String),
            as_of_us=samples["as_of"].cast(pl.Int64).to_numpy(),
            context=context,
        )
        return self.score_population(population, reasons)

    def score_population(
        self, population: Population, reasons: bool = False, progress: Progress | None = None
    ) -> list[ScoreRow]:
        """Score a population; the common path of `score`, file scoring and golden rows."""
        table = self.features(population, progress)
        logit = self.logit(table)
        probability = self.probability(logit)
        explained: list[tuple[Reason, ...]] = [()] * len(population)
        if reasons:
            explained = self.reasons(table)
        _, listed = self._read(table)
        names = [table.columns[i].name for i in listed]
        forecasts = table.values[:, listed]
        moments = population_times(population)
        thin = np.zeros(len(population), bool) if table.thin is None else table.thin
        scaled = points(probability, **self.manifest["points"])
        rows = []
        for i, entity in enumerate(population.entity_ids.to_list()):
            rows.append(
                ScoreRow(
                    entity_id=entity,
                    as_of=moments[i],
                    score=float(probability[i]),
                    points=int(scaled[i]),
                    band=self.band(float(probability[i])),
                    reasons=explained[i],
                    forecasts={n: float(v) for n, v in zip(names, forecasts[i], strict=True)},
                    flags=("thin_file",) if thin[i] and self.schema.sources else (),
                )
            )
        return rows

    def features(self, population: Population, progress: Progress | None = None) -> FeatureTable:
        """The columns the model reads, for a population."""
        return self.builder.table(
            population,
            self.blocks,
            keep_histories=self.needs_history,
            progress=progress,
            only=self.only,
            network=self.network,
        )

    def _read(self, table: FeatureTable) -> tuple[list[np.ndarray], list[int]]:
        """Places of every head's columns in a table, and of the forecasts; kept from call to call.

        The builder gives every table of a kind the same tuple of columns.
        """
        columns, heads, listed = self._places
        if columns is not table.columns:
            index = {c.name: i for i, c in enumerate(table.columns)}
            heads = [np.array([index[c] for c in h.columns], dtype=np.int64) for h in self.heads]
            listed = [i for i, c in enumerate(table.columns) if c.block == "forecast"]
            self._places = (table.columns, heads, listed)
        return heads, listed

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 log-odds before calibration."""
        total = np.full(len(table.values), float(self.manifest["offset"]))
        places, _ = self._read(table)
        for head, at in zip(self.heads, places, strict=True):
            if head.columns:
                x = np.ascontiguousarray(table.values[:, at])
                out = head.session.run(None, {"x": x})[0]
            else:
                out = run_tuned(head.session, table.histories)
            total += head.weight * out.reshape(-1).astype(np.float64)
        return total

    def probability(self, logit: np.ndarray) -> np.ndarray:
        """[S] calibrated probability of label 1."""
        return apply_calibration(self.manifest["calibration"], logit)

    def band(self, probability: float) -> str:
        """Decision band of a probability."""
        for band in self.manifest["bands"]:
            if probability < band["below"]:
                return str(band["name"])
        return str(self.manifest["bands"][-1]["name"])

    def reasons(self, table: FeatureTable, count: int = 4) -> list[tuple[Reason, ...]]:
        """Reasons of every row, strongest first."""
        if not self.used:
            return self._field_reasons(table, count)
        used = self.used

        def logit(values: np.ndarray) -> np.ndarray:
            return self.logit(FeatureTable(table.columns, values, table.histories))

        position = {c["name"]: i for i, c in enumerate(self.manifest["columns"])}
        reference = self.reference[[position[c.name] for c in table.columns]]
        groups, effects = group_effects(table.columns, used, table.values, reference, logit)
        return [
            top_reasons(table.columns, used, table.values[i], groups, effects[i], reference, count)
            for i in range(len(table.values))
        ]

    def _field_reasons(self, table: FeatureTable, count: int) -> list[tuple[Reason, ...]]:
        """Reasons of a fine-tuned model, field by field."""

        def logit(histories: Histories) -> np.ndarray:
            return self.logit(FeatureTable(table.columns, table.values, histories))

        names, titles, effects = field_effects(self.builder.tokenizer, table.histories, logit)
        return [field_reasons(names, titles, row, count) for row in effects]

    def check_golden(self) -> float:
        """Score the golden rows, alone and together.

        Returns:
            the largest difference to the recorded scores.
        Raises:
            ParityError: larger than 1e-5.
        """
        frames, profile, samples, expected = golden_frames(self.schema, self.golden)
        together = np.array([r.score for r in self.score(frames, profile, samples)])
        worst = float(np.max(np.abs(together - expected), initial=0.0))
        for i in range(min(3, len(samples))):
            alone = self.score(frames, profile, samples[i : i + 1])[0].score
            worst = max(worst, abs(alone - expected[i]))
        if not worst <= TOLERANCE:
            raise ParityError(
                f"package {self.id}: golden rows differ by {worst:.2g}, allowed {TOLERANCE:g}; "
                "this runtime does not reproduce the model"
            )
        return worst


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a package directory, its own digest verified.

    Raises:
        ArtifactError: no manifest, not JSON, another format or an altered manifest.
    """
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no package here (manifest.json is missing)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"{file}: not readable, the package is damaged: {exc}") from None
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{path}: package format {manifest.get('format')}, expected {FORMAT}")
    if manifest_digest(manifest) != manifest.get("digest"):
        raise ArtifactError(f"{file}: the digest does not match, the package was altered")
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """sha256 of the canonical manifest without its digest and id."""
    body = {k: v for k, v in manifest.items() if k not in ("digest", "id")}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def verify_files(path: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with its digest.

    Raises:
        ArtifactError: a missing, altered or foreign file, by name.
    """
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{path}: file '{name}' of the package is missing")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ArtifactError(f"{path}: file '{name}' was altered, its digest does not match")
    present = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()}
    foreign = sorted(present - set(manifest["files"]) - {"manifest.json"})
    if foreign:
        raise ArtifactError(f"{path}: file '{foreign[0]}' does not belong to the package")


def golden_frames(
    schema: Schema, golden: dict[str, Any]
) -> tuple[dict[str, pl.DataFrame], pl.DataFrame | None, pl.DataFrame, np.ndarray]:
    """Frames, profile, samples and expected scores of recorded golden rows."""
    frames = {name: _frame(table) for name, table in golden["events"].items()}
    profile = _frame(golden["profile"]) if golden["profile"] else None
    samples = _frame(golden["samples"])
    return frames, profile, samples, np.array(golden["scores"], dtype=np.float64)


def frame_record(frame: pl.DataFrame) -> dict[str, Any]:
    """A frame as plain columns; times become microseconds since the epoch."""
    out = {}
    for name in frame.columns:
        column = frame[name]
        kind = "time" if isinstance(column.dtype, pl.Datetime) else str(column.dtype)
        values = column.to_physical().to_list() if kind == "time" else column.to_list()
        out[name] = {"kind": kind, "values": values}
    return out


_KINDS: dict[str, Any] = {
    "time": pl.Datetime("us"),
    "String": pl.String,
    "Float64": pl.Float64,
    "Boolean": pl.Boolean,
    "Int64": pl.Int64,
    "Float32": pl.Float32,
    "UInt32": pl.UInt32,
    "Int32": pl.Int32,
}


def _frame(record: dict[str, Any]) -> pl.DataFrame:
    columns = []
    for name, column in record.items():
        dtype = _KINDS[column["kind"]]
        if column["kind"] == "time":
            columns.append(pl.Series(name, column["values"], dtype=pl.Int64).cast(dtype))
        else:
            columns.append(pl.Series(name, column["values"], dtype=dtype))
    return pl.DataFrame(columns)


def population_times(population: Population) -> list[str]:
    """ISO times of the samples' as_of, UTC."""
    moments = np.asarray(population.as_of_us).astype("datetime64[us]")
    return [f"{text}Z" for text in np.datetime_as_string(moments, unit="us").tolist()]


def forecaster_inputs(builder: FeatureBuilder) -> frozenset[str] | None:
    """Names of the aggregates the boosted forecasters split on; None where the graph hides it."""
    if builder.forecasters is None:
        return frozenset()
    listed = builder.forecasters.get_modelmeta().custom_metadata_map.get("features")
    if listed is None:
        return None
    names = builder.spec.names
    return frozenset(names[int(i)] for i in listed.split())


def _session(path: Path, file: str | None, threads: int) -> ort.InferenceSession | None:
    return open_session(str(path / file), threads) if file else None


def _require(holds: bool, path: Path, what: str) -> None:
    if not holds:
        raise ArtifactError(f"{path}: the {what} has another fingerprint than the manifest says")
