"""Sample files: who is decided on, when, and how it turned out.

`entity_id, as_of[, label, label_known_at, channel, weight]` and the context columns the schema
declares, as CSV or Parquet. Times without a zone are read in the schema's zone and kept as naive
UTC microseconds. Rows are counted from 1, the header not counted.

Shapes: S samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from foundation.errors import SampleError, listing, nearest
from foundation.schema import Field, Schema
from foundation.tables import parse_numbers, parse_times, read_table

KNOWN = ("entity_id", "as_of", "label", "label_known_at", "channel", "weight")
FEW_BADS = 10
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass
class Samples:
    """A checked sample set.

    Attributes:
        frame: entity_id (String), as_of and label_known_at (Datetime us, naive UTC), label (Int8),
            channel (String), weight (Float64), row (Int64, from 1), then the context columns.
        original: the file's own columns, row by row beside `frame`.
        notes: what a person should know about the set, one sentence each.
    """

    frame: pl.DataFrame
    original: pl.DataFrame
    notes: list[str] = field(default_factory=list)

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

    def take(self, rows: np.ndarray) -> Samples:
        """Some of the samples, with the same notes."""
        return Samples(self.frame[rows], self.original[rows], self.notes)


def read_samples(
    path: str | Path, schema: Schema, need_labels: bool, keep_duplicates: bool = False
) -> Samples:
    """Read and check a sample file.

    Args:
        need_labels: every row must carry a label and both labels must occur.
        keep_duplicates: keep exact duplicates, as when every row of a file is to be scored.
    Raises:
        DataError: the file cannot be read.
        SampleError: names file, row and column, and what was expected.
    """
    table = read_table(path, "samples")
    return check_samples(table, schema, need_labels, keep_duplicates, str(path))


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
    frame = pl.DataFrame(
        {
            "entity_id": _entities(table, names["entity_id"], where),
            "as_of": _times(table, "as_of", schema, where, needed=True),
            "label": _labels(table, need_labels, where),
            "label_known_at": _times(table, "label_known_at", schema, where, needed=False),
            "channel": _optional(table, "channel", pl.String),
            "weight": _weights(table, where),
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
    samples = Samples(frame, table[frame["row"].to_numpy() - 1], notes)
    if need_labels:
        samples.notes += _judge_labels(frame["label"], where)
    return samples


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
                f"columns: {listing(table.columns)}"
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


def _labels(table: pl.DataFrame, need_labels: bool, where: str) -> pl.Series:
    if "label" not in table.columns:
        return pl.repeat(None, len(table), dtype=pl.Int8, eager=True)
    given = table["label"]
    text = given.cast(pl.String).str.strip_chars().str.to_lowercase()
    label = text.replace_strict(_LABELS, default=None, return_dtype=pl.Int8)
    bad = label.is_null() if need_labels else label.is_null() & given.is_not_null()
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
    known = {*KNOWN, *names.values(), schema.entity}
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
