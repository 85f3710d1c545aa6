"""A second channel that starts from the first: adapted, packaged, scored without it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from finetune.adaptation import run_adaptation
from finetune.modelling import AdaptSettings
from finetune.package import Package
from serving.cli import cli
from serving.progress import Reporter
from tests.journeys.small_world import World


def channel_samples(world: World, path: Path, rows: slice) -> Path:
    """Some of the labelled customers, decided on the same day."""
    pl.read_csv(world.samples)[rows].write_csv(path)
    return path


def adapt(world: World, samples: Path, output: Path, *extra: str) -> tuple[int, str]:
    arguments = ["adapt", "--backbone", world.backbone, "--store", world.store, "--samples"]
    arguments += [samples, "-o", output, "--test", world.test, "--quiet", *extra]
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def first(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Channel `branch`, adapted on half of the customers."""
    folder = tmp_path_factory.mktemp("branch")
    samples = channel_samples(world, folder / "samples.csv", slice(0, 75))
    code, text = adapt(
        world, samples, folder / "out", "--recipe", "linear", "--recipes", "linear",
        "--channel", "branch", "--monotone", "profile.income=-",
    )  # fmt: skip
    assert code == 0, text
    return folder / "out" / "package"


def test_a_second_channel_starts_from_the_first(world: World, first: Path, tmp_path: Path) -> None:
    samples = channel_samples(world, tmp_path / "samples.csv", slice(75, 150))
    source = tmp_path / "branch"
    shutil.copytree(first, source)
    code, text = adapt(
        world, samples, tmp_path / "out", "--from", str(source), "--recipe", "transfer",
        "--recipes", "transfer,forecast", "--channel", "app", "--seeds", "1",
    )  # fmt: skip
    assert code == 0, text
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["chosen"] == "transfer" and metrics["recipes"]["transfer"]["status"] == "ok"
    assert metrics["parity"]["batch"] <= 1e-5 and metrics["parity"]["alone"] <= 1e-5
    assert metrics["recipes"]["transfer"]["auc"] > 0.6
    assert any("no sign that it knows the same people" in n for n in metrics["notes"])
    shutil.rmtree(source)
    package = Package.load(tmp_path / "out" / "package")
    assert package.manifest["sources"] == [Package.load(first).id]
    # As a word of its own: digests are full of such letters and digits.
    assert not re.search(r"\bc\d{4}\b", json.dumps(package.manifest))
    label = package.manifest["label"]
    assert label["labelled"] == 75 and label["bads"] > 0 and ":" in label["trace"]


def test_the_same_people_at_the_same_time_are_refused(
    world: World, adapted: Path, tmp_path: Path
) -> None:
    package = adapted / "package"
    code, text = adapt(world, world.samples, tmp_path / "out", "--from", str(package))
    assert code == 2 and "of these people are behind its labels" in text and "--allow-leak" in text
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_a_source_is_refused(world: World, first: Path, tmp_path: Path) -> None:
    samples = channel_samples(world, tmp_path / "samples.csv", slice(75, 150))
    cases = [
        (["--recipe", "transfer"], "--from"),
        (["--from", str(first), "--from", str(first)], "already named"),
        (["--from", str(tmp_path)], "no package here"),
        (["--from", str(_of_another_backbone(first, tmp_path))], "same backbone"),
        (["--monotone", "income"], "COLUMN"),
        (["--seeds", "0"], "one seed or more"),
    ]
    for extra, words in cases:
        code, text = adapt(world, samples, tmp_path / "out", *extra)
        assert code == 2 and words in text, (extra, text)


def _of_another_backbone(first: Path, folder: Path) -> Path:
    """A package whose manifest names another backbone, digests in order."""
    from finetune.package import manifest_digest

    other = folder / "other"
    shutil.copytree(first, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["backbone_fingerprint"] = "0" * 16
    manifest["digest"] = manifest_digest(manifest)
    (other / "manifest.json").write_text(json.dumps(manifest))
    return other


def test_tuned_recipes_average_over_seeds(world: World, tmp_path: Path) -> None:
    run_adaptation(
        world.backbone, world.store, world.samples, tmp_path / "out",
        AdaptSettings(recipe="prompt", recipes=("prompt",), folds=2, repeats=1, seeds=2), None,
        Reporter(True),
    )  # fmt: skip
    package = Package.load(tmp_path / "out" / "package")
    # The forecasts, and the mean of two tuned corrections to them.
    assert [(h.weight, bool(h.columns)) for h in package.heads] == [
        (1.0, True),
        (0.5, False),
        (0.5, False),
    ]
