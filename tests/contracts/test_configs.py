"""Every YAML a user starts from loads, strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundation.errors import ConfigError, SchemaError
from foundation.schema import load_schema
from tests.contracts.tree import ROOT, files

CONFIGS = [p for p in files() if p.parts[0] == "configs" and p.suffix in (".yaml", ".yml")]


def loader(path: Path) -> Callable[[Path], Any]:
    """How a folder's files are read."""
    folder = path.parts[1]
    if folder == "schemas":
        return load_schema
    if folder == "pretrain":
        from foundation.pretraining import load_pretrain_config

        return load_pretrain_config
    if folder == "simulation":
        from foundation.simulation_scenario import load_scenario

        return load_scenario
    if folder == "serving":
        from serving.settings import load_settings

        return lambda file: load_settings(str(file), {})
    if folder == "decisions":
        from serving.decisions.decision_file import read_decision_file

        return read_decision_file
    if folder == "backtest":
        from finetune.costs import load_costs

        return load_costs
    if path.parts[1:] == ("delivery", "daily.yaml"):
        from serving.daily_settings import load_daily_settings

        return load_daily_settings
    if folder == "delivery":
        from serving.gates import load_delivery_settings

        return load_delivery_settings
    raise AssertionError(f"{path}: no loader is known for configs/{folder}/")


def test_there_are_configs() -> None:
    names = {"/".join(p.parts[1:]) for p in CONFIGS}
    assert names >= {
        "schemas/journey.yaml",
        "schemas/uci.yaml",
        "schemas/loans.yaml",
        "schemas/german.yaml",
        "pretrain/nano.yaml",
        "pretrain/small.yaml",
        "pretrain/base.yaml",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_loads(path: Path) -> None:
    assert loader(path)(ROOT / path) is not None


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_misspelt_key_is_named(path: Path, tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    key = next(iter(data))
    broken = tmp_path / path.name
    broken.write_text(yaml.safe_dump(data | {f"{key}x": 1}), encoding="utf-8")
    with pytest.raises((ConfigError, SchemaError), match=f"unknown key '{key}x'.*'{key}'"):
        loader(path)(broken)
