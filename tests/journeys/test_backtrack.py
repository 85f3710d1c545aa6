"""Back-tracking with a backbone: forecasts, states and aggregates of one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from finetune.backtrack_check import verify_backtrack
from finetune.backtrack_rows import LEADING
from finetune.backtracking import BacktrackInputs, read_features, run_backtrack
from finetune.building import make_builder
from finetune.file_scoring import population_of
from finetune.samples import read_samples
from foundation.checkpoint import load_backbone
from foundation.store import EventStore
from serving.cli import cli
from tests.journeys.small_world import World


@pytest.fixture(scope="module")
def tracked(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All blocks of the training samples, by two workers, a few entities a piece."""
    out = tmp_path_factory.mktemp("tracked") / "out"
    run_backtrack(
        BacktrackInputs(world.store, world.samples, world.backbone, limit=150), out, workers=2
    )
    return out


def test_equals_the_features_of_adaptation(world: World, tracked: Path, tmp_path: Path) -> None:
    store, backbone = EventStore.open(world.store), load_backbone(world.backbone)
    samples = read_samples(world.samples, backbone.schema, False, True)
    builder, _ = make_builder(backbone, samples, tmp_path)
    table = builder.table(population_of(store, backbone.schema, samples))
    found = read_features(tracked).sort("row").collect()
    assert found.columns == [*LEADING, *(c.name for c in table.columns)]
    values = found.select(c.name for c in table.columns).to_numpy()
    plain = np.array([c.block not in ("forecast", "embedding") for c in table.columns])
    assert 0 < plain.sum() < len(plain)
    np.testing.assert_array_equal(values[:, plain], table.values[:, plain])
    np.testing.assert_allclose(values[:, ~plain], table.values[:, ~plain], atol=1e-5)


def test_one_worker_writes_the_same_bytes(world: World, tracked: Path, tmp_path: Path) -> None:
    inputs = BacktrackInputs(world.store, world.samples, world.backbone, limit=150)
    run_backtrack(inputs, tmp_path / "out", workers=1)
    for path in tracked.rglob("*.*"):
        if path.is_file() and path.name != ".lock":
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tracked)).read_bytes()


def test_brute_force_agrees(tracked: Path) -> None:
    assert "forecasts and states within" in verify_backtrack(tracked, rows=12)[1]


def test_the_command(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["backtrack", "--store", str(world.store), "--samples", str(world.samples)]
    words += ["--backbone", str(world.backbone), "-o", str(out), "--blocks", "forecasts"]
    run = CliRunner().invoke(cli, [*words, "--quiet"], catch_exceptions=False)
    assert "events used" in run.output
    columns = read_features(out).collect_schema().names()[len(LEADING) :]
    assert columns and all(c.removeprefix("network.").startswith("late") for c in columns)
    run = CliRunner().invoke(
        cli, ["backtrack", "--verify", str(out), "--rows", "5", "--quiet"], catch_exceptions=False
    )
    assert "5 random rows recomputed" in run.output
