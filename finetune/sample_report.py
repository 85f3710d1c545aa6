"""From a sample file to its review: usable rows in standard form, what was dropped, one page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from finetune.sample_columns import (
    ColumnMapping,
    Proposal,
    apply_mapping,
    load_mapping,
    propose_mapping,
)
from finetune.sample_review import Review, ReviewSettings, review_samples
from finetune.samples import Samples
from foundation.errors import SampleError, listing
from foundation.schema import Schema
from foundation.store import EventStore
from foundation.tables import read_table


def propose_for_file(samples_path: str | Path, store: EventStore) -> Proposal:
    """A mapping proposed for a sample file against a store."""
    table = read_table(samples_path, "samples")
    if not len(table):
        raise SampleError(f"{samples_path}: no rows")
    return propose_mapping(table, store.schema, store.entity_ids())


def run_review(
    samples_path: str | Path,
    store_dir: str | Path,
    settings: ReviewSettings,
    mapping: str | Path | None = None,
    output: str | Path | None = None,
) -> Review:
    """Review a sample file; write `samples.parquet`, `dropped.csv`, `review.json`, `review.html`.

    Without a mapping, columns called otherwise are found by proposal where that is beyond doubt.

    Args:
        output: directory to write; None writes nothing.
    Raises:
        SampleError: no rows, or a needed column is missing and cannot be found.
    """
    store = EventStore.open(store_dir)
    table, how = mapped_table(samples_path, store, mapping)
    review = review_samples(table, store.schema, store, settings, str(samples_path))
    review.numbers["mapping"] = how
    if output is not None:
        write_review(review, store.schema, Path(output))
    return review


def mapped_table(
    samples_path: str | Path, store: EventStore, mapping: str | Path | None
) -> tuple[pl.DataFrame, dict[str, Any] | None]:
    """The file with columns called as ours, and how they were found; None: as they stand."""
    table = read_table(samples_path, "samples")
    schema = store.schema
    if mapping is not None:
        given = load_mapping(mapping, schema)
        renamed = apply_mapping(table, given, schema, str(samples_path))
        return renamed, _told(given, "mapping file", [])
    has_id = {"entity_id", schema.entity} & set(table.columns)
    if has_id and "as_of" in table.columns:
        return table, None
    found = propose_mapping(table, schema, store.entity_ids())
    if not found.sure:
        raise SampleError(
            f"{samples_path}: no column '{'as_of' if has_id else 'entity_id'}', and none that "
            f"stands for it beyond doubt; columns: {listing(table.columns)}; run riskfm samples "
            "map, correct what it proposes and pass it with --mapping"
        )
    renamed = apply_mapping(table, found.mapping, schema, str(samples_path))
    return renamed, _told(found.mapping, "proposal", list(found.notes))


def mapped_copy(samples_path: Path, store_dir: Path, mapping: Path, folder: Path) -> Path:
    """The file as Parquet in `folder`, its columns called as ours, every row in its place."""
    table, _ = mapped_table(samples_path, EventStore.open(store_dir), mapping)
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{samples_path.stem}.parquet"
    table.write_parquet(out)
    return out


def _told(mapping: ColumnMapping, by: str, notes: list[str]) -> dict[str, Any]:
    return {"by": by, "columns": mapping.columns, "labels": mapping.labels, "notes": notes}


def standard_frame(samples: Samples, schema: Schema) -> pl.DataFrame:
    """Checked samples in the form every command reads: our names, times in UTC, no other columns.

    Optional columns that say nothing (all empty, all weights one) are left out.
    """
    frame = samples.frame.drop("row")
    keep = [c for c in ("label", "label_known_at", "channel", "approved") if _said(frame[c])]
    if (frame["weight"] != 1.0).any():
        keep.append("weight")
    frame = frame.select("entity_id", "as_of", *keep, *schema.context)
    times = [c for c, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    names = {name: spec.column for name, spec in schema.context.items() if spec.column}
    return frame.with_columns(pl.col(times).dt.replace_time_zone("UTC")).rename(names)


def _said(column: pl.Series) -> bool:
    return column.null_count() < len(column)


def write_review(review: Review, schema: Schema, output: Path) -> None:
    """Every file whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    kept = review.kept
    if kept is not None:
        frame = standard_frame(kept, schema)
        _written(output / "samples.parquet", frame.write_parquet)
    _written(output / "dropped.csv", review.dropped.write_csv)
    text = json.dumps(review.numbers, indent=1, ensure_ascii=False, allow_nan=False)
    _written(output / "review.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))
    page = render_review(review.numbers)
    _written(output / "review.html", lambda p: p.write_text(page, encoding="utf-8"))


def _written(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.part")
    write(partial)
    os.replace(partial, path)


def render_review(numbers: dict[str, Any]) -> str:
    """The page as text, complete and offline; `numbers` as of `sample_review`."""
    # A service reviews samples without the libraries that draw.
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from finetune.report_figures import months_figure
    from finetune.report_page import environment
    from finetune.report_words import FIGURE_WORDS

    code = get_plotlyjs().replace("</script", "<\\/script")
    months = months_figure(numbers["months"])
    shown = {} if months is None else {"months": months}
    page = environment().get_template("sample_review.html.j2")
    return page.render(r=numbers, figures=shown, figure_words=FIGURE_WORDS, plotly=Markup(code))


def review_lines(numbers: dict[str, Any]) -> list[str]:
    """The review for a terminal."""
    facts, cover, ripe = numbers["basis"], numbers["coverage"], numbers["maturity"]
    lines = [f"{numbers['file']}: {numbers['rows']:,} rows, {numbers['kept']:,} usable"]
    how = numbers["mapping"]
    if how is not None:
        named = ", ".join(f"{ours} <- {theirs}" for ours, theirs in how["columns"].items())
        check = "; please check, or correct it with --mapping" if how["by"] == "proposal" else ""
        lines.append(f"columns by {how['by']}: {named}{check}")
        lines += [f"note: {n}" for n in how["notes"]]
    for d in numbers["dropped"]:
        rows = ", ".join(map(str, d["rows"])) + (", …" if d["n"] > len(d["rows"]) else "")
        lines.append(f"left out {d['n']:>7,}  {d['reason']} (rows {rows})")
    if facts is not None:
        lines.append(
            f"customers {numbers['customers']:,}; decided {facts['start']} to {facts['end']}"
        )
        if facts["n"]:
            lines.append(
                f"labels {facts['n']:,}, {facts['n_bad']:,} bad ({_share(facts['bad_rate'])}, 95 % "
                f"{_share(facts['bad_rate_low'])} to {_share(facts['bad_rate_high'])})"
                + (f"; {facts['n_unknown']:,} rows without" if facts["n_unknown"] else "")
            )
    if cover is not None:
        known = cover["customers"] - cover["customers_unknown"]
        silent = cover["median_silent_days"]
        lines.append(
            f"store knows {known:,} of {cover['customers']:,} customers; rows without an event "
            f"before as_of {cover['no_event']:,}, with one or two {cover['few_events']:,}, median "
            f"{cover['median_events']:,.0f} events"
            + (f", the last {silent:,.0f} days before" if silent is not None else "")
        )
    lines += _table(numbers["months"], "month")
    lines += _table(numbers["channels"], "channel")
    if ripe is not None:
        lines += _ripe_lines(ripe)
    if numbers["selection"] is not None:
        chosen = numbers["selection"]
        lines.append(
            f"approved {chosen['approved']:,} of {chosen['said']:,} rows that say so; refused "
            f"without a label {chosen['refused_without_label']:,}"
        )
    if numbers["power"] is not None:
        lines.append(numbers["power"]["sentences"][0])
    lines += [f"note: {n}" for n in numbers["notes"]]
    word = "mind" if numbers["usable"] else "cannot be used"
    lines += [f"{word}: {v}" for v in numbers["verdict"]]
    return lines if numbers["verdict"] else [*lines, "nothing stands in the way"]


def _ripe_lines(ripe: dict[str, Any]) -> list[str]:
    lines = []
    for name, days in (ripe["days_watched"] or {}).items():
        if days is not None:
            lines.append(
                f"{name} labels known {days['median']:.0f} days after as_of (median; "
                f"{days['min']:.0f} to {days['max']:.0f})"
            )
    lines += [
        f"month {m['month']}: {m['unripe']:,} of {m['n']:,} labels not ripe"
        + (f", {m['unlabelled']:,} rows without a label" if m["unlabelled"] else "")
        for m in ripe["months"]
    ]
    return lines


def _table(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Months or channels, one line each, where there is more than one."""
    if len(rows) < 2:
        return []
    out = [f"{name:<16} {'rows':>9} {'bads':>8} {'bad rate':>9}"]
    for r in rows:
        bads = r.get("n_bad", r.get("bads"))
        out.append(f"{r[name]:<16} {r['n']:>9,} {bads:>8,} {_share(r['bad_rate']):>9}")
    return out


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
