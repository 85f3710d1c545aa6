"""Tuned channels are one shared graph and a small file each, equal to the tuned model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from finetune.adapters import SUFFIX, AdaptedSession, read_adapter, write_adapter
from finetune.features import open_session
from finetune.history_graph import probe_inputs
from finetune.tuned_graph import prove_shared, shared_graph
from foundation.backbone import INPUTS, RiskBackbone, RiskBackboneConfig
from foundation.errors import ArtifactError, ParityError
from foundation.tokenizer import Tokenizer
from tests.finetune.small_packages import SIZES, tuned
from tests.foundation.small_lender import small_lender


@pytest.fixture(scope="module")
def backbone() -> RiskBackbone:
    schema, timeline, profile = small_lender(10)
    torch.manual_seed(0)
    model = RiskBackbone(RiskBackboneConfig(**SIZES))
    return model.bind(Tokenizer.fit(schema, timeline, profile)).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_the_graph_with_an_adapter_is_the_tuned_model(backbone: RiskBackbone, kind: str) -> None:
    fitted = tuned(backbone, kind, 1)
    graph = shared_graph(backbone, fitted.adapter)
    assert prove_shared(graph, fitted.adapter, fitted.model) <= 1e-5
    with pytest.raises(ParityError, match="differs"):
        prove_shared(graph, tuned(backbone, kind, 2).adapter, fitted.model)


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_channels_share_their_graph_to_the_byte(backbone: RiskBackbone, kind: str) -> None:
    graphs = {
        shared_graph(backbone, tuned(backbone, kind, seed, size).adapter).SerializeToString()
        for seed, size in ((1, 3), (2, 5))
    }
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_one_session_answers_for_every_channel(
    backbone: RiskBackbone, tmp_path: Path, kind: str
) -> None:
    fits = [tuned(backbone, kind, seed, size) for seed, size in ((1, 3), (2, 3), (3, 6))]
    shared = open_session(fits[0].heads()[0].model.SerializeToString())
    inputs = probe_inputs(backbone, 4, 9, seed=5)
    channels = []
    for i, fitted in enumerate(fits):
        path = tmp_path / f"{i}{SUFFIX}"
        write_adapter(path, fitted.adapter)
        channels.append(AdaptedSession(shared, read_adapter(path), path))
    feed = {i.name: inputs[i.name] for i in channels[0].get_inputs()}
    for fitted, channel in [*zip(fits, channels, strict=True)] * 2:  # none leaves a trace
        with torch.no_grad():
            wanted = fitted.model(**{n: torch.from_numpy(inputs[n]) for n in INPUTS}).numpy()
        np.testing.assert_allclose(channel.run(None, feed)[0], wanted, atol=1e-5)


def test_an_adapter_file_holds_its_tensors_and_is_reproducible(
    backbone: RiskBackbone, tmp_path: Path
) -> None:
    adapter = tuned(backbone, "lora", 4).adapter
    paths = [tmp_path / f"{i}{SUFFIX}" for i in range(2)]
    for path, names in zip(paths, (sorted(adapter), sorted(adapter, reverse=True)), strict=True):
        write_adapter(path, {name: adapter[name] for name in names})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found = read_adapter(paths[0])
    assert list(found) == sorted(adapter)
    for name, value in adapter.items():
        np.testing.assert_array_equal(found[name], value)
    assert paths[0].stat().st_size < 4 * sum(v.size for v in adapter.values()) + 4096


def test_an_adapter_of_another_graph_is_refused(backbone: RiskBackbone, tmp_path: Path) -> None:
    lora, prompt = tuned(backbone, "lora", 1), tuned(backbone, "prompt", 1)
    session = open_session(shared_graph(backbone, lora.adapter).SerializeToString())
    with pytest.raises(ArtifactError, match=r"a channel: .* not in both"):
        AdaptedSession(session, prompt.adapter, "a channel")
    other = lora.adapter | {"readout": np.zeros(7, np.float32)}
    with pytest.raises(ArtifactError, match=r"'readout' has shape \[7\], not \[16\]"):
        AdaptedSession(session, other, "a channel")
    path = tmp_path / f"a{SUFFIX}"
    path.write_bytes(b"no adapter at all")
    with pytest.raises(ArtifactError, match="not an adapter file"):
        read_adapter(path)


def test_a_shared_graph_holds_nothing_of_a_channel(backbone: RiskBackbone) -> None:
    adapter = tuned(backbone, "lora", 1).adapter
    graph: onnx.ModelProto = shared_graph(backbone, adapter)
    empty = {t.name: list(t.dims) for t in graph.graph.initializer if t.name in adapter}
    assert empty.keys() == adapter.keys()
    assert all(0 in dims for name, dims in empty.items() if "." in name)
