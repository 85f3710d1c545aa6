"""Adapting without a backbone: the shipped one, on a schema it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from finetune.file_scoring import population_of
from finetune.package import Package
from finetune.samples import read_samples
from foundation.checkpoint import load_backbone
from foundation.errors import SampleError
from foundation.shipped import shipped_backbone
from foundation.store import EventStore, import_events
from serving.cli import cli
from tests.journeys.small_world import World, write_world


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(w) for w in words])
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def adapt(world: World, output: Path, *extra: object) -> tuple[int, str]:
    return run(
        "adapt", "--store", world.store, "--samples", world.samples, "--test", world.test,
        "-o", output, "--recipe", "probe", "--recipes", "probe", *extra,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world with a store and nothing else."""
    made = write_world(tmp_path_factory.mktemp("fresh"))
    import_events(made.schema, made.store)
    return made


@pytest.fixture(scope="module")
def first(fresh: World) -> tuple[Path, str]:
    """The first adaptation, which prepares a backbone."""
    code, text = adapt(fresh, fresh.root / "model")
    assert code == 0, text
    return fresh.root / "model", text


def test_the_shipped_backbone_is_named_and_prepared(fresh: World, first: tuple[Path, str]) -> None:
    output, text = first
    assert "none named, so the shipped nano-credit" in text and "without 110 test entities" in text
    (path,) = (fresh.root / "backbones").iterdir()
    assert f"backbone {path}, prepared from the shipped nano-credit" in text
    backbone = load_backbone(path)
    assert backbone.schema.name == "small_world"
    assert backbone.run["until"].startswith("2021-01-01T00:00:00")
    assert (
        backbone.run["prepared_from"]["fingerprint"]
        == load_backbone(shipped_backbone()).fingerprint
    )
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["chosen"] == "probe" and metrics["recipes"]["probe"]["status"] == "ok"
    assert metrics["recipes"]["probe"]["auc"] > 0.55
    assert any("pretrained on other data" in note for note in metrics["notes"])
    manifest = json.loads((output / "package" / "manifest.json").read_text())
    assert manifest["backbone_from"]["name"] == "nano-credit"
    test = set(pl.read_csv(fresh.test)["entity_id"])
    known = EventStore.open(fresh.store).entity_ids()
    assert backbone.run["entities"] <= len(set(known) - test)


def test_file_and_package_score_alike(fresh: World, first: tuple[Path, str]) -> None:
    package_path, scored_path = first[0] / "package", fresh.root / "scored.parquet"
    code, text = run(
        "score", "--package", package_path, "--store", fresh.store, "--samples", fresh.test,
        "-o", scored_path,
    )  # fmt: skip
    assert code == 0, text
    scored = pl.read_parquet(scored_path)["score"].to_numpy()
    package = Package.load(package_path)
    samples = read_samples(fresh.test, package.schema, need_labels=False)
    for rows in ([3], [0, 7, 50]):
        part = samples.take(np.array(rows))
        population = population_of(EventStore.open(fresh.store), package.schema, part)
        found = [r.score for r in package.score_population(population)]
        assert np.abs(np.array(found) - scored[rows]).max() <= 1e-5
    metrics = json.loads((first[0] / "metrics.json").read_text())
    assert f"AUC {metrics['recipes']['probe']['auc']:.3f}" in text


def test_a_second_adaptation_finds_it(fresh: World, first: tuple[Path, str]) -> None:
    code, text = adapt(fresh, fresh.root / "again")
    assert code == 0 and "prepared before" in text
    assert len(list((fresh.root / "backbones").iterdir())) == 1
    used = {
        json.loads((p / "package" / "manifest.json").read_text())["backbone_fingerprint"]
        for p in (first[0], fresh.root / "again")
    }
    assert len(used) == 1


def test_other_dates_need_another_preparation(fresh: World, first: tuple[Path, str]) -> None:
    from finetune.starting import shipped_start
    from serving.progress import Reporter

    early = fresh.root / "early.csv"
    frame = pl.read_csv(fresh.samples)
    frame.with_columns(pl.lit("2015-01-01").alias("as_of")).write_csv(early)
    before = set((fresh.root / "backbones").iterdir())
    with pytest.raises(SampleError, match=r"earliest sample.*--backbone"):
        shipped_start(
            EventStore.open(fresh.store), early, None, None, True, fresh.root / "x", Reporter(True)
        )
    assert set((fresh.root / "backbones").iterdir()) == before
