"""From a sample file to a package that scores alike everywhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finetune.adaptation import run_adaptation
from finetune.file_scoring import population_of, score_file
from finetune.modelling import AdaptSettings
from finetune.package import Package
from finetune.samples import read_samples
from foundation.checkpoint import load_backbone
from foundation.errors import ArtifactError, ParityError, SampleError
from foundation.store import EventStore
from serving.progress import Reporter
from tests.journeys.small_world import World


def test_metrics_say_what_was_measured(adapted: Path) -> None:
    metrics = json.loads((adapted / "metrics.json").read_text())
    assert metrics["measured_on"] == "test"
    assert metrics["n"] == 110
    assert 0 < metrics["bad_rate"] < 1
    assert metrics["chosen"] in metrics["recipes"]
    for name, row in metrics["recipes"].items():
        assert row["status"] == "ok", (name, row)
        assert 0 <= row["ks"] <= 1 and 0 <= row["auc"] <= 1 and row["cv_log_loss"] > 0
    assert metrics["recipes"][metrics["chosen"]]["auc"] > 0.6
    assert metrics["parity"]["batch"] <= 1e-5 and metrics["parity"]["alone"] <= 1e-5
    assert (adapted / "report.html").stat().st_size > 1_000_000  # plotly inside
    report = json.loads((adapted / "report.json").read_text())
    shipped = metrics["recipes"][metrics["chosen"]]
    for row in report["evaluation"]["metrics"]:  # one model, one set of intervals
        if row["name"] in ("ks", "auc"):
            told = [shipped[f"{row['name']}{end}"] for end in ("", "_low", "_high")]
            assert [row["value"], row["low"], row["high"]] == pytest.approx(told, abs=1e-9)


def test_file_score_equals_package_alone_and_in_any_batch(world: World, adapted: Path) -> None:
    output = world.root / "scored.parquet"
    text = score_file(adapted / "package", world.store, world.test, output, reasons=True)
    assert "AUC" in text
    scored = pl.read_parquet(output)
    given = pl.read_csv(world.test)
    assert scored["entity_id"].to_list() == given["entity_id"].to_list()
    assert {"score", "points", "band", "flags", "reason_1"} <= set(scored.columns)
    package = Package.load(adapted / "package")
    samples = read_samples(world.test, package.schema, need_labels=False)
    store = EventStore.open(world.store)
    for rows in ([0], [7], [0, 7, 50], list(range(30))):
        part = samples.take(np.array(rows))
        found = package.score_population(population_of(store, package.schema, part))
        wanted = scored["score"].to_numpy()[rows]
        assert np.abs(np.array([r.score for r in found]) - wanted).max() <= 1e-5


def test_thin_files_are_scored_and_flagged(world: World, adapted: Path) -> None:
    output = world.root / "thin.csv"
    samples = world.root / "thin_samples.csv"
    pl.DataFrame(
        {
            "entity_id": ["never_seen", "c0005", "c0001"],
            "as_of": ["2021-01-01", "2021-01-01", "2018-01-01"],
            "requested": [100.0, 200.0, 300.0],
        }
    ).write_csv(samples)
    score_file(adapted / "package", world.store, samples, output, reasons=False)
    scored = pl.read_csv(output)
    assert scored["flags"].to_list() == ["thin_file"] * 3
    assert scored["score"].is_between(0, 1).all()


def test_events_known_at_or_after_as_of_change_nothing(
    world: World, adapted: Path, tmp_path: Path
) -> None:
    """The leak test of the whole path: later events, absurd as they are, move no score."""
    from foundation.store import import_events

    later = tmp_path / "later"
    shutil.copytree(world.root, later, ignore=shutil.ignore_patterns("store", "backbone", "model"))
    table = pl.read_parquet(later / "statement.parquet")
    future = pl.col("event_time") >= pl.datetime(2021, 1, 1)
    table = table.with_columns(
        pl.when(future).then(pl.lit("late")).otherwise("status").alias("status"),
        pl.when(future).then(1e9).otherwise("amount").alias("amount"),
    )
    table.write_parquet(later / "statement.parquet")
    import_events(later / "schema.yaml", later / "store")
    package = Package.load(adapted / "package")
    samples = read_samples(world.test, package.schema, need_labels=False)
    first, second = (
        [r.score for r in package.score_population(population_of(EventStore.open(s),
                                                                 package.schema, samples))]
        for s in (world.store, later / "store")
    )  # fmt: skip
    assert first == second


@pytest.mark.parametrize("victim", ["manifest.json", "history.onnx", "golden.json"])
def test_one_flipped_byte_is_refused(adapted: Path, tmp_path: Path, victim: str) -> None:
    copy = tmp_path / "package"
    shutil.copytree(adapted / "package", copy)
    data = bytearray((copy / victim).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / victim).write_bytes(bytes(data))
    with pytest.raises(ArtifactError) as caught:
        Package.load(copy)
    assert "package" in str(caught.value) or victim in str(caught.value)


def test_a_foreign_or_missing_file_is_refused(adapted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "package"
    shutil.copytree(adapted / "package", copy)
    (copy / "extra.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"extra\.txt"):
        Package.load(copy)
    (copy / "extra.txt").unlink()
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Package.load(copy)


def test_golden_rows_that_do_not_reproduce_are_refused(adapted: Path) -> None:
    package = Package.load(adapted / "package", verify=False)
    package.golden["scores"] = [s + 0.01 for s in package.golden["scores"]]
    with pytest.raises(ParityError):
        package.check_golden()


def test_the_manifest_names_its_backbone(world: World, adapted: Path) -> None:
    manifest = Package.load(adapted / "package").manifest
    backbone = load_backbone(world.backbone)
    assert re.fullmatch("[0-9a-f]{16}", manifest["backbone_fingerprint"])
    assert manifest["backbone_fingerprint"] == backbone.fingerprint
    assert manifest["max_events"] == 64  # as the backbone was trained, not the default


def test_golden_rows_carry_no_entity_id(adapted: Path) -> None:
    text = (adapted / "package" / "golden.json").read_text()
    assert not re.search(r'"c\d{4}"', text) and "golden-00" in text


def test_a_backbone_that_knew_the_test_is_refused(world: World, tmp_path: Path) -> None:
    early = tmp_path / "early.csv"
    frame = pl.read_csv(world.test).with_columns(as_of=pl.lit("2020-06-01"))
    frame.write_csv(early)
    with pytest.raises(SampleError, match="--until 2020-06-01"):
        run_adaptation(
            world.backbone, world.store, world.samples, tmp_path / "out", AdaptSettings(), early,
            Reporter(True),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_query_needs_no_label(world: World, tmp_path: Path) -> None:
    unlabelled = tmp_path / "unlabelled.csv"
    pl.read_csv(world.samples).drop("label").write_csv(unlabelled)
    result = run_adaptation(
        world.backbone, world.store, unlabelled, tmp_path / "out",
        AdaptSettings(recipe="query"), world.test, Reporter(True),
    )  # fmt: skip
    assert result.metrics["chosen"] == "query"
    assert result.metrics["recipes"]["query"]["auc"] > 0.5


def test_twenty_labels_still_give_a_model(world: World, tmp_path: Path) -> None:
    frame = pl.read_csv(world.samples)
    bad, good = frame.filter(pl.col("label") == 1), frame.filter(pl.col("label") == 0)
    pl.concat([bad[:6], good[:14]]).write_csv(tmp_path / "few.csv")
    result = run_adaptation(
        world.backbone, world.store, tmp_path / "few.csv", tmp_path / "out",
        AdaptSettings(recipes=("query", "forecast", "linear"), repeats=1), None, Reporter(True),
    )  # fmt: skip
    assert result.metrics["chosen"] in ("query", "forecast")
    assert any("only 6 bads" in note for note in result.metrics["notes"])


def test_samples_of_strangers_are_refused(world: World, tmp_path: Path) -> None:
    strangers = pl.read_csv(world.samples)
    strangers = strangers.with_columns(entity_id=pl.format("x{}", "entity_id"))
    strangers.write_csv(tmp_path / "strangers.csv")
    with pytest.raises(SampleError, match=r"none of .* customers has an event"):
        run_adaptation(
            world.backbone, world.store, tmp_path / "strangers.csv", tmp_path / "out",
            AdaptSettings(), None, Reporter(True),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_labels_of_one_class_are_refused(world: World, tmp_path: Path) -> None:
    pl.read_csv(world.samples).with_columns(label=pl.lit(0)).write_csv(tmp_path / "one.csv")
    with pytest.raises(SampleError, match="label"):
        run_adaptation(
            world.backbone, world.store, tmp_path / "one.csv", tmp_path / "out", AdaptSettings(),
            None, Reporter(True),
        )  # fmt: skip


@pytest.mark.parametrize("recipe", ["prompt", "lora"])
def test_fine_tuned_recipes_are_exported_and_explained(
    world: World, tmp_path: Path, recipe: str
) -> None:
    result = run_adaptation(
        world.backbone, world.store, world.samples, tmp_path / "out",
        AdaptSettings(recipe=recipe, recipes=(recipe,), repeats=1, folds=2), world.test,
        Reporter(True),
    )  # fmt: skip
    assert result.metrics["chosen"] == recipe
    assert result.metrics["parity"]["batch"] <= 1e-5
    package = Package.load(tmp_path / "out" / "package")
    samples = read_samples(world.test, package.schema, need_labels=False).take(np.arange(5))
    population = population_of(EventStore.open(world.store), package.schema, samples)
    explained = package.score_population(population, reasons=True)
    assert any(row.reasons for row in explained)
