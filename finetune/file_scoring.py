"""Scoring a file of samples with a package, on the histories of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from finetune.features import Population, Progress
from finetune.metrics import auc, ks
from finetune.package import Package, ScoreRow
from finetune.samples import Samples, read_samples
from foundation.errors import ArtifactError, SampleError, UserError
from foundation.schema import Schema, fingerprint
from foundation.store import EventStore


def population_of(
    store: EventStore, schema: Schema, samples: Samples, until_us: int | None = None
) -> Population:
    """Histories of a sample set: events and profile rows of its entities, and its context.

    Args:
        until_us: additionally forget what became known at or after it.
    """
    entities = samples.entity_ids.unique()
    has_profile = schema.profile is not None
    return Population(
        timeline=store.timeline(entities=entities, until_us=until_us),
        profile=store.profile_history(entities=entities, until_us=until_us)
        if has_profile
        else None,
        entity_ids=samples.entity_ids,
        as_of_us=samples.as_of_us,
        context=samples.frame.select(list(schema.context)) if schema.context else None,
    )


def require_known(population: Population, schema: Schema, what: str | Path) -> None:
    """Refuse samples of which the store knows nobody: there would be nothing to learn from.

    Raises:
        SampleError: no customer has an event or a profile row.
    """
    profile = population.profile is not None and len(population.profile.frame)
    if schema.sources and not (len(population.timeline) or profile):
        raise SampleError(
            f"{what}: none of {population.entity_ids.n_unique():,} customers has an event or a "
            "profile row in this store; is it the store of these samples, and are their entity "
            "ids written alike?"
        )


def check_same_schema(store: EventStore, schema: Schema, what: str) -> None:
    """Refuse a store whose tables mean something else.

    Raises:
        ArtifactError: the fingerprints differ.
    """
    if fingerprint(store.schema) != fingerprint(schema):
        raise ArtifactError(
            f"{what} was made for schema '{schema.name}' ({fingerprint(schema)}), the store holds "
            f"'{store.schema.name}' ({fingerprint(store.schema)}); import the events with the "
            "schema the model knows"
        )


def score_file(
    package_path: Path,
    store_path: Path,
    samples_path: Path,
    output: Path,
    reasons: bool,
    progress: Progress | None = None,
) -> str:
    """Write the samples back in their order with `score`, `points`, `band` and `flags`.

    Returns:
        one line for people, with AUC and KS where the samples carry labels.
    Raises:
        UserError: the output is neither `.parquet` nor `.csv`.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"{output}: write to a .parquet or .csv file")
    package = Package.load(package_path, threads=2)
    store = EventStore.open(store_path)
    check_same_schema(store, package.schema, f"package {package.id}")
    samples = read_samples(samples_path, package.schema, need_labels=False, keep_duplicates=True)
    rows = package.score_population(
        population_of(store, package.schema, samples), reasons, progress
    )
    frame = scored_frame(samples.original, rows, reasons)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.part")
    if output.suffix == ".csv":
        frame.write_csv(partial)
    else:
        frame.write_parquet(partial)
    partial.replace(output)
    return f"wrote {output}: {len(frame):,} scores by {package.id}{_measured(samples, rows)}"


def scored_frame(original: pl.DataFrame, rows: list[ScoreRow], reasons: bool) -> pl.DataFrame:
    """The file's own columns with the answers beside them."""
    added: dict[str, Any] = {
        "score": pl.Series([r.score for r in rows], dtype=pl.Float64),
        "points": pl.Series([r.points for r in rows], dtype=pl.Int64),
        "band": pl.Series([r.band for r in rows], dtype=pl.String),
        "flags": pl.Series([" ".join(r.flags) for r in rows], dtype=pl.String),
    }
    if reasons:
        for k in range(4):
            words = [
                f"{r.reasons[k].title}: {r.reasons[k].value} ({r.reasons[k].effect:+.2f})"
                if k < len(r.reasons)
                else ""
                for r in rows
            ]
            added[f"reason_{k + 1}"] = pl.Series(words, dtype=pl.String)
    keep = [c for c in original.columns if c not in added]
    return original.select(keep).with_columns(**added)


def _measured(samples: Samples, rows: list[ScoreRow]) -> str:
    label = samples.label
    if label is None:
        return ""
    known = label.is_not_null().to_numpy()
    y = label.fill_null(0).to_numpy()[known]
    if not 0 < y.sum() < len(y):
        return ""
    score = pl.Series([r.score for r in rows]).to_numpy()[known]
    return f"; AUC {auc(y, score):.3f}, KS {ks(y, score):.3f} on {len(y):,} labelled rows"
