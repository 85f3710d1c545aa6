"""The exported graph is the model, for every batch size and length, or it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.history_graph import OUTPUTS, export_history, open_session, probe_inputs
from foundation.backbone import INPUTS, RiskBackbone, RiskBackboneConfig
from foundation.errors import ParityError
from foundation.tokenizer import Tokenizer
from tests.foundation.small_lender import small_lender

SIZES = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "hidden": 16,
    "fusion_hidden": 16,
    "slot_width": 8,
    "hash_rows": 32,
    "name_rows": 16,
    "targets": ["late_31d", "quiet_31d"],
}


@pytest.fixture(scope="module")
def bound() -> tuple[RiskBackbone, Tokenizer]:
    schema, timeline, profile = small_lender(10)
    tokenizer = Tokenizer.fit(schema, timeline, profile)
    torch.manual_seed(0)
    return RiskBackbone(RiskBackboneConfig(**SIZES)).bind(tokenizer), tokenizer


@pytest.fixture(scope="module")
def graph(bound: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "history.onnx"
    assert export_history(*bound, path) <= 1e-5
    return path


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (4, 2), (7, 19)])
def test_graph_equals_the_model(bound: tuple, graph: Path, batch: int, length: int) -> None:
    model = bound[0].eval()
    inputs = probe_inputs(model, batch, length, seed=3)
    session = open_session(str(graph))
    assert [o.name for o in session.get_outputs()] == list(OUTPUTS)
    found = dict(zip(OUTPUTS, session.run(None, inputs), strict=True))
    with torch.no_grad():
        wanted = model(**{n: torch.from_numpy(inputs[n]) for n in INPUTS}, queries_only=True)
        whole = model(**{n: torch.from_numpy(inputs[n]) for n in INPUTS})
    np.testing.assert_allclose(wanted.query.numpy(), whole.query.numpy(), atol=1e-6)
    np.testing.assert_allclose(found["query"], wanted.query[:, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["forecasts"], wanted.forecasts[:, 0].numpy(), atol=1e-5)
    events = wanted.events.numpy()
    for row, count in enumerate(inputs["query_position"][:, 0]):
        mean = events[row, :count].mean(0) if count else np.zeros(16)
        last = events[row, count - 1] if count else np.zeros(16)
        np.testing.assert_allclose(found["mean"][row], mean, atol=1e-5)
        np.testing.assert_allclose(found["last"][row], last, atol=1e-5)


def test_a_row_alone_is_the_row_in_a_batch(bound: tuple, graph: Path) -> None:
    inputs = probe_inputs(bound[0], 6, 12)
    session = open_session(str(graph))
    together = session.run(["query"], inputs)[0]
    for row in range(6):
        count = max(int(inputs["query_position"][row, 0]), 1)
        alone = {
            n: a[row : row + 1] if n.startswith("query") else a[row : row + 1, :count]
            for n, a in inputs.items()
        }
        np.testing.assert_allclose(session.run(["query"], alone)[0][0], together[row], atol=1e-5)


def test_a_wrong_graph_is_refused(bound: tuple, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="differs"):
        export_history(*bound, tmp_path / "h.onnx", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"bidirectional": True}, {"targets": []}, {"layers": 3}])
def test_other_networks(bound: tuple, tmp_path: Path, changes: dict) -> None:
    torch.manual_seed(0)
    model = RiskBackbone(RiskBackboneConfig(**SIZES | changes))
    assert export_history(model, bound[1], tmp_path / "h.onnx") <= 1e-5
