"""Review of a sample file: what it holds, which rows cannot be used and why, what to know first.

Where `finetune.samples.read_samples` stops at the first fault, the review goes through all of them,
keeps what can be used and says what was left out. A row counts under the first reason that meets
it, in the order of `REASONS`. Nothing is taken from the store but which customers it knows and when
their events became known.

Shapes: S rows of the file, K rows kept. Rows are counted from 1, the header not counted.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from finetune.report_evaluation import basis, by_month, wilson
from finetune.samples import (
    FEW_BADS,
    LABELS,
    Samples,
    check_samples,
    clustered_note,
    read_approved,
)
from foundation.errors import DataError, SampleError, listing, nearest
from foundation.history import cut, entity_index
from foundation.schema import Field, Schema
from foundation.store import EventStore
from foundation.tables import parse_numbers, parse_times

SHOWN_ROWS = 10
FEW_EVENTS = 3
REASONS = {
    "no id": "the entity id is empty",
    "no time": "as_of is empty or no time",
    "bad label": "the label is neither 0 nor 1",
    "no label": "no label yet",
    "bad weight": "the weight is no number above zero",
    "bad context": "a context column holds no finite number or no time",
    "bad label time": "label_known_at is no time",
    "early label": "the label is known before as_of",
    "future": "as_of lies after now, yet there is a label",
    "unknown yet": "the label is known only after now",
    "not ripe": "the performance window had not ended by now",
    "conflict": "same customer and moment with label 0 and label 1",
    "duplicate": "repeats an earlier row",
}


@dataclass(frozen=True)
class ReviewSettings:
    """What to review against.

    Attributes:
        now: moment of the review, naive UTC; labels known at or after it are not known yet.
        window_days: performance window of the labels; rows whose window has not ended by `now` are
            left out, bad ones too, for goods of that age are not known to be good.
        power: also say what the labels can show, which takes scipy.
    """

    now: dt.datetime
    window_days: int | None = None
    power: bool = True


@dataclass
class Review:
    """What was found.

    Attributes:
        kept: the usable rows in standard form, checked.
        dropped: `row`, `reason` of every other row; no ids.
        numbers: the document that JSON and page show.
    """

    kept: Samples | None
    dropped: pl.DataFrame
    numbers: dict[str, Any] = field(default_factory=dict)


def review_samples(
    table: pl.DataFrame,
    schema: Schema,
    store: EventStore | None,
    settings: ReviewSettings,
    where: str = "samples",
) -> Review:
    """Review a sample file whose columns are called as ours.

    Args:
        store: where customers and their events are looked up; None leaves that out.
    Raises:
        SampleError: the file has no rows, or lacks the customer, as_of or a context column.
    """
    if not len(table):
        raise SampleError(f"{where}: no rows")
    if "label" in table.columns and table["label"].dtype == pl.String:
        text = pl.col("label").str.strip_chars()
        table = table.with_columns(pl.when(text != "").then(text).alias("label"))
    reason = _reasons(table, schema, settings, where)
    kept = None
    if (reason == "").any():
        kept = _checked(table, schema, reason, where)
        for key, rows in zip(("conflict", "duplicate"), _repeats(kept, schema), strict=True):
            reason[rows - 1] = key
        kept = _checked(table, schema, reason, where) if (reason == "").any() else None
    dropped = pl.DataFrame({"row": np.arange(1, len(table) + 1), "reason": reason.astype(str)})
    dropped = dropped.filter(pl.col("reason") != "")
    numbers: dict[str, Any] = {
        "file": where,
        "rows": len(table),
        "kept": len(table) - len(dropped),
        "dropped": _counted(dropped),
        "now": settings.now.isoformat(timespec="seconds"),
        "window_days": settings.window_days,
        "notes": [],
        "labelled": False, "basis": None, "months": [], "channels": [], "maturity": None,
        "coverage": None, "selection": None, "power": None, "customers": 0,
    }  # fmt: skip
    if kept is not None:
        numbers |= _measured(kept, settings)
        numbers["notes"] = [*kept.notes, *clustered_note(kept.entity_ids), *_two_labels(kept)]
        numbers["maturity"] = _maturity(table, schema, kept, reason, settings)
        if store is not None:
            numbers["coverage"] = _coverage(kept, schema, store)
    numbers["verdict"], numbers["usable"] = _verdict(numbers, "label" in table.columns)
    return Review(kept, dropped, numbers)


def _reasons(
    table: pl.DataFrame, schema: Schema, settings: ReviewSettings, where: str
) -> np.ndarray:
    """[S] key of `REASONS`, empty for rows that can be used as far as one row shows."""
    reason = np.full(len(table), "", object)

    def mark(key: str, rows: pl.Series | np.ndarray) -> None:
        mask = rows.fill_null(False).to_numpy() if isinstance(rows, pl.Series) else rows
        reason[(reason == "") & mask] = key

    entity = _column(table, "entity_id" if "entity_id" in table.columns else schema.entity, where)
    ids = entity.cast(pl.String).str.strip_chars()
    as_of = _times(_column(table, "as_of", where), schema, where)
    known = _times(table["label_known_at"], schema, where) if "label_known_at" in table else None
    label = _label(table)
    approved, _ = read_approved(table, schema)
    mark("no id", ids.is_null() | (ids == ""))
    mark("no time", as_of.is_null())
    if label is not None:
        empty = table["label"].is_null()
        mark("bad label", label.is_null() & ~empty)
        mark("no label", empty & ~approved.eq_missing(False))
    if "weight" in table.columns:
        weight = parse_numbers(table["weight"])
        mark("bad weight", weight.is_null() | (weight <= 0))
    for name, spec in schema.context.items():
        mark("bad context", _unreadable(_column(table, spec.column or name, where), spec, schema))
    now = settings.now
    if known is not None:
        mark("bad label time", known.is_null() & table["label_known_at"].is_not_null())
        mark("early label", known < as_of)
    if label is not None:
        there = label.is_not_null()
        mark("future", (as_of >= now) & there)
        if known is not None:
            mark("unknown yet", (known >= now) & there)
        if settings.window_days is not None:
            mark("not ripe", (as_of.dt.offset_by(f"{settings.window_days}d") > now) & there)
    return reason


def _checked(table: pl.DataFrame, schema: Schema, reason: np.ndarray, where: str) -> Samples:
    """The rows without a reason, checked; `row` counts in the whole file."""
    index = np.flatnonzero(reason == "")
    kept = check_samples(table[index], schema, need_labels=False, keep_duplicates=True, where=where)
    kept.frame = kept.frame.with_columns(pl.Series("row", index + 1, dtype=pl.Int64))
    return kept


def _repeats(kept: Samples, schema: Schema) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the file in conflict, both sides of it, and later repetitions of a row."""
    key = ["entity_id", "as_of", "channel", *schema.context]
    two = (pl.col("label").drop_nulls().n_unique() > 1).over(key)
    conflict = kept.frame.filter(two & pl.col("label").is_not_null())["row"]
    left = kept.frame.filter(~pl.col("row").is_in(conflict.implode()))
    again = left.filter(pl.int_range(pl.len()).over([*key, "label"]) > 0)["row"]
    return conflict.to_numpy(), again.to_numpy()


def _two_labels(kept: Samples) -> list[str]:
    """A sentence where customers are good and bad at one moment in different channels."""
    labels = kept.frame.group_by("entity_id", "as_of").agg(pl.col("label").drop_nulls().n_unique())
    two = int((labels["label"] > 1).sum())
    if not two:
        return []
    return [
        f"{two:,} customers have label 0 and label 1 at one moment, in different channels or "
        "contexts: is that meant?"
    ]


def _column(table: pl.DataFrame, name: str, where: str) -> pl.Series:
    if name not in table.columns:
        raise SampleError(
            f"{where}: column '{name}' is missing{nearest(name, table.columns)}; columns: "
            f"{listing(table.columns)}; riskfm samples map proposes which is which"
        )
    return table[name]


def _times(column: pl.Series, schema: Schema, where: str) -> pl.Series:
    """Naive UTC times, null where unreadable; a column without one readable time is all null."""
    try:
        return parse_times(column, schema.time_zone, f"{where}, column '{column.name}'")
    except DataError as exc:
        if "zones mixed" in str(exc):
            raise SampleError(str(exc)) from None
        return pl.repeat(None, len(column), dtype=pl.Datetime("us"), eager=True)


def _label(table: pl.DataFrame) -> pl.Series | None:
    if "label" not in table.columns:
        return None
    text = table["label"].cast(pl.String).str.strip_chars().str.to_lowercase()
    return text.replace_strict(LABELS, default=None, return_dtype=pl.Int8)


def _unreadable(column: pl.Series, spec: Field, schema: Schema) -> pl.Series:
    if spec.kind in ("number", "money"):
        bad = parse_numbers(column).is_null() & column.is_not_null()
        return bad & column.is_not_nan() if column.dtype.is_float() else bad
    if spec.kind == "timestamp":
        return _times(column, schema, "samples").is_null() & column.is_not_null()
    return pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)


def _counted(dropped: pl.DataFrame) -> list[dict[str, Any]]:
    """Reasons that occur, in their order, with count and first rows."""
    out = []
    for key, words in REASONS.items():
        rows = dropped.filter(pl.col("reason") == key)["row"].to_list()
        if rows:
            out.append({"key": key, "reason": words, "n": len(rows), "rows": rows[:SHOWN_ROWS]})
    return out


def _measured(kept: Samples, settings: ReviewSettings) -> dict[str, Any]:
    """Counts of the usable rows."""
    y = kept.frame["label"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    known = ~np.isnan(y)
    approved = kept.frame["approved"]
    named = approved.drop_nulls()
    out: dict[str, Any] = {
        "labelled": bool(known.any()),
        "customers": kept.entity_ids.n_unique(),
        "basis": basis("usable rows", y, kept.as_of_us),
        "months": by_month(y, kept.as_of_us),
        "channels": _channels(kept, y),
        "selection": {
            "said": len(named), "approved": int(named.sum()),
            "refused_without_label": int((approved.eq_missing(False).to_numpy() & ~known).sum()),
            "approved_only": kept.approved_only,
        } if len(named) else None,
    }  # fmt: skip
    if known.any() and settings.power:
        from finetune.label_power import power_record

        rows = np.flatnonzero(known)
        out["power"] = power_record(y[rows], kept.weight[rows], None)
    return out


def _channels(kept: Samples, y: np.ndarray) -> list[dict[str, Any]]:
    names = kept.frame["channel"].fill_null("none").to_numpy()
    if len(np.unique(names)) < 2:
        return []
    out = []
    for name in np.unique(names):
        part = y[names == name]
        known = part[~np.isnan(part)]
        low, high = wilson(np.array([known.sum()]), np.array([max(len(known), 1)]))
        out.append(
            {
                "channel": str(name), "n": len(part), "labelled": len(known),
                "bads": int(known.sum()), "bad_rate": float(known.mean()) if len(known) else None,
                "low": float(low[0]), "high": float(high[0]),
            }
        )  # fmt: skip
    return sorted(out, key=lambda r: -r["n"])


def _maturity(
    table: pl.DataFrame,
    schema: Schema,
    kept: Samples,
    reason: np.ndarray,
    settings: ReviewSettings,
) -> dict[str, Any] | None:
    """How long labels were watched, and windows that were not ripe; None without labels."""
    if kept.label is None and not np.isin(reason, ("unknown yet", "not ripe", "no label")).any():
        return None
    as_of = _times(table["as_of"], schema, "samples")
    month = as_of.dt.strftime("%Y-%m")
    frame = pl.DataFrame({"month": month, "reason": reason.astype(str)}).filter(
        pl.col("month").is_not_null()
        & pl.col("reason").is_in(["", "duplicate", "future", "unknown yet", "not ripe", "no label"])
    )
    months = frame.group_by("month").agg(
        pl.len().alias("n"),
        pl.col("reason").is_in(["unknown yet", "not ripe", "future"]).sum().alias("unripe"),
        (pl.col("reason") == "no label").sum().alias("unlabelled"),
    ).sort("month")  # fmt: skip
    days = None
    known = kept.frame["label_known_at"]
    if known.null_count() < len(known):
        watched = (known - kept.frame["as_of"]).dt.total_days()
        label = kept.frame["label"]
        days = {
            name: _spread(watched.filter(label == value).drop_nulls())
            for name, value in (("good", 0), ("bad", 1))
        }
    youngest = kept.frame["as_of"].max()
    age = (settings.now - youngest).days if isinstance(youngest, dt.datetime) else None
    return {
        "months": [m for m in months.to_dicts() if m["unripe"] or m["unlabelled"]],
        "days_watched": days,
        "youngest_days": age,
        "stated": days is not None or settings.window_days is not None,
    }


def _spread(days: pl.Series) -> dict[str, float] | None:
    if not len(days):
        return None
    low, middle, high = (float(days.quantile(q) or 0.0) for q in (0.0, 0.5, 1.0))
    return {"min": low, "median": middle, "max": high}


def _coverage(kept: Samples, schema: Schema, store: EventStore) -> dict[str, Any]:
    """What the store knows of the customers of the usable rows, before their as_of."""
    people = kept.entity_ids.unique()
    timeline = store.timeline(entities=people)
    found = cut(timeline, kept.entity_ids, kept.as_of_us)
    events = found.stop - found.start
    profiled = np.zeros(len(kept), bool)
    if schema.profile is not None:
        profile = store.profile_history(entities=people)
        profiled = entity_index(profile.entity_ids, kept.entity_ids) >= 0
    known = (entity_index(timeline.entity_ids, kept.entity_ids) >= 0) | profiled
    unknown = kept.frame.filter(pl.Series(~known))
    last = np.where(events > 0, timeline.known_us[np.maximum(found.stop - 1, 0)], 0) if len(
        timeline
    ) else np.zeros(len(kept), np.int64)  # fmt: skip
    silent = (kept.as_of_us - last)[events > 0] / 86_400_000_000
    return {
        "store": str(store.directory),
        "store_version": store.version,
        "has_events": bool(schema.sources),
        "customers": len(people),
        "customers_unknown": unknown["entity_id"].n_unique(),
        "rows_unknown": len(unknown),
        "unknown_rows": unknown["row"].head(SHOWN_ROWS).to_list(),
        "no_event": int((events == 0).sum()),
        "few_events": int(((events > 0) & (events < FEW_EVENTS)).sum()),
        "median_events": float(np.median(events)),
        "median_silent_days": float(np.median(silent)) if len(silent) else None,
    }


def _verdict(numbers: dict[str, Any], has_label: bool) -> tuple[list[str], bool]:
    """What stands in the way, and what to mind; and whether the rows can be used at all."""
    stop, mind = [], []
    if not numbers["kept"]:
        return [f"none of {numbers['rows']:,} rows can be used"], False
    facts = numbers["basis"]
    if has_label:
        bads, n = facts["n_bad"], facts["n"]
        if bads in (0, n):
            stop.append(f"all {n:,} labels are {int(bads > 0)}: both 0 and 1 are needed")
        elif bads < FEW_BADS:
            mind.append(f"only {bads} bads: every figure will be uncertain")
    coverage = numbers["coverage"]
    if coverage is not None:
        unknown, people = coverage["customers_unknown"], coverage["customers"]
        if unknown == people:
            stop.append(
                "the store knows none of the customers: is it the store of these samples, and are "
                "their ids written alike?"
            )
        elif unknown > 0.05 * people:
            mind.append(f"the store does not know {unknown:,} of {people:,} customers")
        if coverage["has_events"] and coverage["no_event"] > 0.2 * numbers["kept"]:
            mind.append(
                f"{coverage['no_event']:,} of {numbers['kept']:,} rows have no event before as_of "
                "(thin files)"
            )
    lost = numbers["rows"] - numbers["kept"]
    if lost > 0.1 * numbers["rows"]:
        mind.append(f"{lost:,} of {numbers['rows']:,} rows were left out: see the reasons")
    maturity = numbers["maturity"]
    if has_label and maturity is not None and not maturity["stated"]:
        mind.append(
            "the file does not say when labels were known: give --window DAYS or a column "
            "label_known_at, else young customers count as good"
        )
    if numbers["selection"] and numbers["selection"]["approved_only"]:
        mind.append("labels stand with approved customers alone: the sample is selected")
    return [*stop, *mind], not stop
