"""Versions of a sample set: what was handed in, kept for good, addressed by content.

    WORKSPACE/sample_sets/NAME/contents/DIGEST/samples.parquet   rows in standard form
    WORKSPACE/sample_sets/NAME/contents/DIGEST/set.json          digest, counts, schema
    WORKSPACE/sample_sets/NAME/versions/000001.json              digest, when, from what file

A version exists once its file in `versions` does, and that appears by one rename; nothing is ever
rewritten. The digest covers the rows, not their order or the file they came in, so that the same
samples handed in again are the version there is. Names, phones and other columns no schema declares
are not kept; context fields of kind `identifier` are kept as the store's keyed hashes; entity ids
are those of the store. Folders are readable by their owner alone.

Shapes: R rows of a version.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from finetune.sample_report import standard_frame
from finetune.samples import Samples
from foundation import identifiers
from foundation.errors import ArtifactError, UserError, listing, nearest
from foundation.schema import Schema, schema_from_dict, schema_to_dict
from foundation.whole_files import locked, write_whole

FOLDER = "sample_sets"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHORT = 16


@dataclass(frozen=True)
class SampleVersion:
    """One version of a set.

    Attributes:
        number: 1 for the first; digest: of its content, 16 hex digits.
        added_at: ISO moment, UTC; source: name of the file handed in.
        facts: rows, labels, bads, customers, first and last day of as_of.
        path: the Parquet file, which every command reads as `--samples`.
    """

    name: str
    number: int
    digest: str
    added_at: str
    source: str
    facts: dict[str, Any]
    path: Path

    def line(self) -> str:
        """One line for a terminal."""
        f = self.facts
        bads = f"{f['bads']:,} bad of {f['labels']:,}" if f["labels"] else "no labels"
        return (
            f"{self.name}@{self.number}  {self.digest}  {self.added_at[:16]}  {f['rows']:,} rows, "
            f"{bads}, {f['first']} to {f['last']}  from {self.source}"
        )


@dataclass(frozen=True)
class SampleDiff:
    """What changed from one version to another; rows are matched by customer, moment and channel.

    Attributes:
        added, removed: rows of one side only.
        relabelled: rows on both sides with another label; `labelled` those that had none before.
        altered: rows whose label is the same and something else is not.
        same: rows equal throughout.
        rows: `change`, `entity_id`, `as_of`, `label_before`, `label_after` of every change.
    """

    added: int
    removed: int
    relabelled: int
    labelled: int
    altered: int
    same: int
    rows: pl.DataFrame


def add_version(
    workspace: str | Path,
    name: str,
    samples: Samples,
    schema: Schema,
    source: str,
    store_dir: Path | None = None,
    now: dt.datetime | None = None,
) -> tuple[SampleVersion, bool]:
    """Keep a sample set as the next version; the newest one again changes nothing.

    Args:
        source: what the file was called.
        store_dir: whose key hides context identifiers; needed where the schema has such.
        now: moment of the addition.
    Returns:
        the version, and whether it is new.
    Raises:
        UserError: a name that is no plain file name.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}' is no name of a set: use letters, digits, '.', '_' and '-'")
    frame = _canonical(_hidden(standard_frame(samples, schema), schema, store_dir))
    digest = content_digest(frame)
    folder = Path(workspace) / FOLDER / name
    for part in (folder / "contents", folder / "versions"):
        part.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(folder):
        before = versions(workspace, name)
        if before and before[-1].digest == digest:
            return before[-1], False
        write_content(folder / "contents" / digest, frame, digest, schema)
        number = len(before) + 1
        moment = (now or dt.datetime.now(dt.UTC)).astimezone(dt.UTC).isoformat(timespec="seconds")
        record = {"number": number, "digest": digest, "added_at": moment, "source": source}
        write_whole(folder / "versions" / f"{number:06d}.json", json.dumps(record, indent=1))
    return versions(workspace, name)[-1], True


def _hidden(frame: pl.DataFrame, schema: Schema, store_dir: Path | None) -> pl.DataFrame:
    """Context identifiers as keyed hashes."""
    fields = [s.column or n for n, s in schema.context.items() if s.kind == "identifier"]
    if not fields:
        return frame
    if store_dir is None:
        raise UserError("the schema has context identifiers: give --store, whose key hides them")
    key = identifiers.identifier_key(store_dir)
    return frame.with_columns(identifiers.hashed(frame[f].cast(pl.String), key) for f in fields)


def _canonical(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows in one order, whatever order they came in."""
    return frame.sort(frame.columns, nulls_last=False)


def content_digest(frame: pl.DataFrame) -> str:
    """16 hex digits over columns, types and rows of a canonical frame."""
    head = json.dumps([[c, str(t)] for c, t in frame.schema.items()])
    # Numbers by their bits and times as integers: no writer's taste in digits enters.
    plain = frame.with_columns(
        pl.col(pl.Float64).reinterpret(signed=True), pl.col(pl.Datetime).cast(pl.Int64)
    )
    body = plain.write_csv(quote_style="non_numeric")
    return hashlib.sha256(f"{head}\n{body}".encode()).hexdigest()[:_SHORT]


def write_content(folder: Path, frame: pl.DataFrame, digest: str, schema: Schema) -> None:
    """The rows and their facts, as one folder that appears by a rename."""
    if (folder / "set.json").is_file():
        return  # the same rows were a version before
    partial = folder.with_name(f".{digest}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    frame.write_parquet(partial / "samples.parquet")
    facts = {"digest": digest, "facts": _facts(frame), "schema": schema_to_dict(schema)}
    (partial / "set.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _facts(frame: pl.DataFrame) -> dict[str, Any]:
    labels = (
        frame["label"].drop_nulls() if "label" in frame.columns else pl.Series([], dtype=pl.Int8)
    )
    day = frame["as_of"].dt.date()
    return {
        "rows": len(frame),
        "customers": frame["entity_id"].n_unique(),
        "labels": len(labels),
        "bads": int(labels.sum()),
        "first": str(day.min()),
        "last": str(day.max()),
    }


def set_names(workspace: str | Path) -> list[str]:
    """Names of the sets of a workspace, sorted."""
    root = Path(workspace) / FOLDER
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []


def versions(workspace: str | Path, name: str) -> list[SampleVersion]:
    """Versions of a set, oldest first; empty where there is none."""
    folder = Path(workspace) / FOLDER / name
    out = []
    for file in sorted((folder / "versions").glob("[0-9]*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        content = folder / "contents" / record["digest"]
        try:
            facts = json.loads((content / "set.json").read_text(encoding="utf-8"))["facts"]
        except FileNotFoundError:
            raise ArtifactError(
                f"{content}: the content of {name}@{record['number']} is gone"
            ) from None
        out.append(
            SampleVersion(name=name, facts=facts, path=content / "samples.parquet", **record)
        )
    return out


def find_version(workspace: str | Path, reference: str) -> SampleVersion:
    """The version that `NAME`, `NAME@2` or `NAME@DIGEST` names; `NAME` alone is the newest.

    Raises:
        UserError: there is no such set or version; says what there is.
    """
    name, _, which = reference.partition("@")
    found = versions(workspace, name)
    if not found:
        names = set_names(workspace)
        raise UserError(
            f"{workspace}: no sample set '{name}'{nearest(name, names)}; sets: "
            f"{listing(names) or 'none'}"
        )
    if not which:
        return found[-1]
    for version in reversed(found):
        if which == str(version.number) or (len(which) >= 6 and version.digest.startswith(which)):
            return version
    raise UserError(
        f"{name}: no version '{which}'; versions: "
        f"{listing(f'{v.number} ({v.digest})' for v in found)}"
    )


def schema_of(version: SampleVersion) -> Schema:
    """The schema the samples were read with."""
    record = json.loads((version.path.parent / "set.json").read_text(encoding="utf-8"))
    return schema_from_dict(record["schema"], str(version.path.parent / "set.json"))


def read_version(version: SampleVersion) -> pl.DataFrame:
    """The rows of a version.

    Raises:
        ArtifactError: the file is missing, or its content is not what the digest says.
    """
    try:
        frame = pl.read_parquet(version.path)
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise ArtifactError(f"{version.path}: cannot be read: {exc}") from None
    if content_digest(frame) != version.digest:
        raise ArtifactError(f"{version.path}: the content is not that of digest {version.digest}")
    return frame


def diff_versions(before: SampleVersion, after: SampleVersion) -> SampleDiff:
    """What changed between two versions."""
    return diff_frames(read_version(before), read_version(after))


def diff_frames(before: pl.DataFrame, after: pl.DataFrame) -> SampleDiff:
    """What changed between two frames in standard form.

    Several rows of one customer, moment and channel are matched in the order of their content.
    """
    sides = [_keyed(frame) for frame in (before, after)]
    key = ["entity_id", "as_of", "channel", "_nth"]
    joined = sides[0].join(
        sides[1], on=key, how="full", coalesce=True, nulls_equal=True, suffix="_r"
    )
    label, later = pl.col("label"), pl.col("label_r")
    joined = joined.with_columns(
        pl.when(pl.col("_here").is_null())
        .then(pl.lit("added"))
        .when(pl.col("_here_r").is_null())
        .then(pl.lit("removed"))
        .when(label.is_null() & later.is_not_null())
        .then(pl.lit("labelled"))
        .when(label.ne_missing(later))
        .then(pl.lit("relabelled"))
        .when(pl.col("_rest") != pl.col("_rest_r"))
        .then(pl.lit("altered"))
        .otherwise(pl.lit("same"))
        .alias("change")
    )
    count = dict(joined.group_by("change").len().iter_rows())
    rows = (
        joined.filter(pl.col("change") != "same")
        .select(
            "change", "entity_id", "as_of", "channel",
            label.alias("label_before"), later.alias("label_after"),
        )
        .sort("change", "entity_id", "as_of", "channel")
    )  # fmt: skip
    names = ("added", "removed", "relabelled", "labelled", "altered", "same")
    return SampleDiff(*(count.get(n, 0) for n in names), rows=rows)


def _keyed(frame: pl.DataFrame) -> pl.DataFrame:
    """Key, label and one text of everything else; equal keys are numbered by content."""
    for name, kind in (("channel", pl.String), ("label", pl.Int8)):
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(None, dtype=kind).alias(name))
    if "weight" not in frame.columns:
        frame = frame.with_columns(pl.lit(1.0).alias("weight"))
    rest = sorted(set(frame.columns) - {"entity_id", "as_of", "channel", "label"})
    # A column that is all empty says as much as one that is not there.
    rest = [c for c in rest if frame[c].null_count() < len(frame)]
    text = [pl.format(f"{c}={{}}\x1f", pl.col(c).cast(pl.String).fill_null("")) for c in rest]
    keyed = frame.select(
        "entity_id", "as_of", "channel", "label",
        (pl.concat_str(text) if text else pl.lit("")).alias("_rest"),
        pl.lit(True).alias("_here"),
    ).sort("entity_id", "as_of", "channel", "_rest", "label")  # fmt: skip
    return keyed.with_columns(
        pl.int_range(pl.len()).over("entity_id", "as_of", "channel").alias("_nth")
    )


def diff_lines(diff: SampleDiff, shown: int = 5) -> list[str]:
    """The difference for a terminal."""
    lines = [
        f"{diff.added:,} rows added, {diff.removed:,} removed, {diff.relabelled:,} with another "
        f"label, {diff.labelled:,} labelled since, {diff.altered:,} otherwise changed, "
        f"{diff.same:,} the same"
    ]
    for row in diff.rows.head(shown).to_dicts():
        label = f"label {_word(row['label_before'])} -> {_word(row['label_after'])}"
        lines.append(f"{row['change']:<10} {row['entity_id']} at {row['as_of']}: {label}")
    if len(diff.rows) > shown:
        lines.append(f"… {len(diff.rows):,} changes in all; -o FILE writes them")
    return lines


def _word(label: int | None) -> str:
    return "none" if label is None else str(label)
