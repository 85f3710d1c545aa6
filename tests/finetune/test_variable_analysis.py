"""Variable analysis: planted leaks are named, bins stay frozen, tables and page say the same."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from finetune.report_numbers import report_numbers
from finetune.report_page import TEMPLATES, render_page
from finetune.report_words import WORDS
from finetune.table import Column, FeatureTable
from finetune.variable_analysis import Rows, VariableAnalysis, analyse
from finetune.variable_report import (
    findings_note,
    page_numbers,
    render_variables,
    variable_facts,
    variable_findings,
    variable_lines,
    write_tables,
)
from foundation.errors import SampleError
from foundation.schema import schema_from_dict
from tests.finetune.small_reports import Page, small_content

SCHEMA = schema_from_dict(
    {
        "name": "t",
        "sources": {"pay": {"path": "p.csv", "fields": {"amount": {"kind": "money"}}}},
        "profile": {"path": "q.csv", "fields": {"last_seen": {"kind": "timestamp"}}},
        "context": {"requested": {"kind": "money"}, "collector": {"kind": "number"}},
    }
)
DAY = 86_400_000_000
COLUMNS = (
    Column("pay.amount mean", "aggregate", title="mean amount"),
    Column("pay.amount mean 90d", "aggregate", title="mean amount in 90 days"),
    Column("pay.noise", "aggregate", title="noise"),
    Column("late_30d", "forecast", title="forecast: late within 30 days"),
    Column("profile.region", "profile", kind="code", levels=("north", "south", "west")),
    Column("profile.last_seen.days", "profile", title="days since last seen"),
    Column("context.requested", "context", title="requested"),
    Column("context.collector", "context", title="collector"),
    Column("state.0", "embedding", title="behaviour"),
)


def rows(seed: int, count: int = 300, leaks: bool = False, moved: float = 0.0) -> Rows:
    """Synthetic samples over three months; with leaks, two columns know the outcome."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=count)
    y = (rng.random(count) < 1 / (1 + np.exp(1.3 - 1.2 * z))).astype(float)
    x = rng.normal(size=(count, len(COLUMNS)))
    x[:, 0] = z + rng.normal(size=count) + moved
    x[:, 1] = x[:, 0] + 0.05 * rng.normal(size=count)
    x[:, 3] = 1 / (1 + np.exp(1.3 - z))
    x[:, 4] = rng.integers(0, 3, count)
    x[:, 5] = rng.integers(1, 400, count)
    if leaks:
        x[:, 7] = y + 0.2 * rng.normal(size=count)  # written by the collections desk
        x[:, 5] = np.where((y == 1) | (rng.random(count) < 0.1), -30, np.nan)  # after the outcome
        x[:, 2] = 1.5 * y + rng.normal(size=count)
    x[rng.random(count) < 0.1, 0] = np.nan
    as_of = 1_700_000_000_000_000 + rng.integers(0, 90, count) * DAY
    return Rows(FeatureTable(COLUMNS, x.astype(np.float32)), y, np.ones(count), as_of)


@pytest.fixture(scope="module")
def clean() -> VariableAnalysis:
    return analyse(rows(0), SCHEMA, rows(1, 500, moved=1.5), optimal=2)


@pytest.fixture(scope="module")
def leaking() -> VariableAnalysis:
    return analyse(rows(0, leaks=True), SCHEMA, rows(1, 600), optimal=2)


def test_a_leaking_context_column_is_named(leaking: VariableAnalysis) -> None:
    found = {(s.variable, s.kind): s for s in leaking.suspects}
    leak = found["context.collector", "too good"]
    assert leak.grave and "written before the decision, or with the outcome" in leak.sentence
    # its power is gone where the leak is not
    assert found["context.collector", "collapses"].grave
    assert found["pay.noise", "collapses"].grave
    filled = found["profile.last_seen.days", "filled by outcome"]
    assert filled.grave and "0 % of the bads" in filled.sentence
    later = found["profile.last_seen.days", "later than as_of"]
    assert not later.grave and "100 % of the samples" in later.sentence
    assert leaking.suspects[0].grave and not leaking.suspects[-1].grave
    note = findings_note(leaking)[0]
    assert "'context.collector' (too good)" in note
    row = leaking.variables.row(by_predicate=pl.col("variable") == "context.collector", named=True)
    assert "too good" in row["suspect"] and row["auc"] > 0.9 and row["rank"] == 1


def test_honest_columns_are_not_suspected(clean: VariableAnalysis) -> None:
    assert [s for s in clean.suspects if s.grave] == [] and findings_note(clean) == []
    assert any("no valid_time" in n for n in clean.notes)
    assert any("nothing can check" in n for n in clean.notes)


def test_what_says_the_same_is_one_group(clean: VariableAnalysis) -> None:
    by = {r["variable"]: r for r in clean.variables.to_dicts()}
    pair = {"pay.amount mean", "pay.amount mean 90d"}
    leaders = {by[v]["representative"] for v in pair}
    assert len(leaders) == 1 and leaders < pair and by["pay.amount mean"]["alike"] == 2
    assert by["pay.noise"]["representative"] == "pay.noise"
    assert "state.0" not in by  # embeddings are no variables
    listed = {f.name for f in variable_facts(clean)}
    assert len(listed & pair) == 1 and "late_30d" in listed


def test_bins_do_not_move_with_the_later_sample(clean: VariableAnalysis) -> None:
    keep = [c for c in clean.bins.columns if not c.endswith("_test")]
    for test in (None, rows(7, 90), rows(8, 200, moved=9.0)):
        other = analyse(rows(0), SCHEMA, test, optimal=2)
        mine, theirs = (a.bins.filter(pl.col("n") > 0).select(keep) for a in (clean, other))
        assert mine.equals(theirs)
        for column in ("iv", "iv_chance", "ks", "auc", "iv_optimal"):
            assert clean.variables[column].equals(other.variables[column])


def test_moved_variables_are_named_beyond_chance(clean: VariableAnalysis) -> None:
    moved = variable_findings(clean)["moved"]
    assert {m["name"] for m in moved} == {"pay.amount mean", "pay.amount mean 90d"}
    assert moved[0]["psi"] > 1 and moved[0]["where"] == "the test sample"


def test_rows_may_come_in_any_order_and_columns_too(clean: VariableAnalysis) -> None:
    given, later = rows(0), rows(1, 500, moved=1.5)
    order = np.random.default_rng(0).permutation(300)
    shuffled = Rows(given.table.take(order), given.y[order], given.weight, given.as_of_us[order])
    back = np.arange(len(COLUMNS))[::-1]
    turned = FeatureTable(tuple(COLUMNS[i] for i in back), later.table.values[:, back])
    found = analyse(shuffled, SCHEMA, replace(later, table=turned), optimal=0)
    for column in ("iv", "auc", "psi_test", "psi_month", "auc_test"):
        assert np.allclose(found.variables[column], clean.variables[column], equal_nan=True), column


def test_the_tables_are_complete(clean: VariableAnalysis, tmp_path) -> None:
    write_tables(clean, tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["variable_bins.parquet", "variable_months.parquet", "variables.parquet"]
    table = pl.read_parquet(tmp_path / "variables.parquet")
    assert table["variable"].n_unique() == len(table) == 8
    assert table["iv"].is_sorted(descending=True)
    bins = pl.read_parquet(tmp_path / "variable_bins.parquet")
    quantile = bins.filter(pl.col("binning") == "quantile")
    sums = quantile.group_by("variable").agg(pl.col("n", "share", "share_test", "iv_part").sum())
    assert np.allclose(sums["n"], 300) and np.allclose(sums["share"], 1)
    assert np.allclose(sums["share_test"], 1)
    joined = sums.join(table, on="variable")
    assert np.allclose(joined["iv_part"], joined["iv"])
    months = pl.read_parquet(tmp_path / "variable_months.parquet")
    assert set(months["sample"]) == {"development", "test"} and months["psi"].null_count() == 0


def test_a_later_sample_without_labels_is_compared_all_the_same() -> None:
    found = analyse(rows(0), SCHEMA, replace(rows(1), y=None), optimal=0)
    assert "psi_test" in found.variables.columns and "auc_test" not in found.variables.columns
    assert found.basis["test"]["bads"] is None
    assert "without labels" in render_variables(page_numbers(found, "t", []))


def test_variables_that_are_never_there() -> None:
    given = rows(0)
    values = np.full_like(given.table.values, np.nan)
    values[:, 0] = given.table.values[:, 0]
    found = analyse(replace(given, table=FeatureTable(COLUMNS, values)), SCHEMA, optimal=9)
    empty = found.variables.filter(pl.col("missing") == 1)
    assert len(empty) == 7 and empty["iv_optimal"].null_count() == 7


def test_labels_are_needed() -> None:
    given = rows(0)
    for y in (None, np.zeros(300)):
        with pytest.raises(SampleError, match="both 0 and 1 are needed"):
            analyse(replace(given, y=y), SCHEMA)
    with pytest.raises(SampleError, match="no profile, context"):
        analyse(replace(given, table=given.table.select(("embedding",))), SCHEMA)


def test_page_and_terminal_show_what_was_found(leaking: VariableAnalysis) -> None:
    numbers = page_numbers(leaking, "t", ["a <note>"])
    page = Page(html := render_variables(numbers))
    assert not {"link", "img", "iframe"} & set(page.tags) and not page.handlers
    assert "A &lt;note&gt;." in html and "written before the decision" in page.text
    assert len(page.plots) == 6
    lines = "\n".join(variable_lines(numbers))
    assert "suspect: context.collector (too good)" in lines
    assert "look at: profile.last_seen.days (later than as_of)" in lines


def test_the_report_has_the_same_section(leaking: VariableAnalysis) -> None:
    content = replace(
        small_content(),
        variables=variable_facts(leaking),
        variable_findings=variable_findings(leaking),
    )
    page = Page(render_page(report_numbers(content)))
    for text in ("May know the outcome", "Variables that say the same", "Taken on trust"):
        assert text in page.text, text
    assert f"{leaking.variables['iv'][0]:.3f}" in page.text


@pytest.mark.parametrize("name", ["variables.html.j2", "variables_part.html.j2"])
def test_every_sentence_has_its_translation(name: str) -> None:
    template = (TEMPLATES / name).read_text(encoding="utf-8")
    said = set(re.findall(r'\bt\("((?:[^"\\]|\\.)*)"', template))
    assert len(said) > 8
    kinds = {"too good", "filled by outcome", "later than as_of", "undated", "collapses"}
    assert sorted((said | kinds) - set(WORDS)) == []
