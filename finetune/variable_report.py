"""The variable analysis as files: Parquet tables, a page, and the section of a model report."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from finetune.building import cross_fitted, leak_notes, make_builder
from finetune.file_scoring import check_same_schema, population_of, require_known
from finetune.modelling import Say
from finetune.report_content import VariableFacts
from finetune.report_figures import Figure, figure_layout, label, percent_axis
from finetune.report_page import environment
from finetune.report_words import FIGURE_WORDS
from finetune.samples import Samples, read_samples
from finetune.table import FeatureTable
from finetune.variable_analysis import Rows, VariableAnalysis, analyse
from foundation.checkpoint import load_backbone
from foundation.errors import listing
from foundation.store import EventStore

SHOWN = 30
SHOWN_CLUSTERS = 15
SHOWN_MEMBERS = 6
DRAWN = 6
MOVED = 0.25
BLOCKS = frozenset({"aggregate", "forecast"})


def run_variables(
    backbone_dir: str | Path,
    store_dir: str | Path,
    samples_path: str | Path,
    output: str | Path,
    reporter: Say,
    test_path: str | Path | None = None,
    mapping: str | Path | None = None,
) -> dict[str, Any]:
    """Write `variables`, `variable_bins` and `variable_months` as Parquet, a page and its JSON.

    Args:
        test_path: later samples to compare with; their labels may be missing.
        mapping: how the columns of both files are called; see `finetune.sample_columns`.
    Returns:
        the content of `variables.json`.
    Raises:
        SampleError: samples without both labels, or of which the store knows nobody.
        ArtifactError: backbone and store do not belong together.
    """
    store, backbone = EventStore.open(store_dir), load_backbone(backbone_dir)
    check_same_schema(store, backbone.schema, f"backbone {backbone_dir}")
    schema = backbone.schema
    samples = read_samples(samples_path, schema, need_labels=True, mapping=mapping)
    test = (
        read_samples(test_path, schema, need_labels=False, mapping=mapping) if test_path else None
    )
    notes = [*samples.notes, *leak_notes(backbone, samples, test, allowed=True)]
    with tempfile.TemporaryDirectory() as scratch:
        builder, _ = make_builder(backbone, samples, Path(scratch))
        people = population_of(store, schema, samples)
        require_known(people, schema, samples_path)
        crossed = cross_fitted(backbone, people.entity_ids) if builder.boosted_targets else None
        with reporter.bar("features of the samples") as bar:
            table = builder.table(people, BLOCKS, boosted=crossed, progress=bar)
        later = None
        if test is not None:
            with reporter.bar("features of the test file") as bar:
                features = builder.table(population_of(store, schema, test), BLOCKS, progress=bar)
            later = _rows(features, test)
    found = analyse(_rows(table, samples), schema, later)
    numbers = page_numbers(found, schema.name, notes)
    output = Path(output)
    write_tables(found, output)
    texts = {
        "variables.json": json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False),
        "variables.html": render_variables(numbers),
    }
    for name, text in texts.items():
        partial = output / f".{name}.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(output / name)
    return numbers


def _rows(table: FeatureTable, samples: Samples) -> Rows:
    known = samples.label is not None and not samples.frame["label"].null_count()
    return Rows(table, samples.y if known else None, samples.weight, samples.as_of_us)


def write_tables(found: VariableAnalysis, output: Path) -> None:
    """The three tables, each whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    tables = {
        "variables": found.variables,
        "variable_bins": found.bins,
        "variable_months": found.months,
    }
    for name, table in tables.items():
        partial = output / f".{name}.parquet.part"
        table.write_parquet(partial)
        partial.replace(output / f"{name}.parquet")


def variable_facts(found: VariableAnalysis) -> list[VariableFacts]:
    """The strongest variables, one of each group that says the same."""
    leaders = found.variables.filter(pl.col("variable") == pl.col("representative"))
    psi = "psi_test" if "psi_test" in leaders.columns else "psi_month"
    return [
        VariableFacts(
            name=row["variable"],
            title=row["title"],
            block=row["block"],
            missing=row["missing"],
            iv=row["iv"],
            iv_chance=row["iv_chance"],
            ks=row["ks"],
            auc=row["auc"],
            auc_low=row["auc_low"],
            auc_high=row["auc_high"],
            psi=row[psi],
            psi_month=row["psi_month"],
            auc_test=row.get("auc_test"),
            alike=row["alike"] - 1,
            suspect=row["suspect"],
        )
        for row in leaders.head(SHOWN).to_dicts()
    ]


def variable_findings(found: VariableAnalysis) -> dict[str, Any]:
    """Groups, suspects and moved variables as plain data, for the report and its JSON."""
    return {
        "basis": found.basis,
        "clusters": _clusters(found.variables),
        "suspects": _suspects(found),
        "moved": _moved(found.variables),
        "beyond_chance": int((found.variables["iv"] > found.variables["iv_chance"]).sum()),
        "trusted": found.notes,
    }  # fmt: skip


def findings_note(found: VariableAnalysis) -> list[str]:
    """A sentence for the terminal and the limits where variables may know the outcome."""
    grave = [s for s in found.suspects if s.grave]
    if not grave:
        return []
    names = list(dict.fromkeys(f"'{s.variable}' ({s.kind})" for s in grave))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [f"variables that may know the outcome: {shown}; clear them before using the model"]


def _suspects(found: VariableAnalysis) -> list[dict[str, Any]]:
    """Suspects, those with the same finding in one row."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for s in found.suspects:
        row = out.setdefault((s.kind, s.sentence), {"variables": []})
        row |= {"kind": s.kind, "grave": s.grave, "sentence": s.sentence}
        row["variables"].append({"name": s.variable, "title": s.title})
    return list(out.values())


def _clusters(variables: pl.DataFrame) -> list[dict[str, Any]]:
    """Groups of more than one variable, the strongest first."""
    out = []
    several = variables.filter(pl.col("alike") > 1)
    for (leader,), part in several.group_by(["representative"], maintain_order=True):
        rows = part.sort(pl.col("correlation").abs(), descending=True).to_dicts()
        first = next(r for r in rows if r["variable"] == leader)
        members = [r for r in rows if r["variable"] != leader]
        out.append(
            {
                "name": leader, "title": first["title"], "iv": first["iv"], "size": len(rows),
                "members": [
                    {"name": r["variable"], "title": r["title"], "correlation": r["correlation"]}
                    for r in members[:SHOWN_MEMBERS]
                ],
            }
        )  # fmt: skip
    return sorted(out, key=lambda c: -c["iv"])[:SHOWN_CLUSTERS]


def _moved(variables: pl.DataFrame) -> list[dict[str, Any]]:
    """Variables whose PSI says changed, by more than chance, worst first."""
    out = []
    for row in variables.to_dicts():
        for where, at in (("test", "the test sample"), ("month", row["psi_month_at"])):
            psi, chance = row.get(f"psi_{where}"), row.get(f"psi_{where}_chance")
            if psi is not None and psi >= MOVED and psi > chance:
                out.append(
                    {"name": row["variable"], "title": row["title"], "where": at, "psi": psi,
                     "iv": row["iv"], "rank": row["rank"]}
                )  # fmt: skip
                break
    return sorted(out, key=lambda m: -m["psi"])


def page_numbers(found: VariableAnalysis, name: str, notes: list[str]) -> dict[str, Any]:
    """The document that `variables.json` holds and the page shows."""
    from finetune.report_numbers import variable_rows

    drawn = [f.name for f in variable_facts(found)[:DRAWN]]
    best = found.bins.filter(pl.col("variable").is_in(drawn))
    bins = {n: _shown_bins(best.filter(pl.col("variable") == n)) for n in drawn}
    return {
        "name": name,
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "note": "",
        "rows": variable_rows(variable_facts(found)),
        "findings": variable_findings(found),
        "bins": bins,
        "notes": notes,
    }


def _shown_bins(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """optbinning's bins of a variable where it found some, else the quantile bins."""
    optimal = rows.filter(pl.col("binning") == "optimal")
    return (optimal if len(optimal) else rows).to_dicts()


def render_variables(numbers: dict[str, Any]) -> str:
    """The page as text, complete and offline; `numbers` as of `page_numbers`."""
    code = get_plotlyjs().replace("</script", "<\\/script")
    drawn = {f"bins{i}": _bin_figure(rows) for i, rows in enumerate(numbers["bins"].values())}
    return (
        environment()
        .get_template("variables.html.j2")
        .render(r=numbers, figures=drawn, figure_words=FIGURE_WORDS, plotly=Markup(code))
    )


def _bin_figure(rows: list[dict[str, Any]]) -> Figure:
    """Bad rate by bin with its interval, over the share of customers."""
    x = [label(r["label"], 22) for r in rows]
    rate = [r["bad_rate"] for r in rows]
    data = [
        {
            "type": "bar", "x": x, "y": [r["share"] for r in rows], "name": "share of customers",
            "marker": {"color": "@soft"}, "hovertemplate": "%{x}: %{y:.1%}<extra></extra>",
        },
        {
            "type": "scatter", "mode": "lines+markers", "x": x, "y": rate, "name": "bad rate",
            "line": {"color": "@bad", "width": 2},
            "error_y": {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3,
                "array": [_gap(r["bad_rate_high"], r["bad_rate"]) for r in rows],
                "arrayminus": [_gap(r["bad_rate"], r["bad_rate_low"]) for r in rows],
            },
            "hovertemplate": "%{x}: %{y:.1%}<extra></extra>",
        },
    ]  # fmt: skip
    if any(r["bad_rate_test"] is not None for r in rows):
        data.append(
            {
                "type": "scatter", "mode": "markers", "x": x, "name": "test sample",
                "y": [r["bad_rate_test"] for r in rows], "marker": {"color": "@accent", "size": 8},
                "hovertemplate": "%{x}: %{y:.1%}<extra></extra>",
            }
        )  # fmt: skip
    layout = figure_layout("", "", 250, yaxis=percent_axis(""))
    layout["xaxis"] |= {"type": "category"}
    layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": data, "layout": layout}


def _gap(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(high - low, 0.0)


def variable_lines(numbers: dict[str, Any]) -> list[str]:
    """The findings for a terminal."""
    findings = numbers["findings"]
    basis, test = findings["basis"], findings["basis"]["test"]
    lines = [
        f"{basis['variables']} variables on n = {basis['n']:,} ({basis['bads']:,} bads, "
        f"{100 * basis['bad_rate']:.1f} %), quantile bins: {basis['bins']}"
        + (f"; test n = {test['n']:,}" if test else "")
        + f"; {findings['beyond_chance']} have more IV than chance gives 1 in 20",
        f"{'IV':>6} {'chance':>7} {'KS':>6} {'AUC':>6} {'95 %':>14} {'PSI':>6} {'missing':>8}"
        "  variable (+ number of others that say the same)",
    ]
    for row in numbers["rows"][:12]:
        span = "" if row["auc_low"] is None else f"{row['auc_low']:.3f} to {row['auc_high']:.3f}"
        more = f" (+{row['alike']})" if row["alike"] else ""
        lines.append(
            f"{_text(row['iv']):>6} {_text(row['iv_chance']):>7} {_text(row['ks']):>6} "
            f"{_text(row['auc']):>6} {span:>14} {_text(row['psi']):>6} "
            f"{100 * row['missing']:6.1f} %  {row['name']}{more}"
        )
    for s in findings["suspects"]:
        word = "suspect" if s["grave"] else "look at"
        names = listing((v["name"] for v in s["variables"]), 4)
        lines.append(f"{word}: {names} ({s['kind']}): {s['sentence']}")
    moved = findings["moved"]
    if moved:
        lines.append(
            f"moved: {len(moved)} variables with PSI of {MOVED} or more beyond chance, most "
            + ", ".join(f"{m['name']} ({m['psi']:.2f}, {m['where']})" for m in moved[:3])
        )
    return [*lines, *(f"note: {n}" for n in [*numbers["notes"], *findings["trusted"]])]


def _text(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"
