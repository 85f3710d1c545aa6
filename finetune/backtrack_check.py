"""A finished back-tracking job checked: digests, totals, and rows recomputed by brute force.

A row is recomputed from its own entity's events alone, filtered one by one to known_at < as_of
before anything else sees them, read by the store's plain reader. What later events might have done
to it would show.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.backtrack_rows import BLOCKS, LEADING
from finetune.backtracking import (
    AGGREGATES,
    BacktrackInputs,
    Progress,
    feature_makers,
    file_digest,
    read_features,
)
from finetune.features import FeatureBuilder, Population
from finetune.leak_certificate import CERTIFICATE
from finetune.samples import read_samples
from foundation.aggregates import AggregateSpec
from foundation.checkpoint import read_json
from foundation.errors import ArtifactError
from foundation.history import build_profile, build_timeline, cut
from foundation.schema import Schema
from foundation.store import EventStore

TOLERANCE = 1e-5


def verify_backtrack(
    directory: Path,
    rows: int = 50,
    seed: int = 0,
    store: Path | None = None,
    samples: Path | None = None,
    backbone: Path | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Check a finished directory.

    Args:
        rows: how many random rows are recomputed.
        store, samples, backbone: where they are now, if not where the job found them.
    Returns:
        what was checked, for people.
    Raises:
        ArtifactError: a part is missing or altered, a total is wrong, or a row does not come out.
    """
    certificate = read_json(directory / CERTIFICATE)
    _check_parts(directory, certificate)
    frame = read_features(directory).select(LEADING).collect()
    _check_totals(certificate, frame, directory)
    given = certificate["inputs"]
    job = certificate["job"]
    inputs = BacktrackInputs(
        store or Path(given["store"]),
        samples or Path(given["samples"]),
        (backbone or Path(given["backbone"])) if given["backbone"] else None,
        directory / AGGREGATES,
        tuple(job["blocks"]),
    )
    if file_digest(inputs.samples) != job["samples"]:
        raise ArtifactError(f"{inputs.samples}: not the sample file of this job")
    opened = EventStore.open(inputs.store).at(certificate["store"]["version"])
    every = read_samples(inputs.samples, opened.schema, need_labels=False, keep_duplicates=True)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(frame))[:rows]) + 1
    wanted = every.frame.filter(pl.col("row").is_in(chosen.tolist()))
    written = read_features(directory).filter(pl.col("row").is_in(chosen.tolist()))
    with tempfile.TemporaryDirectory() as scratch:
        spec, builder, sources = feature_makers(
            inputs, opened, every, inputs.blocks, Path(scratch), _spec_of(directory)
        )
        if sources.fingerprints != certificate["fingerprints"]:
            raise ArtifactError(f"{directory}: made with other columns or another backbone")
        recomputed = _recompute(opened, spec, builder, inputs.blocks, wanted, progress)
    exact = frozenset(recomputed.columns[: len(LEADING)]) | frozenset(spec.names)
    worst = _compare(written.sort("row").collect(), recomputed, exact, directory)
    counts = certificate["counts"]
    return [
        f"{directory}: {len(certificate['parts'])} parts intact, {counts['samples']:,} rows, every "
        "one with known_at < as_of",
        f"{len(wanted)} random rows recomputed by brute force from store version "
        f"{opened.version}: aggregates equal, forecasts and states within {worst:.1e}",
    ]


def _spec_of(directory: Path) -> Any:
    path = directory / AGGREGATES
    return lambda: AggregateSpec.from_json(path.read_text(encoding="utf-8"), str(path))


def _check_parts(directory: Path, certificate: dict[str, Any]) -> None:
    """Every part is there and unaltered, and no other."""
    listed = {p["file"]: p["sha256"] for p in certificate["parts"]}
    found = {f"features/{p.name}" for p in (directory / "features").glob("*.parquet")}
    for name in sorted({*listed} ^ found):
        raise ArtifactError(f"{directory / name}: {'missing' if name in listed else 'foreign'}")
    for name, digest in listed.items():
        with (directory / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ArtifactError(f"{directory / name}: altered since it was certified")


def _check_totals(certificate: dict[str, Any], frame: pl.DataFrame, directory: Path) -> None:
    """Counts of the certificate against the rows themselves."""
    latest = frame["as_of"] - frame["latest_known_at"]
    margin = latest.drop_nulls().dt.total_microseconds().to_numpy()
    found = {
        "samples": len(frame),
        "thin_samples": int((frame["history_events"] == 0).sum()),
        "entities": frame["entity_id"].n_unique(),
        "events_used": int(frame["history_events"].sum()),
        "smallest_margin_us": int(margin.min()) if len(margin) else None,
    }
    for name, value in found.items():
        if certificate["counts"][name] != value:
            raise ArtifactError(
                f"{directory / CERTIFICATE}: {name} is {certificate['counts'][name]}, the rows "
                f"say {value}"
            )
    if len(margin) and margin.min() <= 0:
        raise ArtifactError(f"{directory}: a row was made of something known at or after its as_of")
    if not np.array_equal(frame["row"].sort().to_numpy(), np.arange(1, len(frame) + 1)):
        raise ArtifactError(f"{directory}: rows are missing or doubled")


def _recompute(
    store: EventStore,
    spec: AggregateSpec,
    builder: FeatureBuilder | None,
    blocks: tuple[str, ...],
    wanted: pl.DataFrame,
    progress: Progress | None,
) -> pl.DataFrame:
    """Rows one by one, of the events that pass a plain filter."""
    ids = wanted["entity_id"].unique()
    frames, profile = store.frames(entities=ids), store.profile(entities=ids)
    out = []
    for at in range(len(wanted)):
        row = wanted[at]
        entity, as_of = row["entity_id"][0], row["as_of"][0]
        seen = {
            name: f.filter(pl.col("entity_id") == entity, pl.col("known_at") < as_of)
            for name, f in frames.items()
        }
        own = profile.filter(
            pl.col("entity_id") == entity,
            pl.col("known_at").is_null() | (pl.col("known_at") < as_of),
        )
        known = pl.concat([f["known_at"] for f in (*seen.values(), own)])
        values = _row(store.schema, spec, builder, blocks, seen, own, row)
        leading = row.select("row", "entity_id", "as_of", "label").with_columns(
            pl.lit(sum(map(len, seen.values())), dtype=pl.Int64).alias("history_events"),
            pl.Series("latest_known_at", [known.max()], dtype=pl.Datetime("us")),
        )
        out.append(leading.hstack(values))
        if progress:
            progress(at + 1, len(wanted))
    return pl.concat(out)


def _row(
    schema: Schema,
    spec: AggregateSpec,
    builder: FeatureBuilder | None,
    blocks: tuple[str, ...],
    seen: dict[str, pl.DataFrame],
    own: pl.DataFrame,
    row: pl.DataFrame,
) -> pl.DataFrame:
    """One row of features."""
    timeline = build_timeline(schema, seen)
    profile = build_profile(own) if schema.profile is not None else None
    as_of_us = row["as_of"].to_physical().cast(pl.Int64).to_numpy()
    context = row.select(list(schema.context)) if schema.context else None
    if builder is None or blocks == ("aggregates",):
        found = cut(timeline, row["entity_id"], as_of_us)
        values = spec.compute(timeline, found, profile, row["entity_id"], context)
        return pl.DataFrame(values, schema=list(spec.names))
    names = frozenset(c for b in blocks for c in BLOCKS[b])
    population = Population(timeline, profile, row["entity_id"], as_of_us, context)
    table = builder.table(population, names)
    keep = [j for j, c in enumerate(table.columns) if c.block in names]
    return pl.DataFrame(table.values[:, keep], schema=[table.columns[j].name for j in keep])


def _compare(
    written: pl.DataFrame, found: pl.DataFrame, exact: frozenset[str], directory: Path
) -> float:
    """Largest difference of forecasts and states; the `exact` columns must be equal.

    Raises:
        ArtifactError: names the row and the column.
    """
    if written.columns != found.columns:
        raise ArtifactError(f"{directory}: other columns than its aggregates and backbone make")
    worst = 0.0
    for name in written.columns:
        a, b = written[name], found[name]
        same = a.eq_missing(b)
        if name not in exact and not same.all():
            gap = (a - b).abs() / pl.Series(np.maximum(1.0, np.abs(b.to_numpy())))
            near = gap.fill_nan(np.inf).fill_null(np.inf) <= TOLERANCE
            worst = max(worst, float(gap.filter(near).to_numpy().max(initial=0.0)))
            same = same | near
        if not same.all():
            k = int((~same).arg_max() or 0)
            raise ArtifactError(
                f"{directory}: row {written['row'][k]}, column '{name}': {a[k]} was written, "
                f"brute force gives {b[k]}"
            )
    return worst
