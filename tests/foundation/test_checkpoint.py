"""Backbone directories refuse what does not belong; trainer states hold no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.checkpoint import load_backbone, load_state, save_state
from foundation.errors import ArtifactError, InternalError
from foundation.pretraining import pretrain
from foundation.tokenizer import Tokenizer
from tests.foundation.small_lender import small_lender
from tests.foundation.test_pretraining import CONFIG, UNTIL, write_store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return pretrain(CONFIG, write_store(folder / "a"), folder / "backbone", UNTIL).path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "backbone")
    return tmp_path / "backbone"


def test_loads_what_was_saved(finished: Path) -> None:
    found = load_backbone(finished)
    assert found.model is not None
    assert not found.model.training
    assert found.model.config.targets == ["late_31d", "quiet_31d", "quiet_62d"]
    assert found.model.config.tokenizer_fingerprint == found.tokenizer.fingerprint
    assert found.forecasters is None
    assert load_backbone(finished, network=False).model is None


def test_another_tokenizer_is_refused(copy: Path) -> None:
    schema, timeline, profile = small_lender(10, seed=5)
    other = Tokenizer.fit(schema, timeline, profile)
    (copy / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(ArtifactError, match=r"tokenizer.json.*trained with"):
        load_backbone(copy)
    run = json.loads((copy / "run.json").read_text())
    run["tokenizer_fingerprint"] = other.fingerprint
    (copy / "run.json").write_text(json.dumps(run))
    with pytest.raises(ArtifactError, match=r"config.json"):
        load_backbone(copy)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "schema.json", "aggregates.json", "config.json", "model.safetensors"]
)
def test_damaged_or_missing_files_are_named(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=name):
        load_backbone(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load_backbone(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layers": 2}))
    with pytest.raises(ArtifactError, match="does not fit"):
        load_backbone(copy)


def test_no_directory_or_unfinished(copy: Path) -> None:
    (copy / "run.json").unlink()
    with pytest.raises(ArtifactError, match="unfinished"):
        load_backbone(copy)
    with pytest.raises(ArtifactError, match="no such"):
        load_backbone(copy / "none")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**50), 2**50)
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_states_survive_exactly(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    tensor = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    save_state({"plain": value, "deep": [{"t": tensor}]}, path)
    found = load_state(path)
    assert found["plain"] == value
    assert torch.equal(found["deep"][0]["t"], tensor)
    assert found["deep"][0]["t"].dtype == torch.float64


def test_states_hold_data_only(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="function"):
        save_state({"x": lambda: None}, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s").write_bytes(b"\x80\x04.")
    with pytest.raises(ArtifactError, match="damaged"):
        load_state(tmp_path / "s")
