"""A model whose backbone multiplies 8-bit integers, from samples to scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from finetune import quantized
from finetune.adaptation import Adaptation, run_adaptation
from finetune.building import make_builder
from finetune.features import FLOAT32, INT8
from finetune.file_scoring import population_of
from finetune.history_graph import TOLERANCE as EXACT
from finetune.modelling import AdaptSettings, check_names
from finetune.package import Package
from finetune.quantized import TOLERANCE
from finetune.samples import read_samples
from foundation.checkpoint import load_backbone
from foundation.errors import ArtifactError, UserError
from foundation.store import EventStore
from serving.cli import cli
from serving.gates import DeliverySettings, load_delivery_settings
from serving.progress import Reporter
from tests.finetune.small_packages import scores
from tests.journeys.small_world import World

FAST = {"recipes": ("query", "probe", "fusion"), "recipe": "probe", "repeats": 1, "folds": 2}


@pytest.fixture(scope="module")
def rounded(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adaptation, Path]:
    """An adaptation with `int8`, and its folder."""
    output = tmp_path_factory.mktemp("rounded")
    result = run_adaptation(
        world.backbone, world.store, world.samples, output,
        AdaptSettings(**FAST, precision=INT8), world.test, Reporter(True),
    )  # fmt: skip
    return result, output


def test_it_learns_on_the_states_it_scores_with(
    world: World, rounded: tuple[Adaptation, Path]
) -> None:
    result, output = rounded
    package = Package.load(output / "package")
    store = EventStore.open(world.store)
    train = population_of(store, package.schema, result.samples)
    found = package.features(train).block("embedding").values
    np.testing.assert_array_equal(found, result.table.block("embedding").values)


def test_the_package_says_what_it_is(rounded: tuple[Adaptation, Path]) -> None:
    result, output = rounded
    manifest = json.loads((output / "package" / "manifest.json").read_text())
    assert manifest["precision"] == INT8
    parity = manifest["graph_parity"]
    assert set(parity) == {FLOAT32, INT8}
    for precision, allowed in ((FLOAT32, EXACT), (INT8, TOLERANCE)):
        assert parity[precision]["tolerance"] == allowed
        for graph in ("history", "incremental"):
            assert 0 < parity[precision][graph] <= allowed
    assert parity[INT8]["history"] > EXACT
    assert result.metrics["parity"]["alone"] <= 1e-5 and result.metrics["parity"]["batch"] <= 1e-5
    assert any("int8 numbers" in note and "prompt and lora" in note for note in result.notes)
    assert "int8 numbers" in (output / "report.json").read_text()
    assert CliRunner().invoke(cli, ["package", "verify", str(output / "package")]).exit_code == 0


def test_a_file_scores_as_rows_alone(
    world: World, rounded: tuple[Adaptation, Path], tmp_path: Path
) -> None:
    package = Package.load(rounded[1] / "package")
    told = CliRunner().invoke(
        cli,
        ["score", "--package", str(rounded[1] / "package"), "--store", str(world.store),
         "--samples", str(world.test), "-o", str(tmp_path / "scored.parquet"), "--quiet"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    scored = pl.read_parquet(tmp_path / "scored.parquet")["score"].to_numpy()
    store, samples = EventStore.open(world.store), read_samples(world.test, package.schema, False)
    for rows in (np.array([3]), np.array([40]), np.arange(70, 79)):
        part = population_of(store, package.schema, samples.take(rows))
        np.testing.assert_allclose(scores(package, part), scored[rows], atol=1e-7)


def test_recipes_with_graphs_of_their_own_are_refused_by_name() -> None:
    for more in ({"recipe": "lora"}, {"recipes": ("probe", "prompt")}):
        with pytest.raises(UserError, match="a graph of its own, which is float32 only"):
            check_names(AdaptSettings(**more, precision=INT8))
    with pytest.raises(UserError, match=r"unknown precision 'int', did you mean 'int8'\?"):
        check_names(AdaptSettings(precision="int"))


def test_a_package_of_another_precision_is_no_source(
    world: World, rounded: tuple[Adaptation, Path], tmp_path: Path
) -> None:
    settings = AdaptSettings(recipe="transfer", sources=(rounded[1] / "package",))
    with pytest.raises(ArtifactError, match="on int8 states, this one reads float32; adapt with"):
        run_adaptation(
            world.backbone, world.store, world.samples, tmp_path, settings, None, Reporter(True)
        )


def test_a_backbone_without_a_network_has_nothing_to_round(world: World, tmp_path: Path) -> None:
    backbone = load_backbone(world.backbone, network=False)
    samples = read_samples(world.samples, backbone.schema, need_labels=True)
    with pytest.raises(UserError, match=r"has no network.*leave the option out"):
        make_builder(backbone, samples, tmp_path, precision=INT8)


def test_a_processor_that_is_not_exact_makes_none(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "exact_here", lambda: False)
    told = CliRunner().invoke(
        cli,
        ["adapt", "--backbone", str(world.backbone), "--store", str(world.store), "--samples",
         str(world.samples), "-o", str(tmp_path / "out"), "--precision", "int8", "--quiet"],
    )  # fmt: skip
    assert told.exit_code != 0
    assert isinstance(told.exception, ArtifactError) or "--precision float32" in told.output


def test_deliveries_ask_for_it_in_their_settings(tmp_path: Path) -> None:
    file = tmp_path / "delivery.yaml"
    file.write_text("adapt: {precision: int8}\n", encoding="utf-8")
    assert load_delivery_settings(file).adapt.precision == INT8
    assert DeliverySettings().adapt.precision == FLOAT32
