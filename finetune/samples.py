"""Sample files: who is decided on, when, and how it turned out.

`entity_id, as_of[, label, label_known_at, channel, weight, approved | decision]` and the context
columns the schema declares, as CSV or Parquet. Refused rows without a label are set aside, never
learnt from unasked. Times without a zone are read in the schema's zone and kept as naive
UTC microseconds. Rows are counted from 1, the header not counted.

Shapes: S samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from finetune.sample_columns import apply_mapping, load_mapping
from foundation.errors import SampleError, listing, nearest
from foundation.schema import Field, Schema
from foundation.tables import parse_numbers, parse_times, read_table

KNOWN = ("entity_id", "as_of", "label", "label_known_at", "channel", "weight")
APPROVAL = ("approved", "decision")
FEW_BADS = 10
_APPROVED = dict.fromkeys(("1", "1.0", "true", "yes", "y", "approve", "approved", "accept"), True)
_APPROVED |= dict.fromkeys(("accepted", "booked", "granted", "pass"), True)
_APPROVED |= dict.fromkeys(("0", "0.0", "false", "no", "n", "refuse", "refused", "reject"), False)
_APPROVED |= dict.fromkeys(("rejected", "decline", "declined", "denied", "deny"), False)
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass
class Samples:
    """A checked sample set.

    Attributes:
        frame: entity_id (String), as_of and label_known_at (Datetime us, naive UTC), label (Int8),
            channel (String), weight (Float64), approved (Boolean, null where the file does not
            say), row (Int64, from 1), then the context columns.
        original: the file's own columns, row by row beside `frame`.
        notes: what a person should know about the set, one sentence each.
        refused: refused rows without a label, set aside where labels are needed.
    """

    frame: pl.DataFrame
    original: pl.DataFrame
    notes: list[str] = field(default_factory=list)
    refused: Samples | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def entity_ids(self) -> pl.Series:
        """[S] strings."""
        return self.frame["entity_id"]

    @property
    def as_of_us(self) -> np.ndarray:
        """[S] int64 microseconds since the epoch, UTC."""
        return self.frame["as_of"].to_physical().cast(pl.Int64).to_numpy()

    @property
    def label_known_us(self) -> np.ndarray:
        """[S] int64 microseconds; as_of where the file does not say."""
        known = self.frame["label_known_at"].fill_null(self.frame["as_of"])
        return known.to_physical().cast(pl.Int64).to_numpy()

    @property
    def label(self) -> pl.Series | None:
        """[S] Int8 0, 1 or null; None where the file has no labels."""
        label = self.frame["label"]
        return None if label.null_count() == len(label) else label

    @property
    def y(self) -> np.ndarray:
        """[S] float64 labels.

        Raises:
            SampleError: a label is missing.
        """
        if self.frame["label"].null_count():
            raise SampleError("these samples have rows without a label")
        return self.frame["label"].cast(pl.Float64).to_numpy()

    @property
    def weight(self) -> np.ndarray:
        """[S] float64, positive."""
        return self.frame["weight"].to_numpy()

    @property
    def groups(self) -> np.ndarray:
        """[S] int64: equal for samples of one entity."""
        return self.entity_ids.rank("dense").cast(pl.Int64).to_numpy() - 1

    @property
    def approved_only(self) -> bool:
        """Whether the file says who was approved, and labels stand with the approved alone."""
        approved, labelled = self.frame["approved"], self.frame["label"].is_not_null()
        known = approved.filter(labelled)
        return bool(len(known)) and known.null_count() == 0 and bool(known.all())

    def take(self, rows: np.ndarray) -> Samples:
        """Some of the samples, with the same notes."""
        return Samples(self.frame[rows], self.original[rows], self.notes)


def read_samples(
    path: str | Path,
    schema: Schema,
    need_labels: bool,
    keep_duplicates: bool = False,
    mapping: str | Path | None = None,
) -> Samples:
    """Read and check a sample file.

    Args:
        need_labels: every row must carry a label and both labels must occur.
        keep_duplicates: keep exact duplicates, as when every row of a file is to be scored.
        mapping: what the file calls its columns, see `finetune.sample_columns`; None: as we do.
    Raises:
        DataError: the file cannot be read.
        SampleError: names file, row and column, and what was expected.
    """
    table = read_table(path, "samples")
    if mapping is None:
        return check_samples(table, schema, need_labels, keep_duplicates, str(path))
    renamed = apply_mapping(table, load_mapping(mapping, schema), schema, str(path))
    samples = check_samples(renamed, schema, need_labels, keep_duplicates, str(path))
    samples.original = table[samples.frame["row"].to_numpy() - 1]
    return samples


def check_samples(
    table: pl.DataFrame,
    schema: Schema,
    need_labels: bool,
    keep_duplicates: bool = False,
    where: str = "samples",
) -> Samples:
    """The checks of `read_samples` on a frame; `where` names it in messages."""
    if not len(table):
        raise SampleError(f"{where}: no rows")
    names = _column_names(table, schema, need_labels, where)
    approved, approval_notes = read_approved(table, schema)
    frame = pl.DataFrame(
        {
            "entity_id": _entities(table, names["entity_id"], where),
            "as_of": _times(table, "as_of", schema, where, needed=True),
            "label": _labels(table, need_labels, where, refused=approved.eq_missing(False)),
            "label_known_at": _times(table, "label_known_at", schema, where, needed=False),
            "channel": _optional(table, "channel", pl.String),
            "weight": _weights(table, where),
            "approved": approved,
            "row": pl.int_range(1, len(table) + 1, dtype=pl.Int64, eager=True),
        }
    )
    frame = frame.with_columns(
        _context(table, name, spec, schema, where) for name, spec in schema.context.items()
    )
    notes = _extra_note(table, names, schema)
    early = frame.filter(pl.col("label_known_at") < pl.col("as_of"))
    if len(early):
        raise SampleError(
            f"{where}, row {early['row'][0]}, column 'label_known_at': the label is known before "
            "as_of; a label must lie in the future of its sample"
        )
    if not keep_duplicates:
        frame, dropped = _without_duplicates(frame, list(schema.context), where)
        notes += dropped
    samples = Samples(frame, table[frame["row"].to_numpy() - 1], notes + approval_notes)
    return _labelled(samples, where) if need_labels else samples


def _labelled(samples: Samples, where: str) -> Samples:
    """The rows with a label, refused ones without set aside, and what to know about them."""
    labelled = samples.frame["label"].is_not_null().to_numpy()
    every = samples.frame["approved"]
    out = samples.take(np.flatnonzero(labelled))
    if not labelled.all():
        out.refused = samples.take(np.flatnonzero(~labelled))
    if not len(out):
        raise SampleError(f"{where}: all {len(samples)} rows are refused and none has a label")
    out.notes = samples.notes + _judge_labels(out.frame["label"], where)
    if out.approved_only:
        refused = int(every.eq_missing(False).sum())
        out.notes.append(
            f"labels stand with approved customers alone: {int(every.sum())} of {len(every)} rows "
            f"are approved, {refused} refused ({100 * refused / len(every):.0f} %); figures hold "
            "for customers like those approved, and reject inference shows what the refused might "
            "change (riskfm adapt --reject-inference)"
        )
    elif out.refused is not None:
        out.notes.append(f"{len(out.refused)} refused rows without a label were set aside")
    out.notes += _judge_weights(out.weight)
    return out


def _judge_weights(weight: np.ndarray) -> list[str]:
    if weight.min() == weight.max():
        return []
    worth = weight.sum() ** 2 / (weight**2).sum()
    return [
        f"rows are weighted from {weight.min():g} to {weight.max():g}: {len(weight)} rows are "
        f"worth {worth:.0f} of equal weight; fits, cross-validation, calibration and figures use "
        "the weights, and so do the curves of the report; counts are of rows"
    ]


def read_label_counts(path: str | Path) -> tuple[int, int, list[str]]:
    """Labels and bads of a sample file without its schema, weighted rows for what they are worth.

    Returns:
        labels, bads, and notes; rows without a label are left out.
    Raises:
        SampleError: no column `label`, or a label that is neither 0 nor 1.
    """
    table = read_table(path, "samples")
    if "label" not in table.columns:
        raise SampleError(
            f"{path}: column 'label' is missing{nearest('label', table.columns)}; columns: "
            f"{listing(table.columns)}"
        )
    none = pl.repeat(False, len(table), dtype=pl.Boolean, eager=True)
    label = _labels(table, False, str(path), none)
    known = label.is_not_null().to_numpy()
    y = label.fill_null(0).cast(pl.Float64).to_numpy()[known]
    weight = _weights(table, str(path)).to_numpy()[known]
    notes = [f"{int((~known).sum())} rows without a label were left out"] if (~known).any() else []
    if len(y) and weight.min() < weight.max():
        notes += _judge_weights(weight)[:1]
    labels, bads = effective_counts(y, weight)
    entity = table["entity_id"].filter(pl.Series(known)) if "entity_id" in table.columns else None
    return labels, bads, notes + ([] if entity is None else clustered_note(entity))


def clustered_note(entity_ids: pl.Series) -> list[str]:
    """A sentence where labels are of clearly fewer entities ([S] ids), else nothing."""
    rows, people = len(entity_ids), entity_ids.n_unique()
    if people >= 0.95 * rows:
        return []
    return [
        f"{rows} labels are of {people} entities: rows of one entity are alike, intervals may be "
        f"up to {(rows / people) ** 0.5:.1f} times as wide"
    ]


def effective_counts(y: np.ndarray, weight: np.ndarray) -> tuple[int, int]:
    """Labels and bads that weighted rows are worth, class by class (Kish 1965, section 8.2).

    Args:
        y: [S] labels 0 or 1; weight: [S] positive.
    Returns:
        labels and bads, rounded down; the numbers of rows where all weights are equal.
    """

    def worth(part: np.ndarray) -> int:
        return int(part.sum() ** 2 / (part**2).sum() + 1e-6) if len(part) else 0

    bads = worth(weight[y == 1])
    return bads + worth(weight[y == 0]), bads


def _column_names(
    table: pl.DataFrame, schema: Schema, need_labels: bool, where: str
) -> dict[str, str]:
    """Column in the file of the entity and of every context field."""
    has_entity = "entity_id" in table.columns
    names = {"entity_id": "entity_id" if has_entity else schema.entity, "as_of": "as_of"}
    if need_labels:
        names["label"] = "label"
    names |= {name: spec.column or name for name, spec in schema.context.items()}
    for wanted, column in names.items():
        if column not in table.columns:
            kind = "context column" if wanted in schema.context else "column"
            shown = "entity_id" if wanted == "entity_id" else column
            raise SampleError(
                f"{where}: {kind} '{shown}' is missing{nearest(shown, table.columns)}; "
                f"columns: {listing(table.columns)}; riskfm samples map proposes which is which"
            )
    return names


def _first(mask: pl.Series) -> int:
    """Row, counted from 1, of the first true."""
    return int(mask.arg_max() or 0) + 1


def _entities(table: pl.DataFrame, column: str, where: str) -> pl.Series:
    ids = table[column].cast(pl.String).str.strip_chars()
    empty = ids.is_null() | (ids == "")
    if empty.any():
        raise SampleError(
            f"{where}, row {_first(empty)}, column '{column}': the entity id is empty"
        )
    return ids


def _times(table: pl.DataFrame, column: str, schema: Schema, where: str, needed: bool) -> pl.Series:
    if column not in table.columns:
        return pl.repeat(None, len(table), dtype=pl.Datetime("us"), eager=True)
    given = table[column]
    at = f"{where}, column '{column}'"
    if given.dtype == pl.Null or given.null_count() == len(given):
        times = pl.repeat(None, len(table), dtype=pl.Datetime("us"), eager=True)
    else:
        try:
            times = parse_times(given, schema.time_zone, at)
        except Exception as exc:
            raise SampleError(str(exc)) from None
    bad = times.is_null() if needed else times.is_null() & given.is_not_null()
    if bad.any():
        row = _first(bad)
        found = "is empty" if given[row - 1] is None else f"'{given[row - 1]}' is no time"
        raise SampleError(
            f"{where}, row {row}, column '{column}': {found}; write 2017-01-31 10:00:00"
        )
    return times


def _labels(table: pl.DataFrame, need_labels: bool, where: str, refused: pl.Series) -> pl.Series:
    if "label" not in table.columns:
        return pl.repeat(None, len(table), dtype=pl.Int8, eager=True)
    given = table["label"]
    text = given.cast(pl.String).str.strip_chars().str.to_lowercase()
    label = text.replace_strict(LABELS, default=None, return_dtype=pl.Int8)
    excused = given.is_null() & refused if need_labels else given.is_null()
    bad = label.is_null() & ~excused
    if bad.any():
        row = _first(bad)
        found = "is empty" if given[row - 1] is None else f"'{given[row - 1]}' is neither 0 nor 1"
        raise SampleError(f"{where}, row {row}, column 'label': {found}; 1 is bad, 0 is good")
    return label


def _weights(table: pl.DataFrame, where: str) -> pl.Series:
    if "weight" not in table.columns:
        return pl.repeat(1.0, len(table), dtype=pl.Float64, eager=True)
    weight = parse_numbers(table["weight"])
    bad = weight.is_null() | (weight <= 0)
    if bad.any():
        row = _first(bad)
        raise SampleError(
            f"{where}, row {row}, column 'weight': '{table['weight'][row - 1]}' is no number "
            "above zero"
        )
    return weight


def read_approved(table: pl.DataFrame, schema: Schema) -> tuple[pl.Series, list[str]]:
    """[S] who was approved, from `approved` or `decision` unless the schema uses that name."""
    used = {*schema.context, *(spec.column for spec in schema.context.values()), schema.entity}
    column = next((c for c in APPROVAL if c in table.columns and c not in used), None)
    if column is None:
        return pl.repeat(None, len(table), dtype=pl.Boolean, eager=True), []
    text = table[column].cast(pl.String).str.strip_chars().str.to_lowercase()
    approved = text.replace_strict(_APPROVED, default=None, return_dtype=pl.Boolean)
    odd = table[column].cast(pl.String).filter(approved.is_null()).drop_nulls().unique().sort()
    if not len(odd):
        return approved, []
    return approved, [
        f"column '{column}': {listing(odd, 5)} is read as neither approved nor refused; write "
        "approved or refused, or 1 or 0"
    ]


def _optional(table: pl.DataFrame, column: str, dtype: type[pl.DataType]) -> pl.Series:
    if column in table.columns:
        return table[column].cast(dtype)
    return pl.repeat(None, len(table), dtype=dtype, eager=True)


def _context(table: pl.DataFrame, name: str, spec: Field, schema: Schema, where: str) -> pl.Series:
    """A context column in the type its kind asks for; empty stays null."""
    column = spec.column or name
    given = table[column]
    if spec.kind == "timestamp":
        return _times(table, column, schema, where, needed=False).alias(name)
    if spec.kind not in ("number", "money"):
        return given.cast(pl.String).alias(name)
    number = parse_numbers(given)
    bad = number.is_null() & given.is_not_null()
    if given.dtype.is_float():
        bad = bad & given.is_not_nan()
    if bad.any():
        row = _first(bad)
        raise SampleError(
            f"{where}, row {row}, column '{column}': '{given[row - 1]}' is no finite number"
        )
    return number.alias(name)


def _extra_note(table: pl.DataFrame, names: dict[str, str], schema: Schema) -> list[str]:
    known = {*KNOWN, *APPROVAL, *names.values(), schema.entity}
    extra = [c for c in table.columns if c not in known]
    if not extra:
        return []
    return [f"columns the schema does not declare were ignored: {listing(extra)}"]


def _without_duplicates(
    frame: pl.DataFrame, context: list[str], where: str
) -> tuple[pl.DataFrame, list[str]]:
    """Drop exact repeats; the same decision with two labels is an error."""
    key = ["entity_id", "as_of", "channel", *context]
    two = frame.filter(
        pl.col("label").drop_nulls().n_unique().over(key) > 1, pl.col("label").is_not_null()
    )
    if len(two):
        first = two.row(0, named=True)
        same = two.filter(
            pl.all_horizontal(
                *(pl.col(k).eq_missing(pl.lit(first[k], dtype=two.schema[k])) for k in key)
            )
        )
        other = same.filter(pl.col("label") != first["label"]).row(0, named=True)
        raise SampleError(
            f"{where}, rows {first['row']} and {other['row']}: entity '{first['entity_id']}' at "
            f"{first['as_of']} has label {first['label']} and label {other['label']}; keep one"
        )
    unique = frame.unique(subset=[*key, "label"], keep="first", maintain_order=True)
    dropped = len(frame) - len(unique)
    if not dropped:
        return frame, []
    return unique, [f"{dropped} exact duplicate samples were dropped"]


def _judge_labels(label: pl.Series, where: str) -> list[str]:
    bads = int(label.sum())
    if bads in (0, len(label)):
        raise SampleError(
            f"{where}: all {len(label)} samples have label {1 if bads else 0}; "
            "both 0 (good) and 1 (bad) are needed"
        )
    if bads < FEW_BADS:
        return [f"only {bads} bads in {len(label)} samples: every figure below is uncertain"]
    return []
