"""The backbone that comes with riskfm: whole, small, and as its card says."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
import torch

from foundation.checkpoint import load_backbone
from foundation.schema import schema_to_dict
from foundation.shipped import DEFAULT, shipped_backbone
from tests.conftest import ROOT

FILES = {
    "README.md",
    "aggregates.json",
    "config.json",
    "model.safetensors",
    "run.json",
    "schema.json",
    "tokenizer.json",
}


@pytest.fixture(scope="module")
def card() -> str:
    return (shipped_backbone() / "README.md").read_text(encoding="utf-8")


def test_it_loads_and_gives_no_forecasts_of_others() -> None:
    found = load_backbone(shipped_backbone())  # checks every fingerprint
    assert found.model is not None and found.forecasters is None
    assert found.model.config.targets == [] and found.model.config.based == []
    assert all(bool(p.isfinite().all()) for p in found.model.parameters())
    assert found.run["config"]["name"] == DEFAULT


def test_it_is_small_and_holds_data_only() -> None:
    folder = shipped_backbone()
    files = {p.name for p in folder.rglob("*") if p.is_file()}
    assert files == FILES
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 6_000_000


def test_the_wheel_carries_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["foundation"]
    root = ROOT / "foundation"
    carried = {p for pattern in patterns for p in root.glob(pattern)}
    assert {shipped_backbone() / name for name in FILES} <= carried


def test_the_card_agrees_with_the_files(card: str) -> None:
    folder = shipped_backbone()
    found = load_backbone(folder)
    assert found.model is not None
    count = sum(p.numel() for p in found.model.parameters())
    assert f"network of {count:,} weights" in card
    assert found.run["network"]["parameters"] == count
    assert all(p.dtype == torch.float32 for p in found.model.parameters())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"`{digest}`" in card and found.run["weights_sha256"] == digest
    assert found.tokenizer.fingerprint in card
    assert f"- {found.run['network']['steps']} steps" in card
    events = [int(n.replace(",", "")) for n in re.findall(r"\| ([\d,]+) \| (?:CC|Apache)", card)]
    assert sum(events) == found.run["events"]


def test_the_card_says_licence_and_limits(card: str) -> None:
    for words in ("CC BY 4.0", "10.24432/C55S3H", "SYNTHETIC", "Not a credit model", "## Measured"):
        assert words in card, words
    command = re.search(r"python (scripts/\S+\.py)", card)
    assert command is not None and (ROOT / command.group(1)).is_file()


def test_no_id_and_no_path_stands_in_it() -> None:
    found = load_backbone(shipped_backbone(), network=False)
    for name in ("README.md", "run.json", "schema.json", "tokenizer.json", "aggregates.json"):
        text = (shipped_backbone() / name).read_text(encoding="utf-8")
        assert "uci:" not in text and "synthetic:" not in text, name
        assert not re.search(r"/(?:home|root|tmp|Users)/", text), name
    assert "authorization" not in str(schema_to_dict(found.tokenizer.schema))


def test_weights_differ_from_chance() -> None:
    """Trained, not drawn: hash rows met in training left their starting spread of 0.1."""
    model = load_backbone(shipped_backbone()).model
    assert model is not None
    spread = model.tokens.hashes.weight.detach().std(dim=1)
    assert float(spread.max()) > 1.6 * float(spread.median())


def test_path_is_inside_the_package() -> None:
    assert Path("foundation") / "pretrained" / DEFAULT == shipped_backbone().relative_to(ROOT)
