"""A channel's label book: what each day brought, kept for ever, and what was known by a day.

Every day adds its own rows and changes none: a corrected label is one more row. What held at the
end of a day follows from the rows of that day and the days before it, whatever came later.

Shapes: rows are decisions. Times are naive UTC microseconds; a day ends where the next begins.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.samples import Samples, check_samples
from foundation.errors import SampleError, listing, nearest
from foundation.schema import Schema
from foundation.tables import read_table

KEY = ("entity_id", "as_of", "channel")
NAMED = 20
_MICROSECOND = dt.timedelta(microseconds=1)


def empty_rows(schema: Schema) -> pl.DataFrame:
    """No rows, with the columns every book has."""
    columns: dict[str, pl.DataType] = {
        "entity_id": pl.String(), "as_of": pl.Datetime("us"), "label": pl.Int8(),
        "label_known_at": pl.Datetime("us"), "channel": pl.String(), "weight": pl.Float64(),
        "approved": pl.Boolean(), "row": pl.Int64(),
    }  # fmt: skip
    for name, spec in schema.context.items():
        number = spec.kind in ("number", "money")
        time = pl.Datetime("us") if spec.kind == "timestamp" else pl.String()
        columns[name] = pl.Float64() if number else time
    return pl.DataFrame(schema=columns)


def read_rows(path: Path, schema: Schema, rows_of: str) -> pl.DataFrame:
    """A file of decisions, checked as samples are, repeats kept; empty where there is none.

    Raises:
        SampleError: file, row and column of what is wrong. DataError: it cannot be read.
    """
    if not path.is_file():
        return empty_rows(schema)
    table = read_table(path, "samples")
    if not len(table):
        return empty_rows(schema)
    if rows_of and "channel" not in table.columns:
        raise SampleError(
            f"{path}: column 'channel' is missing{nearest('channel', table.columns)}, and only "
            f"rows of '{rows_of}' are wanted; columns: {listing(table.columns)}"
        )
    frame = check_samples(table, schema, False, keep_duplicates=True, where=str(path)).frame
    if rows_of:
        frame = frame.filter(pl.col("channel") == rows_of)
    return frame.select(empty_rows(schema).columns)


def take_labels(
    rows: pl.DataFrame, before: pl.DataFrame, date: dt.date
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """What of a day's label file enters the book, and what was said about the rest.

    Args:
        rows: as `read_rows` gives them.
        before: the book as it stood the day before (`known_labels`).
    Returns:
        the new rows, and counts: `new`, `late` (known before the day began), `corrected` (another
        label than the book's, known later), `outdated` (another label, known earlier), `repeated`,
        `unlabelled`, `future` (decided or known after the day); `conflicts` names rows that say
        two labels at one time: none of them is taken.
    """
    start, end = bounds_of(date)
    facts: dict[str, Any] = {"rows": len(rows)}
    facts["unlabelled"] = int(rows["label"].null_count())
    rows = rows.filter(pl.col("label").is_not_null())
    rows = rows.with_columns(pl.col("label_known_at").fill_null(end - _MICROSECOND))
    future = (pl.col("as_of") >= end) | (pl.col("label_known_at") >= end)
    facts["future"] = len(rows.filter(future))
    rows = rows.filter(~future)
    moment = [*KEY, "label_known_at"]
    two = pl.col("label").n_unique().over(moment) > 1
    facts["conflicts"] = _conflicts(rows.filter(two), moment)
    rows = rows.filter(~two).unique([*moment, "label"], keep="first", maintain_order=True)
    joined = rows.join(
        before.select(*KEY, pl.col("label").alias("_old"), pl.col("label_known_at").alias("_at")),
        on=KEY, how="left", nulls_equal=True, maintain_order="left",
    )  # fmt: skip
    # Row after row in the order of knowing: each is held against the label that held before it.
    older = (pl.col("label_known_at") < pl.col("_at")).fill_null(False)
    ordered = joined.with_columns(older.alias("_older")).sort(*KEY, "label_known_at", "row")
    previous = pl.col("label").shift(1).over(*KEY, "_older").fill_null(pl.col("_old"))
    before_it = pl.when(pl.col("_older")).then(pl.col("_old")).otherwise(previous)
    kinds = ordered.with_columns(
        pl.when(before_it.is_null()).then(pl.lit("new"))
        .when(before_it == pl.col("label")).then(pl.lit("repeated"))
        .when(pl.col("_older")).then(pl.lit("outdated"))
        .otherwise(pl.lit("corrected"))
        .alias("_kind")
    )  # fmt: skip
    for kind in ("new", "repeated", "corrected", "outdated"):
        facts[kind] = len(kinds.filter(pl.col("_kind") == kind))
    facts["late"] = len(kinds.filter(pl.col("_kind") == "new", pl.col("label_known_at") < start))
    taken = kinds.filter(pl.col("_kind") != "repeated").drop("_old", "_at", "_older", "_kind")
    facts |= {"taken": len(taken), "bads": int(taken["label"].sum() or 0)}
    return taken.sort(*KEY, "label_known_at", "row"), facts


def take_decided(
    rows: pl.DataFrame, before: pl.DataFrame, date: dt.date
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """What of a day's file of decisions enters the book of decisions.

    Args:
        before: decisions of the days before.
    """
    _, end = bounds_of(date)
    facts = {"rows": len(rows), "future": len(rows.filter(pl.col("as_of") >= end))}
    rows = rows.filter(pl.col("as_of") < end).unique(KEY, keep="first", maintain_order=True)
    fresh = rows.join(before.select(KEY), on=KEY, how="anti", nulls_equal=True)
    facts |= {"taken": len(fresh), "repeated": len(rows) - len(fresh)}
    return fresh.sort(*KEY, "row"), facts


def known_labels(days: Sequence[pl.DataFrame], schema: Schema) -> pl.DataFrame:
    """The label that holds for every decision, from the rows of some days, oldest day first.

    The label known last holds; of labels known at the same moment that of the later day.
    """
    rows = [f.with_columns(pl.lit(n).alias("_day")) for n, f in enumerate(days)]
    empty = empty_rows(schema).with_columns(pl.lit(0).alias("_day"))
    every = pl.concat([empty, *rows], how="vertical_relaxed")
    ordered = every.sort(*KEY, "label_known_at", "_day", "row")
    return ordered.unique(KEY, keep="last", maintain_order=True).drop("_day")


def decided(days: Sequence[pl.DataFrame], schema: Schema) -> pl.DataFrame:
    """All decisions of some days."""
    return pl.concat([empty_rows(schema), *days], how="vertical_relaxed").sort(*KEY, "row")


def as_samples(rows: pl.DataFrame) -> Samples:
    """Rows of a book as a sample set."""
    numbered = rows.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("row"))
    return Samples(numbered, numbered)


def bounds_of(date: dt.date) -> tuple[dt.datetime, dt.datetime]:
    """First moment of a day and of the next, naive UTC."""
    start = dt.datetime(date.year, date.month, date.day)
    return start, start + dt.timedelta(days=1)


def microseconds(moment: dt.datetime) -> int:
    """A naive UTC moment as microseconds since the epoch."""
    return int(np.datetime64(moment, "us").astype(np.int64))


def _conflicts(rows: pl.DataFrame, key: list[str]) -> list[list[int]]:
    """Rows of the file, counted from 1, that contradict each other, customer by customer."""
    groups = rows.group_by(key, maintain_order=True).agg(pl.col("row").sort())
    return [[int(r) for r in found] for found in groups["row"].head(NAMED)]
