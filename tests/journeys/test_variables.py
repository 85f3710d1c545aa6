"""The variable analysis from the command line: point in time, and the same as in a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
from click.testing import CliRunner

from foundation.store import import_events
from serving.cli import cli
from tests.journeys.small_world import World

TABLES = ("variables", "variable_bins", "variable_months")


def analysed(world: World, store: Path, output: Path, *more: object) -> str:
    words = ["variables", "--backbone", world.backbone, "--store", store, "--samples",
             world.samples, "--test", world.test, "-o", output, *more]  # fmt: skip
    done = CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_events_at_or_after_as_of_change_no_number(world: World, tmp_path: Path) -> None:
    """Every statement known at or after as_of (2021-01-01) is replaced by another one."""
    raw = tmp_path / "raw"
    raw.mkdir()
    frame = pl.read_parquet(world.root / "statement.parquet")
    late = pl.col("event_time") >= pl.datetime(2021, 1, 1)
    people = frame["entity_id"].unique(maintain_order=True)
    extra = pl.DataFrame(
        {
            "entity_id": people,
            "event_time": pl.Series([pl.datetime(2021, 1, 1)] * 0, dtype=pl.Datetime("us"))
            .extend_constant(np.datetime64("2021-01-01", "us").item(), len(people)),
            "status": ["late"] * len(people),
            "amount": np.linspace(1e5, 2e5, len(people)),
        }
    ).with_columns(due=pl.col("event_time"))  # fmt: skip
    changed = frame.with_columns(
        status=pl.when(late).then(pl.lit("late")).otherwise("status"),
        amount=pl.when(late).then(9e6).otherwise("amount"),
    )
    pl.concat([changed, extra.select(frame.columns)]).write_parquet(raw / "statement.parquet")
    for name in ("login.csv", "profile.parquet"):
        (raw / name).write_bytes((world.root / name).read_bytes())
    import_events(world.schema, tmp_path / "store", data_dir=raw)
    said = analysed(world, world.store, tmp_path / "one")
    assert (
        analysed(world, tmp_path / "store", tmp_path / "two").splitlines()[:-1]
        == (said.splitlines()[:-1])
    )
    for name in TABLES:
        one, two = (pl.read_parquet(tmp_path / d / f"{name}.parquet") for d in ("one", "two"))
        assert one.equals(two), name
    table = pl.read_parquet(tmp_path / "one" / "variables.parquet")
    assert {"aggregate", "profile", "context", "forecast"} == set(table["block"])


def test_adapt_shows_and_writes_the_same(world: World, adapted: Path, tmp_path: Path) -> None:
    analysed(world, world.store, tmp_path)
    mine, report = (pl.read_parquet(d / "variables.parquet") for d in (tmp_path, adapted))
    columns = ["variable", "iv", "ks", "auc", "psi_test", "representative", "suspect"]
    assert mine.select(columns).equals(report.select(columns))
    shown = json.loads((adapted / "report.json").read_text(encoding="utf-8"))["variables"]
    assert shown["rows"][0]["name"] == report["variable"][0]
    assert shown["findings"]["basis"]["test"]["n"] == 110
    assert "Taken on trust" in (adapted / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "variables.html").is_file()


def test_a_leaking_context_column_is_flagged(world: World, tmp_path: Path) -> None:
    """`requested` written with the outcome: named by the command."""
    frame = pl.read_csv(world.samples)
    rng = np.random.default_rng(0)
    leak = 100 + 900 * frame["label"].to_numpy() + rng.normal(size=len(frame))
    path = tmp_path / "samples.csv"
    frame.with_columns(requested=pl.Series(leak)).write_csv(path)
    words = ["variables", "--backbone", world.backbone, "--store", world.store, "--samples", path,
             "--test", world.test, "-o", tmp_path / "out"]  # fmt: skip
    done = CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)
    assert "suspect: context.requested (too good): AUC 1.000" in done.stdout
    assert "suspect: context.requested (collapses)" in done.stdout
