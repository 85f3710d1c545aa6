"""The origins of a rolling back-test: which rows are learnt from and tested, and what is kept.

Shapes: S samples. Times are int64 microseconds, UTC.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.backtest_rows import Given
from finetune.table import FeatureTable
from foundation.checkpoint import Backbone
from foundation.errors import SampleError, UserError

CHEAP = ("query", "scorecard", "linear", "gbdt", "forecast", "blend")
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class RollingSettings:
    """How to roll.

    Attributes:
        recipes: compared at each origin; the cheap ones unless others are named.
        test_months: length of the window tested after each origin, and the step between origins.
        embargo_days: after which a label is taken to be known where the file does not say; None
            takes the longest declared horizon of an outcome.
        first: first origin, `YYYY-MM`; None starts where labels suffice.
        least_bads: bads, and goods, an origin needs to learn from.
        folds, repeats: of the cross-validation at each origin.
        allow_leak: judge although the backbone knew events after an origin.
    """

    recipes: tuple[str, ...] = CHEAP
    test_months: int = 1
    embargo_days: int | None = None
    first: str | None = None
    least_bads: int = 10
    folds: int = 5
    repeats: int = 1
    seed: int = 0
    allow_leak: bool = False


@dataclass(frozen=True)
class Origin:
    """One origin: rows learnt from and rows tested, positions in the sample set."""

    name: str
    start_us: int
    stop_us: int
    train: np.ndarray
    test: np.ndarray


def known_times(given: Given, embargo_us: int | None) -> np.ndarray:
    """[S] when each label was known: as the file says, else as_of plus the embargo.

    Raises:
        SampleError: the file does not say for some rows, and there is no embargo.
    """
    known = given.samples.frame["label_known_at"].cast(pl.Int64)
    missing = known.is_null().to_numpy()
    if not missing.any():
        return known.to_numpy()
    if embargo_us is None:
        raise SampleError(
            f"{int(missing.sum()):,} samples do not say when their label was known: add column "
            "'label_known_at', or state after how many days a label is ripe with --embargo-days"
        )
    return np.where(missing, given.samples.as_of_us + embargo_us, known.fill_null(0).to_numpy())


def embargo_of(settings: RollingSettings, backbone: Backbone) -> tuple[int | None, str]:
    """The embargo in microseconds for rows without `label_known_at`, and where it comes from."""
    if settings.embargo_days is not None:
        if settings.embargo_days < 1:
            raise UserError(f"--embargo-days {settings.embargo_days}: write one day or more")
        return settings.embargo_days * DAY_US, f"{settings.embargo_days} days, as stated"
    horizons = [h for o in backbone.schema.parsed_outcomes() for h in o.horizons]
    if not horizons:
        return None, ""
    return max(horizons) * DAY_US, f"{max(horizons)} days, the longest declared outcome"


def origins_of(
    as_of_us: np.ndarray,
    known_us: np.ndarray,
    y: np.ndarray,
    settings: RollingSettings,
    backbone_us: int | None = None,
) -> tuple[list[Origin], list[dict[str, Any]]]:
    """The origins that can be learnt at and tested, month by month (UTC).

    A row is learnt from at an origin where both its as_of and its label's time lie before it.

    Args:
        backbone_us: the last moment the backbone knew; origins up to it are skipped.

    Returns:
        origins in order of time, and those skipped: name, reason, rows of their window.
    Raises:
        UserError: `first` is no month, or no month follows another; SampleError: none is left.
    """
    if settings.test_months < 1:
        raise UserError(f"--test-months {settings.test_months}: write one month or more")
    months = as_of_us.astype("datetime64[us]").astype("datetime64[M]")
    first, last = months.min(), months.max()
    if settings.first is not None:
        try:
            first = np.datetime64(settings.first, "M")
        except ValueError:
            raise UserError(f"--first {settings.first}: write a month such as 2024-03") from None
    origins: list[Origin] = []
    skipped: list[dict[str, Any]] = []
    for start in np.arange(first, last + 1, settings.test_months):
        stop = start + settings.test_months
        begin, end = (int(m.astype("datetime64[us]").astype(np.int64)) for m in (start, stop))
        test = np.flatnonzero((as_of_us >= begin) & (as_of_us < end))
        if not len(test):
            continue
        train = np.flatnonzero((as_of_us < begin) & (known_us < begin))
        if backbone_us is not None and begin <= backbone_us:
            reason = f"the backbone knew events up to {_day(backbone_us)}"
            skipped.append({"origin": str(start), "reason": reason, "n": len(test)})
            continue
        bads, goods = int(y[train].sum()), int((1 - y[train]).sum())
        if min(bads, goods) < settings.least_bads:
            reason = f"{bads} bads and {goods} goods were known by then"
            skipped.append({"origin": str(start), "reason": reason, "n": len(test)})
            continue
        origins.append(Origin(str(start), begin, end, train, test))
    if not origins:
        raise SampleError(
            f"no month can be judged; each needs {settings.least_bads} bads and as many goods "
            f"known from earlier samples, which run from {months.min()} to {months.max()} "
            f"({'; '.join(s['origin'] + ': ' + s['reason'] for s in skipped[-3:])}): bring later "
            "months, or a backbone pretrained with an earlier --until"
        )
    return origins, skipped


def levels_known(
    tables: tuple[FeatureTable, ...], fitted: dict[str, int], train: np.ndarray
) -> tuple[FeatureTable, ...]:
    """Context columns of codes as if the samples at hand were the training rows alone.

    Levels that only other samples show become unseen (-1); those of the training rows are numbered
    by how often they occur there, so that nothing of later samples remains.

    Args:
        tables: the one to learn from first, on all samples; `train` are its rows.
        fitted: column -> levels that were known without any sample of this file.
    """
    learnt = tables[0]
    values = [t.values.copy() for t in tables]
    columns = list(learnt.columns)
    for i, column in enumerate(columns):
        if column.kind != "code" or column.block != "context" or column.name not in fitted:
            continue
        base = fitted[column.name]
        x = learnt.values[train, i]
        counts = Counter(int(v) for v in x[~np.isnan(x)] if v >= base)
        order = sorted(counts, key=lambda c: (-counts[c], column.levels[c]))
        place = np.full(len(column.levels) + 1, -1.0, np.float32)
        place[:base] = np.arange(base)
        place[order] = base + np.arange(len(order))
        for v in values:
            there = ~np.isnan(v[:, i])
            v[there, i] = place[v[there, i].astype(np.int64)]
        levels = (*column.levels[:base], *(column.levels[c] for c in order))
        columns[i] = replace(column, levels=levels)
    return tuple(
        FeatureTable(tuple(columns), v, t.histories, t.thin)
        for t, v in zip(tables, values, strict=True)
    )


def _day(moment_us: int) -> str:
    return str(np.datetime64(int(moment_us), "us").astype("datetime64[D]"))


def read_origin(path: Path) -> tuple[dict[str, Any], pl.DataFrame] | None:
    """A kept origin, or None where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        data = path.with_suffix(".parquet").read_bytes()
    except (OSError, ValueError):
        return None
    if hashlib.sha256(data).hexdigest() != record.pop("rows_sha256", None):
        return None
    return record, pl.read_parquet(data)


def write_origin(path: Path, record: dict[str, Any], frame: pl.DataFrame) -> None:
    """Rows first; the record with their digest makes the origin valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = path.with_suffix(".parquet")
    partial = rows.with_name(f".{rows.name}.part")
    frame.write_parquet(partial)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(rows)
    partial = path.with_name(f".{path.name}.part")
    text = json.dumps(record | {"rows_sha256": digest}, indent=1, allow_nan=False)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
