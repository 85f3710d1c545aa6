"""Another backbone in shadow: gains and losses are listed, nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from serving.cli import cli
from serving.delivery import Delivery, add_channel
from serving.impact import run_impact
from serving.progress import Reporter
from tests.journeys.daily_world import DailyWorld, settled
from tests.journeys.delivered import content
from tests.journeys.small_world import PRETRAIN


@pytest.fixture(scope="module")
def other(daily_world: DailyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second backbone of the same store: other seed, fewer trees."""
    from foundation.pretraining import load_pretrain_config, run_pretraining

    root = tmp_path_factory.mktemp("other")
    config = PRETRAIN | {
        "steps": 2, "validate_every": 2, "checkpoint_every": 2, "seed": 5,
        "boost": {"folds": 2, "rounds": 4, "per_entity": 3},
    }  # fmt: skip
    (root / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run_pretraining(
        load_pretrain_config(root / "tiny.yaml"), daily_world.root / "store", root / "backbone",
        until="2023-10-01",
    )  # fmt: skip
    return root / "backbone"


def state(delivery: Delivery) -> dict[str, Any]:
    """Everything a delivery workspace holds, but the databases' bytes."""
    files = content(delivery.workspace.root)
    kept = {n: d for n, d in files.items() if not n.startswith(("registry.db", "jobs.db"))}
    return {
        "files": kept,
        "history": delivery.registry.history("acme", "loans"),
        "releases": delivery.registry.releases(),
        "jobs": delivery.book.all(),
    }


def test_impact_lists_gains_and_losses_and_changes_nothing(
    daily_world: DailyWorld, other: Path, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, days=0)
    add_channel(
        delivery, "acme", "new", tmp_path / "store", daily_world.backbone, None, "root"
    )  # fmt: skip
    before = state(delivery)
    out = tmp_path / "impact"
    words = ["backbone", "impact", "--workspace", str(delivery.workspace.root), "--quiet"]
    answer = CliRunner().invoke(cli, [*words, "--backbone", str(other), "-o", str(out)])
    assert answer.exit_code == 0, answer.output
    assert state(delivery) == before
    numbers = json.loads((out / "impact.json").read_text(encoding="utf-8"))
    row, empty = numbers["rows"]
    assert (row["release"], row["on"]) == ("acme/loans/1", "the samples, both out of fold")
    assert row["n"] == len(pl.read_parquet(daily_world.root / "samples.parquet"))
    gap = row["ks"]
    assert gap["low"] <= gap["difference"] <= gap["high"]
    assert gap["difference"] == pytest.approx(row["ks_new"] - row["ks_now"])
    assert (empty["channel"], empty["verdict"]) == ("new", "not compared")
    assert row["sentence"] in answer.output
    assert sum(numbers["counts"].values()) == 2
    page = (out / "impact.html").read_text(encoding="utf-8")
    assert "acme/loans/1" in page
    first = content(out)
    run_impact(delivery, other, out, Reporter(True))
    assert content(out) == first


def test_the_same_backbone_shows_no_difference(daily_world: DailyWorld, tmp_path: Path) -> None:
    delivery = settled(daily_world, tmp_path, days=0)
    numbers = run_impact(delivery, daily_world.backbone, tmp_path / "impact", Reporter(True))
    (row,) = numbers["rows"]
    assert row["verdict"] == "even"
    assert row["ks"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
