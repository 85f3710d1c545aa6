"""From a store and a bad rule to vintages, roll rates and maturity: tables and one page.

Where a sample file is given and nothing else is asked for, only events known before its earliest
as_of are read: what the curves say about its windows was known when the first sample was decided.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.bad_definition import (
    BadRule,
    States,
    Subjects,
    age_at,
    read_states,
    subjects_since_as_of,
    subjects_since_booking,
)
from finetune.samples import Samples, read_samples
from finetune.vintage_page import render_vintages
from finetune.vintages import (
    SHARE,
    Maturity,
    directions,
    maturity,
    plain_rows,
    roll_rates,
    turning_state,
    vintages,
    window_maturity,
)
from foundation.errors import DataError, UserError
from foundation.schema import Schema
from foundation.selection import read_selection
from foundation.store import EventStore

SINCE = ("booking", "as-of")
MARKS = (3, 6, 9, 12, 18, 24, 36, 48, 60)


@dataclass(frozen=True)
class VintageSettings:
    """What to look at.

    Attributes:
        since: `booking` follows every customer from the first event, `as-of` every sample.
        share: of the final bads that a mature window has shown.
        window_months: performance window of the samples' labels; None takes label_known_at, or
            the events read.
        until, entities, exclude_entities: see `foundation.selection.read_selection`.
    """

    since: str = "booking"
    share: float = SHARE
    window_months: int | None = None
    until: str | None = None
    entities: Path | None = None
    exclude_entities: Path | None = None
    seed: int = 0


def run_vintages(
    store_dir: str | Path,
    rule: BadRule,
    output: str | Path,
    settings: VintageSettings | None = None,
    samples_path: str | Path | None = None,
) -> dict[str, Any]:
    """Write `vintages.html`, `vintages.json` and each table as Parquet and CSV to `output`.

    Returns:
        the content of `vintages.json`.
    Raises:
        UserError: a rule or an option that does not fit.
        DataError: too little data for any of it.
    """
    settings = settings or VintageSettings()
    store = EventStore.open(store_dir)
    samples = read_samples(samples_path, store.schema, need_labels=False) if samples_path else None
    selection = read_selection(store, settings.until, settings.entities, settings.exclude_entities)
    until_us, notes = _bound(selection.until_us, settings, samples)
    frames = store.frames(None, selection.entities, until_us)
    if rule.source not in frames:
        read_states(pl.DataFrame(), store.schema, rule)  # names the sources there are
    states = read_states(frames[rule.source], store.schema, rule, until_us)
    subjects = _subjects(states, settings, samples, store)
    tables, numbers = _measure(states, subjects, settings, samples, store.schema)
    numbers["notes"] = [*notes, *states.notes, *subjects.notes, *numbers["notes"]]
    numbers |= {
        "name": store.schema.name,
        "rule": rule.text,
        "since": settings.since,
        "store_version": store.version,
        "until": str(_day(states.until_us)),
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "first": str(subjects.origin.min())[:7],
        "last": str(subjects.origin.max())[:7],
    }
    _write(Path(output), tables, numbers)
    return numbers


def _bound(
    until_us: int | None, settings: VintageSettings, samples: Samples | None
) -> tuple[int | None, list[str]]:
    """What bounds the reading, and what to know about it."""
    if settings.since not in SINCE:
        raise UserError(f"--since '{settings.since}' is neither {' nor '.join(SINCE)}")
    if settings.window_months is not None and settings.window_months < 1:
        raise UserError("--window counts whole months and must be at least 1")
    if samples is None:
        if settings.since == "as-of":
            raise UserError("--since as-of follows samples: give --samples FILE")
        if settings.window_months is not None:
            raise UserError("--window is that of a sample file: give --samples FILE")
        return until_us, []
    first = int(samples.as_of_us.min())
    if until_us is None:
        if settings.since == "as-of":
            raise UserError(
                "--since as-of reads what happened after the decisions: say up to when with "
                "--until DATE"
            )
        return first, [
            f"only events known before the earliest as_of of the samples ({_day(first)}) were "
            "read; --until DATE reads further"
        ]
    if until_us <= first:
        return until_us, []
    return until_us, [
        f"events known after the earliest as_of of the samples ({_day(first)}) were read because "
        "--until asks for it: judge the definition by these curves, build no feature on them"
    ]


def _day(moment_us: int) -> dt.date:
    return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=moment_us)).date()


def _subjects(
    states: States, settings: VintageSettings, samples: Samples | None, store: EventStore
) -> Subjects:
    if settings.since == "booking" or samples is None:
        return subjects_since_booking(states)
    return subjects_since_as_of(states, samples.frame, store.schema)


def _measure(
    states: States,
    subjects: Subjects,
    settings: VintageSettings,
    samples: Samples | None,
    schema: Schema,
) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Every table, and the document of numbers; what cannot be had is None with a sentence."""
    tables = {"vintages": vintages(subjects)}
    numbers: dict[str, Any] = {
        "states": list(states.names), "vintages": plain_rows(tables["vintages"]), "notes": [],
        "maturity": None, "no_maturity": "", "windows": [], "roll_rates": [], "directions": [],
        "turning": None, "no_rolls": "",
    }  # fmt: skip
    numbers |= _marked(tables["vintages"])
    try:
        curve = maturity(subjects, settings.share, settings.seed)
        tables["maturity"] = curve.frame
        numbers["maturity"] = _curve_numbers(curve)
    except DataError as exc:
        curve, numbers["no_maturity"] = None, str(exc)
    try:
        tables["roll_rates"] = roll_rates(states)
        moved = directions(tables["roll_rates"], states.names)
        numbers |= {
            "roll_rates": plain_rows(tables["roll_rates"]),
            "directions": plain_rows(moved),
            "turning": turning_state(moved),
        }
    except DataError as exc:
        numbers["no_rolls"] = str(exc)
    if samples is not None and curve is not None:
        months = _months_watched(samples, states, settings)
        if months is None:
            numbers["notes"].append(
                "how long the samples' labels were watched is unknown: give --window MONTHS, a "
                "column label_known_at, or --until a date after as_of"
            )
        else:
            age = np.zeros(len(samples), np.int64)
            if settings.since == "booking":
                age = age_at(states, samples.frame, schema)
            frame = samples.frame
            found = window_maturity(frame["as_of"], frame["label"], age, months, curve)
            tables["windows"], numbers["windows"] = found, plain_rows(found)
    return tables, numbers


def _months_watched(
    samples: Samples, states: States, settings: VintageSettings
) -> np.ndarray | None:
    """[S] whole months between as_of and the end of each sample's label window."""
    as_of = samples.frame["as_of"]
    if settings.window_months is not None:
        return np.full(len(samples), settings.window_months)
    known = samples.frame["label_known_at"]
    if known.null_count() < len(known):
        end = known.fill_null(as_of)
    elif states.until_us > int(samples.as_of_us.min()):
        end = pl.Series([states.until_us]).cast(pl.Datetime("us")).new_from_index(0, len(as_of))
    else:
        return None
    days = (end - as_of).dt.total_days().to_numpy()
    return np.maximum(np.floor((days + 0.5) / 30.4375), 0).astype(np.int64)


def _curve_numbers(curve: Maturity) -> dict[str, Any]:
    last = curve.frame.row(-1, named=True)
    return {
        "months": plain_rows(curve.frame),
        "n": curve.n, "bads": curve.bads, "final_month": curve.final_month,
        "wanted": curve.wanted, "month": curve.month, "low": curve.low, "high": curve.high,
        "recent": curve.recent, "flat": curve.flat, "final": last["share"],
        "final_low": last["low"], "final_high": last["high"], "sentence": curve.sentence(),
    }  # fmt: skip


def _marked(rows: pl.DataFrame) -> dict[str, Any]:
    """Cohorts at a few months, for the table of the page."""
    longest = int(rows["month"].max())  # type: ignore[arg-type]
    marks = [m for m in MARKS if m <= longest] or [longest]
    wanted = rows.filter(pl.col("month").is_in(marks))
    found = {(r["cohort"], r["month"]): r for r in wanted.to_dicts()}
    size = rows.unique("cohort", keep="first", maintain_order=True)
    return {
        "marks": marks,
        "cohorts": [
            {"cohort": c, "n": n, "at": [found.get((c, m)) for m in marks]}
            for c, n in size.select("cohort", "n").iter_rows()
        ],
    }


def _write(output: Path, tables: dict[str, pl.DataFrame], numbers: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        for ending in ("parquet", "csv"):
            path = output / f"{name}.{ending}"
            partial = path.with_name(f".{path.name}.part")
            if ending == "csv":
                table.write_csv(partial)
            else:
                table.write_parquet(partial)
            partial.replace(path)
    texts = {
        "vintages.json": json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False),
        "vintages.html": render_vintages(numbers),
    }
    for file, text in texts.items():
        partial = output / f".{file}.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(output / file)


def _ripe(window: dict[str, Any]) -> str:
    if window["shown"] is None:
        return "older than the curve, nothing can be said"
    return (
        f"{100 * window['shown']:.0f} % of the bads to come have shown, "
        f"{'mature' if window['mature'] else 'not matured yet'}"
    )


def vintage_lines(numbers: dict[str, Any]) -> list[str]:
    """The findings for a terminal."""
    curve = numbers["maturity"]
    lines = [f"bad: {numbers['rule']}; events known before {numbers['until']}"]
    if curve is None:
        lines.append(f"maturity: {numbers['no_maturity']}")
    else:
        lines.append(
            f"ever bad by month {curve['final_month']}: {100 * curve['final']:.2f} % "
            f"({100 * curve['final_low']:.2f} to {100 * curve['final_high']:.2f} %), starts "
            f"{numbers['first']} to {numbers['last']}"
        )
        lines.append(f"maturity: {curve['sentence']}")
    if numbers["turning"] is not None:
        lines.append(
            f"roll rates: from state '{numbers['turning']}' on more customers get worse than better"
        )
    elif numbers["no_rolls"]:
        lines.append(f"roll rates: {numbers['no_rolls']}")
    for w in numbers["windows"]:
        rate = "" if w["bad_rate"] is None else f", bad rate {100 * w['bad_rate']:.1f} %"
        lines.append(
            f"window {w['as_of']}: n = {w['n']:,}{rate}, {w['age']} months old in the middle, "
            f"{w['months']} months watched: {_ripe(w)}"
        )
    return [*lines, *(f"note: {n}" for n in numbers["notes"])]
