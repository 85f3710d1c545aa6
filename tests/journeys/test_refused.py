"""Adapting with refused applicants: the plain model stays as it is, the other lies beside it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from finetune.adaptation import run_adaptation
from finetune.modelling import AdaptSettings
from finetune.package import Package
from finetune.reject_inference import RejectSettings
from foundation.errors import SampleError
from serving.cli import cli
from serving.progress import Reporter
from tests.journeys.small_world import World

FAST = {"recipes": ("linear",), "repeats": 1, "folds": 4}


def rejects(world: World, path: Path, rows: slice = slice(0, 70)) -> Path:
    """Applicants of the test file, earlier, as if refused then."""
    frame = pl.read_csv(world.test).with_columns(as_of=pl.lit("2020-12-01"))
    frame[rows].drop("label").write_csv(path)
    return path


def test_both_models_are_packaged_and_reported(world: World, tmp_path: Path):
    file = rejects(world, tmp_path / "rejects.csv")
    settings = AdaptSettings(**FAST, rejects=RejectSettings("fuzzy", 2.0))
    found = run_adaptation(
        world.backbone, world.store, world.samples, tmp_path / "both", settings, world.test,
        Reporter(True), file,
    )  # fmt: skip
    text = "\n".join(found.lines())
    assert "70 refused" in text and "150 labels with" in text
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    record = metrics["reject_inference"]
    assert record["refused"] == 70 and record["factor"] == 2.0
    assert record["refused_bad_rate"] > record["labelled_bad_rate"]
    assert set(record["test"]) == {"plain", "inferred"}
    assert metrics["label_power"]["test"]["labels"] == 110
    # the package is the plain model, the figures of the ladder are its own
    assert metrics["recipes"]["linear"]["auc"] == record["test"]["plain"]["auc"]["value"]
    assert Package.load(tmp_path / "both" / "package").manifest["why"] == found.model.why
    beside = Package.load(tmp_path / "both" / "package-fuzzy")
    assert beside.check_golden() <= 1e-5
    assert "refused applicants by fuzzy" in beside.manifest["why"]
    assert record["package"] == beside.id != metrics["package"]
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert "With refused applicants (reject inference)" in page
    assert "What these labels can show" in page


def test_refused_rows_of_the_sample_file_are_enough(world: World, tmp_path: Path):
    frame = (
        pl.read_csv(world.samples)
        .with_columns(approved=pl.int_range(pl.len()) % 5 != 0)
        .with_columns(label=pl.when("approved").then("label"))
    )
    path = tmp_path / "samples.csv"
    frame.write_csv(path)
    output = tmp_path / "out"
    words = ["adapt", "--backbone", world.backbone, "--store", world.store, "--samples", path]
    words += ["-o", output, "--recipes", "linear", "--reject-inference", "parcelling"]
    done = CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "reject inference (parcelling, factor 1) with recipe linear: 30 refused" in done.stdout
    assert f"package {output / 'package-parcelling'} (default-" in done.stdout
    before, _, after = done.stderr.partition("expected 95 % intervals")
    assert "120 labels with" in before and "features" not in before and "package" in after
    assert "labels stand with approved customers alone" in before
    report = json.loads((output / "report.json").read_text())
    assert report["sample"]["approved_only"] is True
    assert report["label_power"]["training"]["labels"] == 120


def test_what_is_refused(world: World, tmp_path: Path):
    settings = AdaptSettings(**FAST, rejects=RejectSettings("fuzzy"))

    def adapt(path: Path | None) -> None:
        run_adaptation(
            world.backbone, world.store, world.samples, tmp_path / "out", settings, None,
            Reporter(True), path,
        )  # fmt: skip

    with pytest.raises(SampleError, match="give --rejects FILE"):
        adapt(None)
    both = tmp_path / "both.csv"
    pl.read_csv(world.samples)[3:5].drop("label").write_csv(both)
    with pytest.raises(SampleError, match=r"row 1: entity 'c0003'.*either labelled or refused"):
        adapt(both)
    assert not (tmp_path / "out").exists()
