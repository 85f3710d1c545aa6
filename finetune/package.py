"""The exported model: a directory that scores by itself, without torch and without pickle.

Loading verifies every file's digest, the fingerprints and the golden rows before anything may be
scored. Rows get the same score alone, in a batch, offline and online, and from several threads at
once. Packages that are given the same `Sessions` hold their backbone, tokenizer and columns once.

Shapes: S samples, F columns, c columns that heads read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl

from finetune.adapters import AdaptedSession, read_adapter
from finetune.calibration import apply_calibration, points
from finetune.features import FLOAT32, Follow, Histories, Population, Progress, run_tuned
from finetune.golden import TOLERANCE, golden_difference
from finetune.ground import Ground, shared_ground
from finetune.history_reasons import field_effects, field_reasons
from finetune.incremental import IncrementalEncoder
from finetune.reasons import Reason, group_effects, top_reasons
from finetune.sessions import Sessions, open_heads, read_verified
from finetune.table import FeatureTable
from foundation.errors import ArtifactError, ParityError
from foundation.history import build_profile, build_timeline
from foundation.schema import Schema

FORMAT = 3
# Memory of a package beside what it shares, measured: a byte of heads takes so many once they are
# a session, a byte of the manifest so many as objects.
PER_HEAD_BYTE = 6.0
PER_MANIFEST_BYTE = 1.0


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
    """One part of the model: reads `columns`, weighs in with `weight`.

    A head without columns reads the history itself (fine-tuned recipes), by a session of its own;
    the others are outputs of one graph, by their names.
    """

    name: str
    columns: tuple[str, ...]
    weight: float
    session: AdaptedSession | None = None


class Package:
    """A verified package, ready to score; safe to use from several threads.

    Attributes:
        manifest: the package's description; see `finetune.export`.
        schema: the schema it reads.
        own_bytes: memory beside what it shares with other packages, about.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        ground: Ground,
        heads: list[Head],
        columnar: ort.InferenceSession | None,
        golden: bytes,
        own_bytes: int,
    ) -> None:
        self.manifest = manifest
        self._ground = ground  # held as long as the package, so that others find it
        self.builder = copy.copy(ground.builder)
        self.schema: Schema = self.builder.schema
        self.heads = heads
        self.own_bytes = own_bytes
        self._columnar = columnar
        self._golden = zlib.compress(golden, 1)
        self.reference = np.array(
            [np.nan if v is None else v for v in manifest["reference"]], dtype=np.float32
        )
        self._read = read_columns(manifest)
        self.used = frozenset(self._read)
        blocks = {c["block"] for c in manifest["columns"] if c["name"] in self.used}
        self.blocks = frozenset(blocks | {"forecast"})
        self.needs_history = any(not head.columns for head in heads)
        # The answer lists the boosted forecasts. Those of the network join them only where its
        # graph has to run: where a head reads it, or where there are no others.
        self.network = not self.builder.boosted_targets or any(
            c["name"] in self.used
            and (c["block"] == "embedding" or c["name"].startswith("network."))
            for c in manifest["columns"]
        )
        # Everything a head or the boosted forecasters read; the rest is not computed.
        self.only = None if ground.inputs is None else self.used | ground.inputs
        # Replaced as a whole, so that every thread sees parts of one table.
        self._places: tuple[Any, np.ndarray, list[int]] = ((), np.zeros(0, np.int64), [])

    @classmethod
    def load(
        cls,
        path: str | Path,
        verify: bool = True,
        threads: int = 1,
        sessions: Sessions | None = None,
    ) -> Package:
        """Open a package directory.

        Args:
            verify: compare every file with its digest and score the golden rows. These are scored
                once in a process for a package whose content has not changed.
            threads: of its sessions, where it does not share them.
            sessions: what it shares with other packages; None shares nothing.
        Raises:
            ArtifactError: missing or altered files, another format, golden rows that do not
                reproduce.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if verify:
            verify_files(path, manifest)
        sessions = Sessions(threads=threads) if sessions is None else sessions
        ground = shared_ground(path, manifest, sessions)
        manifest["columns"] = ground.columns
        columnar, own_bytes = None, 0.0
        file = manifest["graphs"].get("heads")
        if file:
            own_bytes += PER_HEAD_BYTE * len(read_verified(path / file, manifest["files"][file]))
            columnar = open_heads(path / file, sessions.threads)
        heads = []
        for head in manifest["heads"]:
            head["columns"] = [ground.names[c] for c in head["columns"]]
            session = None
            if not head["columns"]:
                shared = sessions.open(path / head["graph"], manifest["files"][head["graph"]])
                adapter = read_adapter(path / head["adapter"])
                session = AdaptedSession(shared, adapter, path / head["adapter"])
                own_bytes += sum(tensor.nbytes for tensor in adapter.values())
            heads.append(Head(head["name"], tuple(head["columns"]), head["weight"], session))
        golden = read_verified(path / "golden.json", manifest["files"]["golden.json"])
        own_bytes += PER_MANIFEST_BYTE * (path / "manifest.json").stat().st_size
        package = cls(manifest, ground, heads, columnar, golden, int(own_bytes))
        if verify and not sessions.proved(manifest["digest"]):
            package.check_golden()
            del package.golden
            sessions.note_proved(manifest["digest"])
        return package

    @cached_property
    def golden(self) -> dict[str, Any]:
        """The golden rows; unpacked where they are asked for."""
        return dict(json.loads(zlib.decompress(self._golden)))

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
        return self.score_population(self.population(frames, profile, samples), reasons)

    def population(
        self,
        frames: Mapping[str, pl.DataFrame],
        profile: pl.DataFrame | None,
        samples: pl.DataFrame,
    ) -> Population:
        """Samples with the history given, see `score`."""
        return Population(
            timeline=build_timeline(self.schema, frames),
            profile=None if profile is None or profile.is_empty() else build_profile(profile),
            entity_ids=samples["entity_id"].cast(pl.String),
            as_of_us=samples["as_of"].cast(pl.Int64).to_numpy(),
            context=samples if self.schema.context else None,
        )

    def score_population(
        self,
        population: Population,
        reasons: bool = False,
        progress: Progress | None = None,
        follow: Follow | None = None,
    ) -> list[ScoreRow]:
        """Score a population; the common path of `score`, file scoring and golden rows.

        Args:
            follow: of a single sample, see `FeatureBuilder.table`.
        """
        table = self.features(population, progress, follow)
        logit = self.logit(table)
        probability = self.probability(logit)
        explained: list[tuple[Reason, ...]] = [()] * len(population)
        if reasons:
            explained = self.reasons(table)
        _, listed = self._where(table)
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

    @property
    def encoder(self) -> IncrementalEncoder | None:
        """Goes on from a customer's kept state; None where no head reads the frozen network."""
        return self._ground.encoder if self.network else None

    def features(
        self,
        population: Population,
        progress: Progress | None = None,
        follow: Follow | None = None,
    ) -> FeatureTable:
        """The columns the model reads, for a population."""
        return self.builder.table(
            population,
            self.blocks,
            keep_histories=self.needs_history,
            progress=progress,
            only=self.only,
            network=self.network,
            follow=follow,
        )

    def _where(self, table: FeatureTable) -> tuple[np.ndarray, list[int]]:
        """Places of the columns heads read, [c], and of the forecasts; kept from call to call.

        The builder gives every table of a kind the same tuple of columns.
        """
        columns, read, listed = self._places
        if columns is not table.columns:
            index = {c.name: i for i, c in enumerate(table.columns)}
            read = np.array([index[c] for c in self._read], dtype=np.int64)
            listed = [i for i, c in enumerate(table.columns) if c.block == "forecast"]
            self._places = (table.columns, read, listed)
        return read, listed

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 log-odds before calibration."""
        total = self._logit_of_columns(table)
        for head in self.heads:
            if head.session is not None:
                out = run_tuned(head.session, table.histories)
                total += head.weight * out.reshape(-1).astype(np.float64)
        return total

    def _logit_of_columns(self, table: FeatureTable) -> np.ndarray:
        """[S] float64: the offset and the heads that read columns."""
        total = np.full(len(table.values), float(self.manifest["offset"]))
        parts = self.column_logits(table)
        for head in self.heads:
            if head.session is None:
                total += head.weight * parts[head.name]
        return total

    def column_logits(self, table: FeatureTable) -> dict[str, np.ndarray]:
        """Head -> [S] float64 logits, unweighted, of the heads that read columns."""
        if self._columnar is None:
            return {}
        read, _ = self._where(table)
        found = self._columnar.run(None, {"x": np.ascontiguousarray(table.values[:, read])})
        names = [head.name for head in self.heads if head.session is None]
        return {
            name: part.reshape(-1).astype(np.float64)
            for name, part in zip(names, found, strict=True)
        }

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
            # Heads that read the history say the same of every change of columns.
            return self._logit_of_columns(FeatureTable(table.columns, values, None))

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
        """Score the golden rows, alone and together; see `finetune.golden`.

        Returns:
            the largest difference to the recorded scores.
        Raises:
            ParityError: larger than 1e-5.
        """
        worst = golden_difference(self, self._ground.proofs)
        if not worst <= TOLERANCE:
            advice = ""
            if self.builder.precision != FLOAT32:
                advice = "; make it on this kind of processor, or with --precision float32"
            raise ParityError(
                f"package {self.id}: golden rows differ by {worst:.2g}, allowed {TOLERANCE:g}; "
                f"this runtime does not reproduce the model{advice}"
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


def read_columns(manifest: dict[str, Any]) -> tuple[str, ...]:
    """The columns that heads read, each once, in the order of the manifest's columns."""
    used = {c for head in manifest["heads"] for c in head["columns"]}
    return tuple(c["name"] for c in manifest["columns"] if c["name"] in used)


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


def population_times(population: Population) -> list[str]:
    """ISO times of the samples' as_of, UTC."""
    moments = np.asarray(population.as_of_us).astype("datetime64[us]")
    return [f"{text}Z" for text in np.datetime_as_string(moments, unit="us").tolist()]
